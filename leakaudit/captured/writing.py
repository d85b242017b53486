"""Writing captured updates, as a client does in whose process they arise: torch is not needed for arrays of numpy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from leakaudit.captured.form import KEY, SENDS, SUFFIX, Claims, Sends
from leakaudit.errors import UserError
from leakaudit.files.reading import short
from leakaudit.files.writing import write_atomically

State = Mapping[str, Any] | Sequence[Any]  # tensors of torch or arrays of numpy, by name or in the model's order


def write_capture(
    path: Path | str,
    *,
    before: State | None = None,
    after: State | None = None,
    difference: State | None = None,
    gradient: State | None = None,
    claims: Claims | None = None,
) -> Path:
    """Write one captured update into a `.safetensors` file of its owner alone, whole or not at all; return its path.

    Give the weights `before` and `after` local training, or `before` and the `difference` (after less before), or a
    `gradient`; `before` may be left out where the model's own weights are meant. Raises UserError for what is no state.
    """
    given = {"after": after, "difference": difference, "gradient": gradient}
    found = [(name, state) for name, state in given.items() if state is not None]
    if len(found) != 1:
        raise UserError("a captured update is one of after, difference and gradient: give one of them.")
    sends, state = found[0]
    return write_captures(path, [state], sends=sends, before=before, claims=claims)  # type: ignore[arg-type]


def write_captures(
    path: Path | str,
    updates: Sequence[State],
    *,
    sends: Sends,
    before: State | None = None,
    claims: Claims | None = None,
) -> Path:
    """Write several captured updates that began with the same weights, e.g. of the clients of one round.

    `sends` says what they are, as in `write_capture`. Raises UserError for what is no state, or none at all.
    """
    place = Path(path)
    if place.suffix.lower() != SUFFIX:
        raise UserError(f"{place} is to hold captured updates: give it a name that ends in {SUFFIX}.")
    if sends not in SENDS or not updates:
        raise UserError(f"{place}: give at least one update, of {', '.join(SENDS)}.")
    tensors = {f"before/{name}": array for name, array in _named(before or {}).items()}
    for k, state in enumerate(updates):
        begins = f"{sends}/" if len(updates) == 1 else f"update/{k}/{sends}/"
        own = _named(state)
        if not own:
            raise UserError(f"{place}: the update to be written holds no tensor.")
        tensors |= {begins + name: array for name, array in own.items()}
    from safetensors.numpy import save

    write_atomically(place, save(tensors, {KEY: claims_json(claims or Claims())}), private=True)
    return place


def claims_json(claims: Claims) -> str:
    """Return claims as the file holds them: JSON with sorted keys, without what nobody said."""
    told = {f.name: getattr(claims, f.name) for f in fields(claims)}
    kept = {f.name for f in fields(claims) if f.default is MISSING or told[f.name] != f.default} | {"schema"}
    values = {name: value for name, value in asdict(claims).items() if name in kept}
    try:
        return json.dumps(values, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"the claims of a captured update hold what JSON does not ({error}): mend that.") from error


def _named(state: State) -> dict[str, np.ndarray[Any, Any]]:
    """Return arrays by name; those without names are called by their place."""
    if isinstance(state, Mapping):
        return {str(name): _array(str(name), value) for name, value in state.items()}
    return {str(place): _array(str(place), value) for place, value in enumerate(state)}


def _array(name: str, value: Any) -> np.ndarray[Any, Any]:
    if hasattr(value, "detach"):  # a tensor of torch: 16 bits of bfloat16 have no name in numpy
        value = value.detach().cpu()
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    found = np.asarray(value)
    if found.dtype.kind not in "biuf" or found.dtype.itemsize > 8:
        raise UserError(f"{short(name)} of a captured update is a {found.dtype}, not numbers: leave it out.")
    return np.ascontiguousarray(found).reshape(found.shape)  # of a single number it would make a row
