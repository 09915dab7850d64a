"""Digests that a client declares (RFC 9530) and those that we state."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any

import http_sf

from service.problems import InvalidDigest

_HEX = re.compile(r"[0-9a-fA-F]{64}")


def declared_sha256(headers: Mapping[str, str], *, whole_body: bool = True) -> str | None:
    """The SHA-256 (hex) that the client says the file has, or None. Raises InvalidDigest.

    whole_body: the body is the file, so that `Content-Digest` speaks of it too (not so in multipart).
    """
    plain = headers.get("x-checksum-sha256")
    if plain is not None:
        return hexadecimal("X-Checksum-Sha256", plain)
    names = ("repr-digest", "content-digest") if whole_body else ("repr-digest",)
    for name in names:
        if name in headers:
            return _structured(name, headers[name])
    return None


def hexadecimal(name: str, value: str) -> str:
    """A SHA-256 in hex, in lower case. Raises InvalidDigest; name: what the client wrote it as."""
    if not _HEX.fullmatch(value):
        raise InvalidDigest(f"{name} must be 64 hexadecimal digits.")
    return value.lower()


def _structured(name: str, value: str) -> str | None:
    try:
        digests: Any = http_sf.parse(value.encode(), tltype="dictionary")
    except ValueError as error:
        raise InvalidDigest(f"{name} is not a dictionary of digests.") from error
    if "sha-256" not in digests:
        return None
    digest = digests["sha-256"][0]
    if not isinstance(digest, bytes) or len(digest) != 32:
        raise InvalidDigest(f"sha-256 in {name} must be 32 bytes between colons.")
    return digest.hex()


def repr_digest(sha256: str) -> str:
    """The `Repr-Digest` field of bytes with that hash (hex)."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"
