"""The engine's benchmark measures what it says; how fast the engine is, is no test's business."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from benchmarks import chips, counting
from benchmarks import engine as benchmark
from benchmarks.networks import build
from leakaudit.engine import matching as engine
from leakaudit.protocol.gradients import mean_gradient
from leakaudit.protocol.target import Records


@pytest.mark.parametrize("name", benchmark.MODELS)
def test_every_network_it_names_is_built_and_takes_cifar_pictures(name: str) -> None:
    assert build(name).eval()(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_the_floor_is_the_products_gradient(generator: torch.Generator) -> None:
    """With the cosine's own cotangent the floor gives the engine's slope: both do the same work."""
    model, labels = build("lenet").eval(), torch.tensor([3])
    x, other = (torch.rand(1, 3, 32, 32, generator=generator) for _ in range(2))
    shared = mean_gradient(model, F.cross_entropy, other, labels)
    _, cotangent = engine.cosine(mean_gradient(model, F.cross_entropy, x, labels), shared)
    _, slopes = engine.match(
        model, F.cross_entropy, x[None], labels[None], tuple(g[None] for g in shared), engine.cosine
    )
    torch.testing.assert_close(benchmark.floor_step(model, x, labels, cotangent), slopes[0], rtol=1e-3, atol=1e-6)


def test_rows_are_complete(generator: torch.Generator) -> None:
    other = generator.manual_seed(1)  # the guesses are drawn under seed 0: none may be the truth
    records = Records(torch.rand(3, 3, 32, 32, generator=other), torch.tensor([0, 1, 2]))
    rows = benchmark.measure("lenet", records, trials=3, rounds=2)
    assert [(row.trials, row.victims, row.engine) for row in rows] == [
        (1, 1, "loop"),
        (1, 1, "stacked"),
        (2, 1, "stacked"),
        (3, 1, "stacked"),
        (3, 3, "stacked"),
    ]
    for row in rows:
        assert 0 < row.spread[0] <= row.ratio <= row.spread[1]
        assert min(row.peak_mb, row.ms, row.batch_ms, row.rate) > 0
        assert row.share is None  # what a CPU could do is not known
        assert (row.waits == 0) == (row.engine != "loop")
        assert row.engine in benchmark.line(row, star=False)
    assert len({row.batch_launches for row in rows}) == 1
    assert len({row.launches for row in rows if row.trials > 1}) == 1


def test_operations_are_those_of_the_textbook() -> None:
    """A convolution of 3 to 4 channels by 3×3 on 8×8, and its three products in a double backward."""
    x, w = torch.rand(2, 3, 8, 8, requires_grad=True), torch.rand(4, 3, 3, 3, requires_grad=True)
    once = 2 * (2 * 8 * 8) * 4 * (3 * 3 * 3)
    assert chips.operations(lambda: F.conv2d(x, w, padding=1)) == once
    (slope,) = torch.autograd.grad(F.conv2d(x, w, padding=1).sum(), w, create_graph=True)
    assert chips.operations(lambda: torch.autograd.grad(slope.sum(), x)) >= once


def test_the_chips_name_tells_its_peak() -> None:
    assert chips.peak_of("NVIDIA H200") == pytest.approx(66.9e12)
    assert chips.peak_of("NVIDIA A100-SXM4-80GB") == pytest.approx(19.5e12)
    assert chips.peak_of("NVIDIA A100-SXM4-80GB MIG 1g.10gb") is None
    assert chips.peak_of("some other card") is None
    assert chips.peak(torch.device("cpu")) is None


def test_what_a_device_is_asked_is_counted() -> None:
    x = torch.rand(4)
    launches, waits = counting.count(lambda: x.view(2, 2).exp().sum())
    assert (launches, waits) == ({"exp": 1, "sum": 1}, {})
    for call in (
        lambda: float(x[0]),
        lambda: bool((x > 0).all()),
        lambda: x[x > 0.5],
        lambda: x.tolist(),
        lambda: (x > 0.5).nonzero(),
        lambda: torch.unique_consecutive(x),
        lambda: torch.equal(x, x),
        lambda: x.repeat_interleave(torch.tensor([1, 0, 2, 0])),
    ):
        assert counting.count(call)[1].total() >= 1
    assert not counting.count(lambda: x[torch.tensor([0, 2])].repeat_interleave(2))[1]


def test_absent_data_is_said_and_no_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "DATA", tmp_path / "nowhere")
    monkeypatch.setattr("sys.argv", ["engine", "--quick"])
    benchmark.main()
    assert "skipped" in capsys.readouterr().out
