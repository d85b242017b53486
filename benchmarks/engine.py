"""What a step of the gradient-matching engine costs, as a ratio to plain double backwards in the same process.

    python -m benchmarks.engine [--models lenet,…] [--trials 16] [--rounds 7] [--device cuda] [--quick] [--json FILE]

The floor is one trial: forward, gradients with `create_graph`, and a vector-Jacobian product to the picture only, with
a fixed cotangent. Ratios are per trial, from CPU time on one thread (on CUDA from events), floor and engine taken in
turn; the median over rounds with the lowest and the highest beside it. One trial is measured by every way there is, a
star marking what the engine takes by itself; restarts of one victim and different victims by what it takes. Then:

- `ms` and `/s`: a step, and the trials a second that it makes;
- `batch` and `×`: one plain double backward of the same pictures as one batch, in ms, and the step over it: what the
  machine could do if all trials shared one gradient;
- `launches` of a step and of that batch, and `waits`, how often the host waits for the device in a step without a
  check: operations of ATen, counted as in `benchmarks.counting`, the way they are on a device where launches cost;
- `share`: the batch's floating-point operations over the step's seconds and the chip's float32 peak (`chips.PEAKS`);
- `peak MB`: the tensors that a step makes, at their worst.

Everything is computed in exact float32. It needs `../shared/data` beside the repository for real pictures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import counting
from benchmarks.chips import operations, peak
from benchmarks.inversion import DATA, load
from benchmarks.networks import NETWORKS, build
from leakaudit.engine import matching as engine
from leakaudit.engine.layers import Stack
from leakaudit.engine.stacked import Trials
from leakaudit.protocol.gradients import mean_gradient, parameters_of
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.work.peak import peak_bytes
from leakaudit.work.precision import exact

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
    ms: float  # of a step
    batch_ms: float  # of a plain double backward of the same pictures
    rate: float  # trials a second
    launches: int
    batch_launches: int
    waits: int
    share: float | None  # of the chip's peak; None where that is not known


@dataclass(frozen=True)
class Round:
    """Seconds of one trial's floor, of a step, and of a plain double backward of the step's pictures."""

    floor: float
    step: float
    batch: float


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
    batch: Callable[[], object] | None,
    rounds: int,
    device: torch.device = torch.device("cpu"),  # noqa: B008 - immutable
) -> tuple[list[Round], tuple[int, int]]:
    """Return the seconds of each round, one call right after the other, and the launches and waits of a step.

    Without a `batch` it is the floor. The engine's checks against the loop, at powers of two, are kept out: the 7th
    call is counted, and the rounds lie between the 8th and 16th.
    """
    for call in (floor, *[step] * 6, *([] if batch is None else [batch])):
        call()
    asked = counted(step)
    step()
    found = []
    for _ in range(rounds):
        before, own, after = (seconds(call, device) for call in (floor, step, floor))
        middle = (before + after) / 2  # the machine's speed drifts: the floor stands on both sides
        found.append(Round(middle, own, middle if batch is None else seconds(batch, device)))
    return found, asked


def counted(step: Callable[[], object]) -> tuple[int, int]:
    """Return the launches and waits of a step, the way it is on a device where launches cost."""
    with mock.patch.object(Stack, "launches_cost", True):
        launches, waits = counting.count(step)
    return launches.total(), waits.total()


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

    def plain(count: int) -> Tensor:
        return floor_step(model, guesses[:count, 0], labels[:count, 0], shared[0])

    def add(count: int, victims: int, way: str | None) -> None:
        x, y = guesses[:count], labels[:count] if victims > 1 else labels[:1].expand(count, 1)
        index = own[:count] if victims > 1 else same[:count]
        arguments = (model, loss, x, y, stacked, engine.cosine, index)
        job = Trials(*arguments, listed=tuple(index.tolist()))

        def step() -> object:
            return engine.match(*arguments) if way is None else engine.WAYS[way](job)

        whole = partial(plain, count)
        times, asked = interleaved(lambda: plain(1), step, whole if count > 1 else None, rounds, device)
        taken = way or way_taken(job)
        held = peak_bytes(lambda: engine.WAYS[taken](job), device)  # without a check
        batch = counted(whole)[0], operations(whole)
        rows.append(_row((name, taken, device), (count, victims), times, (*asked, held), batch))

    for way in ("loop", "stacked"):
        add(1, 1, way)
    for count, victims in ((few, 1), (trials, 1), (trials, trials)):
        add(count, victims, None)
    return rows


def _row(
    what: tuple[str, str, torch.device],
    sizes: tuple[int, int],
    times: Sequence[Round],
    own: tuple[int, int, int],
    batch: tuple[int, int],
) -> Row:
    """Put a row together: `own` are the step's launches, waits and bytes, `batch` are launches and operations."""
    (name, taken, device), (trials, victims) = what, sizes
    (launches, waits, held), (batch_launches, work) = own, batch
    ratios = [t.step / trials / t.floor for t in times]
    step, most = statistics.median(t.step for t in times), peak(device)
    return Row(
        name,
        taken,
        device.type,
        1,
        trials,
        victims,
        ratio=round(statistics.median(ratios), 3),
        spread=(round(min(ratios), 3), round(max(ratios), 3)),
        peak_mb=round(held / 2**20, 1),
        ms=round(1e3 * step, 3),
        batch_ms=round(1e3 * statistics.median(t.batch for t in times), 3),
        rate=round(trials / step, 1),
        launches=launches,
        batch_launches=batch_launches,
        waits=waits,
        share=None if most is None else round(work / step / most, 4),
    )


HEADS = (("model", -15), ("way", -12), ("trials", 6), ("victims", 8), ("ratio", 7), ("lowest–highest", 15))
MORE = (("ms", 9), ("/s", 8), ("batch", 9), ("×", 6), ("launches", 13), ("waits", 6), ("share", 7), ("peak MB", 8))


def line(row: Row, star: bool) -> str:
    """Return the row as it is printed, under `HEADS` and `MORE`."""
    low, high = row.spread
    values = (row.model, row.engine + "*" * star, row.trials, row.victims, f"{row.ratio:.2f}", f"{low:.2f}–{high:.2f}")
    share = "–" if row.share is None else f"{100 * row.share:.1f} %"
    more = (
        *(f"{row.ms:.2f}", f"{row.rate:.0f}", f"{row.batch_ms:.2f}", f"{row.ms / row.batch_ms:.2f}"),
        *(f"{row.launches}/{row.batch_launches}", row.waits, share, f"{row.peak_mb:.1f}"),
    )
    return _aligned([*values, *more])


def _aligned(values: Sequence[object]) -> str:
    widths = [width for _, width in (*HEADS, *MORE)]
    cells = (str(v).ljust(-w) if w < 0 else str(v).rjust(w) for v, w in zip(values, widths, strict=True))
    return "".join(cells)


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
    print(_aligned([head for head, _ in (*HEADS, *MORE)]))
    for name in names:
        with exact():
            found = measure(name, records, trials, rounds, options.device)
        for row in found:
            rows.append(row)
            print(line(row, row.trials == 1 and row.engine == engine.order(build(name), 1)[0]), flush=True)
        if options.json:
            options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
