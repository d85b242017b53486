"""A surrogate for many local steps: one gradient, at weights between those sent out and those that came back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from leakaudit.attacks.inverting_gradients import InvertingGradients, Match
from leakaudit.attacks.unrolled import check_local
from leakaudit.engine import matching as engine
from leakaudit.engine.stacked import twice_differentiable
from leakaudit.protocol.attack import Attack, Needs, Reconstruction
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.gradients import parameters_of, with_parameters
from leakaudit.protocol.registry import register_attack
from leakaudit.protocol.target import PixelModel
from leakaudit.result.rules import LOCAL
from leakaudit.work.memory import in_pieces

RATE = 0.01  # by which α moves at first, less and less


def halfway(steps: int) -> float:
    """Return the mean of where the gradients of so many equal steps were taken, on the way from 0 to 1."""
    return (steps - 1) / (2 * steps)


@register_attack
@dataclass(frozen=True, kw_only=True)
class Surrogate(InvertingGradients):
    """Minimise 1 − cos(∇ℓ(w₀ + α(w_E − w₀); x̂), w₀ − w_E) + tv·R(x̂) over pictures and α in [0, 1].

    Surrogate model extension (SME, Zhu et al. 2023, arXiv 2306.00127): w₀ − w_E is about the mean of the steps'
    gradients, and on a short way all of them are near that at some weights between its ends, both of which the server
    knows. A slope costs one gradient however many steps there are, where `through-local-steps` costs all of them. α
    begins at the mean of the steps' places (`halfway`) and follows its own slope, one for all restarts of a victim.
    """

    family: ClassVar[str] = "matching"
    name: ClassVar[str] = "surrogate"
    summary: ClassVar[str] = "many local steps: match one gradient at weights between those sent out and returned"
    source: ClassVar[str] = "Zhu et al. 2023 (SME)"
    covers: ClassVar[frozenset[str]] = frozenset({"local-steps"})
    needs: ClassVar[Needs] = Needs(local_steps=True)
    examines: ClassVar[frozenset[str]] = frozenset({LOCAL})

    def matching(
        self, model: PixelModel, update: SharedUpdate, distance: engine.Distance, generator: torch.Generator
    ) -> Match:
        """Return the match at the surrogate's weights. Raises NotApplicable where an update is one gradient."""
        check_local(update)
        parameters = parameters_of(model)[1]
        places = torch.full((update.victims,), halfway(update.steps)).to(model.mean)
        seen = torch.zeros_like(places)

        def trial(x: Tensor, y: Tensor, row: int) -> tuple[Tensor, Tensor, Tensor]:
            x, place = x.detach().requires_grad_(True), places[row].clone().requires_grad_(True)
            wanted = tuple(s[row] for s in update.gradients)
            weights = [p.detach() - place * update.moved * g for p, g in zip(parameters, wanted, strict=True)]
            with torch.enable_grad(), with_parameters(model, parameters, weights), twice_differentiable():
                outcome = update.loss(model(x), y)
                value, (slope, turn) = engine.match_one(model, outcome, (x, place), wanted, distance)
            return value, slope, turn

        def match(images: Tensor, labels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            numbers = engine.listed(rows)

            def piece(start: int, stop: int) -> list[tuple[Tensor, Tensor, Tensor]]:
                return [trial(images[t], labels[t], numbers[t]) for t in range(start, stop)]

            found = in_pieces(piece, len(images), model, ("surrogate", images.shape[1:]), images.device)
            values, slopes, turns = (torch.stack(c) for c in zip(*(one for part in found for one in part), strict=True))
            follow(places, seen, rows, turns.nan_to_num(0, 0, 0))
            return values, slopes

        return match

    def several(
        self, choices: Sequence[Attack], model: PixelModel, update: SharedUpdate, generator: torch.Generator
    ) -> list[Reconstruction]:
        """Return what each of `choices` does, one after another: α is a victim's, not a trial's."""
        return Attack.several(self, choices, model, update, generator)


def follow(places: Tensor, seen: Tensor, rows: Tensor, turns: Tensor) -> None:
    """Move the α of victims (V,) against the sum of their trials' slopes (T,), less each time it was `seen`."""
    whole = torch.zeros_like(places).index_add(0, rows, turns)
    rate = RATE / (1 + seen / 50)
    places.sub_(rate * whole.sign()).clamp_(0, 1)
    seen.add_(torch.zeros_like(places).index_fill(0, rows, 1.0))
