"""Sharing only the sign of every entry of the gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from leakaudit.protocol.defense import Defense
from leakaudit.protocol.gradients import Gradients
from leakaudit.protocol.registry import register_defense


@register_defense
@dataclass(frozen=True, kw_only=True)
class Sign(Defense):
    """g̃ = sign(g): signSGD (Bernstein et al. 2018, algorithm 1).

    The server receives −1, 0 or 1 for every entry, in the shapes of the parameters, and no magnitude at all: its step
    must come from its own learning rate (Adam divides the scale out). Only a gradient of exactly zero gives 0, as a
    dead unit's does, and that is seen. There is nothing to set, so there is one strength.
    """

    name: ClassVar[str] = "sign"
    summary: ClassVar[str] = "share only the sign of every entry"
    source: ClassVar[str] = "Bernstein et al.: signSGD, ICML 2018 (arXiv 1802.04434)"
    adaptive: ClassVar[tuple[str, ...]] = ("sign-matching", "linkage")
    unproven: ClassVar[str] = "what the signs of an update tell of its records"

    def transform_update(self, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
        """Replace every entry by its sign."""
        return tuple(g.sign() for g in gradients)

    def facts(self, records: int, batch_size: int, steps: int) -> dict[str, str | float]:
        """Return what an entry tells at most: one of three values. Nothing is proven about a record's privacy."""
        return {"bits per parameter, at most": round(math.log2(3), 2), "privacy proven": "none"}
