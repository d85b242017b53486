"""CIFAR-10 for the examples: from CIFAR10_DATA, a data folder beside the checkout, or torchvision's download."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
DOWNLOADS = Path.home() / ".cache" / "leakaudit"


def part(name: str, count: int) -> TensorDataset:
    """Return the first `count` records of "private", "auxiliary" or "test": disjoint, normalised by MEAN and STD."""
    folder = Path(os.environ.get("CIFAR10_DATA", Path(__file__).resolve().parents[2] / "shared/data/cifar10"))
    images, labels = _from_npz(folder, name) if folder.is_dir() else _from_torchvision(name)
    pixels = images[:count].permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return TensorDataset((pixels - mean) / std, labels[:count].long())


@cache
def _from_npz(folder: Path, name: str) -> tuple[Tensor, Tensor]:
    file = {"private": "cifar10_train_a", "auxiliary": "cifar10_train_b", "test": "cifar10_test"}[name]
    key = "test" if name == "test" else "train"
    with np.load(folder / f"{file}.npz", allow_pickle=False) as archive:
        return torch.from_numpy(archive[f"x_{key}"]), torch.from_numpy(archive[f"y_{key}"])


@cache
def _from_torchvision(name: str) -> tuple[Tensor, Tensor]:
    from torchvision.datasets import CIFAR10

    data = CIFAR10(str(DOWNLOADS), train=name != "test", download=True)
    half = {"private": slice(None, 25_000), "auxiliary": slice(25_000, None), "test": slice(None)}[name]
    return torch.from_numpy(data.data[half]), torch.tensor(data.targets[half])
