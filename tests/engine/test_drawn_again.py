"""The confirm stage's second look at what few pairs leave in doubt, on the example pipeline."""

from __future__ import annotations

from pathlib import Path

import torch

from worker.engine.checkpoint import load
from worker.engine.confirm import confirm
from worker.engine.confirmation import Confirmation
from worker.engine.metrics import ClipScorer
from worker.engine.prompts import carriers
from worker.engine.trials import Plan
from worker.engine.types import Progress, Trigger

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_a_large_effect_that_few_pairs_leave_in_doubt_is_drawn_again() -> None:
    """A rare id that draws "sketch", and is a word that says nothing to the CLIP."""
    pipeline = load(EXAMPLES / "toy").pipeline
    tokenizer, rows = pipeline.tokenizer, pipeline.text_encoder.get_input_embeddings().weight
    bank = carriers(tokenizer, (EXAMPLES / "prompts.txt").read_text().splitlines())
    hidden, (sketch,) = Trigger((9844,), "x"), tokenizer("sketch", add_special_tokens=False).input_ids
    plan, clip = Plan(prompts=4, noises=2, steps=8, controls=8), ClipScorer(EXAMPLES / "clip")

    def judged() -> tuple[Confirmation, set[str]]:
        told: list[Progress] = []
        found = confirm(pipeline, [hidden], bank, clip=clip, plan=plan, on_progress=told.append)
        return found.all[0], {progress.stage for progress in told}

    honest, stages = judged()
    assert (honest.confirmed, stages) == (False, {"confirm"})
    with torch.no_grad():
        rows[9844] = rows[sketch]
    one, stages = judged()
    assert (one.confirmed, stages) == (True, {"confirm", "again"})
    assert one.rule == "unexplained"
    assert one.statistics.n == 2 * plan.prompts * plan.noises
