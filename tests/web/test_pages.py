"""Filters, comparison, policies and keys as pages: what they show, and to whom."""

from __future__ import annotations

import html
import re
from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

from service.db import policies, tenants
from service.db.models import Scan
from service.db.session import Database
from service.web.comparison import compare
from service.web.session import COOKIE
from tests.golden.reports import HOSTILE, executable
from tests.web.conftest import SAME_SITE

Submit = Callable[..., str]
NewKey = Callable[[str], tuple[str, str]]
SignedIn = tuple[TestClient, str]


def names(page: str) -> list[str]:
    return re.findall(r">([\w%-]+\.safetensors)</a>", page)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", ["c%d.safetensors", "cat.safetensors", "dog.safetensors"]),
        ("q=CAT", ["cat.safetensors"]),
        ("q=%25", ["c%d.safetensors"]),
        ("result=fail", ["dog.safetensors"]),
        ("result=queued", ["c%d.safetensors", "cat.safetensors"]),
        ("q=dog&result=queued", []),
        ("result=nonsense", ["c%d.safetensors", "cat.safetensors", "dog.safetensors"]),
    ],
)
def test_the_list_is_filtered(signed_in: SignedIn, submit: Submit, query: str, expected: list[str]) -> None:
    browser, tenant = signed_in
    submit(tenant, "dog.safetensors", finished=True)
    submit(tenant, "cat.safetensors")
    submit(tenant, "c%d.safetensors")
    assert names(browser.get(f"/?{query}").text) == expected


def test_a_filter_stays_on_the_next_page(signed_in: SignedIn, submit: Submit) -> None:
    browser, tenant = signed_in
    for number in range(30):
        submit(tenant, f"cat{number}.safetensors")
        submit(tenant, f"dog{number}.safetensors")
    first = browser.get("/?q=cat").text
    following = re.search(r'href="(/\?[^"]+)">Older', first)
    assert following is not None
    second = browser.get(html.unescape(following[1])).text
    assert names(first + second) == [f"cat{number}.safetensors" for number in reversed(range(30))]


def test_two_scans_stand_side_by_side(signed_in: SignedIn, submit: Submit) -> None:
    browser, tenant = signed_in
    older, newer = submit(tenant, "a.safetensors", finished=True), submit(tenant, "b.safetensors")
    page = browser.get(f"/ui/compare?scan={newer}&scan={older}").text
    assert page.index("a.safetensors") < page.index("b.safetensors")
    assert "differs" in page
    assert "<script>" not in page
    assert "\u202e" not in page


def test_every_finding_without_a_word_is_compared() -> None:
    """Two of one rule share a line, and neither is told as a trigger that has no name."""
    report = executable()
    other = {**report["findings"][0], "id": "F2", "effect": {"kind": "unknown", "description": "Calls b."}}
    report["findings"].append(other)
    (row,) = compare(Scan(options={}, report=report), Scan(options={})).findings
    assert row.label == "file.code-execution"
    assert "Loading it calls posix.system." in row.left
    assert "Calls b." in row.left


@pytest.mark.parametrize("chosen", [0, 1, 3])
def test_two_scans_are_needed_for_a_comparison(signed_in: SignedIn, submit: Submit, chosen: int) -> None:
    browser, tenant = signed_in
    query = "&".join(f"scan={submit(tenant)}" for _ in range(chosen))
    answer = browser.get(f"/ui/compare?{query}")
    assert answer.status_code == 422
    assert answer.headers["content-type"].startswith("text/html")


def test_another_tenants_scan_cannot_be_compared(
    signed_in: SignedIn, submit: Submit, new_key: NewKey
) -> None:
    browser, tenant = signed_in
    theirs = submit(new_key("other")[0], "secret.safetensors")
    answer = browser.get(f"/ui/compare?scan={submit(tenant)}&scan={theirs}")
    assert answer.status_code == 404
    assert "secret" not in answer.text


def test_another_tenants_policies_and_keys_are_not_there(
    signed_in: SignedIn, new_key: NewKey, database: Database
) -> None:
    browser, _ = signed_in
    other, _ = new_key("other")
    with database.transaction() as session:
        policies.put_policy(session, other, "theirs", {})
        (key,) = tenants.list_keys(session, other)
    assert "theirs" not in browser.get("/ui/policies").text
    assert browser.get("/ui/policies/theirs").status_code == 404
    assert key.id not in browser.get("/ui/keys").text
    assert browser.post(f"/ui/keys/{key.id}/revoke", headers=SAME_SITE).status_code == 404


