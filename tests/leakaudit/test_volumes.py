"""Volumes, kept as pictures (C·D, H, W): what knows of their slices equals the plain computation on (C, D, H, W)."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import leakaudit
from leakaudit.attacks._optimise import roughness, signs, total_variation
from leakaudit.reports.html import render
from leakaudit.result.shapes import in_words, what_is_shown
from leakaudit.score.metrics import OF_VOLUMES, metrics_for, mse, psnr, ssim
from leakaudit.score.pictures import encode, plane
from leakaudit.watch.pictures import nearest, scaled

SIZES = [(1, 4, 5, 6), (2, 3, 5, 4), (3, 2, 4, 7), (1, 1, 5, 6), (3, 1, 5, 6), (1, 6, 1, 4)]  # C, D, H, W


def folded(volumes: Tensor) -> Tensor:
    return volumes.flatten(-4, -3)


def variation(volumes: Tensor) -> Tensor:
    """Σ_d mean|∂_d| of volumes (T, B, C, D, H, W), by slices beside each other."""
    gaps = [volumes.movedim(d, 0)[1:] - volumes.movedim(d, 0)[:-1] for d in (-1, -2, -3)]
    return torch.stack([g.movedim(1, 0).abs().flatten(1).mean(1) for g in gaps if g.numel()]).sum(0)


def rough(volumes: Tensor) -> Tensor:
    """TV of the mean over the channels, and twice that of what each channel differs from it."""
    mean = volumes.mean(2, keepdim=True)
    return variation(mean) + (2 * variation(volumes - mean) if volumes.shape[2] > 1 else 0)


@pytest.mark.parametrize(("ours", "plain"), [(total_variation, variation), (roughness, rough)])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_variation_and_its_slope_are_those_of_the_volume(
    size: tuple[int, ...], ours: Callable[..., tuple[Tensor, Tensor]], plain: Callable[[Tensor], Tensor]
) -> None:
    volumes = torch.rand((2, 3, *size), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    volumes.requires_grad_(True)
    expected = plain(volumes)
    (slope,) = torch.autograd.grad(expected.sum(), volumes)
    value, found = ours(folded(volumes.detach()), size[1])
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(found, folded(slope))


def test_blocks_are_as_deep_as_wide() -> None:
    slopes = torch.randn((2, 1, 8, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cubes = slopes.view(2, 2, 2, 2, 2, 2, 2, 2)  # T, C, then two halves and what is within them, of D, H and W
    blocks = cubes.mean((3, 5, 7), keepdim=True).sign().expand_as(cubes).reshape(slopes.shape)
    whole = slopes.view(2, 2, -1).mean(2).sign()[:, :, None].expand(2, 2, 64).reshape(slopes.shape)
    torch.testing.assert_close(signs(slopes, torch.ones(2).double(), 4), (blocks + whole) / 2)
    torch.testing.assert_close(signs(slopes, torch.zeros(2).double(), 4), slopes.sign())


def pair(size: tuple[int, ...], noise: float) -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(1)
    truth = torch.nn.functional.interpolate(torch.rand((2, size[0], 4, 4, 4), generator=drawn), size[1:])
    return truth, (truth + noise * torch.randn(truth.shape, generator=drawn)).clamp(0, 1)


@pytest.mark.parametrize("size", [(1, 16, 16, 16), (2, 12, 14, 13), (3, 11, 11, 20)], ids=str)
@pytest.mark.parametrize("noise", [0.01, 0.3])
def test_ssim_of_volumes_equals_scikit_image(size: tuple[int, ...], noise: float) -> None:
    from skimage.metrics import structural_similarity

    truth, guess = pair(size, noise)
    for i, found in enumerate(ssim(folded(truth), folded(guess), size[1]).tolist()):
        each = [
            structural_similarity(
                *(t[i, c].double().numpy() for t in (truth, guess)),
                data_range=1,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
            )
            for c in range(size[0])
        ]
        assert found == pytest.approx(np.mean(each), abs=1e-5)


def test_where_slices_are_few_the_window_is_as_deep_as_fits() -> None:
    truth, guess = pair((2, 3, 5, 5), 0.1)

    def line(radius: int) -> Tensor:
        weights = torch.exp(-torch.arange(-radius, radius + 1).double().square() / 4.5)
        return weights / weights.sum()

    window = line(1)[:, None, None] * line(2)[:, None] * line(2)  # all of a channel: one window fits
    x, y = truth.double(), guess.double()

    def mean(t: Tensor) -> Tensor:
        return (window * t).sum((2, 3, 4))

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    each = (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    torch.testing.assert_close(metrics_for(3)["ssim"](folded(truth), folded(guess)), each.mean(1))


@pytest.mark.parametrize("depth", [1, 2, 6])
def test_a_perfect_volume_is_perfect(depth: int) -> None:
    """Errors know no order of pixels, so volumes and pictures have the same."""
    volumes = torch.rand((3, 6, 7, 8), generator=torch.Generator().manual_seed(2))
    found = metrics_for(depth)
    assert found["ssim"](volumes, volumes).tolist() == pytest.approx([1, 1, 1])
    assert found["mse"] is mse
    assert found["psnr"] is psnr
    assert len(found["ssim"](volumes[:0], volumes[:0])) == 0


@pytest.mark.parametrize(
    ("sizes", "shown"),
    [
        ((1, 28, 28), ""),
        ((3, 32, 32), ""),
        ((2, 8, 8), "Shown of each record: the mean of its 2 channels, in grey."),
        ((4, 8, 8), "Shown of each record: the mean of its 4 channels, in grey."),
        ((1, 28, 28, 28), "Shown of each volume: the middle one of its 28 slices."),
        ((2, 5, 8, 8), "Shown of each volume: the middle one of its 5 slices, the mean of the 2 channels, in grey."),
    ],
)
def test_what_is_shown_is_what_the_words_say(sizes: tuple[int, ...], shown: str) -> None:
    assert what_is_shown({"input_shape": "×".join(map(str, sizes))}) == shown
    assert in_words(sizes) == f"{'volumes' if len(sizes) == 4 else 'pictures'} {'×'.join(map(str, sizes))}"
    record = torch.rand(sizes, generator=torch.Generator().manual_seed(3))
    middle = record[:, sizes[1] // 2] if len(sizes) == 4 else record
    expected = middle if len(middle) == 3 else middle.mean(0, keepdim=True)
    depth = sizes[1] if len(sizes) == 4 else 1
    flat = record.reshape(-1, *sizes[-2:])
    assert torch.equal(plane(flat, depth), expected)
    png = np.asarray(Image.open(io.BytesIO(base64.b64decode(encode(flat, depth) or ""))))
    assert png.shape[:2] == sizes[-2:]
    assert np.array_equal(png.reshape(*sizes[-2:], -1), (expected * 255).round().byte().movedim(0, -1).numpy())
    seen = scaled(record, *sizes[-2:])  # in a terminal
    assert np.abs(seen / 255 - expected.expand(3, -1, -1).movedim(0, -1).numpy()).max() < 0.5 / 255 + 1e-6


@pytest.mark.parametrize("odd", [None, 3, "", "28", "1×x×3", "1×2×3×4×5"])
def test_a_shape_of_another_form_says_nothing(odd: object) -> None:
    """A result may come from anywhere."""
    assert what_is_shown({"input_shape": odd}) == ""


def test_the_nearest_record_is_found_among_volumes() -> None:
    originals = torch.rand((3, 2, 4, 5, 5), generator=torch.Generator().manual_seed(4))
    found, decibels = nearest(originals[1].flatten(0, 1), originals)
    assert torch.equal(found, originals[1])
    assert decibels == 160


@pytest.mark.usefixtures("short_battery")
def test_a_scan_of_volumes_says_that_they_are() -> None:
    """Undefended, everything is told and drawn; what is shown and what is not measured is said."""
    drawn = torch.Generator().manual_seed(5)
    coarse = torch.rand((90, 2, 2, 3, 3), generator=drawn)
    volumes = torch.nn.functional.interpolate(coarse, (4, 6, 6), mode="trilinear")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(2, 8, 3, padding=1), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(1152, 2))
    result = leakaudit.scan(
        model,
        TensorDataset(volumes, torch.arange(90) % 2),
        attacks=("inverting-gradients:steps=60:tv=0.001:step-size=0.1:fall=10",),
        battery="quick",
        records=4,
        utility=False,
    )
    (control,) = result.defenses
    (attack,) = (a for a in control.attacks if a.name == "inverting-gradients")
    assert (attack.psnr.value or 0) > max(b.psnr.value or 0 for b in result.baselines) + 3
    assert attack.identification.value == 1 > 5 * result.chance_identification
    assert attack.lpips.reason == OF_VOLUMES
    page = render(result)
    assert "the middle one of its 4 slices, the mean of the 2 channels, in grey" in page
    assert "volumes 2×4×6×6" in page
    pictures = (p.reconstruction for p in attack.gallery)
    assert {Image.open(io.BytesIO(base64.b64decode(p or ""))).size for p in pictures} == {(6, 6)}
