"""A queue of scans while every part of the service dies once, in small; the benchmark runs it with 10,000."""

from __future__ import annotations

import pytest

from bench.service import endurance

pytestmark = [pytest.mark.e2e, pytest.mark.faults]

SCANS = 120
QUICKLY = {
    "SAUSCAN_LEASE_SECONDS": "5",
    "SAUSCAN_HEARTBEAT_SECONDS": "1",
    "SAUSCAN_STALE_QUEUED_SECONDS": "5",
    "SAUSCAN_REAPER_SECONDS": "1",
}


@pytest.mark.fault_case(8, 13, 15, 16)
def test_every_scan_is_published_once_while_every_part_dies() -> None:
    told = endurance.measure(SCANS, QUICKLY)
    counts = {name: told[name] for name in ("queued", "published", "published_twice", "unasked")}
    assert counts == {"queued": SCANS, "published": SCANS, "published_twice": 0, "unasked": 0}
    assert [fault["name"] for fault in told["faults"]] == [fault.name for fault in endurance.FAULTS]
    assert told["faults"][-1]["ended"] < SCANS, "they all happened while scans waited"
