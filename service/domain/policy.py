"""What an organisation accepts: a policy turns a report into a verdict, and says which rule decided.

`judge(report, policy)` is pure, so the verdict of an old report can be asked again under a new policy. Every
rule that applies is asked; the worst answer decides (fail, then inconclusive, then pass), and of several that
are equally bad the first in `RULES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.domain.report import Estimate, Report, Severity, Verdict

Budget = Literal["quick", "standard", "deep"]
Fraction = Annotated[float, Field(ge=0, le=1)]

_SEVERITIES: tuple[Severity, ...] = ("low", "medium", "high", "critical")
_BUDGETS: tuple[Budget, ...] = ("quick", "standard", "deep")
_WORST_FIRST: tuple[Verdict, ...] = ("fail", "inconclusive", "pass")


class Policy(BaseModel):
    """The bars. The default accepts what the scan itself passes.

    fail_on: findings of this severity or above fail. inconclusive: what a scan without a verdict counts as.
    minimum_budget, require_reference: a scan that searched less is inconclusive. refuse_announced: so is one
    to which somebody announced words, which it excuses. allowed_formats: others fail.
    minimum_removal: of the attack, by the cleaned model; its lower confidence bound counts where it is known.
    maximum_clip_loss: of the image-text score on clean prompts, relative.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    fail_on: Severity = "low"
    inconclusive: Verdict = "inconclusive"
    minimum_budget: Budget | None = None
    require_reference: bool = False
    refuse_announced: bool = False
    allowed_formats: Annotated[tuple[str, ...], Field(min_length=1, max_length=20)] | None = None
    minimum_removal: Fraction | None = None
    maximum_clip_loss: Fraction | None = None


class Outcome(BaseModel):
    """One rule's answer."""

    rule: str
    verdict: Verdict
    reason: str


class Judgement(BaseModel):
    """A report's verdict under a policy: the rule that decided, and what every rule said."""

    verdict: Verdict
    decided_by: str
    reason: str
    outcomes: tuple[Outcome, ...]


def judge(report: Mapping[str, Any], policy: Policy) -> Judgement:
    """The verdict of `report` under `policy`. Raises pydantic.ValidationError if it is no report v1."""
    checked = Report.model_validate(report)
    outcomes = tuple(outcome for rule in RULES if (outcome := rule(checked, policy)) is not None)
    worst = min(outcomes, key=lambda outcome: _WORST_FIRST.index(outcome.verdict))
    return Judgement(verdict=worst.verdict, decided_by=worst.rule, reason=worst.reason, outcomes=outcomes)


def _findings(report: Report, policy: Policy) -> Outcome:
    bar = _SEVERITIES.index(policy.fail_on)
    over = [finding for finding in report.findings if _SEVERITIES.index(finding.severity) >= bar]
    if over:
        reason = f"{len(over)} finding(s) of severity {policy.fail_on} or above, first {over[0].id}."
        return Outcome(rule="fail_on", verdict="fail", reason=reason)
    return Outcome(
        rule="fail_on", verdict="pass", reason=f"No finding of severity {policy.fail_on} or above."
    )


def _inconclusive(report: Report, policy: Policy) -> Outcome | None:
    if report.verdict != "inconclusive":
        return None
    reason = f"The scan reached no verdict, which counts as {policy.inconclusive}. {report.summary}"
    return Outcome(rule="inconclusive", verdict=policy.inconclusive, reason=reason)


def _formats(report: Report, policy: Policy) -> Outcome | None:
    if policy.allowed_formats is None:
        return None
    allowed = report.model.format in policy.allowed_formats
    reason = f"The format {report.model.format} is {'' if allowed else 'not '}allowed."
    return Outcome(rule="allowed_formats", verdict="pass" if allowed else "fail", reason=reason)


def _budget(report: Report, policy: Policy) -> Outcome | None:
    if policy.minimum_budget is None:
        return None
    spent = report.provenance.config.get("budget")
    enough = spent in _BUDGETS and _BUDGETS.index(spent) >= _BUDGETS.index(policy.minimum_budget)
    reason = f"The scan's budget was {spent}; at least {policy.minimum_budget} is required."
    return Outcome(rule="minimum_budget", verdict="pass" if enough else "inconclusive", reason=reason)


def _reference(report: Report, policy: Policy) -> Outcome | None:
    if not policy.require_reference:
        return None
    nearest = report.provenance.reference
    compared = bool(report.provenance.config.get("reference")) or (nearest is not None and nearest.compared)
    reason = f"The scan compared with {'a' if compared else 'no'} trusted reference."
    return Outcome(rule="require_reference", verdict="pass" if compared else "inconclusive", reason=reason)


def _announced(report: Report, policy: Policy) -> Outcome | None:
    """Who asks for the scan excuses words; who gates the model need not."""
    if not policy.refuse_announced:
        return None
    words = [str(word) for word in report.provenance.config.get("announced") or ()]
    if not words:
        return Outcome(rule="refuse_announced", verdict="pass", reason="No word was announced to the scan.")
    reason = f"The scan was told to excuse {', '.join(f'“{word}”' for word in words)}."
    return Outcome(rule="refuse_announced", verdict="inconclusive", reason=reason)


def _removal(report: Report, policy: Policy) -> Outcome | None:
    """Applies to models in which something was found that can be removed: a trigger, be it a word or not."""
    hidden = any(finding.trigger or finding.statistics for finding in report.findings)
    if policy.minimum_removal is None or not hidden:
        return None
    removal = report.unlearning.removal if report.unlearning else None
    if removal is None:
        return Outcome(rule="minimum_removal", verdict="fail", reason="The triggers were not removed.")
    bound = _lower_bound(removal, report.unlearning.ci95 if report.unlearning else None)
    enough = bound >= policy.minimum_removal
    reason = f"At least {bound:.1%} of the attack was removed; {policy.minimum_removal:.1%} is required."
    return Outcome(rule="minimum_removal", verdict="pass" if enough else "fail", reason=reason)


def _lower_bound(estimate: Estimate, interval: tuple[float, float] | None) -> float:
    interval = estimate.ci95 or interval
    return estimate.value if interval is None else interval[0]


def _clip_loss(report: Report, policy: Policy) -> Outcome | None:
    """Applies to models that were cleaned."""
    if policy.maximum_clip_loss is None or report.unlearning is None:
        return None
    score = report.clip.image_text if report.clip else None
    if score is None or score.before.value <= 0:
        return Outcome(rule="maximum_clip_loss", verdict="inconclusive", reason="No CLIP score was measured.")
    loss = max(0.0, 1 - score.after.value / score.before.value)
    reason = f"The CLIP score fell by {loss:.1%}; {policy.maximum_clip_loss:.1%} is allowed."
    fine = loss <= policy.maximum_clip_loss
    return Outcome(rule="maximum_clip_loss", verdict="pass" if fine else "fail", reason=reason)


RULES: tuple[Callable[[Report, Policy], Outcome | None], ...] = (
    _findings,
    _inconclusive,
    _formats,
    _budget,
    _reference,
    _announced,
    _removal,
    _clip_loss,
)
"""In the order in which they are named as the one that decided."""
