"""Unmixing against synthetic sources, scikit-learn's FastICA and records whose gradient was computed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from leakaudit.attacks._unmixing import contrast, decorrelated, independent, left_over, polished, unmixed, whitened
from leakaudit.attacks.cocktail_party import CocktailParty, mixing_layer
from leakaudit.errors import NotApplicable
from leakaudit.protocol.exposure import Exposure
from leakaudit.protocol.registry import parse_attack, parse_defense
from leakaudit.protocol.target import PixelModel, Records
from tests.attacks.attack_scenes import conv_model, records, seeded, shared_update


def laplace(batch: int, count: int, seed: int = 0) -> Tensor:
    drawn = torch.rand((batch, count), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.5
    return -drawn.sign() * torch.log1p(-2 * drawn.abs())


def mixed(batch: int, rows: int, seed: int = 1) -> Tensor:
    return torch.randn((rows, batch), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def correlations(one: Tensor, other: Tensor) -> Tensor:
    return torch.corrcoef(torch.cat([one, other]))[: len(one), len(one) :].abs()


def test_whitened_rows_are_uncorrelated_and_come_of_the_mixtures() -> None:
    mixtures = mixed(4, 9) @ laplace(4, 500) + 3
    white = whitened(mixtures, 4)
    assert white.rank == 4
    assert torch.allclose(white.rows @ white.rows.T / 500, torch.eye(4, dtype=torch.float64), atol=1e-9)
    centred = mixtures - mixtures.mean(1, keepdim=True)
    assert torch.allclose(white.matrix @ centred, white.rows)
    assert whitened(mixed(2, 9) @ laplace(2, 500), 4).rank == 2
    with pytest.raises(ValueError, match="3 mixtures"):
        whitened(mixtures[:3], 4)


def test_the_contrast_is_that_of_its_formula() -> None:
    normal = torch.randn((1, 200_000), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(contrast(normal)) < 1e-5  # GAUSSIAN is E log cosh of it
    some = laplace(3, 50)
    expected = sum((sum(math.log(math.cosh(v)) for v in row) / 50 - 0.374567) ** 2 for row in some.tolist())
    assert float(contrast(some)) == pytest.approx(expected)


def test_independent_sources_are_found_again() -> None:
    sources = laplace(5, 4000)
    white = whitened(mixed(5, 12) @ sources, 5)
    directions = independent(white.rows, torch.Generator().manual_seed(2), 2)
    assert torch.allclose(directions @ directions.T, torch.eye(5, dtype=torch.float64), atol=1e-9)
    told = correlations(directions @ white.rows, sources)
    assert bool((told.amax(1) > 0.98).all())
    assert sorted(told.argmax(1).tolist()) == [0, 1, 2, 3, 4]
    assert torch.equal(directions, independent(white.rows, torch.Generator().manual_seed(2), 2))


def test_the_fixed_point_is_that_of_scikit_learn() -> None:
    decomposition = pytest.importorskip("sklearn.decomposition")
    white = whitened(mixed(4, 4) @ laplace(4, 3000), 4)
    start = decorrelated(mixed(4, 4, 7))
    theirs = decomposition.fastica(
        white.rows.T.numpy(), whiten=False, fun="logcosh", algorithm="parallel", w_init=start.numpy(), tol=1e-12,
        max_iter=500,
    )[1]  # fmt: skip
    ours = independent(white.rows, torch.Generator().manual_seed(0), 3)
    alike = (ours @ torch.from_numpy(theirs).T).abs()
    assert torch.allclose(alike.amax(1), torch.ones(4, dtype=torch.float64), atol=1e-6)


def test_the_bias_gives_sign_and_length() -> None:
    inputs, slopes = laplace(4, 3000) + 2, mixed(4, 10)
    found = unmixed(slopes @ inputs, slopes.sum(1), 4, lambda rows: rows, 2, torch.Generator().manual_seed(0))
    gaps = torch.cdist(found, inputs) / inputs.norm(dim=1)
    assert sorted(gaps.argmin(1).tolist()) == [0, 1, 2, 3]
    assert bool((gaps.amin(1) < 0.1).all())  # a wrong sign would be 2


def test_polishing_ends_at_the_records_and_leaves_nothing() -> None:
    layer, after = nn.Linear(30, 12).double(), nn.Linear(12, 5).double()
    truth = torch.rand((3, 30), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    label = torch.tensor([0, 4, 1])

    def slopes(inputs: Tensor) -> Tensor:
        z = layer(inputs).detach().requires_grad_(True)
        value = nn.functional.cross_entropy(after(torch.sigmoid(z)), label)
        return torch.autograd.grad(value, z)[0]

    exact = slopes(truth)
    weight, bias = exact.T @ truth, exact.sum(0)
    assert left_over(weight, bias, truth, exact) < 1e-12
    near = truth + 0.05 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert left_over(weight, bias, near, slopes(near)) > 1e-3
    found, rest = polished(weight, bias, near, slopes)
    assert rest < 1e-5
    assert float((found - truth).abs().max()) < 0.1 * float((near - truth).abs().max())
    assert left_over(2 * weight, 2 * bias, truth, exact) < 1e-12  # a factor is no matter: clipping


def blobs(count: int, seed: int) -> Records:
    """Pictures of sharp rectangles, whose differences are sparse as those of photographs are."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(count, 1, 16, 16)
    for image in images:
        for _ in range(6):
            a, b, c, d = torch.randint(0, 13, (4,), generator=generator).tolist()
            image[:, a : a + 3 + c // 2, b : b + 3 + d // 2] = float(torch.rand((), generator=generator))
    return Records(images, torch.randint(4, (count,), generator=generator))


def smooth_net(unit: type[nn.Module]) -> PixelModel:
    return PixelModel(
        seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(256, 40), unit(), nn.Linear(40, 4))), [0.3], [0.3]
    )


