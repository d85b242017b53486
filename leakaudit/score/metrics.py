"""How close a reconstruction is to a record: MSE, PSNR, SSIM, LPIPS, each per record, in pixel space [0, 1]."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from leakaudit.errors import UserError
from leakaudit.load.checkpoints import state_of
from leakaudit.protocol import plugins
from leakaudit.protocol.declared import NAME
from leakaudit.result.scores import SCORES
from leakaudit.work.seeding import forked

MetricFunction = Callable[[Tensor, Tensor], Tensor]

PSNR_CAP = 160.0  # dB, of a perfect picture: the floor of 1e-16 on its MSE keeps every score finite

_BACKBONE = "alexnet-owt-7be5be79.pth"  # torchvision's file name in the torch hub cache

_LPIPS_SIDE = 64  # AlexNet's five stages need this many pixels to leave more than one position each

_LPIPS_CHUNK = 32


@dataclass(frozen=True)
class Metric:
    """A metric of a plug-in, per record: `function(truth (N, C, H, W), guess (N, C, H, W)) -> (N,)`, both in [0, 1].

    Volumes of C channels and D slices are handed over as (N, C·D, H, W), slice by slice within each channel.
    """

    name: str
    function: MetricFunction
    higher_leaks: bool
    unit: str = ""
    summary: str = ""


def mse(truth: Tensor, guess: Tensor) -> Tensor:
    """Mean squared error per record (N,), of pictures (N, C, H, W) in [0, 1]; in [0, 1], 0 is perfect."""
    _same_shape(truth, guess)
    return (truth.double() - guess.double()).square().flatten(1).mean(1)


def psnr(truth: Tensor, guess: Tensor) -> Tensor:
    """Peak signal-to-noise ratio per record (N,), 10 log10(1 / MSE) in dB for pictures (N, C, H, W) in [0, 1].

    A perfect picture scores 160 dB (`PSNR_CAP`), not infinity: one of them must not swallow a mean.
    """
    return -10 * mse(truth, guess).clamp_min(10 ** (-PSNR_CAP / 10)).log10()


def ssim(truth: Tensor, guess: Tensor, depth: int = 1) -> Tensor:
    """Structural similarity per record (N,), at most 1, mean over channels and windows that lie inside the picture.

    Wang, Bovik, Sheikh, Simoncelli 2004, eq. 13: Gaussian window of σ = 1.5 and 11×11 pixels, K₁ = .01, K₂ = .03, data
    range 1, population covariance. Pictures smaller than 11 pixels get the largest odd window that fits. Windows in
    volumes (N, C·D, H, W) of D = `depth` slices are 11 slices deep, or the largest odd number that fits.
    """
    _same_shape(truth, guess)
    n, c, h, w = truth.shape
    window, slices = _gaussian(min(h, w), truth.device), _gaussian(depth, truth.device)

    def smooth(x: Tensor) -> Tensor:
        # In double: E[x²] − E[x]² of single-precision pictures loses the digits that C₂ is compared with.
        rows = functional.conv2d(x.reshape(n * c, 1, h, w), window.view(1, 1, -1, 1))
        found = functional.conv2d(rows, window.view(1, 1, 1, -1))
        if len(slices) == 1:
            return found
        lines = found.reshape(n * c // depth, 1, depth, found.shape[2] * found.shape[3])
        return functional.conv2d(lines, slices.view(1, 1, -1, 1))

    x, y = truth.double(), guess.double()
    mean_x, mean_y = smooth(x), smooth(y)
    var_x, var_y = smooth(x * x) - mean_x**2, smooth(y * y) - mean_y**2
    covariance = smooth(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    above = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    below = (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return (above / below).mean((1, 2, 3)).reshape(n, c if len(slices) == 1 else c // depth).mean(1)


def _gaussian(size: int, device: torch.device) -> Tensor:
    """Return the largest odd window of σ = 1.5 that fits into `size` pixels, at most 11 of them; its sum is 1."""
    radius = min(5, (size - 1) // 2)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64, device=device)
    window = torch.exp(-offsets.square() / (2 * 1.5**2))
    return window / window.sum()


def lpips_file(weights: Path | None) -> Path:
    """Return the file that LPIPS takes its weights from, whether it is there or not."""
    return weights if weights is not None else Path(torch.hub.get_dir()) / "checkpoints" / _BACKBONE


def lpips_metric(weights: Path | None, device: torch.device | str = "cpu") -> MetricFunction | str:
    """Return LPIPS v0.1 with AlexNet (Zhang et al. 2018), or one sentence that says why it is unavailable.

    `weights` is a state dict of `torchvision.models.alexnet()` or of its `.features`; without it the file that
    torchvision keeps in the torch hub cache is used if it is already there. Nothing is ever downloaded. Scores are
    ≥ 0, 0 is identical. Grey pictures are repeated to three channels; pictures with a side below 64 pixels are enlarged
    bilinearly until the shorter side has 64, so their scores compare with each other, not with published ones.
    """
    path = lpips_file(weights)
    if not path.is_file():
        if weights is not None:
            return f"{path} does not exist: give the AlexNet weights with --lpips-weights"
        return "the AlexNet weights are not in the torch cache: give them with --lpips-weights FILE"
    try:
        network = _perceptual(state_of(path), torch.device(device))
    except ImportError as error:
        return f"the package {error.name} is not installed"
    except Exception as error:  # torch.load raises half a dozen types for a file that is not one of its own
        return f"{path} does not hold AlexNet's weights ({type(error).__name__})"

    def function(truth: Tensor, guess: Tensor) -> Tensor:
        _same_shape(truth, guess)
        scores = []
        with torch.no_grad():
            for start in range(0, len(truth), _LPIPS_CHUNK):
                x, y = truth[start : start + _LPIPS_CHUNK].to(device), guess[start : start + _LPIPS_CHUNK].to(device)
                scores.append(network(_for_alexnet(x), _for_alexnet(y)).flatten())
        return torch.cat(scores).to(truth.device) if scores else truth.new_zeros(0)

    return function


def _perceptual(state: dict[str, Tensor], device: torch.device) -> torch.nn.Module:
    import lpips

    features = {name.removeprefix("features."): value for name, value in state.items() if "classifier" not in name}
    # pnet_rand builds the backbone without asking for its weights: the package would download them.
    with warnings.catch_warnings(), forked(), contextlib.redirect_stdout(None):
        warnings.simplefilter("ignore")
        network: torch.nn.Module = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    backbone = network.get_submodule("net")
    for name, parameter in backbone.named_parameters():
        with torch.no_grad():  # slice2.3.weight is features.3.weight
            source = features[name.split(".", 1)[1]]
            if source.shape != parameter.shape:
                raise ValueError(f"{name} has shape {tuple(source.shape)}")
            parameter.copy_(source)
    return network.eval().requires_grad_(False).to(device)


def _for_alexnet(x: Tensor) -> Tensor:
    x = x.float() * 2 - 1
    if x.shape[1] == 1:
        x = x.repeat(1, 3, 1, 1)
    elif x.shape[1] != 3:
        x = x.mean(1, keepdim=True).repeat(1, 3, 1, 1)
    short = min(x.shape[2:])
    if short < _LPIPS_SIDE:
        size = [math.ceil(side * _LPIPS_SIDE / short) for side in x.shape[2:]]
        x = functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
    return x


def _same_shape(truth: Tensor, guess: Tensor) -> None:
    # Broadcasting would turn a missing axis into a plausible score.
    if truth.shape != guess.shape or truth.dim() != 4:
        raise ValueError(
            f"a metric needs two stacks (N, C, H, W) of one shape, got {tuple(truth.shape)}, {tuple(guess.shape)}"
        )


# By the name of their score; LPIPS needs weights, and is made by `lpips_metric`.
METRICS: dict[str, MetricFunction] = {"mse": mse, "psnr": psnr, "ssim": ssim}

OF_VOLUMES = "LPIPS compares pictures, and these are volumes"


def metrics_for(depth: int) -> dict[str, MetricFunction]:
    """Return `METRICS` for pictures, where `depth` is 1, or for volumes (N, C·D, H, W) of D = `depth` slices."""
    return METRICS | {"ssim": partial(ssim, depth=depth)}


_further: dict[str, Metric] = {}


def further() -> tuple[Metric, ...]:
    """Return the metrics of plug-ins (entry points of the group `leakaudit.metrics`, each a `Metric`), by name."""
    plugins.load("leakaudit.metrics", _take, (_further,))
    return tuple(_further[name] for name in sorted(_further))


def _take(named: object) -> None:
    if not isinstance(named, Metric):
        raise UserError(f"it is a {type(named).__name__}, no leakaudit.score.metrics.Metric")
    if not NAME.fullmatch(named.name):
        raise UserError(f"its name must be words in small letters joined by hyphens, not {named.name!r}")
    if len(named.name) > 60 or len(named.unit) > 20:
        raise UserError("its name is longer than 60 letters, or its unit than 20")
    if named.name in SCORES.keys() | _further.keys():
        raise UserError(f"the name {named.name!r} is taken; give the metric a name of its own")
    _further[named.name] = named


def assign(truth: Tensor, guess: Tensor) -> Tensor:
    """Return a permutation (B,) such that `guess[assign(truth, guess)]` is aligned with `truth`, both (B, C, H, W).

    The pairing minimises the summed MSE (linear sum assignment). Its inverse would align `truth` with `guess`; the two
    are equal for swaps and differ from a 3-cycle on.
    """
    from scipy.optimize import linear_sum_assignment

    if truth.shape != guess.shape:
        raise ValueError(f"a pairing needs two batches of one shape, got {tuple(truth.shape)}, {tuple(guess.shape)}")
    cost = torch.cdist(
        truth.double().flatten(1), guess.double().flatten(1), compute_mode="donot_use_mm_for_euclid_dist"
    ).square()
    _, columns = linear_sum_assignment(cost.cpu().numpy())
    return torch.as_tensor(columns, dtype=torch.long, device=truth.device)
