"""The gradient-matching engine: objective values and picture gradients for a stack of trials.

For a distance d(ĝ, g) with a closed-form cotangent c = ∂d/∂ĝ, the gradient with respect to the picture is one
vector-Jacobian product of ĝ(x̂) = ∇_θ ℓ(f_θ(x̂), y) with c: a double backward that never pays for second-order weight
gradients, because only the picture's is asked for. There are three ways to it, all exact:

- `stacked`: all trials in one pass, layer by layer (`leakaudit.engine.stacked`);
- `vectorised`: all trials in one pass by `torch.func.vmap`, for small networks of layers unknown to `stacked`;
- `loop`: one trial after another by autograd, for every model that can be differentiated twice.

Which is tried first follows from the model's size and the number of trials (`order`), not from a clock: the same
command must give the same bits. Every other way is checked against `loop`, on all trials at the first call and on one
more in turn at every power of two, and is given up for this model where it differs or cannot run. A judge must not be
rounded: `match` computes in float32, whatever torch's flags let a GPU do (`leakaudit.work.precision`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from leakaudit.engine.distances import Distance, Span, cosine, energy, inner, squared
from leakaudit.engine.recording import Unsupported
from leakaudit.engine.stacked import Around, Trials, stacked, twice_differentiable
from leakaudit.errors import message_of
from leakaudit.protocol.gradients import Gradients, parameters_of, with_parameters
from leakaudit.protocol.target import LossFunction, PixelModel
from leakaudit.work.memory import bearable, exhausted, in_pieces
from leakaudit.work.precision import exact as exact_float32
from leakaudit.work.seeding import random_states, set_random_states

__all__ = [
    "Distance",
    "Span",
    "cosine",
    "energy",
    "inner",
    "listed",
    "match",
    "match_one",
    "squared",
    "twice_differentiable",
]

# Parameters up to which one vectorised pass beats the loop: per trial 0.3 of its CPU time at 9,000 parameters, the same
# at 84,000, more above.
VECTORISE_UP_TO = 40_000
STACK_ONE_FROM = 1_000_000  # parameters from which a stacked pass is cheaper than the loop for one trial too
TOLERANCE = 2e-2  # relative error of a slope that counts as right
HISTORIES = 8  # kept of a model: a fresh closure for a distance makes a new one

Way = Callable[[Trials], tuple[Tensor, Tensor]]


def match_one(
    model: PixelModel,
    outcome: Tensor,
    inputs: Sequence[Tensor],
    shared: Gradients,
    distance: Distance,
    other: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return d(∇_θ outcome, shared) and its gradients with respect to `inputs`, which `outcome` depends on.

    `outcome` is a scalar loss, `shared` one tensor (*parameter.shape) per parameter, `other` = ‖shared‖² if known.
    Inputs that the gradient does not depend on get zeros.
    """
    _, parameters = parameters_of(model)
    found = torch.autograd.grad(outcome, parameters, create_graph=True, allow_unused=True)
    reached = [i for i, g in enumerate(found) if g is not None and g.requires_grad]
    candidate = tuple(torch.zeros_like(p) if g is None else g.detach() for p, g in zip(parameters, found, strict=True))
    scale: Tensor | None = None
    if isinstance(distance, Span):
        known = inner(shared, shared) if other is None else other
        value, scale, cotangent = distance.direction(candidate, shared, known)
    else:
        value, cotangent = distance(candidate, shared)
    outputs = [g for i in reached if (g := found[i]) is not None]
    if not outputs:
        return value.detach(), tuple(torch.zeros_like(x) for x in inputs)
    slopes = torch.autograd.grad(outputs, list(inputs), [cotangent[i] for i in reached], allow_unused=True)
    whole = tuple(torch.zeros_like(x) if s is None else s for x, s in zip(inputs, slopes, strict=True))
    return value.detach(), whole if scale is None else tuple(s * scale for s in whole)


_once: WeakSet[PixelModel] = WeakSet()  # models with a kernel that has no second derivative


def _loop(job: Trials) -> tuple[Tensor, Tensor]:
    return _one_by_one(job, energy(job.shared) if isinstance(job.distance, Span) else None)


