"""Conditional and partial downloads (RFC 9110 §13, §14) of immutable bytes; their ETag is their hash."""

from __future__ import annotations

import re
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from service.db.models import Artifact
from service.problems import RangeNotSatisfiable
from service.storage.blobs import BlobStore
from service.storage.digests import repr_digest

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def conditional_download(request: Request, artifact: Artifact, blobs: BlobStore) -> Response:
    """200, 206 or 304 for the artifact. Raises RangeNotSatisfiable. A HEAD request gets the headers alone."""
    etag = f'"sha256-{artifact.sha256}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Repr-Digest": repr_digest(artifact.sha256),
        "Cache-Control": "private, no-cache",
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(artifact.name)}",
        "X-Content-Type-Options": "nosniff",
    }
    if _names(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    span = _wanted(request, etag, artifact.size)
    start, end = span or (0, artifact.size)
    headers["Content-Length"] = str(end - start)
    if span is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{artifact.size}"
    status = 200 if span is None else 206
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=artifact.media_type)
    body = blobs.read(artifact.sha256, start, end)
    return StreamingResponse(body, status, headers=headers, media_type=artifact.media_type)


def _names(field: str | None, etag: str) -> bool:
    """If-None-Match compares weakly."""
    if field is None:
        return False
    return field.strip() == "*" or etag in [tag.strip().removeprefix("W/") for tag in field.split(",")]


def _wanted(request: Request, etag: str, size: int) -> tuple[int, int] | None:
    """The [start, end) that the client asks for; None for the whole file.

    A range in a form that we do not serve (several at once, another unit) means the whole file, as the
    standard allows.
    """
    if request.headers.get("if-range", etag) != etag:
        return None
    match = _RANGE.fullmatch(request.headers.get("range", "").replace(" ", ""))
    if match is None or match[0] == "bytes=-":
        return None
    return _span(match[1], match[2], size)


def _span(first: str, last: str, size: int) -> tuple[int, int] | None:
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1 if last else size)
        if last and int(last) < start:
            return None
    if start >= size or start >= end:
        raise RangeNotSatisfiable(f"The file has {size} bytes.", headers={"Content-Range": f"bytes */{size}"})
    return start, end
