"""Soteria: leaving out those columns of a dense layer's gradient that give most of the picture away."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from leakaudit.defenses.gaussian import normal_like
from leakaudit.engine.dense import Dense, dense_at_work, is_pictures
from leakaudit.errors import OutOfTime, UserError
from leakaudit.protocol.defense import Defense, state
from leakaudit.protocol.gradients import Gradients, in_mode, parameters_of
from leakaudit.protocol.registry import register_defense
from leakaudit.protocol.target import PixelModel, Target
from leakaudit.work.progress import expired

_LOOK = 64  # probes after which the clock is looked at
MEND = "soteria needs a dense layer that takes one vector per record: scan a model with one, or leave it out."


def defended_layer(model: PixelModel, pictures: Tensor) -> Dense:
    """Return the dense layer whose input is the representation: the first one not fed the picture itself.

    In a convolutional network that is the first dense layer after the convolutions, which is the head where there is
    only one. A network whose only dense layer is fed the picture has that defended. Raises UserError without any.
    """
    layers = dense_at_work(model, pictures)
    if not layers:
        raise UserError(MEND)
    return next((dense for dense in layers if not is_pictures(dense.given, model, pictures)), layers[0])


def jacobian_norms(representation: Tensor, pictures: Tensor, probes: int, generator: torch.Generator) -> Tensor:
    """Return an estimate of ‖∂r_f/∂x‖ (B, D) of every record, for a representation (B, D) of `pictures` (B, C, H, W).

    ‖J_f‖² = E_v (J v)_f² over standard normal v, the mean of `probes` draws, each of which serves all D entries. The
    products J v come from differentiating Jᵀu by u, so any network that can be differentiated twice will do.
    """
    dual = torch.zeros_like(representation, requires_grad=True)
    (pulled,) = torch.autograd.grad(representation, pictures, dual, create_graph=True)
    total = torch.zeros_like(representation)
    for k in range(probes):
        if k % _LOOK == _LOOK - 1 and expired():
            raise OutOfTime("the time budget ended within one update: give fewer probes")
        (pushed,) = torch.autograd.grad(pulled, dual, normal_like(pictures, generator), retain_graph=True)
        total += pushed.square()
    return (total / probes).sqrt().detach()


def kept_columns(representation: Tensor, norms: Tensor, percentile: float) -> Tensor:
    """Return a mask (D,) without the `percentile` % of entries where Σ_i ‖∂r_if/∂x_i‖ / Σ_i |r_if| is least.

    For one record that is the published ‖∂r_f/∂x‖ / |r_f|. Entries that are zero for all records (dead units, whose
    quotient is 0/0 and whose columns are zero anyway) are not counted; of equals the first are left out.
    """
    size = representation.abs().sum(0)
    ratio = torch.where(size > 0, norms.sum(0) / size.clamp_min(1e-30), torch.inf)
    kept = torch.ones_like(ratio, dtype=torch.bool)
    kept[ratio.argsort(stable=True)[: round(percentile / 100 * int((size > 0).sum()))]] = False
    return kept


@register_defense
@dataclass(frozen=True, kw_only=True)
class Soteria(Defense):
    """Zero those columns f of a dense layer's weight gradient where ‖∂r_f/∂x‖₂ / |r_f| is below its percentile.

    r is the layer's input, the representation of the record x, and the layer is that of `defended_layer`. The paper
    changes at most ε entries of r so that what is rebuilt from the rest is furthest from x, and picks those of largest
    ‖r_f (∂r_f/∂x)⁻¹‖, which it approximates by this quotient; ∂W = δ rᵀ, so a missing r_f is a missing column.
    `percentile` in [0, 100] is the share of columns left out, of those that are not zero anyway; published evaluations
    go from 1 to 90, and the default is the strictest. The norms are estimated by `probes` random directions (at least
    1; `jacobian_norms`), because exact ones cost one backward pass for each of up to thousands of entries. A batch has
    one mask (`kept_columns`). Anything out of range is a ValueError, a model without a dense layer a UserError.

    Everything before the defended layer is shared as it is, and so is that layer's bias.
    """

    name: ClassVar[str] = "soteria"
    summary: ClassVar[str] = "leave out the most telling columns of a dense layer's gradient"
    source: ClassVar[str] = "Sun et al.: Soteria, CVPR 2021 (arXiv 2012.06043)"
    adaptive: ClassVar[tuple[str, ...]] = ("omitting-layers",)
    unproven: ClassVar[str] = "what an update tells of its records: one layer is masked, the others are shared in full"

    percentile: float = 90.0
    probes: int = 32
    place: int | None = state()  # of the defended weight among the parameters, once a batch was observed
    kept: Tensor | None = state()  # (D,) the columns that are shared

    def __post_init__(self) -> None:
        if not 0 <= self.percentile <= 100:
            raise ValueError(f"percentile must be between 0 and 100, not {self.percentile}.")
        if self.probes < 1:
            raise ValueError(f"probes must be at least 1, not {self.probes}.")

    def fit(self, target: Target, generator: torch.Generator) -> Defense:
        """Check that the model has a layer to defend; nothing is learned."""
        self.touched(target.model, target.private.images[:2].to(target.device))
        return self

    def observe(self, model: PixelModel, images: Tensor, labels: Tensor, generator: torch.Generator) -> Defense:
        """Return the defense with the mask for this batch."""
        pictures = images.detach().requires_grad_(True)
        with in_mode(model, "eval"), torch.enable_grad():  # records apart, nothing drawn
            dense = defended_layer(model, pictures)
            norms = jacobian_norms(dense.given, pictures, self.probes, generator)
        place = next(i for i, p in enumerate(parameters_of(model)[1]) if p is dense.layer.weight)
        return replace(self, place=place, kept=kept_columns(dense.given.detach(), norms, self.percentile))

    def touched(self, model: PixelModel, pictures: Tensor) -> frozenset[str]:
        """Return the names of the defended layer's parameters."""
        with in_mode(model, "eval"), torch.no_grad():
            dense = defended_layer(model, pictures)
        return frozenset(f"{dense.name}.{name}" for name, _ in dense.layer.named_parameters())

    def transform_update(self, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
        """Zero the columns that the observed batch must not show; the identity where none was observed."""
        if self.kept is None:
            return gradients
        return tuple(g * self.kept if i == self.place else g for i, g in enumerate(gradients))

    def facts(self, records: int, batch_size: int, steps: int) -> dict[str, str | float]:
        """Say what is known of it: the paper's bound holds for one layer, and the others are shared as they are."""
        return {"privacy proven": "none for the update: one layer is masked, the others are shared in full"}
