"""Where a file that does not come with the request is fetched from: what a client names, and what is shown.

A scan keeps its source as a record: the model's fields, and once the file is here `commit` (Hugging Face) and
`final_url`, behind all redirects.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter


def _path(value: str) -> str:
    """The value, if none of its steps leads elsewhere. Raises ValueError."""
    if any(step in ("", ".", "..") for step in value.split("/")):
        raise ValueError("empty steps, . and .. are not allowed")
    return value


def _address(value: str) -> str:
    """The value, if it names a host and no password. Raises ValueError."""
    parts = urlsplit(value)
    if not parts.hostname or parts.port == 0 or "@" in parts.netloc:
        raise ValueError("name a host, without user name and password")
    return value


_Path = Annotated[
    str, Field(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f\\\\]*$"), AfterValidator(_path)
]


class UrlSource(BaseModel):
    """A file at an address of its own."""

    model_config = ConfigDict(extra="forbid")

    url: Annotated[
        str,
        Field(
            max_length=2000,
            pattern=r"^https?://[^\x00-\x20\x7f]+$",
            description="https, of a host that the service downloads from",
            examples=["https://models.example.com/model.safetensors"],
        ),
        AfterValidator(_address),
    ]


class HuggingFaceSource(BaseModel):
    """A file of a model repository; `revision` is a branch, a tag or a commit."""

    model_config = ConfigDict(extra="forbid")

    huggingface: Annotated[
        str,
        Field(max_length=200, pattern=r"^[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+$", examples=["owner/name"]),
        AfterValidator(_path),
    ]
    revision: _Path = "main"
    file: _Path


Source = UrlSource | HuggingFaceSource

_SOURCE: TypeAdapter[Source] = TypeAdapter(Source)
_FOUND = ("commit", "final_url")


def recorded(record: Mapping[str, Any]) -> Source:
    """The source that a scan's record names."""
    return _SOURCE.validate_python({key: value for key, value in record.items() if key not in _FOUND})


def file_name(source: Source) -> str:
    """What the file is called there; "" if the address does not say."""
    path = unquote(urlsplit(source.url).path) if isinstance(source, UrlSource) else source.file
    return PurePosixPath(path).name


def shown(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record for readers: queries of addresses, which often hold a signature or a token, are left out."""
    return {key: _bare(value) if key.endswith("url") else value for key, value in record.items()}


def _bare(url: str) -> str:
    return urlsplit(url)._replace(query="", fragment="").geturl()


def with_source(report: Mapping[str, Any], record: Mapping[str, Any] | None) -> dict[str, Any]:
    """The report, saying in its provenance where the file was fetched from; null: it was uploaded."""
    source = None if record is None else shown(record)
    return {**report, "provenance": {**report["provenance"], "source": source}}
