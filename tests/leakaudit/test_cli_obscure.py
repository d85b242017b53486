"""`leakaudit obscure` as a user meets it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from leakaudit import Obscurer
from leakaudit.defenses.obscurer import read
from leakaudit.load.loading import load_target
from leakaudit.work import resume
from tests.leakaudit.command_line import Run, caller, sentence

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MODEL = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

g = torch.Generator().manual_seed(0)
labels = torch.arange(80) % 2
images = torch.rand(80, 1, 8, 8, generator=g) * 0.5 + labels[:, None, None, None] * 0.5
train_data = TensorDataset(images, labels)
classes = ["left", "right"]
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.LeakyReLU(), nn.Flatten(), nn.Linear(256, 2))
"""
FAST = ("--settings", "steps=1:epochs=1")
SCAN = "leakaudit scan model.py -d obscure:steps=1:epochs=1 "


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in an empty folder that holds a model.py."""
    return caller(monkeypatch, tmp_path, capsys, MODEL)


def test_fit_then_apply(run: Run, tmp_path: Path) -> None:
    outcome = run("obscure", "fit", "model.py", *FAST)
    assert outcome.code == 0, outcome
    for word in ("88 pictures 1×8×8", "44 private records", "chance 0.5", "training step", "generator.md", SCAN):
        assert word in outcome.out
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == [
        "generator.md",
        "generator.safetensors",
        "model.py",
    ]
    text = Path("generator.md").read_text()
    for word in ("| left | ", "| steps | 1 |", "AUC", "Fit: ", "by design", "not kept"):
        assert word in text
    outcome = run("obscure", "apply", "generator.safetensors", "model.py")
    assert outcome.code == 0, outcome
    assert "44 pictures" in outcome.out
    with np.load("released.npz", allow_pickle=False) as held:
        pictures, labels, probabilities = held["x_train"], held["y_train"], held["probabilities"]
        assert held["classes"].tolist() == ["left", "right"]
    assert pictures.dtype == np.uint8
    assert pictures.shape == (44, 1, 8, 8)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    assert (labels == probabilities.argmax(1)).all()
    private = (load_target("model.py").private.images * 255).round().byte().flatten(1).float()
    assert float(torch.cdist(torch.from_numpy(pictures).flatten(1).float(), private).min()) > 0
    # What was written is data that every command reads, and what was released can be released again.
    assert len(load_target("model.py", data=Path("released.npz")).private) > 20
    assert run("obscure", "apply", "generator.safetensors", "released.npz", "-o", "twice.npz").code == 0


def test_a_fit_on_far_too_few_records_warns(run: Run) -> None:
    outcome = run("obscure", "fit", "model.py", *FAST, "--limit", "12")
    assert outcome.code == 0, outcome
    assert "warning   2 of 2 classes have fewer than 20 private records (class 'right': 5)" in outcome.err
    assert "a higher --limit than 12" in outcome.err
    assert "warning" not in run("obscure", "fit", "model.py", *FAST).err


def test_a_seed_repeats_a_fit_and_its_absence_does_not(run: Run, tmp_path: Path) -> None:
    for name, seed in (("a", ("--seed", "3")), ("b", ("--seed", "3")), ("c", ()), ("d", ())):
        assert run("obscure", "fit", "model.py", "-o", f"{name}.safetensors", *FAST, *seed).code == 0
    a, b, c, d = ((tmp_path / f"{name}.safetensors").read_bytes() for name in "abcd")
    assert a == b
    assert len({a, c, d}) == 3
    assert read(tmp_path / "a.safetensors")[1].seed == 3
    assert read(tmp_path / "c.safetensors")[1].seed is None
    for name in ("p", "q"):
        assert run("obscure", "apply", "a.safetensors", "model.py", "-o", f"{name}.npz", "--seed", "4").code == 0
    assert (tmp_path / "p.npz").read_bytes() == (tmp_path / "q.npz").read_bytes()


def test_above_rate_zero_it_says_what_adds_up(run: Run) -> None:
    assert run("obscure", "fit", "model.py", "-s", "steps=1:epochs=1:rate=0.2").code == 0
    outcome = run("obscure", "apply", "generator.safetensors", "model.py", "--seed", "1")
    assert "adds as much" in outcome.out
    assert "--seed 1" in outcome.out
    assert "not the records" not in outcome.out
    np.savez("other.npz", x=np.zeros((5, 8, 8), np.uint8), y=np.zeros(5, int))
    outcome = run("obscure", "apply", "generator.safetensors", "other.npz")
    assert outcome.code == 0, outcome
    assert "not the records it was fitted on" in outcome.out
    assert "warning" not in outcome.out


def test_ctrl_c_keeps_finished_stages_and_the_same_command_goes_on(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = ("obscure", "fit", "model.py", *FAST, "--seed", "0", "-o", "whole.safetensors")
    assert run(*whole).code == 0
    keep = resume.store

    def interrupting(stage: str, *rest: object) -> None:
        keep(stage, *rest)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(resume, "store", interrupting)
        outcome = run("obscure", "fit", "model.py", *FAST, "--seed", "0")
    assert outcome.code == 3
    assert "generator.safetensors.partial" in outcome.err
    assert "keep it as you keep those" in outcome.err
    assert not (tmp_path / "generator.safetensors").exists()
    outcome = run("obscure", "fit", "model.py", *FAST, "--seed", "0")
    assert outcome.code == 0
    assert "1 finished stage" in outcome.err
    assert (tmp_path / "generator.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert not (tmp_path / "generator.safetensors.partial").exists()


def test_a_fit_without_a_seed_resumes_too_and_another_setting_starts_anew(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = resume.store

    def interrupting(stage: str, *rest: object) -> None:
        keep(stage, *rest)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(resume, "store", interrupting)
        assert run("obscure", "fit", "model.py", *FAST).code == 3
        outcome = run("obscure", "fit", "model.py", "-s", "steps=2:epochs=1")
        assert outcome.code == 3
        assert "setting steps" in outcome.err
    outcome = run("obscure", "fit", "model.py", "-s", "steps=2:epochs=1")
    assert outcome.code == 0
    assert "1 finished stage" in outcome.err


def test_bad_input_is_one_sentence(run: Run, tmp_path: Path) -> None:
    fit = ("obscure", "fit", "model.py")
    sentence(run("obscure", "fit", "missing.py", *FAST), "missing.py")
    sentence(run(*fit, "--settings", "stepz=3"), "did you mean 'steps'")
    sentence(run(*fit, "--settings", "steps=0"), "steps")
    sentence(run(*fit, "--settings", "steps=1,clip"), "another defense")
    sentence(run(*fit, "-s", "public=true"), "auxiliary_data")  # held-out private records are not public ones
    sentence(run(*fit, "-o", "generator.pt"), "generator.safetensors")
    sentence(run(*fit, "-o", ""), "--output")
    sentence(run(*fit, "-o", "model.py/x.safetensors"), "cannot write")
    (tmp_path / "folder.safetensors").mkdir()
    sentence(run(*fit, "-o", "folder.safetensors"), "folder")
    save_file({"weight": torch.ones(1)}, tmp_path / "weights.safetensors")
    before = (tmp_path / "weights.safetensors").read_bytes()
    sentence(run(*fit, "-o", "weights.safetensors"), "weights.safetensors", "not a generator")
    assert (tmp_path / "weights.safetensors").read_bytes() == before  # somebody's weights are not overwritten
    (tmp_path / "README.md").write_text("# mine")
    sentence(run(*fit, "-o", "README.safetensors"), "README.md")
    apply = ("obscure", "apply")
    sentence(run(*apply, "none.safetensors", "model.py"), "none.safetensors", "obscure fit")
    sentence(run(*apply, "folder.safetensors", "model.py"), "folder.safetensors is a folder")
    sentence(run(*apply, "model.py", "model.py"), "model.py", "read as a whole safetensors file")
    assert sorted(p.name for p in tmp_path.glob("generator*")) == []


def test_public_records_of_the_users_own_are_taken_and_the_card_says_so(run: Run, tmp_path: Path) -> None:
    theirs = "auxiliary_data = TensorDataset(1 - images[:20], 1 - labels[:20])\n"
    (tmp_path / "public.py").write_text(MODEL + theirs)
    assert run("obscure", "fit", "public.py", "-s", "steps=1:epochs=1:public=true").code == 0
    text = Path("generator.md").read_text()
    assert "20 public pictures" in text
    assert "the pictures are public," in text


def test_apply_refuses_what_does_not_fit(run: Run, tmp_path: Path) -> None:
    assert run("obscure", "fit", "model.py", *FAST).code == 0
    apply = ("obscure", "apply", "generator.safetensors")
    (tmp_path / "three.py").write_text(MODEL.replace("Linear(256, 2)", "Linear(256, 3)").replace("classes = ", "c = "))
    sentence(run(*apply, "three.py"), "2 classes, not 3")
    (tmp_path / "swapped.py").write_text(MODEL.replace('["left", "right"]', '["right", "left"]'))
    sentence(run(*apply, "swapped.py"), "class 0")
    np.savez(tmp_path / "colour.npz", x=np.zeros((5, 8, 8, 3), np.uint8), y=np.zeros(5, int))
    sentence(run(*apply, "colour.npz", "-o", "out.npz"), "channel")
    sentence(run(*apply, "colour.npz", "-o", "colour.npz"), "colour.npz", "name another file")
    sentence(run(*apply, "colour.npz", "--data", "colour.npz"), "--data")
    sentence(run(*apply, "nowhere.npz"), "nowhere.npz")
    sentence(run(*apply, "model.py", "-o", "out.txt"), "out.npz")
    assert not (tmp_path / "out.npz").exists()


def test_the_example_client_learns_from_drawn_pictures_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: Run
) -> None:
    fitted = run("obscure", "fit", str(EXAMPLES / "minimal.py"), "-s", "steps=4:epochs=30", "--seed", "0")
    assert fitted.code == 0, fitted
    monkeypatch.syspath_prepend(EXAMPLES)
    spec = importlib.util.spec_from_file_location("federated_client", EXAMPLES / "federated_client.py")
    assert spec is not None
    assert spec.loader is not None
    client = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(client)
    # Guessing is right for half of the 200; how far above it ten rounds come depends on the processor.
    assert client.main("generator.safetensors", rounds=10) > 0.6
    assert Obscurer.load("generator.safetensors").pictures.shape[1:] == (1, 25, 25)
