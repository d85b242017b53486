"""All that a terminal can be told of an audit beside its summary: the reasons, what was tried, what went wrong."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from leakaudit.gate.waivers import is_over
from leakaudit.judge import ranking
from leakaudit.judge.facts import facts_of
from leakaudit.judge.findings import mend_of
from leakaudit.judge.verdict import UNFINISHED, reasons_of
from leakaudit.judge.words import brief, grouped, notes_of, sentence
from leakaudit.reports import costs, examined, view
from leakaudit.reports.standing import in_brief
from leakaudit.reports.terminal_lines import paragraph
from leakaudit.result import numbers
from leakaudit.result.schema import AttackResult, AuditResult, DefenseResult, Estimate, Waiver
from leakaudit.result.scores import SCORES, by_measure

if TYPE_CHECKING:
    from rich.console import Console

Line = Callable[..., int]


def details(result: AuditResult, console: Console) -> None:
    """Print what was measured and why it was judged so, defense by defense, and what the reader must not overlook."""

    def line(words: str, style: str = "", indent: int = 0, hanging: int = 0) -> int:
        return paragraph(console, words, style, indent, hanging)

    for reason in view.reasons(result):
        line(reason)
    _defenses(result, line)
    for (attack, ended), specs in unscored(result).items():
        line(f"not scored: {attack} on {', '.join(specs)} ({ended})", "yellow", hanging=2)
    for told, specs in skipped(result).items():
        line(f"skipped on {', '.join(specs)}: {told}", "dim", hanging=2)
    for (attack, what), specs in noted(result).items():
        line(f"note: {attack} on {', '.join(specs)} {what}", "dim", hanging=2)
    for name, words in examined.controls(result):
        line(f"{name}: {words}", "dim", hanging=2)
    for finding in result.findings:
        if finding.severity != "info":
            line(f"{finding.severity}: {finding.message}", "yellow", hanging=2)
            line(f"mend: {finding.mend or mend_of(finding.id)}", indent=2, hanging=2)
    for waiver in result.waivers:
        line(_waived(waiver), "yellow", hanging=2)
    for note in (view.training(result), ranking.no_cost(result), costs.in_brief(result)):
        if note:
            line(note, "dim")


def _defenses(result: AuditResult, line: Line) -> None:
    """Print of each defense its verdict, numbers and intervals, reasons, what is proven and what was tried."""
    told: dict[str, str] = {}  # sentences by the defense that gave them first
    for defense in result.defenses:
        line(f"{defense.spec}: {defense.verdict}", "bold", hanging=4)
        line(measured(result, defense), indent=2)
        for together in grouped(reasons_of(result, defense)):
            said = sentence(together)
            first = told.setdefault(said, defense.spec)
            line(said if first == defense.spec else f"{brief(together)}, as under {first}.", indent=2)
        for words in filter(None, (in_brief(result, defense), examined.in_brief(defense))):
            line(words, "dim", indent=2)


def measured(result: AuditResult, defense: DefenseResult) -> str:
    """Return the numbers of a defense in a sentence, each with its interval as far as there is one."""
    worst, drawn, handed = ranking.worst(defense), ranking.drawn(defense), ranking.bound(defense)
    parts = [
        f"{worst.name} identified {_told('identification', worst.identification)}" if worst else "no attack scored"
    ]
    if drawn:
        near = f"{_told('psnr', drawn.psnr)}, SSIM {_told('ssim', drawn.ssim)}"
        parts.append(f"in the median the closest pictures of any attack have {near}")
    if handed and handed.identification.value is not None:
        found = _told("identification", handed.identification)
        parts.append(f"{handed.name}, handed x̃ (the replaced records themselves), {found}")
    if defense.accuracy.value is not None:
        told = numbers.called(defense.accuracy.value, result.measure)
        parts.append(f"{told} {numbers.around(defense.accuracy, result.measure)}".rstrip())
    change, runs = ranking.cost(result, defense), ranking.cost_note(result, defense)
    if change is not None:
        score = by_measure("accuracy", result.measure)
        by = f"{score.shift(change)} points" if score.share else score.shift(change)
        parts.append(f"{by} against no defense{f' ({runs})' if runs else ''}")
    return f"Measured: {'; '.join(parts)}."


def _told(name: str, estimate: Estimate) -> str:
    return SCORES[name].measured(estimate) or numbers.DASH


def unscored(result: AuditResult) -> dict[tuple[str, str], list[str]]:
    """Return, by attack and what became of it, the defenses on which it was not scored, but where a reason told it."""
    found: dict[tuple[str, str], list[str]] = {}
    for defense in result.defenses:
        named = {reason.attack for reason in reasons_of(result, defense) if reason.id == UNFINISHED}
        for attack in (a for a in defense.attacks if not a.settled_by):
            if ranking.scored(attack)[0] == 0 and not (attack.reason and attack.name in named):
                why = f"{ranking.in_words(attack)}: {ranking.how_it_ended(attack) or 'no reason was recorded'}"
                found.setdefault((attack.name, why), []).append(defense.spec)
    return found


def skipped(result: AuditResult) -> dict[str, list[str]]:
    """Return, by the attacks that were skipped and the reason, the defenses on which they were."""
    found: dict[str, list[str]] = {}
    for defense in result.defenses:
        some = [a for a in defense.attacks if a.settled_by]
        if some:
            found.setdefault(f"{', '.join(a.name for a in some)} ({some[0].reason})", []).append(defense.spec)
    return found


def noted(result: AuditResult) -> dict[tuple[str, str], list[str]]:
    """Return, by scored attack and how it ran or what a plug-in's metric says, the defenses on which it did."""
    found: dict[tuple[str, str], list[str]] = {}
    for defense in result.defenses:
        for attack in defense.attacks:
            if (notes := notes_of(attack)) and ranking.scored(attack)[0]:
                found.setdefault((attack.name, f"({'; '.join(notes)})"), []).append(defense.spec)
            for words in ranking.further(attack):
                found.setdefault((attack.name, f"by a plug-in: {words}"), []).append(defense.spec)
    return found


