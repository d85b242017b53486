"""The closed-form engine against float64 autograd and finite differences, on every kind of layer that matters."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakaudit.engine import matching as engine
from leakaudit.engine.recording import Unsupported
from leakaudit.engine.stacked import Trials
from leakaudit.protocol.gradients import Gradients, Mode, in_mode, mean_gradient, parameters_of
from leakaudit.protocol.target import PixelModel

SHAPE, CLASSES, BATCH = (2, 6, 6), 3, 2


class Attention(nn.Module):
    """Patches, one self-attention block with LayerNorm, a dense head."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(2, 8, 3, stride=3)
        self.block = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, activation="gelu", batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.block(self.patch(x).flatten(2).transpose(1, 2)).mean(1))
        return found


def convolutional(norm: Callable[[int], nn.Module], activation: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), norm(4), activation, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, CLASSES)
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "dense": lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 5), nn.Sigmoid(), nn.Linear(5, CLASSES)),
    "batchnorm": lambda: convolutional(nn.BatchNorm2d, nn.GELU()),
    "groupnorm": lambda: convolutional(lambda n: nn.GroupNorm(2, n), nn.Tanh()),
    "leaky": lambda: convolutional(lambda n: nn.Identity(), nn.LeakyReLU(0.2)),
    "attention": Attention,
}
DISTANCES = {"squared": engine.squared, "cosine": engine.cosine}


def model_of(name: str, seed: int = 0) -> PixelModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = NETWORKS[name]()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):  # statistics that eval mode can tell from none
                nn.init.uniform_(module.running_mean, -0.5, 0.5)
                nn.init.uniform_(module.running_var, 0.5, 2)
    return PixelModel(network, (0.4, 0.5), (0.2, 0.3)).double()


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand((BATCH, *SHAPE), generator=generator, dtype=torch.float64)
    return images, torch.randint(CLASSES, (BATCH,), generator=generator)


def pruned(gradient: Gradients) -> Gradients:
    return tuple(torch.where(g.abs() >= g.abs().median(), g, 0) for g in gradient)


def plain(distance: str, candidate: Gradients, shared: Gradients) -> Tensor:
    """The same distances written the ordinary way, for autograd to differentiate."""
    a = torch.cat([g.flatten() for g in candidate])
    b = torch.cat([g.flatten() for g in shared])
    if distance == "squared":
        return (a - b).square().sum()
    return 1 - F.cosine_similarity(a, b, dim=0, eps=1e-20)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("name", NETWORKS)
