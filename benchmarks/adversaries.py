"""The attackers of `benchmarks.obscure`: every attack of one fitted defense, on private and on the attacker's records.

They go the way of `leakaudit.audit.audit`: records are released, shared, attacks tuned on auxiliary records, run and
scored. Beside the victims, some of the attacker's own records are attacked in the same stack, which it has not learned
from: there it sees which attack to trust. Several views of a record are several releases. Where the defense replaces
records every one of them is attacked, linkage scores are standardised and summed, and decoded pictures averaged; where
it only changes updates, these are averaged before the attack.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from benchmarks.views import averaged, class_line_ups, joined, part_of, pooled, taken
from leakaudit.errors import NotApplicable
from leakaudit.protocol.attack import Attack, Reconstruction
from leakaudit.protocol.client import SharedUpdate, release, share
from leakaudit.protocol.defense import Defense, parts_of, replaces_records
from leakaudit.protocol.exposure import Exposure, preset
from leakaudit.protocol.target import PixelModel, Records, Target
from leakaudit.result.batteries import Battery
from leakaudit.result.schema import AttackResult, Value
from leakaudit.scene.plan import attacks_for
from leakaudit.score.baselines import mean_pictures
from leakaudit.score.identification import CandidateSets
from leakaudit.score.scoring import Truth, failed, score
from leakaudit.score.tuning import tune
from leakaudit.work.memory import Memory, bounded, exhausted
from leakaudit.work.seeding import derive, generator_for

STANDARD = ("labels", "inverting-gradients", "linkage")
# What is left out on CIFAR-10 and MNIST, beside what of the same attack is stronger there (docs/obscure.md).
RECONSTRUCTS = ("inverting-gradients", "learned-inversion", "expectation")
BOUNDED = (*RECONSTRUCTS, "two-stage-decoder")
NO_LPIPS = "not measured on guesses here"
POOL = 500
REHEARSED = 25  # candidates beside an own record: enough to see which attack finds most


@dataclass(frozen=True)
class Count:
    """How many records an attack is asked about: victims, and the attacker's own on which attacks are compared."""

    victims: int
    own: int


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much every kind of attack gets."""

    released: Count = Count(200, 40)  # handed x̃
    linked: Count = Count(64, 16)  # linkage by the update, labels, learned inversion
    inverted: Count = Count(4, 2)  # gradient matching
    pooled: Count = Count(32, 8)  # of K views
    views: int = 16
    candidates: int = 100
    steps: int = 100
    tuned: int = 2  # records that settings are tuned on
    decoder_steps: int = 400
    draws: int = 2  # of a candidate's replacement

    def battery(self) -> Battery:
        """Return the same as the audit's own effort."""
        return Battery(STANDARD, self.steps, 1, 1, 1, self.tuned, self.decoder_steps)

    def count(self, attack: Attack) -> Count:
        """Return how many records this attack is asked about."""
        inverts = "steps" in attack.effort
        if "released" in attack.requires:
            return self.released
        return self.inverted if inverts else self.linked


def dominated(defense: Defense) -> tuple[str, ...]:
    """Return the names of the attacks that other attacks on the defense were found to beat on training records.

    Where records are replaced, whoever is handed x̃ knows more than whoever is sent an update computed from it:
    `released-decoder`, `released-linkage` and `released-replay` bound what reading the update gives; linkage, replay,
    `demixing` and `through-generator` by the update stay. Where only updates are changed, linkage and replay find
    what gradient matching finds (undefended MNIST: 100 % of 64 in 5 s each, matching 7 of 8 in 16 s), and the matching
    that is built against the defense stays beside them. Undefended updates are also inverted by what learned to.
    """
    if replaces_records(defense):
        return BOUNDED
    return RECONSTRUCTS[:1] if all(part.name == "none" for part in parts_of(defense)) else RECONSTRUCTS


@dataclass(frozen=True)
class Outcome:
    """One attack with so many views: on the private records, and on the attacker's own (None: it has none left)."""

    views: int
    private: AttackResult
    own: AttackResult | None
    seconds: float


