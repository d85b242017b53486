"""The two generators: what they draw, what a draw may tell, and that nothing private is kept."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from leakaudit.defenses import obscure as obscure_module
from leakaudit.defenses._class_code import ClassCode, grid_of
from leakaudit.defenses._joint_code import joint_code
from leakaudit.defenses._reference import opinions, tempered, train_reference
from leakaudit.defenses._refinement import gap, misses, refined, seen_by
from leakaudit.defenses.class_conditional import ClassConditional
from leakaudit.defenses.obscure import Obscure
from leakaudit.defenses.obscurer import identification_bound, looked_at, with_rate
from leakaudit.errors import OutOfTime, UserError
from leakaudit.protocol.target import PixelModel, Records, Target
from leakaudit.work.progress import Monitor, monitored

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
    fitted = Obscure(steps=3, epochs=4).fit(target, Generator().manual_seed(0))
    assert isinstance(fitted, Obscure)
    return fitted


def quick(kind):
    """The least that can be fitted."""
    return kind(steps=1, epochs=1) if kind is Obscure else kind()


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
    fitted = quick(kind).fit(target, Generator().manual_seed(0))
    private = target.private.images
    records = private.flatten(1)
    found = list(reachable_tensors(fitted, set()))
    assert len(found) >= 2  # the walk does reach what was fitted
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
    assert labels.shape == (60, 3)
    torch.testing.assert_close(labels.sum(1), torch.ones(60))
    assert float(replaced.min()) >= 0
    assert float(replaced.max()) <= 1
    means = torch.stack([x[y == c].mean(0) for c in range(3)])
    class_mean_mse = float((means[y] - x).square().mean())
    each = (replaced - x).square().flatten(1).mean(1)
    assert float(each.mean()) > 0.5 * class_mean_mse
    assert float(torch.cdist(replaced.flatten(1), x.flatten(1)).min()) > 0  # of nobody, not only not of its own record


def test_at_rate_zero_neither_record_nor_label_enters(target: Target, obscure: Obscure, generator: Generator) -> None:
    x, y = target.private.images, target.private.labels
    first = obscure.transform_records(x, y, Generator().manual_seed(3))
    second = obscure.transform_records(torch.rand(x.shape, generator=generator), 2 - y, Generator().manual_seed(3))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert obscure.renewable
    assert obscure.likelihood(x, x) is None
    facts = obscure.facts(60, 4, 10)
    assert facts["rate of one release, nats"] == 0.0
    assert facts["identification among 100 private records by one release, at most"] == pytest.approx(0.01)


def test_at_rate_zero_every_picture_comes_before_one_comes_twice(obscure: Obscure, generator: Generator) -> None:
    assert obscure.obscurer is not None
    count = len(obscure.obscurer.pictures)
    chosen = obscure.obscurer.choose(torch.zeros(2 * count, 3, 12, 12), generator)
    assert torch.bincount(chosen, minlength=count).tolist() == [2] * count


def test_a_rate_is_met_and_stated_and_bounds_the_choice(target: Target, obscure: Obscure) -> None:
    bank = obscure.obscurer
    assert bank is not None
    limited, nats = with_rate(lambda slope: replace(bank, slope=slope), target.private, 0.3)
    fitted = replace(obscure, rate=0.3, obscurer=limited, nats=nats)
    q = limited.chances(target.private.images)
    uniform = torch.full_like(q[0], 1 / q.shape[1])
    direct = torch.distributions.kl_divergence(
        torch.distributions.Categorical(q), torch.distributions.Categorical(uniform.expand_as(q))
    )
    torch.testing.assert_close(limited.rates(target.private.images), direct, atol=1e-4, rtol=1e-3)
    assert 0.28 < float(direct.mean()) < 0.3001
    assert not fitted.renewable
    # Pure DP of the exponential mechanism: no two records' chances of a picture differ by more than e^(2·slope).
    logs = q.log()
    assert float((logs.max(0).values - logs.min(0).values).max()) <= 2 * limited.slope + 1e-4
    facts = fitted.facts(60, 4, 10)
    assert facts["rate of one release, nats"] == nats
    assert facts["local zero-concentrated DP of one release, ρ"] == pytest.approx(limited.slope**2 / 2)


def test_the_choice_follows_its_distribution_and_likelihood_knows_it(target: Target, obscure: Obscure) -> None:
    bank = obscure.obscurer
    assert bank is not None
    steep = replace(bank, slope=6.0)
    x = target.private.images[:1]
    drawn = steep.choose(x.expand(4000, -1, -1, -1), Generator().manual_seed(1))
    empirical = torch.bincount(drawn, minlength=len(bank.pictures)) / 4000
    torch.testing.assert_close(empirical, steep.chances(x)[0], atol=0.03, rtol=0)
    found = steep.likelihood(bank.pictures[:5], target.private.images)
    torch.testing.assert_close(found, steep.chances(target.private.images)[:, :5].T.log())


def test_without_a_generator_the_choice_cannot_be_repeated_and_follows_its_distribution(
    target: Target, obscure: Obscure
) -> None:
    bank = obscure.obscurer
    assert bank is not None
    steep, x = replace(bank, slope=6.0), target.private.images[:1].expand(4000, -1, -1, -1)
    drawn = []
    for _ in range(2):
        torch.manual_seed(5)  # torch keeps 32 bits of a seed: whoever searches them must not find the choice
        drawn.append(steep.choose(x, Generator().manual_seed(1), secret=True))
    assert not torch.equal(drawn[0], drawn[1])
    empirical = torch.bincount(drawn[0], minlength=len(bank.pictures)) / 4000
    torch.testing.assert_close(empirical, steep.chances(x[:1])[0], atol=0.03, rtol=0)
    torch.manual_seed(5)
    first = steep(x[:200])[0]
    torch.manual_seed(5)
    assert not torch.equal(first, steep(x[:200])[0])


def test_no_attacker_beats_the_bound_on_what_a_release_tells(target: Target, obscure: Obscure) -> None:
    bank = obscure.obscurer
    assert bank is not None
    x = target.private.images[:20]
    for slope in (0.5, 2.0, 8.0):
        steep = replace(bank, slope=slope)
        q = steep.chances(x)
        best = float((q.max(0).values / len(x)).sum())  # the ideal attacker: argmax_i q(j | x_i) for every j
        assert best <= identification_bound(float(steep.rates(x).mean()), len(x)) + 1e-6


def test_a_slope_passes_for_attacks_that_differentiate(target: Target, obscure: Obscure) -> None:
    bank = obscure.obscurer
    assert bank is not None
    steep, x = replace(bank, slope=4.0), target.private.images[:3].clone().requires_grad_(True)
    shown, _ = steep(x, Generator().manual_seed(2))
    torch.testing.assert_close(shown.detach(), steep(x.detach(), Generator().manual_seed(2))[0])
    (slope,) = torch.autograd.grad(shown.square().sum(), x)
    assert float(slope.abs().max()) > 0
    assert not bank(x, Generator().manual_seed(2))[0].requires_grad


def test_a_reference_that_the_time_ends_says_so_in_a_sentence() -> None:
    records = Records(torch.rand(12, 1, 8, 8), torch.arange(12) % 3)
    rng = torch.Generator().manual_seed(0)
    with monitored(Monitor(deadline=time.monotonic() - 1)), pytest.raises(OutOfTime, match="the time budget ended"):
        train_reference(records, 3, (4, 8), epochs=40, mirror=False, generator=rng)


def test_references_learn_the_classes_and_refinement_brings_their_statistics_nearer(
    target: Target, generator: Generator
) -> None:
    reference = train_reference(
        target.private, 3, (8, 16), epochs=120, mirror=False, generator=Generator().manual_seed(0)
    )
    held = target.test
    assert float((reference.logits(held.images).argmax(1) == held.labels).float().mean()) > 0.8
    labels = torch.arange(60) % 3
    code = joint_code(target.private, [reference], 3, latent=12, mirror=False, shared=0.2, generator=generator)
    sketches = code.draw(labels, Generator().manual_seed(2))
    made = {n: refined(code, labels, [reference], steps=n, generator=Generator().manual_seed(1)) for n in (1, 40)}
    before, after = (seen_by(reference, x) for x in (sketches.pictures, made[40]))
    assert float(after[1]) < 0.5 * float(before[1])
    assert torch.nn.functional.cross_entropy(after[0], labels) < torch.nn.functional.cross_entropy(before[0], labels)
    assert not torch.equal(made[1], made[40])
    torch.testing.assert_close(after[0], reference.logits(made[40]))
    for seen, told in zip(after[2], reference.maps(made[40]), strict=True):
        torch.testing.assert_close(seen, told)
    assert opinions([reference], made[40], mirror=True).shape == (60, 3)


def test_a_picture_is_drawn_with_the_maps_of_its_own(target: Target, generator: Generator) -> None:
    reference = train_reference(target.private, 3, (8, 16), epochs=40, mirror=False, generator=generator)
    code = joint_code(target.private, [reference], 3, latent=15, mirror=False, shared=0.2, generator=generator)
    drawn = code.draw(torch.arange(60) % 3, generator)
    assert drawn.pictures.shape == (60, 3, 12, 12)
    seen = reference.maps(drawn.pictures)
    own, others = (misses(seen, [m.roll(k, 0) for m in drawn.maps[0]], code.spread_of(0)) for k in (0, 3))
    assert float(own) < float(others)  # of another picture of the same class
    assert float(misses(drawn.maps[0], drawn.maps[0], code.spread_of(0))) == 0.0


def test_a_temperature_keeps_the_order_and_softens(generator: Generator) -> None:
    p = torch.rand(5, 4, generator=generator).softmax(1)
    torch.testing.assert_close(tempered(p, 1.0), p)
    torch.testing.assert_close(tempered(p, 2.0), p.sqrt() / p.sqrt().sum(1, keepdim=True))
    assert torch.equal(tempered(p, 3.0).argsort(1), p.argsort(1))


def test_the_gap_is_zero_on_the_statistics_a_layer_learned(generator: Generator) -> None:
    layer, maps = nn.BatchNorm2d(4), 2 + 3 * torch.randn(50, 4, 6, 6, generator=generator)
    assert float(gap(layer, maps)) > 1
    layer.running_mean, layer.running_var = maps.mean((0, 2, 3)), maps.var((0, 2, 3), correction=0)
    assert float(gap(layer, maps)) < 1e-8


def test_public_pictures_take_the_place_of_drawn_ones(target: Target) -> None:
    fitted = Obscure(public=True, epochs=1).fit(target, Generator().manual_seed(0))
    assert isinstance(fitted, Obscure)
    assert fitted.obscurer is not None
    torch.testing.assert_close(fitted.obscurer.pictures, target.auxiliary.images, atol=1 / 255, rtol=0)


@pytest.mark.parametrize("public", [False, True])
def test_where_not_all_are_shown_classes_keep_their_share(public: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("MOST", "MOST_PUBLIC"):
        monkeypatch.setattr(obscure_module, limit, 60)
    target = make_target(120)
    ordered = [r[r.labels.argsort(stable=True)] for r in (target.private, target.auxiliary)]
    target = replace(target, private=ordered[0], auxiliary=ordered[1])
    fitted = Obscure(steps=1, epochs=1, opinion=0.0, public=public).fit(target, Generator().manual_seed(0))
    assert isinstance(fitted, Obscure)
    assert fitted.obscurer is not None
    counts = fitted.obscurer.labels.argmax(1).bincount(minlength=3)
    assert int(counts.sum()) == 60
    assert int(counts.min()) >= 8  # records that lie sorted by class lose none of them


def test_held_out_records_of_the_users_own_are_not_public(target: Target) -> None:
    own = replace(target, held_out=("test_data", "auxiliary_data"))
    with pytest.raises(UserError, match="auxiliary_data"):
        Obscure(public=True, epochs=1).fit(own, Generator().manual_seed(0))


def test_what_an_opinion_is_worth(target: Target) -> None:
    sure = Obscure(steps=1, epochs=1, opinion=0.0).fit(target, Generator().manual_seed(0))
    assert isinstance(sure, Obscure)
    assert sure.obscurer is not None
    assert torch.equal(sure.obscurer.labels.argmax(1), target.private.labels.repeat(2))
    assert set(sure.obscurer.labels.unique().tolist()) == {0.0, 1.0}


def test_class_conditional_uses_labels_only(target: Target, generator: Generator) -> None:
    fitted = ClassConditional().fit(target, generator)
    x, y = target.private.images, target.private.labels
    first, _ = fitted.transform_records(x, y, Generator().manual_seed(3))
    second, _ = fitted.transform_records(torch.zeros_like(x), y, Generator().manual_seed(3))
    assert torch.equal(first, second)
    assert fitted.facts(60, 1, 1)["rate beyond the label, nats"] == 0.0
    assert fitted.renewable


@pytest.mark.parametrize("kind", [Obscure, ClassConditional])
def test_fit_depends_on_the_generator_alone(kind, target: Target) -> None:
    x, y = target.private.images[:6], target.private.labels[:6]
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(int(torch.randint(1000, (1,))))  # the global state must not matter
        fitted = quick(kind).fit(target, Generator().manual_seed(seed))
        drawn.append(fitted.transform_records(x, y, Generator().manual_seed(seed))[0])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_an_unfitted_generator_says_so_and_saves_nothing(target: Target, generator: Generator, tmp_path: Path) -> None:
    for kind in (Obscure, ClassConditional):
        with pytest.raises(RuntimeError, match="fit"):
            kind().transform_records(target.private.images, target.private.labels, generator)
        assert kind().save(tmp_path) == []


@pytest.mark.parametrize(
    ("n", "classes", "shape"), [(12, 2, (1, 25, 25)), (30, 30, (3, 9, 14)), (9, 4, (3, 70, 96)), (5, 2, (1, 3, 3))]
)
def test_any_shape_and_very_few_records(
    n: int, classes: int, shape: tuple[int, int, int], generator: Generator
) -> None:
    target = make_target(n, classes, shape)
    fitted = Obscure(steps=1, epochs=1).fit(target, generator)
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
    code = ClassCode(1, (5, 4), 2, 21)  # as many directions as pixels and the contrast: nothing is cut off
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
        code = ClassCode(1, (8, 5), 10, 31)
        code.measure(members, labels, generator, shared)
        inside, outside = (code.encode(x, labels)[:, :-1].norm(dim=1) for x in (members, others))
        return float((inside[:, None] < outside[None]).float().mean())

    assert area(0.0) > 0.9
    assert area(1.0) < 0.75


def test_identification_bound_by_hand() -> None:
    assert identification_bound(0.0, 100) == pytest.approx(0.01)
    assert identification_bound(0.02, 100) == pytest.approx(0.11)  # Pinsker
    assert identification_bound(0.5, 100) == pytest.approx(0.25909, abs=1e-5)  # Fano
    assert identification_bound(50.0, 100) == 1.0


def test_what_the_choice_looks_at_is_sixteen_averages_a_channel(generator: Generator) -> None:
    x = torch.rand(2, 3, 8, 12, generator=generator)
    torch.testing.assert_close(looked_at(x)[0, 5], x[0, 0, 2:4, 3:6].mean())
