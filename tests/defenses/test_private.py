"""The generator with an ε: what a record can move, how much noise there is, that nothing else depends on records."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from leakaudit.defenses import _private, _private_features, _private_teacher
from leakaudit.defenses._private_features import Features, fitted_features, unit
from leakaudit.defenses._private_release import Budget
from leakaudit.defenses._private_sketch import Sketch, sketched
from leakaudit.defenses._private_teacher import CLIP, private_teacher
from leakaudit.defenses._procedural import procedural
from leakaudit.defenses.obscure import Obscure
from leakaudit.defenses.obscurer_card import Costs, render, summary
from leakaudit.defenses.obscurer_file import digest
from leakaudit.defenses.obscurer_fit import fit
from leakaudit.errors import UserError
from leakaudit.protocol.accounting import gaussian_delta, gaussian_epsilon, gaussian_shift
from leakaudit.protocol.registry import parse_defense
from leakaudit.protocol.target import PixelModel, Records, Target

SHAPE = (3, 12, 12)
CLASSES = 3
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_private_features, "FILTERS", 8)
    monkeypatch.setattr(_private_features, "FITTED", 60)
    monkeypatch.setattr(_private_teacher, "STEPS", 4)
    monkeypatch.setattr(_private, "PICTURES", 40)


@pytest.fixture
def features() -> Features:
    return fitted_features(SHAPE, CPU, torch.Generator().manual_seed(0))


def records(count: int = 30, seed: int = 0) -> Records:
    rng = torch.Generator().manual_seed(seed)
    return Records(torch.rand(count, *SHAPE, generator=rng), torch.arange(count) % CLASSES)


def extreme() -> Tensor:
    """Pictures that somebody might choose to move a sum by much."""
    rng = torch.Generator().manual_seed(9)
    checks = (torch.arange(12)[:, None] + torch.arange(12)[None]) % 2
    stripes = (torch.arange(12) // 6).expand(3, 12, 12)
    noise = (torch.rand(2, *SHAPE, generator=rng) < 0.5).float()
    shown = [torch.zeros(SHAPE), torch.ones(SHAPE), checks.expand(SHAPE), stripes, *noise, torch.full(SHAPE, 0.5)]
    return torch.stack([x.float() for x in shown])


class Recorder(Budget):
    """Releases without noise, and keeps what was to be released."""

    def release(self, what, terms, sensitivity, share, generator):
        noisy = super().release(what, terms, sensitivity, share, generator)
        self.__dict__.setdefault("told", []).append((terms.double(), sensitivity, noisy))
        return noisy


def told(data: Records, features: Features, replayed: list[Tensor] | None = None) -> list[tuple[Tensor, float, Tensor]]:
    """Return all that a fit releases of `data`: exact sums, sensitivities and noisy sums.

    With `replayed` noisy sums of another fit take the place of its own, so that later steps start from the same.
    """
    budget = Recorder(8.0, 1e-5)
    if replayed is not None:
        given, release = iter(replayed), budget.release

        def again(*args):
            release(*args)
            return next(given)

        budget.release = again  # type: ignore[method-assign]
    rng = torch.Generator().manual_seed(1)
    private_teacher(data, CLASSES, 30.0, features, budget, mirror=True, generator=rng)
    sketched(data, torch.full((CLASSES,), 10.0).double(), 6, budget, mirror=True, generator=rng)
    return budget.__dict__["told"]


@pytest.mark.parametrize("index", range(len(extreme())))
@pytest.mark.parametrize("label", range(CLASSES))
def test_a_record_moves_no_sum_by_more_than_is_stated(index: int, label: int, features: Features) -> None:
    data = records()
    labels = torch.cat([data.labels, torch.tensor([label])])
    more = Records(torch.cat([data.images, extreme()[index : index + 1]]), labels)
    before = told(data, features)
    after = told(more, features, [noisy for _, _, noisy in before])
    assert len(before) == len(after) == _private_teacher.STEPS + 2
    moved = [float((a - b).norm()) for (a, _, _), (b, _, _) in zip(before, after, strict=True)]
    assert all(far <= most * (1 + 1e-4) for far, (_, most, _) in zip(moved, before, strict=True))
    assert max(moved) > 0.1  # and the record did enter


def test_features_and_codes_are_never_longer_than_one(features: Features) -> None:
    shown = torch.cat([extreme(), procedural(20, SHAPE, torch.Generator().manual_seed(2))])
    for rows in (features(shown, mirror=True), features(shown, mirror=False), Sketch(SHAPE, CPU).codes(shown)):
        assert bool(torch.isfinite(rows).all())
        assert float(rows.double().norm(dim=1).max()) <= 1
    assert float(unit(torch.full((1, 4), math.nan)).norm()) == 0


def test_a_code_gives_its_low_frequencies_back() -> None:
    sketch = Sketch(SHAPE, CPU)
    basis = sketch.basis
    assert torch.allclose(basis @ basis.T, torch.eye(len(basis)), atol=1e-5)
    grey = torch.full((1, *SHAPE), 0.6)
    assert torch.allclose(sketch.pictures(sketch.codes(grey)), grey, atol=1e-5)


def test_the_noise_is_what_is_stated() -> None:
    budget = Budget(3.0, 1e-5)
    terms = torch.zeros(40_000)
    noisy = budget.release("a sum", terms, 0.5, 0.25, torch.Generator().manual_seed(0))
    assert float(noisy.std()) == pytest.approx(budget.spent[0].std, rel=0.02)
    assert budget.spent[0].std == pytest.approx(0.5 / (0.5 * gaussian_shift(3.0, 1e-5)))


def test_secret_noise_is_normal_and_no_seed_repeats_it() -> None:
    given = [Budget(3.0, 1e-5, secret=True) for _ in range(2)]
    one, other = (b.release("a", torch.zeros(4, 9_000), 0.5, 0.25, torch.Generator().manual_seed(0)) for b in given)
    assert one.shape == (4, 9_000)
    assert not torch.equal(one, other)
    scaled = one.flatten() / given[0].spent[0].std
    assert bool(scaled.isfinite().all())
    assert float(scaled.mean()) == pytest.approx(0, abs=0.03)
    assert float(scaled.std()) == pytest.approx(1, rel=0.03)
    assert float((scaled.abs() > 1.959964).float().mean()) == pytest.approx(0.05, abs=0.01)


def test_a_fit_to_be_shared_is_not_repeated_by_its_seed() -> None:
    target = target_of(records())
    fits = [fit(target, Obscure(epsilon=8.0), 0, secret=secret)[0].labels for secret in (False, False, True, True)]
    assert torch.equal(fits[0], fits[1])
    assert not torch.equal(fits[0], fits[2])
    assert not torch.equal(fits[2], fits[3])


def test_pictures_of_one_pixel_have_features() -> None:
    for shape in ((1, 1, 1), (1, 2, 2)):
        found = fitted_features(shape, CPU, torch.Generator().manual_seed(0))(torch.rand(3, *shape), mirror=True)
        assert bool(found.isfinite().all())


def test_a_file_with_an_epsilon_that_bounds_nothing_is_refused(tmp_path) -> None:
    from dataclasses import replace

    from leakaudit.defenses.obscurer import read

    obscurer, card = fit(target_of(records()), Obscure(epsilon=8.0), 0)
    for wrong in ({"epsilon": 0.0}, {"epsilon": -1.0}, {"delta": 0.0}):
        obscurer.save(tmp_path / "g.safetensors", replace(card, **wrong))
        with pytest.raises(UserError, match="which bound nothing"):
            read(tmp_path / "g.safetensors")


def test_shares_of_one_spend_epsilon_and_no_more() -> None:
    budget, rng = Budget(8.0, 1e-5), torch.Generator().manual_seed(0)
    for share in (0.02, 0.08, 0.15, *[0.75 / 16] * 16):
        budget.release("a sum", torch.zeros(2), 1.0, share, rng)
    assert budget.used() == pytest.approx(8.0, rel=1e-6)
    with pytest.raises(RuntimeError, match="more than ε"):
        budget.release("one too many", torch.zeros(2), 1.0, 0.01, rng)
    assert len(budget.spent) == 19


@pytest.mark.parametrize(("epsilon", "delta"), [(0.5, 1e-6), (2.0, 1e-5), (8.0, 1e-5), (32.0, 1e-3)])
def test_the_shift_is_the_largest_that_epsilon_bears(epsilon: float, delta: float) -> None:
    shift = gaussian_shift(epsilon, delta)
    assert gaussian_delta(epsilon, shift) <= delta < gaussian_delta(epsilon, shift * (1 + 1e-9))
    assert gaussian_epsilon(shift, delta) == pytest.approx(epsilon)


def test_opacus_bounds_the_same_releases_from_above_and_not_by_much() -> None:
    from opacus.accountants import RDPAccountant

    shift = gaussian_shift(8.0, 1e-5)
    accountant = RDPAccountant()
    accountant.history = [(1 / (math.sqrt(share) * shift), 1.0, 1) for share in (0.02, 0.08, 0.15, *[0.75 / 16] * 16)]
    assert 8.0 <= accountant.get_epsilon(1e-5) <= 9.5


def target_of(data: Records) -> Target:
    model = PixelModel(nn.Sequential(nn.Flatten(), nn.Linear(math.prod(SHAPE), CLASSES)))
    sets = [data, records(20, 5), records(20, 6)]
    return Target("blobs", model, nn.CrossEntropyLoss(), *sets, classes=tuple(map(str, range(CLASSES))))


def test_a_fit_depends_on_the_noisy_sums_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other records, other labels, more of them: where the sums come out the same, so does every byte."""
    given: list[Tensor] = []
    release = Budget.release

    def first(self, *args):
        given.append(release(self, *args))
        return given[-1]

    monkeypatch.setattr(Budget, "release", first)
    one, card = fit(target_of(records()), Obscure(epsilon=8.0), 0)
    replayed = iter(given)

    def again(self, *args):
        release(self, *args)
        return next(replayed)

    monkeypatch.setattr(Budget, "release", again)
    other, same = fit(target_of(records(50, 77)), Obscure(epsilon=8.0), 0)
    assert torch.equal(one.pictures, other.pictures)
    assert torch.equal(one.labels, other.labels)
    assert card == same
    assert next(replayed, None) is None


