"""The service under load and under faults, on its real parts.

    python -m bench.service [intake | signatures | load | throughput | endurance]

Every part starts `sauscan up` in a folder of its own, as a user would: PostgreSQL, Valkey, API, relay, reaper
and Celery workers as processes. Only the engine is a stub, whose cost is known (`tests.worker.stub_engine`).
"""
