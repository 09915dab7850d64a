"""report.json → CycloneDX 1.6 ML-BOM: the model, its parts, scores and hidden triggers, the cleaned model."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from service.domain.report import BeforeAfter, Clip, Estimate, Finding, Report
from service.reports import atlas
from service.reports.characters import visible
from service.reports.wording import sentence

_NAMESPACE = uuid.UUID("b0d0f3c2-5a86-5d7e-9a57-2f8f0f5e6c11")  # of this project's serial numbers
_MODEL, _CLEANED = "model", "cleaned-model"
_PLAIN, _TRIGGERED = "clean prompts", "prompts with the trigger"
_SLICES = {"image_text": _PLAIN, "clipscore": _PLAIN, "image_image": _TRIGGERED}


def render_cyclonedx(report: Mapping[str, Any]) -> bytes:
    """The bill of materials, UTF-8. Raises pydantic.ValidationError if `report` is not a report v1."""
    return json.dumps(bill(Report.model_validate(report)), indent=2, ensure_ascii=False).encode()


def bill(report: Report) -> dict[str, Any]:
    """The bill of materials of `report` as a mapping; the same report gives the same serial number."""
    serial = uuid.uuid5(_NAMESPACE, report.model_dump_json(exclude_unset=True))
    metadata: dict[str, Any] = {
        "tools": {"components": [_tool(report)]},
        "component": _model(report),
        "properties": _properties(verdict=report.verdict, summary=visible(report.summary)),
    }
    if report.provenance.finished_at:
        metadata["timestamp"] = report.provenance.finished_at.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": metadata,
        "components": list(_cleaned(report)),
        "vulnerabilities": [_vulnerability(report, finding) for finding in report.findings],
    }


def _tool(report: Report) -> dict[str, Any]:
    return {"type": "application", "name": "sauscan", "version": report.provenance.engine_version}


def _model(report: Report) -> dict[str, Any]:
    component = _component(_MODEL, report.model.sha256)
    component["modelCard"] = {
        "modelParameters": {"task": "text-to-image", "modelArchitecture": report.model.architecture}
    }
    if metrics := list(_metrics(report, "before")):
        component["modelCard"]["quantitativeAnalysis"] = {"performanceMetrics": metrics}
    component["properties"] = _properties(
        format=report.model.format,
        parameters=report.model.parameters,
        **{f"parameters.{name}": part.get("parameters") for name, part in _parts(report)},
        **{f"sha256.{name}": part.get("sha256") for name, part in _parts(report)},
    )
    return component


def _parts(report: Report) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((name, part) for name, part in report.model.components.items() if isinstance(part, dict))


def _component(reference: str, sha256: str) -> dict[str, Any]:
    return {
        "type": "machine-learning-model",
        "bom-ref": reference,
        "name": reference,
        "version": sha256[:16],
        "hashes": [{"alg": "SHA-256", "content": sha256}],
    }


def _cleaned(report: Report) -> Iterator[dict[str, Any]]:
    unlearning = report.unlearning
    if unlearning is None or unlearning.cleaned_sha256 is None:
        return
    component = _component(_CLEANED, unlearning.cleaned_sha256)
    component["pedigree"] = {
        "ancestors": [_component("original", report.model.sha256)],
        "notes": f"hidden triggers removed by {visible(unlearning.method)}",
    }
    metrics = list(_metrics(report, "after"))
    component["modelCard"] = {"quantitativeAnalysis": {"performanceMetrics": metrics}}
    yield component


def _metrics(report: Report, side: str) -> Iterator[dict[str, Any]]:
    if report.clip:
        for name, pair in _pairs(report.clip):
            yield _metric(f"clip.{name}", getattr(pair, side), _SLICES[name])
    success = getattr(report.unlearning, f"asr_{side}", None)
    if success is not None:
        yield _metric("attack-success-rate", success, _TRIGGERED)


def _pairs(clip: Clip) -> Iterator[tuple[str, BeforeAfter]]:
    for name in _SLICES:
        pair = getattr(clip, name)
        if pair is not None:
            yield name, pair


def _metric(name: str, estimate: Estimate, part: str) -> dict[str, Any]:
    metric: dict[str, Any] = {"type": name, "value": f"{estimate.value:.6g}", "slice": part}
    if estimate.ci95:
        low, high = estimate.ci95
        metric["confidenceInterval"] = {"lowerBound": f"{low:.6g}", "upperBound": f"{high:.6g}"}
    return metric


def _vulnerability(report: Report, finding: Finding) -> dict[str, Any]:
    cleaned = report.unlearning is not None and report.unlearning.rescan_verdict == "pass"
    vulnerability: dict[str, Any] = {
        "bom-ref": f"finding-{finding.id}",
        "id": finding.rule,
        "source": {"name": "sauscan"},
        "ratings": [{"severity": finding.severity, "method": "other", "source": {"name": "sauscan"}}],
        "description": sentence(finding),
        "references": [
            {"id": one.id, "source": {"name": "MITRE ATLAS", "url": one.url}}
            for one in atlas.techniques(finding)
        ],
        "affects": [{"ref": _MODEL}],
        "properties": _properties(component=finding.component, effect=finding.effect.kind),
    }
    if cleaned:
        vulnerability["recommendation"] = "Use the cleaned model, which passed a second scan."
    return vulnerability


def _properties(**values: object) -> list[dict[str, str]]:
    return [
        {"name": f"sauscan:{key}", "value": str(value)} for key, value in values.items() if value is not None
    ]
