"""A defense with its strength turned down, whatever the defense: what an attack must be seen to work on.

Every stage hands on input + share·(output − input), so that 1 is the defense and 0 lets everything pass. It needs no
setting of the defense's own, and so none that its author must name.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from leakaudit.protocol.defense import Defense, parts_of, replaces_records, state
from leakaudit.protocol.gradients import Gradients
from leakaudit.protocol.labels import soft
from leakaudit.protocol.target import PixelModel, Target
from leakaudit.protocol.task import CLASSES, Task


def weakened(defense: Defense, share: float, task: Task = CLASSES) -> Defense:
    """Return a defense at a `share` of its strength in [0, 1], fitted if it is fitted; 1 is the defense itself.

    `task` says what labels are.

    At 0 the record, per-example and update stages return what they are given. The model stage stays as it is, and so
    does what the defense learns and observes. Nothing that the defense proves holds for it. Raises ValueError for a
    share outside of [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be between 0 and 1, not {share}.")
    return defense if share == 1 else Weakened(inner=defense, share=float(share), task=task)


@dataclass(frozen=True, kw_only=True)
class Weakened(Defense):
    """What `weakened` makes: no defense to choose by name, so it is not registered."""

    name = "weakened"
    summary = "another defense at a share of its strength"
    source = "formulated here: a line between the identity and the defense, stage by stage"

    # Compared like a setting, but not shown as one: a defense is no value of a report.
    inner: Defense = field(default_factory=Defense, repr=False, metadata={"state": True})
    share: float = 1.0
    task: Task = state(CLASSES, describes=True)

    def __post_init__(self) -> None:
        # Who attacks it, and whether records are replaced, is a matter of the defense inside and not of this class.
        object.__setattr__(self, "adaptive", tuple(spec for part in parts_of(self.inner) for spec in part.adaptive))
        object.__setattr__(self, "replaces_records", replaces_records(self.inner))

    @property
    def has_record_stage(self) -> bool:
        """Whether the defense inside has one."""
        return replaces_records(self.inner)

    def fit(self, target: Target, generator: torch.Generator) -> Defense:
        """Fit the defense inside."""
        return replace(self, inner=self.inner.fit(target, generator))

    def transform_records(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return pictures between the private and the released ones, and labels that are mixed alike.

        Probabilities are mixed, and targets of which a mean is one. Where class indices take the place of class
        indices, and so how many classes there are is not seen, each is taken over with probability `share`: a draw from
        the same mixture. So are targets that do not mix.
        """
        if self.share == 0:
            return images, labels
        changed, named = self.inner.transform_records(images, labels, generator)
        return _between(images, changed, self.share), _labels_between(labels, named, self.share, self.task, generator)

    def transform_model(self, model: PixelModel, generator: torch.Generator) -> PixelModel:
        """Return the network of the defense inside: half a network is none."""
        return self.inner.transform_model(model, generator)

    def observe(self, model: PixelModel, images: Tensor, labels: Tensor, generator: torch.Generator) -> Defense:
        """Show the batch to the defense inside."""
        return replace(self, inner=self.inner.observe(model, images, labels, generator))

    def touched(self, model: PixelModel, pictures: Tensor) -> frozenset[str]:
        """Return what the defense inside touches."""
        return self.inner.touched(model, pictures)

    def transform_example_gradients(self, gradients: Gradients, generator: torch.Generator) -> Gradients:
        """Return gradients between each record's own and what the defense makes of them."""
        if self.share == 0:
            return gradients
        changed = self.inner.transform_example_gradients(gradients, generator)
        return tuple(_between(g, c, self.share) for g, c in zip(gradients, changed, strict=True))

    def transform_update(self, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
        """Return an update between the undefended and the defended one."""
        if self.share == 0:
            return gradients
        changed = self.inner.transform_update(gradients, batch_size, generator)
        return tuple(_between(g, c, self.share) for g, c in zip(gradients, changed, strict=True))

    @property
    def needs_example_gradients(self) -> bool:
        """Whether the defense inside acts per example; at 0 nothing does, and their mean would be rounded otherwise."""
        return self.share > 0 and self.inner.needs_example_gradients


def _between(before: Tensor, after: Tensor, share: float) -> Tensor:
    if before.shape != after.shape:
        raise ValueError(f"a stage changed the shape {tuple(before.shape)} to {tuple(after.shape)}: nothing is between")
    return before + share * (after - before)


def _labels_between(before: Tensor, after: Tensor, share: float, task: Task, generator: torch.Generator) -> Tensor:
    before, after = task.targets_of(before), task.targets_of(after)
    if task.mixes and (before.is_floating_point() or after.is_floating_point()):
        classes = int((after if after.is_floating_point() else before).shape[-1])
        return _between(soft(before, classes), soft(after, classes), share)
    if torch.equal(before, after):  # nothing is drawn where nothing changes
        return before
    taken = torch.rand(len(before), generator=generator, device=generator.device) < share
    return torch.where(taken.to(before.device).view(-1, *[1] * (before.dim() - 1)), after, before)