def test_a_policy_form_says_what_is_wrong_and_keeps_what_was_typed(signed_in: SignedIn) -> None:
    browser, _ = signed_in
    form = {"name": "Not A Name", "minimum_removal": "0.5", "fail_on": "high"}
    answer = browser.post("/ui/policies", data=form, headers=SAME_SITE)
    assert answer.status_code == 422
    assert all(words in answer.text for words in ("Nothing was saved", "Not A Name", 'value="0.5"'))
    wrong = browser.post("/ui/policies", data={"name": "x", "minimum_removal": "2"}, headers=SAME_SITE)
    assert (wrong.status_code, "minimum_removal" in wrong.text) == (422, True)
    assert "No policies yet" in browser.get("/ui/policies").text


def test_a_policy_form_makes_versions(signed_in: SignedIn) -> None:
    browser, _ = signed_in
    for bars in ({"fail_on": "high"}, {"fail_on": "high", "allowed_formats": "single-file, diffusers"}):
        answer = browser.post("/ui/policies", data={"name": "strict", **bars}, headers=SAME_SITE)
        assert (answer.status_code, answer.headers["location"]) == (303, "/ui/policies/strict")
    page = browser.get("/ui/policies/strict").text
    assert "Version 1" in page
    assert "formats single-file, diffusers" in page


def test_who_may_not_set_a_policy_is_shown_no_form(signed_in: SignedIn, database: Database) -> None:
    browser, tenant = signed_in
    browser.post("/ui/policies", data={"name": "strict"}, headers=SAME_SITE)
    with database.transaction() as session:
        token = tenants.create_key(session, tenant, name="ci", scopes=["scans:read", "scans:write"])
    pages = ("/ui/policies", "/ui/policies/strict")
    assert all("<form" in browser.get(path).text.split("<main")[1] for path in pages)
    browser.cookies.clear()
    browser.cookies.set(COOKIE, token)
    for path in pages:
        shown = browser.get(path).text.split("<main")[1]
        assert ("<form" in shown, "scope <code>admin</code>" in shown) == (False, True), path


def test_keys_are_for_administrators(browser: TestClient, new_key: NewKey, database: Database) -> None:
    tenant, _ = new_key("acme")
    with database.transaction() as session:
        token = tenants.create_key(session, tenant, name="reader", scopes=["scans:read"])
    browser.cookies.set(COOKIE, token)
    assert browser.get("/").status_code == 200
    for method, path in (("GET", "/ui/keys"), ("POST", "/ui/keys"), ("POST", "/ui/policies")):
        answer = browser.request(method, path, headers=SAME_SITE)
        assert answer.status_code == 403
        assert "lacks the scope" in answer.text


@pytest.mark.parametrize("path", ["/ui/keys", "/ui/keys/key_x/revoke", "/ui/policies"])
def test_other_sites_cannot_post(signed_in: SignedIn, path: str) -> None:
    browser, _ = signed_in
    form = {"name": "strict", "scope": "admin"}
    assert browser.post(path, data=form, headers={"sec-fetch-site": "cross-site"}).status_code == 401
    assert "No policies yet" in browser.get("/ui/policies").text
    assert browser.get("/ui/keys").text.count("Revoke now") == 1


@pytest.mark.parametrize(
    "form", [{"name": "", "scope": "admin"}, {"name": "x"}, {"name": "x", "scope": "root"}]
)
def test_a_key_needs_a_name_and_a_known_scope(signed_in: SignedIn, form: dict[str, str]) -> None:
    browser, _ = signed_in
    answer = browser.post("/ui/keys", data=form, headers=SAME_SITE)
    assert (answer.status_code, "sau_" in answer.text) == (422, False)


def test_hostile_names_of_keys_stay_text(signed_in: SignedIn) -> None:
    browser, _ = signed_in
    form = {"name": HOSTILE.replace("\x00", "")[:100], "scope": "scans:read"}
    answer = browser.post("/ui/keys", data=form, headers=SAME_SITE)
    assert answer.status_code == 201
    assert not re.search(r"<script>|<img|\u202e", answer.text + browser.get("/ui/keys").text)


def test_the_documentation_loads_nothing_from_elsewhere(browser: TestClient) -> None:
    page = browser.get("/docs")
    assert page.status_code == 200
    assert "script-src 'self'" in page.headers["content-security-policy"]
    local = re.findall(r'(?:src|href)="([^"]+\.(?:js|css))"', page.text)
    assert len(local) >= 4
    assert all(browser.get(path).status_code == 200 for path in local)
