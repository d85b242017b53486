"""Quality of inverted gradients against CPU time, at published settings and at ours, on real CIFAR-10 test pictures.

    python -m benchmarks.quality [--models lenet,cnn6,…] [--json FILE] [--plot FILE.svg] [--baseline FILE] [--quick]

PSNR, SSIM and identification among 100 candidates of the same class, medians and shares over 16 records, one record
per update, eval mode, labels inferred on both sides. CPU seconds are per victim, on one thread.

The published settings (`benchmarks.published`) run one victim after another and are scored along the way: the long run
and shorter ones with a complete schedule each. Of all of these, and of a grey picture, the best at any time counts.
Ours is the product's own attack, all victims as one stack, every length its own run with settings tuned for it on
records of `cifar10_train_b` through the same network; the longest run that the time allows counts, whatever it scored.
On the trained networks ours is `learned-start`, which learns from as many of those records as it is given; its seconds
hold the learning. There no picture of the published settings is better than grey, and identification is what is judged.
The records tuned on are those whose updates are about as large as the victims', which an attacker sees.

Every finished run is written to FILE at once; `--baseline` takes published rows from an earlier FILE instead of
measuring them again. It needs `../shared` beside the repository.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks import published
from benchmarks.curves import claims, draw, report
from benchmarks.inversion import DATA, load, shared
from benchmarks.networks import NETWORKS, TRAINED, build, trained
from leakaudit.attacks._labels import known_labels
from leakaudit.attacks.inverting_gradients import InvertingGradients
from leakaudit.attacks.learned_start import LearnedStart
from leakaudit.protocol.attack import Attack
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.score.identification import CandidateSets, candidate_sets, identify
from leakaudit.score.metrics import psnr, ssim
from leakaudit.score.tuning import tune
from leakaudit.work.progress import Monitor, Work, current, monitored
from leakaudit.work.seeding import generator_for

MODELS = ("lenet", "cnn6", "convnet16", "resnet20")  # the last one trained, the others not
PAIRS = 9000  # auxiliary records that the attack on trained networks learns from
FIRST, VICTIMS, CANDIDATES = 100, 16, 100  # the victims are test pictures 100 to 115
REHEARSALS, POOL = 4, 256  # records tuned on, of so many auxiliary ones
SHORTER = (10, 40)  # the published settings also run with a tenth and a fortieth of the iterations
LENGTHS = (15, 30, 60, 120, 240, 480)
Variant = Literal["published", "ours", "grey"]


@dataclass(frozen=True)
class Row:
    """All victims of one model at one moment of one run; seconds are CPU seconds per victim."""

    model: str
    variant: Variant
    picture: str  # `last` or `best` by objective
    length: int  # of the run, in iterations
    iteration: int  # of this moment
    seconds: float
    tuning_seconds: float  # CPU seconds, once per model and length, for any number of victims
    psnr: float
    ssim: float
    identified: float
    candidates: int
    labels: float  # share of labels inferred rightly
    psnr_each: list[float]
    ssim_each: list[float]
    settings: dict[str, Any]
    first: int = FIRST  # of the test pictures that are the victims


@dataclass(frozen=True)
class Scene:
    """One model and its victims, with what scores them."""

    name: str
    model: PixelModel
    victims: Records
    line_up: CandidateSets
    seed: int
    first: int = FIRST

    def row(  # noqa: PLR0913 - a row of the table
        self,
        variant: Variant,
        picture: str,
        guess: Tensor,
        labels: Tensor,
        *,
        length: int,
        iteration: int,
        seconds: float,
        tuning_seconds: float = 0.0,
        settings: dict[str, Any],
    ) -> Row:
        """Score pictures (V, C, H, W) and labels (V,)."""
        scores, structure = psnr(self.victims.images, guess), ssim(self.victims.images, guess)
        return Row(
            model=self.name,
            variant=variant,
            picture=picture,
            length=length,
            iteration=iteration,
            seconds=seconds,
            tuning_seconds=tuning_seconds,
            psnr=statistics.median(scores.tolist()),
            ssim=statistics.median(structure.tolist()),
            identified=float(identify(self.line_up, guess)[1].float().mean()),
            candidates=self.line_up.size,
            labels=float((labels == self.victims.labels).float().mean()),
            psnr_each=[round(v, 3) for v in scores.tolist()],
            ssim_each=[round(v, 4) for v in structure.tolist()],
            settings=settings,
            first=self.first,
        )


def scene(name: str, test: Records, victims: int, seed: int, first: int = FIRST) -> Scene:
    """Return the model of this name with its victims among the test records."""
    model = trained(name) if name in TRAINED else build(name, seed).eval()
    index = torch.arange(first, first + victims)
    line_up = candidate_sets(test, index, test[:0], CANDIDATES, generator_for(seed, name, "candidates"))
    return Scene(name, model, test[index], line_up, seed, first)


def checkpoints(length: int) -> list[int]:
    """Return iterations about a fifth of an octave apart from 10 on, and the last ones before each decay."""
    steps = {round(10 * 2 ** (i / 3)) for i in range(60)}
    return sorted({k for k in steps if k < length} | {length * e // 8 for e in (3, 5, 7, 8)})


def grey(scene: Scene) -> Row:
    """Score what nobody needs an update for: one grey for every pixel."""
    flat, nothing = torch.full_like(scene.victims.images, 0.5), torch.full_like(scene.victims.labels, -1)
    return scene.row(
        "grey",
        "last",
        flat,
        nothing,
        length=0,
        iteration=0,
        seconds=0.0,
        settings={"labels": "not guessed"},
    )


def baseline(scene: Scene, length: int) -> list[Row]:
    """Run the published settings for `length` iterations on one victim after another, and score them along the way."""
    update = shared(scene.model, scene.victims, scene.seed, "victims")
    labels = known_labels(scene.model, update, generator_for(scene.seed, scene.name, "labels"))
    runs = []
    for v in range(update.victims):

        def shown(iteration: int, victim: int = v) -> None:
            work = Work(f"{scene.name}, published, {length} iterations")
            current().show(work, victim * length + iteration, update.victims * length)

        runs.append(
            published.invert(
                scene.model,
                update.loss,
                tuple(g[v] for g in update.gradients),
                labels[v],
                update.input_shape,
                generator_for(scene.seed, scene.name, "published", v),
                iterations=length,
                checkpoints=checkpoints(length),
                report=shown,
            )
        )
    rows = []
    for moments in zip(*runs, strict=True):
        for picture in ("last", "best"):
            rows.append(
                scene.row(
                    "published",
                    picture,
                    torch.stack([m.last if picture == "last" else m.best for m in moments]),
                    labels[:, 0],
                    length=length,
                    iteration=moments[0].iteration,
                    seconds=statistics.mean(m.seconds for m in moments),
                    settings={"tv": published.TV, "step_size": published.STEP_SIZE},
                )
            )
    return rows


def alike(scene: Scene, update: SharedUpdate, auxiliary: Records, count: int) -> Records:
    """Return auxiliary records whose updates are about as large as the victims': one near each of `count` quantiles.

    On a trained network most members' updates are next to nothing, and what is best for those is best for nobody else.
    """
    pool = auxiliary[:POOL]
    sizes = size(shared(scene.model, pool, scene.seed, "own"))
    wanted = torch.quantile(size(update), (torch.arange(count) + 0.5) / count)
    picked: list[int] = []
    for value in wanted:
        order = (sizes - value).abs().argsort().tolist()
        picked.append(next(i for i in order if i not in picked))
    return pool[picked]


def size(update: SharedUpdate) -> Tensor:
    """Return log ‖g‖ of every victim (V,)."""
    return torch.stack([g.flatten(1).square().sum(1) for g in update.gradients]).sum(0).clamp_min(1e-30).log() / 2


def ours(scene: Scene, auxiliary: Records, length: int, rehearsals: int) -> Row:
    """Tune the product's attack for runs of `length` steps on auxiliary records, and run it once on all victims."""
    update = shared(scene.model, scene.victims, scene.seed, "victims")
    began = time.process_time()
    attack: Attack
    if scene.name in TRAINED:
        attack = LearnedStart(steps=length, pairs=PAIRS)
        update, tuned = replace(update, auxiliary=auxiliary), {}
    else:
        own = alike(scene, update, auxiliary, rehearsals)
        attack, tuned = tune(
            InvertingGradients(steps=length),
            scene.model,
            shared(scene.model, own, scene.seed, "own"),
            own,
            generator_for(scene.seed, scene.name, "tune"),
        )
    between = time.process_time()
    found = attack(scene.model, update, generator_for(scene.seed, scene.name, "attack"))
    ended = time.process_time()
    if found.images is None or found.labels is None:
        raise SystemExit(f"{scene.name}: the attack gave nothing: {found.reason}")
    return scene.row(
        "ours",
        "last",
        found.images[:, 0],
        found.labels[:, 0],
        length=length,
        iteration=int(asdict(attack)["steps"]),
        seconds=(ended - between) / len(scene.victims),
        tuning_seconds=between - began,
        settings=tuned,
    )


