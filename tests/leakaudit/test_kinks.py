"""The difference quotient with frozen kinks against a double backward in float64, with many units at their kinks."""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakaudit import engine, factors, kinks
from leakaudit.client import mean_gradient
from leakaudit.defense import Gradients
from leakaudit.finite import Scratch, agrees, finite_difference
from leakaudit.target import PixelModel

BATCH, CLASSES = 2, 3
DISTANCES: dict[str, engine.Distance] = {"cosine": engine.cosine, "squared": engine.squared}
KINKS = (0.0, 0.1, 0.5, -0.5, 1.0, -1.0, 3.0, -3.0, 6.0)
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "Threshold": (0.1, 0.3),
    "GLU": (1,),
    "Softmin": (1,),
    "Softmax": (1,),
    "LogSoftmax": (1,),
    "CELU": (1.5,),
    "MultiheadAttention": (4, 2),
}
# Their first derivative jumps: unfrozen, the quotient is wrong.
JUMPS = {"Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyReLU", "PReLU", "RReLU", "ReLU", "ReLU6"}
JUMPS |= {"SELU", "Softshrink", "Threshold"}


@pytest.fixture(autouse=True)
def _factored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the small layers here take the way of large ones, too; the squared distance goes the plain way."""
    monkeypatch.setattr(factors, "LEAST", 1)
    monkeypatch.setattr(factors, "WORTH", 1e9)


class Shift(nn.Module):
    """Puts most units within 1e-11 of a kink, on either side, at the weights and picture it first sees."""

    offset: Tensor

    def __init__(self, near: tuple[float, ...]) -> None:
        super().__init__()
        self.near = torch.tensor(near, dtype=torch.float64)
        self.register_buffer("offset", torch.empty(0, dtype=torch.float64))

    def forward(self, z: Tensor) -> Tensor:
        if not self.offset.numel():
            generator = torch.Generator().manual_seed(0)
            kink = self.near[torch.randint(len(self.near), z.shape, generator=generator)]
            aimed = kink + 1e-11 * torch.randn(z.shape, generator=generator, dtype=torch.float64)
            keep = torch.rand(z.shape, generator=generator) < 0.3
            self.offset = torch.where(keep, torch.zeros_like(z), aimed - z).detach()
        return z + self.offset


class Call(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class SelfAttention(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        found: Tensor = self.block(tokens, tokens, tokens)[0].transpose(1, 2).reshape(x.shape)
        return found


def network(
    activation: nn.Module,
    near: tuple[float, ...] = KINKS,
    norm: Callable[[int], nn.Module] = lambda n: nn.Identity(),
    train: bool = True,
) -> PixelModel:
    """Two convolutions, each followed by a norm, a shift to the kinks and the activation; one dense layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        shape = torch.Size((BATCH, 2, 4, 4))
        for _ in range(2):
            layers += [nn.Conv2d(shape[1], 4, 3, padding=1), norm(4), Shift(near), copy.deepcopy(activation)]
            with torch.no_grad():
                shape = copy.deepcopy(activation).double()(torch.rand(BATCH, 4, *shape[2:], dtype=torch.float64)).shape
        layers += [nn.Flatten(), nn.Linear(shape[1:].numel(), CLASSES)]
        model = PixelModel(nn.Sequential(*layers), (0.4, 0.5), (0.2, 0.3)).double()
        model.train(train)
        with torch.no_grad():
            model(picture(1))  # the shifts settle
    return model


def picture(seed: int) -> Tensor:
    return torch.rand(BATCH, 2, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LABELS = torch.tensor([0, 2])


def twice_differentiable(model: nn.Module) -> nn.Module:
    """Return a copy in which Hardsigmoid, of which torch has no second derivative, is written as a clamp."""
    model = copy.deepcopy(model)
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.Hardsigmoid):
                setattr(module, name, Call(lambda z: (z / 6 + 0.5).clamp(0, 1)))
    return model


def exact(model: nn.Module, x: Tensor, shared: Gradients, distance: engine.Distance) -> tuple[Tensor, Tensor]:
    model, x = twice_differentiable(model), x.clone().requires_grad_(True)
    parameters = [p for p in model.parameters() if p.requires_grad]
    with engine.twice_differentiable():
        loss = F.cross_entropy(model(x), LABELS)
        found = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True, materialize_grads=True)
    value, cotangent = distance(tuple(g.detach() for g in found), shared)
    reached = [(g, c) for g, c in zip(found, cotangent, strict=True) if g.requires_grad]
    (slope,) = torch.autograd.grad([g for g, _ in reached], x, [c for _, c in reached])
    return value, slope


