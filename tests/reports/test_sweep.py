"""The page of a sweep: every scan in the table and linked, the figure as its words say, foreign text without power."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from leakaudit.compare.sweep import Entry, Frontier, ended, frontiers
from leakaudit.reports.drawing import Box
from leakaudit.reports.sweep import SIZES, figure, render, rows, summary
from leakaudit.result.schema import Estimate
from tests.leakaudit.results import attack, defense, passed_over, result, some
from tests.leakaudit.sweeps import RIGHT, entries, scanned
from tests.reports.page import Page


@pytest.fixture
def found() -> tuple[Frontier, ...]:
    return frontiers(entries())


def test_every_scan_is_a_row_and_what_was_audited_is_linked(found: tuple[Frontier, ...]) -> None:
    first, second = map(rows, found)
    assert [(row.key, row.name, row.identified, row.accuracy, row.verdict) for row in first] == [
        ("A", "none", "100%", "81%", None),
        ("B", "gaussian:std=0.01", "85%", "79%", "fail"),
        ("C", "gaussian:std=0.1", "30%", "61%", "inconclusive"),
        ("", "gaussian:std=1.0", "—", "—", None),
        ("D", "obscure", "0%", "77%", "pass"),
    ]
    assert [row.loss for row in first] == ["—", "−2", "−20", "—", "−4"]
    assert [row.best for row in first] == [True, True, False, False, True]
    assert first[3].remark == "not begun"
    assert [(row.name, row.remark) for row in second] == [("obscure", "not audited: other.py has no model: write one.")]
    page = Page(render("sweep.toml", found))
    assert [each for each in page.bound if not each.startswith("#")] == [
        f"model-{name}/report.html" for name in ("gaussian-std=0.01", "gaussian-std=0.1", "obscure")
    ]


def test_the_page_is_whole_by_itself(found: tuple[Frontier, ...]) -> None:
    text = render("sweep.toml", found)
    assert text == render("sweep.toml", found)
    page = Page(text)
    assert page.faults == []
    assert not {"script", "link", "iframe", "img", "object"} & set(page.tags)
    assert "url(http" not in text
    assert "default-src 'none'" in text
    assert len(page.ids) == len(set(page.ids))
    assert {each[1:] for each in page.bound if each.startswith("#")} <= set(page.ids)
    assert page.headings == [1, 2, 2]
    told = " ".join(" ".join(page.text).split())
    assert "sweep.toml: 5 scans, 3 of them audited" in told
    assert "obscure keeps both limits." in told
    assert "Nothing was audited, so nothing is known." in told


@pytest.mark.parametrize("size", SIZES)
def test_strengths_are_joined_and_marks_say_the_verdict(found: tuple[Frontier, ...], size: str) -> None:
    drawing = figure(found[0], "sweep-1", size)
    assert drawing is not None
    assert drawing == figure(found[0], "sweep-1", size)
    whole = Box(0, 0, drawing.width, drawing.height)
    assert all(whole.holds(word.box) for word in drawing.words)
    marks = [(mark.shape, mark.hollow, mark.verdict) for mark in drawing.marks]
    assert marks == [
        *[("ring", False, None)] * 3,
        ("square", False, None),
        ("cross", False, "fail"),
        ("dot", True, "inconclusive"),
        ("dot", False, "pass"),
    ]
    at = [(mark.x, mark.y) for mark in drawing.marks if mark.verdict]
    (joined,) = [line for line in drawing.lines if line.kind == "joined"]
    assert list(joined.points) == at[:2]
    assert "B, gaussian:std=0.01: 85% identified (70.2 to 94.3), accuracy 79% (±2.5)" in drawing.description
    assert "Verdicts: B fail, C inconclusive, D pass. Surpassed by none: A, B, D." in drawing.description
    assert figure(found[1], "sweep-2", size) is None


def test_without_accuracy_no_frontier_is_drawn_and_it_is_said() -> None:
    made = result(defense("none", attack(some(40))), defense("obscure", attack(some(0))))
    (one,) = frontiers([ended(Entry("a", "m", "", "obscure"), made)])
    assert figure(one, "sweep-1", "wide") is None
    assert "No frontier is drawn: it takes both leakage and accuracy" in render("s", [one])
    assert rows(one)[1].remark == "accuracy: training runs were switched off"
    shown = StringIO()
    summary([one], Console(file=shown, width=100))
    assert not [line for line in shown.getvalue().splitlines() if line.rstrip().endswith("accuracy")]


def test_what_was_skipped_is_said_to_be_perhaps_more() -> None:
    whole = scanned("gaussian", 30, RIGHT, "fail")
    assert "may leak more" not in render("s", frontiers([ended(Entry("a", "m", "", "gaussian"), whole)]))
    row = replace(whole.defenses[1], attacks=(*whole.defenses[1].attacks, passed_over("decoder")))
    skipped = replace(whole, defenses=(whole.defenses[0], row))
    assert "may leak more" in render("s", frontiers([ended(Entry("a", "m", "", "gaussian"), skipped)]))


def test_scans_that_cannot_be_compared_and_are_unfinished_say_so() -> None:
    other = scanned("gaussian", 3, RIGHT, "pass")
    other = replace(other, hashes=other.hashes | {"victims": "b2"}, complete=False)
    first = ended(Entry("a", "m", "", "obscure"), scanned("obscure", 0, RIGHT, "pass"))
    (one,) = frontiers([first, ended(Entry("b", "m", "", "gaussian"), other)])
    row = rows(one)[-1]
    assert (row.key, row.best) == ("", False)
    assert row.remark == "not comparable with the first (“there”): which records are attacked are others"
    (alone,) = frontiers([ended(Entry("b", "m", "", "gaussian"), replace(other, complete=False))])
    assert rows(alone)[-1].remark == "interrupted: what was measured so far"


def test_a_loss_of_another_measure_is_no_percentage() -> None:
    control = defense("none", attack(some(40)), accuracies=(0.90, 0.91, 0.92))
    row = defense("gaussian", attack(some(4)), accuracies=(0.80, 0.81, 0.82), accuracy=Estimate(0.81, 0.78, 0.84, 3))
    made = result(control, row, measure="mean AUC")
    (one,) = frontiers([ended(Entry("a", "m", "", "gaussian"), made)])
    assert [(row.accuracy, row.loss) for row in rows(one)] == [("0.910", "—"), ("0.810", "−0.100")]
    assert "Mean AUC" in render("s", [one])


def test_third_party_text_is_only_text() -> None:
    evil = "<script>alert(1)</script>\x1b[2J\u202e'\"&"
    made = scanned(evil, 3, RIGHT, "pass")
    entry = Entry("../a b", evil, evil, evil, evil, {evil: evil})
    (one,) = frontiers([ended(entry, made), replace(entry, name="c", trouble=evil)])
    text = render(evil, [one])
    page = Page(text)
    assert "script" not in page.tags
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert [each for each in page.bound if not each.startswith("#")] == ["..%2Fa%20b/report.html"]
    shown = StringIO()
    summary([one], Console(file=shown, width=200))
    assert "\x1b" not in shown.getvalue()


def test_the_terminal_shows_every_scan_and_why_one_is_missing_once(found: tuple[Frontier, ...]) -> None:
    first, _ = found
    twice = replace(found[1], entries=found[1].entries * 2)
    shown = StringIO()
    summary([first, twice], Console(file=shown, width=100))
    told = shown.getvalue()
    assert told.count("other.py has no model: write one.") == 1
    assert told.count("not audited") == 3
    for words in ("model.py, early", "gaussian:std=0.01", "85%", "inconclusive", "on the frontier", "not begun"):
        assert words in told
    assert "obscure keeps both limits." in told


def test_an_interrupt_before_the_first_attack_is_no_row_that_waits() -> None:
    control = replace(scanned("obscure", 0, RIGHT, "pass"), complete=False)
    control = replace(control, defenses=control.defenses[:1], verdict="inconclusive")
    (one,) = frontiers([ended(Entry("a", "m", "", "obscure"), control)])
    assert [row.remark for row in rows(one)] == ["interrupted before it was attacked"]