def _waived(waiver: Waiver) -> str:
    where = ", ".join([waiver.defense, *([f"attack {waiver.attack}"] if waiver.attack != "*" else [])])
    by = f" by {waiver.by}" if waiver.by else ""
    over = "waiver, expired" if is_over(waiver, dt.date.today()) else "waiver"
    return f"{over}: {waiver.rule} on {where}, until {waiver.expires}{by}: {waiver.reason}"


@dataclass(frozen=True)
class Left:
    """What a summary leaves out, counted."""

    lost: tuple[tuple[str, int], ...]  # attacks that were begun or could have been and have no score, by their status
    partly: int  # attacks without a score on some of their victims, or cut short on some
    warnings: int
    waivers: int
    notes: int
    skipped: int  # attacks that could not change a settled verdict


def left_out(result: AuditResult) -> Left:
    """Count what went wrong or has a note: what is not applicable was not meant to run, and is not counted."""
    known = [facts_of(a) for d in result.defenses for a in d.attacks]
    attacks = [f.attack for f in known if not (f.inapplicable or f.skipped)]
    none = [a for a in attacks if not facts_of(a).scored]
    kinds: dict[str, int] = {}
    for attack in none:
        most = _ending(attack)
        kinds[most] = kinds.get(most, 0) + 1
    return Left(
        lost=tuple(sorted(kinds.items())),
        partly=sum(facts_of(a).scored > 0 and facts_of(a).unfinished for a in attacks),
        warnings=sum(finding.severity != "info" for finding in result.findings),
        waivers=len(result.waivers),
        notes=len(noted(result)),
        skipped=sum(f.skipped for f in known),
    )


def _ending(attack: AttackResult) -> str:
    """Return the status in which most of its victims ended."""
    return max(sorted(attack.statuses), key=lambda status: attack.statuses[status], default="failed")
