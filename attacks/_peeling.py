"""What peeling does to the rows of a first dense layer: which hold one record, with which label, and what is left."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from leakaudit.attacks._rows import LOOSE, Groups, Rows, Span, column_space, grouped, pictures_of
from leakaudit.attacks.analytic import solve
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.target import PixelModel

EQUATIONS = 3  # that a prediction must meet beyond those its unknowns use up, or it is no evidence
EVEN = 1e-4  # how far the shares of two records that are certified may differ, relative
MIXED = 0.05  # how far the share of two records, one of them small, may be from that of one
TOGETHER = 512  # pictures in one pass through the model
POLISHES = 8  # times a batch that peeled whole is solved again


@dataclass(frozen=True)
class Explained:
    """The label that explains a group best: `slopes` (n, O) it predicts, and how far these are off (n,), relative.

    `share` (n,) is what of the predicted gradient of one record of the batch is in the update: 1 without a defense.
    `several` (n,) marks groups whose rows bear each other out.
    """

    label: Tensor  # (n,), places among the labels tried
    slopes: Tensor
    share: Tensor
    error: Tensor
    several: Tensor

    def doubt(self, usual: float) -> Tensor:
        """Return how far each is off (n,) where a record's share must be the `usual` one, or some times that.

        A row of two records, one of them small, is explained as one record, but for its share; several rows are not.
        """
        times = (self.share / usual).nan_to_num(0, 0, 0)
        odd = (times - times.round().clamp_min(1)).abs()
        return torch.where(self.several, self.error, torch.maximum(self.error, odd))


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
        this = Explained(torch.full_like(error, i, dtype=torch.long), slope, share, error, several)
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
        one.several,
    )


def mixed(peel: Peel, usual: float) -> bool:
    """Return whether a record's share is near the usual one but not equal: several rows may hold the same two records.

    A share far from it is a factor of the record's own.
    """
    return LOOSE / 3 < abs(peel.share / (usual * peel.times) - 1) < MIXED


def usual_share(known: Sequence[Explained], before: Sequence[Peel], proof: float) -> float:
    """Return the share that records have whose several rows prove them: 1 where there are none."""
    shares = [p.share / p.times for p in before if p.proved]
    for some in known:
        shares += some.share[some.several & (some.error <= proof)].tolist()
    return statistics.median_low(shares) if shares else 1.0


@dataclass(frozen=True)
class Peel:
    """A record that was peeled: its normalised picture (D,), the place of its label, and how many slots it fills."""

    flat: Tensor
    label: int
    share: float  # of the predicted gradient that was in the update
    times: int = 1
    proved: bool = False  # that the prediction is the record's own to the precision of the update


def peel_sure(
    rows: Rows, groups: Groups, known: Explained, off: Tensor, tolerance: float, before: Sequence[Peel], left: int
) -> tuple[Rows, list[Peel]]:
    """Peel what is `off` (n,) by no more than `tolerance`, the best first; each is checked again on what others left.

    What is small beside a record that was peeled (`before`, or here) may be what that one's own error left behind. The
    rows of what was peeled are then empty; what is taken from the others is as exact as the prediction.
    """
    peeled: list[Peel] = []
    bias, scale, free = rows.bias.clone(), rows.scale.clone(), torch.ones_like(rows.bias, dtype=torch.bool)
    taken: list[Tensor] = []
    most = max((p.share for p in before), default=0.0)
    for i in off.argsort(stable=True).tolist():
        if float(off[i]) > tolerance or left < 1:
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
        proved = max(tolerance, float(groups.rough[i])) <= rows.precision.proof
        peeled.append(Peel(groups.flat[i], int(known.label[i]), size, times, proved))
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


def polished(
    whole: Rows, flat: Tensor, rest: Tensor, predict: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pictures (B, D) of a batch that peeled whole, solved together, and the norm of what they leave.

    A unit that leaks (LeakyReLU) never fires for one record alone: what peels is then near, and near enough that the
    slopes (B, O) it predicts give all records of the batch by least squares on all rows, again while that helps.

    Last comes how far each picture may be off (B,), relative to its size: where the slopes of records nearly depend on
    each other, pictures far from the records leave as little.
    """
    best, rest = flat, torch.full_like(rest, torch.inf)
    rough = torch.full_like(flat[:, 0], torch.inf)
    for _ in range(POLISHES):
        slopes = predict(flat)
        shares = torch.linalg.lstsq(slopes.T, whole.bias[:, None]).solution
        slopes = slopes * shares
        left = (whole.weight - slopes.T @ flat).norm()
        if not bool(left < 0.9 * rest):
            break
        best, rest = flat, left
        least = max(float(left), whole.precision.rounding * float(whole.weight.norm()))
        rough = least * torch.linalg.pinv(slopes).norm(dim=0) / flat.norm(dim=1)
        flat = torch.linalg.lstsq(slopes.T, whole.weight).solution
    return best, rest, rough


