"""Finding attacks and defenses by name or file, and reading `name:setting=value` specs into typed settings."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from contextlib import redirect_stdout
from dataclasses import Field, fields
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, get_type_hints

from leakaudit.errors import UserError, did_you_mean, first_line, quotes, sentence
from leakaudit.files.reading import check_text, short
from leakaudit.protocol import plugins
from leakaudit.protocol.attack import Attack
from leakaudit.protocol.declared import BASES, flaw
from leakaudit.protocol.defense import Defense, chain
from leakaudit.protocol.usercode import import_file
from leakaudit.result.specs import converted, split
from leakaudit.work.seeding import seeded

_attacks: dict[str, type[Attack]] = {}
_defenses: dict[str, type[Defense]] = {}
_sources: dict[type[Any], tuple[str, str]] = {}
_places: dict[type[Any], set[Path]] = {}  # files by which a class was asked for: it may be defined in another
_files: dict[tuple[Path, int], ModuleType] = {}  # imported for the classes in them, by path and time of change
LONGEST = 2_000  # characters of a spec
A = TypeVar("A", bound=type[Attack])
D = TypeVar("D", bound=type[Defense])


class UnknownName(UserError):
    """A spec names nothing that is known so far: the model's own file may still register it."""


def register_attack(cls: A) -> A:
    """Class decorator: make an attack known under its `name`. Raises UserError for one that cannot be used."""
    _register(cls, "attack", _attacks)
    return cls


def register_defense(cls: D) -> D:
    """Class decorator: make a defense known under its `name`. Raises UserError for one that cannot be used."""
    _register(cls, "defense", _defenses)
    return cls


def _register(cls: type[Any], kind: str, known: dict[str, type[Any]]) -> None:
    wrong = flaw(cls, kind)
    if wrong is not None:
        raise UserError(f"{getattr(cls, '__qualname__', cls)} cannot be used as {kind}: {wrong}.")
    if not built_in(cls):
        _find(kind)  # so that no name of ours or of a plug-in is free because nobody asked for it yet
    other = known.get(cls.name)
    whose = "" if other is None or _source(other) == _source(cls) else _owner(other)
    if whose:
        raise UserError(
            f"{cls.__qualname__} cannot be used as {kind}: {cls.name!r} is that of {whose}; give it a name of its own."
        )
    known[cls.name] = cls
    _source(cls)
    plugins.note(cls)


def built_in(cls: type[Any]) -> bool:
    """Return whether a class is leakaudit's own: one of its attacks or defenses, or what they derive from."""
    return cls in BASES.values() or cls.__module__.startswith(("leakaudit.attacks.", "leakaudit.defenses."))


def _owner(cls: type[Any]) -> str:
    return "leakaudit itself" if built_in(cls) else plugins.owner(cls)


def _source(cls: type[Any]) -> tuple[str, str]:
    """Return file and name of a class, as they were when it was registered: its module may be gone by now."""
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return _sources.setdefault(cls, (file or cls.__module__, cls.__qualname__))


def origin(cls: type[Any]) -> str:
    """Return where an attack or defense came from: a plug-in, or a file; empty for what is built in."""
    return "" if built_in(cls) else plugins.owner(cls) or _source(cls)[0]


def places(cls: type[Any]) -> frozenset[Path]:
    """Return the files by which a class was asked for."""
    return frozenset(_places.get(cls, ()))


@cache
def _discover(package: str) -> None:
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")


def attacks() -> dict[str, type[Attack]]:
    """Return every registered attack by name, sorted: built in, of plug-ins, and what a user's file registered."""
    _find("attack")
    return dict(sorted(_attacks.items()))


def defenses() -> dict[str, type[Defense]]:
    """Return every registered defense by name, sorted: built in, of plug-ins, and what a user's file registered."""
    _find("defense")
    return dict(sorted(_defenses.items()))


def _find(kind: str) -> None:
    def register(named: Any) -> None:
        if not isinstance(named, ModuleType):
            (register_attack if kind == "attack" else register_defense)(named)
        elif not any(cls.__module__ == named.__name__ for cls in (*_attacks.values(), *_defenses.values())):
            raise UserError(f"the module {named.__name__} registers no attack and no defense")

    _discover(f"leakaudit.{kind}s")
    plugins.load(f"leakaudit.{kind}s", register, (_attacks, _defenses))


def settings_of(cls: type[Any]) -> dict[str, Field[Any]]:
    """Return the dataclass fields a user may set: those that are not state filled in by `fit`."""
    return {f.name: f for f in fields(cls) if not f.metadata.get("state") and f.name != "parts"}


def settings_values(item: Attack | Defense) -> dict[str, str | int | float | bool | None]:
    """Return the effective settings of an attack or defense."""
    return {name: getattr(item, name) for name in settings_of(type(item))}