def test_the_card_shows_nothing_exact_and_states_the_guarantee(tmp_path) -> None:
    target = target_of(records(31))
    obscurer, card = fit(target, Obscure(epsilon=8.0), 0)
    assert (card.records, card.digest, dict(card.learned), dict(card.measured), card.found) == ((), "", {}, {}, ())
    costs = Costs(123.0, 123.0)
    text = render(obscurer, card, "g.safetensors", costs)
    assert "differentially private towards every private record: ε = 8, δ = 1e-05" in text
    assert digest(target.private) not in text
    assert "123" not in text
    assert "AUC" not in text
    assert "not bounded" not in text.lower()
    assert all(each.what in text for each in card.spent)
    assert "ε = 8" in summary(obscurer, card, costs)
    obscurer.save(tmp_path / "g.safetensors", card)
    from leakaudit.defenses.obscurer import read

    back, kept = read(tmp_path / "g.safetensors")
    assert kept == card
    assert np.allclose(back.labels, obscurer.labels)
    assert digest(target.private).encode() not in (tmp_path / "g.safetensors").read_bytes()


def test_the_guarantee_is_stated_and_covers_the_memory() -> None:
    fitted = Obscure(epsilon=2.0, delta=1e-6).fit(target_of(records()), torch.Generator().manual_seed(0))
    facts = fitted.facts(30, 10, 5)
    assert facts["epsilon of the whole generator"] == 2.0
    assert "not bounded" not in facts
    found = fitted.guarantees(30, 10, 5, 100)
    assert {g.kind for g in found} == {"proven"}
    assert any("ε = 2, δ = 1e-06" in g.statement and "one record more or less" in g.assumes for g in found)
    assert {name for g in found for name in g.states} <= facts.keys()
    json.dumps(facts, allow_nan=False)


