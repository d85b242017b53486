"""From scores to a verdict: pass, fail or inconclusive, each with reasons in plain sentences.

The rules, in this order. Identification is judged on the bounds of its 95 % interval, never on its value.

1. Fail: an attack identifies more than allowed even at the lower bound; or the median reconstruction is at least 3 dB
   closer than the best guess without an update even at the lower bound. 3 dB is half the squared error: of what sets a
   record apart from its class's average picture, half was recovered.
2. Inconclusive: without the defense the attacks do not beat chance, or a guess that never saw the update; no adaptive
   attack was scored; an attack was not scored, or could have exceeded the limit on the victims where it failed or ran
   out of time; too few records or candidates. Two kinds of attack may stay without a score: those that do not apply,
   and standard ones that were seen not to work on the undefended model. One that crashed there was not seen.
3. Pass: what is left. Every attack's upper bound is within the limit.
"""

from __future__ import annotations

from collections.abc import Sequence

from leakaudit.result.rules import (
    OVERFITTED,
    beats,
    guessing,
    identifies,
    most_successful,
    most_telling,
    rebuilds,
    scored_statuses,
    unsupported,
)
from leakaudit.result.schema import AttackResult, AuditResult, Baseline, DefenseResult, Estimate, Verdict
from leakaudit.stats.intervals import rate, records_needed


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
    floor = guessing(chance_identification, baselines)
    limit = max(max_identification, floor)
    # A standard attack that does not apply says nothing of the defense: its row in the tables is enough.
    open_ = [a for a in attacks if (_lost(a) or _cut(a)) and not (a.role == "standard" and _inapplicable(a))]
    notes = {a.name: f"The attack {a.name} {_unfinished(a)}." for a in open_}
    leaks = _leaks(attacks, limit, max_identification, baselines)
    if leaks:
        return "fail", (*leaks, *notes.values())
    missed = _doubts_about_scores(open_, control, floor, max_identification)
    doubts = [
        *_doubts_about_control(control, floor),
        *_doubts_about_coverage(attacks, is_control, replaces_records),
        *missed.values(),
        *_doubts_about_size(attacks, chance_identification, max_identification, min_records),
    ]
    rest = [note for name, note in notes.items() if name not in missed]  # a doubt says what its note would
    rest += [f"The attack {a.name} {note}." for a in attacks for note in a.notes if note.startswith(OVERFITTED)]
    if doubts:
        return "inconclusive", (*doubts, *rest)
    return "pass", (*_clean(attacks, control, max_identification), *rest)


def rejudge(result: AuditResult, defense: DefenseResult, limit: float | None = None) -> tuple[Verdict, tuple[str, ...]]:
    """Judge a stored defense again by the rules of this version, at another `limit` on identification if one is given.

    What the audit as a whole cannot support is no pass here either (`rules.unsupported`).
    """
    control = result.control()
    verdict, reasons = judge(
        defense.attacks,
        control.attacks if control else (),
        result.baselines,
        chance_identification=result.chance_identification,
        max_identification=result.max_identification if limit is None else limit,
        is_control=defense.spec == "none",
        replaces_records=defense.replaces_records,
    )
    why = unsupported(str(result.settings.get("battery", "")), bool(result.exposure.get("model_control")))
    return ("inconclusive", (*why, *reasons)) if verdict == "pass" and why else (verdict, reasons)


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
        if identifies(a, limit):
            did.append(
                f"picked the right one of {a.candidates} candidates of the same class for "
                f"{round((e.value or 0.0) * e.n)} of {e.n} records "
                f"(at least {_percent(e.low)} with 95% confidence; allowed {_percent(allowed)})"
            )
        if known is not None and a.psnr.value is not None and rebuilds(a, baselines):
            did.append(
                f"rebuilds pictures far closer to the private ones (median {a.psnr.value:.1f} dB) than a guess "
                f"without the update ({known:.1f} dB)"
            )
        if not did:
            continue
        bound = a.role == "bound"
        who = f"Bound only: handed the replaced records themselves, {a.name}" if bound else f"The attack {a.name}"
        found.append(f"{who} {' and '.join(did)}{'; from an update alone it may be less' if bound else ''}.")
    return found


def _doubts_about_control(control: Sequence[AttackResult], floor: float) -> list[str]:
    best = most_telling(control)
    if best is None:
        return ["No attack could be scored on the undefended model, so nothing shows that these attacks work at all."]
    if not beats(best, floor):
        return ["The attacks do not beat guessing on the undefended model, so their failure here proves nothing."]
    return []


def _doubts_about_coverage(attacks: Sequence[AttackResult], is_control: bool, replaces_records: bool) -> list[str]:
    roles = {a.role for a in attacks if a.kind != "labels" and a.identification.n}
    doubts = []
    if not is_control and "adaptive" not in roles:
        doubts.append("No attack built against this defense was scored, so it has not been tested in earnest.")
    if replaces_records and "bound" not in roles:
        doubts.append(
            "No attack was scored that is handed the replaced records themselves, so nothing bounds what an update "
            "made from them reveals."
        )
    return doubts


