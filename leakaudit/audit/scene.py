"""What stays the same for every defense of an audit: who is attacked, among whom, and what the scores stand beside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from leakaudit.audit import fingerprint
from leakaudit.audit.plan import Plan
from leakaudit.audit.provenance import environment
from leakaudit.load.preflight import preflight, raise_on_errors
from leakaudit.protocol.exposure import Exposure, preset
from leakaudit.protocol.target import Target
from leakaudit.result.rounding import coarse_baseline
from leakaudit.result.schema import Baseline, Finding, Value, Waiver
from leakaudit.score import standin
from leakaudit.score.baselines import baselines, mean_pictures
from leakaudit.score.identification import CandidateSets, candidate_sets
from leakaudit.score.metrics import MetricFunction, lpips_metric
from leakaudit.work.seeding import generator_for


@dataclass(frozen=True)
class Scene:
    """What stays the same for every defense: the victims, their candidates, and what the scores stand beside."""

    target: Target
    plan: Plan
    exposure: Exposure
    victims: Tensor  # indices of the victims' records in `target.private`, V·B of them
    candidates: CandidateSets
    means: Tensor  # (V·B, C, H, W): the mean of the record's class
    rehearsal: Tensor  # indices of the auxiliary records that play victim while an attack is tuned
    lpips: MetricFunction | str
    baselines: tuple[Baseline, ...]
    findings: tuple[Finding, ...]
    environment: dict[str, Value]
    hashes: dict[str, str]
    waivers: tuple[Waiver, ...]


def set_scene(
    target: Target, plan: Plan, lpips_weights: Path | None, command: str, waivers: tuple[Waiver, ...]
) -> Scene:
    """Check the target, and draw who is attacked and among whom. Raises UserError on what cannot be audited."""
    findings = preflight(
        target, mode=plan.mode, batch_size=plan.batch_size, records=plan.records, candidates=plan.candidates
    )
    raise_on_errors(findings)
    if plan.images == "redacted":
        standin.picture(target.input_shape)  # it must not be missing only once the first attack is done
    exposure = preset(plan.exposure)
    order = torch.randperm(len(target.private), generator=generator_for(plan.seed, "victims"))
    victims = order[: plan.records]
    candidates = candidate_sets(
        target.private,
        victims,
        target.test,
        plan.candidates,
        generator_for(plan.seed, "candidates"),
        batch_size=plan.batch_size,
    )
    truth = target.private[victims]
    wanted = plan.effort().tuning_victims * plan.batch_size
    rehearsal = torch.randperm(len(target.auxiliary), generator=generator_for(plan.seed, "rehearsal"))[:wanted]
    rehearsal = rehearsal[: len(rehearsal) // plan.batch_size * plan.batch_size]
    lpips = lpips_metric(lpips_weights, target.device)
    versions = environment(target, command, lpips_weights)
    guesses = baselines(
        truth,
        target.auxiliary,
        candidates,
        lpips,
        generator_for(plan.seed, "baselines"),
        batch_size=plan.batch_size,
    )
    return Scene(
        target=target,
        plan=plan,
        exposure=exposure,
        victims=victims,
        candidates=candidates,
        means=mean_pictures(target.auxiliary, truth.labels),
        rehearsal=rehearsal,
        lpips=lpips,
        baselines=guesses if plan.images == "full" else tuple(map(coarse_baseline, guesses)),
        findings=findings,
        environment=versions,
        hashes=fingerprint.of_scan(target, victims, candidates, plan.settings(), versions),
        waivers=waivers,
    )
