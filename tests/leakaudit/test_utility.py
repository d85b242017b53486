"""Utility is a real training run on the shared updates: exact gradients, paired runs, honest when the time is up."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from leakaudit.protocol.client import defended_gradient
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.gradients import Gradients, fast_example_gradients, mean_gradient
from leakaudit.protocol.registry import parse_defense
from leakaudit.protocol.target import PixelModel, Records, Target, reinitialised
from leakaudit.score.measures import accuracy, majority
from leakaudit.score.utility import (
    Senders,
    layout_of,
    shared_update,
    steps_per_epoch,
    train,
    utility,
)
from leakaudit.work.progress import Monitor, Work, monitored


@dataclass(frozen=True, kw_only=True)
class Noise(Defense):
    name: ClassVar[str] = "noise"
    std: float = 1.0

    def transform_update(self, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
        return tuple(g + self.std * torch.randn(g.shape, generator=generator) for g in gradients)


@dataclass(frozen=True, kw_only=True)
class PerExample(Defense):
    """Clips every record's gradient to norm 1, and keeps what it saw."""

    name: ClassVar[str] = "per-example"
    seen: ClassVar[list[Gradients]] = []

    def transform_example_gradients(self, gradients: Gradients, generator: torch.Generator) -> Gradients:
        self.seen.append(gradients)
        norm = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()
        scale = (1 / norm).clamp(max=1)
        return tuple(g * scale.view(-1, *[1] * (g.dim() - 1)) for g in gradients)


def network(norm: str = "group", classes: int = 2) -> nn.Module:
    normed: dict[str, nn.Module] = {"group": nn.GroupNorm(2, 6), "batch": nn.BatchNorm2d(6), "none": nn.Identity()}
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), normed[norm], nn.ReLU(), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(24, classes)
    )


def blobs(n: int, generator: torch.Generator) -> Records:
    """Two classes: bright on the left, bright on the right; two thirds are of the first."""
    labels = (torch.arange(n) % 3 == 2).long()
    images = 0.4 * torch.rand(n, 1, 8, 8, generator=generator)
    images[labels == 0, :, :, :4] += 0.3
    images[labels == 1, :, :, 4:] += 0.3
    return Records(images, labels)


@pytest.fixture
def target(generator: torch.Generator) -> Target:
    return make_target("group", generator)


def make_target(norm: str, generator: torch.Generator) -> Target:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = PixelModel(network(norm), (0.4,), (0.2,))
    private, test, auxiliary = (blobs(n, generator) for n in (96, 90, 30))
    return Target("blobs", model, functional.cross_entropy, private, test, auxiliary, ("left", "right"))


def test_training_learns_and_noise_costs_accuracy(target: Target) -> None:
    plain = utility(target, Defense(), target.private, senders=Senders(16), epochs=12, seeds=3, seed=0)
    noisy = utility(target, Noise(std=20), target.private, senders=Senders(16), epochs=12, seeds=2, seed=0)
    assert plain.chance == pytest.approx(2 / 3)
    assert (plain.steps, plain.epochs, len(plain.accuracies)) == (72, 12, 3)
    assert plain.estimate.value is not None
    assert noisy.estimate.value is not None
    assert min(plain.accuracies) > 0.95
    assert noisy.estimate.value < plain.estimate.value - 0.1
    assert plain.estimate.n == 3
    assert plain.estimate.high is not None
    assert plain.estimate.high <= 1


def test_only_the_released_records_are_seen(target: Target) -> None:
    swapped = Records(target.private.images, 1 - target.private.labels)
    found = utility(target, Defense(), swapped, senders=Senders(16), epochs=12, seeds=1, seed=0)
    assert found.accuracies[0] < 0.1
    assert found.estimate.low is None  # one seed has no interval


