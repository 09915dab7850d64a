"""One signature over everything that a scan published, in the bundle format of OpenSSF Model Signing.

Key mode: an EC key of the operator's, no network, no certificate, no log. What is signed are the digests that
the blob store took of the very bytes that it serves, so nothing is read twice and nothing can change between.

    Signer(key).sign("scn_…", {"report.json": sha256, …})   the bundle that goes beside these files
    verify(folder, public_key)                              what in the folder is not as it was signed

Any other implementation can check a folder too: `model_signing verify key --public_key KEY --signature
FOLDER/signature.json FOLDER`. `verify` is stricter: it takes one spelling of the bundle and follows no link.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from model_signing import hashing, manifest, signing, verifying
from model_signing._hashing.hashing import Digest
from sigstore_models.bundle.v1 import Bundle

from service.domain.results import SIGNATURE_NAME

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"

_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_SERIALIZATION = {
    "method": "files",
    "hash_type": "sha256",
    "allow_symlinks": False,
    "ignore_paths": [SIGNATURE_NAME],
}


class UnusableKeyError(Exception):
    """The file is no key of the kind that is needed; the message says what it is or should be."""


class What(StrEnum):
    """What is wrong with a file."""

    ALTERED = "altered"
    MISSING = "missing"
    ADDED = "added"
    INVALID = "invalid"


@dataclass(frozen=True)
class Fault:
    """A file that is not as it was signed. reason: for people, where there is more to say."""

    name: str
    what: What
    reason: str = ""


@dataclass(frozen=True)
class Verification:
    """What was found in a folder. It is intact if there are no faults.

    scan: the id that was signed, covered: the files that the signature vouches for; empty if it is bad.
    """

    faults: tuple[Fault, ...]
    scan: str = ""
    covered: tuple[str, ...] = ()


def new_private_key() -> str:
    """A new P-256 key as unencrypted PKCS#8 PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key.private_bytes(*form).decode()


def fingerprint(public_key: bytes) -> str:
    """SHA-256 of a public key's PEM text; bundles name their key by it."""
    return hashlib.sha256(public_key).hexdigest()


class Signer:
    """Holds a private key. Raises UnusableKeyError for a file that is no unencrypted EC key in PEM."""

    def __init__(self, private_key: Path) -> None:
        self.public_key = _public_half(private_key)
        self.fingerprint = fingerprint(self.public_key)
        self._config = signing.Config().use_elliptic_key_signer(private_key=private_key)

    def sign(self, name: str, digests: Mapping[str, str]) -> bytes:
        """The bundle over files given as path in the result → SHA-256 in hex. name: the scan's id."""
        config = self._config.set_hashing_config(_Stored(digests))
        with tempfile.TemporaryDirectory(prefix="sauscan-") as folder:
            bundle = Path(folder) / SIGNATURE_NAME
            config.sign(name, bundle)
            return bundle.read_bytes()


def _public_half(private_key: Path) -> bytes:
    try:
        key = serialization.load_pem_private_key(private_key.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UnusableKeyError(f"{private_key} holds no unencrypted private key in PEM: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, _CURVES):
        raise UnusableKeyError(f"{private_key} is no EC key on P-256, P-384 or P-521")
    form = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return key.public_key().public_bytes(*form)


class _Stored(hashing.Config):
    """In place of reading a folder: digests that are known already."""

    def __init__(self, digests: Mapping[str, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._digests = digests

    def hash(self, model_path: hashing.PathLike, **_: Any) -> manifest.Manifest:
        form = manifest.SerializationType.from_args(_SERIALIZATION)
        items = [
            form.new_item(name, Digest("sha256", bytes.fromhex(sha256)))
            for name, sha256 in self._digests.items()
        ]
        return manifest.Manifest(os.fsdecode(model_path), items, form)


class _Read(hashing.Config):
    """The usual reading of a folder, that keeps what it read. Git's own files are files like any other."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.set_ignored_paths(paths=[SIGNATURE_NAME], ignore_git_paths=False)
        self.was_read = False
        self.digests: dict[str, str] = {}

    def hash(self, model_path: hashing.PathLike, **arguments: Any) -> manifest.Manifest:
        self.was_read = True
        found = super().hash(model_path, **arguments)
        self.digests = {entry.identifier: entry.digest.digest_hex for entry in found.resource_descriptors()}
        return found


def verify(folder: Path, public_key: Path) -> Verification:
    """Compare a folder with the signature in it. Raises UnusableKeyError, OSError for unreadable files."""
    config = verifying.Config()
    try:
        config.use_elliptic_key_verifier(public_key=public_key)
    except (OSError, ValueError, AttributeError, UnsupportedAlgorithm) as error:
        raise UnusableKeyError(f"{public_key} holds no public EC key in PEM: {error}") from error
    folder = folder.resolve()
    strange = tuple(_not_plain(folder))
    if strange:
        return Verification(strange)
    bundle = folder / SIGNATURE_NAME
    if not bundle.is_file():
        return Verification((Fault(SIGNATURE_NAME, What.MISSING),))
    return _verify(config, folder, bundle)


def _not_plain(folder: Path) -> Iterator[Fault]:
    """A result holds files and folders; a link would have something else checked than what is used later."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            name = path.relative_to(folder).as_posix()
            yield Fault(name, What.ADDED, "a link, or no file at all: a result holds none")


def _verify(config: verifying.Config, folder: Path, bundle: Path) -> Verification:
    content = _Read()
    problem = _problem(config.set_hashing_config(content), folder, bundle)
    if not content.was_read:  # files are read once the signature proved right
        return Verification((Fault(SIGNATURE_NAME, What.INVALID, problem),))
    scan, signed = _statement(bundle)
    faults = tuple(_differences(signed, content.digests))
    if problem and not faults:
        faults = (Fault(SIGNATURE_NAME, What.INVALID, problem),)
    return Verification(faults, scan, tuple(sorted(signed)))


def _problem(config: verifying.Config, folder: Path, bundle: Path) -> str:
    """Why the library refuses the folder; empty if it does not."""
    try:
        _require_one_spelling(bundle)
        config.verify(folder, bundle)
    except OSError:
        raise
    except Exception as error:  # whatever its parsers raise: the bundle is what somebody made of it
        return str(error).strip() or "not made with this key, or changed since"
    return ""


def _require_one_spelling(bundle: Path) -> None:
    """Raise unless the bundle is as a signer writes it: base64 has spellings, and JSON takes strangers."""
    text = bundle.read_text(encoding="utf-8")
    if json.loads(text) != json.loads(Bundle.from_json(text).to_json()):
        raise ValueError("The bundle is not as a signer writes it.")


def _statement(bundle: Path) -> tuple[str, dict[str, str]]:
    """The scan, and path → SHA-256 in hex, out of a bundle whose signature was checked."""
    envelope = json.loads(bundle.read_text(encoding="utf-8"))["dsseEnvelope"]
    statement = json.loads(base64.b64decode(envelope["payload"]))
    digests = {entry["name"]: entry["digest"] for entry in statement["predicate"]["resources"]}
    return statement["subject"][0]["name"], digests


def _differences(signed: Mapping[str, str], found: Mapping[str, str]) -> Iterator[Fault]:
    for name in sorted({*signed, *found}):
        if name not in found:
            yield Fault(name, What.MISSING)
        elif name not in signed:
            yield Fault(name, What.ADDED)
        elif signed[name] != found[name]:
            yield Fault(name, What.ALTERED)
