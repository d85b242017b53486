"""The difference quotient with frozen kinks against a double backward in float64, with many units at their kinks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakaudit.engine import kinks
from tests.leakaudit.kinked import (
    Call,
    SelfAttention,
    error,
    network,
    never_write,
)

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
def _unwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cosine takes the way of large layers, the squared distance the plain one."""
    never_write(monkeypatch)


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
