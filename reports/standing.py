"""What stands behind a defense: what is proven, what only survived the attacks that were run, what nothing bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from leakaudit.judge.facts import control_in, facts_of
from leakaudit.result.numbers import decibels, interval, percent, plain
from leakaudit.result.rules import most_successful
from leakaudit.result.schema import AttackResult, AuditResult, DefenseResult, Guarantee, Value

MEASURED = " – measured: "  # between a proven statement and what attacks measured of it


@dataclass(frozen=True)
class Claim:
    """One sentence, and what it stands on."""

    text: str
    under: str = ""
    by: str = ""  # the attack that it is about, where it is about one


@dataclass(frozen=True)
class Standing:
    """The claims about one defense; what the attacks left open is `undecided`.

    `stated` is False for results that came before guarantees were recorded.
    """

    proven: tuple[Claim, ...]
    survived: tuple[Claim, ...]
    undecided: tuple[Claim, ...]
    fell: tuple[Claim, ...]
    unbounded: tuple[Claim, ...]
    stated: bool
    foremost: tuple[Claim, ...] = ()  # of several proofs the one beside which something was measured, else the first


def standing(result: AuditResult, defense: DefenseResult) -> Standing:
    """Return what is proven of a defense, what it survived, what is open, what it did not, and what is not bounded.

    By the rules of the verdict: an attack is survived that stays within the limit even at its upper bound, and not
    survived where it exceeds it even at its lower bound, or rebuilds pictures. That a defense survived says nothing of
    attacks that were not run.
    """
    limit = max(result.max_identification, control_in(result).floor)
    scored = [a for a in defense.attacks if a.identification.n or a.psnr.value is not None]
    known = [facts_of(a, limit, result.baselines) for a in scored]
    beaten = [f.attack for f in known if f.identifies or f.rebuilds]
    within = [a for a in scored if a.identification.high is None or a.identification.high <= limit]
    survived = [a for a in scored if a not in beaten and a in within]
    undecided = tuple(Claim(_ended(a), by=a.name) for a in scored if a not in beaten and a not in within)
    proven = tuple(Claim(_beside(result, g, scored), g.assumes) for g in defense.guarantees if g.kind == "proven")
    unbounded = tuple(Claim(g.statement) for g in defense.guarantees if g.kind == "not-bounded")
    fell = tuple(Claim(_ended(a), by=a.name) for a in beaten)
    first = tuple(c for c in proven if MEASURED in c.text)[:1] or proven[:1]
    return Standing(proven, _survived(result, survived), undecided, fell, unbounded, bool(defense.guarantees), first)


def in_brief(result: AuditResult, defense: DefenseResult) -> str:
    """Return the standing in a line for a terminal; empty for the control and where nothing is stated."""
    found = standing(result, defense)
    if not found.stated or defense.spec == "none":
        return ""
    proven = [g for g in defense.guarantees if g.kind == "proven"]
    # Of several proofs the one beside which something was measured says most.
    told = next((g for g in proven if g.identification is not None), proven[0] if proven else None)
    scored = [a for a in defense.attacks if a.identification.n]
    words = _beside(result, told, scored) if told else "nothing"
    open_ = "; ".join(claim.text for claim in found.unbounded)
    return f"Proven: {words}." + (f" Not bounded: {open_}." if open_ else "")


def _beside(result: AuditResult, guarantee: Guarantee, attacks: Sequence[AttackResult]) -> str:
    """Return a proven statement with what attacks measured of it, where they measured the same.

    With more than one record in a batch, pairing pictures with records before they are scored helps a guess too.
    """
    alike = [a for a in attacks if a.candidates == guarantee.candidates and a.identification.n]
    if guarantee.identification is None or not alike or result.settings.get("batch_size", 1) != 1:
        return guarantee.statement
    most = most_successful(alike) or alike[0]
    which = f"the most successful of {len(alike)} attacks, {most.name}" if len(alike) > 1 else most.name
    share = most.identification
    lucky = (share.low or 0.0) <= guarantee.identification < (share.value or 0.0)
    return f"{guarantee.statement}{MEASURED}{_hits(most)} by {which}{', within chance' if lucky else ''}"


def _survived(result: AuditResult, attacks: Sequence[AttackResult]) -> tuple[Claim, ...]:
    claims = []
    for bound, who in ((False, "on updates"), (True, "on the replaced records themselves")):
        part = [a for a in attacks if (a.role == "bound") is bound]
        if not part:
            continue
        most = most_successful(part) or part[0]
        counted = f"{len(part)} attack{'s' if len(part) > 1 else ''} {who}"
        claims.append(Claim(f"{counted}; the most successful: {_ended(most)}", ", ".join(a.name for a in part)))
    if claims and not control_in(result).works:
        claims.append(Claim("the attacks were not seen to work without a defense, so surviving them says nothing"))
    return tuple(claims)


def _ended(attack: AttackResult) -> str:
    if attack.identification.value is not None:
        return f"{_hits(attack)} by {attack.name} ({interval(attack.identification)}%)"
    return f"pictures of {decibels(attack.psnr.value or 0.0)} in the median by {attack.name}"


def _hits(attack: AttackResult) -> str:
    share, n = attack.identification.value or 0.0, attack.identification.n
    return f"{round(share * n)} of {n} identified"


def bound_of(defense: DefenseResult) -> float | None:
    """Return the least proven bound on identification, None where none is proven."""
    return min((g.identification for g in defense.guarantees if g.identification is not None), default=None)


def bound_text(defense: DefenseResult) -> str:
    """Return that bound as a percentage, or a dash."""
    least = bound_of(defense)
    return "—" if least is None else f"≤ {percent(least)}"


def further_facts(defense: DefenseResult) -> list[tuple[str, str]]:
    """Return what a defense states of itself, by name, without what its guarantees already say."""
    told = {name for guarantee in defense.guarantees for name in guarantee.states}
    return [(name, _fact(name, value)) for name, value in sorted(defense.facts.items()) if name not in told]


def _fact(name: str, value: Value) -> str:
    """Return a fact as text: a share that its name calls one of identification as a percentage."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    share = number and "identif" in name.lower() and 0 <= float(value or 0) <= 1
    return percent(float(value or 0)) if share else plain(value)
