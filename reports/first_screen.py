"""The first screen: the verdict, one private record under every defense, privacy against accuracy, who does what.

A report opens with it, and a notebook shows it alone: one piece of HTML that needs nothing around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from leakaudit.gate.consistency import doubts, outcome_doubts, unaudited
from leakaudit.judge import ranking
from leakaudit.judge.facts import facts_of
from leakaudit.reports import figures, steps, view
from leakaudit.reports.html_text import named
from leakaudit.reports.pictures import Drawn, Place, Shown, chosen, drawn_of, shown
from leakaudit.reports.templates import environment, writable
from leakaudit.result import dates
from leakaudit.result.numbers import called, learned, percent
from leakaudit.result.outcome import Outcome
from leakaudit.result.rules import VERDICTS
from leakaudit.result.schema import AttackResult, AuditResult, DefenseResult, Verdict, digest
from leakaudit.result.shapes import what_is_shown

MOST = 13  # cards: the worst verdicts where there are more defenses, and a line says how many others
LARGE, SMALL, FEW = 140, 110, 4  # pixels about a picture's side, and up to how many defenses it is the larger one
DOUBTS = 3  # told before the others fold away


@dataclass(frozen=True)
class Card:
    """One defense in the strip."""

    key: str  # its letter in the figure and the tables
    spec: str
    verdict: Verdict
    word: str
    lines: tuple[str, ...]  # how many records were identified, by which attack, the accuracy
    picture: Shown | None
    empty: str = ""  # why there is no picture, where others have one


@dataclass(frozen=True)
class Strip:
    """One private record, and what is left of it under every defense."""

    original: Shown | None
    cards: tuple[Card, ...]
    note: str  # how the record and the pictures were chosen
    more: int  # defenses that have no card


def fragment(result: AuditResult) -> str:
    """Return the first screen as a piece of HTML for a cell of a notebook: its own style, no script, no links.

    The same result gives the same bytes; all text of the result is escaped. It shows what the result holds: private
    pictures in full, stand-ins or none.
    """
    shows = first(result)
    own = {"drawing": figures.frontier(result, f"frontier-{shows['digest'][:8]}")}  # a notebook may hold several
    return writable(environment().get_template("fragment.html.j2").render(shows | own))


def first(result: AuditResult, outcome: Outcome | None = None) -> dict[str, Any]:
    """Return what the template of the first screen shows, by name."""
    known = digest(result)
    wrong = (*doubts(result), *(outcome_doubts(outcome, result) if outcome else ()))
    trusted = result.verdict == "fail" or not wrong
    return {
        "result": result,
        "digest": known,
        "over": _over(result, known),
        "title": result.target.get("name") or "Unnamed model",
        "doubts": wrong,
        "told_doubts": DOUBTS,
        "contradicted": not trusted,
        "headline": named(steps.headline(result, trusted), [d.spec for d in result.defenses]),
        "strip": strip(result),
        "unscored": bool(result.captured) and not result.captured.get("known"),
        "drawing": figures.frontier(result),
        "tasks": steps.tasks(result, outcome, trusted),
    }


def strip(result: AuditResult) -> Strip:
    """Return the cards of a result, with pictures where it may show some.

    The record shown is the one of which most defenses' pictures are kept, and of those the one on which the attacks
    gained most where nothing protects (`pictures.chosen`).
    """
    drawn = [drawn_of(d) if result.images != "none" else {} for d in result.defenses]
    place = next(iter(chosen(drawn)), None)
    missing = unaudited(result)
    carded = _carded(result.defenses)
    side = LARGE if len(carded) + len(missing) <= FEW else SMALL
    cards = tuple(_card(result, i, drawn[i], place, side) for i in carded)
    cards += tuple(
        Card(
            "",
            spec,
            "inconclusive",
            "Not audited",
            ("It was requested and not audited: nothing here speaks of it.",),
            None,
            "not audited",
        )
        for spec in missing
    )
    original = None
    if place is not None:
        picture = next(of[place].picture for of in drawn if place in of)
        original = shown(picture, "original", side, bool(result.stand_in))
    return Strip(original, cards, _note(result, original), len(result.defenses) - len(carded))


def _over(result: AuditResult, known: str) -> tuple[str, str]:
    made = dict(dates.origin(result))
    battery, seed = (result.settings.get(name) for name in ("battery", "seed"))
    parts = [f"Audited: {made['Audited']}"]
    parts += [f"{battery} battery"] if battery else []
    parts += [f"seed {seed}"] if seed is not None else []
    return f"leakaudit {made['leakaudit']} · privacy audit of shared updates", " · ".join(
        [*parts, f"result {known[:8]}…"]
    )


def _carded(defenses: Sequence[DefenseResult]) -> list[int]:
    """Return which defenses have a card, in their order: the control, then the worst verdicts where not all fit."""
    order = sorted(
        range(len(defenses)), key=lambda i: (defenses[i].spec != "none", VERDICTS.index(defenses[i].verdict), i)
    )
    return sorted(order[:MOST])


def _card(result: AuditResult, index: int, drawn: Mapping[Place, Drawn], place: Place | None, side: int) -> Card:
    defense = result.defenses[index]
    worst, found = ranking.decisive(defense), drawn.get(place) if place is not None else None
    picture = None
    if found is not None:
        told = f", under {defense.spec} by {found.attack.name}"
        picture = shown(
            found.picture,
            "reconstruction",
            side,
            bool(result.stand_in),
            (f"drawn by {found.attack.name}: {_above(found)}",),
            told,
        )
    lines, word = (*_identified(defense, worst), _accuracy(result, defense)), view.heading(defense.verdict)
    return Card(view.key(index), defense.spec, defense.verdict, word, lines, picture, _undrawn(defense))


def _accuracy(result: AuditResult, defense: DefenseResult) -> str:
    value = defense.accuracy.value
    if value is None:
        return f"{result.measure} not measured"
    chance = f", chance {learned(result.chance_accuracy, result.measure)}" if ranking.no_cost(result) else ""
    return f"{called(value, result.measure)}{chance}"


def _undrawn(defense: DefenseResult) -> str:
    """Return why there may be no picture of a record: nothing drew, nothing had time to, or another was kept."""
    if not defense.attacks:
        return "not attacked"
    drawing = [a for a in defense.attacks if a.kind == "reconstruction" and a.role != "bound"]
    if any(a.gallery or facts_of(a).began for a in drawing):
        return "no picture kept"
    return "no time to draw" if any(facts_of(a).out_of_time for a in drawing) else "no attack drew it"


def _above(drawn: Drawn) -> str:
    """Return how far above the best guess a picture is: what is not above it shows nothing of the record."""
    return "no nearer than a guess" if drawn.gain is not None and drawn.gain <= 0 else drawn.words


def _identified(defense: DefenseResult, worst: AttackResult | None) -> tuple[str, ...]:
    share = worst.identification if worst else None
    if worst is None or share is None or share.value is None:
        return ("identification not measured",)
    many = ranking.fruitless(defense)
    if not share.value and many > 1:
        return f"0 of {share.n} identified", f"by any of {many} attacks"
    handed = ", handed the replaced record" if worst.role == "bound" else ""
    return f"{round(share.value * share.n)} of {share.n} identified", f"by {worst.name}{handed}"


def _note(result: AuditResult, original: Shown | None) -> str:
    limits = (
        f"Allowed: at most {percent(result.max_identification)} identified, over the whole 95% interval; "
        f"a guess: {percent(result.chance_identification)}."
    )
    if result.images == "none":
        return f"This report is made without pictures. {limits}"
    if original is None:
        return f"No attack left a picture. {limits}"
    aside = "those of which" if result.stand_in else "flat ones and those of which"
    chosen_by = (
        "(+ dB: above the best guess). By rule it is the record that lost most without a defense, "
        f"{aside} fewer pictures were kept aside."
    )
    if result.stand_in:
        return (
            "Public stand-ins: each is as close to the first as the nearest picture that any attack drew is to the "
            f"private record {chosen_by} {limits}"
        )
    told = " ".join(filter(None, (chosen_by, what_is_shown(result.target), limits)))
    return f"One record, and the nearest picture that any attack drew of it under each defense {told}"
