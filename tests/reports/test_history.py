"""The page of a history: every number in the table, nothing drawn across a break, foreign text without power."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from leakaudit.compare.history import History, read
from leakaudit.reports.drawing import Box
from leakaudit.reports.history import LEVELS, SIZES, describe, figure, render, segments, spark, summary
from leakaudit.result.schema import AuditResult, Estimate, to_json
from leakaudit.stats.intervals import rate
from tests.leakaudit.results import attack, defense, result, some


def run(hits: int, accuracies: tuple[float, ...] = (0.7, 0.72, 0.74), seed: int = 0, **changes: object) -> AuditResult:
    row = defense("obscure", attack(some(hits)), accuracies=accuracies)
    made = result(row)
    return replace(made, settings={**made.settings, "seed": seed}, **changes)  # type: ignore[arg-type]


def stored(folder: Path, *results: AuditResult) -> History:
    for i, each in enumerate(results):
        path = folder / f"run-{i + 1}.json"
        path.write_text(to_json(each))
    return read(folder)


@pytest.fixture
def history(tmp_path: Path) -> History:
    """Four runs; the third has another seed, the fourth no accuracy."""
    return stored(tmp_path, run(0), run(4), run(8, seed=1), run(20, (), seed=1))


class Tags(HTMLParser):
    """Every tag, and every attribute, of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


