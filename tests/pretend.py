"""A device without hardware, "pretend": what a GPU refuses is refused, on a machine that has none.

A tensor there wraps one in CPU memory and every kernel runs on the CPU, so an outcome equals the CPU's to the bit
unless something depends on the device. What a GPU refuses is refused in its words: operations whose tensors lie on two
devices (a CPU scalar, and CPU indices into a device tensor, are let through, as on a GPU), a CPU generator for a draw
on the device, and `.numpy()`. The device has a global generator of its own, which `torch.manual_seed` seeds; it has no
other, so `torch.Generator(device="pretend")` fails. `waiting`, `drawing`
and `unordered` count what makes the host wait, what draws from the device's generator, and what adds up in any order.

It says nothing about speed, memory, rounding or branches on "cuda". `install` is for good and for a whole process, and
must come before its first backward pass, when autograd counts the devices: the tests that need it run in a process of
their own (`tests/leakaudit/device_rows.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

NAME = "pretend"
aten = torch.ops.aten

MOVES = {aten._to_copy.default, aten.copy_.default}  # what may see two devices
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
JOINED = {aten.cat.default, aten.stack.default}  # which take no scalar of another device either
WAITS = {  # the host must know a value, or how many there are, before it can go on
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.bincount.default,
}

UNORDERED = {  # a GPU's kernels add up in any order, unless torch is told that they may not
    aten.convolution_backward.default,  # cuDNN's
    aten.index_add.default,
    aten.index_add_.default,
    aten.embedding_dense_backward.default,
    aten.scatter_add.default,
    aten.scatter_add_.default,
}

_waits: Counter[str] = Counter()
_draws: Counter[str] = Counter()
_loose: Counter[str] = Counter()


class PretendTensor(torch.Tensor):
    """A CPU tensor `raw` that says it is on the pretend device."""

    raw: torch.Tensor

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> PretendTensor:
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined,no-any-return]
            cls,
            raw.shape,
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=f"{NAME}:0",
        )

    def __init__(self, raw: torch.Tensor) -> None:
        self.raw = raw

    def __repr__(self) -> str:  # type: ignore[override]
        return f"pretend {self.raw!r}"

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            copied: Any = PretendTensor(self.raw.detach().clone())
            if getattr(self, "_is_param", False):
                copied = torch.nn.Parameter(copied, requires_grad=self.requires_grad)
            memo[id(self)] = copied.requires_grad_(self.requires_grad)
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _restored, (self.raw.detach(), getattr(self, "_is_param", False), self.requires_grad)

    def data_ptr(self) -> int:
        return self.raw.data_ptr()

    def untyped_storage(self) -> Any:
        return self.raw.untyped_storage()

    def tolist(self) -> Any:
        _waits["tolist"] += 1
        return self.raw.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() to copy it first.")

    __array__ = numpy

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _restored(raw: torch.Tensor, is_param: bool, requires_grad: bool) -> Any:
    """Return a tensor that was pickled, where it was: on the device, as torch does it for a GPU's."""
    found: Any = PretendTensor(raw)
    return torch.nn.Parameter(found, requires_grad) if is_param else found.requires_grad_(requires_grad)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation that a tensor of the device takes part in, and put what comes of it where it belongs."""
    here: dict[int, PretendTensor] = {}  # by the tensor inside: what is changed in place stays the same tensor
    there: list[torch.Tensor] = []
    drawn_from: list[torch.Generator] = []

    def bare(value: Any) -> Any:
        if isinstance(value, PretendTensor):
            here[id(value.raw)] = value
            return value.raw
        if isinstance(value, torch.Tensor):
            there.append(value)
        elif isinstance(value, list | tuple):
            return [bare(each) for each in value]
        elif isinstance(value, torch.Generator):
            drawn_from.append(value)
        return torch.device("cpu") if isinstance(value, torch.device) else value

    inner_args = [bare(value) for value in args]
    inner_kwargs = {key: bare(value) for key, value in kwargs.items()} if kwargs else kwargs
    device = kwargs.get("device")
    placed = device is None or torch.device(device).type == NAME
    if func not in MOVES:
        _refuse_mixed(func, args, there)
    if drawn_from and placed:
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu' ({func})")
    _note_wait(func, args, placed)
    if func in UNORDERED and not torch._C._get_deterministic_algorithms():
        _loose[str(func)] += 1
    if torch.Tag.nondeterministic_seeded in func.tags and not drawn_from:
        found = _drawn(func, inner_args, inner_kwargs)
    else:
        found = func(*inner_args, **inner_kwargs)

    def put(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(put(each) for each in value)
        if not isinstance(value, torch.Tensor):
            return value
        same = here.get(id(value))
        if same is not None and (same.shape, same.stride()) != (value.shape, value.stride()):
            same.data = PretendTensor(value)  # resized, squeezed or turned in place: so is what wraps it
        return same if same is not None else PretendTensor(value) if placed else value

    if func is aten.copy_.default:
        return args[0]
    return put(found)


def _refuse_mixed(func: Any, args: Any, there: list[torch.Tensor]) -> None:
    if func in INDEXED and there and not isinstance(args[0], PretendTensor):
        raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
    free = {id(t) for t in args[1] if t is not None} if func in INDEXED else set()
    if any((t.dim() or func in JOINED) and id(t) not in free for t in there):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {NAME}:0 and cpu! ({func})"
        )


def _note_wait(func: Any, args: Any, placed: bool) -> None:
    masked = func in INDEXED and any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1])
    fetched = not placed or (func is aten.copy_.default and not isinstance(args[0], PretendTensor))
    if func in WAITS or masked or fetched:
        _waits[str(func)] += 1


class _Module:
    """What torch asks of the module of a device: `torch.pretend`."""

    state = torch.Generator().manual_seed(0).get_state()  # of the device's global generator

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def get_device_name(self, device: Any = 0) -> str:
        return NAME

    def manual_seed_all(self, seed: int) -> None:
        self.state = torch.Generator().manual_seed(seed + 1).get_state()  # other numbers than the CPU's, as on a GPU

    def get_rng_state(self, device: Any = 0) -> torch.Tensor:
        return self.state.clone()

    def set_rng_state(self, state: torch.Tensor, device: Any = 0) -> None:
        self.state = state.clone()


_module = _Module()


def _drawn(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Draw from the device's global generator."""
    _draws[str(func)] += 1
    before = torch.random.default_generator.get_state()
    torch.random.default_generator.set_state(_module.state)
    try:
        return func(*args, **kwargs)
    finally:
        _module.state = torch.random.default_generator.get_state()
        torch.random.default_generator.set_state(before)


