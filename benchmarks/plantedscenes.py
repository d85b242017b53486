"""Pictures, small networks and plans for `benchmarks.verdicts`: all drawn here, so that it runs in any clone.

A picture is grey, 16×16, of one of ten classes: a smooth form that its class shares, a smooth field, a disc and a bar
of its own, and a little texture. No two are alike, and 100 and more are of one class, so that a line-up is full.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakaudit.protocol.target import PixelModel, Records, Target

SIZE, CLASSES = 16, 10
PIXELS = SIZE * SIZE


@dataclass(frozen=True)
class Place:
    """Where set-ups are audited together: the target, and what of the plan is not a scan's default."""

    target: Callable[[], Target]
    plan: Mapping[str, Any] = field(default_factory=dict)
    person: Callable[[Target], Tensor] | None = None  # (N,) of whom each private record is


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth(shape: tuple[int, int, int], coarse: int, generator: torch.Generator) -> Tensor:
    """Return fields (N, 1, H, W) about 0 that change over H / coarse pixels."""
    n, h, w = shape
    grid = torch.randn(n, 1, coarse, coarse, generator=generator)
    return F.interpolate(grid, (h, w), mode="bicubic", align_corners=True)


@cache
def forms() -> Tensor:
    """Return the smooth forms (K, 1, H, W) of the classes."""
    return smooth((CLASSES, SIZE, SIZE), 4, seeded(1))


def rounded(pictures: Tensor) -> Tensor:
    """Return pictures as 8 bits hold them."""
    return (pictures.clamp(0, 1) * 255).round() / 255


def pictures(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Return one picture (N, 1, H, W) in [0, 1] for each label."""
    n = len(labels)
    at = torch.arange(SIZE) - SIZE / 2 + 0.5
    y, x = at.view(1, SIZE, 1), at.view(1, 1, SIZE)
    u = torch.rand(6, n, 1, 1, generator=generator)
    disc = ((y - 10 * (u[0] - 0.5)) ** 2 + (x - 10 * (u[1] - 0.5)) ** 2 < (1.5 + 3 * u[2]) ** 2).float()
    turn = torch.pi * u[3]
    bar = ((turn.cos() * y + turn.sin() * x - 8 * (u[4] - 0.5)).abs() < 0.8 + u[5]).float()
    shade = 0.35 * torch.randn(2, n, 1, 1, generator=generator)
    own = 0.13 * smooth((n, SIZE, SIZE), 5, generator)[:, 0] + shade[0] * disc + shade[1] * bar
    texture = 0.02 * torch.randn(n, SIZE, SIZE, generator=generator)
    return rounded(0.5 + 0.12 * forms()[labels] + (own + texture)[:, None])


def records(count: int, seed: int) -> Records:
    """Return `count` records, as many of each class."""
    labels = torch.arange(count) % CLASSES
    return Records(pictures(labels, seeded(seed)), labels)


def target_of(network: nn.Module, private: Records, test: Records, auxiliary: Records) -> Target:
    names = tuple(str(c) for c in range(CLASSES))
    return Target("planted", PixelModel(network), F.cross_entropy, private, test, auxiliary, names)


def made(build: Callable[[], nn.Module]) -> Target:
    """Return the usual records and a network that is drawn the same way every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build()
    return target_of(network, records(1200, 2), records(300, 3), records(1000, 4))


def dense(hidden: int = 32) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, hidden), nn.ReLU(), nn.Linear(hidden, CLASSES))


def convolutional(width: int = 8, norm: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for into in (1, width):
        layers += [nn.Conv2d(into, width, 5, stride=2, padding=2)]
        layers += [nn.BatchNorm2d(width)] if norm else []
        layers += [nn.LeakyReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * PIXELS // 16, CLASSES))


def sparse() -> nn.Sequential:
    """Return a wide dense net whose units each fire on 3 % of public pictures: a common sight in trained ones."""
    network = dense(1024)
    first = network[1]
    with torch.no_grad():
        public = records(500, 5).images.flatten(1) @ first.weight.T
        first.bias.copy_(-public.quantile(0.97, dim=0))
    return network


def trained() -> nn.Sequential:
    """Return the dense net after some training on public records: its gradients are small and much alike."""
    network, public = dense(), records(2000, 6)
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(60):
        optimiser.zero_grad()
        F.cross_entropy(network(public.images), public.labels).backward()
        optimiser.step()
    return network


SHOTS = 10  # of each person in `bursts`


def bursts() -> Target:
    """Return near-identical shots: 12 persons of each class and 10 shots of each, others for test and auxiliary."""

    def shots(people: Records, count: int, seed: int) -> Records:
        x, y = people.images.repeat_interleave(count, 0), people.labels.repeat_interleave(count)
        g = seeded(seed)
        light = 1 + 0.02 * torch.randn(len(x), 1, 1, 1, generator=g)
        return Records(rounded(x * light + 0.02 * torch.randn(x.shape, generator=g)), y)

    private = shots(records(120, 7), SHOTS, 8)
    return target_of(made(dense).model.network, private, shots(records(120, 9), 3, 10), shots(records(200, 11), 3, 12))


def filled_forms() -> Target:
    """Return records that are their class's public form but for small marks; the adversary owns pictures of a kind."""

    def filled(count: int, seed: int) -> Records:
        labels = torch.arange(count) % CLASSES
        marks = 0.04 * torch.randn(count, 1, SIZE, SIZE, generator=seeded(seed))
        return Records(rounded(blank()[labels] + marks), labels)

    return target_of(made(dense).model.network, filled(1200, 13), filled(300, 14), records(600, 15))


def blank() -> Tensor:
    """Return the public form (K, 1, H, W) of each class in `filled_forms`."""
    grid = torch.rand(CLASSES, 1, 8, 8, generator=seeded(16)).round()
    return 0.05 + 0.9 * F.interpolate(grid, (SIZE, SIZE), mode="nearest")


PLACES: dict[str, Place] = {
    "dense": Place(lambda: made(dense)),
    "trained": Place(lambda: made(trained)),
    "conv": Place(lambda: made(convolutional)),
    "many": Place(lambda: made(dense), {"records": 64}),
    "pairs": Place(lambda: made(dense), {"records": 32, "batch_size": 2}),
    "norm": Place(lambda: made(lambda: convolutional(width=4, norm=True)), {"mode": "train"}),
    "sparse-8": Place(lambda: made(sparse), {"records": 32, "batch_size": 8}),
    "sparse-16": Place(lambda: made(sparse), {"records": 64, "batch_size": 16}),
    "bursts": Place(bursts, {}, lambda target: torch.arange(len(target.private)) // SHOTS),
    "forms": Place(filled_forms),
}
