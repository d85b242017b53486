"""What `benchmarks.obscure` measures: data sets, defenses and their strengths, and how large a run is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.adversaries import Count, Effort
from benchmarks.inversion import DATA, load
from benchmarks.networks import CIFAR_MEAN, CIFAR_STD
from benchmarks.rows import Piece, Setting
from leakaudit.errors import UserError
from leakaudit.protocol.registry import defenses, parse_defense, settings_of
from leakaudit.protocol.target import PixelModel, Records, Target
from leakaudit.work.seeding import derive, generator_for

MNIST = DATA.parent / "mnist" / "mnist_10k_10k.npz"
CLASSES = tuple(map(str, range(10)))
PUBLIC_ONLY = "public-only"
PRIVATE: Setting = "private-only"
PUBLIC: Setting = "public-data"
# The defenses and their strengths in the order in which they are measured, with the setting each belongs to: those that
# the claims are about first. What is not registered is skipped with a line.
SWEEP: tuple[tuple[Setting, str], ...] = (
    (PRIVATE, "none"),
    (PRIVATE, "obscure"),
    (PRIVATE, "class-conditional"),
    (PRIVATE, "dp-sgd:noise_multiplier=1"),
    (PRIVATE, "obscure:epsilon=8"),
    (PRIVATE, "dp-sgd:epsilon=8"),
    (PRIVATE, "prune:sparsity=0.999"),
    (PRIVATE, "gaussian:std=1"),
    (PRIVATE, "obscure:rate=1.6"),
    (PUBLIC, PUBLIC_ONLY),
    (PUBLIC, "obscure:public=true"),
    (PRIVATE, "laplace:scale=1"),
    (PRIVATE, "instahide:k=4"),
    (PRIVATE, "mixup:k=4"),
    (PRIVATE, "ats"),
    (PRIVATE, "soteria:percentile=90"),
    (PRIVATE, "sign"),
    (PRIVATE, "precode"),
    (PRIVATE, "qsgd:levels=1"),
    (PRIVATE, "clip:max_norm=1"),
    (PRIVATE, "gaussian:std=0.1"),
    (PRIVATE, "laplace:scale=0.1"),
    (PRIVATE, "prune:sparsity=0.99"),
    (PRIVATE, "dp-sgd:noise_multiplier=0.1"),
    (PRIVATE, "qsgd:levels=16"),
    (PRIVATE, "mixup:k=2"),
    (PRIVATE, "instahide:k=2"),
    (PRIVATE, "soteria:percentile=50"),
)
# Weaker strengths than the one measured everywhere, of which half of the line-ups or more was found on the faces, there
# alone: further right in the figure there is nothing to learn.
FACES_ONLY = (
    "gaussian:std=0.1",
    "laplace:scale=0.1",
    "prune:sparsity=0.99",
    "dp-sgd:noise_multiplier=0.1",
    "qsgd:levels=16",
    "mixup:k=2",
    "instahide:k=2",
    "soteria:percentile=50",
)
FEDERATED = ("none", "class-conditional", "obscure")
QUICK = ("none", "class-conditional", "obscure", "dp-sgd:noise_multiplier=1", "prune:sparsity=0.999", PUBLIC_ONLY)
# σ at which DP-SGD spends ε = 8 at δ = 1e-5 in a full run there, by the accountant that `facts` asks: 7.95 to 8.00.
NOISE_AT_8 = {"cifar10": "0.725", "mnist": "0.615", "lfw": "1.6"}


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a run is; `epochs` and `rounds` by data set."""

    name: str
    private: int = 2000
    auxiliary: int = 2000
    test: int = 4000
    validation: bool = False  # accuracy on training records that nothing else sees, in the place of test pictures
    epochs: dict[str, int] = field(default_factory=lambda: {"cifar10": 24, "mnist": 8, "lfw": 48})
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
    validation=True,
    epochs={"cifar10": 6, "mnist": 6, "lfw": 24},
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
    clients=("none",),
)


def network(channels: int, side: int, classes: int) -> nn.Module:
    """Return a small ConvNet whose normalisation does not mix examples, so that DP-SGD can train it."""
    layers: list[nn.Module] = []
    for before, after in ((channels, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(8, after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * (side // 8) ** 2, classes))


def cifar10(size: Size, seed: int) -> Target:
    """Return CIFAR-10: private records of `train_a`, the attacker's of `train_b`, test pictures from the 4,000th on."""
    seen = load("train_b")[5000:] if size.validation else load("test")[4000:]
    sets = load("train_a")[: size.private], seen[: size.test], load("train_b")[: size.auxiliary]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "model"))
        model = PixelModel(network(3, 32, 10), CIFAR_MEAN, CIFAR_STD)
    return Target("cifar10", model, F.cross_entropy, *sets, classes=CLASSES, augment=("crop", "mirror"))


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
    seen = sets["train"][5000:] if size.validation else sets["test"]
    roles = sets["train"][: size.private], seen[: size.test], own
    return Target("mnist", model, F.cross_entropy, *roles, classes=CLASSES, augment=("crop",))


def lfw(size: Size, seed: int) -> Target:
    """Return the faces of the demo: 110 private, 40 test and 50 auxiliary pictures in any size of run."""
    from leakaudit.scene.demo import demo_target

    return replace(demo_target(seed), augment=("crop", "mirror"))


TARGETS: dict[str, Callable[[Size, int], Target]] = {"cifar10": cifar10, "mnist": mnist, "lfw": lfw}
FILES = {"cifar10": DATA, "mnist": MNIST}
SETTINGS = {"mnist": {"mirror": "false"}}  # a mirrored digit is none


def pieces(size: Size, quick: bool) -> list[Piece]:
    """Return all that a run measures, the data sets in turn, FedAvg after what it is compared with."""
    found = []
    for setting, spec in SWEEP:
        for dataset in TARGETS:
            if quick and spec not in QUICK:
                continue
            if spec not in FACES_ONLY or dataset == "lfw":
                found.append(Piece(dataset, setting, spec))
            if spec in size.clients and dataset != "lfw":  # 40 test pictures tell nothing of 22 records each
                found.append(Piece(dataset, setting, spec, "fedavg"))
    return found


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


def at_epsilon(spec: str, dataset: str) -> str:
    """Return the spec with σ in the place of ε, where it is DP-SGD's on this data set."""
    return f"dp-sgd:noise_multiplier={NOISE_AT_8[dataset]}" if spec == "dp-sgd:epsilon=8" else spec


def unknown(spec: str) -> str | None:
    """Return why a spec cannot be run, None where it can."""
    if spec == PUBLIC_ONLY:
        return None
    try:
        parse_defense(at_epsilon(spec, "lfw"))
    except UserError as error:
        return str(error)
    return None


def client_side(target: Target, setting: Setting) -> Target:
    """Return what a client fits its defense on: its own records alone, or public ones beside them; never test records.

    The public records are the attacker's auxiliary ones, all of them.
    """
    public = target.auxiliary if setting == "public-data" else target.auxiliary[:0]
    return replace(target, auxiliary=public, test=target.test[:0])


def run_settings(size: Size, seed: int) -> dict[str, Any]:
    """Return what rows of one file have in common, as JSON gives it back."""
    return {"size": size.name, "seed": seed, "seeds": size.seeds, **dict(_flat(asdict(size)))}


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif f"{prefix}{key}" not in ("name", "clients"):
            yield f"{prefix}{key}", value
