"""What `benchmarks.obscure` measures: data sets, defenses and their strengths, and everything on one of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.adversaries import Count, Effort, Opponents, Outcome, above_guessing
from benchmarks.distinct import distances
from benchmarks.federated import SPLITS, Client, clients_of, fedavg, pooled
from benchmarks.inversion import DATA, load
from benchmarks.membership import by_weights
from benchmarks.networks import CIFAR_MEAN, CIFAR_STD
from benchmarks.rows import Kind, Row, Setting, estimate, highest_by_chance, summed
from leakaudit.errors import UserError
from leakaudit.protocol.defense import Defense, replaces_records
from leakaudit.protocol.registry import defenses, parse_defense, settings_of
from leakaudit.protocol.target import PixelModel, Records, Target
from leakaudit.result.batteries import TRAINING_BATCH
from leakaudit.score.metrics import Metric
from leakaudit.score.utility import Senders, accuracy, train, utility
from leakaudit.stats import intervals
from leakaudit.work.seeding import derive, generator_for

MNIST = DATA.parent / "mnist" / "mnist_10k_10k.npz"
PUBLIC_ONLY = "public-only"
# The defenses and their strengths, with the setting each belongs to. What is not registered is skipped with a line.
SWEEP: tuple[tuple[Setting, str], ...] = (
    ("private-only", "none"),
    ("private-only", "class-conditional"),
    ("private-only", "obscure"),
    ("private-only", "dp-sgd:noise_multiplier=1"),
    ("public-data", PUBLIC_ONLY),
    ("public-data", "obscure:public=true"),
    ("private-only", "gaussian:std=0.1"),
    ("private-only", "prune:sparsity=0.99"),
    ("private-only", "sign"),
    ("private-only", "mixup:k=4"),
    ("private-only", "instahide:k=4"),
    ("private-only", "soteria:percentile=90"),
    ("private-only", "precode"),
    ("private-only", "ats"),
    ("private-only", "laplace:scale=0.1"),
    ("private-only", "qsgd:levels=16"),
    ("private-only", "gaussian:std=1"),
    ("private-only", "dp-sgd:noise_multiplier=0.1"),
    ("private-only", "prune:sparsity=0.999"),
    ("private-only", "obscure:rate=1.6"),
    ("private-only", "clip:max_norm=1"),
    ("private-only", "laplace:scale=1"),
    ("private-only", "qsgd:levels=1"),
    ("private-only", "mixup:k=2"),
    ("private-only", "instahide:k=2"),
    ("private-only", "soteria:percentile=50"),
)
QUICK = ("none", "class-conditional", "obscure", "dp-sgd:noise_multiplier=1", "prune:sparsity=0.99", PUBLIC_ONLY)
FEDERATED = ("none", "class-conditional", "obscure", "dp-sgd:noise_multiplier=1", "obscure:public=true")


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a run is."""

    name: str
    private: int = 2000
    auxiliary: int = 2000
    test: int = 4000
    epochs: int = 12
    rounds: int = 12
    seeds: int = 3
    distances: int = 300
    effort: Effort = field(default_factory=Effort)
    settings: dict[str, str] = field(default_factory=dict)  # of every defense that has them
    federated: dict[str, str] = field(default_factory=dict)  # the same where every client fits its own
    clients: tuple[str, ...] = FEDERATED  # the defenses that FedAvg is run with


FULL = Size(name="full")
SMALL = Size(
    name="quick",
    private=250,
    auxiliary=250,
    test=500,
    epochs=6,
    rounds=2,
    distances=45,
    effort=Effort(
        released=Count(30, 15),
        linked=Count(10, 5),
        inverted=Count(2, 1),
        pooled=Count(6, 3),
        views=4,
        candidates=20,
        steps=10,
        tuned=1,
        decoder_steps=30,
        draws=1,
    ),
    settings={"steps": "10", "epochs": "20", "latent": "64"},
    clients=("none", "dp-sgd:noise_multiplier=1"),
)


@dataclass(frozen=True)
class Scene:
    """One data set in one size; `settings` are what its pictures need of every defense that has them."""

    name: str
    target: Target
    size: Size
    seed: int
    lpips: Metric | str
    run: dict[str, Any]
    settings: dict[str, str] = field(default_factory=dict)


def network(channels: int, side: int, classes: int) -> nn.Module:
    """Return a small ConvNet whose normalisation does not mix examples, so that DP-SGD can train it."""
    layers: list[nn.Module] = []
    for before, after in ((channels, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(8, after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * (side // 8) ** 2, classes))


def cifar10(size: Size, seed: int) -> Target:
    """Return CIFAR-10: private records of `train_a`, the attacker's of `train_b`."""
    sets = load("train_a")[: size.private], load("test")[: size.test], load("train_b")[: size.auxiliary]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "model"))
        model = PixelModel(network(3, 32, 10), CIFAR_MEAN, CIFAR_STD)
    return Target("cifar10", model, F.cross_entropy, *sets, classes=tuple(map(str, range(10))))


def mnist(size: Size, seed: int) -> Target:
    """Return MNIST: private and the attacker's records are disjoint halves of the training pictures, shuffled."""
    with np.load(MNIST) as file:
        whole = {part: (file[f"x_{part}"], file[f"y_{part}"]) for part in ("train", "test")}
    sets = {}
    for part, (x, y) in whole.items():
        order = torch.randperm(len(y), generator=generator_for(seed, "mnist", part))
        records = Records(torch.from_numpy(x).float()[:, None] / 255, torch.from_numpy(y).long())
        sets[part] = records[order]
    own = sets["train"][size.private : size.private + size.auxiliary]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "model"))
        model = PixelModel(network(1, 28, 10), (0.1307,), (0.3081,))
    roles = sets["train"][: size.private], sets["test"][: size.test], own
    return Target("mnist", model, F.cross_entropy, *roles, classes=tuple(map(str, range(10))))


