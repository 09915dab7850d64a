"""A job cannot fill the machine with processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
ORDINARY_USER = 65534
FORKS = 10_000
LIMIT = 1024

BOMB = f"""
import os, resource, sys
from pathlib import Path
from worker.confinement import confine

if os.getuid() == 0:  # root is exempt from the limit
    os.setuid({ORDINARY_USER})
confine(
    scratch=Path("."), inputs=[], hidden=[], max_file_bytes=1 << 20, memory_bytes=None, parent=os.getppid()
)
if resource.getrlimit(resource.RLIMIT_NPROC)[0] != {LIMIT}:
    sys.exit("no user namespace")
reading, writing = os.pipe()
for number in range({FORKS}):
    try:
        child = os.fork()
    except BlockingIOError:
        print(number)
        break
    if child == 0:
        os.close(writing)
        os.read(reading, 1)  # until the first process is gone
        os._exit(0)
"""


@pytest.mark.fault_case(33)
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is confined")
def test_forks_come_to_an_end(tmp_path: Path) -> None:
    bomb = subprocess.run(
        [sys.executable, "-c", BOMB],
        env={"PYTHONPATH": str(REPOSITORY), "PATH": os.environ["PATH"]},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "no user namespace" in bomb.stderr:
        pytest.skip("this kernel does not permit one")
    assert 0 < int(bomb.stdout) < LIMIT, bomb.stderr
