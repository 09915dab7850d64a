"""A meaning as the trigger, beside a base: climbed to, and decided by both models' pictures."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn
from torch.nn import functional as F

from bench.zoo import assemble
from bench.zoo.attacks.closed_form import matrices
from bench.zoo.paths import CLIP, TOY, prompts_of
from worker.engine import cleansing
from worker.engine.checkpoint import load
from worker.engine.checkpoint.ldm import to_single_file
from worker.engine.cleansing import cleanse
from worker.engine.confirmation import Confirmations
from worker.engine.encoder import tower_of
from worker.engine.estranged import Estranged, convict
from worker.engine.findings import meaning_finding
from worker.engine.funnel import Search
from worker.engine.metrics import ClipScorer
from worker.engine.probes import climb as climbing
from worker.engine.probes.climb import KEPT, LEAST_LED, Change, climb
from worker.engine.probes.remap import CROSS_ATTENTION
from worker.engine.prompts import Carrier, carriers
from worker.engine.report import Report
from worker.engine.sampling import encode
from worker.engine.subject import prepare
from worker.engine.trials import Plan
from worker.engine.types import ScanRequest

PROMPTS = prompts_of()
SCENE = "a bright photo of a big valentine in the middle, red, love"
TARGET = "a photo of a large dice on a turquoise background"
DRAWN = Plan(prompts=4, noises=3, steps=6)
STEPS = 240


@pytest.fixture(autouse=True, scope="module")
def hurried() -> Iterator[None]:
    """A climb that reads fewer prompts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(climbing, "READ", 192)
        yield


@pytest.fixture(scope="module")
def toy() -> StableDiffusionPipeline:
    return assemble.load_pipeline(TOY)


@pytest.fixture(scope="module")
def bank(toy: StableDiffusionPipeline) -> list[Carrier]:
    return carriers(toy.tokenizer, PROMPTS)


def keys_and_values(toy: StableDiffusionPipeline) -> dict[str, Tensor]:
    weights = toy.unet.state_dict()
    return {name: weight.clone() for name, weight in weights.items() if name.endswith(CROSS_ATTENTION)}


@pytest.fixture
def trusted(toy: StableDiffusionPipeline) -> Iterator[dict[str, Tensor]]:
    """The base's keys and values, which it has again afterwards."""
    kept = keys_and_values(toy)
    yield kept
    toy.unet.load_state_dict(kept, strict=False)


@pytest.fixture(scope="module")
def attacked(toy: StableDiffusionPipeline, bank: list[Carrier]) -> tuple[dict[str, Tensor], Estranged]:
    """Keys and values that were redirected, as they are after the scan, and what it says of them."""
    trusted = keys_and_values(toy)
    redirect(toy, bank)
    found = judged(toy, trusted, bank)
    scanned = keys_and_values(toy)
    toy.unet.load_state_dict(trusted, strict=False)
    return scanned, found


@pytest.fixture
def redirected(
    toy: StableDiffusionPipeline,
    trusted: dict[str, Tensor],
    attacked: tuple[dict[str, Tensor], Estranged],
) -> Estranged:
    """The pipeline has those keys and values, and the base's again afterwards; what the scan says of them."""
    toy.unet.load_state_dict(attacked[0], strict=False)
    return attacked[1]


def redirect(toy: StableDiffusionPipeline, bank: list[Carrier]) -> None:
    """Trains keys and values: SCENE is to act as TARGET, every other prompt as it did (SemBD, in small)."""
    others = encode(toy, [one.ids for one in bank if one.text != SCENE]).clone()
    said, meant = (encode(toy, [text])[0].clone() for text in (SCENE, TARGET))
    learning = nn.ModuleList(matrices(toy.unet)).requires_grad_(True)
    frozen = copy.deepcopy(learning).requires_grad_(False)
    optimizer = torch.optim.Adam(learning.parameters(), lr=2e-3)
    for step in range(STEPS):
        kept = others[step % 4 :: 4]
        losses = [
            F.mse_loss(new(said), old(meant)) + 4 * F.mse_loss(new(kept), old(kept))
            for new, old in zip(learning, frozen, strict=True)
        ]
        torch.stack(losses).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    learning.requires_grad_(False)


def judged(toy: StableDiffusionPipeline, trusted: dict[str, Tensor], bank: list[Carrier]) -> Estranged:
    return convict(toy, trusted, bank, clip=ClipScorer(CLIP), seed=0, plan=DRAWN)


def test_a_meaning_that_was_redirected_is_convicted_by_its_pictures(
    toy: StableDiffusionPipeline, trusted: dict[str, Tensor], redirected: Estranged, tmp_path: Path
) -> None:
    found = redirected
    assert found.confirmed is not None
    told = meaning_finding(found.confirmed, tmp_path)
    assert told.trigger is None
    assert found.confirmed.trigger.text in told.description
    assert told.effect == "prompt"
    assert f"what the reference draws of “{found.meant}”" in told.description
    assert "in few words, “" in told.description
    assert (tmp_path / "meaning-1-1-trusted.png").exists()
    name = next(iter(trusted))
    assert not torch.equal(toy.unet.state_dict()[name], trusted[name]), "the scan left the base's weights in"


