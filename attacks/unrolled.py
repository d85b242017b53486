"""Inverting gradients through a client's local steps: the whole of its training is simulated, and differentiated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from leakaudit.attacks._attacking import client_mode, starts
from leakaudit.attacks._labels import known_labels
from leakaudit.attacks._orders import MOST, Order, orders_told, training_of
from leakaudit.attacks.inverting_gradients import InvertingGradients, Match
from leakaudit.engine import matching as engine
from leakaudit.engine import unrolled
from leakaudit.engine.unrolled import Training
from leakaudit.errors import NotApplicable
from leakaudit.protocol.amounts import Amount, Sizes
from leakaudit.protocol.attack import Needs, Reconstruction
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.registry import register_attack
from leakaudit.protocol.target import PixelModel
from leakaudit.result.rules import LOCAL

MOST_STEPS = 32  # that are simulated


def check_local(update: SharedUpdate) -> None:
    """Raise NotApplicable where an update is one gradient, which is matched exactly without any simulation."""
    if update.is_gradient:
        raise NotApplicable(
            "the client takes one step on all of its records, which inverting-gradients matches exactly"
        )


def steps_of_all(update: SharedUpdate) -> int:
    """Return how many local steps all clients behind an update take together."""
    return update.steps * update.client.clients


def orders_of(model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> list[Order]:
    """Return for every victim the order in which its clients saw their slots, as far as labels tell it."""
    labels = known_labels(model, update, generator)
    with client_mode(model, update, generator):
        return orders_told(model, update, labels, generator)


def match_through(
    model: PixelModel, update: SharedUpdate, distance: engine.Distance, trainings: Sequence[Training]
) -> Match:
    """Return the match of what every victim's local training makes of pictures with what was sent."""

    def match(images: Tensor, labels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return unrolled.match(model, update.loss, images, labels, update.gradients, distance, trainings, rows=rows)

    return match


def agreement(images: Tensor, passes: int) -> tuple[Tensor, Tensor]:
    """Return how far the mean pictures of the passes are from each other (T,), and the slope.

    `images` (T, passes·B, C, H, W): mean over passes and pixels of (x̄_e − x̄)², where x̄_e is the mean over the slots
    of pass e, which does not depend on their order (Dimitrov et al. 2022, section 4.2), and x̄ that of all.
    """
    each = images.view(len(images), passes, -1, *images.shape[2:])
    gap = each.mean(2) - each.mean((1, 2))[:, None]
    slope = 2 * gap / (gap[0].numel() * each.shape[2])
    return gap.square().flatten(1).mean(1), slope.unsqueeze(2).expand_as(each).flatten(1, 2)


def joined(images: Tensor, labels: Tensor) -> Tensor:
    """Return one picture a record (B, C, H, W) of those of every pass (P, B, C, H, W): assigned, and averaged.

    The first pass gives the order; the slots of every other are assigned to its own, under the same label alone, so
    that the summed MSE is least. `labels` (B,).
    """
    from scipy.optimize import linear_sum_assignment

    first, total = images[0], images[0].clone()
    other = (labels[:, None] != labels).cpu()
    for later in images[1:]:
        cost = torch.cdist(first.double().flatten(1), later.double().flatten(1)).square().cpu()
        _, columns = linear_sum_assignment((cost + other * (1 + cost.max()) * len(labels)).numpy())
        total += later[torch.as_tensor(columns, device=later.device)]
    return total / len(images)


@register_attack
@dataclass(frozen=True, kw_only=True)
class ThroughLocalSteps(InvertingGradients):
    """Minimise 1 − cos(w₀ − w_E(x̂), w₀ − w_E) + tv·R(x̂), differentiating through the client's own training.

    Dimitrov et al. 2022 (arXiv 2206.12395, section 4): the server knows the client's optimiser, its rate and its
    batches, so what became of the weights is a function of the pictures (`leakaudit.engine.unrolled`), exact for any
    number of steps, passes and clients summed. The order in which records were seen is not known: it is sought first,
    by the labels alone (`orders_told`), and all passes then share one picture a record. With `apart` every pass gets
    pictures of its own as in the paper, whose mean must agree (`agreement`); they are assigned and averaged at the end.
    Several rounds are the mean over fresh orders, for which one stands.

    One slope costs as much as the local steps of all clients, so that beyond `most_steps` it is NotApplicable, as it is
    where the client takes one step on all of its records: there `inverting-gradients` is exact.
    """

    family: ClassVar[str] = "matching"
    name: ClassVar[str] = "through-local-steps"
    summary: ClassVar[str] = "inverting gradients through the client's local steps, in the order that the labels tell"
    source: ClassVar[str] = "Dimitrov et al. 2022; the order from the labels formulated here"
    covers: ClassVar[frozenset[str]] = frozenset({"local-steps"})
    needs: ClassVar[Needs] = Needs(local_steps=True)
    examines: ClassVar[frozenset[str]] = frozenset({LOCAL})
    grid: ClassVar[Mapping[str, tuple[float, ...]]] = {"tv": (1e-4, 1e-3, 1e-2, 1e-1)}

    most_steps: int = MOST_STEPS  # local steps of all clients together
    apart: bool = False  # pictures of its own for every pass
    agreeing: float = 1.0  # weight of the passes' agreement, with `apart`

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.most_steps < 1:
            raise ValueError("most_steps must be at least 1")
        if self.agreeing < 0:
            raise ValueError("agreeing must not be negative")

    def amount(self, sizes: Sizes) -> Amount:
        """Return how much work it is: every slope runs through all local steps, and orders are tried before."""
        if sizes.local_steps > self.most_steps:
            return Amount()
        plain = super().amount(sizes)
        tried = MOST * sizes.victims if sizes.batch > 1 else 0
        return Amount(updates=plain.updates + tried, slopes=plain.slopes * sizes.local_steps)

    def sets(self, update: SharedUpdate) -> int:
        """Return how many pictures are sought for each record: 1, or one for every pass."""
        client = update.client
        return client.passes(update.own) if self.apart and client.step_size(update.own) < update.own else 1

    def matching(
        self, model: PixelModel, update: SharedUpdate, distance: engine.Distance, generator: torch.Generator
    ) -> Match:
        """Return the match through all local steps. Raises NotApplicable where there are none, or too many."""
        check_local(update)
        if steps_of_all(update) > self.most_steps:
            raise NotApplicable(
                f"each of its slopes would run {steps_of_all(update)} local steps, and most_steps is "
                f"{self.most_steps}: surrogate costs one"
            )
        orders = orders_of(model, update, generator)
        passes = self.sets(update)
        apart = update.batch_size if passes > 1 else 0
        through = match_through(model, update, distance, [training_of(update.client, o, apart) for o in orders])

        def match(images: Tensor, labels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            if passes == 1:
                return through(images, labels, rows)
            values, slopes = through(images, labels.repeat(1, passes, *[1] * (labels.dim() - 2)), rows)
            value, slope = agreement(images, passes)
            return values + self.agreeing * value, slopes + self.agreeing * slope

        return match

    def _inverted(
        self,
        choices: Sequence[InvertingGradients],
        model: PixelModel,
        update: SharedUpdate,
        generator: torch.Generator,
        start: Tensor | None = None,
    ) -> list[Reconstruction]:
        passes = self.sets(update)
        if passes == 1:
            return super()._inverted(choices, model, update, generator, start)
        wide = replace(update, batch_size=passes * update.batch_size)
        start = starts(model, wide, self.restarts, generator)
        found = super()._inverted(choices, model, update, generator, start)
        whole = max(1, update.steps * update.client.step_size(update.own) // update.own)  # passes that saw every record
        return [replace(one, images=_joined_all(one, passes, whole)) for one in found]


def _joined_all(found: Reconstruction, passes: int, whole: int) -> Tensor:
    """Return one picture a record of every victim, of those of the `whole` first passes."""
    assert found.images is not None
    assert found.labels is not None
    images = found.images
    each = images.view(len(images), passes, -1, *images.shape[2:])[:, :whole]
    return torch.stack([joined(images, labels) for images, labels in zip(each, found.labels, strict=True)])
