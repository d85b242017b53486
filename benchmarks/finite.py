"""How right the difference quotient along the cotangent is: its slope's relative error, ‖fast − exact‖ / ‖exact‖.

    python -m benchmarks.finite [--models lenet,cnn6,…] [--mode eval] [--quick]

The picture is random, or the true one plus noise of standard deviation 0.01 or 0.001; the shared gradient is whole, or
pruned to its largest tenth per tensor. `float32` is the third call's error against the exact slope in float32, `wide`
against the exact one in float64, `exact` what the exact slope in float32 is off by itself; `float64` the error when all
is float64; `step` ε‖c‖/‖θ‖. It needs `../shared/data` beside the repository for real pictures.
"""

from __future__ import annotations

import argparse
import copy

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.engine import MODELS
from benchmarks.inversion import DATA, load
from benchmarks.networks import build
from leakaudit import engine
from leakaudit.client import Mode, in_mode, mean_gradient
from leakaudit.defense import Gradients
from leakaudit.distances import Distance
from leakaudit.finite import Scratch, finite_difference
from leakaudit.target import PixelModel

STAGES = {"random": None, "near": 0.01, "nearer": 0.001}


def relative(fast: Tensor, exact: Tensor) -> float:
    """Return ‖fast − exact‖ / ‖exact‖."""
    return float((fast - exact).norm() / exact.norm())


def pruned(gradient: Gradients) -> Gradients:
    """Return the gradient with the largest tenth of each tensor kept."""
    return tuple(
        torch.where(g.abs() >= g.abs().flatten().kthvalue(-(-9 * g.numel() // 10)).values, g, 0) for g in gradient
    )


def exact_slope(model: PixelModel, x: Tensor, y: Tensor, shared: Gradients, distance: Distance) -> Tensor:
    """Return the slope by a plain double backward."""
    x = x.clone().requires_grad_(True)
    return engine.match_one(model, F.cross_entropy(model(x), y), (x,), shared, distance)[1][0]


def errors(
    model: PixelModel, x: Tensor, y: Tensor, shared: Gradients, distance: Distance
) -> tuple[float, float, float, float, float]:
    """Return the five columns of one row for a model, picture and update in float32."""
    twin, wide = copy.deepcopy(model).double(), tuple(g.double() for g in shared)
    truth = exact_slope(twin, x.double(), y, wide, distance)
    exact = exact_slope(model, x, y, shared, distance)
    scratch, scratch64 = Scratch(), Scratch()
    for _ in range(3):
        fast = finite_difference(model, F.cross_entropy, x, y, shared, distance, scratch)[1]
        fast64 = finite_difference(twin, F.cross_entropy, x.double(), y, wide, distance, scratch64)[1]
    return (
        relative(fast, exact),
        relative(fast, truth),
        relative(exact, truth),
        relative(fast64, truth),
        scratch.step or 0.0,
    )


def report(name: str, mode: Mode, pictures: Tensor, labels: Tensor) -> None:
    """Print the rows of one network, for one record (1, C, H, W)."""
    model, generator = build(name), torch.Generator().manual_seed(1)
    with in_mode(model, mode):
        whole = mean_gradient(model, F.cross_entropy, pictures, labels)
        for stage, deviation in STAGES.items():
            x = torch.rand(pictures.shape, generator=generator)
            if deviation is not None:
                x = (pictures + deviation * torch.randn(pictures.shape, generator=generator)).clamp(0, 1)
            for shape, shared in (("whole", whole), ("pruned", pruned(whole))):
                for label, distance in (("cosine", engine.cosine), ("squared", engine.squared)):
                    row = "".join(f"{e:>9.0e}" for e in errors(model, x, labels, shared, distance))
                    print(f"{name:<15}{mode:<6}{stage:<8}{shape:<8}{label:<9}{row}", flush=True)


def main() -> None:
    """Print the table, one network after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", help=f"comma-separated; default {','.join(MODELS)}")
    parser.add_argument("--mode", choices=("train", "eval"), default="eval")
    parser.add_argument("--quick", action="store_true", help="the three small networks: a few seconds")
    options = parser.parse_args()
    if not DATA.is_dir():
        print(f"skipped: {DATA} is not there (real CIFAR-10 pictures)")
        return
    torch.set_num_threads(1)
    records = load("test")
    print(f"{'model':<15}{'mode':<6}{'picture':<8}{'update':<8}{'distance':<9}", end="")
    print("".join(f"{c:>9}" for c in ("float32", "wide", "exact", "float64", "step")))
    for name in options.models.split(",") if options.models else MODELS[:3] if options.quick else MODELS:
        report(name, options.mode, records.images[:1], records.labels[:1])


if __name__ == "__main__":
    main()
