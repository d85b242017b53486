"""The table of errors measures what it says, on any picture."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from benchmarks import finite as benchmark
from benchmarks.networks import build
from leakaudit import engine
from leakaudit.client import mean_gradient


def test_errors_and_pruning(generator: torch.Generator) -> None:
    model, labels = build("cnn6").eval(), torch.tensor([3])
    x, other = (torch.rand(1, 3, 32, 32, generator=generator) for _ in range(2))
    shared = benchmark.pruned(mean_gradient(model, F.cross_entropy, other, labels))
    assert all(0 < int((g != 0).sum()) <= max(1, g.numel() // 10 + 1) for g in shared)
    fast, wide, exact, fast64, step = benchmark.errors(model, x, labels, shared, engine.cosine)
    assert 0 < fast < 1e-2
    assert abs(wide - fast) <= 2 * exact < 1e-4
    assert 0 < fast64 < 1e-4
    assert 0 < step < 1
    assert benchmark.relative(torch.tensor([3.0, 5.0]), torch.tensor([3.0, 4.0])) == pytest.approx(0.2)
