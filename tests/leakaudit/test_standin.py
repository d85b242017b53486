"""Stand-ins: as good as the attack was, and a function of score, position and shape alone."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from leakaudit.errors import UserError
from leakaudit.score import standin
from leakaudit.score.metrics import psnr
from leakaudit.score.pictures import encode
from leakaudit.score.standin import UNCHANGED, degraded, picture

SHAPES = [(1, 28, 28), (3, 32, 32), (1, 25, 25), (3, 8, 8), (3, 40, 64), (2, 7, 9)]


def decoded(image: Tensor) -> Tensor:
    """What a reader gets: the picture through its PNG."""
    array = np.asarray(Image.open(io.BytesIO(base64.b64decode(encode(image) or ""))))
    return torch.from_numpy(array.astype(np.float64) / 255).reshape(*image.shape[1:], -1).permute(2, 0, 1)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_stand_in_is_as_far_off_as_the_attack_was(shape: tuple[int, int, int]) -> None:
    public = picture(shape)
    assert public.shape == (3 if shape[0] == 3 else 1, *shape[1:])
    assert float(public.std()) > 0.05  # a picture, not a plane
    for reached in (6, 9.3, 12, 17.77, 23, 31, 38.5, 44, 49.5):
        shown = degraded(shape, reached, 3, 1)
        assert shown.shape == public.shape
        assert float(psnr(decoded(public)[None], decoded(shown)[None])) == pytest.approx(reached, abs=0.2)


def test_what_is_out_of_reach_is_as_far_as_it_goes() -> None:
    shape = (3, 32, 32)
    assert torch.equal(degraded(shape, UNCHANGED, 0, 0), picture(shape))
    assert torch.equal(degraded(shape, 160.0, 0, 0), picture(shape))
    lowest = degraded(shape, 0.0, 0, 0)
    assert 3 < float(psnr(picture(shape)[None], lowest[None])) < 5
    degraded((1, 1, 5), 20.0, 0, 0)  # too few pixels for two decimals, and no error


def test_it_depends_on_the_position_and_on_no_random_state() -> None:
    shape = (1, 16, 16)
    first = degraded(shape, 15.0, 2, 1)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert torch.equal(degraded(shape, 15.0, 2, 1), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(degraded(shape, 15.0, 2, 0), first)
    assert not torch.equal(degraded(shape, 15.0, 1, 2), first)


def test_scikit_image_without_its_pictures_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import skimage.data

    def gone(*_: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr(skimage.data, "chelsea", gone)
    standin.picture.cache_clear()
    with pytest.raises(UserError, match="chelsea"):
        picture((1, 5, 6))
