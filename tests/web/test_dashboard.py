"""The dashboard's pages: who sees what, and that nothing a stranger wrote becomes markup."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.db import references
from service.db.session import Database
from service.storage.tensors import TensorRecord
from service.web.pages import PAGE_SIZE
from service.web.session import COOKIE
from tests.golden.reports import HOSTILE
from tests.web.conftest import SAME_SITE

Submit = Callable[..., str]
NewKey = Callable[[str], tuple[str, str]]


def test_a_stranger_sees_the_sign_in_page_only(browser: TestClient, submit: Submit, new_key: NewKey) -> None:
    tenant, _ = new_key("acme")
    scan = submit(tenant, "secret.safetensors")
    for path in ("/", f"/ui/scans/{scan}"):
        page = browser.get(path)
        assert "API key" in page.text
        assert "secret" not in page.text


def test_a_known_key_signs_in_with_a_guarded_cookie(browser: TestClient, new_key: NewKey) -> None:
    _, key = new_key("acme")
    answer = browser.post("/session", data={"key": f" {key} "}, headers=SAME_SITE)
    cookie = answer.headers["set-cookie"].lower()
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert all(word in cookie for word in ("httponly", "samesite=strict", "path=/"))
    assert "Scan a model" in browser.get("/").text


def test_the_cookie_stays_off_plain_connections(browser: TestClient, new_key: NewKey) -> None:
    _, key = new_key("acme")
    secure = TestClient(browser.app, base_url="https://testserver", follow_redirects=False)
    assert (
        "secure"
        in secure.post("/session", data={"key": key}, headers=SAME_SITE).headers["set-cookie"].lower()
    )


def test_an_unknown_key_is_refused(browser: TestClient) -> None:
    answer = browser.post("/session", data={"key": "sau_wrong"}, headers=SAME_SITE)
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers
    assert "sau_wrong" not in answer.text


@pytest.mark.parametrize("site", ["cross-site", "same-site", "none"])
def test_other_sites_can_neither_sign_in_nor_out(browser: TestClient, new_key: NewKey, site: str) -> None:
    _, key = new_key("acme")
    foreign = {"sec-fetch-site": site}
    assert browser.post("/session", data={"key": key}, headers=foreign).status_code == 403
    browser.post("/session", data={"key": key}, headers=SAME_SITE)
    browser.post("/session/end", headers=foreign)
    assert COOKIE in browser.cookies


def test_signing_out_forgets_the_key(signed_in: tuple[TestClient, str]) -> None:
    browser, _ = signed_in
    browser.post("/session/end", headers=SAME_SITE)
    assert COOKIE not in browser.cookies
    assert "API key" in browser.get("/").text


def test_the_list_shows_own_scans_newest_first(
    signed_in: tuple[TestClient, str], submit: Submit, new_key: NewKey
) -> None:
    browser, tenant = signed_in
    other, _ = new_key("other")
    submit(tenant, "first.safetensors")
    submit(tenant, "second.safetensors")
    submit(other, "theirs.safetensors")
    page = browser.get("/").text
    assert page.index("second.safetensors") < page.index("first.safetensors")
    assert "theirs" not in page


def test_another_tenants_scan_does_not_exist(
    signed_in: tuple[TestClient, str], submit: Submit, new_key: NewKey
) -> None:
    browser, _ = signed_in
    other, _ = new_key("other")
    assert browser.get(f"/ui/scans/{submit(other)}").status_code == 404


def test_the_list_goes_on_without_gap_or_repeat(signed_in: tuple[TestClient, str], submit: Submit) -> None:
    browser, tenant = signed_in
    names = [f"file{number:03}.safetensors" for number in range(PAGE_SIZE + 3)]
    for name in names:
        submit(tenant, name)
    first = browser.get("/").text
    following = re.search(r'href="(/\?after=[^"]+)"', first)
    assert following is not None
    second = browser.get(following[1]).text
    seen = re.findall(r">(file\d{3}\.safetensors)</a>", first + second)
    assert seen == names[::-1]
    assert "Older scans" not in second


EVERY = ["load", "sketch", "text", "glance", "onestep", "confirm", "kin", "orders"]
CLEANING = ["unlearn", "rescan", "evaluate", "save"]


@pytest.mark.parametrize(
    ("options", "stages"),
    [
        ({}, ["load", "crushed", "redirection", *EVERY[1:], *CLEANING]),
        ({"reference": "r1"}, ["load", "edits", "redirection", *EVERY[1:], "meaning", *CLEANING]),
        ({"cleanse": False}, ["load", "crushed", "redirection", *EVERY[1:]]),
    ],
)
def test_a_waiting_scan_is_shown_live_with_the_stages_that_it_will_have(
    signed_in: tuple[TestClient, str], submit: Submit, options: dict[str, Any], stages: list[str]
) -> None:
    browser, tenant = signed_in
    page = browser.get(f"/ui/scans/{submit(tenant, **options)}").text
    assert "/static/scan.js" in page
    assert re.findall(r'<li data-stage="(\w+)"', page) == stages
    assert "Cancel the scan" in page


def test_the_options_of_a_scan_are_told_in_words(signed_in: tuple[TestClient, str], submit: Submit) -> None:
    browser, tenant = signed_in
    prompts = [f"a photo of thing {number}" for number in range(80)]
    scan = submit(tenant, cleanse=False, announced=["sks", "x<y"], prompts=prompts, reference=None)
    page = browser.get(f"/ui/scans/{scan}").text
    told = re.search(r"<dt>Options</dt><dd>(.*?)</dd>", page)
    assert told is not None
    assert "cleanse = no" in told[1]
    assert "announced = sks, x&lt;y" in told[1]
    assert re.search(r"prompts = 80 \([0-9a-f]{8}…\)", told[1])
    assert "reference" not in told[1]


def test_a_registered_base_may_be_near_enough_for_all_stages(
    signed_in: tuple[TestClient, str], submit: Submit, database: Database
) -> None:
    browser, tenant = signed_in
    tensor = TensorRecord("unet", "", "a", "F16", (1,), 2, "0" * 64)
    scan = submit(tenant)
    with database.transaction() as session:
        references.register(session, tenant, "base", f"{1:064x}", "safetensors", [tensor])
    page = browser.get(f"/ui/scans/{scan}").text
    stages = ["load", "edits", "crushed", "redirection", *EVERY[1:], "meaning", *CLEANING]
    assert re.findall(r'<li data-stage="(\w+)"', page) == stages


def test_a_finished_scan_shows_its_report(signed_in: tuple[TestClient, str], submit: Submit) -> None:
    browser, tenant = signed_in
    scan = submit(tenant, finished=True)
    page = browser.get(f"/ui/scans/{scan}").text
    assert f'src="/scans/{scan}/report.html"' in page
    assert f'href="/scans/{scan}/model"' in page
    assert "/static/scan.js" not in page


def test_hostile_names_and_summaries_stay_text(signed_in: tuple[TestClient, str], submit: Submit) -> None:
    browser, tenant = signed_in
    name = HOSTILE.replace("\x00", "")
    scan = submit(tenant, name, finished=True)
    for path in ("/", f"/ui/scans/{scan}"):
        page = browser.get(path).text
        assert "<script>" not in page
        assert "<img src=x" not in page
        assert "\u202e" not in page


def test_pages_forbid_what_they_do_not_need(signed_in: tuple[TestClient, str], submit: Submit) -> None:
    browser, tenant = signed_in
    for path in ("/", f"/ui/scans/{submit(tenant)}"):
        answer = browser.get(path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["cache-control"] == "no-store"
        assert not re.search(r"<script(?! src=)|<style| style=| on\w+=|https?://", answer.text)


@pytest.mark.parametrize(
    "path", ["/static/app.css", "/static/scan.js", "/static/scans.js", "/static/icon.svg", "/palette.css"]
)
def test_static_files_are_served(browser: TestClient, path: str) -> None:
    assert browser.get(path).status_code == 200
