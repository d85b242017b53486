"""Inverting gradients with BatchNorm's statistics: those of the batch itself where the buffers sent give them away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from leakaudit.attacks._attacking import client_mode
from leakaudit.attacks._orders import natural, training_of
from leakaudit.attacks.inverting_gradients import InvertingGradients, Match
from leakaudit.attacks.unrolled import MOST_STEPS, match_through, orders_of, steps_of_all
from leakaudit.engine import matching as engine
from leakaudit.engine.unrolled import Training
from leakaudit.errors import NotApplicable
from leakaudit.protocol.attack import Attack, Needs, Reconstruction
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.gradients import parameters_of, with_parameters
from leakaudit.protocol.registry import register_attack
from leakaudit.protocol.target import PixelModel
from leakaudit.work.memory import in_pieces

FIRST = (3.0, 1.3)  # how much more the first layers count (HF-GradInv), since they are the least abstract


@dataclass(frozen=True)
class Kept:
    """What a layer's statistics are to be matched with: means and biased variances (V, C), `weight` beside others.

    In train mode a variance is that of so many values of a channel in all (`counts` by step), as they are kept.
    """

    norm: _BatchNorm
    mean: Tensor
    variance: Tensor
    weight: float


@dataclass(frozen=True)
class Shares:
    """What of a running statistic is left after a client's steps, and what each step (E,) has added: 1 in all."""

    left: float
    steps: tuple[float, ...]

    def of_the_steps(self, before: Tensor, after: Tensor) -> Tensor:
        """Return the mean over the steps, by their weights, of their own statistics, from the running ones."""
        found: Tensor = (after.double() - self.left * before.double()) / (1 - self.left)
        return found

    @property
    def weights(self) -> tuple[float, ...]:
        """What each step weighs in `of_the_steps`: 1 in all."""
        return tuple(step / (1 - self.left) for step in self.steps)


def shares_of(norm: _BatchNorm, steps: int) -> Shares:
    """Return what a layer's momentum makes of so many steps.

    A step is after = (1 − m)·before + m·batch (Ioffe and Szegedy 2015, as torch has it), so that of E steps the k-th
    has m(1 − m)^(E−k) and (1 − m)^E is left. Without a momentum the k-th step's m is 1 over all steps up to it.
    """
    tracked = norm.num_batches_tracked
    seen = 0 if tracked is None else int(tracked)
    left, added = 1.0, list[float]()
    for k in range(1, steps + 1):
        m = 1 / (seen + k) if norm.momentum is None else norm.momentum
        left, added = left * (1 - m), [*(a * (1 - m) for a in added), m]
    return Shares(left, tuple(added))


def kept_statistics(model: PixelModel, update: SharedUpdate, counts: Mapping[str, int]) -> list[Kept]:
    """Return what every layer that keeps statistics says, in order, from the buffers that each victim sent.

    In eval mode these are the running ones, of natural pictures. In train mode they give those of the batches that its
    clients' steps saw (`Shares`), with `counts` values of a channel for each record in each layer, by name: of n values
    the variance kept is n/(n − 1) times the biased one, which is what BatchNorm divides by, n being a whole step's.
    """
    if update.buffers is None:
        raise NotApplicable("BatchNorm statistics are not exposed")
    norms = {n: m for n, m in model.named_modules() if isinstance(m, _BatchNorm) and m.track_running_stats}
    if not norms:
        raise NotApplicable("the model has no BatchNorm that keeps statistics")
    found: list[Kept] = []
    train = update.mode == "train"
    size = update.client.step_size(update.own)
    for name, count in counts.items():  # in order of use
        norm, own = norms[name], []
        shares = shares_of(norm, update.steps)
        if train and shares.left == 1:  # a momentum of zero keeps nothing of the batch
            continue
        for what in ("mean", "var"):
            before = norm.get_buffer(f"running_{what}")
            after = torch.stack([sent[f"{name}.running_{what}"] for sent in update.buffers])
            own.append(shares.of_the_steps(before, after).to(before.dtype) if train else after)
        if train:
            own[1] = own[1] * ((size * count - 1) / (size * count))
        weight = FIRST[len(found)] if len(found) < len(FIRST) else 1.0
        found.append(Kept(norm, own[0], own[1].clamp_min(0), weight))
    return found