def parse_attack(spec: str) -> Attack:
    """Return the attack of a spec like `inverting-gradients:steps=200:restarts=2` or `my_attack.py:MyAttack:steps=200`.

    Raises UserError, UnknownName where nothing known so far has the name.
    """
    parts = _checked(spec, "attack").split(",")
    if len(parts) > 1 and all(split(part)[0] in attacks() for part in parts):
        raise UserError(f"{short(spec)} is {len(parts)} attacks, no chain: give each by an --attack of its own.")
    found: Attack = _parse(spec, "attack")
    return found


def parse_defense(spec: str, *, quick: bool = False) -> Defense:
    """Return the defense of a spec; commas chain: `obscure,dp-sgd:noise_multiplier=0.5`. Raises as `parse_attack`.

    Where a spec leaves a setting open, a `quick` defense has what its class names in `quick`.
    """
    return chain(*(_parse(part.strip(), "defense", quick=quick) for part in _checked(spec, "defense").split(",")))


def _checked(spec: str, kind: str) -> str:
    check_text(spec, f"the {kind}")
    if len(spec) > LONGEST:
        raise UserError(f"the {kind} {short(spec)} is longer than {LONGEST} characters: that is no spec.")
    return spec


def _parse(spec: str, kind: str, *, quick: bool = False) -> Any:
    name, given = split(spec)
    cls = _from_file(name, kind) if ".py:" in name or name.endswith(".py") else _named(name, kind)
    settings, hints = settings_of(cls), get_type_hints(cls)
    values: dict[str, Any] = {}
    for pair in given.split(":") if given or spec.endswith(":") else ():
        key, equals, text = pair.partition("=")
        key = key.strip().replace("-", "_")
        if not equals:
            raise UserError(f"{kind} {short(name)}: {short(pair)} is not of the form setting=value.")
        if key not in settings:
            allowed = ", ".join(settings) or "none"
            hint = did_you_mean(key, settings)
            raise UserError(f"{kind} {short(name)} has no setting {short(key)}{hint}; its settings: {allowed}.")
        values[key] = converted(text.strip(), hints[key], f"{kind} {short(name)}: setting {short(key)}")
    try:
        made = cls(**values)
        short_of = {name: value for name, value in cls.quick.items() if name not in made.idle} if quick else {}
        return cls(**{**short_of, **values}) if short_of else made
    except ValueError as error:
        said = f"{error}" if built_in(cls) or quotes() else f"{first_line(error)}."
        raise UserError(f"{kind} {short(name)}: {said}") from error
    except Exception as error:  # the checks of somebody's own may raise anything
        raise UserError(f"{kind} {short(name)} cannot be built ({first_line(error)}).") from error


def _named(name: str, kind: str) -> type[Any]:
    known: dict[str, type[Any]] = dict(attacks() if kind == "attack" else defenses())
    if name not in known:
        hint, (first, *others) = did_you_mean(name, known), plugins.failures() or ("",)
        lost = f" {first}" + (f" So were {len(others)} more." if others else "") if first else ""
        raise UnknownName(f"unknown {kind} {short(name)}{hint}; see `leakaudit list {kind}s`.{lost}")
    return known[name]


def _from_file(name: str, kind: str) -> type[Any]:
    """Return the class that `path.py:Class` names, known by its own name from then on."""
    place, wanted = name.rsplit(":", 1) if ".py:" in name else (name, "")
    path = Path(place)
    module = _imported(path, kind)
    there = [
        each
        for each, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, BASES[kind]) and value.__module__ == module.__name__
    ]
    have = f"it has {', '.join(there)}" if there else f"it defines no {kind}"
    if not wanted:
        raise UserError(f"{name} names no class: write {path}:Class; {have}.")
    if not hasattr(module, wanted):
        raise UserError(f"{path} has no class {wanted!r}{did_you_mean(wanted, there)}; {have}.")
    cls: Any = getattr(module, wanted)
    known: dict[str, type[Any]] = dict(_attacks if kind == "attack" else _defenses)
    if not isinstance(cls, type) or known.get(getattr(cls, "name", "")) is not cls:
        try:
            (register_attack if kind == "attack" else register_defense)(cls)
        except UserError as error:
            raise UserError(f"{path}: {sentence(error)}") from error
    found: type[Any] = cls
    _places.setdefault(found, set()).add(path.resolve())
    return found


def _imported(path: Path, kind: str) -> ModuleType:
    """Import a file once, and again where it changed; what it prints goes to stderr and its random draws are undone."""
    key = path.resolve(), path.stat().st_mtime_ns if path.is_file() else 0
    if key not in _files:
        with redirect_stdout(sys.stderr), seeded(0, "plug-in"):
            _files[key] = import_file(path, f"defines the {kind}")
    return _files[key]
