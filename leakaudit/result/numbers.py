"""How a number is written, everywhere: a share, a point, a change, a decibel, an interval, a time, a setting."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from leakaudit.result.schema import Estimate, Value
from leakaudit.result.tasks import measure_of

MINUS, DASH = "\u2212", "—"


def percent(share: float) -> str:
    """Return a share as a percentage with at most one decimal; below 0.1 % with one digit that is not zero."""
    value = round(100 * share, 7)  # what is left of a difference of equal shares is no share
    small = 0 < abs(value) < 0.1
    text = f"{Decimal(f'{value:.1g}'):f}" if small else f"{value:.1f}".removesuffix(".0")
    return f"{_clean(text)}%"


def hits(rate: Estimate) -> str:
    """Return a rate as `3 of 16`; a dash where it was not measured."""
    return DASH if rate.value is None else f"{round(rate.value * rate.n)} of {rate.n}"


def points(share: float) -> str:
    """Return an amount of percentage points with its unit: `3.2 points`, `1 point`."""
    text = _one_decimal(share)
    return f"{text} point" if text == "1" else f"{text} points"


def shift(share: float) -> str:
    """Return a change of a share in percentage points, signed and without unit: `+3.2`, `−4`, `0`."""
    return _plus(_one_decimal(share))


def learned(value: float, measure: str = "accuracy") -> str:
    """Return how good a model is by a measure of `result.tasks`: `87.1%`, or `0.871` of one that is no share."""
    return percent(value) if measure_of(measure).percent else number(value, 3)


def called(value: float, measure: str = "accuracy") -> str:
    """Return the same with the measure's name before it: `accuracy 87.1%`, `mean AUC 0.871`."""
    return f"{measure} {learned(value, measure)}"


def lost(amount: float, measure: str = "accuracy") -> str:
    """Return a loss of a measure with its name: `3 points of accuracy`, `0.03 mean AUC`."""
    if measure_of(measure).percent:
        return f"{points(amount)} of {measure}"
    return f"{_fewest(amount)} {measure}"


def around(estimate: Estimate, measure: str = "accuracy") -> str:
    """Return the larger half of a measure's interval, as `±1.3` points or `±0.013`; empty where there is none."""
    if measure_of(measure).percent or estimate.value is None or estimate.low is None or estimate.high is None:
        return margin(estimate)
    return f"±{number(max(estimate.value - estimate.low, estimate.high - estimate.value), 3)}"


def decibels(value: float) -> str:
    """Return `23.4 dB`."""
    return f"{number(value, 1)} dB"


def number(value: float, digits: int) -> str:
    """Return a number with a fixed count of decimals and a real minus sign; never a negative zero."""
    return _clean(f"{value:.{digits}f}")


def signed(value: float, digits: int) -> str:
    """Return a change with a fixed count of decimals and its sign; zero has none."""
    return _plus(number(value, digits))


def significant(value: float, digits: int = 3) -> str:
    """Return a number to so many significant digits, as a p-value, a loss or a norm is told."""
    return _clean(f"{value:.{digits}g}")


def interval(estimate: Estimate, digits: int | None = None) -> str:
    """Return `low to high`, in percent without its sign unless `digits` are given; empty where there is no interval."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return ""
    if digits is None:
        return f"{percent(estimate.low)[:-1]} to {percent(estimate.high)[:-1]}"
    return f"{number(estimate.low, digits)} to {number(estimate.high, digits)}"


def margin(estimate: Estimate) -> str:
    """Return the larger half of the interval in percentage points, as `±1.3`; empty where there is none."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return ""
    return f"±{_one_decimal(max(estimate.value - estimate.low, estimate.high - estimate.value))}"


def clock(seconds: float) -> str:
    """Return a time that runs, as 0:07, 12:40 or 3:02:05."""
    whole = max(0, round(seconds))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def seconds(value: float) -> str:
    """Return what something took: `12.3 s`."""
    return f"{number(value, 1)} s"


def about(seconds: float) -> str:
    """Return a time as people say it: `8 s`, `4 min`, `2.5 h`."""
    if seconds < 99.5:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 99.5 * 60 else f"{number(seconds / 3600, 1)} h"


def plain(value: Value) -> str:
    """Return a setting or a fact as text."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def pairs(values: Mapping[str, Value]) -> str:
    """Return `a = 1, b = 2` by name, so that a result read back from its file prints the same."""
    return ", ".join(f"{k} = {plain(v)}" for k, v in sorted(values.items())) or DASH


def _fewest(amount: float) -> str:
    """Return an amount with as few of three decimals as say it."""
    text = f"{amount:.3f}"
    return _clean(text.rstrip("0").rstrip(".") if "." in text else text)


def _one_decimal(share: float) -> str:
    return _clean(f"{100 * share:.1f}".removesuffix(".0"))


def _clean(text: str) -> str:
    """Return a number's digits with a real minus sign, and without one where they are all zero."""
    return (text[1:] if text.startswith("-") and float(text) == 0 else text).replace("-", MINUS)


def _plus(text: str) -> str:
    return text if text.startswith(MINUS) or float(text) == 0 else f"+{text}"
