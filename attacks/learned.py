"""Learned inversion: a map from what a defense lets through back to the picture, learned on auxiliary records."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakaudit.attacks._attacking import client_mode, failed, memory_safe, reason_of
from leakaudit.attacks._labels import known_labels
from leakaudit.attacks._lessons import LEAST, Lesson, Rows, lesson_of, stacked_rows
from leakaudit.attacks._regression import Ridge, fit_ridge, train_correction
from leakaudit.errors import NotApplicable
from leakaudit.protocol.amounts import Amount, Sizes
from leakaudit.protocol.attack import Attack, Effort, Reconstruction, Status
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.labels import class_means, hard
from leakaudit.protocol.registry import register_attack
from leakaudit.protocol.target import PixelModel
from leakaudit.work.progress import expired
from leakaudit.work.seeding import derive, forked

RANK_WEIGHT = 3.0  # of a record's rank, beside an energy of 1 in the update
HEAD_WEIGHT = 10.0  # energy of the head's input beside that of the rest, where both are used
_DIRECTIONS = 128  # of the pictures, that the network corrects
WORDS = {
    "diverged": "the shared update is not finite",
    "budget": "the time budget was spent while the inversion was learned; the best so far is given",
}


@dataclass(frozen=True)
class Recipe:
    """Which rows are used, and how each entry is weighted."""

    weights: dict[str, Tensor]  # (F,) by name

    def __call__(self, rows: Rows) -> Tensor:
        """Return features (N, F′)."""
        return torch.cat([rows[name] * weight for name, weight in self.weights.items()], 1)

    @property
    def by_class(self) -> int:
        """How many leading features need a map of each class's own.

        At B = 1 an update is Σ_k (p_k − y_k)·J_k(x), and where p hardly varies no one linear map over all labels can
        read x from it: what one class adds, the others take away. The head's input is the same for every label.
        """
        return len(self.weights["update"]) if "update" in self.weights else 0


def recipes(lesson: Lesson, widths: tuple[int, ...], classes: int) -> list[Recipe]:
    """Return the ways to weigh the rows that are worth trying.

    The update's entries as they are, over the noise of their tensor where the update stage adds any, or every tensor as
    loud as every other; with the head's input read in either way, without it, or the head's input alone.
    """
    train = ~lesson.held

    def spread(name: str) -> Tensor:
        rows, labels = lesson.rows[name][train], lesson.labels[train]
        return (rows - class_means(rows, labels, classes)[labels]).square().mean(0)

    def loudness(power: Tensor) -> Tensor:
        parts = torch.split(power, list(widths))
        return torch.cat([part.mean().expand(len(part)) for part in parts]).clamp_min(1e-20)

    power = spread("update")
    if lesson.settled is None:
        plain = torch.ones_like(power)
    else:
        plain = loudness((lesson.rows["update"] - lesson.settled["update"])[train].square().mean(0)).rsqrt()
    found: list[dict[str, Tensor]] = [
        {"update": weight * (power * weight.square()).sum().clamp_min(1e-20).rsqrt()}
        for weight in (plain, loudness(power).rsqrt())
    ]
    alone = [
        {name: (HEAD_WEIGHT / spread(name).sum().clamp_min(1e-20)).sqrt().expand(rows.shape[1])}
        for name, rows in lesson.rows.items()
        if name not in ("update", "rank")
    ]
    rank = {name: torch.full((1,), RANK_WEIGHT).to(rows) for name, rows in lesson.rows.items() if name == "rank"}
    return [Recipe(w | rank) for w in (*found, *alone, *(update | head for update in found for head in alone))]


class Correction(nn.Module):
    """A small network from features and label to the leading directions of the pictures; zero before training.

    Its hidden layer is gated by the label, since what an entry of the update says turns with it.
    """

    def __init__(self, features: int, directions: int, classes: int, width: int = 256) -> None:
        super().__init__()
        self.enter = nn.Linear(features, width)
        self.gate = nn.Embedding(classes, width)
        self.label = nn.Embedding(classes, width)
        self.middle = nn.Linear(width, width)
        self.leave = nn.Linear(width, directions)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return how far to go along each direction, (N, directions)."""
        h = F.leaky_relu(self.enter(features) * self.gate(labels) + self.label(labels), 0.1)
        return torch.div(self.leave(F.leaky_relu(self.middle(h), 0.1)), self.leave.in_features**0.5)


