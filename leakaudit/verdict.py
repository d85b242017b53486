"""From scores to a verdict: pass, fail or inconclusive, each with reasons in plain sentences.

The rules, in this order. Identification is judged on the bounds of its 95 % interval, never on its value.

1. Fail: an attack identifies more than allowed even at the lower bound; or the median reconstruction is at least 3 dB
   closer than the best guess without an update even at the lower bound. 3 dB is half the squared error: of what sets a
   record apart from its class's average picture, half was recovered.
2. Inconclusive: without the defense the attacks do not beat chance, or a guess that never saw the update; no adaptive
   attack was scored; an attack that matters was not scored, or could have exceeded the limit on the victims where it
   failed or ran out of time; too few records or candidates.
3. Pass: what is left. Every attack's upper bound is within the limit.
"""

from __future__ import annotations

from collections.abc import Sequence

from leakaudit.intervals import rate, records_needed
from leakaudit.result import AttackResult, Baseline, DefenseResult, Verdict
from leakaudit.scoring import scored_statuses

SHARP = 3.0  # dB above the best baseline


def judge(
    attacks: Sequence[AttackResult],
    control: Sequence[AttackResult],
    baselines: Sequence[Baseline] = (),
    *,
    chance_identification: float,
    max_identification: float,
    min_records: int = 8,
    is_control: bool = False,
    replaces_records: bool = False,
) -> tuple[Verdict, tuple[str, ...]]:
    """Judge one defense by its `attacks`, by `control`, the attacks on the undefended model, and by the `baselines`.

    `is_control` when the undefended row itself is judged: it needs no adaptive attack. `replaces_records` when the
    defense replaces records: then an attack handed the replaced ones (role `bound`) must have been scored for a pass.
    """
    known = max((b.identification.value or 0.0 for b in baselines), default=0.0)
    floor = max(chance_identification, known)  # pairing a batch's pictures lifts even a guess above 1/M
    limit = max(max_identification, floor)
    notes = [_unfinished(a) for a in attacks if _lost(a) or _cut(a)]
    leaks = _leaks(attacks, limit, max_identification, baselines)
    if leaks:
        return "fail", (*leaks, *notes)
    doubts = [
        *_doubts_about_control(control, floor),
        *_doubts_about_coverage(attacks, control, floor, max_identification, is_control, replaces_records),
        *_doubts_about_size(attacks, chance_identification, max_identification, min_records),
    ]
    if doubts:
        return "inconclusive", (*doubts, *notes)
    return "pass", (*_clean(attacks, control, max_identification), *notes)


def overall(defenses: Sequence[DefenseResult]) -> tuple[Verdict, tuple[str, ...]]:
    """Return the worst verdict among the requested defenses, with its reasons.

    The undefended row counts only where nothing else was requested: its leak is what the others are for.
    """
    requested = [d for d in defenses if d.requested]
    counted = [d for d in requested if d.spec != "none"] or requested
    order: tuple[Verdict, ...] = ("fail", "inconclusive", "pass")
    for verdict in order:
        found = [d for d in counted if d.verdict == verdict]
        if found:
            return verdict, tuple(f"{d.spec}: {reason}" for d in found for reason in d.reasons)
    return "inconclusive", ("No requested defense was audited to the end.",)


def _leaks(attacks: Sequence[AttackResult], limit: float, allowed: float, baselines: Sequence[Baseline]) -> list[str]:
    """Return one sentence for each attack that identifies too many records or rebuilds them too well."""
    known = max((b.psnr.value for b in baselines if b.psnr.value is not None), default=None)
    found = []
    for a in attacks:
        e, did = a.identification, []
        if e.value is not None and e.low is not None and e.low > limit:
            did.append(
                f"picked the right one of {a.candidates} candidates of the same class for "
                f"{round(e.value * e.n)} of {e.n} records "
                f"(at least {_percent(e.low)} with 95% confidence; allowed {_percent(allowed)})"
            )
        if known is not None and a.psnr.value is not None and a.psnr.low is not None and a.psnr.low >= known + SHARP:
            did.append(
                f"rebuilds pictures far closer to the private ones (median {a.psnr.value:.1f} dB) than a guess "
                f"without the update ({known:.1f} dB)"
            )
        if not did:
            continue
        bound = a.role == "bound"
        who = f"Bound only: handed the replaced records themselves, {a.name}" if bound else f"The attack {a.name}"
        found.append(f"{who} {' and '.join(did)}{'; an update reveals no more' if bound else ''}.")
    return found


def _doubts_about_control(control: Sequence[AttackResult], floor: float) -> list[str]:
    lows = [a.identification.low for a in control if a.identification.low is not None]
    if not lows:
        return ["No attack could be scored on the undefended model, so nothing shows that these attacks work at all."]
    if max(lows) <= floor:
        return ["The attacks do not beat guessing on the undefended model, so their failure here proves nothing."]
    return []


