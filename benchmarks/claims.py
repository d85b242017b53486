"""How often "claimed and measured" cries wolf on correct runs, and what it catches of wrong ones.

    python -m benchmarks.claims [--quick] [--runs N] [--json FILE]

Updates of real training on the pictures of scikit-image, defended and then captured; a run is an alarm where any of its
rows is `broken`. Correct: 50 runs of DP-SGD, and 50 of what Flower's LocalDpMod does with the sensitivity that is its
clipping norm, over networks, batch sizes, settings and clients (one gradient, an epoch, steps with momentum). Wrong:
known mistakes, ten runs each, and what nobody can see in an update, which is told as well.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from skimage.data import lfw_subset
from torch import Tensor, nn
from torch.nn import functional as F

from leakaudit.captured.claims import measure_claims
from leakaudit.captured.form import CapturedUpdate, Claims
from leakaudit.protocol.accounting import classical_std
from leakaudit.protocol.client import sent
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.federation import Client, parse_client
from leakaudit.protocol.gradients import parameters_of
from leakaudit.protocol.registry import parse_defense
from leakaudit.protocol.target import PixelModel
from leakaudit.result.claims import ClaimRow
from leakaudit.stats.intervals import rate

CLIENTS = ("fedsgd", "fedavg:epochs=1:batch=4:lr=0.05", "fedavg:steps=4:batch=8:lr=0.02:momentum=0.9")
LOCAL_DP = {"name": "LocalDpMod", "clipping_norm": 1.0, "sensitivity": 1.0, "epsilon": 1.0, "delta": 1e-5}


def network(kind: str) -> nn.Module:
    if kind == "dense":
        return nn.Sequential(nn.Flatten(), nn.Linear(625, 32), nn.ReLU(), nn.Linear(32, 2))
    layers = [nn.Conv2d(1, 8, 5, stride=2, padding=2), nn.LeakyReLU(), nn.Conv2d(8, 16, 5, stride=2, padding=2)]
    return nn.Sequential(*layers, nn.LeakyReLU(), nn.Flatten(), nn.Linear(16 * 7 * 7, 2))


@dataclass(frozen=True)
class Setting:
    """One run: who trains what on how many records, under which real defense, and what is claimed of it."""

    defense: str  # what really acts
    claims: Claims
    kind: str = "cnn"
    trained: bool = False
    seed: int = 0
    spoil: Callable[[Tensor], Tensor] | None = None  # what else becomes of w₀ − w_E, flat, before it is captured


def captured(run: Setting, client: Client) -> tuple[CapturedUpdate, nn.Module]:
    """Train, defend and capture, as a client of a federation would."""
    torch.manual_seed(run.seed)
    own = network(run.kind)
    model = PixelModel(own)
    pictures, labels = torch.from_numpy(lfw_subset()).float().unsqueeze(1), torch.arange(200) // 100
    generator = torch.Generator().manual_seed(run.seed)
    if run.trained:
        optimiser = torch.optim.SGD(own.parameters(), lr=0.05, momentum=0.9)
        for _ in range(30):
            rows = torch.randperm(200, generator=generator)[:20]
            optimiser.zero_grad()
            F.cross_entropy(model(pictures[rows]), labels[rows]).backward()
            optimiser.step()
    records = run.claims.records or 1
    rows = torch.randperm(200, generator=generator)[:records]
    defense = parse_defense(run.defense) if run.defense else Defense()
    gradient, _ = sent(model, F.cross_entropy, pictures[rows], labels[rows], defense, "eval", generator, client)
    flat = torch.cat([g.flatten() for g in gradient]) * client.moved(records)
    flat = run.spoil(flat) if run.spoil else flat
    names, parameters = parameters_of(model)
    parts = torch.split(flat, [p.numel() for p in parameters])
    before = {name.removeprefix("network."): p.detach().clone() for name, p in zip(names, parameters, strict=True)}
    lost = {name: part.view(before[name].shape) for name, part in zip(before, parts, strict=True)}
    if not client.local:
        return CapturedUpdate(before, (lost,), "gradient", run.claims), own
    after = {name: before[name] - lost[name] for name in before}  # in float32, as weights are sent
    return CapturedUpdate(before, (after,), "after", run.claims), own


def rows_of(run: Setting) -> tuple[ClaimRow, ...]:
    """Measure the claims of one run."""
    said = run.claims
    client = Client(local_steps=said.local_steps or 0, local_epochs=said.local_epochs or 0,
                    batch_size=(said.batch_size or 0) if said.local_steps or said.local_epochs else 0,
                    local_lr=said.local_lr or 0.01, momentum=said.momentum or 0.0)  # fmt: skip
    update, own = captured(run, client)
    claimed = parse_defense(said.defense) if said.defense else None
    return measure_claims(update, own, defense=claimed)


def told(spec: str, records: int, **said: object) -> Claims:
    """Return the claims of a client's spec."""
    client = parse_client(spec)
    own = {"local_steps": client.local_steps or None, "local_epochs": client.local_epochs or None}
    own |= {"batch_size": client.batch_size or None, "local_lr": client.local_lr, "momentum": client.momentum}
    return Claims(records=records, **own, **said)  # type: ignore[arg-type]


def scenes() -> Iterator[tuple[int, str, str, bool, int]]:
    """Yield seeds with a client, a network, whether it is trained, and a number of records, all of them mixed."""
    mixed = itertools.cycle(itertools.product(CLIENTS, ("cnn", "dense"), (False, True), (1, 4, 8, 16)))
    for seed, (spec, kind, trained, records) in enumerate(mixed):
        yield 100_000 + seed * 7, spec, kind, trained, records


