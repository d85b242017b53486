"""Parsed JSON or TOML into frozen dataclasses, with strict types: no text is a number, no number a text, true is no 1.

What is read for a class is worked out once, from the types of its fields.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from leakaudit.files.reading import short

T = TypeVar("T")
Read = Callable[[Any], Any]
LEAST, MOST = -(2**63), 2**64 - 1  # whole numbers beyond them are none of ours, and overflow where they are used
WANTED = {str: "text", bool: "true or false", int: "a whole number", float: "a number", types.NoneType: "null"}


class Misfit(Exception):
    """A value that is not what its place takes."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what, self.place = what, ""

    def __str__(self) -> str:
        """Return a clause: where, and what is wrong there."""
        return f"{self.place.removeprefix('.') or 'it'} {self.what}"

    def within(self, step: str) -> Misfit:
        """Return it as seen from around: a step further from where it stands."""
        self.place = step + self.place
        return self


def typed(value: Any, kind: type[T]) -> T:
    """Return parsed JSON as an object of the dataclass `kind`; raises Misfit. Keys that it does not know are left out.

    Fields may be text, numbers (a whole number is a number), truths, null, choices, tuples, dicts by text, and
    dataclasses of those.
    """
    hashable: Any = kind
    found: T = _reader(hashable)(value)
    return found


def _not(wanted: str, value: object) -> Misfit:
    return Misfit(f"is {short(value)}, not {wanted}")


@cache
def _reader(kind: Any) -> Read:
    origin, inner = get_origin(kind), get_args(kind)
    if kind in WANTED:
        return _one_of((kind,))
    if origin in (Union, types.UnionType):
        return _one_of(inner)
    if origin is Literal:
        return _choice(inner)
    if origin is tuple and inner[1:] == (Ellipsis,):
        return _list(_reader(inner[0]))
    if origin is not None and issubclass(origin, Mapping) and inner[0] is str:
        return _table(_reader(inner[1]))
    if is_dataclass(kind):
        return _object(kind)
    raise TypeError(f"no file holds a {kind}")


def _one_of(kinds: tuple[Any, ...]) -> Read:
    plain = frozenset(kind for kind in kinds if kind in WANTED)
    others = [kind for kind in kinds if kind not in WANTED]
    wanted = " or ".join(WANTED[kind] for kind in WANTED if kind in plain)
    other = _reader(others[0]) if others else None
    assert len(others) <= 1

    def read(value: Any) -> Any:
        found = type(value)
        if found is int and (int in plain or float in plain):
            if LEAST <= value <= MOST:
                return value
            raise Misfit(f"is a number of {len(bin(value)) - 2} bits: no whole number may have more than 64")
        if found in plain and (found is not float or math.isfinite(value)):
            return value
        if other is not None:
            return other(value)
        raise _not(wanted, value)

    return read


def _choice(allowed: tuple[Any, ...]) -> Read:
    def read(value: Any) -> Any:
        if type(value) is str and value in allowed:
            return value
        raise _not(f"one of {', '.join(map(str, allowed))}", value)

    return read


def _list(one: Read) -> Read:
    def read(value: Any) -> Any:
        if type(value) is not list:
            raise _not("a list", value)
        found = []
        try:
            for each in value:
                found.append(one(each))
        except Misfit as error:
            raise error.within(f"[{len(found)}]") from None
        return tuple(found)

    return read


def _table(one: Read) -> Read:
    def read(value: Any) -> Any:
        if type(value) is not dict:
            raise _not("an object", value)
        found = {}
        key = ""
        try:
            for key, each in value.items():
                found[key] = one(each)
        except Misfit as error:
            raise error.within(f".{short(key)[1:-1]}") from None
        return found

    return read


def _object(kind: Any) -> Read:
    hints = get_type_hints(kind)
    parts = [
        (f.name, _reader(hints[f.name]), f.default is MISSING and f.default_factory is MISSING) for f in fields(kind)
    ]

    def read(value: Any) -> Any:
        if type(value) is not dict:
            raise _not("an object", value)
        found = {}
        for name, one, needed in parts:
            if name in value:
                try:
                    found[name] = one(value[name])
                except Misfit as error:
                    raise error.within(f".{name}") from None
            elif needed:
                raise Misfit(f"has no {name!r}")
        return kind(**found)

    return read
