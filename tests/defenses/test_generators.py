"""The two generators: distances checked against a second computation, nothing private kept, the same x̃ after reload."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from leakaudit.defenses.class_conditional import ClassConditional
from leakaudit.defenses.generator_training import energy_distance, energy_score, limit_rate, mean_gap
from leakaudit.defenses.generators import ClassCode, GeneratorNetwork, Sizes, grid_of, kl, load_network
from leakaudit.defenses.obscure import Obscure, identification_bound
from leakaudit.target import PixelModel, Records, Target

Generator = torch.Generator


def blobs(n: int, classes: int, shape: tuple[int, int, int], seed: int) -> Records:
    """Pictures with a class mean, shared structure and noise, so that there is something to obscure."""
    rng = Generator().manual_seed(7)
    means = torch.rand(classes, *shape, generator=rng) * 0.4 + 0.3
    directions = torch.randn(4, *shape, generator=rng) * 0.1
    rng.manual_seed(seed)
    labels = torch.arange(n) % classes
    codes = torch.randn(n, 4, generator=rng)
    noise = 0.03 * torch.randn(n, *shape, generator=rng)
    return Records((means[labels] + torch.einsum("nk,kchw->nchw", codes, directions) + noise).clamp(0, 1), labels)


def make_target(n: int = 60, classes: int = 3, shape: tuple[int, int, int] = (3, 12, 12)) -> Target:
    model = PixelModel(nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes)))
    sets = [blobs(n, classes, shape, seed) for seed in range(3)]
    return Target("blobs", model, nn.CrossEntropyLoss(), *sets, classes=tuple(map(str, range(classes))))


@pytest.fixture(scope="module")
def target() -> Target:
    return make_target()


@pytest.fixture(scope="module")
def obscure(target: Target) -> Obscure:
    fitted = Obscure(steps=5).fit(target, Generator().manual_seed(0))
    assert isinstance(fitted, Obscure)
    return fitted


def reachable_tensors(thing: object, seen: set[int]) -> Iterator[Tensor]:
    """Walk attributes, containers and modules."""
    if id(thing) in seen or isinstance(thing, type | str | int | float | bool | None):
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield thing
    inside: list[object] = []
    if isinstance(thing, dict):
        inside = list(thing.values())
    elif isinstance(thing, list | tuple | set | frozenset):
        inside = list(thing)
    elif hasattr(thing, "__dict__"):
        inside = list(vars(thing).values())
    for item in inside:
        yield from reachable_tensors(item, seen)


@pytest.mark.parametrize("kind", [Obscure, ClassConditional])
def test_no_private_record_is_reachable_from_a_fitted_defense(kind, target: Target) -> None:
    fitted = kind(steps=2).fit(target, Generator().manual_seed(0))
    private = target.private.images
    records = private.flatten(1)
    found = list(reachable_tensors(fitted, set()))
    assert len(found) > 10  # the walk does reach the networks' parameters
    for tensor in found:
        assert tensor.shape != private.shape
        assert tensor.data_ptr() != private.data_ptr()
        if tensor.dim() >= 2 and tensor[0].numel() == records.shape[1]:  # rows that could be pictures
            rows = tensor.reshape(len(tensor), -1)
            assert float(torch.cdist(rows, records).min()) > 0.1


def test_the_walk_would_find_a_private_record(target: Target) -> None:
    holder = nn.Linear(2, 2)
    holder.hidden = {"kept": [target.private.images]}
    shapes = [t.shape for t in reachable_tensors(holder, set())]
    assert target.private.images.shape in shapes


def test_replaced_records_are_distinct_and_in_range(target: Target, obscure: Obscure, generator: Generator) -> None:
    x, y = target.private.images, target.private.labels
    replaced, labels = obscure.transform_records(x, y, generator)
    assert replaced.shape == x.shape
    assert replaced.dtype == x.dtype
    assert torch.equal(labels, y)
    assert float(replaced.min()) >= 0
    assert float(replaced.max()) <= 1
    means = torch.stack([x[y == c].mean(0) for c in range(3)])
    class_mean_mse = float((means[y] - x).square().mean())
    each = (replaced - x).square().flatten(1).mean(1)
    assert float(each.mean()) > 0.5 * class_mean_mse
    assert int((each == 0).sum()) == 0


def test_the_rate_is_met_and_stated(target: Target, obscure: Obscure) -> None:
    assert obscure.network is not None
    rates = obscure.network.rates(target.private.images, target.private.labels)
    assert bool(rates.isfinite().all())
    assert bool((rates >= 0).all())
    assert 0 < float(rates.mean()) <= obscure.rate * 1.001
    facts = obscure.facts(60, 4, 10)
    assert facts["rate beyond the label, nats"] == pytest.approx(float(rates.mean()), rel=1e-4)
    assert facts["identification among 100 private records, at most"] == pytest.approx(
        (float(rates.mean()) + math.log(2)) / math.log(100), rel=1e-4
    )


def test_a_rate_of_zero_cuts_the_record_off(target: Target, generator: Generator) -> None:
    closed = Obscure(steps=1, rate=0.0).fit(target, generator)
    x, y = target.private.images, target.private.labels
    other = torch.rand(x.shape, generator=generator)
    first, _ = closed.transform_records(x, y, Generator().manual_seed(3))
    second, _ = closed.transform_records(other, y, Generator().manual_seed(3))
    torch.testing.assert_close(first, second, atol=1e-3, rtol=0)


def test_open_gates_let_more_of_the_record_through(target: Target, obscure: Obscure) -> None:
    x, y = target.private.images, target.private.labels
    network = copy.deepcopy(obscure.network)
    assert network is not None

    def error() -> float:
        assert network is not None
        return float((network.release(x, y, Generator().manual_seed(5)) - x).square().mean())

    before = error()
    network.gate.fill_(3.0)
    assert error() < 0.5 * before
    assert float(network.rates(x, y).mean()) > 5


def test_class_conditional_uses_labels_only(target: Target, generator: Generator) -> None:
    fitted = ClassConditional(steps=2).fit(target, generator)
    x, y = target.private.images, target.private.labels
    first, _ = fitted.transform_records(x, y, Generator().manual_seed(3))
    second, _ = fitted.transform_records(torch.zeros_like(x), y, Generator().manual_seed(3))
    assert torch.equal(first, second)
    assert fitted.facts(60, 1, 1)["rate beyond the label, nats"] == 0.0


@pytest.mark.parametrize("kind", [Obscure, ClassConditional])
def test_fit_depends_on_the_generator_alone(kind, target: Target) -> None:
    x, y = target.private.images[:6], target.private.labels[:6]
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(int(torch.randint(1000, (1,))))  # the global state must not matter
        fitted = kind(steps=2).fit(target, Generator().manual_seed(seed))
        drawn.append(fitted.transform_records(x, y, Generator().manual_seed(9))[0])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_saved_and_reloaded_gives_the_same_records(target: Target, obscure: Obscure, tmp_path: Path) -> None:
    files = obscure.save(tmp_path / "run")
    assert sorted(f.name for f in files) == ["obscure.json", "obscure.safetensors"]
    again = Obscure(steps=5).load(tmp_path / "run")
    x, y = target.private.images, target.private.labels
    a, _ = obscure.transform_records(x, y, Generator().manual_seed(4))
    b, _ = again.transform_records(x, y, Generator().manual_seed(4))
    assert torch.equal(a, b)


def test_class_conditional_saves_its_network(target: Target, tmp_path: Path, generator: Generator) -> None:
    assert ClassConditional().save(tmp_path) == []
    fitted = ClassConditional(steps=1).fit(target, generator)
    fitted.save(tmp_path)
    x, y = target.private.images, target.private.labels
    a, _ = fitted.transform_records(x, y, Generator().manual_seed(4))
    assert torch.equal(a, load_network(tmp_path, "class-conditional").release(x, y, Generator().manual_seed(4)))


def test_an_unfitted_generator_says_so(target: Target, generator: Generator) -> None:
    with pytest.raises(RuntimeError, match="fit"):
        Obscure().transform_records(target.private.images, target.private.labels, generator)


@pytest.mark.parametrize(
    ("n", "classes", "shape"), [(12, 2, (1, 25, 25)), (30, 30, (3, 9, 14)), (9, 4, (3, 70, 96)), (5, 2, (1, 3, 3))]
)
def test_any_shape_and_very_few_records(
    n: int, classes: int, shape: tuple[int, int, int], generator: Generator
) -> None:
    target = make_target(n, classes, shape)
    fitted = Obscure(steps=2).fit(target, generator)
    unseen = torch.rand(2, *shape, generator=generator)
    replaced, _ = fitted.transform_records(unseen, torch.tensor([0, classes - 1]), generator)
    assert replaced.shape == unseen.shape
    assert bool(replaced.isfinite().all())


def test_grid_keeps_small_pictures_and_bounds_large_ones() -> None:
    assert grid_of(25, 25) == (25, 25)
    assert grid_of(224, 224) == (64, 64)
    assert grid_of(128, 64) == (64, 32)


def test_class_code_whitens_every_class_and_inverts(generator: Generator) -> None:
    records = blobs(4000, 2, (1, 5, 4), 1)
    flat = records.images.flatten(1)
    code = ClassCode(20, 2, 21)  # as many directions as pixels and the contrast: nothing is cut off
    code.measure(flat, records.labels, generator)
    z = code.encode(flat, records.labels)
    for c in (0, 1):
        mine = z[records.labels == c]
        assert float(mine.mean(0).abs().max()) < 0.3  # dividing by the contrast leaves a little skew
        torch.testing.assert_close(torch.cov(mine[:, :20].T), torch.eye(20), atol=0.12, rtol=0)
        assert float(mine[:, 20].std()) == pytest.approx(1, abs=0.05)
    torch.testing.assert_close(code.decode(z, records.labels), flat, atol=1e-3, rtol=0)


def test_sharing_the_covariance_forgets_records(generator: Generator) -> None:
    # 40 records per class in 30 directions: the class's own covariance knows which records it was made from.
    rng = Generator().manual_seed(1)
    members, others, labels = (
        torch.randn(400, 40, generator=rng),
        torch.randn(400, 40, generator=rng),
        torch.arange(400) % 10,
    )

    def area(shared: float) -> float:
        code = ClassCode(40, 10, 31)
        code.measure(members, labels, generator, shared)
        inside, outside = (code.encode(x, labels)[:, :-1].norm(dim=1) for x in (members, others))
        return float((inside[:, None] < outside[None]).float().mean())

    assert area(0.0) > 0.9
    assert area(1.0) < 0.75


def test_kl_is_that_of_torch_distributions(generator: Generator) -> None:
    mean, variance = torch.randn(5, 3, generator=generator), torch.rand(5, 3, generator=generator) + 0.1
    from torch.distributions import Normal, kl_divergence

    expected = kl_divergence(Normal(mean, variance.sqrt()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(kl(mean, variance), expected)


def test_identification_bound_by_hand() -> None:
    assert identification_bound(0.5, 100) == pytest.approx(0.25909, abs=1e-5)
    assert identification_bound(50.0, 100) == 1.0


def test_energy_distance_by_loops_and_its_minimum(generator: Generator) -> None:
    fake, real = torch.randn(2, 3, 4, generator=generator), torch.randn(2, 5, 4, generator=generator)
    expected = 0.0
    for g in range(2):
        cross = sum(float((f - r).norm()) for f in fake[g] for r in real[g]) / 15
        inner = sum(float((fake[g, i] - fake[g, j]).norm()) for i in range(3) for j in range(3) if i != j) / 6
        expected += (2 * cross - inner) / 2
    assert float(energy_distance(fake, real)) == pytest.approx(expected, rel=1e-4)
    # The right distribution scores better than its mean alone and than a wider one.
    real = torch.randn(1, 400, 8, generator=generator)
    right = energy_distance(torch.randn(1, 400, 8, generator=generator), real)
    assert right < energy_distance(torch.zeros(1, 400, 8), real)
    assert right < energy_distance(2 * torch.randn(1, 400, 8, generator=generator), real)


def test_energy_score_prefers_the_conditional_distribution_to_its_mean(generator: Generator) -> None:
    def noise() -> Tensor:
        return torch.randn(3000, 4, generator=generator)

    real = noise()
    assert energy_score(noise(), noise(), real) < energy_score(torch.zeros(3000, 4), torch.zeros(3000, 4), real)


def test_mean_gap_does_not_punish_spread(generator: Generator) -> None:
    real = torch.zeros(1, 10, 3)
    gaps = [float(mean_gap(torch.randn(1, 6, 3, generator=generator), real)) for _ in range(2000)]
    assert abs(sum(gaps) / len(gaps)) < 0.05  # the squared mean of six would average 0.5
    assert float(mean_gap(torch.full((1, 6, 3), 2.0), real)) == pytest.approx(12.0)


def test_limit_rate_closes_open_gates(generator: Generator) -> None:
    network = GeneratorNetwork(Sizes(1, 5, 4, 2, 6, 4, True))
    records = blobs(50, 2, (1, 5, 4), 2)
    network.code.measure(records.images.flatten(1), records.labels, generator)
    with torch.no_grad():
        network.gate.fill_(3.0)
    before = float(network.rates(records.images, records.labels).mean())
    limit_rate(network, records, 0.3)
    after = float(network.rates(records.images, records.labels).mean())
    assert before > 1
    assert 0.29 < after <= 0.3
