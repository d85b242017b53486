"""An audit and its gate as Markdown: a comment on a pull or merge request, and `$GITHUB_STEP_SUMMARY`.

Every word of the result and of the configuration is third-party text: it is shown literally, and no mention, reference,
link, emoji, formula, HTML or quick action of GitHub or GitLab is made of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from leakaudit.compare.changes import Change
from leakaudit.errors import UserError
from leakaudit.files.writing import append
from leakaudit.judge import ranking
from leakaudit.judge.conclusions import conclusions, repeats
from leakaudit.judge.findings import accepted, unused_mend
from leakaudit.judge.verdict import SKIPPED
from leakaudit.reports import examined, view
from leakaudit.reports.markdown_text import code, item, literal, row, table
from leakaudit.result import dates, numbers
from leakaudit.result.outcome import Check, Outcome
from leakaudit.result.rules import judged
from leakaudit.result.schema import AuditResult, DefenseResult, Estimate, Value, digest
from leakaudit.result.scores import by_measure, of_rule
from leakaudit.result.tasks import measure_of, shares_labels, spoken

MARK = "<!-- leakaudit -->"  # what a text begins with, so that a job finds its comment again; it is not shown
COMMENT = 65_000  # bytes: GitHub takes comments of 65,536 characters
SUMMARY = 1_048_576  # bytes: what GitHub takes of one step's summary
SYMBOLS = {
    "pass": "✅ pass",
    "fail": "❌ fail",
    "inconclusive": "❓ undecided",
    "warning": "⚠️ warning",
    "waived": "⏸️ waived",
    "error": "❌ error",
    "info": "ℹ️ info",
    "expired": "❌ expired",
    "in-force": "⏸️ in force",
    "unused": "⚠️ unused",
}
FINDING = 1_200  # characters of a finding with the waiver that accepts it
UNUSED = 5  # mends of unused waivers shown: more say nothing new


@dataclass(frozen=True)
class Section:
    """A part of the text that can be shortened by leaving out rows at its end."""

    head: tuple[str, ...]
    rows: tuple[str, ...] = ()
    tail: tuple[str, ...] = ()


def render(
    result: AuditResult,
    outcome: Outcome | None = None,
    comparison: Sequence[tuple[Change, float | None]] | None = None,
    most: int = COMMENT,
) -> str:
    """Return Markdown of at most `most` bytes; what does not fit is left out, and a sentence says so.

    `comparison` are all changes since a baseline with their corrected p-values (`leakaudit.gate.decision.compare`);
    without it the changes are those the gate judged. A state is always a word beside its symbol.
    """
    sections = [_verdict(result, outcome)]
    if outcome is not None:
        sections += [_checks(outcome, result.measure), _to_do(outcome)]
    sections += [_findings(result, outcome), _defenses(result), _tried(result), _further(result)]
    if comparison is not None:
        sections.append(_comparison(comparison))
    elif outcome is not None:
        sections.append(_regressions(outcome, result.measure))
    if outcome is not None:
        sections.append(_waivers(outcome))
    sections += [
        _folded("Not tested", result.not_tested),
        _folded("Assumptions", result.assumptions),
        _footer(result, outcome),
    ]
    for limit in (10_000, 300, 100, 50, 20, 10, 5, 2, 0):
        text = f"{MARK}\n" + "\n\n".join(filter(None, (_joined(section, limit) for section in sections))) + "\n"
        if len(text.encode()) <= most:
            break
    return text


def unjudged(said: str, code: int, most: int = 2_000) -> str:
    """Return Markdown for a gate that ended with exit code 2 or 4 and judged nothing: what it said on stderr."""
    why = "its configuration or a file cannot be used" if code == 2 else "an internal error"
    lines = [line.removeprefix("leakaudit: ") for line in said.splitlines() if line.strip()]
    told = literal(" ".join(lines) or "It said nothing.", most)
    return (
        f"{MARK}\n## leakaudit: ❌ Not judged\n\nThe gate could not judge this change, so nobody knows whether it is "
        f"private: {why} (exit code {code}).\n\n{told}\n"
    )


def append_step_summary(text: str) -> bool:
    """Append text to the file that `$GITHUB_STEP_SUMMARY` names; return whether there is one.

    GitHub drops a step's whole summary where it is larger than 1 MiB, so a sentence is appended in place of a text that
    would make it so. Raises UserError when the file cannot be written.
    """
    place = os.environ.get("GITHUB_STEP_SUMMARY")
    if not place:
        return False
    path = Path(place)
    try:
        taken = path.stat().st_size if path.exists() else 0
        if taken + len(text.encode()) + 2 > SUMMARY:
            text = "leakaudit: this summary is left out, the step's would be larger than GitHub takes.\n"
        append(path, ("\n" if taken else "") + text.rstrip("\n") + "\n")
    except OSError as error:
        raise UserError(f"cannot write GITHUB_STEP_SUMMARY ({path}): {error.strerror or error}.") from error
    return True


def _joined(section: Section, limit: int) -> str:
    rows = section.rows[:limit]
    left = len(section.rows) - len(rows)
    note = f"\n*{left} more left out to fit the size allowed here; the report has all.*" if left else ""
    return "\n".join([*section.head, *rows, *([note] if note else []), *section.tail])


def _verdict(result: AuditResult, outcome: Outcome | None) -> Section:
    name = code(result.target.get("name") or "model")
    if outcome is None:
        words = {"pass": "✅ Pass", "fail": "❌ Fail", "inconclusive": "❓ Inconclusive"}[result.verdict]
        rows = tuple(item(reason) for reason in view.reasons(result) or result.reasons)
        return Section((f"## leakaudit: {words}", "", f"Privacy audit of {name}. {view.meaning(result)}", ""), rows)
    words = {"pass": "✅ Gate passed", "fail": "❌ Gate failed", "inconclusive": "❓ Gate undecided"}[outcome.verdict]
    counts = [(sum(_state(check) == state for check in outcome.checks), state) for state in _STATES]
    told = ", ".join(f"{count} {_STATES[state]}" for count, state in counts if count) or "no checks"
    late = sum(state.state == "expired" for state in outcome.waivers)
    expired = f" {late} waiver{'s have' if late > 1 else ' has'} expired, which fails the gate." if late else ""
    verdict = {"pass": "passed", "fail": "failed", "inconclusive": "undecided"}[result.verdict]
    own = f" The audit by itself, at its own limit of {numbers.percent(result.max_identification)}: {verdict}."
    unfinished = "" if result.complete else " **The audit did not finish:** what is missing is not safe."
    line = f"Privacy audit of {name}: {told}.{expired}{own}{unfinished}"
    notes = tuple(item(note) for note in outcome.notes)
    return Section((f"## leakaudit: {words}", "", line, *([""] if notes else [])), notes)


_STATES = {
    "fail": "failed",
    "inconclusive": "undecided",
    "warning": "only warned of",
    "waived": "waived",
    "pass": "passed",
}


def _state(check: Check) -> str:
    """Return what became of a check: a warning does not fail the gate, and neither does what is waived."""
    if check.status == "pass":
        return "pass"
    if check.waiver is not None:
        return "waived"
    return check.status if check.level == "error" else "warning"


def _ordered(checks: Iterable[Check]) -> list[Check]:
    order = list(_STATES)
    return sorted(checks, key=lambda check: order.index(_state(check)))


def _checks(outcome: Outcome, measure: str) -> Section:
    rows = []
    for check in _ordered(c for c in outcome.checks if not c.rule.startswith("regression-")):
        metric = check.rule
        limit = "" if check.threshold is None else of_rule(metric, measure).write(check.threshold)
        side = {"max": "at most ", "min": "at least ", "": ""}[check.direction]
        rows.append(
            row(
                SYMBOLS[_state(check)],
                code(_title(check)),
                code(check.defense),
                code(check.attack),
                _measured(check.measured, metric, measure),
                side + limit if limit else "",
            )
        )
    if not rows:
        return Section(())
    head = table("Status", "Check", "Defense", "Attack", "Measured (95% interval)", "Allowed", right=2)
    presets = f" (preset {', '.join(map(code, outcome.presets))})" if outcome.presets else ""
    return Section((f"### Checks{presets}", "", *head), tuple(rows))


def _title(check: Check) -> str:
    return check.id.rsplit("#", 1)[0].removesuffix(f"/{check.defense}") if check.defense else check.rule


def _to_do(outcome: Outcome) -> Section:
    """Return a sentence and its mend for each check that is not passed or waived."""
    rows = [
        f"- {SYMBOLS[_state(c)]}: {literal(c.message)}" + (f" **What to do:** {literal(c.mend)}" if c.mend else "")
        for c in _ordered(outcome.checks)
        if _state(c) not in ("pass", "waived")
    ]
    return Section(("### Why, and what to do", ""), tuple(rows)) if rows else Section(())


def _findings(result: AuditResult, outcome: Outcome | None) -> Section:
    """Return what no check says: leaks and doubts without a gate, and what was noticed besides it."""
    shown = [c for c in outcome.checks if _state(c) not in ("pass", "waived")] if outcome else []
    rows = [
        f"- {SYMBOLS[f.severity]}{', waived,' if accepted(f) else ''} {code(f.id)}: {literal(f.message, FINDING)} "
        f"**What to do:** {literal(f.mend)}"
        for f in conclusions(result, outcome)
        if (f.severity != "info" or f.id == SKIPPED)
        and not f.id.startswith(("gate-", "waiver-"))
        and not any(repeats(check, f) for check in shown if check.rule != "complete")
    ]
    return Section((f"### {'Also noticed' if outcome else 'Findings'}", ""), tuple(rows)) if rows else Section(())


def _defenses(result: AuditResult) -> Section:
    """Return what each defense leaks and costs, without the columns in which nothing was measured."""
    cells: dict[str, list[str]] = {}
    for defense in result.defenses:
        worst, handed, drawn = ranking.worst(defense), ranking.bound(defense), ranking.drawn(defense)
        row_ = {
            "Defense": code(defense.spec),
            "Audit": SYMBOLS[defense.verdict] if defense in judged(result) else _control(defense),
            "Identified, worst attack (95%)": _leak(worst.identification, worst.name) if worst else "",
            "Identified, handed x̃": _leak(handed.identification, "") if handed else "",
            "Closest pictures": _measured(drawn.psnr, "psnr") if drawn else "",
            spoken("Accuracy (95%)", result.measure): _measured(defense.accuracy, "accuracy", result.measure),
            "Cost, points" if measure_of(result.measure).percent else "Cost": _cost(result, defense),
        }
        for title, cell in row_.items():
            cells.setdefault(title, []).append(cell)
    shown = {t: column for t, column in cells.items() if any(cell not in ("", "not measured") for cell in column)}
    rows = tuple(row(*each) for each in zip(*shown.values(), strict=True))
    chance = numbers.percent(result.chance_identification)
    those = "its class" if shares_labels(result.target) else "the nearest labels"
    notes = [
        f"Identified: the right record picked among {those} (chance {chance}). Higher leaks more, and so does a "
        "higher PSNR of the closest pictures.",
        *filter(None, (view.training(result), ranking.no_cost(result))),
    ]
    if not rows:
        return Section(())
    return Section(("### Defenses", "", *table(*shown, right=len(shown) - 2)), rows, ("", *notes))


def _tried(result: AuditResult) -> Section:
    """Return what the audit found out by trying, whatever the defenses say of themselves."""
    rows = tuple(
        row(code(t.spec), *map(_told, (t.changes, t.works, t.union, t.tenth, t.classes, t.exact)))
        for t in examined.tried(result)
    )
    controls = tuple(f"- {name}: {literal(told, FINDING)}" for name, told in examined.controls(result))
    head = (*table("Defense", *examined.columns(result)),) if rows else ()
    tail = (*([""] if rows and controls else []), *controls)
    return Section(("### What the audit tried itself", "", *head), rows, tail) if rows or controls else Section(())


def _told(cell: examined.Told) -> str:
    return literal(cell.text) + (f" <sub>{literal(cell.under)}</sub>" if cell.under else "")


def _further(result: AuditResult) -> Section:
    """Return what metrics of plug-ins say, which no verdict is judged by."""
    rows = [
        f"- {code(attack.name)} on {code(defense.spec)}: {literal(words, FINDING)}"
        for defense in result.defenses
        for attack in defense.attacks
        for words in ranking.further(attack)
    ]
    return Section(("### By metrics of plug-ins", ""), tuple(rows)) if rows else Section(())


def _control(defense: DefenseResult) -> str:
    """Return what the undefended row shows: a leak there is no failure but what the others are compared with."""
    return {"fail": "control: leaks", "pass": "control: does not leak"}.get(defense.verdict, "control: undecided")


def _leak(estimate: Estimate, attack: str) -> str:
    by = f" by {code(attack)}" if attack else ""
    return _measured(estimate, "identification") + by if estimate.value is not None else ""


def _cost(result: AuditResult, defense: DefenseResult) -> str:
    found = ranking.cost(result, defense)
    note = ranking.cost_note(result, defense)
    return "" if found is None else by_measure("accuracy", result.measure).shift(found) + (f" ({note})" if note else "")


def _regressions(outcome: Outcome, measure: str) -> Section:
    """Return what changed against the baseline, as the gate judged it."""
    rows = []
    for check in _ordered(c for c in outcome.checks if c.rule.startswith("regression-")):
        metric = check.rule.removeprefix("regression-")
        before, after, p = (check.evidence.get(name) for name in ("before", "after", "p_corrected"))
        rows.append(
            row(
                SYMBOLS[_state(check)],
                code(spoken(metric, measure)),
                code(check.defense),
                _known(before, metric, measure),
                _known(after, metric, measure),
                of_rule(metric, measure).shifted(check.measured),
                _known(p, "p"),
            )
        )
    if not outcome.baseline:
        return Section(())
    head = f"### Changes against {code(outcome.baseline)}", ""
    if not rows:
        return Section((*head, "The gate asks for no comparison."))
    titles = table("Status", "What", "Defense", "Before", "After", "Change (95% interval)", "p", right=4)
    return Section(
        (*head, *titles), tuple(rows), ("", "p: how likely at least this loss is by chance alone, corrected.")
    )


def _comparison(comparison: Sequence[tuple[Change, float | None]]) -> Section:
    """Return every change, whatever the gate asks for."""
    rows = tuple(
        row(
            code(spoken(change.metric, change.measure)),
            code(change.defense) + (f" (was {code(change.was)})" if change.was != change.defense else ""),
            _measured(change.before, change.metric, change.measure),
            _measured(change.after, change.metric, change.measure),
            of_rule(change.metric, change.measure).shifted(change.change)
            if change.reason is None
            else literal(change.reason),
            _known(p, "p"),
        )
        for change, p in comparison
    )
    titles = table("What", "Defense", "Before (95%)", "After (95%)", "Change (95%)", "p", right=4)
    return Section(("### What changed", "", *titles), rows or (row("nothing in common", "", "", "", "", ""),))


def _waivers(outcome: Outcome) -> Section:
    rows = [
        row(
            SYMBOLS[state.state],
            code(state.waiver.rule),
            code(state.waiver.defense),
            code(state.waiver.attack),
            literal(state.waiver.expires, 40),
            literal(state.waiver.by),
            literal(state.waiver.reason),
        )
        for state in outcome.waivers
    ]
    head = table("State", "Check", "Defense", "Attack", "Last day", "Decided by", "Reason")
    rules = [check.rule for check in outcome.checks]
    unused = dict.fromkeys(unused_mend(s.waiver.rule, rules) for s in outcome.waivers if s.state == "unused")
    tail = ("", *(item(f"Unused: {mend}") for mend in list(unused)[:UNUSED])) if unused else ()
    return Section(("### Waivers", "", *head), tuple(rows), tail) if rows else Section(())


def _folded(title: str, sentences: Sequence[str]) -> Section:
    rows = tuple(item(sentence) for sentence in sentences)
    if not rows:
        return Section(())
    return Section((f"<details><summary>{title} ({len(rows)})</summary>", ""), rows, ("", "</details>"))


def _footer(result: AuditResult, outcome: Outcome | None) -> Section:
    parts = [f"Result {code(outcome.result_digest if outcome else digest(result))}"]
    if outcome is not None and outcome.baseline_digest:
        parts.append(f"baseline {code(outcome.baseline_digest)}")
    version, commit = result.environment.get("leakaudit"), dates.commit_of(result)
    made = f", audited {literal(dates.words(result.made), 40)}" if result.made else ""
    made += f" by leakaudit {literal(version, 40)}" if version else ""
    made += f" at commit {code(commit)}" if commit else ""
    day = f", judged on {literal(outcome.date, 40)}" if outcome is not None else ""
    return Section((f"<sub>{', '.join(parts)} (SHA-256){made}{day}.</sub>",))


def _measured(estimate: Estimate, metric: str, measure: str = "accuracy") -> str:
    if estimate.value is None:
        return "not measured" if estimate.reason else ""
    return of_rule(metric, measure).measured(estimate)


def _known(value: Value, metric: str, measure: str = "accuracy") -> str:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return ""
    return numbers.significant(value, 2) if metric == "p" else of_rule(metric, measure).write(value)
