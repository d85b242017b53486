"""Distances between a candidate's gradient ĝ and a shared one g, each with its cotangent ∂d/∂ĝ in closed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from leakaudit.defense import Gradients

# (candidate's gradient, shared gradient) -> (value, cotangent ∂value/∂candidate's gradient)
Distance = Callable[[Gradients, Gradients], tuple[Tensor, Gradients]]

_energies: Any = WeakTensorKeyDictionary()  # an update's first tensor -> which tensors these were, and every ‖g‖²


def inner(a: Gradients, b: Gradients) -> Tensor:
    """Return ⟨a, b⟩ over all parameters."""
    return torch.stack([torch.dot(x.flatten(), y.flatten()) for x, y in zip(a, b, strict=True)]).sum()


def energy(shared: Gradients) -> Tensor:
    """Return ‖g‖² (V,) of every shared update, each tensor (V, *p). Read once per update: it does not change."""
    marks = tuple((id(s), s._version) for s in shared)
    known = _energies.get(shared[0])
    if known is None or known[0] != marks:
        rows = zip(*(s.detach().flatten(1).unbind() for s in shared), strict=True)
        known = _energies[shared[0]] = marks, torch.stack([inner(row, row) for row in rows])
    found: Tensor = known[1]
    return found


@dataclass(frozen=True)
class Span:
    """A distance of ⟨ĝ, g⟩, ‖ĝ‖² and ‖g‖² alone. Its cotangent is αg + βĝ.

    `coefficients` takes the three as tensors of one shape and returns value, α and β in that shape; α is never zero.
    """

    coefficients: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]

    def __call__(self, candidate: Gradients, shared: Gradients) -> tuple[Tensor, Gradients]:
        """Return the value and the cotangent αg + βĝ."""
        products = inner(candidate, shared), inner(candidate, candidate), inner(shared, shared)
        value, alpha, beta = self.coefficients(*products)
        pairs = zip(candidate, shared, strict=True)
        return value, tuple(torch.addcmul(s * alpha, c, beta) for c, s in pairs)

    def direction(self, candidate: Gradients, shared: Gradients, other: Tensor) -> tuple[Tensor, Tensor, Gradients]:
        """Return value, α and g + (β/α)ĝ, so that the cotangent is α times it, for `other` = ‖g‖².

        One pass over the parameters, where memory is what costs; α is left to what the cotangent leads to.
        """
        value, alpha, beta = self.coefficients(inner(candidate, shared), inner(candidate, candidate), other)
        return value, alpha, torch._foreach_add(shared, candidate, alpha=float(beta / alpha))


def squared(candidate: Gradients, shared: Gradients) -> tuple[Tensor, Gradients]:
    """‖ĝ − g‖² and its cotangent 2(ĝ − g) (DLG). Not from inner products: near zero their rounding would show."""
    gap = tuple(c - s for c, s in zip(candidate, shared, strict=True))
    return inner(gap, gap), tuple(2 * g for g in gap)


def _cosine(dot: Tensor, square: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    norms = square.sqrt().clamp_min(1e-15) * other.sqrt().clamp_min(1e-15)
    similarity = dot / norms
    return 1 - similarity, -1 / norms, similarity / square.clamp_min(1e-30)


# 1 − cos(ĝ, g) and its cotangent −(g/‖g‖ − cos·ĝ/‖ĝ‖)/‖ĝ‖ (inverting gradients)
cosine = Span(_cosine)
