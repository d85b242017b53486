"""Clipping to a norm and exact sparsity."""

from __future__ import annotations

import pytest
import torch

from leakaudit.defenses.clip import Clip
from leakaudit.defenses.prune import Prune, keep_largest


def norm(gradients: tuple[torch.Tensor, ...]) -> float:
    return float(torch.cat([g.flatten().double() for g in gradients]).norm())


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_clip_bounds_the_whole_update_and_keeps_its_direction(scale: float, generator: torch.Generator) -> None:
    gradients = tuple(scale * torch.randn(shape, generator=generator) for shape in ((10, 3), (5,), ()))
    clipped = Clip(max_norm=2.0).transform_update(gradients, 1, generator)
    assert norm(clipped) == pytest.approx(min(2.0, norm(gradients)), rel=1e-5)
    factor = norm(clipped) / norm(gradients)
    for before, after in zip(gradients, clipped, strict=True):
        torch.testing.assert_close(after, before * factor)


def test_clip_leaves_a_small_update_untouched(generator: torch.Generator) -> None:
    gradients = (torch.tensor([0.3, 0.4]),)
    assert torch.equal(Clip(max_norm=0.5).transform_update(gradients, 1, generator)[0], gradients[0])


def test_clip_of_zero_is_zero(generator: torch.Generator) -> None:
    assert torch.equal(Clip().transform_update((torch.zeros(3),), 1, generator)[0], torch.zeros(3))


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.99, 0.999])
@pytest.mark.parametrize("shape", [(1,), (7,), (100,), (20, 50), (3, 5, 7, 11)])
def test_prune_keeps_exactly_the_largest(sparsity: float, shape: tuple[int, ...], generator: torch.Generator) -> None:
    gradient = torch.randn(shape, generator=generator)
    (pruned,) = Prune(sparsity=sparsity).transform_update((gradient,), 1, generator)
    kept = pruned != 0
    assert int(kept.sum()) == max(1, round((1 - sparsity) * gradient.numel()))
    assert torch.equal(pruned[kept], gradient[kept])
    if int((~kept).sum()):
        assert float(gradient[~kept].abs().max()) <= float(gradient[kept].abs().min())


def test_prune_keeps_the_exact_number_among_ties() -> None:
    tied = torch.tensor([2.0, -1.0, 1.0, 1.0, -1.0, 3.0])
    assert keep_largest(tied, 3).tolist() == [2.0, -1.0, 0.0, 0.0, 0.0, 3.0]
    assert keep_largest(tied, 2).tolist() == [2.0, 0.0, 0.0, 0.0, 0.0, 3.0]  # the k-th element itself is kept
    assert keep_largest(torch.ones(10), 4).sum() == 4
    assert keep_largest(torch.zeros(5), 2).tolist() == [0.0] * 5


def test_prune_works_per_layer(generator: torch.Generator) -> None:
    small, large = torch.full((100,), 1e-6), torch.full((100,), 1e6)
    pruned = Prune(sparsity=0.9).transform_update((small, large), 1, generator)
    assert [int((p != 0).sum()) for p in pruned] == [10, 10]
