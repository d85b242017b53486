"""Replay: the universal examiner. Whoever knows the defense runs the whole of it on every candidate and compares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from leakaudit.attacks._attacking import client_mode, memory_safe
from leakaudit.attacks._linking import claimed_labels, distinct, labels_shown, line_ups_shown, linked, sum_of
from leakaudit.attacks._playing import Way, prepared, trusted
from leakaudit.attacks._replaying import COPIES, FEATURES, Client, Parts, client_of, parts_seen, told_in_numbers
from leakaudit.errors import NotApplicable
from leakaudit.protocol.amounts import Amount, Sizes
from leakaudit.protocol.attack import Attack, Kind, Needs, Reconstruction
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.defense import Defense, parts_of
from leakaudit.protocol.registry import register_attack
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.work.memory import need


def confirm(
    attack: Attack,
    model: PixelModel,
    update: SharedUpdate,
    candidates: Tensor,
    generator: torch.Generator,
    draws: int,
    way_of: Callable[[Client], Way],
    sent_by: Callable[[Client, int], Parts],
) -> Reconstruction:
    """Return the claim of an attack that replays line-ups (V, M, C, H, W): scores, and where it is certain.

    `sent_by` gives what a victim sent, in the parts that `way_of` plays.
    """
    if update.defense is None:
        raise NotApplicable("the defense is not exposed")
    device = model.mean.device
    need(100 * draws, f"{draws} draws", "draws", device)
    entries = [*(g[0].numel() for g in update.gradients), *(b.numel() for b in (update.buffers or ({},))[0].values())]
    if sum(entries) > FEATURES:
        need(4 * COPIES * sum(entries), f"{COPIES} updates of the model", "", device)
    labels = labels_shown(model, update, candidates, generator).cpu()
    candidates = candidates.cpu()  # as a client's records are: what a defense makes of them may depend on the device
    scores = torch.zeros(candidates.shape[:2], device=model.mean.device)
    done, sure = [False] * update.victims, torch.zeros(update.victims, dtype=torch.bool)
    targets = None if update.candidate_targets is None else update.candidate_targets.cpu()
    everyone = line_ups_shown(candidates, labels, targets)
    with client_mode(model, update, generator):
        client = client_of(model, update, update.defense, everyone)
        played = prepared(way_of(client), client.company, draws, generator)
        best = ("likelihood" if update.batch_size == 1 else "whitened",)  # by theory, where rehearsals do not tell
        names = () if played.steady else trusted(attack.name, played, client.company, update.task, best, generator)
        played = played.narrowed(names)
        for label in sorted(set(labels[:, 0].tolist())):
            rows = (labels[:, 0] == label).nonzero()[:, 0].tolist()
            shown, places = distinct(candidates[rows], labels[rows], None if targets is None else targets[rows])
            replays = played.replays(shown, attack.name)
            if replays is None:
                break
            sent = [sent_by(client, v) for v in rows]
            places = places.to(scores.device)
            found = {n: s.gather(1, places) for n, s in played.scores(sent, replays, shown, names).items()}
            total = sum_of(found, names).to(scores)
            first = played.certain(sent, replays, places).tolist() if update.batch_size == 1 else [-1] * len(rows)
            for i, v in enumerate(rows):
                done[v], scores[v] = True, total[i]
                if not all(bool(part.isfinite().all()) for part in sent[i]):
                    scores[v] = torch.nan
                elif first[i] >= 0:
                    sure[v], scores[v, first[i]] = True, total[i].max() + 1
    return replace(linked(update, claimed_labels(update, labels, scores), scores, done), certain=sure)


@dataclass(frozen=True, kw_only=True)
class _Replaying(Attack):
    """What the two attacks share: they confirm a record among candidates, and draw no picture."""

    kind: ClassVar[Kind] = "linkage"
    family: ClassVar[str] = "replay"
    source: ClassVar[str] = "formulated here: a likelihood ratio over simulated updates (cf. Carlini et al. 2022)"

    draws: int = 4  # of the defense's randomness, per candidate

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ValueError("draws must be at least 1")

    def amount(self, sizes: Sizes) -> Amount:
        """Return how much work it is: every candidate is played, with and without the defense."""
        return Amount(updates=(self.draws + 1 if sizes.defended else 1) * sizes.candidates)

    def __call__(self, model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Reconstruction:
        """Raise NotApplicable: there is nothing to link without candidates."""
        raise NotApplicable("a linkage attack needs candidates: call link")


@register_attack
@dataclass(frozen=True, kw_only=True)
class Replay(_Replaying):
    """Run the whole defense on every candidate, and see whose update explains the one that was sent (METHODS §7).

    Everything that leaves a client takes part, buffers too, and every stage of the defense with `draws` of its
    randomness; at batch size B the candidate stands in a batch of the attacker's own records. The scores are those of
    `scores_of`; which to trust is decided by what finds auxiliary records among others of their class. Where a part of
    the update is one candidate's to the last digits, that one is it for certain.
    """

    name: ClassVar[str] = "replay"
    summary: ClassVar[str] = "run the whole defense on every candidate: whose update is it?"
    requires: ClassVar[frozenset[str]] = frozenset({"defense"})
    examines: ClassVar[frozenset[str]] = frozenset({"anything"})
    asks: ClassVar[int] = 64

    @memory_safe
    def link(
        self, model: PixelModel, update: SharedUpdate, candidates: Tensor, generator: torch.Generator
    ) -> Reconstruction:
        """Return scores (V, M) of `candidates` (V, M, C, H, W) as `linkage`; larger is likelier."""

        def way(client: Client) -> Way:
            plain = all(type(part) is Defense or part.name == "none" for part in parts_of(client.defense))
            bare = client.bare if update.batch_size == 1 and not plain else None
            return Way(client.replay, bare)

        return confirm(self, model, update, candidates, generator, self.draws, way, parts_seen)


@register_attack
@dataclass(frozen=True, kw_only=True)
class ReleasedReplay(_Replaying):
    """The bound: run the record stage on every candidate, and see whose replacement explains the one that was released.

    Picture and label, or its probabilities, take part; so does log p(x̃ | candidate) where a defense knows it.
    """

    name: ClassVar[str] = "released-replay"
    summary: ClassVar[str] = "run the record stage on every candidate, handed the replaced record: a bound"
    requires: ClassVar[frozenset[str]] = frozenset({"defense", "released"})
    needs: ClassVar[Needs] = Needs(replaced_records=True)
    examines: ClassVar[frozenset[str]] = frozenset({"records"})

    draws: int = 16

    def amount(self, sizes: Sizes) -> Amount:
        """Return how much work it is: the record stage alone is next to none."""
        return Amount(updates=sizes.victims)

    @memory_safe
    def link(
        self, model: PixelModel, update: SharedUpdate, candidates: Tensor, generator: torch.Generator
    ) -> Reconstruction:
        """Return scores (V, M) of `candidates` (V, M, C, H, W) as `linkage`; larger is likelier."""
        images, labels, defense = update.released, update.released_labels, update.defense
        if images is None or labels is None or defense is None:
            raise NotApplicable("the defense or the replaced records are not exposed")

        def sent(client: Client, victim: int) -> Parts:
            place = update.places[victim] if update.places else 0
            return images[victim, place], told_in_numbers(update, labels[victim, place])

        def known(given: list[Parts], records: Records) -> Tensor | None:
            pictures = torch.stack([picture for picture, _ in given]).to(model.mean)
            told = (part.likelihood(pictures, records.images.to(model.mean)) for part in parts_of(defense))
            return next((each for each in told if each is not None), None)

        def way(client: Client) -> Way:
            return Way(client.release, None, known)

        return confirm(self, model, update, candidates, generator, self.draws, way, sent)
