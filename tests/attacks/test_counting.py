"""Label counts with repeats against brute force, and classes that are surely in a batch against the truth."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from leakaudit.attacks._counting import distributed, likeliest_counts, noise_of, supposed, surely_in
from leakaudit.attacks._labels import infer_labels
from leakaudit.protocol.exposure import Exposure
from leakaudit.protocol.target import PixelModel, Records
from tests.attacks.attack_scenes import records, seeded, shared_update

CLASSES, BATCH = 4, 5


def drawn(seed: int, count: int = 200) -> tuple[Tensor, Tensor, Tensor]:
    """Labels (N,), chances (N, K) that lean to them, and inputs (N, 7) that are not negative."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    logits = torch.randn(count, CLASSES, generator=generator, dtype=torch.float64)
    logits[torch.arange(count), labels] += 1
    inputs = torch.randn(count, 7, generator=generator, dtype=torch.float64).relu()
    return labels, logits.softmax(1), inputs


def every_count(batch: int, least: Tensor) -> list[Tensor]:
    found = [torch.tensor(c) for c in itertools.product(range(batch + 1), repeat=CLASSES) if sum(c) == batch]
    return [c for c in found if bool((c >= least).all())]


@pytest.mark.parametrize("seed", range(6))
def test_the_likeliest_counts_are_those_of_all_counts(seed: int) -> None:
    labels, q, _ = drawn(seed)
    known = distributed(q, labels, True)
    slope = (q[:BATCH] - nn.functional.one_hot(labels[:BATCH], CLASSES)).mean(0)
    least = torch.zeros(CLASSES, dtype=torch.long)
    least[labels[0]] = seed % 2
    spread = torch.distributions.MultivariateNormal(
        torch.zeros(CLASSES, dtype=torch.float64),
        known.covariance / BATCH + 0.01**2 * torch.eye(CLASSES, dtype=torch.float64),
    )

    def likelihood(n: Tensor) -> float:
        mean = (n.double() @ (known.means - torch.eye(CLASSES))) / BATCH
        multinomial = torch.distributions.Multinomial(BATCH, known.shares)
        return float(spread.log_prob(slope - mean) + multinomial.log_prob(n.double()))

    best = max(every_count(BATCH, least), key=likelihood)
    assert likeliest_counts(slope, known, 0.01, least, BATCH).tolist() == best.tolist()


def test_equal_chances_give_the_counts_exactly() -> None:
    """Where every record has the same chances, as on an untrained network, ∂b = q − n/B tells n."""
    q = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).expand(50, -1)
    counts = torch.tensor([3, 0, 1, 1])
    none = torch.zeros(CLASSES, dtype=torch.long)
    found = likeliest_counts(q[0] - counts / BATCH, distributed(q, None, True), 0.0, none, BATCH)
    assert found.tolist() == counts.tolist()


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_no_class_is_sure_that_is_not_in_the_batch(noise: float) -> None:
    surely = 0
    for seed in range(40):
        labels, q, inputs = drawn(seed, 3)
        slopes = q - nn.functional.one_hot(labels, CLASSES)
        rows = (slopes.T @ inputs / 3).float()
        rows = rows + noise * torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed))
        sure = set(surely_in(rows, 1e-6).nonzero()[:, 0].tolist())
        assert sure <= set(labels.tolist())
        surely += len(sure)
    assert surely > (70 if noise == 0 else 10)  # of 120 records


def test_the_noise_of_a_gradient_is_told_by_its_columns() -> None:
    _, q, inputs = drawn(0, 3)
    rows = (q - nn.functional.one_hot(torch.tensor([0, 1, 1]), CLASSES)).T @ inputs.repeat(1, 300)
    assert noise_of(rows) < 1e-12
    noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert noise_of(rows + 0.3 * noise) == pytest.approx(0.3, rel=0.1)


def test_a_trained_model_is_supposed_to_be_as_sure_as_its_update_is_short() -> None:
    counts = torch.tensor([2, 1, 2, 0])
    known = distributed(torch.full((10, CLASSES), 0.25, dtype=torch.float64), None, True)
    slope = 0.1 * (0.25 - counts / BATCH)
    supposition = supposed(known, slope, BATCH)
    assert torch.allclose(supposition.means.sum(1), torch.ones(CLASSES, dtype=torch.float64))
    assert float(supposition.means[0, 0]) > 0.8
    assert math.isclose(float(supposition.means[0, 1]), float(supposition.means[2, 3]))
    found = likeliest_counts(slope, supposition, 0.0, torch.zeros(CLASSES, dtype=torch.long), BATCH)
    assert int(found[3]) == int(found.min())  # what raises the slope is there no oftener than what lowers it
    assert int(found[0]) == int(found.max())


def trained(private: Records, classes: int) -> PixelModel:
    """A net with ReLU before its head that is sure of most of its records."""
    network = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, classes)))
    model = PixelModel(network, [0.4], [0.25])
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(private.images), private.labels).backward()
        optimiser.step()
    return model


@pytest.mark.parametrize("auxiliary", [True, False])
def test_two_records_of_a_trained_model_are_mostly_told(auxiliary: bool, generator: torch.Generator) -> None:
    private = records(80, (1, 8, 8), 6, seed=5)
    model = trained(private, 6)
    with torch.no_grad():
        assert float(nn.functional.cross_entropy(model(private.images), private.labels)) < 0.5
    own = records(60, (1, 8, 8), 6, seed=6)
    exposure = Exposure(auxiliary=auxiliary)
    update = shared_update(model, private, exposure=exposure, classes=6, batch_size=2, auxiliary=own)
    found, truth = infer_labels(model, update, generator), private.labels.view(-1, 2)
    right = sum(
        int(torch.minimum(torch.bincount(a, minlength=6), torch.bincount(b, minlength=6)).sum())
        for a, b in zip(found, truth, strict=True)
    )
    assert right >= 0.8 * len(private)
