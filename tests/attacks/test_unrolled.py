"""Attacks that know local steps: the client's order is found by its labels, and its pictures by its training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from leakaudit.attacks._orders import natural, orders_told, training_of
from leakaudit.attacks.inverting_gradients import InvertingGradients
from leakaudit.attacks.unrolled import ThroughLocalSteps, agreement, joined
from leakaudit.engine import unrolled
from leakaudit.errors import NotApplicable
from leakaudit.protocol.amounts import Amount, Sizes
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.exposure import Exposure
from leakaudit.protocol.federation import local_batches, parse_client
from leakaudit.protocol.gradients import in_mode
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.score.metrics import assign, psnr
from tests.attacks.attack_scenes import conv_model, records, shared_update

SHAPE, CLASSES = (1, 8, 8), 3


def scene(spec: str, batch: int = 3, alike: float = 0.0) -> tuple[PixelModel, Records, SharedUpdate]:
    """Return two victims of three records, each of another class, with their labels exposed.

    Pictures of a class, auxiliary ones among them, have so much in common.
    """
    model = conv_model(SHAPE)
    own, auxiliary = records(2 * batch, SHAPE, CLASSES, seed=1), records(12, SHAPE, CLASSES, seed=2)
    own = replace(own, labels=torch.arange(2 * batch) % CLASSES)
    typical = records(CLASSES, SHAPE, CLASSES, seed=4).images
    own, auxiliary = (replace(r, images=torch.lerp(r.images, typical[r.labels], alike)) for r in (own, auxiliary))
    exposure = Exposure(labels=True, auxiliary=True)
    client = parse_client(spec)
    return (
        model,
        own,
        shared_update(model, own, batch_size=batch, exposure=exposure, auxiliary=auxiliary, client=client),
    )


def quality(own: Records, images: torch.Tensor) -> float:
    truth = own.images.view_as(images)
    aligned = torch.stack([g[assign(t, g)] for t, g in zip(truth, images, strict=True)])
    return float(psnr(truth.flatten(0, 1), aligned.flatten(0, 1)).median())


@pytest.mark.parametrize("spec", ["fedavg:epochs=2:batch=1:lr=0.2", "fedavg:epochs=1:batch=1:lr=0.5:clients=3"])
def test_the_labels_tell_the_order_of_the_steps(spec: str) -> None:
    model, own, update = scene(spec, alike=0.8)
    labels = own.labels.view(2, -1).flip(1)  # the slots stand in another order than the records
    drawn = torch.Generator().manual_seed(99)  # of `shared_update`
    with in_mode(model, "eval"):
        orders = orders_told(model, update, labels, torch.Generator().manual_seed(0))
    for v, order in enumerate(orders):
        told = [[labels[v, rows].tolist() for rows in plan] for plan in training_of(update.client, order).plans]
        true = []
        for y in own.labels.view(2, update.client.clients, -1)[v]:
            true.append([y[rows].tolist() for rows in local_batches(update.client, update.own, drawn)])
        assert sorted(told) == sorted(true)


def test_pictures_come_through_local_steps_that_no_single_gradient_matches() -> None:
    model, own, update = scene("fedavg:epochs=2:batch=1:lr=0.3")
    through = ThroughLocalSteps(steps=100, tv=1e-2)(model, update, torch.Generator().manual_seed(3))
    plain = InvertingGradients(steps=100, tv=1e-2)(model, update, torch.Generator().manual_seed(3))
    assert through.images is not None
    assert plain.images is not None
    assert through.statuses == ("converged", "converged")
    assert quality(own, through.images) > quality(own, plain.images) + 1


def test_passes_with_pictures_of_their_own_end_as_one_picture_a_record() -> None:
    model, _, update = scene("fedavg:epochs=2:batch=1:lr=0.3")
    attack = ThroughLocalSteps(steps=10, apart=True)
    found = attack(model, update, torch.Generator().manual_seed(3))
    assert found.images is not None
    assert found.images.shape == (2, 3, *SHAPE)
    assert not torch.equal(found.images, ThroughLocalSteps(steps=10)(model, update, torch.Generator()).images)


def test_passes_agree_whatever_their_order_and_the_slope_is_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 4, 1, 5, 5, generator=generator, dtype=torch.float64)
    shuffled = images[:, :1, torch.randperm(4, generator=generator)].expand_as(images).flatten(1, 2)
    assert float(agreement(shuffled, 3)[0].abs().max()) < 1e-20
    x = images.flatten(1, 2).requires_grad_(True)
    each = x.view(2, 3, 4, 1, 5, 5).mean(2)
    value = (each - each.mean(1, keepdim=True)).square().flatten(1).mean(1)
    (slope,) = torch.autograd.grad(value.sum(), x)
    found, mine = agreement(x.detach(), 3)
    torch.testing.assert_close(found, value.detach())
    torch.testing.assert_close(mine, slope)


def test_passes_are_assigned_under_one_label_and_averaged() -> None:
    first = torch.rand(4, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 0, 1])
    later = first[[2, 0, 1, 3]] + 0.01
    torch.testing.assert_close(joined(torch.stack([first, later]), labels), first + 0.005)
    alone = joined(torch.stack([first, first[[3, 1, 2, 0]]]), torch.tensor([0, 1, 1, 2]))  # a label keeps its slot
    torch.testing.assert_close(alone[1], first[1])
    torch.testing.assert_close(alone[0], (first[0] + first[3]) / 2)


def test_slots_of_a_last_pass_that_is_not_whole_and_of_every_pass_apart() -> None:
    client = parse_client("fedavg:steps=3:batch=2")
    training = training_of(client, natural(client, 4), apart=4)
    assert [rows.tolist() for rows in training.plans[0]] == [[0, 1], [2, 3], [4, 5]]
    two = parse_client("fedavg:epochs=1:clients=2")
    assert [[rows.tolist() for rows in plan] for plan in training_of(two, natural(two, 4)).plans] == [
        [[0, 1]],
        [[2, 3]],
    ]


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("fedsgd", "one step on all of its records"),
        ("fedavg:epochs=1", "one step on all of its records"),
        ("fedavg:steps=20:clients=3", "60 local steps"),
    ],
)
def test_it_says_where_it_is_not_the_attack_to_run(spec: str, told: str) -> None:
    model, _, update = scene(spec)
    with pytest.raises(NotApplicable, match=told):
        ThroughLocalSteps()(model, update, torch.Generator().manual_seed(0))


def test_what_it_matches_is_what_the_client_sent() -> None:
    model, own, update = scene("fedavg:epochs=2:batch=2:lr=0.3:momentum=0.9", batch=4)
    order = local_batches(update.client, 4, torch.Generator().manual_seed(99))
    model.eval()
    found = unrolled.trained(
        model, F.cross_entropy, own.images[:4], own.labels[:4], unrolled.Training(update.client, (tuple(order),), 4)
    )
    for mine, sent in zip(found, update.gradients, strict=True):
        torch.testing.assert_close(mine, sent[0], rtol=1e-3, atol=1e-5)


def test_its_work_is_told_with_the_steps() -> None:
    sizes = Sizes(victims=2, asked=2, candidates=4, line_up=2, private=8, auxiliary=8, batch=4)
    attack = ThroughLocalSteps(steps=10)
    one, eight = (attack.amount(replace(sizes, local_steps=n)) for n in (1, 8))
    assert (one.slopes, eight.slopes) == (20, 160)
    assert attack.amount(replace(sizes, local_steps=33)) == Amount()  # not applicable
