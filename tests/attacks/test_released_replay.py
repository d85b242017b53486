"""The bound: what the record stage released is replayed, its labels too, and what is known of it is used."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from leakaudit.attacks.replay import ReleasedReplay, Replay
from leakaudit.audit.attacking import repeated
from leakaudit.protocol.defense import Defense, chain
from tests import leaky
from tests.attacks.attack_scenes import records
from tests.attacks.test_replay import CANDIDATES, SHAPE, VICTIMS, Asked, asked, by_luck


@pytest.mark.parametrize("cls", [leaky.ReusedRecordNoise, leaky.Distilled, leaky.Pseudonyms, leaky.Negative])
def test_the_bound_replays_what_was_released(cls: type[Defense]) -> None:
    scene = asked(chain(cls(), leaky.Zeros()))  # of whom the update tells nothing
    released = [asked_alone(scene, cls(), v) for v in range(VICTIMS)]
    images, labels = (torch.stack(each) for each in zip(*released, strict=True))
    scene = replace(scene, update=replace(scene.update, released=images, released_labels=labels))
    found = scene.answer(ReleasedReplay())
    assert scene.hits(found) == VICTIMS
    assert found.certain.all() or cls is leaky.Distilled  # type: ignore[union-attr]
    assert by_luck(scene.hits(scene.answer(Replay(draws=1))))


def asked_alone(scene: Asked, defense: Defense, victim: int) -> tuple[Tensor, Tensor]:
    """Return what the record stage makes of one victim's record, released by itself as a client does."""
    own = scene.candidates[victim, scene.position[victim]][None]
    assert scene.update.candidate_labels is not None
    generator = torch.Generator().manual_seed(victim)
    images, labels = defense.transform_records(own, scene.update.candidate_labels[victim, :1], generator)
    return images.clamp(0, 1), labels


class Told(leaky.NoisyRecords):
    """What it knows of its noise decides, not what simulations show: here it is made to point elsewhere."""

    def likelihood(self, released: Tensor, candidates: Tensor) -> Tensor:
        return -1e3 * (released[:, None] - candidates[None]).square().flatten(2).sum(2)


def test_the_bound_uses_a_likelihood_that_is_known() -> None:
    scene = asked(Told())
    assert scene.hits(scene.answer(ReleasedReplay(draws=4))) == VICTIMS


class SharpChoice(Defense):
    """A public picture, chosen by what the record looks like; how likely each choice is, is known."""

    pictures = torch.rand((300, *SHAPE), generator=torch.Generator().manual_seed(0))

    def odds(self, images: Tensor) -> Tensor:
        seen = (images.flatten(1) - 0.5) @ leaky.keyed((64, 8))
        return (4 * nn.functional.normalize(seen) @ leaky.keyed((8, 300), 5)).log_softmax(1)

    def transform_records(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return self.pictures[torch.multinomial(self.odds(images).exp(), 1, generator=generator)[:, 0]], labels

    def likelihood(self, released: Tensor, candidates: Tensor) -> Tensor:
        chosen = (released[:, None] - self.pictures[None]).abs().flatten(2).sum(2).argmin(1)
        return self.odds(candidates).T[chosen]


def test_what_is_known_is_at_least_as_good_as_what_is_simulated() -> None:
    scene, known = asked(SharpChoice(), victims=30), SharpChoice()
    released = scene.update.released
    assert released is not None
    exact = torch.cat([known.likelihood(x, c) for x, c in zip(released, scene.candidates, strict=True)])
    best = int((exact.argmax(1) == scene.position).sum())
    assert not by_luck(best, 30)
    assert scene.hits(scene.answer(ReleasedReplay(draws=4))) >= best - 2


def test_the_bound_finds_every_record_of_a_batch() -> None:
    scene = asked(leaky.Negative(), batch=2)
    assert scene.update.released is not None
    update = repeated(scene.update, 2)
    second = 1 - scene.update.released[:, 1]
    line_ups = records(VICTIMS * CANDIDATES, SHAPE, 3, seed=9).images.view(VICTIMS, CANDIDATES, *SHAPE)
    line_ups[:, 5] = second
    position = torch.stack([scene.position, torch.full((VICTIMS,), 5)], 1).flatten()
    candidates = torch.stack([scene.candidates, line_ups], 1).flatten(0, 1)
    assert scene.update.released_labels is not None
    labels = scene.update.released_labels.flatten()[:, None].expand(-1, CANDIDATES)
    both = Asked(scene.model, replace(update, candidate_labels=labels), candidates, position)
    assert both.hits(both.answer(ReleasedReplay(draws=1))) == 2 * VICTIMS
