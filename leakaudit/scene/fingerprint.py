"""SHA-256 of what an audit was made of, so that two results can be told to speak of the same thing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from leakaudit.protocol.defense import Defense, parts_of
from leakaudit.protocol.target import PictureGenerator, PixelModel, Records, Target
from leakaudit.result.digests import of_values
from leakaudit.result.schema import Value
from leakaudit.score.identification import CandidateSets

# Values that say in their repr all that they are.
PLAIN = (str, bool, int, float, complex, bytes, PurePath, Enum, torch.dtype, torch.device, np.generic)
PIECE = 1 << 24  # bytes hashed at once: data on a GPU is never copied whole


def of_scan(
    target: Target,
    victims: Tensor,
    candidates: CandidateSets,
    settings: Mapping[str, Value],
    environment: Mapping[str, Value],
) -> dict[str, str]:
    """Return the hashes of everything an audit starts from, by what they are of; what a defense learns comes later.

    A hash confirms a right guess of the whole: to whoever has all records but one, a guess of that one.
    """
    return {
        "model": of_model(target.model),
        "private": of_records(target.private),
        "test": of_records(target.test),
        "auxiliary": of_records(target.auxiliary),
        "victims": of_indices(victims),
        "candidates": of_candidates(candidates),
        **({} if target.generator is None else {"generator": of_generator(target.generator)}),
        **of_values(settings, environment),
    }


def of_model(model: PixelModel) -> str:
    """Return the hash of a model: its modules' classes, and every parameter's and buffer's name, shape, type, bytes.

    The network's own code is not looked at: a `forward` written differently has the same hash.
    """
    state = hashlib.sha256(type(model.network).__qualname__.encode("utf-8", "surrogatepass"))
    _add_module(state, model)
    return state.hexdigest()


def of_generator(generator: PictureGenerator) -> str:
    """Return the hash of what draws pictures: the shape of its latents, and of a module what `of_model` hashes."""
    state = hashlib.sha256()
    _add(state, generator)
    return state.hexdigest()


def of_records(records: Records) -> str:
    """Return the hash of pictures and labels, in their order."""
    state = hashlib.sha256()
    _add(state, records.images)
    _add(state, records.labels)
    if records.targets is not None:
        _add(state, records.targets)
    return state.hexdigest()


def of_value(value: Any) -> str:
    """Return the hash of a value of any of the kinds that a target is made of: tensors, dataclasses, text, numbers."""
    state = hashlib.sha256()
    _add(state, value)
    return state.hexdigest()


def of_indices(indices: Tensor) -> str:
    """Return the hash of indices, whichever integers hold them."""
    state = hashlib.sha256()
    _add(state, indices.long())
    return state.hexdigest()


def of_candidates(candidates: CandidateSets) -> str:
    """Return the hash of the line-ups: which of the private and test records stand in each, and where the truth is."""
    state = hashlib.sha256()
    _add(state, candidates.indices.long())
    _add(state, candidates.position.long())
    if bool((candidates.sizes != candidates.columns).any()):
        _add(state, candidates.sizes.long())
    return state.hexdigest()


def of_defense(defense: Defense) -> str | None:
    """Return the hash of what `fit` filled in (the fields declared by `state`), or None where it learned nothing."""
    state = hashlib.sha256()
    learned = False
    for part in parts_of(defense):
        state.update(f"[{part.name}]".encode())
        for f in fields(part):
            if not f.metadata.get("state") or f.metadata.get("describes"):
                continue
            value = getattr(part, f.name)
            learned = learned or _learned(value, f.default)
            state.update(f"{f.name}=".encode())
            _add(state, value)
    return state.hexdigest() if learned else None


def _learned(value: Any, default: Any) -> bool:
    return type(value) is not type(default) or isinstance(value, Tensor | nn.Module) or value != default


def _add_module(state: Any, module: nn.Module) -> None:
    for name, part in module.named_modules(remove_duplicate=False):
        state.update(f"\n{name}: {type(part).__qualname__}".encode("utf-8", "surrogatepass"))
    for kind, found in (
        ("parameter", module.named_parameters(remove_duplicate=False)),
        ("buffer", module.named_buffers(remove_duplicate=False)),
    ):
        for name, tensor in found:
            state.update(f"\n{kind} {name} ".encode("utf-8", "surrogatepass"))
            _add(state, tensor)


def _add(state: Any, value: Any) -> None:
    """Add a value to a hash such that different values never give the same bytes by standing differently together."""
    if isinstance(value, Tensor):
        _add_tensor(state, value)
    elif isinstance(value, nn.Module):
        _add_module(state, value)
    elif is_dataclass(value) and not isinstance(value, type):
        state.update(f"{type(value).__qualname__}(".encode())
        for f in fields(value):
            state.update(f"{f.name}=".encode())
            _add(state, getattr(value, f.name))
        state.update(b")")
    elif isinstance(value, tuple | list):
        state.update(f"[{len(value)}]".encode())
        for item in value:
            _add(state, item)
    elif isinstance(value, Mapping):
        state.update(f"{{{len(value)}}}".encode())
        for key in sorted(value, key=str):
            _add(state, str(key))
            _add(state, value[key])
    elif isinstance(value, set | frozenset):
        state.update(f"{{{len(value)}:{','.join(sorted(map(of_value, value)))}}}".encode())
    elif isinstance(value, np.ndarray):
        _add(state, value.tolist())
    elif value is None or isinstance(value, PLAIN):
        text = repr(value).encode("utf-8", "backslashreplace")
        state.update(f"{type(value).__name__}:{len(text)}:".encode() + text)
    else:  # nothing stable is known of it: its repr may hold an address
        state.update(f"<{type(value).__qualname__}>".encode())


def _add_tensor(state: Any, tensor: Tensor) -> None:
    """Add type, shape and bytes. What is contiguous on the CPU is read where it lies, anything else in pieces."""
    tensor = tensor.detach()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    state.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if tensor.numel() == 0:
        return
    flat = tensor.resolve_neg().reshape(-1)
    for piece in torch.split(flat, max(1, PIECE // flat.element_size())):
        bytes_of: Any = piece.cpu().view(torch.uint8).numpy()
        state.update(bytes_of)
