"""From scores to a verdict: pass, fail or inconclusive, each with its reasons as values (`judge.words` tells them).

The rules, in this order. Identification is judged on the bounds of its 95 % interval, never on its value.

1. Fail: an attack, or the union of all, identifies more than allowed even at the lower bound; or the median
   reconstruction is at least 3 dB closer than the best guess without that update even at the lower bound (3 dB is half
   the squared error: of what sets a record apart from its class's average picture, half was recovered); or a record is
   rebuilt or confirmed exactly. The first and the last of these hold whatever further attacks find: the audit may skip
   those (`judge.settled`). At a limit where what ran does not fail, what was skipped makes it inconclusive.
2. Pass by proof: all that is shared was the same, bit for bit, whichever record was behind it (`judge.proof`), and
   `replay` agrees.
3. Inconclusive: on the undefended model no attack exceeds the limit, or none was seen to work on a weakened defense; of
   a family of attacks none was scored; an attack was not scored, overfitted, or could have exceeded the limit on the
   victims where it failed or ran out of time; the server may change the model, and no attack that does was seen to
   work on the undefended one, or one that was has no score here; too few records or candidates; a check found an error.
   Two kinds of attack may stay without a score: those that do not apply, and standard ones that were seen not to work
   on the undefended model. One that crashed there was not seen.
4. Pass: what is left. `replay`'s upper bound is within the limit, and so is every other attack's, unless its hits are
   what as many guesses bring.

What the audit as a whole cannot support is no pass (`judge.caps`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from leakaudit.errors import Setting
from leakaudit.judge.caps import capped, caps_of, unplanted
from leakaudit.judge.captured import about_captured
from leakaudit.judge.exposed import exact, exposed
from leakaudit.judge.facts import Facts, control_of, facts_of
from leakaudit.judge.moments import over_stages
from leakaudit.judge.proof import INDEPENDENT, REPLAY, UNLIKELY, by_chance, proved, within
from leakaudit.judge.scope import specs_of
from leakaudit.result.rules import PLANTING, SHARP, VERDICTS, beats, guessing, identifies, most_successful
from leakaudit.result.schema import (
    AttackResult,
    AuditResult,
    Baseline,
    DefenseResult,
    Estimate,
    Examined,
    Finding,
    Guarantee,
    Reason,
    Value,
    Verdict,
)
from leakaudit.result.tasks import shares_labels
from leakaudit.stats.intervals import clients_needed, records_needed, tail

UNFINISHED = "attack-unfinished"
DOUBT = "doubt"  # that an attack has of itself; which one is a fact, so that no plug-in's id is taken for one of ours
BLOCKING = ("overfitted",)  # doubts that leave a leak possible
LEAKS = ("identification-above-limit", "reconstruction-close")
OF_CLASSES = (LEAKS[0], INDEPENDENT, "class-above-limit", "guess-above-limit")  # their sentences name a class
EXACTLY, SKIPPED = "known-exactly", "attacks-skipped"
CONTROL = ("control-not-scored", "control-does-not-leak")
FAMILIES = ("reconstruction", "linkage")  # of attacks, by kind: one of each must have been scored
LEAST = 8  # records, whatever the limit


@dataclass(frozen=True, kw_only=True)
class Case:
    """What one defense is judged by."""

    attacks: Sequence[AttackResult]
    control: Sequence[AttackResult]  # the attacks on the undefended model
    baselines: Sequence[Baseline] = ()
    chance: float  # of identification
    limit: float
    planting: bool = False  # the server may change the model: then attacks that do must have been scored
    is_control: bool = False  # the undefended row itself is judged: it needs no adaptive attack
    replaces_records: bool = False  # then an attack handed the replaced ones (role `bound`) must have been scored
    examined: Examined | None = None  # what was found out by trying it; None in older results, judged as they were
    guarantees: Sequence[Guarantee] = ()
    errors: Sequence[str] = ()  # ids of the errors that were noticed of this defense
    alike: bool = True  # the candidates of a line-up share their label; else theirs are the nearest
    least: int = LEAST  # records that must be scored, whatever the limit


def judge(case: Case) -> tuple[Verdict, tuple[Reason, ...]]:
    """Return the verdict on one defense, with its reasons."""
    verdict, reasons = _judged(case)
    if case.alike:
        return verdict, reasons
    return verdict, tuple(replace(r, facts=r.facts | {"alike": False}) if r.id in OF_CLASSES else r for r in reasons)


def _judged(case: Case) -> tuple[Verdict, tuple[Reason, ...]]:
    floor = guessing(case.chance, case.baselines)
    known = [facts_of(a, max(case.limit, floor), case.baselines) for a in case.attacks]
    # An attack that does not apply says nothing of the defense: its row in the tables is enough.
    silent = ("standard",) if case.examined is None else ("standard", "adaptive", "bound")
    open_ = [f for f in known if f.unfinished and not (f.attack.role in silent and f.inapplicable)]
    notes = {f.attack.name: _unfinished(f) for f in open_}
    leaks = _leaks(case, known)
    if leaks:
        return "fail", (*leaks, *notes.values())
    skipped = [f.attack for f in known if f.skipped]
    if skipped:  # at another limit than the scan's: what did not run might fail it
        return "inconclusive", (_skipped(skipped), *notes.values())
    missed = _doubts_about_scores(open_, case.control, floor, case.limit)
    rest = [note for name, note in notes.items() if name not in missed]  # a doubt says what its note would
    rest += _own_doubts(case, blocking=False)
    errors = [Reason("error-noticed", facts={"finding": name}) for name in dict.fromkeys(case.errors)]
    proofs = proved(case.attacks, case.baselines, case.examined, case.guarantees, case.chance, case.limit)
    independent = any(proof.id == INDEPENDENT for proof in proofs)
    planted = unplanted(case.attacks, case.control, floor) if case.planting else ()
    if independent and not errors and not planted:
        return "pass", proofs
    doubts = [
        *_doubts_about_control(case, floor),
        *_doubts_about_coverage(case),
        *missed.values(),
        *planted,
        *([] if proofs else _doubts_about_size(case, known)),
        *_own_doubts(case, blocking=True),
        *errors,
    ]
    if doubts:
        return "inconclusive", (*doubts, *rest)
    return "pass", (*proofs, *_clean(case), *rest)


def rejudge(
    result: AuditResult, defense: DefenseResult, limit: float | None = None
) -> tuple[Verdict, tuple[Reason, ...]]:
    """Judge a stored defense again by the rules of this version, at another `limit` on identification if one is given.

    What the audit as a whole cannot support is no pass here either (`judge.caps`).
    """
    control, errors = result.control(), errors_of(defense.spec, result.findings) if defense.examined else ()
    verdict, reasons = judge(
        Case(
            attacks=defense.attacks,
            control=control.attacks if control else (),
            baselines=result.baselines,
            chance=result.chance_identification,
            limit=result.max_identification if limit is None else limit,
            planting=bool(result.exposure.get(PLANTING)),
            is_control=defense.spec == "none",
            replaces_records=defense.replaces_records,
            examined=defense.examined,
            guarantees=defense.guarantees,
            errors=errors,
            alike=shares_labels(result.target),
        )
    )
    at_most = result.max_identification if limit is None else limit
    ahead = specs_of(result.settings, "stages")[len(defense.stages) :]
    verdict, reasons = over_stages(*capped(verdict, reasons, caps_of(result)), defense.stages[:-1], at_most, ahead)
    return about_captured(verdict, reasons, defense.spec, defense.attacks, result.captured, errors)


def errors_of(spec: str, findings: Iterable[Finding]) -> tuple[str, ...]:
    """Return the ids of the errors that were noticed of a defense."""
    return tuple(f.id for f in findings if f.severity == "error" and f.evidence.get("defense") == spec)


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


def _leaks(case: Case, known: Sequence[Facts]) -> list[Reason]:
    """Return one reason for each attack that identifies too many records, and for each that rebuilds them too well.

    Then for the union of all, where none does alone, and for records known exactly. Where all that is shared does not
    depend on the record, what is handed replaced records bounds nothing, and a close picture tells of the class.
    """
    guess = max((b.psnr.value for b in case.baselines if b.psnr.value is not None), default=0.0)
    blank = case.examined is not None and case.examined.independent is True
    found = []
    for f in known:
        if blank and f.attack.role == "bound":
            continue
        if f.identifies:
            a = f.attack
            facts: dict[str, Value] = {"candidates": a.candidates, "kind": a.kind}
            found.append(_reason(a, LEAKS[0], a.identification, case.limit, facts=facts))
        if f.rebuilds and not blank:
            found.append(_reason(f.attack, LEAKS[1], f.attack.psnr, guess + SHARP, facts={"guess": guess}))
    if case.examined is None:
        return found
    together = exposed(case.attacks, case.chance, case.baselines)
    if not found and (together.union.low or 0.0) > max(case.limit, together.union_guess):
        found.append(Reason("union-above-limit", measured=together.union, limit=case.limit))
    worst = max(together.by_class.items(), key=lambda pair: pair[1].low or 0.0, default=("", Estimate()))
    hits = round((worst[1].value or 0.0) * worst[1].n)
    lucky = tail(hits, worst[1].n, together.union_guess) >= UNLIKELY / max(1, len(together.by_class))
    if not found and not lucky and (worst[1].low or 0.0) > case.limit:
        found.append(Reason("class-above-limit", measured=worst[1], limit=case.limit, facts={"class": worst[0]}))
    exactly = exact(case.attacks)
    if exactly.rebuilt or exactly.confirmed:
        facts = {"rebuilt": len(exactly.rebuilt), "confirmed": len(exactly.confirmed), "asked": together.union.n}
        found.append(Reason(EXACTLY, facts=facts))
    return found


def _skipped(attacks: Sequence[AttackResult]) -> Reason:
    """Return that attacks were skipped, since another one had settled the verdict at the limit of the scan."""
    return Reason(SKIPPED, attack=attacks[0].settled_by, facts={"attacks": ", ".join(a.name for a in attacks)})


def _doubts_about_control(case: Case, floor: float) -> list[Reason]:
    """Return why failures prove nothing: nothing leaks undefended, or nothing was seen to work through the defense."""
    seen, examined = control_of(case.control, floor), case.examined
    if seen.doubt:
        return [Reason(seen.doubt)]
    found = []
    if examined is not None and seen.best is not None and not identifies(seen.best, case.limit):
        best = seen.best
        found.append(_reason(best, "control-within-limit", best.identification, case.limit))
    if examined is not None and examined.repeats is False:
        found.append(Reason("does-not-repeat"))
    if examined is not None and examined.changes and examined.strength is None and not case.is_control:
        found.append(Reason("not-seen-weakened", measured=examined.weakened, limit=case.limit))
    return found


def _doubts_about_coverage(case: Case) -> list[Reason]:
    scored = [a for a in case.attacks if a.kind != "labels" and a.identification.n]
    doubts = []
    if not case.is_control and not any(a.role == "adaptive" for a in scored):
        doubts.append(Reason("no-adaptive-attack"))
    if case.replaces_records and not any(a.role == "bound" for a in scored):
        doubts.append(Reason("no-bound"))
    for kind in FAMILIES if case.examined is not None and scored else ():
        if not any(a.kind == kind and a.role != "bound" for a in scored):
            doubts.append(Reason("no-family", facts={"family": kind}))
    return doubts


def _own_doubts(case: Case, *, blocking: bool) -> list[Reason]:
    """Return what attacks doubt of themselves: what blocks a pass, or what is only told."""
    return [
        _reason(a, DOUBT, facts={"doubt": name, "told": told})
        for a in case.attacks
        for name, told in a.doubts.items()
        if (case.examined is not None and name in BLOCKING) is blocking
    ]


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


def _doubts_about_size(case: Case, known: Sequence[Facts]) -> list[Reason]:
    scored, allowed = [f for f in known if f.attack.identification.value is not None], case.limit
    if not scored:
        return [Reason("no-attack-scored")]
    if case.chance > allowed:
        return [Reason("guess-above-limit", limit=allowed, facts={"guess": case.chance})]
    needed = records_needed(allowed)
    if needed is None:
        return [Reason("limit-of-nothing", limit=allowed)]
    fewest, least = min(f.attack.identification.n for f in scored), max(needed, case.least)
    if fewest < least:
        return [Reason("too-few-scored", limit=allowed, facts={"scored": fewest, "least": least})]
    settled = any(f.attack.name == REPLAY and within(f.attack, allowed) for f in scored)
    return [
        _reason(f.attack, "may-exceed-limit", f.attack.identification, allowed, _what_settles(f, allowed))
        for f in scored
        if not within(f.attack, allowed) and not (settled and by_chance(f.attack, case.baselines, len(scored)))
    ]


def _what_settles(f: Facts, allowed: float) -> tuple[Setting, ...]:
    """Return how many records would bring the upper bound to the limit if the rate stayed as it is; none if none do."""
    a = f.attack
    share, n = a.identification.value or 0.0, a.identification.n
    total = len(a.records) or n // max(1, f.victims - f.lost) * f.victims  # lost and unasked ones included
    batch = max(1, total // max(1, f.victims), *(1 + r.record for r in a.records))
    needed = records_needed(allowed, share)
    if batch > 1:  # the unit is the client
        clients = clients_needed(allowed, share)
        needed = None if clients is None else clients * batch
    if needed is None:
        return ()
    return (Setting("records", -(-needed * max(total, n) // (n * batch)) * batch),)


def _clean(case: Case) -> list[Reason]:
    scored = [a for a in case.attacks if a.identification.value is not None]
    shown = [a for a in scored if within(a, case.limit)]
    lucky = [a.name for a in scored if a not in shown]
    worst, before = most_successful(shown or scored), most_successful(case.control)
    assert worst is not None
    assert before is not None  # without one there is no pass
    facts: dict[str, Value] = {"highest": max(a.identification.high or 0.0 for a in shown or scored)}
    facts |= {"lucky": ", ".join(lucky)} if lucky else {}
    return [
        _reason(worst, "within-limit", worst.identification, case.limit, facts=facts),
        _reason(before, "control-leaks", before.identification),
    ]
