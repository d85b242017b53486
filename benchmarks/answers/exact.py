"""What is exact: batches peeled and told apart, a transformer's patches, a network solved layer by layer."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.answers.situation import Outcome, Situation, pictures
from benchmarks.networks import CIFAR_MEAN, CIFAR_STD, build
from leakaudit.attacks.april import April
from leakaudit.attacks.peeling import Peeling
from leakaudit.attacks.rgap import RGap
from leakaudit.attacks.spear import Spear
from leakaudit.protocol.attack import Attack, Reconstruction
from leakaudit.protocol.client import share
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.exposure import Exposure
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.score.metrics import psnr
from leakaudit.work.seeding import generator_for, seeded

EXACT = 1e-3  # root mean square of a picture that is exact, in pixels of [0, 1]: 60 dB
FIRST = 2000  # of the test pictures that are attacked: nothing was tuned on them
PEELING = "Shariati and Alambardar Meybodi 2026, cascading peeling, passive: 1,000 ReLU units, sigma .5, float64"


def attacked(model: PixelModel, records: Records, attack: Attack, batch: int, who: str) -> Reconstruction:
    """Attack what clients of `batch` records each share in eval mode, undefended, with nothing else exposed."""
    update = share(
        model, F.cross_entropy, records, Defense(), Exposure(),
        batch_size=batch, classes=10, mode="eval", generator=generator_for(0, who, "victims"),
    )  # fmt: skip
    return attack(model, update, generator_for(0, who, attack.name))


def wide(shape: torch.Size, seed: int, kind: torch.dtype) -> PixelModel:
    """Return the published net: a dense layer of 1,000 ReLU units drawn with sigma .5, pictures in [0, 1]."""
    with seeded(seed, "wide"):
        first, last = nn.Linear(shape.numel(), 1000), nn.Linear(1000, 10)
        for p in first.parameters():
            nn.init.normal_(p, 0, 0.5)
    return PixelModel(nn.Sequential(nn.Flatten(), first, nn.ReLU(), last)).to(kind).eval()


def reach(model: PixelModel, images: Tensor) -> int:
    """Return how many of a batch fire a unit alone, or would once the others that do are taken off: by the truth."""
    first = model.network[1]  # type: ignore[index]
    with torch.no_grad():
        fires = (first(images.flatten(1)) > 0).double()
    some = fires.any(1)
    while True:
        alone = fires.sum(0) == 1
        if not bool(alone.any()):
            return int((some & ~fires.any(1)).sum())
        fires[fires[:, alone].any(1)] = 0


@dataclass(frozen=True)
class Count:
    """Of so many records: how many are certified, falsely so (inexact, or under a wrong label), and within reach."""

    records: int
    certified: int
    false: int
    reach: int


def counted(model: PixelModel, truth: Records, found: Reconstruction) -> Count:
    """Compare the certified pictures of one batch with its records."""
    assert found.images is not None
    assert found.certified is not None
    assert found.labels is not None
    flat, drawn = truth.images.double().flatten(1), found.images[0].double().flatten(1)
    far, whose = (torch.cdist(flat, drawn) / flat.shape[1] ** 0.5).min(0)
    wrong = (far > EXACT) | (found.labels[0] != truth.labels[whose])
    certified = found.certified[0]
    taken = len(set(whose[certified & ~wrong].tolist()))
    return Count(len(flat), taken, int((certified & wrong).sum()), reach(model, truth.images))


def peeled(which: str, batch: int, batches: int, kind: torch.dtype) -> list[Count]:
    """Peel batches of test pictures, each with a net of its own."""
    records = pictures(which)
    records = Records(records.images.to(kind), records.labels)
    usable = torch.arange(FIRST, len(records))
    counts = []
    for i in range(batches):
        chosen = usable[torch.randperm(len(usable), generator=generator_for(i, "peeling", str(batch)))[:batch]]
        model, truth = wide(records.images.shape[1:], i, kind), records[chosen]
        counts.append(counted(model, truth, attacked(model, truth, Peeling(), batch, f"peeling {i}")))
    return counts


def table(which: str, batch: int, batches: int, kind: torch.dtype, quick: bool) -> Outcome:
    """Return the share of records that are recovered exactly, certified and with their label."""
    counts = peeled(which, batch, max(1, batches // 24) if quick else batches, kind)
    total = sum(c.records for c in counts)
    shares = [c.certified / c.records for c in counts]
    spread = statistics.stdev(shares) / len(shares) ** 0.5 if len(shares) > 1 else float("nan")
    false, within = sum(c.false for c in counts), sum(c.reach for c in counts) / total
    said = f"{total} records, each batch its own net; standard error {spread:.3f}; within reach of any peeling "
    return Outcome(sum(shares) / len(shares), said + f"{within:.3f}; {false} false certificates")


def false_certificates(quick: bool) -> Outcome:
    """Count certificates that are false over batches of both data sets, of every size and both precisions."""
    plan = (("test", 16, 64), ("test", 64, 8), ("mnist_test", 64, 36), ("mnist_test", 128, 10))
    counts = [
        count
        for which, batch, batches in plan
        for kind in (torch.float64, torch.float32)
        for count in peeled(which, batch, 1 if quick else batches, kind)
    ]
    records, certified = sum(c.records for c in counts), sum(c.certified for c in counts)
    said = f"{certified} certificates in {records} records of CIFAR-10 and MNIST, float64 and float32"
    return Outcome(sum(c.false for c in counts), said)


def told_apart(batch: int, batches: int, quick: bool) -> Outcome:
    """Tell records of normalised CIFAR-10 batches apart, behind an untrained dense net of three layers."""
    records, shares, count = pictures("test"), [], 1 if quick else batches
    for i in range(count):
        with seeded(i, "spear"):
            layers = [nn.Flatten(), nn.Linear(3072, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10)]
        model = PixelModel(nn.Sequential(*layers), CIFAR_MEAN, CIFAR_STD).eval()
        truth = records[slice(FIRST + i * batch, FIRST + (i + 1) * batch)]
        found = attacked(model, truth, Spear(), batch, f"spear {i}")
        shares.append(counted(model, truth, found).certified / batch)
    return Outcome(sum(shares) / len(shares), f"{count} batches of test pictures, float32, certified, with labels")


def one_record(model: PixelModel, attack: Attack, records: int, quick: bool) -> Outcome:
    """Return the median PSNR of one-record updates of test pictures."""
    truth = pictures("test")[FIRST : FIRST + (2 if quick else records)]
    found = attacked(model, truth, attack, 1, attack.name)
    if found.images is None:
        raise RuntimeError("the attack drew nothing")
    scores = psnr(truth.images, found.images[:, 0]).tolist()
    return Outcome(
        statistics.median(scores), f"median of {len(scores)} CIFAR-10 test pictures, worst {min(scores):.1f}"
    )


def transformer(quick: bool) -> Outcome:
    """Attack torchvision's vision transformer: 4×4 patches, 96 wide, two blocks."""
    from torchvision.models import VisionTransformer

    with seeded(0, "transformer"):
        network = VisionTransformer(32, 4, num_layers=2, num_heads=4, hidden_dim=96, mlp_dim=192, num_classes=10)
        nn.init.normal_(network.heads[0].weight, 0, 0.02)  # torchvision begins with zeros, where no gradient passes
    return one_record(PixelModel(network, CIFAR_MEAN, CIFAR_STD).eval(), April(), 16, quick)


