"""How many bytes of tensors a piece of work holds at its worst."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Return the peak of the bytes of live tensors on `device` that `call` makes, what it returns included.

    On CUDA it is the allocator's own (whose peak is reset). Elsewhere every operation is followed, those of the
    backward pass included; what a kernel allocates and frees within one operation is not seen.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        peak: int = torch.cuda.max_memory_allocated(device)
        return peak - before
    live = _Live(device.type)
    with live:
        call()
    return live.peak


class _Live(TorchDispatchMode):
    """Follows the storages that operations make: each counts from its first operation until nothing refers to it."""

    def __init__(self, device_type: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device_type, self.now, self.peak = device_type, 0, 0
        self.known: dict[int, weakref.ref[Any]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keep torch from importing its compiler, a second and 150 MB, to tell it not to compile this."""
        return False

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for tensor in _tensors([args, kwargs]):
            self._note(tensor, made=False)
        out = func(*args, **kwargs)
        for tensor in _tensors(out):
            self._note(tensor, made=True)
        self.peak = max(self.peak, self.now)
        return out

    def _note(self, tensor: Tensor, made: bool) -> None:
        if tensor.device.type != self.device_type or tensor.layout != torch.strided:
            return
        storage = tensor.untyped_storage()
        name = id(storage)  # the same object for every view, for as long as anything refers to the storage
        if name in self.known:
            return
        size = storage.nbytes() if made else 0  # what an operation is given unmade was there before the call

        def gone(_: object) -> None:
            self.now -= size
            del self.known[name]

        self.known[name] = weakref.ref(storage, gone)
        self.now += size


def _tensors(item: object) -> Iterator[Tensor]:
    if isinstance(item, Tensor):
        yield item
    elif isinstance(item, list | tuple):
        for part in item:
            yield from _tensors(part)
    elif isinstance(item, Mapping):
        for part in item.values():
            yield from _tensors(part)
