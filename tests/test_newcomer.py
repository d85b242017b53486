"""An attack by somebody who knows only CONTRIBUTING: dropped into the tree, installed, or named by its file."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import leakaudit
from leakaudit.judge.scope import not_tested
from leakaudit.protocol import plugins, registry
from leakaudit.protocol.attack import Attack
from leakaudit.protocol.defense import Defense
from leakaudit.result.batteries import BATTERIES
from leakaudit.result.schema import AuditResult
from leakaudit.scene import plan
from leakaudit.scene.plan import Plan, attacks_for, catalogue, with_effort
from tests.attacks.attack_scenes import scene
from tests.conftest import Install
from tests.leakaudit.results import attack, defense, lost

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "batchnorm_matching.py"
NAME = "newcomers-statistics"  # none that somebody else's attack may have by now
PARTS = (
    "leakaudit",
    "attacks",
    "defenses",
    "reports",
    "tests",
    "docs",
    "README.md",
    "CONTRIBUTING.md",
    "pyproject.toml",
)
UNUSED = "BatchNorm statistics: the adversary may see them, but no attack that ran uses them."

# The same attack by another hook, as a stranger wrote it before there were priors: `matching` is overridden whole.
OVERRIDING = '''"""Gradient matching that also asks a picture's features to have the statistics that BatchNorm keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from leakaudit.attacks.inverting_gradients import InvertingGradients, Match
from leakaudit.engine import matching as engine
from leakaudit.errors import NotApplicable
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.registry import register_attack
from leakaudit.protocol.target import PixelModel


