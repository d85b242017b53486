"""JSON of a schema, read into frozen dataclasses: one sentence for each way in which a file can be wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from cattrs.gen import make_dict_unstructure_fn, override
from cattrs.preconf.json import JsonConverter

from leakaudit.errors import UserError
from leakaudit.files.reading import reading, short
from leakaudit.files.typed import Misfit, typed

T = TypeVar("T")
VALUES = 5_000_000  # that one document may hold: each takes a hundred bytes or so of memory, a byte or two of the file


def structured(text: str, source: str, schema: str, kind: type[T], give: str) -> T:
    """Read `text` as an object of `kind` with that schema; UserError names `source` and what to `give` instead."""
    data = parsed(text, source, f"give {give}")
    if not isinstance(data, dict) or data.get("schema") != schema:
        found = data.get("schema") if isinstance(data, dict) else None
        raise UserError(f"{source} has schema {short(found)}, not {schema!r}: give {give}.")
    try:
        return typed(data, kind)
    except Misfit as error:
        raise UserError(f"{source} does not follow {schema}: {error}.") from error


def parsed(text: str, source: str, mend: str) -> Any:
    """Return the value of a JSON text: no NaN, no infinity, no key twice; UserError names `source` and the `mend`."""
    if sum(map(text.count, ",[{")) > VALUES:
        raise UserError(f"{source} is not JSON of ours (it holds more than {VALUES:,} values): {mend}.")
    try:
        with reading(source, "JSON", mend):
            return json.loads(text, parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_object)
    except UserError as error:
        cause = error.__cause__
        if isinstance(cause, json.JSONDecodeError):
            raise UserError(f"{source} is not JSON (line {cause.lineno}): {mend}.") from cause
        if isinstance(cause, RecursionError):
            raise UserError(f"{source} is nested too deeply to be read: {mend}.") from cause
        if isinstance(cause, ValueError):
            raise UserError(f"{source} is not JSON ({cause}): {mend}.") from cause
        raise


def leave_out(converter: JsonConverter, later: Mapping[type, Iterable[str]]) -> JsonConverter:
    """Return the converter, which now writes these fields of these classes only where they are not their default.

    What was added to a schema later is left out where it says nothing, so that old files are written back as they are.
    """
    for kind, names in later.items():
        told = {name: override(omit_if_default=True) for name in names}
        converter.register_unstructure_hook(kind, make_dict_unstructure_fn(kind, converter, **told))  # type: ignore[arg-type]
    return converter


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key that stands twice: two readers could take two values for it."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {short(twice)} stands twice")
    return found


def _no_number(word: str) -> float:
    """Refuse NaN and the infinities, which Python would read: no number of ours is one."""
    raise ValueError(f"it holds {word}")


def _finite(digits: str) -> float:
    value = float(digits)
    return value if math.isfinite(value) else _no_number(digits[:20])
