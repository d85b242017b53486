"""Every registered defense changes what is shared, is deterministic, keeps shapes, refuses bad settings, composes."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from leakaudit.errors import UserError
from leakaudit.protocol import registry
from leakaudit.protocol.client import defended_gradient
from leakaudit.protocol.defense import Chain, Defense, chain, replaces_records
from leakaudit.protocol.target import PixelModel, Records, Target

NAMES = sorted(registry.defenses())
CHANGING = [name for name in NAMES if name != "none"]

BAD = [
    ("gaussian:std=-1", "std"),
    ("laplace:scale=-0.1", "scale"),
    ("clip:max_norm=0", "max_norm"),
    ("prune:sparsity=1", "sparsity"),
    ("prune:sparsity=-0.5", "sparsity"),
    ("dp-sgd:noise_multiplier=-1", "noise_multiplier"),
    ("dp-sgd:max_norm=0", "max_norm"),
    ("dp-sgd:delta=0", "delta"),
    ("dp-sgd:delta=1", "delta"),
    ("class-conditional:latent=0", "latent"),
    ("class-conditional:shared=2", "shared"),
    ("obscure:shared=-0.1", "shared"),
    ("obscure:rate=-1", "rate"),
    ("obscure:opinion=many", "finite number"),
    ("obscure:opinion=2", "opinion"),
    ("obscure:steps=0", "steps"),
    ("obscure:pictures=0", "pictures"),
    ("mixup:k=1", "k must"),
    ("instahide:k=0", "k must"),
    ("instahide:max_weight=1.5", "max_weight"),
    ("mixup:max_weight=0.25", "max_weight"),
    ("qsgd:levels=0", "levels"),
    ("ats:candidates=0", "candidates"),
    ("ats:useful=0", "useful"),
    ("ats:candidates=3:policies=4", "policies"),
    ("soteria:percentile=-1", "percentile"),
    ("soteria:percentile=101", "percentile"),
    ("soteria:probes=0", "probes"),
    ("precode:bottleneck=0", "bottleneck"),
    ("precode:beta=-1", "beta"),
    ("gaussian:std=nan", "finite number"),
    ("gaussian:sigma=1", "sigma"),
]


@cache
def target() -> Target:
    rng = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    sets = [Records(torch.rand(24, 3, 8, 8, generator=rng), torch.arange(24) % 4) for _ in range(3)]
    return Target("random", PixelModel(network), nn.CrossEntropyLoss(), *sets, classes=("a", "b", "c", "d"))


@cache
def fitted(name: str) -> Defense:
    """The defense at its default settings, but for the length of training, which only quality depends on."""
    defense = registry.defenses()[name]()
    if "steps" in registry.settings_of(type(defense)):
        defense = replace(defense, steps=2)  # type: ignore[call-arg]
    return defense.fit(target(), torch.Generator().manual_seed(0))


def shared(defense: Defense, seed: int, count: int = 3) -> tuple[Tensor, ...]:
    rng = torch.Generator().manual_seed(seed)
    records = target().private[:count]
    images, labels = defense.transform_records(records.images, records.labels, rng)
    model = defense.transform_model(target().model, rng)
    with torch.random.fork_rng(enabled=model is not target().model):
        if model is not target().model:  # a network may draw from the global generator, as dropout does; stages may not
            torch.manual_seed(seed)
        # A model whose gradient is long enough that clipping at the default norm does something.
        return defended_gradient(
            model, lambda o, y: 30 * nn.functional.cross_entropy(o, y), images, labels, defense, rng
        )


def changes_model(name: str) -> bool:
    model = target().model
    return fitted(name).transform_model(model, torch.Generator().manual_seed(0)) is not model


def test_the_expected_defenses_are_registered() -> None:
    assert {"none", "gaussian", "laplace", "clip", "prune", "dp-sgd", "class-conditional", "obscure"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_described_and_sourced(name: str) -> None:
    cls = registry.defenses()[name]
    assert cls.name == name
    assert cls.summary
    assert cls.__doc__
    if name != "none":
        assert cls.source
        assert cls.adaptive  # without an adaptive attack the verdict could never be a pass


@pytest.mark.parametrize("name", CHANGING)
def test_changes_the_update_at_its_default_setting(name: str) -> None:
    plain, defended = shared(Defense(), 1), shared(fitted(name), 1)
    if changes_model(name):
        defended = defended[: len(plain) - 2]  # what is before its new layers
        plain = plain[: len(plain) - 2]
    length = torch.cat([g.flatten() for g in plain]).norm()
    gap = torch.cat([(a - b).flatten() for a, b in zip(plain, defended, strict=True)]).norm()
    assert float(gap / length) > 1e-3
    assert [g.shape for g in defended] == [g.shape for g in plain]
    assert all(bool(g.isfinite().all()) for g in defended)


def test_none_changes_nothing() -> None:
    for a, b in zip(shared(Defense(), 1), shared(fitted("none"), 2), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_is_deterministic_by_the_generator(name: str) -> None:
    torch.manual_seed(1)
    first = shared(fitted(name), 5)
    torch.manual_seed(2)
    again = shared(fitted(name), 5)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize(
    "name", ["gaussian", "laplace", "dp-sgd", "qsgd", "class-conditional", "obscure", "mixup", "instahide"]
)
def test_another_seed_draws_other_noise(name: str) -> None:
    assert not torch.equal(shared(fitted(name), 5)[0], shared(fitted(name), 6)[0])


@pytest.mark.parametrize("name", NAMES)
def test_leaves_the_global_random_state_alone(name: str) -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    defense = registry.defenses()[name]()
    if "steps" in registry.settings_of(type(defense)):
        defense = replace(defense, steps=1)  # type: ignore[call-arg]
    shared(defense.fit(target(), torch.Generator().manual_seed(0)), 1)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("name", NAMES)
def test_record_stage_keeps_shapes_range_and_labels(name: str) -> None:
    defense, records = fitted(name), target().private
    images, labels = defense.transform_records(records.images, records.labels, torch.Generator().manual_seed(0))
    assert images.shape == records.images.shape
    if labels.is_floating_point():  # mixed: the label of every component, and no other
        assert labels.shape == (len(records), 4)
        assert float(labels.min()) >= 0
        torch.testing.assert_close(labels.sum(1), torch.ones(len(records)))
        assert bool((labels.gather(1, records.labels[:, None]) > 0).all())
    else:
        assert torch.equal(labels, records.labels)
    assert replaces_records(defense) == (not torch.equal(images, records.images))
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_frozen_and_round_trip(name: str) -> None:
    defense = registry.defenses()[name]()
    values = registry.settings_values(defense)
    assert type(defense)(**values) == defense
    for key, value in values.items():
        spec = f"{name}:{key.replace('_', '-')}={value}"
        assert value is None or registry.parse_defense(spec) == defense  # what is left out is not written
        with pytest.raises(FrozenInstanceError):
            setattr(defense, key, value)


@pytest.mark.parametrize(("spec", "named"), BAD)
def test_a_bad_setting_is_one_sentence(spec: str, named: str) -> None:
    with pytest.raises(UserError, match=named) as caught:
        registry.parse_defense(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_facts_are_plain_and_finite(name: str) -> None:
    for value in fitted(name).facts(records=24, batch_size=4, steps=10).values():
        assert isinstance(value, str) or abs(float(value)) < float("inf")


@pytest.mark.parametrize("name", NAMES)
def test_defenses_that_learn_nothing_save_nothing(name: str, tmp_path: Path) -> None:
    written = fitted(name).save(tmp_path)
    assert sorted(written) == sorted(file for file in tmp_path.rglob("*") if file.is_file())
    learns = any(f.metadata.get("state") and not f.metadata["describes"] for f in fields(fitted(name)))
    assert learns or not written


def test_a_chain_applies_its_parts_left_to_right() -> None:
    gradients = (torch.tensor([3.0, 4.0, 0.5, 0.1]),)
    rng = torch.Generator().manual_seed(0)
    cut_then_clip = registry.parse_defense("prune:sparsity=0.5,clip:max_norm=1")
    clip_then_noise = registry.parse_defense("clip:max_norm=1,gaussian:std=10")
    noise_then_clip = registry.parse_defense("gaussian:std=10,clip:max_norm=1")
    torch.testing.assert_close(cut_then_clip.transform_update(gradients, 1, rng)[0], torch.tensor([0.6, 0.8, 0, 0]))
    assert float(clip_then_noise.transform_update(gradients, 1, rng)[0].norm()) > 2
    assert float(noise_then_clip.transform_update(gradients, 1, rng)[0].norm()) == pytest.approx(1, rel=1e-5)


def test_a_chain_of_nothing_and_of_one() -> None:
    only = registry.parse_defense("clip")
    assert chain(only) is only
    assert all(torch.equal(a, b) for a, b in zip(shared(chain(), 1), shared(Defense(), 1), strict=True))


def test_a_chain_runs_every_stage_and_fits_every_part() -> None:
    both = Chain(parts=(replace(registry.defenses()["obscure"](), steps=1), registry.defenses()["dp-sgd"]()))  # type: ignore[call-arg]
    ready = both.fit(target(), torch.Generator().manual_seed(0))
    assert ready.needs_example_gradients
    assert replaces_records(ready)
    facts = ready.facts(24, 4, 10)
    assert {"epsilon", "rate of one release, nats"} <= set(facts)
    assert all(bool(g.isfinite().all()) for g in shared(ready, 1))
