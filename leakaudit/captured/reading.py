"""Reading captured updates behind limits: what somebody else wrote ends in tensors, or in one sentence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from leakaudit.captured.form import KEY, SCHEMA, SENDS, SUFFIX, CapturedUpdate, Claims, Sends
from leakaudit.errors import UserError
from leakaudit.files.jsonfile import structured
from leakaudit.files.reading import short
from leakaudit.files.weights import safetensors_header
from leakaudit.load.checkpoints import state_of
from leakaudit.result.federation import MOST_STEPS, Client

GIVE = "a file that leakaudit capture wrote"
MOST = {"local_steps": MOST_STEPS, "local_epochs": MOST_STEPS, "batch_size": 10**6, "records": 10**6}
PLACE = re.compile(r"(?:update/(0|[1-9]\d{0,5})/)?(before|after|difference|gradient)/(.+)", re.DOTALL)


def read_capture(path: Path | str) -> CapturedUpdate:
    """Read captured updates. Raises UserError, one sentence, for what is none, damaged, or holds what is no number."""
    place = Path(path)
    if place.suffix.lower() != SUFFIX:
        raise UserError(f"{place} holds no captured update: give {GIVE}, whose name ends in {SUFFIX}.")
    texts = safetensors_header(place, "captured updates", f"give {GIVE}").texts
    if KEY not in texts:
        raise UserError(
            f"{place} says nothing of how it was captured: write {GIVE[2:]}, with "
            f"leakaudit capture --before … --after {place} -o update{SUFFIX}."
        )
    claims = structured(texts[KEY], f"the metadata of {place}", SCHEMA, Claims, GIVE)
    return checked(CapturedUpdate(*_sorted(state_of(place), str(place)), claims), str(place))


def checked(captured: CapturedUpdate, source: str) -> CapturedUpdate:
    """Return captured updates whose tensors are finite, of one kind, and fit each other; UserError for others."""
    before, updates, claims = captured.before, captured.updates, captured.claims
    client_of(claims, source)
    if claims.records is not None and claims.records % claims.clients:
        raise UserError(f"{source} says {claims.records} records of {claims.clients} clients: each must hold as many.")
    if len(updates) % claims.rounds:
        raise UserError(f"{source} holds {len(updates)} updates, not {claims.rounds} of every client as it says.")
    for k, state in enumerate(updates):
        if _shapes(state) != _shapes(updates[0]):
            raise UserError(f"{source}: update {k} does not have the tensors that update 0 has.")
    if before and (odd := sorted(name for name in updates[0] if name not in before)):
        raise UserError(f"{source} has {short(odd[0])} in its update, and not in before.")
    if odd := sorted(n for n, t in updates[0].items() if n in before and before[n].shape != t.shape):
        raise UserError(f"{source} has {short(odd[0])} of one shape in before, and of another in its update.")
    for k, state in enumerate((before, *updates)):
        _check(state, f"{source}: {f'update {k - 1}' if k else 'before'}")
    return captured


def client_of(claims: Claims, source: str) -> Client:
    """Return the client that claims speak of; UserError for one that cannot be.

    What nobody said is left at its default. A batch size without local steps is how many records one gradient is of,
    and no setting of a `Client`.
    """
    for name, most in MOST.items():
        value = getattr(claims, name)
        if value is not None and not 1 <= value <= most:
            raise UserError(f"{source} says {name} is {short(value)}: it must be between 1 and {most}.")
    local = bool(claims.local_steps or claims.local_epochs)
    told = {
        "local_steps": claims.local_steps,
        "local_epochs": claims.local_epochs,
        "batch_size": claims.batch_size if local else None,
        "local_lr": claims.local_lr,
        "momentum": claims.momentum,
        "optimizer": claims.optimizer,
        "clients": claims.clients,
        "rounds": claims.rounds,
        "mode": claims.mode,
    }
    try:
        return Client(**{name: value for name, value in told.items() if value not in (None, "")})  # type: ignore[arg-type]
    except ValueError as error:
        raise UserError(f"{source} speaks of a client that cannot be: {error}.") from error


def _sorted(
    tensors: Mapping[str, Tensor], source: str
) -> tuple[dict[str, Tensor], tuple[dict[str, Tensor], ...], Sends]:
    """Return the weights before, the updates in their order, and what they are."""
    before: dict[str, Tensor] = {}
    found: dict[int, dict[str, Tensor]] = {}
    kinds: set[str] = set()
    numbered: set[bool] = set()
    for name, tensor in tensors.items():
        match = PLACE.fullmatch(name)
        if match is None or (match[1] and match[2] == "before"):
            wanted = "before/NAME, after/NAME, difference/NAME, gradient/NAME, or update/0/after/NAME"
            raise UserError(f"{source} holds {short(name)}: tensors of captured updates are called {wanted}.")
        if match[2] == "before":
            before[match[3]] = tensor
            continue
        kinds.add(match[2])
        numbered.add(match[1] is not None)
        found.setdefault(int(match[1] or 0), {})[match[3]] = tensor
    sends = next((kind for kind in SENDS if kind in kinds), None)
    if sends is None:
        raise UserError(f"{source} holds no update: neither {', '.join(f'{kind}/NAME' for kind in SENDS)}.")
    if len(kinds) > 1 or len(numbered) > 1:
        raise UserError(f"{source} holds updates of several kinds: give one of {', '.join(SENDS)}.")
    if sorted(found) != list(range(len(found))):
        raise UserError(f"{source} holds update {max(found)} of {len(found)}: number them from 0, without a gap.")
    return before, tuple(found[k] for k in range(len(found))), sends


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


def _check(state: Mapping[str, Tensor], source: str) -> None:
    for name, tensor in state.items():
        if tensor.dtype.is_complex or (tensor.dtype.is_floating_point and tensor.dtype.itemsize < 2):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(f"{source} has {short(name)} as {kind}: save weights of 16, 32 or 64 bits.")
        if tensor.dtype.is_floating_point and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{source} has {short(name)} with what is no finite number: its training had diverged.")
