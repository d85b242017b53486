"""How well gradients invert: untrained networks, real CIFAR-10 test pictures, one record per update, labels inferred.

    python -m benchmarks.inversion [--models dense,cnn6,convnet,resnet18] [--records 16] [--steps 240] [--json FILE]

The prior's weight and the run's length are tuned on records of `cifar10_train_b` through the same network; the reported
records and the candidates they are told apart from are test pictures. It needs `../shared/data` beside the repository.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.networks import build
from leakaudit.attacks.analytic import Analytic
from leakaudit.attacks.inverting_gradients import InvertingGradients
from leakaudit.protocol.attack import Attack
from leakaudit.protocol.client import SharedUpdate, share
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.exposure import Exposure
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.score.identification import candidate_sets, identify
from leakaudit.score.metrics import psnr, ssim
from leakaudit.score.tuning import tune
from leakaudit.work.seeding import generator_for

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "cifar10"
CANDIDATES = 100
TARGETS = {"dense": 100.0, "cnn6": 20.0, "convnet": 15.0, "resnet18": 16.0}  # median PSNR in dB
IDENTIFIED = 0.9


@dataclass(frozen=True)
class Row:
    """One network: medians and shares over the records."""

    model: str
    attack: str
    records: int
    identified: float
    candidates: int
    psnr: float
    psnr_quartiles: tuple[float, float]
    ssim: float
    labels: float
    statuses: dict[str, int]
    settings: dict[str, float | int]
    tuned: dict[str, str | int | float | bool | None]
    tuning_seconds: float
    attack_seconds: float
    reached: bool


def load(part: str) -> Records:
    """Return `test` or `train_b` as records in [0, 1], in the file's shuffled order."""
    kind = part.split("_")[0]
    with np.load(DATA / f"cifar10_{part}.npz") as file:
        images, labels = file[f"x_{kind}"], file[f"y_{kind}"]
    return Records(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(labels).long())


def shared(model: PixelModel, records: Records, seed: int, who: str) -> SharedUpdate:
    """Return the undefended updates of one-record clients in eval mode; nothing but the update is exposed."""
    generator = generator_for(seed, "inversion", who)
    return share(
        model,
        F.cross_entropy,
        records,
        Defense(),
        Exposure(),
        batch_size=1,
        classes=10,
        mode="eval",
        generator=generator,
    )


def measure(
    name: str, test: Records, auxiliary: Records, *, records: int, rehearsals: int, steps: int, seed: int
) -> Row:
    """Tune on auxiliary records, attack test records once, and score."""
    model = build(name, seed)
    attack: Attack = Analytic() if name == "dense" else InvertingGradients(steps=steps)
    began = time.perf_counter()
    own = auxiliary[:rehearsals]
    attack, tuned = tune(attack, model, shared(model, own, seed, "own"), own, generator_for(seed, name, "tune"))
    between = time.perf_counter()
    victims = test[:records]
    found = attack(model, shared(model, victims, seed, "victims"), generator_for(seed, name, "attack"))
    ended = time.perf_counter()
    if found.images is None or found.labels is None:
        raise SystemExit(f"{name}: the attack gave nothing: {found.reason}")
    guess = found.images[:, 0]
    line_up = candidate_sets(test, torch.arange(records), test[:0], CANDIDATES, generator_for(seed, name, "candidates"))
    scores = psnr(victims.images, guess).tolist()
    low, _, high = statistics.quantiles(scores, n=4) if records > 1 else (scores[0],) * 3
    identified = float(identify(line_up, guess)[1].float().mean())
    median = statistics.median(scores)
    return Row(
        model=name,
        attack=attack.name,
        records=records,
        identified=identified,
        candidates=line_up.size,
        psnr=median,
        psnr_quartiles=(low, high),
        ssim=float(ssim(victims.images, guess).median()),
        labels=float((found.labels[:, 0] == victims.labels).float().mean()),
        statuses={status: found.statuses.count(status) for status in sorted(set(found.statuses))},
        settings={k: v for k, v in asdict(attack).items() if isinstance(v, int | float)},
        tuned=tuned,
        tuning_seconds=between - began,
        attack_seconds=ended - between,
        reached=median >= TARGETS[name] and identified >= IDENTIFIED,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", default="dense,cnn6,convnet,resnet18", help="comma-separated, of " + ", ".join(TARGETS)
    )
    parser.add_argument("--records", type=int, default=16, help="test records attacked per network")
    parser.add_argument("--rehearsals", type=int, default=2, help="auxiliary records tuned on")
    parser.add_argument("--steps", type=int, default=240, help="most iterations per record")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args(arguments)
    names = options.models.split(",")
    if unknown := sorted(set(names) - set(TARGETS)):
        parser.error(f"unknown model {unknown[0]!r}: choose of {', '.join(TARGETS)}")
    if not DATA.is_dir():
        print(f"skipped: the CIFAR-10 pictures are not at {DATA}")
        return
    torch.set_num_threads(1)
    test, auxiliary = load("test"), load("train_b")
    print("model     PSNR dB (quartiles)   SSIM  identified of M  labels  tv      steps  tuning s  attack s  target")
    rows = []
    for name in names:
        row = measure(
            name,
            test,
            auxiliary,
            records=options.records,
            rehearsals=options.rehearsals,
            steps=options.steps,
            seed=options.seed,
        )
        rows.append(asdict(row))
        low, high = row.psnr_quartiles
        length, weight = row.settings.get("steps", "-"), row.settings.get("tv", "-")
        print(
            f"{name:9s} {row.psnr:6.2f} ({low:.1f} to {high:.1f})   {row.ssim:.3f}"
            f"  {row.identified:6.1%} of {row.candidates}   {row.labels:6.1%}  {weight!s:6}  {length!s:5}"
            f"  {row.tuning_seconds:8.1f}  {row.attack_seconds:8.1f}  {'reached' if row.reached else 'MISSED'}",
            flush=True,
        )
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
