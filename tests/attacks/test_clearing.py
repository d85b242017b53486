"""Noise that entries share is taken out, and a defense that does not always draw is seen through when it does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from leakaudit.attacks._clearing import clearing_of
from leakaudit.attacks.replay import Replay
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.gradients import Gradients
from tests import leaky
from tests.attacks.attack_scenes import dense_model
from tests.attacks.test_replay import VICTIMS, asked


class OfARow(leaky.Planted):
    """One number of noise for every row."""

    def transform_update(self, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
        return tuple(g + 10 * torch.randn(len(g), *[1] * (g.dim() - 1), generator=generator) for g in gradients)


class OneStream(leaky.Planted):
    """Fresh noise, of the same seed for every layer."""

    def transform_update(self, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
        seed = int(torch.randint(2**31, (1,), generator=generator))
        return tuple(g + 10 * torch.randn(g.shape, generator=torch.Generator().manual_seed(seed)) for g in gradients)


class Masks(leaky.Planted):
    """What half of a layer's entries gain the other half loses."""

    def transform_update(self, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
        return tuple(g + self.mask(g.numel(), generator).view_as(g) for g in gradients)

    def mask(self, size: int, generator: torch.Generator) -> Tensor:
        noise = 10 * torch.randn(size // 2, generator=generator)
        return torch.cat([noise, -noise, torch.zeros(size % 2)])


@pytest.mark.parametrize("cls", [OfARow, OneStream, Masks])
def test_noise_that_entries_share_hides_nothing(cls: type[Defense]) -> None:
    scene = asked(cls(), dense_model)
    assert scene.hits(scene.answer(Replay(draws=2))) == VICTIMS


def test_only_shared_noise_is_cleared(generator: torch.Generator) -> None:
    own = [torch.randn(12, 50, generator=generator) for _ in range(6)]
    assert clearing_of(own) is None
    loads = torch.tensor([1.0, -2.0, 0.5])
    runs = [torch.cat([rows, torch.randn(12, 1, generator=generator) * loads], 1) for rows in own]
    cleared = clearing_of(runs)
    assert cleared is not None
    left = cleared(torch.cat([own[0][0], 7 * loads + torch.tensor([2.0, 1.0, 0.0])]))
    assert not left[:50].any()
    torch.testing.assert_close(left[50:], torch.tensor([2.0, 1.0, 0.0]), atol=1e-4, rtol=0)  # across the loads already


class FailingBehindAKey(leaky.Planted):
    """Permuted by a key always, and under strong noise in nine of ten updates."""

    def transform_update(self, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
        key = torch.Generator().manual_seed(1)
        turned = tuple(g.flatten()[torch.randperm(g.numel(), generator=key)].view_as(g) for g in gradients)
        if float(torch.rand(1, generator=generator)) < 0.2:
            return turned
        return tuple(g + 10 * torch.randn(g.shape, generator=generator) for g in turned)


def test_what_is_sent_where_noise_fails_is_confirmed_though_it_is_no_bare_gradient() -> None:
    scene = asked(FailingBehindAKey(), dense_model, victims=24)
    failed = torch.stack([g.flatten(1).norm(dim=1) for g in scene.update.gradients]).norm(dim=0) < 50
    assert 0 < int(failed.sum()) < 15
    found = scene.answer(Replay())
    assert found.certain is not None
    assert torch.equal(found.certain, failed)
    assert bool((scene.firsts(found) == scene.position)[failed].all())


class NumpyNoise(leaky.Planted):
    """Noise of a global generator."""

    def transform_update(self, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
        return tuple(g + torch.from_numpy(np.random.normal(0, 1e-3, g.shape)).float() for g in gradients)


def test_noise_of_a_global_generator_is_replayed_alike() -> None:
    scene = asked(NumpyNoise(), dense_model)
    one, two = (scene.answer(Replay(draws=2)).linkage for _ in range(2))
    assert one is not None
    assert two is not None
    assert torch.equal(one, two)
