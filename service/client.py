"""A client of the HTTP interface: `with Client(url, key) as client: scan = client.submit(path)`.

It uses what any other client could: JSON, server-sent events with polling behind them, strong digests.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from email.message import Message
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2

from service.resumable import ResumableUpload

TERMINAL = frozenset({"succeeded", "failed", "cancelled", "expired"})

RESUMABLE_BYTES = 64 << 20
"""Files of this size and more are sent so that a broken connection costs only what was on the wire."""

_CHUNK = 1 << 20
_TIMEOUT = httpx2.Timeout(30.0, read=120.0)
_DEFAULT_RETRY_SECONDS = 2.0
_MAX_SILENT_SECONDS = 300.0

OnBytes = Callable[[int, int], None]
"""Progress of a transfer: (bytes done, bytes in all)."""


class ApiError(Exception):
    """The service refused or failed. `problem` is its RFC 9457 document; `code` the end of the type's URI."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        self.status = status
        self.problem = problem
        self.code = str(problem.get("type", "about:blank")).rsplit("/", 1)[-1]
        super().__init__(str(problem.get("detail") or problem.get("title") or f"HTTP {status}"))


class UnreachableError(Exception):
    """Nothing answers at the service's address."""


class DigestMismatchError(Exception):
    """A download is not what the service said that it is; the file was removed."""


