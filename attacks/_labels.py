"""Label inference: the classes in a batch, read off the gradient of the layer that all logits pass through."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from leakaudit.attacks._attacking import client_mode
from leakaudit.attacks._counting import (
    FOLDS,
    ROUNDING,
    Chances,
    Played,
    chances_of,
    likeliest_counts,
    noise_of,
    played,
    regressed,
    supposed,
    surely_in,
    told,
)
from leakaudit.attacks._targets import input_of, solved
from leakaudit.engine import head as engine_head
from leakaudit.engine import matching as engine
from leakaudit.errors import NotApplicable
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.gradients import Gradients, bytes_of, mean_gradient, parameters_of
from leakaudit.protocol.target import PixelModel
from leakaudit.work.memory import need

EXACT = 0.05  # of entries, by which a label's predicted gradient may miss one that nothing was done to
_TOGETHER = 32  # labels whose slopes are held at once
_COUNTED = 512  # probe pictures, for how the chances of the classes vary
_SHOWN = 16  # probe pictures of a class, for its mean gradient
_VALUES = 2**25  # most numbers in the mean gradients of all classes: 128 MB
ALIKE = 0.5  # the least cosine between a head's gradient and that of its likeliest label, for it to be believed


@dataclass(frozen=True)
class Head:
    """The layer that all logits pass through: where its gradients stand in the update, and its mean input (D,).

    Its weight's gradient, flattened to (O, D), is δ·hᵀ for one record, and its bias's δ: the slope of the loss in its
    output. `at.plain` says that δ is p − e_y, as where its output are the logits.
    """

    weight: int
    bias: int | None
    features: Tensor
    at: engine_head.Head
    classes: bool = True  # whether the model has an output for each class

    @property
    def by_class(self) -> bool:
        """Whether it has one output for each class, of which the true one's slope is the odd one out."""
        return self.classes and (self.at.direct or self.at.scale is not None)

    def gradients(self, update: Gradients) -> tuple[Tensor, Tensor | None]:
        """Return its gradients in an update, (V, O, D) and (V, O), or without V; zeros for what is not finite."""
        weight = update[self.weight].nan_to_num(0, 0, 0)
        start = 1 if weight.dim() > self.at.layer.weight.dim() else 0
        return weight.flatten(start + 1), None if self.bias is None else update[self.bias].nan_to_num(0, 0, 0)


def probe_pictures(update: SharedUpdate, generator: torch.Generator, device: torch.device, most: int = 256) -> Tensor:
    """Return pictures (N, C, H, W) to learn the model's habits from: auxiliary ones if exposed, else random ones."""
    return probes(update, generator, device, most)[0]


