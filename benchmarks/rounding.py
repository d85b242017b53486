"""What TF32 does to the engine, without a GPU: convolutions whose inputs are rounded to ten bits of mantissa.

    python -m benchmarks.rounding [--models lenet,cnn6,…] [--trials 4]

cuDNN rounds so on recent cards wherever torch's flag allows it, and by default it does. For every network: the largest
relative error of a trial's slope by `loop` and `stacked` against plain autograd in float64, and the way that
`engine.match` takes, first with the flag as torch sets it and without the engine's own guard, then with it. Untrained
networks in eval mode, one real picture per trial and victim.

It needs `../shared/data` beside the repository for real pictures.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.inversion import DATA, load
from benchmarks.networks import build
from leakaudit.engine import matching as engine
from leakaudit.engine.stacked import Trials
from leakaudit.protocol.gradients import Gradients, mean_gradient, parameters_of
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.work import precision

MODELS = ("lenet", "cnn6", "convnet16", "resnet18", "resnet18-cifar")
CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)


def rounded(value: Any) -> Any:
    """Return a float32 tensor with 10 of its 23 bits of mantissa, rounded to the nearest; anything else as it is."""
    if not isinstance(value, Tensor) or value.dtype != torch.float32:
        return value
    bits = value.contiguous().view(torch.int32)
    return ((bits + (1 << 12)) & -(1 << 13)).view(torch.float32)


class Tf32(TorchDispatchMode):
    """Round what convolutions and their backward passes are given while `torch.backends.cudnn.allow_tf32` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.roundings = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in CONVOLUTIONS and torch.backends.cudnn.allow_tf32:
            self.roundings += 1
            args = tuple(map(rounded, args))
        return func(*args, **(kwargs or {}))


@contextmanager
def unguarded() -> Iterator[None]:
    """Leave torch's flags as they are, whatever the engine asks for."""
    with mock.patch.object(precision, "_entered", 1):
        yield


def exactly(model: PixelModel, images: Tensor, labels: Tensor, shared: Gradients) -> Tensor:
    """Return the slope of 1 − cos(∇ℓ, g) in pictures (B, C, H, W), by autograd through everything in float64."""
    double = copy.deepcopy(model).double()
    x = images.double().requires_grad_(True)
    found = torch.autograd.grad(F.cross_entropy(double(x), labels), parameters_of(double)[1], create_graph=True)
    a, b = (torch.cat([g.flatten() for g in gs]) for gs in (found, [s.double() for s in shared]))
    return torch.autograd.grad(1 - F.cosine_similarity(a, b, dim=0), x)[0]


@dataclass(frozen=True)
class Row:
    """A network's largest relative errors of a slope, and the way that the engine takes."""

    model: str
    guarded: bool
    loop: float
    stacked: float
    way: str


def measure(name: str, records: Records, trials: int, guarded: bool) -> Row:
    """Measure one network where convolutions are rounded unless the engine's guard keeps them from it."""
    model = build(name).eval()
    pictures, labels = records.images[:trials, None], records.labels[:trials, None]
    guesses = torch.rand(pictures.shape, generator=torch.Generator().manual_seed(0))
    with (precision.exact if guarded else unguarded)(), Tf32():
        each = [mean_gradient(model, F.cross_entropy, x, y) for x, y in zip(pictures, labels, strict=True)]
        shared = tuple(torch.stack(column) for column in zip(*each, strict=True))
        job = Trials(model, F.cross_entropy, guesses, labels, shared, engine.cosine, torch.arange(trials))
        slopes = {way: engine.WAYS[way](job)[1] for way in ("loop", "stacked")}
        taken = engine.match(model, F.cross_entropy, guesses, labels, shared, engine.cosine)[1]
    rows = [tuple(s[t] for s in shared) for t in range(trials)]
    exact = [exactly(model, x, y, own) for x, y, own in zip(guesses, labels, rows, strict=True)]
    errors = {
        way: max(float((own - true).norm() / true.norm()) for own, true in zip(found, exact, strict=True))
        for way, found in slopes.items()
    }
    way = min(slopes, key=lambda way: float((slopes[way] - taken).norm()))
    return Row(name, guarded, errors["loop"], errors["stacked"], way)


def main() -> None:
    """Print one line per network and flag as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated")
    parser.add_argument("--trials", type=int, default=4)
    options = parser.parse_args()
    if not DATA.is_dir():
        print(f"skipped: {DATA} is not there (real CIFAR-10 pictures)")
        return
    torch.set_num_threads(1)
    records = load("test")
    print(f"{'model':<16}{'convolutions':<14}{'loop':>9}{'stacked':>9}  way taken")
    for name in options.models.split(","):
        for guarded in (False, True):
            row = measure(name, records, options.trials, guarded)
            kind = "float32" if guarded else "rounded"
            print(f"{row.model:<16}{kind:<14}{row.loop:>9.1e}{row.stacked:>9.1e}  {row.way}", flush=True)


if __name__ == "__main__":
    main()
