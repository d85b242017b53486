"""Gradient matching recovers pictures from undefended updates, and the adaptive variants do what they are for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from leakaudit.attacks._optimise import Pace, descend, fittest, roughness, rungs, total_variation
from leakaudit.attacks.expectation import Expectation, expected
from leakaudit.attacks.inverting_gradients import InvertingGradients
from leakaudit.attacks.masked import MaskedMatching, completed, completed_cosine
from leakaudit.engine import matching as engine
from leakaudit.protocol.attack import Reconstruction
from leakaudit.protocol.client import SharedUpdate, share
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.exposure import Exposure
from leakaudit.protocol.gradients import Gradients
from leakaudit.protocol.registry import parse_attack, parse_defense
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.score.metrics import assign, psnr
from tests.attacks.attack_scenes import EVERYTHING, conv_model, dense_model, records, seeded, shared_update

SHAPE = (1, 8, 8)


def median_psnr(private: Records, found: Reconstruction) -> float:
    assert found.images is not None
    truth = private.images.view_as(found.images)
    scores = [psnr(t, g[assign(t, g)]) for t, g in zip(truth, found.images, strict=True)]
    return float(torch.cat(scores).median())


def chance(private: Records) -> float:
    """Return the median PSNR of the best constant guess: the mean picture, which no attack here is told."""
    return float(psnr(private.images, private.images.mean(0, keepdim=True).expand_as(private.images)).median())


@pytest.mark.parametrize(
    "spec",
    [
        "dlg:steps=150",
        "idlg:steps=150",
        "inverting-gradients:steps=200:tv=0.001",
        "masked-matching:steps=200:tv=0.001",
        "expectation:steps=200:tv=0.001",
    ],
)
def test_undefended_pictures_come_back(spec: str, generator: torch.Generator) -> None:
    model, private = conv_model(SHAPE), records(4, SHAPE, 3, seed=1)
    found = parse_attack(spec)(model, shared_update(model, private), generator)
    assert found.statuses == ("converged",) * 4
    assert found.labels is not None
    assert found.labels.flatten().tolist() == private.labels.tolist()
    assert median_psnr(private, found) > chance(private) + 6


def test_a_batch_of_two_comes_back(generator: torch.Generator) -> None:
    model, private = conv_model((3, 8, 8), 8), Records(records(4, (3, 8, 8), 8, seed=2).images, torch.arange(4))
    update = shared_update(model, private, batch_size=2, classes=8)
    found = InvertingGradients(steps=300, tv=1e-3)(model, update, generator)
    assert median_psnr(private, found) > chance(private) + 4


def test_train_mode_batchnorm_comes_back_and_keeps_its_statistics(generator: torch.Generator) -> None:
    network = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(512, 3)
        )
    )
    model, private = PixelModel(network, [0.4], [0.25]), records(3, SHAPE, 3, seed=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = InvertingGradients(steps=200, tv=1e-3)(model, shared_update(model, private, mode="train"), generator)
    assert median_psnr(private, found) > chance(private) + 4
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_masked_matching_beats_plain_matching_under_strong_pruning() -> None:
    network = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 12, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(12, 24, 3, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(24, 36, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(36 * 64, 10),
        )
    )
    model, private = PixelModel(network, [0.4] * 3, [0.25] * 3), records(3, (3, 16, 16), 10, seed=4)
    update = shared_update(model, private, defense=parse_defense("prune:sparsity=0.99"), classes=10)
    scores = {
        attack.name: median_psnr(private, attack(model, update, torch.Generator().manual_seed(0)))
        for attack in (InvertingGradients(steps=100, tv=0.01), MaskedMatching(steps=100, tv=0.01))
    }
    assert scores["masked-matching"] > scores["inverting-gradients"]


def test_a_pruned_entry_costs_only_what_pruning_cannot_explain() -> None:
    shared: Gradients = (torch.tensor([1.0, 0.0, -2.0, 0.0]), torch.zeros(2))
    feasible: Gradients = (torch.tensor([2.0, 1.9, -4.0, -1.5]), torch.zeros(2))  # twice a gradient pruned to `shared`
    assert completed(feasible, shared)[0].tolist() == pytest.approx([1, 0.95, -2, -0.75])
    assert float(completed_cosine(feasible, shared)[0]) == pytest.approx(0, abs=1e-6)
    assert float(engine.cosine(feasible, shared)[0]) > 0.1
    infeasible: Gradients = (torch.tensor([1.0, 9.0, -2.0, -0.5]), torch.zeros(2))
    assert completed(infeasible, shared)[0].tolist() == pytest.approx([1, 1, -2, -0.5])
    value, cotangent = completed_cosine(infeasible, shared)
    assert float(value) > 0.1
    assert float(cotangent[0][1]) > 0  # downhill is towards a smaller entry


def sent_of(gradient: Gradients, batch_size: int) -> SharedUpdate:
    """Return an update of one gradient, of so many records."""
    stacked, shape = tuple(g[None] for g in gradient), (1, 8, 8)
    names = tuple(str(i) for i in range(len(gradient)))
    return SharedUpdate(stacked, names, batch_size, shape, 3, nn.functional.cross_entropy, "eval", Exposure())


@pytest.mark.parametrize("spec", ["none", "gaussian:std=0.5", "laplace:scale=0.5", "dp-sgd:noise_multiplier=3"])
def test_noise_has_no_part_in_the_expectation(spec: str, generator: torch.Generator) -> None:
    gradient: Gradients = (torch.randn(4, 3, generator=generator), torch.randn(5, generator=generator))
    defense = parse_defense(spec)
    for batch_size in (1, 3):
        found = torch.cat(
            [g.flatten() for g in expected(defense, gradient, sent_of(gradient, batch_size), generator, draws=2)]
        )
        wanted = torch.cat([g.flatten() for g in gradient])
        if spec.startswith("dp-sgd"):
            wanted = wanted / wanted.norm()  # clipped to norm 1
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_the_expectation_keeps_what_a_defense_does_to_the_direction(generator: torch.Generator) -> None:
    gradient: Gradients = (torch.randn(20, generator=generator),)
    defense = parse_defense("prune:sparsity=0.8,gaussian:std=0.3")
    (found,) = expected(defense, gradient, sent_of(gradient, 1), generator, draws=1)
    assert int((found.abs() > 1e-5).sum()) == 4


def test_expectation_where_the_defense_only_scales_is_plain_matching() -> None:
    model, private = conv_model(SHAPE), records(2, SHAPE, 3, seed=5)
    update = shared_update(model, private, defense=parse_defense("clip:max_norm=0.1"))
    with_labels = dataclasses.replace(update, labels=private.labels[:, None])
    generator = torch.Generator().manual_seed(0)
    assert Expectation().distance(with_labels, generator) is engine.cosine
    pruned = dataclasses.replace(with_labels, defense=parse_defense("prune:sparsity=0.9"))
    assert Expectation().distance(pruned, generator) is not engine.cosine


@pytest.mark.parametrize("spec", ["gaussian:std=0.003", "dp-sgd:noise_multiplier=0.001", "laplace:scale=0.002"])
def test_expectation_sees_through_a_little_noise(spec: str, generator: torch.Generator) -> None:
    model, private = conv_model(SHAPE), records(4, SHAPE, 3, seed=6)
    update = shared_update(model, private, defense=parse_defense(spec))
    found = Expectation(steps=200, tv=3e-3)(model, update, generator)
    assert median_psnr(private, found) > chance(private) + 3


def test_the_restart_of_least_objective_is_kept() -> None:
    model, private = dense_model(SHAPE), records(3, SHAPE, 3, seed=7)
    update = shared_update(model, private)
    with_labels = dataclasses.replace(update, labels=private.labels.view(3, 1))
    four = InvertingGradients(steps=30, restarts=4)(model, with_labels, torch.Generator().manual_seed(1))
    alone = dataclasses.replace(
        with_labels, gradients=tuple(g[:1] for g in update.gradients), labels=private.labels[:1, None]
    )
    one = InvertingGradients(steps=30)(model, alone, torch.Generator().manual_seed(1))
    assert float(four.objective[0]) <= float(one.objective[0]) + 1e-5  # the grey start, or one that beat it on the way


def test_total_variation_and_its_slope_equal_autograd(generator: torch.Generator) -> None:
    images = torch.rand((2, 3, 2, 5, 4), generator=generator, dtype=torch.float64).requires_grad_(True)
    wanted = images.diff(dim=-1).abs().mean((1, 2, 3, 4)) + images.diff(dim=-2).abs().mean((1, 2, 3, 4))
    (slope,) = torch.autograd.grad(wanted.sum(), images)
    value, found = total_variation(images.detach())
    torch.testing.assert_close(value, wanted.detach(), check_dtype=False)
    torch.testing.assert_close(found, slope)
    thin = total_variation(torch.rand((1, 1, 1, 4, 1), generator=generator))
    assert float(thin[0]) > 0
    assert thin[1].isfinite().all()


def test_the_prior_weighs_colour_more_than_brightness_and_its_slope_equals_autograds(
    generator: torch.Generator,
) -> None:
    images = torch.rand((2, 2, 3, 5, 4), generator=generator, dtype=torch.float64).requires_grad_(True)

    def variation(x: torch.Tensor) -> torch.Tensor:
        return x.diff(dim=-1).abs().mean((1, 2, 3, 4)) + x.diff(dim=-2).abs().mean((1, 2, 3, 4))

    grey = images.mean(2, keepdim=True)
    wanted = variation(grey) + 2 * variation(images - grey)
    (slope,) = torch.autograd.grad(wanted.sum(), images)
    value, found = roughness(images.detach())
    torch.testing.assert_close(value, wanted.detach(), check_dtype=False)
    torch.testing.assert_close(found, slope)
    one = images.detach()[:, :, :1]
    for plain, ours in zip(total_variation(one), roughness(one), strict=True):  # one channel: nothing but brightness
        torch.testing.assert_close(ours, plain)


def bowl(images: torch.Tensor, victims: torch.Tensor, progress: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    gap = images - 0.2 * (1 + victims.view(-1, 1, 1, 1, 1))
    return gap.square().flatten(1).sum(1), 2 * gap


def test_the_loop_finds_each_trials_own_minimum_and_stays_in_the_box() -> None:
    start = torch.full((3, 1, 1, 2, 2), 0.95)
    victims = torch.tensor([0, 1, 9])  # the last one's minimum lies outside the box
    found = descend(bowl, start, victims, Pace(200, 0.05, 50), label="bowl")
    assert found.statuses == ("converged",) * 3
    torch.testing.assert_close(found.images[:, 0, 0, 0, 0], torch.tensor([0.2, 0.4, 1.0]), atol=2e-3, rtol=0)


def test_a_trial_that_stalls_stops_early() -> None:
    calls = []

    def flat(images: torch.Tensor, victims: torch.Tensor, progress: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(len(images))
        values, slopes = bowl(images, victims, progress)
        stuck = victims == 1
        return torch.where(stuck, 1.0, values), slopes

    start = torch.full((2, 1, 1, 2, 2), 0.9)
    found = descend(flat, start, torch.tensor([0, 1]), Pace(100, 0.01, 5), label="flat")
    assert found.statuses == ("converged", "converged")
    assert calls.count(1) > 40  # the stalled one skipped to its end
    assert len(calls) <= 100


def test_a_trial_that_turns_non_finite_later_keeps_its_best() -> None:
    step = 0

    def breaking(
        images: torch.Tensor, victims: torch.Tensor, progress: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal step
        step += 1
        values, slopes = bowl(images, victims, progress)
        return (values if step < 10 else values * torch.nan), slopes

    start = torch.full((1, 1, 1, 2, 2), 0.9)
    found = descend(breaking, start, torch.tensor([0]), Pace(50, 0.01, 50), label="breaking")
    assert found.statuses == ("converged",)
    assert found.values.isfinite().all()
    assert float(found.images.max()) < 0.9


def test_the_objective_learns_how_far_each_trial_is() -> None:
    seen = []

    def watching(
        images: torch.Tensor, victims: torch.Tensor, progress: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(progress.tolist())
        return bowl(images, victims, progress)

    descend(
        watching, torch.full((2, 1, 1, 2, 2), 0.9), torch.tensor([0, 1]),
        Pace(4, 0.01, 50), label="watching",
    )  # fmt: skip
    assert seen == [[0, 0], [0.25, 0.25], [0.5, 0.5], [0.75, 0.75]]


@pytest.mark.parametrize(
    ("restarts", "wanted"), [(1, {}), (2, {20: 1}), (3, {10: 2, 20: 1}), (8, {6: 4, 13: 2, 20: 1})]
)
def test_restarts_are_halved_within_a_quarter_of_the_schedule(restarts: int, wanted: dict[int, int]) -> None:
    assert rungs(restarts, 80) == wanted


@pytest.mark.parametrize("steps", [1, 2, 3, 80])
@pytest.mark.parametrize("restarts", [2, 5, 16])
def test_one_restart_is_left_however_short_the_schedule(restarts: int, steps: int) -> None:
    found = rungs(restarts, steps)
    assert min(found.values()) == 1
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_the_fittest_are_each_victims_own_and_no_worse_than_chance(generator: torch.Generator) -> None:
    for trial in range(20):
        victims = torch.randint(4, (24,), generator=generator)
        values = torch.rand(24, generator=generator)
        values[torch.rand(24, generator=generator) < 0.2] = torch.nan if trial % 2 else torch.inf
        keep = int(torch.randint(1, 6, (1,), generator=generator))
        mask = fittest(values, victims, keep)
        for v in victims.unique():
            own, kept = values[victims == v].nan_to_num(nan=torch.inf), mask[victims == v]
            assert int(kept.sum()) == min(keep, len(own))
            assert float(own[kept].max()) <= float(own[~kept].min()) if (~kept).any() else True
            assert float(own[kept].mean()) <= float(own.mean())  # dropping at random keeps the mean


def test_halving_drops_the_trials_that_are_behind_and_costs_less() -> None:
    calls: list[int] = []

    def counted(
        images: torch.Tensor, victims: torch.Tensor, progress: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(len(images))
        return bowl(images, victims, progress)

    start = torch.linspace(0.9, 0.3, 8).view(8, 1, 1, 1, 1).expand(8, 1, 1, 2, 2)  # trial 7 is the nearest
    victims = torch.zeros(8, dtype=torch.long)
    pace = Pace(60, 0.003, 100)
    found = descend(counted, start, victims, pace, label="halving", restarts=8)
    assert int(found.values.argmin()) == 7
    assert sum(calls) < 8 * 60 * 0.4
    assert calls[-1] == 1
    alone = descend(bowl, start[7:], victims[:1], pace, label="alone")
    assert torch.equal(alone.images[0], found.images[7])  # the others' going changes nothing for it


@pytest.mark.parametrize("stop", [1, 9, 30])
def test_a_budget_that_ends_in_any_rung_keeps_what_was_found(stop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from leakaudit.attacks import _optimise

    done = 0

    def counted(
        images: torch.Tensor, victims: torch.Tensor, progress: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal done
        done += 1
        return bowl(images, victims, progress)

    def tracked(label: str, total: int) -> Iterator[int]:
        yield from range(stop)

    monkeypatch.setattr(_optimise, "track", tracked)
    monkeypatch.setattr(_optimise, "expired", lambda: True)
    start = torch.linspace(0.9, 0.3, 4).view(4, 1, 1, 1, 1)
    found = descend(
        counted, start, torch.zeros(4, dtype=torch.long),
        Pace(40, 0.01, 50), label="budget", restarts=4,
    )  # fmt: skip
    assert done == stop
    assert found.values.isfinite().all()
    assert found.statuses[int(found.values.argmin())] == "budget"


def test_an_update_of_zeros_shows_nothing_but_the_prior(generator: torch.Generator) -> None:
    model, private = conv_model(SHAPE), records(2, SHAPE, 3, seed=8)
    update = shared_update(model, private)
    empty = dataclasses.replace(update, gradients=tuple(torch.zeros_like(g) for g in update.gradients))
    found = InvertingGradients(steps=50)(model, empty, generator)
    assert found.images is not None
    assert median_psnr(private, found) < chance(private) + 3


def test_dropout_repeats_under_one_seed() -> None:
    network = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.5), nn.Linear(16, 3)))
    model, private = PixelModel(network, [0.4], [0.25]), records(2, SHAPE, 3, seed=9)
    update = share(
        model, nn.functional.cross_entropy, private, Defense(), EVERYTHING,
        batch_size=1, classes=3, mode="train", generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    first, again = (run_dropout(model, update) for _ in range(2))
    assert torch.equal(first, again)


def run_dropout(model: PixelModel, update: SharedUpdate) -> torch.Tensor:
    torch.rand(1)  # the global state has moved on: it must not matter
    found = InvertingGradients(steps=5)(model, update, torch.Generator().manual_seed(0))
    assert found.images is not None
    return found.images


@pytest.mark.parametrize("name", ["resnet18", "vit"])
def test_torchvisions_networks_are_attacked(name: str, generator: torch.Generator) -> None:
    from torchvision.models import VisionTransformer, resnet18

    def build() -> nn.Module:
        if name == "resnet18":
            return resnet18(num_classes=5)  # type: ignore[no-any-return]
        return VisionTransformer(
            image_size=16, patch_size=8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16, num_classes=5
        )  # type: ignore[no-any-return]

    shape = (3, 16, 16)
    model, private = PixelModel(seeded(build), [0.5] * 3, [0.25] * 3), records(1, shape, 5, seed=11)
    if name == "vit":  # its head starts at zero, where no gradient passes
        nn.init.normal_(model.network.heads.head.weight, std=0.1, generator=generator)  # type: ignore[union-attr,arg-type]
    found = InvertingGradients(steps=8)(model, shared_update(model, private, classes=5), generator)
    assert found.statuses == ("converged",)
    assert found.labels is not None
    assert found.labels.flatten().tolist() == private.labels.tolist()
    assert found.images is not None
    assert float((found.images - 0.5).abs().max()) > 0.05
