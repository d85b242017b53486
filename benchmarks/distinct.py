"""How far replaced records are from the private ones: from their own, and from any."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from leakaudit.protocol.target import Records, Target
from leakaudit.score.baselines import mean_pictures
from leakaudit.score.metrics import Metric, lpips_metric, mse, ssim
from leakaudit.score.nearness import nearest
from leakaudit.stats import intervals

WEIGHTS = Path(__file__).resolve().parents[1].parent / "shared" / "weights" / "alexnet_features.pth"


def perceptual() -> Metric | str:
    """Return LPIPS (AlexNet) with the weights beside the repository or in the torch cache, or why there is none."""
    return lpips_metric(WEIGHTS if WEIGHTS.is_file() else None)


def nearest_error(pictures: Tensor, others: Tensor) -> Tensor:
    """Return the mean squared error (N,) of pictures (N, C, H, W) to the nearest of others (M, C, H, W)."""
    return nearest(pictures.double(), others.double()).square()


def others_of_class(records: Records, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Return another record's picture (N, C, H, W) of the same class for each of the labels (N,)."""
    order = torch.randperm(len(records), generator=generator)
    pools = {c: order[records.labels[order] == c].tolist() for c in set(labels.tolist())}
    picked = [pools[label][i % len(pools[label])] for i, label in enumerate(labels.tolist())]
    return records.images[picked]


def distances(
    target: Target, released: Records, records: int, lpips: Metric | str, generator: torch.Generator
) -> dict[str, float | None]:
    """Return means over the first `records` of MSE, SSIM and LPIPS to x: of x̃, the class mean, another real picture.

    Then what no per-record distance can show, copies of *other* private records: the median MSE of x̃ to the nearest
    private record of any index, that of test pictures, and how often x̃ is nearer to the private set than to a set of
    auxiliary records as large, which is one half where the private records are to it as any others are, and 1 for
    copies and permutations.
    """
    count = min(records, len(released))
    truth, made = target.private[:count], released.images[:count]
    shown = {
        "released": made,
        "class_mean": mean_pictures(target.auxiliary, truth.labels),
        "another": others_of_class(target.auxiliary, truth.labels, generator),
    }
    found: dict[str, float | None] = {}
    for name, pictures in shown.items():
        found[f"mse_{name}"] = float(mse(truth.images, pictures).mean())
        found[f"ssim_{name}"] = float(ssim(truth.images, pictures).mean())
        few = slice(0, max(1, count // 3))  # it costs a forward pass of AlexNet each
        found[f"lpips_{name}"] = (
            None if isinstance(lpips, str) else float(lpips(truth.images[few], pictures[few]).mean())
        )
    found["nearest_private_released"] = float(nearest_error(made, target.private.images).median())
    found["nearest_private_test"] = float(nearest_error(target.test.images[:count], target.private.images).median())
    size = min(len(target.private), len(target.auxiliary))
    private = target.private.images[torch.randperm(len(target.private), generator=generator)[:size]]
    strangers = target.auxiliary.images[torch.randperm(len(target.auxiliary), generator=generator)[:size]]
    nearer = int((nearest_error(made, private) < nearest_error(made, strangers)).sum())
    share = intervals.rate(nearer, count)
    found |= {"nearer_private": share.value, "nearer_private_low": share.low, "nearer_private_high": share.high}
    return found
