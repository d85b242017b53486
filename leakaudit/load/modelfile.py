"""Reading a user's `model.py`: its names, and what builds them."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from leakaudit.errors import UserError, first_line, line_of
from leakaudit.protocol.usercode import import_error, import_file, is_file, named
from leakaudit.work.seeding import seeded

DATA = ("train_data", "test_data", "auxiliary_data", "groups")
OTHERS = ("loss", "output", "mean", "std", "classes", "device", "generator", "latent", "client", "augment")
NAMES = ("model", *DATA, *OTHERS)


@dataclass(frozen=True)
class ModelFile:
    """What a spec named: its module-level names, and the folder its imports are looked up in."""

    name: str  # for messages and the report
    folder: Path
    values: dict[str, Any]


def read_spec(spec: str, seed: int) -> ModelFile:
    """Import what `spec` names: `model.py`, `package.module`, or either with `:factory`, which replaces `model`.

    Runs under a fixed random state, so that the same seed builds the same weights. Raises UserError naming the file
    and, where known, the line.
    """
    place, factory = named(spec)
    path = Path(place)
    with seeded(seed, "import"):
        if is_file(place):
            module, folder = import_file(path, "defines model and train_data"), path.resolve().parent
        else:
            module, folder = _import_module(place), Path.cwd()
    values = {name: getattr(module, name) for name in NAMES if hasattr(module, name)}
    if factory:
        if not hasattr(module, factory):
            raise UserError(f"{place} has no {factory!r}: define it, or name what builds the model after the colon.")
        values["model"] = getattr(module, factory)
    return ModelFile(path.name if factory is None else f"{path.name}:{factory}", folder, values)


def _import_module(name: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            mend = "give a path ending in .py or an importable module"
            raise UserError(f"no file or module named {name!r}: {mend}.") from error
        raise import_error(name, error) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a file may raise anything
        raise import_error(name, error) from error
    finally:
        sys.path.remove(str(Path.cwd()))


def is_factory(value: Any) -> bool:
    """Return whether `value` is a zero-argument callable, not a model, a loss or a dataset (objects themselves)."""
    if not callable(value) or isinstance(value, nn.Module):
        return False
    if not isinstance(value, type) and (hasattr(value, "__getitem__") or hasattr(value, "__iter__")):
        return False
    try:
        inspect.signature(value).bind()
    except (TypeError, ValueError):
        return False
    return True


def resolve(value: Any, name: str, seed: int) -> Any:
    """Call `value` if it is a zero-argument callable, under a random state fixed by `seed` and its name.

    Raises UserError with the line and the first line of what it raised.
    """
    if not is_factory(value):
        return value
    build: Callable[[], Any] = value
    try:
        with seeded(seed, name):
            return build()
    except UserError:
        raise
    except KeyboardInterrupt:
        raise
    except SystemExit as error:
        raise UserError(f"{name}() exits{line_of(error)}: let it return what it builds.") from error
    except BaseException as error:  # user code may raise anything
        raise UserError(f"{name}() fails{line_of(error)} ({first_line(error, placed=False)}): mend that.") from error
