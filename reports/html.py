"""An audit as one HTML file: no JavaScript, nothing loaded from anywhere, readable in light, dark, narrow and print.

The first screen is the answer. Below it stands what an engineer, a privacy officer and a reviewer ask next; long texts
and tables fold away, and are open in print.
"""

from __future__ import annotations

import hashlib
from typing import Any

from leakaudit.compare import advice
from leakaudit.gate.consistency import unaudited
from leakaudit.judge.facts import control_in
from leakaudit.reports import (
    captured,
    costs,
    examined,
    first_screen,
    html_findings,
    html_rows,
    mapping,
    pictures,
    situations,
    view,
)
from leakaudit.reports.html_source import fingerprint
from leakaudit.reports.standing import bound_of
from leakaudit.reports.templates import environment, writable
from leakaudit.result import dates, numbers
from leakaudit.result import outcome as gate
from leakaudit.result.adversary import WORDS
from leakaudit.result.outcome import Outcome
from leakaudit.result.schema import AuditResult, Value
from leakaudit.result.shapes import kind_told, what_is_shown
from leakaudit.result.tasks import measure_of, shares_labels

__all__ = ["generator", "render"]

FEW = 8  # scored records below which the verdict makes nothing of them: `min_records` of `verdict.judge`
HASH_WORDS = {
    "model": "the model: its modules and weights",
    "private": "the private records",
    "test": "the test records",
    "auxiliary": "the adversary’s own records",
    "victims": "which private records were attacked",
    "candidates": "the line-ups: which records stand in each",
    "configuration": "the settings",
    "environment": "the versions it ran with",
}


def render(result: AuditResult, outcome: Outcome | None = None) -> str:
    """Return the whole report, with what the gate said where an `outcome` is given.

    The same result and outcome give the same bytes; text of either is escaped throughout.
    """
    page = environment().get_template("report.html.j2").render(_context(result, outcome))
    return writable(page)


def generator() -> str:
    """Return what a page is made with: what decides its bytes beside the result."""
    from leakaudit.version import __version__

    return f"leakaudit {__version__} (pages {fingerprint()})"


def _context(result: AuditResult, outcome: Outcome | None) -> dict[str, Any]:
    tables = html_rows.tables(result)
    baselines, baseline_notes = html_rows.baselines(result)
    found = html_findings.all_findings(result, outcome)
    return first_screen.first(result, outcome) | {
        "outcome": outcome,
        "made": generator(),
        "origin": dates.origin(result),
        "gate_digest": hashlib.sha256(gate.to_json(outcome).encode("utf-8", "surrogatepass")).hexdigest()
        if outcome
        else "",
        "capital": _capital,
        "unaudited": unaudited(result),
        "repeats": _repeats(result),
        "meaning": view.meaning(result),
        "reasons": view.reasons(result),
        "untold": [(row, told) for row in tables.rows if (told := html_findings.untold(result, row.defense, found))],
        "exposure": [(WORDS.get(k, k), v) for k, v in _exposure(result.exposure)],
        "levels": html_findings.levels(found),
        "severity": html_findings.TITLES,
        "severity_meaning": html_findings.MEANINGS,
        "advice": advice.advise(result),
        "coverage": situations.table(result),
        "tables": tables,
        "rows": tables.rows,
        "matrix": html_rows.matrix(tables.rows),
        "as_run": html_rows.as_run(tables.rows),
        "bounded": any(bound_of(defense) is not None for defense in result.defenses),
        "tried": {row.key: row for row in examined.tried(result)},
        "tried_rows": tuple(zip(examined.columns(result), examined.FIELDS, strict=True)),
        "shown_controls": examined.controls(result),
        "training": view.training(result),
        "chance": numbers.learned(result.chance_accuracy, result.measure),
        "alike": shares_labels(result.target),
        "points": measure_of(result.measure).percent,
        "measure": "" if result.measure == "accuracy" else result.measure[:1].upper() + result.measure[1:],
        "measure_summary": measure_of(result.measure).summary,
        "pictures": pictures.section(result),
        "captured": captured.section(result),
        "target_facts": [(n, kind_told(v) if n == "input_shape" else v) for n, v in sorted(result.target.items())],
        "what_is_shown": what_is_shown(result.target),
        "controls": _controls(result),
        "baselines": baselines,
        "baseline_notes": baseline_notes,
        "waivers": html_findings.waiver_rows(result, outcome),
        "mapping": mapping,
        "hashes": _hashes(result.hashes),
        "costs": costs.costs(result),
        "other_timings": costs.others(result),
        "costs_in_brief": costs.in_brief(result),
        "command": numbers.plain(result.environment.get("command") or result.settings.get("command") or ""),
    }


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:] if sentence[:1].isascii() else sentence


def _exposure(values: dict[str, Value]) -> list[tuple[str, Value]]:
    order = list(WORDS)
    return sorted(values.items(), key=lambda item: (order.index(item[0]) if item[0] in order else len(order), item[0]))


def _hashes(values: dict[str, str]) -> list[tuple[str, str]]:
    order = list(HASH_WORDS)
    known = sorted(values, key=lambda name: (order.index(name) if name in order else len(order), name))
    words = {name: f"what {name.removeprefix('defense:')} learned" for name in known if name.startswith("defense:")}
    return [((HASH_WORDS | words).get(name, name), values[name]) for name in known]


def _controls(result: AuditResult) -> str:
    if result.control() is None:
        return "No undefended control was measured, so nothing shows that these attacks work on this model at all."
    seen = control_in(result)
    if seen.best is None:
        return (
            "No attack that identifies records could be scored on the undefended model, so a low score elsewhere "
            "proves nothing."
        )
    attack, share = seen.best, seen.best.identification
    spread = f" ({numbers.interval(share)})" if numbers.interval(share) else ""
    told = (
        f"Without a defense, {attack.name} identified {numbers.percent(share.value or 0)}{spread} of the "
        f"{share.n} scored record{'' if share.n == 1 else 's'}, against {_guessed(result, seen.floor)}, "
    )
    if not seen.works:
        proven = "these attacks prove nothing on this model, and a low score elsewhere neither"
        return f"{told}not clearly above that: {proven}."
    if share.n < FEW:
        return f"{told}above that; but fewer than {FEW} scored records are little evidence that the attacks work."
    return f"{told}clearly above that: the attacks work on this model."


def _guessed(result: AuditResult, floor: float) -> str:
    """Return what guesses hit that see no update: by chance, and the luckiest of the baselines where that is more."""
    chance = f"{numbers.percent(result.chance_identification)} by guessing without the update"
    return (
        f"{chance} (the luckiest guess below: {numbers.percent(floor)})"
        if floor > result.chance_identification
        else chance
    )


def _repeats(result: AuditResult) -> str:
    """Return whether the same command gives the same result."""
    cut = any(a.statuses.get("budget") for d in result.defenses for a in d.attacks)
    if result.complete and not cut and result.settings.get("budget") is None:
        return "The same command, seed and versions give the same result; only its date and timings differ."
    why = "This audit was interrupted" if not result.complete else "This audit had a time budget"
    return (
        f"{why}. How far it came depends on how fast the machine was: the same command may give another result, even "
        "with the same seed and versions."
    )
