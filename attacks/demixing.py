"""Demixing: which candidate is a component of a mixture? Built against MixUp and InstaHide."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from leakaudit.attacks._attacking import client_mode, memory_safe
from leakaudit.attacks._labels import infer_labels, known_labels, soft_labels
from leakaudit.attacks._linking import Scores, known_defense, linked, most_trusted, similarity, sum_of
from leakaudit.attacks._rehearsal import inversions
from leakaudit.attacks.inverting_gradients import InvertingGradients
from leakaudit.errors import NotApplicable, TooLittleMemory
from leakaudit.protocol.amounts import Amount, Sizes
from leakaudit.protocol.attack import Attack, Effort, Kind, Needs, Reconstruction
from leakaudit.protocol.client import SharedUpdate, release, share
from leakaudit.protocol.defense import Defense, replaces_records
from leakaudit.protocol.gradients import bytes_of, parameters_of
from leakaudit.protocol.labels import hard
from leakaudit.protocol.registry import register_attack
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.score.tuning import tuned_in_time
from leakaudit.work.memory import held, need
from leakaudit.work.progress import expired, track

FLOOR = 1e-3  # of the mean power: what the filter takes every frequency to have at least
DISTRACTORS = 31  # most auxiliary records of the class beside the true one in a rehearsal
TUNED = 4  # rehearsals that the inversion is tuned on


def cosines(size: int) -> Tensor:
    """Return the orthonormal basis of the discrete cosine transform, (size, size), one frequency a row."""
    place, frequency = torch.arange(size) + 0.5, torch.arange(size)[:, None]
    basis: Tensor = torch.cos(torch.pi * frequency * place / size) * (2 / size) ** 0.5
    basis[0] /= 2**0.5
    return basis


def magnitude(images: Tensor) -> Tensor:
    """Return (2x − 1)² of pictures: what random signs do not touch."""
    return (2 * images - 1).square()


@dataclass(frozen=True)
class Whitening:
    """Pictures in a basis where those of a mixture are about uncorrelated, each entry with variance 1 there.

    The basis is the principal colours times the cosine transform, so that a few auxiliary records determine it.
    """

    mean: Tensor  # (C, H, W) of unmixed pictures
    colours: Tensor  # (C, C)
    deviation: Tensor  # (C, H, W)

    def __call__(self, images: Tensor) -> Tensor:
        """Return whitened pictures (N, D) of images (N, C, H, W)."""
        return (self.entries(images) / self.deviation).flatten(1)

    def entries(self, images: Tensor) -> Tensor:
        """Return the entries (N, C, H, W) in that basis."""
        down, across = (cosines(size).to(images) for size in self.mean.shape[1:])
        coloured = torch.einsum("nchw,cd->ndhw", images - self.mean, self.colours)
        return down @ coloured @ across.T


def whitening(pictures: Tensor, mixtures: Tensor) -> Whitening:
    """Return the whitening by the covariance of mixtures (N, C, H, W) about the mean of unmixed pictures."""
    mean = pictures.mean(0)
    channels = (mixtures - mean).transpose(0, 1).flatten(1)
    plain = Whitening(mean, torch.linalg.eigh(channels @ channels.T).eigenvectors, torch.ones_like(mean))
    power = plain.entries(mixtures).square().mean(0)
    return replace(plain, deviation=(power + FLOOR * power.mean()).clamp_min(1e-12).sqrt())


@dataclass(frozen=True)
class Filters:
    """Whitened matched filters for a record x in a mixture x̃, one on pixels and one on `magnitude`.

    The score is ⟨w(x̃), w(x)⟩ / ‖w(x)‖. With x̃ = λx + rest and the rest normal with the covariance that w whitens, that
    is the likelihood of x maximised over λ, up to what all candidates share.
    """

    pixels: Whitening
    magnitudes: Whitening

    def __call__(self, mixtures: Tensor, pictures: Tensor) -> Scores:
        """Return scores (N, M) by name of M pictures for N mixtures, larger is likelier."""
        return {
            "pixels": _matched(self.pixels(mixtures), self.pixels(pictures)),
            "magnitudes": _matched(self.magnitudes(magnitude(mixtures)), self.magnitudes(magnitude(pictures))),
        }


def _matched(mixtures: Tensor, pictures: Tensor) -> Tensor:
    scores: Tensor = mixtures @ (pictures / pictures.norm(dim=1, keepdim=True).clamp_min(1e-12)).T
    return scores


def learned_filters(pictures: Tensor, mixtures: Tensor) -> Filters:
    """Return the filters learned from the attacker's own pictures and mixtures, (N, C, H, W) each."""
    return Filters(whitening(pictures, mixtures), whitening(magnitude(pictures), magnitude(mixtures)))


def line_up(own: Records, record: int, order: list[int]) -> list[int]:
    """Return indices of the record and, in this order, of others of its class, at most `DISTRACTORS`."""
    return [record, *[j for j in order if j != record and own.labels[j] == own.labels[record]][:DISTRACTORS]]


