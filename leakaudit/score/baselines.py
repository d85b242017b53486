"""What a guess without any update scores. Leakage is what exceeds these."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from leakaudit.protocol.labels import class_means
from leakaudit.protocol.target import Records
from leakaudit.protocol.task import CLASSES, Task
from leakaudit.result.schema import Baseline, Estimate
from leakaudit.score.identification import CandidateSets, identify
from leakaudit.score.metrics import MetricFunction, assign, psnr, ssim
from leakaudit.stats import intervals

DESCRIPTIONS = {  # where labels are no classes, a class is a label group
    "random": "uniform noise: somebody who knows nothing",
    "class-mean": "the average auxiliary picture of the record's class",
    "prior": "another real picture of the record's class: somebody who knows only the label and the world",
}


def mean_pictures(auxiliary: Records, labels: Tensor) -> Tensor:
    """Return the auxiliary mean picture (N, C, H, W) of each label's class.

    A class without auxiliary records gets the mean of all. Raises ValueError when there is no auxiliary record.
    """
    if len(auxiliary) == 0:
        raise ValueError("class means need auxiliary records")
    classes = int(torch.cat([auxiliary.labels, labels.to(auxiliary.labels)]).max()) + 1
    means = class_means(auxiliary.images, auxiliary.labels, classes)[labels.to(auxiliary.labels)]
    return means.view(-1, *auxiliary.images.shape[1:])


def baselines(
    truth: Records,
    auxiliary: Records,
    candidates: CandidateSets,
    lpips: MetricFunction | str,
    generator: torch.Generator,
    *,
    batch_size: int = 1,
    depth: int = 1,
    task: Task = CLASSES,
) -> tuple[Baseline, ...]:
    """Score guesses that never saw an update against the victims' N records, by the rules attacks are scored by.

    Guesses are paired within batches of `batch_size` as reconstructions are, so that what pairing alone gives is in the
    baseline too. Of volumes `depth` is the number of slices. Without auxiliary records the two that need them are
    reported as not measured.
    """
    drawn = guesses(truth, auxiliary, generator)
    return tuple(
        replace(
            _score(name, drawn.get(name), truth, candidates, lpips, batch_size, depth),
            description=_of_groups(told) if task.grouped else told,
        )
        for name, told in DESCRIPTIONS.items()
    )


def guesses(truth: Records, auxiliary: Records, generator: torch.Generator) -> dict[str, Tensor]:
    """Return the pictures (N, C, H, W) that the baselines guess for N records, by name; all but noise need auxiliary.

    The same generator state gives those that `baselines` scores.
    """
    device = truth.images.device
    drawn = {"random": torch.rand(truth.images.shape, generator=generator, device=generator.device).to(device)}
    if len(auxiliary):
        drawn["class-mean"] = mean_pictures(auxiliary, truth.labels).to(device)
        drawn["prior"] = auxiliary.images[others_of_class(auxiliary, truth.labels, generator)].to(device)
    return drawn


def others_of_class(auxiliary: Records, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Return for each of N labels the index (N,) of an auxiliary record drawn from its class, from all if it has none.

    Raises RuntimeError where there is no auxiliary record.
    """
    known = auxiliary.labels
    drawn = []
    for label in labels.to(known.device):
        same = (known == label).nonzero()[:, 0]
        pool = same if len(same) else torch.arange(len(auxiliary), device=known.device)
        drawn.append(pool[int(torch.randint(len(pool), (1,), generator=generator, device=generator.device))])
    return torch.stack(drawn) if drawn else known.new_zeros(0)


def _of_groups(told: str) -> str:
    return told.replace("record's class", "record's label group").replace("only the label", "only the label group")


def _score(
    name: str,
    guess: Tensor | None,
    truth: Records,
    candidates: CandidateSets,
    lpips: MetricFunction | str,
    batch_size: int,
    depth: int,
) -> Baseline:
    if guess is None:
        missing = Estimate(reason="there are no auxiliary records")
        return Baseline(name, DESCRIPTIONS[name], missing, missing, missing, missing)
    x = truth.images
    batches = [slice(start, start + batch_size) for start in range(0, len(x), batch_size)]
    guess = torch.cat([guess[b][assign(x[b], guess[b])] for b in batches])
    identification = Estimate(reason="fewer than two candidates of the class")
    if candidates.lined.any():
        _, hits = identify(candidates[candidates.lined], guess[candidates.lined])
        identification = intervals.rate(int(hits.sum()), len(hits))
    perceptual = Estimate(reason=lpips) if isinstance(lpips, str) else intervals.median(lpips(x, guess).tolist())
    return Baseline(
        name=name,
        description=DESCRIPTIONS[name],
        identification=identification,
        psnr=intervals.median(psnr(x, guess).tolist()),
        ssim=intervals.median(ssim(x, guess, depth).tolist()),
        lpips=perceptual,
    )
