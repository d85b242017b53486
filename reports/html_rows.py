"""The tables of a report as rows: attacks, defenses, baselines, with footnotes for what was not measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from leakaudit.judge import ranking
from leakaudit.judge.facts import facts_of
from leakaudit.reports import view
from leakaudit.reports.html_missing import Missing, Unscored
from leakaudit.reports.standing import Standing, bound_of, bound_text, further_facts, standing
from leakaudit.result import numbers
from leakaudit.result.rules import chance_of
from leakaudit.result.schema import AttackResult, AuditResult, Baseline, DefenseResult, Estimate
from leakaudit.result.scores import SCORES, Score, by_measure, of_attacks


@dataclass(frozen=True)
class Cell:
    """One measured number of a table; `note` points at the reason why there is none."""

    text: str
    interval: str = ""
    note: int | None = None


@dataclass(frozen=True)
class AttackRow:
    """One attack in the table of a defense."""

    attack: AttackResult
    worst: bool
    scored: str
    statuses: str
    cells: tuple[Cell, ...]  # of the columns shown; empty where nothing was scored
    note: int | None
    unscored: int | None  # which item of the list of unscored attacks tells why
    nth: int = 0  # of the attacks of this name on the defense
    untold: str = ""  # why it has no scores, where that list says no more than that time was short


@dataclass(frozen=True)
class DefenseRow:
    """One defense: its line in the summary and its block in the table of attacks."""

    key: str
    defense: DefenseResult
    control: bool
    worst: AttackResult | None
    identified: Cell
    bound: Cell | None
    accuracy: Cell
    seeds: str
    change: Cell
    attacks: tuple[AttackRow, ...]
    standing: Standing
    proven: str  # the bound on identification
    facts: list[tuple[str, str]]  # which the guarantees do not say
    further: tuple[tuple[str, tuple[str, ...]], ...]  # what metrics of plug-ins say of each attack
    skipped: str = ""  # the attacks that were skipped, with the reason; they have no lines


@dataclass(frozen=True)
class Square:
    """One attack on one defense in the matrix: its main number, or which item of the list tells why there is none."""

    text: str
    interval: str = ""
    worst: bool = False
    unscored: int | None = None


@dataclass(frozen=True)
class MatrixRow:
    """One attack against every defense; None where it was not run."""

    name: str
    kind: str
    bound: bool
    squares: tuple[Square | None, ...]


@dataclass(frozen=True)
class AsRun:
    """An attack with the settings it ran with, and the letters of the defenses that it ran so on."""

    attack: AttackResult
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Tables:
    """All rows of a report, their columns and their footnotes."""

    rows: tuple[DefenseRow, ...]
    titles: tuple[str, ...]  # of the columns of the table of attacks
    absent: tuple[str, ...]  # sentences on the scores that no attack has
    notes: tuple[str, ...]
    shares: tuple[str, ...]
    unscored: tuple[Unscored, ...]


class Notes:
    """Reasons numbered in the order in which they are first met."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def number(self, reason: str | None) -> int | None:
        """Return the number of a reason, None for none."""
        if not reason:
            return None
        if reason not in self.reasons:
            self.reasons.append(reason)
        return self.reasons.index(reason) + 1


def tables(result: AuditResult) -> Tables:
    """Return the rows of every defense and attack, in the order of the result."""
    notes, shares, missing = Notes(), Notes(), Missing()
    columns, absent = _columns(result)
    rows = tuple(_defense_row(result, i, d, columns, notes, shares, missing) for i, d in enumerate(result.defenses))
    titles = tuple(_titles(columns))
    return Tables(rows, titles, tuple(absent), tuple(notes.reasons), tuple(shares.reasons), missing.items())


def matrix(rows: Sequence[DefenseRow]) -> tuple[MatrixRow, ...]:
    """Return every attack against every defense, but for attacks that could be scored on none: those stand in a list.

    A square is the share identified, of an attack on labels the share of labels, else the PSNR.
    """
    names = dict.fromkeys((line.attack.name, line.nth) for row in rows for line in row.attacks)
    found = []
    for name, nth in names:
        lines = [next((a for a in row.attacks if (a.attack.name, a.nth) == (name, nth)), None) for row in rows]
        ran = [line.attack for line in lines if line is not None]
        if any(line is not None and line.cells for line in lines):
            squares = tuple(None if line is None else _square(line) for line in lines)
            found.append(MatrixRow(name, ran[0].kind, all(a.role == "bound" for a in ran), squares))
    return tuple(found)


def as_run(rows: Sequence[DefenseRow]) -> tuple[AsRun, ...]:
    """Return every attack with its settings; one row for those that ran alike on several defenses."""
    found: dict[str, tuple[AttackResult, list[str]]] = {}
    for row in rows:
        for line in row.attacks:
            a = line.attack
            alike = repr((a.name, a.role, sorted(a.requires), numbers.pairs(a.settings), numbers.pairs(a.tuned)))
            found.setdefault(alike, (a, []))[1].append(row.key)
    return tuple(AsRun(a, tuple(dict.fromkeys(keys))) for a, keys in found.values())


def _square(line: AttackRow) -> Square:
    if not line.cells:
        return Square(numbers.DASH, unscored=line.unscored)
    a = line.attack
    for name in ("identification", "label-accuracy", "psnr"):
        estimate: Estimate = getattr(a, SCORES[name].field)
        if estimate.value is not None:
            return Square(SCORES[name].write(estimate.value), SCORES[name].ends(estimate), line.worst)
    return Square(numbers.DASH, unscored=line.unscored)