def probes(
    update: SharedUpdate, generator: torch.Generator, device: torch.device, most: int = 256
) -> tuple[Tensor, Tensor | None]:
    """Return `probe_pictures` and the labels (N,) of those that are auxiliary."""
    channels, height, width = update.input_shape
    count = min(most, max(8, 2**22 // (channels * height * width)))
    if update.auxiliary is not None and len(update.auxiliary):
        order = torch.randperm(len(update.auxiliary), generator=generator, device=generator.device)[:count]
        shown = update.auxiliary[order.to(update.auxiliary.images.device)].to(device)
        return shown.images, shown.labels
    return torch.rand((count, *update.input_shape), generator=generator, device=generator.device).to(device), None


def find_head(model: PixelModel, update: SharedUpdate, pictures: Tensor, *, by_class: bool = False) -> Head | None:
    """Return the layer that all logits of `pictures` pass through (`leakaudit.engine.head`), or None.

    With `by_class` only one whose rows belong to the classes.
    """
    classes = update.task.by_class
    found, _ = engine_head.find(model, update.loss, pictures, by_class=classes)
    if found is None:
        return None
    place = {id(p): i for i, p in enumerate(parameters_of(model)[1])}
    bias = place.get(id(found.layer.bias)) if found.layer.bias is not None else None
    head = Head(place[id(found.layer.weight)], bias, found.features, found, classes)
    return head if head.by_class or not by_class else None


def one_label(weight: Tensor, bias: Tensor | None, features: Tensor) -> Tensor:
    """Return the label of the one record behind a head's gradient: weight rows (K, D) and, if there is one, bias (K,).

    Every row is (p_k − y_k)·h, and the bias is p_k − y_k: only the true class is negative (Zhao et al. 2020, eq. 3).
    The factor p − y is taken as the leading left singular vector of all of it, which equals the rule on a clean
    update and averages out noise on a defended one. Without a bias its sign is free: the largest magnitude is the
    true class for K > 2, since 1 − p_y is the sum of the others, or, where only signs were shared, the odd one out; for
    two classes h is taken to point along `features` (D,).
    """
    rows = weight.double() if bias is None else torch.cat([weight, bias[:, None]], 1).double()
    rows = rows / rows.abs().max().clamp_min(1e-300)
    factor: Tensor = torch.linalg.eigh(rows @ rows.T).eigenvectors[:, -1]
    if bias is not None:
        along = torch.dot(factor, bias.double())
    elif len(rows) > 2 and not bool(((rows == 0) | (rows.abs() == 1)).all()):
        return factor.abs().argmax()
    elif len(rows) > 2:  # signs alone, all of one magnitude: the true class is the one against the others
        along = factor.sum()
    else:
        along = torch.dot(factor, rows @ features.double())
    return torch.where(along < 0, -factor, factor).argmin()


def soft_labels(model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Tensor:
    """Return the probabilities ỹ (V, 1, K) that each victim's one record was labelled with, under cross-entropy.

    Every row of the head's gradient is (p_k − ỹ_k)·h, and its bias is p_k − ỹ_k: so h is the gradient's row over that
    of the bias, the logits are known with it, and ỹ = softmax(Wh + b) − ∂b exactly. What a later stage changed may
    leave the simplex, and is brought back by cutting below 0 and scaling. Raises NotApplicable for more than one record
    per update, and where no layer with a bias that is trained gives what the loss sees as the logits.
    """
    if update.batch_size != 1:
        raise NotApplicable(f"a mixed label is read off one record per update, here there are {update.batch_size}")
    with client_mode(model, update, generator):
        head = find_head(model, update, probe_pictures(update, generator, next(model.parameters()).device, 8))
    if head is None or head.bias is None or not (head.at.plain or head.at.direct):
        raise NotApplicable("no dense layer with a bias gives the logits, so a mixed label cannot be read off")
    rows, slope = head.gradients(update.gradients)
    assert slope is not None
    found = (head.at.given(input_of(rows, slope)).softmax(1) - slope.double()).clamp_min(0)
    return (found / found.sum(1, keepdim=True).clamp_min(1e-12)).float()[:, None]


def infer_labels(model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Tensor:
    """Return the labels (V, B) inferred from the update.

    One record: `one_label` where the loss sees the head's output as logits, else `fitted_labels` through what follows
    the head. More: `likeliest_counts`, with what the model gives on auxiliary pictures if exposed, else on random ones;
    a head without bias has ∂b_k estimated as ⟨∂W_k, h̄⟩ / ‖h̄‖². Where no layer is a head, one record's label is the
    class whose gradient on probe pictures points most along the update, and those of more are guessed jointly
    (`matched_labels`), which is weaker.

    Where labels are no classes, or are probabilities, they are what one record was taught, (V, 1, *shape), where the
    head tells it (`solved`), else label groups (V, B) that are guessed jointly.
    """
    device = next(model.parameters()).device
    pictures, labels = probes(update, generator, device, _COUNTED if update.batch_size > 1 else 256)
    with client_mode(model, update, generator):
        head = find_head(model, update, pictures[:256])
        if not update.task.by_class or (update.task.own_targets and update.batch_size == 1):
            return _of_targets(model, update, head, pictures[:256])
        if update.batch_size > 1:
            return _of_batches(model, update, head, pictures, labels, generator)
        if head is None:
            return _best_matching_class(model, update, pictures[:4])
        if not head.at.plain:
            return fitted_labels(model, update, head, pictures)
    weights, biases = head.gradients(update.gradients)
    rows = [one_label(w, None if biases is None else biases[v], head.features) for v, w in enumerate(weights.unbind())]
    return torch.stack(rows)[:, None]


def _of_targets(model: PixelModel, update: SharedUpdate, head: Head | None, pictures: Tensor) -> Tensor:
    """Return targets (V, 1, *shape) where every victim is one record and its head tells them, else label groups (V, B).

    Of victims that the head tells nothing of, beside others of which it does, it is what stands for their group.
    """
    found = None
    if update.batch_size == 1 and head is not None and head.bias is not None and head.at.pooled:
        weights, biases = head.gradients(update.gradients)
        assert biases is not None
        found = solved(model, update, head.at, weights, biases)
    if found is not None and bool(found.told.all()):
        return found.targets
    groups = matched_labels(model, update, head, pictures)
    if found is None or not bool(found.told.any()):
        return groups
    beside = groups if not found.targets.is_floating_point() else update.task.targets_of(groups)
    if beside.dim() < found.targets.dim():  # of one logit, some as probabilities
        beside = nn.functional.one_hot(groups, update.classes)
    told = found.told.view(-1, *[1] * (found.targets.dim() - 1))
    return torch.where(told, found.targets, beside.to(found.targets))


def fitted_labels(model: PixelModel, update: SharedUpdate, head: Head, pictures: Tensor) -> Tensor:
    """Return the labels (V, 1) of one record each, from a head that something follows: a Softmax, a temperature.

    The head's input is h = ∂W/∂b, so its output and with it the slope under every label are known: the label is the one
    whose slopes equal ∂b, entry by entry, for a confident net's differ by orders of magnitude. Where none does, since
    the update was defended or h is not known, it is `one_label` for a head with the slopes of cross-entropy, the least
    entry of ∂b for one that is `signed`, else the class whose slopes point most along ∂b, else that whose whole
    gradient does.
    """
    weights, biases = head.gradients(update.gradients)
    if biases is None or not head.at.pooled:
        if head.by_class:
            return torch.stack([one_label(w, None, head.features) for w in weights])[:, None]
        told = torch.zeros(update.victims, device=weights.device, dtype=torch.bool)
        if biases is not None and head.at.signed:
            told = biases.amin(1) < 0  # else nothing of the true class passed its activation
        whole = told if bool(told.all()) else _best_matching_class(model, update, pictures[:4])[:, 0]
        return whole[:, None] if biases is None else torch.where(told, biases.argmin(1), whole)[:, None]
    outputs = head.at.given(input_of(weights, biases)).nan_to_num(0, 0, 0)
    shape, wanted = update.input_shape, biases.double()
    misses, cosines = [], []
    for start in range(0, update.classes, _TOGETHER):
        some = range(start, min(start + _TOGETHER, update.classes))
        for found_slope in engine_head.slopes(model, update.loss, head.at, outputs, shape, some):
            slope = found_slope.double()
            gap = (slope - wanted) / (slope.abs() + wanted.abs()).clamp_min(1e-30)
            misses.append(gap.square().mean(1))
            cosines.append(nn.functional.cosine_similarity(slope, wanted, eps=1e-30))
    missed, exact = torch.stack(misses, 1).min(1)
    alike, near = torch.stack(cosines, 1).max(1)
    settled = missed < EXACT**2
    found = torch.where(settled, exact, near)
    if head.by_class:
        rough = [one_label(w, b, head.features) for w, b in zip(weights, biases, strict=True)]
        found = torch.where(settled, exact, torch.stack(rough))
    elif not bool((settled | (alike > ALIKE)).all()):
        whole = _best_matching_class(model, update, pictures[:4])[:, 0]
        found = torch.where(settled | (alike > ALIKE), found, whole)
    return found[:, None]


def _of_batches(
    model: PixelModel,
    update: SharedUpdate,
    head: Head | None,
    pictures: Tensor,
    labels: Tensor | None,
    generator: torch.Generator,
) -> Tensor:
    """Return the labels (V, B) of batches, counted by the head's gradient or guessed jointly.

    Classes that are surely in a batch (`surely_in`) are counted at least once, where all of them can be. While a client
    trains the chances of the classes drift: where auxiliary records are exposed they are counted again by what clients
    with records of nearly these counts send (`played`), where that counts such clients better.
    """
    if head is None or not head.by_class:
        return matched_labels(model, update, head, pictures[:256])
    weights, slopes = _by_class(head, update.gradients)
    known = chances_of(model, update, head.at, pictures, labels)
    labelled = labels is not None
    found = _counts(update, known, weights, slopes, labelled)
    if update.client.local and update.steps > 1 and update.auxiliary is not None:
        at = head

        def read(gradients: Gradients) -> tuple[Tensor, Tensor]:
            weight, slope = _by_class(at, tuple(g[None] for g in gradients))
            return weight[0], slope[0]

        seen = played(model, update, found, read, generator)
        if seen is not None and _plays_better(update, known, seen, labelled):
            found = _counts(update, regressed(known, seen, update.batch_size), weights, slopes, True, noisy=False)
    return torch.stack([torch.arange(len(n), device=n.device).repeat_interleave(n) for n in found])


def _plays_better(update: SharedUpdate, known: Chances, seen: Played, labelled: bool) -> bool:
    """Return whether clients that were played are counted better by what the others among them sent."""
    before = after = 0
    for fold in range(FOLDS):
        held = torch.arange(len(seen.counts), device=seen.counts.device) % FOLDS == fold
        shown, learned = seen[held], regressed(known, seen[~held], update.batch_size)
        before += told(_counts(update, known, shown.weights, shown.slopes, labelled), shown.counts)
        after += told(_counts(update, learned, shown.weights, shown.slopes, True, noisy=False), shown.counts)
    return after > before


def _by_class(head: Head, gradients: Gradients) -> tuple[Tensor, Tensor]:
    """Return the head's gradient (V, K, D) and slope (V, K), of which the true class's is the odd one out."""
    weights, biases = head.gradients(gradients)
    if biases is None:
        biases = weights @ head.features / head.features.square().sum().clamp_min(1e-12)
    scale = head.at.scale or 1.0
    return weights / scale, biases / scale


def _counts(
    update: SharedUpdate, known: Chances, weights: Tensor, slopes: Tensor, labelled: bool, noisy: bool = True
) -> Tensor:
    """Return the likeliest counts (V, K); without `noisy` the covariance of `known` has all that was added in it."""
    found = []
    for rows, slope in zip(weights, slopes, strict=True):
        sure = surely_in(rows, ROUNDING * known.largest) if known.nonnegative else slope.new_zeros(len(slope)) > 0
        least = sure.long() if int(sure.sum()) <= update.batch_size else torch.zeros_like(sure, dtype=torch.long)
        here = known if labelled or not known.confident else supposed(known, slope, update.batch_size)
        found.append(likeliest_counts(slope, here, noise_of(rows) if noisy else 0.0, least, update.batch_size))
    return torch.stack(found)


def matched_labels(model: PixelModel, update: SharedUpdate, head: Head | None, pictures: Tensor) -> Tensor:
    """Return the labels (V, B), ascending, whose mean gradient on probe pictures points most along the update.

    A batch's gradient is the sum of its classes' own, here of auxiliary records of the class (or label group) if
    exposed, else of `pictures` (N, C, H, W) under its label; of the head alone where there is one. Labels are added one
    by one and then exchanged while that helps: weaker than counting, for the private pictures' own gradients are not
    the classes'.
    """
    parameters = parameters_of(model)[1]
    places = list(range(len(parameters)))
    if head is not None:
        places = [i for i in (head.weight, head.bias) if i is not None]
    while len(places) > 1 and sum(parameters[i].numel() for i in places) * update.classes > _VALUES:
        places = places[1:]  # the last layers tell most of the label
    chosen = [parameters[i] for i in places]
    size = 2 * update.classes * bytes_of(chosen)
    need(size, f"gradients of {update.classes} classes", "classes", pictures.device)
    rows = []
    for k in range(update.classes):
        shown = pictures[:_SHOWN]
        label = torch.full((len(shown),), k, device=pictures.device)
        if update.auxiliary is not None and bool((update.auxiliary.labels == k).any()):
            own = update.auxiliary[(update.auxiliary.labels == k).nonzero()[:_SHOWN, 0]].to(pictures.device)
            shown, label = own.images, own.taught
        found = torch.autograd.grad(update.loss(model(shown), label), chosen, allow_unused=True)
        flat = [torch.zeros_like(p) if g is None else g for p, g in zip(chosen, found, strict=True)]
        rows.append(torch.cat([g.flatten() for g in flat]).nan_to_num(0, 0, 0))
    basis = torch.stack(rows)
    shared = torch.cat([update.gradients[i].nan_to_num(0, 0, 0).flatten(1) for i in places], 1)
    inner, along = (basis @ basis.T).double(), (shared @ basis.T).double()
    return torch.stack([_composed(inner, a, update.batch_size, not update.task.by_class) for a in along])


def _composed(inner: Tensor, along: Tensor, size: int, lengths: bool = False) -> Tensor:
    """Return `size` classes, ascending, whose sum of rows has the largest cosine with a vector.

    `inner` (K, K) are the rows' products with each other, `along` (K,) those with the vector. With `lengths` it is the
    mean of rows that is nearest to the vector: amounts give updates of one direction and many lengths.
    """
    unit = torch.eye(len(along), device=along.device, dtype=along.dtype)

    def cosines(counts: Tensor) -> Tensor:
        if lengths:  # less the vector's own square, the squared distance's negative
            mean = counts / size
            return 2 * (mean @ along) - ((mean @ inner) * mean).sum(1)
        return (counts @ along) / ((counts @ inner) * counts).sum(1).clamp_min(1e-300).sqrt()

    counts = torch.zeros_like(along)
    for _ in range(size):
        counts = counts + unit[int(cosines(counts + unit).argmax())]
    for _ in range(4 * size):
        best, left = cosines(counts[None])[0], counts
        for k in counts.nonzero().flatten().tolist():
            others = counts - unit[k] + unit
            values = cosines(others)
            if values.max() > best * (1 + 1e-9) + 1e-12:
                best, left = values.max(), others[int(values.argmax())]
        if left is counts:
            break
        counts = left
    return torch.arange(len(counts), device=counts.device).repeat_interleave(counts.long())


def _best_matching_class(model: PixelModel, update: SharedUpdate, pictures: Tensor) -> Tensor:
    size = (len(pictures) + 1) * bytes_of(parameters_of(model)[1])
    need(size, f"gradients of {len(pictures)} pictures", "", pictures.device)
    best = torch.full((update.victims,), -torch.inf, device=pictures.device)
    found = torch.zeros((update.victims, 1), dtype=torch.long, device=pictures.device)
    for k in range(update.classes):
        label = torch.full((1,), k, device=pictures.device)
        columns = [mean_gradient(model, update.loss, x[None], label) for x in pictures]
        for v in range(update.victims):
            shared = tuple(g[v] for g in update.gradients)
            score = -torch.stack([engine.cosine(c, shared)[0] for c in columns]).mean()
            if score > best[v]:
                best[v], found[v] = score, k
    return found


def known_labels(model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Tensor:
    """Return the labels an attack works with: the exposed ones, or inferred ones.

    They are (V, B), or probabilities (V, B, K), or targets (V, B, *shape).
    """
    return update.labels if update.labels is not None else infer_labels(model, update, generator)