def error(model: PixelModel, distance: str = "cosine", times: int = 1) -> float:
    """Return the relative error of the quotient's slope at the picture on which the shifts were settled."""
    shared = mean_gradient(model, F.cross_entropy, picture(2), LABELS)
    d = DISTANCES[distance]
    scratch = Scratch()
    for _ in range(times):
        before = torch.get_rng_state()
        value, slope = finite_difference(model, F.cross_entropy, picture(1), LABELS, shared, d, scratch)
        after = torch.get_rng_state()
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(before)
            expected, wanted = exact(model, picture(1), shared, d)
            assert torch.equal(after, torch.get_rng_state())  # as many draws as the exact way
    torch.testing.assert_close(value, expected, rtol=1e-7, atol=1e-12)
    assert float(wanted.norm()) > 0
    assert agrees(slope, wanted) == (float((slope - wanted).norm() / wanted.norm()) <= 1e-4)
    return float((slope - wanted).norm() / wanted.norm())


def activation(name: str, **settings: Any) -> nn.Module:
    made: nn.Module = getattr(nn, name)(*ARGUMENTS.get(name, ()), **settings)
    return SelfAttention(made) if isinstance(made, nn.MultiheadAttention) else made


ALL = list(torch.nn.modules.activation.__all__)
INPLACE = [name for name in ALL if "inplace" in inspect.signature(getattr(nn, name).__init__).parameters]


@pytest.mark.parametrize("name", ALL)
def test_every_activation_of_torch(name: str) -> None:
    """All of torch.nn's, by its own list. Softmax and its kin, GLU and attention are smooth and need nothing."""
    assert error(network(activation(name))) < 1e-4


@pytest.mark.parametrize("name", INPLACE)
def test_every_activation_in_place(name: str) -> None:
    assert error(network(activation(name, inplace=True)), "squared") < 1e-4