def seen_by(model: PixelModel, update: SharedUpdate) -> dict[str, int]:
    """Return how many values of a channel each layer that keeps statistics sees of one record, in order of use."""
    counts: dict[str, int] = {}
    handles, shown = [], 2  # one record alone cannot pass BatchNorm behind a dense layer in train mode
    for name, norm in model.named_modules():
        if isinstance(norm, _BatchNorm) and norm.track_running_stats:

            def watch(_: _BatchNorm, given: tuple[Tensor, ...], name: str = name) -> None:
                counts.setdefault(name, given[0].numel() // given[0].shape[1] // shown)

            handles.append(norm.register_forward_pre_hook(watch))
    try:
        with torch.no_grad():
            model(torch.full((shown, *update.input_shape), 0.5).to(model.mean))
    finally:
        for handle in handles:
            handle.remove()
    return counts


def statistics_of(model: PixelModel, images: Tensor, kept: Sequence[Kept]) -> list[tuple[Tensor, Tensor, int]]:
    """Return means and biased variances (T, C) at each layer of pictures (T, B, C, H, W), in their graph.

    Last comes over how many values of a channel they are. Statistics are each trial's own. A model in train mode must
    be given one trial at a time.
    """
    found: dict[_BatchNorm, tuple[Tensor, Tensor, int]] = {}
    handles = []
    for one in kept:

        def hook(norm: _BatchNorm, given: tuple[Tensor, ...]) -> None:
            features = given[0].reshape(*images.shape[:2], *given[0].shape[1:])
            by_trial = features.transpose(1, 2).flatten(2)  # (T, C, B·H·W)
            found[norm] = by_trial.mean(2), by_trial.var(2, correction=0), by_trial.shape[2]

        handles.append(one.norm.register_forward_pre_hook(hook))
    try:
        with torch.enable_grad():
            model(images.flatten(0, 1))
    finally:
        for handle in handles:
            handle.remove()
    return [found[one.norm] for one in kept]


def _apart(kept: Sequence[Kept], found: Sequence[tuple[Tensor, Tensor]], victims: Tensor) -> Tensor:
    """Return Σ_l w_l (‖μ_l − μ̂_l‖² + ‖σ²_l − σ̂²_l‖²) (T,) of what was found (T, C) for victims (T,)."""
    total = torch.zeros(len(victims), device=victims.device, dtype=kept[0].mean.dtype if kept else None)
    for one, (mean, variance) in zip(kept, found, strict=True):
        gap = (mean - one.mean[victims]).square() + (variance - one.variance[victims]).square()
        total = total + one.weight * gap.sum(1)
    return total


def statistics_gap(model: PixelModel, images: Tensor, victims: Tensor, kept: Sequence[Kept]) -> Tensor:
    """Return Σ_l w_l (‖μ_l(x̂) − μ_l‖² + ‖σ²_l(x̂) − σ²_l‖²) (T,) for pictures (T, B, C, H, W), in their graph.

    Statistics are each trial's own. A model in train mode must be given one trial at a time.
    """
    found = statistics_of(model, images, kept)
    return _apart(kept, [(mean, variance) for mean, variance, _ in found], victims)


def mixed_gap(
    model: PixelModel, images: Tensor, kept: Sequence[Kept], training: Training, update: SharedUpdate, victim: int
) -> Tensor:
    """Return the same (1,) for pictures (B, C, H, W) that a victim's clients saw in the steps of a `training`.

    Step k is simulated at the weights w₀ + (k − 1)/E·(w_E − w₀): a server knows both ends, and local training is
    short. What a step sees is weighed as its running statistics weigh it (`Shares`), and of the clients is the mean.
    """
    parameters = parameters_of(model)[1]
    sums: list[tuple[Tensor, Tensor]] = []
    size = update.client.step_size(update.own)
    for plan in training.plans:
        for k, rows in enumerate(plan):
            far = update.moved * k / len(plan) if update.client.local else 0.0
            weights = [p.detach() - far * g[victim] for p, g in zip(parameters, update.gradients, strict=True)]
            with with_parameters(model, parameters, weights):
                found = statistics_of(model, images[rows.to(images.device)][None], kept)
            parts = []
            for one, (mean, variance, count) in zip(kept, found, strict=True):
                share = shares_of(one.norm, len(plan)).weights[k] / len(training.plans)
                whole = count // len(rows) * size  # values of a whole step
                unbiased = count / max(1, count - 1) * (whole - 1) / whole
                parts.append((share * mean, share * unbiased * variance))
            sums = [(a + c, b + d) for (a, b), (c, d) in zip(sums, parts, strict=True)] if sums else parts
    return _apart(kept, sums, torch.tensor([victim], device=images.device))


def group_gap(images: Tensor, victims: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean (x̂ − x̄)² (T,) of pictures (T, B, C, H, W), x̄ being the mean of all trials of a victim, and its slope.

    Yin et al. 2021, eq. 11, without their registration by shifts. x̄ is held fixed in the slope.
    """
    count = int(victims.max()) + 1
    sums = torch.zeros(count, *images.shape[1:], device=images.device, dtype=images.dtype).index_add(0, victims, images)
    members = torch.bincount(victims, minlength=count).clamp_min(1).to(images.dtype)
    apart = images - (sums / members.view(-1, 1, 1, 1, 1))[victims]
    return apart.square().flatten(1).mean(1), 2 * apart / apart[0].numel()


@register_attack
@dataclass(frozen=True, kw_only=True)
class BatchStatistics(InvertingGradients):
    """Inverting gradients and weight·Σ_l w_l (‖μ_l(x̂) − μ_l‖² + ‖σ²_l(x̂) − σ²_l‖²) over BatchNorm's inputs.

    Yin et al. 2021 (GradInversion, arXiv 2104.07586, eq. 9), the first two layers weighted more (Ye et al. 2024,
    HF-GradInv). In eval mode μ_l and σ²_l are the running statistics, a prior of natural pictures. In train mode the
    buffers that a client sends give its batch's own, μ = (μ_new − (1 − m)·μ_old)/m (`of_the_batch`): no prior then, but
    what was seen. The weight is tuned on auxiliary records. After local steps they give the weighted mean
    of what all steps saw (`mixed_gap`), and the match is that of `through-local-steps` where there are no more than
    `MOST_STEPS`. Restarts are drawn to the mean of a victim's (`group_gap`).
    """

    family: ClassVar[str] = "matching"
    name: ClassVar[str] = "batch-statistics"
    summary: ClassVar[str] = "inverting gradients, with the BatchNorm statistics that were sent"
    source: ClassVar[str] = "Yin et al. 2021 (GradInversion); Huang et al. 2021; Ye et al. 2024 (HF-GradInv)"
    requires: ClassVar[frozenset[str]] = frozenset({"buffers"})
    covers: ClassVar[frozenset[str]] = frozenset({"batchnorm-statistics"})
    needs: ClassVar[Needs] = Needs(batchnorm=True)
    grid: ClassVar[Mapping[str, tuple[float, ...]]] = {
        "weight": (1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
        "tv": (1e-4, 1e-3, 1e-2, 1e-1),
    }

    weight: float = 1e-3  # of the statistics beside the match
    consistency: float = 1.0  # of the restarts among each other, where there are several

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.weight, self.consistency) < 0:
            raise ValueError("weight and consistency must not be negative")

    def matching(
        self, model: PixelModel, update: SharedUpdate, distance: engine.Distance, generator: torch.Generator
    ) -> Match:
        """Add the gap of the statistics to the match of the gradients, or of the client's training."""
        plain, trainings = self._plain(model, update, distance, generator)
        with client_mode(model, update, generator):  # which restores the running statistics
            counts = seen_by(model, update)
        kept = kept_statistics(model, update, counts)

        def gaps(images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            x = images.detach().requires_grad_(True)
            if update.mode == "train":
                (victim,) = rows.tolist()
                value = mixed_gap(model, x[0], kept, trainings[victim], update, victim)
            else:
                value = statistics_gap(model, x, rows, kept)
            (slopes,) = torch.autograd.grad(value.sum(), x)
            return value.detach(), slopes

        def match(images: Tensor, labels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            values, slopes = plain(images, labels, rows)
            if update.mode == "train":
                found = [gaps(images[t : t + 1], rows[t : t + 1]) for t in range(len(images))]
            else:
                work = ("statistics", images.shape[1:])
                found = in_pieces(lambda a, b: gaps(images[a:b], rows[a:b]), len(images), model, work, images.device)
            value, slope = zip(*found, strict=True)
            values, slopes = values + self.weight * torch.cat(value), slopes + self.weight * torch.cat(slope)
            if self.consistency and self.restarts > 1:
                apart, pull = group_gap(images, rows)
                values, slopes = values + self.consistency * apart, slopes + self.consistency * pull
            return values, slopes

        return match

    def _plain(
        self, model: PixelModel, update: SharedUpdate, distance: engine.Distance, generator: torch.Generator
    ) -> tuple[Match, list[Training]]:
        """Return the match without the statistics, and every victim's local training: all its steps, or one."""
        client = update.client
        if update.is_gradient or steps_of_all(update) > MOST_STEPS:
            order = natural(client, update.batch_size)
            return super().matching(model, update, distance, generator), [training_of(client, order)] * update.victims
        trainings = [training_of(client, order) for order in orders_of(model, update, generator)]
        return match_through(model, update, distance, trainings), trainings

    def several(
        self, choices: Sequence[Attack], model: PixelModel, update: SharedUpdate, generator: torch.Generator
    ) -> list[Reconstruction]:
        """Return what each of `choices` does; one after another where restarts are drawn to their own mean."""
        if self.restarts > 1:
            return Attack.several(self, choices, model, update, generator)
        return super().several(choices, model, update, generator)
