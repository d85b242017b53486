"""One seed fixes everything: child generators are derived from the audit's seed and a path of names."""

from __future__ import annotations

import hashlib

import torch


def derive(seed: int, *path: str | int) -> int:
    """Return a 63-bit seed that depends on `seed` and on every element of `path`, stable across processes."""
    text = "/".join([str(seed), *map(str, path)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator_for(seed: int, *path: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a fresh generator seeded by `derive`. Adding an attack never shifts the random numbers of another."""
    return torch.Generator(device=device).manual_seed(derive(seed, *path))
