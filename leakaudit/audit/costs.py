"""What a machine takes for one unit of each kind of work, on the model at hand, and so what a scan will take."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from leakaudit.engine.distances import cosine
from leakaudit.engine.matching import match
from leakaudit.protocol.amounts import Amount, Sizes
from leakaudit.protocol.client import SharedUpdate, share
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.exposure import preset
from leakaudit.protocol.gradients import Mode, in_mode, parameters_of
from leakaudit.protocol.target import Records, Target
from leakaudit.result.batteries import TRAINING_BATCH
from leakaudit.scene.plan import Plan
from leakaudit.scene.scene import MOST
from leakaudit.work.memory import Memory, bounded
from leakaudit.work.seeding import generator_for, seeded

FAST = 0.01  # seconds of an update, up to which the matching of all victims is measured …
SLOPE = 2.0  # … and else reckoned from it: a slope is a double backward, in stacks somewhat less
LONG = 0.2  # seconds after which a measurement is not repeated
BATCH, WIDTH = 32, 24  # of the small network that stands for ours


@dataclass(frozen=True)
class Costs:
    """Seconds of one of each; the numbers here are those of a small network, where nothing was measured yet."""

    update: float = 0.005
    slope: float = 0.003
    training: float = 0.02
    own: float = 0.03

    def seconds(self, amount: Amount) -> float:
        """Return what so much work takes."""
        return (
            self.update * amount.updates
            + self.slope * amount.slopes
            + self.training * amount.training
            + self.own * amount.own
        )


NOMINAL = Costs()


def measured(target: Target, plan: Plan) -> Costs:
    """Return what one of each takes here: each is done a few times on auxiliary or private records, unscored.

    The network and the random states are left as they are. What cannot be measured (the network breaks: the audit will
    say so) keeps its nominal cost.
    """
    records = target.auxiliary if len(target.auxiliary) >= plan.batch_size else target.private
    with seeded(plan.seed, "costs"), bounded(Memory(plan.memory)):
        try:
            return _measured(target, plan, records)
        except Exception:
            return NOMINAL


def _measured(target: Target, plan: Plan, records: Records) -> Costs:
    size = plan.batch_size
    rows = torch.arange(size * 2) % len(records)
    mode: Mode = "train" if plan.mode == "train" else "eval"
    model = copy.deepcopy(target.model)

    def shared() -> SharedUpdate:
        return share(
            model,
            target.loss,
            records[rows].to(target.device),
            Defense(),
            preset(plan.exposure),
            batch_size=size,
            classes=len(target.classes),
            mode=mode,
            generator=generator_for(plan.seed, "costs"),
            client=plan.sender(),
            task=target.task,
        )

    update = shared()
    per_update = _seconds(shared, target.device) / 2
    trials = plan.victims
    own = torch.arange(trials, device=target.device) % 2
    taught = records[rows].taught.to(target.device)
    labels = taught.reshape(2, size, *taught.shape[1:])[own]
    pictures = torch.full((trials, size, *target.input_shape), 0.5, device=target.device)

    def slopes() -> object:
        return match(model, target.loss, pictures, labels, update.gradients, cosine, rows=own)

    with in_mode(model, mode):
        per_slope = SLOPE * per_update
        if per_update <= FAST:
            for _ in range(2):  # in the first of all calls, and in the second, the engine checks itself
                slopes()
            per_slope = _seconds(slopes, target.device) / trials
        batch = records[torch.arange(TRAINING_BATCH) % len(records)].to(target.device)
        parameters = parameters_of(model)[1]

        def trained() -> object:
            loss = target.loss(model(batch.images), batch.taught)
            return torch.autograd.grad(loss, parameters, allow_unused=True)

        per_step = _seconds(trained, target.device)
    return Costs(per_update, per_slope, per_step, _own(target))


def _own(target: Target) -> float:
    channels = target.input_shape[0]
    network = nn.Sequential(
        nn.Conv2d(channels, WIDTH, 3, padding=1), nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.ReLU()
    ).to(target.device)
    x = torch.full((BATCH, *target.input_shape), 0.5, device=target.device)

    def step() -> object:
        loss = F.mse_loss(network(x).mean(1), x.mean(1))
        return torch.autograd.grad(loss, list(network.parameters()))

    step()
    return _seconds(step, target.device)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return what a piece of work takes: the shortest of three times, as others may be at work on the machine."""
    took: list[float] = []
    while not took or (len(took) < 3 and sum(took) < LONG):
        begun = time.monotonic()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took.append(time.monotonic() - begun)
    return min(took)


def sizes_of(target: Target, plan: Plan) -> Sizes:
    """Return what the amount of work of a scan depends on besides settings, before its scene is set."""
    every = len(target.private) + len(target.test)
    line_up = min(plan.candidates, max(2, every // max(1, len(target.classes))))
    return Sizes(
        victims=plan.victims,
        asked=max(plan.victims, MOST if plan.batch_size == 1 else 0),
        candidates=min(every, line_up * min(len(target.classes), plan.records)),
        line_up=line_up,
        private=len(target.private),
        auxiliary=len(target.auxiliary),
        batch=plan.batch_size,
        local_steps=plan.sender().steps(plan.own) * plan.sender().clients,
    )