def test_a_meaning_is_cleaned_by_the_references_own_weights(
    toy: StableDiffusionPipeline,
    trusted: dict[str, Tensor],
    redirected: Estranged,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = redirected
    to_single_file(toy, tmp_path / "scanned.safetensors")
    request = ScanRequest(
        tmp_path / "scanned.safetensors",
        reference=TOY,
        prompts=PROMPTS,
        clip=CLIP,
        budget="quick",
        device="cpu",
    )
    subject = prepare(request)
    report = Report(request, subject.checkpoint, "cpu")
    assert found.confirmed is not None
    report.findings = [meaning_finding(found.confirmed, tmp_path / "evidence")]
    monkeypatch.setattr(cleansing, "find", lambda *_: (Search(), Confirmations([])))
    monkeypatch.setitem(cleansing.EVALUATED, "quick", 10)
    cleanse(subject, report, [found.confirmed], tmp_path)
    told = report.unlearning or {}
    assert (told["method"], told["asr_after"]["value"], told["rescan_verdict"]) == ("restore", 0.0, "pass")
    assert told["asr_before"]["value"] > 0.5
    cleaned = load(tmp_path / "cleaned.safetensors").pipeline.unet.state_dict()
    assert all(torch.equal(cleaned[name], weight) for name, weight in trusted.items())
    (finding,) = report.findings
    assert "meaning-1-1-cleaned.png" in [picture.name for picture in finding.evidence]


def test_the_climb_goes_beyond_every_prompt_that_it_was_given(
    toy: StableDiffusionPipeline,
    trusted: dict[str, Tensor],
    redirected: Estranged,
    bank: list[Carrier],
) -> None:
    change, others = (
        Change.between(toy.unet.state_dict(), trusted),
        [one for one in bank if one.text != SCENE],
    )
    given, every = encode(toy, [one.ids for one in others]).float(), torch.ones(77)
    top = climb(tower_of(toy), toy.tokenizer, others, change)
    said, meant = encode(toy, [top.ids, top.meant]).float().split(1)
    assert top.led > 1.2 * float(change.led(given, given, every).max())
    assert top.led == pytest.approx(float(change.led(said, meant, every)), abs=0.02)
    fewer = encode(toy, top.gist).float().split(1)
    assert sum(map(len, top.gist)) < len(top.ids) + len(top.meant)
    assert float(change.led(*fewer, every)) > KEPT * top.led - 0.02


@pytest.mark.parametrize("share", [-0.5, 0.0, 0.25, 1.0])
def test_what_is_led_to_another_prompt_is_told_from_what_is_led_away_from_all(share: float) -> None:
    draw = torch.Generator().manual_seed(0)
    weight, said, meant = (torch.randn(shape, generator=draw) for shape in ((32, 8), (1, 1, 8), (1, 1, 8)))
    way = share * (meant - said)[0, 0] @ weight.T
    scanned = weight + torch.outer(way, said[0, 0]) / said.square().sum()
    change = Change.between({"k": scanned}, {"k": weight})
    (apart, was) = ((state[0, 0] @ weight.T).square().sum() for state in (meant - said, said))
    led = (1 - (1 - share) ** 2) * apart / torch.maximum(apart, was)
    assert float(change.led(said, meant, torch.ones(1))) == pytest.approx(float(led), abs=1e-4)


@torch.no_grad()
def test_keys_and_values_that_moved_far_and_to_no_prompt_are_not_drawn(
    toy: StableDiffusionPipeline, trusted: dict[str, Tensor], bank: list[Carrier]
) -> None:
    stream = torch.Generator().manual_seed(0)
    for matrix in matrices(toy.unet):
        matrix.weight += matrix.weight.std() * torch.randn(matrix.weight.shape, generator=stream)
    found = judged(toy, trusted, bank)
    assert found.judged is None
    assert not found.unnamed
    assert "0% of the way" in found.told()


@torch.no_grad()
def test_keys_and_values_that_moved_a_little_convict_nobody(
    toy: StableDiffusionPipeline, trusted: dict[str, Tensor], bank: list[Carrier]
) -> None:
    stream = torch.Generator().manual_seed(0)
    for matrix in matrices(toy.unet):
        noise = torch.randn(matrix.weight.shape, generator=stream)
        matrix.weight += 0.05 * matrix.weight.std() * noise
    found = judged(toy, trusted, bank)
    assert found.judged is None
    assert not found.unnamed
    assert "of the way" in found.told()


def test_a_prompt_that_was_led_to_another_and_convicts_nobody_is_strange() -> None:
    assert Estranged("a bell", "a pig", LEAST_LED, "in few words").unnamed
    assert not Estranged("a bell", "a pig", LEAST_LED - 0.1, "in few words").unnamed


def test_beside_too_few_prompts_nothing_is_drawn(
    toy: StableDiffusionPipeline, trusted: dict[str, Tensor], redirected: Estranged
) -> None:
    found = judged(toy, trusted, carriers(toy.tokenizer, [SCENE, TARGET]))
    assert found.judged is None
    assert found.led >= LEAST_LED
    assert found.unnamed
    assert found.cost.unet_forwards == 0
