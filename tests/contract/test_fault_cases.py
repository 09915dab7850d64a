"""The catalogue of faults: each case has a test that carries its number, or a line in docs/security.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

CATALOGUE = {
    1: "twenty posts at once with one idempotency key",
    2: "an idempotency key with another body",
    3: "a file that is known already, and one that is forced",
    4: "an upload of gigabytes that is cut and resumed, in flat memory",
    5: "a stale offset, an overflow, an upload over the limit",
    6: "a body that is larger than declared, or of no declared length",
    7: "a digest that does not fit",
    8: "a worker that is killed during a scan",
    9: "a job that is killed during a scan",
    10: "a job that runs out of memory every time",
    11: "a message that is delivered twice",
    12: "a worker that is frozen past its lease and wakes",
    13: "a broker that forgets everything",
    14: "a broker that is away during submissions",
    15: "a broker that restarts during a scan",
    16: "a database that restarts during a scan",
    17: "a database that is away at the claim",
    18: "a full disk, at the upload and at the cleaned model",
    19: "a crash between commit and message",
    20: "a crash between message and mark",
    21: "a cancellation of a waiting, a running and a finished scan",
    22: "a worker that restarts after a cancellation",
    23: "a worker that is told to stop",
    24: "a scan that runs too long",
    25: "a pickle that calls the system",
    26: "a pickle that calls what no list of dangers knows",
    27: "an archive with a wrong checksum or a hidden pickle",
    28: "archives that unpack without end",
    29: "archives that write elsewhere",
    30: "malformed safetensors",
    31: "files of two formats at once, and of the wrong name",
    32: "weights that are not finite, are missing or of another architecture",
    33: "a job that reaches for the network, for files, for processes",
    34: "a tenant that asks for another's",
    35: "a webhook into the own network",
    36: "a receiver of webhooks that is down",
    37: "downloads in parts from two replicas",
    38: "an event stream that breaks",
    39: "one flipped bit in a result",
    40: "an unexpected error with a secret in its message",
    41: "migrations up, down and up on data",
    42: "pages of a list that grows",
    43: "clocks that disagree",
    44: "the same scan twice",
    45: "requests made up from the schema",
}


def cases_of(tree: ast.AST) -> Iterator[int]:
    """The numbers in the decorators of a file's tests."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and function.name.startswith("test_"):
            for call in (node for mark in function.decorator_list for node in ast.walk(mark)):
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.fault_case":
                    yield from (ast.literal_eval(number) for number in call.args)


@cache
def shown() -> set[int]:
    trees = (ast.parse(path.read_text()) for path in (ROOT / "tests").rglob("test_*.py"))
    return {case for tree in trees for case in cases_of(tree)}


def told() -> set[int]:
    """The numbers that the table in docs/security.md begins its lines with."""
    document = (ROOT / "docs" / "security.md").read_text()
    return {int(number) for number in re.findall(r"^\| (\d+) \|", document, re.MULTILINE)}


@pytest.mark.parametrize("case", CATALOGUE)
def test_every_case_is_shown_or_told(case: int) -> None:
    assert case in shown() | told(), CATALOGUE[case]


def test_no_number_is_of_another_catalogue() -> None:
    assert set(CATALOGUE) == set(range(1, 46))
    assert shown() | told() <= set(CATALOGUE)
