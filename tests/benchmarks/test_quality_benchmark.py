"""The quality benchmark's parts: the published settings are the published ones, and claims are not rounded up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import curves, published, quality
from benchmarks.inversion import load
from benchmarks.networks import WEIGHTS, ResNetCifar, build, trained_resnet20
from leakaudit.attacks._optimise import total_variation
from leakaudit.engine.matching import cosine
from leakaudit.protocol.gradients import mean_gradient
from leakaudit.protocol.target import PixelModel, Records


def test_the_step_is_divided_by_ten_after_three_five_and_seven_eighths() -> None:
    found = [published.step_size(k, 4800) for k in (0, 1799, 1800, 2999, 3000, 4199, 4200, 4799)]
    assert found == pytest.approx([0.1, 0.1, 1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4])


def test_its_total_variation_and_cosine_are_the_formulas(generator: torch.Generator) -> None:
    x = torch.rand((1, 3, 6, 5), generator=generator)
    across = (x[:, :, :, 1:] - x[:, :, :, :-1]).abs().sum() / (3 * 6 * 4)
    down = (x[:, :, 1:] - x[:, :, :-1]).abs().sum() / (3 * 5 * 5)
    torch.testing.assert_close(published.total_variation(x), across + down)
    torch.testing.assert_close(published.total_variation(x), total_variation(x[None])[0][0])
    a, b = [tuple(torch.randn(s, generator=generator) for s in ((4, 3), (7,))) for _ in range(2)]
    torch.testing.assert_close(published.cosine_distance(a, b), cosine(a, b)[0])


@pytest.fixture(scope="module")
def pictures(shared: Path) -> Records:
    """A thousand test pictures, read once: unpacking them takes seconds."""
    return load("test")[:1000]


def tiny() -> PixelModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 36, 3))
    return PixelModel(network, [0.4], [0.3])


def test_it_finds_a_picture_and_keeps_the_moments_asked_for(generator: torch.Generator) -> None:
    model, truth, label = tiny(), torch.rand((1, 1, 6, 6), generator=generator), torch.tensor([1])
    shared = mean_gradient(model, F.cross_entropy, truth, label)
    moments = published.invert(
        model, F.cross_entropy, shared, label, (1, 6, 6), generator, iterations=200, checkpoints=[20, 100, 200]
    )
    assert [m.iteration for m in moments] == [20, 100, 200]
    assert 0 < moments[0].seconds < moments[1].seconds < moments[2].seconds
    errors = [float((m.last - truth[0]).square().mean()) for m in moments]
    assert errors[2] < errors[0] / 4
    for m in moments:
        assert float(m.last.min()) >= 0
        assert float(m.last.max()) <= 1


def row(variant: str, length: int, seconds: float, psnr: float, tuning: float = 0.0) -> dict[str, Any]:
    return {
        "model": "m", "variant": variant, "picture": "last", "length": length, "iteration": length,
        "seconds": seconds, "tuning_seconds": tuning, "psnr": psnr, "ssim": 0.5, "identified": 0.5,
        "candidates": 100, "psnr_each": [psnr, psnr],
    }  # fmt: skip


PUBLISHED = [row("grey", 0, 0, 10), row("published", 480, 1, 12), row("published", 4800, 10, 20)]


def test_claims_that_hold_are_reached() -> None:
    rows = [*PUBLISHED, row("ours", 30, 0.1, 14), row("ours", 60, 0.9, 21, tuning=1.0), row("ours", 240, 2, 24)]
    found = curves.claims(rows, "m")
    assert found is not None
    assert (found.final, found.seconds, found.grey) == (20, 10, 10)
    assert found.share == pytest.approx(0.09)
    assert found.share_tuned == pytest.approx(0.14)  # its second of tuning is spread over two victims
    assert found.sooner == "reached"
    # Before 1 s there is nothing of theirs but the grey picture.
    assert [(g.published, g.ours) for g in found.gains] == [(10, 14), (10, 21), (12, 24), (20, 24)]
    assert found.better == "reached at all 4 times"
    assert "reached at all 4 times" in curves.report(found)


@pytest.mark.parametrize(
    ("ours", "sooner", "better"),
    [
        ([row("ours", 30, 1.01, 20)], "MISSED", "MISSED at 1 of 2 times"),  # 10.1 % of the time; 0 dB more at the end
        ([row("ours", 30, 0.5, 19.99)], "MISSED", "MISSED at 1 of 2 times"),  # never there
        ([row("ours", 30, 0.5, 20), row("ours", 60, 1, 14.99)], "reached", "MISSED at 2 of 3 times"),  # 2.99 dB
    ],
)
def test_claims_that_nearly_hold_are_missed(ours: list[dict[str, Any]], sooner: str, better: str) -> None:
    found = curves.claims([*PUBLISHED, *ours], "m")
    assert found is not None
    assert (found.sooner, found.better) == (sooner, better)


def test_ours_is_the_longest_run_that_fits_and_theirs_the_best() -> None:
    rows = [*PUBLISHED, row("published", 48, 0.2, 15), row("ours", 30, 0.1, 25), row("ours", 60, 0.3, 19)]
    found = curves.claims(rows, "m")
    assert found is not None
    assert [(g.seconds, g.published, g.ours) for g in found.gains] == [(0.1, 10, 25), (0.3, 15, 19), (10, 20, 19)]


def test_reaching_less_than_a_grey_picture_is_void() -> None:
    rows = [row("grey", 0, 0, 12), row("published", 4800, 10, 9), row("ours", 30, 0.1, 11)]
    found = curves.claims(rows, "m")
    assert found is not None
    assert found.sooner.startswith("void")
    rows[1]["identified"], rows[2]["identified"] = 0.125, 0.5
    told = curves.claims(rows, "m")
    assert told is not None
    assert told.sooner.endswith("identified 12% → 50%: more")
    assert curves.claims(PUBLISHED, "m") is None


def test_records_tuned_on_have_updates_as_large_as_the_victims(generator: torch.Generator) -> None:
    records = Records(torch.rand((12, 3, 32, 32), generator=generator), torch.arange(12) % 10)
    model = build("lenet").eval()
    scene = quality.Scene("lenet", model, records[:4], quality.candidate_sets(
        records, torch.arange(4), records[:0], 2, generator), 0)  # fmt: skip
    update = quality.shared(model, records[:4], 0, "victims")
    own = quality.alike(scene, update, records, 4)
    assert torch.allclose(
        quality.size(quality.shared(model, own, 0, "own")).sort().values, quality.size(update).sort().values, atol=0.5
    )
    assert len({bytes(image.numpy().tobytes()) for image in own.images}) == 4


def test_a_run_is_written_reused_and_drawn(
    pictures: Records, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "POOL", 8)
    monkeypatch.setattr(quality, "load", lambda part: pictures)
    first, again, plot = tmp_path / "a.json", tmp_path / "b.json", tmp_path / "c.svg"
    common = ["--models", "lenet", "--victims", "2", "--iterations", "16"]
    quality.main([*common, "--only-baseline", "--json", str(first)])
    quality.main([*common, "--lengths", "4,8", "--baseline", str(first), "--json", str(again), "--plot", str(plot)])
    rows = json.loads(again.read_text())
    old = [r for r in json.loads(first.read_text()) if r["variant"] == "published"]
    assert [r for r in rows if r["variant"] == "published"] == old
    assert {r["length"] for r in old} == {10, 16}
    assert [(r["variant"], r["length"]) for r in rows if r["variant"] != "published"] == [
        ("grey", 0), ("ours", 4), ("ours", 8),
    ]  # fmt: skip
    assert "the published settings end at" in capsys.readouterr().out
    assert plot.read_text().count("lenet") == 1


def test_the_trained_network_is_the_one_it_is_said_to_be(pictures: Records) -> None:
    if not WEIGHTS.is_file():
        pytest.skip("the weights are not there")
    model = trained_resnet20()
    assert not any(module.training for module in model.modules())
    with torch.no_grad():
        assert float((model(pictures.images).argmax(1) == pictures.labels).float().mean()) > 0.9


def test_the_network_takes_cifar_pictures() -> None:
    assert ResNetCifar(3).eval()(torch.rand(2, 3, 32, 32)).shape == (2, 10)
