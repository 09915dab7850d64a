"""report.json, version 1: what a scan found, what it did about it, what it did not look at, what it cost."""

from __future__ import annotations

import json
import platform
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from worker.engine.excuse import Excuse
from worker.engine.funnel import Search
from worker.engine.probes.weights import described
from worker.engine.types import (
    Cost,
    Coverage,
    Finding,
    Mean,
    Proportion,
    ScanRequest,
    StageCost,
    Trigger,
    Verdict,
)

if TYPE_CHECKING:
    from worker.engine.checkpoint import Checkpoint
    from worker.engine.triage import WeightFindings
    from worker.engine.trusted import Origin

SCHEMA_VERSION = "1"
LARGEST = 8
LIBRARIES = ("torch", "diffusers", "transformers", "safetensors", "numpy")


@dataclass
class Report:
    """A scan's result while it grows; `as_dict` is report.json.

    excuse: what may be honest of that which the renders confirm.
    """

    request: ScanRequest
    checkpoint: Checkpoint
    device: str
    origin: Origin | None = None
    verdict: Verdict = "inconclusive"
    findings: list[Finding] = field(default_factory=list)
    coverage: Coverage = field(default_factory=Coverage)
    search: Search = field(default_factory=Search)
    costs: StageCost = field(default_factory=StageCost)
    unlearning: dict[str, Any] | None = None
    clip: dict[str, Any] | None = None
    flops_per_forward: float = 0.0
    unnamed: tuple[str, ...] = ()
    excuse: Excuse = field(default_factory=Excuse)
    weights: WeightFindings | None = None
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values, keys in the order in which a person reads them."""
        total = Cost()
        for cost in self.costs.stages.values():
            total += cost
        body = {
            "schema_version": SCHEMA_VERSION,
            "verdict": self.verdict,
            "summary": self.summary(),
            "model": model_part(self.checkpoint),
            "findings": [finding_part(finding) for finding in self.findings],
            "coverage": asdict(self.coverage),
            "weights": weights_part(self.weights) if self.weights else None,
            "unlearning": self.unlearning,
            "clip": self.clip,
            "cost": {
                "unet_forwards": total.unet_forwards,
                "seconds": round(total.seconds, 1),
                "peak_rss_bytes": peak_rss(),
                "device": self.device,
            },
            "stages": [self._stage(name, cost) for name, cost in self.costs.stages.items()],
            "provenance": self._provenance(),
        }
        present = {name: part for name, part in body.items() if part is not None}
        plain: dict[str, Any] = json.loads(json.dumps(present))
        return plain

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds the time of a block to a stage's cost."""
        began = time.perf_counter()
        yield
        self.costs.add(stage, Cost(seconds=time.perf_counter() - began))

    def summary(self) -> str:
        """The verdict in one sentence: of several findings it tells the first critical one."""
        if self.verdict == "pass" and self.origin is not None and self.origin.trusts("text_encoder", "unet"):
            return (
                "Text encoder and UNet are bit for bit those of the trusted base "
                f"“{visible(self.origin.base.name)}”, so there was nothing to search."
            )
        if self.verdict == "pass" and self.weights is not None and self.weights.difference.untouched:
            return "The UNet and the text encoder are identical to the trusted reference."
        if self.verdict == "pass":
            return "No trigger was found in the space that was searched."
        if self.verdict == "inconclusive":
            seen = "; ".join(self.unnamed)
            return f"The scan saw what it could not confirm as a trigger: {seen}."
        first = next((one for one in self.findings if one.severity == "critical"), self.findings[0])
        named = f"“{visible(first.trigger.text)}”" if first.trigger else "it"
        more = len(self.findings) - 1
        others = f" {more} more {'backdoor was' if more == 1 else 'backdoors were'} found." if more else ""
        return f"The model hides a trigger: {named} {first.description}.{others}{self._mended()}"

    def _mended(self) -> str:
        if self.unlearning is None:
            return ""
        left = self.unlearning["asr_after"]["value"]
        before = self.unlearning["asr_before"]["value"]
        return f" After cleaning the trigger works in {left:.1%} of pictures instead of {before:.1%}."

    def _stage(self, name: str, cost: Cost) -> dict[str, Any]:
        ranked = self.search.stages.get(name)
        triggers = [finding.trigger for finding in self.findings if finding.trigger]
        ranks = {visible(t.text): ranked.rank(t) for t in triggers} if ranked else {}
        return {
            "name": name,
            "unet_forwards": cost.unet_forwards,
            "seconds": round(cost.seconds, 2),
            "flops": cost.flops + cost.unet_forwards * self.flops_per_forward,
            "candidates": cost.candidates,
            "ranks": {text: rank for text, rank in ranks.items() if rank is not None},
        }

    def _provenance(self) -> dict[str, Any]:
        request = self.request
        compared = self.weights is not None
        origin = {} if self.origin is None else {"reference": origin_part(self.origin, compared=compared)}
        return origin | {
            "engine_version": engine_version(),
            "seed": request.seed,
            "config": {
                "budget": request.budget,
                "cleanse": request.cleanse,
                "prompts": len(request.prompts) if request.prompts else "built-in",
                "announced": list(request.announced),
                "reference": request.reference is not None,
                "clip": request.clip is not None,
            },
            "libraries": {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()},
            "started_at": self.started_at.isoformat(),
            "finished_at": datetime.now(UTC).isoformat(),
        }


