"""Whether what a result says of moments of training is what its settings asked for, and what its rows give."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from leakaudit.judge.moments import here, over_stages
from leakaudit.judge.scope import specs_of, whole
from leakaudit.judge.verdict import EXACTLY, LEAKS, rejudge
from leakaudit.judge.words import sentences
from leakaudit.result.schema import AuditResult, DefenseResult, Stage

EPOCHS = {"init": 0, "early": 1}  # of training before a stage; before `trained` as many as an audit's


def moments(result: AuditResult) -> Iterator[str]:
    """Yield a clause for each thing that is said of a stage of training and does not follow, or contradicts itself.

    What earlier stages found has no records here, so that only what is said of them can be compared.
    """
    asked = specs_of(result.settings, "stages")
    for row in result.defenses:
        names = tuple(stage.name for stage in row.stages)
        reached = asked if result.complete else asked[: len(names)]
        if names != reached or bool(names) is not bool(asked):
            yield (
                f"{row.spec} was audited at the stages {', '.join(names) or 'none'}, and the settings say "
                f"{', '.join(asked) or 'none'}"
            )
            return
        yield from (f"{row.spec}: {what}" for what in _row(result, row))
    for name in asked:
        same = {(s.epochs, s.accuracy) for row in result.defenses for s in row.stages if s.name == name}
        epochs = EPOCHS.get(name, whole(result.settings, "epochs"))
        if len(same) > 1 or any(trained != epochs for trained, _ in same):
            yield f"the network at the stage {name} is not the same one in all its rows, or not that of its settings"


def without_attacks(result: AuditResult, row: DefenseResult) -> bool:
    """Return whether a defense that could not be applied has the verdict and the reasons that this gives."""
    own = tuple(reason for reason in row.why if reason.id == "not-applied")
    verdict, why = over_stages("inconclusive", own, row.stages[:-1], result.max_identification)
    return (row.verdict, row.why, row.reasons) == (verdict, why, sentences(why))


def _row(result: AuditResult, row: DefenseResult) -> Iterator[str]:
    if not row.stages:
        return
    for stage in row.stages:
        yield from (f"at the stage {stage.name} {what}" for what in _stage(result, stage))
    last = row.stages[-1]
    alone = replace(row, stages=())
    settings = {name: value for name, value in result.settings.items() if name != "stages"}
    verdict, why = rejudge(replace(result, settings=settings), alone) if row.attacks else ("inconclusive", last.why)
    if here(last, verdict, why, row.attacks)[0] != last:
        yield f"what is said of its stage {last.name} is not what its own numbers give"


def _stage(result: AuditResult, stage: Stage) -> Iterator[str]:
    """Yield where the verdict on a stage is not one that its reasons, or what was identified there, allow."""
    reasons = {reason.id for reason in stage.why}
    leaks = bool(reasons & {*LEAKS, EXACTLY, "union-above-limit", "class-above-limit"})
    if not stage.why:
        yield "its verdict has no reason"
    elif leaks is not (stage.verdict == "fail"):
        yield f"its verdict is {stage.verdict}, and its reasons are those of another"
    if stage.verdict == "pass" and (stage.identification.low or 0.0) > result.max_identification:
        yield "its verdict is pass, and more was identified than the limit allows"
