"""A change since the baseline, judged: is it a loss that chance does not explain, and could one have been missed?"""

from __future__ import annotations

import math

from leakaudit.compare.changes import LEAST_PSNR, Change
from leakaudit.errors import Setting
from leakaudit.gate.assertions import RegressionRule
from leakaudit.judge.findings import mend
from leakaudit.result.numbers import decibels, lost, points
from leakaudit.result.outcome import Check
from leakaudit.result.rules import SKIPPED
from leakaudit.result.schema import Mend, Value, Verdict
from leakaudit.result.scores import by_measure
from leakaudit.stats.paired import runs_needed

ALPHA = 0.01  # that any comparison of a build fails although nothing changed: corrected for their number
SEEDS = 50  # more training runs than this are not asked for


def judge_change(change: Change, rule: RegressionRule, p: float | None) -> Check:
    """Judge one change by its p-value, already adjusted for the number of comparisons of the gate.

    Fail: a loss beyond what is always allowed (1 dB, 1 point of accuracy), at `ALPHA`. Inconclusive: it cannot be
    tested, an attack was lost that the baseline had, or a loss above `rule.detect` is not ruled out by the interval.
    """
    name = f"regression-{change.metric}"
    status: Verdict = "inconclusive"
    todo: Mend | None
    if p is not None and p <= ALPHA:
        status, message = "fail", f"{change.defense}: {_moved(change)}; chance alone would show as much {_rarely(p)}."
        todo = Mend("find-change")
    elif change.reason is not None or p is None:
        message = f"{change.defense}: {_title(change)} cannot be compared: {change.reason}."
        todo = Mend("measure-both")
    elif change.lost:
        message = f"{change.defense}: not all scores stand on both sides: {'; '.join(change.lost)}."
        skipped = any(f"({SKIPPED}, " in told for told in change.lost)
        todo = Mend("attacks-skipped" if skipped else "run-to-end")
    elif rule.detect is not None and _possible_loss(change) > rule.detect:
        message = (
            f"{change.defense}: {_moved(change)}, which chance explains, but a loss of up to "
            f"{_lost(change, _possible_loss(change))} is not ruled out (asked: {_lost(change, rule.detect)})."
        )
        todo = _settles(change, rule.detect)
    else:
        status, message, todo = "pass", f"{change.defense}: {_moved(change)}.", None
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
        mend=mend(todo) if todo else "",
        measured=change.change,
        threshold=rule.detect,
        direction="min" if change.metric == "accuracy" else "max",
        evidence=evidence,
        todo=todo,
        measure=change.measure,
    )


def _title(change: Change) -> str:
    return by_measure(change.metric, change.measure).compared


def _moved(change: Change) -> str:
    before, after, by = change.before.value or 0.0, change.after.value or 0.0, change.change.value or 0.0
    if change.metric == "psnr":
        moved = f"in {change.rose} of {change.change.n} victims closer by more than {decibels(LEAST_PSNR)}"
        return f"{_title(change)} went from {decibels(before)} to {decibels(after)} in the median, {moved}"
    if change.metric == "accuracy":
        score = by_measure(change.metric, change.measure)
        ends, unit = score.shift_ends(change.change), " points" if score.share else ""
        went = f"{_title(change)} went from {score.write(before)} to {score.write(after)}"
        return f"{went} ({score.shift(by)}{unit}{f'; {ends}' if ends else ''})"
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


def _possible_loss(change: Change) -> float:
    """Return the upper bound of the loss: of privacy, or of accuracy."""
    bound = change.change.high if change.metric != "accuracy" else change.change.low
    if bound is None:
        return math.inf
    return bound if change.metric != "accuracy" else -bound


def _settles(change: Change, detect: float) -> Mend:
    """Return what would rule the loss out, or show it."""
    if change.metric != "accuracy":
        if change.needed is None:
            return Mend("rise-too-large")
        return Mend("records-rule-out", (Setting("records", change.needed),))
    loss = -(change.change.value or 0.0)
    if loss >= detect:
        return Mend("loss-too-large")
    seeds = runs_needed(*change.runs, detect - loss, change.resolution, SEEDS)
    if seeds is None:
        return Mend("ask-for-less", (Setting("seeds", SEEDS),))
    return Mend("seeds-rule-out", (Setting("seeds", seeds),))


def _lost(change: Change, amount: float) -> str:
    if by_measure(change.metric, change.measure).share:
        return points(amount) if math.isfinite(amount) else "any number of points"
    return lost(amount, change.measure) if math.isfinite(amount) else f"any amount of {change.measure}"
