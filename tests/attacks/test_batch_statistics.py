"""A batch's own BatchNorm statistics from the buffers sent, against the batch's, and the prior made of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from leakaudit.attacks._attacking import client_mode
from leakaudit.attacks._orders import natural, training_of
from leakaudit.attacks.batch_statistics import (
    BatchStatistics,
    group_gap,
    kept_statistics,
    mixed_gap,
    seen_by,
    shares_of,
    statistics_gap,
)
from leakaudit.errors import NotApplicable
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.federation import parse_client
from leakaudit.protocol.gradients import Mode
from leakaudit.protocol.registry import parse_attack
from leakaudit.protocol.target import PixelModel, Records
from tests.attacks.attack_scenes import batchnorm_model, conv_model, records, shared_update


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("momentum", [0.1, 0.37, None])
def test_what_the_steps_saw_is_told_exactly(momentum: float | None, steps: int) -> None:
    norm = nn.BatchNorm2d(5, momentum=momentum).double()
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        norm(torch.randn(4, 5, 3, 3, generator=generator, dtype=torch.float64))
    mean, variance = norm.get_buffer("running_mean").clone(), norm.get_buffer("running_var").clone()
    shares = shares_of(norm, steps)
    batches = [2 + 3 * torch.randn(6, 5, 3, 3, generator=generator, dtype=torch.float64) for _ in range(steps)]
    for batch in batches:
        norm(batch)
    assert sum(shares.weights) == pytest.approx(1)
    assert sum(shares.steps) == pytest.approx(1 - shares.left)
    if momentum is not None:
        assert shares.steps == pytest.approx([momentum * (1 - momentum) ** (steps - k) for k in range(1, steps + 1)])
    own = [b.mean((0, 2, 3)) for b in batches], [b.var((0, 2, 3)) for b in batches]
    pairs = (mean, norm.get_buffer("running_mean")), (variance, norm.get_buffer("running_var"))
    for (before, after), each in zip(pairs, own, strict=True):
        expected = torch.stack([w * e for w, e in zip(shares.weights, each, strict=True)]).sum(0)
        assert torch.allclose(shares.of_the_steps(before, after), expected, atol=1e-12)


def scene(mode: Mode, batch: int = 3) -> tuple[PixelModel, Records, SharedUpdate]:
    model, private = batchnorm_model(), records(2 * batch, (1, 8, 8), 3, seed=1)
    model.double()
    private = Records(private.images.double(), private.labels)
    return model, private, shared_update(model, private, batch_size=batch, mode=mode)


def gap(model: PixelModel, images: Tensor, update: SharedUpdate) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    with client_mode(model, update, generator):
        counts = seen_by(model, update)
    kept = kept_statistics(model, update, counts)
    training = training_of(update.client, natural(update.client, update.batch_size))
    with client_mode(model, update, generator):
        if update.mode == "eval":
            return statistics_gap(model, images, torch.arange(len(images)), kept).detach()
        each = [mixed_gap(model, x, kept, training, update, t) for t, x in enumerate(images)]
    return torch.cat(each).detach()


def test_in_train_mode_the_private_batch_meets_what_was_sent() -> None:
    model, private, update = scene("train")
    before = {name: b.clone() for name, b in model.named_buffers()}
    batches = private.images.view(2, 3, 1, 8, 8)
    assert bool((gap(model, batches, update) < 1e-18).all())
    assert bool((gap(model, batches.flip(0), update) > 1e-6).all())  # of the other victim
    assert all(torch.equal(before[name], b) for name, b in model.named_buffers())


@pytest.mark.parametrize(
    "spec",
    ["fedavg:steps=3:lr=1e-5", "fedavg:epochs=2:lr=1e-5:clients=2", "fedsgd:clients=2", "fedavg:steps=4:lr=0.02"],
)
def test_after_local_steps_the_private_batch_meets_what_they_kept(spec: str) -> None:
    model, private = batchnorm_model().double(), records(8, (1, 8, 8), 3, seed=1)
    private = Records(private.images.double(), private.labels)
    update = shared_update(model, private, batch_size=4, mode="train", client=parse_client(spec))
    batches = private.images.view(2, 4, 1, 8, 8)
    found, other = gap(model, batches, update), gap(model, batches.flip(0), update)
    near = 1e-2 if "lr=0.02" in spec else 1e-6  # the weights that a step saw are told approximately
    assert bool((found < near * other).all())


def test_in_eval_mode_the_running_statistics_are_the_prior() -> None:
    model, private, update = scene("eval")
    network = model.network
    assert isinstance(network, nn.Sequential)
    features = network[0]((private.images - model.mean) / model.std).view(2, 3, 8, 8, 8).detach()
    norm = network[1]
    mean, variance = features.mean((1, 3, 4)), features.var((1, 3, 4), correction=0)
    expected = (mean - norm.running_mean).square().sum(1) + (variance - norm.running_var).square().sum(1)
    found = gap(model, private.images.view(2, 3, 1, 8, 8), update)
    assert torch.allclose(found, 3.0 * expected)  # the first layer counts thrice


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_slope_is_that_of_finite_differences(mode: Mode) -> None:
    model, _, update = scene(mode)
    generator = torch.Generator().manual_seed(0)
    plain = BatchStatistics(weight=0.0)
    labels, rows = torch.tensor([[0, 1, 2]]), torch.tensor([1])
    attack = BatchStatistics(weight=1.0)
    whole = attack.matching(model, update, attack.distance(update, generator), generator)
    without = plain.matching(model, update, plain.distance(update, generator), generator)
    x = torch.rand((1, 3, 1, 8, 8), generator=generator, dtype=torch.float64)
    step = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    with client_mode(model, update, generator):

        def value(images: Tensor) -> float:
            return float(whole(images, labels, rows)[0] - without(images, labels, rows)[0])

        slope = whole(x, labels, rows)[1] - without(x, labels, rows)[1]
        numeric = (value(x + 1e-5 * step) - value(x - 1e-5 * step)) / 2e-5
    assert numeric == pytest.approx(float((slope * step).sum()), rel=1e-4)


def test_it_helps_in_train_mode(generator: torch.Generator) -> None:
    model, private = batchnorm_model(), records(8, (1, 8, 8), 3, seed=1)
    update = shared_update(model, private, batch_size=4, mode="train")
    errors = []
    for spec in ("batch-statistics:steps=150:weight=0", "batch-statistics:steps=150:weight=0.1"):
        images = parse_attack(spec)(model, update, torch.Generator().manual_seed(0)).images
        assert images is not None
        errors.append(float(torch.cdist(private.images.view(2, 4, -1), images.flatten(2)).amin(2).mean()))
    assert errors[1] < errors[0]


def test_restarts_are_drawn_to_their_own_mean(generator: torch.Generator) -> None:
    images = torch.rand((5, 2, 1, 3, 3), generator=generator, dtype=torch.float64)
    victims = torch.tensor([0, 0, 2, 0, 2])
    value, slope = group_gap(images, victims)
    for v in (0, 2):
        own = images[victims == v]
        assert torch.allclose(value[victims == v], (own - own.mean(0)).square().mean((1, 2, 3, 4)))
    x = images.clone().requires_grad_(True)
    fixed = torch.stack([images[victims == v].mean(0) for v in victims.tolist()])
    (expected,) = torch.autograd.grad((x - fixed).square().mean((1, 2, 3, 4)).sum(), x)
    assert torch.allclose(slope, expected)
    alone, none = group_gap(images[:1], victims[:1])
    assert float(alone) == 0
    assert not bool(none.any())
    model = batchnorm_model()
    update = shared_update(model, records(4, (1, 8, 8), 3, seed=1), batch_size=2)
    spec = "batch-statistics:steps=4:restarts=2:consistency="
    runs = [parse_attack(spec + w)(model, update, torch.Generator().manual_seed(0)).images for w in ("0", "100")]
    assert runs[0] is not None
    assert runs[1] is not None
    assert not torch.equal(runs[0], runs[1])


def test_without_buffers_or_batchnorm_it_does_not_apply(generator: torch.Generator) -> None:
    model, _, update = scene("eval")
    with pytest.raises(NotApplicable, match="not exposed"):
        BatchStatistics(steps=1)(model, replace(update, buffers=None), generator)
    plain = conv_model()
    with pytest.raises(NotApplicable, match="no BatchNorm"):
        BatchStatistics(steps=1)(plain, shared_update(plain, records(2, (1, 8, 8), 3, 1)), generator)