@register_attack
@dataclass(frozen=True, kw_only=True)
class Overriding(InvertingGradients):
    """Minimise 1 - cos + tv·R(x) + weight·Σ_l ‖μ_l(x) - μ_l‖² + ‖σ²_l(x) - σ²_l‖² (Yin et al. 2021, eq. 9)."""

    name: ClassVar[str] = "newcomers-overriding"
    summary: ClassVar[str] = "inverting gradients, with features whose statistics are those of BatchNorm"
    source: ClassVar[str] = "Yin et al. 2021 (GradInversion)"
    requires: ClassVar[frozenset[str]] = frozenset({"buffers"})

    weight: float = 1e-3

    def matching(
        self, model: PixelModel, update: SharedUpdate, distance: engine.Distance, generator: torch.Generator
    ) -> Match:
        """Return the gradient's distance plus that of the statistics."""
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        if not norms:
            raise NotApplicable("the model has no BatchNorm that keeps statistics")
        plain = super().matching(model, update, distance, generator)

        def match(images: Tensor, labels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            values, slopes = plain(images, labels, rows)
            x, gaps = images.detach().requires_grad_(True), torch.zeros(len(images), device=images.device)

            def hook(norm: _BatchNorm, given: tuple[Tensor, ...]) -> None:
                nonlocal gaps
                by_trial = given[0].unflatten(0, images.shape[:2]).transpose(1, 2).flatten(2)  # (T, C, B·H·W)
                mean, variance = by_trial.mean(2), by_trial.var(2, correction=0)
                gaps = gaps + (mean - norm.running_mean).square().sum(1) + (variance - norm.running_var).square().sum(1)

            handles = [norm.register_forward_pre_hook(hook) for norm in norms]
            try:
                with torch.enable_grad():
                    model(x.flatten(0, 1))
            finally:
                for handle in handles:
                    handle.remove()
            (slope,) = torch.autograd.grad(gaps.sum(), x)
            return values + self.weight * gaps.detach(), slopes + self.weight * slope

        return match
'''

TEST = '''"""The statistics of a picture that has them cost nothing."""

import torch

from leakaudit.attacks.newcomers_statistics import statistics
from tests.attacks.attack_scenes import batchnorm_model


def test_a_picture_with_the_kept_statistics_costs_nothing_and_another_does() -> None:
    model, pictures = batchnorm_model().eval(), torch.rand(2, 1, 1, 8, 8)
    with torch.no_grad():
        seen = model.network[0]((pictures[0] - model.mean) / model.std)
    model.network[1].running_mean = seen.mean((0, 2, 3))
    model.network[1].running_var = seen.var((0, 2, 3), correction=0)
    values, slopes = statistics(model, 1.0)(pictures, torch.zeros(2))
    assert float(values[0]) < 1e-10 < 1e-4 < float(values[1])
    assert float(slopes[0].abs().max()) < 1e-5 < float(slopes[1].abs().max())
'''


def example() -> str:
    """The example's text, its attack under a name of its own."""
    source = EXAMPLE.read_text(encoding="utf-8")
    assert source.count('"batchnorm-matching"') == 1
    return source.replace('"batchnorm-matching"', f'"{NAME}"')


@pytest.fixture
def spec(tmp_path: Path, fresh_registry: None) -> str:
    """The attack as a file somewhere."""
    (tmp_path / "mine.py").write_text(example())
    return f"{tmp_path / 'mine.py'}:BatchNormMatching"


def test_dropped_into_the_tree_with_a_test_and_its_lines_in_the_docs_all_is_green(tmp_path: Path) -> None:
    for part in PARTS:
        if (ROOT / part).is_dir():
            unwanted = shutil.ignore_patterns("__pycache__", "golden")
            shutil.copytree(ROOT / part, tmp_path / part, symlinks=True, ignore=unwanted)
        else:
            shutil.copy(ROOT / part, tmp_path / part)
    (tmp_path / "attacks" / "newcomers_statistics.py").write_text(example())
    (tmp_path / "attacks" / "newcomers_overriding.py").write_text(OVERRIDING)
    (tmp_path / "tests" / "attacks" / "test_newcomers_statistics.py").write_text(TEST)
    with (tmp_path / "docs" / "attacks.md").open("a") as table:
        table.write(
            "\n| `newcomers-statistics`, `newcomers-overriding` | features with the statistics of BatchNorm |\n"
        )
    with (tmp_path / "docs" / "reference" / "attacks.md").open("a") as reference:
        reference.write("\n::: leakaudit.attacks.newcomers_statistics.BatchNormMatching\n")
        reference.write("\n::: leakaudit.attacks.newcomers_overriding.Overriding\n")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/attacks/test_every_attack.py",
         "tests/attacks/test_newcomers_statistics.py", "tests/test_readme.py", "tests/test_architecture.py",
         "-k", "newcomers or described or circle or stands_in_a_wing"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    passed = re.search(r"(\d+) passed", ran.stdout)
    assert passed, ran.stdout
    assert int(passed[1]) >= 23  # for each of both 8 of every attack and 1 of imports, and 5 more


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.LeakyReLU(), nn.Flatten(), nn.Linear(256, 2)
    )


def scan(monkeypatch: pytest.MonkeyPatch, *attacks: str, **settings: object) -> AuditResult:
    quick = BATTERIES["quick"]
    monkeypatch.setitem(plan.BATTERIES, "quick", plan.replace(quick, steps=3, tuning_victims=2))
    images = torch.rand(80, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    data, small = TensorDataset(images, torch.arange(80) % 2), {"battery": "quick", "records": 4, "utility": False}
    return leakaudit.scan(network, data, attacks=attacks, **{**small, **settings})  # type: ignore[arg-type]


def test_what_nobody_tested_is_what_nothing_that_ran_covers(monkeypatch: pytest.MonkeyPatch, spec: str) -> None:
    ran = scan(monkeypatch, spec, "labels")
    assert ran.defenses[0].attacks[0].statuses == {"converged": 4}
    assert UNUSED not in ran.not_tested
    assert any("malicious server" in sentence for sentence in ran.not_tested)
    other = scan(monkeypatch, "labels")
    assert UNUSED in other.not_tested
    assert any(NAME in sentence for sentence in other.not_tested)  # known, and not run
    assert UNUSED in not_tested((), catalogue())


@pytest.mark.parametrize("status", ["not-applicable", "failed", "out-of-memory", "diverged"])
def test_an_attack_without_a_score_covers_nothing(status: str, spec: str) -> None:
    registry.parse_attack(spec)
    name = NAME
    assert UNUSED in not_tested([defense("none", lost(name, status, 4))], catalogue())
    assert UNUSED not in not_tested(
        [defense("none", lost(name, status, 4)), defense("clip", attack([True], name=name))], catalogue()
    )


def test_the_same_file_installed_is_found_by_its_name(install: Install) -> None:
    install("plugged", example(), "[leakaudit.attacks]", f"{NAME} = plugged:BatchNormMatching")
    found = registry.parse_attack(f"{NAME}:weight=0.1")
    assert plugins.failures() == ()
    assert registry.origin(type(found)) == "the plug-in plugged"
    model, update = scene(found)
    assert found(model, update, torch.Generator().manual_seed(0)).statuses == ("converged",) * 2


def test_both_hooks_make_the_same_attack(tmp_path: Path, spec: str) -> None:
    (tmp_path / "overriding.py").write_text(OVERRIDING)
    found = []
    model, update = scene(registry.parse_attack(spec))
    for each in (spec, f"{tmp_path / 'overriding.py'}:Overriding", "inverting-gradients"):
        given = registry.parse_attack(f"{each}:steps=4" + (":weight=0.1" if ".py" in each else ""))
        found.append(given(model, update, torch.Generator().manual_seed(0)))
    torch.testing.assert_close(found[0].objective, found[1].objective)
    assert not torch.allclose(found[0].objective, found[2].objective)


def test_a_battery_gives_its_effort_to_what_an_attack_says_takes_it(spec: str) -> None:
    effort = BATTERIES["full"]
    own = with_effort(registry.parse_attack(spec), spec, effort)
    assert (own.steps, own.restarts) == (1200, 4)  # type: ignore[attr-defined]
    shorter = f"{spec}:steps=7"
    assert with_effort(registry.parse_attack(shorter), shorter, effort).steps == 7  # type: ignore[attr-defined]
    for name, cls in registry.attacks().items():
        changed = with_effort(cls(), name, plan.replace(effort, steps=1201, restarts=5, decoder_steps=1501))
        settings = {k for k, v in registry.settings_values(changed).items() if v != getattr(cls(), k)}
        assert settings == set(cls.effort), name


def test_an_adaptive_attack_that_is_not_there_is_told_with_its_defense(spec: str) -> None:
    class Paired(Defense):
        name = "paired"
        adaptive = ("linkag",)

    with pytest.raises(
        registry.UnknownName, match=r"'paired' names .* unknown attack 'linkag' \(did you mean 'linkage'"
    ):
        attacks_for(Paired(), Plan().effort())


def test_an_adaptive_attack_in_a_battery_runs_once_whatever_names_it(spec: str) -> None:
    class Paired(Defense):
        adaptive = (NAME, "linkage")

    attack: Attack = registry.parse_attack(spec)
    pairs = attacks_for(Paired(), Plan(attacks=(f"{spec}:steps=7", "labels")).effort())
    named = [(a.name, role) for a, role in pairs if not type(a).examines]
    assert named == [(attack.name, "adaptive"), ("labels", "standard"), ("linkage", "adaptive")]
    assert pairs[0][0].steps == 7  # type: ignore[attr-defined]
