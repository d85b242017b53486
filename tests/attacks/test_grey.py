"""Grey pictures in several channels: who knows that they are grey looks for no other ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from leakaudit.attacks._attacking import tied
from leakaudit.load.loading import target_from_objects
from leakaudit.protocol.registry import parse_attack
from leakaudit.score.metrics import psnr
from tests.attacks.attack_scenes import conv_model, records, shared_update


@pytest.mark.parametrize("spec", ["inverting-gradients:steps=150", "dlg:steps=30"])
def test_the_channels_of_grey_pictures_are_sought_together(spec: str) -> None:
    model, made = conv_model((3, 8, 8)), records(4, (3, 8, 8), 3, seed=4)
    private = replace(made, images=tied(made.images).contiguous())
    update, found = shared_update(model, private), {}
    for grey in (False, True):
        model.grey = grey
        drawn = parse_attack(spec)(model, update, torch.Generator().manual_seed(0)).images
        assert drawn is not None
        found[grey] = drawn[:, 0]
    assert torch.allclose(found[True], found[True][:, :1].expand_as(found[True]), atol=1e-6)
    assert not torch.allclose(found[False], found[False][:, :1].expand_as(found[False]), atol=1e-3)
    assert psnr(private.images, found[True]).median() > psnr(private.images, found[False]).median()


@pytest.mark.parametrize("coloured", [0, 1])
def test_a_target_is_grey_where_every_picture_is(coloured: int) -> None:
    images = torch.rand(30, 1, 8, 8).expand(-1, 3, -1, -1).clone()
    images[:coloured, 0] += 0.1
    pairs = list(zip(images.clamp(0, 1), torch.arange(30) % 3, strict=True))
    target = target_from_objects(conv_model((3, 8, 8)).network, pairs)
    assert target.model.grey == (not coloured)
    assert target.fresh(0).grey == (not coloured)
