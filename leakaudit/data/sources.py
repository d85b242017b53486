"""What holds several data sets at once: splits by name (a DatasetDict), and Lightning's data modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from leakaudit.data.keys import ALL_LABELS, IMAGE_KEYS
from leakaudit.errors import UserError, first_line
from leakaudit.files.reading import short
from leakaudit.work.seeding import seeded

TRAIN = ("train", "training")
TEST = ("test", "testing")
VALIDATION = ("validation", "valid", "val", "dev")
_NAMES = {"train_data": TRAIN, "test_data": (*TEST, *VALIDATION), "auxiliary_data": ("auxiliary", *VALIDATION)}


def opened(data: Mapping[str, Any], seed: int) -> tuple[dict[str, Any], list[str]]:
    """Return the data of every role, where some was given as one thing that holds several, and notes on what was read.

    Training records come of its training split, and test records of its test split, else of its validation split,
    unless `test_data` was given. Raises UserError where there is no such split, or it fails.
    """
    found, notes = dict(data), []
    for role, source in data.items():
        if isinstance(source, Mapping) and (columns := columns_of(source)) is not None:
            found[role] = columns
            continue
        if isinstance(source, Mapping):
            parts, told = _of_splits(source, role)
        elif _is_module(source):
            parts, told = _of_module(source, role, seed)
        else:
            continue
        if role == "train_data" and "test_data" in data:
            parts.pop("test_data", None)
        found |= parts
        read = ", ".join(f"{told[part]} as {part}" for part in parts)
        rest = [name for part, name in told.items() if part not in parts]
        notes.append(
            f"{role} is {_named(source)}, of which was read: {read}"
            + (f"; {' and '.join(rest)} was not." if rest else ".")
        )
    return found, notes


def split_of(names: Mapping[str, Any], wanted: tuple[str, ...]) -> str | None:
    """Return which of the names is that of the wanted split, whatever its case."""
    return next((name for want in wanted for name in names if str(name).lower() == want), None)


def columns_of(source: Mapping[Any, Any]) -> tuple[Any, Any] | None:
    """Return images and labels of a dict of two arrays that hold all of them, None for any other."""
    names = (next((key for key in keys if key in source), None) for keys in (IMAGE_KEYS, ALL_LABELS))
    columns = tuple(source[name] for name in names if name is not None)
    whole = len(columns) == 2 and all(isinstance(each, Tensor | np.ndarray) for each in columns)
    return (columns[0], columns[1]) if whole else None


def _named(source: Any) -> str:
    return f"a {type(source).__name__}"


def _of_splits(source: Mapping[str, Any], role: str) -> tuple[dict[str, Any], dict[str, str]]:
    own = split_of(source, _NAMES[role])
    if own is None:
        held = ", ".join(short(name).strip("'") for name in list(source)[:8]) or "nothing"
        raise UserError(
            f"`{role}` is {_named(source)} that holds {held}, and no split named {' or '.join(_NAMES[role][:2])}: give "
            "a Dataset or DataLoader of (image, label) pairs."
        )
    parts, told = {role: source[own]}, {role: f"{own!r}"}
    if role == "train_data":
        test = split_of(source, _NAMES["test_data"])
        if test is not None:
            parts["test_data"], told["test_data"] = source[test], f"{test!r}"
        told |= {name: f"{name!r}" for name in source if name not in (own, test)}
    return parts, told


def _is_module(source: Any) -> bool:
    """Whether this is a LightningDataModule, by what it can do: Lightning is not imported for it."""
    return (
        not isinstance(source, nn.Module | type)
        and callable(getattr(source, "train_dataloader", None))
        and callable(getattr(source, "setup", None))
    )


def _of_module(source: Any, role: str, seed: int) -> tuple[dict[str, Any], dict[str, str]]:
    def call(name: str, *values: str) -> Any:
        try:
            with seeded(seed, "data", role, name):
                return getattr(source, name)(*values)
        except Exception as error:  # user code may raise anything
            raise UserError(
                f"{name}({', '.join(map(repr, values))}) of `{role}` fails ({first_line(error)}): mend that, or give "
                "its datasets as train_data and test_data."
            ) from error

    if callable(getattr(source, "prepare_data", None)):
        call("prepare_data")
    call("setup", "fit")
    wanted = {"train_data": ("train_dataloader",), "test_data": ("test_dataloader", "val_dataloader")}
    names = wanted.get(role, ("val_dataloader",))
    parts, told = {}, {}
    for part, loaders in {role: names, **({"test_data": wanted["test_data"]} if role == "train_data" else {})}.items():
        name = next((each for each in loaders if _is_own(source, each)), None)
        if name is None:
            continue
        if name == "test_dataloader":
            call("setup", "test")
        parts[part], told[part] = _one(call(name), name, role), f"{name}()"
    if role not in parts:
        raise UserError(f"`{role}` is {_named(source)} without {names[0]}(): give a Dataset or DataLoader.")
    if role == "train_data" and told.get("test_data") == "test_dataloader()" and _is_own(source, "val_dataloader"):
        told["val"] = "val_dataloader()"
    for hook in ("on_before_batch_transfer", "on_after_batch_transfer"):
        if _is_own(source, hook):
            told[hook] = f"{hook}() (what it does to a batch)"
    return parts, told


def _is_own(source: Any, name: str) -> bool:
    """Whether a data module defines a hook itself: Lightning's own does nothing, or raises."""
    method: Callable[..., Any] | None = getattr(type(source), name, None)
    found = getattr(source, name, None)
    where = getattr(method, "__module__", "") or ""
    instance = name in getattr(source, "__dict__", {})  # as from_datasets sets them
    return callable(found) and (
        instance
        or not where.split(".")[0].endswith("lightning")
        or "Hooks" not in (getattr(method, "__qualname__", ""))
    )


def _one(loaders: Any, name: str, role: str) -> Any:
    """Return the one loader that a hook gives, alone or in a list."""
    if isinstance(loaders, list | tuple) and len(loaders) == 1:
        return loaders[0]
    if isinstance(loaders, list | tuple | Mapping):
        raise UserError(
            f"{name}() of `{role}` gives {len(loaders)} loaders: give the one that is audited as train_data, and "
            "one as test_data."
        )
    return loaders
