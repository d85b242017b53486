"""Whether a stored result follows from its own numbers, and an outcome from its own checks.

Nothing here is proof of origin: whoever changes every number that hangs together leaves no doubt. What is found is a
verdict better than the numbers beside it, or a number that its records do not give.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from leakaudit import __version__
from leakaudit.coarse import DECIBELS
from leakaudit.gate import concluded
from leakaudit.intervals import median, rate
from leakaudit.outcome import Check, Outcome
from leakaudit.result import AttackResult, AuditResult, Estimate, Verdict
from leakaudit.verdict import overall, rejudge

ORDER: tuple[Verdict, ...] = ("fail", "inconclusive", "pass")  # from worst to best
CLOSE = 1e-9  # numbers are stored in full: what differs by more was computed from something else


def doubts(result: AuditResult) -> tuple[str, ...]:
    """Return one sentence for each thing that a result claims and its own numbers do not give; empty where all fits.

    Checked are the verdict of each defense and of the whole (never better than the rules of this version make it), the
    counts, shares and intervals of attacks whose records are stored, and that a finished audit has every defense.
    """
    found, rows = [], []
    for defense in result.defenses:
        given, why = rejudge(result, defense)
        if _better(defense.verdict, given):
            found.append(
                f"The verdict on {defense.spec} is {defense.verdict}, its own numbers give {given} {_rules(result)}: "
                f"{why[0] if why else 'no reason is given.'}"
            )
        rows.append(replace(defense, verdict=min(defense.verdict, given, key=ORDER.index)))
    whole: Verdict = overall(rows)[0] if result.complete else "inconclusive"
    if _better(result.verdict, whole):
        so = "from its defenses follows" if result.complete else "it was interrupted, so it can be no more than"
        found.append(f"The verdict of the audit is {result.verdict}; {so} {whole} {_rules(result)}.")
    slack = CLOSE if result.images == "full" else DECIBELS  # medians were rounded apart from the records they are of
    for defense in result.defenses:
        for attack in defense.attacks:
            told = f"On {defense.spec}, {attack.name}"
            found += [f"{told}: {what}{_elsewhere(result)}." for what in _numbers(attack, slack)]
    if result.complete:
        found += [f"The audit says that it is complete, but {spec} has no row." for spec in unaudited(result)]
    return tuple(found)


def outcome_doubts(outcome: Outcome) -> tuple[str, ...]:
    """Return one sentence for each thing that an outcome of the gate claims and its own checks do not give."""
    given, reasons = concluded(outcome.checks, outcome.waivers)
    found = []
    if _better(outcome.verdict, given):
        why = reasons[0] if reasons else "no reason is given."
        found.append(f"The verdict of the gate is {outcome.verdict}, its own checks and waivers give {given}: {why}")
    for check in outcome.checks:
        if check.status == "pass" and _beyond(check):
            found.append(f"The check {check.id} is a pass, but what it measured is not within its threshold.")
        if check.waiver is not None and check.waiver.expires < outcome.date:
            found.append(f"The check {check.id} is waived until {check.waiver.expires}, which was over by then.")
    return tuple(found)


def unaudited(result: AuditResult) -> tuple[str, ...]:
    """Return the defenses that were asked for and have no row, as far as the settings name them."""
    asked, rows = result.settings.get("defenses"), {d.spec for d in result.defenses}
    return tuple(s for s in dict.fromkeys(asked.split()) if s not in rows) if isinstance(asked, str) else ()


def _better(claimed: Verdict, given: Verdict) -> bool:
    return ORDER.index(claimed) > ORDER.index(given)


def _rules(result: AuditResult) -> str:
    return f"by the rules of leakaudit {__version__}{_elsewhere(result)}"


def _elsewhere(result: AuditResult) -> str:
    """Return a remark where another version made the result: its rules may have been others."""
    made = result.environment.get("leakaudit")
    return "" if made == __version__ else f" (the result says that it was made by leakaudit {made or 'unknown'})"


def _numbers(attack: AttackResult, slack: float) -> list[str]:
    """Return what an attack's estimates say that its records do not; its PSNR may be off by `slack` dB."""
    if not attack.records:
        return []
    found = []
    ended = Counter({r.victim: r.status for r in attack.records}.values())
    if ended != Counter({s: n for s, n in attack.statuses.items() if n}):
        found.append("its counts of how victims ended are not those of its records")
    asked = [r.identified for r in attack.records if r.identified is not None]
    if not _equal(attack.identification, rate(sum(asked), len(asked))):
        found.append(
            f"its stored share identified, {_told(attack.identification)}, is not that of its records, of which "
            f"{sum(asked)} of {len(asked)} are identified ({_told(rate(sum(asked), len(asked)))})"
        )
    drawn = [r.psnr for r in attack.records if r.psnr is not None]
    if not _equal(attack.psnr, median(drawn), slack):
        found.append("its stored PSNR is not the median of its records’, or its interval is not theirs")
    return found


def _equal(stored: Estimate, given: Estimate, slack: float = CLOSE) -> bool:
    pairs = ((stored.value, given.value), (stored.low, given.low), (stored.high, given.high))
    return stored.n == given.n and all(
        a is b is None if a is None or b is None else abs(a - b) <= slack * 1.001 for a, b in pairs
    )


def _told(estimate: Estimate) -> str:
    if estimate.value is None:
        return "no value"
    ends = "" if estimate.low is None or estimate.high is None else f", {estimate.low:.4g} to {estimate.high:.4g}"
    return f"{estimate.value:.4g}{ends} (n = {estimate.n})"


def _beyond(check: Check) -> bool:
    """Return whether a check of a threshold measured something whose interval is not on the allowed side."""
    if check.threshold is None or check.rule.startswith("regression-"):  # which is tested, not compared
        return False
    low, high = check.measured.low, check.measured.high
    if check.direction == "max":
        return high is not None and high > check.threshold
    return check.direction == "min" and low is not None and low < check.threshold
