"""PRECODE: a variational bottleneck before the last layer, so that gradients depend on noise drawn in between."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakaudit.engine.dense import dense_at_work
from leakaudit.errors import UserError
from leakaudit.protocol.defense import Defense, state
from leakaudit.protocol.gradients import in_mode, records_per_loss
from leakaudit.protocol.registry import register_defense
from leakaudit.protocol.target import PixelModel, Target
from leakaudit.work.memory import need
from leakaudit.work.seeding import forked

MEND = "precode needs a last dense layer to stand before: scan a model that ends in one, or leave it out."
LEAST = 1e-6  # of σ: its KL has the slope 1/σ


class _Penalty(torch.autograd.Function):
    """The identity on (μ, σ) whose backward pass adds weight·∂KL(N(μ, σ²) ‖ N(0, 1))/∂(μ, σ) = weight·(μ, σ − 1/σ).

    Only the first pass back from a forward one adds it: that is the loss's gradient. A second derivative comes through
    here again on its way to the picture, with cotangents of that gradient, to which nothing must be added. Under
    `torch.func` there is no telling the two apart, so it cannot be vectorised and raises a RuntimeError there.
    """

    @staticmethod
    def forward(ctx: Any, mean: Tensor, deviation: Tensor, weight: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(mean, deviation)
        ctx.weight, ctx.added = weight, False
        return mean.clone(), deviation.clone()

    @staticmethod
    def backward(ctx: Any, on_mean: Tensor, on_deviation: Tensor) -> tuple[Tensor, Tensor, None]:
        if ctx.added:
            return on_mean, on_deviation, None
        ctx.added = True
        mean, deviation = ctx.saved_tensors
        return on_mean + ctx.weight * mean, on_deviation + ctx.weight * (deviation - 1 / deviation), None


class Bottleneck(nn.Module):
    """A last dense layer with the variational bottleneck before it: (N, D) to logits (N, K).

    (μ, s) = encoder(h), σ = softplus(s) + 1e-6, z = μ + σ⊙ε, logits = head(decoder(z)). ε is drawn from torch's global
    generator, as dropout draws, wherever gradients are recorded, in train and eval mode alike: a client that computes
    its update always draws. Without gradients (`torch.no_grad()`, as accuracy is measured) z = μ. `noise` (K,) or
    (N, K) takes the place of ε where it is set.

    The loss is that of the user's model, to whose gradient β·∂KL(N(μ, σ²) ‖ N(0, I)), in nats and averaged over the
    loss's records, is added on the way back: no signature of a loss changes, and the value of the loss is without it.
    """

    def __init__(self, head: nn.Linear, bottleneck: int, beta: float) -> None:
        super().__init__()
        self.encoder = nn.Linear(head.in_features, 2 * bottleneck).to(head.weight)
        self.decoder = nn.Linear(bottleneck, head.in_features).to(head.weight)
        self.head = head
        self.beta = beta
        self.noise: Tensor | None = None

    def statistics(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return μ and σ (N, K) of representations (N, D)."""
        mean, raw = self.encoder(h).chunk(2, dim=-1)
        return mean, F.softplus(raw) + LEAST

    def forward(self, h: Tensor) -> Tensor:
        """Return logits for representations `h` (N, D)."""
        mean, deviation = self.statistics(h)
        if torch.is_grad_enabled():
            mean, deviation = _Penalty.apply(mean, deviation, self.beta / records_per_loss(len(h)))
        if self.noise is not None:
            mean = mean + deviation * self.noise
        elif torch.is_grad_enabled():
            mean = mean + deviation * torch.randn(deviation.shape).to(deviation)  # the same on every device
        return self.head(self.decoder(mean))  # type: ignore[no-any-return]


def bottlenecks(model: PixelModel) -> dict[str, Bottleneck]:
    """Return the bottlenecks of a model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Bottleneck)}


@contextmanager
def with_noise(bottleneck: Bottleneck, noise: Tensor) -> Iterator[None]:
    """Run the enclosed code with this ε, (K,) or (N, K), instead of drawn ones; zeros give z = μ."""
    before, bottleneck.noise = bottleneck.noise, noise
    try:
        yield
    finally:
        bottleneck.noise = before


@register_defense
@dataclass(frozen=True, kw_only=True)
class Precode(Defense):
    """Insert z = μ + σ⊙ε, ε ~ N(0, I), before the last dense layer, and train with ℓ + β·KL(N(μ, σ²) ‖ N(0, I)).

    Every gradient from the bottleneck on, and what flows back through it, depends on an ε that the server does not see:
    the gradients of a candidate do not come to those shared, not even for the private record itself. `bottleneck` is
    K (at least 1) and `beta` β (at least 0; else a ValueError); the defaults are the paper's. The layers are those of
    `Bottleneck`. A model without a last dense layer that takes one vector per record is a UserError.

    What is attacked is the model as it was given with the new layers untrained; where accuracy is measured they are
    trained with the rest, from the start, as in the paper.
    """

    name: ClassVar[str] = "precode"
    summary: ClassVar[str] = "a variational bottleneck before the last layer, which makes gradients stochastic"
    source: ClassVar[str] = "Scheliga, Mäder, Seeland: PRECODE, WACV 2022 (arXiv 2108.04725)"
    adaptive: ClassVar[tuple[str, ...]] = ("omitting-layers",)
    unproven: ClassVar[str] = "what an update tells of its records: layers before the bottleneck are shared as they are"

    bottleneck: int = 256
    beta: float = 1e-3
    head: str = state("")  # the name of the last dense layer, found by `fit`

    def __post_init__(self) -> None:
        if self.bottleneck < 1:
            raise ValueError(f"bottleneck must be at least 1, not {self.bottleneck}.")
        if not self.beta >= 0:
            raise ValueError(f"beta must be at least 0, not {self.beta}.")

    def fit(self, target: Target, generator: torch.Generator) -> Defense:
        """Find the last dense layer at work; nothing is learned."""
        with in_mode(target.model, "eval"), torch.no_grad():
            layers = dense_at_work(target.model, target.private.images[:2].to(target.device))
        if not layers:
            raise UserError(MEND)
        return replace(self, head=layers[-1].name)

    def transform_model(self, model: PixelModel, generator: torch.Generator) -> PixelModel:
        """Return a copy with the bottleneck before its last dense layer, initialised by `generator`."""
        found = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        name = self.head or (found[-1] if found else "")
        if name not in found:
            raise UserError(MEND)
        changed = copy.deepcopy(model)
        head = changed.get_submodule(name)
        assert isinstance(head, nn.Linear)
        size = 4 * (3 * head.in_features + 2) * self.bottleneck
        told = f"{self.bottleneck} latent entries and their gradients"
        need(4 * size, told, "of them (bottleneck)", head.weight.device)
        seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
        with forked(seed):
            inserted = Bottleneck(head, self.bottleneck, self.beta)
        parent, _, child = name.rpartition(".")
        setattr(changed.get_submodule(parent), child, inserted.train(head.training))
        return changed

    def touched(self, model: PixelModel, pictures: Tensor) -> frozenset[str]:
        """Return the names of the bottleneck's parameters and of the last layer's."""
        return frozenset(f"{at}.{name}" for at, b in bottlenecks(model).items() for name, _ in b.named_parameters())

    def facts(self, records: int, batch_size: int, steps: int) -> dict[str, str | float]:
        """Say that nothing is proven, and in which state the new layers are attacked."""
        return {
            "privacy proven": "none: layers before the bottleneck are shared as they are",
            "the bottleneck's weights": "untrained where attacked, trained with the rest where accuracy is measured",
        }
