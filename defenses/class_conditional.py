"""A class-conditional generator: records are replaced by draws that depend on their labels alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from leakaudit.defenses._class_code import ClassCode, fitted_code
from leakaudit.files.writing import write_atomically
from leakaudit.protocol.defense import Defense, state
from leakaudit.protocol.labels import hard
from leakaudit.protocol.registry import register_defense
from leakaudit.protocol.target import Target
from leakaudit.protocol.task import CLASSES, Task
from leakaudit.result.schema import Guarantee


@register_defense
@dataclass(frozen=True, kw_only=True)
class ClassConditional(Defense):
    """x̃ = G(y, ε), ε ~ N(0, I): no record enters at release, so x̃ says of it only its label.

    Where labels are no classes, y is the record's label group, and the target that stands for it, an auxiliary
    record's, takes the place of the record's own.

    The baseline that `obscure` has to beat. G draws from the Gaussian scale mixture of each class (`ClassCode`): of all
    that was tried, networks included, no generator that keeps the label as it is taught a fresh model more
    (`docs/obscure.md`). Since no record enters, training draws anew each epoch. What the statistics remember of the
    records they were taken from is not bounded.

    `latent` entries of ε (at most a quarter of the records), `mirror` (count mirror images as further records: not for
    digits or text, and never of masks), `shared` (how much of all classes' covariance is mixed into each class's own:
    more remembers less and costs accuracy). Raises ValueError on a setting out of range.
    """

    name: ClassVar[str] = "class-conditional"
    summary: ClassVar[str] = "replace records by a generator's draws for their label"
    source: ClassVar[str] = "formulated here; scale mixtures after Wainwright and Simoncelli, NeurIPS 1999"
    replaces_records: ClassVar[bool] = True
    adaptive: ClassVar[tuple[str, ...]] = (
        "two-stage-decoder",
        "learned-inversion",
        "released-decoder",
        "linkage",
        "released-linkage",
    )

    latent: int = 256
    mirror: bool = True
    shared: float = 0.2
    code: ClassCode | None = state()
    task: Task = state(CLASSES, describes=True)

    def __post_init__(self) -> None:
        check_code(self.latent, self.shared)

    @property
    def renewable(self) -> bool:
        """A further draw says nothing more of a record: none enters."""
        return True

    def fit(self, target: Target, generator: torch.Generator) -> Defense:
        """Take the statistics of the private records; the copy returned holds no record."""
        private = target.private
        code = fitted_code(
            private,
            len(target.classes),
            latent=self.latent,
            mirror=self.mirror and target.task.mirrors,
            shared=self.shared,
            generator=generator,
        )
        return replace(self, code=code, task=target.task)

    def transform_records(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Replace every record by one draw for its label. Raises RuntimeError before `fit`."""
        if self.code is None:
            raise RuntimeError("this defense has not been fitted: call fit(target, generator) first")
        if self.task.own_targets:
            labels = hard(labels, self.task)
        device = self.code.centre.device
        parts = [self.code.pictures(y, generator) for y in torch.split(labels.to(device), 256)]
        drawn = torch.cat(parts).clamp(0, 1) if parts else images
        if drawn.shape[2:] != images.shape[2:]:
            drawn = F.interpolate(drawn, images.shape[2:], mode="bilinear", align_corners=False)
        return drawn.to(images), self.task.targets_of(labels)

    def facts(self, records: int, batch_size: int, steps: int) -> dict[str, str | float]:
        """State what a released record says of the private one."""
        return {"rate beyond the label, nats": 0.0, "the generator's memory of its records": "not bounded"}

    def guarantees(self, records: int, batch_size: int, steps: int, candidates: int) -> tuple[Guarantee, ...]:
        """State that a release tells the label alone, and that the generator's memory is not bounded."""
        picked = f"no release picks its record out of {candidates} of its class more often than chance"
        assumes = "the generator as given; candidates that are equally likely to somebody who knows it"
        return (
            Guarantee(
                "a release tells nothing of its record beyond its label (0 nats)",
                "proven",
                assumes,
                states=("rate beyond the label, nats",),
            ),
            Guarantee(picked, "proven", assumes, 1 / candidates, candidates),
            Guarantee(
                "what the generator's statistics tell of the records they were taken from",
                "not-bounded",
                states=("the generator's memory of its records",),
            ),
        )

    def save(self, directory: Path) -> list[Path]:
        """Write the statistics; nothing before `fit`."""
        from safetensors.torch import save

        if self.code is None:
            return []
        file = directory / f"{self.name}.safetensors"
        tensors = {key: value.cpu().contiguous() for key, value in self.code.state_dict().items()}
        write_atomically(file, save(tensors), private=True)
        return [file]


def check_code(latent: int, shared: float) -> None:
    """Raise ValueError if a setting of the statistics is out of range."""
    if latent < 2:
        raise ValueError(f"latent must be at least 2, not {latent}.")
    if not 0 <= shared <= 1:
        raise ValueError(f"shared must lie between 0 and 1, not {shared}.")
