"""What work holds at once is announced before it is made, refused in one sentence, and taken off the pieces' limit."""

from __future__ import annotations

import math
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakaudit.attacks._optimise import COPIES, Pace, descend
from leakaudit.attacks._regression import fit_ridge
from leakaudit.attacks._replaying import COPIES as UPDATES
from leakaudit.attacks._replaying import FEATURES, layout_for, most_telling
from leakaudit.engine import matching as engine
from leakaudit.errors import TooLittleMemory
from leakaudit.protocol.client import share
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.exposure import Exposure
from leakaudit.protocol.gradients import bytes_of, parameters_of
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.work.memory import Cost, Memory, bearable, bounded, held, in_pieces, need
from leakaudit.work.peak import peak_bytes

CPU = torch.device("cpu")


class Owner:
    """Something to hold the knowledge of a work, as a model does."""


@pytest.mark.parametrize("size", [10**9 + 1, 10**15, 10**40, float(10**12)])
def test_more_than_the_limit_is_refused_in_one_sentence(size: float) -> None:
    with bounded(Memory(10**9)) as memory, pytest.raises(TooLittleMemory) as caught:
        need(size, "7 restarts of 3 victims", "restarts", CPU)
    assert memory.refusal == str(caught.value)
    assert str(caught.value).startswith("7 restarts of 3 victims take about ")
    assert "--memory allows 1GB: give at least " in str(caught.value)
    assert str(caught.value).endswith(" or fewer restarts")
    with bounded(Memory(10**9)) as memory:
        need(10**9, "all", "of them", CPU)
    assert memory.refusal is None


def test_without_a_limit_what_is_free_bounds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leakaudit.work.memory.free_bytes", lambda device: 5000)
    with (
        bounded(Memory()),
        pytest.raises(TooLittleMemory, match="9 draws take about 6KB and 5KB are free"),
    ):
        need(6000, "9 draws", "draws", CPU)
    with bounded(Memory()), held(5000, "9 draws", "draws", CPU):
        need(5000, "what is free", "of it", CPU)  # it knows of what is held already
    monkeypatch.setattr("leakaudit.work.memory.free_bytes", lambda device: None)
    with bounded(Memory()):
        need(10**30, "who knows", "", CPU)


def test_what_is_held_is_taken_off_the_pieces_while_it_is() -> None:
    def longest() -> int:
        return max(in_pieces(lambda a, b: b - a, 40, owner, "", CPU, lambda: Cost(0, 10)))

    owner = Owner()
    with bounded(Memory(400)) as memory:
        lengths = [longest()]
        with held(100, "a", "of it", CPU):
            lengths.append(longest())
            with held(200, "b", "of it", CPU), pytest.raises(TooLittleMemory, match=r"give at least 0\.401KB"):
                need(100 + 1, "c", "of it", CPU)
            with held(280, "b", "of it", CPU):
                lengths.append(longest())
                with pytest.raises(TooLittleMemory, match="one trial needs about"), held(10, "d", "of it", CPU):
                    longest()
        lengths.append(longest())
        with pytest.raises(KeyError), held(399, "e", "of it", CPU):
            raise KeyError
    assert lengths == [20, 14, 1, 20]
    assert memory.held == 0


def test_what_cannot_be_split_is_measured_where_a_limit_is_set_and_there_alone() -> None:
    calls: list[int] = []

    def call() -> Tensor:
        calls.append(1)
        return torch.zeros(1000, dtype=torch.uint8)

    owner = Owner()
    bearable(call, owner, "", CPU)
    assert calls == []
    with bounded(Memory(2000)):
        for _ in range(3):
            bearable(call, owner, "", CPU)
    assert calls == [1]
    with bounded(Memory(1999)), pytest.raises(TooLittleMemory, match="give at least 2KB"):
        bearable(call, owner, "", CPU)


