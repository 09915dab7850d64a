"""Archives made to fill a disk, to exhaust memory or to write elsewhere."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import httpx2
import psutil
import pytest
from starlette.testclient import TestClient

from service.settings import Settings
from tests.processes import running_server
from tests.service.checkpoints import attack, diffusers_members, zipped
from tests.service.test_bad_uploads import many_members
from tests.service.test_memory import MIB, Peak

UNPACKED = 256 * MIB
NESTED = 20
CPU_SECONDS = 2.0
MEMORY = 300 * MIB

UNSAFE = {
    "parent": ("../escaped", tarfile.REGTYPE, ""),
    "absolute": ("{elsewhere}/escaped", tarfile.REGTYPE, ""),
    "symbolic link": ("link", tarfile.SYMTYPE, "{elsewhere}/secret"),
    "hard link": ("link", tarfile.LNKTYPE, "{elsewhere}/secret"),
    "device": ("null", tarfile.CHRTYPE, ""),
    "pipe": ("pipe", tarfile.FIFOTYPE, ""),
}
UNIX_TYPES = {tarfile.SYMTYPE: 0o120000, tarfile.CHRTYPE: 0o020000, tarfile.FIFOTYPE: 0o010000}


def files(folder: Path) -> list[str]:
    """Names of all files and links in a folder, however deep."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file() or path.is_symlink())


def code(response: httpx2.Response) -> str:
    return str(response.json()["type"]).rsplit("/", 1)[-1]


def bomb() -> bytes:
    """A quarter of a gigabyte of zeros in a few hundred kilobytes."""
    return zipped(
        diffusers_members() | {"unet/weights.bin": bytes(UNPACKED)}, compression=zipfile.ZIP_DEFLATED
    )


def nested(canary: Path) -> bytes:
    """A pickle that runs code, twenty archives deep; each layer looks like what `torch.save` writes."""
    body = attack(canary)
    for _ in range(NESTED):
        body = zipped({"archive/data.pkl": body}, compression=zipfile.ZIP_DEFLATED)
    return body


def frugally(client: httpx2.Client, process: psutil.Process, body: bytes) -> httpx2.Response:
    """Submit a file; fails the test if judging it costs more than a small part of what it claims to be."""
    peak, before = Peak(process), sum(process.cpu_times()[:2])
    with peak.watch():
        response = client.post("/scans", content=body, timeout=120)
    assert sum(process.cpu_times()[:2]) - before <= CPU_SECONDS
    assert peak.bytes < MEMORY
    return response


@pytest.mark.fault_case(28)
def test_archives_that_unpack_without_end_cost_next_to_nothing(
    settings: Settings, token: str, tmp_path: Path
) -> None:
    headers = {"Authorization": f"Bearer {token}"}
    with running_server(settings) as server, httpx2.Client(base_url=server.url, headers=headers) as client:
        process = psutil.Process(server.process.pid)
        for body in (bomb(), many_members()):
            response = frugally(client, process, body)
            assert (response.status_code, code(response)) == (422, "archive-bomb")
            assert files(tmp_path) == []
        response = frugally(client, process, nested(tmp_path / "canary"))
        assert (response.status_code, response.json()["verdict"]) == (202, "fail")
        assert not (tmp_path / "canary").exists()


def tarred(name: str, kind: bytes, link: str, compression: str) -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, 4 if kind == tarfile.REGTYPE else 0
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as archive:  # type: ignore[call-overload]
        archive.addfile(member, io.BytesIO(b"evil") if member.size else None)
    return buffer.getvalue()


def zip_of(name: str, kind: bytes, link: str) -> bytes:
    """The same member in a zip, which tells the kind in the bits of a Unix mode."""
    member = zipfile.ZipInfo(name)
    member.external_attr = (UNIX_TYPES.get(kind, 0o100000) | 0o644) << 16
    buffer = io.BytesIO(zipped(diffusers_members()))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(member, link or b"evil")
    return buffer.getvalue()


@pytest.mark.fault_case(29)
def test_archives_that_write_elsewhere_are_refused(client: TestClient, tmp_path: Path) -> None:
    """A tar is of no format that is accepted, so nothing ever unpacks one; a zip is looked at first."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "secret").write_text("secret")
    for what, (name, kind, link) in UNSAFE.items():
        place = [part.format(elsewhere=elsewhere) for part in (name, link)]
        for compression in ("", "gz"):
            response = client.post("/scans", content=tarred(place[0], kind, place[1], compression))
            assert (response.status_code, code(response)) == (415, "unsupported-format"), what
        if kind != tarfile.LNKTYPE:  # a zip knows no hard links
            response = client.post("/scans", content=zip_of(place[0], kind, place[1]))
            assert response.status_code == 422, what
            assert code(response) in ("archive-unsafe-path", "archive-link"), what
    assert files(tmp_path) == ["secret"]
    assert (elsewhere / "secret").read_text() == "secret"
