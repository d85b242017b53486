"""Where two outcomes differ, and by how much: of anything that an audit makes, on two devices or twice on one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Difference:
    """One place where two values are not the same."""

    where: str
    told: str
    far: float  # relative to the first; infinite where it is no rounding: another word, count, type or shape
    tensor: bool = False


def tensors(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors in a value, with where they stand."""
    if isinstance(value, Tensor):
        yield path, value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for each in dataclasses.fields(value):
            yield from tensors(getattr(value, each.name), f"{path}.{each.name}")
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from tensors(each, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for i, each in enumerate(value):
            yield from tensors(each, f"{path}.{i}")


def plain(value: Any) -> Any:
    """Return a value with nothing of a device left in it."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value if isinstance(value, str | int | float | bool | None) else type(value).__name__


def differences(one: Any, other: Any, path: str = "") -> Iterator[Difference]:
    """Yield where two plain values are not the same to the bit."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if (far := apart(one, other)) > 0:
            yield Difference(path, f"{path}: other numbers ({far:.1e})", far, tensor=True)
    elif isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        for key in one:
            yield from differences(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            yield from differences(a, b, f"{path}/{i}")
    elif one != other and not (one != one and other != other):
        far = math.inf
        if isinstance(one, float) and isinstance(other, float) and math.isfinite(one) and math.isfinite(other):
            far = abs(one - other) / max(abs(one), abs(other))
        yield Difference(path, f"{path}: {one!r} first, {other!r} then", far)


def apart(one: Tensor, other: Tensor) -> float:
    """Return how far two tensors are from each other, relative to the first: 0 where they are the same to the bit."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return math.inf
    if one.contiguous().numpy().tobytes() == other.contiguous().numpy().tobytes():
        return 0.0
    if not one.is_floating_point():
        return math.inf
    far = float((one - other).double().norm()) / max(float(one.double().norm()), 1e-300)
    return far if math.isfinite(far) else math.inf
