"""What peeling does to the rows of a first dense layer: which hold one record, with which label, and what is left."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from leakaudit.attacks.analytic import solve
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.target import PixelModel

LOOSE = 3e-3  # how far a prediction may be off at most, relative
BOX = 0.01  # how far outside [0, 1] a pixel of a record may come out
EQUATIONS = 3  # that a prediction must meet beyond those its unknowns use up, or it is no evidence
SKETCH = 32  # numbers a ratio is compared by
LOOKS = 8  # directions beside a span that a prediction is held against first
TOGETHER = 512  # pictures in one pass through the model
POLISHES = 8  # times a batch that peeled whole is solved again


@dataclass(frozen=True)
class Precision:
    """What the precision in which an update was computed leaves of it, relative.

    `rounding` is that of a row's ratio, with room for the order in which sums were taken; `spent`, of what a row held
    or was rid of, is the size below which what is left is rounding; `tolerances`, how far a prediction may be off, from
    the surest records, which are peeled first, to LOOSE; a record within `proof` is exact.
    """

    rounding: float
    spent: float
    least: float  # of the largest row
    tolerances: tuple[float, ...]
    proof: float


SINGLE = Precision(1e-5, 1e-4, 1e-9, (1e-4, 1e-3, LOOSE), 1e-3)
DOUBLE = Precision(1e-12, 1e-9, 1e-15, (1e-8, 1e-6, 1e-4, 1e-3, LOOSE), 1e-4)


def precision_of(gradient: Tensor) -> Precision:
    """Return the precision a gradient was computed in: single too where its numbers were widened afterwards."""
    return DOUBLE if bool((gradient != gradient.float()).any()) else SINGLE


@dataclass(frozen=True)
class Rows:
    """What is left of a first layer's gradient: `weight` (O, D) and `bias` (O,), in double precision.

    `scale` (O,) is the size of what a bias entry held or was rid of, so that rounding is precision.rounding·scale.
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor
    precision: Precision

    def usable(self) -> Tensor:
        """Return a mask (O,) of the rows that hold more than rounding."""
        least = self.precision.least * float(self.scale.max())
        return self.bias.abs() > (self.precision.spent * self.scale).clamp_min(least)

    def ratios(self, which: Tensor) -> Tensor:
        """Return ∂W_j / ∂b_j (n, D) of rows `which` (n,)."""
        return self.weight[which] / self.bias[which, None]


@dataclass(frozen=True)
class Groups:
    """Rows of one ratio each: normalised pictures `flat` (n, D) and `own` (n, O), which rows they are."""

    flat: Tensor
    own: Tensor

    def __getitem__(self, which: Tensor) -> Groups:
        return Groups(self.flat[which], self.own[which])


@dataclass(frozen=True)
class Explained:
    """The label that explains a group best: `slopes` (n, O) it predicts, and how far these are off (n,), relative.

    `share` (n,) is what of the predicted gradient of one record of the batch is in the update: 1 without a defense.
    """

    label: Tensor  # (n,), places among the labels tried
    slopes: Tensor
    share: Tensor
    error: Tensor


def rows_of(weight: Tensor, bias: Tensor) -> Rows:
    """Return the rows of a gradient (O, D) and (O,) of which nothing was peeled."""
    return Rows(weight.double(), bias.double(), bias.double().abs(), precision_of(weight))


def grouped(rows: Rows, model: PixelModel, shape: tuple[int, int, int], generator: torch.Generator) -> Groups:
    """Return the rows whose ratio could be a picture, those of equal ratio together; the largest groups first."""
    which = rows.usable().nonzero()[:, 0]
    ratios = rows.ratios(which)
    inside = _within(pictures_of(ratios, model, shape))
    which, ratios = which[inside], ratios[inside]
    drawn = torch.randn((ratios.shape[1], SKETCH), generator=generator, device=generator.device, dtype=torch.float64)
    sketch = ratios @ drawn.to(ratios.device) / SKETCH**0.5
    rounding = rows.precision.rounding * (1 + rows.scale[which] / rows.bias[which].abs())
    slack = rounding * (1 + ratios.square().sum(1)).sqrt()
    free = torch.ones(len(which), dtype=torch.bool, device=which.device)
    members = []
    for head in slack.argsort(stable=True).tolist():
        if free[head]:
            alike = free & ((sketch - sketch[head]).norm(dim=1) <= slack + slack[head])
            free &= ~alike
            members.append(alike)
    own = torch.zeros((len(members), len(rows.bias)), dtype=torch.bool, device=which.device)
    if members:
        own[:, which] = torch.stack(members)
    largest = own.sum(1).argsort(descending=True, stable=True)
    own = own[largest]
    weights = own * rows.bias
    flat = (weights @ rows.weight) / (weights * rows.bias).sum(1, keepdim=True)
    return Groups(flat, own)


