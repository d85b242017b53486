"""The gradient-matching engine: objective values and picture gradients for a stack of trials.

For a distance d(ĝ, g) with a closed-form cotangent c = ∂d/∂ĝ, the gradient with respect to the picture is one
vector-Jacobian product of ĝ(x̂) = ∇_θ ℓ(f_θ(x̂), y) with c: a double backward that never pays for second-order weight
gradients, because only `inputs=x̂` is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from leakaudit.client import parameters_of
from leakaudit.defense import Gradients
from leakaudit.target import LossFunction, PixelModel

# (candidate's gradient, shared gradient) -> (value, cotangent ∂value/∂candidate's gradient)
Distance = Callable[[Gradients, Gradients], tuple[Tensor, Gradients]]

# Parameters up to which all trials run as one vectorised pass: per trial 0.3 of the loop's CPU time at 9,000
# parameters, the same at 84,000, more above.
VECTORISE_UP_TO = 40_000


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Run the enclosed forward passes with kernels that can be differentiated twice: attention by plain products.

    The fused attention kernels have no second derivative; `match` sees to it itself, callers of `match_one` must.
    """
    with sdpa_kernel(SDPBackend.MATH):
        yield


def inner(a: Gradients, b: Gradients) -> Tensor:
    """Return ⟨a, b⟩ over all parameters."""
    return torch.stack([torch.dot(x.flatten(), y.flatten()) for x, y in zip(a, b, strict=True)]).sum()


def squared(candidate: Gradients, shared: Gradients) -> tuple[Tensor, Gradients]:
    """‖ĝ − g‖² and its cotangent 2(ĝ − g) (DLG)."""
    gap = tuple(c - s for c, s in zip(candidate, shared, strict=True))
    return inner(gap, gap), tuple(2 * g for g in gap)


def cosine(candidate: Gradients, shared: Gradients) -> tuple[Tensor, Gradients]:
    """1 − cos(ĝ, g) and its cotangent −(g/‖g‖ − cos·ĝ/‖ĝ‖)/‖ĝ‖ (inverting gradients)."""
    norm = inner(candidate, candidate).sqrt().clamp_min(1e-15)
    other = inner(shared, shared).sqrt().clamp_min(1e-15)
    similarity = inner(candidate, shared) / (norm * other)
    # As −(g − (cos·‖g‖/‖ĝ‖) ĝ)/(‖ĝ‖‖g‖): one pass over the parameters and one in place, where memory is what costs.
    ratio, factor = -similarity * other / norm, -1 / (norm * other)
    return 1 - similarity, tuple(
        torch.addcmul(s, c, ratio).mul_(factor) for c, s in zip(candidate, shared, strict=True)
    )


def match_one(
    model: PixelModel, outcome: Tensor, inputs: Sequence[Tensor], shared: Gradients, distance: Distance
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return d(∇_θ outcome, shared) and its gradients with respect to `inputs`, which `outcome` depends on.

    `outcome` is a scalar loss, `shared` one tensor (*parameter.shape) per parameter. Inputs that the gradient does not
    depend on get zeros.
    """
    _, parameters = parameters_of(model)
    found = torch.autograd.grad(outcome, parameters, create_graph=True, allow_unused=True)
    reached = [i for i, g in enumerate(found) if g is not None and g.requires_grad]
    candidate = tuple(torch.zeros_like(p) if g is None else g.detach() for p, g in zip(parameters, found, strict=True))
    value, cotangent = distance(candidate, shared)
    outputs = [g for i in reached if (g := found[i]) is not None]
    if not outputs:
        return value.detach(), tuple(torch.zeros_like(x) for x in inputs)
    slopes = torch.autograd.grad(outputs, list(inputs), [cotangent[i] for i in reached], allow_unused=True)
    return value.detach(), tuple(torch.zeros_like(x) if s is None else s for x, s in zip(inputs, slopes, strict=True))


def vectorises(model: PixelModel) -> bool:
    """Return whether the network is small enough for many trials in one vectorised pass to be worth it."""
    return sum(p.numel() for p in parameters_of(model)[1]) <= VECTORISE_UP_TO


def _match_vectorised(
    model: PixelModel, loss: LossFunction, images: Tensor, labels: Tensor, shared: Gradients, distance: Distance
) -> tuple[Tensor, Tensor]:
    """Return what `match` does, `shared` one row per trial. Raises RuntimeError where vmap cannot follow."""
    names, tensors = parameters_of(model)
    parameters = dict(zip(names, (p.detach() for p in tensors), strict=True))

    def trial(x: Tensor, y: Tensor, *wanted: Tensor) -> tuple[Tensor, Tensor]:
        def gradient(picture: Tensor) -> dict[str, Tensor]:
            outcome = torch.func.grad(lambda p: loss(torch.func.functional_call(model, p, (picture,)), y))
            found: dict[str, Tensor] = outcome(parameters)
            return found

        found, back = torch.func.vjp(gradient, x)[:2]
        value, cotangent = distance(tuple(found[n] for n in names), wanted)
        return value, back(dict(zip(names, cotangent, strict=True)))[0]

    with twice_differentiable():
        values, slopes = torch.func.vmap(trial)(images, labels, *shared)
    return values.detach(), slopes.detach()


def match(
    model: PixelModel,
    loss: LossFunction,
    images: Tensor,
    labels: Tensor,
    shared: Gradients,
    distance: Distance,
    rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return objective values (T,) and their gradients with respect to the pictures (T, B, C, H, W).

    `images` (T, B, C, H, W), `labels` (T, B) class indices or (T, B, classes) probabilities, `shared` one tensor
    (V, *parameter.shape) per parameter: trial t is matched with row `rows[t]` of (T,), by default with row t (V = T),
    so that several trials of one victim share its update. The caller puts the model in the client's mode.

    Small networks run all trials in one vectorised pass, where a loop would spend its time on launching operations.
    """
    if images.shape[0] > 1 and vectorises(model):
        chosen = shared if rows is None else tuple(s[rows] for s in shared)
        try:
            return _match_vectorised(model, loss, images, labels, chosen, distance)
        except RuntimeError:  # something in the model or the distance has no vectorised form: BatchNorm's
            pass  # statistics in train mode, random draws
    values, slopes = [], []
    for t in range(images.shape[0]):
        row = t if rows is None else int(rows[t])
        x = images[t].detach().requires_grad_(True)
        with twice_differentiable():
            outcome = loss(model(x), labels[t])
        value, (slope,) = match_one(model, outcome, (x,), tuple(s[row] for s in shared), distance)
        values.append(value)
        slopes.append(slope)
    return torch.stack(values), torch.stack(slopes)
