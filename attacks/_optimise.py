"""The one optimisation loop of the gradient-matching attacks: signed Adam in pixel space over a stack of trials."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from leakaudit.attacks._attacking import reason_of
from leakaudit.protocol.attack import Reconstruction, Status
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.labels import hard
from leakaudit.work.progress import expired, observe, track

# (pictures (T, B, C, H, W), victim of each trial (T,), how much of its schedule each has behind it (T,) in [0, 1]) ->
# (values (T,), gradients with respect to the pictures). The values must not depend on the schedule: they are compared.
Objective = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

COLOUR = 2.0  # how much more a step of colour weighs than one of brightness

# Steps after which a device is asked which trials are done, and waited for. Until then those that are done stand still
# in the stack. The CPU, which is never waited for, is asked at every step, and every device at each rung.
LOOK_EVERY = 8

COPIES = 16  # of the pictures of all trials, that a descent holds at its worst beside what the objective takes

ROUNDING = 1e-5  # of 1 − cos in single precision; seen: −3e-6 where the truth was 1e-8


@dataclass(frozen=True)
class Pace:
    """How a descent goes: how many steps, the largest of them (one for all, or (T,)), and the patience with a stall.

    A share `coarse` of the first step, falling to none of the last, follows what areas agree on (`signs`).
    """

    steps: int
    step_size: float | Tensor
    patience: int
    coarse: float = 0.0
    depth: int = 1  # of volumes


@dataclass(frozen=True)
class Descent:
    """Where T trials ended: the best pictures (T, B, C, H, W) by objective, its values (T,), and how each ended.

    `moved` (T,) says where the best is another picture than the start, for trials that start where nothing is known.
    """

    images: Tensor
    values: Tensor
    statuses: tuple[Status, ...]
    moved: Tensor | None = None

    def part(self, start: int, stop: int) -> Descent:
        """Return some of the trials."""
        moved = None if self.moved is None else self.moved[start:stop]
        return Descent(self.images[start:stop], self.values[start:stop], self.statuses[start:stop], moved)


def total_variation(images: Tensor, depth: int = 1) -> tuple[Tensor, Tensor]:
    """Return the anisotropic total variation Σ_d mean|∂_d| of pictures (T, B, C, H, W) as (T,), and its slope.

    Over rows and columns; of volumes, (T, B, C·D, H, W) of D = `depth` slices, over the slices of a channel too.
    """
    whole = torch.unflatten(images, 2, (-1, depth))
    value = torch.zeros(images.shape[0], device=images.device, dtype=images.dtype)
    slope = torch.zeros_like(whole)
    for dim in (-1, -2, -3):
        gap = whole.diff(dim=dim)
        if gap.numel() == 0:  # a picture has one slice, and one that is one pixel wide has no neighbours
            continue
        value = value + gap.abs().flatten(1).mean(1)
        sign = gap.sign() * (images.shape[0] / gap.numel())
        slope.narrow(dim, 1, whole.shape[dim] - 1).add_(sign)
        slope.narrow(dim, 0, whole.shape[dim] - 1).sub_(sign)
    return value, slope.flatten(2, 3)


def roughness(images: Tensor, depth: int = 1) -> tuple[Tensor, Tensor]:
    """Return TV(brightness) + 2 TV(colour) of pictures (T, B, C, H, W) as (T,), and its slope; of volumes C is C·D.

    Brightness is the mean over the channels and colour what each differs from it: in natural pictures an edge is mostly
    one of brightness, which the total variation of each channel by itself does not know. One channel: plain TV.
    """
    channels = images.shape[2] // depth
    if channels == 1:
        return total_variation(images, depth)

    def mean(x: Tensor) -> Tensor:
        return torch.unflatten(x, 2, (-1, depth)).mean(2)  # over the channels, slice by slice

    def spread(x: Tensor) -> Tensor:
        return x.repeat(1, 1, channels, 1, 1)

    brightness = mean(images)
    value, slope = total_variation(brightness, depth)
    colour, colour_slope = total_variation(images - spread(brightness), depth)
    whole = spread(slope) / channels + COLOUR * (colour_slope - spread(mean(colour_slope)))
    return value + COLOUR * colour, whole


def signs(slopes: Tensor, coarse: Tensor, depth: int = 1) -> Tensor:
    """Return the signs of slopes (T, B, C, H, W), where a share `coarse` (T,) goes to those of blocks' mean slopes.

    Blocks are 2, 4, 8, … pixels wide, up to the whole picture, every width with the same share; of volumes,
    (T, B, C·D, H, W) of D = `depth` slices, as deep as wide. By its own sign alone a pixel moves as far for noise as
    for what its neighbours agree on, so that brightness and colour of areas hardly move: on a trained network they stay
    at the grey of the start.
    """
    height, width = slopes.shape[-2:]
    # The last one holds the whole picture.
    sizes = [2**k for k in range(1, (max(depth, height, width) - 1).bit_length() + 1)]
    share = (coarse if sizes else torch.zeros_like(coarse)).view(-1, 1, 1, 1, 1)
    found, flat = (1 - share) * slopes.sign(), slopes.flatten(0, 1)
    volumes = torch.unflatten(flat, 1, (-1, depth))
    for size in sizes:
        if depth == 1:
            blocks = F.avg_pool2d(flat, size, ceil_mode=True).sign()
            spread = blocks.repeat_interleave(size, -2).repeat_interleave(size, -1)[..., :height, :width]
        else:
            within = min(size, depth), min(size, height), min(size, width)  # 3-D pooling takes no window that is wider
            blocks = F.avg_pool3d(volumes, within, ceil_mode=True).sign().repeat_interleave(size, -3)[:, :, :depth]
            spread = blocks.repeat_interleave(size, -2).repeat_interleave(size, -1)[..., :height, :width]
        found = found + share / len(sizes) * spread.reshape(slopes.shape)
    return found


def rungs(restarts: int, steps: int) -> dict[int, int]:
    """Return after which steps how many restarts of a victim are kept: halving, within a quarter of the schedule.

    16 restarts cost 2.6 runs instead of 16, and 4 cost 1.5. Where the schedule is too short for a rung of its own, the
    last one at a step counts.
    """
    levels = math.ceil(math.log2(restarts)) if restarts > 1 else 0
    return {max(1, steps * i // (4 * levels)): math.ceil(restarts / 2**i) for i in range(1, levels + 1)}


def fittest(values: Tensor, victims: Tensor, keep: int) -> Tensor:
    """Return a mask (T,) of the `keep` trials of least value (T,) of each victim (T,); ties go to the earlier trial."""
    order = values.nan_to_num(nan=torch.inf).argsort(stable=True)
    order = order[victims[order].argsort(stable=True)]  # by victim, and by value within
    place = torch.cat([torch.arange(count, device=values.device) for count in victims.bincount().tolist()])
    mask = torch.zeros_like(values, dtype=torch.bool)
    mask[order[place < keep]] = True
    return mask


def descend(
    objective: Objective,
    start: Tensor,
    victims: Tensor,
    pace: Pace,
    *,
    label: str,
    restarts: int = 1,
    channels: int | None = None,
) -> Descent:
    """Minimise `objective` from `start` (T, B, C, H, W) within [0, 1] by Adam on the gradient's sign (`signs`).

    The step size falls to nothing along a half cosine over the steps of the `pace`. A trial whose objective has not
    fallen by a thousandth of itself for its `patience`, and no less than an eighth of all steps, skips an eighth: it
    bounces between walls that a smaller step gets down between. Objectives closer than `ROUNDING` are equal, and of
    equal pictures the latest is kept: what the rounding hid was worth 10 to 20 dB on LeNet. Of the `restarts` trials
    of each victim the better half by objective goes on at each of `rungs` (successive halving). A trial is `diverged`
    when its objective is never finite, and `budget` when the time was up before its schedule was. One that never falls
    below its start has converged there: against a defense that works, nothing beats the grey picture it began with.
    Whoever watches sees the first `channels` alone, by default all.
    """
    steps, step_size = pace.steps, pace.step_size
    trials, device, halvings = int(start.shape[0]), start.device, rungs(restarts, steps)
    best_images, best = start.clone(), torch.full((trials,), torch.inf, device=device)
    active, none = torch.arange(trials, device=device), torch.zeros(trials, dtype=torch.long, device=device)
    here = _Trials(active, victims, start.clone(), torch.zeros_like(start), best.clone(), none, none, none == 0)
    every = look_every(device)
    for k in track(label, steps):
        progress = here.clock.to(start.dtype) / steps
        values, slopes = objective(here.x, here.victims, progress)
        going = here.going & values.isfinite() & slopes.flatten(1).isfinite().all(1)
        slopes = signs(slopes, pace.coarse * (1 - progress), pace.depth) if pace.coarse else slopes.sign()
        known = best[here.active]
        better = (going & (values < known + ROUNDING)).view(-1, 1, 1, 1, 1)
        best_images[here.active] = torch.where(better, here.x, best_images[here.active])
        best[here.active] = torch.where(going, torch.minimum(known, values), known)
        here = here.timed(values, going, max(pace.patience, steps // 8), steps)
        if k + 1 in halvings:
            here = replace(here, going=here.going & fittest(best, victims, halvings[k + 1])[here.active])
        if k + 1 in halvings or (k + 1) % every == 0:
            here, slopes = here.without_done(slopes)
        observe(best, best_images[:, :, :channels], victims, here.active)
        if not len(here.active):
            break
        largest = step_size[here.active] if isinstance(step_size, Tensor) else step_size
        rate = (largest * (0.5 + 0.5 * torch.cos(torch.pi * here.clock.to(start.dtype) / steps))).view(-1, 1, 1, 1, 1)
        # Adam's second moment of signs is one: what is left of it is the first.
        momentum = 0.9 * here.momentum + 0.1 * slopes
        x = (here.x - rate * momentum / (1 - 0.9 ** (k + 1))).clamp(0, 1)
        here = replace(here, momentum=momentum, x=torch.where(here.going.view(-1, 1, 1, 1, 1), x, here.x))
    unfinished = set(here.active[here.going].tolist()) if expired() else set()
    finite = best.isfinite().tolist()
    statuses = tuple(_status(t in unfinished, finite[t]) for t in range(trials))
    return Descent(best_images, best, statuses, (best_images != start).flatten(1).any(1))


def look_every(device: torch.device) -> int:
    """Return after how many steps the host may ask which trials are done."""
    return 1 if device.type == "cpu" else LOOK_EVERY


@dataclass(frozen=True)
class _Trials:
    """The trials that are still in the stack: which of all they are, and where each has got to.

    `plateau` is the value that progress is measured against. Those not `going` are done, and wait to be left out.
    """

    active: Tensor
    victims: Tensor
    x: Tensor
    momentum: Tensor
    plateau: Tensor
    clock: Tensor
    waited: Tensor
    going: Tensor

    def timed(self, values: Tensor, going: Tensor, patience: int, steps: int) -> _Trials:
        """Return the trials with their clocks moved on: by one step, or by an eighth of all where one has stalled."""
        progressed = (values < self.plateau * 0.999) | (values < ROUNDING)
        waited = torch.where(progressed, 0, self.waited + 1)
        stalled = waited >= patience
        clock = self.clock + 1 + stalled * (steps // 8)
        return replace(
            self,
            plateau=torch.where(progressed, values, self.plateau),
            clock=clock,
            waited=torch.where(stalled, 0, waited),
            going=going & (clock < steps),
        )

    def without_done(self, slopes: Tensor) -> tuple[_Trials, Tensor]:
        """Return the trials, and their slopes, without those that are done. The host waits for the device."""
        if bool(self.going.all()):
            return self, slopes
        left = self.going.nonzero()[:, 0]
        return _Trials(*(getattr(self, field.name)[left] for field in fields(self))), slopes[left]


def _status(unfinished: bool, finite: bool) -> Status:
    if unfinished:
        return "budget"
    return "converged" if finite else "diverged"


def best_restart(update: SharedUpdate, descent: Descent, labels: Tensor, restarts: int) -> Reconstruction:
    """Keep each victim's restart of least objective. Trials are ordered victim by victim.

    `labels` are (V, B), or (V·restarts, B) where every trial found its own; of probabilities (…, K) the likeliest class
    is given, and of targets (…, *shape) the label group.
    """
    values = descent.values.view(update.victims, restarts)
    chosen = values.argmin(1) + restarts * torch.arange(update.victims, device=values.device)
    cut = {t // restarts for t, status in enumerate(descent.statuses) if status == "budget"}  # might have ended lower
    statuses: tuple[Status, ...] = tuple(
        "budget" if v in cut else descent.statuses[t] for v, t in enumerate(chosen.tolist())
    )
    return Reconstruction(
        images=descent.images[chosen],
        labels=hard(labels if len(labels) == update.victims else labels[chosen], update.task),
        objective=descent.values[chosen],
        statuses=statuses,
        reason=reason_of(statuses),
        progress=None if descent.moved is None else descent.moved[chosen].float(),  # what is cut at its start made none
    )