def test_public_pictures_get_private_probabilities() -> None:
    target = target_of(records())
    fitted = Obscure(epsilon=8.0, public=True).fit(target, torch.Generator().manual_seed(0))
    assert isinstance(fitted, Obscure)
    assert fitted.obscurer is not None
    assert len(fitted.obscurer.pictures) == len(target.auxiliary)
    assert fitted.card is not None
    assert not any("codes" in each.what for each in fitted.card.spent)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("epsilon=0", "epsilon must be above 0"),
        ("epsilon=-1", "epsilon must be above 0"),
        ("epsilon=nan", "finite number"),
        ("epsilon=8:delta=1", "delta must lie between 0 and 1"),
        ("epsilon=8:delta=0", "delta must lie between 0 and 1"),
        ("epsilon=8:rate=1", "rate must be 0 with epsilon"),
    ],
)
def test_bad_settings_give_a_sentence(spec: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_defense(f"obscure:{spec}")


def test_epsilon_is_read_and_left_out() -> None:
    assert parse_defense("obscure:epsilon=8").epsilon == 8.0  # type: ignore[attr-defined]
    assert parse_defense("obscure").epsilon is None  # type: ignore[attr-defined]


def test_errors_are_clipped_and_procedural_pictures_are_pictures() -> None:
    errors = _private_teacher.clipped(torch.tensor([[3.0, 4.0], [0.1, 0.0]]), CLIP)
    assert errors.norm(dim=1).tolist() == pytest.approx([CLIP, 0.1], rel=1e-5)
    for shape in ((1, 5, 7), (3, 16, 16)):
        shown = procedural(9, shape, torch.Generator().manual_seed(0))
        assert shown.shape == (9, *shape)
        assert 0 <= float(shown.min()) < float(shown.max()) <= 1
