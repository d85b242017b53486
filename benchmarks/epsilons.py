"""What an ε costs: accuracy after training on the generator of that ε, beside DP-SGD on the model itself.

    python -m benchmarks.epsilons [--quick] [--json FILE] [--epsilons 2 8 32] [--datasets cifar10 mnist]
                                  [--defenses none obscure dp-sgd] [--validation] [--unbounded]

2,000 private records, the networks, augmentation and lengths of training of `benchmarks.obscure`, 3 seeds of training,
Student's intervals. DP-SGD gets for each ε the noise that its accountant finds for its steps; which batch, clip and
length it trains with was chosen with `--validation`, on training records that nothing else sees, as everything was.
`--unbounded` adds `obscure` without an ε, whose fit takes minutes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from benchmarks.frontier import SETTINGS, TARGETS, Size, client_side, effective
from leakaudit.files.writing import write_atomically
from leakaudit.protocol.accounting import epsilon as spent
from leakaudit.protocol.client import release
from leakaudit.protocol.registry import parse_defense
from leakaudit.protocol.target import Target
from leakaudit.result.numbers import number
from leakaudit.score.utility import Senders, steps_per_epoch, utility
from leakaudit.work.seeding import generator_for

DELTA = 1e-5
DATASETS = ("cifar10", "mnist")
DEFENSES = ("none", "obscure", "dp-sgd")
HEADER = ("data", "ε", "defense", "epochs × batch", "accuracy, %", "CPU seconds, fit + training")


@dataclass(frozen=True)
class Training:
    """How DP-SGD trains: records in a batch, passes over the records, and the norm that gradients are clipped to."""

    batch: int
    epochs: int
    clip: float


# In the order in which validation tries them; the first of a data set is what the table has.
TRAININGS: dict[str, tuple[Training, ...]] = {
    "cifar10": (Training(256, 24, 1.0), Training(32, 24, 1.0), Training(256, 8, 1.0)),
    "mnist": (Training(256, 24, 1.0), Training(32, 8, 1.0), Training(256, 8, 1.0)),
}


@dataclass(frozen=True)
class Row:
    """One defense at one ε: accuracies by seed with their interval, and CPU seconds of the fit and of all training."""

    dataset: str
    defense: str
    epsilon: float | None
    spec: str
    batch: int
    epochs: int
    accuracies: tuple[float, ...]
    low: float | None
    high: float | None
    fit_seconds: float
    train_seconds: float

    @property
    def mean(self) -> float:
        """Return the mean accuracy over the seeds."""
        return sum(self.accuracies) / len(self.accuracies)


def noise_for(epsilon: float, batch: int, records: int, steps: int) -> float:
    """Return the least σ, to a thousandth, at which `steps` of DP-SGD spend at most `epsilon` at `DELTA`."""
    low, high = 0, 100_000  # thousandths
    while high - low > 1:
        middle = (low + high) // 2
        enough = spent(middle / 1000, min(1.0, batch / records), steps, DELTA)[0] <= epsilon
        low, high = (low, middle) if enough else (middle, high)
    return high / 1000


def measured(target: Target, defense: str, spec: str, size: Size, training: Training, epsilon: float | None) -> Row:
    """Fit, train `size.seeds` times and return the row."""
    began = time.process_time()
    fitted = parse_defense(spec).fit(client_side(target, "private-only"), generator_for(0, spec, "fit"))
    fit = time.process_time() - began
    released = release(fitted, target.private, generator_for(0, spec, "released"))
    senders = Senders(training.batch)
    found = utility(target, fitted, released, senders=senders, epochs=training.epochs, seeds=size.seeds, seed=0)
    return Row(
        dataset=target.name,
        defense=defense,
        epsilon=epsilon,
        spec=spec,
        batch=training.batch,
        epochs=training.epochs,
        accuracies=tuple(found.accuracies),
        low=found.estimate.low,
        high=found.estimate.high,
        fit_seconds=fit,
        train_seconds=time.process_time() - began - fit,
    )


def rows(given: argparse.Namespace, size: Size) -> Iterator[Row]:
    """Yield the rows of every data set: undefended, then for each ε the generator and DP-SGD."""
    for name in given.datasets:
        target = TARGETS[name](size, 0)
        usual = Training(32, size.epochs[name], 1.0)
        settings = SETTINGS.get(name, {})
        if "none" in given.defenses:
            yield measured(target, "none", "none", size, usual, None)
        if given.unbounded:
            yield measured(target, "obscure", effective("obscure", settings, size.settings), size, usual, None)
        for epsilon in given.epsilons:
            spec = effective(f"obscure:epsilon={epsilon:g}", settings)
            if "obscure" in given.defenses:
                yield measured(target, "obscure", spec, size, usual, epsilon)
            trainings = TRAININGS[name][: None if given.validation else 1] if "dp-sgd" in given.defenses else ()
            for training in trainings:
                steps = training.epochs * steps_per_epoch(len(target.private), training.batch)
                noise = noise_for(epsilon, training.batch, len(target.private), steps)
                spec = f"dp-sgd:noise_multiplier={noise}:max_norm={training.clip}"
                yield measured(target, "dp-sgd", spec, size, training, epsilon)


def told(row: Row) -> str:
    """Return a row of the table in Markdown."""
    share = number(100 * row.mean, 1)
    if row.low is not None and row.high is not None:
        share += f" ({number(100 * row.low, 1)}–{number(100 * row.high, 1)})"
    epsilon = "∞" if row.epsilon is None else f"{row.epsilon:g}"
    trained = f"{row.epochs} × {row.batch}"
    times = f"{number(row.fit_seconds, 0)} + {number(row.train_seconds / len(row.accuracies), 0)}"
    return f"| {row.dataset} | {epsilon} | `{row.spec}` | {trained} | {share} | {times} |"


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="500 records, 3 epochs, one seed, validation records")
    parser.add_argument("--validation", action="store_true", help="one seed on records for choosing; all of DP-SGD's")
    parser.add_argument("--unbounded", action="store_true", help="also the generator without an ε")
    parser.add_argument("--epsilons", type=float, nargs="*", default=[2.0, 8.0, 32.0])
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--defenses", nargs="+", choices=DEFENSES, default=list(DEFENSES))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured there too")
    given = parser.parse_args()
    torch.set_num_threads(1)
    size = Size(name="epsilons", validation=given.quick or given.validation)
    if given.validation or given.quick:
        size = replace(size, seeds=1)
    if given.quick:
        size = replace(size, private=500, test=1000, epochs=dict.fromkeys(DATASETS, 3))
    print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}")
    found = []
    for row in rows(given, size):
        found.append(row)
        print(told(row), flush=True)
        if given.json:
            write_atomically(given.json, json.dumps([asdict(each) for each in found], indent=1))


if __name__ == "__main__":
    main()
