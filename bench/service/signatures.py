"""A signed result of a real scan, changed in random places: how many changes does verification refuse?"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.service.ledger import ledger
from bench.service.stack import Stack, running, until
from bench.service.submissions import http_client, upload
from service.client import Client
from service.reports.signing import verify

MUTATIONS = 100
SEED = 20
_PATIENCE_SECONDS = 120.0


def mutations(folder: Path, count: int, seed: int) -> Iterator[str]:
    """The name of a file in which one byte is another while the caller looks; every file in its turn."""
    chance = random.Random(seed)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    for number in range(count):
        path = folder / names[number % len(names)]
        original = path.read_bytes()
        changed = bytearray(original)
        changed[chance.randrange(len(changed))] ^= chance.randrange(1, 256)
        path.write_bytes(changed)
        yield names[number % len(names)]
        path.write_bytes(original)


def measure() -> dict[str, Any]:
    """How many of the mutations were refused; the untouched result must be accepted before and after."""
    with running() as stack, tempfile.TemporaryDirectory() as folder:
        result = _download(stack, Path(folder) / "result")
        public = stack.folder / "signing-key.pub.pem"
        intact = [not verify(result, public).faults]
        refused = [bool(verify(result, public).faults) for _ in mutations(result, MUTATIONS, SEED)]
        intact.append(not verify(result, public).faults)
    return {
        "signature_mutations_refused": sum(refused),
        "mutations": MUTATIONS,
        "seed": SEED,
        "intact_accepted": all(intact),
    }


def _download(stack: Stack, folder: Path) -> Path:
    with http_client(stack.connection) as http, ledger(stack.database_url) as known:
        _, scan_id = upload(http, seconds=0.0)
        until(lambda: known.ended() == 1, seconds=_PATIENCE_SECONDS, what="the scan")
    with Client(stack.connection.url, stack.connection.api_key) as client:
        for file in client.files(scan_id):
            client.download(file, folder)
    return folder
