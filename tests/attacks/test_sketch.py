"""Sketches keep inner products on average, whatever the tensors' sizes, and take little memory at any."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from leakaudit.attacks._lessons import FEATURES, Reader
from leakaudit.attacks._sketch import folded, widths_within
from leakaudit.work.peak import peak_bytes


def signs(count: int, generator: torch.Generator) -> Tensor:
    return (2 * torch.randint(2, (count,), generator=generator) - 1).to(torch.int8)


def residual_18() -> list[tuple[int, ...]]:
    """Return the shapes of the 62 tensors of a ResNet-18 for 1,000 classes: 11,689,512 numbers."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    before = 64
    for after in (64, 128, 256, 512):
        for block in range(2):
            shapes += [(after, before, 3, 3), (after,), (after,), (after, after, 3, 3), (after,), (after,)]
            if block == 0 and before != after:
                shapes += [(after, before, 1, 1), (after,), (after,)]
            before = after
    return [*shapes, (1000, 512), (1000,)]


def reader(shapes: list[tuple[int, ...]], generator: torch.Generator) -> Reader:
    sizes = [math.prod(shape) for shape in shapes]
    widths = widths_within(sizes, FEATURES)
    drawn = tuple(signs(n, generator) for n in (*sizes, 0))
    return Reader(widths, drawn, None, torch.zeros(2, 2), torch.zeros(2, sum(widths)))


def test_inner_products_are_kept_on_average(generator: torch.Generator) -> None:
    a, b = torch.randn((2, 1000), generator=generator)
    b = a + 0.5 * b
    found = []
    for _ in range(200):
        drawn = signs(1000, generator)
        found.append(float(folded(a, drawn, 100) @ folded(b, drawn, 100)))
    assert torch.tensor(found).mean() == pytest.approx(float(a @ b), rel=0.1)
    assert torch.equal(folded(a, drawn, 1000), a)  # what fits is left as it is


def test_energy_in_a_few_columns_is_spread_over_the_whole_sketch(generator: torch.Generator) -> None:
    matrix = torch.zeros(64, 512)
    matrix[:, ::64] = torch.randn((64, 8), generator=generator)
    (width,) = widths_within([matrix.numel()], 256)
    filled = folded(matrix.flatten(), signs(matrix.numel(), generator), width) != 0
    assert filled.float().mean() > 0.8
    aligned = folded(matrix.flatten(), signs(matrix.numel(), generator), 256) != 0
    assert aligned.float().mean() < 0.05  # what a width of whole rows would make of it


def test_eleven_million_entries_fit(generator: torch.Generator) -> None:
    shapes = residual_18()
    a = tuple(torch.randn(shape, generator=generator) for shape in shapes)
    b = tuple(g + torch.randn(shape, generator=generator) for g, shape in zip(a, shapes, strict=True))
    entries = sum(g.numel() for g in a)
    assert (len(a), entries) == (62, 11_689_512)
    read, label = reader(shapes, generator), torch.zeros(1, dtype=torch.long)
    assert sum(s.numel() * s.element_size() for s in read.signs) == entries  # a byte each
    found: list[Tensor] = []
    peak = peak_bytes(lambda: found.append(read(a, label)["update"]), torch.device("cpu"))
    assert peak < 3 * 4 * max(g.numel() for g in a)  # one tensor at a time, its product with the signs, and its padding
    assert found[0].shape == (1, sum(read.widths))
    assert sum(read.widths) <= FEATURES
    # Inner products tensor by tensor: unbiased, with a variance of (‖a‖²‖b‖² + ⟨a, b⟩²) / width at most.
    one, other = (torch.split(read(g, label)["update"][0], list(read.widths)) for g in (a, b))
    misses = []
    for x, y, p, q, width in zip(a, b, one, other, read.widths, strict=True):
        true = float((x * y).sum())
        if width == x.numel():
            assert float(p @ q) == pytest.approx(true, rel=1e-4)
        else:
            misses.append((float(p @ q) - true) / math.sqrt((float(x.norm() * y.norm()) ** 2 + true**2) / width))
    assert len(misses) > 20
    assert max(map(abs, misses)) < 4.5
    assert float(torch.tensor(misses).square().mean()) < 1.7


def test_small_tensors_are_kept_whole() -> None:
    assert widths_within((10, 5000, 30, 90000), 1000) == (10, 479, 30, 481)
    assert widths_within((10, 20), 1000) == (10, 20)
