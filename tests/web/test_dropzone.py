"""The dashboard's upload in a real browser: in pieces, over a connection that breaks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route
from starlette.testclient import TestClient

from service.web.session import COOKIE
from tests.applications import Live
from tests.service.checkpoints import safetensors
from tests.web.browsing import chromium

__all__ = ["chromium"]

PIECE = 64 << 10


@pytest.fixture
def page(chromium: Browser, live: Live) -> Iterator[Page]:
    """The dashboard of a signed-in visitor, with small pieces."""
    context = chromium.new_context()
    context.add_cookies([{"name": COOKIE, "value": live.token, "url": live.url}])
    page = context.new_page()
    page.route("**/static/scans.js", _small_pieces)
    page.goto(live.url)
    yield page
    context.close()


def _small_pieces(route: Route) -> None:
    response = route.fetch()
    script = response.text()
    assert "16 * 1024 * 1024" in script
    route.fulfill(response=response, body=script.replace("16 * 1024 * 1024", str(PIECE)))


def test_upload_goes_on_after_a_break_and_after_a_reload(
    page: Page, live: Live, client: TestClient, tmp_path: Path
) -> None:
    body = safetensors(values=1 << 16)
    file = tmp_path / "model.safetensors"
    file.write_bytes(body)
    sent: list[int] = []

    def breaking(route: Route) -> None:
        if route.request.method != "PATCH":
            return route.continue_()
        sent.append(int(route.request.headers["upload-offset"]))
        if len(sent) == 2:
            return route.abort()
        if len(sent) == 4:
            page.evaluate("stopping.abort()")
            return route.abort()
        return route.continue_()

    page.route("**/uploads/*", breaking)
    page.set_input_files("#file", file)
    page.wait_for_selector("#upload:not([hidden])", timeout=60_000)
    page.wait_for_function("stopping?.signal.aborted", timeout=60_000)
    page.reload()
    page.set_input_files("#file", file)
    page.wait_for_url("**/ui/scans/*", timeout=60_000)
    assert sent == [0, PIECE, PIECE, 2 * PIECE, *range(2 * PIECE, len(body), PIECE)]
    (scan,) = client.get("/scans").json()["scans"]
    assert scan["sha256"] == hashlib.sha256(body).hexdigest()
    assert scan["filename"] == "model.safetensors"


def test_refusal_is_shown(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(safetensors()[:-1])
    page.set_input_files("#file", file)
    page.wait_for_selector("#refused:not([hidden])", timeout=60_000)
    assert "shorter than its header says" in page.inner_text("#refused")
