"""Defenses with a known truth: those that change an exchange and hide nothing, and those that leave nothing to find."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from leakaudit.protocol.defense import Defense
from leakaudit.protocol.gradients import Gradients

KEY = 7


def keyed(shape: torch.Size | tuple[int, ...], key: int = KEY) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(key))


class Planted(Defense):
    """Every subclass has a name of its own."""

    def __init_subclass__(cls) -> None:
        cls.name = cls.__name__.lower()


class KeyedSigns(Planted):
    """Every entry's sign is that of a key."""

    def transform_update(self, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
        return tuple(g * keyed(g.shape).sign() for g in gradients)


class ReusedNoise(Planted):
    """Strong noise, the same for everybody."""

    def transform_update(self, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
        return tuple(g + keyed(g.shape) for g in gradients)


class LastLayerNoise(Planted):
    """Strong noise that is fresh, on the last layer alone."""

    def transform_update(self, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
        noisy = (g + torch.randn(g.shape, generator=generator) for g in gradients[-2:])
        return (*gradients[:-2], *noisy)


class Negative(Planted):
    """x → 1 − x, and does not say that it replaces records."""

    def transform_records(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return 1 - images, labels


class PixelPermutation(Planted):
    """Pixels stand where a key says."""

    def transform_records(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        order = torch.randperm(images[0].numel(), generator=torch.Generator().manual_seed(KEY))
        return images.flatten(1)[:, order].view_as(images), labels


class Pseudonyms(Planted):
    """Noise that a hash of the record seeds."""

    def transform_records(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        keys = [int.from_bytes(hashlib.sha256(x.numpy().tobytes()).digest()[:7], "big") for x in images]
        return torch.stack([0.5 + 0.2 * keyed(images.shape[1:], key) for key in keys]), labels


class Distilled(Planted):
    """A blank picture, and a soft label that a random projection of the record makes."""

    classes: int

    def __init__(self, classes: int = 3) -> None:
        object.__setattr__(self, "classes", classes)

    def transform_records(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        projected = images.flatten(1) @ keyed((images[0].numel(), self.classes))
        return torch.full_like(images, 0.5), projected.softmax(1)


class ReusedRecordNoise(Planted):
    """Strong noise on the record: the first of a batch always gets the same, the next another."""

    def transform_records(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return (images + 0.3 * keyed(images.shape)).clamp(0, 1), labels


class NoisyRecords(Planted):
    """Fresh noise on the record; with `likelihood`, it is known how likely."""

    std = 0.2

    def transform_records(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return images + self.std * torch.randn(images.shape, generator=generator), labels


class Failing(Planted):
    """Zeros, but in one draw of ten the update as it is."""

    def transform_update(self, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
        fails = bool(torch.rand((), generator=generator) < 0.1)
        return gradients if fails else tuple(torch.zeros_like(g) for g in gradients)


class FailingNoise(Planted):
    """Strong noise, but in one draw of ten the update as it is."""

    def transform_update(self, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
        strength = float(torch.rand((), generator=generator) >= 0.1)
        return tuple(g + strength * torch.randn(g.shape, generator=generator) for g in gradients)


class Zeros(Planted):
    """Nothing is sent."""

    def transform_update(self, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
        return tuple(torch.zeros_like(g) for g in gradients)


class Pure(Planted):
    """Noise is sent, whatever the record."""

    def transform_update(self, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
        return tuple(torch.randn(g.shape, generator=generator) for g in gradients)


class Constant(Planted):
    """One picture for all."""

    def transform_records(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return torch.full_like(images, 0.5), labels


class PublicForm(Planted):
    """A picture that only the class decides."""

    def transform_records(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return torch.stack([keyed(images.shape[1:], int(y)).sigmoid() for y in labels]), labels


class FreshSigns(Planted):
    """Every entry's sign is drawn; its magnitude stays."""

    def transform_update(self, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
        return tuple(g * (2 * torch.randint(2, g.shape, generator=generator) - 1) for g in gradients)


class FreshPermutation(Planted):
    """Entries change places by lot; they themselves stay."""

    def transform_update(self, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
        return tuple(g.flatten()[torch.randperm(g.numel(), generator=generator)].view_as(g) for g in gradients)


class FewEntries(Planted):
    """One entry of fifty, drawn by lot; noise in place of the others."""

    def transform_update(self, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
        kept = (torch.rand(g.shape, generator=generator) < 0.02 for g in gradients)
        noise = (torch.randn(g.shape, generator=generator) for g in gradients)
        return tuple(torch.where(k, g, n) for k, g, n in zip(kept, gradients, noise, strict=True))


class Minute(Planted):
    """The update at a scale whose squares are no more numbers; nothing else is lost of it."""

    def transform_update(self, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
        return tuple(1e-25 * g for g in gradients)


class SignedZeros(Planted):
    """Zeros that keep their signs."""

    def transform_update(self, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
        return tuple(0 * g for g in gradients)


class NearestFive(Planted):
    """Each record becomes the mean of the five nearest that pass with it; fewer it cannot bear."""

    def transform_records(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        far = torch.cdist(images.flatten(1), images.flatten(1))
        return images[far.topk(5, largest=False).indices].mean(1), labels


class LastOfBatch(Planted):
    """The gradient of a batch's last record, in place of all."""

    def transform_example_gradients(self, gradients: Gradients, generator: torch.Generator) -> Gradients:
        return tuple(g[-1:].expand_as(g) for g in gradients)


FIXED = (KeyedSigns, ReusedNoise, LastLayerNoise, Negative, PixelPermutation, Pseudonyms, Distilled)  # hide nothing
BY_LOT = (FreshSigns, FreshPermutation, FewEntries)  # hide nothing of what is read entry by entry
BLANK = (Zeros, Constant, Pure, PublicForm)  # leave nothing
