"""How near pictures lie to others: against distances written out, and ranks counted pair by pair."""

from __future__ import annotations

import pytest
import torch

from leakaudit.score.nearness import nearest, rank_auc


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_the_nearest_is_that_of_all_pairs(generator: torch.Generator, mirrored: bool, exact: bool) -> None:
    pictures, others = (torch.rand(n, 3, 5, 6, generator=generator) for n in (130, 40))
    others[3] = pictures[7].flip(2)  # its mirror image
    pairs = (pictures[:, None] - others).square().mean((2, 3, 4)).sqrt()
    turned = (pictures.flip(3)[:, None] - others).square().mean((2, 3, 4)).sqrt()
    wanted = torch.minimum(pairs, turned).amin(1) if mirrored else pairs.amin(1)
    found = nearest(pictures, others, mirrored=mirrored, exact=exact)
    torch.testing.assert_close(found, wanted, atol=2e-3, rtol=0)
    assert (found[7] < 1e-2) == mirrored


def test_an_exact_copy_is_at_no_distance(generator: torch.Generator) -> None:
    pictures = torch.rand(60, 3, 8, 8, generator=generator)
    assert bool((nearest(pictures, pictures.flip(0), exact=True) == 0).all())


def test_the_area_counts_pairs(generator: torch.Generator) -> None:
    a, b = torch.randn(30, generator=generator), torch.randn(40, generator=generator) + 1
    a[:5] = b[:5]
    pairs = [(x < y) + 0.5 * (x == y) for x in a.tolist() for y in b.tolist()]
    found = rank_auc(a, b)
    assert found.value == sum(pairs) / 1200
    assert found.low is not None
    assert found.low < sum(pairs) / 1200
    assert rank_auc(a, a).value == 0.5
    assert rank_auc(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 2.0])).value == (0.5 + 1 + 1 + 1) / 4