@dataclass(frozen=True, kw_only=True)
class _Demixing(Attack):
    kind: ClassVar[Kind] = "linkage"
    family: ClassVar[str] = "unmixing"

    def __call__(self, model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Reconstruction:
        """Raise NotApplicable: there is nothing to link without candidates."""
        raise NotApplicable("a linkage attack needs candidates: call link")


def _known(update: SharedUpdate) -> tuple[Defense, Records]:
    defense, own = known_defense(update), update.auxiliary
    if own is None or len(own) < 2:
        raise NotApplicable("it needs two auxiliary records, and so many are not exposed")
    if not replaces_records(defense):
        raise NotApplicable("the defense does not replace records, so there is nothing to take apart")
    return defense, own


@register_attack
@dataclass(frozen=True, kw_only=True)
class ReleasedDemixing(_Demixing):
    """The bound: find the record that is in the mixture x̃ itself, B = 1, by matched filters (`Filters`).

    The attacker mixes its own auxiliary records with each other, as the client mixes its own, learns from those
    mixtures what noise the unknown partners are, and which filter (or the sum of both) finds the record: pixels where
    signs are kept, magnitudes where they are random. A candidate is never mixed with another one.
    """

    name: ClassVar[str] = "released-demixing"
    summary: ClassVar[str] = "find the record in the shared mixture itself by matched filters: a bound"
    source: ClassVar[str] = "matched filters, formulated here; magnitudes after Carlini et al. 2021 (arXiv 2011.05315)"
    requires: ClassVar[frozenset[str]] = frozenset({"defense", "auxiliary", "released"})
    needs: ClassVar[Needs] = Needs(one_record=True, replaced_records=True)

    rehearsals: int = 200  # auxiliary records on which the attacker learns which filter to trust

    def __post_init__(self) -> None:
        if self.rehearsals < 0:
            raise ValueError("rehearsals must not be negative")

    @memory_safe
    def link(
        self, model: PixelModel, update: SharedUpdate, candidates: Tensor, generator: torch.Generator
    ) -> Reconstruction:
        """Return scores (V, M) of `candidates` (V, M, C, H, W) as `linkage`; larger is likelier."""
        defense, own = _known(update)
        if update.released is None:
            raise NotApplicable("the replaced records are not exposed")
        labels = hard(known_labels(model, with_mixed_labels(model, update, generator), generator), update.task)
        need(10 * 4 * own.images.numel(), f"filters of {len(own)} records", "auxiliary records", own.labels.device)
        mixtures = release(defense, own, generator).images
        filters = learned_filters(own.images, mixtures)
        order = torch.randperm(len(own), generator=generator, device=generator.device).tolist()
        rehearsed: list[tuple[Scores, Tensor]] = []
        for i in order[: self.rehearsals]:
            shown = line_up(own, i, order)
            if len(shown) > 1 and not expired():
                found = filters(mixtures[[i]], own.images[shown])
                rehearsed.append((found, torch.zeros(1, dtype=torch.long, device=mixtures.device)))
        trusted = most_trusted(rehearsed)
        scores = torch.zeros(candidates.shape[:2], device=labels.device)
        done = [False] * update.victims
        for v in track(self.name, update.victims):
            scores[v] = sum_of(filters(update.released[v], candidates[v]), trusted)[0]
            done[v] = True
        return linked(update, labels, scores, done)


@register_attack
@dataclass(frozen=True, kw_only=True)
class Demixing(_Demixing):
    """Find the record that is in the mixture behind an update, B = 1.

    The mixed label ỹ is read off the last layer exactly (`soft_labels`), the mixture x̃ is found by inverting gradients
    with it, and the filters of `ReleasedDemixing` are run on what was found. Beside them stands cos(∇ℓ(x_j, ỹ), g̃).
    Which score to trust, or their sum, is learned on updates of `rehearsals` mixtures of auxiliary records, on which
    the inversion is tuned too (on 4 of them); the error that it makes there is added as noise to the mixtures from
    which the filters learn.
    """

    name: ClassVar[str] = "demixing"
    summary: ClassVar[str] = "invert to the mixture with its mixed label, then find the record in it"
    source: ClassVar[str] = "Geiping et al. 2020; magnitudes after Carlini et al. 2021 (arXiv 2011.05315)"
    requires: ClassVar[frozenset[str]] = frozenset({"defense", "auxiliary"})
    needs: ClassVar[Needs] = Needs(one_record=True, replaced_records=True)
    effort: ClassVar[tuple[Effort, ...]] = ("steps", "restarts")

    steps: int = 400
    restarts: int = 1
    tv: float = 1e-4
    step_size: float = 0.1
    rehearsals: int = 12

    def __post_init__(self) -> None:
        if self.rehearsals < 0:
            raise ValueError("rehearsals must not be negative")
        self.inversion()  # refuses what it cannot run with

    def inversion(self) -> InvertingGradients:
        """Return the inversion at these settings."""
        return InvertingGradients(steps=self.steps, restarts=self.restarts, tv=self.tv, step_size=self.step_size)

    def amount(self, sizes: Sizes) -> Amount:
        """Return how much work it is: the inversion is tuned for itself, and run on mixtures of its own too."""
        mixtures = inversions(self.steps * self.restarts, replace(sizes, victims=self.rehearsals), 4)
        return mixtures + Amount(slopes=self.steps * self.restarts * sizes.victims)

    @memory_safe
    def link(
        self, model: PixelModel, update: SharedUpdate, candidates: Tensor, generator: torch.Generator
    ) -> Reconstruction:
        """Return scores (V, M) of `candidates` (V, M, C, H, W) as `linkage`; larger is likelier."""
        defense, own = _known(update)
        update = with_mixed_labels(model, update, generator)
        labels = hard(known_labels(model, update, generator), update.task)
        mixtures = release(defense, own, generator)
        order = torch.randperm(len(own), generator=generator, device=generator.device).tolist()
        count = min(self.rehearsals, len(own))
        size = count * bytes_of(parameters_of(model)[1]) + 10 * 4 * own.images.numel()
        with held(size, f"{count} rehearsals and filters of {len(own)} records", "rehearsals", labels.device):
            inversion, filters, rehearsed = self._rehearsed(model, update, defense, own, mixtures, order, generator)
        trusted = most_trusted(rehearsed)
        inverted = inversion(model, update, generator)
        scores = torch.zeros(candidates.shape[:2], device=labels.device)
        done = [False] * update.victims
        for v in track(self.name, update.victims):
            found = self._scores(model, update, v, inverted, filters, candidates[v], generator)
            scores[v] = sum_of(found, trusted)[0]
            done[v] = True
        return linked(update, labels, scores, done)

    def _rehearsed(
        self,
        model: PixelModel,
        update: SharedUpdate,
        defense: Defense,
        own: Records,
        mixtures: Records,
        order: list[int],
        generator: torch.Generator,
    ) -> tuple[Attack, Filters, list[tuple[Scores, Tensor]]]:
        """Return the tuned inversion, the filters for what it finds, and the scores of the attacker's own line-ups."""
        inversion: Attack = self.inversion()
        chosen = order[: self.rehearsals]
        if not chosen:
            return inversion, learned_filters(own.images, mixtures.images), []
        exposure = replace(update.exposure, released=False, labels=False)
        played = share(
            model,
            update.loss,
            mixtures[chosen],
            defense,
            exposure,
            batch_size=1,
            classes=update.classes,
            mode=update.mode,
            generator=generator,
            auxiliary=own,
            client=update.client,
            task=update.task,
        )
        played = with_mixed_labels(model, played, generator)
        few = replace(played, gradients=tuple(g[:TUNED] for g in played.gradients), labels=_first(played.labels, TUNED))
        inversion, _ = tuned_in_time(inversion, model, few, mixtures[chosen[:TUNED]], generator)
        inverted = inversion(model, played, generator)
        if inverted.images is None:
            return inversion, learned_filters(own.images, mixtures.images), []
        gap = inverted.images[:, 0] - mixtures.images[chosen]
        noise = torch.randn(mixtures.images.shape, generator=generator, device=generator.device).to(gap)
        spoilt = mixtures.images + gap.square().mean().sqrt().clamp_max(1) * noise
        filters = learned_filters(own.images, spoilt)
        rehearsed = []
        for v, i in enumerate(chosen):
            shown = line_up(own, i, order)
            if len(shown) > 1 and not expired():
                found = self._scores(model, played, v, inverted, filters, own.images[shown], generator)
                rehearsed.append((found, torch.zeros(1, dtype=torch.long, device=gap.device)))
        return inversion, filters, rehearsed

    def _scores(
        self,
        model: PixelModel,
        update: SharedUpdate,
        victim: int,
        inverted: Reconstruction,
        filters: Filters,
        pictures: Tensor,
        generator: torch.Generator,
    ) -> Scores:
        """Return scores (1, M) by name of pictures (M, C, H, W) for one victim; NaN where its update is not finite."""
        if "out-of-memory" in inverted.statuses:
            raise TooLittleMemory(inverted.reason)
        if update.labels is None or inverted.images is None:
            raise NotApplicable(inverted.reason or "the inversion drew no picture")
        shared = tuple(g[victim : victim + 1] for g in update.gradients)
        with client_mode(model, update, generator):
            alike = similarity(model, update.loss, shared, update.labels[victim], pictures)
        return filters(inverted.images[victim], pictures) | {"gradient": alike}


def _first(labels: Tensor | None, count: int) -> Tensor | None:
    return None if labels is None else labels[:count]


def with_mixed_labels(model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> SharedUpdate:
    """Return the update with its probabilities (V, 1, K) as labels: exposed, read off, or the likeliest class.

    Where labels are no classes, with its targets (V, 1, *shape), or label groups where these are not told.
    """
    if update.labels is not None:
        return update
    if not update.task.by_class:
        return replace(update, labels=infer_labels(model, update, generator))
    try:
        return replace(update, labels=soft_labels(model, update, generator))
    except NotApplicable:
        return replace(update, labels=infer_labels(model, update, generator))
