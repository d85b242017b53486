"""Whether a report says what its result says: the digest in it, the page rendered again, and the result's own numbers.

Files that agree with each other may still have been made by anybody: who stands behind them is told by `signed`.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from leakaudit.errors import UserError
from leakaudit.files.reading import REPORT, bytes_of
from leakaudit.gate.consistency import doubts, outcome_doubts
from leakaudit.gate.unknown import ALWAYS, not_checked
from leakaudit.reports.html import generator, render
from leakaudit.reports.pdf import NOTE, producer, to_pdf
from leakaudit.result import outcome as gate
from leakaudit.result import schema as results
from leakaudit.result.outcome import Outcome
from leakaudit.result.schema import AuditResult

SHOWN = 120  # characters of a differing line


@dataclass(frozen=True)
class Verification:
    """`same`: the report is the result's; `other`: it is not, or the files contradict themselves; `unknown`: unsure."""

    status: Literal["same", "other", "unknown"]
    sentences: tuple[str, ...]
    unknown: tuple[str, ...] = ()  # what an agreement does not show, as lines; empty where there is none


@dataclass(frozen=True)
class Given:
    """The files as they were given."""

    report: Path
    result: Path
    outcome: Path | None

    @property
    def again(self) -> str:
        """How to make the report again."""
        return f"leakaudit report {self.result}" + (f" --gate {self.outcome}" if self.outcome else "")


def verify(report: Path | None, result: Path, outcome: Path | None = None) -> Verification:
    """Compare a report, HTML or PDF, with the result (and the gate's outcome) it names, and those with their numbers.

    Without a report the result alone is looked at. Raises UserError for a file that cannot be read, that is none, or
    where the page shows a gate and none is given.
    """
    loaded = results.load(result)
    said = gate.load(outcome) if outcome else None
    if report is None:
        agrees = f"{result} says nothing of itself that its numbers do not give, as far as that can be told."
        found = Verification("same", (agrees,))
    else:
        found = _verified(Given(report, result, outcome), _read(report), loaded, said)
    wrong = contradictions(result, outcome)
    if wrong:
        return Verification("other", ((*found.sentences, *wrong) if report else wrong))
    return replace(found, unknown=cannot_know(loaded)) if found.status == "same" else found


def contradictions(result: Path, outcome: Path | None = None) -> tuple[str, ...]:
    """Return what a result, and what a gate said of it, claim against their own numbers: a head and indented lines."""
    loaded = results.load(result)
    said = gate.load(outcome) if outcome else None
    wrong: list[str] = []
    for path, told in ((result, doubts(loaded)), (outcome, outcome_doubts(said, loaded) if said else ())):
        wrong += [f"{path} contradicts itself:", *(f"  {doubt}" for doubt in told)] if told else []
    if said is not None and said.result_digest != hashlib.sha256(_read(result)).hexdigest():
        wrong.append(f"{outcome} judges another result than {result}.")
    return tuple(wrong)


def cannot_know(result: AuditResult) -> tuple[str, ...]:
    """Return what verifying cannot tell: of any result, and of this one since it does not hold it."""
    return (*_listed("What this cannot know:", ALWAYS), *_listed("Not checked here:", not_checked(result)))


def _listed(head: str, clauses: tuple[str, ...]) -> tuple[str, ...]:
    """Return lines of a list, nothing where it is empty."""
    ends = [";"] * (len(clauses) - 1) + ["."]
    lines = (f"  - {clause}{end}" for clause, end in zip(clauses, ends, strict=False))
    return (head, *lines) if clauses else ()


def notes_of(report: Path) -> dict[str, str]:
    """Return what a report, HTML or PDF, says of itself in its head: digests and what it was made with."""
    return _notes(_read(report))


def _notes(data: bytes) -> dict[str, str]:
    # In a PDF parentheses are written with a backslash.
    return {name.decode(): text.decode("utf-8", "replace").replace("\\", "") for name, text in NOTE.findall(data)}


