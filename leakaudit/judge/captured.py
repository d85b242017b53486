"""What may be said of captured updates: without the records behind them there is no score, and so never a pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from leakaudit.result.rules import most_successful
from leakaudit.result.schema import AttackResult, Guarantee, Reason, Value, Verdict

UNSCORED, CERTIFIED, BROKEN = "captured-unscored", "captured-certified", "claim-broken"
TRUST = "the client runs the defense that it claims"


def is_captured(captured: Mapping[str, Value], spec: str) -> bool:
    """Return whether the row of a defense is about captured updates."""
    return bool(captured) and captured.get("defense") == spec


def is_unscored(captured: Mapping[str, Value], spec: str) -> bool:
    """Return whether it is about captured updates whose records nobody knows: its scores are of other records."""
    return is_captured(captured, spec) and not captured.get("known")


def on_trust(guarantee: Guarantee) -> Guarantee:
    """Return what is proven of a defense as what it says of captured updates: it bounds nothing.

    The proof is of the defense that the client claims; nobody saw whether it ran that.
    """
    assumes = "; ".join(part for part in (guarantee.assumes, TRUST) if part)
    return Guarantee(guarantee.statement, guarantee.kind, assumes, states=guarantee.states)


def about_captured(
    verdict: Verdict,
    reasons: Sequence[Reason],
    spec: str,
    attacks: Iterable[AttackResult],
    captured: Mapping[str, Value],
    errors: Iterable[str] = (),
) -> tuple[Verdict, tuple[Reason, ...]]:
    """Return the verdict on a defense where captured updates are audited; of any other row it stays.

    A claim that the updates were seen to break is a fail. Where nobody says which records are behind them, so is a
    picture that an attack proves to be; all else is inconclusive, whatever was scored on other records.
    """
    if not is_captured(captured, spec):
        return verdict, tuple(reasons)
    found = [Reason(BROKEN)] if BROKEN in errors else []
    if not is_unscored(captured, spec):
        return ("fail", (*found, *reasons)) if found else (verdict, tuple(reasons))
    known = tuple(attacks)
    for attack in known:
        count = sum(each.certified for each in attack.captured)
        found += [Reason(CERTIFIED, attack=attack.name, facts={"pictures": count})] if count else []
    best = most_successful(a for a in known if a.role != "bound")
    told = Reason(UNSCORED) if best is None else Reason(UNSCORED, "", best.name, best.role, best.identification)
    return ("fail" if found else "inconclusive"), (*found, told)
