"""How a number is written, everywhere: a share, a point, an interval, a setting."""

from __future__ import annotations

from collections.abc import Mapping

from leakaudit.result.schema import Estimate, Value

MINUS, DASH = "\u2212", "—"


def percent(value: float) -> str:
    """Return a share in [0, 1] as a percentage with at most one decimal; more only below 0.1 %."""
    share = 100 * value
    text = f"{share:.1g}" if 0 < abs(share) < 0.1 else f"{share:.1f}".removesuffix(".0")
    return f"{text}%".replace("-", MINUS)


def number(value: float, digits: int) -> str:
    """Return a number with a fixed count of decimals and a real minus sign; never a negative zero."""
    text = f"{value:.{digits}f}"
    return (text[1:] if float(text) == 0 and text.startswith("-") else text).replace("-", MINUS)


def interval(estimate: Estimate, digits: int | None = None) -> str:
    """Return `low–high`, in percent without its sign unless `digits` are given; empty where there is no interval."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return ""
    if digits is None:
        return f"{percent(estimate.low)[:-1]}–{percent(estimate.high)[:-1]}"
    return f"{number(estimate.low, digits)} to {number(estimate.high, digits)}"


def margin(estimate: Estimate) -> str:
    """Return the larger half of the interval in percentage points, as `±1.3`; empty where there is none."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return ""
    return f"±{100 * max(estimate.value - estimate.low, estimate.high - estimate.value):.1f}"


def points(share: float) -> str:
    """Return a difference of shares in percentage points, signed: `−3.2`."""
    text = number(100 * share, 1)
    return text if text.startswith(MINUS) or float(text) == 0 else f"+{text}"


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
