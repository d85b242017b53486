"""Whether a report says what its result says: the digest in the page, and the page rendered again, byte for byte."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Literal

from leakaudit import outcome as gate
from leakaudit import result as results
from leakaudit.errors import UserError
from leakaudit.outcome import Outcome
from leakaudit.reports.html import generator, render
from leakaudit.reports.view import heading
from leakaudit.result import AuditResult

FIGURE = re.compile(r'<svg class="frontier-.*?</svg>', re.DOTALL)
SHOWN = 120  # characters of a differing line


@dataclass(frozen=True)
class Verification:
    """`same`: the page is the result's; `other`: it is not; `unknown`: its digest fits, the rest cannot be compared."""

    status: Literal["same", "other", "unknown"]
    sentences: tuple[str, ...]


def verify(report: Path, result: Path, outcome: Path | None = None) -> Verification:
    """Compare a report with the result (and the gate's outcome) it names.

    Raises UserError for a file that cannot be read, that is none, or where the page shows a gate and none is given.
    """
    page, stored = _read(report), _read(result)
    loaded = results.load(result)
    text = page.decode("utf-8", "replace")
    claimed = _meta(text, "result-sha256") or _listed(text)
    if claimed is None:
        raise UserError(f"{report} holds no digest: give a report.html that leakaudit wrote.")
    found = hashlib.sha256(stored).hexdigest()
    if claimed != found:
        return Verification("other", (_other_result(report, result, claimed, found, loaded),))
    judged = _outcome(report, result, text, outcome, found)
    if isinstance(judged, Verification):
        return judged
    made, here = _meta(text, "generator"), generator()
    if made != here["generator"]:
        if not _verdict_shown(text, loaded):
            return Verification(
                "other", (f"{report} does not show the verdict of {result}, which is {loaded.verdict}.",)
            )
        by = made or "a version that did not note itself"
        return Verification(
            "unknown",
            (
                f"The digest in {report} is that of {result}.",
                f"The page was written by {by}, this is {here['generator']}: the rest cannot be compared. Render the "
                f"result again with leakaudit report, or verify with the version that wrote the page.",
            ),
        )
    expected = render(loaded, judged).encode("utf-8")
    if expected == page:
        return Verification("same", (f"{report} is, byte for byte, what {result} says.",))
    return _compared(report, result, text, expected.decode("utf-8"))


def _verdict_shown(page: str, result: AuditResult) -> bool:
    """Return whether title and heading of a page, of whatever version, show the result's verdict."""
    shown = [
        re.search(pattern, page, re.DOTALL) for pattern in (r"<title>(.*?)</title>", r'<h2 id="verdict">(.*?)</h2>')
    ]
    words = [re.sub(r"<.*?>", "", found[1]) if found else "" for found in shown]
    return words[0].endswith(f": {heading(result.verdict)}") and words[1].startswith(heading(result.verdict))


def _compared(report: Path, result: Path, page: str, expected: str) -> Verification:
    drawn, here = _meta(page, "figures"), generator()["figures"]
    if drawn != here and _without_figures(page, drawn) == _without_figures(expected, here):
        return Verification(
            "unknown",
            (
                f"The digest and every word in {report} are those of {result}.",
                f"Its figure was drawn by {drawn or 'an unknown library'} and cannot be compared here ({here}).",
            ),
        )
    return Verification(
        "other", (f"{report} is not what {result} says: {_difference(page, expected)}", "Its digest is untouched.")
    )


def _without_figures(page: str, library: str | None) -> str:
    return FIGURE.sub("<svg>", page).replace(library or "", "")


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


def _outcome(report: Path, result: Path, page: str, path: Path | None, digest: str) -> Outcome | Verification | None:
    claimed = _meta(page, "gate-sha256")
    if path is None:
        if claimed:
            raise UserError(f"{report} shows what a gate said: give its outcome with --gate FILE.")
        return None
    loaded = gate.load(path)
    if loaded.result_digest != digest:
        return Verification("other", (f"{path} judges another result than {result}.",))
    if not claimed:
        return Verification("other", (f"{report} shows no gate, but {path} was given.",))
    if hashlib.sha256(_read(path)).hexdigest() != claimed:
        return Verification("other", (f"{report} shows another gate’s outcome than {path}: the digests differ.",))
    return loaded


def _other_result(report: Path, result: Path, claimed: str, found: str, loaded: AuditResult) -> str:
    if results.digest(loaded) == claimed:
        return f"{result} was written anew: its content is what {report} names, its bytes are not."
    return f"{report} names a result with the digest {claimed[:16]}…, {result} has {found[:16]}…."


def _meta(page: str, name: str) -> str | None:
    found = re.search(rf'<meta name="{name}" content="([^"]*)">', page)
    return found[1] if found else None


def _listed(page: str) -> str | None:
    """Return the digest that a page of an earlier version lists for its reader."""
    found = re.search(r"SHA-256 of result\.json</dt><dd[^>]*>([0-9a-f]{64})</dd>", page)
    return found[1] if found else None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from error
