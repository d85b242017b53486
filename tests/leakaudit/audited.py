"""A small target to audit, for the tests of what watches an audit."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import TensorDataset

from leakaudit.load.loading import target_from_objects
from leakaudit.protocol.target import Target


def target() -> Target:
    """Return a fresh target of 80 pictures 1×8×8 in two classes; always the same."""
    g = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.rand(80, 1, 8, 8, generator=g), torch.arange(80) % 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(256, 2))
    return target_from_objects(model, data, seed=0, device="cpu")
