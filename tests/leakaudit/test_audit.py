"""The whole way through, from Python: the control, the roles, honesty about what failed, the random state."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import leakaudit
from leakaudit.attacks._attacking import memory_safe
from leakaudit.protocol import registry
from leakaudit.protocol.attack import Attack, Reconstruction
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.target import PixelModel
from leakaudit.result.schema import AttackResult, AuditResult, DefenseResult, from_json, to_json
from leakaudit.work.memory import in_pieces
from leakaudit.work.quantities import parse

pytestmark = pytest.mark.usefixtures("short_battery")

FAST: dict[str, Any] = {"battery": "quick", "records": 4, "epochs": 1, "attacks": ("inverting-gradients:steps=3",)}


def data(n: int = 80, seed: int = 0) -> TensorDataset:
    g = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.rand(n, 1, 8, 8, generator=g), torch.arange(n) % 2)


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.LeakyReLU(), nn.Flatten(), nn.Linear(256, 2))


def dense() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 2))


def row(result: AuditResult, spec: str) -> DefenseResult:
    return next(d for d in result.defenses if d.spec == spec)


def attack(found: DefenseResult, name: str) -> AttackResult:
    return next(a for a in found.attacks if a.name == name)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Register something for one test only."""
    registry.attacks()
    registry.defenses()

    def add(kind: str, cls: Any) -> None:
        monkeypatch.setitem(getattr(registry, f"_{kind}"), cls.name, cls)

    return add


def test_the_control_always_runs_and_the_analytic_attack_undoes_a_dense_net() -> None:
    result = leakaudit.scan(dense(), data(), defense="gaussian", **FAST | {"attacks": ("analytic",), "records": 8})
    control = row(result, "none")
    assert not control.requested
    exact = attack(control, "analytic")
    assert exact.psnr.value is not None
    assert exact.psnr.value > 100
    assert exact.identification.value == 1.0
    assert control.verdict == "fail"
    # With the adaptive attacks beside it, the defended row has roles, and every battery attack ran there as well.
    assert {a.role for a in row(result, "gaussian").attacks} == {"standard", "adaptive"}


def test_without_a_defense_the_undefended_model_itself_is_judged() -> None:
    result = leakaudit.scan(dense(), data(), **FAST | {"attacks": ("analytic",), "records": 16, "utility": False})
    assert row(result, "none").requested
    assert result.verdict == "fail"


def test_same_seed_same_bytes_and_the_global_random_state_is_left_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = leakaudit.scan(network, data(), defense=["prune", "gaussian"], **FAST)
    assert torch.equal(torch.rand(3), expected)
    again = leakaudit.scan(network, data(), defense=["prune", "gaussian"], **FAST)
    assert to_json(replace(first, timings={}, made="")) == to_json(replace(again, timings={}, made=""))
    assert from_json(to_json(first)) == first


def test_one_defense_does_not_shift_the_numbers_of_another() -> None:
    together = leakaudit.scan(dense(), data(), defense=["gaussian", "prune"], **FAST)
    alone = leakaudit.scan(dense(), data(), defense="prune", **FAST)
    assert row(together, "prune") == row(alone, "prune")


def test_an_attack_that_needs_what_is_not_exposed_is_not_applicable() -> None:
    result = leakaudit.scan(dense(), data(), defense="gaussian", exposure="honest-but-curious", utility=False, **FAST)
    expectation = attack(row(result, "gaussian"), "expectation")
    assert expectation.statuses == {"not-applicable": 4}
    assert "defense" in str(expectation.reason)
    assert not attack(row(result, "none"), "inverting-gradients").tuned  # nothing to tune on
    assert any("default settings" in sentence for sentence in result.assumptions)
    assert row(result, "gaussian").verdict != "pass"


def test_a_defense_that_cannot_be_applied_is_shown_and_inconclusive(registered: Any) -> None:
    class Broken(Defense):
        name = "broken"

        def fit(self, target: Any, generator: torch.Generator) -> Defense:
            raise ValueError("no records to learn from\nmore")

    registered("defenses", Broken)
    result = leakaudit.scan(dense(), data(), defense=["broken", "clip"], **FAST)
    assert row(result, "broken").verdict == "inconclusive"
    assert "no records to learn from" in row(result, "broken").reasons[0]
    assert attack(row(result, "clip"), "inverting-gradients").psnr.value is not None
    assert result.verdict in ("inconclusive", "fail")


