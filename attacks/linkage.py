"""Linkage: which of M candidate records is behind the update? Built against defenses that inversion calls safe."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from leakaudit.attacks._attacking import client_mode, memory_safe
from leakaudit.attacks._batches import linked_in_batches
from leakaudit.attacks._labels import known_labels
from leakaudit.attacks._linking import (
    Scores,
    claimed_labels,
    distinct,
    exposed_defense,
    labels_shown,
    linked,
    most_trusted,
    similarity,
    sum_of,
)
from leakaudit.engine.dense import dense_in_use
from leakaudit.errors import NotApplicable
from leakaudit.protocol.amounts import Amount, Sizes
from leakaudit.protocol.attack import Attack, Kind, Needs, Reconstruction
from leakaudit.protocol.client import SharedUpdate, release, sent
from leakaudit.protocol.defense import Defense, parts_of, replaces_records
from leakaudit.protocol.gradients import Gradients
from leakaudit.protocol.labels import hard
from leakaudit.protocol.registry import register_attack
from leakaudit.protocol.target import LossFunction, PixelModel, Records
from leakaudit.work.memory import need
from leakaudit.work.progress import expired, track

_TOGETHER = 128  # pictures whose replacements are described at a time


@dataclass(frozen=True, kw_only=True)
class _Linking(Attack):
    """What the two attacks share: they link, and draw no picture.

    All candidates of a line-up are taken to be of the class that the update tells, or of their own targets.
    """

    kind: ClassVar[Kind] = "linkage"
    family: ClassVar[str] = "linkage"

    draws: int = 4  # of the defense's randomness, per candidate
    rehearsals: int = 8  # auxiliary records on which the attacker learns which score to trust

    def __post_init__(self) -> None:
        if self.draws < 1 or self.rehearsals < 0:
            raise ValueError("draws must be at least 1 and rehearsals must not be negative")

    def amount(self, sizes: Sizes) -> Amount:
        """Return how much work it is: a gradient of every candidate of each victim."""
        return Amount(updates=sizes.victims * sizes.line_up / 2)  # without a client's stages

    def __call__(self, model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Reconstruction:
        """Raise NotApplicable: there is nothing to link without candidates."""
        raise NotApplicable("a linkage attack needs candidates: call link")

    def _shown(self, update: SharedUpdate, candidates: Tensor, rows: Tensor, label: Tensor) -> tuple[Records, Tensor]:
        """Return the distinct records of some victims' line-ups, of one label (), and which of them each is (n, M)."""
        rows, targets = rows.to(candidates.device), update.candidate_targets
        some = candidates[rows]
        return distinct(some, label.expand(some.shape[:2]), None if targets is None else targets.to(some.device)[rows])


def gradient_scores(
    model: PixelModel,
    loss: LossFunction,
    defense: Defense,
    shared: Gradients,
    candidates: Records,
    generator: torch.Generator,
    draws: int,
) -> Scores:
    """Return scores (N, M) of M candidates, each with its label or target, for N updates in `shared`.

    "record" is cos(∇ℓ(x_j), g̃). Where the defense replaces records, "replacement" is the mean over `draws` of
    cos(∇ℓ(G(x_j, ε)), g̃), and "nearest replacement" the largest of them: 1 where a defense has few draws and x_j is
    behind the update. A replacement is taken under the candidate's class, and under its own target where it has one.
    """
    scores = {"record": similarity(model, loss, shared, candidates.taught, candidates.images)}
    if replaces_records(defense):
        need(8 * draws * len(candidates), f"the scores of {draws} draws", "draws", candidates.images.device)
        drawn = (release(defense, candidates, generator) for _ in range(draws))
        replaced = torch.stack(
            [similarity(model, loss, shared, replacement_label(candidates, each), each.images) for each in drawn]
        )
        scores |= {"replacement": replaced.mean(0), "nearest replacement": replaced.amax(0)}
    return scores


def replacement_label(records: Records, released: Records) -> Tensor:
    """Return what replacements are labelled: their own targets, and where labels are classes those of the records."""
    return records.labels if records.targets is None else released.labels


