"""Obscured against undefended training where networks are good: all of CIFAR-10 that there is, a larger network.

    python -m benchmarks.larger [--records 20000] [--network wide|resnet18-cifar] [--epochs 15] [--seeds 1]
                                [--device cpu] [--validation] [--json FILE]

Both rows are trained alike: crops and mirror images, the server's Adam, batches of 64. The private records are of
`train_a`, then `train_b`; accuracy is measured on test pictures from the 4,000th on, or with `--validation` on the last
2,000 of `train_b`. `--network wide` is a ConvNet with BatchNorm of six layers; `resnet18-cifar` wants a GPU.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.inversion import DATA, load
from benchmarks.networks import CIFAR_MEAN, CIFAR_STD, resnet18_cifar
from benchmarks.obscure import log, ticker
from leakaudit.protocol.client import release
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.registry import parse_defense
from leakaudit.protocol.target import PixelModel, Records, Target
from leakaudit.score.utility import Senders, utility
from leakaudit.work.precision import exact
from leakaudit.work.progress import monitored
from leakaudit.work.seeding import derive, generator_for

HELD = 2000  # records of train_b that are never private


def wide(classes: int = 10) -> nn.Module:
    """Return six 3×3 convolutions with BatchNorm, in pairs of 32, 64 and 128 channels, pooled after each pair."""
    layers: list[nn.Module] = []
    before = 3
    for after in (32, 64, 128):
        for _ in range(2):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            before = after
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 16, classes))


NETWORKS: dict[str, Callable[[], nn.Module]] = {"wide": wide, "resnet18-cifar": resnet18_cifar}


def target_of(records: int, network: str, device: str, seed: int, *, validation: bool) -> Target:
    """Return CIFAR-10 with so many private records, at most 18,000 with `validation` and 20,000 else."""
    parts = load("train_a"), load("train_b")
    both = Records(*(torch.cat([getattr(p, name) for p in parts]) for name in ("images", "labels")))
    test = both[-HELD:] if validation else load("test")[4000:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "model"))
        model = PixelModel(NETWORKS[network](), CIFAR_MEAN, CIFAR_STD).to(device)
    private = both[: min(records, len(both) - (HELD if validation else 0))]
    names = tuple(map(str, range(10)))
    return Target("cifar10", model, F.cross_entropy, private, test, both[:0], classes=names, augment=("crop", "mirror"))


@exact()
def main(arguments: Sequence[str] | None = None) -> None:
    """Train undefended and obscured, and print accuracy and seconds of CPU time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--network", choices=list(NETWORKS), default="wide")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=1, help="training runs of each row; under 3 have no interval")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--validation", action="store_true", help="accuracy on held-out training records")
    parser.add_argument("--defenses", nargs="+", default=["none", "obscure"], metavar="SPEC")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    if not DATA.exists():
        print(f"skipped: the pictures are not at {DATA}")
        return
    torch.set_num_threads(1)
    target = target_of(options.records, options.network, options.device, options.seed, validation=options.validation)
    rows = []
    with monitored(ticker()):
        for spec in options.defenses:
            began = time.process_time()
            defense: Defense = parse_defense(spec).fit(target, generator_for(options.seed, spec, "fit"))
            fitted = time.process_time() - began
            released = release(defense, target.private, generator_for(options.seed, spec, "release"))
            found = utility(
                target,
                defense,
                released,
                senders=Senders(64),
                epochs=options.epochs,
                seeds=options.seeds,
                seed=options.seed,
            )
            row = {
                "defense": spec,
                "records": len(target.private),
                "network": options.network,
                "epochs": options.epochs,
                "accuracies": list(found.accuracies),
                "fit_seconds": fitted,
                "seconds": time.process_time() - began,
                "device": str(target.device),
            }
            rows.append(row)
            log(json.dumps(row))
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1))
    for row in rows:
        accuracies = ", ".join(f"{100 * a:.1f}" for a in row["accuracies"])
        print(
            f"{row['defense']:12s} {accuracies} % after {row['epochs']} epochs of {row['records']} records, "
            f"fit {row['fit_seconds']:.0f} s, {row['seconds']:.0f} s in all"
        )


if __name__ == "__main__":
    main()
