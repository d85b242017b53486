"""What stays the same for every defense of an audit: who is attacked, among whom, and what the scores stand beside."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from leakaudit.judge.caps import FAR_OFF
from leakaudit.judge.captured import broken_claims
from leakaudit.judge.noticed import no_line_up
from leakaudit.load.preflight import preflight, raise_on_errors
from leakaudit.load.units import count_units, with_units
from leakaudit.protocol.amounts import Sizes
from leakaudit.protocol.attack import Attack
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.exposure import Exposure, preset
from leakaudit.protocol.target import Records, Target
from leakaudit.result.outward import command_in_place
from leakaudit.result.rounding import coarse_baseline
from leakaudit.result.schema import Baseline, Estimate, Finding, Value, Waiver
from leakaudit.scene import fingerprint
from leakaudit.scene.naming import Facts, Kind, facts_of
from leakaudit.scene.plan import Plan
from leakaudit.scene.provenance import environment
from leakaudit.scene.twosample import auxiliary_findings
from leakaudit.score import standin
from leakaudit.score.baselines import baselines
from leakaudit.score.identification import CandidateSets, candidate_sets
from leakaudit.score.metrics import OF_VOLUMES, MetricFunction, lpips_metric
from leakaudit.units import desk
from leakaudit.units.packing import Values
from leakaudit.units.unit import Unit
from leakaudit.work.progress import stage
from leakaudit.work.seeding import generator_for

MOST = 64  # victims that attacks which link are asked about
ROOM = 2**27  # numbers in their updates: half a gigabyte


@dataclass(frozen=True)
class Measured(Values):
    """What is measured before anything is attacked: what is odd, and what guesses without an update score."""

    findings: tuple[Finding, ...]  # of the model and the data
    told_apart: Estimate
    odd: tuple[Finding, ...]  # of the auxiliary records
    baselines: tuple[Baseline, ...]


@dataclass(frozen=True)
class Scene:
    """What stays the same for every defense: the victims, their candidates, and what the scores stand beside."""

    target: Target
    plan: Plan
    exposure: Exposure
    victims: Tensor  # indices of the victims' records in `target.private`, V·B of them
    candidates: CandidateSets
    asked: Tensor  # indices of the victims' records and of further ones, which only attacks that link are asked about
    line_ups: CandidateSets  # of those; the first are `candidates`
    own: Records  # the adversary's auxiliary records, on the model's device: moved there once, not for every attack
    rehearsal: Tensor  # indices of the auxiliary records that play victim while an attack is tuned
    lpips: MetricFunction | str
    baselines: tuple[Baseline, ...]
    told_apart: Estimate  # AUC of a classifier that tells auxiliary from private records
    findings: tuple[Finding, ...]
    environment: dict[str, Value]
    hashes: dict[str, str]
    waivers: tuple[Waiver, ...]
    facts: Facts | None = None  # what the outcomes of its pieces depend on; None where none is kept

    def unit(
        self,
        kind: Kind,
        work: str,
        *,
        defense: tuple[str, Defense] | None = None,
        attack: Attack | None = None,
        **more: object,
    ) -> Unit | None:
        """Return the name of a piece's outcome, see `naming.Facts.unit`; None where none is kept."""
        return None if self.facts is None else self.facts.unit(kind, work, defense=defense, attack=attack, **more)

    def sizes(self) -> Sizes:
        """Return what the amount of work depends on besides settings."""
        return Sizes(
            victims=self.plan.victims,
            asked=len(self.asked) // self.plan.batch_size,
            candidates=len(set(self.line_ups.indices.flatten().tolist())),
            line_up=self.line_ups.columns,
            private=len(self.target.private),
            auxiliary=len(self.target.auxiliary),
            batch=self.plan.batch_size,
            generator=self.target.generator is not None,
            local_steps=self.plan.sender().steps(self.plan.own) * self.plan.sender().clients,
        )


