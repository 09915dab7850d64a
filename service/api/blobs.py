"""`HEAD /blobs/sha256:{hash}`: is an upload needed at all?"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Response

from service import problems
from service.api.deps import PartsDep, Reader
from service.db import submissions
from service.problems import UnknownBlob

router = APIRouter(tags=["scans"])


@router.head(
    "/blobs/sha256:{sha256}",
    summary="Was this file uploaded before?",
    response_class=Response,
    responses=problems.responses(
        problems.Unauthenticated,
        problems.Forbidden,
        problems.RateLimited,
        problems.InvalidRequest,
        problems.UnknownBlob,
    ),
)
def probe_blob(
    sha256: Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")], parts: PartsDep, principal: Reader
) -> Response:
    """200 with the file's size if the caller's tenant uploaded it: submit it by its hash then. Else 404."""
    with parts.database.transaction(principal.tenant_id) as session:
        blob = submissions.get_blob(session, principal.tenant_id, sha256)
    if blob is None:
        raise UnknownBlob
    return Response(headers={"Content-Length": str(blob.size)})
