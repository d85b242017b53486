"""From scores to a verdict: pass, fail or inconclusive, each with its reasons as values (`judge.words` tells them).

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
from dataclasses import replace

from leakaudit.errors import Setting
from leakaudit.judge.facts import Facts, control_of, facts_of
from leakaudit.result.rules import SHARP, VERDICTS, beats, guessing, most_successful, unsupported
from leakaudit.result.schema import (
    AttackResult,
    AuditResult,
    Baseline,
    DefenseResult,
    Estimate,
    Reason,
    Value,
    Verdict,
)
from leakaudit.stats.intervals import records_needed

UNFINISHED = "attack-unfinished"
DOUBT = "doubt"  # that an attack has of itself; which one is a fact, so that no plug-in's id is taken for one of ours
LEAKS = ("identification-above-limit", "reconstruction-close")
CONTROL = ("control-not-scored", "control-does-not-leak")


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
) -> tuple[Verdict, tuple[Reason, ...]]:
    """Judge one defense by its `attacks`, by `control`, the attacks on the undefended model, and by the `baselines`.

    `is_control` when the undefended row itself is judged: it needs no adaptive attack. `replaces_records` when the
    defense replaces records: then an attack handed the replaced ones (role `bound`) must have been scored for a pass.
    """
    floor = guessing(chance_identification, baselines)
    known = [facts_of(a, max(max_identification, floor), baselines) for a in attacks]
    # A standard attack that does not apply says nothing of the defense: its row in the tables is enough.
    open_ = [f for f in known if f.unfinished and not (f.attack.role == "standard" and f.inapplicable)]
    notes = {f.attack.name: _unfinished(f) for f in open_}
    leaks = _leaks(known, max_identification, baselines)
    if leaks:
        return "fail", (*leaks, *notes.values())
    missed = _doubts_about_scores(open_, control, floor, max_identification)
    seen = control_of(control, floor)
    doubts = [
        *([Reason(seen.doubt)] if seen.doubt else []),
        *_doubts_about_coverage(attacks, is_control, replaces_records),
        *missed.values(),
        *_doubts_about_size(known, chance_identification, max_identification, min_records),
    ]
    rest = [note for name, note in notes.items() if name not in missed]  # a doubt says what its note would
    rest += [_reason(a, DOUBT, facts={"doubt": name, "told": told}) for a in attacks for name, told in a.doubts.items()]
    if doubts:
        return "inconclusive", (*doubts, *rest)
    return "pass", (*_clean(attacks, control, max_identification), *rest)


def rejudge(
    result: AuditResult, defense: DefenseResult, limit: float | None = None
) -> tuple[Verdict, tuple[Reason, ...]]:
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
    return capped(verdict, reasons, str(result.settings.get("battery", "")), bool(result.exposure.get("model_control")))


def capped(
    verdict: Verdict, reasons: tuple[Reason, ...], battery: str, model_control: bool
) -> tuple[Verdict, tuple[Reason, ...]]:
    """Turn a pass that a scan of this kind cannot support into `inconclusive`, with the reason first."""
    why = tuple(map(Reason, unsupported(battery, model_control)))
    return ("inconclusive", (*why, *reasons)) if verdict == "pass" and why else (verdict, reasons)


def reasons_of(result: AuditResult, defense: DefenseResult) -> tuple[Reason, ...]:
    """Return the reasons of a stored verdict; those of a result that came before they were values are judged again.

    Where that gives another verdict, or there is nothing to judge, the stored sentences stand for themselves.
    """
    if defense.why:
        return defense.why
    verdict, reasons = rejudge(result, defense) if defense.attacks else (None, ())
    if verdict == defense.verdict:
        return reasons
    return tuple(Reason("stored", facts={"told": told}) for told in defense.reasons)


def overall_reasons(result: AuditResult) -> tuple[Reason, ...]:
    """Return the reasons of a stored audit's verdict; those of one from before they were values are judged again."""
    if result.why:
        return result.why
    if not result.complete:
        return (Reason("interrupted"),)
    return overall([replace(d, why=reasons_of(result, d)) for d in result.defenses])[1]


def overall(defenses: Sequence[DefenseResult]) -> tuple[Verdict, tuple[Reason, ...]]:
    """Return the worst verdict among the requested defenses, with its reasons.

    The undefended row counts only where nothing else was requested: its leak is what the others are for.
    """
    requested = [d for d in defenses if d.requested]
    counted = [d for d in requested if d.spec != "none"] or requested
    for verdict in VERDICTS:
        found = [d for d in counted if d.verdict == verdict]
        if found:
            return verdict, tuple(replace(reason, defense=d.spec) for d in found for reason in d.why)
    return "inconclusive", (Reason("nothing-audited"),)


def _reason(
    attack: AttackResult,
    identifier: str,
    measured: Estimate | None = None,
    limit: float | None = None,
    needs: tuple[Setting, ...] = (),
    facts: dict[str, Value] | None = None,
) -> Reason:
    return Reason(identifier, "", attack.name, attack.role, measured, limit, needs, facts or {})


