"""Gradient matching that begins at a guess: a kernel regression from updates to pictures, learned on auxiliary records.

On a trained network matching from grey draws what is in the picture, but misplaced and without its brightness and
colours: the update hardly changes with either. What the update does say of them, a regression can learn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from leakaudit.attacks._attacking import client_mode, failed, memory_safe, need_one_gradient
from leakaudit.attacks._labels import Head, find_head, probe_pictures
from leakaudit.attacks._residual import read, residuals
from leakaudit.attacks._sketch import folded, widths_within
from leakaudit.attacks._targets import input_of
from leakaudit.attacks.inverting_gradients import InvertingGradients
from leakaudit.errors import NotApplicable
from leakaudit.protocol.amounts import Amount, Sizes
from leakaudit.protocol.attack import Effort, Needs, Reconstruction
from leakaudit.protocol.client import SharedUpdate, release, sent
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.gradients import Gradients
from leakaudit.protocol.registry import register_attack
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.work.memory import need
from leakaudit.work.progress import expired, track

FEATURES = 6144  # numbers that the tensors of an update are reduced to
LEAST = 8  # auxiliary updates, to learn anything from
SHARED = 0.3  # what records of orthogonal residuals tell of each other, beside 1 for those of the same
PENALTIES = (0.03, 0.1, 0.3, 1.0)  # of the regression, in units of the kernel's diagonal
APART = 0.1  # noise on the guess, by which restarts differ
POOR = 0.05  # 1 − cos above which a picture is not believed to have its contrast, which is then raised …
MOST = 2.0  # … by no more than this
_BEYOND = 6.0  # standard deviations at which a feature is cut


@dataclass(frozen=True)
class Reader:
    """What is read of one record's update: every tensor over ‖r‖, folded, and the head's input h; beside them r/‖r‖.

    An update is J(x)ᵀr, and on a trained network r = p − y is a fraction of a millionth for one record and near 1 for
    the next: divided by its length, updates of both are alike, and those of members like those of others.
    """

    head: Head
    widths: tuple[int, ...]
    signs: tuple[Tensor, ...]  # ±1, (n,) per parameter

    def __call__(self, gradients: Gradients, fixed: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (F,) and directions (K,) of an update, each tensor (*parameter.shape), with residual (K,)."""
        length = fixed.double().norm().clamp_min(1e-300)
        rows, _ = self.head.gradients(gradients)
        own = input_of(rows[None], fixed[None])[0].to(fixed)
        parts = [own]
        for i, (g, s, w) in enumerate(zip(gradients, self.signs, self.widths, strict=True)):
            if i not in (self.head.weight, self.head.bias):
                parts.append(folded((g.double() / length).to(fixed).flatten(), s, w))
        return torch.cat(parts), (fixed.double() / length).to(fixed)


@dataclass(frozen=True)
class Regression:
    """Kernel ridge regression from readings to pictures: k = exp(−‖φ − φ′‖²/s)·(`SHARED` + ⟨r, r′⟩), φ standardised.

    The second factor is there because an update is linear in its residual: what an entry says turns with r.
    """

    middle: Tensor  # (F,) what features are divided by before asinh, so that heavy tails do not rule
    mean: Tensor  # (F,) of what that gives, and its
    spread: Tensor  # (F,)
    width: Tensor  # () s
    features: Tensor  # (N, F) standardised
    directions: Tensor  # (N, K)
    weights: Tensor  # (N, D)
    centre: Tensor  # (D,) the mean picture
    energy: Tensor  # () the mean squared distance of a pixel from it

    def __call__(self, features: Tensor, directions: Tensor) -> Tensor:
        """Return guesses (M, D) for features (M, F) and directions (M, K), not clamped."""
        own = standardised(features, self.middle, self.mean, self.spread)
        return self.centre + kernel(own, directions, self.features, self.directions, self.width) @ self.weights


def squeezed(features: Tensor, middle: Tensor) -> Tensor:
    """Return asinh(x / 3m) of features (N, F): like x below their median magnitude m (F,), like its logarithm above."""
    return torch.asinh(features / (3 * middle))


