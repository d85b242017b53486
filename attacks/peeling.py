"""Peeling: records of a batch read off the rows of a first dense layer that fire for one of them, one after another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from leakaudit.attacks._attacking import client_mode, memory_safe, need_one_gradient, need_sum_of_gradients
from leakaudit.attacks._labels import probe_pictures
from leakaudit.attacks._peeling import Peeled, Scene, drawn, peeled, sole
from leakaudit.attacks._rows import SINGLE, Rows, pictures_of, rows_of, within
from leakaudit.attacks.analytic import first_dense, known_or_none, solve
from leakaudit.protocol.attack import Attack, Needs, Reconstruction, Status
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.gradients import parameters_of
from leakaudit.protocol.labels import hard
from leakaudit.protocol.registry import register_attack
from leakaudit.protocol.target import PixelModel

MANY = 100  # classes that are all tried; of more, only those that the labels' count names


def survivors(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return the input (D,) of one record as `solve` does, from the entries that pruning left where these agree.

    Zeros may be what pruning or a dead unit made of an entry, or what rounding did: left out, the others must fit
    one record to SINGLE.spent of their size, more of them than there are pixels, or the answer is that of `solve`.
    """
    plain, rest = solve(weight, bias)
    weight, bias = weight.double(), bias.double()
    kept = ((weight != 0) & (bias != 0)[:, None]).double()
    power = bias.square() @ kept
    found = (bias @ (weight * kept)) / power.clamp_min(1e-300)
    apart = (kept * (weight - torch.outer(bias, found))).norm()
    enough = kept.sum() >= 2 * (power > 0).sum()
    least = SINGLE.spent * float(weight.norm())
    if float(rest) > least and bool(enough) and float(apart) <= least:
        return found, apart
    return plain, rest


@register_attack
@dataclass(frozen=True, kw_only=True)
class Peeling(Attack):
    """Peel a batch: a row of a dense layer that fires for one record holds it, whatever the size of the batch.

    ∂W_j = Σ_i δ_ij x_i and ∂b_j = Σ_i δ_ij, so where only record i fires unit j, ∂W_j / ∂b_j = x_i: an observation of
    Phong et al. 2017 for one record, used on batches with weights or biases that a server plants by Boenisch et al.
    (arXiv 2112.02918) and Fowl et al. (arXiv 2110.13057). Here nothing is planted, and nobody knows which rows hold
    one record: a ratio is accepted with the label under which the gradient the model predicts for it is a part of the
    update (`explained`), the test being the low rank of the gradient and its zeros, by which Dimitrov et al. 2024
    (SPEAR, arXiv 2403.03945) filter directions. It is then subtracted, which leaves more rows to single records, until
    nothing peels. A record may be scaled by a factor of its own, so that clipping hides nothing.

    It applies where `analytic` does but for the number of records. For one record it is `analytic`, but for entries
    that pruning left out, which it does without; of a pruned batch little peels, and of a noisy one nothing. Slots of
    records that did not peel get pictures that several rows agree on, then what the remaining rows mix, or grey.
    """

    family: ClassVar[str] = "closed-form"
    name: ClassVar[str] = "peeling"
    summary: ClassVar[str] = "peel a batch's records off the rows of a first dense layer that fire for one of them"
    source: ClassVar[str] = "formulated here; Boenisch et al. 2021, Fowl et al. 2022, Dimitrov et al. 2024 (SPEAR)"
    needs: ClassVar[Needs] = Needs(dense_input=True)
    closed_form: ClassVar[bool] = True

    @memory_safe
    def __call__(self, model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Reconstruction:
        """Return the pictures; a victim whose bias gradient is zero or not finite is `diverged`."""
        need_sum_of_gradients(update)
        if update.batch_size > 1:  # whether a row holds one record, a prediction of its gradient tells
            need_one_gradient(update)
        with client_mode(model, update, generator):
            layer = first_dense(model, probe_pictures(update, generator, model.mean.device, most=8))
        place = {id(p): i for i, p in enumerate(parameters_of(model)[1])}
        weights, biases = update.gradients[place[id(layer.weight)]], update.gradients[place[id(layer.bias)]]
        known = known_or_none(model, update, generator)
        labels = None if known is None else hard(known, update.task).clone()
        images = torch.full((update.victims, update.batch_size, *update.input_shape), 0.5).to(model.mean)
        objective = torch.full((update.victims,), torch.inf).to(model.mean)
        statuses: list[Status] = ["diverged"] * update.victims
        certified = torch.zeros(images.shape[:2], dtype=torch.bool)
        for v, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            if not (weight.isfinite().all() and bias.isfinite().all() and bias.any()):
                continue
            statuses[v] = "converged"
            tried = labels_to_try(update, known, v)
            rows, scene = rows_of(weight, bias), Scene(model, layer, update, tried)
            if update.batch_size == 1:
                flat, rest = survivors(weight, bias)
                with client_mode(model, update, generator):
                    certified[v] = update.is_gradient and sole(scene, rows, flat)
            else:
                with client_mode(model, update, generator):
                    found, flat, rest = drawn(scene, rows, self.apart(scene, rows, generator), generator)
                proved = torch.tensor([p.proved for p in found for _ in range(p.times)], dtype=torch.bool)
                certified[v, : len(proved)] = proved
                if labels is not None:
                    read = hard(tried[[p.label for p in found for _ in range(p.times)]], update.task)
                    labels[v] = _told(labels[v], read)
            pictures = pictures_of(flat.view(update.batch_size, -1), model, update.input_shape)
            certified[v] &= within(pictures).to(certified.device)
            images[v] = pictures.nan_to_num(0.5, 0.5, 0.5).clamp(0, 1)
            objective[v] = rest
        return Reconstruction(
            images=images,
            labels=labels,
            objective=objective,
            statuses=tuple(statuses),
            reason=None if "diverged" not in statuses else "the first layer's bias gradient is zero or not finite",
            notes=() if update.batch_size == 1 else (self.note(int(certified.sum()), certified.numel()),),
            certified=certified,
        )

    def apart(self, scene: Scene, rows: Rows, generator: torch.Generator) -> Peeled:
        """Return the records of one victim that can be told apart, from the rows of its first layer."""
        return peeled(scene, rows, generator)

    def note(self, count: int, of: int) -> str:
        """Say how many records are certain."""
        return f"{count} of {of} records peeled: each accounts for a part of the update."


def labels_to_try(update: SharedUpdate, counted: Tensor | None, victim: int) -> Tensor:
    """Return labels (L,), or where such are known probabilities (L, K), or targets (L, *shape).

    Of batches whose targets are not known they are those of label groups, which explain records only where they are
    their own.
    """
    if update.labels is not None:
        exposed: Tensor = torch.unique(update.labels[victim], dim=0)
        return exposed
    if counted is not None and (counted.is_floating_point() or update.classes > MANY):
        named: Tensor = torch.unique(counted[victim], dim=0)
        return named
    return torch.arange(update.classes, device=update.gradients[0].device)


def _told(counted: Tensor, read: Tensor) -> Tensor:
    """Return labels (B,): those read off peeled records (n,), then of the counted ones (B,) as many as are missing."""
    spare = counted.tolist()
    for label in read.tolist():
        if label in spare:
            spare.remove(label)
    rest = torch.tensor(spare[: len(counted) - len(read)], dtype=counted.dtype, device=counted.device)
    return torch.cat([read.to(counted), rest])
