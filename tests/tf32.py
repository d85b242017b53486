"""TF32 without a GPU: convolutions whose inputs are rounded to ten bits of mantissa, where torch's flag allows it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
CONVOLUTIONS = (aten.convolution.default, aten.convolution_backward.default)


def rounded(value: Any) -> Any:
    """Return a float32 tensor with 10 of its 23 bits of mantissa, rounded to the nearest; anything else as it is."""
    if not isinstance(value, Tensor) or value.dtype != torch.float32:
        return value
    bits = value.contiguous().view(torch.int32)
    return ((bits + (1 << 12)) & -(1 << 13)).view(torch.float32)


class Tf32(TorchDispatchMode):
    """Round what convolutions and their backward passes are given while `torch.backends.cudnn.allow_tf32` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.roundings = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in CONVOLUTIONS and torch.backends.cudnn.allow_tf32:
            self.roundings += 1
            args = tuple(map(rounded, args))
        return func(*args, **(kwargs or {}))
