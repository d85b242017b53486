"""Each metric against an independent reference; no sums over a batch, no infinities, no broadcasting."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from leakaudit.result.scores import SCORES
from leakaudit.score.metrics import METRICS, PSNR_CAP, Metric, lpips_metric, mse, psnr, ssim


def pair(generator: torch.Generator, n: int, c: int, h: int, w: int, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    coarse = torch.rand(n, c, 4, 4, generator=generator)
    truth = torch.nn.functional.interpolate(coarse, size=(h, w), mode="bilinear")
    guess = (truth + noise * torch.randn(truth.shape, generator=generator)).clamp(0, 1)
    return truth, guess


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 32), (3, 11), (1, 25), (3, 64)])
@pytest.mark.parametrize("noise", [0.01, 0.3])
def test_metrics_equal_scikit_image(generator: torch.Generator, channels: int, side: int, noise: float) -> None:
    from skimage import metrics as reference

    truth, guess = pair(generator, 3, channels, side, side + 3, noise)
    for i in range(3):
        x, y = (t[i].double().permute(1, 2, 0).numpy() for t in (truth, guess))
        assert float(mse(truth, guess)[i]) == pytest.approx(reference.mean_squared_error(x, y), abs=1e-9)
        expected = reference.peak_signal_noise_ratio(x, y, data_range=1)
        assert float(psnr(truth, guess)[i]) == pytest.approx(expected, abs=1e-5)
        expected = reference.structural_similarity(
            x, y, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=2
        )
        assert float(ssim(truth, guess)[i]) == pytest.approx(expected, abs=1e-5)


def test_ssim_of_a_small_picture_is_the_formula_with_a_smaller_window(generator: torch.Generator) -> None:
    truth, guess = pair(generator, 1, 1, 5, 5)
    x, y = truth[0, 0].double().numpy(), guess[0, 0].double().numpy()
    line = np.exp(-(np.arange(-2, 3) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    mx, my = (window * x).sum(), (window * y).sum()
    vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
    cov = (window * (x - mx) * (y - my)).sum()
    expected = (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    assert float(ssim(truth, guess)) == pytest.approx(expected, abs=1e-9)


def test_ssim_of_flat_dark_pictures_does_not_lose_its_digits() -> None:
    truth = torch.full((1, 1, 16, 16), 0.9)
    guess = truth + 1e-4 * torch.arange(256).reshape(1, 1, 16, 16) / 256
    assert float(ssim(truth, guess)) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("side", [1, 2, 5, 10, 32])
def test_one_perfect_picture_leaves_the_others_alone(generator: torch.Generator, side: int) -> None:
    truth, guess = pair(generator, 4, 3, side, side)
    guess[2] = truth[2]
    for metric in (mse, psnr, ssim):
        scores = metric(truth, guess)
        assert scores.isfinite().all()
        others = torch.tensor([0, 1, 3])
        torch.testing.assert_close(scores[others], metric(truth[others], guess[others]))
    assert float(psnr(truth, guess)[2]) == PSNR_CAP
    assert float(ssim(truth, guess)[2]) == pytest.approx(1)
    assert float(mse(truth, guess)[2]) == 0


@settings(derandomize=True, max_examples=20, deadline=None)
@given(n=st.integers(1, 9), cut=st.integers(0, 9), channels=st.sampled_from([1, 3]), seed=st.integers(0, 999))
def test_scores_do_not_depend_on_the_batch(n: int, cut: int, channels: int, seed: int) -> None:
    truth, guess = pair(torch.Generator().manual_seed(seed), n, channels, 12, 12)
    cut = min(cut, n)
    for metric in (mse, psnr, ssim):
        parts = torch.cat([metric(truth[:cut], guess[:cut]), metric(truth[cut:], guess[cut:])])
        whole = metric(truth, guess)
        assert whole.shape == (n,)
        torch.testing.assert_close(whole, parts, rtol=1e-9, atol=1e-12)


def test_normalised_pictures_come_back_before_scoring(generator: torch.Generator) -> None:
    truth, guess = pair(generator, 2, 3, 16, 16)
    mean, std = torch.tensor([0.49, 0.48, 0.45]).view(1, 3, 1, 1), torch.tensor([0.25, 0.24, 0.26]).view(1, 3, 1, 1)
    normalised = [(x - mean) / std for x in (truth, guess)]
    back = [x * std + mean for x in normalised]
    torch.testing.assert_close(psnr(*back), psnr(truth, guess), atol=1e-3, rtol=0)
    assert (psnr(*normalised) < psnr(truth, guess) - 5).all()  # what scoring normalised tensors would have claimed


@pytest.mark.parametrize("metric", [mse, psnr, ssim])
def test_shapes_that_would_broadcast_are_refused(metric: object) -> None:
    assert callable(metric)
    with pytest.raises(ValueError, match="one shape"):
        metric(torch.rand(2, 3, 8, 8), torch.rand(1, 3, 8, 8))


def test_the_table_of_scores_says_which_way_leaks(generator: torch.Generator) -> None:
    truth, near = pair(generator, 4, 3, 16, 16, 0.02)
    far = torch.rand(truth.shape, generator=generator)
    assert set(METRICS) == {"mse", "psnr", "ssim"}
    for name, metric in METRICS.items():
        closer = metric(truth, near) > metric(truth, far)
        assert bool((closer == (SCORES[name].direction == "max")).all()), name


def test_lpips_without_weights_is_a_reason_and_never_a_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    reason = lpips_metric(None)
    assert isinstance(reason, str)
    assert "--lpips-weights" in reason
    missing = lpips_metric(tmp_path / "none.pth")
    assert isinstance(missing, str)
    assert "does not exist" in missing
    (tmp_path / "text.pth").write_text("not weights")
    torch.save({"0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    for name in ("text.pth", "other.pth"):
        reason = lpips_metric(tmp_path / name)
        assert isinstance(reason, str)
        assert name in reason


@pytest.fixture(scope="module")
def perceptual(shared: Path) -> Metric:
    metric = lpips_metric(shared / "weights" / "alexnet_features.pth")
    assert not isinstance(metric, str), metric
    return metric


def test_lpips_leaves_the_global_generator_alone(shared: Path) -> None:
    before = torch.random.get_rng_state()
    lpips_metric(shared / "weights" / "alexnet_features.pth")
    assert torch.equal(before, torch.random.get_rng_state())


def kodak(shared: Path, count: int) -> list[np.ndarray]:
    from skimage import io

    return [io.imread(file) for file in sorted((shared / "data/photos/kodak24_224").glob("*.png"))[:count]]


def stack(pictures: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def test_lpips_equals_its_formula(shared: Path, perceptual: Metric) -> None:
    """Zhang et al. 2018, eq. 1, from the two weight files alone, without the lpips package."""
    import torchvision

    features = torchvision.models.alexnet(weights=None).features.eval()
    features.load_state_dict(torch.load(shared / "weights/alexnet_features.pth", weights_only=True))
    heads = torch.load(shared / "weights/lpips_v0.1_alex_lin.pth", weights_only=True, map_location="cpu")
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)

    def stages(x: Tensor) -> list[Tensor]:
        x, kept = (2 * x - 1 - shift) / scale, []
        for i, layer in enumerate(features):
            x = layer(x.clone())
            if i in (1, 4, 7, 9, 11):
                kept.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return kept

    truth = stack(kodak(shared, 4))
    guess = truth.roll(1, 0)
    with torch.no_grad():
        gaps = [(a - b).square() for a, b in zip(stages(truth), stages(guess), strict=True)]
        expected = sum((gap * w).sum(1).mean((1, 2)) for gap, w in zip(gaps, heads.values(), strict=True))
    torch.testing.assert_close(perceptual(truth, guess), expected, atol=1e-5, rtol=0)


def test_lpips_of_kodak_equals_the_recorded_numbers(shared: Path, perceptual: Metric) -> None:
    # SOURCES.md records .27 for "a blur of sigma 1" without naming the filter: Pillow's gives .271, exact ones .28.
    from PIL import Image, ImageFilter

    pictures = kodak(shared, 24)
    blurred = [np.asarray(Image.fromarray(p).filter(ImageFilter.GaussianBlur(1))) for p in pictures]
    truth, guess = stack(pictures), stack(blurred)
    scores = perceptual(truth, guess)
    assert len(scores) == 24
    assert float(scores.mean()) == pytest.approx(0.27, abs=0.005)
    others = perceptual(truth, truth.roll(1, 0))
    assert float(others.mean()) == pytest.approx(0.76, abs=0.005)
    assert scores.max() < others.min()


def test_lpips_accepts_whole_alexnet_grey_and_tiny(shared: Path, perceptual: Metric, tmp_path: Path) -> None:
    state = torch.load(shared / "weights" / "alexnet_features.pth", weights_only=True)
    whole = {f"features.{k}": v for k, v in state.items()} | {"classifier.1.weight": torch.zeros(2)}
    torch.save(whole, tmp_path / "alexnet.pth")
    other = lpips_metric(tmp_path / "alexnet.pth")
    assert not isinstance(other, str)
    generator = torch.Generator().manual_seed(0)
    for shape in [(3, 1, 25, 25), (2, 3, 32, 48), (1, 2, 8, 8)]:
        truth, guess = pair(generator, *shape)
        scores = perceptual(truth, guess)
        assert scores.shape == (shape[0],)
        assert (scores > 0).all()
        torch.testing.assert_close(scores, other(truth, guess))
        torch.testing.assert_close(perceptual(truth, truth), torch.zeros(shape[0]))
