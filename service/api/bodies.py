"""Request bodies: JSON of a bounded size, and files of any size."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import Depends, Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from service.api.deps import Admin
from service.api.errors import invalid_request
from service.problems import UnsupportedEncoding, UploadIncomplete, UploadTooLarge
from service.settings import Settings
from service.storage.digests import declared_sha256
from service.storage.intake import Limits, Received, receive, with_idle_limit

MAX_JSON_BYTES = 2**20

Model = TypeVar("Model", bound=BaseModel)


def media_type(request: Request) -> str:
    """The body's media type, without parameters; "" if none is named."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def json_body(request: Request, model: type[Model]) -> Model:
    """The body as `model`. Raises InvalidRequest, or UploadTooLarge above `MAX_JSON_BYTES`."""
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_JSON_BYTES:
            raise UploadTooLarge(f"At most {MAX_JSON_BYTES} bytes of JSON are accepted.")
    try:
        return model.model_validate_json(bytes(raw))
    except ValidationError as error:
        raise invalid_request(
            [entry | {"loc": ("body", *entry["loc"])} for entry in error.errors()]
        ) from error


def json_of(model: type[BaseModel]) -> Any:
    """A dependency of an administrator's routes: `json_body` as `model`, read once the key is known.

    FastAPI itself reads a body whole, of any size, before it asks who sends it.
    """

    async def read(request: Request, _: Admin) -> BaseModel:
        return await json_body(request, model)

    return Depends(read)


def told(model: type[BaseModel]) -> dict[str, Any]:
    """For the schema of a route that reads its body by `json_of`."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def upload_limits(settings: Settings) -> Limits:
    """What every upload is held to."""
    return Limits(settings.max_upload_bytes, settings.min_free_bytes, settings.upload_idle_seconds)


def refuse_coding(request: Request) -> None:
    """Raise UnsupportedEncoding for a compressed body: its hash would not be the file's."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedEncoding


@asynccontextmanager
async def raw_file(request: Request, settings: Settings) -> AsyncIterator[Received]:
    """The body as a file in scratch that is gone behind the block, unless it was published."""
    refuse_coding(request)
    length = request.headers.get("content-length", "")
    expected = int(length) if length.isdecimal() else None
    async with receive(settings.scratch_dir, upload_limits(settings), expected) as upload:
        try:
            async for chunk in with_idle_limit(request.stream(), settings.upload_idle_seconds):
                await upload.write(chunk)
        except ClientDisconnect as error:
            raise UploadIncomplete("The connection closed before the end of the body.") from error
        yield await upload.finish(declared_sha256(request.headers, whole_body=True))
