"""The frontier: one labelled point for each defense that was measured, every word with a place of its own."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import pairwise
from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leakaudit.reports import figures, view
from leakaudit.reports.drawing import Box, Drawing, Line, Panel, percents, ticks
from leakaudit.reports.html import render
from leakaudit.result.schema import AuditResult, Estimate
from tests.reports.crowds import crowd

SVG = "{http://www.w3.org/2000/svg}"
CROWDS = {
    "one": (1,),
    "two": (2, False, True),
    "twelve": (12,),
    "thirty": (30,),
    "long": (12, True),
    "same": (9, True, True),
}


def drawn(result: AuditResult) -> Drawing:
    drawing = figures.frontier(result)
    assert drawing is not None
    return drawing


def written(result: AuditResult) -> list[str]:
    return [word.text for word in drawn(result).words]


def in_page(result: AuditResult) -> ET.Element:
    found = re.search(r'<svg class="frontier".*?</svg>', render(result), re.DOTALL)
    assert found is not None
    return ET.fromstring(found[0].replace("<svg ", f'<svg xmlns="{SVG[1:-1]}" ', 1))


def test_it_is_svg_with_text_in_colours_of_paper_and_a_name_and_words_for_who_cannot_see_it(
    golden: AuditResult,
) -> None:
    root = in_page(golden)
    labels = ["A none", "B gaussian:std=0.01", "D obscure"]
    texts = [t.text for t in root.iter(f"{SVG}text")]
    assert set(texts) >= {*labels, "limit 30%", "chance", "test accuracy"}
    assert texts == written(golden)
    assert root.get("role") == "img"
    ids = [e.get("id") for e in root.iter() if e.get("id")]
    assert (root.get("aria-labelledby") or "").split() == ids
    assert root.findtext(f"{SVG}desc") == figures.describe(golden)
    colours = {e.get(name) for e in root.iter() for name in ("fill", "stroke")} - {None, "none"}
    assert colours == {"#000000", "#444444", "#bbbbbb", "#1f4e79", "#ffffff", "#1d6b3a"}
    assert {e.tag.removeprefix(SVG) for e in root.iter()} == {"svg", "title", "desc", "path", "text"}


def test_the_page_puts_the_themes_colours_in_the_place_of_papers_without_a_style_of_any_element(
    golden: AuditResult,
) -> None:
    page = render(golden)
    sheet = "".join(re.findall(r"<style>.*?</style>", page, re.DOTALL))
    drawings = re.findall(r"<svg .*?</svg>", page, re.DOTALL)
    assert len(drawings) > 4
    for kind, colour in set(re.findall(r'(fill|stroke)="(#\w+)"', "".join(drawings))):
        assert re.search(rf'\[{kind}="{colour}"\] {{ {kind}: var\(--\w+\); }}', sheet), colour
    assert not re.search(r"<[^>]* style=", page)


def test_what_was_not_measured_is_not_drawn(golden: AuditResult) -> None:
    keys = [p.key for p in figures.points(golden)]
    assert keys == ["A", "B", "D"]  # C has no accuracy
    gone = Estimate(reason="not trained")
    blank = replace(golden, defenses=tuple(replace(d, accuracy=gone) for d in golden.defenses))
    assert figures.frontier(blank) is None


def test_points_intervals_and_bounds_stand_where_their_numbers_are(golden: AuditResult) -> None:
    drawing, points = drawn(golden), figures.points(golden)
    axes = next(line for line in drawing.lines if line.kind == "axis").points
    percent = {word.text: word for word in drawing.words if word.text.endswith("%") and word.size == 9}

    def across(share: float) -> float:
        zero, whole = (percent[text].x for text in ("0%", "100%"))
        return zero + sqrt(share) * (whole - zero)

    solid = [mark for mark in drawing.marks if not mark.hollow]
    assert sorted(mark.x for mark in solid) == pytest.approx(sorted(across(p.at[0] ** 2) for p in points))
    assert [mark.shape for mark in solid] == ["square", "dot", "dot"]  # the control lies below the others
    (hollow,) = [mark for mark in drawing.marks if mark.hollow]
    assert hollow.x == pytest.approx(across(0.2))
    ends = {round(x, 6) for line in drawing.lines if line.kind == "interval" for x, _ in line.points}
    for p in points:
        assert {round(across(p.identification.low or 0), 6), round(across(p.identification.high or 0), 6)} <= ends
    assert axes[1][1] > max(mark.y for mark in solid)  # above the axis, on which y grows downwards
    heights = {p.at[1]: mark.y for mark in solid for p in points if across(p.at[0] ** 2) == pytest.approx(mark.x)}
    assert sorted(heights.values(), reverse=True) == [heights[a] for a in sorted(heights)]
    assert not any(mark.hollow for mark in drawn(replace(golden, defenses=golden.defenses[:3])).marks)


@pytest.mark.parametrize("name", CROWDS)
def test_every_point_has_a_label_and_no_word_lies_on_another_or_on_a_mark(golden: AuditResult, name: str) -> None:
    result = crowd(golden, *CROWDS[name])
    drawing = drawn(result)
    labels = [w for w in drawing.words if re.match(r"[A-Z]\d*( |$)", w.text)]
    assert [w.text.split()[0] for w in labels] == [p.key for p in figures.points(result)]
    assert all(" " in w.text for w in labels) is (name in ("one", "two"))  # names where they find room
    boxes = [w.box for w in drawing.words]
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.meets_any([b])]
    assert not [w.text for w in labels if w.box.meets_any(mark.box for mark in drawing.marks)]
    whole = Box(0, 0, drawing.width, drawing.height)
    assert all(whole.holds(box) for box in boxes)
    assert drawn(result) == drawing


def test_what_is_allowed_is_shaded_up_to_the_limits(golden: AuditResult) -> None:
    for result in (golden, replace(golden, settings=golden.settings | {"max_accuracy_loss": 0.1})):
        drawing = drawn(result)
        (corner,) = drawing.allowed
        upright = next(line for line in drawing.lines if line.kind == "limit").points[0][0]
        frame = next(line for line in drawing.lines if line.kind == "axis").points
        level = [line.points[0][1] for line in drawing.lines if line.kind == "limit"][1:]
        chance = [line.points[0][1] for line in drawing.lines if line.kind == "chance"][1:]  # nothing below it
        assert {x for x, _ in corner.points} == {frame[0][0], upright}
        assert {y for _, y in corner.points} == {frame[0][1], level[0] if level else max(chance)}


def test_a_name_lies_on_no_interval_where_there_is_room_beside_it(
    golden: AuditResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two defenses that nothing but a little accuracy tells apart, at the right edge, one interval over the other."""
    monkeypatch.setattr(figures, "no_accuracy", lambda _: "")  # the limit of accuracy is drawn: the rows are close
    all_, nobody, rows = Estimate(1.0, 0.631, 1.0, 8), Estimate(0.0, 0.0, 0.369, 8), []
    three = (("none", 0.12, all_), ("prune:sparsity=0.99", 0.09, nobody), ("gaussian:std=0.01", 0.117, all_))
    for spec, accuracy, leak in three:
        attack = replace(golden.defenses[1].attacks[0], role="standard", identification=leak)
        rows.append(replace(golden.defenses[1], spec=spec, attacks=(attack,), accuracy=Estimate(accuracy, n=1)))
    made = replace(golden, defenses=tuple(rows), settings={"max_accuracy_loss": 0.1}, chance_accuracy=0.143)
    drawing = drawn(replace(made, chance_identification=0.01, max_identification=0.25))
    names = [word.box for word in drawing.words if re.match(r"[A-C] \w", word.text)]
    intervals = [line.box for line in drawing.lines if line.kind == "interval"]
    assert len(names) == len(intervals) == 3
    assert not [name for name in names if name.meets_any(intervals)]


