"""What changed between two comparable results: per defense, on the same records, by paired tests.

Leakage is compared as the audit judges it, by the worst attack: a record counts as identified where any of the attacks
scored on both sides identified it, and its picture as good as the best of theirs. Victims are the independent units;
records of one batch are averaged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from leakaudit.judge.facts import facts_of
from leakaudit.result.rules import SKIPPED, resolution
from leakaudit.result.schema import AttackResult, AuditResult, DefenseResult, Estimate, RecordScore
from leakaudit.result.specs import names
from leakaudit.result.tasks import MeasureName, measure_of
from leakaudit.stats.intervals import mean, median_of_clients, rate_of_clients
from leakaudit.stats.paired import change_of_means, change_of_median, change_of_rate, falls, pairs_needed, rises

LEAST_PSNR = 1.0  # dB: tuning and rounding move a picture by less without anybody seeing more in it
LEAST_ACCURACY = 0.01

Score = Callable[[RecordScore], float | None]


@dataclass(frozen=True)
class Change:
    """One metric of one defense on both sides. `p` is that of no loss: small where privacy or accuracy was lost."""

    metric: str  # a score that is compared: identification | bound | psnr | accuracy
    defense: str  # as this result spells it
    was: str  # as the baseline spells it
    attacks: tuple[str, ...]  # compared, those scored on both sides
    before: Estimate
    after: Estimate
    change: Estimate  # after − before, its interval two-sided
    p: float | None  # one-sided, None where it cannot be tested
    lost: tuple[str, ...] = ()  # attacks that one side scored and the other did not (of new ones: skipped), and why
    needed: int | None = None  # records that would settle whether identification rose, if the shares stay
    rose: int = 0  # records that leak more than before, and less; of pictures, victims by more than `LEAST_PSNR`
    fell: int = 0
    reason: str | None = None  # why it cannot be tested
    runs: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())  # accuracies on both sides
    resolution: float = 0.0  # by how much one test record moves them
    measure: MeasureName = "accuracy"  # what they are of


def paired_defenses(before: AuditResult, after: AuditResult) -> list[tuple[DefenseResult, DefenseResult]]:
    """Return the defenses of both sides: those of equal spec, then those whose names occur once more on either side.

    So a changed setting (`gaussian:std=0.01` to `gaussian:std=0.001`) is a change of one defense, not another one.
    """
    there, here = list(before.defenses), list(after.defenses)
    pairs = [(a, b) for b in here for a in there if a.spec == b.spec]
    there = [a for a in there if a.spec not in {pair[0].spec for pair in pairs}]
    here = [b for b in here if b.spec not in {pair[1].spec for pair in pairs}]
    for b in here:
        same = [a for a in there if names(a.spec) == names(b.spec)]
        if len(same) == 1 and sum(names(other.spec) == names(b.spec) for other in here) == 1:
            pairs.append((same[0], b))
    place = {d.spec: i for i, d in enumerate(after.defenses)}
    return sorted(pairs, key=lambda pair: place[pair[1].spec])


def changes(before: AuditResult, after: AuditResult, detect: float | None = None) -> tuple[Change, ...]:
    """Return every metric of every defense on both sides that was measured on either. The results must be comparable.

    `detect` is the rise of identification that must be ruled out, for `needed`.
    """
    guess = max((b.psnr.value for r in (before, after) for b in r.baselines if b.psnr.value is not None), default=None)
    found = []
    for was, now in paired_defenses(before, after):
        for handed, metric in ((False, "identification"), (True, "bound")):
            if any((a.role == "bound") is handed and a.kind != "labels" for a in (*was.attacks, *now.attacks)):
                found.append(_identified(metric, was, now, handed, detect))
        if any(a.psnr.value is not None for a in (*was.attacks, *now.attacks)):
            found.append(_pictured(was, now, guess))
        if was.accuracies or now.accuracies:
            found.append(_accuracy(was, now, before, after))
    return tuple(found)


def _identified(metric: str, was: DefenseResult, now: DefenseResult, handed: bool, detect: float | None) -> Change:
    pairs, lost = _common(was, now, lambda a: (a.role == "bound") is handed and a.kind != "labels", _identifies)
    before, after = _worst(pairs, _identifies)
    batches = [[b - a for a, b in zip(before[v], after[v], strict=True)] for v in after]
    per_victim = [math.fsum(moved) / len(moved) for moved in batches]
    up, down = (math.fsum(moved.count(sign) / len(moved) for moved in batches) for sign in (1.0, -1.0))
    n, batch = len(batches), max(map(len, batches), default=1)
    spread = change_of_rate(up, down, n)
    value = math.fsum(per_victim) / n if n else None
    needed = None if detect is None else pairs_needed(up, down, n, detect)
    return Change(
        metric=metric,
        defense=now.spec,
        was=was.spec,
        attacks=tuple(a.name for a, _ in pairs),
        before=rate_of_clients([[x > 0.5 for x in v] for v in before.values()]),
        after=rate_of_clients([[x > 0.5 for x in v] for v in after.values()]),
        change=Estimate(value, spread.low, spread.high, n, spread.reason),
        p=rises(per_victim) if n else None,
        lost=lost,
        needed=None if needed is None else needed * batch,
        rose=sum(moved.count(1.0) for moved in batches),
        fell=sum(moved.count(-1.0) for moved in batches),
        reason=None if n else "no attack was scored on both sides",
    )


def _pictured(was: DefenseResult, now: DefenseResult, guess: float | None) -> Change:
    """Compare the best picture of each record, by PSNR. What is worse than a guess without an update counts as one."""
    floor = -math.inf if guess is None else guess

    def score(record: RecordScore) -> float | None:
        return None if record.psnr is None else max(record.psnr, floor)

    pairs, lost = _common(was, now, lambda a: a.role != "bound", score, LEAST_PSNR)
    before, after = _worst(pairs, score)
    per_victim = [(math.fsum(after[v]) - math.fsum(before[v])) / len(after[v]) for v in after]
    missing = None if per_victim else "no attack drew a picture on both sides"
    return Change(
        metric="psnr",
        defense=now.spec,
        was=was.spec,
        attacks=tuple(a.name for a, _ in pairs),
        before=median_of_clients(before.values(), missing),
        after=median_of_clients(after.values(), missing),
        change=change_of_median(per_victim),
        p=rises([d - LEAST_PSNR for d in per_victim]) if per_victim else None,
        lost=lost,
        rose=sum(d > LEAST_PSNR for d in per_victim),
        fell=sum(d < -LEAST_PSNR for d in per_victim),
        reason=missing,
    )


def _accuracy(was: DefenseResult, now: DefenseResult, before: AuditResult, after: AuditResult) -> Change:
    least, within = max(resolution(before), resolution(after)), (measure_of(after.measure).least, 1.0)
    # As many seeds as both have: with unequal numbers no test of so few keeps its level.
    common = min(len(was.accuracies), len(now.accuracies)) or None
    first, second = was.accuracies[:common], now.accuracies[:common]
    enough = min(len(first), len(second)) >= 3 or (first == second and len(first) > 0)
    moved = change_of_means(first, second, least)
    if first == second and first:  # the same runs once more: nothing changed
        moved = Estimate(0.0, 0.0, 0.0, len(first))
    return Change(
        metric="accuracy",
        defense=now.spec,
        was=was.spec,
        attacks=(),
        before=mean(first, within, "it was not measured"),
        after=mean(second, within, "it was not measured"),
        change=moved,
        p=falls(first, second, LEAST_ACCURACY, least) if enough else None,
        reason=None if enough else "a side has fewer than 3 seeds",
        runs=(first, second),
        resolution=least,
        measure=after.measure,
    )


def _identifies(record: RecordScore) -> float | None:
    return None if record.identified is None else float(record.identified)


def unlike_settings(before: AttackResult, after: AttackResult) -> str:
    """Return in words how the settings of an attack differ, empty where they do not.

    What it tuned may differ; whether it tuned, and what it was asked for before, may not. An older result does not say
    what it was asked for.
    """
    free = before.tuned.keys() | after.tuned.keys()
    parts = [
        f"{key} {before.settings.get(key, 'absent')} there, {after.settings.get(key, 'absent')} here"
        for key in sorted(before.settings.keys() | after.settings.keys())
        if key not in free and before.settings.get(key) != after.settings.get(key)
    ]
    if bool(before.tuned) != bool(after.tuned):
        parts.append("tuned there, not here" if before.tuned else "tuned here, not there")
    parts += [
        f"{key} asked for {before.asked[key]} there, {after.asked[key]} here"
        for key in sorted(before.asked.keys() & after.asked.keys())
        if before.asked[key] != after.asked[key]
    ]
    return ", ".join(parts)


def _common(
    was: DefenseResult, now: DefenseResult, wanted: Callable[[AttackResult], bool], score: Score, least: float = 0.0
) -> tuple[list[tuple[AttackResult, AttackResult]], tuple[str, ...]]:
    """Return the attacks scored on both sides, and those that only one side can speak of, wholly or on some victims.

    This result lost them; or the baseline skipped them, and does not know what they find here beyond all that it knew,
    by more than `least`. What cannot be run on the model any more is not lost: it leaks nothing by this attack.
    """
    here = {a.name: a for a in now.attacks}
    best = _highest(filter(wanted, was.attacks), score)
    pairs, lost, skipped, unknown = [], [], list[AttackResult](), list[AttackResult]()
    for a in filter(wanted, was.attacks):
        b = here.get(a.name)
        had = _scored_victims(a, score)
        if a.settled_by and b is not None and _beyond(best, b, score, least):
            unknown.append(a)
        if not had:
            continue
        if b is not None and b.settled_by:
            skipped.append(b)
            continue
        other = unlike_settings(a, b) if b is not None else ""
        if other:
            lost.append(f"{a.name} ran with other settings ({other})")
            continue
        has = _scored_victims(b, score) if b is not None else frozenset()
        if b is not None and has:
            pairs.append((a, b))
        if had - has and not (b is not None and facts_of(b).inapplicable):
            why = "it was not run" if b is None else (b.reason or b.identification.reason or "no reason was recorded")
            lost.append(f"{a.name} on {len(had - has)} of {len(had)} victims ({why.rstrip('.')})")
    if skipped:
        lost.append(f"{', '.join(a.name for a in skipped)} ({SKIPPED}, since {skipped[0].reason})")
    if unknown:
        lost.append(f"{', '.join(a.name for a in unknown)} ({SKIPPED}, there, since {unknown[0].reason})")
    return pairs, tuple(lost)


def _highest(attacks: Iterable[AttackResult], score: Score) -> dict[tuple[int, int], float]:
    """Return each record's highest score over some attacks."""
    found: dict[tuple[int, int], float] = {}
    for attack in attacks:
        for key, value in _by_record(attack.records, score).items():
            found[key] = max(found.get(key, -math.inf), value)
    return found