def _verified(given: Given, data: bytes, loaded: AuditResult, said: Outcome | None) -> Verification:
    """Compare a report with the one that this version makes of the result."""
    pdf = data.startswith(b"%PDF-")
    notes = _notes(data)
    claimed, found = notes.get("result-sha256"), hashlib.sha256(_read(given.result)).hexdigest()
    if claimed is None and "generator" not in notes:
        raise UserError(f"{given.report} holds no digest: give a report.html or report.pdf that this version wrote.")
    if claimed not in (None, found):
        return Verification("other", (_other_result(given, claimed or "", found, loaded),))
    if said is not None or "gate-sha256" in notes:
        wrong = _outcome(given, notes.get("gate-sha256"), said, found)
        if wrong is not None:
            return wrong
    page, by = render(loaded, said), [notes.get(name, "an unknown version") for name in ("generator", "producer")]
    try:
        here = [generator(), *([producer()] if pdf else [])]
        if by[: len(here)] != here:
            why = f"{' with '.join(by[: len(here)])} wrote it, and this is {' with '.join(here)}"
            return _unsure(given, why, " -o again.pdf --pdf" if pdf else "")
        expected = to_pdf(page) if pdf else page.encode()
    except UserError as error:
        return _unsure(given, str(error).rstrip("."))
    if data == expected:
        return Verification("same", (f"{given.report} is, byte for byte, what {given.result} says.",))
    fonts = "its words differ, or it was printed with other fonts."
    why = fonts if pdf else _difference(data.decode("utf-8", "replace"), page)
    return Verification("other", (f"{given.report} is not what {given.result} says: {why}",))


def _unsure(given: Given, why: str, options: str = "") -> Verification:
    """Say why nothing vouches for a report, and what to read instead."""
    told = f"{given.report} cannot be compared here, so do not rely on it: {why}."
    return Verification("unknown", (f"{told} Render the result again with {given.again}{options} and read that.",))


def _difference(page: str, expected: str) -> str:
    """Return where two pages first differ, by section and line, with both lines."""
    got, want = page.split("\n"), expected.split("\n")
    at = next((i for i, (a, b) in enumerate(zip(got, want, strict=False)) if a != b), min(len(got), len(want)))
    headings = [m[1] for line in want[: at + 1] if (m := re.search(r"<h2[^>]*>(.*?)</h2>", line))]
    section = f"section “{re.sub('<.*?>', '', headings[-1]).strip()}”" if headings else "the head of the page"
    there, here = (lines[at] if at < len(lines) else "" for lines in (got, want))
    return f"{section}, line {at + 1}, has {_excerpt(there, here)} where the result gives {_excerpt(here, there)}."


def _excerpt(line: str, other: str) -> str:
    """Return a line, cut to where it differs from the other."""
    if not line:
        return "nothing"
    same = next((i for i, (a, b) in enumerate(zip(line, other, strict=False)) if a != b), min(len(line), len(other)))
    start = max(0, same - SHOWN // 3)
    cut = line[start : start + SHOWN]
    words = "".join(c if c.isprintable() else " " for c in cut)
    return f"“{'…' if start else ''}{words}{'…' if len(line) > start + SHOWN else ''}”"


def _outcome(given: Given, claimed: str | None, said: Outcome | None, digest: str) -> Verification | None:
    """Return why a gate's outcome is not the one that the report shows, None where it is."""
    path = given.outcome
    if said is None or path is None:
        raise UserError(f"{given.report} shows what a gate said: give its outcome with --gate FILE.")
    if said.result_digest != digest:
        return Verification("other", (f"{path} judges another result than {given.result}.",))
    if not claimed:
        return Verification("other", (f"{given.report} shows no gate, but {path} was given.",))
    if hashlib.sha256(_read(path)).hexdigest() != claimed:
        return Verification("other", (f"{given.report} shows another gate’s outcome than {path}: the digests differ.",))
    return None


def _other_result(given: Given, claimed: str, found: str, loaded: AuditResult) -> str:
    if results.digest(loaded) == claimed:
        return f"{given.result} was written anew: its content is what {given.report} names, its bytes are not."
    return f"{given.report} names a result with the digest {claimed[:16]}…, {given.result} has {found[:16]}…."


def _read(path: Path) -> bytes:
    return bytes_of(path, REPORT)
