"""Clients with local steps: what they send against torch's own optimisers, and where a defense acts."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakaudit.errors import UserError
from leakaudit.protocol.client import sent, share
from leakaudit.protocol.defense import Defense, chain
from leakaudit.protocol.exposure import Exposure
from leakaudit.protocol.federation import FEDSGD, PRESETS, Client, local_batches, parse_client, spec_of
from leakaudit.protocol.registry import parse_defense
from leakaudit.protocol.target import PixelModel, Records

SPECS = (
    "fedsgd",
    "fedsgd:rounds=4:clients=2",
    "fedavg",
    "fedavg:epochs=1:batch=8:lr=0.01",
    "fedavg:steps=4:momentum=0.9:clients=3",
    "fedavg:steps=2:optimizer=adam:mode=train:split=class",
)


def small() -> PixelModel:
    torch.manual_seed(0)
    return PixelModel(nn.Sequential(nn.Conv2d(1, 3, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(108, 4)))


def records(count: int) -> Records:
    generator = torch.Generator().manual_seed(1)
    return Records(torch.rand(count, 1, 8, 8, generator=generator), torch.arange(count) % 4)


def update_of(client: Client, defense: Defense, own: Records, seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return sent(small(), F.cross_entropy, own.images, own.labels, defense, "eval", generator, client)[0]


@pytest.mark.parametrize("spec", SPECS)
def test_a_spec_and_its_client_are_the_same(spec: str) -> None:
    assert parse_client(spec_of(parse_client(spec))) == parse_client(spec)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("fedav", "did you mean 'fedavg'"),
        ("fedavg:epoch=1", "did you mean"),
        ("fedavg:epochs=1:steps=2", "not both"),
        ("fedsgd:batch=8", "local steps"),
        ("fedavg:lr=0", "local_lr must be positive"),
        ("fedavg:lr=nan", "finite"),
        ("fedavg:optimizer=lion", "sgd, adam"),
        ("fedavg:optimizer=adam:momentum=0.9", "sgd alone"),
        ("fedavg:clients=0", "between 1"),
        ("fedavg:mode=both", "train or eval"),
        ("fedavg:steps", "setting=value"),
        ("fedavg:epochs=1,batch=8", "colons part its settings"),
        ("fedavg:epochs=1:local_epochs=2", "given twice"),
    ],
)
def test_a_client_that_cannot_be_is_refused_in_a_sentence(spec: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        parse_client(spec)


def trained_by_torch(own: Records, client: Client, order: list[Tensor]) -> list[Tensor]:
    """What became of the weights in plain torch, without any code of ours."""
    model = small()
    before = [p.detach().clone() for p in model.parameters()]
    if client.optimizer == "adam":
        optimiser: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), lr=client.local_lr)
    else:
        optimiser = torch.optim.SGD(model.parameters(), lr=client.local_lr, momentum=client.momentum)
    for rows in order:
        optimiser.zero_grad()
        F.cross_entropy(model(own.images[rows]), own.labels[rows]).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return [old - p.detach() for old, p in zip(before, model.parameters(), strict=True)]


@pytest.mark.parametrize(
    "spec", ["fedavg:steps=3:lr=0.1", "fedavg:epochs=2:batch=3:momentum=0.9", "fedavg:optimizer=adam"]
)
def test_what_a_client_sends_is_what_torch_trains(spec: str) -> None:
    client, own = parse_client(spec), records(8)
    order = local_batches(client, 8, torch.Generator().manual_seed(0))
    found = update_of(client, Defense(), own)
    for mine, theirs in zip(found, trained_by_torch(own, client, order), strict=True):
        torch.testing.assert_close(mine * client.moved(8), theirs, rtol=1e-4, atol=1e-7)


def test_a_pass_sees_every_record_once_and_the_last_step_is_counted() -> None:
    client = parse_client("fedavg:epochs=3:batch=3")
    found = local_batches(client, 8, torch.Generator().manual_seed(0))
    assert [len(rows) for rows in found] == [3, 3, 2] * 3
    assert client.steps(8) == 9
    for k in range(3):
        assert sorted(torch.cat(found[3 * k : 3 * k + 3]).tolist()) == list(range(8))
    assert len(local_batches(parse_client("fedavg:steps=4:batch=3"), 8, torch.Generator())) == 4


def test_with_a_small_rate_local_steps_send_the_gradient() -> None:
    plain = update_of(FEDSGD, Defense(), records(6))
    for spec in ("fedavg:steps=5:lr=1e-4", "fedavg:steps=5:lr=1e-4:momentum=0.5"):
        for mine, gradient in zip(update_of(parse_client(spec), Defense(), records(6)), plain, strict=True):
            assert float((mine - gradient).norm()) < 1e-2 * float(gradient.norm())


def test_the_model_is_afterwards_as_it_was() -> None:
    model, own = small(), records(4)
    before = copy.deepcopy(model.state_dict())
    sent(model, F.cross_entropy, own.images, own.labels, Defense(), "train", torch.Generator(), PRESETS["fedavg"])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_several_clients_send_their_mean() -> None:
    own = records(6)
    together = update_of(parse_client("fedavg:steps=2:clients=3"), Defense(), own)
    alone = [update_of(parse_client("fedavg:steps=2"), Defense(), own[2 * k : 2 * k + 2]) for k in range(3)]
    for whole, parts in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(whole, torch.stack(parts).mean(0))


def test_a_clip_acts_on_the_weights_once_a_round() -> None:
    client = parse_client("fedavg:steps=4:lr=0.1")
    found = update_of(client, parse_defense("clip:max_norm=1e-3"), records(4))
    norm = float(torch.cat([g.flatten() for g in found]).norm()) * client.moved(4)
    assert norm == pytest.approx(1e-3, rel=1e-4)


def test_noise_on_the_weights_is_of_the_stated_deviation_and_rounds_average_it() -> None:
    plain = update_of(PRESETS["fedavg"], Defense(), records(4))
    for spec, expected in (("fedavg", 0.5), ("fedavg:rounds=16", 0.125)):
        client = parse_client(spec)
        found = update_of(client, parse_defense("gaussian:std=0.5"), records(4))
        gap = torch.cat([(a - b).flatten() * client.moved(4) for a, b in zip(found, plain, strict=True)])
        assert float(gap.std()) == pytest.approx(expected, rel=0.15)


def test_dp_sgd_acts_in_every_step_and_what_stands_beside_it_once() -> None:
    client, own = parse_client("fedavg:steps=4:lr=0.1"), records(4)
    bounded = update_of(client, parse_defense("dp-sgd:max_norm=1e-4:noise_multiplier=0"), own)
    assert float(torch.cat([g.flatten() for g in bounded]).norm()) <= 1e-4 * 1.001  # each step's mean is
    noisy = update_of(client, parse_defense("dp-sgd:max_norm=1e-4:noise_multiplier=8"), own)
    per_step = 8 * 1e-4 / 4
    std = float(torch.cat([(a - b).flatten() for a, b in zip(noisy, bounded, strict=True)]).std())
    assert std == pytest.approx(per_step / 4**0.5, rel=0.15)  # of four steps the mean
    both = chain(parse_defense("dp-sgd:max_norm=1e-4:noise_multiplier=0"), parse_defense("prune:sparsity=0.9"))
    pruned = torch.cat([g.flatten() for g in update_of(client, both, own)])
    assert float((pruned == 0).float().mean()) == pytest.approx(0.9, abs=0.02)


def test_a_shared_update_says_who_sent_it() -> None:
    client = parse_client("fedavg:epochs=2:batch=2:lr=0.1:clients=2")
    update = share(
        small(), F.cross_entropy, records(16), Defense(), Exposure(), batch_size=8, classes=4, mode="eval",
        generator=torch.Generator(), client=client,
    )  # fmt: skip
    assert (update.victims, update.own, update.steps) == (2, 4, 4)
    assert update.moved == pytest.approx(0.4)
