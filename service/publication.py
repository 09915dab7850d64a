"""What a finished scan publishes as bytes: its report, its files, and one signature over them all.

The report is kept as the bytes that were signed: JSON that went through a database or another release of
this program could be spelled differently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from service.db import artifacts, submissions
from service.db.artifacts import ArtifactRecord
from service.db.json import storable
from service.db.models import Scan
from service.domain.results import SIGNATURE_NAME, result_path
from service.reports import FORMATS, render
from service.reports.signing import MEDIA_TYPE, Signer
from service.settings import Settings
from service.storage.blobs import BlobStore


@dataclass(frozen=True)
class Publication:
    """Files whose bytes are stored, and the fingerprint of the key that signed them, if one did."""

    files: tuple[ArtifactRecord, ...]
    signed_by: str | None


def open_signer(settings: Settings) -> Signer | None:
    """The signer that the settings name. Raises UnusableKeyError."""
    return None if settings.signing_key is None else Signer(settings.signing_key)


def publication(
    scan_id: str,
    report: Mapping[str, Any],
    files: Sequence[ArtifactRecord],
    blobs: BlobStore,
    signer: Signer | None,
) -> Publication:
    """Store the report beside the files that are stored already, and sign them all."""
    body, media_type = render("json", storable(report), {})
    parts = [_stored(blobs, "report", FORMATS["json"].file_name, body, media_type), *files]
    if signer is None:
        return Publication(tuple(parts), None)
    digests = {result_path(part.kind, part.name): part.sha256 for part in parts}
    bundle = signer.sign(scan_id, digests)
    parts.append(_stored(blobs, "signature", SIGNATURE_NAME, bundle, MEDIA_TYPE))
    return Publication(tuple(parts), signer.fingerprint)


def _stored(blobs: BlobStore, kind: str, name: str, body: bytes, media_type: str) -> ArtifactRecord:
    return ArtifactRecord(kind, name, blobs.put_bytes(body), len(body), media_type)


def held(
    session: Session, made: Publication, blobs: BlobStore, remake: Callable[[], Publication]
) -> Publication:
    """The publication, with its bytes safe from deletion until this transaction ends.

    Bytes that some other scan had too may have gone with it since they were stored; then all is made again.
    """
    for sha256 in sorted({file.sha256 for file in made.files}):
        submissions.lock_blob(session, sha256)
    return made if all(blobs.exists(file.sha256) for file in made.files) else remake()


def publish_decided(
    session: Session, scan: Scan, report: Mapping[str, Any], blobs: BlobStore, signer: Signer | None
) -> None:
    """Store, sign and show the report of a scan that needs no worker."""

    def make() -> Publication:
        return publication(scan.id, report, (), blobs, signer)

    shown = held(session, make(), blobs, make)
    artifacts.add_artifacts(session, scan.id, shown.files)
    scan.signed_by = shown.signed_by
    session.flush()
