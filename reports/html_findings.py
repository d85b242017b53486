"""Findings, checks of the gate and waivers, as the report lists them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from leakaudit.judge.conclusions import conclusions
from leakaudit.judge.verdict import LEAKS, reasons_of
from leakaudit.judge.words import sentences
from leakaudit.reports.html_missing import merged
from leakaudit.result.numbers import plain, significant
from leakaudit.result.outcome import Outcome
from leakaudit.result.rules import judged
from leakaudit.result.schema import AuditResult, DefenseResult, Estimate, Finding, Severity, Value, Waiver
from leakaudit.result.scores import SCORES, Score

TITLES: dict[Severity, str] = {"error": "Errors", "warning": "Warnings", "info": "For information"}
MEANINGS: dict[Severity, str] = {
    "error": "What leaked, or must be mended first.",
    "warning": "What is undecided, or weakens the audit.",
    "info": "What was noticed and asks for nothing.",
}
# Evidence that a message already says, or that others of the list say together.
# Said by the finding's place or its sentence.
SAID = {"defense", "attack", "low", "high", "n", "unit", "waived", "waived_until", "waived_by", "p", "rose", "fell"}
SAID |= {"before", "after", "scored", "statuses", "victims"}
MEASURED = {  # by findings of the audit: a score
    "identification-above-limit": "identification",
    "undecided": "identification",
    "control-does-not-leak": "identification",
    "undefended-leaks": "identification",
    "reconstruction-close": "psnr",
    "labels-leak": "label-accuracy",
}
WORDS = {
    "measured": "measured",
    "p_corrected": "p, corrected",
    "limit": "limit",
    "guess": "a guess without the update",
    "role": "kind of attack",
}
MANY = 12  # rows of warnings that stand open
SHORT = {  # what was found, where the columns beside it hold all the numbers of its sentence
    LEAKS[0]: "Identified",
    LEAKS[1]: "Rebuilds pictures far closer than a guess",
    "labels-leak": "Reads labels off the updates",
}
STATES = {
    "in-force": "in force",
    "expired": "expired",
    "unused": "matches no check",
    "not judged": "not judged: no gate was run with this report",
}


@dataclass(frozen=True)
class Told:
    """One finding in a row: what was found, what was measured of it and what is allowed, and its further evidence."""

    id: str
    text: str
    measured: str
    limit: str
    evidence: tuple[tuple[str, str], ...]
    mend: int  # the number of what to do about it, 0 for nothing


@dataclass(frozen=True)
class Row:
    """All that was found of one attack on one defense; `attack` is empty for what is of no one attack."""

    attack: str
    role: str
    told: tuple[Told, ...]


@dataclass(frozen=True)
class Block:
    """The rows of one defense, of all of them (`*`) or of the audit as a whole (empty)."""

    about: str
    rows: tuple[Row, ...]

    @property
    def lines(self) -> int:
        """How many lines of a table they take: one for each finding."""
        return sum(len(row.told) for row in self.rows)


@dataclass(frozen=True)
class Level:
    """The findings of one severity, and what to do about them by number."""

    severity: Severity
    blocks: tuple[Block, ...]
    mends: tuple[tuple[int, str, tuple[str, ...]], ...]  # number, what to do, about which kinds of findings

    @property
    def folded(self) -> bool:
        """Whether they fold away: what asks for nothing, and warnings that would push all else out of sight."""
        many = sum(len(block.rows) for block in self.blocks) > MANY
        return self.severity == "info" or (self.severity == "warning" and many)

    @property
    def count(self) -> int:
        """How many findings there are."""
        return sum(len(row.told) for block in self.blocks for row in block.rows)


@dataclass(frozen=True)
class WaiverRow:
    """A waiver, what it does, and the checks it covers."""

    waiver: Waiver
    state: str
    checks: tuple[str, ...]


def levels(found: Sequence[Finding]) -> list[Level]:
    """Return findings by severity, errors first, then by defense and attack in the order in which they come.

    What mends several of them is told once, under a number that counts through all severities.
    """
    made: list[Level] = []
    numbers: dict[str, int] = {}
    told_once = merged(found)
    for severity in TITLES:
        rows: dict[str, dict[tuple[str, str], list[Told]]] = {}
        own: dict[str, list[str]] = {}
        for finding in (f for f in told_once if f.severity == severity):
            about = str(finding.evidence.get("defense") or "")
            attack = str(finding.evidence.get("attack") or "")
            role = str(finding.evidence.get("role") or "")
            if finding.mend:
                own.setdefault(finding.mend, []).append(finding.id)
                numbers.setdefault(finding.mend, len(numbers) + 1)
            told = _told(finding, about, numbers.get(finding.mend, 0))
            rows.setdefault(about, {}).setdefault((attack, "" if role == "standard" else role), []).append(told)
        blocks = tuple(
            Block(about, tuple(Row(*key, tuple(all_)) for key, all_ in of.items())) for about, of in rows.items()
        )
        if blocks:
            made.append(
                Level(severity, blocks, tuple((numbers[t], t, tuple(dict.fromkeys(ids))) for t, ids in own.items()))
            )
    return made


def _told(finding: Finding, about: str, mend: int) -> Told:
    """Return a finding in a row: its numbers in columns, and a sentence where they do not say it all."""
    parts = dict(evidence(finding))
    measured, limit = parts.pop(WORDS["measured"], ""), parts.pop(WORDS["limit"], "")
    parts.pop(WORDS["role"], None)
    share, n = finding.evidence.get("measured"), finding.evidence.get("n")
    short = SHORT.get(finding.id, "")
    if finding.id == LEAKS[0] and isinstance(share, int | float) and isinstance(n, int):
        short = f"{short} {round(share * n)} of {n} records"
        measured = measured.removesuffix(f", n = {n}")
        told = parts.pop("candidates", "")
        short += f", each among {told}" if told else ""
    return Told(finding.id, short or _alone(finding, about), measured, limit, tuple(parts.items()), mend)


def _alone(finding: Finding, about: str) -> str:
    text = finding.message.removeprefix(f"{about}: ") if about else finding.message
    return text[:1].upper() + text[1:]


def evidence(finding: Finding) -> tuple[tuple[str, str], ...]:
    """Return a finding's evidence as (what, how much), measured numbers with their interval and count."""
    values, parts = finding.evidence, []
    rule = finding.id.removeprefix("gate-").removeprefix("regression-")
    score = SCORES.get(MEASURED.get(finding.id, rule))
    moved = finding.id.startswith("gate-regression-")
    for name, value in sorted(values.items(), key=lambda item: _rank(item[0])):
        if name in SAID or value is None or (name, value) == ("role", "standard"):
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            text = plain(value)
        elif name in ("measured", "limit", "guess") and score is not None:
            text = score.shifted(Estimate(value)) if moved and name == "measured" else score.write(value)
        else:
            text = f"{value:,}" if isinstance(value, int) else significant(value)
        if name == "measured":
            text += _spread(values, score, moved)
        if name == "measured" and isinstance(values.get("n"), int):
            text += f", n = {values['n']}"
        parts.append((WORDS.get(name, name.replace("_", " ")), text))
    return tuple(parts)


