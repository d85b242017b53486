"""The closed-form attack on a first dense layer: its input is its weight gradient over its bias gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from leakaudit.attacks._attacking import client_mode, memory_safe, need_sum_of_gradients
from leakaudit.attacks._labels import known_labels, probe_pictures
from leakaudit.engine.dense import is_pictures, layers_at_work
from leakaudit.errors import NotApplicable
from leakaudit.protocol.attack import Attack, Needs, Reconstruction, Status
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.gradients import parameters_of
from leakaudit.protocol.labels import hard
from leakaudit.protocol.registry import register_attack
from leakaudit.protocol.target import PixelModel


def first_dense(model: PixelModel, pictures: Tensor) -> nn.Linear:
    """Return the first layer with weights if it is dense, biased and fed the flattened, normalised `pictures`.

    Raises NotApplicable with the reason otherwise: what is read off its gradient would not be the picture.
    """
    with torch.no_grad():
        _, seen = layers_at_work(model, pictures, lambda m: any(True for _ in m.parameters(recurse=False)))
    if not seen:
        raise NotApplicable("no layer with weights was seen at work")
    layer = seen[0].layer
    if not isinstance(layer, nn.Linear):
        raise NotApplicable(f"the first layer is {type(layer).__name__}, not dense")
    if layer.bias is None or not (layer.bias.requires_grad and layer.weight.requires_grad):
        raise NotApplicable("the first dense layer shares no gradient of a bias")
    if not is_pictures(seen[0].given, model, pictures):
        raise NotApplicable("the first dense layer is not fed the flattened picture")
    if sum(layer is use.layer for use in seen) > 1:
        raise NotApplicable("the first dense layer is used more than once")
    return layer


def solve(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return the input (D,) of a dense layer from its gradients (O, D) and (O,), by least squares over the rows.

    Second comes how far the gradient is from the rank-one form that this assumes: zero without a defense. Not finite
    where the bias gradient is zero.
    """
    weight, bias = weight.double(), bias.double()
    found = bias @ weight / bias.square().sum()
    return found, (weight - torch.outer(bias, found)).norm()


@register_attack
@dataclass(frozen=True, kw_only=True)
class Analytic(Attack):
    """Read a dense layer's input off its gradient (Phong et al. 2017, eprint 2017/715, section 3).

    ∂W_k = ∂b_k·xᵀ for every row k, so the least-squares x is Σ_k ∂b_k ∂W_k / Σ_k ∂b_k²: exact for one record, up to
    rounding. It applies where the first layer with weights is a biased dense one fed the flattened picture, checked on
    probe pictures, and B = 1; else it raises NotApplicable with the reason. The weights do not enter, so that it is as
    exact for what sgd sums over several local steps.
    """

    family: ClassVar[str] = "closed-form"
    name: ClassVar[str] = "analytic"
    summary: ClassVar[str] = "closed form: a first dense layer's gradient contains its input"
    source: ClassVar[str] = "Phong et al. 2017"
    needs: ClassVar[Needs] = Needs(one_record=True, dense_input=True)
    closed_form: ClassVar[bool] = True

    @memory_safe
    def __call__(self, model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Reconstruction:
        """Return the pictures; a victim whose bias gradient is zero or not finite is `diverged`.

        Local steps of sgd on one record are no hindrance: ∂W_k is ∂b_k·xᵀ in each of them, and so in their sum.
        """
        if update.batch_size != 1:
            raise NotApplicable(
                f"it needs one record per update, here there are {update.batch_size}: of several, `peeling` takes the "
                "rows that fire for one of them alone"
            )
        need_sum_of_gradients(update)
        with client_mode(model, update, generator):
            layer = first_dense(model, probe_pictures(update, generator, model.mean.device, most=8))
        place = {id(p): i for i, p in enumerate(parameters_of(model)[1])}
        weights, biases = update.gradients[place[id(layer.weight)]], update.gradients[place[id(layer.bias)]]
        solved = [solve(weight, bias) for weight, bias in zip(weights, biases, strict=True)]
        flat, rest = (torch.stack(column) for column in zip(*solved, strict=True))
        usable = flat.isfinite().all(1).tolist()
        images = flat.nan_to_num(0, 0, 0).view(update.victims, *update.input_shape) * model.std + model.mean
        statuses: tuple[Status, ...] = tuple("converged" if u else "diverged" for u in usable)
        return Reconstruction(
            images=images.to(model.mean.dtype).clamp(0, 1)[:, None],
            labels=known_labels_or_none(model, update, generator),
            objective=rest.nan_to_num(torch.inf).to(model.mean.dtype),
            statuses=statuses,
            reason=None if all(usable) else "the first layer's bias gradient is zero or not finite",
        )


def known_labels_or_none(model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Tensor | None:
    """Return the labels (V, B), or label groups, if they can be had: this attack draws its pictures without them."""
    known = known_or_none(model, update, generator)
    return None if known is None else hard(known, update.task)


def known_or_none(model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Tensor | None:
    """Return what `known_labels` does: labels (V, B), probabilities or targets; None where they cannot be had."""
    try:
        return known_labels(model, update, generator)
    except NotApplicable:
        return None
