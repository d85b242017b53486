"""Known answers on statistics and features: label counts of batches, and batches unmixed from a dense gradient."""

from __future__ import annotations

import statistics
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.answers.situation import Outcome, Situation, pictures
from leakaudit.attacks.cocktail_party import CocktailParty
from leakaudit.attacks.labels import Labels
from leakaudit.protocol.client import SharedUpdate, share
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.exposure import Exposure
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.score.metrics import assign, psnr
from leakaudit.work.seeding import forked, generator_for

FIRST = 3000  # of the test pictures that are attacked: nothing was tuned on them
NOTHING = Exposure()


def fcn3() -> PixelModel:
    """Return the FCN-3 of iLRG for MNIST, untrained: three dense layers, two of them of 300 ReLU units."""
    with forked(0):
        network = nn.Sequential(
            nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 10)
        )
    return PixelModel(network, (0.1307,), (0.3081,)).eval()


def sigmoid_net() -> PixelModel:
    """Return a dense net of 256 sigmoid units for CIFAR-10, untrained: none of them fires for one record alone."""
    with forked(0):
        network = nn.Sequential(nn.Flatten(), nn.Linear(3072, 256), nn.Sigmoid(), nn.Linear(256, 10))
    return PixelModel(network, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)).eval()


def batches(model: PixelModel, records: Records, size: int, who: str) -> SharedUpdate:
    """Return what clients share of batches of one size, in eval mode, to a server that knows nothing beside."""
    return share(
        model, F.cross_entropy, records, Defense(), NOTHING,
        batch_size=size, classes=10, mode="eval", generator=generator_for(0, "known answers", who),
    )  # fmt: skip


def counts_of(labels: Tensor) -> Tensor:
    """Return how often each class is in batches of labels (V, B), as (V, 10)."""
    return F.one_hot(labels, 10).sum(1)


def counted(size: int, quick: bool) -> Outcome:
    """Count the labels of MNIST batches through an untrained dense net; the share of classes counted exactly."""
    victims, model = 10 if quick else 50, fcn3()
    truth = pictures("mnist_test")[FIRST : FIRST + victims * size]
    found = Labels()(model, batches(model, truth, size, "labels"), generator_for(0, "known answers", "count"))
    assert found.labels is not None
    told, real = counts_of(found.labels), counts_of(truth.labels.view(victims, size))
    share_of_records = float(torch.minimum(told, real).sum()) / real.sum().item()
    said = f"{victims} batches of {size} MNIST test pictures; {share_of_records:.3f} of all labels right"
    return Outcome(float((told == real).float().mean()), said)


def unmixed(size: int, quick: bool) -> Outcome:
    """Unmix batches of CIFAR-10 from the gradient of a first layer of sigmoid units; the median PSNR."""
    victims, model = 1 if quick else max(2, 32 // size), sigmoid_net()
    truth = pictures("test")[FIRST : FIRST + victims * size]
    found = CocktailParty()(model, batches(model, truth, size, "mix"), generator_for(0, "known answers", "unmix"))
    assert found.images is not None
    values: list[float] = []
    for v in range(victims):
        own = truth.images[v * size : (v + 1) * size]
        values += psnr(own, found.images[v][assign(own, found.images[v])]).tolist()
    said = f"median PSNR of {victims} batches of {size} CIFAR-10 test pictures, 256 sigmoid units; {found.notes[0]}"
    return Outcome(statistics.median(values), said)


ILRG = (
    "Ma et al. 2023 (iLRG, ICLR): log of the authors' repository, untrained FCN-3 on MNIST, 50 batches of {}: share of "
    "classes with the exact count (LnAcc)"
)
SITUATIONS = (
    Situation("label counts, MNIST, B = 24", 0.994, "share of classes", ILRG.format(24), partial(counted, 24)),
    Situation("label counts, MNIST, B = 32", 0.804, "share of classes", ILRG.format(32), partial(counted, 32)),
    Situation(
        "cocktail party, sigmoid dense layer, B = 8",
        None,
        "dB",
        "Kariyappa et al. 2023 (Cocktail Party Attack) shows pictures; 20 dB is a recognisable one",
        partial(unmixed, 8),
        goal=20.0,
    ),
)
