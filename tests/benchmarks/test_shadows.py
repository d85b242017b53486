"""Membership by shadows: the scores against densities written by others, leaks found, nothing in nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor
from torch.nn import functional as F

from benchmarks import lira, owner, shadows
from leakaudit.errors import UserError
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.registry import parse_defense
from leakaudit.protocol.target import PixelModel, Records, Target
from leakaudit.score.membership import caught, confidence
from leakaudit.score.nearness import nearest, rank_auc

SHADOWS, POOL = 8, 400


@pytest.fixture
def inside() -> Tensor:
    return shadows.halves(POOL, SHADOWS, 0)


def planted(inside: Tensor, shift: float, seed: int = 1) -> Tensor:
    """Numbers of two kinds: per record a level of its own, higher by `shift` deviations for members in the first."""
    generator = torch.Generator().manual_seed(seed)
    level = 5 * torch.randn(1, inside.shape[1], 2, generator=generator, dtype=torch.float64)
    noise = torch.randn(*inside.shape, 2, generator=generator, dtype=torch.float64)
    return level + noise + shift * torch.stack([inside, torch.zeros_like(inside)], 2)


def test_the_ratio_is_that_of_known_densities(inside: Tensor) -> None:
    values = planted(inside, 2.0)
    known = lira.gaussians(values[1:], inside[1:])
    had = inside[1:, :, None].numpy()
    masked = np.ma.masked_array(values[1:].numpy(), mask=np.broadcast_to(~had, values[1:].shape))
    both = known.inside_count[:, 0].bool() & known.outside_count[:, 0].bool()
    assert np.allclose(known.inside[both], masked.mean(0)[both])
    spread = masked.var(0).filled(0) * had.sum(0)
    pooled = spread.sum(0) / np.maximum(had.sum(0) - 1, 0).sum(0)
    assert np.allclose(known.inside_variance[0], pooled)
    seen = values[0]
    upper = norm(known.inside.numpy(), known.inside_variance.sqrt().numpy()).logpdf(seen.numpy())
    lower = norm(known.outside.numpy(), known.outside_variance.sqrt().numpy()).logpdf(seen.numpy())
    assert np.allclose(lira.online(known, seen), upper - lower)
    tail = norm(known.outside.numpy(), known.outside_variance.sqrt().numpy()).cdf(seen.numpy())
    assert np.allclose(norm.cdf(lira.offline(known, seen)), tail)


def test_many_shadows_give_every_record_its_own_variance(inside: Tensor) -> None:
    many = shadows.halves(50, lira.PER_RECORD, 0)
    values = planted(many, 1.0)
    known = lira.gaussians(values, many)
    assert torch.allclose(known.inside_variance[7], values[many[:, 7], 7].var(0))
    assert torch.allclose(known.outside_variance[7], values[~many[:, 7], 7].var(0))


def test_the_shrunk_ratio_is_the_best_one_where_all_records_differ_alike(inside: Tensor) -> None:
    # With one shift for all, the ratio with the true means is the best; shrunk must come near to it, online does not.
    values = planted(inside, 0.7)
    areas = {
        way: np.mean([area(lira.attacked(values, inside, v, way)[:, 0], inside[v]) for v in range(SHADOWS)])
        for way in lira.WAYS
    }
    best = norm.cdf(0.7 / 2**0.5)
    assert areas["shrunk"] > areas["online"] + 0.02
    assert best - 0.05 < areas["shrunk"] < best + 0.02


def area(scores: Tensor, had: Tensor) -> float:
    found = rank_auc(scores[~had], scores[had]).value
    assert found is not None
    return found


def test_an_attack_never_reads_the_truth_of_its_victim(inside: Tensor) -> None:
    values = planted(inside, 1.0)
    turned = inside.clone()
    turned[3] = ~turned[3]
    assert torch.equal(lira.combined(values, inside, 3), lira.combined(values, turned, 3))
    for way in lira.WAYS:
        assert torch.equal(lira.attacked(values, inside, 3, way), lira.attacked(values, turned, 3, way))


def test_what_says_nothing_tells_nobody_and_what_tells_is_found(inside: Tensor) -> None:
    nothing, something = (judged(planted(inside, shift), inside) for shift in (0.0, 6.0))
    assert nothing.auc.low is not None
    assert nothing.auc.high is not None
    assert nothing.auc.low < 0.5 < nothing.auc.high
    assert (nothing.told[0.01].low or 0) < 0.01 < (nothing.told[0.01].high or 0)
    assert (something.told[0.01].value or 0) > 0.95
    assert (something.told[0.001].value or 0) > 0.8  # 1,600 others, all victims together
    assert something.spread[0.01].value == pytest.approx(something.told[0.01].value)


def judged(values: Tensor, inside: Tensor) -> shadows.Attacked:
    scores = [lira.combined(values, inside, v) for v in range(len(inside))]
    return shadows.judged("both", "regression", scores, inside)


def test_a_regression_finds_its_weights_and_survives_what_separates(generator: torch.Generator) -> None:
    x = 3 + 2 * torch.randn(20_000, 2, generator=generator, dtype=torch.float64)
    wanted = torch.tensor([1.0, -0.5], dtype=torch.float64)
    y = torch.rand(20_000, generator=generator) < (x @ wanted - 1).sigmoid()
    weights, centre, scale = lira.logistic(x, y)
    assert torch.allclose(weights[1:] / scale, wanted, atol=0.06)
    assert abs(float(weights[0] - weights[1:] @ (centre / scale)) + 1) < 0.15
    apart, _, _ = lira.logistic(x, x[:, 0] > 3)
    assert bool(apart.isfinite().all())
    assert float(apart[1]) > 2


def test_confidence_is_the_log_odds_and_does_not_saturate() -> None:
    logits, labels = torch.tensor([[2.0, 0.5, -1.0], [0.0, 0.0, 60.0]]), torch.tensor([0, 2])
    p = logits.double().softmax(1)[0, 0]
    assert float(confidence(logits, labels)[0]) == pytest.approx(float((p / (1 - p)).log()), abs=1e-5)
    assert float(confidence(logits, labels)[1]) == pytest.approx(60 - float(np.log(2)), abs=1e-4)


def test_the_share_told_is_counted_above_a_threshold_of_the_others() -> None:
    others = torch.arange(200.0)
    found = caught(torch.tensor([0.0, 198.0, 198.5, 500.0]), others, 0.01)  # the second highest is 198
    assert (found.value, found.n) == (0.5, 4)
    assert caught(others, torch.arange(99.0), 0.01).value is None


# planted leaks, through the numbers of an owner


def blobs(count: int, seed: int) -> Records:
    """Pictures of a class mean and much that is their own."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    images = 0.5 + 0.15 * torch.randn(count, 1, 8, 8, generator=generator)
    images[:, :, :, 4:] += 0.1 * labels.view(-1, 1, 1, 1)
    return Records(images.clamp(0, 1), labels)


