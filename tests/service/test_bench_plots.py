"""The pictures of RESULTS.md are a function of the figures and of nothing else."""

from __future__ import annotations

import json
from pathlib import Path

from defusedxml.ElementTree import parse

from bench import plots

RESULTS = json.loads((Path(plots.__file__).parent / "results.json").read_text())


def test_the_same_figures_give_the_same_bytes_and_other_figures_do_not(tmp_path: Path) -> None:
    one, again = (plots.draw(RESULTS, tmp_path / name) for name in ("one", "again"))
    assert {path.stem for path in one} == set(plots.DRAWINGS) & set(RESULTS)
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in again]
    moved = RESULTS["text_encoder"] | {"bar": 1.0}
    (other,) = plots.draw({"text_encoder": moved}, tmp_path / "other")
    assert other.read_bytes() != (tmp_path / "one" / other.name).read_bytes()
    assert all(parse(path).getroot().tag.endswith("svg") for path in one)


def test_a_part_without_a_picture_embeds_none() -> None:
    assert plots.embedded("closed_form") == ""
    assert "plots/per_prompt.svg" in plots.embedded("per_prompt")
