"""A generative prior: what a generator can draw is searched for the pictures whose gradient matches the update."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from leakaudit.attacks._attacking import client_mode, failed, memory_safe, room_for
from leakaudit.attacks._labels import known_labels
from leakaudit.attacks._optimise import COPIES, ROUNDING, Descent, best_restart, fittest, rungs
from leakaudit.attacks._regression import spectrum
from leakaudit.attacks.inverting_gradients import InvertingGradients, Match
from leakaudit.attacks.learned import LearnedInversion
from leakaudit.engine import matching as engine
from leakaudit.errors import NotApplicable
from leakaudit.protocol.amounts import Amount, Sizes
from leakaudit.protocol.attack import Attack, Effort, Needs, Reconstruction, Status
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.labels import hard
from leakaudit.protocol.registry import register_attack
from leakaudit.protocol.target import PixelModel
from leakaudit.work.memory import held
from leakaudit.work.progress import expired, observe, track

DIRECTIONS = 128  # of the learned inversion's errors, that its prior spans
LAYERS = 4  # of a generator, whose inputs are optimised after the latents
SMOOTHING = (0.9, 0.999)  # Adam's
NOTES = ("No `generator` was given: its place takes what learned inversion reads, with the ways in which that errs.",)

# (points (T, B, …), the victim of each trial (T,)) -> pictures (T, B, C, H, W), differentiable in the points
Draw = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Stage:
    """One space to search: `draw` makes pictures of its points; `start` are T points (T, B, …).

    `radius` (T, B) bounds how far in ℓ1 each record's point may go from its start; None: any way, under a normal prior.
    """

    draw: Draw
    start: Tensor
    radius: Tensor | None = None


def of_records(make: Callable[[Tensor], Tensor]) -> Draw:
    """Return what draws a picture of each record's point, from what does so of points (N, …)."""

    def draw(points: Tensor, rows: Tensor) -> Tensor:
        made = make(points.flatten(0, 1))
        return made.reshape(*points.shape[:2], *made.shape[1:])

    return draw


def fittest_of(values: Tensor, victims: int) -> Tensor:
    """Return which of the trials (T,), in order of their victims, has the least value of each victim (V,)."""
    each = values.nan_to_num(nan=torch.inf).view(victims, -1)
    return each.argmin(1) + each.shape[1] * torch.arange(victims, device=values.device)