@dataclass(frozen=True)
class Scene:
    """What one victim's rows are read with: its model and first layer, the update, and the labels that are tried.

    `labels` are (L,), or probabilities (L, K).
    """

    model: PixelModel
    layer: nn.Linear
    update: SharedUpdate
    labels: Tensor

    def predicted(self, flat: Tensor, labels: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield what normalised pictures (n, D) would add to ∂b (n, O), for each of the labels, each (n,) or (n, K)."""
        pictures = pictures_of(flat, self.model, self.update.input_shape)
        return predicted(self.model, self.layer, self.update, pictures, labels)

    def each(self, flat: Tensor) -> Iterator[Tensor]:
        """Yield what normalised pictures (n, D) would add to ∂b (n, O), for each of the labels that are tried."""
        return self.predicted(flat, (label.expand(len(flat), *label.shape) for label in self.labels))


def sole(scene: Scene, rows: Rows, flat: Tensor) -> bool:
    """Return whether the normalised picture (D,) is the only record of an update, by what the model predicts for it.

    A gradient of rank one is no proof: the signs of one have rank one as well. The gradient that the model predicts for
    the picture under one of the labels must be that of the layer, weights and biases, to rounding and up to one
    positive factor, on enough units.
    """
    size = float(rows.bias.norm())
    for slope in scene.each(flat[None]):
        share = float((slope[0] @ rows.bias) / slope.square().sum().clamp_min(1e-300))
        bias = share * slope[0]
        apart = float((rows.bias - bias).norm()) / size
        off = float((rows.weight - torch.outer(bias, flat)).norm() / rows.weight.norm())
        equations = int(slope.count_nonzero()) - 1 + int(abs(share - 1) < 1e-3)
        if share > 0 and max(apart, off) <= rows.precision.spent and equations >= EQUATIONS:
            return True
    return False


@dataclass(frozen=True)
class Peeled:
    """What came of one victim: the records `found`, how many are `left`, and the rows that hold these."""

    found: list[Peel]
    left: int
    rows: Rows


def peeled(scene: Scene, whole: Rows, generator: torch.Generator) -> Peeled:
    """Return what peels of one victim's rows."""
    model, shape, rows, left = scene.model, scene.update.input_shape, whole, scene.update.batch_size
    span, found = column_space(rows, left, generator), list[Peel]()
    groups = grouped(rows, model, shape, generator)
    while left and len(groups.flat):
        places = torch.arange(len(groups.flat), device=groups.flat.device)
        parts = [groups[part] for part in places.tensor_split(-(-len(places) // TOGETHER))]
        known = [explained(rows, some, span, scene.each(some.flat)) for some in parts]
        before = left
        usual = usual_share(known, found, rows.precision.proof)
        for doubt, tolerance in itertools.product((True, False), rows.precision.tolerances):
            for some, told in zip(parts, known, strict=True):
                off = told.doubt(usual) if doubt else told.error
                rows, more = peel_sure(rows, some, told, off, tolerance, found, left)
                sound = doubt and all(p.proved for p in found)  # or its error may be in whatever is left
                found += [replace(p, proved=p.proved and sound and not mixed(p, usual)) for p in more]
                left -= sum(p.times for p in more)
            if left < before:
                break
        groups = grouped(rows, model, shape, generator)
        if left == before:
            break
    return Peeled(found, left, rows)


def certain(result: Peeled, whole: Rows, batch: int, generator: torch.Generator) -> list[Peel]:
    """Return the records, those no longer proved that may be several nearly equal pictures in one.

    Such pictures are explained as one picture between them, as often as there are records. Where every slot has a
    record of its own, none is. Else all must hold one share: 1 without a defense, or one that more than half of the
    batch's records hold, each once, for which there is no room if each was several. And a record that holds it several
    times is that often in the batch only if the rank of the update is that much below the batch's size.
    """
    found = result.found
    if not result.left and all(p.proved and p.times == 1 for p in found):
        return found
    share = 1.0
    if not any(p.proved and abs(p.share / p.times - 1) < EVEN for p in found):
        share = statistics.median_low([p.share for p in found if p.proved] or [1.0])
        if 2 * sum(p.proved and abs(p.share / share - 1) < EVEN for p in found) <= batch:
            return [replace(p, proved=False) for p in found]
    often = [max(1, round(p.share / share)) for p in found]
    kept = [p.proved and abs(p.share / share - n) < EVEN * n for p, n in zip(found, often, strict=True)]
    first = next((i for i, n in enumerate(often) if kept[i] and n > 1), len(found))
    more = sum(n - 1 for n, keep in zip(often, kept, strict=True) if keep)
    if more and column_space(whole, batch, generator).rank > batch - more:
        kept[first:] = [False] * len(kept[first:])
    return [replace(p, proved=keep) for p, keep in zip(found, kept, strict=True)]


def drawn(scene: Scene, whole: Rows, result: Peeled, generator: torch.Generator) -> tuple[list[Peel], Tensor, Tensor]:
    """Return the records, the normalised pictures (B, D) of all slots, and the norm of what is left.

    Slots of records that were not found get guesses; a batch that was found whole is solved again, which moves no
    picture that was proved before, unless it proves all of them.
    """
    rows, found = result.rows, certain(result, whole, scene.update.batch_size, generator)
    groups = grouped(rows, scene.model, scene.update.input_shape, generator)
    known: Sequence[Tensor] = [p.flat[None].expand(p.times, -1) for p in found]
    flat, rest = torch.cat([*known, filled(rows, groups, result.left)]), rows.weight.norm()
    whole_batch = not result.left and all(p.times == 1 for p in found)
    small = float(rest) <= rows.precision.rounding * float(whole.weight.norm())
    if not whole_batch or (small and all(p.proved for p in found)):
        return found, flat, rest
    shown = scene.labels[[p.label for p in found]]
    again, rest, rough = polished(whole, flat, rest, lambda flat: next(scene.predicted(flat, [shown])))
    exact = float(rest) <= whole.precision.spent * float(whole.weight.norm())
    if exact and float(rough.max()) <= whole.precision.proof:
        return [replace(p, proved=True) for p in found], again, rest
    proved = torch.tensor([p.proved for p in found], device=flat.device)
    return found, torch.where(proved[:, None], flat, again), rest
