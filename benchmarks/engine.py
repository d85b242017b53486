"""What a step of the gradient-matching engine costs, as a ratio to one plain double backward in the same process.

    python -m benchmarks.engine [--models lenet,cnn6,…] [--trials 16] [--rounds 7] [--quick] [--json FILE]

The floor is one trial: forward, gradients with `create_graph`, and a vector-Jacobian product to the picture only, with
a fixed cotangent. Ratios are per trial, from CPU time on one thread (on CUDA from events), floor and engine taken in
turn; the median over rounds with the lowest and the highest beside it. One trial is measured by every way there is, a
star marking what the engine takes by itself; restarts of one victim and different victims by what it takes. `peak MB`
are the tensors that a step makes, at their worst.

It needs `../shared/data` beside the repository for real pictures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.inversion import DATA, load
from benchmarks.networks import NETWORKS, build
from leakaudit.engine import matching as engine
from leakaudit.engine.stacked import Trials
from leakaudit.protocol.gradients import mean_gradient, parameters_of
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.work.peak import peak_bytes

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
    peak_mb: float  # tensors alive at once, at most


def floor_step(model: PixelModel, picture: Tensor, label: Tensor, cotangent: Sequence[Tensor]) -> Tensor:
    """Return the picture's gradient of one plain double backward for pictures (B, C, H, W) and labels (B,)."""
    x = picture.detach().requires_grad_(True)
    _, parameters = parameters_of(model)
    found = torch.autograd.grad(F.cross_entropy(model(x), label), parameters, create_graph=True)
    return torch.autograd.grad(found, [x], list(cotangent))[0]


def seconds(step: Callable[[], object], device: torch.device) -> float:
    """Return the time of one call: CPU time, all threads together, or what passed on the CUDA device."""
    if device.type == "cuda":
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        step()
        after.record()
        torch.cuda.synchronize(device)
        return before.elapsed_time(after) / 1e3
    start = time.process_time()
    step()
    return time.process_time() - start


def interleaved(
    floor: Callable[[], object],
    step: Callable[[], object],
    trials: int,
    rounds: int,
    device: torch.device = torch.device("cpu"),  # noqa: B008 - immutable
) -> list[float]:
    """Return the ratio per trial of `step` to `floor` for each round, one right after the other.

    The engine's checks against the loop, at powers of two, are kept out: the rounds lie between the 8th and 16th call.
    """
    floor()
    for _ in range(8):
        step()
    ratios = []
    for _ in range(rounds):
        before = seconds(floor, device)
        own = seconds(step, device)
        after = seconds(floor, device)  # the machine's speed drifts: the floor stands on both sides
        ratios.append(own / trials / ((before + after) / 2))
    return ratios


def way_taken(job: Trials) -> str:
    """Return the way that `engine.match` takes: the one whose slopes are its own, to the last bit on a CPU."""
    slopes = engine.match(job.model, job.loss, job.images, job.labels, job.shared, job.distance, job.rows)[1]
    return min(engine.order(job.model, len(job)), key=lambda name: float((engine.WAYS[name](job)[1] - slopes).norm()))


def measure(
    name: str,
    records: Records,
    trials: int,
    rounds: int,
    device: torch.device = torch.device("cpu"),  # noqa: B008 - immutable
) -> list[Row]:
    """Measure one trial, restarts of one victim (a quarter of `trials`, and all), and as many victims.

    The network is untrained and in eval mode; every victim is one record.
    """
    model = build(name).eval().to(device)
    pictures, labels = records.images[:trials, None].to(device), records.labels[:trials, None].to(device)
    loss = F.cross_entropy
    shared = [mean_gradient(model, loss, x, y) for x, y in zip(pictures, labels, strict=True)]
    stacked = tuple(torch.stack(column) for column in zip(*shared, strict=True))
    guesses = torch.rand(pictures.shape, generator=torch.Generator().manual_seed(0)).to(device)
    same = torch.zeros(trials, dtype=torch.long, device=device)
    own, few = torch.arange(trials, device=device), max(2, trials // 4)
    rows: list[Row] = []

    def add(count: int, victims: int, way: str | None) -> None:
        x, y = guesses[:count], labels[:count] if victims > 1 else labels[:1].expand(count, 1)
        index = own[:count] if victims > 1 else same[:count]
        arguments = (model, loss, x, y, stacked, engine.cosine, index)
        job = Trials(*arguments)

        def step() -> object:
            return engine.match(*arguments) if way is None else engine.WAYS[way](job)

        ratios = interleaved(lambda: floor_step(model, guesses[0], labels[0], shared[0]), step, count, rounds, device)
        spread = (round(min(ratios), 3), round(max(ratios), 3))
        taken = way or way_taken(job)
        peak = peak_bytes(lambda: engine.WAYS[taken](job), device) / 2**20  # without a check
        middle = round(statistics.median(ratios), 3)
        rows.append(Row(name, taken, device.type, 1, count, victims, middle, spread, round(peak, 1)))

    for way in ("loop", "stacked"):
        add(1, 1, way)
    for count, victims in ((few, 1), (trials, 1), (trials, trials)):
        add(count, victims, None)
    return rows


def main() -> None:
    """Run the benchmark and print one line per row as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", help=f"comma-separated; default {','.join(MODELS)}")
    parser.add_argument("--trials", type=int, default=16, help="restarts, and victims")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu or cuda")
    parser.add_argument("--quick", action="store_true", help="four networks, 4 trials, 3 rounds: under a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    options = parser.parse_args()
    names = options.models.split(",") if options.models else list(QUICK if options.quick else MODELS)
    if unknown := sorted(set(names) - set(NETWORKS)):
        parser.error(f"unknown model {unknown[0]!r}: choose of {', '.join(NETWORKS)}")
    if options.trials < 2 or options.rounds < 1:
        parser.error("--trials must be at least 2 and --rounds at least 1")
    if not DATA.is_dir():
        print(f"skipped: {DATA} is not there (real CIFAR-10 pictures)")
        return
    torch.set_num_threads(1)
    trials, rounds = (4, 3) if options.quick else (options.trials, options.rounds)
    records = load("test")
    rows: list[Row] = []
    print(f"{'model':<15}{'way':<12}{'trials':>7}{'victims':>8}{'ratio':>8}  lowest–highest{'peak MB':>9}")
    for name in names:
        for row in measure(name, records, trials, rounds, options.device):
            rows.append(row)
            low, high = row.spread
            usual = row.engine == engine.order(build(name), row.trials)[0]
            way = row.engine + ("*" if usual and row.trials == 1 else "")
            ratio = f"{row.ratio:>8.2f}  {f'{low:.2f}–{high:.2f}':<14}{row.peak_mb:>9.1f}"
            print(f"{row.model:<15}{way:<12}{row.trials:>7}{row.victims:>8}{ratio}", flush=True)
        if options.json:
            options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
