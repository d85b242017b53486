"""Known answers on clients with local steps: four CIFAR-10 pictures, four local steps, an untrained network."""

from __future__ import annotations

from functools import cache, partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.answers.situation import Outcome, Situation, pictures
from benchmarks.networks import build
from leakaudit.attacks.inverting_gradients import InvertingGradients
from leakaudit.attacks.unrolled import ThroughLocalSteps
from leakaudit.protocol.attack import Attack
from leakaudit.protocol.client import SharedUpdate, share
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.exposure import Exposure
from leakaudit.protocol.federation import parse_client
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.score.identification import candidate_sets, identify
from leakaudit.score.metrics import assign, psnr
from leakaudit.work.seeding import generator_for

FIRST = 3000  # of the test pictures that are attacked: nothing was tuned on them
BATCH, LINE_UP = 4, 100
STEPS = {True: 40, False: 400}  # of the attacks, quick and in full
VARIANTS = {  # of four local steps on four pictures
    "all in every step": "fedavg:steps=4:lr=0.1",
    "two a step, two epochs": "fedavg:epochs=2:batch=2:lr=0.1",
    "one a step": "fedavg:epochs=1:batch=1:lr=0.1",
}


def updates(model: PixelModel, truth: Records, spec: str) -> SharedUpdate:
    """Return what clients of four records send in eval mode, without a defense; the server infers the labels."""
    return share(
        model, F.cross_entropy, truth, Defense(), Exposure(auxiliary=True), batch_size=BATCH, classes=10, mode="eval",
        generator=generator_for(0, "known answers", spec), auxiliary=pictures("train_a")[1000:1500],
        client=parse_client(spec),
    )  # fmt: skip


def scored(truth: Records, images: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the PSNR (N,) of every record, after assignment, and whether it is nearest in its line-up (N,)."""
    if images is None:
        raise RuntimeError("the attack drew nothing")
    batches = truth.images.view_as(images)
    aligned = torch.cat([found[assign(own, found)] for own, found in zip(batches, images, strict=True)])
    everybody = torch.arange(len(truth))
    pool, drawn = pictures("train_b"), generator_for(0, "known answers", "line-ups")
    sets = candidate_sets(truth, everybody, pool, LINE_UP, drawn, batch_size=BATCH)
    return psnr(truth.images, aligned), identify(sets, aligned)[1]


def told(truth: Records, images: Tensor | None) -> str:
    """Say what a reconstruction is worth."""
    quality, found = scored(truth, images)
    return f"{int(found.sum())} of {len(found)} identified, {float(quality.median()):.2f} dB in the median"


@cache
def attacked(spec: str, quick: bool) -> tuple[Records, Tensor, str]:
    """Attack four clients, quick one, of cnn6: the truth, the pictures, and what endpoint matching gives beside."""
    truth, model = pictures("test")[FIRST : FIRST + (1 if quick else 4) * BATCH], build("cnn6").eval()
    update = updates(model, truth, spec)
    beside: list[Tensor | None] = []
    for attack in attacks(STEPS[quick]):
        beside.append(attack(model, update, generator_for(0, spec, attack.name)).images)
    through, plain = beside
    assert through is not None
    said = f"{told(truth, through)}, of CIFAR-10 test pictures, cnn6, among {LINE_UP} of the class"
    return truth, through, f"{said}; matching one gradient: {told(truth, plain)}"


def attacks(steps: int) -> tuple[Attack, ...]:
    """Return the attack through local steps, and the one that knows nothing of them."""
    return ThroughLocalSteps(steps=steps, tv=1e-3), InvertingGradients(steps=steps, tv=1e-3)


def identified(spec: str, quick: bool) -> Outcome:
    """Return the share of records that are identified in a line-up."""
    truth, images, said = attacked(spec, quick)
    return Outcome(float(scored(truth, images)[1].float().mean()), said)


def quality(spec: str, quick: bool) -> Outcome:
    """Return the median PSNR of the records."""
    truth, images, said = attacked(spec, quick)
    return Outcome(float(scored(truth, images)[0].median()), said)


PUBLISHED = "two a step, two epochs"
SITUATIONS = (
    *(
        Situation(
            f"FedAvg, 4 x 4 steps, {variant}",
            1.0 if variant == PUBLISHED else None,
            "share of records",
            "IIP 100 % of 4 ImageNet pictures, two a step, trained ResNet-18, lr .001: notebook of breaching",
            partial(identified, spec),
            goal=1.0,
        )
        for variant, spec in VARIANTS.items()
    ),
    Situation(
        "FedAvg, 4 x 4 steps, PSNR",
        20.78,
        "dB",
        "the same notebook and the same four steps of two pictures",
        partial(quality, VARIANTS[PUBLISHED]),
    ),
)
