"""A signed result: what is signed, who sees the key, and that no change to it goes unseen."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from bench.service.signatures import mutations
from service.cli import app as cli
from service.connection import write_private
from service.main import create_app
from service.reports import signing
from service.reports.signing import Fault, Signer, UnusableKeyError, What, verify
from service.settings import Settings
from tests.applications import Finish
from tests.golden.reports import failing
from tests.service.checkpoints import attack, safetensors

MUTATIONS = 100
PICTURE = "evidence/F1-01-with.png"
MODEL = "cleaned.safetensors"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "keys" / "private.pem"
    path.parent.mkdir()
    write_private(path, signing.new_private_key())
    return path


@pytest.fixture
def public(key: Path) -> Path:
    path = key.with_name("public.pem")
    path.write_bytes(Signer(key).public_key)
    return path


@pytest.fixture
def settings(settings: Settings, key: Path) -> Settings:
    return settings.model_copy(update={"signing_key": key})


@pytest.fixture
def done(client: TestClient, finish: Finish) -> str:
    """The path of a finished scan with a picture and a cleaned model."""
    scan_id = client.post("/scans", content=safetensors()).json()["id"]
    finish(scan_id, failing(), model=os.urandom(5000), evidence={"F1-01-with.png": os.urandom(500)})
    return f"/scans/{scan_id}"


def save(client: TestClient, scan: str, folder: Path) -> Path:
    """Download a result, as its list of files says."""
    for file in client.get(f"{scan}/files").json()["files"]:
        target = folder / file["path"]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(client.get(file["href"]).content)
        assert hashlib.sha256(target.read_bytes()).hexdigest() == file["sha256"]
    return folder


@pytest.fixture
def result(client: TestClient, done: str, tmp_path: Path) -> Path:
    return save(client, done, tmp_path / "result")


def names(faults: tuple[Fault, ...]) -> dict[str, What]:
    return {fault.name: fault.what for fault in faults}


def test_one_signature_covers_all_that_is_served(
    client: TestClient, done: str, result: Path, public: Path
) -> None:
    found = verify(result, public)
    assert (found.faults, found.covered) == ((), (MODEL, PICTURE, "report.json"))
    scan = client.get(done).json()
    assert scan["signed_by"] == signing.fingerprint(public.read_bytes())
    assert found.scan == scan["id"]
    assert client.get(scan["links"]["signing_key"]).content == public.read_bytes()
    assert client.get(scan["links"]["signature"]).content == (result / "signature.json").read_bytes()
    assert json.loads((result / "report.json").read_bytes()) == client.get(f"{done}/report").json()


def test_another_implementation_agrees(result: Path, public: Path) -> None:
    arguments = ["--public_key", str(public), "--signature", str(result / "signature.json"), str(result)]
    command = [sys.executable, "-m", "model_signing", "verify", "key", *arguments]
    assert subprocess.run(command, capture_output=True).returncode == 0
    (result / PICTURE).write_bytes(b"another")
    assert subprocess.run(command, capture_output=True).returncode != 0


def test_a_verdict_without_a_worker_is_signed_too(client: TestClient, tmp_path: Path, public: Path) -> None:
    scan = client.post("/scans", content=attack(Path("canary"))).json()
    assert (scan["state"], scan["verdict"]) == ("succeeded", "fail")
    found = verify(save(client, f"/scans/{scan['id']}", tmp_path / "result"), public)
    assert (found.faults, found.covered) == ((), ("report.json",))


@pytest.mark.fault_case(39)
def test_no_mutation_goes_unseen(result: Path, public: Path) -> None:
    """One byte, in 100 random places of report, picture, model and signature: each is refused by name."""
    refused = Counter[str]()
    for name in mutations(result, MUTATIONS, seed=20):
        expected = What.INVALID if name == "signature.json" else What.ALTERED
        assert names(verify(result, public).faults) == {name: expected}
        refused[name] += 1
    assert refused == dict.fromkeys(("report.json", PICTURE, MODEL, "signature.json"), MUTATIONS // 4)
    assert verify(result, public).faults == ()


Change = Callable[[Path], object]


@pytest.mark.parametrize(
    ("change", "name", "what"),
    [
        (lambda folder: (folder / "report.json").unlink(), "report.json", What.MISSING),
        (lambda folder: shutil.rmtree(folder / "evidence"), PICTURE, What.MISSING),
        (lambda folder: (folder / "report.html").write_text("<p>pass"), "report.html", What.ADDED),
        (lambda folder: (folder / ".gitignore").write_text("*"), ".gitignore", What.ADDED),
        (lambda folder: (folder / "more.png").symlink_to(folder / PICTURE), "more.png", What.ADDED),
        (lambda folder: os.mkfifo(folder / "pipe"), "pipe", What.ADDED),
        (lambda folder: (folder / "signature.json").unlink(), "signature.json", What.MISSING),
        (lambda folder: (folder / "signature.json").write_text("[]"), "signature.json", What.INVALID),
        (lambda folder: (folder / "signature.json").write_bytes(b"\xff"), "signature.json", What.INVALID),
    ],
)
def test_what_is_missing_or_added_is_named(
    result: Path, public: Path, change: Change, name: str, what: What
) -> None:
    change(result)
    assert names(verify(result, public).faults) == {name: what}


def test_the_signature_of_another_result_does_not_fit(
    client: TestClient, result: Path, public: Path, tmp_path: Path
) -> None:
    scan = client.post("/scans", content=attack(Path("canary"))).json()
    other = save(client, f"/scans/{scan['id']}", tmp_path / "other")
    shutil.copy(other / "signature.json", result)
    assert names(verify(result, public).faults) == {
        "report.json": What.ALTERED,
        PICTURE: What.ADDED,
        MODEL: What.ADDED,
    }


def test_a_signature_with_another_key_is_refused(result: Path, tmp_path: Path) -> None:
    (tmp_path / "other.pem").write_text(signing.new_private_key())
    (tmp_path / "other.pub").write_bytes(Signer(tmp_path / "other.pem").public_key)
    assert names(verify(result, tmp_path / "other.pub").faults) == {"signature.json": What.INVALID}


def test_without_a_key_the_scan_says_that_it_is_not_signed(
    settings: Settings, token: str, finish: Finish
) -> None:
    app = create_app(settings.model_copy(update={"signing_key": None}))
    with TestClient(app, headers={"Authorization": f"Bearer {token}"}) as client:
        scan = client.post("/scans", content=attack(Path("canary"))).json()
        assert scan["signed_by"] is None
        assert "signature" not in scan["links"]
        signature = client.get(f"/scans/{scan['id']}/signature")
        assert (signature.status_code, signature.json()["type"].rsplit("/")[-1]) == (404, "not-signed")
        key = client.get("/signing-key")
        assert (key.status_code, key.json()["type"].rsplit("/")[-1]) == (404, "no-signing-key")
        assert [file["path"] for file in client.get(f"/scans/{scan['id']}/files").json()["files"]] == [
            "report.json"
        ]


def test_an_unusable_key_stops_the_start(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "nonsense").write_text("nonsense")
    for path in (tmp_path / "nonsense", tmp_path / "absent"):
        with pytest.raises(UnusableKeyError):
            create_app(settings.model_copy(update={"signing_key": path}))


def test_exit_statuses(result: Path, public: Path, key: Path) -> None:
    def run(*arguments: object) -> tuple[int, str]:
        outcome = CliRunner().invoke(cli, ["verify", *map(str, arguments)])
        return outcome.exit_code, outcome.output

    assert run(result, "--key", public)[0] == 0
    assert run(result, "--key", key)[0] == 2  # the private key is no public one
    assert run(result / "absent", "--key", public)[0] == 2
    (result / PICTURE).write_bytes(b"another")
    status, output = run(result, "--key", public)
    assert (status, output.split()) == (1, ["altered", PICTURE])
