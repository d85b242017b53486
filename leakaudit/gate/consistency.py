"""Whether a stored result follows from its own numbers, and an outcome from its own checks.

Nothing here is proof of origin: whoever changes every number that hangs together leaves no doubt. What is found is a
verdict better than the numbers beside it, or a number that its records do not give.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from glob import escape
from operator import attrgetter
from typing import TypeVar

from leakaudit.gate.assertions import Rule
from leakaudit.gate.claims import claims, current
from leakaudit.gate.decision import conclude
from leakaudit.gate.records import contradictions
from leakaudit.gate.thresholds import judge_rule
from leakaudit.judge.exposed import exposed
from leakaudit.judge.verdict import overall, rejudge
from leakaudit.judge.words import sentences
from leakaudit.result.dates import commit_of
from leakaudit.result.numbers import plain
from leakaudit.result.outcome import Check, Outcome
from leakaudit.result.rounding import steps
from leakaudit.result.rules import VERDICTS, judged, resolution, worst_verdict
from leakaudit.result.schema import AttackResult, AuditResult, DefenseResult, Estimate, RecordScore, Verdict, digest
from leakaudit.result.scores import assertable, of_attacks
from leakaudit.result.specs import apart
from leakaudit.result.tasks import measure_of
from leakaudit.stats.intervals import mean, median_of_clients, rate_of_clients
from leakaudit.version import __version__

T = TypeVar("T")

CLOSE = 1e-9  # numbers are stored in full: what differs by more was computed from something else


def doubts(result: AuditResult) -> tuple[str, ...]:
    """Return one sentence for each thing that a result claims and its own numbers do not give; empty where all fits.

    Checked are the verdict of each defense and of the whole (never better than the rules of this version make it; of
    this version's own results exactly what they make it), the counts, shares, medians and intervals of attacks against
    their records, accuracies against their training runs, that a finished audit has every defense, and what else
    `claims` and `records` compute again. What nothing here can tell is in `unknown`.
    """
    found, rows = [], []
    for defense in result.defenses:
        given, why = rejudge(result, defense)
        if _better(defense.verdict, given):
            found.append(
                f"The verdict on {defense.spec} is {defense.verdict}, its own numbers give {given} {_rules(result)}: "
                f"{sentences(why)[0] if why else 'no reason is given.'}"
            )
        rows.append(replace(defense, verdict=worst_verdict((defense.verdict, given))))
    whole: Verdict = overall(rows)[0] if result.complete else "inconclusive"
    if _better(result.verdict, whole):
        so = "from its defenses follows" if result.complete else "it was interrupted, so it can be no more than"
        found.append(f"The verdict of the audit is {result.verdict}; {so} {whole} {_rules(result)}.")
    rounded = result.images != "full"  # medians were rounded apart from the records they are of
    for defense in result.defenses:
        own = (*_trained(result, defense), *_examined(result, defense))
        found += [f"{defense.spec}: {what}{_elsewhere(result)}." for what in own]
        for attack in defense.attacks:
            told = f"On {defense.spec}, {attack.name}"
            found += [f"{told}: {what}{_elsewhere(result)}." for what in _numbers(attack, rounded)]
    if result.complete:
        found += [f"The audit says that it is complete, but {spec} has no row." for spec in unaudited(result)]
    rules = "" if current(result) else _elsewhere(result)
    found += [f"In the result {what}{rules}." for what in dict.fromkeys((*contradictions(result), *claims(result)))]
    return tuple(dict.fromkeys(found))


def outcome_doubts(outcome: Outcome, result: AuditResult | None = None) -> tuple[str, ...]:
    """Return one sentence for each thing that an outcome of the gate claims and its own checks do not give.

    With the `result` it judges, checks of thresholds are judged again. Comparisons are not: that takes the baseline.
    """
    given, reasons = conclude(outcome.checks, outcome.waivers)
    found = []
    if _better(outcome.verdict, given):
        why = reasons[0] if reasons else "no reason is given."
        found.append(f"The verdict of the gate is {outcome.verdict}, its own checks and waivers give {given}: {why}")
    for check in outcome.checks:
        if check.status == "pass" and _beyond(check):
            found.append(f"The check {check.id} is a pass, but what it measured is not within its threshold.")
        if check.waiver is not None and check.waiver.expires < outcome.date:
            found.append(f"The check {check.id} is waived until {check.waiver.expires}, which was over by then.")
    if result is not None and outcome.result_digest == digest(result):
        made = str(result.environment.get("leakaudit") or "")
        if outcome.audited and (outcome.audited, outcome.leakaudit, outcome.commit) != (
            result.made,
            made,
            commit_of(result),
        ):
            found.append("The gate names another date, version or commit of the audit than the result has.")
        found += [told for check in outcome.checks for told in _judged_again(check, result)]
        checked = {check.defense for check in outcome.checks if check.rule == "identification"}
        if outcome.presets:  # every preset asks it of every defense that the verdict speaks of
            gone = [d.spec for d in judged(result) if d.spec not in checked]
            found += [
                f"The gate names the preset {outcome.presets[0]} and has no check of identification on {s}."
                for s in gone
            ]
    return tuple(found)


def _judged_again(check: Check, result: AuditResult) -> list[str]:
    """Return in which way a check of a threshold is better than the result makes it."""
    if check.rule not in (score.name for score in assertable()) or check.threshold is None or not check.direction:
        return []
    pattern = check.pattern or None
    rule = Rule(check.rule, check.direction, check.threshold, check.level, pattern, escape(check.defense))
    row = next((d for d in result.defenses if d.spec == check.defense), None)
    if row is None:
        return [] if check.status != "pass" else [f"The check {check.id} is a pass on a defense that has no row."]
    again = next((c for c in judge_rule(replace(result, defenses=_first(result, row)), rule)), None)
    if again is None or not _better(check.status, again.status):
        return []
    return [
        f"The check {check.id} is {check.status}; judged again on this result it is {again.status}: {again.message}"
    ]


def _first(result: AuditResult, row: DefenseResult) -> tuple[DefenseResult, ...]:
    """Return the control and one defense, so that a spec with `*` or `[` in it is no pattern for another."""
    return tuple(d for d in result.defenses if d is row or d.spec == "none")


def unaudited(result: AuditResult) -> tuple[str, ...]:
    """Return the defenses that were asked for and have no row, as far as the settings name them."""
    asked, rows = result.settings.get("defenses"), {d.spec for d in result.defenses}
    return tuple(s for s in dict.fromkeys(apart(asked)) if s not in rows) if isinstance(asked, str) else ()


def _better(claimed: Verdict, given: Verdict) -> bool:
    return VERDICTS.index(claimed) > VERDICTS.index(given)


def _rules(result: AuditResult) -> str:
    return f"by the rules of leakaudit {__version__}{_elsewhere(result)}"


def _elsewhere(result: AuditResult) -> str:
    """Return a remark where another version made the result: its rules may have been others."""
    made = result.environment.get("leakaudit")
    return "" if made == __version__ else f" (the result says that it was made by leakaudit {made or 'unknown'})"


def _numbers(attack: AttackResult, rounded: bool) -> list[str]:
    """Return what an attack's estimates say that its records do not; medians may be off by a step where `rounded`."""
    estimates = (attack.identification, attack.psnr, attack.ssim, attack.lpips)
    if not attack.records:
        return ["it has scores, and no records that they are of"] if any(e.n for e in estimates) else []
    found = []
    # One that links is asked about every record by itself, and ends by itself on each.
    by = {(r.victim, r.record if attack.kind == "linkage" else 0): r.status for r in attack.records}
    ended = Counter(by.values())
    if ended != Counter({s: n for s, n in attack.statuses.items() if n}):
        found.append("its counts of how victims ended are not those of its records")
    asked = _by_victim(attack, lambda r: r.identified)
    given = rate_of_clients(asked)
    if not _equal(attack.identification, given):
        found.append(
            f"its stored share identified, {_told(attack.identification)}, is not that of its records, of which "
            f"{sum(map(sum, asked))} of {sum(map(len, asked))} are identified ({_told(given)})"
        )
    if attack.exact != sum(r.exact is True for r in attack.records):
        found.append("its stored count of exact records is not that of its records")
    held = steps(RecordScore)  # of the scores that a record has, with how coarse they may be
    for score in (s for s in of_attacks() if s.field in held and _held(attack, s.field)):
        values = _by_victim(attack, attrgetter(score.field))
        if not _equal(getattr(attack, score.field), median_of_clients(values), held[score.field] if rounded else CLOSE):
            found.append(f"its stored {score.title} is not the median of its records’, or its interval is not theirs")
    return found


def _by_victim(attack: AttackResult, of: Callable[[RecordScore], T | None]) -> list[list[T]]:
    """Return what its records have of something, victim by victim: those of one update are one unit of an interval."""
    found: dict[int, list[T]] = {}
    for record in attack.records:
        value = of(record)
        if value is not None:
            found.setdefault(record.victim, []).append(value)
    return list(found.values())


def _held(attack: AttackResult, name: str) -> bool:
    """Return whether a score stands beside each record: gain and null do so since later, where the attack has one."""
    later = name in ("gain", "swapped")
    return not later or any(getattr(r, name) is not None for r in attack.records)


def _examined(result: AuditResult, defense: DefenseResult) -> list[str]:
    """Return what was examined of a defense that the records of its attacks do not give."""
    stored = defense.examined
    if stored is None or not (stored.union.n or current(result)):
        return []
    given = exposed(defense.attacks, result.chance_identification, result.baselines)
    found = []
    if not _equal(stored.union, given.union):
        found.append("its stored share identified by any attack is not that of the records of its attacks")
    names = stored.by_class.keys() | given.by_class.keys()
    if any(not _equal(stored.by_class.get(n, Estimate()), given.by_class.get(n, Estimate())) for n in names):
        found.append("its stored shares by class are not those of the records of its attacks")
    if not _equal(stored.tenth, given.tenth):
        found.append("its stored share of the most exposed tenth is not that of the records of its attacks")
    if current(result) and abs(stored.union_guess - given.union_guess) > CLOSE:
        found.append("what guessing as often would identify is not what its attacks’ line-ups give")
    return found


def _trained(result: AuditResult, defense: DefenseResult) -> list[str]:
    """Return what the accuracy of a defense says that its training runs do not."""
    runs, stored = defense.accuracies, defense.accuracy
    if not runs:
        return ["it has an accuracy, and no training runs that it is of"] if stored.value is not None else []
    # Versions before the present one let equal runs have an interval of no width.
    within = (measure_of(result.measure).least, 1.0)
    given = [mean(runs, within, least=least) for least in (resolution(result), 0.0)]
    if stored.value is None or not any(_equal(stored, each) for each in given):
        return ["its accuracy, or the interval, is not that of its training runs"]
    return []


def _equal(stored: Estimate, given: Estimate, slack: float = CLOSE) -> bool:
    pairs = ((stored.value, given.value), (stored.low, given.low), (stored.high, given.high))
    return stored.n == given.n and all(
        a is b is None if a is None or b is None else abs(a - b) <= slack * 1.001 for a, b in pairs
    )


def _told(estimate: Estimate) -> str:
    if estimate.value is None:
        return "no value"
    # In full, as in the file: two that differ must not be written alike.
    ends = "" if estimate.low is None or estimate.high is None else f", {plain(estimate.low)} to {plain(estimate.high)}"
    return f"{plain(estimate.value)}{ends} (n = {estimate.n})"


def _beyond(check: Check) -> bool:
    """Return whether a check of a threshold measured something whose interval is not on the allowed side."""
    if check.threshold is None or check.rule.startswith("regression-"):  # which is tested, not compared
        return False
    low, high = check.measured.low, check.measured.high
    if check.direction == "max":
        return high is not None and high > check.threshold
    return check.direction == "min" and low is not None and low < check.threshold