def lfw(size: Size, seed: int) -> Target:
    """Return the faces of the demo: 110 private, 40 test and 50 auxiliary pictures in any size of run."""
    from leakaudit.cli.demo import demo_target

    return demo_target(seed)


TARGETS: dict[str, Callable[[Size, int], Target]] = {"cifar10": cifar10, "mnist": mnist, "lfw": lfw}
FILES = {"cifar10": DATA, "mnist": MNIST}
SETTINGS = {"mnist": {"mirror": "false"}}  # a mirrored digit is none


def sized(name: str, size: Size) -> Size:
    """Return the size for one data set: the 200 pictures of LFW need more passes, and cost next to nothing."""
    return replace(size, epochs=4 * size.epochs, rounds=2 * size.rounds) if name == "lfw" else size


def effective(spec: str, *wanted: dict[str, str]) -> str:
    """Return a spec with further settings where a defense has them and the spec leaves them open."""
    parts = []
    for part in spec.split(","):
        name, *given = part.strip().split(":")
        has = settings_of(defenses()[name]) if name in defenses() else {}
        said = {pair.partition("=")[0].replace("-", "_") for pair in given}
        merged = {k: v for settings in wanted for k, v in settings.items() if k in has and k not in said}
        parts.append(":".join([name, *given, *(f"{k}={v}" for k, v in merged.items())]))
    return ",".join(parts)


def unknown(spec: str) -> str | None:
    """Return why a spec cannot be run, None where it can."""
    if spec == PUBLIC_ONLY:
        return None
    try:
        parse_defense(spec)
    except UserError as error:
        return str(error)
    return None


def client_side(target: Target, setting: Setting) -> Target:
    """Return what a client fits its defense on: its own records alone, or public ones beside them; never test records.

    The public records are the attacker's auxiliary ones, all of them.
    """
    public = target.auxiliary if setting == "public-data" else target.auxiliary[:0]
    return replace(target, auxiliary=public, test=target.test[:0])


def measure(scene: Scene, setting: Setting, spec: str) -> Iterator[Row]:
    """Yield every row of one defense at one strength, the summaries last."""
    name, _, strength = spec.partition(":")
    full = effective(spec, scene.settings, scene.size.settings)
    start = Row(
        dataset=scene.name,
        setting=setting,
        defense=name,
        strength=strength or "default",
        spec=spec,
        kind="failed",
        seeds=scene.size.seeds,
        run=scene.run,
    )
    if spec == PUBLIC_ONLY:
        yield public_only(scene, start)
        return
    try:
        yield from _measured(scene, setting, replace(start, spec=spec), full)
    except UserError as error:
        yield replace(start, status="failed", reason=str(error))


def public_only(scene: Scene, start: Row) -> Row:
    """Train on public records with their labels: no private record enters, so nothing of one is there to attack."""
    public = replace(scene.target, private=scene.target.auxiliary)
    row = replace(start, kind="control", reason="no private record enters")
    return _with_accuracy(scene, row, public, Defense(), public.private)


def _measured(scene: Scene, setting: Setting, start: Row, full: str) -> Iterator[Row]:
    target, size = scene.target, scene.size
    began = time.process_time()
    defense = parse_defense(full).fit(client_side(target, setting), generator_for(scene.seed, full, "fit"))
    start = replace(start, fit_seconds=time.process_time() - began)
    opponents = Opponents(target, full, defense, size.effort, scene.seed)
    released = opponents.whole
    start = _with_accuracy(scene, start, target, defense, released)
    if replaces_records(defense):
        generator = generator_for(scene.seed, "another")
        found = distances(target, released, size.distances, scene.lpips, generator)
        yield replace(start, kind="distinct", distinct=found)
    rows: list[Row] = []
    for attack, role in opponents.attacks():
        for outcome in opponents.run(attack, role):
            rows.append(_attack_row(start, opponents, outcome))
            yield rows[-1]
    yield from _weights(scene, start, defense, released)
    if start.spec in size.clients:
        for split in SPLITS:
            yield from _federated(scene, setting, start, split)
    yield from _summaries(rows, start)


