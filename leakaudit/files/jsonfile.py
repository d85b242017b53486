"""JSON of a schema, read into frozen dataclasses: one sentence for each way in which a file can be wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import cattrs
from cattrs.gen import make_dict_unstructure_fn, override
from cattrs.preconf.json import JsonConverter

from leakaudit.errors import UserError

T = TypeVar("T")


def structured(text: str, source: str, schema: str, kind: type[T], converter: cattrs.Converter, give: str) -> T:
    """Read `text` as an object of `kind` with that schema; UserError names `source` and what to `give` instead."""
    try:
        data: Any = json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except json.JSONDecodeError as error:
        raise UserError(f"{source} is not JSON (line {error.lineno}): give {give}.") from error
    except ValueError as error:
        raise UserError(f"{source} is not JSON ({error}): give {give}.") from error
    except RecursionError as error:
        raise UserError(f"{source} is nested too deeply to be read: give {give}.") from error
    if not isinstance(data, dict) or data.get("schema") != schema:
        found = data.get("schema") if isinstance(data, dict) else None
        raise UserError(f"{source} has schema {found!r}, not {schema!r}: give {give}.")
    try:
        return converter.structure(data, kind)
    except (cattrs.BaseValidationError, KeyError, TypeError, ValueError) as error:
        detail = "; ".join(cattrs.transform_error(error)[:2]) if isinstance(error, Exception) else ""
        raise UserError(f"{source} does not follow {schema}: {detail}.") from error


def leave_out(converter: JsonConverter, later: Mapping[type, Iterable[str]]) -> JsonConverter:
    """Return the converter, which now writes these fields of these classes only where they are not their default.

    What was added to a schema later is left out where it says nothing, so that old files are written back as they are.
    """
    for kind, names in later.items():
        told = {name: override(omit_if_default=True) for name in names}
        converter.register_unstructure_hook(kind, make_dict_unstructure_fn(kind, converter, **told))  # type: ignore[arg-type]
    return converter


def _no_number(word: str) -> float:
    """Refuse NaN and the infinities, which Python would read: no number of ours is one."""
    raise ValueError(f"it holds {word}")


def _finite(digits: str) -> float:
    value = float(digits)
    return value if math.isfinite(value) else _no_number(digits[:20])
