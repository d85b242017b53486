"""What a step of the gradient-matching engine costs, as a ratio to one plain double backward in the same process.

    python -m benchmarks.engine [--models lenet,cnn6,…] [--trials 16] [--rounds 7] [--quick] [--json FILE]

The floor is one trial: forward, gradients with `create_graph`, and a vector-Jacobian product to the picture only, with
a fixed cotangent. Ratios are per trial, from CPU time on one thread, floor and engine taken in turn; the median over
rounds with the lowest and the highest beside it. It needs `../shared/data` beside the repository for real pictures.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.inversion import DATA, load
from benchmarks.networks import build
from leakaudit import engine
from leakaudit.client import mean_gradient, parameters_of
from leakaudit.target import PixelModel, Records

MODELS = ("lenet", "cnn6", "convnet16", "convnet64", "resnet18-cifar", "resnet18")
QUICK = ("lenet", "cnn6", "convnet16", "resnet18")


@dataclass(frozen=True)
class Row:
    """One network under one engine: `ratio` and `spread` (lowest, highest) per trial over the floor."""

    model: str
    engine: str
    device: str
    batch: int
    trials: int
    victims: int
    ratio: float
    spread: tuple[float, float]
    peak_mb: float  # of the process so far, so it never falls


def floor_step(model: PixelModel, picture: Tensor, label: Tensor, cotangent: Sequence[Tensor]) -> Tensor:
    """Return the picture's gradient of one plain double backward for pictures (B, C, H, W) and labels (B,)."""
    x = picture.detach().requires_grad_(True)
    _, parameters = parameters_of(model)
    found = torch.autograd.grad(F.cross_entropy(model(x), label), parameters, create_graph=True)
    return torch.autograd.grad(found, [x], list(cotangent))[0]


def cpu_seconds(step: Callable[[], object]) -> float:
    """Return the CPU time of one call, all threads together."""
    before = time.process_time()
    step()
    return time.process_time() - before


def interleaved(floor: Callable[[], object], step: Callable[[], object], trials: int, rounds: int) -> list[float]:
    """Return the ratio per trial of `step` to `floor` for each round, one right after the other, after one warm-up."""
    floor()
    step()
    ratios = []
    for _ in range(rounds):
        before = cpu_seconds(floor)
        own = cpu_seconds(step)
        after = cpu_seconds(floor)  # the machine's speed drifts: the floor stands on both sides
        ratios.append(own / trials / ((before + after) / 2))
    return ratios


def measure(name: str, records: Records, trials: int, rounds: int) -> list[Row]:
    """Measure one trial, `trials` restarts of one victim, and as many victims, on an untrained network in eval mode."""
    model = build(name).eval()
    pictures, labels = records.images[:trials, None], records.labels[:trials, None]
    shared = [mean_gradient(model, F.cross_entropy, x, y) for x, y in zip(pictures, labels, strict=True)]
    stacked = tuple(torch.stack(column) for column in zip(*shared, strict=True))
    guesses = torch.rand(pictures.shape, generator=torch.Generator().manual_seed(0))
    one = torch.zeros(trials, dtype=torch.long)
    cases = {
        (1, 1): (guesses[:1], labels[:1], one[:1]),
        (trials, 1): (guesses, labels[:1].expand(trials, 1), one),
        (trials, trials): (guesses, labels, torch.arange(trials)),
    }
    rows = []
    for (count, victims), (x, y, index) in cases.items():
        ratios = interleaved(
            lambda: floor_step(model, guesses[0], labels[0], shared[0]),
            lambda x=x, y=y, index=index: engine.match(
                model, F.cross_entropy, x, y, stacked, engine.cosine, rows=index
            ),
            count,
            rounds,
        )
        way = "vectorised" if count > 1 and engine.vectorises(model) else "loop"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        spread = (round(min(ratios), 3), round(max(ratios), 3))
        rows.append(Row(name, way, "cpu", 1, count, victims, round(statistics.median(ratios), 3), spread, round(peak)))
    return rows


def main() -> None:
    """Run the benchmark and print one line per row as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", help=f"comma-separated; default {','.join(MODELS)}")
    parser.add_argument("--trials", type=int, default=16, help="restarts, and victims")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="four networks, 4 trials, 3 rounds: under a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    options = parser.parse_args()
    if not DATA.is_dir():
        print(f"skipped: {DATA} is not there (real CIFAR-10 pictures)")
        return
    torch.set_num_threads(1)
    trials, rounds = (4, 3) if options.quick else (options.trials, options.rounds)
    names = options.models.split(",") if options.models else list(QUICK if options.quick else MODELS)
    records = load("test")
    rows: list[Row] = []
    print(f"{'model':<15}{'engine':<12}{'trials':>7}{'victims':>8}{'ratio':>8}  lowest–highest")
    for name in names:
        for row in measure(name, records, trials, rounds):
            rows.append(row)
            low, high = row.spread
            ratio = f"{row.ratio:>8.2f}  {low:.2f}–{high:.2f}"
            print(f"{row.model:<15}{row.engine:<12}{row.trials:>7}{row.victims:>8}{ratio}", flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