def engine_version() -> str:
    """The installed version, or "source" where the package is run from a bare tree."""
    try:
        return version("sauscan")
    except PackageNotFoundError:
        return "source"


def model_part(checkpoint: Checkpoint) -> dict[str, Any]:
    """What was scanned: the file that was sent, and the parts of the model that it makes."""
    adapter = checkpoint.adapter
    return {
        "sha256": adapter.sha256 if adapter else checkpoint.sha256,
        "format": "lora" if adapter else checkpoint.format,
        "architecture": checkpoint.architecture,
        "parameters": checkpoint.parameters,
        "components": {name: asdict(info) for name, info in checkpoint.components.items()},
    }


def weights_part(weights: WeightFindings) -> dict[str, Any]:
    """What differs from the reference, and what was read from it."""
    difference = weights.difference
    return {
        "kind": difference.kind,
        "description": described(difference),
        "changed": {part: round(difference.share(part), 4) for part in difference.tensors},
        "largest": [asdict(one) for one in difference.changed[:LARGEST]],
        "edits": [asdict(edit) for edit in weights.edits],
    }


def origin_part(origin: Origin, *, compared: bool) -> dict[str, Any]:
    """Which base the checkpoint was compared with, and what it shares with it.

    compared: by its weights. Where all that a text trigger can live in is the base's own, hashes say as much.
    """
    return {
        "id": origin.base.id,
        "name": origin.base.name,
        "sha256": origin.base.sha256,
        "share": origin.share,
        "compared": compared or origin.trusts("text_encoder", "unet"),
        "components": {name: asdict(share) for name, share in origin.components.items()},
    }


def finding_part(finding: Finding) -> dict[str, Any]:
    """A finding in the report's own shape."""
    return {
        "id": finding.id,
        "rule": finding.rule,
        "severity": finding.severity,
        "component": finding.component,
        "trigger": asdict(finding.trigger) if finding.trigger else None,
        "effect": {"kind": finding.effect, "description": finding.description},
        "statistics": asdict(finding.statistics) if finding.statistics else None,
        "evidence": [asdict(picture) for picture in finding.evidence],
        "kin": triggers_text(finding.kin),
    }


def estimate(value: Mean | Proportion) -> dict[str, Any]:
    """{"value", "n", "ci95"}."""
    return {"value": value.value, "n": value.n, "ci95": list(value.ci95)}


def visible(text: str) -> str:
    """Invisible characters written as code points, so that a person can see the trigger."""
    return "".join(char if char.isprintable() else f"<U+{ord(char):04X}>" for char in text)


def triggers_text(triggers: Sequence[Trigger]) -> list[dict[str, Any]]:
    """The triggers as JSON values."""
    return [asdict(trigger) for trigger in triggers]


def peak_rss() -> int:
    """The process's largest resident set so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