@register_attack
@dataclass(frozen=True, kw_only=True)
class Linkage(_Linking):
    """Score every candidate x_j by how well its gradient explains the update g̃.

    Of one record, the scores: cos(∇ℓ(x_j), g̃) and, where the defense's record stage G replaces records, mean and
    largest over `draws` of cos(∇ℓ(G(x_j, ε)), g̃). The first finds replacements made to keep the gradient, the last
    those with few draws, the mean all others: which one to trust, or the sum of all standardised, is decided by what
    finds `rehearsals` auxiliary records among others of their class. The cosine needs no model of the later stages: it
    ignores a clip's scale, and pruning and noise on average.

    Of several records (`linked_in_batches`): what gradients have in common, as auxiliary ones show it, is regressed
    off, and of all line-ups together the candidates are sought whose gradients add up to the update. The metric and the
    rule are those that find the records of `rehearsals` auxiliary batches.
    """

    name: ClassVar[str] = "linkage"
    summary: ClassVar[str] = "pick the record out of a line-up by its gradient"
    source: ClassVar[str] = "formulated here: gradient similarity (Geiping et al. 2020) over candidates"
    requires: ClassVar[frozenset[str]] = frozenset({"defense", "auxiliary"})

    @memory_safe
    def link(
        self, model: PixelModel, update: SharedUpdate, candidates: Tensor, generator: torch.Generator
    ) -> Reconstruction:
        """Return scores (V, M) of `candidates` (V, M, C, H, W) as `linkage`; larger is likelier."""
        defense = exposed_defense(update)
        if update.batch_size > 1:
            return self._of_several(model, update, candidates, generator)
        labels = hard(known_labels(model, update, generator), update.task)
        scores = torch.zeros(candidates.shape[:2], device=labels.device)
        done = [False] * update.victims
        with client_mode(model, update, generator):
            trusted = self._trusted(model, update, defense, generator) if replaces_records(defense) else ()
            present = torch.unique(labels[:, 0])
            for i in track(self.name, len(present)):  # line-ups of a class overlap: their gradients are taken once
                rows = (labels[:, 0] == present[i]).nonzero()[:, 0]
                shown, places = self._shown(update, candidates, rows, present[i])
                shared = tuple(g[rows.to(g.device)] for g in update.gradients)
                found = gradient_scores(model, update.loss, defense, shared, shown, generator, self.draws)
                scores[rows] = sum_of({name: each.gather(1, places) for name, each in found.items()}, trusted)
                for v in rows.tolist():
                    done[v] = True
        return linked(update, labels, scores, done)

    def _of_several(
        self, model: PixelModel, update: SharedUpdate, candidates: Tensor, generator: torch.Generator
    ) -> Reconstruction:
        labels = labels_shown(model, update, candidates, generator).to(candidates.device)
        with client_mode(model, update, generator):
            scores, done, notes = linked_in_batches(
                self.name, model, update, candidates, labels, self.draws, self.rehearsals, generator
            )
        claimed = claimed_labels(update, labels, scores)
        return replace(linked(update, claimed, scores, done), notes=notes)

    def _trusted(
        self, model: PixelModel, update: SharedUpdate, defense: Defense, generator: torch.Generator
    ) -> tuple[str, ...]:
        own = update.auxiliary
        if own is None:
            return ()
        order = torch.randperm(len(own), generator=generator, device=generator.device).tolist()
        rehearsed = []
        for i in order[: self.rehearsals]:
            others = [j for j in order if j != i and own.labels[j] == own.labels[i]][:15]
            if not others or expired():
                continue
            record = own[[i]]
            released = release(defense, record, generator)
            label = replacement_label(record, released)
            shared, _ = sent(model, update.loss, released.images, label, defense, update.mode, generator, update.client)
            shown, single = own[[i, *others]], tuple(g[None] for g in shared)
            scores = gradient_scores(model, update.loss, defense, single, shown, generator, self.draws)
            rehearsed.append((scores, torch.zeros(1, dtype=torch.long, device=label.device)))
        return most_trusted(rehearsed)


Features = dict[str, Tensor]  # by name, (N, D) each


def features_of(model: PixelModel, defense: Defense, pictures: Tensor) -> Features:
    """Return what pictures (N, C, H, W) look like to the attacker, who owns the code of the defense.

    Pixels, the model's penultimate features, and the outputs of every `reference` network a part of the defense
    exposes.
    """
    found = {"pixels": pictures.flatten(1)}
    with torch.no_grad():
        logits, layers = dense_in_use(model, pictures)
        found["model"] = (layers[-1].given if layers else logits).flatten(1)
        for i, part in enumerate(parts_of(defense)):
            reference = getattr(part, "reference", None)
            if isinstance(reference, nn.Module):
                found[f"reference-{i}"] = reference(pictures).flatten(1)
    return found


def released_scores(private: Features, replaced: Features, released: Features) -> Scores:
    """Return named scores (N, M) of M candidates for N released pictures x̃, larger is likelier.

    For each kind of feature h: −‖h(x̃) − h(x_j)‖ and −‖h(x̃) − E_ε h(G(x_j, ε))‖, given h of the candidates, its mean
    over draws of their replacement, and h of the released pictures.
    """
    scores = {f"{name} of the record": -torch.cdist(released[name], private[name]) for name in released}
    return scores | {f"{name} of its replacement": -torch.cdist(released[name], replaced[name]) for name in released}