def pictures_of(flat: Tensor, model: PixelModel, shape: tuple[int, int, int]) -> Tensor:
    """Return pictures (n, C, H, W), not clamped, of normalised flat ones (n, D), in the model's precision."""
    return (flat.view(len(flat), *shape) * model.std + model.mean).to(model.mean.dtype)


def _within(pictures: Tensor) -> Tensor:
    return ((pictures > -BOX) & (pictures < 1 + BOX)).flatten(1).all(1)


def predicted(
    model: PixelModel, layer: nn.Linear, update: SharedUpdate, pictures: Tensor, labels: Iterable[Tensor]
) -> Iterator[Tensor]:
    """Yield what ∂b (n, O) each of the pictures (n, C, H, W) would add to the update of its batch.

    `labels` are as many labels as are tried, each (n,), or probabilities (n, K).
    """
    seen: list[Tensor] = []

    def watch(_: nn.Module, __: object, given: Tensor) -> Tensor:
        seen.append(given)
        return given.clone()  # a ReLU that works in place must not change what the slope is taken in

    handle = layer.register_forward_hook(watch)
    try:
        with torch.enable_grad():
            logits = model(pictures)
            for label in labels:
                value = update.loss(logits, label)
                (slope,) = torch.autograd.grad(value, seen[0], retain_graph=True)
                yield slope.double() * len(pictures) / update.batch_size
    finally:
        handle.remove()


@dataclass(frozen=True)
class Span:
    """What B records span in the rows of [∂W ∂b]: an orthonormal `basis` (O, ≤ B), and a few directions `beside` it.

    A direction's length beside the span is about that of its products with `beside` (O, LOOKS), and costs far less.
    """

    basis: Tensor
    beside: Tensor

    def strange(self, slopes: Tensor, wanted: Tensor) -> Tensor:
        """Return what of directions (n, O) lies beside the span (n,), relative, exact where `wanted` (n,) and small."""
        sizes = slopes.norm(dim=1).clamp_min(1e-300)
        found = (slopes @ self.beside).norm(dim=1) / sizes
        near = (wanted & (found <= 4 * LOOSE)).nonzero()[:, 0]
        some = slopes[near]
        found[near] = (some - (some @ self.basis) @ self.basis.T).norm(dim=1) / sizes[near]
        return found


def column_space(rows: Rows, batch: int, generator: torch.Generator) -> Span:
    """Return what so many records span in a layer's rows, by random projection."""
    width = min(batch + 8, rows.weight.shape[1] + 1)
    drawn = torch.randn(
        (rows.weight.shape[1] + 1, width), generator=generator, device=generator.device, dtype=torch.float64
    ).to(rows.weight.device)
    seen = rows.weight @ drawn[:-1] + rows.bias[:, None] * drawn[-1]
    basis: Tensor = torch.linalg.svd(seen, full_matrices=False).U[:, :batch]
    looks = torch.randn((len(basis), LOOKS), generator=generator, device=generator.device, dtype=torch.float64)
    looks = looks.to(basis) / LOOKS**0.5
    return Span(basis, looks - basis @ (basis.T @ looks))


