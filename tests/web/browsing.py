"""Chromium through Playwright, on the application behind a socket. Skipped where there is no Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, sync_playwright

from tests.applications import Live

VIEWPORTS = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}
_AXE = Axe()
_FOREIGN = {"exclude": ["#swagger"]}  # what Swagger UI draws is not ours to mend
_RULES = {"resultTypes": ["violations"], "iframes": False}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for the tests of a module."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium here")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Visitor:
    """Somebody in front of a window. `complaints` collects what the browser refused or could not load."""

    page: Page
    live: Live
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", self._heard)
        self.page.on("request", self._asked)

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.complaints.append(message.text)

    def _asked(self, request: Request) -> None:
        if not request.url.startswith((self.live.url, "data:", "blob:")):
            self.complaints.append(f"asked {request.url}")

    def goto(self, path: str) -> Page:
        """Open a path of the service and wait until it is drawn."""
        self.page.goto(self.live.url + path)
        self.page.wait_for_load_state("load")
        return self.page

    def sign_in(self) -> None:
        """Sign in with the key, as a person does."""
        self.goto("/")
        self.page.get_by_label("API key").fill(self.live.token)
        self.page.get_by_role("button", name="Sign in").click()
        self.page.get_by_role("heading", name="Scan a model").wait_for()
        self.page.wait_for_load_state("load")  # the page's script listens from here on

    def faults(self) -> list[str]:
        """What axe calls serious or critical on the present page, and a page wider than its window."""
        found = _AXE.run(self.page, context=_FOREIGN, options=_RULES).response["violations"]
        serious = [fault for fault in found if fault["impact"] in ("serious", "critical")]
        described = [f"{fault['id']}: {_places(fault)}" for fault in serious]
        width = self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        return described + ([f"{width} px wider than the window"] if width > 0 else [])

    def shoot(self, path: Path) -> None:
        """Keep a picture of the whole page."""
        self.page.screenshot(path=path, full_page=True)


def _places(fault: dict[str, Any]) -> str:
    return "; ".join(f"{node['target']} {node['failureSummary']}" for node in fault["nodes"][:3])


Open = Callable[..., Visitor]


@pytest.fixture
def visit(chromium: Browser, live: Live) -> Iterator[Open]:
    """Opens a window: visit(viewport="phone", scheme="dark")."""
    contexts: list[BrowserContext] = []

    def visit(viewport: str = "desktop", scheme: Any = "light") -> Visitor:
        context = chromium.new_context(
            viewport=VIEWPORTS[viewport], color_scheme=scheme, reduced_motion="reduce"
        )
        context.set_default_timeout(20_000)
        contexts.append(context)
        return Visitor(context.new_page(), live)

    yield visit
    for context in contexts:
        context.close()