def layer_by_layer(quick: bool) -> Outcome:
    """Attack the six-layer CNN."""
    return one_record(build("cnn6").eval(), RGap(), 8, quick)


def _row(name: str, which: str, batch: int, share_: float, batches: int) -> Situation:
    measure: Callable[[bool], Outcome] = partial(table, which, batch, batches, torch.float64)
    return Situation(
        f"peeling, {name}, B = {batch}",
        share_,
        "share of records",
        PEELING,
        measure,
        goal=round(max(share_ - 0.02, share_ / 2), 3),
    )


SITUATIONS = (
    _row("CIFAR-10", "test", 64, 0.994, 24),
    _row("CIFAR-10", "test", 128, 0.666, 16),
    _row("CIFAR-10", "test", 256, 0.215, 12),
    _row("MNIST", "mnist_test", 64, 0.484, 96),
    _row("MNIST", "mnist_test", 128, 0.017, 72),
    _row("MNIST", "mnist_test", 256, 0.002, 24),
    Situation(
        "peeling, false certificates in 10,000",
        None,
        "records",
        "none is claimed: a record is certified without the truth (the same paper)",
        false_certificates,
        goal=0,
        least=True,
    ),
    Situation(
        "SPEAR, B = 8, dense ReLU net",
        1.0,
        "share of records",
        "Dimitrov et al. 2024 (arXiv 2403.03945): exact to some 20 records",
        partial(told_apart, 8, 12),
    ),
    Situation(
        "SPEAR, B = 16, dense ReLU net",
        1.0,
        "share of records",
        "the same; here none of the records peels",
        partial(told_apart, 16, 6),
    ),
    Situation(
        "R-GAP, six-layer CNN, one record",
        49.01,
        "dB",
        "Zhu and Blaschko 2021 on their six-layer CNN: notebook of the breaching framework; ours has other widths",
        layer_by_layer,
        goal=45.0,
    ),
    Situation(
        "APRIL, small vision transformer, one record",
        None,
        "dB",
        "Lu et al. 2022 (arXiv 2112.14087) show pictures only; 20 dB is a recognisable one",
        transformer,
        goal=20.0,
    ),
)
