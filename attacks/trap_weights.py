"""Trap weights: a malicious server sets a first dense layer so that each unit fires for about one record of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from leakaudit.attacks.analytic import first_dense
from leakaudit.attacks.imprint import own_records
from leakaudit.attacks.peeling import Peeling
from leakaudit.protocol.attack import Beforehand
from leakaudit.protocol.gradients import in_mode
from leakaudit.protocol.registry import register_attack
from leakaudit.protocol.target import PixelModel

SHARES = tuple(0.8 + 0.01 * k for k in range(21))  # of a positive weight's size in a negative one's
SIGMA = 0.5  # of the negative weights
OWN = 1000  # auxiliary records by which the share is chosen


def trapped(rows: int, pixels: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return negative weights and, elsewhere, the sizes of the positive ones (rows, pixels), zero where the others are.

    A random half of a row is −|N(0, σ²)|, the other half holds the same sizes in another order (Boenisch et al.).
    """
    half = pixels // 2
    order = torch.rand((rows, pixels), generator=generator, device=generator.device).argsort(1)
    sizes = SIGMA * torch.randn((rows, half), generator=generator, device=generator.device).abs()
    mixed = sizes.gather(1, torch.rand(sizes.shape, generator=generator, device=generator.device).argsort(1))
    negative, positive = torch.zeros(rows, pixels), torch.zeros(rows, pixels)
    negative.scatter_(1, order[:, :half], -sizes)
    positive.scatter_(1, order[:, half : 2 * half], mixed)
    return negative, positive


def alone(fires: Tensor, batch: int) -> float:
    """Return the share of records (n, rows) that fire some row alone among every `batch` of them in turn."""
    count = len(fires) // batch * batch
    groups = fires[:count].view(-1, batch, fires.shape[1])
    single = groups & (groups.sum(1, keepdim=True) == 1)
    return float(single.any(2).double().mean()) if count else 0.0


@register_attack
@dataclass(frozen=True, kw_only=True)
class TrapWeights(Peeling):
    """Set the weights of the first dense layer so that a unit seldom fires, and peel (arXiv 2112.02918).

    Half of each unit's weights, a random half, are negative, and the others positive but a little smaller, so that a
    picture in [0, 1] seldom brings it above zero: where one record of the batch does, ∂W/∂b is that record. How much
    smaller is chosen on auxiliary records, as the share under which most of them are alone in some row of batches of
    this size. The architecture stays as it is; the layer's own weights and biases are overwritten, its biases so that
    pictures are seen as they are before the model's normalisation. What fires is read off as `peeling` does.

    It applies where `peeling` does: the first layer with weights must be dense and fed the picture.
    """

    name: ClassVar[str] = "trap-weights"
    summary: ClassVar[str] = "malicious server: a first dense layer whose units each fire for few records, and peeling"
    source: ClassVar[str] = "Boenisch et al. 2021 (When the Curious Abandon Honesty)"
    family: ClassVar[str] = "malicious-server"
    requires: ClassVar[frozenset[str]] = frozenset({"model_control", "auxiliary"})
    examines: ClassVar[frozenset[str]] = frozenset({"anything"})

    def plant(self, model: PixelModel, known: Beforehand, generator: torch.Generator) -> PixelModel:
        """Return the model with trap weights in its first dense layer."""
        own = own_records(known.auxiliary, generator, OWN).images
        with in_mode(model, "eval"):
            layer = first_dense(model, own[:8])
        negative, positive = (w.to(layer.weight) for w in trapped(layer.out_features, layer.in_features, generator))
        flat = own.flatten(1).to(layer.weight)
        down, up = flat @ negative.T, flat @ positive.T
        size = min(known.batch_size, len(flat))
        share = max(SHARES, key=lambda s: alone(down + s * up > 0, size))
        weights = negative + share * positive
        mean, std = (t.expand(1, *known.input_shape).flatten() for t in (model.mean, model.std))
        with torch.no_grad():  # W·x = (W·std)·(x − mean)/std + W·mean
            layer.weight.copy_(weights * std)
            layer.bias.copy_(weights @ mean)
        return model