def set_scene(
    target: Target, plan: Plan, lpips_weights: Path | None, command: str, waivers: tuple[Waiver, ...]
) -> Scene:
    """Check the target, and draw who is attacked and among whom. Raises UserError on what cannot be audited."""
    target = with_units(target)
    facts = facts_of(target, plan, lpips_weights) if desk.current() is not None else None
    if facts is not None:
        desk.note(facts.target)
    if plan.images == "redacted":
        standin.picture(target.input_shape)  # it must not be missing only once the first attack is done
    lpips = OF_VOLUMES if target.model.depth > 1 else lpips_metric(lpips_weights, target.device)
    unit = None if facts is None else facts.unit("scene", "the scene")
    found = desk.done(unit, Measured, lambda: _measured(target, plan, lpips), wait=True)
    raise_on_errors(found.findings)
    exposure, victims = _exposed(target, plan), _victims(target, plan)
    candidates = _candidates(target, plan, victims)
    asked, line_ups = _further(target, plan, victims, candidates)
    lined = no_line_up(int((~candidates.lined).sum()), len(candidates))
    wanted = plan.effort().tuning_victims * plan.batch_size
    rehearsal = torch.randperm(len(target.auxiliary), generator=generator_for(plan.seed, "rehearsal"))[:wanted]
    versions = environment(target, command_in_place(command, plan.images), lpips_weights)
    return Scene(
        target=replace(target, notes=(*target.notes, *_of_units(target, victims), *_of_labels(candidates))),
        plan=plan,
        exposure=exposure,
        victims=victims,
        candidates=candidates,
        asked=asked,
        line_ups=line_ups,
        own=target.auxiliary.to(target.device),
        rehearsal=rehearsal[: len(rehearsal) // plan.batch_size * plan.batch_size],
        lpips=lpips,
        baselines=found.baselines,
        told_apart=found.told_apart,
        findings=(*found.findings, *_broken(target), *lined, *found.odd),
        environment=versions,
        hashes=fingerprint.of_scan(target, victims, candidates, plan.settings(), versions),
        waivers=waivers,
        facts=facts,
    )


def _measured(target: Target, plan: Plan, lpips: MetricFunction | str) -> Measured:
    """Measure what does not depend on a defense. What cannot be audited is among the findings, and ends it there."""
    findings = preflight(
        target, mode=plan.mode, batch_size=plan.batch_size, records=plan.records, candidates=plan.candidates
    )
    told, odd = Estimate(reason="auxiliary records are not exposed"), tuple[Finding, ...]()
    if any(finding.severity == "error" for finding in findings):
        return Measured(tuple(findings), told, odd, ())
    victims = _victims(target, plan)
    if _exposed(target, plan).auxiliary:
        told, odd = auxiliary_findings(target, generator_for(plan.seed, "auxiliary"), _both_units(target))
    stage("measuring what guesses draw without an update")
    return Measured(
        tuple(findings), told, odd, _guesses(target, plan, victims, _candidates(target, plan, victims), lpips)
    )


def _candidates(target: Target, plan: Plan, victims: Tensor) -> CandidateSets:
    """Draw the line-ups of the victims' records."""
    return candidate_sets(
        target.private,
        victims,
        target.test,
        plan.candidates,
        generator_for(plan.seed, "candidates"),
        batch_size=plan.batch_size,
        task=target.task,
    )


def _guesses(
    target: Target, plan: Plan, victims: Tensor, candidates: CandidateSets, lpips: MetricFunction | str
) -> tuple[Baseline, ...]:
    """Return what guesses without an update score, rounded where no private picture is shown."""
    found = baselines(
        target.private[victims],
        target.auxiliary,
        candidates,
        lpips,
        generator_for(plan.seed, "baselines"),
        batch_size=plan.batch_size,
        task=target.task,
        depth=target.model.depth,
    )
    return found if plan.images == "full" else tuple(map(coarse_baseline, found))


def _exposed(target: Target, plan: Plan) -> Exposure:
    """Return what the adversary knows: the preset, without BatchNorm statistics that nobody captured."""
    found, received = preset(plan.exposure), target.received
    return replace(found, buffers=False) if received is not None and received.buffers is None else found


def _broken(target: Target) -> tuple[Finding, ...]:
    return () if target.received is None else broken_claims(target.received.claims, target.received.spec)


def beside_strangers(scene: Scene) -> Target:
    """Return the target with strangers of the private records' kind in place of auxiliary ones that are of another.

    A check for copies asks whether released pictures lie nearer to private records than to strangers: to records of
    another kind anything does. Half of the test records then are the strangers, and the other half stand for the test.
    """
    target = scene.target
    if (scene.told_apart.low or 0.0) < FAR_OFF or len(target.test) < 4:
        return target
    return replace(target, auxiliary=target.test[::2], test=target.test[1::2])


def _victims(target: Target, plan: Plan) -> Tensor:
    """Draw the victims' records, each of another unit as long as there are any: intervals are over units.

    Those behind captured updates are the first ones.
    """
    if target.received is not None and target.received.known:
        return torch.arange(plan.records)
    order = torch.randperm(len(target.private), generator=generator_for(plan.seed, "victims"))
    if target.private.units is None:
        return order[: plan.records]
    met: dict[int, int] = {}
    turns = []
    for unit in target.private.units[order].tolist():
        met[unit] = met.get(unit, 0) + 1
        turns.append(met[unit])
    return order[torch.tensor(turns).argsort(stable=True)][: plan.records]


def _further(target: Target, plan: Plan, victims: Tensor, candidates: CandidateSets) -> tuple[Tensor, CandidateSets]:
    """Return the victims and further ones, up to `MOST`, who stand in the line-ups already, with their line-ups.

    Attacks that link replay every candidate anyway, so that another victim among them costs one update. Each is of
    another unit, and no record of a batch of several.
    """
    room = min(MOST, ROOM // sum(p.numel() for p in target.model.parameters())) - len(victims)
    captured = target.received is not None and target.received.known  # there is no update of any other record
    if plan.batch_size > 1 or room <= 0 or captured:
        return victims, candidates
    units = target.private.units
    of = list(range(len(target.private))) if units is None else units.tolist()
    of = [unit if unit >= 0 else -2 - i for i, unit in enumerate(of)]
    taken = {of[i] for i in victims.tolist()}
    generator = generator_for(plan.seed, "further")
    more: list[int] = []
    rows: list[list[int]] = []
    places: list[int] = []
    sizes: list[int] = []
    shuffled = [row[torch.randperm(n, generator=generator)].tolist() for row, n in _line_ups(candidates)]
    for turn in range(candidates.columns):
        for row in shuffled:
            if turn >= len(row) or row[turn] >= len(target.private) or of[row[turn]] in taken or len(more) >= room:
                continue
            order = [row[i] for i in torch.randperm(len(row), generator=generator).tolist()]  # it stands anywhere
            taken.add(of[row[turn]])
            more.append(row[turn])
            rows.append([order[i % len(order)] for i in range(candidates.columns)])
            places.append(order.index(row[turn]))
            sizes.append(len(row))
    every = replace(
        candidates,
        indices=torch.cat([candidates.indices, torch.tensor(rows, dtype=torch.long).reshape(-1, candidates.columns)]),
        position=torch.cat([candidates.position, torch.tensor(places, dtype=torch.long)]),
        sizes=torch.cat([candidates.sizes, torch.tensor(sizes, dtype=torch.long)]),
    )
    return torch.cat([victims, torch.tensor(more, dtype=torch.long)]), every


def _line_ups(candidates: CandidateSets) -> list[tuple[Tensor, int]]:
    """Return the line-ups that there are, each row with its size."""
    pairs = zip(candidates.indices, candidates.sizes.tolist(), strict=True)
    return [(row, size) for row, size in pairs if size >= 2]


def _both_units(target: Target) -> tuple[Tensor, Tensor] | None:
    """Return the units of private and auxiliary records, each record without one by itself; None if unknown."""
    sides = target.private, target.auxiliary
    if any(side.units is None for side in sides):
        return None
    ours, theirs = (side.units for side in sides if side.units is not None)
    both = torch.cat([ours, theirs])
    both = torch.where(both < 0, int(both.max()) + 1 + torch.arange(len(both)), both)
    return both[: len(ours)], both[len(ours) :]


def _of_labels(candidates: CandidateSets) -> tuple[str, ...]:
    """Say what line-ups are made of where labels are no classes, and how many of them a label alone tells."""
    if candidates.targets is None:
        return ()
    alone, count = candidates.alone(), int(candidates.lined.sum())
    return (
        "Labels are no classes, so a line-up holds the records whose labels are nearest to the record's."
        + (f" In {alone} of {count} no other has the record's own label: a label alone may tell it." * (alone > 0)),
    )


def _of_units(target: Target, victims: Tensor) -> tuple[str, ...]:
    """Say of how many units the victims are, where some unit of the private records has several."""
    units = target.private.units
    if units is None or count_units(units) == len(units):
        return ()
    of = count_units(units[victims])
    return (
        f"The {len(units)} private records are of {count_units(units)} units (persons, sites), the {len(victims)} "
        f"attacked ones of {of}; a line-up holds one record per unit, and the unit is what is identified."
        + (" Several records of one unit are not independent: intervals are wider than shown." * (of < len(victims))),
    )
