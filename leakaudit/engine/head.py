"""The layer that tells labels: the last trained one that everything passes through, and what follows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from leakaudit.engine.dense import layers_at_work
from leakaudit.engine.layers import Linear
from leakaudit.engine.stacked import twice_differentiable
from leakaudit.protocol.gradients import parameters_of
from leakaudit.protocol.target import LossFunction, PixelModel

Convolution = nn.Conv2d | nn.Conv3d

_TRIED = 4  # layers from the end that are tried
_LOOKED = 16  # labels, and probe pictures, at which the form of the slopes is looked at


@dataclass(frozen=True)
class Head:
    """The last trained layer that all of a model's output passes through: a dense layer or a convolution.

    `outputs` (N, O) or (N, O, *places) are what it gave for N probe pictures, `features` (D,) its mean input. Where it
    is used at many places (a convolution, a dense layer over tokens) and `pooled`, what follows takes their mean alone,
    and it is a dense layer on the mean of its inputs; one that is not has an output for each class. `direct`: its
    output are the logits themselves.

    With `scale` c the slopes of a record's loss in the O outputs are c·(q − e_y), as cross-entropy's are with and
    without a LogSoftmax (c = 1, q the softmax: `plain`) and under a temperature T (c = 1/T). `signed`: the slope,
    summed over the places, is least in the true class's output.
    """

    name: str
    layer: nn.Linear | Convolution
    outputs: Tensor
    features: Tensor
    pooled: bool
    direct: bool
    scale: float | None = None
    plain: bool = False
    signed: bool = False

    def given(self, inputs: Tensor) -> Tensor:
        """Return the output (N, O) for inputs (N, D), in the weights' precision."""
        weight = self.layer.weight.detach().double().flatten(1)
        found = inputs.double() @ weight.T
        if self.layer.bias is not None:
            found = found + self.layer.bias.detach().double()
        return found.to(self.layer.weight.dtype)


def find(
    model: PixelModel, loss: LossFunction, pictures: Tensor, *, by_class: bool = True
) -> tuple[Head | None, Tensor]:
    """Return the head, or None, and the logits (N, K) of `pictures` (N, C, H, W). The model runs in its mode.

    The form of its slopes is looked at only if `by_class`: where the loss takes each of the K outputs as a label.

    A layer is one if its output put in place of that for other pictures gives the same logits: then nothing of a
    record passes it by. The last few trained layers are tried, each used once.
    """
    with torch.no_grad():
        logits, uses = layers_at_work(model, pictures, lambda m: isinstance(m, nn.Linear | Convolution))
    trained = {id(p) for p in parameters_of(model)[1]}
    tried = 0
    for use in reversed(uses):
        layer, inputs = use.layer, use.given
        if not isinstance(layer, nn.Linear | Convolution) or inputs is None or id(layer.weight) not in trained:
            continue
        if isinstance(layer, nn.Linear) and inputs.dim() == 2:
            outputs = nn.functional.linear(inputs, layer.weight, layer.bias).detach()
            if outputs.shape == logits.shape and torch.allclose(outputs, logits, atol=1e-5):
                direct = Head(use.name, layer, outputs, inputs.mean(0), pooled=True, direct=True)
                return _formed(model, loss, direct, logits, pictures) if by_class else direct, logits
        once = sum(other.layer is layer for other in uses) == 1
        if tried < _TRIED and once and (head := _passed(model, use.name, layer, inputs, pictures, logits)) is not None:
            return _formed(model, loss, head, logits, pictures) if by_class else head, logits
        tried += once
    return None, logits


def _passed(
    model: PixelModel, name: str, layer: nn.Linear | Convolution, inputs: Tensor, pictures: Tensor, logits: Tensor
) -> Head | None:
    """Return the layer as a head if all that the logits depend on passes it."""
    if isinstance(layer, Convolution) and (
        inputs.dim() != layer.weight.dim() or layer.groups != 1 or layer.padding_mode != "zeros"
    ):
        return None
    if isinstance(layer, nn.Linear) and inputs.dim() < 2:
        return None
    try:
        with torch.no_grad():
            outputs = layer(inputs)
            features = _features(layer, inputs)
            if outputs.shape[0] != len(pictures) or not _same(_after(model, layer, outputs, pictures.flip(0)), logits):
                return None
            mean = mean_over_places(layer, outputs)
            pooled = outputs.dim() == 2 or _same(_after(model, layer, mean, pictures), logits)
            if not pooled and mean.shape != logits.shape:
                return None  # neither its input nor the class can be told from its gradient
    except (RuntimeError, ValueError, TypeError):  # a user's model may do anything with what it does not expect
        return None
    return Head(name, layer, outputs, features, pooled=pooled, direct=pooled and _same(mean, logits))


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def _features(layer: nn.Linear | Convolution, inputs: Tensor) -> Tensor:
    """Return the mean input (D,) of one weight row, over records and places."""
    if isinstance(layer, nn.Linear):
        return inputs.flatten(0, -2).mean(0)
    if isinstance(layer.padding, str):
        raise TypeError("padding by name")
    own = Linear(inputs, None, layer.weight, 0, None, layer.stride, layer.padding, layer.dilation)
    return own.windows(inputs).mean((0, *range(2, inputs.dim()))).flatten()


