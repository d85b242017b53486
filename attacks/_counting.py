"""How often each class is in a batch: the counts that explain the head's gradient best, and classes surely in it.

A record of class y adds q − e_y to the slope in the head's output, q being its chances of the classes (`Head.scale`),
so the mean over B records is ∂b = q̄ − n/B for counts n. Nobody knows q̄: the smaller the chances of other classes on a
trained network, the less is in ∂b. What is known is how q is distributed for each class, on auxiliary records.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from leakaudit.engine import head as engine_head
from leakaudit.protocol.client import SharedUpdate, release, sent
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.gradients import Gradients
from leakaudit.protocol.labels import hard
from leakaudit.protocol.target import PixelModel
from leakaudit.work.progress import track

RIDGE = 1e-3  # of the mean variance of the chances, added to each, so that their covariance has an inverse
BORROWED = 2.0  # records of the mean of all that the mean of a class is mixed with
SURE = 6.0  # standard deviations of noise by which an entry must be below zero
ROUNDING = 2.0**-22  # of a slope p − 1 near zero: what is no more makes no sum of numbers above zero negative
PLAYED, FOLDS = 24, 4  # clients of auxiliary records, whose updates show what counts do to local steps
NEAR = 0.75  # of their records are drawn by the counts of a victim, the rest evenly
BELIEF = 0.05  # in how much a record of a class adds at the first step, beside what clients show, of their weight
CONFIDENT = 0.25  # how far from equal chances to certainty a model is on random pictures, if it has been trained


@dataclass(frozen=True)
class Chances:
    """What the chances of the classes are for records of each class: means (K, K), row k for class k, and covariance.

    `shares` (K,) is how frequent the classes are among records; `nonnegative` says that no input of the head was
    negative, `largest` how large one was, `confident` that the largest chance of a picture is more than an untrained
    model's, by CONFIDENT.
    """

    means: Tensor
    covariance: Tensor
    shares: Tensor
    nonnegative: bool
    largest: float
    confident: bool = False


def chances_of(
    model: PixelModel, update: SharedUpdate, at: engine_head.Head, pictures: Tensor, labels: Tensor | None
) -> Chances:
    """Return the chances of the classes on probe pictures (N, C, H, W) of `labels` (N,), or of no known class.

    A model in train mode sees them in batches of the update's size, as the private ones. Without labels every class is
    taken to have the mean of all, and the classes to be equally frequent.
    """
    least, largest = torch.inf, 0.0
    outputs: list[Tensor] = []

    def watch(_: nn.Module, given: tuple[Tensor, ...], found: Tensor) -> None:
        nonlocal least, largest
        least, largest = min(least, float(given[0].min())), max(largest, float(given[0].max()))
        outputs.append(engine_head.mean_over_places(at.layer, found.detach()))

    size = update.batch_size if update.mode == "train" else len(pictures)
    handle = at.layer.register_forward_hook(watch)
    try:
        with torch.no_grad():
            for start in range(0, max(1, len(pictures) - size + 1), size):
                model(pictures[start : start + size])
    finally:
        handle.remove()
    found = torch.cat(outputs)
    if at.scale is None:
        q = found.softmax(1).double()
    else:
        (slope,) = engine_head.slopes(model, update.loss, at, found, update.input_shape, [0])
        q = slope.double() / at.scale
        q[:, 0] += 1
    return distributed(q, None if labels is None else labels[: len(q)], least >= 0, largest)


def distributed(q: Tensor, labels: Tensor | None, nonnegative: bool, largest: float = 1.0) -> Chances:
    """Return the means, by class and each mixed with a little of all, and the covariance within, of chances (N, K)."""
    count, classes = q.shape
    member = q.new_zeros(count, classes)
    if labels is not None:
        member[torch.arange(count, device=q.device), labels] = 1
    size = member.sum(0)
    means = (member.T @ q + BORROWED * q.mean(0)) / (size + BORROWED)[:, None]
    apart = q - (member @ means if labels is not None else q.mean(0))
    covariance = apart.T @ apart / count
    ridge = RIDGE * covariance.diagonal().mean().clamp_min(1e-12)
    covariance = covariance + ridge * torch.eye(classes, device=q.device, dtype=q.dtype)
    shares = (size + 1) / (size + 1).sum()  # no class is ruled out for being absent among them
    return Chances(
        means,
        covariance,
        shares,
        nonnegative,
        largest,
        bool(q.amax(1).mean() > 1 / classes + CONFIDENT * (1 - 1 / classes)),
    )


def supposed(known: Chances, slope: Tensor, batch: int) -> Chances:
    """Return what is supposed of a trained model where only random pictures were to be had, given ∂b (K,).

    They tell nothing of its chances on real ones. E[q | k] is then taken as (1 − t) e_k + t / K, so that
    ∂b = t (1/K − n / B), with the t that gives ∂b the length that it has on average for counts of equal chances.
    """
    classes = len(slope)
    unit = torch.eye(classes, device=slope.device, dtype=torch.float64)
    expected = (1 - 1 / classes) / batch
    t = float((slope.double().square().sum() / expected).sqrt().clamp(1e-6, 1))
    means = (1 - t) * unit + t / classes
    return Chances(means, t * (1 - t / 2) / classes * unit, known.shares, known.nonnegative, known.largest)


def noise_of(rows: Tensor) -> float:
    """Return the standard deviation of what was added to a head's gradient (K, D), by its columns' sums.

    Slopes q − e_y sum to zero over the classes, and so does every column: what is left there was not computed.
    """
    return float((rows.double().sum(0).square().mean() / len(rows)).sqrt())


def surely_in(rows: Tensor, rounding: float) -> Tensor:
    """Return which classes (K,) are surely in a batch, for a head's gradient (K, D) on inputs that are not negative.

    Row k is Σ q_ik h_i over the records of other classes, less Σ (1 − q_ik) h_i over those of class k: without any of
    class k no entry is negative (Yin et al. 2021, eq. 6, there as an assumption). Noise is allowed for
    where there is more of it than `rounding`, of which the slopes 1 − q of a sure model are full.
    """
    noise = noise_of(rows)
    sure: Tensor = rows.amin(1) < (-SURE * noise if noise > rounding else 0)
    return sure


def likeliest_counts(slope: Tensor, known: Chances, noise: float, least: Tensor, batch: int) -> Tensor:
    """Return the counts n (K,), no less than `least` and summing to `batch`, that are likeliest given ∂b (K,).

    The mean of B records' slopes is taken as normal, of mean Σ_k n_k (E[q | k] − e_k) / B and covariance Cov(q) / B,
    `noise` beside it, and the counts as multinomial. One record after another is given to the class that raises the
    likelihood most, and then moved from class to class while that raises it.
    """
    classes = len(slope)
    unit = torch.eye(classes, device=slope.device, dtype=torch.float64)
    precision = torch.linalg.inv(known.covariance / batch + noise**2 * unit)
    steps = (known.means - unit) / batch  # (K, K): what one record of each class adds to the slope
    inner, along = steps @ precision @ steps.T, steps @ precision @ slope.double()
    prior = known.shares.log()

    def gain(counts: Tensor) -> Tensor:  # of the log-likelihood, for one more record of each class
        more: Tensor = along - inner @ counts - inner.diagonal() / 2 + prior - (counts + 1).log()
        return more

    counts = least.double()
    for k in range(int(counts.sum()), batch):
        missing = (batch - k - 1) * known.shares  # the records to come are expected to be as frequent as any
        counts = counts + unit[int(gain(counts + missing).argmax())]
    for _ in range(4 * batch):
        more = gain(counts)
        fewer = -along + inner @ counts - inner.diagonal() / 2 - prior + counts.clamp_min(1).log()
        moves = fewer[:, None] + more[None, :] + inner
        moves[counts <= least, :] = -torch.inf
        moves.fill_diagonal_(-torch.inf)
        if not bool(moves.max() > 1e-9):
            break
        before, after = divmod(int(moves.argmax()), classes)
        counts = counts - unit[before] + unit[after]
    return counts.long()


@dataclass(frozen=True)
class Played:
    """What N clients with auxiliary records of known `counts` (N, K) send: the head's gradient, by class."""

    counts: Tensor
    weights: Tensor  # (N, K, D)
    slopes: Tensor  # (N, K)

    def __getitem__(self, rows: Tensor) -> Played:
        return Played(self.counts[rows], self.weights[rows], self.slopes[rows])


