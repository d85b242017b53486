"""Whether a report says what its result says: the digest in it, the page rendered again, and the result's own numbers.

Nothing is signed. Files that agree with each other may still have been made by anybody.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from difflib import SequenceMatcher
from html.parser import HTMLParser
from pathlib import Path
from typing import Literal

from leakaudit.errors import UserError
from leakaudit.gate.consistency import doubts, outcome_doubts
from leakaudit.reports import verify_figures, verify_pdf
from leakaudit.reports.html import generator, render
from leakaudit.reports.view import heading
from leakaudit.result import outcome as gate
from leakaudit.result import schema as results
from leakaudit.result.outcome import Outcome
from leakaudit.result.schema import AuditResult

SHOWN = 120  # characters of a differing line
ONCE = ("title", "verdict", "generator", "result-sha256")


@dataclass(frozen=True)
class Verification:
    """`same`: the report is the result's; `other`: it is not, or the files contradict themselves; `unknown`: unsure."""

    status: Literal["same", "other", "unknown"]
    sentences: tuple[str, ...]


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


def verify(report: Path, result: Path, outcome: Path | None = None) -> Verification:
    """Compare a report, HTML or PDF, with the result (and the gate's outcome) it names, and those with their numbers.

    Raises UserError for a file that cannot be read, that is none, or where the page shows a gate and none is given.
    """
    data, loaded = _read(report), results.load(result)
    said = gate.load(outcome) if outcome else None
    found = _verified(Given(report, result, outcome), data, loaded, said)
    wrong: list[str] = []
    for path, told in ((result, doubts(loaded)), (outcome, outcome_doubts(said, loaded) if said else ())):
        wrong += [f"{path} contradicts itself:", *(f"  {doubt}" for doubt in told)] if told else []
    return Verification("other", (*found.sentences, *wrong)) if wrong else found


def _verified(given: Given, data: bytes, loaded: AuditResult, said: Outcome | None) -> Verification:
    pdf = verify_pdf.is_pdf(data)
    text = "" if pdf else data.decode("utf-8", "replace")
    notes = verify_pdf.notes(data) if pdf else _Seen(text).notes
    claimed, found = notes.get("result-sha256"), hashlib.sha256(_read(given.result)).hexdigest()
    if claimed is None and not (pdf and "generator" in notes):
        raise UserError(f"{given.report} holds no digest: give a report.html or report.pdf that leakaudit wrote.")
    if claimed not in (None, found):
        return Verification("other", (_other_result(given, claimed or "", found, loaded),))
    if said is not None or "gate-sha256" in notes:
        wrong = _outcome(given, notes.get("gate-sha256"), said, found)
        if wrong is not None:
            return wrong
    here = generator()["generator"]
    if notes.get("generator") != here:
        return _elsewhere(given, text, notes, loaded, here)
    expected = render(loaded, said)
    return _printed(given, data, expected) if pdf else _compared(given, data, expected, notes)


def _elsewhere(given: Given, text: str, notes: dict[str, str], loaded: AuditResult, here: str) -> Verification:
    """Say of a report of another version that nothing vouches for it, or what shows that it is none."""
    if text:
        seen = _Seen(text)
        often = [f"{seen.counts[name]} of {name}" for name in ONCE if seen.counts[name] > 1]
        if often or not _verdict_shown(seen.notes, loaded):
            why = f"it has {', '.join(often)} where a report has one" if often else f"that is {loaded.verdict}"
            return Verification("other", (f"{given.report} does not show the verdict of {given.result}: {why}.",))
    by = notes.get("generator") or "a version that did not note itself"
    named = "its digest" if "result-sha256" in notes else "the name of the program that wrote it"
    return Verification(
        "unknown",
        (
            f"Do not rely on {given.report}: nothing but {named} was checked, which anybody can copy. It says that "
            f"{by} wrote it, and this is {here}, which writes other pages.",
            f"Render the result again with {given.again} and read that.",
        ),
    )


def _verdict_shown(notes: dict[str, str], result: AuditResult) -> bool:
    """Return whether title and heading of a page, of whatever version, show the result's verdict."""
    word = heading(result.verdict)
    return notes.get("title", "").endswith(f": {word}") and notes.get("verdict", "").startswith(word)


def _printed(given: Given, data: bytes, expected: str) -> Verification:
    status, why = verify_pdf.compared(data, expected)
    if status == "same":
        return Verification("same", (f"{given.report} is, byte for byte, what {given.result} says.",))
    again = f"Render the result again with {given.again} -o again.pdf --pdf and read that."
    if status == "unknown":
        told = f"Do not rely on {given.report}: nothing but its digest was checked, which anybody can copy. A PDF is "
        return Verification("unknown", (f"{told}compared by rendering it again: {why.rstrip('.')}.", again))
    fonts = "Its words differ, or it was printed with other fonts."
    return Verification("other", (f"{given.report} is not what {given.result} gives: {why}. {fonts}", again))


def _compared(given: Given, data: bytes, expected: str, notes: dict[str, str]) -> Verification:
    if data == expected.encode("utf-8"):
        return Verification("same", (f"{given.report} is, byte for byte, what {given.result} says.",))
    page, drawn, here = data.decode("utf-8", "replace"), notes.get("figures", ""), generator()["figures"]
    likeness = verify_figures.alike(page, expected, drawn, here) if drawn != here else ""
    if likeness == "same":
        words = f"{given.report} is what {given.result} says; it names {drawn}, here is {here}, and has no figure"
        return Verification("same", (f"{words} that would differ.",))
    if likeness == "shapes":
        return Verification(
            "unknown",
            (
                f"Outside its figures, {given.report} is what {given.result} says, and so are the words in them.",
                f"Where the figures put their points was not checked: {drawn} drew them, here is {here}. Render the "
                f"result again with {given.again} to see them.",
            ),
        )
    return Verification(
        "other",
        (f"{given.report} is not what {given.result} says: {_difference(page, expected)}", "Its digest is untouched."),
    )


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
    block = SequenceMatcher(None, line[:2000], other[:2000], autojunk=False).find_longest_match()
    start = 0 if block.a else max(0, block.size - SHOWN // 3)
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


class _Seen(HTMLParser):
    """What a page of any version notes of itself, as a browser reads it: comments are not there."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.notes: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self.within = ""  # the element whose words are collected
        self.feed(text)
        self.close()
        listed = re.search(r"SHA-256 of result\.json</dt><dd[^>]*>([0-9a-f]{64})</dd>", text)
        if listed and "result-sha256" not in self.notes:  # a page of before the digest stood in its head
            self.notes["result-sha256"] = listed[1]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        name = values.get("name") if tag == "meta" else None
        if tag == "title" or values.get("id") == "verdict":
            self.within = "title" if tag == "title" else "verdict"
            self._note(self.within, "")
        elif name in ("generator", "figures", "result-sha256", "gate-sha256"):
            self._note(name, values.get("content") or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "meta":
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("title", "h2"):
            self.within = ""

    def handle_data(self, data: str) -> None:
        if self.within:
            self.notes[self.within] += data

    def _note(self, name: str, value: str) -> None:
        self.counts[name] += 1
        self.notes.setdefault(name, value)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from error
