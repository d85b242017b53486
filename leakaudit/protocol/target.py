"""The thing under audit: a classifier, its loss, and the records around it. All pictures here are in [0, 1]."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

LossFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Records:
    """Labelled pictures: `images` (N, C, H, W) float32 in [0, 1] and integer `labels` (N,).

    Released records may carry probabilities (N, classes) instead (`leakaudit.protocol.labels`).
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    def __getitem__(self, index: Tensor | Sequence[int] | slice) -> Records:
        picked = index if isinstance(index, Tensor | slice) else torch.as_tensor(list(index), dtype=torch.long)
        return Records(self.images[picked], self.labels[picked])

    def to(self, device: torch.device) -> Records:
        """Return the same records on a device."""
        return Records(self.images.to(device), self.labels.to(device))


class PixelModel(nn.Module):
    """A classifier that takes pictures in [0, 1] and normalises them itself: logits = network((x − mean) / std).

    Attacks, defenses and metrics therefore all live in pixel space, and no score is ever taken on normalised tensors.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes) for pictures `x` (N, C, H, W) in [0, 1]."""
        return logits_of(self.network((x - self.mean) / self.std))


def logits_of(output: Any) -> Tensor:
    """Return the logits of a model output that is a tensor, or carries one first or as `logits` (dict or attribute)."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, dict):
        found = output.get("logits", next(iter(output.values()), None))
    else:
        found = getattr(output, "logits", None)
        if found is None and isinstance(output, tuple | list) and output:
            found = output[0]
    if not isinstance(found, Tensor):
        raise TypeError(f"the model returned {type(output).__name__}, not a tensor of logits")
    return found


@dataclass(frozen=True)
class Target:
    """What is audited.

    `private` are the client's records, `test` measures accuracy, `auxiliary` are records the adversary may own;
    the three are disjoint.
    """

    name: str
    model: PixelModel
    loss: LossFunction
    private: Records
    test: Records
    auxiliary: Records
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()  # assumptions made while loading, shown in the report
    held_out: tuple[str, ...] = ()  # the roles (`auxiliary_data`, …) that were not given and are a part of train_data
    factory: Callable[[], nn.Module] | None = field(default=None, repr=False)  # the user's own constructor, if given
    folder: Path | None = field(default=None, repr=False)  # where the user's code lies, if it was read from a file
    given: Mapping[str, str] = field(default_factory=dict)  # what it was read from: target, data, checkpoint, …

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height, width of one picture."""
        c, h, w = self.private.images.shape[1:]
        return int(c), int(h), int(w)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return next(self.model.parameters()).device

    def fresh(self, seed: int) -> PixelModel:
        """Return a newly initialised model for a training run: the user's factory if given, else `reinitialised`."""
        if self.factory is None:
            return reinitialised(self.model, seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = self.factory()
        fresh = copy.deepcopy(self.model)
        fresh.network = network.to(self.device)
        return fresh


def reinitialised(model: PixelModel, seed: int) -> PixelModel:
    """Return a copy with fresh weights: every module's own `reset_parameters`, under `seed`.

    Parameters that no module resets (class tokens, positional embeddings) keep their values.
    """
    fresh = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in fresh.modules():
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if callable(reset):
                reset()
    return fresh
