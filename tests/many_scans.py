"""What is made of several results, a history and a sweep, in every format of theirs. For test_escaping."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from leakaudit.compare.changes import Change
from leakaudit.result.outcome import Outcome
from leakaudit.result.schema import AuditResult, to_json

Changes = list[tuple[Change, float | None]]


def printed(show: Callable[[Any], None], **settings: Any) -> str:
    from rich.console import Console

    written = io.StringIO()
    show(Console(file=written, width=10_000, **settings))
    return written.getvalue()


def stored(result: AuditResult) -> Any:
    """A history of the result and one before that measured something else, beside a file that is no result."""
    from leakaudit.compare.history import read

    with TemporaryDirectory() as place:
        folder = Path(place) / "<b>runs"
        before = replace(result, target=result.target | {"classes": 77}, complete=False)
        for name, each in (("run-2 &amp;", result), ("run-1 <i>`x`[r]", before)):
            (folder / name).mkdir(parents=True)
            (folder / name / "result.json").write_text(to_json(each))
        (folder / "no <img src=x onerror=alert(1)>\u202e.json").write_text("{}")
        return read(folder)


def history(result: AuditResult, _: Outcome, __: Changes) -> str:
    from leakaudit.reports.history import render

    return render(stored(result))


def terminal_history(result: AuditResult, _: Outcome, __: Changes, **settings: Any) -> str:
    from leakaudit.reports.history import summary

    return printed(lambda console: summary(stored(result), console), **settings)


def swept(result: AuditResult) -> Any:
    """A sweep of two scans of the result's model, the second of which failed; all its text is the result's."""
    from leakaudit.compare.sweep import Entry, ended, frontiers

    name, told = str(result.target["name"]), result.reasons[0]
    spec = next(row.spec for row in result.defenses if row.requested)
    one = ended(Entry("a", name, "", spec, spec, {told: told}), result)
    return frontiers([one, Entry("b", name, "", spec, spec, {told: told}, trouble=told)])


def sweep(result: AuditResult, _: Outcome, __: Changes) -> str:
    from leakaudit.reports.sweep import render

    return render(str(result.target["name"]), swept(result))


def sweep_json(result: AuditResult, _: Outcome, __: Changes) -> str:
    from leakaudit.compare.sweep import values
    from leakaudit.result.sweep import to_json as written

    return written(values(str(result.target["name"]), swept(result)))


def terminal_sweep(result: AuditResult, _: Outcome, __: Changes, **settings: Any) -> str:
    from leakaudit.reports.sweep import summary

    return printed(lambda console: summary(swept(result), console), **settings)