def _rank(name: str) -> tuple[int, str]:
    """Return the place of a piece of evidence; by name behind those of `WORDS`, whatever their order in the result."""
    return (list(WORDS).index(name) if name in WORDS else len(WORDS), name)


def _spread(values: Mapping[str, Value], score: Score | None, moved: bool) -> str:
    low, high = values.get("low"), values.get("high")
    if not isinstance(low, int | float) or not isinstance(high, int | float):
        return ""
    known = Estimate(0.0, low, high)
    if score is None:
        return f" ({significant(low)} to {significant(high)})"
    return f" ({score.shift_ends(known) if moved else score.ends(known)})"


def all_findings(result: AuditResult, outcome: Outcome | None) -> tuple[Finding, ...]:
    """Return the findings every format shares."""
    return conclusions(result, outcome)


def untold(result: AuditResult, defense: DefenseResult, found: Sequence[Finding]) -> tuple[str, ...]:
    """Return the reasons of a defense's verdict that no finding tells: a pass has all of its own."""
    own = [f for f in found if f.evidence.get("defense") == defense.spec]
    leaks = any(f.id in (*LEAKS, "gate-identification") for f in own)
    if defense.verdict == "fail" and (leaks or defense not in judged(result)):
        return ()
    told = [reason for f in own for reason in f.why]
    return sentences(reason for reason in reasons_of(result, defense) if reason not in told)


def waiver_rows(result: AuditResult, outcome: Outcome | None) -> list[WaiverRow]:
    """Return the gate's waivers with what they do, then those of the audit that no gate has judged."""
    judged_ = [WaiverRow(w.waiver, STATES[w.state], w.checks) for w in (outcome.waivers if outcome else ())]
    known = {row.waiver for row in judged_}
    state = "not judged: unknown to this gate" if outcome else STATES["not judged"]
    return judged_ + [WaiverRow(w, state, ()) for w in result.waivers if w not in known]
