"""What an attack or defense says of itself must fit, or a scan would find out late: checked as it is registered."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from dataclasses import MISSING, fields
from typing import Any, get_args

from leakaudit.protocol.attack import FAMILIES, Attack, Effort, Kind, Needs
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.exposure import Exposure
from leakaudit.protocol.stages import CHANGES
from leakaudit.result.rules import ANYTHING, LOCAL, OTHER_WORK, PLANTING
from leakaudit.result.surfaces import SURFACES

BASES: dict[str, type[Any]] = {"attack": Attack, "defense": Defense}
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def flaw(cls: Any, kind: str) -> str | None:
    """Return in a clause what keeps `cls` from being used as an attack or defense (`kind`), None where nothing does."""
    base = BASES[kind]
    if not isinstance(cls, type):
        return f"it is no class of {_an(kind)}"
    if not issubclass(cls, base):
        other = next((name for name, of in BASES.items() if issubclass(cls, of)), None)
        return f"it is {_an(other)}" if other else f"it does not derive from {base.__module__}.{base.__name__}"
    if "__dataclass_params__" not in vars(cls):
        return "it is no dataclass: put @dataclass(frozen=True, kw_only=True) above it"
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not NAME.fullmatch(name):
        return f"its `name` must be words in small letters joined by hyphens, not {name!r}"
    if len(name) > 60:
        return f"its `name` has {len(name)} letters, and room is for 60"
    settings = {f.name for f in fields(cls) if not f.metadata.get("state")}
    if taken := sorted(settings & set(base.__annotations__)):
        return f"{taken[0]!r} is what every {kind} says of itself: give the setting another name"
    if inspect.isabstract(cls):
        return "it is abstract"
    if bare := [f.name for f in fields(cls) if f.init and f.default is MISSING and f.default_factory is MISSING]:
        return f"its setting {bare[0]!r} has no default: give it one"
    return _of_attack(cls, settings) if kind == "attack" else _of_defense(cls, settings)


def _of_attack(cls: Any, settings: set[str]) -> str | None:
    if cls.name in OTHER_WORK:
        return f"{cls.name!r} is what an audit calls another piece of its work: give it another name"
    if cls.kind not in get_args(Kind):
        return f"its `kind` must be one of {', '.join(get_args(Kind))}, not {cls.kind!r}"
    doing, of = ("link", Attack.link) if cls.kind == "linkage" else ("__call__", Attack.__call__)
    if getattr(cls, doing) is of:
        return f"it does nothing: define {doing}"
    if not isinstance(cls.needs, Needs):
        return f"its `needs` must be a Needs(…), not {cls.needs!r}"
    if cls.plants() and PLANTING not in cls.requires:
        return f"it plants a model, so its `requires` must name {PLANTING!r}"
    facts = {f.name for f in fields(Exposure)}
    return (
        _unknown("requires", cls.requires, facts)
        or _unknown("covers", cls.covers, (s.name for s in SURFACES))
        or _unknown("family", {cls.family} - {""}, FAMILIES)
        or _unknown("examines", cls.examines, (ANYTHING, LOCAL, *CHANGES))
        or _unknown("grid", cls.grid, settings)
        or _unknown("effort", cls.effort, settings & set(get_args(Effort)))
    )


def _of_defense(cls: Any, settings: set[str]) -> str | None:
    if wrong := [way for way in cls.stronger.values() if way not in (1, -1)]:
        return f"its `stronger` must say 1 or -1, not {wrong[0]!r}"
    return (
        _unknown("stronger", cls.stronger, settings)
        or _unknown("lowest", cls.lowest, cls.stronger)
        or _unknown("quick", cls.quick, settings)
    )


def _unknown(what: str, named: Iterable[str], known: Iterable[str]) -> str | None:
    there_are = sorted(known)
    wrong = sorted(set(named) - set(there_are))
    return f"its `{what}` names {wrong[0]!r}; there is {', '.join(there_are) or 'nothing to name'}" if wrong else None


def _an(kind: str) -> str:
    return f"an {kind}" if kind[0] in "ae" else f"a {kind}"