def _beyond(best: dict[tuple[int, int], float], attack: AttackResult, score: Score, least: float) -> bool:
    """Return whether an attack scores any record higher than the `best` known, by more than `least`."""
    scored = _by_record(attack.records, score).items()
    return any(value > best.get(key, -math.inf) + least for key, value in scored)


def _scored_victims(attack: AttackResult, score: Score) -> frozenset[int]:
    """Return the victims with a score that the time budget did not cut short."""
    return frozenset(r.victim for r in attack.records if score(r) is not None and r.status != "budget")


def _worst(
    pairs: Iterable[tuple[AttackResult, AttackResult]], score: Score
) -> tuple[dict[int, list[float]], dict[int, list[float]]]:
    """Return, by victim, each record's highest score over the attacks that scored it on both sides."""
    highest: dict[tuple[int, int], tuple[float, float]] = {}
    for was, now in pairs:
        before, after = (_by_record([r for r in side.records if r.status != "budget"], score) for side in (was, now))
        for key in before.keys() & after.keys():
            most = highest.get(key, (-math.inf, -math.inf))
            highest[key] = max(most[0], before[key]), max(most[1], after[key])
    first: dict[int, list[float]] = {}
    second: dict[int, list[float]] = {}
    for (victim, _), (was_, now_) in sorted(highest.items()):
        first.setdefault(victim, []).append(was_)
        second.setdefault(victim, []).append(now_)
    return first, second


def _by_record(records: Sequence[RecordScore], score: Score) -> dict[tuple[int, int], float]:
    scored = (((r.victim, r.record), score(r)) for r in records)
    return {key: value for key, value in scored if value is not None}
