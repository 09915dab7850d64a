"""The pages of webhooks: add, look, test, replay, rotate, remove, each without a script."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from service.db import tenants, webhooks
from service.db.models import WebhookDelivery
from service.db.session import Database
from service.db.webhooks import Outcome
from service.settings import Settings
from tests.golden.reports import HOSTILE
from tests.web.conftest import SAME_SITE

URL = "https://127.0.0.1/hooks/x"
ALL = ["scan.completed", "scan.failed", "scan.cancelled", "scan.expired"]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"egress_allowed_hosts": ("127.0.0.1",)})


@pytest.fixture
def hook(signed_in: tuple[TestClient, str]) -> str:
    """The path of a webhook's page."""
    page = signed_in[0].post("/ui/webhooks", data={"url": URL, "event": ALL}, headers=SAME_SITE)
    path = re.search(r'href="(/ui/webhooks/whk_\w+)"', page.text)
    assert path is not None
    return path[1]


def test_added_webhook_shows_its_secret_once(signed_in: tuple[TestClient, str]) -> None:
    browser, _ = signed_in
    chosen = {"url": URL, "event": ["scan.failed"]}
    answer = browser.post("/ui/webhooks", data=chosen, headers=SAME_SITE)
    assert answer.status_code == 201
    assert re.search(r"whsec_[\w+/=]{40,}", answer.text)
    again = browser.get("/ui/webhooks").text
    assert URL in again
    assert "whsec_" not in again
    assert re.findall(r"<code>(scan\.\w+)</code>", again.partition("A new webhook")[0]) == ["scan.failed"]


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"url": "https://169.254.169.254/", "event": ALL}, "public internet"),
        ({"url": "http://example.com/", "event": ALL}, "Use https"),
        ({"url": URL, "event": []}, "at least one event"),
        ({"url": HOSTILE, "event": ALL}, "without spaces"),
    ],
)
def test_refused_address_is_explained_and_kept(
    signed_in: tuple[TestClient, str], form: dict[str, str], words: str
) -> None:
    answer = signed_in[0].post("/ui/webhooks", data=form, headers=SAME_SITE)
    assert answer.status_code == 422
    assert words in answer.text
    assert "No webhooks yet" in answer.text
    assert "<script>" not in answer.text
    if form["url"] != HOSTILE:
        assert f'value="{form["url"]}"' in answer.text


def test_deliveries_are_shown_and_replayed(
    signed_in: tuple[TestClient, str], hook: str, database: Database
) -> None:
    browser, _ = signed_in
    assert browser.post(f"{hook}/test", headers=SAME_SITE).headers["location"] == hook
    with database.transaction() as session:
        (claimed,) = webhooks.claim_due(session, lease_seconds=60)
        webhooks.settle(session, claimed, Outcome(7, 410, "<b>gone</b>", None), first_retry_seconds=1)
        session.get_one(WebhookDelivery, claimed.delivery_id).webhook.disabled_at = None
    page = browser.get(hook).text
    assert "given up" in page
    assert "&lt;b&gt;gone&lt;/b&gt;" in page
    replay = re.search(rf'action="({hook}/deliveries/msg_\w+/replay)"', page)
    assert replay is not None
    assert browser.post(replay[1], headers=SAME_SITE).headers["location"] == hook
    with database.transaction() as session:
        assert session.scalars(select(WebhookDelivery.state)).all() == ["pending"]


def test_secret_is_changed_and_webhook_removed(signed_in: tuple[TestClient, str], hook: str) -> None:
    browser, _ = signed_in
    assert "whsec_" in browser.post(f"{hook}/rotate", headers=SAME_SITE).text
    assert "whsec_" not in browser.get(hook).text
    assert browser.post(f"{hook}/remove", headers=SAME_SITE).headers["location"] == "/ui/webhooks"
    assert browser.get(hook).status_code == 404


@pytest.mark.parametrize("action", ["", "/rotate", "/test", "/remove"])
def test_other_sites_and_other_tenants_reach_nothing(
    signed_in: tuple[TestClient, str],
    hook: str,
    new_key: Callable[[str], tuple[str, str]],
    action: str,
) -> None:
    browser, _ = signed_in
    if action:
        assert browser.post(f"{hook}{action}", headers={"sec-fetch-site": "cross-site"}).status_code == 401
    assert browser.get(hook).status_code == 200
    _, theirs = new_key("other")
    browser.post("/session", data={"key": theirs}, headers=SAME_SITE)
    answer = browser.post(f"{hook}{action}", headers=SAME_SITE) if action else browser.get(hook)
    assert answer.status_code == 404
    assert URL not in browser.get("/ui/webhooks").text


def test_key_without_the_scope_is_told_so(browser: TestClient, database: Database, tenant_id: str) -> None:
    with database.transaction() as session:
        key = tenants.create_key(session, tenant_id, name="reader", scopes=["scans:read"])
    browser.post("/session", data={"key": key}, headers=SAME_SITE)
    answer = browser.get("/ui/webhooks")
    assert answer.status_code == 403
    assert "admin" in answer.text
