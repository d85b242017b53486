"""An attack of one's own: `leakaudit scan examples/cifar10.py -a examples/batchnorm_matching.py:BatchNormMatching`

It adds one prior to inverting gradients. CONTRIBUTING.md walks through it: as a file named on the command line, as an
installed plug-in, and as a file of this repository's `attacks/`. Fresh BatchNorm keeps no statistics worth matching:
give trained weights with --checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from leakaudit.attacks.inverting_gradients import InvertingGradients, Prior
from leakaudit.errors import NotApplicable
from leakaudit.protocol.attack import Needs
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.registry import register_attack
from leakaudit.protocol.target import PixelModel
from leakaudit.work.memory import in_pieces


def statistics(model: PixelModel, weight: float) -> Prior:
    """Return the prior `weight` · Σ_l ‖μ_l(x̂) − μ_l‖² + ‖σ²_l(x̂) − σ²_l‖² over the layers l that keep statistics.

    Those of pictures (T, B, C, H, W) are each trial's own. Raises NotApplicable where no layer keeps any.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        raise NotApplicable("the model has no BatchNorm that keeps statistics")
    kept = {norm: [norm.get_buffer(f"running_{what}").clone() for what in ("mean", "var")] for norm in norms}

    def gaps(images: Tensor) -> tuple[Tensor, Tensor]:
        x, total = images.detach().requires_grad_(True), torch.zeros(len(images), device=images.device)

        def hook(norm: _BatchNorm, given: tuple[Tensor, ...]) -> None:
            nonlocal total
            features = given[0].reshape(*images.shape[:2], *given[0].shape[1:])
            by_trial = features.transpose(1, 2).flatten(2)  # (T, C, B·H·W)
            found = by_trial.mean(2), by_trial.var(2, correction=0)
            total = total + sum((a - b).square().sum(1) for a, b in zip(found, kept[norm], strict=True))

        handles = [norm.register_forward_pre_hook(hook) for norm in norms]
        try:
            with torch.enable_grad():
                model(x.flatten(0, 1))
        finally:
            for handle in handles:
                handle.remove()
        (slopes,) = torch.autograd.grad(total.sum(), x)
        return weight * total.detach(), weight * slopes

    def prior(images: Tensor, progress: Tensor) -> tuple[Tensor, Tensor]:
        work = ("statistics", images.shape[1:])  # in pieces that fit into what `--memory` allows
        found = in_pieces(lambda a, b: gaps(images[a:b]), len(images), model, work, images.device)
        values, slopes = zip(*found, strict=True)
        return torch.cat(values), torch.cat(slopes)

    return prior


@register_attack
@dataclass(frozen=True, kw_only=True)
class BatchNormMatching(InvertingGradients):
    """Inverting gradients, with features whose statistics are those of BatchNorm (Yin et al. 2021, eq. 9)."""

    name: ClassVar[str] = "batchnorm-matching"
    summary: ClassVar[str] = "inverting gradients, with features whose statistics are those of BatchNorm"
    source: ClassVar[str] = "Yin et al. 2021 (GradInversion)"
    requires: ClassVar[frozenset[str]] = frozenset({"buffers"})
    covers: ClassVar[frozenset[str]] = frozenset({"batchnorm-statistics"})
    needs: ClassVar[Needs] = Needs(batchnorm=True)

    weight: float = 1e-3  # of the statistics beside the match

    def priors(self, model: PixelModel, update: SharedUpdate) -> tuple[Prior, ...]:
        """Add the statistics to what inverting gradients expects of a picture."""
        return (*super().priors(model, update), statistics(model, self.weight))
