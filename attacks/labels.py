"""Label inference: the classes in a batch, read off the gradient of the last dense layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from leakaudit.attacks._attacking import memory_safe
from leakaudit.attacks._labels import infer_labels
from leakaudit.protocol.attack import Attack, Kind, Reconstruction
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.labels import hard
from leakaudit.protocol.registry import register_attack
from leakaudit.protocol.target import PixelModel


@register_attack
@dataclass(frozen=True, kw_only=True)
class Labels(Attack):
    """Infer the classes of the private records (`infer_labels`), exposed or not. It draws no picture.

    Where labels are no classes it says their label groups: of one record by its target, where the head tells that.
    """

    family: ClassVar[str] = "labels"
    name: ClassVar[str] = "labels"
    summary: ClassVar[str] = "read the classes off the last dense layer's gradient"
    source: ClassVar[str] = "Zhao et al. 2020 (iDLG); Yin et al. 2021; Ma et al. 2023 (iLRG), formulated here"
    kind: ClassVar[Kind] = "labels"
    closed_form: ClassVar[bool] = True

    @memory_safe
    def __call__(self, model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Reconstruction:
        """Return labels (V, B); a victim whose update is not finite is `diverged`."""
        labels = hard(infer_labels(model, update, generator), update.task)
        finite = torch.stack([g.reshape(len(g), -1).isfinite().all(1) for g in update.gradients]).all(0).tolist()
        statuses: tuple[Literal["converged", "diverged"], ...] = tuple("converged" if f else "diverged" for f in finite)
        reason = None if all(finite) else "the shared update is not finite"
        return Reconstruction(
            images=None, labels=labels, objective=torch.zeros(update.victims), statuses=statuses, reason=reason
        )
