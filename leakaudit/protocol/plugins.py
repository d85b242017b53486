"""Installed plug-ins: what packages offer by entry points of the groups `leakaudit.attacks`, `.defenses`, `.metrics`.

One that cannot be loaded, whatever it raises, is left out and named in `failures`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from leakaudit.errors import UserError, first_line, quotes, quoting, sentence
from leakaudit.work.seeding import seeded

_owners: dict[str, str] = {}  # "module.Class" of what plug-ins registered -> the plug-in
# By group, package and name: with what exceptions say, and as it may be told anywhere.
_failures: dict[tuple[str, str, str], tuple[str, str]] = {}
_loaded: set[str] = set()  # groups
_loading = ""  # the plug-in whose code runs now


def owner(cls: Any) -> str:
    """Return the plug-in that registered a class, in words, empty where none did."""
    return _owners.get(f"{cls.__module__}.{cls.__qualname__}", "") if isinstance(cls, type) else ""


def note(cls: type[Any]) -> None:
    """Remember the plug-in that registers a class now, if one is being loaded."""
    if _loading:
        _owners[f"{cls.__module__}.{cls.__qualname__}"] = _loading


def failures() -> tuple[str, ...]:
    """Return a sentence for every plug-in that could not be loaded, of the groups asked for so far."""
    return tuple(said if quotes() else untold for said, untold in _failures.values())


def load(group: str, register: Callable[[Any], object], known: tuple[dict[str, Any], ...] = ()) -> None:
    """Load every plug-in of a group, once; `register` is called with what each entry point names.

    A plug-in that fails leaves nothing behind in `known`, the tables that registering writes to.
    """
    if group in _loaded:
        return
    _loaded.add(group)
    for found in sorted(_offered(group), key=lambda e: (_package(e), str(e.name))):
        _load(found, register, known)


def _offered(group: str) -> tuple[EntryPoint, ...]:
    try:
        return tuple(entry_points(group=group))
    except Exception as error:  # the metadata of any installed package may be broken
        _fail(group, "", "", f"The plug-ins of the group {group} cannot be listed ({{why}}).", error)
        return ()


def _load(found: EntryPoint, register: Callable[[Any], object], known: tuple[dict[str, Any], ...]) -> None:
    global _loading
    before, kept = _loading, [dict(table) for table in known]
    _loading = f"the plug-in {_package(found)}"
    try:
        with redirect_stdout(sys.stderr), seeded(0, "plug-in"):
            named = found.load()
            register(named)
            for table, was in zip(known, kept, strict=True):
                for cls in (table[name] for name in table.keys() - was.keys() if isinstance(table[name], type)):
                    cls()  # `leakaudit list` shows the settings that it has by itself
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plug-in may raise anything, and exit
        for table, was in zip(known, kept, strict=True):
            for name in [name for name, cls in table.items() if cls is not was.get(name) and owner(cls) == _loading]:
                del table[name]
                table.update({name: was[name]} if name in was else {})
        said = f"The plug-in {found.name!r} of {_package(found)} was left out"
        _fail(found.group, _package(found), found.name, f"{said}: {{why}}. Update or uninstall that package.", error)
    finally:
        _loading = before


def _fail(group: str, package: str, name: str, told: str, error: BaseException) -> None:
    """Note a failure, both with what its exception says and without: it may be asked for at either level."""
    both = []
    for full in (True, False):
        with quoting(full):
            why = str(sentence(error)).rstrip(".") if isinstance(error, UserError) else first_line(error)
        both.append(told.replace("{why}", why))
    _failures[group, package, name] = both[0], both[1]


def _package(found: EntryPoint) -> str:
    try:
        return str(found.dist.name) if found.dist is not None else str(found.value)
    except Exception:  # its metadata may name nothing
        return str(found.value)
