"""The surrogate of many local steps: one gradient between both ends of the client's way, and a place that follows."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from leakaudit.attacks.surrogate import RATE, Surrogate, follow, halfway
from leakaudit.engine.distances import cosine
from leakaudit.errors import NotApplicable
from leakaudit.protocol.federation import parse_client
from leakaudit.protocol.gradients import in_mode
from tests.attacks.attack_scenes import conv_model, records, shared_update

SHAPE = (1, 8, 8)


def test_what_is_matched_is_the_gradient_between_both_ends() -> None:
    model, own = conv_model(SHAPE).double(), records(4, SHAPE, 3, seed=1)
    update = shared_update(model, own, batch_size=2, client=parse_client("fedavg:steps=6:lr=0.1"))
    attack, labels = Surrogate(), own.labels.view(2, 2)
    x = own.images.double().view(2, 2, *SHAPE)
    with in_mode(model, "eval"):
        match = attack.matching(model, update, cosine, torch.Generator())
        values, slopes = match(x, labels, torch.tensor([0, 1]))
        later = match(x, labels, torch.tensor([0, 1]))[0]
        for v in range(2):
            wanted = tuple(g[v] for g in update.gradients)
            ends = {
                name: (p - halfway(6) * update.moved * g).detach().requires_grad_(True)
                for (name, p), g in zip(model.named_parameters(), wanted, strict=True)
            }
            leaf = x[v].clone().requires_grad_(True)
            loss = F.cross_entropy(torch.func.functional_call(model, ends, leaf), labels[v])
            found = torch.autograd.grad(loss, list(ends.values()), create_graph=True)
            value = cosine(found, wanted)[0]
            (slope,) = torch.autograd.grad(value, leaf)
            assert float(values[v]) == pytest.approx(value.item(), rel=1e-6)
            torch.testing.assert_close(slopes[v], slope, rtol=1e-5, atol=1e-9)
    assert bool((later < values).all())  # α has followed its slope


def test_a_place_follows_all_trials_of_its_victim_and_stays_between_the_ends() -> None:
    places, seen = torch.tensor([0.5, 0.5, 0.0]), torch.zeros(3)
    follow(places, seen, torch.tensor([0, 0, 2]), torch.tensor([1.0, -3.0, 2.0]))
    assert places.tolist() == pytest.approx([0.5 + RATE, 0.5, 0.0])
    assert seen.tolist() == [1, 0, 1]
    assert halfway(1) == 0
    assert halfway(3) == pytest.approx(1 / 3)


def test_it_is_for_local_steps() -> None:
    model = conv_model(SHAPE)
    with pytest.raises(NotApplicable, match="one step on all of its records"):
        Surrogate()(model, shared_update(model, records(2, SHAPE, 3, 1)), torch.Generator())
