"""The oldest known answers: a dense layer solved, DLG on its LeNet, and two defenses broken by leaving out a layer."""

from __future__ import annotations

import statistics
from functools import partial

from torch import Tensor
from torch.nn import functional as F

from benchmarks.answers.situation import CannotRebuild, Outcome, Situation, pictures
from benchmarks.networks import build
from leakaudit.attacks.analytic import Analytic
from leakaudit.attacks.dlg import IDLG
from leakaudit.attacks.omitting import OmittingLayers
from leakaudit.protocol.attack import Attack
from leakaudit.protocol.client import SharedUpdate, share
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.exposure import Exposure
from leakaudit.protocol.registry import parse_defense
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.score.metrics import psnr
from leakaudit.score.tuning import tune
from leakaudit.work.seeding import generator_for

FIRST = 2000  # of the test pictures that are attacked: nothing was tuned on them
KNOWS = Exposure(defense=True, auxiliary=True)


def updates(model: PixelModel, records: Records, defense: Defense, who: str) -> SharedUpdate:
    """Return what one-record clients share in eval mode under a defense that the attacker knows."""
    return share(
        model, F.cross_entropy, records, defense, KNOWS,
        batch_size=1, classes=10, mode="eval", generator=generator_for(0, "known answers", who),
    )  # fmt: skip


def median_psnr(truth: Records, images: Tensor | None) -> float:
    """Return the median PSNR in dB of one-record reconstructions (V, 1, C, H, W)."""
    if images is None:
        raise RuntimeError("the attack drew nothing")
    return statistics.median(psnr(truth.images, images[:, 0]).tolist())


def undefended(network: str, attack: Attack, records: int, quick: bool) -> Outcome:
    """Attack undefended one-record updates of an untrained network."""
    count = min(records, 4) if quick else records
    truth, model = pictures("test")[FIRST : FIRST + count], build(network).eval()
    found = attack(model, updates(model, truth, Defense(), "victims"), generator_for(0, network, attack.name))
    return Outcome(median_psnr(truth, found.images), f"median PSNR of {count} CIFAR-10 test pictures, untrained")


def without_its_layer(spec: str, quick: bool) -> Outcome:
    """Attack a defense of one layer by matching the others, tuned on records of training file b."""
    count, steps = (2, 120) if quick else (8, 240)
    defense, truth = parse_defense(spec), pictures("test")[FIRST : FIRST + count]
    model = defense.transform_model(build("cnn6").eval(), generator_for(0, spec, "model"))
    own, attack, tuned = pictures("train_b")[: 2 if quick else 4], OmittingLayers(steps=steps), {}
    if not quick:
        attack, tuned = tune(  # type: ignore[assignment]
            attack, model, updates(model, own, defense, "own"), own, generator_for(0, spec, "tune")
        )
    found = attack(model, updates(model, truth, defense, "victims"), generator_for(0, spec, "attack"))
    settings = ", ".join(f"{key} {value}" for key, value in tuned.items()) or "untuned"
    return Outcome(
        median_psnr(truth, found.images), f"median PSNR of {count} test pictures, cnn6, {steps} steps, {settings}"
    )


def out_of_reach(reason: str, quick: bool) -> Outcome:
    """Say why a situation cannot be rebuilt."""
    raise CannotRebuild(reason)


SITUATIONS = (
    Situation(
        "dense layer, one record, closed form",
        None,
        "dB",
        "Phong et al. 2017: the input of a dense layer with bias is exact; 150 dB is float32 to the last digits",
        partial(undefended, "dense", Analytic(), 16),
        goal=150.0,
    ),
    Situation(
        "DLG with the label inferred, sigmoid LeNet",
        23.41,
        "dB",
        "DLG on one record through a ConvNet: breaching's notebook; the LeNet's paper shows pictures only",
        partial(undefended, "lenet", IDLG(steps=300), 8),
    ),
    Situation(
        "soteria, its layer left out",
        None,
        "dB",
        "Balunović et al. 2022 (arXiv 2111.04706): broken by leaving the layer out; 20 dB is a recognisable picture",
        partial(without_its_layer, "soteria"),
        goal=20.0,
    ),
    Situation(
        "precode, its layers left out",
        None,
        "dB",
        "Scheliga et al. 2022 (arXiv 2208.05845, by title): broken by leaving the bottleneck out; 20 dB likewise",
        partial(without_its_layer, "precode"),
        goal=20.0,
    ),
    Situation(
        "trained ResNet-18, 224 pixels, one record",
        14.21,
        "dB",
        "inverting gradients on ImageNet, eval mode: notebook of the breaching framework",
        partial(out_of_reach, "it needs ImageNet's pictures and weights trained on them"),
    ),
)
