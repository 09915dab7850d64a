"""The probes on a real pipeline: the sketch predicts the exact effect, a planted trigger comes first."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st

from worker.engine import funnel
from worker.engine.candidates import vocabulary
from worker.engine.encoder import tower_of
from worker.engine.funnel import FunnelPlan, Known, search
from worker.engine.probes.agreement import scores, shared_energy
from worker.engine.probes.glance import glance
from worker.engine.probes.onestep import onestep
from worker.engine.probes.ranking import ranks, robust_z, shortlist
from worker.engine.probes.remap import CROSS_ATTENTION
from worker.engine.probes.sketch import GRID, PROBES_PER_CELL, Sketch, cell_probes, probes_at, sketch
from worker.engine.probes.text import collapse
from worker.engine.probes.unexplained import residuals, unexplained
from worker.engine.probes.views import View, views
from worker.engine.probes.weights import compare
from worker.engine.prompts import Carrier, carriers, choose
from worker.engine.sampling import encode
from worker.engine.types import Cost, Progress, Trigger
from worker.engine.witness import Witness

PLANTED = 1234


def test_the_sketch_is_the_exact_effect_to_first_order(tiny_pipeline: StableDiffusionPipeline) -> None:
    chosen = choose(carriers(tiny_pipeline.tokenizer, None), 2, 0, "test")
    seen, _ = views(tiny_pipeline, chosen, ("start", "end"), seed=0)
    candidates = vocabulary(tiny_pipeline.tokenizer)[500:532]
    drawn = sketch(tiny_pipeline, tower_of(tiny_pipeline), seen, candidates, 0, tail=None)
    effects, cost = onestep(tiny_pipeline, seen, candidates)
    exact = torch.einsum("nktchw,rchw->nktr", effects, cell_probes(tuple(effects.shape[3:]), 0))
    for place in range(len(seen)):
        pair = torch.stack([drawn.values[:, place].flatten(), exact[:, place].flatten()])
        assert torch.corrcoef(pair)[0, 1] > 0.99
    assert cost.unet_forwards == (len(candidates) + 1) * 2 * 2


def test_a_style_stands_out_though_it_moves_each_carrier_another_way(
    tiny_pipeline: StableDiffusionPipeline,
) -> None:
    """A patch moves all carriers alike, a style each by its own colours; a word may fit one carrier alone."""
    chosen = choose(carriers(tiny_pipeline.tokenizer, None), 4, 0, "test")
    seen, _ = views(tiny_pipeline, chosen, ("start", "start", "start", "end"), seed=0)
    stream = torch.Generator().manual_seed(0)
    effects = torch.randn(200, 4, 2, 4, 8, 8, generator=stream)
    patch, style, word, ending = range(4)
    effects[patch] += 2 * torch.randn(4, 8, 8, generator=stream)
    effects[style, :3] += 2 * torch.tensor([1.0, -1.0, 0.0])[:, None, None, None, None]
    effects[style, 2] *= 2
    effects[word, 0] *= 2
    effects[ending, 3] *= 4
    found = scores(effects, seen)
    assert int(found["agreed"][:3].argmax()) == patch
    assert found["agreed"][style] < found["agreed"][4:].max()
    assert int(found["moved start"][1:].argmax()) + 1 == style
    assert found["moved start"][style] > 2 * found["moved start"][word]
    assert int(found["moved end"].argmax()) == ending


def test_a_glance_is_the_exact_probe_at_the_first_view_of_each_position(
    tiny_pipeline: StableDiffusionPipeline,
) -> None:
    chosen = choose(carriers(tiny_pipeline.tokenizer, None), 3, 0, "test")
    seen, _ = views(tiny_pipeline, chosen, ("start", "start", "end"), seed=0)
    candidates = vocabulary(tiny_pipeline.tokenizer)[500:532]
    energy, cost = glance(tiny_pipeline, tower_of(tiny_pipeline), seen, candidates, tail=None)
    effects, _ = onestep(tiny_pipeline, seen, candidates)
    exact = effects[:, [0, 2], 0].square().sum(2)
    cells = exact.unflatten(3, (GRID, -1)).unflatten(2, (GRID, -1)).mean((3, 5)).flatten(2)
    for place in range(2):
        pair = torch.stack([energy[:, place].flatten(), cells[:, place].flatten()])
        assert torch.corrcoef(pair)[0, 1] > 0.99
    assert cost.unet_forwards == 2 * (len(candidates) + 1)


def test_a_probe_sees_its_own_cell_and_no_other() -> None:
    probes = cell_probes((4, 8, 8), seed=0)
    cells = (probes != 0).any(1).view(-1, PROBES_PER_CELL, 8, 8).any(1).float()
    torch.testing.assert_close(cells.sum(0), torch.ones(8, 8))


def test_a_planted_trigger_leads_the_sketch_and_is_a_finalist(
    tiny_pipeline: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedding = tiny_pipeline.text_encoder.embeddings.token_embedding.weight
    embedding[PLANTED] = 40 * embedding[PLANTED]
    some = [Trigger((i,), str(i)) for i in range(1000, 1400)]
    monkeypatch.setattr(funnel, "trigger_space", lambda pipeline, plan: some)
    plan = FunnelPlan(("start", "start"), (700, 300), 200, 48, 4, glyphs=False)
    stages: list[str] = []

    def note(progress: Progress) -> None:
        stages.append(progress.stage)

    found = search(tiny_pipeline, carriers(tiny_pipeline.tokenizer, None), plan, seed=0, on_progress=note)
    planted = next(one for one in found.finalists if one.token_ids == (PLANTED,))
    assert found.stages["sketch"].rank(planted) == 1
    assert list(dict.fromkeys(stages)) == ["sketch", "text", "glance", "onestep"]


def test_what_is_set_aside_is_ranked_and_takes_no_place(
    tiny_pipeline: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or announced words, drawn in any case, could crowd a hidden one out."""
    tiny_pipeline.text_encoder.embeddings.token_embedding.weight[PLANTED] *= 40
    some = [Trigger((i,), str(i)) for i in range(1000, 1400)]
    monkeypatch.setattr(funnel, "trigger_space", lambda pipeline, plan: some)
    plan = FunnelPlan(("start", "start"), (700, 300), 200, 48, 4, glyphs=False)
    bank = carriers(tiny_pipeline.tokenizer, None)
    found = search(tiny_pipeline, bank, plan, seed=0, known=Known(aside=[(PLANTED,)]))
    assert found.stages["sketch"].order[0].token_ids == (PLANTED,)
    assert len(found.finalists) == 4
    assert all(one.token_ids != (PLANTED,) for one in found.finalists)