def learned_prior(
    model: PixelModel, update: SharedUpdate, labels: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor] | None:
    """Return what learned inversion reads, (V, B, C, H, W), and the k directions (k, C·H·W) in which it errs most.

    Each is as long as the error along it is large, as by leaving each auxiliary record out once; None where the time
    did not suffice.
    """
    taught = LearnedInversion(decoder_steps=1).taught(model, update, labels, generator)
    if taught is None:
        return None
    inversion, rows = taught
    missed = inversion.ridge.missed
    vectors = spectrum(missed @ missed.T)[1]
    count = min(DIRECTIONS, max(1, len(missed) // 2))
    spread = vectors[:, -count:].T @ missed / len(missed) ** 0.5
    return inversion(rows, labels.flatten()).view(*labels.shape, *update.input_shape), spread


def into_ball(gap: Tensor, radius: Tensor) -> Tensor:
    """Return the point of the ℓ1 ball of radius (N,) that is nearest to each row of `gap` (N, D), in ℓ2.

    What is over is taken off every entry's size alike, down to zero (Duchi et al. 2008).
    """
    sizes = gap.abs()
    ordered = sizes.sort(1, descending=True)[0]
    over = (ordered.cumsum(1) - radius[:, None]) / torch.arange(1, gap.shape[1] + 1, device=gap.device)
    last = (ordered > over).sum(1, keepdim=True).clamp_min(1) - 1
    least = over.gather(1, last).clamp_min(0)
    return gap.sign() * (sizes - least).clamp_min(0)


def settle(
    match: Match,
    stage: Stage,
    labels: Tensor,
    *,
    steps: int,
    restarts: int,
    step_size: float,
    weight: float,
    label: str,
) -> tuple[Descent, Tensor]:
    """Minimise `match` plus `weight`/2 times the mean square of a latent over the points of a stage, by Adam.

    The weight is in units of the match at the starts, of each victim: some networks' begins at 1, others' at 1e-4.
    The step size falls to nothing along a half cosine. Where the stage has a `radius` there is no prior, steps are in
    units of the start's root mean square, and every step ends in the ball. Of the `restarts` of each victim the better
    half goes on at each of `rungs`. Return the pictures where they matched best, and the points (T, B, …) behind them.
    Trials lie victim by victim, `labels` are (V, B).
    """
    victims = torch.arange(len(labels), device=labels.device).repeat_interleave(restarts)
    here, loud = stage.start.clone(), torch.zeros(len(victims), device=victims.device)
    best_points, best_images = here.clone(), stage.draw(here, victims).detach()
    best = torch.full((len(here),), torch.inf, device=here.device)
    first, second = torch.zeros_like(here), torch.zeros_like(here)
    unit = step_size * (1.0 if stage.radius is None else float(stage.start.square().mean().sqrt().clamp_min(1e-6)))
    active, halvings, k = torch.arange(len(here), device=here.device), rungs(restarts, steps), -1
    for k in track(label, steps):
        point = here[active].requires_grad_(True)
        with torch.enable_grad():
            images = stage.draw(point, victims[active])
        values, slopes = match(images.detach(), labels[victims[active]], victims[active])
        (slope,) = torch.autograd.grad(images, point, slopes)
        point = point.detach()
        if k == 0:
            loud = values.nan_to_num(0, 0, 0).abs().view(-1, restarts).mean(1)[victims]
        if stage.radius is None:
            values = values + weight / 2 * loud[active] * point.flatten(1).square().mean(1)
            slope = slope + wide(weight * loud[active], slope) * point / point[0].numel()
        good = values.isfinite() & slope.flatten(1).isfinite().all(1)
        chosen = good & (values < best[active] + ROUNDING)
        better = active[chosen]
        best[better] = torch.minimum(best[better], values[chosen])
        best_points[better], best_images[better] = point[chosen], images.detach()[chosen]
        observe(best, best_images, victims, active)
        slope = torch.where(wide(good, slope), slope, torch.zeros_like(slope))
        first[active] = SMOOTHING[0] * first[active] + (1 - SMOOTHING[0]) * slope
        second[active] = SMOOTHING[1] * second[active] + (1 - SMOOTHING[1]) * slope.square()
        size = (second[active] / (1 - SMOOTHING[1] ** (k + 1))).sqrt()
        rate = unit * (0.5 + 0.5 * math.cos(math.pi * k / steps)) / (1 - SMOOTHING[0] ** (k + 1))
        here[active] = point - rate * first[active] / size.clamp_min(1e-12)
        if stage.radius is not None:
            start = stage.start[active]
            gap = into_ball((here[active] - start).flatten(2).flatten(0, 1), stage.radius[active].flatten())
            here[active] = start + gap.view_as(start)
        if k + 1 in halvings:
            active = active[fittest(best[active], victims[active], halvings[k + 1])]
    over: Status = "budget" if k + 1 < steps and expired() else "converged"
    statuses = tuple(over if f else "diverged" for f in (best.isfinite() | (over == "budget")).tolist())
    moved = (best_points != stage.start).flatten(1).any(1)
    return Descent(best_images.clamp(0, 1), best, statuses, moved), best_points


def wide(each: Tensor, like: Tensor) -> Tensor:
    """Return numbers (T,) in a shape that meets a tensor (T, …)."""
    return each.view(-1, *[1] * (like.dim() - 1))


def feature_cuts(make: object) -> list[int]:
    """Return before which layers of a generator features are searched: those with parameters, but the first of them.

    Of an `nn.Sequential`, the first `LAYERS`; of anything else none is known.
    """
    if not isinstance(make, nn.Sequential):
        return []
    heavy = [i for i, layer in enumerate(make) if any(True for _ in layer.parameters())]
    return heavy[1 : 1 + LAYERS]


@register_attack
@dataclass(frozen=True, kw_only=True)
class GenerativePrior(Attack):
    """Minimise 1 − cos(∇ℓ(G(z)), g) + weight/2·mean(z²) over the latents z of a generator G, then over its features.

    G is `generator` of `model.py`: the adversary's own knowledge of what pictures look like. As in GIFD (Fang et al.
    2023, arXiv 2308.04699; GIAS, Jeon et al. 2021), latents come first, from `restarts` draws of a normal
    distribution; then the inputs of G's next layers in turn, if it is an `nn.Sequential`, each within an ℓ1 ball of
    `radius` times its own ℓ1 norm around where the last ended; what matched the update best is kept.

    With `learned`, where no generator is given, G is what learned inversion reads of the update, plus the leading
    directions of the errors that it makes on auxiliary records: z = 0 is its guess, and the match says how it errs.

    `step_size` is in units of a latent's deviation; half of the `steps` are spent on latents where features follow.
    """

    family: ClassVar[str] = "generative"
    name: ClassVar[str] = "generative-prior"
    summary: ClassVar[str] = "match the gradient over what a generator can draw: its latents, then its features"
    source: ClassVar[str] = "Fang et al. 2023 (GIFD); Jeon et al. 2021 (GIAS)"
    requires: ClassVar[frozenset[str]] = frozenset({"defense", "auxiliary"})
    covers: ClassVar[frozenset[str]] = frozenset({"generative-prior"})
    needs: ClassVar[Needs] = Needs(generator=True)
    examines: ClassVar[frozenset[str]] = frozenset({"anything"})
    effort: ClassVar[tuple[Effort, ...]] = ("steps",)

    steps: int = 400
    restarts: int = 4
    step_size: float = 0.1
    weight: float = 0.01
    learned: bool = False
    radius: float = 0.3

    def __post_init__(self) -> None:
        if min(self.steps, self.restarts) < 1:
            raise ValueError("steps and restarts must be at least 1")
        if self.step_size <= 0 or min(self.weight, self.radius) < 0:
            raise ValueError("step_size must be positive, weight and radius must not be negative")

    def amount(self, sizes: Sizes) -> Amount:
        """Return how much work it is: the match, and the learned inversion where that serves; none without either."""
        if not (sizes.generator or self.learned):
            return Amount()
        runs = 1 + sum(rungs(self.restarts, self.steps).values()) / 4
        found = Amount(slopes=self.steps * runs * sizes.victims)
        return found if sizes.generator else found + LearnedInversion(decoder_steps=1).amount(sizes)

    @memory_safe
    def __call__(self, model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Reconstruction:
        """Return the pictures that matched best."""
        if update.auxiliary is None or update.defense is None:
            raise NotApplicable("the defense or auxiliary records are not exposed")
        if update.prior is None and not self.learned:
            raise NotApplicable("no `generator` of pictures was given in model.py")
        told = f"{update.victims * self.restarts} trials at once (restarts={self.restarts})"
        room = room_for(update, update.victims * self.restarts, COPIES)
        with held(room, told, "restarts or records", model.mean.device):
            return self._searched(model, update, generator)

    def _searched(self, model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Reconstruction:
        known = known_labels(model, update, generator)
        labels = hard(known, update.task)
        taught = known if update.task.own_targets else labels
        given, spare = update.prior, 0
        if given is not None:
            stage = Stage(of_records(given.make), self._latents(update, given.latent, labels, generator))
            spare = self.steps // 2 if feature_cuts(given.make) else 0
        else:
            told = learned_prior(model, update, labels, generator)
            if told is None:
                return failed(update, "budget", "the time budget was spent before enough auxiliary updates were seen")
            guess, spread = told
            start = self._latents(update, (len(spread),), labels, generator)
            start[:: self.restarts] = 0  # the guess itself

            def drawn(z: Tensor, rows: Tensor) -> Tensor:
                return (guess[rows] + (z @ spread).view(*z.shape[:2], *update.input_shape)).clamp(0, 1)

            stage = Stage(drawn, start)
        match = InvertingGradients().matching(model, update, engine.cosine, generator)
        with client_mode(model, update, generator):
            descent, points = self._settled(match, stage, taught, self.steps - spare, self.restarts)
            chosen = fittest_of(descent.values, update.victims)
            best = best_restart(update, descent, labels, self.restarts)
            if given is not None and spare:
                best = self._deeper(match, update, taught, given.make, points[chosen], best, spare)
        return best if given is not None else replace(best, notes=(*best.notes, *NOTES))

    def _latents(
        self, update: SharedUpdate, shape: tuple[int, ...], labels: Tensor, generator: torch.Generator
    ) -> Tensor:
        whole = (update.victims * self.restarts, update.batch_size, *shape)
        return torch.randn(whole, generator=generator, device=generator.device).to(labels.device)

    def _settled(self, match: Match, stage: Stage, labels: Tensor, steps: int, restarts: int) -> tuple[Descent, Tensor]:
        return settle(
            match, stage, labels, steps=steps, step_size=self.step_size, weight=self.weight,
            restarts=restarts, label=self.name,
        )  # fmt: skip

    def _deeper(
        self,
        match: Match,
        update: SharedUpdate,
        labels: Tensor,
        make: Callable[[Tensor], Tensor],
        points: Tensor,
        best: Reconstruction,
        steps: int,
    ) -> Reconstruction:
        """Return the best after the features of one layer after the other; `points` (V, B, …) are latents."""
        assert isinstance(make, nn.Sequential)
        cuts, place = feature_cuts(make), 0
        for cut in cuts:
            if "budget" in best.statuses:
                break
            with torch.no_grad():
                start = of_records(make[place:cut])(points, labels)
            radius = self.radius * start.flatten(2).abs().sum(2)
            stage = Stage(of_records(make[cut:]), start, radius)
            descent, points = self._settled(match, stage, labels, max(1, steps // len(cuts)), 1)
            place, found = cut, best_restart(update, descent, labels, 1)
            lower = found.objective < best.objective
            assert found.images is not None
            assert best.images is not None
            best = replace(
                found,
                images=torch.where(lower.view(-1, 1, 1, 1, 1), found.images, best.images),
                objective=torch.where(lower, found.objective, best.objective),
            )
        return best
