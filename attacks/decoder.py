"""Decoders from released records back to private ones, built against defenses that replace records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakaudit.attack import Attack, Reconstruction, Status
from leakaudit.attacks._optimise import memory_safe, reason_of
from leakaudit.attacks.inverting_gradients import InvertingGradients
from leakaudit.attacks.labels import known_labels
from leakaudit.client import SharedUpdate, release, share
from leakaudit.defense import Defense, replaces_records
from leakaudit.errors import NotApplicable
from leakaudit.labelling import hard
from leakaudit.progress import expired, observe, track
from leakaudit.registry import register_attack
from leakaudit.rules import OVERFITTED, SHARP
from leakaudit.seeding import derive
from leakaudit.target import PixelModel, Records
from leakaudit.tuning import tune

_VALUES = 2**27  # most numbers in the training pictures: half a gigabyte, and as much again for what is made of them
_PIXELS = 32 * 64 * 64  # most pixels in a training batch, down to four pictures
_HELD = 128  # most held-out pairs looked at


@dataclass(frozen=True)
class Decoder:
    """From released pictures (N, C, H, W) and labels (N,) to guesses (N, C, H, W) in [0, 1]; and notes on it."""

    guess: Callable[[Tensor, Tensor], Tensor]
    notes: tuple[str, ...] = ()

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


@dataclass(frozen=True)
class Ridge:
    """Class means plus a linear map of what was released, fitted in the dual: x̂ = m_y + k(x̃ − m̃_y)·α.

    The first `by_class` entries of x̃ are mapped by each class's own map, the others by one that all classes share:
    k(u)_i = ⟨u, s_i⟩ over the shared entries, plus that over the others where record i is of the class of u.
    """

    means: Tensor  # (K, D) of the private pictures
    released_means: Tensor  # (K, F)
    support: Tensor  # (N, F) released training pictures, centred
    labels: Tensor  # (N,) of the support
    weights: Tensor  # (N, D), zero where only the class means are used
    missed: Tensor  # (N, D): by what the guess for a record of the support would miss it, were it not among them
    shape: tuple[int, ...]  # of a picture
    by_class: int = 0

    def kernel(self, centred: Tensor, labels: Tensor) -> Tensor:
        """Return k (M, N) of centred rows (M, F)."""
        shared = centred[:, self.by_class :] @ self.support[:, self.by_class :].T
        if not self.by_class:
            return shared
        own = centred[:, : self.by_class] @ self.support[:, : self.by_class].T
        return shared + own * (labels[:, None] == self.labels)

    def __call__(self, released: Tensor, labels: Tensor) -> Tensor:
        """Return guesses (N, C, H, W), not clamped."""
        centred = released.flatten(1) - self.released_means[labels]
        return (self.means[labels] + self.kernel(centred, labels) @ self.weights).view(-1, *self.shape)


def class_means(images: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return flat class means (K, D); a class without pictures gets the mean of all."""
    flat = images.flatten(1)
    sums = torch.zeros(classes, flat.shape[1], device=flat.device).index_add_(0, labels, flat)
    counts = torch.bincount(labels, minlength=classes)[:, None]
    return torch.where(counts > 0, sums / counts.clamp_min(1), flat.mean(0))


def fit_ridge(
    released: Tensor,
    private: Tensor,
    labels: Tensor,
    held: Tensor,
    classes: int,
    *,
    by_class: int = 0,
    settled: Tensor | None = None,
) -> Ridge:
    """Fit `Ridge` on the pairs outside `held` (N,) with the penalty, or none of the map, that is best on `held`.

    `released` are rows of any shape, `private` pictures (N, C, H, W). `settled`, of the shape of `released`, are the
    same without noise, where that is known: the map is then fitted on them, and the penalty that is best on the noisy
    held-out rows makes it the Wiener filter, which needs far fewer pairs than learning the noise from them.
    """
    x, y, c = (released if settled is None else settled)[~held].flatten(1), private[~held], labels[~held]
    means, released_means = class_means(y, c, classes), class_means(x, c, classes)
    centred, wanted = x - released_means[c], y.flatten(1) - means[c]
    shape = tuple(private.shape[1:])
    ridge = Ridge(means, released_means, centred, c, torch.zeros_like(wanted), wanted, shape, by_class)
    powers, basis = torch.linalg.eigh(ridge.kernel(centred, c))
    rotated = basis.T @ wanted
    seen, truth, told = released[held].flatten(1), private[held].flatten(1), labels[held]
    turned = ridge.kernel(seen - released_means[told], told) @ basis
    least, best = F.mse_loss(means[told], truth), None
    for penalty in (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0):
        scale = (powers.clamp_min(0) + penalty * powers.mean().clamp_min(1e-12))[:, None]
        error = F.mse_loss(means[told] + turned @ (rotated / scale), truth)
        if error < least:
            least, best = error, scale
    if best is None:
        return ridge
    weights = basis @ (rotated / best)
    return replace(ridge, weights=weights, missed=weights / (basis.square() @ (1 / best)))  # leave one out, exactly


