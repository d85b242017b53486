"""The difference quotient as a whole: what it leaves behind, what it refuses, and gradients never written."""

from __future__ import annotations

import contextlib
import copy
import gc
import itertools
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakaudit.engine import kinks
from leakaudit.engine import matching as engine
from leakaudit.engine.layers import Ghost
from leakaudit.engine.matching import agrees
from leakaudit.engine.quotient import NoQuotient, Scratch, finite_difference
from leakaudit.protocol.gradients import mean_gradient
from leakaudit.protocol.target import PixelModel
from tests.leakaudit.kinked import (
    DISTANCES,
    LABELS,
    Call,
    SelfAttention,
    error,
    exact,
    network,
    never_write,
    picture,
)


@pytest.fixture(autouse=True)
def _unwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cosine takes the way of large layers, the squared distance the plain one."""
    never_write(monkeypatch)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("train", [True, False])
def test_batchnorm_and_repeated_calls(train: bool, distance: str) -> None:
    model = network(nn.ReLU(), norm=nn.BatchNorm2d, train=train)
    assert error(model, distance, times=4) < 1e-4


def test_dropout_draws_the_same_masks_in_both_passes() -> None:
    model = network(nn.Sequential(nn.RReLU(), nn.Dropout(0.3), nn.ReLU()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        assert error(model) < 1e-4


class Reciprocal(torch.autograd.Function):
    """A leaky slope whose derivative is decided anew from what was saved, where nothing can freeze it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.fmod(x, 0.5)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.where(x > 0, grad, 0.1 * grad)


UNKNOWN: dict[str, Callable[[Tensor], Tensor]] = {
    "fmod": lambda z: torch.fmod(z, 0.5).square() + z,
    "custom function": Reciprocal.apply,
    "copysign": lambda z: z * torch.copysign(torch.ones_like(z), z),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_check_passes_frozen_kinks_and_catches_unknown_ones(dtype: torch.dtype) -> None:
    def verdict(activation: nn.Module) -> bool:
        model = network(activation).to(dtype)
        x, shared = picture(1).to(dtype), mean_gradient(model, F.cross_entropy, picture(2).to(dtype), LABELS)
        try:
            _, slope = finite_difference(model, F.cross_entropy, x, LABELS, shared, engine.cosine)
        except NoQuotient:
            return False
        return agrees(slope, exact(model, x, shared, engine.cosine)[1])

    assert verdict(nn.LeakyReLU(0.2))
    assert verdict(nn.Sequential(nn.ELU(2.0), nn.MaxPool2d(2, 1)))
    for name, function in UNKNOWN.items():
        assert not verdict(Call(function)), name


def test_the_check_is_on_the_relative_error(generator: torch.Generator) -> None:
    slope = torch.randn(3, 4, generator=generator)
    other = torch.randn(3, 4, generator=generator)
    other *= slope.norm() / other.norm()
    assert agrees(slope + 0.01 * other, slope)
    assert not agrees(slope + 0.03 * other, slope)
    assert not agrees(slope * torch.nan, slope)


def test_another_way_through_the_model_is_refused() -> None:
    calls = itertools.count()
    model = network(Call(lambda z: z.relu() if next(calls) < 8 else z.abs()))
    shared = mean_gradient(model, F.cross_entropy, picture(2), LABELS)
    with pytest.raises(kinks.TapeMismatch, match="called where"):
        finite_difference(model, F.cross_entropy, picture(1), LABELS, shared, engine.cosine)


def state(model: nn.Module) -> list[Any]:
    names = [(n, p.requires_grad, p._backward_hooks) for n, p in model.named_parameters()]
    return [names, [p.data_ptr() for p in model.parameters()], [m.training for m in model.modules()]]


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("at", [None, 0, 1])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_the_model_comes_back_bitwise(at: int | None, error: type[BaseException], distance: str) -> None:
    """Also when the first or second pass is interrupted: parameters, modes, and no interception is left behind."""
    twice = nn.Conv2d(4, 4, 1)
    block = nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(0.2), twice, nn.Tanh(), twice)
    model = network(block, norm=nn.BatchNorm2d, train=True).float()
    keys = list(model.state_dict())
    kept, before = [p.detach().clone() for p in model.parameters()], state(model)
    shared, calls = mean_gradient(model, F.cross_entropy, picture(2).float(), LABELS), itertools.count()

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        if next(calls) == at:
            raise error
        return F.cross_entropy(logits, labels)

    with contextlib.nullcontext() if at is None else pytest.raises(error):
        finite_difference(
            model,
            loss,
            picture(1).float(),
            LABELS,
            shared,
            DISTANCES[distance],
            Scratch(),
        )
    assert state(model) == before
    assert list(model.state_dict()) == keys
    assert all(torch.equal(p, k) and p.grad is None for p, k in zip(model.parameters(), kept, strict=True))
    probe = torch.tensor([-1.0, 1.0])
    assert torch.equal(probe.relu(), torch.tensor([0.0, 1.0]))
    assert next(calls) == (2 if at is None else at + 1) or at is None


@pytest.mark.parametrize("distance", DISTANCES)
def test_what_is_kept_follows_the_victim_the_update_and_the_parameters(distance: str) -> None:
    """What is kept from call to call never outlives what it was made of."""
    model = network(nn.ReLU())
    updates = [mean_gradient(model, F.cross_entropy, picture(seed), LABELS) for seed in (2, 3)]
    shared = tuple(torch.stack(column) for column in zip(*updates, strict=True))

    def check(row: int) -> None:
        d, rows = DISTANCES[distance], torch.tensor([row])
        for _ in range(3):
            _, slopes = engine.take("finite", model, F.cross_entropy, picture(1)[None], LABELS[None], shared, d, rows)
        victim = tuple(s[row] for s in shared)
        assert agrees(slopes[0], exact(model, picture(1), victim, d)[1])

    check(0)
    check(1)
    for t in (*shared, *model.parameters()):
        with torch.no_grad():
            t.mul_(1.3)
        check(1)


