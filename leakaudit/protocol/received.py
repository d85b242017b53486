"""What real clients sent, as somebody captured it: updates that are attacked as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from leakaudit.result.claims import ClaimRow
from leakaudit.result.schema import Value


@dataclass(frozen=True, repr=False)
class Received:
    """V captured updates of `batch_size` records each, in the form in which `SharedUpdate` holds those of a scan.

    `gradients`, each (V, *parameter.shape) in the order of the model's trained parameters, are what its weights lost
    over how far one gradient moves them, float32 on the CPU; `buffers` by the model's names, None where they were not
    sent. `spec` is the defense that the clients claim. `known`: the first V·B private records of the target, in their
    order, are those behind them; else nobody says which records are.
    """

    gradients: tuple[Tensor, ...]
    buffers: tuple[dict[str, Tensor], ...] | None
    spec: str
    batch_size: int
    known: bool
    told: Mapping[str, Value] = field(default_factory=dict)  # what is said of them, for the result
    claims: tuple[ClaimRow, ...] = ()  # what is claimed of them beside what was measured, likewise

    @property
    def victims(self) -> int:
        """How many updates there are."""
        return int(self.gradients[0].shape[0])
