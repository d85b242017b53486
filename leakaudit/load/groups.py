"""Units of privacy as a user says them: `groups`, one id (a person, a site) for every record of a data set."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import RandomSampler, SubsetRandomSampler

from leakaudit.data.datasets import Item, is_stream
from leakaudit.errors import UserError

Ids = list[Hashable | None]
FORM = "give one id per record of train_data, or a dict of such lists by data name"


def read_groups(groups: Any, data: Mapping[str, Any]) -> dict[str, Ids]:
    """Return the ids of every data set that `groups` speaks of, by its name.

    `groups` is None, a sequence (list, array, tensor, column) of hashable ids for train_data, or a dict of those by
    data name. None and NaN as an id: not known. Raises UserError with what is wrong and the mend.
    """
    if groups is None:
        return {}
    given = groups if isinstance(groups, Mapping) else {"train_data": groups}
    found = {}
    for name, ids in given.items():
        if name not in data:
            known = ", ".join(data)
            raise UserError(f"`groups` names {name!r}, which is no data given here ({known}): {FORM}.")
        source = data[name]
        if is_stream(source) and isinstance(getattr(source, "sampler", None), RandomSampler | SubsetRandomSampler):
            raise UserError(
                f"`groups` goes by position, but the loader {name} draws its records in another order each time: "
                "give the dataset itself."
            )
        found[name] = _ids(ids, name)
    return found


def _ids(ids: Any, name: str) -> Ids:
    if isinstance(ids, str | bytes | Mapping) or not isinstance(ids, Iterable):
        raise UserError(f"the groups of {name} are of type {type(ids).__name__}: {FORM}.")
    listed = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    found: Ids = []
    for position, one in enumerate(listed if isinstance(listed, list) else [listed]):
        value = one.item() if hasattr(one, "item") and getattr(one, "ndim", None) == 0 else one
        try:
            hash(value)
        except TypeError as error:
            kind = type(value).__name__
            raise UserError(f"the group of record {position} of {name} is a {kind}, not one id: {FORM}.") from error
        if isinstance(value, Tensor):  # hashed by where it lies, not by what it holds
            raise UserError(f"the group of record {position} of {name} is a tensor of several numbers: {FORM}.")
        found.append(None if value is None or value != value else value)
    return found


def check_lengths(groups: Mapping[str, Ids], counts: Mapping[str, tuple[int, bool]]) -> None:
    """Raise UserError unless there is one id per record; `counts` gives how many, and whether those are all."""
    for name, ids in groups.items():
        count, whole = counts[name]
        if len(ids) != count if whole else len(ids) < count:
            least = "" if whole else "at least "
            raise UserError(f"`groups` has {len(ids)} id(s) for the {least}{count} records of {name}: give one each.")


def units_of(
    groups: Mapping[str, Ids], items: Mapping[str, Sequence[Item]], sources: Mapping[str, str]
) -> dict[str, Tensor]:
    """Return each role's units (N,), numbers that mean the same in all roles; −1 where nothing was said.

    `sources` names the data set that a role's items were read from, whose positions the items carry.
    """
    numbers: dict[Hashable, int] = {}
    units = {}
    for role, found in items.items():
        ids = groups.get(sources[role])
        said = [None if ids is None else ids[item.position] for item in found]
        units[role] = torch.tensor([-1 if one is None else numbers.setdefault(one, len(numbers)) for one in said])
    return units
