"""A file of captured updates made from checkpoints that lie around, or from another one of which more is known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leakaudit.captured.canaries import played
from leakaudit.captured.claims import measure_claims
from leakaudit.captured.fitting import Fitted, fitted
from leakaudit.captured.form import CapturedUpdate, Claims, Sends
from leakaudit.captured.reading import checked, read_capture
from leakaudit.captured.told import UNDEFENDED, Line, assumed, lines, missing
from leakaudit.captured.writing import write_captures
from leakaudit.errors import UserError
from leakaudit.files.writing import apart
from leakaudit.load.checkpoints import state_of, unprefixed
from leakaudit.load.loading import load_target
from leakaudit.protocol.registry import parse_defense
from leakaudit.protocol.target import Target
from leakaudit.result.claims import ClaimRow

NUMBERS = ("claimed", "measured", "low", "high")
REMARKS = ("note", "captured")  # claims that say nothing of the client


@dataclass(frozen=True)
class Looked:
    """What `look` found in a file: its lines, what an audit takes for granted, and what it misses."""

    lines: tuple[Line, ...]
    assumed: tuple[str, ...]
    missing: tuple[str, ...]
    claims: tuple[ClaimRow, ...] = ()  # beside what was measured, where a model was given


def claims_of(captured: CapturedUpdate, target: Target, source: str) -> tuple[ClaimRow, ...]:
    """Return what is claimed of captured updates beside what was measured, as a result can hold it: inf is None."""
    spec = captured.claims.defense
    defense = None if spec in (None, UNDEFENDED) else parse_defense(str(spec))
    rows = measure_claims(captured, target.model.network, source=source, defense=defense)
    return tuple(map(_finite, (*rows, *played(captured, target, source))))


def _finite(row: ClaimRow) -> ClaimRow:
    endless: Any = {name: None for name in NUMBERS if math.isinf(getattr(row, name) or 0.0)}
    return replace(row, **endless)


def look(path: Path, model: str | None = None, checkpoint: Path | None = None) -> Looked:
    """Read captured updates and check them, with `model` (model.py) against it. Raises UserError where that fails."""
    captured = read_capture(path)
    fit: Fitted | None = None
    found: tuple[ClaimRow, ...] = ()
    if model is not None:
        loaded = load_target(model, checkpoint=checkpoint, device="cpu")
        fit = fitted(captured, loaded.model.network, str(path))
        found = claims_of(captured, loaded, str(path))
    claims, sends = captured.claims, captured.sends
    return Looked(lines(captured, fit, str(path)), assumed(claims, sends), missing(claims, sends), found)


def make(
    output: Path,
    given: Mapping[str, Any],
    *,
    files: Sequence[Path] = (),
    before: Path | None = None,
    updates: Mapping[Sends, Sequence[Path]],
) -> None:
    """Write captured updates from checkpoints, or those of `files` together, with the claims `given`.

    None is what is not said. `updates` are the checkpoints by what they hold. Raises UserError for what cannot be read,
    or cannot be.
    """
    kinds = [kind for kind, paths in updates.items() if paths]
    places = [path for paths in updates.values() for path in paths]
    inputs = {"--before": before, **{f"FILE {path}": path for path in files}}
    inputs |= {f"the update {path}": path for path in places}
    apart({"--output": output}, inputs)
    told = {name: value for name, value in given.items() if value is not None}
    if told.get("defense") not in (None, "none"):
        parse_defense(told["defense"])
    if files:
        if places or before is not None:
            raise UserError("FILE is captured updates already: give it, or checkpoints with --before and --after.")
        found = joined(files)
        found = replace(found, claims=replace(found.claims, **told))
    else:
        if len(kinds) != 1:
            raise UserError("give what was sent by one of --after, --difference and --gradient.")
        begun = {} if before is None else state_of(before)
        states = [state_of(path) for path in updates[kinds[0]]]
        if begun:  # one of them may come out of a wrapper
            states = [unprefixed(state, set(begun)) for state in states]
            begun = unprefixed(begun, set(states[0]))
        found = CapturedUpdate(begun, tuple(states), kinds[0], Claims(**told))
    checked(found, "what is given")
    write_captures(output, found.updates, sends=found.sends, before=found.before, claims=found.claims)


def joined(files: Sequence[Path]) -> CapturedUpdate:
    """Return the updates of several files as those of one, in their order; what only some of them note is left out.

    Raises UserError naming the file that does not belong to the first: other weights to begin with, another client.
    """
    first, *others = map(read_capture, files)
    for path, each in zip(files[1:], others, strict=True):
        if not _equal(first.before, each.before):
            raise UserError(f"{path} began with other weights than {files[0]}: a file is of one round.")
        told = {f.name: (getattr(first.claims, f.name), getattr(each.claims, f.name)) for f in fields(Claims)}
        unlike = [name for name, (one, other) in told.items() if one != other and name not in REMARKS]
        if each.sends != first.sends or unlike:
            what = ", ".join(unlike) or "what was sent"
            raise UserError(f"{path} says other things of its client than {files[0]} ({what}): a file is of one kind.")
    updates = tuple(update for each in (first, *others) for update in each.updates)
    if any(_equal(a, b) for i, a in enumerate(updates) for b in updates[:i]):
        raise UserError("one of the updates is given twice, and would count as two.")
    claims = replace(first.claims, note="", captured="") if others else first.claims
    return replace(first, updates=updates, claims=claims)


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], value) for name, value in other.items())