@pytest.mark.parametrize("name", sorted(JUMPS))
def test_without_freezing_the_quotient_is_wrong(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the units do lie at the kinks, and the tests above would see a kink that is not frozen."""
    monkeypatch.setattr(kinks, "FUNCTIONS", {})
    assert error(network(activation(name))) > 1e-2


FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "torch.relu": torch.relu,
    "Tensor.relu": Tensor.relu,
    "relu_": lambda z: torch.relu_(z.clone()),
    "relu_, its argument used again": lambda z: (lambda t: t.relu_() + t)(z * 1),
    "leaky_relu_": lambda z: F.leaky_relu_(z.clone(), 0.3),
    "negative slope": lambda z: F.leaky_relu(z, -0.5),
    "hardtanh_": lambda z: F.hardtanh_(z.clone(), -0.5, 0.5),
    "threshold_": lambda z: F.threshold_(z.clone(), 0.5, 2.0),
    "elu_": lambda z: F.elu_(z.clone(), 2.0),
    "celu": lambda z: torch.celu(z, 0.5),
    "selu_": lambda z: torch.selu_(z.clone()),
    "clamp": lambda z: z.clamp(-0.5, 1),
    "clamp by keyword": lambda z: torch.clamp(z, min=0.1),
    "clamp_": lambda z: z.clone().clamp_(max=0.5),
    "clip": lambda z: torch.clip(z, -1, 1),
    "clamp_min": lambda z: z.clamp_min(0.0),
    "abs": abs,
    "abs_": lambda z: z.clone().abs_(),
    "softsign": F.softsign,
    "maximum": lambda z: torch.maximum(z, 0.1 * z),
    "minimum": lambda z: torch.minimum(z, 3 * z + 0.1),
    "max of two": lambda z: torch.max(z, -z),
    "max, broadcast": lambda z: torch.maximum(z, z.mean(1, keepdim=True)),
    "max along": lambda z: z.max(1)[0][:, None] * z.sigmoid(),
    "max along, kept": lambda z: torch.max(z, dim=1, keepdim=True).values * z.sigmoid(),
    "min of all": lambda z: z - z.min(),
    "amax": lambda z: z - z.amax((2, 3), keepdim=True),
    "amin": lambda z: torch.amin(z, dim=1)[:, None] * z.tanh(),
    "median": lambda z: z * z.median(1, keepdim=True).values,
    "sort": lambda z: z.sort(1, descending=True).values,
    "topk": lambda z: z.topk(2, 1).values,
    "kthvalue": lambda z: z.kthvalue(2, 1).values[:, None] + z.sin(),
    "cummax": lambda z: z.cummax(1).values,
    "where": lambda z: torch.where(z > 0, z, 0.1 * z),
    "mask": lambda z: z * (z >= 0.5),
    "masked_fill": lambda z: z.masked_fill(torch.lt(z, 0), 0.2),
    "sign": lambda z: z * z.sign() + z.square(),
    "detached": lambda z: z * z.detach().cos(),
    "straight-through rounding": lambda z: z + (z.round() - z).detach() * z,
}


@pytest.mark.parametrize("form", FORMS)
def test_functional_forms(form: str) -> None:
    assert error(network(Call(FORMS[form]))) < 1e-4


def in_three(pool: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda z: pool(z[:, None])[:, 0]


def unpooled(z: Tensor) -> Tensor:
    pooled, indices = F.max_pool2d(z, 2, return_indices=True)
    return F.max_unpool2d(pooled, indices, 2)


POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "max_pool1d": lambda z: F.max_pool1d(z.flatten(2), 2).unflatten(2, (2, -1)),
    "torch.max_pool1d": lambda z: torch.max_pool1d(z.flatten(2), 2).unflatten(2, (2, -1)),
    "max_pool2d, overlapping": nn.MaxPool2d(3, stride=1, padding=1),
    "max_pool2d, dilated": nn.MaxPool2d(2, stride=1, padding=1, dilation=2),
    "torch.max_pool2d": lambda z: torch.max_pool2d(z, 2, 1),
    "max_pool2d, unpooled": unpooled,
    "max_pool3d": in_three(nn.MaxPool3d(2, stride=1)),
    "adaptive_max_pool1d": lambda z: F.adaptive_max_pool1d(z.flatten(2), 4).unflatten(2, (2, 2)),
    "torch.adaptive_max_pool1d": lambda z: torch.adaptive_max_pool1d(z.flatten(2), 4)[0].unflatten(2, (2, 2)),
    "adaptive_max_pool2d": nn.AdaptiveMaxPool2d(2),
    "adaptive_max_pool2d, indices": lambda z: F.adaptive_max_pool2d(z, 2, return_indices=True)[0],
    "adaptive_max_pool3d": in_three(nn.AdaptiveMaxPool3d((3, 2, 2))),
    "fractional_max_pool2d": lambda z: F.fractional_max_pool2d(F.pad(z, (1, 1, 1, 1)), 2, 3),
}


@pytest.mark.parametrize("pool", POOLS)
def test_pools_of_near_ties(pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(Call(POOLS[pool]), near=(0.0,))
    assert error(model) < 1e-4
    monkeypatch.setattr(kinks, "FUNCTIONS", {})
    assert error(model) > 1e-2


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
        _, slope = finite_difference(model, F.cross_entropy, x, LABELS, shared, engine.cosine)
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
    assert not agrees(slope.double() + 0.001 * other, slope.double())


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
def test_a_scratch_follows_another_victim_and_another_model(distance: str) -> None:
    """What is kept from call to call never outlives what it was made of."""
    model, scratch = network(nn.ReLU()), Scratch()
    one, two = (mean_gradient(model, F.cross_entropy, picture(seed), LABELS) for seed in (2, 3))

    def check(shared: Gradients) -> None:
        for _ in range(3):
            _, slope = finite_difference(
                model, F.cross_entropy, picture(1), LABELS, shared, DISTANCES[distance], scratch
            )
        assert agrees(slope, exact(model, picture(1), shared, DISTANCES[distance])[1])

    check(one)
    check(two)
    for t in (*two, *model.parameters()):
        with torch.no_grad():
            t.mul_(1.3)
        check(two)


def test_parameters_out_of_reach_and_losses_that_ignore_the_picture() -> None:
    model = network(nn.ReLU())
    model.network.register_parameter("unused", nn.Parameter(torch.ones(3, dtype=torch.float64)))
    assert error(model) < 1e-4

    def constant(logits: Tensor, labels: Tensor) -> Tensor:
        return 0 * logits.sum().detach() + sum(p.sum() for p in model.parameters())  # type: ignore[return-value]

    shared = tuple(torch.zeros_like(p) for p in model.parameters())
    _, slope = finite_difference(model, constant, picture(1), LABELS, shared, engine.squared)
    assert float(slope.abs().max()) == 0


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "strided": lambda: nn.Conv2d(4, 6, (2, 3), stride=(2, 1), padding=(2, 2), dilation=(1, 2), bias=False),
    "grouped": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=2),
    "same": lambda: nn.Conv2d(4, 4, (1, 3), padding="same"),
    "reflected": lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    "dense on the last dimension": lambda: nn.Linear(4, 4),
    "used twice": lambda: nn.Sequential(*[nn.Conv2d(4, 4, 1)] * 2),
    "weights normalised": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)),
    "attention": lambda: SelfAttention(nn.MultiheadAttention(4, 2)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_kinds_of_layers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through their factors where they have them, and otherwise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = network(nn.Sequential(nn.LeakyReLU(0.1), LAYERS[kind]()))
    assert error(model, times=3) < 1e-4
    monkeypatch.setattr(factors, "LEAST", 1 << 15)
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
    assert scratch.dense


def test_large_layers_are_never_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    made, settle = [], factors.Factors.settle

    def noted(call: factors.Factors, gradient: Tensor) -> None:
        made.append(call.weight)
        settle(call, gradient)

    monkeypatch.setattr(factors.Factors, "settle", noted)
    layers = (nn.Conv2d(2, 64, 4), nn.Flatten(), nn.Linear(64, 2100), nn.ReLU(), nn.Linear(2100, 3))
    model = PixelModel(nn.Sequential(*layers), (0.4, 0.5), (0.2, 0.3))
    shared = mean_gradient(model, F.cross_entropy, picture(2).float(), LABELS)
    for _ in range(3):
        _, slope = finite_difference(model, F.cross_entropy, picture(1).float(), LABELS, shared, engine.cosine)
        assert agrees(slope, exact(model, picture(1).float(), shared, engine.cosine)[1])
    assert made == [2, 2, 2]  # of 2,048, 134,400 and 6,300 weights
