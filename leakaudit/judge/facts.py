"""What is known of one attack and of the control, computed once: all that judges, compares or reports asks here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from leakaudit.result.rules import (
    beats,
    cut_victims,
    guessing,
    identifies,
    most_telling,
    rebuilds,
    scored_statuses,
    scored_victims,
)
from leakaudit.result.schema import AttackResult, AuditResult, Baseline, Estimate
from leakaudit.stats.intervals import rate, rate_of_clients


@dataclass(frozen=True)
class Facts:
    """One attack on one defense: how its victims ended, and what it shows against a limit on identification."""

    attack: AttackResult
    victims: int
    scored: int  # victims with a score of any kind
    lost: int  # victims without identification (labels: without a score); all where the attack never began
    cut: int  # victims that are scored although the time budget ended the attack on them early
    began: bool  # it was scored on at least one victim
    asked: bool  # whether its records are looked for among candidates: of an attack on labels they are not
    inapplicable: bool  # it cannot be run here on any victim, which is no failure of the attack
    skipped: bool  # it did not run, since others had settled the verdict: neither lost nor safe, but not measured
    identifies: bool  # more than the limit, even at the lower bound
    rebuilds: bool  # pictures far closer than a guess without the update, even at the lower bound

    @property
    def unfinished(self) -> bool:
        """Whether it lacks victims, or was cut short on some."""
        return bool(self.lost or self.cut)

    @property
    def out_of_time(self) -> bool:
        """Whether time is all that it lacks."""
        return self.unfinished and {s for s, n in self.attack.statuses.items() if n} - {"converged"} == {"budget"}

    @property
    def finished(self) -> bool:
        """Whether it was scored on every victim, none of them cut short."""
        return self.began and self.scored == self.victims and not self.attack.statuses.get("budget")

    def worst_case(self, lost: int | None = None) -> Estimate:
        """Return the rate with every record of the unscored and the cut-short victims counted as identified.

        `lost` counts fewer victims as unscored, where it is known that the others found nothing.
        """
        missing = self.lost if lost is None else lost
        n = self.attack.identification.n
        each = n // max(1, self.victims - self.lost)
        several: dict[int, list[bool]] = {}
        for r in self.attack.records:
            if r.identified is not None:
                several.setdefault(r.victim, []).append(r.identified or r.status == "budget")
        if any(len(hits) > 1 for hits in several.values()):  # clients of several records are the unit
            return rate_of_clients([*several.values(), *[[True] * each] * missing])
        hits = round((self.attack.identification.value or 0.0) * n)
        return rate(min(n, hits + each * self.cut) + each * missing, n + each * missing)


@dataclass(frozen=True)
class Control:
    """What the attacks show on the undefended model, where they must find something for the rest to mean anything."""

    floor: float  # the share that a guess without the update identifies
    best: AttackResult | None  # the attack that shows most; None where none was scored
    works: bool  # the best one beats the guess, even at its lower bound

    @property
    def doubt(self) -> str:
        """The id of the reason why nothing follows from attacks that fail elsewhere, empty where there is none."""
        return "" if self.works else "control-not-scored" if self.best is None else "control-does-not-leak"


def facts_of(attack: AttackResult, limit: float = 1.0, baselines: Sequence[Baseline] = ()) -> Facts:
    """Return what is known of an attack, beside a limit on identification and the guesses without an update."""
    victims, statuses = sum(attack.statuses.values()), scored_statuses(attack.kind)
    asked = attack.kind != "labels"
    skipped = bool(attack.settled_by)
    never = asked and attack.identification.value is None and not skipped
    scored, cut = scored_victims(attack), cut_victims(attack)
    budget = attack.statuses.get("budget", 0) if "budget" in statuses else 0
    return Facts(
        attack=attack,
        victims=victims,
        scored=scored,
        lost=victims if never else 0 if skipped else _lost(attack, statuses) + budget - cut,
        cut=0 if never else cut,
        began=any(e.value is not None for e in (attack.identification, attack.psnr, attack.label_accuracy)),
        asked=asked,
        inapplicable={status for status, n in attack.statuses.items() if n} == {"not-applicable"},
        skipped=skipped,
        identifies=identifies(attack, limit),
        rebuilds=rebuilds(attack, baselines),
    )


def _lost(attack: AttackResult, scored: Sequence[str]) -> int:
    return sum(n for s, n in attack.statuses.items() if s not in scored)


def control_of(attacks: Sequence[AttackResult], floor: float) -> Control:
    """Return what attacks on the undefended model show, beside the share `floor` that a guess identifies."""
    best = most_telling(attacks, floor)
    return Control(floor, best, best is not None and beats(best, floor))


def control_in(result: AuditResult) -> Control:
    """Return what the undefended row of a result shows; a result without one shows nothing."""
    row = result.control()
    return control_of(row.attacks if row else (), guessing(result.chance_identification, result.baselines))