def explained(rows: Rows, groups: Groups, span: Span, slopes: Iterator[Tensor]) -> Explained:
    """Return how well each group is explained by its best label, of which `slopes` predict (n, O) each.

    Two things must hold of a record: on its own rows the bias gradient is the predicted one, up to one positive factor;
    and the predicted one lies wholly in the columns' space of the update's gradient, which B records span in O rows.
    What is no record's picture predicts rows that fire otherwise, and so a direction that the update does not have.
    Records that depend on each other linearly span less than their slopes do: then the prediction on several rows of
    its own must be the whole of the record, and nothing must be predicted where the update is zero.
    """
    best: Explained | None = None
    found, dead = groups.own * rows.bias, rows.scale == 0
    several = groups.own.sum(1) >= EQUATIONS
    for i, slope in enumerate(slopes):
        own = slope * groups.own
        share = (found * own).sum(1) / own.square().sum(1).clamp_min(1e-300)
        apart = (found - share[:, None] * own).norm(dim=1) / found.norm(dim=1).clamp_min(1e-300)
        strange = span.strange(slope, apart <= LOOSE)
        silent = (slope * dead).norm(dim=1) / slope.norm(dim=1).clamp_min(1e-300)
        whole = torch.where(several, torch.maximum((share - 1).abs(), silent), torch.inf)
        error = torch.maximum(apart, torch.minimum(strange, whole))
        error = torch.where((share > 0) & share.isfinite(), error, torch.inf)
        error = error.nan_to_num(torch.inf, torch.inf, torch.inf)
        this = Explained(torch.full_like(error, i, dtype=torch.long), slope, share, error)
        best = this if best is None else _better(best, this, rows.precision.tolerances[0])
    assert best is not None
    # One record's bias gradient has one factor to fit; a direction has as many as the basis.
    spare, whole = max(0, len(rows.bias) - span.basis.shape[1]), (best.share - 1).abs() < 1e-3
    equations = groups.own.sum(1) - 1 + spare + whole.long()
    return replace(best, error=torch.where(equations >= EQUATIONS, best.error, torch.inf))


def _better(one: Explained, other: Explained, alike: float) -> Explained:
    # Of a record that fires hardly a row every label predicts the direction; the right one all of its length, too.
    mine, theirs = one.error.clamp_min(alike), other.error.clamp_min(alike)
    nearer = (theirs < mine) | ((theirs == mine) & ((other.share - 1).abs() < (one.share - 1).abs()))
    return Explained(
        torch.where(nearer, other.label, one.label),
        torch.where(nearer[:, None], other.slopes, one.slopes),
        torch.where(nearer, other.share, one.share),
        torch.where(nearer, other.error, one.error),
    )


@dataclass(frozen=True)
class Peel:
    """A record that was peeled: its normalised picture (D,), the place of its label, and how many slots it fills."""

    flat: Tensor
    label: int
    share: float  # of the predicted gradient that was in the update
    times: int = 1
    proved: bool = False  # that the prediction is the record's own to the precision of the update


def peel_sure(
    rows: Rows, groups: Groups, known: Explained, tolerance: float, before: Sequence[Peel], left: int
) -> tuple[Rows, list[Peel]]:
    """Peel what is explained within `tolerance`, the best first; each is checked again on what the others left.

    What is small beside a record that was peeled (`before`, or here) may be what that one's own error left behind. The
    rows of what was peeled are then empty; what is taken from the others is as exact as the prediction.
    """
    peeled: list[Peel] = []
    bias, scale, free = rows.bias.clone(), rows.scale.clone(), torch.ones_like(rows.bias, dtype=torch.bool)
    taken: list[Tensor] = []
    most = max((p.share for p in before), default=0.0)
    for i in known.error.argsort(stable=True).tolist():
        if float(known.error[i]) > tolerance or left < 1:
            break
        own, slope = groups.own[i], known.slopes[i]
        share = (bias[own] @ slope[own]) / slope[own].square().sum()
        apart = float((bias[own] - share * slope[own]).norm())
        moved = abs(float(share - known.share[i]))
        size = float(share)
        if not (apart <= tolerance * float(bias[own].norm()) and moved <= tolerance * size):
            continue
        if size < 10 * tolerance * most:
            continue
        whole = round(size)  # the same record twice in a batch counts twice
        times = min(whole, left) if whole > 1 and abs(size - whole) < LOOSE else 1
        bias, scale, free = (bias - share * slope) * ~own, scale + (share * slope).abs(), free & ~own
        taken.append(share * slope)
        peeled.append(Peel(groups.flat[i], int(known.label[i]), size, times, tolerance <= rows.precision.proof))
        most, left = max(most, size), left - times
    if peeled:
        weight = (rows.weight - torch.stack(taken).T @ torch.stack([p.flat for p in peeled])) * free[:, None]
        rows = replace(rows, weight=weight, bias=bias * free, scale=scale)
    return rows, peeled