def test_one_scratch_serves_every_distance_and_recovers() -> None:
    model, scratch = network(nn.ReLU()), Scratch()
    shared = mean_gradient(model, F.cross_entropy, picture(2), LABELS)
    _, broken = finite_difference(
        model, F.cross_entropy, picture(1) * torch.nan, LABELS, shared, engine.cosine, scratch
    )
    assert not broken.isfinite().any()
    for distance in (engine.cosine, engine.squared, engine.cosine):
        for _ in range(3):
            _, slope = finite_difference(model, F.cross_entropy, picture(1), LABELS, shared, distance, scratch)
        assert agrees(slope, exact(model, picture(1), shared, distance)[1])


def test_runs_on_equal_copies_give_the_same_bits() -> None:
    """Whatever was attacked before, on whichever copy."""
    original = network(nn.ReLU()).float()
    updates = [mean_gradient(original, F.cross_entropy, picture(seed).float(), LABELS) for seed in (2, 3)]
    shared = tuple(torch.stack(column) for column in zip(*updates, strict=True))

    def run(model: PixelModel, row: int) -> Tensor:
        x, rows = picture(1).float()[None], torch.tensor([row])
        for _ in range(5):
            arguments = (model, F.cross_entropy, x, LABELS[None], shared, engine.cosine, rows)
            x = (x - 0.1 * engine.take("finite", *arguments)[1].sign()).clamp(0, 1)
        return x

    first, second = copy.deepcopy(original), copy.deepcopy(original)
    alone = run(first, 0)
    run(original, 1)
    run(original, 0)
    assert torch.equal(run(second, 0), alone)


def test_an_update_is_not_held_longer_than_by_its_owner() -> None:
    model = network(nn.ReLU())
    shared = tuple(g[None] for g in mean_gradient(model, F.cross_entropy, picture(2), LABELS))
    held = [weakref.ref(s.untyped_storage()) for s in shared] + [weakref.ref(s) for s in shared]
    engine.take(
        "finite", model, F.cross_entropy, picture(1)[None], LABELS[None], shared, engine.cosine, torch.tensor([0])
    )
    del shared
    gc.collect()
    assert not any(reference() is not None for reference in held)


def test_parameters_out_of_reach_and_losses_that_ignore_the_picture() -> None:
    model = network(nn.ReLU())
    model.network.register_parameter("unused", nn.Parameter(torch.ones(3, dtype=torch.float64)))
    assert error(model) < 1e-4

    def constant(logits: Tensor, labels: Tensor) -> Tensor:
        return 0 * logits.sum().detach() + sum(p.sum() for p in model.parameters())  # type: ignore[return-value]

    shared = tuple(torch.zeros_like(p) for p in model.parameters())
    _, slope = finite_difference(model, constant, picture(1), LABELS, shared, engine.squared)
    assert float(slope.abs().max()) == 0


class Rows(nn.LSTM):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        found: Tensor = super().forward(x.flatten(2).transpose(1, 2))[0].transpose(1, 2).reshape(x.shape)
        return found


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "strided": lambda: nn.Conv2d(4, 6, (2, 3), stride=(2, 1), padding=(2, 2), dilation=(1, 2), bias=False),
    "grouped": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=2),
    "same": lambda: nn.Conv2d(4, 4, (1, 3), padding="same"),
    "reflected": lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    "dense on the last dimension": lambda: nn.Linear(4, 4),
    "used twice": lambda: nn.Sequential(*[nn.Conv2d(4, 4, 1)] * 2),
    "weights normalised": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)),
    "recurrent": lambda: Rows(4, 4, batch_first=True),
    "attention": lambda: SelfAttention(nn.MultiheadAttention(4, 2)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_kinds_of_layers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through their factors where they have them, and otherwise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = network(nn.Sequential(nn.LeakyReLU(0.1), LAYERS[kind]()))
    assert error(model, times=3) < 1e-4
    monkeypatch.undo()
    assert error(model) < 1e-4


def test_a_weight_used_elsewhere_too() -> None:
    class Normed(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) / self.weight.norm()

    model = network(nn.Sequential(nn.ReLU(), Normed(4, 4, 1)))
    scratch = Scratch()
    shared = mean_gradient(model, F.cross_entropy, picture(2), LABELS)
    _, slope = finite_difference(model, F.cross_entropy, picture(1), LABELS, shared, engine.cosine, scratch)
    assert agrees(slope, exact(model, picture(1), shared, engine.cosine)[1])


def test_large_layers_are_never_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    made, products = [], Ghost.products

    def noted(layer: Ghost, *args: Any) -> Any:
        made.append(layer.weight)
        return products(layer, *args)

    monkeypatch.setattr(Ghost, "products", noted)
    layers = (nn.Conv2d(2, 64, 2), nn.Flatten(), nn.Linear(576, 200), nn.ReLU(), nn.Linear(200, 3))
    model = PixelModel(nn.Sequential(*layers), (0.4, 0.5), (0.2, 0.3))
    shared = mean_gradient(model, F.cross_entropy, picture(2).float(), LABELS)
    for _ in range(3):
        _, slope = finite_difference(model, F.cross_entropy, picture(1).float(), LABELS, shared, engine.cosine)
        assert agrees(slope, exact(model, picture(1).float(), shared, engine.cosine)[1])
    assert made == [2, 4] * 3  # the convolution has nine positions, on few weights