def baselines(result: AuditResult) -> tuple[list[tuple[Baseline, tuple[Cell, ...]]], list[str]]:
    """Return the baselines with their cells, and the footnotes."""
    notes = Notes()
    return [(b, _baseline_cells(b, notes)) for b in result.baselines], notes.reasons


def _cell(score: Score, estimate: Estimate, notes: Notes) -> Cell:
    if estimate.value is None:
        return Cell(numbers.DASH, note=notes.number(estimate.reason))
    return Cell(score.write(estimate.value, unit=False), score.ends(estimate))


def _defense_row(
    result: AuditResult,
    index: int,
    defense: DefenseResult,
    columns: Sequence[Score],
    notes: Notes,
    shares: Notes,
    missing: Missing,
) -> DefenseRow:
    worst, limit = ranking.worst(defense), ranking.bound(defense)
    identified, accuracy = SCORES["identification"], by_measure("accuracy", result.measure)
    nothing = Estimate(reason="No attack on this defense could be scored.")
    return DefenseRow(
        key=view.key(index),
        defense=defense,
        control=defense.spec == "none",
        worst=worst,
        identified=_cell(identified, worst.identification if worst else nothing, shares),
        bound=_bound(defense, limit.identification, shares) if limit else None,
        accuracy=_cell(accuracy, defense.accuracy, shares),
        seeds=", ".join(map(accuracy.write, defense.accuracies)),
        change=_change(result, defense, shares),
        attacks=tuple(
            replace(
                _attack_row(a, a is worst and a.identification.value != 0, columns, notes, missing, defense.spec),
                nth=[b.name for b in defense.attacks[:i]].count(a.name),
            )
            for i, a in enumerate(defense.attacks)
            if not a.settled_by
        ),
        skipped=_skipped(defense, missing),
        standing=standing(result, defense),
        proven=bound_text(defense),
        facts=further_facts(defense),
        further=tuple((a.name, ranking.further(a)) for a in defense.attacks if a.further),
    )


def _skipped(defense: DefenseResult, missing: Missing) -> str:
    some = [a for a in defense.attacks if a.settled_by]
    for attack in some:
        missing.number(attack, defense.spec)
    return f"{', '.join(a.name for a in some)}: {some[0].reason}" if some else ""


def _bound(defense: DefenseResult, measured: Estimate, notes: Notes) -> Cell:
    """Return what who is handed the replaced records identified, with a note where chance put it above a proof."""
    cell, proof = _cell(SCORES["bound"], measured, notes), bound_of(defense)
    if proof is None or measured.value is None or measured.low is None or not measured.low <= proof < measured.value:
        return cell
    hits = f"{round(measured.value * measured.n)} of {measured.n}"
    why = f"More than is proven, but within chance: {hits} records, and the interval reaches down to what is proven."
    return replace(cell, note=notes.number(why))


def _change(result: AuditResult, defense: DefenseResult, notes: Notes) -> Cell:
    change = ranking.cost(result, defense)
    if change is not None:
        return Cell(by_measure("accuracy", result.measure).shift(change), ranking.cost_note(result, defense))
    missing = defense.spec == "none" or defense.accuracy.value is None
    return Cell(numbers.DASH, note=None if missing else notes.number(ranking.no_cost(result)))


def _columns(result: AuditResult) -> tuple[list[Score], list[str]]:
    """Return the scores any attack has, and sentences on those none has."""
    shown: list[Score] = []
    absent: list[str] = []
    attacks = [a for d in result.defenses for a in d.attacks if ranking.scored(a)[0]]
    for score in of_attacks():
        estimates: list[Estimate] = [getattr(a, score.field) for a in attacks]
        if any(e.value is not None for e in estimates) or not attacks:
            shown.append(score)
        elif reasons := dict.fromkeys(e.reason.rstrip(".") for e in estimates if e.reason):
            absent.append(f"{score.heading} is not shown: {'; '.join(reasons)}.")  # an older result gives no reason
    return shown, absent


def _titles(columns: Sequence[Score]) -> list[str]:
    titles = [[score.heading, *(["Chance"] if score.name == "identification" else [])] for score in columns]
    return [title for pair in titles for title in pair]


def _attack_row(
    attack: AttackResult, worst: bool, columns: Sequence[Score], notes: Notes, missing: Missing, spec: str
) -> AttackRow:
    done, of = ranking.scored(attack)
    guess = chance_of(attack)
    chance = numbers.DASH if guess is None else numbers.percent(guess)
    cells: list[Cell] = []
    for score in columns if done else ():
        cells.append(_cell(score, getattr(attack, score.field), notes))
        cells += [Cell(chance)] if score.name == "identification" else []
    note = notes.number(ranking.how_it_ended(attack)) if done else None
    unscored = None if done else missing.number(attack, spec)
    late = not done and facts_of(attack).out_of_time
    untold = ranking.how_it_ended(attack) if late else ""
    ended = ranking.in_words(attack)
    return AttackRow(attack, worst, f"{done} of {of}", ended, tuple(cells), note, unscored, untold=untold)


def _baseline_cells(baseline: Baseline, notes: Notes) -> tuple[Cell, ...]:
    shown = ("identification", "psnr", "ssim", "lpips")
    return tuple(_cell(SCORES[name], getattr(baseline, SCORES[name].field), notes) for name in shown)