def filled(rows: Rows, groups: Groups, slots: int) -> Tensor:
    """Return guesses (slots, D) for records that did not peel: rows that agree on a picture, then what rows mix.

    NaN where nothing is left to guess from.
    """
    agreed = groups.flat[groups.own.sum(1) > 1][:slots]
    which = rows.usable()
    mixture, _ = solve(rows.weight[which], rows.bias[which])
    return torch.cat([agreed, mixture.expand(slots - len(agreed), -1)])


def polished(whole: Rows, flat: Tensor, rest: Tensor, predict: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Return the pictures (B, D) of a batch that peeled whole, solved together, and the norm of what they leave.

    A unit that leaks (LeakyReLU) never fires for one record alone: what peels is then near, and near enough that the
    slopes (B, O) it predicts give all records of the batch by least squares on all rows, again while that helps.
    """
    best, rest = flat, torch.full_like(rest, torch.inf)
    for _ in range(POLISHES):
        slopes = predict(flat)
        shares = torch.linalg.lstsq(slopes.T, whole.bias[:, None]).solution
        slopes = slopes * shares
        left = (whole.weight - slopes.T @ flat).norm()
        if not bool(left < 0.9 * rest):
            break
        best, rest = flat, left
        flat = torch.linalg.lstsq(slopes.T, whole.weight).solution
    return best, rest


def peeled(
    model: PixelModel,
    layer: nn.Linear,
    update: SharedUpdate,
    whole: Rows,
    labels: Tensor,
    generator: torch.Generator,
) -> tuple[list[Peel], Tensor, Tensor]:
    """Return what peels of one victim's rows, the pictures (B, D) of all its slots, and the norm of what is left.

    `labels` are those tried, (L,) or probabilities (L, K).
    """
    batch, shape, rows = update.batch_size, update.input_shape, whole
    span, left = column_space(rows, batch, generator), batch
    found: list[Peel] = []
    groups = grouped(rows, model, shape, generator)
    while left and len(groups.flat):
        parts = [
            groups[part]
            for part in torch.arange(len(groups.flat), device=groups.flat.device).tensor_split(
                -(-len(groups.flat) // TOGETHER)
            )
        ]
        known = []
        for some in parts:
            tried = (label.expand(len(some.flat), *label.shape) for label in labels)
            slopes = predicted(model, layer, update, pictures_of(some.flat, model, shape), tried)
            known.append(explained(rows, some, span, slopes))
        before = left
        for tolerance in rows.precision.tolerances:
            for some, told in zip(parts, known, strict=True):
                rows, more = peel_sure(rows, some, told, tolerance, found, left)
                found, left = found + more, left - sum(p.times for p in more)
            if left < before:
                break
        groups = grouped(rows, model, shape, generator)
        if left == before:
            break
    drawn: Sequence[Tensor] = [p.flat[None].expand(p.times, -1) for p in found]
    flat, rest = torch.cat([*drawn, filled(rows, groups, left)]), rows.weight.norm()
    if left or any(p.times > 1 for p in found) or float(rest) <= rows.precision.rounding * float(whole.weight.norm()):
        return found, flat, rest
    shown = labels[[p.label for p in found]]

    def predict(flat: Tensor) -> Tensor:
        return next(predicted(model, layer, update, pictures_of(flat, model, shape), [shown]))

    flat, rest = polished(whole, flat, rest, predict)
    exact = float(rest) <= whole.precision.spent * float(whole.weight.norm())
    return [replace(p, proved=p.proved or exact) for p in found], flat, rest
