"""One seed fixes everything: child generators are derived from the audit's seed and a path of names."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive(seed: int, *path: str | int) -> int:
    """Return a 63-bit seed that depends on `seed` and on every element of `path`, stable across processes."""
    text = "/".join([str(seed), *map(str, path)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator_for(seed: int, *path: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a fresh generator seeded by `derive`. Adding an attack never shifts the random numbers of another."""
    return torch.Generator(device=device).manual_seed(derive(seed, *path))


def reseed(seed: int) -> None:
    """Set the random states that user code may draw from: torch's, Python's and numpy's global ones."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


@contextmanager
def seeded(seed: int, *path: str) -> Iterator[None]:
    """Run user code (a file, a constructor, a dataset's augmentation) under fixed random states, then restore them."""
    value = derive(seed, *path)
    kept, kept_numpy = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        reseed(value)
        try:
            yield
        finally:
            random.setstate(kept)
            np.random.set_state(kept_numpy)
