"""Imprint: bins read off exactly, whatever size the server gives the gradient, and what a defense leaves of it."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from leakaudit.attacks.imprint import Imprint, Imprinted, bins_in, read
from leakaudit.errors import NotApplicable
from leakaudit.protocol.attack import Beforehand, Reconstruction
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.gradients import Mode
from leakaudit.protocol.registry import parse_defense
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.score.metrics import assign, psnr
from tests.attacks.attack_scenes import batchnorm_model, conv_model, dense_model, records, shared_update

SHAPE = (3, 8, 8)
OWN = records(80, SHAPE, 3, seed=2)


def planted(model: PixelModel, batch: int, attack: Imprint | None = None, mode: Mode = "eval") -> PixelModel:
    known = Beforehand(SHAPE, 3, batch, F.cross_entropy, mode, OWN)
    return (attack or Imprint()).plant(copy.deepcopy(model), known, torch.Generator().manual_seed(0))


def attacked(
    batch: int, spec: str = "", model: PixelModel | None = None, victims: int = 4, mode: Mode = "eval"
) -> tuple[Records, SharedUpdate, Reconstruction]:
    sent = planted(model or conv_model(SHAPE), batch, mode=mode)
    defense = parse_defense(spec) if spec else None
    if defense is not None:
        sent = defense.transform_model(sent, torch.Generator().manual_seed(1))
    private = records(victims * batch, SHAPE, 3, seed=7)
    update = shared_update(sent, private, defense=defense, batch_size=batch, mode=mode, auxiliary=OWN)
    return private, update, Imprint()(sent, update, torch.Generator().manual_seed(3))


def scores(private: Records, found: Reconstruction) -> Tensor:
    assert found.images is not None
    truth = private.images.view_as(found.images)
    return torch.cat([psnr(x, y[assign(x, y)]) for x, y in zip(truth, found.images, strict=True)])


@pytest.mark.parametrize("batch", [1, 4, 8])
@pytest.mark.parametrize("build", [conv_model, dense_model])
def test_a_record_alone_in_its_bin_is_exact(batch: int, build: object) -> None:
    private, _, found = attacked(batch, model=build(SHAPE))  # type: ignore[operator]
    assert set(found.statuses) == {"converged"}
    sent = planted(build(SHAPE), batch)  # type: ignore[operator]
    inside = torch.bucketize(private.images.flatten(1).mean(1), bins_in(sent).thresholds).view(-1, batch)
    alone = torch.cat([(row[:, None] == row).sum(1) == 1 for row in inside])
    assert bool(alone.float().mean() > 0.8)
    assert float(scores(private, found)[alone].min()) > 60


def test_train_mode_with_batchnorm_is_as_exact() -> None:
    private, _, found = attacked(4, model=batchnorm_model(SHAPE), mode="train")
    assert float(scores(private, found).median()) > 60


def test_the_rows_hold_the_record_by_autograd_in_double() -> None:
    sent = planted(conv_model(SHAPE), 1).double()
    bins, record = bins_in(sent), records(1, SHAPE, 3, seed=11)
    loss = F.cross_entropy(sent(record.images.double()), record.labels)
    weight, bias = torch.autograd.grad(loss, [bins.rows, bins.edges])
    found = read(weight[: bins.bins], bias[: bins.bins], bins.share, 1)
    torch.testing.assert_close(found.ratio[0] + bins.centre.double(), record.images.double().flatten())


def test_the_size_of_the_gradient_is_the_servers_and_the_function_stays() -> None:
    private = records(6, SHAPE, 3, seed=7)
    small, large = (planted(conv_model(SHAPE), 3, Imprint(slope=s)) for s in (1.0, 1e6))
    with torch.no_grad():
        torch.testing.assert_close(small(private.images), large(private.images))
        plain = conv_model(SHAPE)(private.images)
        assert float((small(private.images) - plain).abs().max()) < 0.05  # and the real model's, nearly
    norms = [max(float(g.norm()) for g in shared_update(m, private, batch_size=3).gradients) for m in (small, large)]
    assert 1e5 < norms[1] / norms[0] < 1e7


def test_a_sure_network_gives_every_record_a_slope() -> None:
    sure = conv_model(SHAPE)
    with torch.no_grad():
        for p in sure.network[-1].parameters():  # type: ignore[index]
            p.mul_(1e4)
    sent = planted(sure, 4)
    assert isinstance(sent, Imprinted)
    assert sent.cooling < 1e-2
    private, _, found = attacked(4, model=sure)
    assert float(scores(private, found).median()) > 60


# name: median PSNR at batch 4 that is reached, or not
DEFENSES = {
    "clip": (60, 999),
    "gaussian:std=30": (60, 999),
    "laplace:scale=1": (60, 999),
    "prune:sparsity=0.9": (60, 999),
    "precode:bottleneck=8": (60, 999),
    "soteria": (60, 999),
    "sign": (14, 999),
    "dp-sgd:noise_multiplier=10": (0, 16),
}


@pytest.mark.parametrize("spec", DEFENSES)
def test_what_a_defense_leaves_of_it(spec: str) -> None:
    least, most = DEFENSES[spec]
    private, _, found = attacked(4, spec)
    assert least <= float(scores(private, found).median()) <= most


def test_nobody_reads_bins_that_are_not_there() -> None:
    private = records(2, SHAPE, 3, seed=7)
    model = conv_model(SHAPE)
    with pytest.raises(NotApplicable, match="no bins"):
        Imprint()(model, shared_update(model, private, auxiliary=OWN), torch.Generator())
    known = Beforehand(SHAPE, 3, 1, F.cross_entropy, "eval")
    with pytest.raises(NotApplicable, match="not exposed"):
        Imprint().plant(model, known, torch.Generator())


def test_a_network_that_passes_nothing_back_cannot_be_imprinted() -> None:
    flat = conv_model(SHAPE)
    with torch.no_grad():
        for p in flat.parameters():
            p.zero_()
    with pytest.raises(NotApplicable, match="no slope"):
        planted(flat, 1)


def test_settings_are_checked() -> None:
    for wrong in ({"bins": 0}, {"slope": 0.0}, {"slope": 1e13}):
        with pytest.raises(ValueError, match="must"):
            replace(Imprint(), **wrong)  # type: ignore[arg-type]
