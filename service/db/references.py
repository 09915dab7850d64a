"""Trusted bases: registering them, and finding the one that a checkpoint comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from sqlalchemy import BigInteger, Text, cast, column, func, insert, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Session

from service.db.ids import new_id
from service.db.locks import lock
from service.db.models import TrustedReference, TrustedTensor


class Record(Protocol):
    """What is kept of a tensor (`service.storage.tensors.TensorRecord`)."""

    @property
    def size(self) -> int: ...

    @property
    def sha256(self) -> str: ...


@dataclass(frozen=True)
class Nearest:
    """The base that shares most with a checkpoint. share: of the checkpoint's tensor bytes, in [0, 1]."""

    reference: TrustedReference
    share: float


def register(
    session: Session, tenant_id: str, name: str, sha256: str, kind: str, tensors: Sequence[Any]
) -> tuple[TrustedReference, bool]:
    """The tenant's reference of these bytes, and whether it was made now; its name is the first one given.

    tensors: dataclasses with the fields of `TrustedTensor`, without `reference_id`.
    """
    lock(session, f"reference:{tenant_id}:{sha256}")
    earlier = session.scalars(
        select(TrustedReference).where(
            TrustedReference.tenant_id == tenant_id, TrustedReference.blob_sha256 == sha256
        )
    ).one_or_none()
    if earlier is not None:
        return earlier, False
    reference = TrustedReference(
        id=new_id("ref"),
        tenant_id=tenant_id,
        name=name,
        blob_sha256=sha256,
        format=kind,
        tensor_count=len(tensors),
        tensor_bytes=sum(tensor.size for tensor in tensors),
    )
    session.add(reference)
    session.flush()
    session.execute(
        insert(TrustedTensor),
        [asdict(tensor) | {"reference_id": reference.id, "shape": list(tensor.shape)} for tensor in tensors],
    )
    session.refresh(reference)
    return reference, True


def list_references(session: Session, tenant_id: str) -> Sequence[TrustedReference]:
    """The tenant's references, newest first."""
    statement = select(TrustedReference).where(TrustedReference.tenant_id == tenant_id)
    return session.scalars(statement.order_by(TrustedReference.id.desc())).all()


def get_reference(session: Session, tenant_id: str, reference_id: str) -> TrustedReference | None:
    """The tenant's reference, or None if it has none of that id."""
    return session.scalars(
        select(TrustedReference).where(
            TrustedReference.id == reference_id, TrustedReference.tenant_id == tenant_id
        )
    ).one_or_none()


def tensors_of(session: Session, reference_id: str) -> list[TrustedTensor]:
    """A reference's tensors, by file and name."""
    statement = select(TrustedTensor).where(TrustedTensor.reference_id == reference_id)
    return list(session.scalars(statement.order_by(TrustedTensor.member, TrustedTensor.name)).all())


def known_hashes(session: Session, tenant_id: str) -> list[str]:
    """The hashes of the tenant's references, sorted: the choice that a scan without a named one has."""
    statement = select(TrustedReference.blob_sha256).where(TrustedReference.tenant_id == tenant_id)
    return sorted(session.scalars(statement).all())


def nearest(session: Session, tenant_id: str, tensors: Sequence[Record]) -> Nearest | None:
    """The tenant's reference that shares most bytes with `tensors`, the newest of equals; None if none does.

    A tensor counts as shared if the reference holds one with the same bytes, whatever it is called there.
    """
    total = sum(tensor.size for tensor in tensors)
    scanned = (
        func.unnest(
            cast([tensor.sha256 for tensor in tensors], ARRAY(Text)),
            cast([tensor.size for tensor in tensors], ARRAY(BigInteger)),
        )
        .table_valued(column("sha256", Text), column("size", BigInteger), name="scanned")
        .render_derived()
    )
    held = (
        select(TrustedTensor.reference_id, TrustedTensor.sha256)
        .join(TrustedReference, TrustedReference.id == TrustedTensor.reference_id)
        .where(TrustedReference.tenant_id == tenant_id)
        .distinct()
        .subquery()
    )
    shared = func.sum(scanned.c.size)
    best = session.execute(
        select(held.c.reference_id, shared)
        .join(scanned, scanned.c.sha256 == held.c.sha256)
        .group_by(held.c.reference_id)
        .order_by(shared.desc(), held.c.reference_id.desc())
        .limit(1)
    ).one_or_none()
    if best is None or total == 0:
        return None
    reference = session.get_one(TrustedReference, best[0])
    return Nearest(reference, float(best[1]) / total)