def _one_by_one(job: Trials, others: Tensor | None) -> tuple[Tensor, Tensor]:
    """The loop, for `others` = ‖g‖² of every update. Without them nothing is taken over from earlier calls."""
    model = job.model

    def trial(t: int, row: int) -> tuple[Tensor, Tensor]:
        x = job.images[t].detach().requires_grad_(True)
        with twice_differentiable() if model in _once else nullcontext(), job[t : t + 1].run():
            outcome = job.loss(model(x), job.labels[t])
        other = None if others is None else others[row]
        value, (slope,) = match_one(model, outcome, (x,), tuple(s[row] for s in job.shared), job.distance, other)
        return value, slope

    found = []
    for t, row in enumerate(job.numbers()):
        try:
            found.append(trial(t, row))
        except RuntimeError as error:
            if model in _once or "derivative for" not in message_of(error):
                raise
            _once.add(model)
            found.append(trial(t, row))
    values, slopes = zip(*found, strict=True)
    return torch.stack(values), torch.stack(slopes)


def _vectorised(job: Trials) -> tuple[Tensor, Tensor]:
    if job.around is not None:
        raise Unsupported("what a pass runs in is of all its trials, and here each is run as if it were alone")
    model = job.model
    names, tensors = parameters_of(model)
    parameters = dict(zip(names, (p.detach() for p in tensors), strict=True))

    def outcome(moved: dict[str, Tensor], picture: Tensor, label: Tensor) -> Tensor:
        with with_parameters(model, tensors, [moved[n] for n in names]):
            return job.loss(model(picture), label)

    def trial(x: Tensor, y: Tensor, *wanted: Tensor) -> tuple[Tensor, Tensor]:
        def gradient(picture: Tensor) -> dict[str, Tensor]:
            found: dict[str, Tensor] = torch.func.grad(outcome)(parameters, picture, y)
            return found

        found, back = torch.func.vjp(gradient, x)[:2]
        value, cotangent = job.distance(tuple(found[n] for n in names), wanted)
        return value, back(dict(zip(names, cotangent, strict=True)))[0]

    with twice_differentiable():
        values, slopes = torch.func.vmap(trial)(job.images, job.labels, *(s[job.rows] for s in job.shared))
    return values.detach(), slopes.detach()


WAYS: dict[str, Way] = {"stacked": stacked, "vectorised": _vectorised, "loop": _loop}


def agrees(fast: Tensor, exact: Tensor) -> bool:
    """Return whether a slope is the exact one up to rounding: ‖fast − exact‖ ≤ 2e-2·‖exact‖."""
    return float((fast - exact).norm()) <= TOLERANCE * float(exact.norm())


def vectorises(model: PixelModel) -> bool:
    """Return whether the network is small enough for many trials in one vectorised pass to be worth it."""
    return sum(p.numel() for p in parameters_of(model)[1]) <= VECTORISE_UP_TO


def order(model: PixelModel, trials: int) -> tuple[str, ...]:
    """Return the ways to try, the cheapest first, for so many trials at once."""
    if trials > 1 and vectorises(model):
        return "stacked", "vectorised", "loop"
    stacks = trials > 1 or sum(p.numel() for p in parameters_of(model)[1]) >= STACK_ONE_FROM
    return ("stacked", "loop") if stacks else ("loop",)


@dataclass
class _History:
    """What is known of the ways for one model in one mode, one shape of trial, one loss and one distance."""

    ways: tuple[str, ...]  # to try, in order
    asked: tuple[LossFunction, Distance]  # held, so that their ids stay theirs
    refused: dict[str, str] = field(default_factory=dict)  # way -> reason
    calls: int = 0
    checks: int = 0
    last: str = "loop"


_known: WeakKeyDictionary[PixelModel, dict[Any, _History]] = WeakKeyDictionary()


def _recalled(model: PixelModel, key: Any, ways: tuple[str, ...], asked: tuple[LossFunction, Distance]) -> _History:
    """Return what is known of the ways, and forget what was used longest ago."""
    histories = _known.setdefault(model, {})
    history = histories.pop(key, None) or _History(ways, asked)
    histories[key] = history  # the last one is the last used
    if len(histories) > HISTORIES:
        del histories[next(iter(histories))]
    return history


_rows: Any = WeakTensorKeyDictionary()  # rows of a stack -> which version of them was read, and the numbers


def listed(rows: Tensor) -> tuple[int, ...]:
    """Return the rows as numbers. The device is waited for once per tensor, not at every step."""
    if rows.is_inference():  # whether it was written to since, nobody knows
        return tuple(rows.tolist())
    known = _rows.get(rows)
    if known is None or known[0] != rows._version:
        known = _rows[rows] = rows._version, tuple(rows.tolist())
    return known[1]  # type: ignore[no-any-return]


