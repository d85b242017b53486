"""`--checkpoint`: saved weights read into a network. Nothing read here runs code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leakaudit.errors import Setting, UserError
from leakaudit.files.reading import WEIGHTS, reading, short
from leakaudit.files.weights import MEND, check_torch_file, safetensors_header

NESTED = ("state_dict", "model", "model_state_dict")
# Of DataParallel, Lightning, torch.compile, Opacus and our own PixelModel.
PREFIXES = ("module.", "model.", "_orig_mod.", "_module.", "network.")
FITTING = "give the checkpoint of this model"


def load_checkpoint(network: nn.Module, path: Path) -> tuple[str, ...]:
    """Load saved weights into `network`, and return what the reader of a result should know of that.

    Accepts `.safetensors`, or a torch file (weights only) with a state dict, bare or under `state_dict`, `model` or
    `model_state_dict`; a prefix common to all its keys (`module.`, `model.`) is dropped where the network has none.
    Numbers keep their value: 16 and 32 bits are taken as they are, 64 bits are rounded with a note, and complex,
    whole or quantised numbers are no weights. Raises UserError naming the file and what does not fit.
    """
    if not path.exists():
        raise UserError(f"no such checkpoint: {path}; give ", Setting("checkpoint"), " a .safetensors or a torch file.")
    state = unprefixed(state_of(path), set(network.state_dict()))
    own = network.state_dict(keep_vars=True)
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own]
    shaped = [
        k for k, value in state.items() if k in own and not nn.parameter.is_lazy(own[k]) and own[k].shape != value.shape
    ]
    typed = [k for k, value in state.items() if k in own and not _is_same_kind(value, own[k])]
    wrong = [f"misses {short(missing[0])}{_more(missing)}"] if missing else []
    wrong += [f"has an unexpected {short(unexpected[0])}{_more(unexpected)}"] if unexpected else []
    if shaped:
        key = shaped[0]
        wrong += [f"has {short(key)} of shape {tuple(state[key].shape)}, not {tuple(own[key].shape)}{_more(shaped)}"]
    if typed:
        key = typed[0]
        wrong += [f"has {short(key)} as {_kind(state[key])}, not {_kind(own[key])}{_more(typed)}"]
    if wrong:
        raise UserError(f"{path} does not fit the model: it {', '.join(wrong)}; {FITTING}.")
    with reading(path, "weights of this model", FITTING):
        network.load_state_dict(state, strict=not any(k not in state for k in own))
    rounded = [k for k, value in state.items() if k in own and value.dtype == torch.float64 != own[k].dtype]
    return (f"{len(rounded)} tensors of the checkpoint were rounded from float64 to float32.",) if rounded else ()


def state_of(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name, at least one; raises UserError for a file without a state dict."""
    if path.suffix.lower() == ".safetensors":
        safetensors_header(path)
        with reading(path, WEIGHTS.name, MEND):
            from safetensors.torch import load_file

            return dict(load_file(path))
    check_torch_file(path)
    with reading(path, WEIGHTS.name, MEND):
        return _state_in(torch.load(path, map_location="cpu", weights_only=True), path)
    raise AssertionError("reading lets nothing pass")


def _state_in(loaded: Any, path: Path) -> dict[str, Tensor]:
    for key in NESTED:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        named = [key if isinstance(key, str) else short(key) for key in loaded] if isinstance(loaded, Mapping) else []
        keys = f" with keys {', '.join(name[:40] for name in named[:4])}" if named else ""
        places = ", ".join(NESTED)
        raise UserError(
            f"{path} holds {type(loaded).__name__}{keys}, not a state dict: save one, bare or under {places}."
        )
    return {key if isinstance(key, str) else short(key): value for key, value in loaded.items()}


def _is_same_kind(given: Tensor, own: Tensor) -> bool:
    """Return whether numbers can be taken over without changing what they are: real as real, whole as whole."""
    if given.layout != torch.strided or given.device.type != "cpu" or given.is_quantized:
        return False
    if own.dtype.is_floating_point:
        return given.dtype.is_floating_point
    return given.dtype == own.dtype or (
        not (given.dtype.is_floating_point or given.dtype.is_complex or torch.bool in (given.dtype, own.dtype))
        and given.dtype.itemsize <= own.dtype.itemsize
    )


def _kind(tensor: Tensor) -> str:
    name = str(tensor.dtype).removeprefix("torch.")
    where = "" if tensor.device.type == "cpu" else f" on the device {tensor.device.type}"
    return f"{name if tensor.layout == torch.strided else f'{tensor.layout} {name}'.removeprefix('torch.')}{where}"


def _more(keys: list[str]) -> str:
    return f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""


def unprefixed(state: dict[str, Tensor], own: set[str]) -> dict[str, Tensor]:
    """Return a state without what a wrapper put before all its names, where `own` has none of them."""
    while state and not set(state) & own:
        prefix = next((p for p in PREFIXES if all(key.startswith(p) for key in state)), None)
        if prefix is None:
            return state
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state
