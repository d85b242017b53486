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
from leakaudit.attacks._labels import Head, find_head, known_labels, one_label
from leakaudit.attacks._regression import Ridge, fit_ridge, train_correction
from leakaudit.attacks._sketch import folded, widths_within
from leakaudit.attacks.expectation import defended, expected
from leakaudit.errors import NotApplicable
from leakaudit.protocol.amounts import Amount, Sizes
from leakaudit.protocol.attack import Attack, Effort, Needs, Reconstruction, Status
from leakaudit.protocol.client import SharedUpdate, defended_gradient, release
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.gradients import Gradients, mean_gradient
from leakaudit.protocol.labels import class_means, hard, soft
from leakaudit.protocol.registry import register_attack
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.work.memory import need
from leakaudit.work.progress import expired, track
from leakaudit.work.seeding import derive, forked

FEATURES = 4096  # numbers that an update is reduced to, and as many for each reading of the head's input
LEAST = 8  # auxiliary updates, to learn anything from
HEAD_WEIGHT = 10.0  # energy of the head's input beside that of the rest, where both are used
_VALUES = 2**27  # most numbers in the auxiliary pictures: half a gigabyte
_DIRECTIONS = 128  # of the pictures, that the network corrects
WORDS = {
    "diverged": "the shared update is not finite",
    "budget": "the time budget was spent while the inversion was learned; the best so far is given",
}
Rows = dict[str, Tensor]  # what was read of updates, by name: (F,) of one update, (N, F) of N


@dataclass(frozen=True)
class Reader:
    """What is read of one update: `folded` tensor by tensor, and the input of the head, where there is one.

    Rows k of the head's gradient are (p_k − y_k)·h. "head by class" is their projection on the mean of p − y over
    auxiliary records of the label, linear in the update and so as little disturbed by noise as can be; "head by bias"
    that on the bias's own p − y, exact without noise.
    """

    widths: tuple[int, ...]
    signs: tuple[Tensor, ...]  # ±1, (n,) per parameter; then (D,) for h
    head: Head | None
    factors: Tensor  # (K, K): the mean of p − y for every label

    def label(self, gradient: Gradients) -> Tensor:
        """Return the label () read off the head of an update of one record."""
        assert self.head is not None
        return one_label(*self.head.gradients(gradient), self.head.features)

    def __call__(self, gradient: Gradients, label: Tensor) -> Rows:
        """Return the rows (F,) of an update, each tensor (*parameter.shape), under label ()."""
        parts = [folded(g.flatten(), s, w) for g, s, w in zip(gradient, self.signs, self.widths, strict=False)]
        found = {"update": torch.cat(parts)}
        if self.head is not None:
            factors = {"head by class": self.factors[label]}
            weight, bias = self.head.gradients(gradient)
            if bias is not None:
                factors["head by bias"] = bias
            for name, factor in factors.items():
                given = factor @ weight / factor.square().sum().clamp_min(1e-12)
                found[name] = folded(given, self.signs[-1], FEATURES)
        return found


def reader_for(model: PixelModel, update: SharedUpdate, shown: Records, generator: torch.Generator) -> Reader:
    """Return a reader for updates of this model; `shown` are auxiliary records as the defense replaced them."""
    head = find_head(model, update, shown.images[:64], by_class=True)
    sizes = [g[0].numel() for g in update.gradients]
    lengths = [*sizes, 0 if head is None else int(head.features.numel())]
    drawn = [torch.randint(2, (n,), generator=generator, device=generator.device).to(torch.int8) for n in lengths]
    with torch.no_grad():
        said = torch.cat([model(x).softmax(1) for x in torch.split(shown.images, 128)])
    return Reader(
        widths=widths_within(sizes, FEATURES),
        signs=tuple((2 * s - 1).to(shown.images.device) for s in drawn),
        head=head,
        factors=class_means(said - soft(shown.labels, update.classes), hard(shown.labels), update.classes),
    )


@dataclass(frozen=True)
class Lesson:
    """What the attacker learns from: rows of N auxiliary updates, the label it would read off each, the pictures."""

    rows: Rows
    settled: Rows | None  # without the noise of the update stage, where that has any
    labels: Tensor  # (N,)
    private: Tensor  # (N, C, H, W)
    held: Tensor  # (N,): a tenth of the records, to choose on


