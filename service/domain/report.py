"""Report v1: what a scan says, as models. `Report.model_validate(report_dict)` checks one.

    Report
    ├── model        which file this is about
    ├── findings     triggers and their effects, with statistics and evidence
    ├── coverage     what was searched, and what was not
    ├── unlearning   attack success before and after, when the model was cleaned
    ├── clip         CLIP scores on clean prompts, before and after
    ├── stages       cost and candidates of every stage
    ├── cost         the sum
    └── provenance   engine, seed, configuration, libraries, times

Readers ignore fields they do not know, so fields may be added within version 1; none is removed or changes
its meaning. Fractions are in [0, 1], times are seconds, sizes are bytes, one U is one UNet forward of one
batch element.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Verdict = Literal["pass", "fail", "inconclusive"]
Severity = Literal["low", "medium", "high", "critical"]
EffectKind = Literal["patch", "object", "style", "fixed_image", "prompt", "unknown"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Interval = tuple[float, float]


class Part(BaseModel):
    """Base of every part: immutable, and keeps fields that a newer engine added."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())


class Estimate(Part):
    """A measured number with its 95 % confidence interval and its sample size, where they are known."""

    value: float
    n: int | None = None
    ci95: Interval | None = None


def _number_as_estimate(raw: Any) -> Any:
    return {"value": raw} if isinstance(raw, int | float) else raw


Measured = Annotated[Estimate, BeforeValidator(_number_as_estimate)]
"""An `Estimate`, also written as a bare number."""


class Model(Part):
    """The scanned file."""

    sha256: Sha256
    format: str
    architecture: str
    parameters: int | None = Field(default=None, ge=0)
    components: dict[str, Any] = {}


class Trigger(Part):
    """A trigger as the text encoder sees it: ids first, since some characters vanish in print."""

    text: str
    token_ids: tuple[int, ...] = ()
    position: str = "any"


class Effect(Part):
    """What the model does when it meets the trigger."""

    kind: EffectKind = "unknown"
    description: str = ""


class Statistics(Part):
    """Of the paired test; `p_value_corrected` is Holm's over every candidate that was confirmed."""

    p_value: float = Field(ge=0, le=1)
    p_value_corrected: float = Field(ge=0, le=1)
    effect_size: float
    n: int = Field(ge=0)


class Evidence(Part):
    """One picture, by its file name in the evidence folder."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")
    sha256: Sha256
    caption: str = ""


class Finding(Part):
    """One reason for the verdict. `kin`: other confirmed ids that fire the same backdoor."""

    id: str
    rule: str
    severity: Severity
    component: str
    trigger: Trigger | None = None
    effect: Effect = Effect()
    statistics: Statistics | None = None
    evidence: tuple[Evidence, ...] = ()
    kin: tuple[Trigger, ...] = ()


class Coverage(Part):
    """What the scan looked at, and what it did not."""

    searched: tuple[str, ...] = ()
    not_searched: tuple[str, ...] = ()


class Unlearning(Part):
    """What cleaning did, on pictures drawn with the trigger of prompts that cleaning has not used.

    asr_before, asr_after: share of them that show the effect. removal: 1 − asr_after; `ci95`: its interval.
    removal_of_shown: of those that showed it before, the share that no longer does. false_positive: share of
    pictures with an ordinary word in which the effect is seen all the same.
    drift: change of the noise prediction without the trigger, as a share of its square.
    """

    method: str
    triggers: tuple[Any, ...] = ()
    asr_before: Measured | None = None
    asr_after: Measured | None = None
    removal: Measured | None = None
    removal_of_shown: Measured | None = None
    false_positive: Measured | None = None
    drift: Measured | None = None
    n: int | None = None
    ci95: Interval | None = None
    rescan_verdict: Verdict | None = None
    cleaned_sha256: Sha256 | None = None


class BeforeAfter(Part):
    """One score of the model as it came and as it left; `change` is relative to `before`."""

    before: Measured
    after: Measured
    change: Measured | None = None


class Clip(Part):
    """CLIP scores in their three definitions. The reference picture is the one that the model as it came
    draws from the same prompt and noise, without the trigger.

    image_text: cosine of picture and prompt, clipscore: 2.5 · max(cosine, 0), both without the trigger.
    image_image: cosine of the picture drawn with the trigger and the reference picture.
    clean_image_image: the same for the cleaned model's picture without the trigger.
    """

    image_text: BeforeAfter | None = None
    clipscore: BeforeAfter | None = None
    image_image: BeforeAfter | None = None
    clean_image_image: Measured | None = None
    n: int | None = None
    ci95: Any = None


class Stage(Part):
    """One stage's cost. `ranks`: where each confirmed trigger stood among the stage's candidates, from 1."""

    name: str
    unet_forwards: int = Field(default=0, ge=0)
    seconds: float = Field(default=0.0, ge=0)
    flops: float = Field(default=0.0, ge=0)
    candidates: int = Field(default=0, ge=0)
    ranks: dict[str, int] = {}


class Cost(Part):
    """The whole scan's cost."""

    unet_forwards: int = Field(default=0, ge=0)
    seconds: float = Field(default=0.0, ge=0)
    peak_rss_bytes: int | None = Field(default=None, ge=0)
    device: str = "cpu"


class ComponentOrigin(Part):
    """share: of the component's bytes that the base holds. trusted: all of them, each in its place."""

    share: float = Field(ge=0, le=1)
    trusted: bool = False


class Origin(Part):
    """The trusted base that the file was compared with: the one that was named, or the nearest.

    share: of the file's bytes, what the base holds. compared: the weights too, and not only their hashes, or
    the hashes say that UNet and text encoder are the base's.
    """

    id: str
    name: str
    sha256: Sha256
    share: float = Field(ge=0, le=1)
    compared: bool = False
    components: dict[str, ComponentOrigin] = {}


class Provenance(Part):
    """What is needed to run the scan again and get the same report. reference: whence the weights.

    source: where the file was fetched from; None for one that was uploaded.
    """

    engine_version: str
    seed: int = 0
    config: dict[str, Any] = {}
    reference: Origin | None = None
    libraries: dict[str, str] = {}
    started_at: datetime | None = None
    finished_at: datetime | None = None
    source: dict[str, str] | None = None


class Problem(Part):
    """Why there is no verdict: a stable kebab-case code, and a sentence."""

    code: str
    detail: str


class Report(Part):
    """A whole report, schema version 1.

    static: what was read in the file before anything was loaded. sandbox: the measures that confined the job.
    """

    schema_version: Literal["1"]
    verdict: Verdict
    summary: str
    model: Model
    findings: tuple[Finding, ...] = ()
    coverage: Coverage = Coverage()
    unlearning: Unlearning | None = None
    clip: Clip | None = None
    stages: tuple[Stage, ...] = ()
    static: dict[str, Any] | None = None
    sandbox: tuple[str, ...] = ()
    problem: Problem | None = None
    cost: Cost = Cost()
    provenance: Provenance
