"""Pictures in a result: native size, equal bytes for equal pictures, and nothing recognisable when redacted."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from leakaudit.pictures import encode, mosaic


def decode(text: str | None) -> np.ndarray:
    assert text is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


@pytest.mark.parametrize(("channels", "shape"), [(1, (7, 9)), (3, (7, 9, 3)), (2, (7, 9))])
def test_a_picture_survives_encoding(generator: torch.Generator, channels: int, shape: tuple[int, ...]) -> None:
    image = torch.rand(channels, 7, 9, generator=generator)
    found = decode(encode(image, "full"))
    assert found.shape == shape
    expected = image if channels != 2 else image.mean(0, keepdim=True)
    gap = torch.from_numpy(found.astype(np.float32) / 255).reshape(7, 9, -1).permute(2, 0, 1) - expected
    assert float(gap.abs().max()) <= 0.5 / 255 + 1e-6
    assert encode(image, "full") == encode(image.clone(), "full")


def test_redacted_pictures_keep_sixteen_means_and_nothing_else(generator: torch.Generator) -> None:
    image = torch.rand(3, 32, 32, generator=generator)
    shown = mosaic(image)
    assert shown.shape == image.shape
    assert len(torch.unique(shown.flatten(1), dim=1).T) == 16
    torch.testing.assert_close(shown[:, 0, 0], image[:, :8, :8].mean((1, 2)))
    shuffled = image.reshape(3, 4, 8, 32)[:, :, torch.randperm(8, generator=generator)].reshape(3, 32, 32)
    assert encode(image, "redacted") == encode(shuffled, "redacted")
    assert encode(image, "full") != encode(shuffled, "full")


def test_no_pictures_when_none_are_wanted(generator: torch.Generator) -> None:
    assert encode(torch.rand(1, 4, 4, generator=generator), "none") is None
    assert encode(None, "full") is None
