"""Pictures in a result: native size, equal bytes for equal pictures."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from leakaudit.score.pictures import encode


def decode(text: str | None) -> np.ndarray:
    assert text is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


@pytest.mark.parametrize(("channels", "shape"), [(1, (7, 9)), (3, (7, 9, 3)), (2, (7, 9))])
def test_a_picture_survives_encoding(generator: torch.Generator, channels: int, shape: tuple[int, ...]) -> None:
    image = torch.rand(channels, 7, 9, generator=generator)
    found = decode(encode(image))
    assert found.shape == shape
    expected = image if channels != 2 else image.mean(0, keepdim=True)
    gap = torch.from_numpy(found.astype(np.float32) / 255).reshape(7, 9, -1).permute(2, 0, 1) - expected
    assert float(gap.abs().max()) <= 0.5 / 255 + 1e-6
    assert encode(image) == encode(image.clone())


def test_no_picture_is_none() -> None:
    assert encode(None) is None
