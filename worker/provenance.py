"""Which trusted base a checkpoint is compared with: the one that its scan names, or the nearest registered.

The engine gets its hashes as a file, in the shape of `GET /references/{id}`, and its checkpoint where a
comparison of weights can tell something; what either means is the engine's to decide.
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
from service.db.references import Nearest
from service.problems import Problem
from service.settings import Settings
from service.storage.blobs import BlobMissingError, BlobStore
from service.storage.tensors import TensorRecord, read_tensors
from worker.sandbox import JobFailedError

TRUSTED = "trusted.json"

MIN_SHARE = 0.01
"""A base that shares less is none: strangers too share constants, such as biases that stayed zero."""

MIN_KIN = 0.5
"""The weights of a base that shares less are not compared: most differ, which tells little. Of SD 1.5's bytes
an edit of cross-attention leaves 98 %, a new text encoder 88 %, a fine-tune of the UNet 19 %.
"""


T = TypeVar("T")


class Read(Protocol):
    """Runs a statement in a transaction (`worker.lease.Lease.read`)."""

    def __call__(self, statement: Callable[[Session], T], /) -> T: ...


@dataclass(frozen=True)
class Base:
    """Fields of the engine's `ScanRequest`. trusted: file with the base's tensors.

    reference: its checkpoint, where the scan named it. nearest: the same, where the scan is only kin to it.
    """

    trusted: Path
    reference: Path | None = None
    nearest: Path | None = None

    def as_request(self) -> dict[str, str]:
        """The fields that are set, paths as text."""
        return {name: str(path) for name, path in vars(self).items() if path is not None}


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
    return None if near is None else Base(scratch / TRUSTED, nearest=_kin(near, blobs, scratch))


def _kin(near: Nearest, blobs: BlobStore, scratch: Path) -> Path | None:
    """The base's checkpoint, if the scanned one is a change of it; None too if it was removed meanwhile."""
    if near.share < MIN_KIN:
        return None
    try:
        return blobs.fetch(near.reference.blob_sha256, scratch)
    except BlobMissingError:
        return None  # the scan did not ask for it


def _named(tenant_id: str, named: str, scratch: Path, session: Session) -> TrustedReference:
    reference = references.get_reference(session, tenant_id, named)
    if reference is None:
        raise JobFailedError("reference-missing", f"The reference {named} was removed.")
    _write(session, reference, scratch)
    return reference


def _nearest(tenant_id: str, tensors: list[TensorRecord], scratch: Path, session: Session) -> Nearest | None:
    near = references.nearest(session, tenant_id, tensors)
    if near is None or near.share < MIN_SHARE:
        return None
    _write(session, near.reference, scratch)
    return near


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
