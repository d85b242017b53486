"""Whether a network wants its pictures from 0 to 255: then pixels from 0 to 1 are all but black to it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from leakaudit.errors import UserError
from leakaudit.protocol.target import PixelModel, Records, begin

_WHITES = (255.0, 256.0, 127.5, 128.0)  # by which bytes are divided
_LEVELS = (40.0, 220.0)  # between which the usual means of bytes lie
_SMALL = 16.0  # no picture of bytes has a white so low
_DIVIDE = ("div", "div_", "divide", "true_divide", "__truediv__", "__itruediv__")
_MULTIPLY = ("mul", "mul_", "multiply", "__mul__", "__rmul__", "__imul__")
_SUBTRACT = ("sub", "sub_", "subtract", "__sub__", "__isub__")


class _Scaling(TorchFunctionMode):
    """Notes what is divided by the white of bytes, multiplied with it, or made less by the means of bytes."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size  # of a picture: what is of another is none
        self.found: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if len(args) > 1 and isinstance(args[0], Tensor) and args[0].numel() == self.size:
            self._note(name, args[1])
        return func(*args, **(kwargs or {}))

    def _note(self, name: str, value: Any) -> None:
        if isinstance(value, Tensor) and value.numel() > 4:
            return
        with torch._C.DisableTorchFunction():
            numbers = value.detach().flatten().tolist() if isinstance(value, Tensor) else [value]
        if not numbers or any(isinstance(n, bool) or not isinstance(n, int | float) or n == 0 for n in numbers):
            return
        white = all(any(abs(n / w - 1) < 1e-4 for w in _WHITES) for n in numbers)
        share = all(any(abs(n * w - 1) < 1e-4 for w in _WHITES) for n in numbers)
        if (white and name in _DIVIDE) or (share and name in _MULTIPLY):
            self.found.add("divides its pictures by 255")
        elif (white and name in _MULTIPLY) or (share and name in _DIVIDE):
            self.found.add("multiplies")
        elif name in _SUBTRACT and all(_LEVELS[0] <= n <= _LEVELS[1] for n in numbers):
            self.found.add("subtracts the means of pictures from 0 to 255")


def check_scale(model: PixelModel, records: Records) -> None:
    """Raise UserError where the network brings bytes to its own scale, but is given pixels from 0 to 1.

    `records` were read as pixels. Their owner's model is given bytes, and what it does of 0 to 1 is something else.
    """
    one = records.images[:1]
    given = ((one.to(model.mean.device) - model.mean) / model.std).abs().max()
    if float(given) > _SMALL:
        return
    with _Scaling(one.numel()) as scaling:
        begin(model, one)
    if not scaling.found or "multiplies" in scaling.found:
        return
    raise UserError(
        f"`model` {' and '.join(sorted(scaling.found))} itself, and pixels are given to it from 0 to 1: set mean = 0 "
        "and std = 1/255, so that it is given 0 to 255."
    )
