"""One seed fixes everything: child generators are derived from the audit's seed and a path of names.

All that the audit itself draws comes from a generator on the CPU, which hands the same numbers to every device; what is
drawn is then moved. What a user's own network draws (dropout) comes from the global generator of the device it is on:
that is seeded and restored here too, but its numbers are the device's own.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

RandomStates = tuple[tuple[tuple[str, int | None], Tensor], ...]  # by device; the index is None where there is one


def derive(seed: int, *path: str | int) -> int:
    """Return a 63-bit seed that depends on `seed` and on every element of `path`, stable across processes."""
    text = "/".join([str(seed), *map(str, path)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator_for(seed: int, *path: str | int) -> torch.Generator:
    """Return a fresh generator, on the CPU, seeded by `derive`. An attack more never shifts the numbers of another."""
    return torch.Generator().manual_seed(derive(seed, *path))


def devices_in_use() -> list[tuple[str, int | None]]:
    """Return the devices beside the CPU whose global generators may have been drawn from."""
    found: list[tuple[str, int | None]] = []
    for name in ("cuda", "xpu", "mps", torch._C._get_privateuse1_backend_name()):
        module: Any = getattr(torch, name, None)
        begun = getattr(module, "is_initialized", lambda: False)  # what was never used has drawn nothing
        if name == "mps" and torch.backends.mps.is_available():  # it has no such function, and one device
            found.append((name, None))
        elif hasattr(module, "get_rng_state") and begun():
            found += [(name, i) for i in range(module.device_count())]
    return found


def random_states() -> RandomStates:
    """Return the states of torch's global generators: the CPU's, and that of every device in use."""
    found: list[tuple[tuple[str, int | None], Tensor]] = [(("cpu", None), torch.get_rng_state())]
    for name, index in devices_in_use():
        module: Any = getattr(torch, name)
        found.append(((name, index), module.get_rng_state() if index is None else module.get_rng_state(index)))
    return tuple(found)


def set_random_states(states: RandomStates) -> None:
    """Put torch's global generators where they were at `random_states`."""
    for (name, index), state in states:
        if name == "cpu":
            torch.set_rng_state(state)
        else:
            module: Any = getattr(torch, name)
            module.set_rng_state(state) if index is None else module.set_rng_state(state, index)


@contextmanager
def forked(seed: int | None = None) -> Iterator[None]:
    """Restore torch's global generators afterwards, on every device in use; `seed` is what they are set to within."""
    before = random_states()
    try:
        if seed is not None:
            torch.manual_seed(seed)
        yield
    finally:
        set_random_states(before)


def reseed(seed: int, *, used: bool = False) -> None:
    """Set the random states that user code may draw from: torch's, Python's and numpy's global ones.

    `used` leaves out devices that nothing has been drawn on yet, which is quicker: for what is done thousands of times.
    """
    if used and not devices_in_use():
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


@contextmanager
def seeded(seed: int, *path: str) -> Iterator[None]:
    """Run user code (a file, a constructor, a dataset's augmentation) under fixed random states, then restore them."""
    kept, kept_numpy = random.getstate(), np.random.get_state()
    with forked():
        reseed(derive(seed, *path))
        try:
            yield
        finally:
            random.setstate(kept)
            np.random.set_state(kept_numpy)
