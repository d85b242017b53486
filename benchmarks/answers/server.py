"""A malicious server: imprint, trap weights, and one record fished out of a batch, each on CIFAR-10."""

from __future__ import annotations

import copy
import statistics
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.answers.situation import Outcome, Situation, pictures
from benchmarks.networks import CIFAR_MEAN, CIFAR_STD, build
from leakaudit.attacks.fishing import Fishing, fished
from leakaudit.attacks.imprint import Imprint
from leakaudit.attacks.peeling import Peeling
from leakaudit.attacks.trap_weights import TrapWeights
from leakaudit.protocol.attack import Attack, Beforehand, Reconstruction
from leakaudit.protocol.client import SharedUpdate, share
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.exposure import PRESETS
from leakaudit.protocol.registry import parse_defense
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.score.metrics import assign, psnr
from leakaudit.work.seeding import forked, generator_for

FIRST = 2200  # of the test pictures that are attacked: nothing was tuned on them
OWN = 1000  # training pictures of file b that the server owns
DRAWN = 40.0  # dB, from which on a record was read off


def dense() -> PixelModel:
    """Return an untrained net of a dense ReLU layer of 1,000 units and two smaller ones."""
    with forked(0):
        layers = [nn.Linear(3072, 1000), nn.ReLU(), nn.Linear(1000, 100), nn.ReLU(), nn.Linear(100, 10)]
    return PixelModel(nn.Sequential(nn.Flatten(), *layers), CIFAR_MEAN, CIFAR_STD).eval()


def planted(
    attack: Attack, model: PixelModel, truth: Records, batch: int, defense: Defense | None = None
) -> tuple[PixelModel, SharedUpdate]:
    """Return the model that a server plants, and what clients of so many records each share of it."""
    own, defense = pictures("train_b")[:OWN], defense or Defense()
    known = Beforehand((3, 32, 32), 10, batch, F.cross_entropy, "eval", own)
    sent = attack.plant(copy.deepcopy(model), known, generator_for(0, attack.name, "plant"))
    sent = defense.transform_model(sent, generator_for(0, "known answers", "model"))
    update = share(
        sent, F.cross_entropy, truth, defense, PRESETS["malicious-server"], batch_size=batch, classes=10, mode="eval",
        generator=generator_for(0, "known answers", "server"), auxiliary=own,
    )  # fmt: skip
    return sent, update


def scores(truth: Records, found: Reconstruction, batch: int) -> Tensor:
    """Return the PSNR (N,) in dB of every record, paired within its batch."""
    if found.images is None:
        raise RuntimeError("the attack drew nothing")
    batches = truth.images.view(-1, batch, *truth.images.shape[1:])
    return torch.cat([psnr(x, y[assign(x, y)]) for x, y in zip(batches, found.images, strict=True)])


def imprinted(network: str, batch: int, spec: str, quick: bool) -> Outcome:
    """Return the median PSNR of records read off the bins."""
    count = max(16, batch) if quick else max(64, 2 * batch)
    truth, attack = pictures("test")[FIRST : FIRST + count], Imprint()
    sent, update = planted(attack, build(network).eval(), truth, batch, parse_defense(spec) if spec else None)
    found = scores(truth, attack(sent, update, generator_for(0, network, "imprint")), batch)
    exact = int((found > DRAWN).sum())
    return Outcome(float(found.median()), f"median of {count} test pictures, untrained {network}; {exact} exact")


def trapped(batch: int, quick: bool) -> Outcome:
    """Return the share of records read off a first layer of trap weights, beside that off the layer as it was."""
    count = batch * (1 if quick else max(2, 200 // batch))
    truth, shares = pictures("test")[FIRST : FIRST + count], []
    for attack in (TrapWeights(), Peeling()):
        sent, update = planted(attack, dense(), truth, batch)
        found = scores(truth, attack(sent, update, generator_for(0, "dense", attack.name)), batch)
        shares.append(float((found > DRAWN).double().mean()))
    return Outcome(shares[0], f"of {count} test pictures, 1,000 ReLU units; {shares[1]:.3f} where nothing is planted")


def drawn(batch: int, quick: bool) -> Outcome:
    """Return the median PSNR of records that were alone of the fished class in their batch."""
    network, victims, attack = ("lenet", 4, Fishing(steps=60)) if quick else ("cnn6", 12, Fishing(steps=240))
    truth = pictures("test")[FIRST : FIRST + victims * batch]
    sent, update = planted(attack, build(network).eval(), truth, batch)
    claim, found = attack(sent, update, generator_for(0, network, "fishing")), []
    assert claim.images is not None
    for rows, (_, seen) in fished(sent, update):
        for v in rows if seen.batch_size == 1 else ():
            assert seen.labels is not None
            batch_of = truth[v * batch : (v + 1) * batch]
            own = batch_of[(batch_of.labels == int(seen.labels[0, 0])).nonzero()[:, 0]]
            found.append(float(psnr(own.images, claim.images[v, : len(own)])[0]))
    if not found:
        raise RuntimeError("no batch held the class once")
    said = f"median of {len(found)} records, each alone of its class in a batch of {batch}; untrained {network}"
    return Outcome(statistics.median(found), said)


FED = "Fowl et al. 2022 (arXiv 2110.13057): exact but for rounding where a bin holds one record"
TRAPS = "Boenisch et al. 2021 (arXiv 2112.02918), whose figures are not at hand; the goal is ours"
SITUATIONS = (
    *(
        Situation(f"imprint, batch of {batch}", None, "dB", FED, partial(imprinted, "cnn6", batch, ""), goal=60.0)
        for batch in (8, 64)
    ),
    *(
        Situation(f"imprint, batch of 8, behind {spec}", None, "dB", FED, partial(imprinted, "lenet", 8, spec), 60.0)
        for spec in ("clip", "gaussian:std=30")
    ),
    *(
        Situation(f"trap weights, batch of {batch}", None, "share of records", TRAPS, partial(trapped, batch), goal)
        for batch, goal in ((20, 0.9), (50, 0.7), (100, 0.5))
    ),
    Situation(
        "fishing, one class out of a batch of 8",
        None,
        "dB",
        "Wen et al. 2022 (arXiv 2202.00580): as a batch of one; 20 dB is a recognisable picture",
        partial(drawn, 8),
        goal=20.0,
    ),
)
