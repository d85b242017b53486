"""The protocol of an attack: settings in a frozen dataclass, all victims in one call, no way to reach the truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.target import PixelModel

Status = Literal["converged", "diverged", "not-applicable", "out-of-memory", "budget"]
Kind = Literal["reconstruction", "labels", "linkage"]


@dataclass(frozen=True)
class Reconstruction:
    """What an attack claims. Rows of victims whose status is not `converged` or `budget` are not scored.

    `images` (V, B, C, H, W) in [0, 1] or None for attacks that draw none; `labels` (V, B) or None; `objective` (V,) the
    attack's own, by which it picked its restart; `linkage` (V, M) candidate scores, larger is likelier, for
    linkage attacks; `statuses` one per victim; `reason` says why where a status is not `converged`; `notes` are for
    what a reader must know to weigh a score, one sentence each; `doubts` say by kebab id why a failure of this attack
    says less than it seems ("overfitted", with the details), which the verdict names.
    """

    images: Tensor | None
    labels: Tensor | None
    objective: Tensor
    statuses: tuple[Status, ...]
    reason: str | None = None
    linkage: Tensor | None = None
    notes: tuple[str, ...] = ()
    doubts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Attack:
    """Base of every attack; subclasses are frozen dataclasses of settings."""

    name: ClassVar[str]
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""  # the paper
    kind: ClassVar[Kind] = "reconstruction"
    requires: ClassVar[frozenset[str]] = frozenset()  # Exposure facts
    grid: ClassVar[Mapping[str, tuple[float, ...]]] = {}  # settings tuned on auxiliary records, with their candidates

    def __call__(self, model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Reconstruction:
        """Attack every victim of `update`. Raises NotApplicable with the reason when it cannot be run here."""
        raise NotImplementedError

    def link(
        self, model: PixelModel, update: SharedUpdate, candidates: Tensor, generator: torch.Generator
    ) -> Reconstruction:
        """Linkage attacks only: score candidates (V, M, C, H, W), of which one per victim is a private record."""
        raise NotImplementedError
