"""Test-wide settings: one thread, since two threads on two busy cores can be ten times slower."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from leakaudit.engine import matching as engine
from leakaudit.engine.stacked import Trials
from leakaudit.errors import quoting
from leakaudit.protocol import plugins, registry, usercode
from leakaudit.scene import plan
from leakaudit.score import metrics

Install = Callable[..., None]

torch.set_num_threads(1)
os.environ.pop("CI", None)  # what it changes is asked for by the tests that ask about it
settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ways that the engine has tried so far in a test; after a call of `match` the last one is the one it took."""
    found: list[str] = []

    def noted(name: str, way: engine.Way, job: Trials) -> tuple[torch.Tensor, torch.Tensor]:
        found.append(name)
        return way(job)

    for name, way in engine.WAYS.items():
        monkeypatch.setitem(engine.WAYS, name, partial(noted, name, way))
    return found


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real images and weights; a user's clone has none, so its tests skip there."""
    if not (SHARED / "data").is_dir():
        pytest.skip("needs the maintainers' shared data folder beside the checkout")
    return SHARED


@pytest.fixture
def short_battery(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `--quick` a matter of seconds: what these tests ask about does not depend on the attacks' strength."""
    monkeypatch.setitem(
        plan.BATTERIES, "quick", replace(plan.BATTERIES["quick"], steps=3, tuning_victims=2, decoder_steps=3)
    )


@pytest.fixture
def fresh_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test makes known is forgotten, and plug-ins are looked for anew."""
    for kind, table in (("attacks", registry.attacks()), ("defenses", registry.defenses())):
        monkeypatch.setattr(registry, f"_{kind}", table)
    for name in ("_owners", "_failures"):
        monkeypatch.setattr(plugins, name, {})
    monkeypatch.setattr(plugins, "_loaded", set())
    monkeypatch.setattr(registry, "_files", {})
    monkeypatch.setattr(metrics, "_further", {})
    known = set(sys.modules)
    yield
    for name in set(sys.modules) - known:
        if name.startswith(("plugged", "_leakaudit_")):
            del sys.modules[name]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fresh_registry: None) -> Install:
    """Install a package of one module, as pip leaves it: the module beside its metadata, on the path."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def add(package: str, source: str, *points: str) -> None:
        (site / f"{package}.py").write_text(source)
        meta = site / f"{package}-1.0.dist-info"
        meta.mkdir()
        (meta / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (meta / "entry_points.txt").write_text("\n".join(points) + "\n")

    return add


@pytest.fixture(autouse=True)
def cache_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> None:
    """Nothing that one test computed is known to another: what it puts in the place of code has no hash.

    Nor where users' code lay, by which a fault is theirs and not ours.
    """
    monkeypatch.setattr(usercode, "_folders", set())
    name = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16]
    monkeypatch.setenv("LEAKAUDIT_CACHE", str(tmp_path_factory.getbasetemp() / f"cache-{name}"))


@pytest.fixture(autouse=True)
def quoted() -> Iterator[None]:
    """What exceptions say is told, as in a scan with full pictures; what a command or a plan says goes before."""
    with quoting(True):
        yield
