"""Which situations of a client an audit tried: records behind an update × local steps × mode × moment of training."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal

from leakaudit.judge.scope import whole
from leakaudit.result.federation import client_of
from leakaudit.result.rules import STAGES, scored_victims
from leakaudit.result.schema import AuditResult, DefenseResult, Verdict

Coverage = Literal["tested", "not-applicable", "not-tested"]
GIVEN = "given"  # the stage of an audit of the weights as they are


@dataclass(frozen=True)
class Situation:
    """What a client does: how many records are behind its update, after how many steps, in which mode. 0: several."""

    records: int
    steps: int
    mode: str


@dataclass(frozen=True)
class Cell:
    """Whether one defense was tried in a situation at a stage, and with which verdict."""

    coverage: Coverage
    verdict: Verdict | None = None


@dataclass(frozen=True)
class Matrix:
    """The cells of one defense, by situation and stage."""

    spec: str
    cells: dict[tuple[Situation, str], Cell]


def situations(result: AuditResult) -> tuple[Situation, ...]:
    """Return one record and several, one local step and several, both modes: the audit's own with its numbers."""
    here = own(result)
    records = (1, here.records if here.records > 1 else 0)
    steps = (1, here.steps if here.steps > 1 else 0)
    return tuple(Situation(*each) for each in product(records, steps, ("eval", "train")))


def own(result: AuditResult) -> Situation:
    """Return the situation of the audit."""
    client, size = client_of(result.settings), whole(result.settings, "batch_size") or 1
    return Situation(size, client.steps(max(1, size // client.clients)), str(result.settings.get("mode") or "eval"))


def stages(result: AuditResult) -> tuple[str, ...]:
    """Return the moments of training: all that there are, and before them the weights as given where those were."""
    return STAGES if any(row.stages for row in result.defenses) else (GIVEN, *STAGES)


def matrix(result: AuditResult) -> tuple[Matrix, ...]:
    """Return what was tried of every defense. A model that is the same in both modes has one to try."""
    here = own(result)
    same = result.target.get("modes_differ") is False
    found = []
    for row in result.defenses:
        tried = _tried(row)
        cells = {
            (situation, stage): _cell(situation, here, tried.get(stage), same)
            for situation in situations(result)
            for stage in stages(result)
        }
        found.append(Matrix(row.spec, cells))
    return tuple(found)


def _tried(row: DefenseResult) -> dict[str, Verdict]:
    """Return the verdicts of a defense by moment, of those at which anything was scored on it or led to a verdict."""
    if row.stages:
        return {
            stage.name: stage.verdict
            for stage in row.stages
            if stage.verdict != "inconclusive" or stage.identification.value is not None
        }
    return {GIVEN: row.verdict} if any(scored_victims(attack) for attack in row.attacks) else {}


def _cell(situation: Situation, here: Situation, verdict: Verdict | None, same: bool) -> Cell:
    alike = (situation.records, situation.steps) == (here.records, here.steps)
    if alike and situation.mode == here.mode and verdict is not None:
        return Cell("tested", verdict)
    if same and situation.mode == "train":
        return Cell("not-applicable")
    return Cell("not-tested")