@contextmanager
def waiting() -> Iterator[Counter[str]]:
    """Yield how often each operation makes the host wait for the device in the enclosed code."""
    _waits.clear()
    yield _waits


@contextmanager
def drawing() -> Iterator[Counter[str]]:
    """Yield how often each operation draws from the device's own generator in the enclosed code."""
    _draws.clear()
    yield _draws


@contextmanager
def unordered() -> Iterator[Counter[str]]:
    """Yield how often each operation may add up in any order in the enclosed code, since nobody asked for one."""
    _loose.clear()
    yield _loose


_library: Any = None


def install() -> None:
    """Make the device exist in this process, for good. Raises ImportError or AttributeError where torch is too old."""
    global _library
    if _library is not None:
        return
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(rename=NAME, backend_module=_module)
    _library = torch.library.Library("aten", "IMPL")  # what has no tensor of the device to begin with, or bypasses it
    _library.impl("empty.memory_format", _empty, "PrivateUse1")
    _library.impl("empty_strided", _empty_strided, "PrivateUse1")
    _library.impl("_copy_from", _copy_from, "PrivateUse1")


def _empty(size: Any, *, dtype: Any = None, memory_format: Any = None, **_: Any) -> torch.Tensor:
    return PretendTensor(torch.empty(size, dtype=dtype, memory_format=memory_format or torch.contiguous_format))


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> torch.Tensor:
    return PretendTensor(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(given: torch.Tensor, into: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    bare = [t.raw if isinstance(t, PretendTensor) else t for t in (given, into)]
    bare[1].copy_(bare[0])
    return into
