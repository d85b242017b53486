"""The engine's benchmark measures what it says; how fast the engine is, is no test's business."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

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
        assert row.peak_mb > 0


def test_absent_data_is_said_and_no_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "DATA", tmp_path / "nowhere")
    monkeypatch.setattr("sys.argv", ["engine", "--quick"])
    benchmark.main()
    assert "skipped" in capsys.readouterr().out
