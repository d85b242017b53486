"""Leaving out what a defense touches: what is matched, the noise an update tells, and that it breaks both."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from leakaudit.attacks._labels import infer_labels
from leakaudit.attacks.analytic import Analytic
from leakaudit.attacks.inverting_gradients import InvertingGradients
from leakaudit.attacks.omitting import OmittingLayers, drawn_noise, parted, without
from leakaudit.defenses.gaussian import Gaussian
from leakaudit.defenses.precode import Precode, bottlenecks, with_noise
from leakaudit.defenses.soteria import Soteria
from leakaudit.engine import matching as engine
from leakaudit.errors import NotApplicable
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.defense import Defense, chain
from leakaudit.protocol.gradients import parameters_of
from leakaudit.protocol.registry import parse_attack
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.score.identification import candidate_sets, identify
from leakaudit.score.metrics import psnr
from tests.attacks.attack_scenes import conv_model, dense_model, records, shared_update

SHAPE = (1, 8, 8)
VICTIMS = 4


def scene(
    defense: Defense, batch: int = 1, model: PixelModel | None = None
) -> tuple[PixelModel, SharedUpdate, Records]:
    model = defense.transform_model(model or conv_model(SHAPE), torch.Generator().manual_seed(1))
    private = records(VICTIMS * batch, SHAPE, 3, seed=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        update = shared_update(
            model, private, defense=defense, batch_size=batch, auxiliary=records(12, SHAPE, 3, seed=2)
        )
    return model, update, private


@pytest.mark.parametrize("defense", [Soteria(), Precode()], ids=["soteria", "precode"])
def test_it_beats_the_plain_attack_and_finds_the_records(defense: Defense) -> None:
    model, update, private = scene(defense)
    pool = records(120, SHAPE, 3, seed=9)
    line_up = candidate_sets(private, torch.arange(VICTIMS), pool, 20, torch.Generator().manual_seed(0))
    quality, found = [], []
    for attack in (InvertingGradients(steps=80, tv=1e-3), OmittingLayers(steps=80, tv=1e-3)):
        guess = attack(model, update, torch.Generator().manual_seed(3))
        assert guess.images is not None
        quality.append(float(psnr(private.images, guess.images[:, 0]).median()))
        found.append(float(identify(line_up, guess.images[:, 0])[1].float().mean()))
    assert quality[1] > quality[0] + 3
    assert found[1] >= 0.75  # chance is 1/20
    assert found[1] >= found[0]


def test_the_noise_follows_from_one_records_update() -> None:
    model, _, private = scene(Precode(bottleneck=7))
    ((name, inserted),) = bottlenecks(model).items()
    noise = torch.randn(7, generator=torch.Generator().manual_seed(4))
    with with_noise(inserted, noise):
        update = shared_update(model, private)
    for v in range(VICTIMS):
        shared = {n: g[v] for n, g in zip(update.names, update.gradients, strict=True)}
        solved = drawn_noise(name, inserted, shared)
        assert solved is not None
        torch.testing.assert_close(solved, noise, atol=5e-3, rtol=0)


def test_noise_on_the_update_hides_the_noise_of_the_bottleneck() -> None:
    model, update, _ = scene(chain(Precode(bottleneck=7), Gaussian(std=1.0)))
    ((name, inserted),) = bottlenecks(model).items()
    assert drawn_noise(name, inserted, {n: g[0] for n, g in zip(update.names, update.gradients, strict=True)}) is None
    guess = OmittingLayers(steps=3)(model, update, torch.Generator().manual_seed(0))
    assert guess.statuses == ("converged",) * VICTIMS


def one_of(update: SharedUpdate, v: int) -> SharedUpdate:
    return dataclasses.replace(update, gradients=tuple(g[v : v + 1] for g in update.gradients))


@pytest.mark.parametrize("hidden", [(), (1,), (0, 1, 2, 3)], ids=["none hidden", "one hidden", "all hidden"])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_victim_is_matched_in_the_stack_as_it_is_alone(batch: int, hidden: tuple[int, ...]) -> None:
    """With its own noise, also beside victims whose updates do not tell theirs; two trials of each, out of order."""
    model, update, private = scene(Precode(bottleneck=7), batch)
    spoilt = [g.clone() for g in update.gradients]
    for g, name in zip(spoilt, update.names, strict=True):
        if ".encoder." in name and hidden:
            g[list(hidden)] = torch.randn(g[list(hidden)].shape, generator=torch.Generator().manual_seed(1))
    update = dataclasses.replace(update, gradients=tuple(spoilt))
    attack, parts = OmittingLayers(), parted(bottlenecks(model), update)
    assert len(parts) == (2 if batch == 1 and len(hidden) == 1 else 1)
    assert [bool(part.noise) for part in parts] == ([True, False] if len(parts) == 2 else [batch == 1 and not hidden])
    rows = torch.tensor([2, 0, 1, 3, 3, 1, 0, 2])
    images = torch.rand((len(rows), batch, *SHAPE), generator=torch.Generator().manual_seed(6))
    labels = private.labels.view(VICTIMS, batch)[rows]
    match = attack.matching(model, update, engine.cosine, torch.Generator().manual_seed(0))
    values, slopes = match(images, labels, rows)
    for t, v in enumerate(rows.tolist()):
        alone = attack.matching(model, one_of(update, v), engine.cosine, torch.Generator().manual_seed(0))
        value, slope = alone(images[t : t + 1], labels[t : t + 1], torch.tensor([0]))
        torch.testing.assert_close(value[0], values[t], rtol=1e-4, atol=1e-6)
        assert float((slope[0] - slopes[t]).norm()) < 1e-3 * float(slope.norm())


@pytest.mark.parametrize("defense", [Soteria(), Precode()], ids=["soteria", "precode"])
@pytest.mark.parametrize("batch", [1, 2])
def test_the_model_is_left_as_it_was(defense: Defense, batch: int) -> None:
    model, update, _ = scene(defense, batch)
    before = {name: p.clone() for name, p in model.named_parameters()}
    guess = OmittingLayers(steps=3)(model, update, torch.Generator().manual_seed(0))
    assert guess.images is not None
    assert guess.images.shape == (VICTIMS, batch, *SHAPE)
    assert guess.labels is not None
    assert guess.labels.shape == (VICTIMS, batch)
    assert all(p.requires_grad and torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(inserted.noise is None for inserted in bottlenecks(model).values())


def test_what_is_touched_is_out_of_the_update_and_frozen() -> None:
    model, update, _ = scene(Soteria())
    with without(model, update, frozenset({"network.5.weight", "network.5.bias"})) as left:
        assert left.names == parameters_of(model)[0]
        assert len(left.gradients) == len(update.gradients) - 2
    assert parameters_of(model)[0] == update.names
    with pytest.raises(NotApplicable, match="every layer"), without(model, update, frozenset(update.names)):
        pass


def test_untouched_it_is_inverting_gradients() -> None:
    model, update, _ = scene(Defense())
    found, plain = (
        a(steps=5)(model, update, torch.Generator().manual_seed(0)) for a in (OmittingLayers, InvertingGradients)
    )
    assert found.images is not None
    assert plain.images is not None
    assert found.images.shape == plain.images.shape
    assert torch.equal(found.labels, plain.labels)  # type: ignore[arg-type]


def test_a_hidden_defense_is_not_applicable() -> None:
    model, update, _ = scene(Soteria())
    with pytest.raises(NotApplicable, match="not exposed"):
        parse_attack("omitting-layers")(model, dataclasses.replace(update, defense=None), torch.Generator())


@pytest.mark.parametrize("defense", [Soteria(), Soteria(percentile=100), Precode()])
def test_labels_are_inferred_through_both(defense: Defense) -> None:
    model, update, private = scene(defense)
    assert torch.equal(infer_labels(model, update, torch.Generator().manual_seed(0))[:, 0], private.labels)


def test_the_closed_form_works_through_precode() -> None:
    model, update, private = scene(Precode(), model=dense_model(SHAPE))
    guess = Analytic()(model, update, torch.Generator().manual_seed(0))
    assert guess.images is not None
    assert float(psnr(private.images, guess.images[:, 0]).min()) > 50
