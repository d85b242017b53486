"""Learned inversion finds what an update tells, keeps to the class mean where it tells nothing, and sees no truth."""

from __future__ import annotations

import dataclasses
import time

import pytest
import torch
from torch.nn import functional as F

from leakaudit.attacks._regression import fit_ridge
from leakaudit.attacks.learned import LearnedInversion
from leakaudit.errors import NotApplicable
from leakaudit.protocol.attack import Reconstruction
from leakaudit.protocol.client import SharedUpdate, share
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.federation import parse_client
from leakaudit.protocol.labels import class_means
from leakaudit.protocol.registry import parse_defense
from leakaudit.protocol.target import Records
from leakaudit.score.metrics import assign
from leakaudit.work.progress import Monitor, monitored
from tests.attacks.attack_scenes import EVERYTHING, Shifted, conv_model, shared_update
from tests.attacks.test_decoder import SHAPE, Unrelated, by_class

VICTIMS, CANDIDATES = 8, 20
PRIVATE, AUXILIARY = by_class(VICTIMS * CANDIDATES, 21), by_class(120, 22)
ATTACK = LearnedInversion(pairs=120, decoder_steps=20)


def scene(defense: Defense | None) -> tuple[SharedUpdate, Records]:
    victims = PRIVATE[slice(None, None, CANDIDATES)]
    return shared_update(conv_model(SHAPE), victims, defense=defense, auxiliary=AUXILIARY), victims


def attacked(update: SharedUpdate) -> Reconstruction:
    return ATTACK(conv_model(SHAPE), update, torch.Generator().manual_seed(0))


def hits(found: Reconstruction) -> int:
    """Return how many victims are nearest to their own record among `CANDIDATES`, theirs being the first."""
    assert found.images is not None
    candidates = PRIVATE.images.view(VICTIMS, CANDIDATES, *SHAPE)
    return int(((candidates - found.images).square().flatten(2).mean(2).argmin(1) == 0).sum())


def share_of_class_mean(found: Reconstruction, victims: Records) -> float:
    assert found.images is not None
    means = class_means(AUXILIARY.images, AUXILIARY.labels, 3)[victims.labels].view_as(victims.images)
    return float(F.mse_loss(found.images[:, 0], victims.images) / F.mse_loss(means, victims.images))


@pytest.mark.parametrize("spec", ["none", "gaussian:std=0.003", "prune:sparsity=0.9", "sign", "shifted"])
def test_it_identifies_through_any_defense_that_lets_something_through(spec: str) -> None:
    update, victims = scene(Shifted() if spec == "shifted" else parse_defense(spec))
    found = attacked(update)
    assert found.statuses == ("converged",) * VICTIMS
    assert hits(found) >= VICTIMS - 2
    assert share_of_class_mean(found, victims) < 0.6


def test_where_nothing_is_left_it_is_the_class_mean() -> None:
    update, victims = scene(Unrelated())
    found = attacked(update)
    assert hits(found) <= 3
    assert 0.9 < share_of_class_mean(found, victims) < 1.15


def test_it_reads_the_update_and_nothing_else_of_a_victim() -> None:
    update, _ = scene(Shifted())
    found, blind = attacked(update), attacked(dataclasses.replace(update, released=None, buffers=None))
    assert found.images is not None
    assert blind.images is not None
    assert torch.equal(found.images, blind.images)
    turned = dataclasses.replace(update, gradients=tuple(g.flip(0) for g in update.gradients))
    swapped = attacked(turned).images
    assert swapped is not None
    torch.testing.assert_close(swapped, found.images.flip(0), atol=1e-4, rtol=0)


def test_it_needs_a_few_auxiliary_records(generator: torch.Generator) -> None:
    model = conv_model(SHAPE)
    few = shared_update(model, PRIVATE[:2], auxiliary=AUXILIARY[:4])
    with pytest.raises(NotApplicable, match="at least 8 auxiliary records, here there are 4"):
        ATTACK(model, few, generator)
    batch = shared_update(model, PRIVATE[:5], auxiliary=AUXILIARY[:9], batch_size=5)
    with pytest.raises(NotApplicable, match="at least 10 auxiliary records, here there are 9"):
        ATTACK(model, batch, generator)


