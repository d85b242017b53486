"""What users' functions reach besides their arguments: globals, closures, defaults, and the files that they stand in.

A constant may come from a file that no text names. It is looked at as it stands when the function is first met in a
process: what is counted or remembered there later tells nothing new.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FunctionType, ModuleType, SimpleNamespace

import numpy as np
import torch
from torch import nn

from leakaudit.errors import is_installed
from leakaudit.protocol.usercode import file_of
from leakaudit.scene import fingerprint
from leakaudit.units.code import is_ours

VALUES = (*fingerprint.PLAIN, tuple, list, set, frozenset, Mapping, torch.Tensor, nn.Module, np.ndarray)
NUMBERS = (bool, int, float, complex, torch.Tensor, torch.dtype)


@dataclass
class Reached:
    """What functions reach: hashes of values by where they stand, and files."""

    values: dict[str, str] = field(default_factory=dict)
    files: set[Path] = field(default_factory=set)


_known: dict[int, tuple[object, Reached]] = {}  # with what it was asked of, or its id would be another's one day


def reached(*starts: object) -> Reached:
    """Return what functions and methods of classes reach, and what they call, in code that is in no package."""
    found = Reached()
    for start in starts:
        if id(start) not in _known:
            _known[id(start)] = start, _followed(start)
        found.values.update(_known[id(start)][1].values)
        found.files |= _known[id(start)][1].files
    return found


def numbers(network: nn.Module) -> dict[str, str]:
    """Return the numbers and tensors that the modules of a network hold besides parameters and buffers."""
    return {
        f"{place}.{name}": fingerprint.of_value(value)
        for place, module in network.named_modules()
        for name, value in vars(module).items()
        if not name.startswith("_") and _is_number(value)
    }


def _is_number(value: object) -> bool:
    return all(map(_is_number, value)) if isinstance(value, tuple | list) else isinstance(value, NUMBERS)


def _followed(start: object) -> Reached:
    found, met, ahead = Reached(), set[int](), [("", start)]
    while ahead:
        place, value = ahead.pop()
        if isinstance(value, VALUES) and place:
            found.values[place] = fingerprint.of_value(value)
        elif id(value) not in met:
            met.add(id(value))
            if isinstance(value, FunctionType) and _is_users(value.__module__, value.__code__.co_filename):
                found.files.add(Path(value.__code__.co_filename))
            ahead += _within(place, value)
    return found


def _within(place: str, value: object) -> Iterator[tuple[str, object]]:
    """Yield what a value that is no plain one leads to, and where it stands."""
    if isinstance(value, FunctionType):
        if _is_users(value.__module__, value.__code__.co_filename):
            yield from _of_function(value)
    elif isinstance(value, type):
        for each in (*vars(value).values(), *value.__bases__):
            if isinstance(each, FunctionType | classmethod | staticmethod | property | type):
                yield place, each
    elif isinstance(value, functools.partial):
        yield from ((place, value.func), (f"{place}(...)", value.args), (f"{place}(**)", value.keywords))
    elif isinstance(value, property):
        yield place, value.fget
    elif hasattr(value, "__wrapped__") or hasattr(value, "__func__"):  # a method, or a function that is decorated
        yield place, getattr(value, "__wrapped__", None) or getattr(value, "__func__", None)
    elif value is not None and not isinstance(value, ModuleType):
        cls, module = type(value), sys.modules.get(type(value).__module__)
        # The modules that are forgotten once they are read are users'.
        if isinstance(value, SimpleNamespace) or module is None or _is_users(cls.__module__, file_of(module)):
            yield place, cls
            yield place or cls.__qualname__, dict(getattr(value, "__dict__", {}))


def _of_function(function: FunctionType) -> Iterator[tuple[str, object]]:
    place, code = f"{function.__module__}.{function.__qualname__}", function.__code__
    yield f"{place}()", function.__defaults__
    yield f"{place}(*)", function.__kwdefaults__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # it is not filled yet
            yield f"{place}<{name}>", cell.cell_contents
    names = set(_names(code))
    for name in sorted(names & function.__globals__.keys()):
        value = function.__globals__[name]
        if not isinstance(value, ModuleType):
            yield f"{function.__module__}.{name}", value
        elif _is_users(value.__name__, file_of(value)):
            for each in sorted(names & vars(value).keys()):
                yield f"{value.__name__}.{each}", vars(value)[each]


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _is_users(module: str | None, file: str | None) -> bool:
    """Whether code is neither ours nor Python's nor an installed package's, all of which their versions tell."""
    return file is not None and not (is_ours(module or "") or file.startswith("<") or is_installed(file))