def train_correction(
    network: nn.Module,
    error: Callable[[Tensor], Tensor],
    held_error: Callable[[], Tensor],
    train: Tensor,
    *,
    steps: int,
    batch: int,
    generator: torch.Generator,
    label: str,
) -> tuple[str, ...]:
    """Train `network` in place by Adam on `error` (of rows drawn from `train`), and leave it where it was best.

    Best is by `held_error`, looked at twenty times, the untrained state included: what corrects nothing untrained is
    not used where it does not help. Return a note where what is left fits the pairs of `train` only.
    """
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, steps), eta_min=1e-4)
    least, kept = torch.inf, {k: v.clone() for k, v in network.state_dict().items()}
    look = max(1, steps // 20)
    for k in track(label, steps):
        if k % look == 0:
            with torch.no_grad():
                now = float(held_error())
            if now < least:
                least, kept = now, {name: v.clone() for name, v in network.state_dict().items()}
        rows = train[torch.randint(len(train), (batch,), generator=generator, device=generator.device).to(train.device)]
        loss = error(rows)
        observe(loss)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        plan.step()
    with torch.no_grad():
        if float(held_error()) >= least:
            network.load_state_dict(kept)
        return overfitted(float(error(train[:_HELD])), float(held_error()))


def overfitted(trained: float, held: float) -> tuple[str, ...]:
    """Return a note where the error on training pairs is less than half of that on held-out ones, 3 dB (`SHARP`).

    More of what it knows is then by heart than decoded: with more pairs another might decode what this one does not.
    """
    told = f"mean squared error {trained:.2g} on them, {held:.2g} on held-out ones, so that its failure says less"
    return (f"{OVERFITTED}: {told}",) if trained < held * 10 ** (-SHARP / 10) else ()


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
    batch = min(32, max(4, _PIXELS // auxiliary.images[0, 0].numel()))
    released = torch.cat([release(defense, auxiliary, generator).images for _ in range(draws)])
    private, labels = auxiliary.images.repeat(draws, 1, 1, 1), auxiliary.labels.repeat(draws)
    held_records = torch.randperm(count, generator=generator, device=generator.device)[: max(1, count // 10)]
    held = torch.zeros(count, dtype=torch.bool, device=device)
    held[held_records.to(device)] = True
    held = held.repeat(draws)
    ridge = fit_ridge(released, private, labels, held, classes)

    def spoilt(images: Tensor) -> Tensor:
        if not noise:
            return images
        drawn = torch.randn(images.shape, generator=generator, device=generator.device)
        return images + noise * drawn.to(device)

    train = (~held).nonzero().flatten()
    trial, truth, told = spoilt(released[held][:_HELD]), private[held][:_HELD], labels[held][:_HELD]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(int(torch.randint(2**31, (1,), generator=generator, device=generator.device))))
        network = UNet(private.shape[1], classes)
    network = network.to(device).to(memory_format=torch.channels_last)  # the format is a third faster on a CPU

    def guess(images: Tensor, classes_of: Tensor) -> Tensor:
        first = ridge(images, classes_of)
        given = torch.cat([images, first], 1).contiguous(memory_format=torch.channels_last)
        correction: Tensor = network(given, classes_of)
        return first + correction

    notes = train_correction(
        network,
        lambda rows: F.mse_loss(guess(spoilt(released[rows]), labels[rows]), private[rows]),
        lambda: F.mse_loss(guess(trial, told).clamp(0, 1), truth),
        train,
        steps=steps,
        batch=batch,
        generator=generator,
        label=label,
    )

    return Decoder(guess, notes)


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


def rehearsed(
    settings: InvertingGradients,
    model: PixelModel,
    update: SharedUpdate,
    defense: Defense,
    auxiliary: Records | None,
    rehearsals: int,
    generator: torch.Generator,
) -> tuple[Attack, float]:
    """Return the inversion, tuned to find x̃ on updates of auxiliary records, and its root mean square error there.

    With these `settings`, and an error of 0.05, where nothing can be rehearsed.
    """
    inversion: Attack = InvertingGradients(
        steps=settings.steps,
        restarts=settings.restarts,
        tv=settings.tv,
        step_size=settings.step_size,
        patience=settings.patience,
        fall=settings.fall,
    )
    wanted = 0 if auxiliary is None else min(rehearsals, len(auxiliary) // update.batch_size) * update.batch_size
    if auxiliary is None or not wanted:
        return inversion, 0.05
    order = torch.randperm(len(auxiliary), generator=generator, device=generator.device)[:wanted]
    released = release(defense, auxiliary[order.to(auxiliary.labels.device)], generator)
    own = share(
        model,
        update.loss,
        released,
        defense,
        replace(update.exposure, released=False),
        batch_size=update.batch_size,
        classes=update.classes,
        mode=update.mode,
        generator=generator,
    )
    inversion, tuned = tune(inversion, model, own, released, generator)
    psnr = tuned.get("auxiliary_psnr")
    return inversion, 10 ** (-psnr / 20) if isinstance(psnr, float) else 0.05


@register_attack
@dataclass(frozen=True, kw_only=True)
class TwoStageDecoder(InvertingGradients):
    """Invert the update to x̃ by inverting gradients, then decode x̃ to x with a network trained through the defense.

    The decoder is trained on pairs (defense(x_aux), x_aux), as learned inversion is (Wu et al. 2023, arXiv
    2210.10880). The inversion is tuned here, on `rehearsals` updates of auxiliary records (0: not at all), for x̃ is
    what it must find; the error it makes there is the noise that the decoder learns to expect on its input.
    """

    name: ClassVar[str] = "two-stage-decoder"
    summary: ClassVar[str] = "invert to the replaced record, then undo the replacement with a trained decoder"
    source: ClassVar[str] = "Geiping et al. 2020; Wu et al. 2023"
    requires: ClassVar[frozenset[str]] = frozenset({"defense", "auxiliary"})
    grid: ClassVar[Mapping[str, tuple[float, ...]]] = {}

    decoder_steps: int = 400
    rehearsals: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decoder_steps < 1 or self.rehearsals < 0:
            raise ValueError("decoder_steps must be at least 1 and rehearsals must not be negative")

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
        return replace(first, images=images, notes=(*first.notes, *decoder.notes))


@register_attack
@dataclass(frozen=True, kw_only=True)
class ReleasedDecoder(Attack):
    """The bound: the same decoder, given the replaced record x̃ itself.

    I(x; update) ≤ I(x; x̃), so no attack on one update can know more of x than x̃ tells.
    """

    name: ClassVar[str] = "released-decoder"
    summary: ClassVar[str] = "decode the replaced record itself: bounds every attack on the update"
    source: ClassVar[str] = "data-processing inequality; Wu et al. 2023"
    requires: ClassVar[frozenset[str]] = frozenset({"defense", "auxiliary", "released"})

    decoder_steps: int = 400

    def __post_init__(self) -> None:
        if self.decoder_steps < 1:
            raise ValueError("decoder_steps must be at least 1")

    @memory_safe
    def __call__(self, model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Reconstruction:
        """Return decoded pictures. It has no objective of its own: zeros."""
        defense, auxiliary = decodable(update)
        if update.released is None:
            raise NotApplicable("the replaced records are not exposed")
        labels = hard(known_labels(model, update, generator))
        decoder = fit_decoder(defense, auxiliary, update.classes, generator, steps=self.decoder_steps, label=self.name)
        status: Status = "budget" if expired() else "converged"
        return Reconstruction(
            images=decode_all(decoder, update.released, labels),
            labels=labels,
            objective=torch.zeros(update.victims, device=labels.device),
            statuses=(status,) * update.victims,
            reason=reason_of((status,) * update.victims),
            notes=decoder.notes,
        )
