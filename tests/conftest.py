"""Fixtures that all tests share. Those of the service are there only where the service is installed."""

from __future__ import annotations

import os
from importlib.util import find_spec

os.environ.setdefault("HF_HUB_OFFLINE", "1")

pytest_plugins = ["tests.servers", "tests.applications"] if find_spec("sqlalchemy") else []
