"""Slopes through a client's local steps: exact against one graph of everything and finite differences, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakaudit.engine import unrolled
from leakaudit.engine.distances import cosine, squared
from leakaudit.engine.unrolled import Training
from leakaudit.protocol.client import sent
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.federation import Client, local_batches, parse_client
from leakaudit.protocol.gradients import Gradients, Mode, in_mode, parameters_of
from leakaudit.protocol.target import PixelModel

RECORDS = 4
SPECS = (
    "fedavg:steps=1:lr=0.5",
    "fedavg:steps=6:lr=0.3",  # more steps than graphs are kept
    "fedavg:steps=3:lr=0.2:momentum=0.9",
    "fedavg:epochs=3:batch=2:lr=0.2:momentum=0.5",
    "fedavg:epochs=2:batch=3:lr=0.2",  # the last batch is smaller
    "fedavg:steps=6:lr=0.05:optimizer=adam",
    "fedavg:epochs=2:batch=2:lr=0.2:clients=2",
)


def small() -> PixelModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # Without a bias before BatchNorm: in train mode its gradient is rounding, which Adam would blow up.
        layers = [
            nn.Conv2d(1, 3, 3, padding=1, bias=False),
            nn.BatchNorm2d(3),
            nn.Softplus(),
            nn.Flatten(),
            nn.Linear(75, 3),
        ]
        return PixelModel(nn.Sequential(*layers), (0.4,), (0.3,)).double()


def pictures(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def training_of(client: Client, records: int = RECORDS) -> Training:
    """Plans with an order of their own for every client and pass."""
    own = records // client.clients
    drawn = torch.Generator().manual_seed(5)
    plans = tuple(tuple(rows + u * own for rows in local_batches(client, own, drawn)) for u in range(client.clients))
    return Training(client, plans, own)


def in_one_graph(model: PixelModel, x: Tensor, y: Tensor, training: Training) -> Gradients:
    """The same training by plain autograd, whose graph holds every step; torch's optimisers written out."""
    client, names = training.client, [n for n, _ in model.named_parameters()]
    begun = dict(model.named_parameters())
    parts = []
    for plan in training.plans:
        weights = dict(begun)
        first, second = ({n: torch.zeros_like(w) for n, w in begun.items()} for _ in range(2))
        for k, rows in enumerate(plan, 1):
            loss = F.cross_entropy(torch.func.functional_call(model, weights, x[rows]), y[rows])
            g = dict(zip(names, torch.autograd.grad(loss, list(weights.values()), create_graph=True), strict=True))
            if client.optimizer == "sgd":
                first = {n: client.momentum * first[n] + g[n] for n in names}
                weights = {n: weights[n] - client.local_lr * first[n] for n in names}
                continue
            first = {n: 0.9 * first[n] + 0.1 * g[n] for n in names}
            second = {n: 0.999 * second[n] + 0.001 * g[n] ** 2 for n in names}
            hat = {n: (first[n] / (1 - 0.9**k), second[n] / (1 - 0.999**k)) for n in names}
            weights = {n: weights[n] - client.local_lr * hat[n][0] / (hat[n][1].sqrt() + 1e-8) for n in names}
        parts.append([(begun[n] - weights[n]) / client.moved(training.own) for n in names])
    return tuple(torch.stack(column).mean(0) for column in zip(*parts, strict=True))


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("spec", SPECS)
def test_slopes_equal_those_of_one_graph(spec: str, mode: Mode) -> None:
    model, training = small(), training_of(parse_client(spec))
    y = torch.tensor([[0, 2, 1, 1], [1, 0, 0, 2]])
    wanted = tuple(pictures(7 + i, 2, *p.shape) - 0.5 for i, p in enumerate(parameters_of(model)[1]))
    x = pictures(1, 2, RECORDS, 1, 5, 5)
    for distance in (cosine, squared):
        with in_mode(model, mode):
            values, slopes = unrolled.match(model, F.cross_entropy, x, y, wanted, distance, [training] * 2)
            for t in range(2):
                leaf = x[t].clone().requires_grad_(True)
                found = in_one_graph(model, leaf, y[t], training)
                value = distance(found, tuple(w[t] for w in wanted))[0]
                (slope,) = torch.autograd.grad(value, leaf)
                assert float(values[t]) == pytest.approx(value.item(), rel=1e-9)
                assert float((slopes[t] - slope).norm()) <= 1e-8 * float(slope.norm())