def _leaks(known: Sequence[Facts], allowed: float, baselines: Sequence[Baseline]) -> list[Reason]:
    """Return one reason for each attack that identifies too many records, and for each that rebuilds them too well."""
    guess = max((b.psnr.value for b in baselines if b.psnr.value is not None), default=0.0)
    found = []
    for f in known:
        if f.identifies:
            a = f.attack
            found.append(_reason(a, LEAKS[0], a.identification, allowed, facts={"candidates": a.candidates}))
        if f.rebuilds:
            found.append(_reason(f.attack, LEAKS[1], f.attack.psnr, guess + SHARP, facts={"guess": guess}))
    return found


def _doubts_about_coverage(attacks: Sequence[AttackResult], is_control: bool, replaces_records: bool) -> list[Reason]:
    roles = {a.role for a in attacks if a.kind != "labels" and a.identification.n}
    doubts = []
    if not is_control and "adaptive" not in roles:
        doubts.append(Reason("no-adaptive-attack"))
    if replaces_records and "bound" not in roles:
        doubts.append(Reason("no-bound"))
    return doubts


def _doubts_about_scores(
    unfinished: Sequence[Facts], control: Sequence[AttackResult], floor: float, allowed: float
) -> dict[str, Reason]:
    """Return, by attack, why its missing scores may hide a leak."""
    undefended = {a.name: a for a in control}
    doubts = {}
    for f in unfinished:
        a, before = f.attack, undefended.get(f.attack.name)
        if not f.asked or f.inapplicable or (a.role == "standard" and _useless(a, before, floor)):
            continue
        works = before is not None and beats(before, floor)
        weight = a.role if a.role in ("adaptive", "bound") else "works" if works else "unseen"
        if not a.identification.n:
            doubts[a.name] = _unfinished(f, weight)
        elif (f.worst_case().high or 0.0) > allowed:
            doubts[a.name] = _unfinished(f, weight, may_hide=True, limit=allowed)
    return doubts


def _unfinished(f: Facts, weight: str = "", may_hide: bool = False, limit: float | None = None) -> Reason:
    """Return what an attack lacks. `weight` says what makes that matter: its role, or what it did without a defense."""
    a = f.attack
    never = f.asked and a.identification.value is None
    ended = [f"{n} {status}" for status, n in sorted(a.statuses.items()) if never or status != "converged"]
    facts: dict[str, Value] = {"lost": f.lost, "cut": f.cut, "victims": f.victims, "ended": ", ".join(ended)}
    facts |= {"told": (a.reason or a.identification.reason or "").rstrip(".")}
    facts |= {"weight": weight} if weight else {}
    facts |= {"may_hide": True} if may_hide else {}
    return _reason(a, UNFINISHED, limit=limit, facts=facts)


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
    known = facts_of(control)
    seen = control.statuses.get("diverged", 0) + control.statuses.get("not-applicable", 0)
    return (known.worst_case(known.lost - seen).low or 0.0) <= floor


def _doubts_about_size(known: Sequence[Facts], chance: float, allowed: float, min_records: int) -> list[Reason]:
    scored = [f for f in known if f.attack.identification.value is not None]
    if not scored:
        return [Reason("no-attack-scored")]
    if chance > allowed:
        return [Reason("guess-above-limit", limit=allowed, facts={"guess": chance})]
    needed = records_needed(allowed)
    if needed is None:
        return [Reason("limit-of-nothing", limit=allowed)]
    fewest, least = min(f.attack.identification.n for f in scored), max(needed, min_records)
    if fewest < least:
        return [Reason("too-few-scored", limit=allowed, facts={"scored": fewest, "least": least})]
    return [
        _reason(f.attack, "may-exceed-limit", f.attack.identification, allowed, _what_settles(f, allowed))
        for f in scored
        if f.attack.identification.high is None or f.attack.identification.high > allowed
    ]


def _what_settles(f: Facts, allowed: float) -> tuple[Setting, ...]:
    """Return how many records would bring the upper bound to the limit if the rate stayed as it is; none if none do."""
    a = f.attack
    share, n = a.identification.value or 0.0, a.identification.n
    needed = records_needed(allowed, share)
    if needed is None:
        return ()
    total = len(a.records) or n // max(1, f.victims - f.lost) * f.victims  # lost and unasked ones included
    batch = max(1, total // max(1, f.victims))
    return (Setting("records", -(-needed * max(total, n) // (n * batch)) * batch),)


def _clean(attacks: Sequence[AttackResult], control: Sequence[AttackResult], allowed: float) -> list[Reason]:
    highest = max(a.identification.high or 0.0 for a in attacks if a.identification.value is not None)
    worst, before = most_successful(attacks), most_successful(control)
    assert worst is not None
    assert before is not None  # without one there is no pass
    return [
        _reason(worst, "within-limit", worst.identification, allowed, facts={"highest": highest}),
        _reason(before, "control-leaks", before.identification),
    ]