def _doubts_about_scores(
    unfinished: Sequence[AttackResult], control: Sequence[AttackResult], floor: float, allowed: float
) -> dict[str, str]:
    """Return, by attack, why its missing scores may hide a leak."""
    undefended = {a.name: a for a in control}
    doubts = {}
    for a in unfinished:
        before = undefended.get(a.name)
        if a.kind == "labels" or _inapplicable(a) or (a.role == "standard" and _useless(a, before, floor)):
            continue
        why = {"adaptive": "was built against this defense but", "bound": "is handed the replaced records but"}.get(
            a.role,
            "works on the undefended model but"
            if before is not None and beats(before, floor)
            else "was not seen to fail on the undefended model and",
        )
        if not a.identification.n:
            doubts[a.name] = f"The attack {a.name} {why} {_unfinished(a)}."
        elif (_worst_case(a, _lost(a), _cut(a)).high or 0.0) > allowed:
            doubts[a.name] = f"The attack {a.name} {why} {_unfinished(a)}, enough to hide a leak above the limit."
    return doubts


def _inapplicable(a: AttackResult) -> bool:
    """Return whether an attack cannot be run here on any victim. That is no failure of the attack."""
    return {status for status, count in a.statuses.items() if count} == {"not-applicable"}


def _useless(a: AttackResult, control: AttackResult | None, floor: float) -> bool:
    """Return whether an attack was seen not to work on the undefended model, so that nothing is missed without it.

    What crashed or was cut short there was not seen, and counts as identified. What diverged there was seen; an attack
    that only ever diverged must end no otherwise here.
    """
    if control is None:
        return False
    if control.identification.value is None:
        ended = {s for row in (a, control) for s, count in row.statuses.items() if count}
        return ended == {"diverged"}
    seen = control.statuses.get("diverged", 0) + control.statuses.get("not-applicable", 0)
    return (_worst_case(control, _lost(control) - seen, _cut(control)).low or 0.0) <= floor


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
        f"more than the allowed {_percent(allowed)}: {_what_settles(a, allowed)}."
        for a in scored
        if a.identification.high is None or a.identification.high > allowed
    ]


def _what_settles(a: AttackResult, allowed: float) -> str:
    """Return how many records would bring the upper bound to the limit if the rate stayed as it is."""
    share, n = a.identification.value or 0.0, a.identification.n
    needed = records_needed(allowed, share)
    if needed is None:
        return f"{_percent(share)} were identified, so more records would not make it a pass"
    victims = sum(a.statuses.values())
    total = len(a.records) or n // max(1, victims - _lost(a)) * victims  # lost and unasked ones included
    batch = max(1, total // max(1, victims))
    records = -(-needed * max(total, n) // (n * batch)) * batch
    return f"if the rate stays as it is, about {records} records would settle it (--records {records})"


def _clean(attacks: Sequence[AttackResult], control: Sequence[AttackResult], allowed: float) -> list[str]:
    highest = max(a.identification.high or 0.0 for a in attacks if a.identification.value is not None)
    worst, before = most_successful(attacks), most_successful(control)
    assert worst is not None
    assert before is not None  # without one there is no pass
    handed = ", handed the replaced records" if worst.role == "bound" else ""
    return [
        f"No attack identified more than {_percent(highest)} of the records with 95% confidence (allowed "
        f"{_percent(allowed)}; the most successful was {worst.name}{handed}, {_percent(worst.identification.value)}).",
        f"The most successful attack on the undefended model, {before.name}, identified "
        f"{_percent(before.identification.value)}.",
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


def _worst_case(a: AttackResult, lost: int, cut: int) -> Estimate:
    """Return the rate with every record of `lost` unscored and `cut` cut-short victims counted as identified."""
    n = a.identification.n
    each = n // max(1, sum(a.statuses.values()) - _lost(a))
    hits = round((a.identification.value or 0.0) * n)
    return rate(min(n, hits + each * cut) + each * lost, n + each * lost)


def _unfinished(a: AttackResult) -> str:
    ended = [f"{count} {status}" for status, count in sorted(a.statuses.items()) if _never(a) or status != "converged"]
    why = "; ".join(filter(None, [", ".join(ended), (a.reason or a.identification.reason or "").rstrip(".")]))
    what = "has no score on" if _lost(a) else "was cut short on"
    return f"{what} {_lost(a) or _cut(a)} of {sum(a.statuses.values())} victims ({why})"


def _percent(share: float | None) -> str:
    if share is None:
        return "an unknown share"
    value = 100 * share
    return f"{value:.0f}%" if value >= 10 or value == round(value) else f"{value:.1f}%"
