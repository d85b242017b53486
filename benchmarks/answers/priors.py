"""Known answers of learned attacks and of generative priors: pruning read by a regression, batches read as sets."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.answers.situation import Outcome, Situation, pictures
from benchmarks.networks import build
from leakaudit.attacks.generative_prior import GenerativePrior
from leakaudit.attacks.inverting_gradients import InvertingGradients
from leakaudit.attacks.learned import LearnedInversion
from leakaudit.protocol.attack import Attack
from leakaudit.protocol.client import SharedUpdate, release, share
from leakaudit.protocol.exposure import Exposure
from leakaudit.protocol.labels import class_means
from leakaudit.protocol.registry import parse_defense
from leakaudit.protocol.target import PictureGenerator, Records
from leakaudit.score.identification import candidate_sets, identify
from leakaudit.score.metrics import assign, psnr
from leakaudit.score.tuning import tune
from leakaudit.work.seeding import generator_for

FIRST = 3000  # of the test pictures that are attacked: nothing was tuned on them
CANDIDATES = 50
AUXILIARY = 1000
LATENT = 64
KNOWS = Exposure(defense=True, auxiliary=True)


def updates(network: str, records: Records, own: Records, spec: str, batch: int, who: str) -> SharedUpdate:
    """Return what clients of `batch` records each share in eval mode under a defense that the attacker knows."""
    defense, generator = parse_defense(spec), generator_for(0, "priors", who)
    return share(
        build(network).eval(), F.cross_entropy, release(defense, records, generator), defense, KNOWS,
        batch_size=batch, classes=10, mode="eval", generator=generator, auxiliary=own,
    )  # fmt: skip


def drawn(found: Tensor | None, truth: Records) -> Tensor:
    """Return what was drawn (V, B, C, H, W) as (N, C, H, W), in each batch in the order that fits best."""
    if found is None:
        raise RuntimeError("the attack drew nothing")
    batches = zip(found, truth.images.split(found.shape[1]), strict=True)
    return torch.cat([guess[assign(true, guess)] for guess, true in batches])


def found_among(guess: Tensor, count: int, batch: int, everybody: Records) -> int:
    """Return how many of the first `count` records are nearest to what was drawn among `CANDIDATES` of their class."""
    rows = torch.arange(count)
    line_up = candidate_sets(
        everybody, rows, everybody[:0], CANDIDATES, generator_for(0, "priors", "candidates"), batch_size=batch
    )
    return int(identify(line_up, guess)[1].sum())


def learned(spec: str, batch: int, quick: bool) -> Outcome:
    """Read LeNet's updates by what was learned on auxiliary ones; inverting gradients, tuned on such, stands beside."""
    count = 16 if quick else 48
    everybody, own = pictures("test")[FIRST:], pictures("train_b")[: 400 if quick else AUXILIARY]
    truth, model = everybody[:count], build("lenet").eval()
    given = updates("lenet", truth, own, spec, batch, "victims")
    attack: Attack = LearnedInversion(decoder_steps=40 if quick else 400)
    guess = drawn(attack(model, given, generator_for(0, spec, "attack")).images, truth)
    means = class_means(own.images, own.labels, 10)[truth.labels].view_as(guess)
    beside = drawn(means.unflatten(0, (-1, batch)), truth)
    rehearsed = own[: 2 * batch]
    plain, _ = tune(
        InvertingGradients(steps=60 if quick else 240), model,
        updates("lenet", rehearsed, own, spec, batch, "rehearsal"), rehearsed, generator_for(0, spec, "tune"),
    )  # fmt: skip
    inverted = drawn(plain(model, given, generator_for(0, spec, "plain")).images, truth)
    hits, others = (found_among(each, count, batch, everybody) for each in (guess, inverted))
    share_of = float((guess - truth.images).square().mean() / (beside - truth.images).square().mean())
    return Outcome(
        hits / count,
        f"{count} test pictures among {CANDIDATES} of their class (chance {1 / CANDIDATES:g}), LeNet, {len(own)} "
        f"auxiliary records, labels inferred; squared error {share_of:.2f} of the class mean's; inverting gradients, "
        f"tuned: {others / count:.2f}",
    )


def principal(images: Tensor) -> nn.Module:
    """Return a linear generator: from `LATENT` normal latents along the leading directions of pictures (N, C, H, W)."""
    flat = images.flatten(1)
    mean = flat.mean(0)
    _, sizes, basis = torch.linalg.svd(flat - mean, full_matrices=False)
    layer = nn.Linear(LATENT, flat.shape[1])
    with torch.no_grad():
        layer.weight.copy_((basis[:LATENT] * sizes[:LATENT, None] / len(flat) ** 0.5).T)
        layer.bias.copy_(mean)
    return nn.Sequential(layer, nn.Hardtanh(0, 1), nn.Unflatten(1, tuple(images.shape[1:]))).requires_grad_(False)


def in_range(network: str, quick: bool) -> Outcome:
    """Attack pictures that a linear generator can draw, with it and without."""
    count, steps = (4, 60) if quick else (8, 240)
    own = pictures("train_b")
    make = principal(own.images[:2000])
    real = pictures("test")[FIRST : FIRST + count]
    layer = make[0]
    latents = torch.linalg.lstsq(layer.weight, (real.images.flatten(1) - layer.bias).T).solution.T  # type: ignore[index, union-attr, operator]
    inside = Records(make(latents), real.labels)
    model, scores = build(network).eval(), {}
    for name, truth in (("inside", inside), ("real", real)):
        shared = updates(network, truth, own[:AUXILIARY], "none", 1, "victims")
        given = replace(shared, prior=PictureGenerator(make, (LATENT,)))
        for attack in (GenerativePrior(steps=steps), InvertingGradients(steps=steps)):
            found = attack(model, given, generator_for(0, network, attack.name)).images
            scores[name, attack.name] = statistics.median(psnr(truth.images, drawn(found, truth)).tolist())
    ours, plain, *others = scores.values()
    return Outcome(
        ours,
        f"median PSNR of {count} test pictures projected on {LATENT} principal directions of training ones, {network}, "
        f"{steps} steps; inverting gradients, untuned, there: {plain:.1f} dB; of the pictures as they are, which it "
        f"cannot draw: {others[0]:.1f} and {others[1]:.1f} dB",
    )


def _said(what: str) -> str:
    return f"Wu et al. 2023 (arXiv 2210.10880): {what}; its figures are not at hand, so the goal is ours"


SITUATIONS: Sequence[Situation] = (
    Situation(
        "prune .99, one record, learned inversion",
        None,
        "share identified",
        _said("pruning by 99 % does not hold against a learned inversion"),
        partial(learned, "prune:sparsity=0.99", 1),
        goal=0.2,
    ),
    Situation(
        "batches of 4, learned inversion",
        None,
        "share identified",
        _said("batches of 4, matched as sets"),
        partial(learned, "none", 4),
        goal=0.5,
    ),
    Situation(
        "a generator's own pictures, one record",
        None,
        "dB",
        "Fang et al. 2023 (GIFD): figures for BigGAN and StyleGAN2, not at hand; 30 dB where the range holds them",
        partial(in_range, "cnn6"),
        goal=30.0,
    ),
)
