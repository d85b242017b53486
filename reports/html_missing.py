"""Attacks without a score, told once for each cause: in the findings by defense, below the matrix over all defenses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from leakaudit.judge import ranking
from leakaudit.judge.facts import facts_of
from leakaudit.judge.verdict import UNFINISHED
from leakaudit.result.schema import AttackResult, Finding

LATE = {"budget", "converged"}  # how victims ended of attacks that lack nothing but time


@dataclass(frozen=True)
class Unscored:
    """Attacks that were not scored for one reason, and the defenses on which: those that share them together."""

    statuses: str  # how the victims ended, empty where the reason says it
    why: str
    attacks: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]  # names of attacks, specs


@dataclass
class Missing:
    """Unscored attacks numbered in the order in which they are first met; one item for one reason."""

    specs: dict[tuple[str, str], dict[str, list[str]]] = field(default_factory=dict)  # by reason, by attack

    def number(self, attack: AttackResult, spec: str) -> int:
        """Return the number of the item that tells why `attack` has no scores on `spec`."""
        key = "", "no time was left; a larger --budget gives it."
        if attack.settled_by:
            key = "", f"skipped, since {attack.reason}."
        elif not facts_of(attack).out_of_time:
            key = ranking.in_words(attack), ranking.how_it_ended(attack) or "no reason was recorded."
        self.specs.setdefault(key, {}).setdefault(attack.name, []).append(spec)
        return list(self.specs).index(key) + 1

    def items(self) -> tuple[Unscored, ...]:
        """Return every reason with its attacks; those of the same defenses stand together."""
        found = []
        for key, of in self.specs.items():
            alike: dict[tuple[str, ...], list[str]] = {}
            for name, specs in of.items():
                alike.setdefault(tuple(dict.fromkeys(specs)), []).append(name)
            found.append(Unscored(*key, tuple((tuple(names), specs) for specs, names in alike.items())))
        return tuple(found)


def merged(found: Sequence[Finding]) -> list[Finding]:
    """Return findings in their order; those of one defense that only lacked time are one, with all their attacks."""
    alike: dict[object, list[Finding]] = {}
    for i, finding in enumerate(found):
        lack = _lack(finding)
        key = (finding.severity, finding.evidence.get("defense"), lack) if lack else i
        alike.setdefault(key, []).append(finding)
    return [_one(each, _lack(each[0])) for each in alike.values()]


def _lack(finding: Finding) -> str:
    """Return what an attack lacks that had too little time, empty for every other finding."""
    if len(finding.why) != 1 or finding.why[0].id != UNFINISHED or finding.id not in ("attack-not-scored", "undecided"):
        return ""
    facts = finding.why[0].facts
    ended = {part.partition(" ")[2] for part in str(facts.get("ended")).split(", ")}
    lost, of = facts.get("lost"), facts.get("victims")
    if "budget" not in ended or not ended <= LATE or not isinstance(lost, int) or "waived" in finding.evidence:
        return ""
    if not lost:
        return "Cut short by the time budget"
    return "No time for them" if lost == of else "Some victims had no time left"


def _one(alike: Sequence[Finding], lack: str) -> Finding:
    first = alike[0]
    if not lack:
        return first
    hides = ", enough to hide a leak above the limit" if any(f.why[0].facts.get("may_hide") for f in alike) else ""
    roles = {f.why[0].role for f in alike}
    evidence = {
        "defense": first.evidence.get("defense"),
        "attack": ", ".join(f.why[0].attack for f in alike),
        "role": roles.pop() if len(roles) == 1 else "standard",
    }
    return replace(
        first, message=f"{lack.replace('them', 'it') if len(alike) == 1 else lack}{hides}.", evidence=evidence
    )