@pytest.mark.parametrize("unit", [nn.Sigmoid, nn.GELU])
@pytest.mark.parametrize("spec", [None, "clip:max_norm=0.01"])
def test_batches_are_unmixed_where_no_unit_fires_for_one_record_alone(
    unit: type[nn.Module], spec: str | None, generator: torch.Generator
) -> None:
    model, private = smooth_net(unit), blobs(8, 0)
    update = shared_update(
        model, private, batch_size=4, classes=4, exposure=Exposure(), defense=parse_defense(spec) if spec else None
    )
    found = CocktailParty()(model, update, generator)
    peeled = parse_attack("peeling")(model, update, generator)
    assert found.images is not None
    assert peeled.images is not None
    assert found.statuses == ("converged", "converged")

    def nearest(images: Tensor) -> Tensor:
        return torch.cdist(private.images.view(2, 4, -1), images.flatten(2)).amin(2) / 16  # root mean square

    assert float(nearest(found.images).median()) < 0.05
    assert float(nearest(found.images).median()) < 0.3 * float(nearest(peeled.images).median())


def test_features_are_told_exactly_for_one_record_and_inverted(generator: torch.Generator) -> None:
    model, private = conv_model((1, 8, 8), 5), records(6, (1, 8, 8), 5, seed=3)
    update = shared_update(model, private, classes=5, exposure=Exposure())
    found = CocktailParty(steps=150)(model, update, generator)
    assert found.images is not None
    assert "6 of 6 gradients unmixed whole" in found.notes[0]
    apart = (found.images[:, 0] - private.images).square().mean((1, 2, 3))
    grey = (0.5 - private.images).square().mean((1, 2, 3))
    assert float(apart.median()) < 0.3 * float(grey.median())


def test_a_layer_with_fewer_rows_than_records_cannot_be_unmixed() -> None:
    model = conv_model((1, 8, 8), 3)
    pictures = records(4, (1, 8, 8), 3, seed=0).images
    assert not mixing_layer(model, pictures, 3).pictures
    assert mixing_layer(model, pictures, 3).alone
    with pytest.raises(NotApplicable, match="as many outputs as there are records"):
        mixing_layer(model, pictures, 4)