@register_attack
@dataclass(frozen=True, kw_only=True)
class ReleasedLinkage(_Linking):
    """The bound: link the replaced record x̃ itself to a candidate by pixels and features.

    Distances in pixels, in the model's penultimate features, and in the defense's own feature extractor (a fitted
    part's `reference`), each to the candidate, to the mean of `draws` replacements of it (`released_scores`), and to
    the nearest of them; and log p(x̃ | candidate) where a part of the defense knows it. Which one to trust, or the sum
    of all after standardising, is decided by how often each finds auxiliary records among those of their class, at
    most `rehearsals` of them.
    """

    name: ClassVar[str] = "released-linkage"
    summary: ClassVar[str] = "pick the record out of a line-up by the replaced record itself: a bound"
    source: ClassVar[str] = "formulated here: nearest candidate in feature space"
    requires: ClassVar[frozenset[str]] = frozenset({"defense", "auxiliary", "released"})
    needs: ClassVar[Needs] = Needs(replaced_records=True)
    examines: ClassVar[frozenset[str]] = frozenset({"records"})

    draws: int = 8
    rehearsals: int = 500

    @memory_safe
    def link(
        self, model: PixelModel, update: SharedUpdate, candidates: Tensor, generator: torch.Generator
    ) -> Reconstruction:
        """Return scores (V, M) of `candidates` (V, M, C, H, W) as `linkage`; larger is likelier."""
        defense = exposed_defense(update)
        if not replaces_records(defense):
            raise NotApplicable("the defense does not replace records, so there is nothing to link")
        if update.released is None:
            raise NotApplicable("the replaced records are not exposed")
        if update.batch_size == 1:
            labels = hard(known_labels(model, update, generator), update.task)
        else:
            labels = labels_shown(model, update, candidates, generator)[:, :1].to(update.released.device)
        asked = update.places or (0,) * update.victims  # about the record at one place of its batch
        released = torch.stack([update.released[v, place] for v, place in enumerate(asked)])
        scores = torch.zeros(candidates.shape[:2], device=labels.device)
        done = [False] * update.victims
        with client_mode(model, update, generator):
            trusted = self._trusted(model, update, defense, generator)
            present = torch.unique(labels[:, 0])
            for i in track(self.name, len(present)):
                rows = (labels[:, 0] == present[i]).nonzero().flatten()
                shown, places = self._shown(update, candidates, rows, present[i])
                seen = features_of(model, defense, released[rows])
                parts = [
                    self._scores(model, defense, shown[part], seen, generator)
                    for part in torch.split(torch.arange(len(shown), device=places.device), _TOGETHER)
                ]
                found = {name: torch.cat([part[name] for part in parts], 1).gather(1, places) for name in parts[0]}
                scores[rows] = sum_of(found, trusted)
                for v in rows.tolist():
                    done[v] = True
        return linked(update, labels.expand(-1, update.batch_size), scores, done)

    def _scores(
        self, model: PixelModel, defense: Defense, records: Records, seen: Features, generator: torch.Generator
    ) -> Scores:
        size = 4 * 4 * (self.draws + 1) * sum(each[0].numel() for each in seen.values()) * len(records)
        need(size, f"{self.draws} replacements of {len(records)} records", "draws", records.labels.device)
        draws = [features_of(model, defense, release(defense, records, generator).images) for _ in range(self.draws)]
        replaced = {name: torch.stack([d[name] for d in draws]).mean(0) for name in seen}
        scores = released_scores(features_of(model, defense, records.images), replaced, seen)
        for name in seen:
            each = torch.stack([-torch.cdist(seen[name], d[name]) for d in draws])
            scores[f"{name} of its nearest replacement"] = each.amax(0)
        released = seen["pixels"].view(-1, *records.images.shape[1:])
        for part in parts_of(defense):
            known = part.likelihood(released, records.images)
            if known is not None:
                scores["likelihood"] = known
        return scores

    def _trusted(
        self, model: PixelModel, update: SharedUpdate, defense: Defense, generator: torch.Generator
    ) -> tuple[str, ...]:
        own = update.auxiliary
        if own is None:
            return ()
        order = torch.randperm(len(own), generator=generator, device=generator.device)[: self.rehearsals]
        own = own[order.to(own.labels.device)]
        rehearsed = []
        for label in sorted(set(own.labels.tolist())):
            records = own[own.labels == label]
            seen = features_of(model, defense, release(defense, records, generator).images)
            found = self._scores(model, defense, records, seen, generator)
            rehearsed.append((found, torch.arange(len(records), device=records.labels.device)))
        return most_trusted(rehearsed)
