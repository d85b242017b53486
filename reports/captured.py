"""What is said of captured updates, and what attacks made of those whose records nobody knows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from leakaudit.judge.captured import numbers_of
from leakaudit.reports.pictures import SMALL, Shown, shown
from leakaudit.result.attempts import Attempt
from leakaudit.result.claims import ClaimRow
from leakaudit.result.numbers import hits, plain, significant
from leakaudit.result.schema import AttackResult, AuditResult, Picture, Value

MOST, UPDATES = 2_000_000, 8  # characters of encoded pictures, and captured updates, that a page shows
ROW = 16  # pictures of one attack on one update
WORDS = {
    "file": "file",
    "sha256": "SHA-256 of the file",
    "framework": "captured by",
    "captured": "captured at",
    "sends": "what was sent",
    "updates": "updates",
    "records": "records behind each",
    "client": "client",
    "mode": "mode",
    "defense": "claimed defense",
    "claimed": "claimed settings",
    "note": "note",
}


@dataclass(frozen=True)
class Try:
    """What one attack made of one captured update, in words, and the pictures that it drew."""

    attack: str
    told: str  # how it ended, and its objective beside the usual one
    labels: str
    scored: str  # what it reached on other records
    pictures: tuple[Shown, ...]


@dataclass(frozen=True)
class Section:
    """The facts in their order; by captured update what the attacks made of it, and how much is not shown."""

    facts: tuple[tuple[str, Value], ...]
    known: bool
    claims: tuple[tuple[ClaimRow, str], ...]  # each with its numbers in words
    tries: tuple[tuple[int, tuple[Try, ...]], ...]
    left_out: int


def section(result: AuditResult) -> Section | None:
    """Return what a report shows of captured updates, None where none were audited."""
    captured = result.captured
    if not captured:
        return None
    facts = tuple((words, captured[name]) for name, words in WORDS.items() if name in captured)
    by_update: dict[int, list[Try]] = {}
    room, lost = MOST, 0
    for attack, attempt in _attempts(result):
        pictures = tuple(_picture(attack, attempt, i) for i in range(len(attempt.pictures)))
        kept = pictures[:ROW] if attempt.update < UPDATES else ()
        if sum(each.weight for each in kept) > room:
            kept = ()
        room -= sum(each.weight for each in kept)
        lost += len(pictures) - len(kept)
        if attempt.update < UPDATES:
            by_update.setdefault(attempt.update, []).append(_try(attack, attempt, kept))
    tries = tuple((update, tuple(of)) for update, of in sorted(by_update.items()))
    claims = tuple((row, numbers_of(row)) for row in result.claims)
    return Section(facts, bool(captured.get("known")), claims, tries, lost)


def in_brief(result: AuditResult) -> tuple[str, ...]:
    """Return what a terminal says of captured updates: what they are, and what was made of them; empty where none."""
    captured = result.captured
    if not captured:
        return ()
    count, size = captured.get("updates"), captured.get("records")
    whose = "whose records are known" if captured.get("known") else "nobody says of which"
    first = (
        f"Captured: {plain(captured.get('file'))}, {plain(count)} update{'' if count == 1 else 's'} of {plain(size)} "
        f"record{'' if size == 1 else 's'}, {whose} ({plain(captured.get('client'))})."
    )
    told = [f"{row.what} of {row.mechanism}: {numbers_of(row)}" for row in result.claims if row.verdict == "broken"]
    first += f" A claim is broken: {'; '.join(told)}." if told else ""
    if captured.get("known"):
        return (first,)
    drew = [f"{a.name} drew {_drawn(t)}{_beside(t)}" for a, t in _attempts(result) if t.update == 0 and t.pictures]
    other = f"The scores are of {plain(result.settings.get('records'))} other records, sent the same way."
    which = "captured" if count == 1 else "first"
    return (first, other, *([f"Of the {which} update, {'; '.join(drew)}."] if drew else []))


def _attempts(result: AuditResult) -> Iterator[tuple[AttackResult, Attempt]]:
    return ((a, t) for d in result.defenses for a in d.attacks for t in a.captured)


def _try(attack: AttackResult, attempt: Attempt, pictures: tuple[Shown, ...]) -> Try:
    ended = "" if attempt.status == "converged" else " ".join(filter(None, (attempt.status, attempt.reason)))
    objective = ""
    if attempt.objective is not None:
        objective = f"objective {significant(attempt.objective)}"
        objective += f", usually {significant(attempt.usual)}" if attempt.usual is not None else ""
    proven = f"{attempt.certified} proven" if attempt.certified else ""
    counted = Counter(attempt.labels)
    labels = ", ".join(name if n == 1 else f"{name} ×{n}" for name, n in sorted(counted.items()))
    measured = attack.label_accuracy if attack.kind == "labels" else attack.identification
    scored = hits(measured) + (" labels" if attack.kind == "labels" else " identified") if measured.n else "not scored"
    told = "; ".join(filter(None, (ended, objective, proven))) or "done"
    return Try(attack.name, told, labels, scored, pictures)


def _drawn(attempt: Attempt) -> str:
    count, proven = len(attempt.pictures), f", {attempt.certified} proven" if attempt.certified else ""
    return f"{count} picture{'' if count == 1 else 's'}{proven}"


def _beside(attempt: Attempt) -> str:
    if attempt.objective is None or attempt.usual is None:
        return ""
    return f" (objective {significant(attempt.objective)}, of the others {significant(attempt.usual)} in the median)"


def _picture(attack: AttackResult, attempt: Attempt, place: int) -> Shown:
    label = attempt.labels[place] if place < len(attempt.labels) else "?"
    one = Picture(attempt.update, place, label, None, None, attempt.pictures[place])
    return shown(one, "reconstruction", SMALL, False, told=f", by {attack.name}, of what was captured")
