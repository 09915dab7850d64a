"""What a scan produced: the report in every format, the cleaned model, the evidence."""

from __future__ import annotations

import asyncio
import re
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from fastapi.responses import Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from service import problems
from service.api.audit import note
from service.api.deps import Downloader, Parts, PartsDep, Reader, find_scan
from service.api.ranges import conditional_download
from service.db import artifacts
from service.db.models import Artifact, Scan
from service.db.tenants import Principal
from service.problems import ModelRemoved, NoEvidence, NoModel, NoReport, NotAcceptable, Problem
from service.reports import FORMATS, media_types, render

router = APIRouter(tags=["results"])

_ONE = (
    problems.Unauthenticated,
    problems.Forbidden,
    problems.RateLimited,
    problems.InvalidRequest,
    problems.ScanNotFound,
    problems.Gone,
)
EVIDENCE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_PAGE_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_BINARY = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}


def _report_content() -> dict[str, Any]:
    """JSON formats are objects; the rest is text."""
    kinds = {name: "object" if name.endswith("json") else "string" for name in media_types()}
    return {"content": {name: {"schema": {"type": kind}} for name, kind in kinds.items()}}


@router.get(
    "/scans/{scan_id}/report",
    summary="Read the report",
    response_class=Response,
    responses={
        200: _report_content(),
        **problems.responses(*_ONE, problems.NoReport, problems.NotAcceptable),
    },
)
async def read_report(
    scan_id: str, parts: PartsDep, principal: Reader, accept: Annotated[str, Header()] = "*/*"
) -> Response:
    """In the format that `Accept` prefers; JSON if it does not mind."""
    return await _report(parts, principal, scan_id, negotiate(accept))


@router.get(
    "/scans/{scan_id}/report.{suffix}",
    summary="Read the report in one format",
    response_class=Response,
    responses={
        200: _report_content(),
        **problems.responses(*_ONE, problems.NoReport, problems.NotAcceptable),
    },
)
async def read_report_as(scan_id: str, suffix: str, parts: PartsDep, principal: Reader) -> Response:
    """suffix: json, html, sarif, junit, cyclonedx or markdown."""
    if suffix not in FORMATS:
        raise NotAcceptable(f"Known formats: {', '.join(FORMATS)}.")
    return await _report(parts, principal, scan_id, suffix)


def negotiate(accept: str) -> str:
    """The name of the best format for an `Accept` field. Raises NotAcceptable."""
    ranked = sorted(_preferences(accept), key=lambda entry: -entry[1])
    for wanted, quality in ranked:
        for media_type, name in media_types().items():
            if quality > 0 and _matches(media_type, wanted):
                return name
    raise NotAcceptable(f"Known media types: {', '.join(media_types())}.")


def _preferences(accept: str) -> list[tuple[str, float]]:
    entries = []
    for part in accept.split(","):
        media_type, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = next((value[2:] for value in parameters if value.startswith("q=")), "1")
        entries.append((media_type, float(quality) if re.fullmatch(r"[01](\.\d{0,3})?", quality) else 0.0))
    return entries


def _matches(media_type: str, wanted: str) -> bool:
    if wanted in ("*/*", "", media_type):
        return True
    return wanted.endswith("/*") and media_type.startswith(wanted[:-1])


async def _report(parts: Parts, principal: Principal, scan_id: str, name: str) -> Response:
    scan = await run_in_threadpool(find_scan, parts, principal, scan_id)
    if scan.report is None:
        raise NoReport(f"The scan is {scan.state}.")
    body, media_type = await _rendered(parts, scan, scan.report, name)
    headers = {
        "Content-Disposition": f'inline; filename="{FORMATS[name].file_name}"',
        "Content-Security-Policy": _PAGE_POLICY,
        "Vary": "Accept",
        "Cache-Control": "private, no-cache",
        "X-Content-Type-Options": "nosniff",
    }
    return Response(body, media_type=media_type, headers=headers)


