"""What may be said of captured updates: without the records behind them there is no score, and so never a pass."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from leakaudit.result.claims import ClaimRow
from leakaudit.result.numbers import significant
from leakaudit.result.rules import most_successful
from leakaudit.result.schema import AttackResult, Finding, Guarantee, Reason, Value, Verdict

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


def broken_claims(claims: Iterable[ClaimRow], spec: str) -> tuple[Finding, ...]:
    """Return an error for each claim that captured updates were seen to break, about the defense that is claimed."""
    found = []
    for row in claims:
        if row.verdict == "broken":
            said = "" if row.claimed is None else f" is {significant(row.claimed)}"
            message = f"{spec}: {row.mechanism} claims that the {row.what}{said}, and that is broken. {row.reason}"
            about: dict[str, Value] = {"defense": spec, "claim": row.what, "mechanism": row.mechanism}
            about |= {"claimed": row.claimed, "measured": row.measured, "low": row.low, "high": row.high}
            known: dict[str, Value] = {name: value for name, value in about.items() if value is not None}
            found.append(Finding(BROKEN, "error", message.strip(), known))
    return tuple(found)


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
    reasons = [reason for reason in reasons if reason.facts.get("finding") != BROKEN]  # which says it already
    if not is_unscored(captured, spec):
        return ("fail", (*found, *reasons)) if found else (verdict, tuple(reasons))
    known = tuple(attacks)
    for attack in known:
        count = sum(each.certified for each in attack.captured)
        found += [Reason(CERTIFIED, attack=attack.name, facts={"pictures": count})] if count else []
    best = most_successful(a for a in known if a.role != "bound")
    told = Reason(UNSCORED) if best is None else Reason(UNSCORED, "", best.name, best.role, best.identification)
    return ("fail", tuple(found)) if found else ("inconclusive", (told,))


def numbers_of(row: ClaimRow) -> str:
    """Return what is claimed and what was measured: `0.01 claimed, 0.0098 measured (0.009 to 0.011)`."""
    ends = [significant(end) for end in (row.low, row.high) if end is not None]
    between = f" ({' to '.join(ends)})" if len(ends) == 2 else f" (at most {ends[0]})" if row.high is not None else ""
    if row.measured is not None and set(ends) == {significant(row.measured)}:
        between = ""  # it is exact
    measured = "" if row.measured is None else f"{significant(row.measured)} measured{between}"
    if row.what == "epsilon" and row.verdict == "broken" and row.measured in (None, math.inf):
        measured = "nothing bounds it"
    claimed = "" if row.claimed is None else f"{significant(row.claimed)} claimed"
    return ", ".join(filter(None, (claimed, measured))) or "no number"