@torch.enable_grad()
@exact_float32()
def match(
    model: PixelModel,
    loss: LossFunction,
    images: Tensor,
    labels: Tensor,
    shared: Gradients,
    distance: Distance,
    rows: Tensor | None = None,
    around: Around | None = None,
) -> tuple[Tensor, Tensor]:
    """Return objective values (T,) and their gradients with respect to the pictures (T, B, C, H, W).

    `images` (T, B, C, H, W), `labels` (T, B) class indices or (T, B, classes) probabilities, `shared` one tensor
    (V, *parameter.shape) per parameter: trial t is matched with row `rows[t]` of (T,), by default with row t (V = T),
    so that several trials of one victim share its update. The caller puts the model in the client's mode. What else
    the victims differ in, `around` sees to: every forward pass is run in `around(row of each of its records (N,))`.

    A stack that does not fit into the memory runs in pieces (`leakaudit.work.memory`). A way that is checked and
    refused leaves the random state as it was: what is drawn must not depend on the history.

    Raises ValueError where `shared` has not one tensor per parameter.
    """
    if len(shared) != len(parameters_of(model)[1]):
        raise ValueError(f"{len(shared)} shared tensors for {len(parameters_of(model)[1])} parameters")
    trials = len(images)
    if trials == 0:
        return images.new_zeros(0), torch.zeros_like(images)
    numbers = tuple(range(trials)) if rows is None else listed(rows)
    rows = torch.arange(trials, device=images.device) if rows is None else rows
    training = tuple(module.training for module in model.modules())
    key = (images.shape[1:], images.dtype, training, id(loss), id(distance), len(shared), trials > 1)
    history = _recalled(model, key, order(model, trials), (loss, distance))
    history.calls += 1
    check = history.calls & (history.calls - 1) == 0 or not history.checks  # a first one that ran out of memory is owed

    job = Trials(model, loss, images, labels, shared, distance, rows, around, numbers)
    if history.ways[0] != "loop":  # the check forms whole gradients, where the way that it checks may not
        bearable(lambda: _one_by_one(job[:1], None), model, ("check", *key), images.device)

    def piece(start: int, stop: int) -> tuple[Tensor, Tensor]:
        return _attempt(job[start:stop], history)

    while True:
        before = random_states()
        found = in_pieces(piece, trials, model, key, images.device)
        values, slopes = found[0] if len(found) == 1 else (torch.cat(column) for column in zip(*found, strict=True))
        if not check or history.last == "loop":
            return values, slopes
        after = random_states()
        if trials == 1:
            set_random_states(before)  # so that dropout draws the same again
        if _confirmed(job, values, slopes, history):
            set_random_states(after)
            return values, slopes
        set_random_states(before)
        history.refused[history.last] = "it differs from plain autograd"


def _confirmed(job: Trials, values: Tensor, slopes: Tensor, history: _History) -> bool:
    """Return whether the loop finds the same: for all trials at the first check, then for another one each time.

    Trials that have arrived are passed over, because their slope is rounding, and so are those that are not finite.
    """
    floor = (job.distance.arrived or 0.0) if isinstance(job.distance, Span) else 0.0
    finite = values.isfinite() & slopes.flatten(1).isfinite().all(1)
    if not finite.any():
        return True
    least = max(floor, 0.1 * float(values[finite].max()))
    open_ = [t for t in range(len(values)) if finite[t] and (float(values[t]) >= least or float(values[t]) < -floor)]
    if history.checks and open_:
        open_ = [open_[history.checks % len(open_)]]
    history.checks += 1
    for t in open_:
        one = slice(t, t + 1)
        (value,), exact = _one_by_one(job[one], None)
        near = abs(float(values[t]) - float(value)) <= TOLERANCE * abs(float(value)) + floor
        if exact.isfinite().all() and not (near and agrees(slopes[one], exact)):
            return False
    return True


def _attempt(job: Trials, history: _History) -> tuple[Tensor, Tensor]:
    """Run the first way that can run. One that cannot leaves the random state as it was."""
    for name in history.ways:
        if name in history.refused:
            continue
        before = random_states()
        try:
            found = WAYS[name](job)
        except Exception as error:  # whatever a model says that is run in an unusual way; the loop runs it as it is
            if name == "loop" or exhausted(error):
                raise
            set_random_states(before)
            history.refused[name] = f"{type(error).__name__}: {error}"
            continue
        history.last = name
        return found
    raise AssertionError("the loop is the last way, and returns or raises")