def ticker(every: float = 10.0) -> Monitor:
    """Return a monitor that prints a line every so many seconds: a live bar's thread would cost CPU time."""
    shown = time.monotonic()

    def show(work: Work, done: int, total: int) -> None:
        nonlocal shown
        if total and time.monotonic() - shown >= every:
            shown = time.monotonic()
            print(f"    … {work}: {done} of {total}", flush=True)

    return Monitor(show=show)


def line(row: Row) -> str:
    """Return one row of the table."""
    chosen = (
        {k: v for k, v in row.settings.items() if k in ("tv", "step_size", "fall")} if row.variant == "ours" else {}
    )
    return (
        f"{row.model:<12}{row.variant:<11}{row.length:>6}{row.iteration:>7}{row.seconds:>10.3f}{row.tuning_seconds:>10.1f}"
        f"{row.psnr:>8.2f}{row.ssim:>7.3f}{row.identified:>8.0%}{row.labels:>8.0%}  "
        + " ".join(f"{k}={v:g}" for k, v in chosen.items())
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark: a line per finished run, then the claims of each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", help=f"comma-separated, of {', '.join(TRAINED)} (trained), {', '.join(NETWORKS)}")
    parser.add_argument("--victims", type=int, default=VICTIMS, help="test pictures")
    parser.add_argument("--first", type=int, default=FIRST, help="the first of them (--baseline: its own)")
    parser.add_argument("--iterations", type=int, default=published.ITERATIONS, help="of the published settings")
    parser.add_argument("--lengths", help=f"steps of our runs, comma-separated; default {','.join(map(str, LENGTHS))}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows, after every run")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw the curves")
    parser.add_argument("--baseline", type=Path, metavar="FILE", help="take the published rows from an earlier --json")
    parser.add_argument("--only-baseline", action="store_true", help="measure the published settings alone")
    parser.add_argument("--quick", action="store_true", help="cnn6, 4 victims, 400 iterations: under two minutes")
    options = parser.parse_args(arguments)
    names = (options.models or ("cnn6" if options.quick else ",".join(MODELS))).split(",")
    if unknown := sorted(set(names) - set(NETWORKS) - set(TRAINED)):
        parser.error(f"unknown model {unknown[0]!r}: choose of {', '.join([*TRAINED, *NETWORKS])}")
    if not DATA.is_dir():
        print(f"skipped: the CIFAR-10 pictures are not at {DATA}")
        return
    torch.set_num_threads(1)
    victims, iterations, rehearsals = options.victims, options.iterations, REHEARSALS
    try:
        lengths = [int(v) for v in options.lengths.split(",")] if options.lengths else list(LENGTHS)
    except ValueError:
        parser.error(f"--lengths takes numbers of steps like 30,120, not {options.lengths!r}")
    if options.quick:
        victims, iterations, rehearsals, lengths = 4, 400, 2, [30, 120]
    try:
        stored = json.loads(options.baseline.read_text(encoding="utf-8")) if options.baseline else []
    except (OSError, ValueError) as error:
        parser.error(f"--baseline {options.baseline}: {error}")
    test, auxiliary = load("test"), load("train_b")
    rows: list[dict[str, Any]] = []

    def keep(found: Sequence[Row | dict[str, Any]], shown: Row | None = None) -> None:
        rows.extend(row if isinstance(row, dict) else asdict(row) for row in found)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        if shown:
            print(line(shown), flush=True)

    print("model       variant    length    at   CPU s/v  tuning s    PSNR   SSIM   found  labels  chosen")
    for name in names:
        if name in TRAINED and not TRAINED[name][1].is_file():
            print(f"{name}: skipped, its weights are not at {TRAINED[name][1]}")
            continue
        earlier = [r for r in stored if r["model"] == name and r["variant"] == "published"]
        if any(len(r["psnr_each"]) != victims for r in earlier):
            parser.error(f"{options.baseline} has not {victims} victims of {name}: --victims")
        first = int(earlier[0]["first"]) if earlier else options.first
        now = scene(name, test, victims, options.seed, first)
        with monitored(ticker()):
            keep([flat := grey(now)], flat)
            keep(earlier)
            for length in [] if earlier else [*(max(10, iterations // part) for part in SHORTER), iterations]:
                found = baseline(now, length)
                keep(found, found[-2])
            for length in [] if options.only_baseline else lengths:
                keep([row := ours(now, auxiliary, length, rehearsals)], row)
        if options.plot:
            draw(rows, options.plot)
    print()
    for name in names:
        if judged := claims(rows, name):
            print(report(judged))
    if options.quick:
        print("A quick run shows how it works and judges nothing: too few victims, and both sides cut short.")


if __name__ == "__main__":
    main()