def test_slopes_equal_autograd_through_the_whole_objective(name: str, distance: str, mode: Mode) -> None:
    model = model_of(name)
    images, labels = batch(1)
    guess, _ = batch(2)
    with in_mode(model, mode):
        shared = pruned(mean_gradient(model, F.cross_entropy, images, labels))
        stacked = tuple(g[None] for g in shared)
        value, slope = engine.match(model, F.cross_entropy, guess[None], labels[None], stacked, DISTANCES[distance])
        x = guess.clone().requires_grad_(True)
        with engine.twice_differentiable():
            loss = F.cross_entropy(model(x), labels)
        found = torch.autograd.grad(loss, parameters_of(model)[1], create_graph=True)
        expected = plain(distance, found, shared)
        (gradient,) = torch.autograd.grad(expected, x)
    assert float(gradient.abs().max()) > 0
    torch.testing.assert_close(value[0], expected.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(slope[0], gradient, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("name", NETWORKS)
def test_slopes_equal_finite_differences(name: str, distance: str) -> None:
    model = model_of(name)
    images, labels = batch(3)
    guess, along = batch(4)[0], torch.randn(BATCH, *SHAPE, generator=torch.Generator().manual_seed(5)).double()
    with in_mode(model, "eval"):
        shared = tuple(g[None] for g in pruned(mean_gradient(model, F.cross_entropy, images, labels)))

        def value(x: Tensor) -> float:
            return float(engine.match(model, F.cross_entropy, x[None], labels[None], shared, DISTANCES[distance])[0])

        _, slope = engine.match(model, F.cross_entropy, guess[None], labels[None], shared, DISTANCES[distance])
        step = 1e-6
        numeric = (value(guess + step * along) - value(guess - step * along)) / (2 * step)
    assert numeric == pytest.approx(float((slope[0] * along).sum()), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("distance", DISTANCES)
def test_cotangents_equal_autograd(distance: str, generator: torch.Generator) -> None:
    shapes = [(3, 4), (4,), (2, 2, 3)]
    candidate = tuple(torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes)
    shared = pruned(tuple(torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes))
    value, cotangent = DISTANCES[distance](tuple(c.detach() for c in candidate), shared)
    expected = plain(distance, candidate, shared)
    torch.testing.assert_close(value, expected.detach())
    for found, wanted in zip(cotangent, torch.autograd.grad(expected, candidate), strict=True):
        torch.testing.assert_close(found, wanted)


def test_the_true_batch_is_a_minimum() -> None:
    model = model_of("batchnorm")
    images, labels = batch(6)
    with in_mode(model, "train"):
        shared = tuple(g[None] for g in mean_gradient(model, F.cross_entropy, images, labels))
        for distance in (engine.squared, engine.cosine):
            value, slope = engine.match(model, F.cross_entropy, images[None], labels[None], shared, distance)
            assert float(value) == pytest.approx(0, abs=1e-12)
            assert float(slope.abs().max()) < 1e-6


def test_cosine_ignores_scale_and_survives_a_zero_gradient(generator: torch.Generator) -> None:
    gradient = (torch.randn(5, generator=generator), torch.randn(2, 3, generator=generator))
    scaled = tuple(7 * g for g in gradient)
    assert float(engine.cosine(gradient, scaled)[0]) == pytest.approx(0, abs=1e-6)
    nothing = tuple(torch.zeros_like(g) for g in gradient)
    for candidate, shared in ((gradient, nothing), (nothing, gradient), (nothing, nothing)):
        value, cotangent = engine.cosine(candidate, shared)
        assert float(value) == pytest.approx(1)
        assert all(c.isfinite().all() for c in cotangent)


def test_rows_pick_the_victim_and_soft_labels_are_taken() -> None:
    model = model_of("dense")
    (a, labels_a), (b, labels_b) = batch(7), batch(8)
    gradients = [mean_gradient(model, F.cross_entropy, x, y) for x, y in ((a, labels_a), (b, labels_b))]
    shared = tuple(torch.stack(column) for column in zip(*gradients, strict=True))
    soft, soft_a = (F.one_hot(labels, CLASSES).double() for labels in (labels_b, labels_a))
    guesses, told, rows = torch.stack([b, a, a]), torch.stack([soft, soft, soft_a]), torch.tensor([1, 1, 0])
    values, slopes = engine.match(model, F.cross_entropy, guesses, told, shared, engine.squared, rows)
    assert values.shape == (3,)
    assert slopes.shape == (3, BATCH, *SHAPE)
    assert float(values[0]) == pytest.approx(0, abs=1e-20)
    assert float(values[1]) > 1e-6
    assert float(values[2]) == pytest.approx(0, abs=1e-20)


def test_parameters_the_loss_does_not_reach_do_no_harm() -> None:
    model = model_of("dense")
    model.network.register_parameter("unused", nn.Parameter(torch.ones(3, dtype=torch.float64)))
    images, labels = batch(9)
    shared = tuple(g[None] for g in mean_gradient(model, F.cross_entropy, images, labels))
    value, slope = engine.match(model, F.cross_entropy, images[None] + 0.1, labels[None], shared, engine.cosine)
    assert value.isfinite().all()
    assert float(slope.abs().max()) > 0


def test_a_gradient_that_ignores_the_picture_has_no_slope() -> None:
    model = PixelModel(nn.Sequential(nn.Flatten(), nn.Linear(72, CLASSES)), (0.4, 0.5), (0.2, 0.3)).double()

    def constant(logits: Tensor, labels: Tensor) -> Tensor:
        return 0 * logits.sum().detach() + sum(p.sum() for p in model.parameters())  # type: ignore[return-value]

    images, labels = batch(10)
    shared = tuple(torch.ones_like(p)[None] for p in model.parameters())
    value, slope = engine.match(model, constant, images[None], labels[None], shared, engine.squared)
    assert float(value) == 0
    assert float(slope.abs().max()) == 0


@pytest.mark.parametrize("way", [way for way in engine.WAYS if way != "loop"])
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_way_agrees_with_the_loop_or_refuses(name: str, mode: Mode, way: str) -> None:
    """Three trials of two victims; what a way cannot follow (attention, BatchNorm in train mode) it must say."""
    model = model_of(name)
    images, labels = torch.stack([batch(seed)[0] for seed in (1, 2, 3)]), torch.stack([batch(s)[1] for s in (1, 2, 3)])
    shared = tuple(torch.randn(2, *p.shape, dtype=p.dtype) for p in parameters_of(model)[1])
    arguments = (model, F.cross_entropy, images, labels, shared, engine.cosine, torch.tensor([0, 1, 1]))
    with in_mode(model, mode):
        expected, exact = engine.WAYS["loop"](Trials(*arguments))
        try:
            values, slopes = engine.WAYS[way](Trials(*arguments))
        except (Unsupported, RuntimeError):
            assert (way, name) in {("stacked", "attention"), ("vectorised", "batchnorm")}
            return
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close(slopes, exact)


def test_the_check_is_on_the_relative_error(generator: torch.Generator) -> None:
    slope = torch.randn(3, 4, generator=generator)
    other = torch.randn(3, 4, generator=generator)
    other *= slope.norm() / other.norm()
    assert engine.agrees(slope + 0.01 * other, slope)
    assert not engine.agrees(slope + 0.03 * other, slope)
    assert not engine.agrees(slope * torch.nan, slope)


@pytest.mark.parametrize("trials", [1, 2])
def test_an_update_is_not_held_longer_than_by_its_owner(trials: int) -> None:
    model = model_of("leaky").eval()
    images, labels = batch(1)
    shared = tuple(g[None] for g in mean_gradient(model, F.cross_entropy, images, labels))
    held = [weakref.ref(s.untyped_storage()) for s in shared] + [weakref.ref(s) for s in shared]
    guesses, rows = batch(2)[0].expand(trials, -1, -1, -1, -1), torch.zeros(trials, dtype=torch.long)
    engine.match(model, F.cross_entropy, guesses, labels.expand(trials, -1), shared, engine.cosine, rows)
    del shared
    gc.collect()
    assert not any(reference() is not None for reference in held)


def test_small_networks_of_unknown_layers_take_the_vectorised_pass(ways: list[str]) -> None:
    model = model_of("attention").eval()
    shared = tuple(torch.randn(2, *p.shape, dtype=p.dtype) for p in parameters_of(model)[1])
    images, labels = torch.stack([batch(1)[0], batch(2)[0]]), torch.stack([batch(1)[1], batch(2)[1]])
    engine.match(model, F.cross_entropy, images, labels, shared, engine.cosine)
    assert ways[-1] == "vectorised"


def test_a_trial_that_has_arrived_does_not_discredit_the_stack(ways: list[str]) -> None:
    """At the truth the slope is rounding, and two exact ways differ in it: one trial there, and then all."""
    model = model_of("leaky").float().eval()
    images, labels = batch(1)[0].float(), batch(1)[1]
    shared = tuple(g[None] for g in mean_gradient(model, F.cross_entropy, images, labels))
    for guesses in (torch.stack([images + 0.3, images]), torch.stack([images, images])):
        for _ in range(4):
            engine.match(
                model, F.cross_entropy, guesses, labels.expand(2, -1), shared, engine.cosine, torch.tensor([0, 0])
            )
        assert ways[-1] == "stacked"


def test_the_energy_of_an_update_is_never_anothers(generator: torch.Generator) -> None:
    """The first tensor may stay while the others come and go, or are written to; one has no dimensions."""
    first = torch.randn(2, 3, generator=generator)
    for _ in range(20):
        rest = torch.randn(2, 4, 5, generator=generator), torch.randn(2, generator=generator)
        for _ in range(2):
            expected = sum(s.reshape(2, -1).square().sum(1) for s in (first, *rest))
            torch.testing.assert_close(engine.energy((first, *rest)), expected)
            rest[0].mul_(2)
        del rest
    with torch.inference_mode():
        frozen = torch.ones(2, 3)
    torch.testing.assert_close(engine.energy((frozen,)), torch.full((2,), 3.0))


class SpiedBatch(nn.Module):
    """Trials see each other, but only the last of the stack is changed by it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(72, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.tanh(x.flatten(1))
        changed = torch.cat([flat[:-1], flat[-1:] - flat[:1].square() * (len(flat) > BATCH)])
        found: Tensor = self.head(changed)
        return found


def test_the_first_check_is_of_all_trials(ways: list[str]) -> None:
    torch.manual_seed(0)
    model = PixelModel(SpiedBatch(), (0.4, 0.5), (0.2, 0.3)).double().eval()
    images, labels = torch.stack([batch(s)[0] for s in range(5)]), torch.stack([batch(s)[1] for s in range(5)])
    shared = tuple(torch.randn(5, *p.shape, dtype=p.dtype) for p in parameters_of(model)[1])
    _, slopes = engine.match(model, F.cross_entropy, images, labels, shared, engine.cosine)
    assert ways[-1] == "vectorised"  # where no trial can see another
    exact = engine.WAYS["loop"](Trials(model, F.cross_entropy, images, labels, shared, engine.cosine, torch.arange(5)))[
        1
    ]
    torch.testing.assert_close(slopes, exact)


def test_every_distance_is_checked_however_small_its_values(ways: list[str]) -> None:
    """Only the cosine knows when a picture has arrived."""

    def similarity(dot: Tensor, square: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return -dot, -torch.ones_like(dot), torch.zeros_like(dot)

    torch.manual_seed(0)
    model = PixelModel(SpiedBatch(), (0.4, 0.5), (0.2, 0.3)).double().eval()
    images, labels = torch.stack([batch(s)[0] for s in range(3)]), torch.stack([batch(s)[1] for s in range(3)])
    shared = tuple(torch.randn(3, *p.shape, dtype=p.dtype) for p in parameters_of(model)[1])
    engine.match(model, F.cross_entropy, images, labels, shared, engine.Span(similarity))
    assert ways[-1] == "vectorised"  # where no trial can see another


def test_checks_go_round_all_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("leaky").eval()
    images, labels = torch.stack([batch(s)[0] for s in range(4)]), torch.stack([batch(s)[1] for s in range(4)])
    shared = tuple(torch.randn(4, *p.shape, dtype=p.dtype) for p in parameters_of(model)[1])
    seen: list[int] = []
    judge = engine._one_by_one

    def spied(job: Trials, others: Tensor | None) -> tuple[Tensor, Tensor]:
        seen.extend(job.rows.tolist())
        return judge(job, others)

    monkeypatch.setattr(engine, "_one_by_one", spied)
    for _ in range(16):
        engine.match(model, F.cross_entropy, images, labels, shared, engine.cosine)
    assert seen[:4] == [0, 1, 2, 3]
    assert seen[4:] == [1, 2, 3, 0]


def test_a_victim_that_is_not_finite_leaves_the_others_checked(ways: list[str]) -> None:
    torch.manual_seed(0)
    model = PixelModel(SpiedBatch(), (0.4, 0.5), (0.2, 0.3)).double().eval()
    images, labels = torch.stack([batch(s)[0] for s in range(3)]), torch.stack([batch(s)[1] for s in range(3)])
    shared = tuple(torch.randn(3, *p.shape, dtype=p.dtype) for p in parameters_of(model)[1])
    shared[0][0] = torch.nan
    engine.match(model, F.cross_entropy, images, labels, shared, engine.cosine)
    assert ways[-1] == "vectorised"  # where no trial can see another


def test_losses_need_no_hash_and_models_may_object_to_a_stack() -> None:
    @dataclass
    class Unhashable:
        def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(logits, labels)

    class Strict(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(72, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            assert len(x) == BATCH, "one batch at a time"
            found: Tensor = self.head(torch.tanh(x.flatten(1)))
            return found

    torch.manual_seed(0)
    model = PixelModel(Strict(), (0.4, 0.5), (0.2, 0.3)).double().eval()
    images, labels = torch.stack([batch(s)[0] for s in range(2)]), torch.stack([batch(s)[1] for s in range(2)])
    shared = tuple(torch.randn(2, *p.shape, dtype=p.dtype) for p in parameters_of(model)[1])
    for _ in range(30):
        with torch.no_grad():
            values, _ = engine.match(model, Unhashable(), images, labels, shared, engine.cosine)
        assert values.isfinite().all()
    assert len(engine._known[model]) <= engine.HISTORIES
    assert engine.match(model, F.cross_entropy, images[:0], labels[:0], shared, engine.cosine)[1].shape[0] == 0
    with pytest.raises(ValueError, match="1 shared tensors for 2 parameters"):
        engine.match(model, F.cross_entropy, images, labels, shared[:1], engine.cosine)


def test_hardsigmoid_in_place_stays_in_place() -> None:
    x = torch.linspace(-4, 4, 9)
    with engine.twice_differentiable():
        found = x.clone()
        F.hardsigmoid(found, inplace=True)
        torch.testing.assert_close(F.hardsigmoid(input=x), found)
    torch.testing.assert_close(F.hardsigmoid(x), found)
