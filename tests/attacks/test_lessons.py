"""Batches are read record by record: what belongs to which class is undone exactly, and sets stand in one order."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from leakaudit.attacks._labels import find_head
from leakaudit.attacks._lessons import Lesson, batches, centred, lesson_of, ranks, reader_for
from leakaudit.attacks.learned import LearnedInversion
from leakaudit.protocol.attack import Reconstruction
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.labels import class_means
from leakaudit.protocol.registry import parse_defense
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.score.metrics import assign
from tests.attacks.attack_scenes import EVERYTHING, conv_model, shared_update
from tests.attacks.test_decoder import SHAPE, by_class

BATCH, CLIENTS, CANDIDATES = 4, 5, 20
AUXILIARY = by_class(120, 22)
VICTIMS, OTHERS = by_class(BATCH * CLIENTS, 23), by_class(400, 24)


def undecided(shape: tuple[int, int, int] = SHAPE, classes: int = 5) -> PixelModel:
    """Return a model that finds every class as likely for every picture: p − y is the same for all records of one."""
    model = conv_model(shape, classes)
    torch.nn.init.zeros_(model.network[-1].weight)  # type: ignore[index, operator]
    torch.nn.init.zeros_(model.network[-1].bias)  # type: ignore[index, operator]
    return model


@pytest.mark.parametrize("labels", [[3], [0, 1], [4, 2, 2, 0], [1, 1, 1]])
def test_the_heads_input_is_told_class_by_class(labels: list[int], generator: torch.Generator) -> None:
    model, told = undecided(), torch.tensor(labels)
    victims = Records(torch.rand((len(told), *SHAPE), generator=generator), told)
    own = Records(torch.rand((20, *SHAPE), generator=generator), torch.arange(20) % 5)
    update = shared_update(model, victims, batch_size=len(told), classes=5, auxiliary=own)
    reader = reader_for(model, update, own, generator)
    found = reader(tuple(g[0] for g in update.gradients), told)["head by class"]
    with torch.no_grad():
        inputs = model.network[:-1]((victims.images - model.mean) / model.std)  # type: ignore[index, operator]
    wanted = class_means(inputs, told, 5)[told]
    assert find_head(model, update, own.images, by_class=True) is not None
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_ranks_are_the_normal_scores_within_a_class() -> None:
    found = ranks(torch.tensor([2, 0, 2, 1, 2]))
    assert found[1] == found[3] == 0
    assert found[0] == -found[4] < 0
    assert found[2] == pytest.approx(0, abs=1e-6)
    drawn = torch.randn((20000, 3), generator=torch.Generator().manual_seed(0)).sort(1)[0].mean(0)
    torch.testing.assert_close(found[[0, 2, 4]], drawn, atol=0.05, rtol=0)


def test_batches_keep_held_out_records_apart_and_stand_in_order(generator: torch.Generator) -> None:
    held, brightness = torch.arange(43) % 4 == 0, torch.rand(43, generator=generator)
    found = batches(held, brightness, 3, 2, generator)
    assert len(found) == 2 * (11 // 3 + 32 // 3)
    for places in found:
        assert len(set(held[places].tolist())) == 1
        assert bool((brightness[places].diff() >= 0).all())
    for start in (0, len(found) // 2):
        once = torch.cat(found[start : start + len(found) // 2]).tolist()
        assert len(once) == len(set(once))
    singles = batches(held, brightness, 1, 1, generator)
    assert torch.cat(singles).tolist() == list(range(43))


def test_what_the_classes_alone_say_is_taken_off(generator: torch.Generator) -> None:
    model = conv_model(SHAPE)
    reader = reader_for(model, shared_update(model, VICTIMS, auxiliary=AUXILIARY), AUXILIARY, generator)
    labels = torch.randint(3, (60, 4), generator=generator)
    of_class = torch.randn(reader.means.shape, generator=generator)
    rows = of_class[labels].mean(1).repeat_interleave(4, 0)
    lesson = Lesson({"update": rows}, None, labels.flatten(), torch.zeros(240, *SHAPE), torch.arange(240) < 40)
    told, left = centred(reader, lesson, 4)
    torch.testing.assert_close(told.means, of_class, atol=1e-3, rtol=1e-3)
    assert float(left.rows["update"].abs().max()) < 1e-3


def attacked(update: SharedUpdate) -> Reconstruction:
    attack = LearnedInversion(pairs=240, draws=2, decoder_steps=20)
    return attack(conv_model(SHAPE), update, torch.Generator().manual_seed(0))


def aligned(found: Reconstruction) -> Tensor:
    """Return the guesses (N, C, H, W) in the order of `VICTIMS`."""
    assert found.images is not None
    pairs = zip(found.images, VICTIMS.images.split(BATCH), strict=True)
    return torch.cat([drawn[assign(true, drawn)] for drawn, true in pairs])


@pytest.mark.parametrize(("spec", "share"), [("none", 0.8), ("prune:sparsity=0.5", 0.9), ("gaussian:std=0.001", 0.8)])
def test_batches_are_read_better_than_by_their_labels(spec: str, share: float) -> None:
    update = shared_update(
        conv_model(SHAPE),
        VICTIMS,
        defense=parse_defense(spec),
        exposure=dataclasses.replace(EVERYTHING, labels=True),
        batch_size=BATCH,
        auxiliary=AUXILIARY,
    )
    guess = aligned(attacked(update))
    means = class_means(AUXILIARY.images, AUXILIARY.labels, 3)[VICTIMS.labels].view_as(guess)
    assert F.mse_loss(guess, VICTIMS.images) < share * F.mse_loss(means, VICTIMS.images)
    hits = 0
    for drawn, true, label in zip(guess, VICTIMS.images, VICTIMS.labels, strict=True):
        others = OTHERS.images[OTHERS.labels == label][: CANDIDATES - 1]
        hits += bool(((others - drawn).square().sum((1, 2, 3)) > (true - drawn).square().sum()).all())
    assert hits >= 5  # of 20, by chance 1


def test_the_order_of_a_batch_is_of_no_consequence() -> None:
    update = shared_update(conv_model(SHAPE), VICTIMS, batch_size=BATCH, auxiliary=AUXILIARY)
    shuffled = VICTIMS[torch.arange(len(VICTIMS)).view(-1, BATCH).flip(1).flatten()]
    other = shared_update(conv_model(SHAPE), shuffled, batch_size=BATCH, auxiliary=AUXILIARY)
    torch.testing.assert_close(aligned(attacked(update)), aligned(attacked(other)), atol=1e-3, rtol=0)


def test_a_lesson_holds_what_was_learned_from_and_no_more(generator: torch.Generator) -> None:
    model = conv_model(SHAPE)
    update = shared_update(model, VICTIMS, batch_size=BATCH, auxiliary=AUXILIARY)
    assert update.defense is not None
    known = dataclasses.replace(update, labels=None)
    _, lesson = lesson_of(model, known, update.defense, AUXILIARY, 1000, 2, generator, "seen")
    assert lesson is not None
    assert len(lesson.labels) == len(lesson.private) == len(lesson.held) == 2 * BATCH * (12 // BATCH + 108 // BATCH)
    assert all(len(rows) == len(lesson.labels) for rows in lesson.rows.values())
    private = {tuple(x.flatten().tolist()) for x in lesson.private[lesson.held]}
    assert not private & {tuple(x.flatten().tolist()) for x in lesson.private[~lesson.held]}