async def _rendered(parts: Parts, scan: Scan, report: dict[str, Any], name: str) -> tuple[bytes, str]:
    """JSON is the bytes that were signed; a scan of a release before there were any has its row alone."""
    if name == "json":
        kept = await run_in_threadpool(_kept_report, parts, scan)
        if kept is not None:
            return await _read_all(parts, kept), kept.media_type
    evidence = await _pictures(parts, scan) if name == "html" else {}
    return await run_in_threadpool(render, name, report, evidence, title=scan.filename)


def _kept_report(parts: Parts, scan: Scan) -> Artifact | None:
    with parts.database.transaction(scan.tenant_id) as session:
        return artifacts.get_artifact(session, scan.id, "report")


async def _pictures(parts: Parts, scan: Scan) -> dict[str, bytes]:
    pictures = await run_in_threadpool(_evidence, parts, scan)
    bodies = await asyncio.gather(*(_read_all(parts, picture) for picture in pictures))
    return {picture.name: body for picture, body in zip(pictures, bodies, strict=True)}


def _evidence(parts: Parts, scan: Scan) -> list[Artifact]:
    with parts.database.transaction(scan.tenant_id) as session:
        return [found for found in artifacts.list_artifacts(session, scan.id) if found.kind == "evidence"]


async def _read_all(parts: Parts, artifact: Artifact) -> bytes:
    return b"".join([chunk async for chunk in parts.blobs.read(artifact.sha256, 0, artifact.size)])


@router.head("/scans/{scan_id}/model", include_in_schema=False)
@router.get(
    "/scans/{scan_id}/model",
    summary="Download the cleaned model",
    response_class=StreamingResponse,
    responses={
        200: _BINARY,
        206: _BINARY | {"description": "A part of the file"},
        304: {"description": "The client has this file"},
        **problems.responses(*_ONE, problems.NoModel, problems.ModelRemoved, problems.RangeNotSatisfiable),
    },
)
async def download_model(scan_id: str, request: Request, parts: PartsDep, principal: Downloader) -> Response:
    """In the format the model came in. `ETag` and `Repr-Digest` hold its SHA-256; ranges can be resumed."""
    artifact = await run_in_threadpool(_artifact, parts, principal, scan_id, "model", None)
    if artifact is None:
        raise await run_in_threadpool(_no_model, parts, principal, scan_id)
    await run_in_threadpool(_note_download, parts, principal, scan_id, artifact)
    return conditional_download(request, artifact, parts.blobs)


@router.head("/scans/{scan_id}/evidence/{name}", include_in_schema=False)
@router.get(
    "/scans/{scan_id}/evidence/{name}",
    summary="Download a piece of evidence",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}},
        206: {"description": "A part of the file"},
        304: {"description": "The client has this file"},
        **problems.responses(*_ONE, problems.NoEvidence, problems.RangeNotSatisfiable),
    },
)
async def download_evidence(
    scan_id: str, name: str, request: Request, parts: PartsDep, principal: Reader
) -> Response:
    """A picture that the report names."""
    if not EVIDENCE_NAME.fullmatch(name):
        raise NoEvidence
    artifact = await run_in_threadpool(_artifact, parts, principal, scan_id, "evidence", name)
    if artifact is None:
        raise NoEvidence
    return conditional_download(request, artifact, parts.blobs)


def _no_model(parts: Parts, principal: Principal, scan_id: str) -> Problem:
    scan = find_scan(parts, principal, scan_id)
    if scan.model_removed_at is None:
        return NoModel()
    days = parts.settings.retention_model_days
    return ModelRemoved(f"Models are kept for {days} days. Submit the file again for another.")


def _note_download(parts: Parts, principal: Principal, scan_id: str, artifact: Artifact) -> None:
    with parts.database.transaction(principal.tenant_id) as session:
        note(session, principal, "model.downloaded", scan_id, sha256=artifact.sha256)


def _artifact(
    parts: Parts, principal: Principal, scan_id: str, kind: str, name: str | None
) -> Artifact | None:
    find_scan(parts, principal, scan_id)
    with parts.database.transaction(principal.tenant_id) as session:
        return artifacts.get_artifact(session, scan_id, kind, name)
