"""The reference classifier: what a client knows of its classes, learned on its own records."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakaudit.errors import OutOfTime
from leakaudit.protocol.target import Records
from leakaudit.score.augmentation import augmented
from leakaudit.work import resume
from leakaudit.work.progress import observe, track
from leakaudit.work.seeding import derive, forked

PEAK = 4e-3
BATCH = 64
CROPS = ("crop", "mirror")  # in training: shifts of each picture, and its mirror image
PASSES = 250_000  # pictures shown to a reference at most: with many records, fewer epochs teach it as much
# Stages whose maps a picture is later drawn with, and the side that these are averaged down to.
MAPS = ((0, 16), (1, 8), (2, 4))


class Reference(nn.Module):
    """A small ConvNet with BatchNorm for pictures (N, C, H, W) in [0, 1] of one size."""

    def __init__(self, channels: int, grid: tuple[int, int], classes: int, widths: Sequence[int]) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        for before, after in zip((channels, *widths), widths, strict=False):
            stages += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)]
            stages += [nn.MaxPool2d(2, ceil_mode=True), nn.ReLU()]  # as good as the other way round, on a quarter
        self.body = nn.Sequential(*stages)
        height, width = (-(-side // 2 ** len(widths)) for side in grid)
        self.head = nn.Linear(widths[-1] * height * width, classes)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the penultimate features (N, F)."""
        found: Tensor = self.body(4 * pictures - 2).flatten(1)
        return found

    def logits(self, pictures: Tensor) -> Tensor:
        """Return logits (N, classes)."""
        found: Tensor = self.head(self(pictures))
        return found

    def maps(self, pictures: Tensor) -> tuple[Tensor, ...]:
        """Return what the reference sees in pictures, (N, D) for each of `MAPS`."""
        found, stage, h = [], -1, 4 * pictures.contiguous(memory_format=torch.channels_last) - 2
        for layer in self.body:
            h = layer(h)
            if isinstance(layer, nn.ReLU):
                stage += 1
                found += seen_at(stage, h)
        return tuple(found)


def seen_at(stage: int, maps: Tensor) -> list[Tensor]:
    """Return what `MAPS` asks for of a stage's maps (N, C, H, W): averaged down to a side and flat, (N, D) each."""
    return [
        (maps if max(maps.shape[2:]) <= side else F.adaptive_avg_pool2d(maps, side)).flatten(1)
        for wanted, side in MAPS
        if wanted == stage
    ]


def passes(epochs: int, records: int) -> int:
    """Return how many pictures a reference is shown: `epochs` times all records, or `PASSES` where that is less."""
    return min(epochs * records, max(PASSES, records))


def moved(pictures: Tensor, generator: torch.Generator, *, mirror: bool, shift: int) -> Tensor:
    """Return pictures (N, C, H, W), each mirrored or not (if `mirror`), all shifted by the same few pixels."""
    height, width = pictures.shape[2:]
    shift = min(shift, height - 1, width - 1)
    dx, dy = torch.randint(0, 2 * shift + 1, (2,), generator=generator, device=generator.device).tolist()
    if mirror:
        coins = torch.rand(len(pictures), 1, 1, 1, generator=generator, device=generator.device).to(pictures.device)
        pictures = torch.where(coins < 0.5, pictures.flip(3), pictures)
    padded = F.pad(pictures, (shift, shift, shift, shift), mode="reflect")
    return padded[:, :, dy : dy + height, dx : dx + width]


def train_reference(
    records: Records,
    classes: int,
    widths: Sequence[int],
    *,
    epochs: int,
    mirror: bool,
    generator: torch.Generator,
    label: str = "training a reference classifier",
) -> Reference:
    """Train a reference on records (N, C, H, W) for `epochs` passes, with crops and, if `mirror`, mirror images.

    At most `PASSES` pictures are shown to it.

    One that an interrupted run has trained already (`leakaudit.work.resume`, by its `label`) is taken up.
    Raises OutOfTime where the time budget ends it early.
    """
    channels, height, width = records.images.shape[1:]
    device = records.images.device
    with forked(derive(int(torch.randint(2**62, (1,), generator=generator, device=generator.device)))):
        reference = Reference(channels, (height, width), classes, widths)
    reference.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    kept = resume.load(label, generator)
    if kept is not None:
        reference.load_state_dict(kept)
        return reference.eval().requires_grad_(False)
    optimiser = torch.optim.AdamW(reference.parameters(), lr=PEAK, weight_decay=1e-2)
    size = min(BATCH, len(records))
    steps = math.ceil(passes(epochs, len(records)) / size)
    done = 0
    for step in track(label, steps):
        for group in optimiser.param_groups:
            group["lr"] = PEAK * min(1.0, (step + 1) / (0.1 * steps)) * 0.5 * (1 + math.cos(math.pi * step / steps))
        picked = torch.randint(len(records), (size,), generator=generator, device=generator.device).to(device)
        pictures = augmented(records.images[picked], CROPS[: 1 + mirror], generator)
        pictures = pictures.contiguous(memory_format=torch.channels_last)  # a third faster on a CPU
        loss = F.cross_entropy(reference.logits(pictures), records.labels[picked])
        observe(loss)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        done += 1
    if done < steps:
        raise OutOfTime("the time budget ended the reference classifier's training early")
    resume.store(label, reference.state_dict(), generator)
    return reference.eval().requires_grad_(False)


@torch.no_grad()
def opinions(references: Sequence[Reference], pictures: Tensor, *, mirror: bool) -> Tensor:
    """Return class probabilities (N, K): the mean over references, five shifts and, if `mirror`, mirror images."""
    found = []
    for part in torch.split(pictures, 500):
        part = part.contiguous(memory_format=torch.channels_last)
        views = [part, *(torch.roll(part, step, dim) for step in (-1, 1) for dim in (2, 3))]
        views += [view.flip(3) for view in views] if mirror else []
        each = [reference.logits(view).softmax(1) for view in views for reference in references]
        found.append(torch.stack(each).mean(0))
    return torch.cat(found)


def tempered(probabilities: Tensor, temperature: float) -> Tensor:
    """Return probabilities (N, K) at a temperature: p^(1/T), scaled to add up to 1 (Hinton et al. 2015, eq. 1)."""
    return (probabilities.clamp_min(1e-12).log() / temperature).softmax(1)


@torch.no_grad()
def right(reference: Reference, records: Records) -> float:
    """Return the share of records (N, C, H, W) that a reference classifies correctly."""
    parts = zip(torch.split(records.images, 500), torch.split(records.labels, 500), strict=True)
    hits = sum(int((reference.logits(images).argmax(1) == labels).sum()) for images, labels in parts)
    return hits / max(1, len(records))
