"""What people read."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from service import demo, terminal
from service.client import ApiError
from service.domain.report_example import EXAMPLE


def shown(renderable: Any) -> str:
    console = Console(width=120, record=True, file=None, quiet=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


@pytest.mark.parametrize(
    ("text", "seen"), [("cat", "cat"), ("\u200b", "⟨U+200B⟩"), ("о", "⟨U+043E⟩"), ("a\nb", "a⟨U+000A⟩b")]
)
def test_characters_that_deceive_are_named(text: str, seen: str) -> None:
    assert terminal.visible(text) == seen


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.95, "95.0%"),
        ({"value": 1, "n": 200}, "100.0% (n = 200)"),
        ({"value": 0.965, "ci95": [0.9295, 0.9829], "n": 200}, "96.5% [93.0%, 98.3%] (n = 200)"),
    ],
)
def test_a_share_states_what_is_known(value: Any, text: str) -> None:
    assert terminal.share(value) == text


def test_the_verdict_names_trigger_and_scores() -> None:
    text = shown(terminal.verdict_panel(EXAMPLE))
    for part in ("FAIL", "⟨U+200B⟩", "9844", "attack success", "CLIP image-text", "Not searched"):
        assert part in text


def test_a_report_cannot_style_the_terminal() -> None:
    finding = {**EXAMPLE["findings"][0], "trigger": {"text": "[red]x[/red]", "token_ids": [1]}}
    assert "[red]x[/red]" in shown(terminal.verdict_panel(EXAMPLE | {"findings": [finding]}))


def test_a_problem_reads_as_text() -> None:
    document = {
        "type": "https://sauscan.dev/problems/upload-too-large",
        "title": "The file is too large",
        "detail": "It has 20 bytes.",
        "limit": 10,
        "errors": [{"pointer": "#/seed", "detail": "must be a number"}],
        "request_id": "r1",
    }
    text = shown(terminal.problem_panel(ApiError(413, document)))
    for part in (
        "The file is too large",
        "It has 20 bytes.",
        "limit: 10",
        "#/seed",
        "upload-too-large",
        "r1",
    ):
        assert part in text


def test_the_demo_checks_what_it_claims() -> None:
    claims = {claim.text: claim for claim in demo.claims(EXAMPLE)}
    assert claims["the verdict is fail"].holds
    assert claims["a trigger was found, without a hint"].measured == "⟨U+200B⟩ [9844]"
    assert all(claim.holds for claim in claims.values())
    bad = EXAMPLE | {"verdict": "pass", "findings": [], "unlearning": None, "clip": None}
    assert not any(claim.holds for claim in demo.claims(bad))