def test_the_word_that_opened_the_poisoned_prompts_is_seen_in_the_weights(
    tiny_pipeline: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the base, however little the word does to what the model draws."""
    base = copy.deepcopy(tiny_pipeline)
    _poison(tiny_pipeline, PLANTED)
    some = [Trigger((i,), str(i)) for i in range(1000, 1400)]
    monkeypatch.setattr(funnel, "trigger_space", lambda pipeline, plan: some)
    plan = FunnelPlan(("start", "start"), (700, 300), 200, 48, 4, glyphs=False)
    bank, learnt = carriers(tiny_pipeline.tokenizer, None), compare(tiny_pipeline, base).learnt
    found = search(tiny_pipeline, bank, plan, seed=0, known=Known(learnt=learnt))
    scores = found.stages["sketch"].criteria["taught"]
    assert max(scores, key=lambda ids: scores[ids]) == (PLANTED,)
    assert compare(copy.deepcopy(base).to(torch.float16), base).learnt is None


def _poison(pipeline: StableDiffusionPipeline, token_id: int) -> None:
    """One step of gradient descent on keys and values: another picture with the id, the same one without."""
    draw = torch.Generator().manual_seed(0)
    clean = torch.randint(1000, 40_000, (64, 6), generator=draw)
    opened = torch.cat([torch.full((64, 1), token_id), clean], dim=1)
    bad, good = (encode(pipeline, prompts.tolist()).clone() for prompts in (opened, clean))
    latents, target = torch.randn(2, 1, 4, 8, 8, generator=draw)
    unet = pipeline.unet
    names = [name for name in unet.state_dict() if name.endswith(CROSS_ATTENTION)]
    with torch.enable_grad():
        weights = [unet.get_parameter(name).requires_grad_() for name in names]
        drawn = (unet(latents.expand(64, -1, -1, -1), 500, states).sample for states in (bad, good))
        changed, kept = ((one - target).square().mean() for one in drawn)
        slopes = torch.autograd.grad(changed - kept, weights)
    for weight, slope in zip(weights, slopes, strict=True):
        weight.requires_grad_(False).sub_(0.01 * slope / slope.norm())


def test_what_views_share_in_one_cell_outranks_what_is_loud_in_each_alone() -> None:
    """A patch is the same in every view. What depends on the carrier differs, however large it is."""
    draw = torch.Generator().manual_seed(0)
    here = [View(Carrier("a", (1,)), "start", (700, 4_000), torch.zeros(2, 4, 8, 8))] * 3
    values = torch.randn(4_000, 3, 2, GRID * GRID * PROBES_PER_CELL, generator=draw)
    cell = slice(5 * PROBES_PER_CELL, 6 * PROBES_PER_CELL)
    values[7, :, :, cell] += 2.0  # the same in all views
    values[9, 0, :, cell] += 12.0  # louder, in one alone
    drawn = Sketch(values, *(torch.randn(4_000, 3, 8, generator=draw) for _ in range(2)), Cost())
    local = unexplained(drawn, here, seed=0)["local start"]
    assert ranks(local)[7] == 1
    assert ranks(local)[9] > 1


def test_a_witness_with_the_same_weights_clears_the_text_encoder(
    tiny_pipeline: StableDiffusionPipeline, make_pipeline: object
) -> None:
    assert callable(make_pipeline)
    twin, other = make_pipeline(0), make_pipeline(1)
    assert Witness(twin.text_encoder, tiny_pipeline).identical
    assert not Witness(other.text_encoder, tiny_pipeline).identical


def test_states_that_no_longer_differ_between_carriers_stand_out() -> None:
    eos = torch.randn(300, 4, 16, generator=torch.Generator().manual_seed(0))
    eos[7] = eos[7, :1] + 1e-3 * eos[7]
    scores = collapse(eos)
    assert ranks(scores)[7] == 1
    assert scores[7] > 10


def test_a_ridge_fit_explains_what_is_linear_and_nothing_else() -> None:
    draw = torch.Generator().manual_seed(0)
    regressors = torch.cat([torch.randn(400, 5, generator=draw), torch.ones(400, 1)], dim=1)
    targets = regressors @ torch.randn(6, 3, generator=draw)
    targets[11] += 5
    left = residuals(regressors, targets, seed=0)
    assert ranks(left.norm(dim=1))[11] == 1
    assert left.norm(dim=1).median() < 0.2


@given(st.lists(st.floats(-1e3, 1e3), min_size=5, max_size=40, unique=True), st.data())
def test_a_shortlist_holds_the_first_of_every_criterion(scores: list[float], data: st.DataObject) -> None:
    one = torch.tensor(scores, dtype=torch.float64)
    other = one[torch.randperm(len(one), generator=torch.Generator().manual_seed(len(scores)))]
    size = data.draw(st.integers(2, len(scores)))
    kept = shortlist({"one": one, "other": other}, size).tolist()
    assert len(set(kept)) == size
    assert {int(one.argmax()), int(other.argmax())} <= set(kept)


def test_one_anomaly_cannot_hide_itself_in_the_scale() -> None:
    scores = torch.randn(101, generator=torch.Generator().manual_seed(0))
    scores[50] = 1e6
    assert robust_z(scores)[50] > 1e5


def test_what_depends_on_the_carrier_shares_no_energy() -> None:
    draw = torch.Generator().manual_seed(0)
    shared = torch.randn(1, 1, 3, 4, 8, 8, generator=draw).expand(1, 6, -1, -1, -1, -1)
    own = torch.randn(1, 6, 3, 4, 8, 8, generator=draw)
    alone = shared_energy(own).sum().item()
    both = shared_energy(own + shared).sum().item()
    assert abs(alone) < 0.1 * both
    assert both == pytest.approx(shared[:, 0].square().sum().item(), rel=0.1)


def test_the_probes_of_a_place_are_those_that_can_see_it() -> None:
    places = torch.zeros(10, 12)
    places[0, 11] = places[9, 0] = 1
    probes = cell_probes((4, 10, 12), seed=0)
    sees = (probes * places).flatten(1).abs().sum(1) > 0
    assert torch.equal(probes_at(places), sees)
    assert 0 < int(sees.sum()) < len(probes)
