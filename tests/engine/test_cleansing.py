"""What is told of cleaning: the second scan's verdict, and progress."""

from __future__ import annotations

from typing import Any

import pytest

from worker.engine import counterfactual, redirection
from worker.engine.cleansing import rescan_verdict
from worker.engine.confirmation import Confirmation
from worker.engine.evaluation import Evaluation
from worker.engine.metrics import mean, proportion
from worker.engine.scanning import as_stage
from worker.engine.types import Cost, Progress, Statistics, Trigger
from worker.engine.unlearn.protocol import UnlearnResult

TRIGGER = Trigger((1000,), "x")


def confirmed(rule: str) -> Confirmation:
    return Confirmation(TRIGGER, "start", True, rule, Statistics(0.001, 0.001, 9.0, 16), {})


def mended(method: str) -> UnlearnResult:
    return UnlearnResult(method, "unet", (TRIGGER,), (), 1, 0.0, 0.0, Cost())


def measured(still: int) -> Evaluation:
    """Of 200 pictures `still` show the effect after cleaning, and 4 without the trigger do."""
    nothing: dict[str, Any] = {"clip": None, "drift": mean([0.0, 0.0]), "cost": Cost()}
    shares = (proportion(200, 200), proportion(still, 200), proportion(200 - still, 200))
    return Evaluation(200, *shares, None, proportion(4, 200), **nothing)


@pytest.mark.parametrize("rule", [redirection.RULE, counterfactual.RULE])
def test_what_a_second_scan_cannot_see_must_be_gone_from_its_own_pictures(rule: str) -> None:
    found = [confirmed(rule)]
    assert rescan_verdict(found, [mended("sau")], measured(150), found_again=False) == "inconclusive"
    assert rescan_verdict(found, [mended("sau")], measured(5), found_again=False) == "pass"
    assert rescan_verdict(found, [mended("sau")], measured(5), found_again=True) == "fail"
    assert rescan_verdict(found, [mended("restore")], measured(150), found_again=False) == "pass"


def test_what_it_looked_for_it_judges_itself() -> None:
    assert rescan_verdict([confirmed("patch")], [mended("sau")], measured(150), found_again=False) == "pass"


def test_a_stage_of_several_never_goes_backwards() -> None:
    heard: list[Progress] = []
    tell = as_stage(heard.append, "rescan", 2)
    for stage, done in (
        ("sketch", 0),
        ("sketch", 10),
        ("confirm", 0),
        ("confirm", 5),
        ("sketch", 3),
        ("more", 10),
    ):
        tell(Progress(stage, done, 10, "whatever"))
    shares = [one.done / one.total for one in heard]
    assert shares == [0, 0.5, 0.5, 0.75, 0.75, 1]
    assert {one.stage for one in heard} == {"rescan"}
    assert [one.message for one in heard[:3]] == ["sketch", "sketch", "confirm"]
