"""Specs as they are typed: `name:setting=value`, `path.py:Class:setting=value`, and commas between those of a chain."""

from __future__ import annotations

import shlex
from collections.abc import Iterable


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
