"""Clients that pool what they fitted: each draws from all of it, in proportion to the records behind it."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.federated import Client, Exchanged, clients_of, fedavg, pooled
from leakaudit.defenses.obscure import Obscure
from leakaudit.protocol.registry import parse_defense
from leakaudit.protocol.target import PixelModel, Records, Target

SPEC = "obscure:steps=1:epochs=1:latent=4:pictures=1"


def target() -> Target:
    """Return six classes of pictures, each bright in a row of its own."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(72) % 6
    images = 0.3 * torch.rand((72, 1, 8, 8), generator=generator)
    images[torch.arange(72), 0, labels] += 0.6
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = PixelModel(nn.Sequential(nn.Flatten(), nn.Linear(64, 6)))
    records = Records(images, labels)
    return Target("rows", model, F.cross_entropy, records, records, records, classes=tuple("abcdef"))


def test_clients_by_class_draw_every_class_once_they_pool() -> None:
    clients = clients_of(target(), SPEC, "skewed", 3, 0)
    together = pooled(clients, 0)
    assert together is not None
    whole = together[0].defense
    assert isinstance(whole, Obscure)
    assert whole.obscurer is not None
    fitted = [client.defense.obscurer for client in clients if isinstance(client.defense, Obscure)]
    assert torch.equal(whole.obscurer.pictures, torch.cat([each.pictures for each in fitted if each is not None]))
    for before, after in zip(clients, together, strict=True):
        assert after.records is before.records
        assert len(after.released) == len(before.records)
        assert isinstance(after.defense, Obscure)
        assert after.defense.obscurer is whole.obscurer
    assert fedavg(target(), together, rounds=1, batch_size=8, seed=0).training is False


def test_class_statistics_are_pooled_by_a_draw_of_the_client_and_of_its_label() -> None:
    clients = clients_of(target(), "class-conditional:latent=4", "skewed", 3, 0)
    together = pooled(clients, 0)
    assert together is not None
    assert isinstance(together[0].defense, Exchanged)
    assert together[0].defense.renewable
    images = torch.zeros(600, 1, 8, 8)
    drawn, labels = together[0].defense.transform_records(images, torch.zeros(600), torch.Generator().manual_seed(1))
    assert drawn.shape == images.shape
    assert labels.bincount(minlength=6).min() > 60  # all six classes, of which a client holds two
    brightest = drawn[:, 0].mean(2).argmax(1)
    assert (brightest[labels == brightest].shape[0]) > 500  # a picture is of the label that it came with


def test_what_cannot_be_pooled_is_not() -> None:
    of = target()
    for spec in ("none", "obscure:rate=1:steps=1:epochs=1:latent=4:pictures=1"):
        clients = [Client(of.private, parse_defense(spec).fit(of, torch.Generator().manual_seed(0)), of.private)] * 2
        assert pooled(clients, 0) is None
