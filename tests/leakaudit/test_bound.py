"""A proven bound and the rate that is measured speak of the same line-ups: at rates above 0 too."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakaudit.defenses.obscure import Obscure
from leakaudit.defenses.obscurer import Obscurer, identification_bound
from leakaudit.judge.noticed import exceeded
from leakaudit.protocol.client import release
from leakaudit.protocol.defense import Defense, chain
from leakaudit.protocol.registry import parse_attack, parse_defense
from leakaudit.protocol.target import PixelModel, Records, Target
from leakaudit.result.schema import AttackResult, RecordScore
from leakaudit.score.identification import CandidateSets, candidate_sets, identify_by_scores, of_line_ups
from leakaudit.score.scoring import failed
from leakaudit.stats.intervals import rate

SIZE, VICTIMS = 20, 60


def shades(n: int, generator: torch.Generator, *, spread: float) -> Records:
    """Return pictures (n, 1, 8, 8) of one class that differ by 4×4 patches, as the choice of pictures sees them."""
    patches = 0.5 + spread * torch.randn(n, 1, 4, 4, generator=generator)
    return Records(F.interpolate(patches, 8).clamp(0, 1), torch.zeros(n, dtype=torch.long))


def defended(private: Records, nats: float, generator: torch.Generator) -> Obscure:
    """Return a fitted defense: its slope is set on the private records, as `fit` does it, without its networks."""
    fitted = parse_defense(f"obscure:rate={nats}:mirror=false")
    assert isinstance(fitted, Obscure)
    pictures = shades(200, generator, spread=0.2).images
    obscurer = Obscurer(pictures, torch.full((200, 2), 0.5), slope=0.0, mirror=False)
    slope = 1.0
    while float(replace(obscurer, slope=2 * slope).rates(private.images).mean()) < nats:
        slope *= 2
    obscurer = replace(obscurer, slope=slope)
    return replace(fitted, obscurer=obscurer, nats=float(obscurer.rates(private.images).mean()))


def attacked(defense: Obscure, truth: Tensor, line_ups: CandidateSets, generator: torch.Generator) -> AttackResult:
    """Return what the best attack there is finds: the likelihood of the picture that was chosen for each candidate."""
    assert defense.obscurer is not None
    chosen = defense.obscurer.choose(truth, generator)
    scores = torch.stack([
        defense.obscurer.chances(shown)[:, j] for shown, j in zip(line_ups.images(), chosen.tolist(), strict=True)
    ])  # fmt: skip
    _, hit = identify_by_scores(scores, line_ups.position, line_ups.sizes)
    score = RecordScore(0, 0, "a", "converged", candidates=SIZE)
    blank = failed(parse_attack("released-linkage"), "bound", {}, VICTIMS, "failed", "")
    found = rate(int(hit.sum()), VICTIMS)
    return replace(blank, identification=found, records=(score,) * VICTIMS, candidates=SIZE)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("nats", [0.3, 1.6])
def test_an_honest_defense_keeps_its_bound_on_the_line_ups_shown(seed: int, nats: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    private, pool = shades(100, generator, spread=0.2), shades(100, generator, spread=0.2)
    defense = defended(private, nats, generator)
    line_ups = candidate_sets(private, torch.arange(VICTIMS), pool, SIZE, generator)
    stated = of_line_ups(defense.guarantees(100, 1, 0, SIZE), defense, line_ups)
    found = attacked(defense, private.images[:VICTIMS], line_ups, generator)
    assert (found.identification.value or 0) > 1 / SIZE  # there is something to see
    assert not exceeded("s", stated, [found], 1)


@pytest.mark.parametrize("seed", range(4))
def test_a_defense_that_chooses_more_tellingly_than_it_says_is_caught(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    private, pool = shades(100, generator, spread=0.2), shades(100, generator, spread=0.2)
    honest = defended(private, 0.05, generator)
    assert honest.obscurer is not None
    steep = replace(honest, obscurer=replace(honest.obscurer, slope=60 * honest.obscurer.slope))
    line_ups = candidate_sets(private, torch.arange(VICTIMS), pool, SIZE, generator)
    stated = of_line_ups(honest.guarantees(100, 1, 0, SIZE), honest, line_ups)
    found = attacked(steep, private.images[:VICTIMS], line_ups, generator)
    assert [finding.id for finding in exceeded("s", stated, [found], 1)] == ["bound-exceeded"]


@pytest.mark.parametrize("seed", range(3))
def test_line_ups_that_tell_more_than_the_private_records_have_a_bound_of_their_own(seed: int) -> None:
    # The private records look like no picture but for a few: a release tells little of them, and much of these few.
    generator = torch.Generator().manual_seed(seed)
    few, bold = shades(60, generator, spread=0.15), shades(900, generator, spread=0.6)
    private = Records(torch.cat([few.images, bold.images]), torch.zeros(960, dtype=torch.long))
    defense = defended(private, 0.2, generator)
    line_ups = candidate_sets(few, torch.arange(VICTIMS), few[:0], SIZE, generator)
    old = defense.guarantees(960, 1, 0, SIZE)
    own = of_line_ups(old, defense, line_ups)
    before, after = (next(g for g in each if g.identification is not None) for each in (old, own))
    assert (after.identification or 0) > (before.identification or 0)
    assert "line-ups shown" in after.assumes
    assert after.candidates == SIZE
    assert not exceeded("s", own, [attacked(defense, few.images, line_ups, generator)], 1)


def test_the_bound_is_the_mean_over_line_ups_of_what_their_candidates_are_told(generator: torch.Generator) -> None:
    private = shades(40, generator, spread=0.2)
    defense = defended(private, 0.1, generator)
    assert defense.obscurer is not None
    parts = [private.images[:10], private.images[10:30]]
    rates = [float(defense.obscurer.rates(part).mean()) for part in parts]
    for releases in (1, 3):
        found = defense.picked(parts, releases)
        assert found is not None
        wanted = [identification_bound(releases * r, n) for r, n in zip(rates, (10, 20), strict=True)]
        assert found.identification == pytest.approx(sum(wanted) / 2)
    assert chain(defense, parse_defense("clip")).picked(parts) == defense.picked(parts)
    assert chain(parse_defense("mixup"), defense).picked(parts) is None
    assert Defense().picked(parts) is None
    assert replace(defense, obscurer=replace(defense.obscurer, slope=0.0)).picked(parts) is None


def test_a_scan_states_the_bound_of_the_line_ups_it_showed(generator: torch.Generator) -> None:
    private, pool = shades(30, generator, spread=0.2), shades(30, generator, spread=0.2)
    model = PixelModel(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)))
    target = Target("shades", model, F.cross_entropy, private, pool, pool, classes=("a", "b"))
    fitted = parse_defense("obscure:rate=0.5:steps=1:epochs=1:latent=8:pictures=1").fit(target, generator)
    line_ups = candidate_sets(private, torch.arange(8), pool, SIZE, generator)
    (bound,) = [
        g for g in of_line_ups(fitted.guarantees(30, 1, 0, SIZE), fitted, line_ups) if g.identification is not None
    ]
    assert bound == fitted.picked(line_ups.shown())
    assert len(release(fitted, private, generator)) == 30
