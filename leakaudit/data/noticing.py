"""What is said of data that was read: what was left out or converted, random transforms, constants that do not fit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from leakaudit.data.datasets import Item, collated, fetch, is_stream, underlying
from leakaudit.data.pictures import Expected
from leakaudit.data.records import NORMALISATIONS, Extremes, Scale, listed
from leakaudit.work.seeding import seeded

TWICE = 8  # records that are read again
PLAIN = "no"  # constants: none at all


def clauses(items: Sequence[Item], name: str) -> list[str]:
    """Return a note for everything that reading did to records of a data set, and to how many of them."""
    found = Counter(clause for item in items for clause in item.told)
    return [
        f"In {'all' if count == len(items) else f'{count:,} of the'} {len(items):,} records read of {name}, {clause}."
        for clause, count in found.items()
    ]


def drawn_anew(data: Any, items: Sequence[Item], name: str, expected: Expected, seed: int) -> list[str]:
    """Read a few records a second time; return a note where they are others then: their transform is random."""
    data = underlying(data)
    first = items[:TWICE]
    with seeded(seed, "data", name, "again"):
        try:
            if is_stream(data):
                first, second = (collated(data, TWICE, name, expected) for _ in range(2))
            else:
                second = list(fetch(data, [item.position for item in first], name, expected))
        except Exception:  # user code may raise anything; what was read once counts
            return []
    differ = sum(not _same(one.picture, two.picture) for one, two in zip(first, second, strict=False))
    if not differ:
        return []
    return [
        f"{name} gives another picture each time that a record is read ({differ} of {len(first)} read twice): its "
        "transform is random. A record is here one draw of it: copies of one record differ, and near-duplicates, "
        "groups and line-ups are of draws. To audit the records themselves give them without it, and what training "
        "does to them as `augment`."
    ]


def _same(one: Tensor, two: Tensor) -> bool:
    return one.shape == two.shape and bool(torch.equal(one.nan_to_num(), two.nan_to_num()))


def misdeclared(items: Sequence[Item], scale: Scale, name: str) -> str | None:
    """Return a warning where pixels lie in [0, 1] under the declared mean and std, but other known constants fit.

    They fit where they put the extremes of every channel on 0 and 1, or all pixels on whole grey levels of 8 bits, to
    within what rounding makes of that, and the declared ones do neither.
    """
    given = [item.picture for item in items if not item.raw]
    if not given or len({tuple(picture.shape) for picture in given}) > 1:
        return None
    values = Extremes.of(given)
    if bool((values.low == values.high).all()) or values.fit(scale):
        return None
    known = {PLAIN: ((0.0,), (1.0,))} | NORMALISATIONS
    fitting = [(kind, each) for kind, each in known.items() if values.fit(each)]
    if not fitting:
        return None
    kind, (mean, std) = fitting[0]
    off = 20 * math.log10(_mean(std) / _mean(scale[1]))
    what = "are 0 to 1 without any" if kind == PLAIN else f"fit the {kind} constants exactly"
    mend = "leave mean and std out" if kind == PLAIN else f"set mean = {listed(mean)} and std = {listed(std)}"
    return (
        f"The declared mean {listed(scale[0])} and std {listed(scale[1])} do not fit the pixels of {name}, which "
        f"{what}: {mend}. As declared, every PSNR is {abs(off):.1f} dB too {'high' if off > 0 else 'low'}."
    )


def _mean(values: tuple[float, ...]) -> float:
    return sum(values) / len(values)