def correct(count: int) -> Iterator[tuple[str, Setting]]:
    """Yield runs that are what they claim."""
    dp = itertools.cycle(itertools.product((0.5, 1.0, 2.0), (0.5, 1.0, 4.0)))
    for (seed, spec, kind, trained, records), (sigma, clip) in itertools.islice(zip(scenes(), dp, strict=False), count):
        defense = f"dp-sgd:noise_multiplier={sigma}:max_norm={clip}"
        claims = told(spec, records, defense=defense)
        yield "dp-sgd", Setting(defense, claims, kind, trained, seed)
    local = itertools.cycle(itertools.product((0.01, 0.1, 1.0), (0.25, 1.0, 8.0), (1.0, 2.0)))
    for (seed, spec, kind, trained, records), (clip, eps, times) in itertools.islice(
        zip(scenes(), local, strict=False), count
    ):
        claim = {**LOCAL_DP, "clipping_norm": clip, "sensitivity": times * clip, "epsilon": eps}
        acts = acting(claim)
        yield "LocalDpMod", Setting(acts, told(spec, records, settings=(claim,)), kind, trained, seed + 1)


def acting(claim: dict[str, object]) -> str:
    """Return what Flower's LocalDpMod does, as a spec of ours."""
    clip, sensitivity, eps, delta = (float(str(claim[k])) for k in ("clipping_norm", "sensitivity", "epsilon", "delta"))
    return f"clip:max_norm={clip!r},gaussian:std={classical_std(sensitivity, eps, delta)!r}"


def percentile(flat: Tensor) -> Tensor:
    """Do what NVFlare's PercentilePrivacy does by default: drop the smallest tenth, truncate at 0.01."""
    cutoff = float(np.percentile(flat.abs().numpy(), 10))
    return torch.where(flat.abs() < cutoff, 0.0, flat).clamp(-0.01, 0.01)


def wrong(count: int) -> Iterator[tuple[str, Setting]]:
    """Yield runs that are not what they claim, by what is wrong."""
    for seed, spec, kind, trained, records in itertools.islice(scenes(), count):
        base = Setting("", told(spec, records), kind, trained, seed + 3)

        def of(acts: str, settings: dict[str, object] | None = None, spoil: object = None, claim: str | None = None,
               base: Setting = base) -> Setting:  # fmt: skip
            claims = replace(base.claims, settings=(settings,) if settings else (), defense=claim)  # type: ignore[arg-type]
            return replace(base, defense=acts, claims=claims, spoil=spoil)  # type: ignore[arg-type]

        small = {**LOCAL_DP, "sensitivity": 1e-4, "epsilon": 10.0}
        yield "LocalDpMod: sensitivity 1e-4 beside clip 1, ε = 10", of(acting(small), small)
        yield "LocalDpMod claimed, no noise", of("clip:max_norm=1", LOCAL_DP)
        yield "LocalDpMod claimed, half of the noise", of(acting({**LOCAL_DP, "epsilon": 2.0}), LOCAL_DP)
        tight = {**LOCAL_DP, "clipping_norm": 1e-3, "sensitivity": 1e-3, "epsilon": 8.0}
        yield "LocalDpMod claimed, nothing clipped", of(acting({**tight, "clipping_norm": 1e3}), tight)
        yield "PercentilePrivacy", of("", {"name": "PercentilePrivacy", "percentile": 10, "gamma": 0.01}, percentile)
        yield "PercentilePrivacy under a claim of LocalDpMod", of("", LOCAL_DP, percentile)
        claim = "dp-sgd:noise_multiplier=1:max_norm=1"
        yield "dp-sgd claimed, no noise", of("dp-sgd:noise_multiplier=0:max_norm=1", claim=claim)
        yield "dp-sgd claimed, half of the noise", of("dp-sgd:noise_multiplier=0.5:max_norm=1", claim=claim)
        yield "dp-sgd claimed, clipped at 2 (not to be seen)", of("dp-sgd:noise_multiplier=0.5:max_norm=2", claim=claim)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="ten correct runs of either kind, three wrong ones each")
    parser.add_argument("--runs", type=int, metavar="N", help="so many correct runs of either kind instead of 50")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    torch.set_num_threads(1)
    alarms: Counter[str] = Counter()
    runs: Counter[str] = Counter()
    held: Counter[str] = Counter()
    for name, run in itertools.chain(
        correct(given.runs or (10 if given.quick else 50)), wrong(3 if given.quick else 10)
    ):
        rows = rows_of(run)
        runs[name] += 1
        alarms[name] += any(row.verdict == "broken" for row in rows)
        held[name] += any(row.what == "noise" and row.verdict == "holds" for row in rows)
    print(f"{'':58} {'runs':>5} {'alarms':>7} {'95 % interval':>17} {'noise holds':>12}")
    for name, n in runs.items():
        found = rate(alarms[name], n)
        low, high = found.low or 0.0, found.high if found.high is not None else math.nan
        print(f"{name:58} {n:5} {alarms[name]:7} {low:8.1%} – {high:6.1%} {held[name]:12}")
    if given.json:
        told_all = {name: {"runs": n, "alarms": alarms[name], "noise holds": held[name]} for name, n in runs.items()}
        given.json.write_text(json.dumps(told_all, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
