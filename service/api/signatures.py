"""The signature over a scan's result, the key to check it with, and the list of the files that it covers."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from service import problems
from service.api.deps import PartsDep, Reader, find_scan
from service.api.ranges import conditional_download
from service.api.schemas.scans import ResultFiles
from service.db import artifacts
from service.db.models import Artifact
from service.domain.results import result_path
from service.problems import ACCESS, NoReport, NoSigningKey, NotSigned
from service.reports.signing import MEDIA_TYPE

router = APIRouter(tags=["results"])

_ONE = (*ACCESS, problems.ScanNotFound, problems.Gone)
_TEXT = {"schema": {"type": "string"}}
KEY_MEDIA_TYPE = "application/x-pem-file"


@router.get(
    "/scans/{scan_id}/files",
    response_model=ResultFiles,
    summary="List the files of the result",
    responses=problems.responses(*_ONE, problems.NoReport),
)
def list_files(scan_id: str, parts: PartsDep, principal: Reader) -> dict[str, Any]:
    """Saved under their paths in one folder, they are what `sauscan verify` checks."""
    scan = find_scan(parts, principal, scan_id)
    if scan.report is None:
        raise NoReport(f"The scan is {scan.state}.")
    with parts.database.transaction(principal.tenant_id) as session:
        found = artifacts.list_artifacts(session, scan_id)
    return {"files": [_file(artifact) for artifact in found]}


def _file(artifact: Artifact) -> dict[str, Any]:
    places = {"report": "report.json", "evidence": f"evidence/{quote(artifact.name)}"}
    return {
        "path": result_path(artifact.kind, artifact.name),
        "sha256": artifact.sha256,
        "size": artifact.size,
        "media_type": artifact.media_type,
        "href": f"/scans/{artifact.scan_id}/{places.get(artifact.kind, artifact.kind)}",
    }


@router.get(
    "/scans/{scan_id}/signature",
    summary="Download the signature",
    response_class=StreamingResponse,
    responses={
        200: {"content": {MEDIA_TYPE: _TEXT}},
        206: {"description": "A part of the file"},
        304: {"description": "The client has this file"},
        **problems.responses(*_ONE, problems.NotSigned, problems.RangeNotSatisfiable),
    },
)
def download_signature(scan_id: str, request: Request, parts: PartsDep, principal: Reader) -> Response:
    """A bundle of OpenSSF Model Signing over report, evidence and cleaned model. Made once, at the end."""
    find_scan(parts, principal, scan_id)
    with parts.database.transaction(principal.tenant_id) as session:
        artifact = artifacts.get_artifact(session, scan_id, "signature")
    if artifact is None:
        raise NotSigned("It has not ended, or ended while no signing key was set.")
    return conditional_download(request, artifact, parts.blobs)


@router.get(
    "/signing-key",
    summary="Read the public key",
    response_class=Response,
    responses={
        200: {"content": {KEY_MEDIA_TYPE: _TEXT}},
        **problems.responses(*ACCESS, problems.NoSigningKey),
    },
)
def read_signing_key(parts: PartsDep, principal: Reader) -> Response:
    """In PEM. Get it once over a channel that you trust, and keep it: it is what all trust hangs on."""
    if parts.signer is None:
        raise NoSigningKey("Its operator set no SAUSCAN_SIGNING_KEY.")
    headers = {"Content-Disposition": 'attachment; filename="sauscan-signing-key.pub.pem"'}
    return Response(parts.signer.public_key, media_type=KEY_MEDIA_TYPE, headers=headers)
