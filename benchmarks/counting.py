"""What a step asks of a device, counted operation by operation: kernels launched, and where the host waits for it.

It needs no such device: on CPU tensors the same operations are counted. An operation of ATen counts as one launch,
unless it only looks at memory in another way or sets some aside; a kernel library may make several of one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Operations whose outcome the host must know before it can go on.
WAITING = {
    *("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "bincount", "allclose"),
    *("unique_consecutive", "_unique", "_unique2", "unique_dim"),
}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}
READING = (Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__array__)  # of a CPU tensor they are no operation
WITHOUT_KERNEL = {
    *("view", "_unsafe_view", "_reshape_alias", "as_strided", "t", "transpose", "permute", "expand", "unsqueeze"),
    *("squeeze", "slice", "select", "narrow", "split", "split_with_sizes", "unbind", "unfold", "diagonal", "detach"),
    *("alias", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh", "is_same_size"),
    *("sym_size", "sym_numel", "sym_stride", "_local_scalar_dense"),
}


class _Functions(TorchFunctionMode):
    def __init__(self, waits: Counter[str]) -> None:
        super().__init__()
        self._waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READING:
            self._waits[func.__name__] += 1
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):
    def __init__(self, launches: Counter[str], waits: Counter[str]) -> None:
        super().__init__()
        self._launches, self._waits = launches, waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        found = func(*args, **(kwargs or {}))
        if name not in WITHOUT_KERNEL:
            self._launches[name] += 1
        if name in WAITING or self._moves(name, args, found) or self._chooses(name, args):
            self._waits[name] += 1
        return found

    def _moves(self, name: str, args: Any, found: Any) -> bool:
        """Return whether a copy is from one device to another."""
        source = args[1] if name == "copy_" else args[0] if name == "_to_copy" else None
        return isinstance(source, Tensor) and source.device != found.device

    def _chooses(self, name: str, args: Any) -> bool:
        """Return whether how much comes out depends on what is in a tensor."""
        if name == "repeat_interleave":
            return len(args) == 1 or isinstance(args[1], Tensor)
        return name in INDEXED and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])


def count(call: Callable[[], object]) -> tuple[Counter[str], Counter[str]]:
    """Return the launches, and where the host waits, while `call` runs, by operation."""
    launches: Counter[str] = Counter()
    waits: Counter[str] = Counter()
    with _Functions(waits), _Operations(launches, waits):
        call()
    return launches, waits
