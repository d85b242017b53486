"""Fishing: a batch's gradient is that of one class's records, whose number is known, and they are inverted."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from leakaudit.attacks.fishing import Fishing, fished
from leakaudit.errors import NotApplicable
from leakaudit.protocol.attack import Beforehand
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.gradients import mean_gradient, parameters_of
from leakaudit.protocol.registry import parse_defense
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.score.metrics import assign, psnr
from tests.attacks.attack_scenes import conv_model, records, shared_update

SHAPE, BATCH = (1, 8, 8), 4
OWN = records(60, SHAPE, 3, seed=2)


def planted(batch: int = BATCH) -> PixelModel:
    known = Beforehand(SHAPE, 3, batch, F.cross_entropy, "eval", OWN)
    return Fishing().plant(copy.deepcopy(conv_model(SHAPE)), known, torch.Generator().manual_seed(0))


def class_of(model: PixelModel) -> int:
    return int(model.network[-1].bias.argmin())  # type: ignore[index, operator, union-attr]


def batches(model: PixelModel, counts: tuple[int, ...]) -> tuple[Records, SharedUpdate]:
    """Return batches that hold so many records of the fished class, first, and what they share."""
    drawn, target = records(BATCH * len(counts), SHAPE, 3, seed=7), class_of(model)
    other = (target + 1) % 3
    labels = torch.tensor([target if i < n else other for n in counts for i in range(BATCH)])
    private = Records(drawn.images, labels)
    return private, shared_update(model, private, batch_size=BATCH, auxiliary=OWN)


def test_only_the_last_layer_is_changed() -> None:
    changed = [n for n, p in conv_model(SHAPE).named_parameters() if not torch.equal(p, planted().get_parameter(n))]
    assert changed == ["network.5.weight", "network.5.bias"]


def test_the_gradient_is_that_of_the_classs_records_and_their_number_is_known() -> None:
    model = planted()
    private, update = batches(model, (1, 0, 3, 2))
    found = {v: line for victims, line in fished(model, update) for v in victims}
    assert {v: line[1].batch_size for v, line in found.items()} == {0: 1, 2: 3, 3: 2}
    for v, (_, seen) in found.items():
        victims = next(victims for victims, line in fished(model, update) if v in victims)
        own = private[v * BATCH : v * BATCH + seen.batch_size]
        alone = dict(
            zip(parameters_of(model)[0], mean_gradient(model, F.cross_entropy, own.images, own.labels), strict=True)
        )
        for name, gradient in zip(seen.names, seen.gradients, strict=True):
            torch.testing.assert_close(gradient[victims.index(v)], alone[name], rtol=1e-3, atol=1e-6)


def test_what_is_fished_out_is_drawn_and_of_others_nothing_is_claimed() -> None:
    model = planted()
    private, update = batches(model, (1, 0, 2))
    found = Fishing(steps=100)(model, update, torch.Generator().manual_seed(3))
    assert found.images is not None
    assert set(found.statuses) == {"converged"}
    assert "claims 3 of 12 records" in found.notes[0]
    mean = OWN.images.mean(0)
    slots = (*found.images[0, 1:], *found.images[1], *found.images[2, 2:])
    assert all(torch.allclose(picture, mean, atol=0.05) for picture in slots)
    own, drawn = private.images[2 * BATCH : 2 * BATCH + 2], found.images[2, :2]  # inverted together
    scores = [psnr(private.images[:1], found.images[0, :1]), psnr(own, drawn[assign(own, drawn)])]
    guess = psnr(private.images, mean.expand_as(private.images))
    assert float(torch.cat(scores).min()) > float(guess.max()) + 1


def test_clipping_hides_no_count_of_one() -> None:
    model, defense = planted(), parse_defense("clip:max_norm=0.001")
    private, _ = batches(model, (1, 0))
    update = shared_update(model, private, batch_size=BATCH, auxiliary=OWN, defense=defense)
    assert [(victims, line[1].batch_size) for victims, line in fished(model, update)] == [([0], 1)]


def test_where_it_cannot_be_planted() -> None:
    with pytest.raises(NotApplicable, match="several records"):
        planted(1)
    bare = conv_model(SHAPE)
    bare.network[-1] = nn.Linear(128, 3, bias=False)  # type: ignore[operator]
    with pytest.raises(NotApplicable, match="bias"):
        Fishing().plant(bare, Beforehand(SHAPE, 3, 4, F.cross_entropy, "eval", OWN), torch.Generator())