def standardised(features: Tensor, middle: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    """Return features (N, F) squeezed, centred and scaled: rows like those fitted on have a length near 1."""
    scaled = ((squeezed(features, middle) - mean) / spread).clamp(-_BEYOND, _BEYOND)
    return torch.div(scaled, features.shape[1] ** 0.5)


def kernel(own: Tensor, own_directions: Tensor, other: Tensor, directions: Tensor, width: Tensor) -> Tensor:
    """Return k (M, N) of standardised features (M, F), (N, F) and directions (M, K), (N, K)."""
    gap = own.square().sum(1)[:, None] + other.square().sum(1) - 2 * own @ other.T
    return torch.exp(-gap.clamp_min(0) / width) * (SHARED + own_directions @ directions.T)


def fit(features: Tensor, directions: Tensor, pictures: Tensor) -> Regression:
    """Fit the regression on features (N, F), directions (N, K) and pictures (N, D), every tenth held out.

    The penalty is the one of least squared error on those, and the guess is scaled by what fits them best.
    """
    held = torch.arange(len(features), device=features.device) % 10 == 9
    middle = features[~held].abs().median(0).values.clamp_min(1e-12)
    plain = squeezed(features[~held], middle)
    mean, spread = plain.mean(0), plain.std(0).clamp_min(1e-6)
    own = standardised(features, middle, mean, spread)
    x, r, centre = own[~held], directions[~held], pictures[~held].mean(0)
    y, truth = pictures[~held] - centre, pictures[held] - centre
    some = x[:: max(1, len(x) // 500)]
    width = (2 * some.var(0).sum()).clamp_min(1e-9)
    inner, told = kernel(x, r, x, r, width), kernel(own[held], directions[held], x, r, width)
    diagonal = float(inner.diagonal().mean())
    least, best = truth.square().mean(), torch.zeros_like(y)
    for penalty in PENALTIES:
        moved = inner.clone()
        moved.diagonal().add_(penalty * diagonal)
        factor, failed_at = torch.linalg.cholesky_ex(moved)
        if int(failed_at):  # records that are the same but for rounding
            continue
        weights = torch.cholesky_solve(y, factor)
        guess = told @ weights
        scale = (guess * truth).sum() / guess.square().sum().clamp_min(1e-20)
        error = (scale * guess - truth).square().mean()
        if error < least:
            least, best = error, scale * weights
    return Regression(middle, mean, spread, width, x, r, best, centre, y.square().mean())


@register_attack
@dataclass(frozen=True, kw_only=True)
class LearnedStart(InvertingGradients):
    """Inverting gradients from a picture that a kernel regression reads off the update; B = 1, residual known.

    Formulated here: the updates of `pairs` auxiliary records, through the defense where it is exposed, are reduced to
    features (`Reader`), a kernel ridge regression (`Regression`) guesses the picture from them, and matching with the
    residual held fixed (`residuals`) goes on from the guess: areas first, pixels last (`Pace`). All `restarts` begin
    near the guess and run in full, for early objectives say little here; the least is kept, its contrast restored
    (`chosen`). Settings were chosen on auxiliary records of a trained ResNet-20, and are not tuned.

    Raises NotApplicable for batches, where fewer than `LEAST` auxiliary records are exposed, and where no residual is
    known exactly: behind noise, pruning or rounding `learned-inversion` reads what is left.
    """

    name: ClassVar[str] = "learned-start"
    summary: ClassVar[str] = "inverting gradients from a guess that is learned on auxiliary updates"
    source: ClassVar[str] = "formulated here; Geiping et al. 2020; after Wu et al. 2023 (Learning to Invert)"
    family: ClassVar[str] = "learned"
    requires: ClassVar[frozenset[str]] = frozenset({"auxiliary"})
    needs: ClassVar[Needs] = Needs(one_record=True)
    grid: ClassVar[Mapping[str, tuple[float, ...]]] = {}
    effort: ClassVar[tuple[Effort, ...]] = ("steps",)
    coarse: ClassVar[float] = 0.95

    restarts: int = 3
    pairs: int = 2000
    tv: float = 0.1
    step_size: float = 0.07
    fall: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pairs < LEAST:
            raise ValueError(f"pairs must be at least {LEAST}")

    def amount(self, sizes: Sizes) -> Amount:
        """Return how much work it is: an update of each pair, and the matching."""
        pairs = min(self.pairs, sizes.auxiliary)
        return Amount(updates=sizes.victims + pairs, slopes=self.steps * self.restarts * sizes.victims)

    @memory_safe
    def __call__(self, model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Reconstruction:
        """Guess every victim's picture, and match from there."""
        auxiliary = update.auxiliary
        if update.batch_size != 1:
            raise NotApplicable(f"it is learned for one record per update, here there are {update.batch_size}")
        need_one_gradient(update)
        if auxiliary is None:
            raise NotApplicable("auxiliary records are not exposed")
        if len(auxiliary) < LEAST:
            raise NotApplicable(f"it needs at least {LEAST} auxiliary records, here there are {len(auxiliary)}")
        fixed = residuals(model, update, generator)[:, 0]
        known = fixed.isfinite().all(1)
        if not bool(known.any()):
            raise NotApplicable(
                "no update tells its residual p − y exactly: no dense layer gives the outputs, or noise hides it"
            )
        regression, reader = learned(self.pairs, model, update, auxiliary, generator, self.name)
        if regression is None:
            return failed(update, "budget", "the time budget was spent before enough auxiliary updates were seen")
        told = [
            reader(tuple(g[v] for g in update.gradients), r if good else torch.ones_like(r))
            for v, (r, good) in enumerate(zip(fixed, known.tolist(), strict=True))
        ]
        features, directions = (torch.stack(column).nan_to_num(0, 0, 0) for column in zip(*told, strict=True))
        guess = regression(features, directions)
        guess[~known] = regression.centre
        first = guess.view(update.victims, 1, *update.input_shape)
        drawn = torch.randn((self.restarts, *first.shape), generator=generator, device=generator.device)
        runs = []
        for noise in drawn.to(first):
            begin = (first + APART * noise).clamp(0, 1)
            runs += self._inverted([replace(self, restarts=1)], model, update, generator, begin)
            if expired():
                break
        return chosen(runs, regression, update)


def chosen(runs: Sequence[Reconstruction], regression: Regression, update: SharedUpdate) -> Reconstruction:
    """Return every victim's picture of least objective, with the contrast of auxiliary ones where the match is poor.

    The prior and the guess draw towards grey: of victims whose objective is above `POOR`, the distance from the mean
    picture is raised until it is what auxiliary pictures have on average. Statuses are the last run's.
    """
    last = runs[-1]
    if last.images is None or any(run.images is None for run in runs):
        return last
    values = torch.stack([run.objective for run in runs]).nan_to_num(nan=torch.inf)
    best, victims = values.argmin(0), torch.arange(update.victims, device=values.device)
    pictures = torch.stack([run.images for run in runs if run.images is not None])[best, victims]
    objective = values[best, victims]
    centre, poor = regression.centre.view(update.input_shape), objective > POOR
    if bool(poor.any()):
        energy = (pictures[poor] - centre).square().mean()
        factor = (regression.energy / energy.clamp_min(1e-12)).sqrt().clamp(1, MOST)
        pictures[poor] = (centre + factor * (pictures[poor] - centre)).clamp(0, 1)
    return replace(last, images=pictures, objective=objective)


def learned(
    pairs: int, model: PixelModel, update: SharedUpdate, auxiliary: Records, generator: torch.Generator, label: str
) -> tuple[Regression | None, Reader]:
    """Return what was learned of at most `pairs` auxiliary records: None where the time sufficed for too few."""
    device = model.mean.device
    count = min(pairs, len(auxiliary))
    whole = sum(g[0].numel() for g in update.gradients)
    width = FEATURES + 2 * auxiliary.images[0].numel()
    need(4 * (2 * count * width + 4 * count**2 + 4 * whole), f"a regression on {count} pairs", "pairs", device)
    order = torch.randperm(len(auxiliary), generator=generator, device=generator.device)[:count]
    own = auxiliary[order.to(auxiliary.labels.device)].to(device)
    defense = Defense() if update.defense is None else update.defense
    shown = release(defense, own, generator)
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    with client_mode(model, update, generator):
        head = find_head(model, update, probe_pictures(update, generator, device, 8))
        assert head is not None  # the residuals were read off it
        sizes = [0 if i in (head.weight, head.bias) else g[0].numel() for i, g in enumerate(update.gradients)]
        drawn = [torch.randint(2, (n,), generator=generator, device=generator.device) for n in sizes]
        signs = tuple((2 * s - 1).to(device) for s in drawn)
        reader = Reader(head, widths_within(sizes, FEATURES), signs)
        for i in track(f"{label}: updates", count):
            x, y = shown.images[i : i + 1], shown.labels[i : i + 1]
            gradients, _ = sent(model, update.loss, x, y, defense, update.mode, generator, update.client)
            fixed = read(head, tuple(g[None] for g in gradients))[0].to(x)
            if bool(fixed.isfinite().all()):
                seen.append((*reader(gradients, fixed), own.images[i].flatten()))
    if len(seen) < LEAST:
        return None, reader
    features, directions, pictures = (torch.stack(column) for column in zip(*seen, strict=True))
    return fit(features, directions, pictures), reader
