"""A small client in plain torch, and what a user has lying around of it: weights before and after, its records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from leakaudit.load.loading import target_from_objects
from leakaudit.protocol.target import Target

LR, STEPS, SIZE = 0.5, 2, 2
MODEL = """
from tests.captured.small import data, network as model
def train_data():
    return data()
"""


def network() -> nn.Module:
    """Return the untrained network, always the same: 1×8×8 pictures, 4 classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.Sigmoid(), nn.Flatten(), nn.Linear(36, 4))


def data(seed: int = 0, count: int = 96) -> TensorDataset:
    """Return random pictures with labels 0 to 3 in turn."""
    g = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.rand(count, 1, 8, 8, generator=g), torch.arange(count) % 4)


def records(count: int = 2 * SIZE) -> tuple[Tensor, Tensor]:
    """Return the client's own records, which are nobody's test or auxiliary records."""
    x, y = data(seed=1, count=count).tensors
    return x, y


def target() -> Target:
    """Return what is audited."""
    return target_from_objects(network, data(), seed=0, device="cpu")


def trained(x: Tensor, y: Tensor, change: Callable[[Tensor], Tensor] = lambda lost: lost) -> dict[str, Tensor]:
    """Return the weights after `STEPS` steps of SGD on all of the records, as any training loop makes them.

    `change` is what a defense does once a round to all that the weights lost, as one vector.
    """
    model = network()
    before = torch.cat([p.detach().flatten() for p in model.parameters()]).clone()
    optimiser = torch.optim.SGD(model.parameters(), lr=LR)
    for _ in range(STEPS):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    nn.utils.vector_to_parameters(before - change(before - after), model.parameters())
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def saved(path: Path, x: Tensor, y: Tensor) -> Path:
    """Write records as an .npz and return where."""
    np.savez(path, x=x.numpy(), y=y.numpy())
    return path
