"""How long work picks up where it was interrupted, without every function carrying the arguments.

A command installs one `Partial` for the duration of a run; the long loops below `load` a stage that is finished already
and `store` each one they finish, with the state of the random generator after it: work that was interrupted and resumed
ends in the same bits as work that was not. With nothing installed both are free.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leakaudit.errors import UserError
from leakaudit.files.jsonfile import parsed
from leakaudit.files.reading import reading
from leakaudit.files.weights import safetensors_header
from leakaudit.files.writing import write_atomically

FORMAT = "leakaudit.partial/1"
RANDOM = "random"  # the tensor of a stage that holds the generator's state after it
WAIT = 10.0  # seconds between writes of a file that grows with every stage


@dataclass(eq=False)
class Partial:
    """The finished stages of one piece of work, by name, and what became of an older file."""

    path: Path
    key: Mapping[str, str]
    stages: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    resumed: int = 0  # stages taken over from the file
    discarded: str | None = None  # why an older file was not taken up
    written: float = 0.0

    def write(self) -> None:
        """Write all stages, replacing the file at once; raises UserError where that cannot be."""
        from safetensors.torch import save

        tensors = {
            f"{stage}/{name}": tensor.detach().cpu().contiguous()
            for stage, held in self.stages.items()
            for name, tensor in held.items()
        }
        header = {"format": FORMAT, "key": dict(self.key), "sha256": _sum(tensors)}
        # A stage may hold a network trained on private records.
        write_atomically(self.path, save(tensors, {"partial": json.dumps(header)}), private=True, follow=False)
        self.written = time.monotonic()


_partial: ContextVar[Partial | None] = ContextVar("partial", default=None)


@contextmanager
def resumable(path: Path, key: Mapping[str, str]) -> Iterator[Partial]:
    """Keep the finished stages of the enclosed work in `path`, and start from those that are there.

    `key` names all that the work depends on (settings, data, seed): a file written under another key is not taken up,
    and `discarded` says which entry differs. The file is removed when the work ends, and left, complete, when it is
    interrupted or fails.
    """
    partial = Partial(path, dict(key), written=time.monotonic())
    _take_up(partial)
    token = _partial.set(partial)
    try:
        yield partial
    except BaseException:
        if partial.stages:
            partial.write()
        raise
    finally:
        _partial.reset(token)
    path.unlink(missing_ok=True)


def load(stage: str, generator: torch.Generator) -> dict[str, Tensor] | None:
    """Return the tensors of a finished stage and set `generator` to its state after it; None where it is not there."""
    partial = _partial.get()
    if partial is None or stage not in partial.stages:
        return None
    held = dict(partial.stages[stage])
    generator.set_state(held.pop(RANDOM))
    return held


def store(stage: str, tensors: Mapping[str, Tensor], generator: torch.Generator) -> None:
    """Keep the tensors of a finished stage, and the state of `generator` after it."""
    partial = _partial.get()
    if partial is None:
        return
    partial.stages[stage] = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
    partial.stages[stage][RANDOM] = generator.get_state()
    if time.monotonic() - partial.written > WAIT:
        partial.written = time.monotonic()
        with suppress(UserError):  # a full disk: the work goes on in memory, and this is tried again
            partial.write()


def kept_key(path: Path) -> dict[str, str] | None:
    """Return the key of an interrupted piece of work, None where there is none or it cannot be read."""
    try:
        return _read(path)[0]
    except _Unreadable:
        return None


class _Unreadable(Exception):
    pass


def _sum(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the tensors: what is taken up must be what was written."""
    state = hashlib.sha256()
    for name in sorted(tensors):
        state.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}\n".encode())
        state.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def _take_up(partial: Partial) -> None:
    if not partial.path.exists():
        return
    try:
        key, stages = _read(partial.path)
    except _Unreadable:
        partial.discarded = f"{partial.path} cannot be read: starting anew"
        return
    wanted = partial.key
    other = next((name for name in sorted({*key, *wanted}) if key.get(name) != wanted.get(name)), None)
    if other is not None:
        partial.discarded = f"{partial.path} was begun with another {other}: starting anew"
        return
    partial.stages, partial.resumed = stages, len(stages)


def _read(path: Path) -> tuple[dict[str, str], dict[str, dict[str, Tensor]]]:
    from safetensors import safe_open

    try:
        said = safetensors_header(path)
        header: Any = parsed(said.texts["partial"], str(path), "delete it")
        with reading(path, "finished stages", "delete it"), safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in said.shapes}
        if header["format"] != FORMAT or header["sha256"] != _sum(tensors):
            raise _Unreadable
        stages: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            stage, _, part = name.rpartition("/")
            stages.setdefault(stage, {})[part] = tensor
        if any(RANDOM not in held for held in stages.values()):
            raise _Unreadable
        return {str(k): str(v) for k, v in header["key"].items()}, stages
    except (UserError, KeyError, TypeError, AttributeError) as error:
        raise _Unreadable from error