@dataclass(frozen=True)
class Inversion:
    """What was learned: rows (N, F) by name and labels (N,) in, pictures (N, C, H, W) in [0, 1] out."""

    recipe: Recipe
    ridge: Ridge
    network: Correction
    directions: Tensor  # (k, D), each as long as the ridge's errors along it
    scale: Tensor  # of what the network is given
    doubts: Mapping[str, str] = field(default_factory=dict)

    def correction(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return what is added to the ridge's guesses, (N, D), for features of the recipe."""
        told = (features - self.ridge.released_means[labels]) * self.scale
        return torch.matmul(self.network(told, labels), self.directions)

    @torch.no_grad()
    def __call__(self, rows: Rows, labels: Tensor) -> Tensor:
        """Return guesses."""
        features = self.recipe(rows)
        first = self.ridge(features, labels)
        return (first + self.correction(features, labels).view_as(first)).clamp(0, 1)


def fit_recipe(lesson: Lesson, widths: tuple[int, ...], classes: int) -> tuple[Recipe, Ridge, Tensor]:
    """Return the recipe, and the ridge on it, that are best on held-out records, and the ridge's guesses (N, D).

    The guess for a record that the ridge was fitted on is what it would be without it.
    """
    held, labels, private = lesson.held, lesson.labels, lesson.private
    least, best = torch.inf, None
    supports = (None,) if lesson.settled is None else (lesson.settled, None)
    for recipe, settled in itertools.product(recipes(lesson, widths, classes), supports):
        if best is not None and expired():
            break
        features, calm = recipe(lesson.rows), None if settled is None else recipe(settled)
        ridge = fit_ridge(features, private, labels, held, classes, by_class=recipe.by_class, settled=calm)
        error = float(F.mse_loss(ridge(features[held], labels[held]).clamp(0, 1), private[held]))
        if error < least:
            least, best = error, (recipe, ridge, features, calm)
    assert best is not None
    recipe, ridge, features, calm = best
    guesses = ridge(features, labels).flatten(1)
    train = ~held
    noise = 0.0 if calm is None else guesses[train] - ridge(calm[train], labels[train]).flatten(1)
    guesses[train] = private[train].flatten(1) - ridge.missed + noise
    return recipe, ridge, guesses


def learn(
    lesson: Lesson, widths: tuple[int, ...], classes: int, generator: torch.Generator, *, steps: int, label: str
) -> Inversion:
    """Fit class means and ridge, and train the network that corrects them."""
    recipe, ridge, guesses = fit_recipe(lesson, widths, classes)
    held, labels, features = lesson.held, lesson.labels, recipe(lesson.rows)
    train, private = (~held).nonzero().flatten(), lesson.private.flatten(1)
    wanted = private[train] - ridge.means[labels[train]]
    powers, vectors = torch.linalg.eigh(wanted @ wanted.T)
    count = max(1, min(_DIRECTIONS, len(train) // 2))
    directions = vectors[:, -count:].T @ wanted / powers[-count:].clamp_min(1e-12).sqrt()[:, None]
    with forked(derive(int(torch.randint(2**31, (1,), generator=generator, device=generator.device)))):
        network = Correction(features.shape[1], count, classes).to(features)
    centred = features[train] - ridge.released_means[labels[train]]
    inversion = Inversion(
        recipe=recipe,
        ridge=ridge,
        network=network,
        directions=directions * ((private - guesses)[train] @ directions.T).square().mean(0).sqrt()[:, None],
        scale=centred.square().mean().clamp_min(1e-20).rsqrt(),
    )

    def guess(rows: Tensor) -> Tensor:
        return guesses[rows] + inversion.correction(features[rows], labels[rows])

    doubts = train_correction(
        network,
        lambda rows: F.mse_loss(guess(rows), private[rows]),
        lambda: F.mse_loss(guess(held).clamp(0, 1), private[held]),
        train,
        steps=steps,
        batch=64,
        generator=generator,
        label=label,
    )
    return replace(inversion, doubts=doubts)


@register_attack
@dataclass(frozen=True, kw_only=True)
class LearnedInversion(Attack):
    """A map learned on auxiliary pairs (defended update, pictures), applied to the victims' updates; any batch size.

    Wu et al. 2023, "Learning to Invert" (arXiv 2210.10880), whose network on hashed gradients knows nothing of the
    defense but its outputs, so it adapts to any. Formulated here for few pairs: an update becomes a sketch of each
    tensor and the head's input (`Reader`); class means plus a ridge regression, over which of several weightings
    (`recipes`) is chosen on held-out records, give the picture; and a small network corrects them, where it helps on
    those. Where the update stage adds noise the ridge is fitted on updates without it (`fit_ridge`). What no update
    tells is the class mean.

    A batch is a set: it is taught in auxiliary batches of the same size, record by record, each by its class and, among
    records of one class, by its rank in brightness. That puts both sets in one order, so that no loss has to search for
    an assignment, and the update's mixture of classes is undone before anything is learned (`Reader`).

    `pairs` auxiliary records at most, each up to `draws` times where they are fewer; `decoder_steps` of training.
    """

    family: ClassVar[str] = "learned"
    name: ClassVar[str] = "learned-inversion"
    summary: ClassVar[str] = "a regression from defended updates to pictures, learned on auxiliary records"
    source: ClassVar[str] = "Wu et al. 2023 (Learning to Invert)"
    requires: ClassVar[frozenset[str]] = frozenset({"defense", "auxiliary"})
    examines: ClassVar[frozenset[str]] = frozenset({"anything"})
    effort: ClassVar[tuple[Effort, ...]] = ("decoder_steps",)

    pairs: int = 1000
    draws: int = 4
    decoder_steps: int = 400

    def __post_init__(self) -> None:
        if self.pairs < LEAST or min(self.draws, self.decoder_steps) < 1:
            raise ValueError(f"pairs must be at least {LEAST}, draws and decoder_steps at least 1")

    def amount(self, sizes: Sizes) -> Amount:
        """Return how much work it is: an update of each auxiliary batch, and the training."""
        seen = min(self.pairs, self.draws * sizes.auxiliary) // sizes.batch
        return Amount(updates=sizes.victims + seen, own=self.decoder_steps)

    @memory_safe
    def __call__(self, model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Reconstruction:
        """Return pictures (V, B, C, H, W). It has no objective of its own: zeros."""
        if update.defense is None or update.auxiliary is None:
            raise NotApplicable("the defense or auxiliary records are not exposed")
        labels = hard(known_labels(model, update, generator), update.task)
        taught = self.taught(model, update, labels, generator)
        if taught is None:
            return failed(update, "budget", "the time budget was spent before enough auxiliary updates were seen")
        inversion, rows = taught
        ended: Status = "budget" if expired() else "converged"
        finite = torch.stack([g.reshape(len(g), -1).isfinite().all(1) for g in update.gradients]).all(0).tolist()
        statuses: tuple[Status, ...] = tuple(ended if good else "diverged" for good in finite)
        return Reconstruction(
            images=inversion(rows, labels.flatten()).view(*labels.shape, *update.input_shape),
            labels=labels,
            objective=torch.zeros(update.victims, device=labels.device),
            statuses=statuses,
            reason=reason_of(statuses, WORDS),
            doubts=inversion.doubts,
        )

    def taught(
        self, model: PixelModel, update: SharedUpdate, labels: Tensor, generator: torch.Generator
    ) -> tuple[Inversion, Rows] | None:
        """Return what was learned, and the rows of the victims' records under `labels` (V, B), victim by victim.

        None where the time did not suffice. Raises NotApplicable without a defense or enough auxiliary records.
        """
        defense, auxiliary = update.defense, update.auxiliary
        if defense is None or auxiliary is None:
            raise NotApplicable("the defense or auxiliary records are not exposed")
        least = max(LEAST, 2 * update.batch_size)
        if len(auxiliary) < least:
            raise NotApplicable(f"it needs at least {least} auxiliary records, here there are {len(auxiliary)}")
        auxiliary = auxiliary.to(labels.device)
        with client_mode(model, update, generator):
            reader, lesson = lesson_of(model, update, defense, auxiliary, self.pairs, self.draws, generator, self.name)
        if lesson is None:
            return None
        label = f"{self.name}: training"
        inversion = learn(lesson, reader.widths, update.classes, generator, steps=self.decoder_steps, label=label)
        each = [tuple(g[v] for g in update.gradients) for v in range(update.victims)]
        return inversion, stacked_rows([reader(g, told) for g, told in zip(each, labels, strict=True)])