def mean_over_places(layer: nn.Linear | Convolution, outputs: Tensor) -> Tensor:
    """Return outputs (N, O, *places), or (N, *places, O) of a dense layer, as their mean (N, O) over the places."""
    places = range(2, outputs.dim()) if isinstance(layer, Convolution) else range(1, outputs.dim() - 1)
    return outputs.mean(tuple(places)) if len(places) else outputs


def _after(model: PixelModel, layer: nn.Linear | Convolution, outputs: Tensor, pictures: Tensor) -> Tensor:
    """Return the logits (N, K) that follow from other outputs of the layer: (N, O), the same at all places, or all."""

    def instead(_: nn.Module, __: object, found: Tensor) -> Tensor:
        if outputs.shape == found.shape:
            return outputs
        spread = (1,) * (found.dim() - 2)
        shape = (len(outputs), -1, *spread) if isinstance(layer, Convolution) else (len(outputs), *spread, -1)
        return outputs.view(shape).expand_as(found)

    handle = layer.register_forward_hook(instead)
    try:
        return model(pictures)  # type: ignore[no-any-return]
    finally:
        handle.remove()


def slopes(
    model: PixelModel,
    loss: LossFunction,
    head: Head,
    outputs: Tensor,
    shape: Sequence[int],
    labels: Sequence[int | Tensor],
) -> list[Tensor]:
    """Return the slope (N, O) of each record's loss in a head's outputs, for every one of `labels`.

    A label is a class or a label group, or the target of every record (N, *target). `outputs` are (N, O), or
    (N, O, *places); of places the slopes are summed, as a bias's gradient is. `shape` is (C, H, W) of a picture. The
    loss is a mean over records.
    """
    leaf = outputs.detach().clone().requires_grad_(True)
    dummy = torch.full((len(leaf), *shape), 0.5, device=leaf.device, dtype=leaf.dtype)
    found = []
    with torch.enable_grad(), twice_differentiable():
        logits = leaf if head.direct and leaf.dim() == 2 else _after(model, head.layer, leaf, dummy)
        for k in labels:
            target = k if isinstance(k, Tensor) else torch.full((len(leaf),), k, device=leaf.device)
            (slope,) = torch.autograd.grad(len(leaf) * loss(logits, target), leaf, retain_graph=True)
            found.append(_summed(head.layer, slope))
    return found


def _summed(layer: nn.Linear | Convolution, slope: Tensor) -> Tensor:
    places = range(2, slope.dim()) if isinstance(layer, Convolution) else range(1, slope.dim() - 1)
    return slope.sum(tuple(places)) if len(places) else slope


def _formed(model: PixelModel, loss: LossFunction, head: Head, logits: Tensor, pictures: Tensor) -> Head:
    """Return the head with the form of its slopes, looked at in some of the probe pictures and labels."""
    count = logits.shape[1]
    outputs = mean_over_places(head.layer, head.outputs)[:_LOOKED] if head.pooled else head.outputs[:_LOOKED]
    if head.pooled and outputs.shape[1] != count:
        return head
    labels = torch.linspace(0, count - 1, min(count, _LOOKED)).long()
    try:
        found = torch.stack(slopes(model, loss, head, outputs, pictures.shape[1:], labels.tolist()))
    except (RuntimeError, ValueError, TypeError, IndexError):  # a user's loss may do anything too
        return head
    if not head.pooled:
        own = found.gather(2, labels.to(found.device).view(-1, 1, 1).expand(-1, found.shape[1], 1))[..., 0]
        return replace(head, signed=bool((own <= found.amin(2)).all()))
    unit = torch.eye(count, device=found.device, dtype=found.dtype)[labels.to(found.device)][:, None]
    scale = _scale(found, labels)
    q = found / scale + unit if scale > 0 else found
    if not scale > 0 or not torch.allclose(q, q[:1].expand_as(q), rtol=1e-3, atol=1e-4):
        return head
    if abs(scale - 1) < 1e-3 and torch.allclose(q[0], logits[:_LOOKED].softmax(1), rtol=1e-3, atol=1e-4):
        return replace(head, scale=1.0, plain=True)
    return replace(head, scale=scale)


def _scale(found: Tensor, labels: Tensor) -> float:
    """Return c, the mean of what a record's slope (L, N, K) in an output falls by where that is the label (L,)."""
    rows = labels.to(found.device)
    own = found[torch.arange(len(rows), device=found.device), :, rows]  # (L, N): of the label's own output
    other = found.roll(1, 0)[torch.arange(len(rows), device=found.device), :, rows]  # of the same under another label
    return float((other - own).mean())