def cells(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def test_every_number_is_in_the_table(history: History) -> None:
    page = cells(render(history))
    for hits in (0, 4, 8, 20):
        e = rate(hits, 40)
        assert f"{100 * (e.value or 0):g}%" in page
        assert f"{100 * (e.high or 0):.1f}".removesuffix(".0") in page
    assert "72%" in page
    assert "accuracy not measured: training runs were switched off" in page
    assert "Run 3 is not comparable with run 2 (“there”): --seed is 0 there and 1 here." in page


def test_nothing_is_drawn_across_a_break(history: History) -> None:
    series = history.series[1]
    assert [[p.run for p in piece] for piece in segments(series, "identification")] == [[1, 2], [3, 4]]
    assert [[p.run for p in piece] for piece in segments(series, "accuracy")] == [[1, 2], [3]]
    joined = replace(series, points=tuple(replace(p, follows=i > 0) for i, p in enumerate(series.points)))
    assert [[p.run for p in piece] for piece in segments(joined, "identification")] == [[1, 2, 3, 4]]
    nothing = replace(series.points[1], identification=Estimate(reason="lost"))
    gap = replace(joined, points=(joined.points[0], nothing, *joined.points[2:]))
    assert [[p.run for p in piece] for piece in segments(gap, "identification")] == [[1], [3, 4]]


def test_a_weakened_attack_is_no_unbroken_line(tmp_path: Path) -> None:
    strong, weak = run(38), run(0)
    ran = replace(strong.defenses[1].attacks[0], settings={"steps": 400})
    now = replace(weak.defenses[1].attacks[0], settings={"steps": 1})
    strong, weak = (
        replace(made, defenses=(made.defenses[0], replace(made.defenses[1], attacks=(a,))))
        for made, a in ((strong, ran), (weak, now))
    )
    history = stored(tmp_path, strong, weak)
    series = history.series[1]
    assert [[p.run for p in piece] for piece in segments(series, "identification")] == [[1], [2]]
    assert [[p.run for p in piece] for piece in segments(series, "accuracy")] == [[1, 2]]
    assert spark(history, series)[1] == "|"
    assert "run 2: not comparable with what precedes it" in describe(series)
    reason = "linkage ran with other settings (steps 400 there, 1 here)"
    assert reason in cells(render(history))
    shown = StringIO()
    summary(history, Console(file=shown, width=200))
    assert reason in shown.getvalue()


@pytest.mark.parametrize("size", SIZES)
def test_the_figure_has_a_band_for_each_piece_and_a_mark_for_each_number(history: History, size: str) -> None:
    drawing = figure(history, history.series[1], "history-1", size)
    assert drawing is not None
    assert drawing == figure(history, history.series[1], "history-1", size)
    assert drawing.description == describe(history.series[1])
    assert len(drawing.bands) == 3  # two pieces above, below one: a single run has no band
    assert len(drawing.marks) == 4 + 3  # of one run the accuracy was not measured
    assert [(m.shape, m.hollow) for m in drawing.marks[:4]] == [
        {"pass": ("dot", False), "fail": ("cross", False), "inconclusive": ("dot", True)}[p.verdict]
        for p in history.series[1].points
    ]
    heights = [m.y for m in drawing.marks[:4]]
    assert heights == sorted(heights, reverse=True)  # more is identified from run to run, and higher is less in SVG
    assert len([line for line in drawing.lines if line.kind == "chance"]) == 2  # before the third run, in both panels
    assert [w.text for w in drawing.words if w.text.startswith("limit")] == ["limit 25%"]
    whole = Box(0, 0, drawing.width, drawing.height)
    assert all(whole.holds(word.box) for word in drawing.words)
    blank = Estimate(reason="lost")
    empty = tuple(replace(p, identification=blank, accuracy=blank) for p in history.series[1].points)
    assert figure(history, replace(history.series[1], points=empty), "history-1", size) is None


def test_the_page_is_whole_by_itself(history: History) -> None:
    page = render(history)
    assert page == render(history)
    tags = Tags(page)
    assert not {"script", "link", "iframe", "img", "object"} & set(tags.tags)
    assert all(value.startswith("#") for name, value in tags.attributes if name in ("href", "xlink:href", "src"))
    assert "url(http" not in page
    assert "default-src 'none'" in page
    ids = [value for name, value in tags.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value[1:] for name, value in tags.attributes if name in ("href", "xlink:href")} <= set(ids)
    described = re.findall(r"<desc id=\"([\w-]+)-words\">(.*?)</desc>", page)
    drawn = [(f"history-{i}-{size}", describe(s)) for i, s in enumerate(history.series) for size in SIZES]
    assert [(name, unescape(words)) for name, words in described] == drawn


def test_the_words_say_what_the_figure_shows(history: History) -> None:
    words = describe(history.series[1])
    assert "run 2: 10% (2.8 to 23.7) identified, accuracy 72% (67 to 77), limit 25%, pass" in words
    assert "run 3: not comparable with what precedes it: 20% (9.1 to 35.6) identified" in words
    assert "run 4: 50% (33.8 to 66.2) identified, limit 25%" in words


def test_one_run_and_many_runs_are_drawn(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "many").mkdir()
    one = stored(tmp_path / "one", run(3))
    assert "1 run</h1>" in render(one)
    many = stored(tmp_path / "many", *[run(i % 7) for i in range(60)])
    page = render(many)
    assert page.count("fill-opacity") == 4  # two defenses, wide and narrow
    shown = StringIO()
    summary(many, Console(file=shown, width=80))
    assert "60 runs" in shown.getvalue()
    assert len(spark(many, many.series[1])) == 24


def test_third_party_text_is_only_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\x1b[2J\u202e'\"&"
    made = run(3)
    row = replace(made.defenses[1], spec=evil, attacks=(replace(made.defenses[1].attacks[0], name=evil),))
    row = replace(row, accuracy=Estimate(reason=evil), settings={evil: evil})
    bad = replace(
        made,
        target={**made.target, "name": evil, "model": evil},
        environment={**made.environment, "commit": evil, "torch": evil},
        exposure={evil: evil},
        defenses=(made.defenses[0], row),
    )
    other = replace(bad, defenses=(bad.defenses[0], replace(row, settings={evil: 1})))
    history = stored(tmp_path, made, bad, other)
    (tmp_path / "<b>x\u202e.json").write_text("{}")
    history = read(tmp_path)
    page = render(history)
    assert "script" not in Tags(page).tags
    assert "b" not in Tags(page).tags
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "&lt;script&gt;" in page
    shown = StringIO()
    summary(history, Console(file=shown, width=200, force_terminal=False))
    assert "\x1b" not in shown.getvalue()
    assert "\u202e" not in shown.getvalue()
    assert "[2J" in shown.getvalue()


def test_the_terminal_shows_each_defense_from_first_to_last(history: History) -> None:
    shown = StringIO()
    summary(history, Console(file=shown, width=100))
    text = shown.getvalue()
    levels = [LEVELS[int((hits / 40) ** 0.5 * 8)] for hits in (0, 4, 8, 20)]
    assert f"{levels[0]}{levels[1]}|{levels[2]}{levels[3]}" in text
    assert "0% → 50%" in text
    assert "run 3 is not comparable with run 2 (there): --seed is 0 there and 1 here" in text


def test_a_defense_that_is_gone_is_not_shown_as_passing(tmp_path: Path) -> None:
    gone = run(0)
    history = stored(tmp_path, gone, replace(gone, defenses=gone.defenses[:1]))
    shown = StringIO()
    summary(history, Console(file=shown, width=100))
    assert "not since run 1" in shown.getvalue()
    assert spark(history, history.series[1]).endswith("·")


def test_a_terminal_without_blocks_shows_numbers_only(history: History) -> None:
    class Plain(StringIO):
        encoding = "ascii"

    shown = Plain()
    summary(history, Console(file=shown, width=100))
    assert shown.getvalue().isascii()
    assert "50%" in shown.getvalue()