class Handed(Defense):
    """The records themselves, in another order, with so much noise; or, of none, what has nothing of them."""

    replaces_records = True

    def __init__(self, noise: float | None) -> None:
        object.__setattr__(self, "noise", noise)

    def transform_records(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if self.noise is None:
            drawn = blobs(len(images), int(torch.randint(10**6, (1,), generator=generator)))
            return drawn.images, drawn.labels
        order = torch.randperm(len(images), generator=generator)
        return images[order] + self.noise * torch.randn(images.shape, generator=generator), labels[order]


@pytest.mark.parametrize(("noise", "told"), [(0.0, True), (0.1, True), (None, False)])
def test_records_that_are_released_are_found_and_others_are_not(noise: float | None, told: bool) -> None:
    pool, inside = blobs(POOL, 3), shadows.halves(POOL, 5, 0)
    values = []
    for s in range(5):
        released, _ = Handed(noise).transform_records(
            pool.images[inside[s]], pool.labels[inside[s]], torch.Generator().manual_seed(s)
        )
        shown = Records(released, pool.labels[inside[s]])
        near = -nearest(pool.images, released, mirrored=False)
        values.append(torch.stack([near, owner.by_means(shown, pool, owner.population(pool, 2), 64)], 1).double())
    found = judged(torch.stack(values), inside)
    assert found.auc.low is not None
    if told:
        assert (found.told[0.01].low or 0) > 0.97
    else:
        assert found.auc.low < 0.5 < (found.auc.high or 0)
        assert (found.told[0.01].low or 0) < 0.01


def test_means_are_nearer_to_the_records_behind_them() -> None:
    pool = blobs(POOL, 3)
    had = torch.arange(POOL) % 4 < 2
    known = owner.population(pool, 2)
    torch.testing.assert_close(known.whitened.T @ known.whitened / POOL, torch.eye(64).double(), atol=1e-6, rtol=0)
    scores = owner.by_means(pool[had], pool, known, 64)
    assert area(scores, had) > 0.75
    soft = Records(pool[had].images, F.one_hot(pool[had].labels, 2).float())
    assert torch.allclose(owner.by_means(soft, pool, known, 64), scores)


# the command


SMALL = replace(
    shadows.QUICK,
    pool=60,
    effort=owner.Effort(epochs=1, student=1, widths=(4,)),
    settings={"steps": "1", "epochs": "1"},
)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    def pool(dataset: str, part: str, size: shadows.Size, seed: int) -> Target:
        records = blobs(size.pool, 3)
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
        sides = records[:0]
        return Target(dataset, PixelModel(network), F.cross_entropy, records, sides, sides, classes=("a", "b"))

    monkeypatch.setattr(shadows, "pool_of", pool)
    monkeypatch.setattr(shadows, "QUICK", SMALL)
    monkeypatch.setattr(shadows.frontier, "FILES", {"cifar10": Path(__file__), "mnist": Path(__file__)})


@pytest.mark.usefixtures("small")
def test_a_run_goes_on_where_it_ended_and_says_both_intervals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "shadows.json"
    command = ["--quick", "--json", str(file), "--defenses", "none", "obscure"]
    shadows.main(command)
    first = capsys.readouterr()
    assert "over records" in first.out
    assert "over victims" in first.out
    assert "older attack" in first.out
    whole = json.loads(file.read_text())
    assert len(whole["shadows"]) == 8
    assert {"clients' model"} == set(whole["shadows"][0]["known"])
    assert {"student", "pictures", "features", "code"} < set(whole["shadows"][-1]["known"])
    one = whole | {"shadows": whole["shadows"][:7]}
    file.write_text(json.dumps(one))
    done: list[int] = []
    fitted = shadows.shadow
    monkeypatch.setattr(shadows, "shadow", lambda *a: (done.append(a[3]), fitted(*a))[1])
    shadows.main(command)
    assert done == [3]
    again = json.loads(file.read_text())
    for before, after in zip(whole["shadows"], again["shadows"], strict=True):
        assert before | {"seconds": 0} == after | {"seconds": 0}
    assert whole["attacks"] == again["attacks"]
    with pytest.raises(UserError, match="another seed"):
        shadows.read(file, whole["run"] | {"seed": 1})


@pytest.mark.usefixtures("small")
def test_too_few_shadows_or_a_strange_file_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        shadows.main(["--quick", "--shadows", "3"])
    assert "at least 4" in capsys.readouterr().err
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(SystemExit):
        shadows.main(["--quick", "--json", str(tmp_path / "other.json")])
    assert "is not a file of this benchmark" in capsys.readouterr().err


def test_what_an_owner_is_shown_of_obscure_is_all_its_pictures() -> None:
    target = Target(
        "blobs",
        PixelModel(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))),
        F.cross_entropy,
        blobs(40, 1),
        blobs(0, 2),
        blobs(0, 3),
        classes=("a", "b"),
    )
    generator = torch.Generator().manual_seed(0)
    fitted = parse_defense("obscure:steps=1:epochs=1").fit(target, generator)
    shown = owner.everything(fitted, target.private, generator)
    assert torch.equal(shown.images, fitted.obscurer.pictures)  # type: ignore[attr-defined]
    drawn = owner.everything(parse_defense("class-conditional").fit(target, generator), target.private, generator)
    assert len(drawn) == owner.DRAWS * 40
