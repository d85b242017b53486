"""A user's network as its owner trains it: a copy without what wraps it, with weights and computation in float32."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter, is_lazy
from torch.overrides import TorchFunctionMode

from leakaudit.errors import UserError, first_line

LOW = (torch.float16, torch.bfloat16, torch.float64)  # precisions of which weights are brought to float32
_WRAPPERS = {  # by the name of a class: where it holds the network, and what it is called by those who use it
    "OptimizedModule": ("_orig_mod", "torch.compile"),
    "DataParallel": ("module", "DataParallel"),
    "DistributedDataParallel": ("module", "DistributedDataParallel"),
    "AveragedModel": ("module", "AveragedModel"),
    "AbstractGradSampleModule": ("_module", "GradSampleModule"),
    "GradSampleModule": ("_module", "GradSampleModule"),
    "_FabricModule": ("_original_module", "Fabric"),
}
_MAKERS = ("torch", "opacus", "lightning", "lightning_fabric")  # of these
_QUANTISING = ("torch", "torchao", "bitsandbytes", "optimum", "quanto", "auto_gptq", "awq")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class _OneClient(nn.modules.batchnorm._BatchNorm):
    """A SyncBatchNorm as one client has it: it waits for no others, runs on a CPU too, and has a second derivative."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Take any number of dimensions, as SyncBatchNorm does."""


@dataclass(frozen=True)
class Plain:
    """A network of our own; where it is not, `failure` says why it could not be copied. `notes`: what was changed."""

    network: nn.Module
    failure: str | None
    notes: tuple[str, ...] = ()


def plain(given: nn.Module) -> Plain:
    """Return a copy of what a network is without its wrappers, in float32. Raises UserError for quantised weights."""
    found, names = _unwrapped(given)
    network, failure = own_copy(found)
    if failure is None:
        names += _unwrap_within(network)
        _clear(network)
        synced: list[nn.Module] = [module for module in network.modules() if type(module) is nn.SyncBatchNorm]
        for module in synced:
            module.__class__ = _OneClient
    if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        raise UserError(
            "`model` is TorchScript (torch.jit), whose layers cannot be looked at: give the network it was made from."
        )
    if (odd := _quantised(network)) is not None:
        raise UserError(f"`model` is quantised ({odd}), and nobody trains that: give the float model it was made from.")
    notes = ["SyncBatchNorm was taken as the BatchNorm of one client."] if failure is None and synced else []
    if names:
        notes.append(f"{' and '.join(dict.fromkeys(names))} around the network was taken off.")
    low = {p.dtype for p in (*network.parameters(), *network.buffers()) if p.dtype in LOW and not is_lazy(p)}
    if low and failure is None:
        whole = all(p.dtype in LOW for p in network.parameters() if p.is_floating_point())
        told = " and ".join(sorted(_named(dtype) for dtype in low))
        notes.append(f"{'The' if whole else 'Some'} weights of the model are {told}: it is computed in float32.")
        network.float()
    return Plain(network, failure, tuple(notes))


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _wrapper(module: nn.Module) -> tuple[str, str] | None:
    for cls in type(module).__mro__:
        if cls.__name__ in _WRAPPERS and cls.__module__.split(".")[0] in _MAKERS:
            return _WRAPPERS[cls.__name__]
    return None


def _unwrapped(module: nn.Module) -> tuple[nn.Module, list[str]]:
    """Return the network within wrappers around it, which stay as they are, and what these are called."""
    names = []
    while (known := _wrapper(module)) is not None:
        inner = getattr(module, known[0], None)
        if not isinstance(inner, nn.Module):
            break
        names.append(known[1])
        module = inner
    return module, names


def _unwrap_within(network: nn.Module) -> list[str]:
    """Take wrappers off all layers of a network of our own."""
    names = []
    for module in list(network.modules()):
        for name, child in list(module._modules.items()):
            if child is not None:
                module._modules[name], own = _unwrapped(child)
                names += own
        if module._compiled_call_impl is not None:  # Module.compile() works in place
            module._compiled_call_impl = None
            names.append("torch.compile")
    return names


def _clear(network: nn.Module) -> None:
    """Remove what opacus leaves at the layers and parameters that it wrapped."""
    for module in network.modules():
        for hooks in (getattr(module, name) for name in _HOOKS):
            for key in [key for key, hook in hooks.items() if _maker(hook) == "opacus"]:
                del hooks[key]
    for parameter in network.parameters():
        for name in ("grad_sample", "summed_grad", "_forward_counter", "_current_grad_sample"):
            vars(parameter).pop(name, None)


def _maker(hook: Any) -> str:
    while isinstance(hook, partial):
        hook = hook.func
    return str(getattr(hook, "__module__", "")).split(".")[0]