def test_letters_of_labels_are_told_beside_the_figure_and_in_the_tables(golden: AuditResult) -> None:
    page = render(crowd(golden, 30)).replace("<wbr>", "")
    for i, defense in enumerate(crowd(golden, 30).defenses):
        assert f'<th scope="col">{view.key(i)} <span class="mono">{defense.spec}</span>' in page
    cards = re.findall(r"<b><i>(\w+)</i> ([^<]*)</b>", render(golden).replace("<wbr>", ""))
    assert cards == [(view.key(i), d.spec) for i, d in enumerate(golden.defenses)]


def test_mathematics_and_markup_in_a_label_stay_text(golden: AuditResult) -> None:
    odd = replace(golden.defenses[1], spec="$\\frac{1}{0}$<b>&\u6f22")
    texts = [t.text for t in in_page(replace(golden, defenses=(odd,))).iter(f"{SVG}text")]
    assert "A $\\frac{1}{0}$<b>&\u6f22" in texts


def test_both_limits_are_marked_where_there_are_two(golden: AuditResult) -> None:
    limited = replace(golden, settings=golden.settings | {"max_accuracy_loss": 0.1})
    assert "limit 65%" in set(written(limited)) - set(written(golden))  # without a defense 75 %
    assert "limit 30%" in set(written(limited)) & set(written(golden))
    assert figures.least_accuracy(golden) is None
    assert "accuracy 65%" in figures.describe(limited)


@given(st.floats(-1, 1), st.floats(0.1, 60), st.integers(2, 12))
def test_ticks_are_round_few_and_within(low: float, length: float, most: int) -> None:
    found = ticks(low, low + length, most)
    assert len(found) <= most + 1
    assert all(low - 1e-9 <= tick <= low + length + 1e-9 for tick in found)
    steps = {f"{b - a:.0e}"[0] for a, b in pairwise(found)}
    assert steps <= {"1", "2", "5"}
    assert len(steps) <= 1
    assert all(tick.is_integer() for tick in ticks(low, low + length, most, least=1))


def test_shares_beyond_all_and_nothing_have_no_tick() -> None:
    assert list(percents(-0.2, 1.2, 6).values()) == ["0%", "20%", "40%", "60%", "80%", "100%"]
    assert list(percents(0.701, 0.77, 4).values()) == ["72%", "74%", "76%"]


def test_a_panel_puts_its_ends_at_its_edges() -> None:
    panel = Panel(Box(10, 20, 110, 220), (0, 2), (-1, 1))
    assert panel.at(0, -1) == (10, 220)
    assert panel.at(2, 1) == (110, 20)
    assert panel.level("grid", 0) == Line("grid", ((10, 120), (110, 120)))
    assert panel.plumb("grid", 1) == Line("grid", ((60, 220), (60, 20)))
