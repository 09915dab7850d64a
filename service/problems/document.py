"""What every problem is: an exception, its RFC 9457 document, and its entry in the OpenAPI schema.

`type` is a stable URI made of the class's `code`; `status` and `title` belong to the class, `detail` to the
case at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "https://sauscan.dev/problems/"


class Problem(Exception):  # noqa: N818 (the word of RFC 9457)
    """One kind of failure. `extra` are further members of the document, `headers` go on the response."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal-error"
    title: ClassVar[str] = "Something went wrong on our side"

    def __init__(
        self, detail: str | None = None, *, headers: Mapping[str, str] | None = None, **extra: Any
    ) -> None:
        super().__init__(detail or self.title)
        self.detail = detail
        self.headers = dict(headers or {})
        self.extra = extra

    def document(self, *, instance: str, request_id: str | None) -> dict[str, Any]:
        """The problem document of this occurrence."""
        members = {
            "type": TYPE_PREFIX + self.code,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "instance": instance,
            "request_id": request_id,
        }
        return {key: value for key, value in members.items() if value is not None} | self.extra


class InvalidPart(BaseModel):
    """One invalid part of a request. `pointer`: JSON pointer into `in` (body, query, path, header)."""

    detail: str
    pointer: str
    source: str = Field(alias="in")


class ProblemDocument(BaseModel):
    """RFC 9457 problem details. `type` is stable and safe to branch on; `detail` is for people."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(examples=[TYPE_PREFIX + "digest-mismatch"])
    title: str
    status: int
    detail: str | None = None
    instance: str | None = None
    request_id: str | None = None
    errors: list[InvalidPart] | None = None


def responses(*kinds: type[Problem]) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI `responses` of a route that may answer with these problems; one entry a status."""
    documented: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        entry = documented.setdefault(kind.status, {"description": "", "content": {MEDIA_TYPE: _content()}})
        entry["description"] += f"`{kind.code}`: {kind.title}. "
        entry["content"][MEDIA_TYPE]["examples"][kind.code] = {"value": _example(kind)}
    return documented


def _content() -> dict[str, Any]:
    return {"schema": {"$ref": "#/components/schemas/ProblemDocument"}, "examples": {}}


def _example(kind: type[Problem]) -> dict[str, Any]:
    return {"type": TYPE_PREFIX + kind.code, "title": kind.title, "status": kind.status}