def played(
    model: PixelModel,
    update: SharedUpdate,
    counts: Tensor,
    read: Callable[[Gradients], tuple[Tensor, Tensor]],
    generator: torch.Generator,
) -> Played | None:
    """Return what `PLAYED` clients of auxiliary records send after the whole defense; None without any, or the time.

    Each has records drawn near the supposed `counts` (V, K) of one victim; `read` gives the head's gradient.
    """
    own, defense, size = update.auxiliary, update.defense or Defense(), update.batch_size
    if own is None or not len(own):
        return None
    labels = hard(own.labels, update.task)
    there = torch.bincount(labels, minlength=update.classes)
    drawn, weights, slopes = [], [], []
    for i in track("labels: clients of auxiliary records", PLAYED):
        shares = (NEAR * counts[i % len(counts)] / size + (1 - NEAR) / update.classes).to(there.device)
        chances = (shares / there.clamp_min(1))[labels].cpu().float()
        picked = torch.multinomial(chances, size, replacement=True, generator=generator).to(labels.device)
        released = release(defense, own[picked], generator)
        gradients, _ = sent(
            model, update.loss, released.images, released.labels, defense, update.mode, generator, update.client
        )
        weight, slope = read(gradients)
        drawn.append(torch.bincount(labels[picked], minlength=update.classes))
        weights.append(weight.nan_to_num(0, 0, 0))
        slopes.append(slope.nan_to_num(0, 0, 0))
    if len(slopes) < PLAYED:
        return None
    return Played(torch.stack(drawn), torch.stack(weights), torch.stack(slopes))


def regressed(known: Chances, seen: Played, size: int) -> Chances:
    """Return the chances for which clients of `size` records send what these sent, by their counts.

    What a record of a class adds is a ridge regression of the slopes on the counts, drawn to what it adds at the first
    step; the covariance is that of what is left, noise and the optimiser's own ways included.
    """
    counts, slopes = seen.counts.double(), seen.slopes.double()
    unit = torch.eye(counts.shape[1], dtype=counts.dtype, device=counts.device)
    first = (known.means - unit) / size  # (K, K): what one record of each class adds at the first step
    gram = counts.T @ counts
    ridge = BELIEF * gram.diagonal().mean() * unit
    steps = first + torch.linalg.solve(gram + ridge, counts.T @ (slopes - counts @ first))
    left = slopes - counts @ steps
    covariance = (size * left.T @ left + len(unit) * known.covariance) / (len(left) + len(unit))
    return replace(known, means=size * steps + unit, covariance=covariance)


def told(found: Tensor, counts: Tensor) -> int:
    """Return how many labels counts (N, K) have in common with the true ones."""
    return int(torch.minimum(found, counts.to(found)).sum())