def updates_of(
    model: PixelModel,
    update: SharedUpdate,
    defense: Defense,
    auxiliary: Records,
    pairs: int,
    draws: int,
    generator: torch.Generator,
    label: str,
) -> tuple[Reader, Lesson | None]:
    """Compute at most `pairs` updates of single auxiliary records through the defense, and read them.

    Up to `draws` of a record where there are fewer records than that; None where the time did not suffice for `LEAST`.
    """
    device = auxiliary.images.device
    size = min(len(auxiliary), pairs, max(2, _VALUES // auxiliary.images[0].numel()))
    times = max(1, min(draws, pairs // size))
    each = 4 * FEATURES * 4 + 2 * auxiliary.images[0].numel() * 4  # rows with and without noise, singly and stacked
    whole = 5 * 4 * sum(g[0].numel() for g in update.gradients)  # some updates of one record, and what folds them
    need(times * size * each + whole, f"{times * size} pairs", "pairs or draws", device)
    order = torch.randperm(len(auxiliary), generator=generator, device=generator.device)[:size].to(device)
    own = auxiliary[order]
    releases = [release(defense, own, generator) for _ in range(times)]
    reader = reader_for(model, update, releases[0], generator)
    seen: list[Rows] = []
    calm: list[Rows] = []
    labels: list[Tensor] = []
    noisy: bool | None = None
    for i in track(label, size * len(releases)):
        released = releases[i // size]
        x, y = released.images[i % size][None], released.labels[i % size][None]
        gradient = defended_gradient(model, update.loss, x, y, defense, generator)
        read = update.labels is None and reader.head is not None
        labels.append(reader.label(gradient) if read else hard(y)[0])
        seen.append(reader(gradient, labels[-1]))
        if noisy is not False:  # known from the first record
            observed = defense.observe(model, x, y, generator)
            plain = mean_gradient(model, update.loss, x, y)
            twice = [defended(observed, plain, 1, generator) for _ in range(2)]
            noisy = noisy or any(not torch.equal(a, b) for a, b in zip(*twice, strict=True))
            calm.append(reader(expected(observed, plain, 1, generator, 1), labels[-1]))
    if len(seen) < LEAST:
        return reader, None
    place = torch.arange(len(seen), device=device) % size
    return reader, Lesson(
        rows=stacked_rows(seen),
        settled=stacked_rows(calm) if noisy else None,
        labels=torch.stack(labels),
        private=own.images[place],
        held=place % 10 == 0,
    )


def stacked_rows(rows: list[Rows]) -> Rows:
    """Return rows (N, F) by name, finite, of N readings (F,)."""
    return {name: torch.stack([row[name] for row in rows]).nan_to_num(0, 0, 0) for name in rows[0]}


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
        if name != "update"
    ]
    return [Recipe(w) for w in (*found, *alone, *(update | head for update in found for head in alone))]


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
    """A map learned on auxiliary pairs (defended update, picture), applied to the victims' updates; B = 1.

    Wu et al. 2023, "Learning to Invert" (arXiv 2210.10880), whose network on hashed gradients knows nothing of the
    defense but its outputs, so it adapts to any. Formulated here for few pairs: an update becomes a sketch of each
    tensor and the head's input (`Reader`); class means plus a ridge regression, over which of several weightings
    (`recipes`) is chosen on held-out records, give the picture; and a small network corrects them, where it helps on
    those. Where the update stage adds noise the ridge is fitted on updates without it (`fit_ridge`). What no update
    tells is the class mean.

    `pairs` auxiliary updates at most, up to `draws` of a record where records are fewer; `decoder_steps` of training.
    """

    family: ClassVar[str] = "learned"
    name: ClassVar[str] = "learned-inversion"
    summary: ClassVar[str] = "a regression from defended updates to pictures, learned on auxiliary records"
    source: ClassVar[str] = "Wu et al. 2023 (Learning to Invert)"
    requires: ClassVar[frozenset[str]] = frozenset({"defense", "auxiliary"})
    needs: ClassVar[Needs] = Needs(one_record=True)
    examines: ClassVar[frozenset[str]] = frozenset({"anything"})
    effort: ClassVar[tuple[Effort, ...]] = ("decoder_steps",)

    pairs: int = 1000
    draws: int = 4
    decoder_steps: int = 400

    def __post_init__(self) -> None:
        if self.pairs < LEAST or min(self.draws, self.decoder_steps) < 1:
            raise ValueError(f"pairs must be at least {LEAST}, draws and decoder_steps at least 1")

    def amount(self, sizes: Sizes) -> Amount:
        """Return how much work it is: an update of each pair, and the training."""
        return Amount(updates=sizes.victims + min(self.pairs, self.draws * sizes.auxiliary), own=self.decoder_steps)

    @memory_safe
    def __call__(self, model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Reconstruction:
        """Return pictures (V, 1, C, H, W). It has no objective of its own: zeros."""
        if update.batch_size != 1:
            raise NotApplicable(f"it is learned for one record per update, here there are {update.batch_size}")
        defense, auxiliary = update.defense, update.auxiliary
        if defense is None or auxiliary is None:
            raise NotApplicable("the defense or auxiliary records are not exposed")
        if len(auxiliary) < LEAST:
            raise NotApplicable(f"it needs at least {LEAST} auxiliary records, here there are {len(auxiliary)}")
        labels = hard(known_labels(model, update, generator))
        auxiliary = Records(auxiliary.images.to(model.mean), auxiliary.labels.to(labels.device))
        with client_mode(model, update, generator):
            reader, lesson = updates_of(model, update, defense, auxiliary, self.pairs, self.draws, generator, self.name)
        if lesson is None:
            return failed(update, "budget", "the time budget was spent before enough auxiliary updates were seen")
        label = f"{self.name}: training"
        inversion = learn(lesson, reader.widths, update.classes, generator, steps=self.decoder_steps, label=label)
        each = [tuple(g[v] for g in update.gradients) for v in range(update.victims)]
        rows = stacked_rows([reader(g, label) for g, label in zip(each, labels[:, 0], strict=True)])
        ended: Status = "budget" if expired() else "converged"
        finite = [all(bool(g.isfinite().all()) for g in gradient) for gradient in each]
        statuses: tuple[Status, ...] = tuple(ended if good else "diverged" for good in finite)
        return Reconstruction(
            images=inversion(rows, labels[:, 0])[:, None],
            labels=labels,
            objective=torch.zeros(update.victims, device=labels.device),
            statuses=statuses,
            reason=reason_of(statuses, WORDS),
            doubts=inversion.doubts,
        )
