"""Who lies above obscure's frontier is said by the program; the figure is drawn from the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.frontierplot import draw
from benchmarks.rows import Row
from benchmarks.standing import check, frontier, points, standings
from benchmarks.tables import measured_by, report


def measured(spec: str, accuracies: tuple[float, ...], hits: int, **more: Any) -> list[Row]:
    """Return the attack of a defense on 64 records, and that it was the worst."""
    values: dict[str, Any] = {
        "dataset": "mnist", "setting": "private-only", "defense": spec.partition(":")[0], "strength": "", "spec": spec,
        "accuracy": sum(accuracies) / 3, "accuracy_low": min(accuracies), "accuracy_high": max(accuracies),
        "accuracies": list(accuracies), "tested": 1000, "attack": "linkage", "views": 1, "identification": hits / 64,
        "identification_low": 0.0, "identification_high": 1.0, "chance": 0.01, "records": 64, "code": "c", **more,
    }  # fmt: skip
    return [Row(kind="attack", **values), Row(kind="worst", **values), Row(kind="selected", **values)]


@pytest.fixture
def rows() -> list[Row]:
    return [
        *measured("none", (0.80, 0.81, 0.82), 64),
        *measured("obscure", (0.70, 0.71, 0.72), 1),
        *measured("obscure:rate=1.6", (0.75, 0.76, 0.77), 30),
        *measured("obscure:rate=4", (0.74, 0.75, 0.76), 50),
        *measured("better", (0.73, 0.745, 0.75), 1),
        *measured("worse", (0.60, 0.615, 0.62), 0),
        *measured("level", (0.69, 0.73, 0.71), 1),
        *measured("leaky", (0.74, 0.75, 0.765), 40),
    ]


def test_the_frontier_is_of_the_points_that_none_other_beats(rows: list[Row]) -> None:
    found = points(rows, "mnist")
    assert [p.worst.spec for p in found if p.at_chance] == ["obscure", "better", "worse", "level"]
    assert [p.worst.spec for p in frontier(found)] == ["obscure", "obscure:rate=1.6"]


def test_each_defense_stands_beside_what_leaks_no_more_seed_by_seed(rows: list[Row]) -> None:
    said = {s.point.worst.spec: (s.beside.worst.spec, s.verdict) for s in standings(rows, "mnist")}
    assert said == {
        "none": ("obscure:rate=1.6", "above"),
        "better": ("obscure", "above"),
        "worse": ("obscure", "below"),
        "level": ("obscure", "not told apart"),
        "leaky": ("obscure:rate=1.6", "below"),
    }
    text = check(rows, "mnist")
    assert "above obscure's frontier on mnist: better by +3.2" in text.splitlines()[0]
    assert "not told apart from it: level" in text.splitlines()[0]
    assert check(rows, "lfw") == ""


def test_many_attacks_that_guess_are_no_leak_and_one_that_finds_is() -> None:
    lucky = measured("x", (0.5, 0.5, 0.5), 3)
    assert not points(lucky, "mnist")[0].at_chance  # three of 64 at 1 %
    many = [lucky[0]] + [row for _ in range(9) for row in measured("x", (0.5, 0.5, 0.5), 0)[:1]] + lucky[1:]
    assert points(many, "mnist")[0].at_chance  # the best of ten that guess


def test_rows_of_other_code_are_marked(rows: list[Row]) -> None:
    old = measured("old", (0.5, 0.5, 0.6), 0, code="b")
    text = report([*old, *rows], "mnist", "private-only")
    assert "| old* " in text
    assert "| obscure " in text
    assert "1 by code b on cpu" in measured_by([*old, *rows])
    assert "*: not by code c" in measured_by([*old, *rows])
    assert "*" not in measured_by(rows)


def test_the_figure_shows_panels_frontier_and_chance(rows: list[Row], tmp_path: Path) -> None:
    draw([*rows, *measured("none", (0.5, 0.6, 0.7), 3, dataset="lfw")], tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text(encoding="utf-8")
    for shown in ("MNIST", "LFW faces", "frontier of obscure", "chance (filled", "better"):
        assert shown in text
    draw([], tmp_path / "none.svg")
    assert not (tmp_path / "none.svg").exists()
