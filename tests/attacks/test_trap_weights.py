"""Trap weights: seldom a unit fires, so more of a batch is read off than off the layer as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from leakaudit.attacks.peeling import Peeling
from leakaudit.attacks.trap_weights import TrapWeights, alone, trapped
from leakaudit.errors import NotApplicable
from leakaudit.protocol.attack import Beforehand
from leakaudit.protocol.target import PixelModel
from leakaudit.score.metrics import assign, psnr
from tests.attacks.attack_scenes import conv_model, records, seeded, shared_update

SHAPE, BATCH = (1, 8, 8), 12
OWN = records(300, SHAPE, 3, seed=2)
KNOWN = Beforehand(SHAPE, 3, BATCH, F.cross_entropy, "eval", OWN)


def relu_model() -> PixelModel:
    network = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 3)))
    return PixelModel(network, [0.4], [0.25])


def planted() -> PixelModel:
    return TrapWeights().plant(copy.deepcopy(relu_model()), KNOWN, torch.Generator().manual_seed(0))


def test_half_of_a_row_is_negative_and_the_other_half_holds_the_same_sizes() -> None:
    negative, positive = trapped(5, 10, torch.Generator().manual_seed(0))
    assert bool(((negative < 0) == (positive == 0)).all())
    assert torch.equal(negative.abs().sort(1).values[:, 5:], positive.sort(1).values[:, 5:])


def test_who_is_alone_in_a_row() -> None:
    fires = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 1]]).bool()
    assert alone(fires, 2) == 0.25  # of the first four, the second alone; the fifth has no company
    assert alone(fires, 5) == 0.4
    assert alone(fires, 6) == 0.0


def test_the_layer_sees_pictures_as_they_were_before_the_normalisation() -> None:
    model, private = planted(), records(20, SHAPE, 3, seed=9)
    layer = model.network[1]  # type: ignore[index]
    seen = ((private.images - model.mean) / model.std).flatten(1)
    weights = layer.weight / model.std.flatten()
    torch.testing.assert_close(layer(seen), private.images.flatten(1) @ weights.T, rtol=1e-4, atol=1e-3)
    assert 0 < float((weights < 0).float().mean()) < 0.6
    rest = [name for name, p in relu_model().named_parameters() if not torch.equal(p, model.get_parameter(name))]
    assert rest == ["network.1.weight", "network.1.bias"]


def test_more_is_read_off_than_without_it_and_all_that_is_claimed_is_right() -> None:
    private = records(4 * BATCH, SHAPE, 3, seed=7)
    shares = []
    for attack, model in ((Peeling(), relu_model()), (TrapWeights(), planted())):
        update = shared_update(model, private, batch_size=BATCH, auxiliary=OWN)
        found = attack(model, update, torch.Generator().manual_seed(3))
        assert found.images is not None
        truth = private.images.view_as(found.images)
        scores = torch.cat([psnr(x, y[assign(x, y)]) for x, y in zip(truth, found.images, strict=True)])
        shares.append(float((scores > 40).double().mean()))
        assert found.certified is not None
        assert int((scores > 40).sum()) >= int(found.certified.sum())
    assert shares[1] > shares[0] + 0.2
    with torch.no_grad():
        first = planted().network[:2]  # type: ignore[index]
        fires = first((private.images - 0.4) / 0.25) > 0
    assert shares[1] >= alone(fires, BATCH) > 0.3


def test_where_there_is_no_dense_first_layer_nothing_is_planted() -> None:
    with pytest.raises(NotApplicable, match="not dense"):
        TrapWeights().plant(conv_model(SHAPE), KNOWN, torch.Generator())
    with pytest.raises(NotApplicable, match="not exposed"):
        TrapWeights().plant(relu_model(), Beforehand(SHAPE, 3, 4, F.cross_entropy, "eval"), torch.Generator())