def wide() -> tuple[PixelModel, tuple[Tensor, ...]]:
    """A model whose last layer a stacked pass never forms the gradient of, and one update of it."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(256, 2000))
    model = PixelModel(network, (0.5,), (0.25,)).eval()
    return model, tuple(torch.randn(1, *p.shape) for p in parameters_of(model)[1])


@cache
def wide_once() -> tuple[PixelModel, tuple[Tensor, ...]]:
    return wide()


def matched(limit: int | None, trials: int = 6) -> tuple[Tensor, Tensor]:
    model, shared = wide_once()
    images = torch.rand(trials, 1, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    labels, rows = torch.zeros(trials, 1, dtype=torch.long), torch.zeros(trials, dtype=torch.long)
    with bounded(Memory(limit)):
        return engine.match(model, F.cross_entropy, images, labels, shared, engine.cosine, rows)


def test_the_estimate_of_a_trial_holds_the_gradient_that_its_check_forms() -> None:
    """The engine checks itself by plain autograd, which holds a gradient and its cotangent, whatever a stack forms."""
    gradient = bytes_of(parameters_of(wide()[0])[1])
    for _ in range(3):  # not only where a check is due
        with pytest.raises(TooLittleMemory, match="one trial needs about"):
            matched(2 * gradient)
    whole, within = matched(None), matched(20 * gradient)
    assert all(torch.allclose(a, b, rtol=1e-5) for a, b in zip(whole, within, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(within, matched(20 * gradient), strict=True))


def test_updates_are_held_once_while_they_are_computed() -> None:
    model, shared = wide()
    records = Records(torch.rand(12, 1, 8, 8), torch.arange(12))
    made = []

    def call() -> None:
        made.append(
            share(
                model, F.cross_entropy, records, Defense(), Exposure(), batch_size=1, classes=2000, mode="eval",
                generator=torch.Generator(),
            )
        )  # fmt: skip

    gradient = bytes_of(shared)
    assert 12 * gradient <= peak_bytes(call, CPU) <= 15 * gradient
    assert all(len(g) == 12 and bool(g.isfinite().all()) for g in made[0].gradients)
    with bounded(Memory(11 * gradient)), pytest.raises(TooLittleMemory, match="the updates of 12 clients take about"):
        call()


class Uneven(Defense):
    """A defense of somebody's own whose second client sends another shape."""

    name = "uneven"
    sent = 0

    def transform_update(
        self, gradients: tuple[Tensor, ...], batch_size: int, generator: torch.Generator
    ) -> tuple[Tensor, ...]:
        Uneven.sent += 1
        return gradients if Uneven.sent == 1 else tuple(g.flatten()[0] for g in gradients)


def test_an_update_of_another_shape_is_not_broadcast() -> None:
    records = Records(torch.rand(2, 1, 8, 8), torch.arange(2))
    with pytest.raises(RuntimeError, match="another's is not"):
        share(
            wide()[0], F.cross_entropy, records, Uneven(), Exposure(), batch_size=1, classes=2000, mode="eval",
            generator=torch.Generator(),
        )  # fmt: skip


def test_a_descent_holds_no_more_than_it_announces() -> None:
    start = torch.rand(20, 2, 3, 12, 12)

    def objective(x: Tensor, victims: Tensor, progress: Tensor) -> tuple[Tensor, Tensor]:
        return (x - 0.5).square().flatten(1).mean(1), 2 * (x - 0.5)

    def call() -> object:
        who = torch.arange(20) // 4
        return descend(objective, start, who, Pace(9, 0.1, 5), label="", restarts=4)

    assert peak_bytes(call, CPU) <= (COPIES - 6) * bytes_of([start])  # what precedes and what the priors take is 6