class Client:
    """One connection to the service. Methods raise ApiError and UnreachableError."""

    def __init__(self, url: str, api_key: str) -> None:
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {api_key}", "User-Agent": "sauscan-cli"}
        self._http = httpx2.Client(base_url=self.url, headers=headers, timeout=_TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def submit(
        self, path: Path, options: Mapping[str, Any], *, force: bool = False, on_bytes: OnBytes | None = None
    ) -> dict[str, Any]:
        """Queue a scan of a checkpoint, uploading it if the service does not have it; returns the scan.

        options: budget, seed, cleanse, prompts and the others of the API. force: scan again what was scanned
        before.
        """
        options = _without_nones(options)
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        try:
            return self._submit_known(sha256, path.name, options, force)
        except ApiError as error:
            if error.code != "unknown-blob":
                raise
        if path.stat().st_size >= RESUMABLE_BYTES:
            upload = self._upload_resumably(path, sha256, on_bytes)
            return self._submit_source({"upload": upload}, path.name, options, force)
        return self._upload(path, sha256, options | {"force": force}, on_bytes)

    def submit_source(
        self, source: Mapping[str, str], options: Mapping[str, Any], *, force: bool = False
    ) -> dict[str, Any]:
        """Queue a scan of a file that the service fetches, see `POST /scans`; returns the scan."""
        body = {"source": dict(source), "options": _without_nones(options), "force": force}
        return self._json("POST", "/scans", json=body)

    def _submit_known(self, sha256: str, name: str, options: dict[str, Any], force: bool) -> dict[str, Any]:
        return self._submit_source({"sha256": sha256}, name, options, force)

    def _submit_source(
        self, source: dict[str, str], name: str, options: dict[str, Any], force: bool
    ) -> dict[str, Any]:
        body = {"source": source, "options": options, "force": force}
        headers = {"X-Filename": name} if name.isascii() and name.isprintable() else {}
        return self._json("POST", "/scans", json=body, headers=headers)

    def _upload_resumably(self, path: Path, sha256: str, on_bytes: OnBytes | None) -> str:
        """The id of the upload."""
        with _transport_errors():
            answer = _checked(ResumableUpload(self._http, path, sha256, on_bytes).run())
        return answer.headers["Location"].rpartition("/")[2]

    def _upload(
        self, path: Path, sha256: str, fields: dict[str, Any], on_bytes: OnBytes | None
    ) -> dict[str, Any]:
        with _ReportedFile(path, on_bytes) as file:
            files = {"file": (path.name, file, "application/octet-stream")}
            headers = {"X-Checksum-Sha256": sha256}
            return self._json("POST", "/scans", data=fields, files=files, headers=headers)

    def trust(self, path: Path, name: str, *, on_bytes: OnBytes | None = None) -> dict[str, Any]:
        """Register a checkpoint as a trusted base called `name`; returns the reference."""
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(path.stat().st_size)}
        with _ReportedFile(path, on_bytes) as file:
            chunks = iter(lambda: file.read(_CHUNK), b"")
            return self._json("POST", "/references", params={"name": name}, content=chunks, headers=headers)

    def reference(self, reference_id: str) -> dict[str, Any]:
        """A trusted base with the hash of every tensor, as `--trusted` of the engine takes it."""
        return self._json("GET", f"/references/{reference_id}")

    def get(self, scan_id: str) -> dict[str, Any]:
        """A scan as it is now."""
        return self._json("GET", f"/scans/{scan_id}")

    def scans(self, *, limit: int = 50) -> Iterator[dict[str, Any]]:
        """The newest scans, at most `limit`."""
        cursor: str | None = None
        while limit > 0:
            page = self._json(
                "GET", "/scans", params=_without_nones({"limit": min(limit, 100), "cursor": cursor})
            )
            yield from page["scans"][:limit]
            limit, cursor = limit - len(page["scans"]), page["next"]
            if cursor is None:
                return

    def cancel(self, scan_id: str) -> dict[str, Any]:
        """Ask to stop a scan; returns it."""
        return self._json("POST", f"/scans/{scan_id}/cancel")

    def report(self, scan_id: str, kind: str = "json") -> bytes:
        """The report of a finished scan as json, html, sarif, junit, cyclonedx or markdown."""
        return self._send("GET", f"/scans/{scan_id}/report.{kind}").content

    def policy(self, name: str, version: int | None = None) -> dict[str, Any]:
        """A policy, in its newest version by default."""
        return self._json("GET", f"/policies/{name}", params=_without_nones({"version": version}))

    def verdict(
        self, scan_id: str, policy: str | None, version: int | None = None, fail_on: str | None = None
    ) -> dict[str, Any]:
        """The verdict of a finished scan under a policy, with the rule that decided.

        fail_on: the severity that fails, instead of the policy's own.
        """
        query = _without_nones({"policy": policy, "version": version, "fail_on": fail_on})
        return self._json("GET", f"/scans/{scan_id}/verdict", params=query)

    def follow(self, scan_id: str) -> Iterator[dict[str, Any]]:
        """What happens to a scan until it ends: events with at least "kind", the last one its final scan.

        Live while the event stream works, by polling otherwise; a service that restarts is waited for.
        """
        last_event: str | None = None
        heard = time.monotonic()
        while True:
            try:
                for event in self._events(scan_id, last_event):
                    last_event, heard = event.id or last_event, time.monotonic()
                    yield {"kind": event.event, **_object(event.data)}
                scan = self.get(scan_id)
            except (ApiError, UnreachableError) as error:
                if _is_final(error) or time.monotonic() - heard > _MAX_SILENT_SECONDS:
                    raise
                time.sleep(_DEFAULT_RETRY_SECONDS)
                continue
            yield {"kind": "scan", **scan}
            if scan["state"] in TERMINAL:
                return
            time.sleep(_DEFAULT_RETRY_SECONDS)

    def wait(self, scan_id: str) -> dict[str, Any]:
        """The scan, once it has ended."""
        *_, scan = self.follow(scan_id)
        return scan

    def download_model(self, scan_id: str, folder: Path, on_bytes: OnBytes | None = None) -> tuple[Path, str]:
        """Save the cleaned model into a folder; returns its path and SHA-256, equal to what the headers say.

        Raises DigestMismatchError.
        """
        with self._stream("GET", f"/scans/{scan_id}/model") as response:
            name = _download_name(response) or f"{scan_id}-cleaned"
            target = folder / name
            partial = target.with_name(f"{name}.partial")
            digest = _save(response, partial, on_bytes)
            _compare(response, partial, digest)
        partial.replace(target)
        return target, digest

    def files(self, scan_id: str) -> list[dict[str, Any]]:
        """The published files of a scan: path, sha256, size, media_type, href."""
        found: list[dict[str, Any]] = self._json("GET", f"/scans/{scan_id}/files")["files"]
        return found

    def download(self, file: Mapping[str, Any], folder: Path, on_bytes: OnBytes | None = None) -> Path:
        """Save one of `files` under its path below a folder; returns where. Raises DigestMismatchError."""
        target: Path = (folder / file["path"]).resolve()
        if not target.is_relative_to(folder.resolve()):
            raise DigestMismatchError(f"the service names a file outside of the folder: {file['path']}")
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.partial")
        with self._stream("GET", file["href"]) as response:
            digest = _save(response, partial, on_bytes)
        if digest != file["sha256"]:
            partial.unlink()
            raise DigestMismatchError(f"{file['path']} has SHA-256 {digest}, not {file['sha256']}")
        partial.replace(target)
        return target

    def audit_log(self) -> list[dict[str, Any]]:
        """The tenant's audit log, oldest entry first."""
        entries: list[dict[str, Any]] = []
        before: int | None = None
        while True:
            page = self._json("GET", "/audit", params=_without_nones({"limit": 500, "before": before}))
            entries += page["entries"]
            before = page["next"]
            if before is None:
                return entries[::-1]

    def _events(self, scan_id: str, last_event: str | None) -> Iterator[httpx2.ServerSentEvent]:
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last_event} if last_event else {})}
        with (
            self._stream("GET", f"/scans/{scan_id}/events", headers=headers) as response,
            _transport_errors(),
        ):
            try:
                yield from httpx2.EventSource(response)
            except httpx2.SSEError:
                return

    def _json(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        return _object(self._send(method, path, **arguments).text)

    def _send(self, method: str, path: str, **arguments: Any) -> httpx2.Response:
        with _transport_errors():
            response = self._http.request(method, path, **arguments)
        return _checked(response)

    @contextmanager
    def _stream(self, method: str, path: str, **arguments: Any) -> Iterator[httpx2.Response]:
        with _transport_errors(), self._http.stream(method, path, **arguments) as response:
            if response.is_error:
                response.read()
            yield _checked(response)


@contextmanager
def packed(path: Path) -> Iterator[Path]:
    """A file to upload: the path itself, or a temporary zip (stored, not deflated) of a diffusers folder."""
    if not path.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="sauscan-") as folder:
        archive = Path(folder) / f"{path.resolve().name}.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as target:
            for member in sorted(path.rglob("*")):
                if member.is_file():
                    target.write(member, member.relative_to(path))
        yield archive


