"""One verdict over several moments of training: a defense is as safe as at the worst of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from leakaudit.result.rules import VERDICTS, most_successful
from leakaudit.result.schema import AttackResult, Reason, Stage, Value, Verdict

LEAKED, OPEN, AHEAD = "leaks-at-stage", "undecided-at-stage", "stage-not-reached"


def here(
    moment: Stage | None, verdict: Verdict, why: Sequence[Reason], attacks: Sequence[AttackResult]
) -> tuple[Stage, ...]:
    """Return what was found of a defense at a moment of training; nothing where it is of the weights as given."""
    if moment is None:
        return ()
    worst = most_successful(attacks)
    seen = moment if worst is None else replace(moment, attack=worst.name, identification=worst.identification)
    return (replace(seen, verdict=verdict, why=tuple(why)),)


def over_stages(
    verdict: Verdict, why: tuple[Reason, ...], earlier: Sequence[Stage], limit: float, pending: Sequence[str] = ()
) -> tuple[Verdict, tuple[Reason, ...]]:
    """Return the worst verdict of a stage and those before it, at a limit on identification, with the reasons.

    While stages that were asked for are `pending` nothing is a pass.
    A stage was judged at the limit of its scan: at a lower one what was found there may be too much, and is undecided.
    """
    told = []
    for stage in earlier:
        high = stage.identification.high
        settled = stage.verdict != "pass" or (high is not None and high <= limit) or _proven(stage, limit)
        found: Verdict = stage.verdict if settled else "inconclusive"
        if found != "pass":
            facts: dict[str, Value] = {"stage": stage.name, "epochs": stage.epochs}
            id = LEAKED if found == "fail" else OPEN
            told.append(Reason(id, "", stage.attack, "", stage.identification, limit, (), facts))
        verdict = min(verdict, found, key=VERDICTS.index)
    if verdict == "pass" and pending:
        verdict, told = "inconclusive", [Reason(AHEAD, facts={"stage": pending[0]})]
    if verdict == "fail":
        told = [reason for reason in told if reason.id == LEAKED]
    return verdict, (*told, *why)


def _proven(stage: Stage, limit: float) -> bool:
    """Return whether a proof carried a stage's pass that holds at this limit too."""
    bounds = [reason.facts.get("bound") for reason in stage.why if reason.id == "proven"]
    within = any(isinstance(bound, float) and bound <= limit for bound in bounds)
    return within or any(reason.id == "independent" for reason in stage.why)
