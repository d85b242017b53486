"""What a step asks of a device, counted on the CPU: the host never waits, and 64 trials launch no more than two."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.counting import count
from benchmarks.engine import floor_step
from benchmarks.networks import build
from leakaudit.attacks import _optimise
from leakaudit.attacks._optimise import Descent, Pace, descend, roughness
from leakaudit.engine import layers
from leakaudit.engine import matching as engine
from leakaudit.engine.stacked import Trials
from leakaudit.protocol.gradients import mean_gradient
from leakaudit.protocol.target import PixelModel


def stack(name: str, rows: list[int]) -> Trials:
    """Trials of an untrained network, one record each, matched with three updates."""
    generator = torch.Generator().manual_seed(0)
    model, victims = build(name).eval(), max(rows) + 1
    truth = torch.rand((victims, 1, 3, 32, 32), generator=generator)
    told = torch.arange(victims)[:, None] % 10
    each = [mean_gradient(model, F.cross_entropy, x, y) for x, y in zip(truth, told, strict=True)]
    shared = tuple(torch.stack(column) for column in zip(*each, strict=True))
    images, chosen = torch.rand((len(rows), 1, 3, 32, 32), generator=generator), torch.tensor(rows)
    return Trials(model, F.cross_entropy, images, told[chosen], shared, engine.cosine, chosen)


def matched(job: Trials) -> tuple[Tensor, Tensor]:
    return engine.match(job.model, job.loss, job.images, job.labels, job.shared, job.distance, job.rows)


def waits_of_a_step(job: Trials) -> Counter[str]:
    """Of the third call: the first two are checked."""
    for _ in range(2):
        matched(job)
    return count(lambda: matched(job))[1]


@pytest.mark.parametrize("costly", [False, True])
@pytest.mark.parametrize("rows", [[0, 0, 0], [0, 1, 2], [0, 1, 1], [1, 2]], ids=str)
@pytest.mark.parametrize("name", ["lenet", "cnn6"])
def test_the_host_never_waits_in_a_stacked_step(
    name: str, rows: list[int], costly: bool, ways: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers.Stack, "launches_cost", costly)
    assert not waits_of_a_step(stack(name, rows))
    assert ways[-1] == "stacked"


@pytest.mark.parametrize(("name", "rows", "way"), [("resnet18", [1], "stacked"), ("lenet", [0, 1, 1], "vectorised")])
def test_nor_for_one_trial_of_a_large_network_nor_in_a_vectorised_one(
    name: str, rows: list[int], way: str, ways: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "order", lambda *_: (way, "loop"))
    assert not waits_of_a_step(stack(name, rows))
    assert ways[-1] == way


def test_rows_that_are_written_to_are_read_again() -> None:
    job = stack("lenet", [0, 1, 2])
    matched(job)
    job.rows.copy_(torch.tensor([2, 0, 0]))
    other = Trials(
        *(getattr(job, name) for name in ("model", "loss", "images", "labels", "shared", "distance", "rows"))
    )
    torch.testing.assert_close(matched(job), engine.WAYS["loop"](other), rtol=1e-3, atol=1e-6)


def launches(model: PixelModel, job: Trials) -> tuple[int, int]:
    """Return those of a stacked step and of a plain double backward of the same pictures as one batch."""
    one = [s[0] for s in job.shared]
    floor, _ = count(lambda: floor_step(model, job.images[:, 0], job.labels[:, 0], one))
    engine.energy(job.shared)  # once per update
    own, _ = count(lambda: engine.WAYS["stacked"](job))
    return own.total(), floor.total()


@pytest.mark.parametrize("name", ["lenet", "cnn6", "resnet18"])
def test_launches_do_not_grow_with_the_trials(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device they are what a small network's step costs."""
    monkeypatch.setattr(layers.Stack, "launches_cost", True)
    for rows in (lambda n: [0] * n, lambda n: list(range(n))):  # restarts of one victim, and a victim each
        few, many = (stack(name, rows(n)) for n in (2, 4 if name == "resnet18" else 64))
        own, floor = launches(few.model, few)
        assert launches(many.model, many)[0] == own
        assert own <= 2.5 * floor


def bowls(images: Tensor, victims: Tensor, progress: Tensor) -> tuple[Tensor, Tensor]:
    """Each victim's minimum is elsewhere; the last one's pictures turn non-finite half-way."""
    gap = images - 0.2 * (1 + victims.view(-1, 1, 1, 1, 1))
    prior, slope = roughness(images)
    values = gap.square().flatten(1).sum(1) + prior
    return torch.where((victims == 3) & (progress > 0.5), torch.nan, values), 2 * gap + slope


def descended(steps: int, restarts: int) -> Descent:
    generator = torch.Generator().manual_seed(0)
    victims = torch.arange(4).repeat_interleave(restarts)
    start = torch.rand((len(victims), 1, 3, 4, 4), generator=generator)
    return descend(bowls, start, victims, Pace(steps, 0.2, 2), label="bowls", restarts=restarts)


@pytest.mark.parametrize("restarts", [1, 4])
def test_when_a_device_is_asked_changes_nothing_for_a_trial(restarts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    always = descended(64, restarts)
    monkeypatch.setattr(_optimise, "look_every", lambda _: _optimise.LOOK_EVERY)
    seldom = descended(64, restarts)
    assert torch.equal(seldom.images, always.images)
    assert torch.equal(seldom.values, always.values)
    assert seldom.statuses == always.statuses


def test_the_optimisation_waits_for_a_device_only_when_it_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_optimise, "look_every", lambda _: _optimise.LOOK_EVERY)
    until = [count(lambda n=n: descended(n, 1))[1].total() for n in (1, _optimise.LOOK_EVERY - 1)]  # type: ignore[misc]
    assert until == [1, 1]  # at the end, to say how each trial ended
    assert count(lambda: descended(_optimise.LOOK_EVERY, 1))[1].total() > 1
