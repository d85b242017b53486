"""How the functions of torch that have kinks or jumps are frozen: the sides they note, and what they are on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Call = Callable[..., Any]


@dataclass(frozen=True)
class Kink:
    """How one function is frozen.

    `note(call, x, *args, **kwargs)` makes the call and returns its result and a note of the sides;
    `again(note, x, *args, **kwargs)` returns the frozen result, out of place.
    """

    note: Call
    again: Call


def _derivative(plain: Call, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Return plain(x) and its derivative at x, the one autograd takes at the kink itself."""
    with torch.enable_grad():
        probe = x.detach().requires_grad_(True)
        result = plain(probe, *args, **kwargs)
        (slope,) = torch.autograd.grad(result.sum(), probe)
    return result.detach(), slope


def line(plain: Call, *, offset: bool = False, leak: Callable[..., float] | None = None) -> Kink:
    """Elementwise and linear on each side: slope·x, plus an intercept where there is an `offset`.

    The slope is `plain`'s derivative. `leak` takes the arguments and returns that of the negative side of a function
    whose other one is 1: cheaper to tell, if between the two.
    """

    def note(call: Call, x: Tensor, *args: Any, inplace: bool = False, **kwargs: Any) -> tuple[Tensor, Any]:
        given = {"inplace": True} if inplace else {}
        if leak is not None and 0 <= (least := leak(*args, **kwargs)) <= 1:
            sides = x.detach().sign().clamp_(min=least)
            return call(x, *args, **given, **kwargs), sides
        before, found = _derivative(plain, x, *args, **kwargs)
        intercept = torch.addcmul(before, found, x.detach(), value=-1) if offset else None
        return call(x, *args, **given, **kwargs), (found, intercept)

    def again(note: Any, x: Tensor, *_: Any, **__: Any) -> Tensor:
        found, intercept = note if isinstance(note, tuple) else (note, None)
        return x * found if intercept is None else torch.addcmul(intercept, x, found)

    return Kink(note, again)


