"""The published files of a scan, as rows; their bytes are in the blob store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from service.db.models import Artifact


@dataclass(frozen=True)
class ArtifactRecord:
    """A file whose bytes are in the blob store. kind: "report", "model", "evidence" or "signature"."""

    kind: str
    name: str
    sha256: str
    size: int
    media_type: str


def list_artifacts(session: Session, scan_id: str) -> Sequence[Artifact]:
    """The published files of a scan, by kind and name."""
    return session.scalars(
        select(Artifact).where(Artifact.scan_id == scan_id).order_by(Artifact.kind, Artifact.name)
    ).all()


def get_artifact(session: Session, scan_id: str, kind: str, name: str | None = None) -> Artifact | None:
    """One published file; without a name the only one of its kind."""
    statement = select(Artifact).where(Artifact.scan_id == scan_id, Artifact.kind == kind)
    if name is not None:
        statement = statement.where(Artifact.name == name)
    return session.scalars(statement.limit(1)).one_or_none()


def add_artifacts(session: Session, scan_id: str, artifacts: Sequence[ArtifactRecord]) -> None:
    """Show these files as the scan's."""
    if artifacts:
        session.execute(
            insert(Artifact), [{"scan_id": scan_id, **asdict(artifact)} for artifact in artifacts]
        )
