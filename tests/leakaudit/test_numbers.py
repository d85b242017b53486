"""One way to write a number: by property, and no other way beside it."""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from leakaudit.result import numbers
from leakaudit.result.schema import Estimate

ROOT = Path(__file__).resolve().parents[2]
WINGS = ("leakaudit/judge", "leakaudit/gate", "leakaudit/compare", "leakaudit/watch", "leakaudit/cli", "reports")
FACES = ("leakaudit/testing.py", "leakaudit/pytest_plugin.py", "leakaudit/api.py")
# What is written for a program to read, or back, and so not as people read it.
EXCEPTIONS = {
    "leakaudit/gate/initialise.py": {":.4g"},  # thresholds in TOML
}


def random_shares(least: float = 0.0) -> list[float]:
    rng = random.Random(5)
    drawn = [rng.uniform(least, 1.0) for _ in range(500)] + [10 ** rng.uniform(-6, 0) for _ in range(500)]
    return [*drawn, 0.0, 0.000999, 0.001, 0.0995, 0.9994, 0.9996, 1.0]


def read(text: str) -> float:
    return float(text.removesuffix("%").removesuffix(" points").removesuffix(" point").replace(numbers.MINUS, "-"))


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0%"),
        (-0.0, "0%"),
        (1.0, "100%"),
        (0.938, "93.8%"),
        (0.5, "50%"),
        (0.0009, "0.09%"),
        (1.2e-6, "0.0001%"),
        (0.3 - 0.2 - 0.1, "0%"),
        (0.9996, "100%"),
        (-0.02, "−2%"),
    ],
)
def test_percentages(share: float, text: str) -> None:
    assert numbers.percent(share) == text


def test_points_say_their_unit_and_changes_their_sign() -> None:
    assert [numbers.shift(v) for v in (-0.0321, 0.004, 0.05, 0.0, -0.0001)] == ["−3.2", "+0.4", "+5", "0", "0"]
    told = ["3.2 points", "1 point", "−1.5 points", "0 points"]
    assert [numbers.points(v) for v in (0.0321, 0.01, -0.015, -0.0001)] == told
    assert [numbers.signed(v, 1) for v in (1.25, -3.04, -0.04)] == ["+1.2", "−3.0", "0.0"]


@pytest.mark.parametrize("write", [numbers.percent, numbers.points, numbers.shift])
def test_shares_are_written_in_order_and_can_be_read_back(write: Callable[[float], str]) -> None:
    shares = sorted({*random_shares(), *(-s for s in random_shares())})
    values = [read(write(share)) for share in shares]
    assert all(a <= b for a, b in pairwise(values))
    for share, value in zip(shares, values, strict=True):
        assert abs(value - 100 * share) <= 0.05 + 1e-9, (share, value)


def test_a_small_share_is_not_none() -> None:
    small = [s for s in random_shares() if 0 < s < 0.001]
    assert len(small) > 50
    assert all(read(numbers.percent(s)) > 0 for s in small)


def test_no_number_is_a_negative_zero_or_has_two_kinds_of_minus() -> None:
    ways: list[Callable[[float], str]] = [
        numbers.percent,
        numbers.points,
        numbers.shift,
        numbers.decibels,
        lambda v: numbers.number(v, 0),
        lambda v: numbers.number(v, 2),
        lambda v: numbers.signed(v, 1),
        numbers.significant,
        lambda v: numbers.interval(Estimate(v, v, v)),
        lambda v: numbers.interval(Estimate(v, v, v), 2),
    ]
    for value in (0.0, -0.0, -1e-12, 1e-12, -0.0004, -0.049, *(-s for s in random_shares())):
        for way in ways:
            text = way(value)
            assert "-" not in text, text
            assert not re.search(rf"[{numbers.MINUS}+]0(\.0*)?(?![\d.])", text), text
            assert f"{numbers.MINUS}{numbers.MINUS}" not in text


def test_an_interval_is_written_only_where_there_is_one() -> None:
    assert numbers.interval(Estimate(0.25, 0.0727, 0.5238, 16)) == "7.3 to 52.4"
    assert numbers.interval(Estimate(-0.1, -0.25, 0.05, 3)) == "−25 to 5"
    assert numbers.interval(Estimate(12.0, 10.04, 13.96, 9), 1) == "10.0 to 14.0"
    assert numbers.interval(Estimate(0.25)) == numbers.interval(Estimate()) == numbers.margin(Estimate(0.25)) == ""
    assert numbers.margin(Estimate(0.7, 0.66, 0.71, 3)) == "±4"


@pytest.mark.parametrize("folder", [*WINGS, *FACES])
def test_nothing_else_decides_how_a_number_is_written(folder: str) -> None:
    files = sorted((ROOT / folder).glob("*.py")) if (ROOT / folder).is_dir() else [ROOT / folder]
    assert files
    for file in files:
        name = file.relative_to(ROOT).as_posix()
        found = {spec: line for line, spec in decided(ast.parse(file.read_text(encoding="utf-8")))}
        wrong = {spec: line for spec, line in found.items() if spec not in EXCEPTIONS.get(name, set())}
        assert not wrong, f"{name} writes numbers by itself: {wrong}; leakaudit.result.numbers does that"
        assert EXCEPTIONS.get(name, set()) <= set(found), f"{name} needs no exception any more"


def decided(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the line and what it decides: decimals in a format, a share times a hundred, a percent or dB behind it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FormattedValue):
            spec = "" if node.format_spec is None else ast.unparse(node.format_spec)[2:-1]
            if re.search(r"\.\d*\{?.*[fgeE%]|%", spec):
                yield node.lineno, f":{spec}"
            if any(isinstance(n, ast.Constant) and n.value == 100 for n in ast.walk(node.value)):
                yield node.lineno, "times a hundred"
        elif isinstance(node, ast.JoinedStr):
            for before, after in pairwise(node.values):
                unit = isinstance(after, ast.Constant) and re.match(r" ?%| dB\b| points?\b", str(after.value))
                if isinstance(before, ast.FormattedValue) and unit and not _written(before.value):
                    yield node.lineno, f"a unit of its own: {ast.unparse(before.value)}{after.value}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "format":
            yield node.lineno, "format()"
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod) and _is_text(node.left):
            yield node.lineno, "% on a text"


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _written(value: ast.expr) -> bool:
    """Return whether a value is text that `numbers` wrote: an interval in percent, a change in points."""
    called = value.func if isinstance(value, ast.Call) else None
    name = called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
    return name in ("interval", "shift")


def test_the_guard_sees_what_it_is_for() -> None:
    wrong = (
        'f"{x:.1f}"',
        'f"{100 * x:g}%"',
        'f"{x:.0%}"',
        'f"{x} dB"',
        'f"{x:+.1f}"',
        'format(x, ".1f")',
        '"%.1f" % x',
    )
    for source in (*wrong, 'f"{x:{w}.{d}f}"', 'f"{x}%"'):
        assert list(decided(ast.parse(source))), source
    for source in ('f"{x:,}"', 'f"{name:<7}"', 'f"{interval(e)}%"', 'f"{percent(x)}"', "x % 7", 'f"{x:g}"'):
        assert not list(decided(ast.parse(source))), source
