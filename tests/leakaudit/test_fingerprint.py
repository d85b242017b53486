"""Hashes of what an audit was made of: equal for equal things however they lie in memory, other for other ones."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import leakaudit
from leakaudit.load.loading import load_target
from leakaudit.protocol.defense import Chain, Defense, state
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.result import digests
from leakaudit.result.schema import AuditResult, Waiver, from_json, to_json
from leakaudit.scene import fingerprint
from leakaudit.scene.plan import Plan
from leakaudit.scene.provenance import commit, environment
from leakaudit.score.identification import CandidateSets


def model(seed: int = 0, middle: type[nn.Module] = nn.Tanh) -> PixelModel:
    torch.manual_seed(seed)
    return PixelModel(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), middle(), nn.BatchNorm1d(8), nn.Linear(8, 2)))


def records(n: int = 40, seed: int = 0) -> Records:
    g = torch.Generator().manual_seed(seed)
    return Records(torch.rand(n, 1, 8, 8, generator=g), torch.arange(n) % 2)


def audit(seed: int = 0, **settings: Any) -> AuditResult:
    data = TensorDataset(records(80).images, records(80).labels)
    chosen: dict[str, Any] = {"battery": "quick", "records": 4, "utility": False, "attacks": ("analytic",)}
    return leakaudit.scan(model().network, data, seed=seed, **chosen | settings)


def test_a_model_is_its_classes_names_shapes_and_bytes() -> None:
    base = model()
    expected = fingerprint.of_model(base)
    assert expected == fingerprint.of_model(model())
    assert len(expected) == 64
    assert expected != fingerprint.of_model(model(1))
    assert expected != fingerprint.of_model(model(middle=nn.ReLU))  # no parameter tells them apart
    base.network[3].running_mean[0] += 1e-6  # type: ignore[index, operator]
    assert expected != fingerprint.of_model(base)
    assert fingerprint.of_model(PixelModel(base.network, [0.5])) != fingerprint.of_model(PixelModel(base.network))


def test_records_are_pictures_and_labels_in_their_order() -> None:
    base = records()
    expected = fingerprint.of_records(base)
    assert expected == fingerprint.of_records(records())
    turned = base.images.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)  # equal, and lies otherwise
    assert not turned.is_contiguous()
    assert expected == fingerprint.of_records(Records(turned, base.labels))
    others = [
        base[torch.arange(39, -1, -1)],
        Records(base.images, 1 - base.labels),
        Records(base.images.reshape(40, 1, 4, 16), base.labels),
        Records(base.images.double(), base.labels),
        base[:39],
    ]
    found = {fingerprint.of_records(each) for each in others}
    assert len(found) == len(others)
    assert expected not in found


def test_pieces_do_not_change_a_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fingerprint.of_records(records())
    monkeypatch.setattr(fingerprint, "PIECE", 100)
    assert fingerprint.of_records(records()) == whole


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64, torch.bool, torch.int8])
def test_every_type_of_tensor_has_a_hash_of_its_own(dtype: torch.dtype) -> None:
    one, other = torch.ones(3).to(dtype), torch.tensor([1, 1, 0]).to(dtype)
    hashes = {fingerprint.of_records(Records(x, torch.tensor(0))) for x in (one, other, torch.ones(3), one[:0])}
    assert len(hashes) == 4


def test_indices_and_candidates() -> None:
    assert fingerprint.of_indices(torch.arange(3)) == fingerprint.of_indices(torch.arange(3, dtype=torch.int32))
    assert fingerprint.of_indices(torch.arange(3)) != fingerprint.of_indices(torch.tensor([0, 2, 1]))
    full, labels = torch.tensor([3, 3]), records().labels
    sets = CandidateSets(records().images, torch.arange(6).reshape(2, 3), torch.tensor([0, 1]), full, labels)
    moved = replace(sets, position=torch.tensor([1, 1]))
    assert fingerprint.of_candidates(sets) != fingerprint.of_candidates(moved)
    shorter = replace(sets, sizes=torch.tensor([3, 2]))
    assert fingerprint.of_candidates(sets) != fingerprint.of_candidates(shorter)


@dataclass(frozen=True, kw_only=True)
class Learning(Defense):
    strength: float = 1.0
    weights: Tensor | None = state()
    names: tuple[str, ...] = state(())
    card: str = state("", describes=True)


def test_a_defense_is_what_it_learned() -> None:
    assert fingerprint.of_defense(Defense()) is None
    assert fingerprint.of_defense(Learning(strength=2.0)) is None
    assert fingerprint.of_defense(Learning(card="only words")) is None
    fitted = Learning(weights=torch.ones(2))
    expected = fingerprint.of_defense(fitted)
    assert expected is not None
    assert expected == fingerprint.of_defense(Learning(weights=torch.ones(2), card="other words"))
    assert expected != fingerprint.of_defense(Learning(weights=torch.zeros(2)))
    assert expected != fingerprint.of_defense(Learning(weights=torch.ones(2), names=("a",)))
    assert fingerprint.of_defense(Learning(names=("a", "b"))) != fingerprint.of_defense(Learning(names=("ab",)))
    assert fingerprint.of_defense(Chain(parts=(Defense(), fitted))) is not None
    assert fingerprint.of_defense(Chain(parts=(Defense(), Learning()))) is None


def test_every_hash_of_an_audit_follows_what_it_is_of() -> None:
    base = audit()
    names = {"model", "private", "test", "auxiliary", "victims", "candidates", "configuration", "environment"}
    assert set(base.hashes) == names
    assert all(len(value) == 64 and int(value, 16) >= 0 for value in base.hashes.values())
    changed = {
        "images": audit(images="none"),
        "exposure": audit(exposure="honest-but-curious"),
        "records": audit(records=8),
        "seed": audit(seed=1),
    }
    other = {k: {n for n in names if r.hashes[n] != base.hashes[n]} for k, r in changed.items()}
    assert other["images"] == set()
    assert other["exposure"] == {"configuration"}
    assert other["records"] == {"configuration", "victims", "candidates"}
    assert other["seed"] == names - {"model", "environment"}  # the split of train_data is the seed's too


@pytest.mark.usefixtures("short_battery")
def test_equal_audits_give_equal_json_with_hashes_of_what_was_learned() -> None:
    settings: dict[str, Any] = {"defense": ["class-conditional:latent=4", "mixup"], "images": "redacted"}
    first, again = audit(**settings), audit(**settings)
    assert to_json(replace(first, timings={}, made="")) == to_json(replace(again, timings={}, made=""))
    assert {"defense:class-conditional:latent=4", "defense:mixup"} <= set(first.hashes)
    assert "defense:none" not in first.hashes
    assert from_json(to_json(first)).hashes == first.hashes


def test_configured_waivers_are_in_the_result() -> None:
    from leakaudit.audit.audit import audit as run
    from leakaudit.load.loading import target_from_objects

    data = TensorDataset(records(80).images, records(80).labels)
    target = target_from_objects(model().network, data)
    waivers = (Waiver("identification", "known", "2030-01-01"),)
    plan = Plan(battery="quick", attacks=("analytic",), records=4, utility=False)
    assert run(target, plan, waivers=waivers).waivers == waivers
    assert run(target, plan).waivers == ()


def test_settings_are_canonical_json() -> None:
    assert digests.of_settings({"a": 1, "b": None}) == digests.of_settings({"b": None, "a": 1})
    assert digests.of_settings({"a": 1}) != digests.of_settings({"a": "1"})
    assert digests.of_settings({"a": 1, "b": 2}, ("b",)) == digests.of_settings({"a": 1})


MODEL_PY = """
import torch
from torch import nn
from torch.utils.data import TensorDataset
def model():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
train_data = TensorDataset(torch.rand(40, 1, 4, 4), torch.arange(40) % 2)
"""


def test_the_commit_is_that_of_the_folder_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        ran = subprocess.run(["git", *who, "-C", str(tmp_path), *arguments], capture_output=True, text=True, check=True)
        return ran.stdout.strip()

    (tmp_path / "model.py").write_text(MODEL_PY)
    assert "commit" not in environment(load_target(str(tmp_path / "model.py")), "x")  # no repository
    try:
        git("init", "-q")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs git")
    assert commit(tmp_path) is None  # nothing committed
    git("add", "model.py")
    git("commit", "-qm", "first")
    head = git("rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as a hook would
    found = environment(load_target(str(tmp_path / "model.py")), "x")
    assert found["commit"] == head[:12]
    (tmp_path / "result.json").write_text("{}")
    assert commit(tmp_path) == head[:12]  # untracked
    (tmp_path / "model.py").write_text(MODEL_PY + "# changed")
    assert commit(tmp_path) == f"{head[:12]}+changes"


def test_what_was_asked_for_is_recorded_and_says_nothing_of_the_machine(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text(MODEL_PY)
    plain = environment(load_target(str(path)), "x")
    found = environment(load_target(str(path), device="cpu"), "x", tmp_path / "alex.pth")
    assert plain["target"] == str(path)
    assert "device_asked" not in plain
    assert (found["device_asked"], found["lpips_weights"]) == ("cpu", str(tmp_path / "alex.pth"))
    assert digests.of_settings(plain, digests.NOT_VERSIONS) == digests.of_settings(found, digests.NOT_VERSIONS)


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit(tmp_path) is None
