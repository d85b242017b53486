"""Label inference: the classes in a batch, read off the gradient of the last dense layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from leakaudit.attacks._attacking import client_mode
from leakaudit.engine import matching as engine
from leakaudit.engine.dense import dense_in_use
from leakaudit.errors import NotApplicable
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.gradients import mean_gradient, parameters_of
from leakaudit.protocol.target import PixelModel


@dataclass(frozen=True)
class Head:
    """The dense layer whose output is the logits: where its gradients stand in the update, and the mean input (D,)."""

    weight: int
    bias: int | None
    features: Tensor


def probe_pictures(update: SharedUpdate, generator: torch.Generator, device: torch.device, most: int = 256) -> Tensor:
    """Return pictures (N, C, H, W) to learn the model's habits from: auxiliary ones if exposed, else random ones."""
    channels, height, width = update.input_shape
    count = min(most, max(8, 2**22 // (channels * height * width)))
    if update.auxiliary is not None and len(update.auxiliary):
        order = torch.randperm(len(update.auxiliary), generator=generator, device=generator.device)[:count]
        return update.auxiliary.images[order.to(update.auxiliary.images.device)].to(device)
    return torch.rand((count, *update.input_shape), generator=generator, device=generator.device).to(device)


def find_head(model: PixelModel, update: SharedUpdate, pictures: Tensor) -> tuple[Head | None, Tensor]:
    """Return the dense layer whose output is the logits, or None, and the mean softmax (K,) over `pictures`."""
    with torch.no_grad():
        logits, layers = dense_in_use(model, pictures)
    softmax = logits.softmax(1).mean(0)
    place = {id(p): i for i, p in enumerate(parameters_of(model)[1])}
    for layer, given in ((use.layer, use.given) for use in reversed(layers)):
        same = layer.out_features == logits.shape[1] and id(layer.weight) in place
        if same and torch.allclose(nn.functional.linear(given, layer.weight, layer.bias), logits, atol=1e-5):
            bias = place.get(id(layer.bias)) if layer.bias is not None else None
            return Head(place[id(layer.weight)], bias, given.mean(0)), softmax
    return None, softmax


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


def counted_labels(balance: Tensor, batch_size: int) -> Tensor:
    """Return B labels (B,), ascending, whose counts are nearest to B·`balance` (K,) with balance_k = p̄_k − ∂b_k.

    Counts are rounded by the largest remainder so that they sum to B, and repeats are allowed (the rule of Wainakh et
    al. 2022, arXiv 2105.09369, and of Yin et al. 2021 without its one-record-a-class assumption).
    """
    wanted = (batch_size * balance.double()).clamp_min(0)
    wanted = wanted * (batch_size / wanted.sum().clamp_min(1e-12))
    counts = wanted.floor().long()
    missing = batch_size - int(counts.sum())
    while missing > 0:  # more than K are missing only where nothing was positive
        order = (wanted - counts).argsort(descending=True, stable=True)[:missing]
        counts[order] += 1
        missing -= len(order)
    return torch.arange(len(counts), device=counts.device).repeat_interleave(counts)


def soft_labels(model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Tensor:
    """Return the probabilities ỹ (V, 1, K) that each victim's one record was labelled with, under cross-entropy.

    Every row of the head's gradient is (p_k − ỹ_k)·h, and its bias is p_k − ỹ_k: so h is the gradient's row over that
    of the bias, the logits are known with it, and ỹ = softmax(Wh + b) − ∂b exactly. What a later stage changed may
    leave the simplex, and is brought back by cutting below 0 and scaling. Raises NotApplicable for more than one record
    per update, and where no dense layer with a bias that is trained gives the logits.
    """
    if update.batch_size != 1:
        raise NotApplicable(f"a mixed label is read off one record per update, here there are {update.batch_size}")
    with client_mode(model, update, generator):
        head, _ = find_head(model, update, probe_pictures(update, generator, next(model.parameters()).device, 8))
    if head is None or head.bias is None:
        raise NotApplicable("no dense layer with a bias gives the logits, so a mixed label cannot be read off")
    parameters = parameters_of(model)[1]
    own, offset = parameters[head.weight].detach().double(), parameters[head.bias].detach().double()
    slope = update.gradients[head.bias].nan_to_num(0, 0, 0).double()
    rows = update.gradients[head.weight].nan_to_num(0, 0, 0).double()
    given = torch.einsum("vk,vkd->vd", slope, rows) / slope.square().sum(1, keepdim=True).clamp_min(1e-300)
    found = ((given @ own.T + offset).softmax(1) - slope).clamp_min(0)
    return (found / found.sum(1, keepdim=True).clamp_min(1e-12)).float()[:, None]


def infer_labels(model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Tensor:
    """Return the labels (V, B) inferred from the update.

    One record: `one_label`. More: `counted_labels`, with the mean softmax p̄ of the model on auxiliary pictures if
    exposed, else on random ones; a head without bias has ∂b_k estimated as ⟨∂W_k, h̄⟩ / ‖h̄‖². Where no dense layer
    gives the logits, one record's label is the class whose gradient on probe pictures points most along the update,
    and more records raise NotApplicable.
    """
    device = next(model.parameters()).device
    pictures = probe_pictures(update, generator, device)
    with client_mode(model, update, generator):
        head, softmax = find_head(model, update, pictures)
        if head is None and update.batch_size > 1:
            raise NotApplicable("no dense layer gives the logits, so the labels of a batch cannot be counted")
        if head is None:
            return _best_matching_class(model, update, pictures[:4])
    weights = update.gradients[head.weight].nan_to_num(0, 0, 0)
    biases = None if head.bias is None else update.gradients[head.bias].nan_to_num(0, 0, 0)
    if update.batch_size == 1:
        rows = [
            one_label(w, None if biases is None else biases[v], head.features) for v, w in enumerate(weights.unbind())
        ]
        return torch.stack(rows)[:, None]
    if biases is None:
        biases = weights @ head.features / head.features.square().sum().clamp_min(1e-12)
    return torch.stack([counted_labels(softmax - b, update.batch_size) for b in biases])


def _best_matching_class(model: PixelModel, update: SharedUpdate, pictures: Tensor) -> Tensor:
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
    """Return the labels an attack works with: the exposed ones, (V, B) or probabilities (V, B, K), or inferred ones."""
    return update.labels if update.labels is not None else infer_labels(model, update, generator)
