"""Policies: the pure judgement, and the resource."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from service.domain.policy import RULES, Policy, judge
from tests.applications import Finish
from tests.golden.reports import failing, inconclusive, passing, wordless
from tests.service.checkpoints import safetensors

ORDER = ("fail", "inconclusive", "pass")
REPORTS = (failing(), inconclusive(), passing())

policies = st.builds(
    Policy,
    fail_on=st.sampled_from(("low", "medium", "high", "critical")),
    inconclusive=st.sampled_from(ORDER),
    minimum_budget=st.sampled_from((None, "quick", "standard", "deep")),
    require_reference=st.booleans(),
    refuse_announced=st.booleans(),
    allowed_formats=st.sampled_from((None, ("single-file",), ("nothing",))),
    minimum_removal=st.none() | st.floats(0, 1),
    maximum_clip_loss=st.none() | st.floats(0, 1),
)


@given(st.sampled_from(REPORTS), policies)
def test_worst_outcome_decides_and_is_named(report: dict[str, Any], policy: Policy) -> None:
    judgement = judge(report, policy)
    worst = min(judgement.outcomes, key=lambda outcome: ORDER.index(outcome.verdict))
    assert (judgement.verdict, judgement.decided_by) == (worst.verdict, worst.rule)
    assert judgement == judge(report, policy)
    assert len(judgement.outcomes) <= len(RULES)


@pytest.mark.parametrize("report", REPORTS)
def test_default_policy_agrees_with_the_scan(report: dict[str, Any]) -> None:
    assert judge(report, Policy()).verdict == report["verdict"]


def with_removal(value: float, low: float) -> dict[str, Any]:
    report = failing()
    report["unlearning"]["removal"] = {"value": value, "n": 200, "ci95": [low, 1.0]}
    return report


def with_clip(before: float, after: float) -> dict[str, Any]:
    report = failing()
    report["clip"]["image_text"] = {"before": before, "after": after}
    return report


def with_config(report: dict[str, Any], **config: Any) -> dict[str, Any]:
    report["provenance"]["config"] = config
    return report


def with_base(report: dict[str, Any], *, compared: bool = False) -> dict[str, Any]:
    """Beside the nearest registered base."""
    base = {"id": "ref_1", "name": "base", "sha256": "0" * 64, "share": 0.98, "compared": compared}
    report["provenance"]["reference"] = base
    return report


def with_severity(severity: str) -> dict[str, Any]:
    report = failing()
    for finding in report["findings"]:
        finding["severity"] = severity
    return report


@pytest.mark.parametrize(
    ("report", "policy", "rule", "verdict"),
    [
        (with_severity("medium"), {"fail_on": "medium"}, "fail_on", "fail"),
        (with_severity("medium"), {"fail_on": "high"}, "fail_on", "pass"),
        (inconclusive(), {"inconclusive": "fail"}, "inconclusive", "fail"),
        (inconclusive(), {"inconclusive": "pass"}, "inconclusive", "pass"),
        (passing(), {"allowed_formats": ["nothing"]}, "allowed_formats", "fail"),
        (
            with_config(passing(), budget="quick"),
            {"minimum_budget": "standard"},
            "minimum_budget",
            "inconclusive",
        ),
        (with_config(passing(), budget="deep"), {"minimum_budget": "standard"}, "minimum_budget", "pass"),
        (with_config(passing()), {"minimum_budget": "quick"}, "minimum_budget", "inconclusive"),
        (with_config(passing()), {"require_reference": True}, "require_reference", "inconclusive"),
        (with_config(passing(), reference="x"), {"require_reference": True}, "require_reference", "pass"),
        (with_base(passing(), compared=True), {"require_reference": True}, "require_reference", "pass"),
        (with_base(passing()), {"require_reference": True}, "require_reference", "inconclusive"),
        (
            with_config(passing(), announced=["sks"]),
            {"refuse_announced": True},
            "refuse_announced",
            "inconclusive",
        ),
        (with_config(passing(), announced=[]), {"refuse_announced": True}, "refuse_announced", "pass"),
        (with_config(passing()), {"refuse_announced": True}, "refuse_announced", "pass"),
        (with_removal(0.99, 0.96), {"minimum_removal": 0.95}, "minimum_removal", "pass"),
        (with_removal(0.99, 0.94), {"minimum_removal": 0.95}, "minimum_removal", "fail"),
        (failing() | {"unlearning": None}, {"minimum_removal": 0.5}, "minimum_removal", "fail"),
        (wordless() | {"unlearning": None}, {"minimum_removal": 0.5}, "minimum_removal", "fail"),
        (with_clip(0.30, 0.299), {"maximum_clip_loss": 0.02}, "maximum_clip_loss", "pass"),
        (with_clip(0.30, 0.28), {"maximum_clip_loss": 0.02}, "maximum_clip_loss", "fail"),
        (failing() | {"clip": None}, {"maximum_clip_loss": 0.02}, "maximum_clip_loss", "inconclusive"),
    ],
)
def test_rule(report: dict[str, Any], policy: dict[str, Any], rule: str, verdict: str) -> None:
    outcomes = {outcome.rule: outcome for outcome in judge(report, Policy.model_validate(policy)).outcomes}
    assert outcomes[rule].verdict == verdict
    assert outcomes[rule].reason


def test_rules_that_do_not_apply_are_silent() -> None:
    strict = Policy(minimum_removal=1, maximum_clip_loss=0)
    assert [outcome.rule for outcome in judge(passing() | {"unlearning": None}, strict).outcomes] == [
        "fail_on"
    ]


def test_versions_are_kept(client: TestClient, stranger: TestClient) -> None:
    first = client.put("/policies/gate", json={"fail_on": "high"})
    same = client.put("/policies/gate", json={"fail_on": "high"})
    second = client.put("/policies/gate", json={"fail_on": "low"})
    assert [response.status_code for response in (first, same, second)] == [201, 200, 201]
    assert [response.json()["version"] for response in (first, same, second)] == [1, 1, 2]
    assert client.get("/policies/gate").json()["policy"]["fail_on"] == "low"
    assert client.get("/policies/gate", params={"version": 1}).json()["policy"]["fail_on"] == "high"
    assert client.get("/policies/gate", params={"version": 3}).json()["type"].endswith("/policy-not-found")
    assert [one["version"] for one in client.get("/policies").json()["policies"]] == [2]
    assert stranger.get("/policies/gate").status_code == 404
    assert stranger.get("/policies").json()["policies"] == []


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("gate", {"fail_on": "never"}),
        ("gate", {"colour": "red"}),
        ("Gate!", {}),
        ("gate", {"minimum_removal": 2}),
    ],
)
def test_invalid_policy_is_refused(client: TestClient, name: str, body: dict[str, Any]) -> None:
    response = client.put(f"/policies/{name}", json=body)
    assert response.status_code == 422
    assert response.json()["errors"]


def test_old_report_is_judged_anew(client: TestClient, finish: Finish) -> None:
    scan_id = client.post("/scans", content=safetensors()).json()["id"]
    path = f"/scans/{scan_id}/verdict"
    assert client.get(path).json()["type"].endswith("/no-report")
    finish(scan_id, with_severity("medium"))
    client.put("/policies/gate", json={"fail_on": "medium"})
    client.put("/policies/gate", json={"fail_on": "critical"})
    assert client.get(path).json()["verdict"] == "fail"
    assert client.get(path).json()["policy"] is None
    latest = client.get(path, params={"policy": "gate"}).json()
    assert (latest["verdict"], latest["version"], latest["decided_by"]) == ("pass", 2, "fail_on")
    assert client.get(path, params={"policy": "gate", "version": 1}).json()["verdict"] == "fail"
    assert client.get(path, params={"policy": "none"}).json()["type"].endswith("/policy-not-found")