def _with_accuracy(scene: Scene, row: Row, target: Target, defense: Defense, released: Records) -> Row:
    size = scene.size
    batch = _batch(released)
    found = utility(
        target, defense, released, senders=Senders(batch), epochs=size.epochs, seeds=size.seeds, seed=scene.seed
    )  # fmt: skip
    facts = defense.facts(len(released), batch, found.steps)
    accuracies = list(found.accuracies)
    return replace(row, accuracies=accuracies, facts=facts, **estimate("accuracy", found.estimate))


def _attack_row(start: Row, opponents: Opponents, outcome: Outcome) -> Row:
    found, own = outcome.private, outcome.own
    kind: Kind = "labels" if found.kind == "labels" else "attack"
    ended = set(found.statuses)
    return replace(
        start,
        kind=kind,
        attack=found.name,
        role=found.role,
        views=outcome.views,
        chance=opponents.private_line_up.chance,
        records=found.identification.n or found.label_accuracy.n,
        r2=found.r2.value,
        psnr=found.psnr.value,
        label_accuracy=found.label_accuracy.value,
        rehearsed=None if own is None else own.identification.low,
        rehearsed_rank=None if own is None else above_guessing(own),
        status="measured" if ended <= {"converged", "budget"} else ", ".join(sorted(ended)),
        reason=found.reason,
        seconds=outcome.seconds,
        **estimate("identification", found.identification),
    )


def _weights(scene: Scene, start: Row, defense: Defense, released: Records) -> Iterator[Row]:
    """Yield what is remembered: by a defense that replaces records, and by a model trained on what it releases."""
    if not (replaces_records(defense) or start.spec == "none"):
        return
    target, size, began = scene.target, scene.size, time.process_time()
    model = defense.transform_model(target.fresh(derive(scene.seed, "student")), generator_for(scene.seed, "student"))
    seed, batch = derive(scene.seed, "student", "order"), _batch(released)
    train(model, released, target.loss, epochs=size.epochs, batch_size=batch, seed=seed, label="a model to ask")
    victims, candidates = size.effort.released.victims, size.effort.candidates
    for known in by_weights(target, defense, released, model, victims, candidates, scene.seed):
        yield replace(
            start,
            kind="weights",
            attack=f"weights: {known.by}",
            auc=known.auc,
            records=known.records,
            chance=known.chance,
            seconds=time.process_time() - began,
            **estimate("identification", known.identification),
        )


def _batch(records: Records) -> int:
    return min(TRAINING_BATCH, max(8, len(records) // 8))


def _federated(scene: Scene, setting: Setting, start: Row, split: str) -> Iterator[Row]:
    """Yield accuracy after FedAvg with each client's own defense, fitted once, and where all pool what they fitted."""
    began = time.process_time()
    spec = effective(start.spec, scene.settings, scene.size.federated)
    start = replace(start, kind="federated", split=split, facts={}, accuracies=[])
    try:
        clients = clients_of(client_side(scene.target, setting), spec, split, 5, scene.seed)
        together = pooled(clients, scene.seed)
    except Exception as error:  # a generator may not fit a client of one class: a row says so
        yield _without_accuracy(start, error)
        return
    for name, each in ((split, clients), (f"{split}, pooled", together)):
        if each is not None:
            yield _averaged(scene, replace(start, split=name), each, began)


def _without_accuracy(row: Row, error: Exception) -> Row:
    reason = f"{type(error).__name__}: {error}"[:300]
    row = replace(row, accuracy=None, accuracy_low=None, accuracy_high=None)
    return replace(row, status="failed", reason=reason)


def _averaged(scene: Scene, row: Row, clients: list[Client], began: float) -> Row:
    """Return the row with the accuracy of FedAvg, repeated under every seed."""
    size = scene.size
    try:
        batch = min(TRAINING_BATCH, max(4, min(len(c.records) for c in clients) // 4))
        seeds = [derive(scene.seed, "fedavg", k) for k in range(size.seeds)]
        models = [fedavg(scene.target, clients, rounds=size.rounds, batch_size=batch, seed=seed) for seed in seeds]
        found = [accuracy(model, scene.target.test) for model in models]
    except Exception as error:  # the training may fail
        return _without_accuracy(row, error)
    return replace(
        row,
        accuracies=found,
        seconds=time.process_time() - began,
        **estimate("accuracy", intervals.mean(found, within=(0.0, 1.0))),
    )


def _summaries(rows: list[Row], start: Row) -> Iterator[Row]:
    best = summed(rows)
    if best is None:
        yield replace(start, kind="failed", status="failed", reason="no attack was scored")
        return
    scored = [row for row in rows if row.kind == "attack" and row.identification is not None]
    limit = highest_by_chance([row.records for row in scored], best[0].chance or 0.0)
    yield replace(best[0], kind="worst", attacks=len(scored), by_chance=limit)
    yield replace(best[1], kind="selected", attacks=len(scored), by_chance=None)


def run_settings(size: Size, seed: int) -> dict[str, Any]:
    """Return what rows of one file have in common, as JSON gives it back."""
    return {"size": size.name, "seed": seed, "seeds": size.seeds, **dict(_flat(asdict(size)))}


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif f"{prefix}{key}" not in ("name", "clients"):
            yield f"{prefix}{key}", value
