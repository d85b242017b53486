"""A change since the baseline, judged: is it a loss that chance does not explain, and could one have been missed?"""

from __future__ import annotations

import math

from leakaudit.compare.changes import LEAST_PSNR, Change
from leakaudit.gate.assertions import RegressionRule
from leakaudit.result.outcome import Check
from leakaudit.result.schema import Estimate, Value, Verdict
from leakaudit.stats.paired import runs_needed

ALPHA = 0.01  # that any comparison of a build fails although nothing changed: corrected for their number
SEEDS = 50  # more training runs than this are not asked for


def judge_change(change: Change, rule: RegressionRule, p: float | None) -> Check:
    """Judge one change by its p-value, already adjusted for the number of comparisons of the gate.

    Fail: a loss beyond what is always allowed (1 dB, 1 point of accuracy), at `ALPHA`. Inconclusive: it cannot be
    tested, an attack was lost that the baseline had, or a loss above `rule.detect` is not ruled out by the interval.
    """
    name = f"regression-{change.metric}"
    status: Verdict
    if p is not None and p <= ALPHA:
        status, message = "fail", f"{change.defense}: {_moved(change)}; chance alone would show as much {_rarely(p)}."
        mend = "Find the change that caused it; if it is meant, store this result as the new baseline."
    elif change.reason is not None or p is None:
        status, message = "inconclusive", f"{change.defense}: {_title(change)} cannot be compared: {change.reason}."
        mend = "Scan again so that it is measured on both sides."
    elif change.lost:
        lost = "; ".join(change.lost)
        status, message = "inconclusive", f"{change.defense}: the baseline has scores that this result lacks: {lost}."
        mend = "Scan again so that these attacks run to their end."
    elif rule.detect is not None and _possible_loss(change) > rule.detect:
        status = "inconclusive"
        message = (
            f"{change.defense}: {_moved(change)}, which chance explains, but a loss of up to "
            f"{_points(_possible_loss(change))} points is not ruled out (asked: {_points(rule.detect)})."
        )
        mend = _settles(change, rule.detect)
    else:
        status, message, mend = "pass", f"{change.defense}: {_moved(change)}.", ""
    evidence: dict[str, Value] = {"p": change.p, "p_corrected": p, "rose": change.rose, "fell": change.fell}
    if change.before.value is not None and change.after.value is not None:
        evidence |= {"before": change.before.value, "after": change.after.value}
    if change.attacks:
        evidence["attacks"] = ", ".join(change.attacks)
    return Check(
        id=f"{name}/{change.defense}",
        rule=name,
        level=rule.level,
        defense=change.defense,
        attack="",
        status=status,
        message=message,
        mend=mend,
        measured=change.change,
        threshold=rule.detect,
        direction="min" if change.metric == "accuracy" else "max",
        evidence=evidence,
    )


def _title(change: Change) -> str:
    return {
        "identification": "identification by the worst attack",
        "bound": "identification by an attacker handed the replaced records",
        "psnr": "the closest pictures",
        "accuracy": "accuracy",
    }[change.metric]


def _moved(change: Change) -> str:
    before, after, shift = change.before.value or 0.0, change.after.value or 0.0, change.change.value or 0.0
    if change.metric == "psnr":
        moved = f"in {change.rose} of {change.change.n} victims closer by more than {LEAST_PSNR:g} dB"
        return f"{_title(change)} went from {before:.1f} to {after:.1f} dB in the median, {moved}"
    if change.metric == "accuracy":
        interval = _interval(change.change)
        return f"accuracy went from {100 * before:.1f}% to {100 * after:.1f}% ({_signed(shift)} points{interval})"
    n = change.before.n
    return (
        f"{_title(change)} went from {round(before * n)} to {round(after * n)} of {n} records "
        f"({change.rose} newly, {change.fell} no more)"
    )


def _rarely(p: float) -> str:
    """Return a p-value in words, to two digits."""
    if p <= 1e-6:
        return "less than once in a million times"
    times = 1 / p
    digits = 10 ** max(0, math.floor(math.log10(times)) - 1)
    return f"about once in {math.floor(times / digits) * digits:,} times"


def _interval(change: Estimate) -> str:
    if change.low is None or change.high is None:
        return ""
    return f"; {_signed(change.low)} to {_signed(change.high)}"


def _possible_loss(change: Change) -> float:
    """Return the upper bound of the loss: of privacy, or of accuracy."""
    bound = change.change.high if change.metric != "accuracy" else change.change.low
    if bound is None:
        return math.inf
    return bound if change.metric != "accuracy" else -bound


def _settles(change: Change, detect: float) -> str:
    if change.metric != "accuracy":
        if change.needed is None:
            return "The rise itself is above what must be ruled out: more records would show it as a loss, or as none."
        return f"If the shares stay, about {change.needed} records would settle it (--records {change.needed})."
    loss = -(change.change.value or 0.0)
    if loss >= detect:
        return "The loss itself is above what must be ruled out: more seeds would show it as a loss, or as none."
    seeds = runs_needed(*change.runs, detect - loss, change.resolution, SEEDS)
    if seeds is None:
        return f"More than {SEEDS} seeds would be needed: ask for less in [tool.leakaudit.assert.regression]."
    return f"About {seeds} seeds on either side would settle it (--seeds {seeds})."


def _points(share: float) -> str:
    return f"{100 * share:.1f}" if math.isfinite(share) else "any number of"


def _signed(share: float) -> str:
    return f"{100 * share:+.1f}"
