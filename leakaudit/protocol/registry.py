"""Finding attacks and defenses by name, and reading `name:setting=value` specs into typed settings."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from dataclasses import Field, fields
from functools import cache
from typing import Any, TypeVar, get_type_hints

from leakaudit.errors import UserError
from leakaudit.protocol.attack import Attack
from leakaudit.protocol.defense import Defense, chain

_attacks: dict[str, type[Attack]] = {}
_defenses: dict[str, type[Defense]] = {}
A = TypeVar("A", bound=type[Attack])
D = TypeVar("D", bound=type[Defense])
T = TypeVar("T")


def register_attack(cls: A) -> A:
    """Class decorator: make an attack known under its `name`."""
    _attacks[cls.name] = cls
    return cls


def register_defense(cls: D) -> D:
    """Class decorator: make a defense known under its `name`."""
    _defenses[cls.name] = cls
    return cls


@cache
def _discover(package: str) -> None:
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")


def attacks() -> dict[str, type[Attack]]:
    """Return every registered attack by name, sorted."""
    _discover("leakaudit.attacks")
    return dict(sorted(_attacks.items()))


def defenses() -> dict[str, type[Defense]]:
    """Return every registered defense by name, sorted."""
    _discover("leakaudit.defenses")
    return dict(sorted(_defenses.items()))


def settings_of(cls: type[Any]) -> dict[str, Field[Any]]:
    """Return the dataclass fields a user may set: those that are not state filled in by `fit`."""
    return {f.name: f for f in fields(cls) if not f.metadata.get("state") and f.name != "parts"}


def settings_values(item: Attack | Defense) -> dict[str, str | int | float | bool]:
    """Return the effective settings of an attack or defense."""
    return {name: getattr(item, name) for name in settings_of(type(item))}


def parse_attack(spec: str) -> Attack:
    """Return the attack of a spec like `inverting-gradients:steps=200:restarts=2`; raises UserError."""
    return _parse(spec, "attack", attacks())


def parse_defense(spec: str) -> Defense:
    """Return the defense of a spec; commas chain: `obscure,dp-sgd:noise_multiplier=0.5`. Raises UserError."""
    return chain(*(_parse(part.strip(), "defense", defenses()) for part in spec.split(",")))


def _parse(spec: str, kind: str, known: dict[str, type[T]]) -> T:
    name, *pairs = spec.split(":")
    if name not in known:
        raise UserError(f"unknown {kind} {name!r}{_suggest(name, list(known))}; see `leakaudit list {kind}s`.")
    cls = known[name]
    settings, hints = settings_of(cls), get_type_hints(cls)
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip().replace("-", "_")
        if not equals:
            raise UserError(f"{kind} {name!r}: {pair!r} is not of the form setting=value.")
        if key not in settings:
            allowed = ", ".join(settings) or "none"
            hint = _suggest(key, list(settings))
            raise UserError(f"{kind} {name!r} has no setting {key!r}{hint}; its settings: {allowed}.")
        values[key] = _convert(text.strip(), hints[key], f"{kind} {name!r}: setting {key!r}")
    try:
        return cls(**values)
    except ValueError as error:
        raise UserError(f"{kind} {name!r}: {error}") from error


def _convert(text: str, hint: Any, where: str) -> str | int | float | bool:
    try:
        if hint is bool:
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
        if hint is int:
            return int(text)
        if hint is float:
            value = float(text)
            if value != value or value in (float("inf"), float("-inf")):
                raise ValueError(text)
            return value
    except (ValueError, KeyError):
        wanted = {bool: "true or false", int: "a whole number", float: "a finite number"}[hint]
        raise UserError(f"{where} takes {wanted}, not {text!r}.") from None
    return text


def _suggest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
