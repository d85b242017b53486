"""Findings, checks of the gate and waivers, as the report lists them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from leakaudit.judge.conclusions import conclusions
from leakaudit.judge.verdict import LEAKS, reasons_of
from leakaudit.judge.words import sentences
from leakaudit.result.numbers import plain, significant
from leakaudit.result.outcome import Outcome
from leakaudit.result.rules import judged
from leakaudit.result.schema import AuditResult, DefenseResult, Estimate, Finding, Severity, Value, Waiver
from leakaudit.result.scores import SCORES, Score

TITLES: dict[Severity, str] = {"error": "Errors", "warning": "Warnings", "info": "For information"}
MEANINGS: dict[Severity, str] = {
    "error": "What leaked, or must be mended before anything here is relied on.",
    "warning": "What is undecided, or weakens what the audit can say.",
    "info": "What was noticed and asks for nothing.",
}
# Evidence that a message already says, or that others of the list say together.
# Said by the finding's place or its sentence.
SAID = {"defense", "attack", "low", "high", "n", "unit", "waived", "waived_until", "waived_by", "p", "rose", "fell"}
SAID |= {"before", "after"}
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
STATES = {
    "in-force": "in force",
    "expired": "expired",
    "unused": "matches no check",
    "not judged": "not judged: no gate was run with this report",
}


@dataclass(frozen=True)
class Shown:
    """One finding with its evidence in words."""

    finding: Finding
    message: str  # without the defense, which stands beside it
    evidence: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Group:
    """Findings of one severity about one defense (or about the audit) that one mend answers."""

    about: str  # the defense, empty for the audit as a whole
    shown: tuple[Shown, ...]
    mend: str


@dataclass(frozen=True)
class WaiverRow:
    """A waiver, what it does, and the checks it covers."""

    waiver: Waiver
    state: str
    checks: tuple[str, ...]


def grouped(found: Sequence[Finding]) -> list[tuple[Severity, list[Group]]]:
    """Return findings by severity, errors first, then by defense and mend in the order in which they come."""
    levels: list[tuple[Severity, list[Group]]] = []
    for severity in TITLES:
        groups: dict[tuple[str, str], list[Shown]] = {}
        for finding in found:
            if finding.severity == severity:
                about = str(finding.evidence.get("defense") or "")
                groups.setdefault((about, finding.mend), []).append(
                    Shown(finding, _alone(finding, about), evidence(finding))
                )
        if groups:
            levels.append((severity, [Group(about, tuple(all_), mend) for (about, mend), all_ in groups.items()]))
    return levels


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
        return f" (95% interval {significant(low)} to {significant(high)})"
    return f" (95% interval {score.shift_ends(known) if moved else score.ends(known)})"


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
