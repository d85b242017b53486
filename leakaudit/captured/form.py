"""The file of captured updates: what it holds, and what the metadata says of it. Nothing here needs torch.

One `.safetensors` file. Its tensors are called `before/NAME` and, of one update, `after/NAME`, `difference/NAME`
(after less before) or `gradient/NAME`; of several they are called `update/0/after/NAME` and so on, and `before/NAME` is
what all of them began with. `docs/captured.md` is the page about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from leakaudit.result.schema import Value

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA = "leakaudit.captured/1"
KEY = "leakaudit"  # of the text in the header of the file
SUFFIX = ".safetensors"
Sends = Literal["after", "difference", "gradient"]
SENDS: tuple[Sends, ...] = ("after", "difference", "gradient")


@dataclass(frozen=True, kw_only=True)
class Claims:
    """What is said of captured updates: how the client trained, on how much, and how it claims to be defended.

    None is what nobody said. The fields of the client are those of `leakaudit.protocol.federation.Client`.
    """

    framework: str = ""  # what captured it, with its version: "flower 1.42.0"
    local_steps: int | None = None  # optimiser steps behind one update; with no epochs either: it is one gradient
    local_epochs: int | None = None  # or passes over its records
    batch_size: int | None = None  # records of one local step
    local_lr: float | None = None
    momentum: float | None = None
    optimizer: str = ""  # sgd or adam; empty: sgd
    mode: str = ""  # train or eval, of the model while it computes gradients
    records: int | None = None  # behind one update, of all its clients
    clients: int = 1  # whose updates were summed before they were captured
    rounds: int = 1  # consecutive updates in the file that are of the same records
    defense: str | None = None  # the claimed defense as a spec of ours; "none" where none is claimed
    settings: tuple[dict[str, Value], ...] = ()  # of the framework's own defenses, each with its "name", in their order
    note: str = ""
    captured: str = ""  # when, in UTC, as 2026-11-27T01:20:00Z
    schema: str = SCHEMA


@dataclass(frozen=True, repr=False)
class CapturedUpdate:
    """Captured updates as their file holds them, each a dictionary of tensors by name, on the CPU.

    `before` is empty where the file leaves the weights that the client began with to the model. `sends` says what the
    dictionaries in `updates` are: weights `after`, the `difference` (after less before), or the `gradient`. Parameters
    and buffers both; names as the framework called them.
    """

    before: Mapping[str, Tensor]
    updates: tuple[Mapping[str, Tensor], ...]
    sends: Sends
    claims: Claims = field(default_factory=Claims)

    def __repr__(self) -> str:
        return f"CapturedUpdate({len(self.updates)} of {self.sends})"  # no number: an update is as private as records
