"""The dashboard in Chromium: every page, light and dark, on desk and phone, by mouse and by keyboard."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from starlette.testclient import TestClient

from service.db import attempts, webhooks
from service.db.session import Database
from service.db.webhooks import Outcome
from service.domain.webhooks import EVENTS
from tests.applications import Finish
from tests.golden.reports import failing, passing
from tests.golden.toy_pictures import pictures
from tests.service.checkpoints import safetensors
from tests.web.browsing import Open, chromium, visit

__all__ = ["chromium", "visit"]

pytestmark = pytest.mark.e2e

Make = Callable[..., str]


@pytest.fixture
def submit(client: TestClient) -> Make:
    """Queues a scan of a new file under a name; returns its id."""
    count = iter(range(1, 250))

    def submit(name: str, budget: str = "standard") -> str:
        body = safetensors(fill=next(count))
        answer = client.post(f"/scans?budget={budget}", content=body, headers={"X-Filename": name})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    return submit


@pytest.fixture
def finished(submit: Make, finish: Finish) -> Make:
    """A scan that ended: finished(name, report)."""

    def finished(name: str, report: dict[str, Any], budget: str = "standard") -> str:
        scan = submit(name, budget)
        report["provenance"]["config"]["budget"] = budget
        model = b"cleaned" if report.get("unlearning") else None
        finish(scan, report, model=model, evidence=pictures(report))
        return scan

    return finished


def webhook(database: Database, tenant_id: str) -> str:
    """A webhook with a delivery that failed once and waits; its id."""
    with database.transaction() as session:
        made = webhooks.create(session, tenant_id, "https://example.com/hooks/sauscan", EVENTS)
        webhooks.send_test(session, made)
        (claimed,) = webhooks.claim_due(session, lease_seconds=60)
        failed = Outcome(812, 503, "upstream is being restarted", None)
        webhooks.settle(session, claimed, failed, first_retry_seconds=600)
        return made.id


@pytest.fixture
def world(
    client: TestClient, submit: Make, finished: Make, database: Database, tenant_id: str
) -> dict[str, str]:
    """Scans of every kind, a policy in two versions, a webhook; the ids of the scans and of the webhook."""
    found = {
        "webhook": webhook(database, tenant_id),
        "fail": finished("portraits-v2.safetensors", failing()),
        "pass": finished("portraits-v1.safetensors", passing(), budget="quick"),
        "failed": submit("landscapes.safetensors"),
        "live": submit("a-model-with-a-rather-long-file-name-as-they-often-come.safetensors"),
    }
    with database.transaction() as session:
        for name in ("failed", "live"):
            claim = attempts.claim(session, found[name], "test", 600)
            assert claim is not None
            attempts.record_progress(session, found[name], claim.attempt, "sketch", 0.4, "counting")
        error = {"code": "engine-error", "detail": "The engine broke."}
        attempts.fail(session, found["failed"], 1, error)
    for bars in ({"fail_on": "high"}, {"minimum_budget": "standard", "minimum_removal": 0.95}):
        assert client.put("/policies/strict", json=bars).status_code == 201
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", ["desktop", "phone"])
def test_every_page_is_open_to_everybody(
    visit: Open, world: dict[str, str], viewport: str, scheme: str, tmp_path: Path
) -> None:
    visitor = visit(viewport, scheme)
    pages = {
        "scans": "/",
        "filtered": "/?q=portraits&result=fail",
        "live": f"/ui/scans/{world['live']}",
        "failed": f"/ui/scans/{world['failed']}",
        "finished": f"/ui/scans/{world['fail']}?policy=strict",
        "report": f"/scans/{world['fail']}/report.html",
        "compare": f"/ui/compare?scan={world['fail']}&scan={world['pass']}",
        "policies": "/ui/policies",
        "policy": "/ui/policies/strict",
        "webhooks": "/ui/webhooks",
        "webhook": f"/ui/webhooks/{world['webhook']}",
        "keys": "/ui/keys",
        "problem": "/ui/scans/scn_00000000000000000000000000000000",
        "docs": "/docs",
    }
    visitor.goto("/")
    faults = {"sign-in": visitor.faults()}
    visitor.shoot(tmp_path / "sign-in.png")
    visitor.sign_in()
    for name, path in pages.items():
        page = visitor.goto(path)
        if name == "docs":
            page.get_by_role("heading", name="sauscan").first.wait_for()
        faults[name] = visitor.faults()
        visitor.shoot(tmp_path / f"{name}.png")
    found = [f"{name}: {fault}" for name, faults_of_page in faults.items() for fault in faults_of_page]
    assert not found, "\n".join(found)
    assert visitor.complaints == []


def test_an_upload_by_mouse_ends_on_its_scan(visit: Open, tmp_path: Path) -> None:
    file = tmp_path / "dropped.safetensors"
    file.write_bytes(safetensors())
    visitor = visit()
    visitor.sign_in()
    visitor.page.get_by_text("New words that the model's maker announces").click()
    visitor.page.get_by_label("Announced words, one a line").fill("xyz\n\n sks, zwx")
    visitor.page.locator("#file").set_input_files(file)
    visitor.page.wait_for_url(re.compile("/ui/scans/scn_"))
    expect(visitor.page.get_by_role("heading", level=1)).to_have_text("dropped.safetensors")
    expect(visitor.page.get_by_text("announced = xyz, sks, zwx")).to_have_count(1)
    expect(visitor.page.locator("#state")).to_have_text("queued")
    assert visitor.complaints == []


def test_a_trusted_base_is_chosen_by_keyboard(visit: Open, client: TestClient, tmp_path: Path) -> None:
    visitor = visit("phone")
    visitor.sign_in()
    expect(visitor.page.get_by_label("Trusted base")).to_have_count(0)
    for fill, name in enumerate(("sd-1.5", "a-rather-long-name-" * 10), start=1):
        answer = client.post("/references", params={"name": name}, content=safetensors(fill=fill))
        assert answer.status_code == 201, answer.text
    for number, (typed, named) in enumerate((("", None), ("sd", "sd-1.5"))):
        page = visitor.goto("/")
        assert visitor.faults() == []
        choice = page.get_by_label("Trusted base")
        page.get_by_label("Seed").focus()
        page.keyboard.press("Tab")
        expect(choice).to_be_focused()
        page.keyboard.type(typed)
        file = tmp_path / f"{number}.safetensors"
        file.write_bytes(safetensors(fill=10 + number))
        page.locator("#file").set_input_files(file)
        page.wait_for_url(re.compile("/ui/scans/scn_"))
        scan = client.get(page.url.replace(visitor.live.url, "").removeprefix("/ui")).json()
        names = {base["id"]: base["name"] for base in client.get("/references").json()["references"]}
        assert names.get(scan["options"]["reference"]) == named


def test_a_live_scan_moves_and_ends_without_a_reload_by_hand(
    visit: Open, submit: Make, finish: Finish, database: Database
) -> None:
    scan = submit("live.safetensors")
    visitor = visit()
    visitor.sign_in()
    page = visitor.goto(f"/ui/scans/{scan}")
    finish(scan, passing())
    expect(page.locator("h1 .badge")).to_have_text("pass")


def test_the_slider_moves_by_keyboard(visit: Open, finished: Make) -> None:
    scan = finished("model.safetensors", failing())
    visitor = visit()
    visitor.sign_in()
    page = visitor.goto(f"/ui/scans/{scan}")
    slider = page.locator(".slider").first
    after = slider.locator("img").nth(1)
    range_ = slider.get_by_role("slider")
    range_.focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    expect(range_).to_have_value("20")
    expect(after).to_have_css("clip-path", "inset(0px 0px 0px 20%)")
    assert page.locator(".slider img").evaluate_all("all => all.every(one => one.naturalWidth > 0)")


def test_two_scans_are_chosen_and_compared(visit: Open, world: dict[str, str]) -> None:
    visitor = visit()
    visitor.sign_in()
    for name in ("portraits-v1", "portraits-v2"):
        visitor.page.get_by_role("checkbox", name=re.compile(name)).check()
    visitor.page.get_by_role("button", name="Compare the two").click()
    page = visitor.page
    expect(page.get_by_role("heading", level=1)).to_have_text("Two scans side by side")
    expect(_row(page, "budget")).to_contain_text("differs")
    expect(_row(page, "Engine")).not_to_contain_text("differs")


def _row(page: Page, name: str) -> Any:
    return page.get_by_role("row").filter(has=page.get_by_role("rowheader", name=name, exact=True))


def test_a_key_is_made_shown_once_and_revoked(visit: Open, client: TestClient) -> None:
    visitor = visit()
    visitor.sign_in()
    page = visitor.goto("/ui/keys")
    page.get_by_label("Name").fill("pipeline")
    page.get_by_role("button", name="Make the key").click()
    token = page.locator(".token").inner_text()
    assert visitor.faults() == []
    headers = {"Authorization": f"Bearer {token}"}
    assert client.get("/scans", headers=headers).status_code == 200
    assert client.get("/keys", headers=headers).status_code == 403
    visitor.goto("/ui/keys")
    expect(page.locator("body")).not_to_contain_text(token)
    row = page.get_by_role("row").filter(has_text="pipeline")
    row.get_by_text("Revoke", exact=False).first.click()
    row.get_by_role("button", name="Revoke now").click()
    expect(page.get_by_text("Revoked keys (1)")).to_be_visible()
    assert client.get("/scans", headers=headers).status_code == 401


def test_a_policy_is_made_changed_and_asked(visit: Open, finished: Make) -> None:
    scan = finished("model.safetensors", passing(), budget="quick")
    visitor = visit()
    visitor.sign_in()
    page = visitor.goto("/ui/policies")
    page.get_by_label("Name").fill("strict")
    page.get_by_role("button", name="Make the policy").click()
    page.get_by_label("Least budget").select_option("deep")
    page.get_by_role("button", name="Make the next version").click()
    expect(page.get_by_role("heading", name="Version 2")).to_be_visible()
    visitor.goto(f"/ui/scans/{scan}")
    page.get_by_label("Policy", exact=True).select_option("strict")
    page.get_by_role("button", name="Judge").click()
    expect(page.get_by_role("status")).to_contain_text("inconclusive under strict, version 2")
    expect(page.get_by_role("status")).to_contain_text("minimum_budget decided")


def test_the_keyboard_alone_reaches_a_scan(visit: Open, world: dict[str, str]) -> None:
    visitor = visit()
    visitor.sign_in()
    page = visitor.goto("/")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    link = page.get_by_role("link", name="portraits-v2.safetensors")
    for _ in range(60):
        page.keyboard.press("Tab")
        if link.evaluate("one => one === document.activeElement"):
            break
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_contain_text("portraits-v2.safetensors")
