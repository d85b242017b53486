"""Small networks whose units lie at their kinks, and the slopes that float64 autograd finds there."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakaudit.engine import matching as engine
from leakaudit.engine import quotient as finite
from leakaudit.engine.quotient import NoQuotient, Scratch, finite_difference
from leakaudit.protocol.gradients import Gradients, mean_gradient
from leakaudit.protocol.target import PixelModel

BATCH, CLASSES = 2, 3
DISTANCES: dict[str, engine.Distance] = {"cosine": engine.cosine, "squared": engine.squared}
KINKS = (0.0, 0.1, 0.5, -0.5, 1.0, -1.0, 3.0, -3.0, 6.0)


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


def never_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every layer that can take the way of those with few positions."""
    monkeypatch.setattr(finite, "WORTH", 1e9)


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
    """Return the relative error of the quotient's slope at the picture on which the shifts were settled.

    Infinite where the quotient itself says that there is none.
    """
    shared = mean_gradient(model, F.cross_entropy, picture(2), LABELS)
    d = DISTANCES[distance]
    scratch = Scratch()
    for _ in range(times):
        before = torch.get_rng_state()
        try:
            value, slope = finite_difference(model, F.cross_entropy, picture(1), LABELS, shared, d, scratch)
        except NoQuotient:
            return math.inf
        after = torch.get_rng_state()
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(before)
            expected, wanted = exact(model, picture(1), shared, d)
            assert torch.equal(after, torch.get_rng_state())  # as many draws as the exact way
    torch.testing.assert_close(value, expected, rtol=1e-7, atol=1e-12)
    assert float(wanted.norm()) > 0
    return float((slope - wanted).norm() / wanted.norm())
