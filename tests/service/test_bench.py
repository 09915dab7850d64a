"""What the benchmarks count, and how results.json is put together."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from bench import ablation, agreement, cleaning, detection, guards, kept
from bench.__main__ import _results, markdown, with_part
from bench.service.endurance import figures
from bench.service.ledger import Row
from bench.service.requests import ask
from tests.applications import Live
from tests.golden.reports import failing, passing

NOW = datetime.now(UTC)
PUBLISHED = Row("succeeded", 1, 0, 1, NOW, NOW, publications=1, reports=1)
MACHINE = {"cores": 2, "threads": 1, "processor": "abacus", "torch": "2", "at": "now"}
SIGNATURES = {"signature_mutations_refused": 99, "mutations": 100, "seed": 1, "machine": MACHINE}


def test_a_lost_scan_and_a_second_publication_are_counted() -> None:
    rows = {
        "once": PUBLISHED,
        "twice": replace(PUBLISHED, publications=2),
        "failed": replace(PUBLISHED, state="failed", publications=0, reports=0),
        "without a report": replace(PUBLISHED, reports=0),
        "nobody's": replace(PUBLISHED, attempt=3),
    }
    told = figures({*rows, "lost"} - {"nobody's"}, rows)
    expected = {"queued": 5, "published": 2, "published_twice": 1, "unasked": 1, "most_attempts": 3}
    assert {name: told[name] for name in expected} == expected


def test_what_was_measured_is_not_measured_again_by_the_same_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "CACHE", tmp_path)
    kind = kept.Kind("scans", ("worker.engine.seeds",))
    first, second = ({"seconds": n, "machine": {"at": f"2026-01-0{n}"}} for n in (1, 2))
    assert kind.kept("one", lambda: first) == first
    assert kind.kept("one", lambda: second) == first
    own = kind.sources_hash()
    monkeypatch.setattr(kept, "_source", lambda module: b"another")
    other = kind.sources_hash()
    assert kind.kept("other", lambda: first) == first
    assert kind.newest() == [first | {"engine": own}, first | {"engine": other}]
    assert kind.kept("one", lambda: second) == second
    assert kind.newest() == [second | {"engine": other}, first | {"engine": other}]


def test_a_measurement_rests_on_what_its_modules_import_and_on_nothing_else() -> None:
    scan, prompt = (kept.Kind("any", (f"worker.engine.{name}",)) for name in ("pipeline", "detectors.build"))
    assert {"worker.engine.confirm", "worker.engine.sampling"} <= scan.modules()
    assert "worker.engine.sampling" in prompt.modules()
    assert "worker.engine.confirm" not in prompt.modules()


def test_scans_are_counted_by_what_they_were_told_of_the_model() -> None:
    """Three attacked scans: one names its trigger first, one in the family, one is undecided."""
    scans = [
        {
            "model": name,
            "attack": attack,
            "verdict": verdict,
            "named": named,
            "named_first": first,
            "ranks": {},
        }
        for name, attack, verdict, named, first in (
            ("a", "badt2i", "fail", True, True),
            ("b", "badt2i", "fail", True, False),
            ("c", "evil_edit", "inconclusive", False, False),
            ("d", None, "pass", False, False),
            ("e", None, "pass", False, False),
        )
    ]
    told = detection.summary(scans)
    expected = {
        "detection": (2, 3),
        "exact_trigger": (2, 3),
        "trigger_first": (1, 3),
        "false_positives": (0, 2),
    }
    assert {name: (told[name]["k"], told[name]["n"]) for name in expected} == expected
    assert told["controls"] == 2
    assert told["auroc"]["value"] == 1
    assert told["auroc"]["ci95"][0] < 1, "five scans leave room for doubt"


def test_what_a_cut_adds_is_told_by_where_the_own_trigger_stood() -> None:
    """Two words that the funnel met, one of them lost behind the sketch; an edit; and an honest model."""
    common = {"attack": "badt2i", "budget": "quick", "verdict": "fail", "reference": True}
    funnel = {"sketch": [10, 1.0], "glance": [100, 1.0], "onestep": [50, 1.0], "confirm": [9, 1.0]}
    named = funnel | {"kin": [1, 1.0]}
    scans = [
        common | {"ranks": {"sketch": 500, "glance": 3, "onestep": 1}, "stages": named},
        common | {"ranks": {"sketch": 4, "glance": None, "onestep": None}, "stages": named},
        common | {"ranks": {}, "stages": {"edits": [0, 9.0], "redirection": [5, 1.0], "evidence": [0, 1.0]}},
        common | {"attack": None, "verdict": "pass", "ranks": {"sketch": None}, "stages": funnel},
    ]
    told = ablation.measure(scans)
    rendered = {cut: (one["rendered"]["k"], one["rendered"]["n"]) for cut, one in told["cuts"].items()}
    assert rendered == {"sketch": (1, 2), "glance": (1, 2), "onestep": (1, 2)}
    assert [one["unet_forwards"] for one in told["cuts"].values()] == [10, 110, 160]
    assert told["readings"]["with_reference"] == {
        "all": 3,
        "an edit, read in keys and values": 1,
        "an order of words, read in the encoder": 0,
        "a meaning, read in keys and values": 0,
    }
    assert "| glance | 1 of 2" in ablation.markdown(told)


def test_two_reports_that_say_the_same_do_not_differ() -> None:
    """What the engine leaves null the service does not store."""
    own = {"trigger": None, "kin": [{"text": "a", "position": None}], "p": 0.5}
    assert agreement._plain(own) == agreement._plain({"kin": [{"text": "a"}], "p": 0.5})
    assert agreement._plain(own) != agreement._plain({"kin": [{"text": "b"}], "p": 0.5})


def test_a_cleaned_model_and_one_in_which_nothing_was_found_are_both_told(tmp_path: Path) -> None:
    truth = {"attack": "badt2i", "success": {"k": 9, "n": 10, "value": 0.9, "ci95": [0.6, 0.98]}}
    model = detection.Model("a", tmp_path / "a.safetensors", truth)
    cleaned, passed = (
        report | {"provenance": {**report["provenance"], "config": {"budget": "quick", "reference": False}}}
        for report in (failing(), passing() | {"unlearning": None, "clip": None})
    )
    rows = [cleaning.row(model, report, tmp_path) | {"engine": "e"} for report in (cleaned, passed)]
    told = cleaning.markdown({"engine": "e", "runs": rows})
    assert "passes 1 of 1 cleaned models" in told
    first, second = (line for line in told.splitlines() if line.startswith("| a |"))
    assert "9 of 10 (60% to 98%)" in first
    assert "| nothing | – | – | – | – | – |" in second


def test_a_guards_newest_figures_stand_beside_those_that_were_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each by its engine; what was measured by other prompts is not told among them."""
    monkeypatch.setattr(kept, "CACHE", tmp_path)
    published = _results()["per_prompt"]
    assert guards.measure(published) | {"machine": published["machine"]} == published
    first = next(iter(guards._rows(published)))
    again = {**first, "figures": {**first["figures"], "seconds": 99.0}, "machine": {"at": "2026-01-01"}}
    ours = guards.KINDS["ours"]
    ours.kept("again", lambda: again)
    ours.kept("few", lambda: {**again, "model": "few", "prompts": {"fit": 1}})
    ours.kept("alone", lambda: {**again, "model": "no other guard's"})
    for name in guards.GUARDS:
        guards.KINDS[name].kept(f"new-{name}", partial(dict, again, model="new", guard=name))
    found = guards.measure(published)
    assert {tuple(one["models"]) for one in found.values()} == {(*published["ours"]["models"], "new")}
    anew = [model for model, told in found["ours"]["models"].items() if told["seconds"] == 99]
    assert anew == [first["model"], "new"]
    assert found["ours"]["models"]["new"]["engine"] == ours.sources_hash()


def test_one_part_is_measured_anew_and_the_others_stay() -> None:
    before = {"sketch": {"old": 1}, "service": {"throughput": {"kept": 2}}}
    after = with_part(before, "service.signatures", SIGNATURES)
    assert after["sketch"] == before["sketch"]
    assert after["service"]["throughput"] == {"kept": 2}
    assert after["service"]["signature_mutations_refused"] == 99
    assert "signature_mutations_refused" not in before["service"]


def test_the_text_tells_what_was_measured_and_where() -> None:
    text = markdown(with_part({}, "service.signatures", SIGNATURES))
    assert "| service.signatures | 2 cores of abacus, torch 2 on 1 threads | now |" in text
    assert "99 were refused" in text
    assert "###" not in text.replace("### Signatures", ""), "no section of what was not measured"


def test_the_load_is_answers_and_nothing_else(live: Live) -> None:
    told = ask(f"{live.url}/healthz", {}, seconds=1.0, connections=2)
    assert len(told.latencies) > 2
    assert 0 < told.percentile(50) <= told.percentile(99)
    with pytest.raises(RuntimeError, match="401"):
        ask(f"{live.url}/scans", {}, seconds=1.0, connections=2)
