"""Decoders from released records back to private ones, built against defenses that replace records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakaudit.attacks._attacking import cut_short, memory_safe, reason_of
from leakaudit.attacks._labels import known_labels
from leakaudit.attacks._regression import _HELD, fit_ridge, train_correction
from leakaudit.attacks._rehearsal import inversions, rehearsed
from leakaudit.attacks.inverting_gradients import InvertingGradients
from leakaudit.errors import NotApplicable
from leakaudit.protocol.amounts import Amount, Sizes
from leakaudit.protocol.attack import Attack, Effort, Needs, Reconstruction, Status
from leakaudit.protocol.client import SharedUpdate, release
from leakaudit.protocol.defense import Defense, replaces_records
from leakaudit.protocol.labels import hard
from leakaudit.protocol.registry import register_attack
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.work.memory import need
from leakaudit.work.progress import expired
from leakaudit.work.seeding import derive, forked

_VALUES = 2**27  # most numbers in the training pictures: half a gigabyte, and as much again for what is made of them

WORTH = 4  # steps of a small network that one of the decoder takes as long as
_PIXELS = 32 * 64 * 64  # most pixels in a training batch, down to four pictures


@dataclass(frozen=True)
class Decoder:
    """From released pictures (N, C, H, W) and labels (N,) to guesses (N, C, H, W) in [0, 1]; and doubts about it."""

    guess: Callable[[Tensor, Tensor], Tensor]
    doubts: Mapping[str, str] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, released: Tensor, labels: Tensor) -> Tensor:
        """Return guesses."""
        return self.guess(released, labels).clamp(0, 1)


class UNet(nn.Module):
    """A small U-Net for pictures of any size and channel count, told the label at its bottleneck.

    It takes the released picture and a first guess, (N, 2C, H, W), and returns a correction (N, C, H, W). Its last
    layer starts at zero, so that untrained it corrects nothing.
    """

    def __init__(self, channels: int, classes: int, width: int = 16) -> None:
        super().__init__()
        self.enter = nn.Conv2d(2 * channels, width, 3, padding=1)
        self.down1 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.down2 = nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(4 * width, 4 * width, 3, padding=1)
        self.whole = nn.Linear(4 * width, 4 * width)  # what the picture holds as a whole, spread over it
        self.label = nn.Embedding(classes, 4 * width)
        self.up2 = nn.Conv2d(6 * width, 2 * width, 3, padding=1)
        self.up1 = nn.Conv2d(3 * width, width, 3, padding=1)
        self.leave = nn.Conv2d(width + 2 * channels, channels, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)  # type: ignore[arg-type]

    def forward(self, given: Tensor, labels: Tensor) -> Tensor:
        """Return the correction."""
        x1 = F.leaky_relu(self.enter(given), 0.1)
        x2 = F.leaky_relu(self.down1(x1), 0.1)
        x3 = F.leaky_relu(self.down2(x2), 0.1)
        told = self.whole(x3.mean((2, 3))) + self.label(labels)
        x3 = x3 + F.leaky_relu(self.middle(x3) + told[:, :, None, None], 0.1)
        y2 = F.leaky_relu(self.up2(torch.cat([F.interpolate(x3, x2.shape[2:]), x2], 1)), 0.1)
        y1 = F.leaky_relu(self.up1(torch.cat([F.interpolate(y2, x1.shape[2:]), x1], 1)), 0.1)
        correction: Tensor = self.leave(torch.cat([y1, given], 1))
        return correction


def fit_decoder(
    defense: Defense,
    auxiliary: Records,
    classes: int,
    generator: torch.Generator,
    *,
    steps: int,
    draws: int = 4,
    noise: float = 0.0,
    label: str = "decoder",
) -> Decoder:
    """Train a decoder from x̃ = defense(x, y) to x on auxiliary pairs, several draws of x̃ per record.

    First `Ridge` on top of the class means, then a `UNet` that corrects it, by the MSE, keeping the state that is
    best on a held-out tenth of the records: neither stage is used where it does not help there, so the decoder is no
    worse than predicting the class mean. `noise` is the deviation of noise added to x̃ in training, for decoders
    whose input is itself a reconstruction. `auxiliary` must hold at least 2 records (NotApplicable).
    """
    count, device = len(auxiliary), auxiliary.images.device
    if count < 2:
        raise NotApplicable(f"a decoder needs at least 2 auxiliary records, here there are {count}")
    auxiliary = auxiliary[: max(2, _VALUES // auxiliary.images[0].numel())]
    count, draws = len(auxiliary), max(1, min(draws, _VALUES // auxiliary.images.numel()))
    need(4 * 4 * draws * auxiliary.images.numel(), f"{draws * count} training pictures", "auxiliary records", device)
    batch = min(32, max(4, _PIXELS // auxiliary.images[0, 0].numel()))
    released = torch.cat([release(defense, auxiliary, generator).images for _ in range(draws)])
    private, labels = auxiliary.images.repeat(draws, 1, 1, 1), auxiliary.labels.repeat(draws)
    held = _held_out(count, generator).to(device).repeat(draws)
    ridge = fit_ridge(released, private, labels, held, classes)

    def spoilt(images: Tensor) -> Tensor:
        if not noise:
            return images
        drawn = torch.randn(images.shape, generator=generator, device=generator.device)
        return images + noise * drawn.to(device)

    train = (~held).nonzero().flatten()
    trial, truth, told = spoilt(released[held][:_HELD]), private[held][:_HELD], labels[held][:_HELD]
    with forked(derive(int(torch.randint(2**31, (1,), generator=generator, device=generator.device)))):
        network = UNet(private.shape[1], classes)
    network = network.to(device).to(memory_format=torch.channels_last)  # the format is a third faster on a CPU

    def guess(images: Tensor, classes_of: Tensor) -> Tensor:
        first = ridge(images, classes_of)
        given = torch.cat([images, first], 1).contiguous(memory_format=torch.channels_last)
        correction: Tensor = network(given, classes_of)
        return first + correction

    doubts = train_correction(
        network,
        lambda rows: F.mse_loss(guess(spoilt(released[rows]), labels[rows]), private[rows]),
        lambda: F.mse_loss(guess(trial, told).clamp(0, 1), truth),
        train,
        steps=steps,
        batch=batch,
        generator=generator,
        label=label,
    )

    return Decoder(guess, doubts)


def _held_out(count: int, generator: torch.Generator) -> Tensor:
    """Return for each of so many records whether it is of the tenth that nothing is fitted on."""
    held = torch.zeros(count, dtype=torch.bool, device=generator.device)
    held[torch.randperm(count, generator=generator, device=generator.device)[: max(1, count // 10)]] = True
    return held


def decodable(update: SharedUpdate) -> tuple[Defense, Records]:
    """Return the defense and the auxiliary records, or raise NotApplicable with what is missing."""
    if update.defense is None or update.auxiliary is None:
        raise NotApplicable("the defense or auxiliary records are not exposed")
    if not replaces_records(update.defense):
        raise NotApplicable("the defense does not replace records, so there is nothing to decode")
    return update.defense, update.auxiliary


def decode_all(decoder: Decoder, pictures: Tensor, labels: Tensor) -> Tensor:
    """Decode pictures (V, B, C, H, W) with labels (V, B)."""
    return decoder(pictures.flatten(0, 1), labels.flatten()).view_as(pictures)


@register_attack
@dataclass(frozen=True, kw_only=True)
class TwoStageDecoder(InvertingGradients):
    """Invert the update to x̃ by inverting gradients, then decode x̃ to x with a network trained through the defense.

    The decoder is trained on pairs (defense(x_aux), x_aux), as learned inversion is (Wu et al. 2023, arXiv
    2210.10880). The inversion is tuned here, on `rehearsals` updates of auxiliary records (0: not at all), for x̃ is
    what it must find; the error it makes there is the noise that the decoder learns to expect on its input.
    """

    family: ClassVar[str] = "learned"
    name: ClassVar[str] = "two-stage-decoder"
    summary: ClassVar[str] = "invert to the replaced record, then undo the replacement with a trained decoder"
    source: ClassVar[str] = "Geiping et al. 2020; Wu et al. 2023"
    requires: ClassVar[frozenset[str]] = frozenset({"defense", "auxiliary"})
    grid: ClassVar[Mapping[str, tuple[float, ...]]] = {}
    needs: ClassVar[Needs] = Needs(replaced_records=True)
    examines: ClassVar[frozenset[str]] = frozenset({"records"})
    effort: ClassVar[tuple[Effort, ...]] = ("steps", "restarts", "decoder_steps")

    decoder_steps: int = 400
    rehearsals: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decoder_steps < 1 or self.rehearsals < 0:
            raise ValueError("decoder_steps must be at least 1 and rehearsals must not be negative")

    def amount(self, sizes: Sizes) -> Amount:
        """Return how much work it is: the inversion is tuned for itself, and the decoder trained."""
        return inversions(self.steps * self.restarts, sizes, self.rehearsals) + Amount(own=WORTH * self.decoder_steps)

    @memory_safe
    def __call__(self, model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Reconstruction:
        """Return decoded pictures; the objective is that of the inversion."""
        defense, auxiliary = decodable(update)
        inversion, error = rehearsed(self, model, update, defense, auxiliary, self.rehearsals, generator)
        first = inversion(model, update, generator)
        if first.images is None or first.labels is None:
            return first
        decoder = fit_decoder(
            defense, auxiliary, update.classes, generator, steps=self.decoder_steps, noise=error, label=self.name
        )
        images = decode_all(decoder, first.images, first.labels)
        return replace(cut_short(first), images=images, doubts={**first.doubts, **decoder.doubts})


@register_attack
@dataclass(frozen=True, kw_only=True)
class ReleasedDecoder(Attack):
    """The bound: the same decoder, given the replaced record x̃ itself.

    I(x; update) ≤ I(x; x̃), so no attack on one update can know more of x than x̃ tells.
    """

    family: ClassVar[str] = "learned"
    name: ClassVar[str] = "released-decoder"
    summary: ClassVar[str] = "decode the replaced record itself: bounds every attack on the update"
    source: ClassVar[str] = "data-processing inequality; Wu et al. 2023"
    requires: ClassVar[frozenset[str]] = frozenset({"defense", "auxiliary", "released"})
    needs: ClassVar[Needs] = Needs(replaced_records=True)
    examines: ClassVar[frozenset[str]] = frozenset({"records"})
    effort: ClassVar[tuple[Effort, ...]] = ("decoder_steps",)

    decoder_steps: int = 400

    def __post_init__(self) -> None:
        if self.decoder_steps < 1:
            raise ValueError("decoder_steps must be at least 1")

    def amount(self, sizes: Sizes) -> Amount:
        """Return how much work it is: the decoder is trained."""
        return Amount(updates=sizes.victims, own=WORTH * self.decoder_steps)

    @memory_safe
    def __call__(self, model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Reconstruction:
        """Return decoded pictures. It has no objective of its own: zeros."""
        defense, auxiliary = decodable(update)
        if update.released is None:
            raise NotApplicable("the replaced records are not exposed")
        labels = hard(known_labels(model, update, generator), update.task)
        decoder = fit_decoder(defense, auxiliary, update.classes, generator, steps=self.decoder_steps, label=self.name)
        status: Status = "budget" if expired() else "converged"
        return Reconstruction(
            images=decode_all(decoder, update.released, labels),
            labels=labels,
            objective=torch.zeros(update.victims, device=labels.device),
            statuses=(status,) * update.victims,
            reason=reason_of((status,) * update.victims),
            doubts=decoder.doubts,
        )