def test_a_spent_budget_claims_nothing() -> None:
    update, _ = scene(None)
    with monitored(Monitor(deadline=time.monotonic() - 1)):
        found = attacked(update)
    assert set(found.statuses) == {"budget"}
    assert found.images is None


def test_noise_that_is_known_need_not_be_learned(generator: torch.Generator) -> None:
    clean = torch.randn((200, 60), generator=generator) @ torch.randn((60, 60), generator=generator) / 8
    pictures = clean[:, :16].reshape(200, 1, 4, 4)
    noisy = clean + torch.randn(clean.shape, generator=generator)
    labels, held, fresh = torch.zeros(200, dtype=torch.long), torch.arange(200) < 40, slice(0, 100)
    learn = torch.arange(200) >= 100  # the first hundred are only looked at
    errors = []
    for settled in (None, clean[held | learn]):
        kept = held | learn
        ridge = fit_ridge(noisy[kept], pictures[kept], labels[kept], held[kept], 1, settled=settled)
        errors.append(float(F.mse_loss(ridge(noisy[fresh], labels[fresh]), pictures[fresh])))
    assert errors[1] < 0.9 * errors[0]


def test_what_a_ridge_would_miss_is_leave_one_out(generator: torch.Generator) -> None:
    x = torch.randn((30, 5), generator=generator)
    y = (x @ torch.randn((5, 4), generator=generator) + torch.randn((30, 4), generator=generator)).view(30, 1, 2, 2)
    labels, held = torch.zeros(30, dtype=torch.long), torch.arange(30) < 6
    ridge = fit_ridge(x, y, labels, held, 1)
    wanted = y[~held].flatten(1) - ridge.means[0]
    kernel = ridge.kernel(ridge.support, ridge.labels)
    penalty = ((wanted - kernel @ ridge.weights) / ridge.weights).median()  # (K + λ)α = y
    others = torch.arange(24) != 7
    alone = torch.linalg.solve(kernel[others][:, others] + penalty * torch.eye(23), wanted[others])
    torch.testing.assert_close(ridge.missed[7], wanted[7] - kernel[7, others] @ alone, atol=1e-3, rtol=1e-3)


def test_a_map_of_each_class_own_reads_what_turns_with_the_class(generator: torch.Generator) -> None:
    x = torch.randn((80, 6), generator=generator)
    labels, held = torch.arange(80) % 2, torch.arange(80) < 20
    pictures = (x * (1 - 2 * labels[:, None])).view(80, 1, 2, 3)  # what one class adds, the other takes away
    errors = [
        float(F.mse_loss(fit_ridge(x, pictures, labels, held, 2, by_class=k)(x[held], labels[held]), pictures[held]))
        for k in (0, 6)
    ]
    assert errors[1] < 0.01 < 0.5 < errors[0]


@pytest.mark.parametrize("client", ["fedavg:epochs=3:batch=2:lr=0.05", "fedsgd:clients=2", "fedavg:clients=2:lr=0.05"])
def test_batches_of_clients_with_local_steps_are_taught_as_they_are_sent(client: str) -> None:
    """The same attack on clients as they are, and on updates that tell nothing: what it draws is read off them."""
    sets = PRIVATE.images.view(VICTIMS, CANDIDATES, *SHAPE)
    victims, model = PRIVATE[slice(None, None, CANDIDATES)], conv_model(SHAPE)
    update = share(
        model, F.cross_entropy, victims, Defense(), EVERYTHING, batch_size=2, classes=3, mode="eval",
        generator=torch.Generator().manual_seed(0), auxiliary=AUXILIARY, client=parse_client(client),
    )  # fmt: skip
    update = dataclasses.replace(update, labels=victims.labels.view(-1, 2))
    found = attacked(update)
    assert found.images is not None
    assert found.statuses == ("converged",) * (VICTIMS // 2)
    drawn, pairs = found.images, victims.images.view(-1, 2, *SHAPE)
    order = torch.stack([assign(x, guess) for x, guess in zip(pairs, drawn, strict=True)])
    guesses = torch.stack([guess[o] for guess, o in zip(drawn, order, strict=True)]).flatten(0, 1)
    near = (sets - guesses[:, None]).square().flatten(2).mean(2).argmin(1)
    assert int((near == 0).sum()) >= 5  # of 8, at a chance of 1 of 20