def test_slopes_equal_finite_differences() -> None:
    model, training = small(), training_of(parse_client("fedavg:epochs=3:batch=2:lr=0.3:momentum=0.9"))
    y = torch.tensor([[0, 2, 1, 1]])
    wanted = tuple(pictures(7 + i, 1, *p.shape) - 0.5 for i, p in enumerate(parameters_of(model)[1]))
    x, step = pictures(1, 1, RECORDS, 1, 5, 5), 1e-5

    def value(at: Tensor) -> float:
        return float(unrolled.match(model, F.cross_entropy, at, y, wanted, cosine, [training])[0])

    with in_mode(model, "train"):
        slopes = unrolled.match(model, F.cross_entropy, x, y, wanted, cosine, [training])[1]
        for seed in range(3):
            along = pictures(20 + seed, *x.shape) - 0.5
            rise = (value(x + step * along) - value(x - step * along)) / (2 * step)
            assert float((slopes * along).sum()) == pytest.approx(rise, rel=1e-5)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("spec", SPECS)
def test_what_is_trained_is_what_a_client_sends(spec: str, mode: Mode) -> None:
    model, client = small(), parse_client(spec)
    x, y = pictures(1, RECORDS, 1, 5, 5), torch.tensor([0, 2, 1, 1])
    update, _ = sent(model, F.cross_entropy, x, y, Defense(), mode, torch.Generator().manual_seed(5), client)
    with in_mode(model, mode):
        found = unrolled.trained(model, F.cross_entropy, x, y, training_of(client))
    for mine, theirs in zip(found, update, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-9)


def test_dropout_draws_the_same_forward_and_back_and_rows_pick_the_update() -> None:
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(25, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)]
    model = PixelModel(nn.Sequential(*layers), (0.4,), (0.3,)).double().train()
    training = training_of(parse_client("fedavg:steps=6:lr=0.3"))
    x, y = pictures(1, 1, RECORDS, 1, 5, 5), torch.tensor([[0, 2, 1, 1]])
    wanted = tuple(pictures(7 + i, 2, *p.shape) - 0.5 for i, p in enumerate(parameters_of(model)[1]))

    def found(at: Tensor, row: int = 1) -> tuple[Tensor, Tensor]:
        torch.manual_seed(3)
        return unrolled.match(model, F.cross_entropy, at, y, wanted, squared, [training] * 2, torch.tensor([row]))

    value, slopes = found(x)
    along = pictures(3, *x.shape) - 0.5
    rise = (float(found(x + 1e-5 * along)[0]) - float(found(x - 1e-5 * along)[0])) / 2e-5
    assert float((slopes * along).sum()) == pytest.approx(rise, rel=1e-4)
    assert float(found(x, 0)[0]) != float(value)


def test_a_gradient_of_zero_has_finite_slopes_through_adam() -> None:
    model = small()
    model.requires_grad_(False)
    model.network[4].requires_grad_(True)  # type: ignore[index]

    def blind(logits: Tensor, labels: Tensor) -> Tensor:  # the third class gets no gradient
        return F.cross_entropy(logits[:, :2], labels)

    training = training_of(parse_client("fedavg:steps=3:optimizer=adam"))
    x, y = pictures(1, 1, RECORDS, 1, 5, 5), torch.tensor([[0, 1, 1, 1]])
    wanted = tuple(torch.ones(1, *p.shape).double() for p in parameters_of(model)[1])
    with in_mode(model, "eval"):
        slopes = unrolled.match(model, blind, x, y, wanted, cosine, [training])[1]
    assert slopes.isfinite().all()
    assert float(slopes.norm()) > 0
