"""Claims of captured updates beside what is measured: mistakes are caught, correct runs are left alone."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.claims import LOCAL_DP, Setting, correct, rows_of, told, wrong
from leakaudit.captured.claims import ALPHA, Sample, measure_claims, noise_row
from leakaudit.captured.form import CapturedUpdate, Claims
from leakaudit.captured.mechanism import defense_spec, mechanism_of, step_weights
from leakaudit.errors import UserError
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.federation import Client, parse_client
from leakaudit.result.claims import ClaimRow

CAUGHT = {
    "LocalDpMod: sensitivity 1e-4 beside clip 1, ε = 10": {"epsilon"},
    "LocalDpMod claimed, no noise": {"noise", "epsilon"},
    "LocalDpMod claimed, half of the noise": {"noise"},
    "LocalDpMod claimed, nothing clipped": {"norm"},
    "PercentilePrivacy": {"epsilon"},
    "PercentilePrivacy under a claim of LocalDpMod": {"noise", "epsilon"},
    "dp-sgd claimed, no noise": {"noise"},
    "dp-sgd claimed, half of the noise": {"noise"},
    "dp-sgd claimed, clipped at 2 (not to be seen)": set(),
}


def broken(rows: tuple[ClaimRow, ...]) -> set[str]:
    return {row.what for row in rows if row.verdict == "broken"}


@pytest.mark.parametrize(("name", "run"), list(wrong(1)), ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_wrong_is_caught_by_the_row_that_says_it(name: str, run: Setting) -> None:
    found = broken(rows_of(run))
    assert CAUGHT[name] <= found
    assert CAUGHT[name] or not found


def test_no_alarm_on_correct_runs() -> None:
    """A few of those of `benchmarks.claims`, which counts 50 of either kind."""
    for name, run in correct(6):
        assert broken(rows_of(run)) == set(), (name, run)


def test_the_known_misconfiguration_in_numbers() -> None:
    """Clip 1, sensitivity 1e-4, "ε = 10": the same formula says 100,000 for the clip."""
    run = next(run for name, run in wrong(1) if "sensitivity 1e-4" in name)
    (row,) = [row for row in rows_of(run) if row.what == "epsilon"]
    assert row.claimed == 10
    assert row.measured is not None
    assert row.measured > 1e5
    assert "classical formula, proven for ε ≤ 1 alone, says 1e+05" in row.reason
    assert "sensitivity of 0.0001, not for the clip" in row.reason


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 1.0, 1.2])
def test_noise_alone_is_measured_as_it_is(share: float) -> None:
    draws = np.random.default_rng(0).normal(size=40_000) * 0.3 * share
    quiet = draws[:4000]
    row = noise_row("gaussian", 0.3, Sample(draws, np.zeros(len(draws)), quiet, "here"))
    assert row.verdict == {0.0: "broken", 0.5: "broken", 0.9: "broken", 1.0: "holds", 1.2: "cannot be told"}[share]
    assert row.measured == pytest.approx(0.3 * share, rel=0.05)
    if row.high is not None and share:
        assert 0.3 * share <= row.high <= 0.3 * share * 1.1


def test_a_signal_of_any_kind_is_no_alarm_and_no_proof() -> None:
    """The tests hold whatever the signal: it only makes less noise look like more."""
    generator = np.random.default_rng(1)
    for signal in (generator.standard_cauchy(20_000), 0.3 * generator.normal(size=20_000), np.full(20_000, 1e-3)):
        numbers = signal + 0.1 * generator.normal(size=20_000)
        row = noise_row("gaussian", 0.1, Sample(numbers, np.zeros(20_000), np.empty(0), ""))
        assert row.verdict == "cannot be told"
        assert row.low is None


def test_so_rare_is_a_false_alarm_as_it_says() -> None:
    """At a level of one in twenty, of 200 runs of noise alone about ten alarms at most are expected, by Bonferroni."""
    generator = np.random.default_rng(2)
    from leakaudit.captured import claims

    alarms = 0
    for _ in range(200):
        draws = generator.normal(size=500)
        alarms += claims._Tests(Sample(draws, np.zeros(500), draws[:50], ""), 1.0).chance(1.0) <= 0.05
    assert ALPHA <= 1e-3
    assert alarms <= 18


def test_rounding_is_not_taken_for_a_lack_of_noise() -> None:
    generator = np.random.default_rng(3)
    coarse = np.round(generator.normal(size=10_000) * 0.3 / 1.0) * 1.0  # stored in steps of 1: nearly all are 0
    row = noise_row("gaussian", 0.3, Sample(coarse, np.full(10_000, 0.5), np.empty(0), ""))
    assert (row.verdict, row.reason) == (
        "cannot be told", "The weights are stored too coarsely for noise as small as is claimed.",
    )  # fmt: skip


def test_rounds_of_the_same_records_part_signal_and_noise() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(30, 40), nn.Tanh())  # no head at its end tells anything
    names = dict(net.named_parameters())
    signal = {name: torch.randn(p.shape) for name, p in names.items()}
    for share, verdict in ((1.0, "holds"), (0.5, "broken")):
        updates = tuple({n: s + 0.1 * share * torch.randn(s.shape) for n, s in signal.items()} for _ in range(4))
        claims = Claims(rounds=4, records=8, settings=({"name": "mine", "std": 0.1},))
        before = {name: p.detach() for name, p in names.items()}
        (row,) = measure_claims(CapturedUpdate(before, updates, "gradient", claims), net)
        assert row.verdict == verdict
        assert row.measured == pytest.approx(0.1 * share, rel=0.1)
    alone = CapturedUpdate(before, updates[:1], "gradient", replace(claims, rounds=1))
    assert measure_claims(alone, net)[0].verdict == "cannot be told"


def test_what_steps_do_to_noise_is_what_they_do() -> None:
    """The noise of every step, moved by SGD with momentum itself."""
    client = parse_client("fedavg:epochs=2:batch=4:lr=0.1:momentum=0.9")
    weights = step_weights(client, 10)
    assert [size for _, size in weights] == [4, 4, 2, 4, 4, 2]
    p = nn.Parameter(torch.zeros(6, dtype=torch.float64))
    optimiser = torch.optim.SGD([p], lr=0.1, momentum=0.9)
    for k in range(6):
        p.grad = torch.eye(6, dtype=torch.float64)[k]
        optimiser.step()
    assert p.detach().neg().tolist() == pytest.approx([reach for reach, _ in weights])
    assert sum(reach for reach, _ in weights) == pytest.approx(client.moved(10))
    assert step_weights(Client(), 10) == [(1.0, 10)]


def test_nothing_claimed_is_nothing_measured() -> None:
    run = next(run for _, run in correct(1))
    assert rows_of(replace(run, claims=replace(run.claims, defense="none"))) == ()
    assert mechanism_of(Claims(), Defense()) is None


def test_what_is_not_known_is_not_told() -> None:
    run = Setting("", told("fedsgd", 4, settings=({"name": "fixedclipping_mod", "clipping_norm": 100.0},)))
    rows = {row.what: row for row in rows_of(run)}
    assert rows["epsilon"].verdict == "cannot be told"
    assert "server" in rows["epsilon"].reason
    summed = replace(run, claims=told("fedsgd", 4, settings=(LOCAL_DP,), clients=2))
    assert {row.verdict for row in rows_of(summed)} == {"cannot be told"}
    filtered = Setting("", told("fedsgd", 4, settings=({"name": "PercentilePrivacy", "gamma": 1e-6},)))
    assert {row.what: row.verdict for row in rows_of(filtered)} == {"largest entry": "broken", "epsilon": "broken"}
    assert {row.measured for row in rows_of(filtered) if row.what == "epsilon"} == {math.inf}


def test_settings_become_a_spec_that_an_attack_can_simulate() -> None:
    assert defense_spec([{**LOCAL_DP, "epsilon": 10.0}]) == "clip:max_norm=1.0,gaussian:std=0.4844805262605389"
    assert defense_spec([{"name": "opacus", "noise_multiplier": 1, "max_grad_norm": 2}]) == (
        "dp-sgd:noise_multiplier=1.0:max_norm=2.0:delta=1e-05"
    )
    assert defense_spec([{"name": "PercentilePrivacy", "gamma": 0.01}]) is None
    assert defense_spec([]) is None


@pytest.mark.parametrize("change", [{"epsilon": "ten"}, {"delta": 0.0}, {"sensitivity": -1.0}, {"epsilon": None}])
def test_settings_that_no_mechanism_has_are_one_sentence(change: dict[str, str | float | None]) -> None:
    with pytest.raises(UserError, match="LocalDpMod"):
        mechanism_of(Claims(settings=({**LOCAL_DP, **change},)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("records", "batch"), [(9, 8), (33, 8), (32, 8), (12, 16)])
@pytest.mark.parametrize("poisson", [True, False])
def test_no_alarm_on_opacus_itself(records: int, batch: int, poisson: bool) -> None:
    """It divides by how many records it expects in a step: a smaller last batch has no more noise than others."""
    from opacus import PrivacyEngine

    x, y = torch.ones(records, 1, 8, 8), torch.zeros(records, dtype=torch.long)  # whose gradients all point one way
    for seed, noise in enumerate((1.0, 0.3, 0.001)):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 4))
        before = {name: value.clone() for name, value in net.state_dict().items()}
        model, optimiser, loader = PrivacyEngine().make_private(
            module=net,
            optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
            data_loader=DataLoader(TensorDataset(x, y), batch_size=batch),
            noise_multiplier=noise,
            max_grad_norm=1.0,
            poisson_sampling=poisson,
        )
        for images, labels in loader:
            optimiser.zero_grad()
            nn.functional.cross_entropy(20 * model(images.reshape(-1, 1, 8, 8)), labels.long()).backward()
            optimiser.step()
        after = {name.removeprefix("_module."): value.clone() for name, value in model.state_dict().items()}
        said = {"name": "Opacus", "noise_multiplier": noise, "max_grad_norm": 1.0}
        claims = Claims(local_epochs=1, batch_size=batch, local_lr=0.1, records=records, mode="train", settings=(said,))
        fresh = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 4))
        rows = measure_claims(CapturedUpdate(before, (after,), "after", claims), fresh)
        assert broken(rows) == set()
        assert {row.what for row in rows} == {"noise", "norm", "epsilon"}
        silent = measure_claims(CapturedUpdate(before, (before,), "after", claims), fresh)
        assert "noise" in broken(silent)