def pieces(sides: Callable[[Tensor], Tensor], smooth: Call) -> Kink:
    """Elementwise: `smooth(side, x, *args)` on the `sides(x)` recorded."""

    def note(call: Call, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
        found = sides(x.detach())
        return call(x, *args, **kwargs), found

    return Kink(note, smooth)


def constant() -> Kink:
    """Comparisons, signs, roundings, detached values: no derivative, so the recorded result is the frozen one."""

    def note(call: Call, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
        result = call(x, *args, **kwargs)
        return result, result

    return Kink(note, lambda note, *_, **__: note)


def pool(name: str) -> Kink:
    """Max-pools over the last dimensions: gather by the recorded indices."""
    indexed, dims = getattr(F, name), int(name[-2])

    def note(call: Call, x: Tensor, *args: Any, return_indices: bool = False, **kwargs: Any) -> tuple[Any, Any]:
        result, indices = indexed(x, *args, return_indices=True, **kwargs)
        pair = return_indices or call is torch.adaptive_max_pool1d or call.__name__.endswith("with_indices")
        return (result, indices) if pair else result, (indices, pair)

    def again(note: Any, x: Tensor, *_: Any, **__: Any) -> Any:
        indices, pair = note
        result = x.flatten(-dims).gather(-1, indices.flatten(-dims)).view_as(indices)
        return (result, indices) if pair else result

    return Kink(note, again)


def extreme(plain: Call, largest: bool = True) -> Kink:
    """Maxima and minima in all their forms: of all entries, along dimensions, of two tensors, with indices."""

    def note(call: Call, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        result = call(x, *args, **kwargs)
        other = kwargs.get("other", args[0] if args else None)
        if isinstance(other, Tensor):  # ties share, as in autograd
            over = (x - other if largest else other - x).detach().sign()
            return result, (over + 1) / 2
        if isinstance(result, tuple):
            free = args[1:] if plain in (torch.topk, torch.kthvalue) else args  # without their k
            dim = kwargs.get("dim", next((a for a in free if not isinstance(a, bool)), -1))
            return result, (result[1], type(result), dim)
        return result, _derivative(plain, x, *args, **kwargs)[1]

    def again(note: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        other = kwargs.get("other", args[0] if args else None)
        if isinstance(other, Tensor):
            return x * note + other * (1 - note)
        if not isinstance(note, tuple):
            return (x * note).sum(*args, **kwargs)
        indices, pair, dim = note
        if indices.dim() == x.dim():
            return pair((x.gather(dim, indices), indices))
        return pair((x.gather(dim, indices.unsqueeze(dim)).squeeze(dim), indices))

    return Kink(note, again)


def _rrelu_note(call: Call, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
    before = x.detach().clone()
    result = call(x, *args, **kwargs)
    return result, torch.where(before == 0, 0, result.detach() / before)


def _rrelu(slope: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    F.rrelu(torch.where(slope == 1, 1.0, -1.0), *args, **kwargs)  # for what follows, the same draws are gone
    return x * slope


def _prelu(side: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    # The slope is a parameter: it is the perturbed one that counts.
    return torch.where(side, x, x * (weight.view(1, -1, *[1] * (x.dim() - 2)) if x.dim() > 1 else weight))


def _exponential(side: Tensor, x: Tensor, alpha: float = 1.0, rate: float = 1.0) -> Tensor:
    # Positive units are kept out of the exponential: their infinities would be multiplied by zero in the backward pass.
    return torch.where(side, x, alpha * torch.expm1(x.masked_fill(side, 0) * rate))


def _selu(side: Tensor, x: Tensor) -> Tensor:
    return 1.0507009873554804934193349852946 * _exponential(side, x, 1.6732632423543772848170429916717)


def _hardswish(side: Tensor, x: Tensor) -> Tensor:
    return torch.where(side == 0, x * (x + 3) / 6, x.masked_fill(side < 0, 0))


def _positive(x: Tensor) -> Tensor:
    return x > 0


# One line per function. `x.name`, `torch.name`, `F.name`, operators and in-place variants are found by the name.
KINKS: dict[str, Kink] = {
    "relu": line(torch.relu, leak=lambda: 0.0),
    "leaky_relu": line(F.leaky_relu, leak=lambda negative_slope=0.01: negative_slope),
    "relu6": line(F.relu6, offset=True),
    "hardtanh": line(F.hardtanh, offset=True),
    "threshold": line(F.threshold, offset=True),
    "hardsigmoid": line(F.hardsigmoid, offset=True),
    "hardshrink": line(F.hardshrink),
    "softshrink": line(F.softshrink, offset=True),
    "rrelu": Kink(_rrelu_note, _rrelu),
    "abs": line(torch.abs),
    "absolute": line(torch.abs),
    "clamp": line(torch.clamp, offset=True),
    "clip": line(torch.clamp, offset=True),
    "clamp_min": line(torch.clamp_min, offset=True),
    "clamp_max": line(torch.clamp_max, offset=True),
    "prelu": pieces(_positive, _prelu),
    "elu": pieces(_positive, _exponential),
    "celu": pieces(_positive, lambda side, x, alpha=1.0: _exponential(side, x, alpha, 1 / alpha)),
    "selu": pieces(_positive, _selu),
    "softsign": pieces(torch.sign, lambda side, x: x / (1 + side * x)),
    "hardswish": pieces(lambda x: x.ge(3).to(x.dtype) - x.le(-3).to(x.dtype), _hardswish),
    **{name: extreme(getattr(torch, name)) for name in ("max", "amax", "maximum", "fmax", "median")},
    **{name: extreme(getattr(torch, name), largest=False) for name in ("min", "amin", "minimum", "fmin")},
    **{name: extreme(getattr(torch, name)) for name in ("sort", "topk", "kthvalue", "cummax", "cummin")},
    **{f"{kind}max_pool{n}d": pool(f"{kind}max_pool{n}d") for kind in ("", "adaptive_") for n in (1, 2, 3)},
    **{f"fractional_max_pool{n}d": pool(f"fractional_max_pool{n}d") for n in (2, 3)},
    **{name: constant() for name in ("gt", "ge", "lt", "le", "eq", "ne", "greater", "less", "sign", "heaviside")},
    **{name: constant() for name in ("floor", "ceil", "round", "trunc", "argmax", "argmin", "argsort", "detach")},
}
