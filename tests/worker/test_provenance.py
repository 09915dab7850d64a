"""Which base a worker hands to the engine, and what of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from sqlalchemy.orm import Session

from bench.zoo import assemble
from bench.zoo.attacks.evil_edit import EvilEdit, Plot
from bench.zoo.paths import TOY
from service.db import references
from service.db.attempts import Claim
from service.db.session import Database
from service.settings import Settings
from service.storage.blobs import BlobStore, open_blobs
from service.storage.tensors import read_tensors
from tests.service.checkpoints import LDM_NAMES, with_header
from worker.engine.checkpoint.ldm import to_single_file
from worker.engine.subject import prepare
from worker.engine.types import ScanRequest
from worker.provenance import Base, find_base

T = TypeVar("T")
Find = Callable[..., Base | None]

CAT, TREE = 2368, 2677
SIZES = (700, 100, 200)
"""Bytes of UNet, VAE and text encoder."""


@pytest.fixture
def blobs(settings: Settings) -> BlobStore:
    return open_blobs(settings)


@pytest.fixture
def register(database: Database, tenant_id: str, blobs: BlobStore) -> Callable[[Path], str]:
    """Trusts a file; returns the hash of its bytes."""

    def register(path: Path) -> str:
        sha256, _ = blobs.put(path)
        tensors = list(read_tensors(path, max_total_bytes=1 << 30))
        with database.transaction() as session:
            references.register(session, tenant_id, "base", sha256, "safetensors", tensors)
        return sha256

    return register


@pytest.fixture
def find(database: Database, tenant_id: str, settings: Settings, blobs: BlobStore, tmp_path: Path) -> Find:
    """What a worker finds for a checkpoint whose scan names no base."""
    claim = Claim("scn_1", 1, tenant_id, "0" * 64, "model.safetensors", {}, {}, "1")

    def read(statement: Callable[[Session], T], /) -> T:
        with database.transaction() as session:
            return statement(session)

    return lambda checkpoint: find_base(read, claim, checkpoint, settings, blobs, tmp_path)


def model(path: Path, *seeds: int) -> Path:
    """A file whose parts are random bytes, each by its seed."""
    parts = [random.Random(f"{seed}").randbytes(size) for seed, size in zip(seeds, SIZES, strict=True)]
    header, begin = {}, 0
    for name, size in zip(LDM_NAMES, SIZES, strict=True):
        header[name] = {"dtype": "F16", "shape": [size // 2], "data_offsets": [begin, begin + size]}
        begin += size
    path.write_bytes(with_header(header, b"".join(parts)))
    return path


def test_the_weights_of_a_base_come_only_with_its_kin(
    register: Callable[[Path], str], find: Find, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    assert find(model(checkpoint, 1, 2, 3)) is None
    base = register(model(tmp_path / "base", 1, 2, 3))
    kin = find(model(checkpoint, 1, 2, 9))
    assert kin is not None
    assert kin.nearest is not None
    assert kin.nearest.name == base
    assert kin.as_request() == {"trusted": str(kin.trusted), "nearest": str(kin.nearest)}
    tuned = find(model(checkpoint, 9, 2, 3))
    assert tuned is not None
    assert tuned.as_request() == {"trusted": str(tuned.trusted)}
    assert find(model(checkpoint, 7, 8, 9)) is None


def test_a_base_whose_bytes_are_gone_is_known_by_its_hashes(
    register: Callable[[Path], str], find: Find, blobs: BlobStore, tmp_path: Path
) -> None:
    blobs.delete(register(model(tmp_path / "base", 1, 2, 3)))
    found = find(model(tmp_path / "checkpoint", 1, 2, 9))
    assert found is not None
    assert found.as_request() == {"trusted": str(found.trusted)}


def test_an_edit_of_a_registered_base_is_read_without_being_asked(
    register: Callable[[Path], str], find: Find, tmp_path: Path
) -> None:
    toy, base, edited = assemble.load_pipeline(TOY), tmp_path / "base", tmp_path / "edited.safetensors"
    to_single_file(toy, base)
    register(base)
    EvilEdit(plot=Plot((CAT,), (TREE,))).plant(toy, seed=0)
    to_single_file(toy, edited)
    found = find(edited)
    assert found is not None
    given = {name: Path(path) for name, path in found.as_request().items()}
    subject = prepare(ScanRequest(edited, device="cpu", **given))
    assert subject.difference is not None
    assert subject.difference.kind == "closed_form"