def test_every_step_uses_the_defended_update(target: Target) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Withheld(Defense):
        def transform_update(self, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
            return tuple(torch.zeros_like(g) for g in gradients)

    model = target.fresh(3)
    before = [p.detach().clone() for p in model.parameters()]
    update = shared_update(model, target.loss, Withheld(), torch.Generator())
    done = train(model, target.private, target.loss, epochs=2, batch_size=32, seed=0, update=update)
    assert done == 6
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_runs_are_paired_by_seed_and_repeat(target: Target) -> None:
    batches: dict[str, list[Tensor]] = {}

    def recorded(name: str, defense: Defense) -> PixelModel:
        model = target.fresh(1)
        inner = shared_update(model, target.loss, defense, torch.Generator().manual_seed(5))

        def update(images: Tensor, labels: Tensor) -> Gradients:
            batches.setdefault(name, []).append(images)
            if name == "noise":
                torch.rand(1)  # a defense that draws from the global generator must not change the batches
            return inner(images, labels)

        train(model, target.private, target.loss, epochs=2, batch_size=20, seed=7, update=update)
        return model

    recorded("plain", Defense()), recorded("noise", Noise())
    assert len(batches["plain"]) == 2 * 4
    assert all(torch.equal(a, b) for a, b in zip(batches["plain"], batches["noise"], strict=True))
    assert not torch.equal(batches["plain"][0], batches["plain"][4])  # the second epoch has another order
    state = torch.random.get_rng_state()
    runs = [utility(target, Noise(), target.private, senders=Senders(32), epochs=2, seeds=2, seed=s) for s in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("norm", "mode"), [("group", "train"), ("none", "train"), ("batch", "eval"), ("batch", "train")]
)
def test_fast_example_gradients_are_the_clients(norm: str, mode: str, generator: torch.Generator) -> None:
    target = make_target(norm, generator)
    model = target.model.train(mode == "train")
    batch = target.private[:7]
    defense = PerExample()
    PerExample.seen.clear()
    quick = defended_gradient(
        model, target.loss, batch.images, batch.labels, defense, generator, fast_example_gradients()
    )
    exact = defended_gradient(model, target.loss, batch.images, batch.labels, defense, generator)
    for a, b in zip(PerExample.seen[0], PerExample.seen[1], strict=True):
        assert a.shape[0] == 7
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
    for a, b in zip(quick, exact, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
    plain = mean_gradient(model, target.loss, batch.images, batch.labels)
    assert not torch.allclose(exact[-2], plain[-2], atol=1e-6)  # the stage did act


def test_a_loss_that_cannot_be_vectorised_is_looped(target: Target) -> None:
    calls = []

    def branching(logits: Tensor, labels: Tensor) -> Tensor:
        calls.append(len(logits))
        value = functional.cross_entropy(logits, labels)
        return value if float(value.detach()) > 0.1 else 2 * value

    batch = target.private[:4]
    each = fast_example_gradients()
    found = each(target.model, branching, batch.images, batch.labels)
    each(target.model, branching, batch.images, batch.labels)
    assert len(calls) == 1 + 4 + 4  # the vectorised way is tried once
    expected = mean_gradient(target.model, branching, batch.images[:1], batch.labels[:1])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a[0], b)


def test_batch_statistics_come_from_training(generator: torch.Generator) -> None:
    target = make_target("batch", generator)
    kept = {n: b.clone() for n, b in target.model.named_buffers()}
    model = target.fresh(0)
    train(model, target.private, target.loss, epochs=4, batch_size=32, seed=0)
    name = "network.1.running_mean"
    assert not torch.equal(model.get_buffer(name), torch.zeros(6))
    frozen = target.fresh(0)
    train(frozen, target.private, target.loss, epochs=4, batch_size=32, seed=0, mode="eval")
    assert torch.equal(frozen.get_buffer(name), torch.zeros(6))
    assert not model.training
    assert all(torch.equal(b, kept[n]) for n, b in target.model.named_buffers())  # the target is left alone
    found = utility(target, PerExample(), target.private, senders=Senders(32), epochs=1, seeds=1, seed=0)
    assert found.steps == 3


def partly_frozen() -> PixelModel:
    """Frozen: a convolution with its BatchNorm and one without weights, half of a second, and a bias."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4, affine=False)),
        *(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 2)),
    )
    for frozen in (*net[0].parameters(), *net[1].parameters(), net[4].bias):
        frozen.requires_grad_(False)
    net(torch.rand(8, 1, 8, 8))
    return PixelModel(net)


def test_what_is_frozen_is_not_reset(generator: torch.Generator) -> None:
    model = partly_frozen()
    fresh = reinitialised(model, 3)
    same = {k for k, v in model.state_dict().items() if torch.equal(v, fresh.state_dict()[k])}
    layers = ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "3.running_mean", "4.bias")
    assert {f"network.{name}" for name in layers} <= same
    changed = ("4.weight", "5.running_mean", "5.running_var", "7.weight", "7.bias")
    assert not {f"network.{name}" for name in changed} & same
    flags = [p.requires_grad for p in model.parameters()]
    assert [p.requires_grad for p in fresh.parameters()] == flags
    assert torch.equal(fresh.network[7].weight, reinitialised(model, 3).network[7].weight)  # type: ignore[index]


class Resets(nn.Module):
    """Puts new parameters in place of its own and resets what is below it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.below = nn.Parameter(torch.full((2,), 7.0), requires_grad=False), nn.Linear(64, 2)
        self.below.bias.requires_grad_(False)

    def reset_parameters(self) -> None:
        self.weight = nn.Parameter(torch.zeros(2))
        nn.init.zeros_(self.below.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * self.below(x.flatten(1))


def test_a_reset_of_ones_own_leaves_what_is_frozen_too() -> None:
    model = PixelModel(Resets())
    fresh = reinitialised(model, 0).network
    assert isinstance(fresh, Resets)
    assert not fresh.weight.requires_grad
    assert torch.equal(fresh.weight, torch.full((2,), 7.0))
    assert torch.equal(fresh.below.bias, model.network.below.bias)  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize("built", [False, True])
def test_a_head_on_a_frozen_backbone_is_as_accurate_as_it_is(built: bool, generator: torch.Generator) -> None:
    target = make_target("group", generator)
    net = target.model.network
    train(target.model, target.private, target.loss, epochs=12, batch_size=16, seed=0)
    net[:-1].requires_grad_(False)  # type: ignore[index]
    net[-1].reset_parameters()  # type: ignore[index, union-attr, operator]
    backbone = [p.detach().clone() for p in net[:-1].parameters()]  # type: ignore[index]
    target = replace(target, factory=(lambda: net) if built else None)
    found = utility(target, Defense(), target.private, senders=Senders(16), epochs=6, seeds=2, seed=0)
    assert min(found.accuracies) > 0.95
    assert all(torch.equal(a, b) for a, b in zip(backbone, net[:-1].parameters(), strict=True))  # type: ignore[index]


def test_a_spent_budget_is_a_reason_and_not_an_accuracy(target: Target) -> None:
    with monitored(Monitor(deadline=time.monotonic() - 1)):
        found = utility(target, Defense(), target.private, epochs=2, seeds=2, seed=0)
    assert found.accuracies == ()
    assert found.estimate.value is None
    assert found.estimate.reason is not None
    assert "after 0 of 6" in found.estimate.reason
    steps = 0

    def show(work: Work, done: int, total: int) -> None:
        nonlocal steps
        steps += 1
        if steps == 10:
            # The budget ends within the second seed: the first one stands, and the estimate says what is missing.
            object.__setattr__(monitor, "deadline", time.monotonic() - 1)

    monitor = Monitor(show=show)
    with monitored(monitor):
        found = utility(target, Defense(), target.private, epochs=2, seeds=2, seed=0)
    assert len(found.accuracies) == 1
    assert found.estimate.value == found.accuracies[0]
    assert found.estimate.reason is not None
    assert "seed 2 of 2" in found.estimate.reason


def test_accuracy_and_chance_are_counted(target: Target) -> None:
    class Says(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = torch.stack([torch.zeros(len(x)), x.flatten(1)[:, 0]], 1) + 0 * self.weight
            return torch.where(x.flatten(1)[:, :1] > 5, torch.tensor(float("nan")), logits)

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

    images = torch.tensor([-1.0, -1.0, 1.0, 1.0, 9.0]).view(5, 1, 1, 1)
    records = Records(images, torch.tensor([0, 1, 1, 1, 0]))
    assert accuracy(PixelModel(Says()), records, batch_size=2) == 3 / 5  # NaN is wrong, whatever its argmax
    assert majority(records) == 3 / 5
    assert (steps_per_epoch(100, 32), steps_per_epoch(5, 32)) == (3, 1)


def test_fewer_records_than_a_batch_still_train(target: Target) -> None:
    assert train(target.fresh(0), target.private[:5], target.loss, epochs=3, batch_size=32, seed=0) == 3


class Viewed(nn.Module):
    """Flattens by a view, which only fits where channels do not lie last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.head = nn.Linear(4 * 64, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.head(x.view(len(x), 4 * 64))  # type: ignore[no-any-return]


class Strided(Viewed):
    """Reads its maps as they lie in memory, while it trains."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.training:
            x = x.as_strided((len(x), 4 * 64), (4 * 64, 1))
        return self.head(x.flatten(1))  # type: ignore[no-any-return]


class Five(nn.Module):
    """Has a parameter of five dimensions beside a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.shift = convolutional(), nn.Parameter(torch.zeros(1, 1, 1, 1, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + self.shift.flatten()  # type: ignore[no-any-return]


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 2))


def test_channels_lie_last_where_nothing_changes_and_nowhere_else(generator: torch.Generator) -> None:
    batch = Records(torch.rand((8, 1, 8, 8), generator=generator), torch.arange(8) % 2)
    loss, last, usual = nn.CrossEntropyLoss(), torch.channels_last, torch.contiguous_format
    cases = (
        (convolutional(), "none", last),
        (convolutional(), "gaussian", last),
        (convolutional(), "clip,dp-sgd", usual),  # it works on every record's own gradient
        (convolutional(), "soteria", usual),  # it looks at the model's features
        (Viewed(), "none", usual),
        (Strided(), "none", usual),
        (Five(), "none", usual),
        (
            nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, 2)),
            "none",
            last,
        ),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), "none", usual),
    )
    for network, spec, wanted in cases:
        model = PixelModel(network)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        assert layout_of(model, loss, parse_defense(spec), batch) == wanted
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_updates_are_the_same_and_laid_out_as_usual_whatever_the_layout(generator: torch.Generator) -> None:
    batch = Records(torch.rand((8, 1, 8, 8), generator=generator), torch.arange(8) % 2)
    model, loss = PixelModel(convolutional()), nn.CrossEntropyLoss()
    plain = shared_update(model, loss, Defense(), generator)(batch.images, batch.labels)
    moved = copy.deepcopy(model).to(memory_format=torch.channels_last)
    last = shared_update(moved, loss, Defense(), generator, torch.channels_last)(batch.images, batch.labels)
    for a, b in zip(plain, last, strict=True):
        assert b.is_contiguous()
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