def _doubts_about_coverage(
    attacks: Sequence[AttackResult],
    control: Sequence[AttackResult],
    floor: float,
    allowed: float,
    is_control: bool,
    replaces_records: bool,
) -> list[str]:
    doubts = []
    judged = [a for a in attacks if a.kind != "labels"]
    if not is_control and not any(a.role == "adaptive" and a.identification.n for a in judged):
        doubts.append("No attack built against this defense was scored, so it has not been tested in earnest.")
    if replaces_records and not any(a.role == "bound" and a.identification.n for a in judged):
        doubts.append("No attack was given the replaced records themselves, so what they reveal has no upper bound.")
    working = {a.name for a in control if a.identification.low is not None and a.identification.low > floor}
    for a in judged:
        if not (_lost(a) or _cut(a)) or (a.role == "standard" and a.name not in working):
            continue
        why = "was built against this defense" if a.role == "adaptive" else "works on the undefended model"
        why = "is the upper bound" if a.role == "bound" else why
        if not a.identification.n:
            doubts.append(f"The attack {a.name} {why} but could not be scored here.")
        elif (_worst_case(a) or 0.0) > allowed:
            doubts.append(
                f"The attack {a.name} {why} but failed or ran out of time on {_lost(a) + _cut(a)} of "
                f"{sum(a.statuses.values())} victims, enough to hide a leak above the limit."
            )
    return doubts


def _doubts_about_size(attacks: Sequence[AttackResult], chance: float, allowed: float, min_records: int) -> list[str]:
    scored = [a for a in attacks if a.identification.value is not None]
    if not scored:
        return ["No attack was scored on this defense."]
    if chance > allowed:
        return [
            f"Guessing alone is right {_percent(chance)} of the time with so few candidates, more than the allowed "
            f"{_percent(allowed)}: more records of the same class are needed."
        ]
    needed = records_needed(allowed)
    if needed is None:
        return ["No number of records can show that identification never happens: allow more than 0%."]
    fewest = min(a.identification.n for a in scored)
    if fewest < max(needed, min_records):
        return [
            f"Only {fewest} {'record was' if fewest == 1 else 'records were'} scored: at least "
            f"{max(needed, min_records)} are needed to show that no more than {_percent(allowed)} are identified."
        ]
    return [
        f"The attack {a.name} may identify up to {_percent(a.identification.high)} of the records (95% confidence), "
        f"more than the allowed {_percent(allowed)}: more records would settle it."
        for a in scored
        if a.identification.high is None or a.identification.high > allowed
    ]


def _clean(attacks: Sequence[AttackResult], control: Sequence[AttackResult], allowed: float) -> list[str]:
    scored = [a for a in attacks if a.identification.value is not None]
    worst = max(scored, key=lambda a: a.identification.high or 0.0)
    before = max((a.identification.value for a in control if a.identification.value is not None), default=0.0)
    return [
        f"No attack identified more than {_percent(worst.identification.high)} of the records with 95% confidence "
        f"(allowed {_percent(allowed)}; the most successful was {worst.name}, {_percent(worst.identification.value)}).",
        f"The same kind of attack identified {_percent(before)} on the undefended model.",
    ]


def _never(a: AttackResult) -> bool:
    return a.kind != "labels" and a.identification.value is None


def _lost(a: AttackResult) -> int:
    """Return how many victims have no score: all of them where the attack never began, whatever its status."""
    if _never(a):
        return sum(a.statuses.values())
    return sum(count for status, count in a.statuses.items() if status not in scored_statuses(a.kind))


def _cut(a: AttackResult) -> int:
    """Return how many victims are scored although the time budget ended the attack on them early."""
    scored = "budget" in scored_statuses(a.kind) and not _never(a)
    return a.statuses.get("budget", 0) if scored else 0


def _worst_case(a: AttackResult) -> float | None:
    """Return the upper bound with every record of an unscored or cut-short victim counted as identified."""
    n = a.identification.n
    each = n // max(1, sum(a.statuses.values()) - _lost(a))
    hits = round((a.identification.value or 0.0) * n)
    lost, cut = each * _lost(a), each * _cut(a)
    return rate(min(n, hits + cut) + lost, n + lost).high


def _unfinished(a: AttackResult) -> str:
    ended = [f"{count} {status}" for status, count in sorted(a.statuses.items()) if _never(a) or status != "converged"]
    why = "; ".join(filter(None, [", ".join(ended), a.reason or a.identification.reason]))
    what = "has no score on" if _lost(a) else "was cut short on"
    return f"The attack {a.name} {what} {_lost(a) or _cut(a)} of {sum(a.statuses.values())} victims ({why})."


def _percent(share: float | None) -> str:
    if share is None:
        return "an unknown share"
    value = 100 * share
    return f"{value:.0f}%" if value >= 10 or value == round(value) else f"{value:.1f}%"
