"""That every piece works on another device than the CPU: on a pretended one, in a process of its own."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from leakaudit.protocol import registry
from leakaudit.work.seeding import forked, random_states, seeded

ROOT = Path(__file__).parents[2]
Table = dict[str, str]  # what is wrong with a row, by its name
CODE = [*(ROOT / "leakaudit").rglob("*.py"), *(ROOT / "attacks").glob("*.py"), *(ROOT / "defenses").glob("*.py")]
DRAWS = {"rand", "randn", "randint", "randperm", "normal", "multinomial", "bernoulli", "poisson"}
FILLS = {"normal_", "uniform_", "bernoulli_", "exponential_", "random_", "geometric_", "log_normal_", "cauchy_"}
ALONE = {"rand_like", "randn_like", "randint_like", "fork_rng", "get_rng_state", "set_rng_state"}
OWN = {  # what may do otherwise, and why
    "leakaudit/work/seeding.py": "it is where global generators are seeded and restored",
    "leakaudit/load/chances.py": "it sees what a user's network draws, under seeds",
    "defenses/obscurer.py": "an obscurer of one's own is called without a generator",
    "defenses/precode.py": "a network draws as dropout does, but on the CPU",
}


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """The rows of `device_rows`, run once: the device is there for good, and before the first backward pass."""
    try:
        from torch.utils.backend_registration import _setup_privateuseone_for_python_backend  # noqa: F401
    except ImportError:
        pytest.skip(f"torch {torch.__version__} has no interface for a device in Python")
    file = tmp_path_factory.mktemp("devices") / "rows.json"
    command = [sys.executable, "-m", "tests.leakaudit.device_rows", str(file)]
    apart = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(command, cwd=ROOT, env=apart, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    rows: dict[str, dict[str, str]] = json.loads(file.read_text())
    return {name: each["wrong"] for name, each in rows.items()}


def wrong(table: Table, start: str) -> dict[str, str]:
    found = {name: what for name, what in table.items() if name.startswith(start)}
    assert len(found) >= (1 if start == "scan" else 2), f"nothing was tried of {start}"
    return {name: what for name, what in found.items() if what}


@pytest.mark.parametrize("name", sorted(registry.attacks()))
def test_an_attack_claims_the_same_on_every_device(table: Table, name: str) -> None:
    assert not wrong(table, f"attack {name} ")


@pytest.mark.parametrize("name", sorted(registry.defenses()))
def test_a_defense_does_the_same_on_every_device(table: Table, name: str) -> None:
    assert not wrong(table, f"defense {name} ")


@pytest.mark.parametrize("way", ["match", "stacked", "vectorised", "loop"])
def test_the_engine_finds_the_same_on_every_device(table: Table, way: str) -> None:
    assert not wrong(table, f"engine {way} ")


def test_the_checks_before_a_run_see_the_same_on_every_device(table: Table) -> None:
    assert not wrong(table, "preflight costs ")


def test_one_seed_gives_the_same_audit_on_every_device(table: Table) -> None:
    assert not wrong(table, "scan")


def bypasses(call: ast.Call) -> bool:
    """Whether a call draws from no generator of the audit's own, or makes one that is not on the CPU."""
    function, named = call.func, {word.arg for word in call.keywords}
    if not isinstance(function, ast.Attribute):
        return False
    of_torch = ast.unparse(function.value) in ("torch", "torch.random")
    if of_torch and function.attr == "Generator":
        where = [ast.unparse(word.value) for word in call.keywords] + [ast.unparse(arg) for arg in call.args]
        return any(each != "generator.device" for each in where)
    if function.attr in FILLS or (of_torch and function.attr in DRAWS):
        return "generator" not in named
    return of_torch and function.attr in ALONE | {"manual_seed"}


def test_nothing_is_drawn_but_from_a_generator_of_the_audits_own() -> None:
    found = {
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in CODE
        if str(file.relative_to(ROOT)) not in OWN
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and bypasses(node)
    }
    assert not found


@pytest.mark.parametrize("call", ["torch.randn(3)", "torch.randn_like(x)", "x.normal_()", "torch.Generator('cuda')"])
def test_what_bypasses_the_rule_is_seen(call: str) -> None:
    (node,) = (node for node in ast.walk(ast.parse(call)) if isinstance(node, ast.Call))
    assert bypasses(node)
    lawful = "torch.randn(3, generator=generator, device=generator.device)"
    assert not any(bypasses(node) for node in ast.walk(ast.parse(lawful)) if isinstance(node, ast.Call))


def test_random_states_come_back_whatever_is_raised() -> None:
    before = random_states()
    for within in (forked(3), seeded(3, "a")):
        with pytest.raises(RuntimeError), within:
            torch.rand(4) + torch.rand(5)
    for (name, one), (same, other) in zip(before, random_states(), strict=True):
        assert name == same
        assert torch.equal(one, other)


def test_a_fork_with_a_seed_draws_the_same_again() -> None:
    drawn = []
    for _ in range(2):
        with forked(5):
            drawn.append(torch.rand(4))
        torch.rand(1)
    assert torch.equal(*drawn)
