"""Which trusted base a checkpoint is compared with: the one that its scan names, or the nearest registered.

The engine gets it as a file, in the shape of `GET /references/{id}`, and decides what it means.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from sqlalchemy.orm import Session

from service.db import references
from service.db.attempts import Claim
from service.db.models import TrustedReference, TrustedTensor
from service.problems import Problem
from service.settings import Settings
from service.storage.blobs import BlobStore
from service.storage.tensors import TensorRecord, read_tensors
from worker.sandbox import JobFailedError

TRUSTED = "trusted.json"

MIN_SHARE = 0.01
"""A base that shares less is none: strangers too share constants, such as biases that stayed zero."""


T = TypeVar("T")


class Read(Protocol):
    """Runs a statement in a transaction (`worker.lease.Lease.read`)."""

    def __call__(self, statement: Callable[[Session], T], /) -> T: ...


@dataclass(frozen=True)
class Base:
    """trusted: file with the base's tensors. checkpoint: its bytes, where the scan named it."""

    trusted: Path
    checkpoint: Path | None = None

    def as_request(self) -> dict[str, str]:
        """Fields of the engine's `ScanRequest`."""
        witness = {} if self.checkpoint is None else {"reference": str(self.checkpoint)}
        return {"trusted": str(self.trusted), **witness}


def find_base(
    read: Read, claim: Claim, checkpoint: Path, settings: Settings, blobs: BlobStore, scratch: Path
) -> Base | None:
    """The base to compare with, its files in `scratch`; None if the tenant has none that is near.

    Raises JobFailedError if the base that the scan names was removed meanwhile.
    """
    named = claim.options.get("reference")
    if named is not None:
        reference = read(partial(_named, claim.tenant_id, named, scratch))
        return Base(scratch / TRUSTED, blobs.fetch(reference.blob_sha256, scratch))
    if not read(partial(references.known_hashes, tenant_id=claim.tenant_id)):
        return None
    try:
        tensors = list(read_tensors(checkpoint, max_total_bytes=settings.max_upload_bytes))
    except Problem:
        return None  # damaged behind its directory: the engine will say how
    near = read(partial(_nearest, claim.tenant_id, tensors, scratch))
    return Base(scratch / TRUSTED) if near else None


def _named(tenant_id: str, named: str, scratch: Path, session: Session) -> TrustedReference:
    reference = references.get_reference(session, tenant_id, named)
    if reference is None:
        raise JobFailedError("reference-missing", f"The reference {named} was removed.")
    _write(session, reference, scratch)
    return reference


def _nearest(tenant_id: str, tensors: list[TensorRecord], scratch: Path, session: Session) -> bool:
    near = references.nearest(session, tenant_id, tensors)
    if near is None or near.share < MIN_SHARE:
        return False
    _write(session, near.reference, scratch)
    return True


def _write(session: Session, reference: TrustedReference, scratch: Path) -> None:
    tensors = references.tensors_of(session, reference.id)
    body = {
        "id": reference.id,
        "name": reference.name,
        "sha256": reference.blob_sha256,
        "tensors": [_tensor(tensor) for tensor in tensors],
    }
    (scratch / TRUSTED).write_text(json.dumps(body))


def _tensor(tensor: TrustedTensor) -> dict[str, Any]:
    names = ("component", "member", "name", "dtype", "shape", "size", "sha256")
    return {name: getattr(tensor, name) for name in names}
