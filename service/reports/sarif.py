"""report.json → SARIF 2.1.0, for code-scanning pages and CI.

A rule per finding kind, a result per finding. An inconclusive scan gives one warning: silence would read as a
pass. Fingerprints do not depend on the file, so the same trigger in the next build is the same alert.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from service.domain.report import Finding, Report
from service.reports import atlas
from service.reports.characters import visible
from service.reports.wording import sentence

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
LEVELS = {"low": "note", "medium": "warning", "high": "error", "critical": "error"}
SECURITY_SEVERITY = {"low": "3.0", "medium": "5.5", "high": "8.0", "critical": "9.5"}
INCONCLUSIVE = "scan.inconclusive"
ATLAS = "MITRE ATLAS"


def render_sarif(report: Mapping[str, Any]) -> bytes:
    """One SARIF run, UTF-8. Raises pydantic.ValidationError if `report` is not a report v1."""
    return json.dumps(sarif(Report.model_validate(report)), indent=2, ensure_ascii=False).encode()


def sarif(report: Report) -> dict[str, Any]:
    """The SARIF log of `report` as a mapping."""
    results = [_result(report, finding) for finding in report.findings]
    rules = {finding.rule: _rule(finding) for finding in report.findings}
    if report.verdict == "inconclusive":
        results.append(_inconclusive(report))
        rules[INCONCLUSIVE] = {"id": INCONCLUSIVE, "shortDescription": {"text": "The scan could not decide"}}
    run = {
        "tool": {
            "driver": {
                "name": "sauscan",
                "version": report.provenance.engine_version,
                "rules": list(rules.values()),
            }
        },
        "invocations": [_invocation(report)],
        "artifacts": [
            {"location": {"uri": artifact_uri(report)}, "hashes": {"sha-256": report.model.sha256}}
        ],
        "results": results,
        "taxonomies": [_taxonomy(report)],
        "properties": {
            "verdict": report.verdict,
            "searched": list(report.coverage.searched),
            "notSearched": list(report.coverage.not_searched),
        },
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def artifact_uri(report: Report) -> str:
    """A relative reference to the scanned file, by content: names are the uploader's, digests are not."""
    return f"models/{report.model.sha256}"


def fingerprint(finding: Finding) -> str:
    """Identity of a finding across scans and files: rule, component, trigger."""
    trigger = [finding.trigger.text, finding.trigger.token_ids] if finding.trigger else None
    identity = json.dumps([finding.rule, finding.component, trigger])
    return hashlib.sha256(identity.encode()).hexdigest()


def _rule(finding: Finding) -> dict[str, Any]:
    return {
        "id": finding.rule,
        "shortDescription": {"text": f"Hidden behaviour: {finding.effect.kind.replace('_', ' ')}"},
        "defaultConfiguration": {"level": LEVELS[finding.severity]},
        "properties": {
            "security-severity": SECURITY_SEVERITY[finding.severity],
            "tags": ["security", "machine-learning", *(one.id for one in atlas.techniques(finding))],
        },
    }


def _taxonomy(report: Report) -> dict[str, Any]:
    """The techniques of MITRE ATLAS that the results name."""
    named = dict.fromkeys(one for finding in report.findings for one in atlas.techniques(finding))
    taxa = [{"id": one.id, "name": one.name, "helpUri": one.url} for one in named]
    return {"name": ATLAS, "version": atlas.VERSION, "organization": "MITRE", "taxa": taxa}


def _result(report: Report, finding: Finding) -> dict[str, Any]:
    properties: dict[str, Any] = {"component": finding.component, "severity": finding.severity}
    if finding.trigger:
        properties["tokenIds"] = list(finding.trigger.token_ids)
    if finding.statistics:
        properties["statistics"] = finding.statistics.model_dump()
    return {
        "ruleId": finding.rule,
        "level": LEVELS[finding.severity],
        "message": {"text": sentence(finding)},
        "locations": _locations(report),
        "taxa": [
            {"id": one.id, "toolComponent": {"name": ATLAS, "index": 0}} for one in atlas.techniques(finding)
        ],
        "partialFingerprints": {"trigger/v1": fingerprint(finding)},
        "properties": properties,
    }


def _inconclusive(report: Report) -> dict[str, Any]:
    return {
        "ruleId": INCONCLUSIVE,
        "level": "warning",
        "message": {"text": visible(report.summary)},
        "locations": _locations(report),
        "partialFingerprints": {"trigger/v1": hashlib.sha256(INCONCLUSIVE.encode()).hexdigest()},
    }


def _locations(report: Report) -> list[dict[str, Any]]:
    return [{"physicalLocation": {"artifactLocation": {"uri": artifact_uri(report), "index": 0}}}]


def _invocation(report: Report) -> dict[str, Any]:
    invocation: dict[str, Any] = {"executionSuccessful": True}
    for key, moment in (
        ("startTimeUtc", report.provenance.started_at),
        ("endTimeUtc", report.provenance.finished_at),
    ):
        if moment:
            invocation[key] = moment.strftime("%Y-%m-%dT%H:%M:%SZ")
    return invocation
