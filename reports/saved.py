"""A result in a folder: its JSON, what the gate says of it, and its report."""

from __future__ import annotations

from pathlib import Path

from leakaudit.files.folder import GATE, REPORT, RESULT, claimed
from leakaudit.files.writing import write_atomically
from leakaudit.reports.html import render
from leakaudit.result import outcome as outcomes
from leakaudit.result.outcome import Outcome
from leakaudit.result.schema import AuditResult, from_json, is_private, to_json


def save(result: AuditResult, folder: Path, outcome: Outcome | None = None) -> Path:
    """Write `result.json`, `report.html` and, of an outcome, `gate.json` into a folder; return where the report is.

    What an earlier audit left there is set aside, as a scan does; files with private pictures are for their owner
    alone. The report is written last, of the result as it was read back. Raises UserError where nothing can be written.
    """
    private = is_private(result)
    with claimed(folder, private):
        write_atomically(folder / RESULT, to_json(result), private)
        if outcome is not None:
            write_atomically(folder / GATE, outcomes.to_json(outcome))  # what `verify` needs beside the report
        write_atomically(folder / REPORT, render(from_json(to_json(result)), outcome), private)
    return folder / REPORT
