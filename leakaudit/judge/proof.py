"""When nothing is left of a record, or so little as is proven: what makes chance hits be taken for chance."""

from __future__ import annotations

from collections.abc import Sequence

from leakaudit.result.rules import chance_of, guessing
from leakaudit.result.schema import AttackResult, Baseline, Examined, Guarantee, Reason, Value
from leakaudit.stats.intervals import tail

REPLAY = "replay"  # the attack that runs the whole defense on every candidate
INDEPENDENT = "independent"  # id of the reason
UNLIKELY = 0.01  # that guesses bring so many hits, over all attacks of a defense


def within(attack: AttackResult, limit: float) -> bool:
    """Return whether an attack is shown to identify no more than the limit."""
    return attack.identification.high is not None and attack.identification.high <= limit


def by_chance(attack: AttackResult, baselines: Sequence[Baseline], attacks: int, rate: float = 0.0) -> bool:
    """Return whether guesses, or what happens at a `rate`, explain an attack's hits, one of so many `attacks`."""
    e = attack.identification
    hits, usual = round((e.value or 0.0) * e.n), max(rate, guessing(chance_of(attack) or 0.0, baselines))
    return tail(hits, e.n, usual) >= UNLIKELY / max(1, attacks)


def proved(
    attacks: Sequence[AttackResult],
    baselines: Sequence[Baseline],
    examined: Examined | None,
    guarantees: Sequence[Guarantee],
    chance: float,
    limit: float,
) -> tuple[Reason, ...]:
    """Return why hits must be chance, where `replay` agrees: nothing otherwise.

    Either all that leaves a client was seen to be the same whichever record of a class it is of; or the defense proves
    that no more than the limit are identified, and no attack found more than that allows.
    """
    scored = [a for a in attacks if a.identification.value is not None and a.role != "bound"]
    replay = next((a for a in scored if a.name == REPLAY and set(a.statuses) == {"converged"}), None)
    if examined is None or replay is None or chance > limit:
        return ()
    if examined.independent and all(by_chance(a, baselines, len(scored)) for a in scored):
        return (Reason(INDEPENDENT, "", replay.name, replay.role, replay.identification, limit),)
    for each in guarantees:
        bound = each.identification
        if each.kind != "proven" or bound is None or bound > limit:
            continue
        if all(by_chance(a, baselines, len(scored), bound) for a in scored):
            told: dict[str, Value] = {"bound": bound, "assumes": each.assumes, "candidates": each.candidates}
            return (Reason("proven", "", replay.name, replay.role, replay.identification, limit, (), told),)
    return ()