@dataclass(frozen=True)
class Opponents:
    """Everybody who attacks one fitted defense. `target.auxiliary` is theirs; its first records compare attacks."""

    target: Target
    spec: str
    defense: Defense
    effort: Effort
    seed: int
    everything: bool = True  # else without the attacks that were found to be dominated
    kept: dict[tuple[str, int], Records] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def held(self) -> int:
        """How many auxiliary records no attack learns from: at most a third of them."""
        wanted = max(self.effort.released.own, self.effort.linked.own, self.effort.inverted.own)
        return min(wanted, len(self.target.auxiliary) // 3)

    @cached_property
    def taught(self) -> Records:
        """The auxiliary records that attacks learn from."""
        return self.target.auxiliary[self.held :].to(self.target.device)

    @cached_property
    def private_line_up(self) -> CandidateSets:
        """The line-ups of the private records, the same for every defense."""
        most = max(self.effort.released.victims, self.effort.linked.victims, self.effort.inverted.victims)
        generator = generator_for(self.seed, "candidates")
        return class_line_ups(self.target.private[:most], self.target.test, self.effort.candidates, generator)

    @cached_property
    def own_line_up(self) -> CandidateSets:
        """The shorter line-ups of the attacker's records, filled with the first ones again to be as wide."""
        generator, columns = generator_for(self.seed, "own candidates"), self.private_line_up.columns
        size = min(REHEARSED, columns)
        found = class_line_ups(self.target.auxiliary[: self.held], self.target.auxiliary[self.held :], size, generator)
        return replace(found, indices=found.indices[:, torch.arange(columns) % found.columns])

    def attacks(self) -> list[tuple[Attack, str]]:
        """Return every attack with its role: the standard ones and all of the defense's adaptive ones."""
        pairs, draws = [], self.effort.draws if replaces_records(self.defense) else 1
        left_out = () if self.everything else dominated(self.defense)
        for attack, role in attacks_for(self.defense, self.effort.battery()):
            if attack.name in left_out:
                continue
            few = hasattr(attack, "draws") and "released" not in attack.requires and attack.kind == "linkage"
            fewer: dict[str, Any] = {"draws": draws} if few else {}
            pairs.append((replace(attack, **fewer), role))
        return pairs

    def pools(self, attack: Attack) -> bool:
        """Return whether this attack is also run with many views of a record.

        These are for x̃ handed over, which bounds the updates computed from it, and for linkage by updates where no
        record is replaced and an update of the same record differs from the last.
        """
        by_update = attack.kind == "linkage" and not replaces_records(self.defense) and self.draws_anew
        return self.effort.views > 1 and ("released" in attack.requires or by_update)

    def bound(self, views: int, victims: int) -> float | None:
        """Return what is proven of finding the victims in their line-ups, of one draw each that is kept; else None."""
        own = self.defense.picked(self.private_line_up[:victims].shown(), views) if victims else None
        return None if own is None else own.identification

    @cached_property
    def draws_anew(self) -> bool:
        """Whether a second update of the same record is another one: if not, further views say nothing."""
        record, exposure = self.target.private[:1], preset("adaptive")
        one, other = (self._share(self.target.model, record, exposure, view).gradients for view in (0, 1))
        return any(not torch.equal(a, b) for a, b in zip(one, other, strict=True))

    @cached_property
    def whole(self) -> Records:
        """The release of all private records that a model is trained on, and of which attackers see the first."""
        return release(self.defense, self.target.private, self._drawn("private", 0))

    def _drawn(self, who: str, view: int) -> torch.Generator:
        return generator_for(self.seed, self.spec, "release", who, view)

    def releases(self, who: str, view: int) -> Records:
        """Return one release of the private (or auxiliary) records that are asked about.

        All private records are released together, for a defense may mix them with each other; further views and the
        attacker's records are released in pools of `POOL`.
        """
        if (who, view) not in self.kept:
            records = self.target.private if who == "private" else self.target.auxiliary
            ours = who == "private" and view == 0
            made = self.whole if ours else release(self.defense, records[:POOL], self._drawn(who, view))
            asked = max(len(self.private_line_up) if view == 0 else self.effort.pooled.victims, self.held)
            self.kept[who, view] = Records(made.images[:asked].clone(), made.labels[:asked].clone())
        return self.kept[who, view]

    def run(self, attack: Attack, role: str) -> list[Outcome]:
        """Tune, run and score one attack: with one view, and with many where they are asked for (`pools`).

        Both are attacked in one stack, so that what an attack learns beforehand it learns once. What crashes or does
        not apply is a status with a reason.
        """
        began = time.process_time()
        count, many = self.effort.count(attack), self.effort.pooled
        victims, own = min(count.victims, len(self.private_line_up)), min(count.own, self.held)
        asked = [(1, victims, own)]
        if self.pools(attack):
            asked.append((self.effort.views, min(many.victims, victims), min(many.own, own)))
        with bounded(Memory(None)):
            try:
                attack, tuned, claims = self._claims(attack, role, asked)
            except NotApplicable as reason:
                lost = "not-applicable", str(reason)
            except Exception as error:  # a row says so, and the other attacks go on
                status = "out-of-memory" if exhausted(error) else "failed"
                lost = status, f"{type(error).__name__}: {error}"[:300]
            else:
                seconds = time.process_time() - began
                found = []
                for (views, some, few), claim in zip(asked, claims, strict=True):
                    ours, theirs = part_of(claim, range(some)), part_of(claim, range(some, some + few))
                    first = self._score(attack, role, tuned, self.target.private[:some], ours, self.private_line_up)
                    second = self._score(attack, role, tuned, self.target.auxiliary[:few], theirs, self.own_line_up)
                    found.append(Outcome(views, first, second if few else None, seconds))
                return found
        seconds = time.process_time() - began
        return [Outcome(views, failed(attack, role, {}, some, *lost), None, seconds) for views, some, _ in asked]

    def _claims(
        self, attack: Attack, role: str, asked: list[tuple[int, int, int]]
    ) -> tuple[Attack, dict[str, Value], list[Reconstruction]]:
        """Return the tuned attack, its settings, and a claim about victims, then own records, for each that is asked.

        `asked` are views, victims and own records; the first is one view of most, the second many of the first of both.
        """
        exposure = replace(preset("adaptive"), released=role == "bound")
        if lacking := sorted(attack.requires - exposure.facts()):
            raise NotApplicable(f"needs {', '.join(lacking)}, not exposed")
        _, victims, own = asked[0]
        total = victims + own
        tuned: dict[str, Value] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(self.seed, self.spec, attack.name))
            generator = generator_for(self.seed, self.spec, attack.name)
            client = copy.deepcopy(self.target.model)
            client = self.defense.transform_model(client, generator_for(self.seed, self.spec, "model"))
            if attack.grid and len(self.taught):
                truth = self.taught[: self.effort.tuned]
                rehearsed = self._share(client, release(self.defense, truth, generator), exposure, "tune")
                attack, tuned = tune(attack, client, rehearsed, truth, generator)
            updates = [self._share(client, self._stack(0, victims, own), exposure, 0)]
            rows: list[int] = []
            for views, some, few in asked[1:]:
                rows = [*range(some), *range(victims, victims + few)]
                more = [self._share(client, self._stack(k, some, few), exposure, k) for k in range(1, views)]
                updates += more if replaces_records(self.defense) else [averaged([taken(updates[0], rows), *more])]
            update = joined(updates)
            if attack.kind == "linkage":
                shown = torch.cat([self.private_line_up[:victims].images(), self.own_line_up[:own].images()])
                again = [shown[rows]] * (len(updates) - 1)
                guess = attack.link(client, update, torch.cat([shown, *again]).to(self.target.device), generator)
            else:
                guess = attack(client, update, generator)
        claims = [part_of(guess, range(total))]
        if len(asked) > 1:
            later = range(total, update.victims)
            views_of_all = [*rows, *later] if replaces_records(self.defense) else later
            claims.append(pooled(part_of(guess, views_of_all), len(rows)))
        return attack, tuned, claims

    def _stack(self, view: int, victims: int, own: int) -> Records:
        """Return what is released of the victims and of the attacker's own records."""
        ours, theirs = self.releases("private", view)[:victims], self.releases("auxiliary", view)[:own]
        return Records(torch.cat([ours.images, theirs.images]), torch.cat([ours.labels, theirs.labels]))

    def _share(self, client: PixelModel, released: Records, exposure: Exposure, who: str | int) -> SharedUpdate:
        return share(
            client,
            self.target.loss,
            released.to(self.target.device),
            self.defense,
            exposure,
            batch_size=1,
            classes=len(self.target.classes),
            mode="eval",
            generator=generator_for(self.seed, self.spec, "update", who),
            auxiliary=self.taught,
        )

    def _score(
        self,
        attack: Attack,
        role: str,
        tuned: dict[str, Value],
        truth: Records,
        guess: Reconstruction,
        line_up: CandidateSets,
    ) -> AttackResult:
        seen = Truth(
            records=truth,
            released=None,
            classes=self.target.classes,
            candidates=line_up[: len(truth)],
            class_means=mean_pictures(self.taught, truth.labels),
            lpips=NO_LPIPS,
            batch_size=1,
        )
        return score(attack, role, tuned, guess, seen, "none", gallery=0)