def test_a_layout_holds_no_more_than_it_announces() -> None:
    sizes = (40 * FEATURES, 10, 20 * FEATURES)  # many times what is looked at in one piece

    def play(record: Records, seed: int) -> tuple[Tensor, ...]:
        return tuple(torch.randn(n, generator=torch.Generator().manual_seed(seed)) for n in sizes)

    run = [Records(torch.zeros(1, 1, 1, 1), torch.zeros(1, dtype=torch.long))] * 2
    assert peak_bytes(lambda: layout_for(run, play, torch.Generator()), CPU) <= 4 * UPDATES * sum(sizes)


def test_the_most_telling_entries_are_those_of_one_topk() -> None:
    told = [torch.randperm(n, generator=torch.Generator().manual_seed(n)) / n for n in (2**19 + 7, 5, 40_000)]
    told[1] += 2
    best = torch.cat(told).topk(FEATURES // 2).indices.sort().values
    ends = torch.tensor([0, *(len(t) for t in told)]).cumsum(0)
    found = torch.cat([kept + start for kept, start in zip(most_telling(told), ends, strict=False)])
    values = torch.cat(told)
    assert torch.equal(values[found].sort().values, values[best].sort().values)
    assert torch.equal(most_telling(told)[1], torch.arange(5))


def test_a_regression_holds_no_more_than_it_announces(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    monkeypatch.setattr("leakaudit.attacks._regression.need", lambda size, *_: asked.append(size))
    for rows, features, pixels in ((60, 20, 30), (40, 200, 30), (40, 20, 300)):
        private, released = torch.rand(rows, 1, 1, pixels), torch.rand(rows, features)
        labels, apart = torch.arange(rows) % 3, torch.arange(rows) % 5 == 0

        def call(x: Tensor = released, y: Tensor = private, c: Tensor = labels, h: Tensor = apart) -> object:
            return fit_ridge(x, y, c, h, 3)

        assert peak_bytes(call, CPU) <= asked[-1] + 20_000


ABSURD = """
import dataclasses, resource, sys, time
import torch
torch.set_num_threads(1)
from leakaudit.work.memory import Memory, bounded
from leakaudit.work.progress import Monitor, monitored
from tests.attacks.attack_scenes import scene
from tests.attacks.test_every_attack import run, small

used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**31, resource.RLIM_INFINITY))
for name, setting, limit in (
    ("inverting-gradients", "restarts", None), ("inverting-gradients", "restarts", 10**8), ("dlg", "restarts", None),
    ("untransform", "draws", 10**8), ("replay", "draws", None), ("through-generator", "draws", None),
    ("released-linkage", "draws", 10**8), ("demixing", "restarts", None),
):
    attack = dataclasses.replace(small(name), **{setting: 10**9})
    model, update = scene(attack)
    with bounded(Memory(limit)) as memory, monitored(Monitor(deadline=time.monotonic() + 20)):
        found = run(attack, model, update)
    reason = found.reason
    assert found.statuses == ("out-of-memory",) * 2, (name, found)
    assert reason == memory.refusal and " take about " in reason, (name, reason)
    assert setting in reason and f"{10**9}" in reason, (name, reason)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
attack = dataclasses.replace(small("inverting-gradients"), steps=10**12)
model, update = scene(attack)
with monitored(Monitor(deadline=time.monotonic() + 0.2)):
    assert set(run(attack, model, update).statuses) == {"budget"}
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to set a limit above what is in use")
def test_absurd_settings_are_refused_before_anything_is_made() -> None:
    """In a process that gets no more than 2 GiB: what tried to make it would say that it ran out, not what to give."""
    done = subprocess.run([sys.executable, "-c", ABSURD], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 200 * 1024  # kilobytes: nothing grows with the number of steps


def test_an_absurd_bottleneck_is_refused_before_it_is_made() -> None:
    from leakaudit.protocol.registry import parse_defense

    defense = parse_defense(f"precode:bottleneck={10**9}")
    with bounded(Memory(10**12)), pytest.raises(TooLittleMemory, match="bottleneck"):
        defense.transform_model(wide()[0], torch.Generator())
    assert math.isfinite(bytes_of(wide()[1]))
