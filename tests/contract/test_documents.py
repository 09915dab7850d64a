"""What the documents promise exists: files, make targets, commands, settings, paths of the API."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
from typer.main import get_command

from service.cli import app
from service.gate import Exit
from service.main import create_app
from service.settings import Settings

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


@cache
def text(document: Path) -> str:
    return document.read_text()


@each_document
def test_links_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", text(document))
    local = [target for target in targets if not target.startswith(("http://", "https://"))]
    missing = [target for target in local if not (document.parent / target).exists()]
    assert missing == []


@each_document
def test_make_targets_exist(document: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make ([a-z]+)", text(document), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@each_document
def test_commands_exist(document: Path) -> None:
    known = set(get_command(app).commands)
    assert set(re.findall(r"(?:`|bin/)sauscan ([a-z]+)", text(document))) <= known


@each_document
def test_settings_are_settings(document: Path) -> None:
    known = {f"SAUSCAN_{field}".upper() for field in Settings.model_fields}
    of_the_client = {"SAUSCAN_URL", "SAUSCAN_API_KEY"}
    compose = "".join((ROOT / name).read_text() for name in ("docker-compose.yml", "docker/signing.yml"))
    of_compose = set(re.findall(r"\$\{(SAUSCAN_\w+)", compose))
    assert set(re.findall(r"SAUSCAN_\w+", text(document))) <= known | of_the_client | of_compose


def test_paths_of_the_curl_example_are_the_apis(tmp_path: Path) -> None:
    paths = set(create_app(Settings(data_dir=tmp_path)).openapi()["paths"])
    used = re.findall(r'"\$URL(/scans)?(?:\$SCAN)?(/[a-z]+)?(\.[a-z]+)?', text(ROOT / "README.md"))
    assert len(used) > 4
    for collection, part, suffix in used:
        path = collection or f"/scans/{{scan_id}}{part}{'.{suffix}' if suffix else ''}"
        assert path in paths, path


def test_exit_codes_of_the_readme_are_the_commands() -> None:
    rows = re.findall(r"^\| (\d) \| (\w+):", text(ROOT / "README.md"), re.MULTILINE)
    codes = {words.upper(): int(code) for code, words in rows}
    assert {code.name: code.value for code in Exit if code.name in codes} == codes
    assert len(codes) == 4
