"""Inverting gradients with BatchNorm's statistics: those of the batch itself where the buffers sent give them away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from leakaudit.attacks._attacking import client_mode
from leakaudit.attacks.inverting_gradients import InvertingGradients, Match
from leakaudit.engine import matching as engine
from leakaudit.errors import NotApplicable
from leakaudit.protocol.attack import Attack, Needs, Reconstruction
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.registry import register_attack
from leakaudit.protocol.target import PixelModel
from leakaudit.work.memory import in_pieces

FIRST = (3.0, 1.3)  # how much more the first layers count (HF-GradInv), since they are the least abstract


@dataclass(frozen=True)
class Kept:
    """What a layer's statistics are to be matched with: means and biased variances (V, C), `weight` beside others."""

    norm: _BatchNorm
    mean: Tensor
    variance: Tensor
    weight: float


def of_the_batch(before: Tensor, after: Tensor, momentum: float) -> Tensor:
    """Return a batch's own mean, or unbiased variance, from the running ones before and after it.

    A step is after = (1 − m)·before + m·batch (Ioffe and Szegedy 2015, as torch has it).
    """
    found: Tensor = (after.double() - (1 - momentum) * before.double()) / momentum
    return found


def kept_statistics(model: PixelModel, update: SharedUpdate, counts: Mapping[str, int]) -> list[Kept]:
    """Return what every layer that keeps statistics says, in order, from the buffers that each victim sent.

    In eval mode these are the running ones, of natural pictures. In train mode they give the batch's own, with
    `counts` values of a channel in each layer, by name: of n values the variance kept is n/(n − 1) times the biased
    one, which is what BatchNorm divides by.
    """
    if update.buffers is None:
        raise NotApplicable("BatchNorm statistics are not exposed")
    norms = {n: m for n, m in model.named_modules() if isinstance(m, _BatchNorm) and m.track_running_stats}
    if not norms:
        raise NotApplicable("the model has no BatchNorm that keeps statistics")
    found: list[Kept] = []
    train = update.mode == "train"
    for name, count in counts.items():  # in order of use
        norm, own = norms[name], []
        for what in ("mean", "var"):
            before = norm.get_buffer(f"running_{what}")
            after = torch.stack([sent[f"{name}.running_{what}"] for sent in update.buffers])
            if train:
                tracked = norm.num_batches_tracked
                momentum = 1 / (1 if tracked is None else int(tracked) + 1) if norm.momentum is None else norm.momentum
                after = of_the_batch(before, after, momentum).to(before.dtype)
            own.append(after)
        if not own[0].isfinite().all():  # a momentum of zero keeps nothing of the batch
            continue
        if train:
            own[1] = own[1] * ((count - 1) / count)
        weight = FIRST[len(found)] if len(found) < len(FIRST) else 1.0
        found.append(Kept(norm, own[0], own[1].clamp_min(0), weight))
    return found


def seen_by(model: PixelModel, update: SharedUpdate) -> dict[str, int]:
    """Return how many values of a channel each layer that keeps statistics sees of one batch, in order of use."""
    counts: dict[str, int] = {}
    handles = []
    for name, norm in model.named_modules():
        if isinstance(norm, _BatchNorm) and norm.track_running_stats:

            def watch(_: _BatchNorm, given: tuple[Tensor, ...], name: str = name) -> None:
                counts.setdefault(name, given[0].numel() // given[0].shape[1])

            handles.append(norm.register_forward_pre_hook(watch))
    try:
        with torch.no_grad():
            model(torch.full((update.batch_size, *update.input_shape), 0.5).to(model.mean))
    finally:
        for handle in handles:
            handle.remove()
    return counts


def statistics_gap(model: PixelModel, images: Tensor, victims: Tensor, kept: list[Kept]) -> Tensor:
    """Return Σ_l w_l (‖μ_l(x̂) − μ_l‖² + ‖σ²_l(x̂) − σ²_l‖²) (T,) for pictures (T, B, C, H, W), in their graph.

    Statistics are each trial's own. A model in train mode must be given one trial at a time.
    """
    total = torch.zeros(len(images), device=images.device, dtype=images.dtype)
    handles = []
    for one in kept:

        def hook(_: _BatchNorm, given: tuple[Tensor, ...], one: Kept = one) -> None:
            nonlocal total
            features = given[0].reshape(*images.shape[:2], *given[0].shape[1:])
            by_trial = features.transpose(1, 2).flatten(2)  # (T, C, B·H·W)
            mean, variance = by_trial.mean(2), by_trial.var(2, correction=0)
            gap = (mean - one.mean[victims]).square() + (variance - one.variance[victims]).square()
            total = total + one.weight * gap.sum(1)

        handles.append(one.norm.register_forward_pre_hook(hook))
    try:
        with torch.enable_grad():
            model(images.flatten(0, 1))
    finally:
        for handle in handles:
            handle.remove()
    return total


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
    what was seen. The weight is tuned on auxiliary records. Restarts are drawn to the mean of a victim's (`group_gap`).
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
        """Add the gap of the statistics to the match of the gradients."""
        plain = super().matching(model, update, distance, generator)
        with client_mode(model, update, generator):  # which restores the running statistics
            counts = seen_by(model, update)
        kept = kept_statistics(model, update, counts)

        def gaps(images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            x = images.detach().requires_grad_(True)
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

    def several(
        self, choices: Sequence[Attack], model: PixelModel, update: SharedUpdate, generator: torch.Generator
    ) -> list[Reconstruction]:
        """Return what each of `choices` does; one after another where restarts are drawn to their own mean."""
        if self.restarts > 1:
            return Attack.several(self, choices, model, update, generator)
        return super().several(choices, model, update, generator)
