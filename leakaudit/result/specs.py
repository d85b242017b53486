"""Specs as they are typed: `name:setting=value`, `path.py:Class:setting=value`, and commas between those of a chain."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Any

from leakaudit.errors import UserError
from leakaudit.files.reading import short

MOST = 10**9  # that a whole number in a spec may be, above and below zero


def split(spec: str) -> tuple[str, str]:
    """Return the name of one spec, and its settings as they stand there: ("qsgd", "levels=4"), ("my.py:Mine", "")."""
    path, found, rest = spec.strip().partition(".py:")
    if not found:
        if path.endswith(".py"):
            return path, ""
        name, _, settings = path.partition(":")
        return name, settings
    cls, _, settings = rest.partition(":")
    return f"{path}.py:{cls}", settings


def names(spec: str) -> tuple[str, ...]:
    """Return the names of a chain without settings: ("obscure", "dp-sgd")."""
    return tuple(split(part)[0] for part in spec.split(","))


def together(specs: Iterable[str]) -> str:
    """Return several specs as one text, as a shell would take them."""
    return shlex.join(specs)


def apart(text: str) -> list[str]:
    """Return the specs of a text that `together` made; of one that somebody else's program made, its words."""
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def converted(text: str, hint: Any, where: str) -> str | int | float | bool:
    """Return a setting of a spec as its type; UserError, beginning with `where`, for what is none."""
    try:
        if hint is bool:
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
        if hint is int:
            whole = int(text)
            if abs(whole) > MOST:
                raise UserError(f"{where} takes numbers up to {MOST:,}, not {short(text)}.")
            return whole
        if hint is float or hint == (float | None):
            value = float(text)
            if value != value or value in (float("inf"), float("-inf")):
                raise ValueError(text)
            return value
    except (ValueError, KeyError):
        wanted = {bool: "true or false", int: "a whole number"}.get(hint, "a finite number")
        raise UserError(f"{where} takes {wanted}, not {short(text)}.") from None
    return text
