"""`[tool.leakaudit]` of ./pyproject.toml as options of `scan`: each of the type that the option takes."""

from __future__ import annotations

from collections.abc import Callable
from types import NoneType
from typing import Any, get_args, get_type_hints

from leakaudit.errors import UserError
from leakaudit.files.reading import short

WORDS = {bool: "true or false", int: "a whole number", float: "a number"}


def checked(command: Callable[..., Any], name: str, key: str, value: Any) -> Any:
    """Return a value of the table for the parameter `name` of a command, called `key`; UserError for another type.

    The parser of the command line would take 1.5 for 1, true for 1, and a list for a path.
    """
    hint = get_type_hints(command)[name]
    kinds = [kind for kind in (get_args(hint) or (hint,)) if kind is not NoneType]
    if kinds == [list[str]]:
        several = [value] if isinstance(value, str) else value
        if isinstance(several, list) and all(isinstance(each, str) for each in several):
            return several
        raise _wrong(key, "a text or a list of texts", value)
    (kind,) = kinds
    found = type(value)
    if kind in WORDS:
        if found is kind or (kind is float and found is int):
            return value
        raise _wrong(key, WORDS[kind], value)
    if found is not str:
        raise _wrong(key, "a text in quotes", value)
    return value


def _wrong(key: str, wanted: str, value: Any) -> UserError:
    return UserError(f"pyproject.toml: [tool.leakaudit] {key} is {short(value)}: write {wanted}.")
