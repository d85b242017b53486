"""Targets that are sought beside the pictures: where nobody knows what a record was taught, a wrong guess misleads.

A target becomes further channels of its picture, so that whatever descends on pictures descends on both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.target import LossFunction, PixelModel
from leakaudit.protocol.task import Task

ROOM = 0.25  # of the range of what is known of targets, by which others may lie beyond it
BELIEF = 0.5  # in a guessed target where the search begins, beside the mean of all


class Packed(PixelModel):
    """A model that takes pictures with targets in further channels, and gives its outputs with the targets beside them.

    Pictures alone, (N, C, H, W), are taken as ever.
    """

    def __init__(self, model: PixelModel, channels: int) -> None:
        super().__init__(model.network, **model.reading())
        self.mean, self.std, self.channels = model.mean, model.std, channels
        self.train(model.training)

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs (N, ...), or flat with the targets (N, O + D) after them."""
        outputs = super().forward(x[:, : self.channels])
        if x.shape[1] == self.channels:
            return outputs
        return torch.cat([outputs.flatten(1), x[:, self.channels :].flatten(1)], 1)


@dataclass(frozen=True)
class Free:
    """How targets are sought: the model, and the update's loss, as they take pictures with targets beside them.

    A target is `size` numbers in [0, 1]: its own, brought there from `low` and `range`, or of a mask every class's
    chance at every place, and then `low` and `range` are empty.
    """

    model: PixelModel
    update: SharedUpdate
    task: Task
    channels: int  # of a picture
    size: int  # D
    low: Tensor  # (D,)
    range: Tensor  # (D,)

    def begun(self, start: Tensor, groups: Tensor) -> Tensor:
        """Return starting pictures (T, B, C, H, W) with targets beside them, for guessed label groups (T, B).

        Pictures may be several times as many as records, in turn.
        """
        groups = groups.repeat(1, start.shape[1] // groups.shape[1])
        table = encoded(self.task, self.low, self.range).to(start)
        mean = table.mean(0)
        numbers = BELIEF * table[groups] + (1 - BELIEF) * mean
        spare = -(-self.size // prod(start.shape[3:]))
        padded = F.pad(numbers, (0, spare * prod(start.shape[3:]) - self.size))
        return torch.cat([start, padded.view(*start.shape[:2], spare, *start.shape[3:])], 2)

    def groups(self, found: Tensor) -> Tensor:
        """Return the label groups (T, B) of targets that were found beside pictures, (T, B, C + …, H, W)."""
        numbers = found[:, :, self.channels :].flatten(2)[..., : self.size].flatten(0, 1)
        if self.low.numel():
            targets = self.low.to(numbers) + self.range.to(numbers) * numbers
        else:
            targets = numbers.view(len(numbers), self.task.values, -1).argmax(1).float()
        return self.task.groups_of(targets.reshape(*found.shape[:2], *self.task.shape))


def freed(model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Free | None:
    """Return how the targets of an update are sought; None where they cannot be.

    They can where a loss takes targets between others, or is the cross-entropy of a mask's classes, which takes
    chances of them.
    """
    task, channels = update.task, update.input_shape[0]
    if not task.own_targets or task.table is None or type(model) is not PixelModel:
        return None
    outputs = _outputs(model, update)
    if task.dtype.is_floating_point:
        table = task.table.reshape(len(task.table), -1)
        low, high = table.amin(0), table.amax(0)
        wide = (high - low).clamp_min(1e-3 * float((high - low).max().clamp_min(1e-6)))
        room = 0.0 if task.binary else ROOM
        low, wide, size = low - room * wide, (1 + 2 * room) * wide, table.shape[1]
        if task.binary:
            low, wide = torch.zeros_like(low), torch.ones_like(wide)
        sought = _of_numbers(update.loss, task, outputs, low, wide)
    elif _is_cross_entropy(update, outputs, generator):
        size = task.values * prod(task.shape)
        low = wide = torch.zeros(0)
        sought = _of_shares(outputs, size)
    else:
        return None

    def loss(given: Tensor, labels: Tensor) -> Tensor:  # of outputs with targets beside them, or of outputs alone
        alone = given[0].numel() == prod(outputs)
        return update.loss(given, labels) if alone else sought(given, labels)

    return Free(Packed(model, channels), replace(update, loss=loss), task, channels, size, low, wide)


def encoded(task: Task, low: Tensor, wide: Tensor) -> Tensor:
    """Return the table's targets as numbers in [0, 1], (K, D)."""
    assert task.table is not None
    flat = task.table.reshape(len(task.table), -1)
    if low.numel():
        return ((flat - low.to(flat)) / wide.to(flat)).clamp(0, 1)
    return torch.stack([flat.round() == k for k in range(task.values)], 1).float().flatten(1)


def _outputs(model: PixelModel, update: SharedUpdate) -> torch.Size:
    """Return the shape of what the model gives of one picture. The caller sets its mode; nothing is kept of it."""
    was = model.training
    try:
        with torch.no_grad():
            found = model.eval()(torch.full((1, *update.input_shape), 0.5).to(model.mean))
    finally:
        model.train(was)
    return torch.Size(found.shape[1:])


def _of_numbers(loss: LossFunction, task: Task, outputs: torch.Size, low: Tensor, wide: Tensor) -> LossFunction:
    count, size = prod(outputs), low.numel()

    def packed(given: Tensor, _: Tensor) -> Tensor:
        numbers = given[:, count : count + size]
        targets = low.to(given) + wide.to(given) * numbers
        return loss(given[:, :count].reshape(-1, *outputs), targets.reshape(-1, *task.shape))

    return packed


def _of_shares(outputs: torch.Size, size: int) -> LossFunction:
    count = prod(outputs)

    def packed(given: Tensor, _: Tensor) -> Tensor:
        shares = given[:, count : count + size].reshape(-1, *outputs) + 1e-4
        return F.cross_entropy(given[:, :count].reshape(-1, *outputs), shares / shares.sum(1, keepdim=True))

    return packed


def _is_cross_entropy(update: SharedUpdate, outputs: torch.Size, generator: torch.Generator) -> bool:
    """Whether the loss is the mean cross-entropy of every place, tried on random outputs and classes."""
    task = update.task
    if len(outputs) < 2 or outputs[0] != task.values or prod(outputs[1:]) != prod(task.shape):
        return False
    own = torch.Generator(generator.device).set_state(generator.get_state())
    device = update.gradients[0].device
    logits = torch.randn((2, *outputs), generator=own, device=own.device).to(device)
    classes = torch.randint(task.values, (2, *task.shape), generator=own, device=own.device).to(device)
    try:
        found = update.loss(logits, classes.float())
    except (RuntimeError, ValueError, TypeError, IndexError):  # a user's loss may do anything
        return False
    expected = F.cross_entropy(logits, classes.reshape(2, *outputs[1:]))
    return bool(torch.allclose(found, expected, rtol=1e-4, atol=1e-6))