def _quantised(network: nn.Module) -> str | None:
    """Return what of a network is quantised, or None: layers made for that, or weights that are whole numbers."""
    for name, module in network.named_modules():
        maker, *rest = type(module).__module__.split(".")
        if maker in _QUANTISING and (maker not in ("torch", "optimum") or {"quantized", "quanto"} & set(rest)):
            return f"{name!r} is a {type(module).__name__} of {type(module).__module__}"
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if is_lazy(tensor):
            continue
        whole = tensor.dtype in (torch.int8, torch.uint8) and tensor.dim() > 1 and "weight" in name
        small = tensor.is_floating_point() and tensor.dtype not in (torch.float32, *LOW)
        if tensor.is_quantized or whole or small or type(tensor.data).__module__.startswith("torchao"):
            return f"{name!r} is {_named(tensor.dtype)}"
    return None


def own_copy(network: nn.Module) -> tuple[nn.Module, str | None]:
    """Return a copy that shares no tensor with `network`; else the network itself, and why it cannot be copied."""
    memo = left_behind(network)
    try:
        copied = copy.deepcopy(network, memo)
    except Exception as error:  # user modules may hold anything
        return network, f"cannot be copied ({first_line(error)})"
    if common_tensors(copied, network):
        return network, "cannot be copied (its copies share its tensors)"
    return copied, None


def left_behind(network: nn.Module) -> dict[int, Any]:
    """Return copies, by id, of what knows no copying: buffers without memory yet, and what a forward pass left.

    Layers may keep what they computed (features, the weight of an old weight_norm), which hangs on its graph.
    """
    memo: dict[int, Any] = {id(b): _empty(b) for b in network.buffers() if is_lazy(b)}
    for module in network.modules():
        for value in vars(module).values():
            parts = value.values() if type(value) is dict else value if type(value) in (list, tuple) else [value]
            memo |= {id(t): t.detach().clone() for t in parts if isinstance(t, Tensor) and not t.is_leaf}
    return memo


def _empty(tensor: Tensor) -> Tensor:
    made: Any = type(tensor)
    found: Tensor = made(device=tensor.device)
    return found


def common_tensors(one: nn.Module, other: nn.Module) -> int:
    """Return how many numbers of `one`'s parameters and buffers lie where those of `other` lie."""
    taken = {_place(t) for t in (*other.parameters(), *other.buffers())}
    return sum(t.numel() for t in (*one.parameters(), *one.buffers()) if _place(t) in taken)


def _place(tensor: Tensor) -> tuple[str, int]:
    if isinstance(tensor, UninitializedParameter | UninitializedBuffer) or not tensor.numel():
        return "", id(tensor)  # it has no memory yet
    return str(tensor.device), tensor.untyped_storage().data_ptr()


class _Float32(TorchFunctionMode):
    """Runs every function outside of autocast, and asks for float32 wherever another precision is asked for.

    What a client computes in bfloat16 is what is computed here, rounded: an update in float32 gives away no less.
    """

    CASTS = (Tensor.half, Tensor.bfloat16, Tensor.double)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.CASTS:
            func = Tensor.float
        given = {name: self._wide(value) for name, value in (kwargs or {}).items()}
        with _no_autocast():
            return func(*map(self._wide, args), **given)

    def _wide(self, value: Any) -> Any:
        if isinstance(value, torch.dtype):
            return torch.float32 if value in LOW else value
        if isinstance(value, Tensor):
            return value.float() if value.dtype in LOW else value
        if type(value) in (list, tuple):
            return type(value)(map(self._wide, value))
        return value


@contextmanager
def _no_autocast() -> Iterator[None]:
    """Switch autocast off within, on every device where it is on."""
    on = [kind for kind in ("cpu", "cuda", "mps", "xpu") if torch.is_autocast_enabled(kind)]
    for kind in on:
        torch.set_autocast_enabled(kind, False)
    try:
        yield
    finally:
        for kind in on:
            torch.set_autocast_enabled(kind, True)


class _Watching(TorchFunctionMode):
    """Notes which precisions functions answer in."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor):
            self.seen.add(found.dtype)
        return found


@contextmanager
def computing(float32: bool) -> Iterator[None]:
    """Run a network within uncompiled, as compiled code has no second derivative; `float32`: in that alone."""
    compiles = "torch._dynamo" in sys.modules
    with (
        torch.compiler.set_stance("force_eager") if compiles else nullcontext(),
        _Float32() if float32 else nullcontext(),
    ):
        yield


@contextmanager
def precisions() -> Iterator[set[torch.dtype]]:
    """Give the precisions that functions called within answer in."""
    with _Watching() as watching:
        yield watching.seen
