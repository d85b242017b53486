"""Networks that were trained: what one record's update shows of it on a ResNet-20 and a ResNet-56 for CIFAR-10."""

from __future__ import annotations

import statistics
from dataclasses import replace
from functools import lru_cache, partial

import torch
from torch.nn import functional as F

from benchmarks.answers.situation import CannotRebuild, Outcome, Situation, pictures
from benchmarks.inversion import shared
from benchmarks.networks import TRAINED, trained
from leakaudit.attacks.inverting_gradients import InvertingGradients
from leakaudit.attacks.learned_start import LearnedStart
from leakaudit.protocol.client import share
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.exposure import Exposure
from leakaudit.score.identification import candidate_sets, identify
from leakaudit.score.metrics import assign, psnr, ssim
from leakaudit.work.seeding import generator_for

FIRST, VICTIMS = 1000, 16  # of the test pictures: nothing was tuned on them
QUICK_FIRST, QUICK_VICTIMS = 100, 2
BATCH, IN_BATCHES = 8, InvertingGradients(tv=0.03, step_size=0.05, fall=1.0)
CANDIDATES = 100
LEARNED_FROM = 1000  # of the auxiliary pictures: settings were chosen on those before
ATTACKS = {
    "resnet20": LearnedStart(steps=400, restarts=4, pairs=9000),
    "resnet56": LearnedStart(steps=200, restarts=3, pairs=2000),
}


@lru_cache(maxsize=4)
def scores(name: str, quick: bool) -> tuple[float, float, float, int, int]:
    """Return identified records, median PSNR in dB and SSIM, how many records, and how many pairs were learned from.

    Raises CannotRebuild where pictures or weights are absent.
    """
    if not TRAINED[name][1].is_file():
        raise CannotRebuild(f"the weights {TRAINED[name][1].name} are absent")
    test, auxiliary, attack = pictures("test"), pictures("train_b")[LEARNED_FROM:], ATTACKS[name]
    first, count = (QUICK_FIRST, QUICK_VICTIMS) if quick else (FIRST, VICTIMS)
    attack = replace(attack, steps=40, restarts=1, pairs=200) if quick else attack
    model, index = trained(name), torch.arange(first, first + count)
    update = replace(shared(model, test[index], 0, "victims"), auxiliary=auxiliary)
    found = attack(model, update, generator_for(0, name, attack.name))
    if found.images is None:
        raise RuntimeError(found.reason or "the attack drew nothing")
    guess, truth = found.images[:, 0], test.images[index]
    line_up = candidate_sets(test, index, test[:0], CANDIDATES, generator_for(0, name, "candidates"))
    named = float(identify(line_up, guess)[1].sum())
    decibels = statistics.median(psnr(truth, guess).tolist())
    return named, decibels, statistics.median(ssim(truth, guess).tolist()), count, attack.pairs


def identified(name: str, quick: bool) -> Outcome:
    """Return how many of 16 records are told from 99 others of their class."""
    named, decibels, structure, count, pairs = scores(name, quick)
    return Outcome(
        named * VICTIMS / count,
        f"{named:g} of {count} test pictures among {CANDIDATES} of their class; medians {decibels:.2f} dB,"
        f" SSIM {structure:.3f}; {pairs} auxiliary records",
    )


def decibels(name: str, quick: bool) -> Outcome:
    """Return the median PSNR of the same run."""
    named, found, structure, count, _ = scores(name, quick)
    return Outcome(found, f"median of {count} test pictures, SSIM {structure:.3f}, {named:g} identified")


_GEIPING = "Geiping et al. 2020, ResNet20-4 trained on CIFAR-10, mean of the first 100 validation pictures"
_QUALITY = "published settings of Geiping et al. 2020 (benchmarks.quality), test pictures 100 to 115; the goal is ours"
_NONE = "no published figure is known; the goal is ours"


def in_batches(quick: bool) -> Outcome:
    """Return how many of 16 records are identified of batches of eight in train mode, labels given."""
    test, count = pictures("test"), BATCH if quick else VICTIMS
    if not TRAINED["resnet20"][1].is_file():
        raise CannotRebuild(f"the weights {TRAINED['resnet20'][1].name} are absent")
    index = torch.arange(FIRST, FIRST + count) if not quick else torch.arange(QUICK_FIRST, QUICK_FIRST + count)
    truth, model, attack = test[index], trained("resnet20"), replace(IN_BATCHES, steps=20 if quick else 120)
    update = share(
        model, F.cross_entropy, truth, Defense(), Exposure(labels=True),
        batch_size=BATCH, classes=10, mode="train", generator=generator_for(0, "in batches"),
    )  # fmt: skip
    found = attack(model, update, generator_for(0, "in batches", attack.name))
    if found.images is None:
        raise RuntimeError(found.reason or "the attack drew nothing")
    batches = truth.images.view_as(found.images)
    guess = torch.cat([drawn[assign(true, drawn)] for true, drawn in zip(batches, found.images, strict=True)])
    line_up = candidate_sets(test, index, test[:0], CANDIDATES, generator_for(0, "in batches", "candidates"))
    named = float(identify(line_up, guess)[1].sum())
    middle = statistics.median(psnr(truth.images, guess).tolist())
    return Outcome(named * VICTIMS / count, f"{named:g} of {count} test pictures by {attack.name}, {middle:.2f} dB")


SITUATIONS = (
    Situation("trained ResNet-20, B = 1, identified", 2, "of 16", _QUALITY, partial(identified, "resnet20"), goal=12),
    Situation("trained ResNet-20, B = 1, PSNR", 13.95, "dB", _GEIPING, partial(decibels, "resnet20")),
    Situation("trained ResNet-56, B = 1, identified", None, "of 16", _NONE, partial(identified, "resnet56"), goal=8),
    Situation("trained ResNet-20, B = 8, train mode", None, "of 16", _NONE, in_batches, goal=4),
)
