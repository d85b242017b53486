"""Tuning picks by auxiliary records only, prefers what is better there, and then what is shorter."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakaudit.attacks.inverting_gradients import InvertingGradients
from leakaudit.errors import OutOfTime
from leakaudit.protocol import attack as attack_module
from leakaudit.protocol.attack import Attack, Reconstruction, Status
from leakaudit.protocol.client import SharedUpdate, share
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.exposure import Exposure
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.score import tuning
from leakaudit.work.progress import Monitor, current, followed, monitored

SHAPE, CLASSES = (1, 6, 6), 3


def model_and_update(count: int, batch_size: int = 1) -> tuple[PixelModel, SharedUpdate, Records]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(216, CLASSES))
    generator = torch.Generator().manual_seed(1)
    truth = Records(torch.rand((count, *SHAPE), generator=generator), torch.arange(count) % CLASSES)
    model = PixelModel(network)
    update = share(
        model, F.cross_entropy, truth, Defense(), Exposure(auxiliary=True),
        batch_size=batch_size, classes=CLASSES, mode="eval", generator=generator,
    )  # fmt: skip
    return model, update, truth


@dataclass(frozen=True, kw_only=True)
class Oracle(Attack):
    """A stand-in that errs by a known amount: |tv − 0.1|, more at fewer steps. It knows the truth: no attack does."""

    name: ClassVar[str] = "oracle"
    grid: ClassVar[Mapping[str, tuple[float, ...]]] = {"tv": (0.3, 0.1, 0.01)}
    steps: int = 400
    draws: int = 1
    tv: float = 1.0
    truth: Tensor = field(compare=False, repr=False)
    calls: list[tuple[float, int]] = field(compare=False, repr=False)
    short_error: float = 0.0
    statuses: tuple[Status, ...] = ()

    def __call__(self, model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Reconstruction:
        self.calls.append((self.tv, self.steps))
        error = 0.01 + abs(self.tv - 0.1) + self.short_error * (400 / self.steps - 1)
        images = self.truth.view(update.victims, update.batch_size, *update.input_shape) + error
        statuses = self.statuses or ("converged",) * update.victims
        return Reconstruction(
            images=images.flip(1), labels=None, objective=torch.zeros(update.victims), statuses=statuses
        )


def test_the_best_value_is_found_by_halving(generator: torch.Generator) -> None:
    model, update, truth = model_and_update(4, batch_size=2)
    oracle = Oracle(truth=truth.images, calls=[], short_error=0.01)
    attack, tuned = tuning.tune(oracle, model, update, truth, generator)
    assert isinstance(attack, Oracle)
    assert (attack.tv, attack.steps) == (0.1, 400)
    assert tuned == {"tv": 0.1, "steps": 400, "auxiliary_psnr": pytest.approx(40, abs=1e-2)}
    assert oracle.calls == [(0.3, 100), (0.1, 100), (0.01, 100), (0.1, 200), (0.01, 200), (0.1, 400), (0.01, 400)]


def test_a_shorter_run_is_kept_when_it_is_no_worse(generator: torch.Generator) -> None:
    model, update, truth = model_and_update(3)
    attack, tuned = tuning.tune(Oracle(truth=truth.images, calls=[]), model, update, truth, generator)
    assert isinstance(attack, Oracle)
    assert attack.steps == 100
    assert tuned["steps"] == 100


def test_what_looks_worse_in_short_runs_can_win_in_full(generator: torch.Generator) -> None:
    class Late(Oracle):
        """A weak prior that needs its time: 0.1 is best in full, 0.3 before."""

        def __call__(self, model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Reconstruction:
            found = super().__call__(model, update, generator)
            assert found.images is not None
            late = 0.5 if self.tv < 0.3 and self.steps < 400 else 0.0
            return replace(found, images=found.images + late)

    model, update, truth = model_and_update(2)
    attack, _ = tuning.tune(Late(truth=truth.images, calls=[]), model, update, truth, generator)
    assert isinstance(attack, Late)
    assert (attack.tv, attack.steps) == (0.1, 400)


def test_short_runs_are_tried_at_their_own_length_once(generator: torch.Generator) -> None:
    model, update, truth = model_and_update(2)
    oracle = Oracle(truth=truth.images, calls=[], steps=30)
    tuning.tune(oracle, model, update, truth, generator)
    assert oracle.calls == [(0.3, 30), (0.1, 30), (0.01, 30)]


def test_nothing_is_chosen_where_nothing_can_be_scored(generator: torch.Generator) -> None:
    model, update, truth = model_and_update(2)
    broken = Oracle(truth=truth.images, calls=[], statuses=("diverged", "diverged"))
    assert tuning.tune(broken, model, update, truth, generator) == (broken, {})


def test_an_attack_without_a_grid_is_left_alone(generator: torch.Generator) -> None:
    model, update, truth = model_and_update(2)
    assert tuning.tune(Attack(), model, update, truth, generator) == (Attack(), {})


@dataclass(frozen=True, kw_only=True)
class Two(Oracle):
    """An oracle that errs by |tv − 0.1| and by |draws − 3| / 100."""

    grid: ClassVar[Mapping[str, tuple[float, ...]]] = {"tv": (0.3, 0.1, 0.01), "draws": (1, 2.0, 3)}

    def __call__(self, model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Reconstruction:
        found = super().__call__(model, update, generator)
        assert found.images is not None
        return replace(found, images=found.images + abs(self.draws - 3) / 100)


def test_further_settings_are_tried_by_the_winner_of_the_first(generator: torch.Generator) -> None:
    model, update, truth = model_and_update(2)
    attack, tuned = tuning.tune(Two(truth=truth.images, calls=[], short_error=0.01), model, update, truth, generator)
    assert isinstance(attack, Two)
    assert (attack.tv, attack.draws, attack.steps) == (0.1, 3, 400)
    assert type(attack.draws) is int
    assert tuned == {"tv": 0.1, "draws": 3, "steps": 400, "auxiliary_psnr": pytest.approx(40, abs=1e-2)}
    # At half the steps the winner has run with one draw already: that run is not repeated.
    assert attack.calls[3:] == [(0.1, 200), (0.01, 200), (0.1, 200), (0.1, 200), (0.1, 400), (0.01, 400)]


def test_a_search_that_the_time_ends_chooses_nothing(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, update, truth = model_and_update(2)
    oracle = Two(truth=truth.images, calls=[], short_error=0.01)
    for module in (tuning, attack_module):
        monkeypatch.setattr(module, "expired", lambda: len(oracle.calls) >= 2)
    with pytest.raises(OutOfTime, match="tuning"):
        tuning.tune(oracle, model, update, truth, generator)
    assert oracle.calls == [(0.3, 100), (0.1, 100)]
    with followed() as course:
        assert tuning.tuned_in_time(oracle, model, update, truth, generator) == (oracle, {})
    assert course.untuned


def test_tuning_gets_half_of_the_time_that_is_left(generator: torch.Generator) -> None:
    model, update, truth = model_and_update(2)
    given: list[float] = []

    @dataclass(frozen=True, kw_only=True)
    class Asks(Two):
        def __call__(self, *args: Any) -> Reconstruction:
            deadline = current().deadline
            assert deadline is not None
            given.append(deadline)
            return super().__call__(*args)

    asks, now = Asks(truth=truth.images, calls=[], short_error=0.01), time.monotonic()
    with monitored(Monitor(deadline=now + 1000)), followed() as course:
        tuned = tuning.tuned_in_time(asks, model, update, truth, generator)[1]
        assert current().deadline == now + 1000  # the rest is there for the attack itself
    assert tuned
    assert not course.untuned
    assert {round((g - now) / 100) for g in given} == {5}


def test_settings_that_run_together_do_what_each_does_alone(generator: torch.Generator) -> None:
    model, update, _ = model_and_update(3)
    start = InvertingGradients(steps=6, restarts=2)
    choices = [
        replace(start, tv=tv, step_size=size, fall=fall) for tv, size, fall in ((1e-4, 0.1, 1.0), (0.3, 0.02, 10.0))
    ]
    together = start.several(choices, model, update, torch.Generator().manual_seed(5))
    alone = [choice(model, update, torch.Generator().manual_seed(5)) for choice in choices]
    for one, other in zip(together, alone, strict=True):
        assert one.statuses == other.statuses
        assert one.images is not None
        assert other.images is not None
        torch.testing.assert_close(one.objective, other.objective, rtol=1e-2, atol=1e-4)
        assert float((one.images - other.images).abs().mean()) < 1e-2  # a sign may turn in the last bit
    assert float((together[0].objective - together[1].objective).abs().min()) > 1e-3
    longer = [replace(start, steps=7), start]  # what cannot share a stack runs by itself
    both = start.several(longer, model, update, torch.Generator().manual_seed(5))
    assert len(both) == 2


def test_the_real_attack_is_tuned_repeatably_and_better_than_its_worst(generator: torch.Generator) -> None:
    model, update, truth = model_and_update(3)
    start = InvertingGradients(steps=60)
    first = tuning.tune(start, model, update, truth, torch.Generator().manual_seed(5))
    again = tuning.tune(start, model, update, truth, torch.Generator().manual_seed(5))
    assert first == again
    tuned, chosen = first
    assert isinstance(tuned, InvertingGradients)
    assert tuned.tv in InvertingGradients.grid["tv"]
    # Noise pictures have no smoothness: the strongest prior cannot be the choice.
    assert tuned.tv < max(InvertingGradients.grid["tv"])
    assert chosen["auxiliary_psnr"] is not None


def test_tuning_is_handed_one_update_and_its_truth_and_nothing_else() -> None:
    """Victims cannot be tuned on: the only update `tune` can see comes with its truth, which no victim's does."""
    assert list(inspect.signature(tuning.tune).parameters) == ["attack", "model", "update", "truth", "generator"]
