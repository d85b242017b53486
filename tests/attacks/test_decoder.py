"""Decoders undo what can be undone, and never do worse than the class mean where nothing can."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from leakaudit.attacks._regression import fit_ridge
from leakaudit.attacks.decoder import ReleasedDecoder, TwoStageDecoder, UNet, fit_decoder
from leakaudit.attacks.inverting_gradients import InvertingGradients
from leakaudit.errors import NotApplicable
from leakaudit.protocol.defense import Defense, chain
from leakaudit.protocol.labels import class_means
from leakaudit.protocol.registry import parse_defense
from leakaudit.protocol.target import Records
from leakaudit.score.metrics import psnr
from tests.attacks.attack_scenes import EVERYTHING, Shifted, conv_model, records, shared_update

SHAPE = (3, 9, 8)


@dataclass(frozen=True, kw_only=True)
class Unrelated(Defense):
    """Noise in place of the record: nothing of it is left but the label."""

    name: ClassVar[str] = "unrelated"
    replaces_records: ClassVar[bool] = True

    def transform_records(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return torch.rand(images.shape, generator=generator), labels


def by_class(count: int, seed: int) -> Records:
    """Return pictures that differ by class: class c is brighter by c/4."""
    drawn = records(count, SHAPE, 3, seed)
    return Records(0.5 * drawn.images + 0.25 * drawn.labels.view(-1, 1, 1, 1), drawn.labels)


def test_an_invertible_replacement_is_undone(generator: torch.Generator) -> None:
    private, auxiliary = by_class(6, 1), by_class(80, 2)
    update = shared_update(conv_model(SHAPE), private, defense=Shifted(), auxiliary=auxiliary)
    found = ReleasedDecoder(decoder_steps=150)(conv_model(SHAPE), update, generator)
    assert found.images is not None
    assert update.released is not None
    assert float(psnr(private.images, update.released[:, 0]).median()) < 15
    assert float(psnr(private.images, found.images[:, 0]).median()) > 25


def test_two_stages_beat_the_inversion_that_they_start_from(generator: torch.Generator) -> None:
    private, auxiliary = by_class(3, 3), by_class(60, 4)
    model = conv_model(SHAPE)
    update = shared_update(model, private, defense=Shifted(), auxiliary=auxiliary)
    plain = InvertingGradients(steps=150, tv=1e-3)(model, update, generator)
    attack = TwoStageDecoder(steps=150, tv=1e-3, decoder_steps=100, rehearsals=2)
    found = attack(model, update, generator)
    assert plain.images is not None
    assert found.images is not None
    before = psnr(private.images, plain.images[:, 0]).median()
    assert float(psnr(private.images, found.images[:, 0]).median()) > float(before) + 5


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_no_worse_than_the_class_mean_where_nothing_is_left(noise: float, generator: torch.Generator) -> None:
    private, auxiliary = by_class(60, 5), by_class(60, 6)
    decoder = fit_decoder(Unrelated(), auxiliary, 3, generator, steps=60, noise=noise)
    released = torch.rand(private.images.shape, generator=generator)
    means = class_means(auxiliary.images, auxiliary.labels, 3)[private.labels].view_as(released)
    assert float(F.mse_loss(decoder(released, private.labels), private.images)) <= 1.1 * float(
        F.mse_loss(means, private.images)
    )


def test_it_works_on_the_record_stage_of_a_chain(generator: torch.Generator) -> None:
    model, private, auxiliary = conv_model(SHAPE), by_class(2, 7), by_class(40, 8)
    defense = chain(Shifted(), parse_defense("gaussian:std=0.01"))
    update = shared_update(model, private, defense=defense, auxiliary=auxiliary)
    found = ReleasedDecoder(decoder_steps=100)(model, update, generator)
    assert found.images is not None
    assert float(psnr(private.images, found.images[:, 0]).median()) > 20


@pytest.mark.parametrize("attack", [ReleasedDecoder(), TwoStageDecoder()])
def test_a_defense_that_keeps_the_records_has_nothing_to_decode(
    attack: ReleasedDecoder | TwoStageDecoder, generator: torch.Generator
) -> None:
    model, private = conv_model(SHAPE), by_class(2, 9)
    update = shared_update(model, private, defense=parse_defense("gaussian"), auxiliary=by_class(10, 10))
    with pytest.raises(NotApplicable, match="does not replace records"):
        attack(model, update, generator)


def test_too_few_auxiliary_records_are_not_applicable(generator: torch.Generator) -> None:
    model, private = conv_model(SHAPE), by_class(2, 9)
    update = shared_update(model, private, defense=Shifted(), exposure=EVERYTHING, auxiliary=by_class(1, 10))
    with pytest.raises(NotApplicable, match="at least 2 auxiliary"):
        ReleasedDecoder()(model, update, generator)


def test_ridge_equals_the_primal_solution() -> None:
    generator = torch.Generator().manual_seed(11)
    x = torch.rand((40, 1, 3, 3), generator=generator)
    mixing = torch.randn((9, 9), generator=generator)
    y = (x.flatten(1) @ mixing).view_as(x)
    labels, held = torch.zeros(40, dtype=torch.long), torch.arange(40) < 8
    ridge = fit_ridge(x, y, labels, held, 1)
    # A linear relation is found through the dual, so that the held-out pairs are predicted almost exactly.
    assert float(F.mse_loss(ridge(x[held], labels[held]), y[held])) < 1e-4 * float(y.var())


@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 32, 32), (2, 4, 4), (3, 25, 25)])
def test_the_network_takes_any_size_and_starts_by_correcting_nothing(shape: tuple[int, int, int]) -> None:
    c, h, w = shape
    found = UNet(c, 4)(torch.rand(2, 2 * c, h, w), torch.tensor([0, 3]))
    assert found.shape == (2, c, h, w)
    assert float(found.detach().abs().max()) == 0
