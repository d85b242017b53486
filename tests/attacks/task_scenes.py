"""Small targets of every kind of task, and what clients share of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakaudit.load.loading import target_from_objects
from leakaudit.protocol.attack import Attack, Beforehand
from leakaudit.protocol.client import SharedUpdate, release, share
from leakaudit.protocol.defense import Defense, chain
from leakaudit.protocol.federation import FEDSGD, parse_client
from leakaudit.protocol.registry import parse_defense
from leakaudit.protocol.target import PixelModel, Records, Target
from tests.attacks.attack_scenes import EVERYTHING, Shifted, TinyViT, pictures_of, seeded, smooth_pictures

SHAPE = (1, 8, 8)
FINDINGS = 5


@dataclass(frozen=True)
class Made:
    """How a kind's labels are made of pictures, how many outputs its model has, and its loss (None: the usual)."""

    labels: Any  # (N, 1, 8, 8) -> labels
    outputs: int
    loss: Any = None
    masks: bool = False


def _quarters(images: Tensor) -> Tensor:
    means = F.adaptive_avg_pool2d(images, 2).flatten(1)
    return torch.cat([means, images.amax((1, 2, 3))[:, None] - 0.3], 1)[:, :FINDINGS]


KINDS: dict[str, Made] = {
    "one logit": Made(lambda x: (x.mean((1, 2, 3)) > 0.5).float(), 1, F.binary_cross_entropy_with_logits),
    "multi-label": Made(lambda x: (_quarters(x) > 0.5).float(), FINDINGS, F.binary_cross_entropy_with_logits),
    "soft labels": Made(lambda x: (8 * _quarters(x)[:, :3]).softmax(1), 3, F.cross_entropy),
    "regression": Made(lambda x: _quarters(x)[:, :2], 2, F.mse_loss),
    "one number": Made(lambda x: x.mean((1, 2, 3)), 1, lambda z, y: F.mse_loss(z.flatten(), y.flatten())),
    "segmentation": Made(lambda x: (x[:, 0] > 0.5).float()[:, None], 1, F.binary_cross_entropy_with_logits, True),
    "mask of classes": Made(lambda x: (3 * x[:, 0]).long().clamp(0, 2), 3, F.cross_entropy, True),
}


def network(made: Made, kind: str = "conv") -> nn.Module:
    """Return a network of these outputs: "conv", "deep", "dense", "batchnorm" or "tokens"; masks from a convolution."""
    o, size = made.outputs, 64
    if made.masks and kind == "dense":
        return nn.Sequential(
            nn.Flatten(), nn.Linear(size, 24), nn.Sigmoid(), nn.Linear(24, o * size), nn.Unflatten(1, (o, 8, 8))
        )
    if made.masks and kind == "deep":
        hidden = [m for _ in range(2) for m in (nn.Conv2d(12, 12, 3, padding=1), nn.LeakyReLU(0.2))]
        return nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.LeakyReLU(0.2), *hidden, nn.Conv2d(12, o, 1))
    norm = [nn.BatchNorm2d(6)] if kind == "batchnorm" else []
    if made.masks:
        return nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), *norm, nn.LeakyReLU(0.2), nn.Conv2d(6, o, 1))
    if kind == "dense":
        return nn.Sequential(nn.Flatten(), nn.Linear(size, 24), nn.Sigmoid(), nn.Linear(24, o))
    if kind == "tokens":
        return TinyViT(SHAPE, 3, 24, o)
    conv = nn.Conv2d(1, 6, 3, padding=1, stride=2)
    return nn.Sequential(conv, *norm, nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(6 * 16, o))


@cache
def target(name: str, kind: str = "conv") -> Target:
    """Return the target of a kind, with 40 private, 20 test and 60 auxiliary records."""
    made = KINDS[name]

    def data(count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
        images = smooth_pictures(count, SHAPE, torch.Generator().manual_seed(seed))
        return list(zip(images, made.labels(images), strict=True))

    return target_from_objects(
        seeded(lambda: network(made, kind)),
        data(40, 1),
        test_data=data(20, 2),
        auxiliary_data=data(60, 3),
        loss=made.loss,
        device="cpu",
        name="made",
    )


def scene(
    name: str,
    attack: Attack,
    batch: int = 1,
    *,
    defense: Defense | None = None,
    labels: bool = False,
    victims: int = 2,
    kind: str = "",
) -> tuple[PixelModel, SharedUpdate, Records]:
    """Return a model, what clients share of it as the attack `needs`, and their records."""
    needs = attack.needs
    batch = max(batch, 2 if needs.several_records else 1)
    batchnorm = needs.batchnorm or "buffers" in attack.requires
    kind = kind or (
        "dense" if needs.dense_input else "batchnorm" if batchnorm else "tokens" if needs.tokens else "conv"
    )
    made = target(name, kind if not (KINDS[name].masks and kind == "tokens") else "conv")
    model, own = made.fresh(0), made.auxiliary
    if attack.plants():
        known = Beforehand(SHAPE, len(made.classes), batch, made.loss, "eval", own, made.task)
        model = attack.plant(model, known, torch.Generator().manual_seed(5))
    parts = (
        parse_defense(needs.defense) if needs.defense else Defense(),
        Shifted() if needs.replaced_records else Defense(),
    )
    given = defense or chain(*(part for part in parts if type(part) is not Defense))
    private = made.private[: victims * batch]
    update = share(
        model,
        made.loss,
        release(given, private, torch.Generator().manual_seed(98)),
        given,
        replace(EVERYTHING, labels=labels or "labels" in attack.requires),
        batch_size=batch,
        classes=len(made.classes),
        mode="eval",
        generator=torch.Generator().manual_seed(99),
        auxiliary=own,
        client=parse_client("fedavg:epochs=2:batch=1:lr=0.1") if needs.local_steps else FEDSGD,
        task=made.task,
    )
    return model, replace(update, prior=pictures_of(SHAPE)) if needs.generator else update, private


def with_line_ups(update: SharedUpdate, name: str, candidates: int = 5) -> tuple[SharedUpdate, Tensor]:
    """Return an update that knows its line-ups (V, M, C, H, W), and these: the truth first, then test records."""
    made, count = target(name), update.victims
    step = update.batch_size
    rows = [[v * step, *range(40 + v, 40 + v + candidates - 1)] for v in range(count)]

    def both(field: str) -> Tensor | None:
        private, test = getattr(made.private, field), getattr(made.test, field)
        return None if private is None else torch.cat([private, test])[torch.tensor(rows)]

    images = both("images")
    assert images is not None
    return replace(update, candidate_labels=both("labels"), candidate_targets=both("targets")), images
