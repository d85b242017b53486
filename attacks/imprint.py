"""Imprint: a malicious server puts a layer of bins before the network, whose gradient holds one record per bin."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakaudit.attacks._attacking import cut_short, memory_safe
from leakaudit.attacks.analytic import known_labels_or_none
from leakaudit.errors import NotApplicable
from leakaudit.protocol.amounts import Amount, Sizes
from leakaudit.protocol.attack import Attack, Beforehand, Reconstruction, Status
from leakaudit.protocol.client import SharedUpdate, release, sent
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.gradients import Gradients, in_mode, parameters_of
from leakaudit.protocol.registry import register_attack
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.work.progress import track
from leakaudit.work.seeding import seeded

TRACE = 0.01  # standard deviations of the data, by which the bins' sum moves a picture
LOGITS = 1.0  # root mean square, above which the planted model's logits are scaled down to it
OWN = 256  # auxiliary records that the bins are set by
REHEARSED = 64  # auxiliary records, by whose updates pixels are told from what the defense made of them
ROOM = 2**20  # numbers in idle rows, of which there are a hundred per record at most
LEAST = 8  # of them must be found again, or nothing is learned
EXACT = 1e-3  # how near to 1 the factor of a pixel must be to be 1


class Bins(nn.Module):
    """k rows of one direction, the mean brightness m(x), each at work between two thresholds of its own.

    Row i gives α·min(max(0, m(x) − t_i), t_{i+1} − t_i). All rows weigh the same in the sum, which is added to the
    picture along a fixed direction: a record has a slope in the row of its own bin alone, and there its gradient is
    g·(x − c, s) with c a picture that is taken off and s a factor at the bias. Idle rows, which nothing reaches, come
    last: what cuts the smallest entries of a layer cuts theirs first.
    """

    thresholds: Tensor
    centre: Tensor

    def __init__(self, thresholds: Tensor, centre: Tensor, fold: Tensor, share: float, idle: int) -> None:
        super().__init__()
        self.bins, pixels = len(thresholds) - 1, fold.numel()
        self.rows = nn.Parameter(torch.zeros(self.bins + idle, pixels))
        self.edges = nn.Parameter(torch.zeros(self.bins + idle))
        self.sum = nn.Parameter(torch.zeros(self.bins + idle))
        self.fold = nn.Parameter(fold.clone().flatten())
        self.register_buffer("thresholds", thresholds.clone(), persistent=False)
        self.register_buffer("centre", centre.clone().flatten(), persistent=False)
        self.share, self.alpha = share, 1.0
        self.scaled(1.0)

    def scaled(self, alpha: float) -> None:
        """Scale the rows by α and what sums them by 1/α: the same function, and gradients of the rows 1/α as large."""
        self.alpha = alpha
        with torch.no_grad():
            self.rows.fill_(alpha / self.rows.shape[1])
            self.edges.fill_(-10 * alpha)
            self.edges[: self.bins] = alpha * (self.centre.mean() - self.thresholds[:-1]) / self.share
            self.sum.fill_(1 / (alpha * self.bins))

    def forward(self, x: Tensor) -> Tensor:
        """Return pictures (N, C, H, W) hardly changed."""
        height = F.linear(x.flatten(1) - self.centre, self.rows, self.share * self.edges).clamp_min(0)
        widths = F.pad(self.alpha * self.thresholds.diff(), (0, len(self.edges) - self.bins))
        sums = torch.minimum(height, widths) @ self.sum
        return x + (sums[:, None] * self.fold).view_as(x)


class Imprinted(PixelModel):
    """A model with bins before its network, whose logits are scaled by `cooling` so that no record's slope vanishes."""

    def __init__(self, model: PixelModel, bins: Bins) -> None:
        super().__init__(model.network, **model.reading())
        self.mean, self.std = model.mean.clone(), model.std.clone()
        self.bins, self.cooling = bins, 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes) for pictures `x` (N, C, H, W) in [0, 1]."""
        return self.cooling * super().forward(self.bins(x))


def bins_in(model: PixelModel) -> Bins:
    """Return the bins of a model; raises NotApplicable where a defense took them out, or nobody put any in."""
    found = [module for module in model.modules() if isinstance(module, Bins)]
    if not found:
        raise NotApplicable("no bins are in the model that the clients were sent")
    return found[0]


@dataclass(frozen=True)
class Read:
    """What rows (n, D) hold, each as two readings of x − c (n, D): exact for one undefended record, or of unit length.

    `strength` (n,) is the norm of the row's gradient.
    """

    which: Tensor
    ratio: Tensor
    direction: Tensor
    strength: Tensor


def rows_of(model: PixelModel, bins: Bins, gradients: Gradients) -> tuple[Tensor, Tensor]:
    """Return the gradients (…, k, D) and (…, k) of the rows that have a bin."""
    place = {id(p): i for i, p in enumerate(parameters_of(model)[1])}
    weight, bias = gradients[place[id(bins.rows)]], gradients[place[id(bins.edges)]]
    return weight[..., : bins.bins, :], bias[..., : bins.bins]


def read(weight: Tensor, bias: Tensor, share: float, batch: int) -> Read:
    """Return what the `batch` strongest rows of gradients (k, D) and (k,) hold, fewer where no more have any.

    Where one record is in a bin, ∂W/∂b = (x − c)/s (Fowl et al. 2022, eq. 2, for bins that do not overlap).
    """
    weight, bias = weight.double(), bias.double() / share
    strength = (weight.square().sum(1) + (share * bias).square()).sqrt()
    which = strength.argsort(descending=True, stable=True)[:batch]
    which = which[(strength[which] > 0) & (bias[which] != 0)]
    weight, bias, strength = weight[which], bias[which], strength[which]
    return Read(which, weight / bias[:, None], weight * bias.sign()[:, None] / strength[:, None], strength)


@dataclass(frozen=True)
class Reading:
    """How pixels are told from a reading: x = mean + factor · (reading − its mean), all (D,)."""

    ratio: bool  # of the two readings, which
    factor: Tensor
    middle: Tensor
    mean: Tensor

    def pictures(self, found: Read) -> Tensor:
        """Return flat pictures (n, D)."""
        given = found.ratio if self.ratio else found.direction
        return self.mean + self.factor * (given - self.middle)


def learned(found: Read, truth: Tensor, centre: Tensor) -> Reading:
    """Return the reading whose least-squares line, pixel by pixel, errs least on the adversary's own pictures (n, D).

    It knows how much of a pixel noise, signs or pruning left; what is exact but for rounding stays so.
    """
    best, least = None, math.inf
    for ratio in (True, False):
        given = found.ratio if ratio else found.direction
        middle, mean = given.mean(0), truth.mean(0)
        both = ((given - middle) * (truth - mean)).sum(0)
        factor = both / (given - middle).square().sum(0).clamp_min(1e-30)
        if ratio and bool(((factor - 1).abs() < EXACT).all()):
            return Reading(True, torch.ones_like(centre), torch.zeros_like(centre), centre)
        reading = Reading(ratio, factor, middle, mean)
        error = float((reading.pictures(found) - truth).square().mean())
        if best is None or error < least:
            best, least = reading, error
    assert best is not None
    return best


def rehearsed(model: PixelModel, bins: Bins, update: SharedUpdate, own: Records, generator: torch.Generator) -> Reading:
    """Return how pixels are told, learned from what the adversary's own records send through the defense."""
    defense, batch = update.defense or Defense(), update.batch_size
    own = own[: min(len(own), max(REHEARSED, batch)) // batch * batch]
    rows: list[Read] = []
    truth: list[Tensor] = []
    tried = 0
    for k in track("rehearsing", len(own) // batch):
        some, seed = own[k * batch : (k + 1) * batch], int(torch.randint(2**62, (1,), generator=generator))
        with seeded(seed, "rehearsing"):
            drawn = torch.Generator().manual_seed(seed)
            shown = release(defense, some, drawn)
            gradients, _ = sent(
                model, update.loss, shown.images, shown.labels, defense, update.mode, drawn, update.client
            )
        found = read(*rows_of(model, bins, gradients), bins.share, batch)
        inside = torch.bucketize(shown.images.flatten(1).mean(1), bins.thresholds) - 1
        for i, bin_of in enumerate(inside.tolist()):
            at = (found.which == bin_of).nonzero()[:, 0]
            alone = int((inside == bin_of).sum()) == 1
            tried += alone
            if alone and len(at) == 1:
                rows.append(Read(found.which[at], found.ratio[at], found.direction[at], found.strength[at]))
                truth.append(some.images[i].flatten().double())
    centre = bins.centre.double()
    if len(rows) < LEAST:  # too few to learn from, or they were not where they must be
        factor = torch.ones_like(centre) if tried < 2 * LEAST else torch.zeros_like(centre)
        return Reading(True, factor, torch.zeros_like(centre), centre)
    joined = (torch.cat([getattr(r, name) for r in rows]) for name in ("which", "ratio", "direction", "strength"))
    return learned(Read(*joined), torch.stack(truth), centre)


@register_attack
@dataclass(frozen=True, kw_only=True)
class Imprint(Attack):
    """Put a layer of bins before the network and read each bin's record off its gradient (arXiv 2110.13057).

    A change of the architecture, by whoever sends the model: a dense layer on the flattened picture all of whose rows
    measure brightness, each between two thresholds at neighbouring quantiles of the normal fitted to auxiliary records
    (the variant without overlap of Fowl et al. 2022), a sum, and that sum folded back onto the picture, which it hardly
    moves. A record that is alone in its bin is the quotient of that row's gradients: of B records in k bins the share
    (1 − 1/k)^(B−1). k is 1 + `bins`·(B − 1). Records of one bin come out mixed.

    The server sets how large gradients are: the rows are scaled down, and what sums them up, until their slopes on
    auxiliary records are about `slope`, the function remaining the same. So noise that does not follow the gradient's
    size hides nothing; what clips each record's gradient first bounds it. Logits above 1 are scaled down, or a network
    that is sure of a record would give it no slope. How pixels are told from what a defense left of them is learned
    from updates of auxiliary records.
    """

    family: ClassVar[str] = "malicious-server"
    name: ClassVar[str] = "imprint"
    summary: ClassVar[str] = "malicious server: a layer of bins before the network, one record read off each"
    source: ClassVar[str] = "Fowl et al. 2022 (Robbing the Fed)"
    requires: ClassVar[frozenset[str]] = frozenset({"model_control", "auxiliary"})
    examines: ClassVar[frozenset[str]] = frozenset({"anything"})

    bins: int = 16
    slope: float = 1e8

    def __post_init__(self) -> None:
        if self.bins < 1:
            raise ValueError("bins must be at least 1")
        if not 0 < self.slope <= 1e12:
            raise ValueError("slope must be above 0 and at most 1e12")

    def amount(self, sizes: Sizes) -> Amount:
        """Return how much work it is: an update of every victim, of 32 records to plant by and of those rehearsed."""
        return Amount(updates=sizes.victims + 32 + REHEARSED / max(1, sizes.batch))

    def plant(self, model: PixelModel, known: Beforehand, generator: torch.Generator) -> PixelModel:
        """Return the model with bins before it."""
        own = own_records(known.auxiliary, generator)
        flat = own.images.flatten(1).double()
        bright, centre = flat.mean(1), flat.mean(0)
        normal = NormalDist(float(bright.mean()), max(1e-6, float(bright.std(correction=0))))
        count = 1 + self.bins * (known.batch_size - 1)
        inner = [normal.inv_cdf(i / count) for i in range(1, count)]
        thresholds = torch.tensor([min([-1.0, *(t - 1 for t in inner)]), *inner, max([2.0, *(t + 1 for t in inner)])])
        signs = 2.0 * torch.randint(2, own.images.shape[1:], generator=generator, device=generator.device) - 1
        fold = TRACE * signs.to(model.mean) * model.std[0]
        share = float((flat - centre).norm(dim=1).mean().clamp_min(1.0))
        device = model.mean.device
        idle = min(100 * known.batch_size, ROOM // flat.shape[1])
        bins = Bins(thresholds.to(device), centre.float(), fold, share, idle).to(device)
        planted = Imprinted(model, bins)
        with in_mode(planted, "eval"):
            given = slopes(planted, known, own)
        typical = float(given.abs().median())
        if not (math.isfinite(typical) and typical > 0):
            raise NotApplicable("the network passes no slope back to its pictures")
        bins.scaled(min(1.0, typical / self.slope))
        return planted

    @memory_safe
    def __call__(self, model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Reconstruction:
        """Return the pictures; a victim whose rows have no gradient, or one that is not finite, is `diverged`."""
        bins, own = bins_in(model), own_records(update.auxiliary, generator)
        labels = known_labels_or_none(model, update, generator)
        reading = rehearsed(model, bins, update, own, generator)
        weights, biases = rows_of(model, bins, update.gradients)
        shape = (update.victims, update.batch_size, *update.input_shape)
        images = bins.centre.view(update.input_shape).expand(shape).clone()
        objective = torch.full((update.victims,), torch.inf).to(model.mean)
        statuses: list[Status] = ["diverged"] * update.victims
        count = 0
        for v, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            if not (weight.isfinite().all() and bias.isfinite().all() and bias.any()):
                continue
            found = read(weight, bias, bins.share, update.batch_size)
            drawn = reading.pictures(found).view(-1, *update.input_shape).to(images)
            statuses[v], objective[v] = "converged", -found.strength.sum()
            images[v, : len(drawn)] = drawn.clamp(0, 1)
            count += len(drawn)
        slots = update.victims * update.batch_size
        told = f"{count} bins held something of {slots} records; the mean picture stands in the other slots."
        return cut_short(
            Reconstruction(
                images=images,
                labels=labels,
                objective=objective,
                statuses=tuple(statuses),
                reason=None if "diverged" not in statuses else "the planted rows' gradient is zero or not finite",
                notes=(told,) if count < slots else (),
            )
        )


def own_records(auxiliary: Records | None, generator: torch.Generator, most: int = OWN) -> Records:
    """Return some of the adversary's records; raises NotApplicable where it has none."""
    if auxiliary is None or not len(auxiliary):
        raise NotApplicable("auxiliary records are not exposed")
    order = torch.randperm(len(auxiliary), generator=generator, device=generator.device)[:most]
    return auxiliary[order.to(auxiliary.images.device)]


def slopes(model: Imprinted, known: Beforehand, own: Records) -> Tensor:
    """Return the slope (n,) that each record of the adversary's gives its row, and cool the logits where they are sure.

    Of the loss of one record in the height of its row; α is 1.
    """
    with torch.no_grad():
        size = float(PixelModel.forward(model, own.images).double().square().mean().sqrt())
    if math.isfinite(size) and size > LOGITS:
        model.cooling = LOGITS / size
    found = []
    with torch.enable_grad():
        for image, label in zip(own.images[:32], own.taught[:32], strict=False):
            pixels = image[None].clone().requires_grad_()
            logits = model.cooling * PixelModel.forward(model, pixels)
            (slope,) = torch.autograd.grad(known.loss(logits, label[None]), pixels)
            found.append((slope.flatten() @ model.bins.fold.detach()) / model.bins.bins)
    return torch.stack(found)
