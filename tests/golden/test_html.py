"""The HTML report: self-contained, complete, and deaf to what hostile text asks for."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.report import Evidence
from service.reports import pictures as evidence_pictures
from service.reports.characters import describe, spelled, unseen, visible
from service.reports.figures import duration, percent, probability, si, size
from service.reports.html import render_html
from tests.golden.reports import HOSTILE, REPORTS, failing, homoglyph, hostile, passing, wordless
from tests.golden.toy_pictures import pictures

VOID = {"meta", "img", "br", "hr", "input", "link"}


class Page(HTMLParser):
    """Elements of a page, with a check that they nest."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.stack: list[str] = []
        self.words: list[str] = []
        self.feed(source)
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.mark.parametrize("build", REPORTS.values(), ids=REPORTS.keys())
def test_page_is_self_contained_and_scriptless(build: Any) -> None:
    page = Page(render_html(build(), pictures(build()), title="model.safetensors"))
    assert page.all("script") == page.all("link") == page.all("iframe") == []
    sources = [attributes.get("src") or "" for _, attributes in page.elements if "src" in attributes]
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert all((link.get("href") or "").startswith("#") for link in page.all("a"))
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)


def test_page_says_everything() -> None:
    page = Page(render_html(failing(), pictures(failing()), title="model.safetensors"))
    for words in (
        "model.safetensors", "Fail", "U+200B", "Zero width space", "9844", "5.0 × 10⁻¹²", "95.5", "99.5",
        "Image and text", "CLIPScore", "Image and image", "0.3121", "not searched", "two or more words",
        "sketch", "49,408", "seed 0", "torch 2.13.0", failing()["model"]["sha256"],
    ):  # fmt: skip
        assert words.lower() in page.text.replace("\u202f", " ").lower(), words


def test_pictures_are_inside_with_words_for_who_cannot_see_them() -> None:
    drawn = pictures(failing())
    images = Page(render_html(failing(), drawn)).all("img")
    embedded = {base64.b64decode((image["src"] or "").partition(",")[2]) for image in images}
    assert embedded == {png for name, png in drawn.items() if name != "trigger-1-pairs.png"}
    assert all(image["alt"] for image in images)


def test_missing_pictures_leave_no_hole() -> None:
    assert Page(render_html(failing(), {"trigger-1-1-with.png": b"not a picture"})).all("img") == []


def test_a_homoglyph_is_named() -> None:
    assert "Cyrillic small letter o" in Page(render_html(homoglyph(), {})).text


def test_a_pass_states_its_limits() -> None:
    page = Page(render_html(passing(), {}))
    assert "No hidden trigger was found in what was searched" in page.text
    assert "What cleaning did" not in page.text


@pytest.mark.parametrize(
    ("named", "compared", "said"),
    [
        (True, True, "base, named by the scan, compared weight by weight: 98.0% of"),
        (False, True, "base, the nearest registered, compared weight by weight: 98.0% of"),
        (False, False, "base, the nearest registered: 98.0% of"),
    ],
)
def test_it_is_said_who_chose_the_base(named: bool, compared: bool, said: str) -> None:
    report = passing()
    base = {"id": "ref_1", "name": "base", "sha256": "0" * 64, "share": 0.98, "compared": compared}
    report["provenance"] |= {"reference": base, "config": {"reference": named}}
    assert said in Page(render_html(report, {})).text


def test_hostile_text_makes_no_element() -> None:
    honest = Page(render_html(homoglyph(), pictures(homoglyph()), title="t"))
    attacked = Page(render_html(hostile(), pictures(hostile()), title=HOSTILE))
    assert {tag for tag, _ in attacked.elements} <= {tag for tag, _ in honest.elements}
    assert not re.search("[\u202e\x00\x1b]", render_html(hostile(), {}, title=HOSTILE))


@given(st.text(max_size=60))
def test_any_trigger_makes_a_whole_page(trigger: str) -> None:
    report = failing()
    report["findings"][0]["trigger"]["text"] = trigger
    Page(render_html(report, {}))


@given(st.text())
def test_visible_text_holds_nothing_unseen(text: str) -> None:
    assert not any(unseen(char) for char in visible(text) if char != "\n")


def test_characters_have_names() -> None:
    assert describe("\u200b").shown == ""
    assert describe("\u0301").shown == "\u25cc\u0301"
    assert spelled("c\u043eat") == "“cоat” (U+043E cyrillic small letter o)"
    assert spelled("plain") == "“plain”"


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (duration(0.04), "0.0 s"),
        (duration(71.8), "1 min 12 s"),
        (duration(3599.7), "1 h 0 min"),
        (percent(0.955), "95.5 %"),
        (si(8.8e13), "88 T"),
        (si(12), "12"),
        (size(1_532_661_760), "1.4 GiB"),
        (size(3), "3 B"),
        (probability(0.0412), "0.041"),
        (probability(5e-12), "5.0 × 10⁻¹²"),
        (probability(0), "< 10⁻³⁰⁰"),
    ],
)
def test_numbers_read_well(shown: str, expected: str) -> None:
    assert shown.replace("\u202f", " ") == expected


def test_evidence_sorts_by_its_names() -> None:
    drawn = pictures(failing())
    names = [
        "t-1-with.png",
        "t-1-without.png",
        "t-2-with.png",
        "t-1-attention.png",
        "t-pairs.png",
        "loose.png",
    ]
    files = dict(zip(names, drawn.values(), strict=False))
    entries = [Evidence(name=name, sha256="0" * 64, caption=f"“{name}”, drawn") for name in names]
    shown = evidence_pictures.arrange(entries, files)
    assert [(row.prompt, [picture.label for picture in row.pictures]) for row in shown.rows] == [
        ("t-1-without.png", ["without the trigger", "with the trigger"]),
        ("t-2-with.png", ["with the trigger"]),
    ]
    assert [picture.caption for picture in shown.heat] == ["“t-1-attention.png”, drawn"]
    assert [picture.caption for picture in shown.others] == ["“loose.png”, drawn"]


def test_the_sheet_stands_in_for_missing_rows() -> None:
    sheet = pictures(failing())["trigger-1-pairs.png"]
    entries = [Evidence(name="t-pairs.png", sha256="0" * 64, caption="pairs")]
    shown = evidence_pictures.arrange(entries, {"t-pairs.png": sheet})
    assert [picture.shape for picture in shown.others] == ["wide"]


def test_a_trigger_without_a_word_is_told_with_its_certainty() -> None:
    page = Page(render_html(wordless(), pictures(wordless()), title="model.safetensors"))
    assert "A hidden trigger overrides the prompt" in page.text
    assert "The trigger is an order of words, a part of a prompt first" in page.text
    assert "paired pictures" in page.text
    assert "Token id" not in page.text
