"""Which situations of a client an audit tried, as the lines of a table."""

from __future__ import annotations

from dataclasses import dataclass

from leakaudit.reports.coverage import GIVEN, Cell, Situation, matrix, situations, stages
from leakaudit.result.schema import AuditResult

MARKS = {"pass": "✓", "fail": "✗", "inconclusive": "?"}
WORDS = {"not-applicable": ("–", "does not apply"), "not-tested": ("·", "not tested")}


@dataclass(frozen=True)
class Line:
    """One situation: what it is called, and the mark of every defense with what that means."""

    title: str
    marks: tuple[tuple[str, str], ...]
    tried: bool = False


def table(result: AuditResult) -> tuple[Line, ...]:
    """Return a line for each situation and stage, defenses in their order, and one for a stage that nobody tried."""
    found, lines = matrix(result), []
    for stage in stages(result):
        tried = any(cell.verdict for row in found for (_, at), cell in row.cells.items() if at == stage)
        if not tried:
            lines.append(Line(f"{_weights(stage)}, whatever a client does", (WORDS["not-tested"],) * len(found)))
        for situation in situations(result) if tried else ():
            cells = tuple(_mark(row.cells[situation, stage]) for row in found)
            here = any(row.cells[situation, stage].verdict for row in found)
            lines.append(Line(_title(situation, stage), cells, here))
    return tuple(lines)


def _mark(cell: Cell) -> tuple[str, str]:
    if cell.verdict is not None:
        return MARKS[cell.verdict], f"tested: {cell.verdict}"
    return WORDS[cell.coverage]


def _title(situation: Situation, stage: str) -> str:
    return (
        f"{_weights(stage)}, {_count(situation.records, 'record')}, {_count(situation.steps, 'step')}, {situation.mode}"
    )


def _weights(stage: str) -> str:
    return "weights as given" if stage == GIVEN else f"stage {stage}"


def _count(number: int, what: str) -> str:
    return f"several {what}s" if not number else f"{number} {what}" + "s" * (number > 1)