class _ReportedFile(io.FileIO):
    """A file that says how far it was read."""

    def __init__(self, path: Path, on_bytes: OnBytes | None) -> None:
        super().__init__(path, "rb")
        self._on_bytes = on_bytes
        self._size = path.stat().st_size

    def read(self, size: int | None = -1, /) -> bytes:
        chunk = super().read(size)
        if self._on_bytes is not None:
            self._on_bytes(self.tell(), self._size)
        return chunk


def _without_nones(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _checked(response: httpx2.Response) -> httpx2.Response:
    if response.is_error:
        raise ApiError(response.status_code, _object(response.text))
    return response


def _is_final(error: Exception) -> bool:
    """Asking again would change nothing: the request itself is wrong."""
    return isinstance(error, ApiError) and error.status < 500


@contextmanager
def _transport_errors() -> Iterator[None]:
    try:
        yield
    except httpx2.TransportError as error:
        raise UnreachableError(str(error) or type(error).__name__) from error


def _download_name(response: httpx2.Response) -> str:
    header = Message()
    header["Content-Disposition"] = response.headers.get("content-disposition", "attachment")
    return Path(header.get_filename() or "").name


def _save(response: httpx2.Response, path: Path, on_bytes: OnBytes | None) -> str:
    digest, done = hashlib.sha256(), 0
    total = int(response.headers.get("content-length", 0))
    with path.open("wb") as file:
        for chunk in response.iter_raw(_CHUNK):
            digest.update(chunk)
            done += file.write(chunk)
            if on_bytes is not None:
                on_bytes(done, total)
    return digest.hexdigest()


def _compare(response: httpx2.Response, path: Path, digest: str) -> None:
    declared = base64.b64encode(bytes.fromhex(digest)).decode()
    header = response.headers.get("repr-digest", "")
    if f"sha-256=:{declared}:" not in header:
        path.unlink()
        raise DigestMismatchError(f"the file has SHA-256 {digest}, the header says {header or 'nothing'}")