def test_the_attacks_on_a_defense_are_those_of_what_fitting_made_of_it(registered: Any) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Fitted(Defense):
        name = "fitted"
        adaptive = ("linkage",)

    @dataclass(frozen=True, kw_only=True)
    class Unfitted(Defense):
        name = "unfitted"

        def fit(self, target: Any, generator: torch.Generator) -> Defense:
            return Fitted()

    registered("defenses", Unfitted)
    result = leakaudit.scan(network(), data(), defense="unfitted", utility=False, **FAST)
    roles = {a.name: a.role for a in row(result, "unfitted").attacks}
    assert (roles["inverting-gradients"], roles["linkage"]) == ("standard", "adaptive")


def test_what_an_attack_sees_does_not_hold_the_truth(registered: Any) -> None:
    """Run a spying attack through the whole audit: nothing it can reach equals a victim's picture."""
    private = data()
    reachable: list[torch.Tensor] = []

    class Spy(Attack):
        name = "spy"

        def __call__(self, model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Reconstruction:
            seen: set[int] = set()

            def walk(item: Any, depth: int = 0) -> None:
                if id(item) in seen or depth > 6:
                    return
                seen.add(id(item))
                if isinstance(item, torch.Tensor):
                    reachable.append(item.detach())
                elif isinstance(item, dict):
                    for value in item.values():
                        walk(value, depth + 1)
                elif isinstance(item, list | tuple):
                    for value in item:
                        walk(value, depth + 1)
                elif hasattr(item, "__dict__"):
                    walk(vars(item), depth + 1)

            walk([model, update, generator])
            return Reconstruction(None, None, torch.zeros(update.victims), ("converged",) * update.victims)

    registered("attacks", Spy)
    result = leakaudit.scan(
        dense(), private, test_data=data(20, 1), auxiliary_data=data(30, 2), **FAST | {"attacks": ("spy",)}
    )
    assert attack(row(result, "none"), "spy").statuses == {"converged": 4}
    assert reachable
    pictures = private.tensors[0].flatten(1)
    for tensor in reachable:
        if tensor.numel() and tensor.numel() % 64 == 0:
            rows = tensor.reshape(-1, 64).to(pictures)
            assert float(torch.cdist(rows, pictures).min()) > 1e-3


def test_settings_that_cannot_be_are_a_user_error() -> None:
    with pytest.raises(leakaudit.UserError, match="battery"):
        leakaudit.scan(dense(), data(), battery="huge")
    with pytest.raises(leakaudit.UserError, match="unknown defense"):
        leakaudit.scan(dense(), data(), defense="wish")
    with pytest.raises(leakaudit.UserError, match="exposure"):
        leakaudit.scan(dense(), data(), exposure="everything")


def test_batches_larger_than_one_go_the_whole_way() -> None:
    result = leakaudit.scan(dense(), data(), defense="dp-sgd", batch_size=2, utility=False, **FAST)
    assert attack(row(result, "dp-sgd"), "inverting-gradients").psnr.n == 4
    assert "batch of 2" in result.assumptions[0]


def test_a_chain_reports_every_parts_settings_and_facts() -> None:
    result = leakaudit.scan(dense(), data(), defense="dp-sgd:noise_multiplier=2,prune:sparsity=0.5", **FAST)
    found = result.defenses[1]
    assert found.settings["prune.sparsity"] == 0.5
    assert found.settings["dp-sgd.noise_multiplier"] == 2.0
    assert float(found.facts["epsilon"] or 0) > 0
    assert {"masked-matching", "expectation"} <= {a.name for a in found.attacks}


def test_an_epsilon_is_only_stated_where_its_accountant_is_right() -> None:
    settings = FAST | {"attacks": ("labels",)}
    untrained = leakaudit.scan(dense(), data(), defense="dp-sgd", utility=False, **settings)
    assert "no training run" in str(row(untrained, "dp-sgd").facts["epsilon"])
    chains = ["prune:sparsity=0.5,dp-sgd", "dp-sgd,prune:sparsity=0.5", "obscure:steps=1,dp-sgd"]
    result = leakaudit.scan(dense(), data(), defense=chains, **settings)
    pruned, processed, replaced = (row(result, spec).facts["epsilon"] for spec in chains)
    assert "not stated" in str(pruned)
    assert isinstance(processed, float)
    assert "not stated" in str(replaced)


class Vandal(Attack):
    """Zeroes every weight and every auxiliary picture it is given, then claims nothing."""

    name = "vandal"

    def __call__(self, model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Reconstruction:
        with torch.no_grad():
            for p in model.parameters():
                p.zero_()
        if update.auxiliary is not None:
            update.auxiliary.images.zero_()
        return Reconstruction(None, None, torch.zeros(update.victims), ("converged",) * update.victims)


def test_an_attack_cannot_change_the_model_for_the_next(registered: Any) -> None:
    registered("attacks", Vandal)
    alone = leakaudit.scan(dense(), data(), **FAST | {"attacks": ("analytic", "linkage"), "utility": False})
    after = leakaudit.scan(dense(), data(), **FAST | {"attacks": ("vandal", "analytic", "linkage"), "utility": False})
    for name in ("analytic", "linkage"):
        assert attack(row(after, "none"), name) == attack(row(alone, "none"), name)


@pytest.mark.parametrize("answer", [None, "half"])
def test_an_attack_that_returns_nonsense_has_failed(registered: Any, answer: str | None) -> None:
    class Odd(Attack):
        name = "odd"

        def __call__(self, model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Any:
            if answer is None:
                return None
            half = update.victims // 2
            return Reconstruction(torch.rand(half, 2, 1, 8, 8), None, torch.zeros(half), ("converged",) * half)

    registered("attacks", Odd)
    result = leakaudit.scan(dense(), data(), **FAST | {"attacks": ("odd",), "utility": False})
    assert attack(row(result, "none"), "odd").statuses == {"failed": 4}


def test_a_model_that_fails_in_training_costs_the_accuracy_not_the_audit() -> None:
    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = dense()

        def forward(self, x: torch.Tensor) -> Any:
            if self.training:
                raise KeyError("only in training")
            return self.inner(x)

    result = leakaudit.scan(Moody(), data(), defense="clip", **FAST | {"attacks": ("linkage",)})
    assert "only in training" in str(row(result, "none").accuracy.reason)
    assert attack(row(result, "clip"), "linkage").identification.value is not None


@dataclass(frozen=True, kw_only=True)
class Stacked(Attack):
    """Draws grey pictures in a stack of 64 trials of a megabyte each, and more than `bears` of them exhaust it."""

    name = "stacked"
    bears: int = 64

    @memory_safe
    def __call__(self, model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Reconstruction:
        def call(start: int, stop: int) -> None:
            if stop - start > self.bears:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            assert torch.zeros((stop - start) * 10**6, dtype=torch.uint8).numel()

        in_pieces(call, 64, model, "stacked", torch.device("cpu"))
        shape = (update.victims, update.batch_size, *update.input_shape)
        return Reconstruction(
            torch.full(shape, 0.5), None, torch.zeros(update.victims), ("converged",) * update.victims
        )


@pytest.mark.parametrize(
    ("memory", "bears", "notes"),
    [
        ("1GB", 64, ()),
        ("32MB", 64, ("ran in pieces of 16 of 64 trials to stay within --memory 32MB",)),
        ("1GB", 20, tuple(f"out of memory at {n} trials at once: went on with {n // 2}" for n in (64, 32))),
    ],
)
def test_the_result_says_how_an_attack_was_split(
    registered: Any, memory: str, bears: int, notes: tuple[str, ...]
) -> None:
    registered("attacks", Stacked)
    settings = FAST | {"attacks": (f"stacked:bears={bears}",), "utility": False, "memory": memory}
    result = leakaudit.scan(dense(), data(), **settings)
    found = attack(row(result, "none"), "stacked")
    assert found.notes == notes
    assert found.statuses == {"converged": 4}
    assert found.psnr.value is not None
    assert result.settings["memory"] == parse(memory)
    assert from_json(to_json(result)) == result


def test_too_little_memory_for_one_trial_is_a_status_with_what_it_needs(registered: Any) -> None:
    registered("attacks", Stacked)
    result = leakaudit.scan(dense(), data(), **FAST | {"attacks": ("stacked",), "utility": False, "memory": 10**6})
    found = attack(row(result, "none"), "stacked")
    assert found.statuses == {"out-of-memory": 4}
    assert found.reason == "one trial needs about 2MB and --memory allows 1MB: give at least 2MB"
    assert found.psnr.value is None
    assert str(found.reason) in str(found.identification.reason)
    enough = leakaudit.scan(dense(), data(), **FAST | {"attacks": ("stacked",), "utility": False, "memory": "2MB"})
    assert attack(row(enough, "none"), "stacked").statuses == {"converged": 4}


def test_gradient_matching_keeps_to_the_memory_and_finds_the_same() -> None:
    def scan(memory: str | None) -> AttackResult:
        settings = FAST | {"utility": False, "records": 8, "memory": memory}
        return attack(row(leakaudit.scan(dense(), data(), **settings), "none"), "inverting-gradients")

    split, whole, needs = scan("1KB"), scan(None), ["1KB"]
    while split.statuses == {"out-of-memory": 8}:  # the pictures of all trials, then a trial beside them
        enough = str(split.reason).rpartition("give at least ")[2].split(" ")[0]
        assert parse(enough) > parse(needs[-1])
        needs.append(enough)
        split = scan(enough)
    assert 2 <= len(needs) <= 4
    assert split.tuned == whole.tuned
    within = f" trials to stay within --memory {needs[-1]}"
    assert all(note.startswith("ran in pieces of ") and note.endswith(within) for note in split.notes)
    assert whole.notes == ()
    assert split.statuses == whole.statuses
    assert split.psnr.value == pytest.approx(whole.psnr.value, abs=0.1)


def test_the_quick_battery_never_passes() -> None:
    """Noise of a deviation of 100 hides everything from linkage; the standard battery may say so, the quick may not."""
    settings: dict[str, Any] = {"records": 32, "utility": False, "attacks": ("linkage",), "candidates": 20}
    # Uniform pictures of 80 records: 44 private, so the line-ups are small and the limit is set wide.
    wide = settings | {"max_identification": 0.4, "defense": "gaussian:std=100"}
    more = data(400)
    quick = leakaudit.scan(dense(), more, battery="quick", **wide)
    assert quick.verdict == "inconclusive"
    assert "quick battery" in row(quick, "gaussian:std=100").reasons[0]


def test_wrong_types_from_python_are_a_user_error() -> None:
    wrong: list[dict[str, Any]] = [
        {"records": "16"}, {"seed": None}, {"defense": 3}, {"nosuch": 1}, {"budget": "soon"}, {"budget": (1,)},
        {"memory": "lots"}, {"memory": 1.5}, {"memory": -1}, {"memory": True},
        {"attacks": (3,)}, {"epochs": 1.5}, {"defenses": ("prune",)},
    ]  # fmt: skip
    for settings in wrong:
        with pytest.raises(leakaudit.UserError):
            leakaudit.scan(dense(), data(), **settings)


def test_no_learned_state_is_written_where_pictures_are_not_wanted(tmp_path: Any) -> None:
    from leakaudit.audit.audit import audit
    from leakaudit.load.loading import target_from_objects
    from leakaudit.scene.plan import Plan
    from leakaudit.work.learned import Learned

    for images, expected in (("full", True), ("none", False)):
        plan = Plan(defenses=("obscure:steps=1",), attacks=("labels",), battery="quick", records=4, utility=False,
                    images=images)  # type: ignore[arg-type]  # fmt: skip
        audit(target_from_objects(dense(), data()), plan, keep_learned=Learned(tmp_path / images, plan.images).save)
        assert any((tmp_path / images).rglob("*.safetensors")) == expected
