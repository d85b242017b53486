"""The help screens as a stranger reads them at 80 columns, and every example in them, tried."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer.main
from PIL import Image
from torch import nn

from leakaudit.captured.form import Claims
from leakaudit.captured.writing import write_capture
from leakaudit.cli.entry import app
from leakaudit.defenses import obscurer_fit
from leakaudit.defenses.obscurer import read
from leakaudit.result.schema import AuditResult, load, to_json
from leakaudit.scene.plan import Plan
from tests import command_reference
from tests.leakaudit.command_line import Outcome, Run, caller
from tests.leakaudit.results import HASHES
from tests.reports.conftest import GOLDEN, agreeing

MODEL = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

g = torch.Generator().manual_seed(0)
labels = torch.arange(160) % 2
train_data = TensorDataset(torch.rand(160, 1, 8, 8, generator=g) * 0.5 + labels[:, None, None, None] * 0.5, labels)
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.LeakyReLU(), nn.Flatten(), nn.Linear(256, 2))

def make_model():
    return model
"""
ATTACK = """
from dataclasses import dataclass
from typing import ClassVar
from leakaudit.attacks.inverting_gradients import InvertingGradients

@dataclass(frozen=True, kw_only=True)
class MyAttack(InvertingGradients):
    name: ClassVar[str] = "my-attack"
"""
DEFENSE = """
from dataclasses import dataclass
from typing import ClassVar
from leakaudit.protocol.defense import Defense

@dataclass(frozen=True, kw_only=True)
class MyDefense(Defense):
    name: ClassVar[str] = "my-defense"
"""
SWEEP = """models = ["model.py"]
defenses = [{ spec = "gaussian", std = [0.1, 1.0] }]
"""
CODES = {
    "scan": {0, 1, 3},
    "sweep": {0, 1, 3},
    "gate": {0, 1, 3},
    "capture": {0, 3},
    "worker": {2},  # whose folder only its owner has
}  # of those that judge; the others end in 0


def commands(group: Any, *before: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command with the words that call it; a group comes before what is in it."""
    for name, command in group.commands.items():
        yield (*before, name), command
        yield from commands(command, *before, name) if hasattr(command, "commands") else ()


ROOT: Any = typer.main.get_command(app)
COMMANDS = dict(commands(ROOT))


def examples() -> list[str]:
    """Return every line that a help screen shows as an example, once."""
    told = [f"{command.help or ''}\n{command.epilog or ''}" for command in (ROOT, *COMMANDS.values())]
    lines = [line for each in told for line in each.splitlines() if line.startswith("  leakaudit ")]
    return list(dict.fromkeys(line.strip().partition("   ")[0].strip() for line in lines))


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that holds all that the examples name, made by the commands themselves."""
    folder = tmp_path_factory.mktemp("stage")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.delenv("CI", raising=False)
        prepare(folder)
        yield folder


def prepare(folder: Path) -> None:
    for name, text in (("model.py", MODEL), ("my_attack.py", ATTACK), ("my_defense.py", DEFENSE)):
        (folder / name).write_text(text)
    (folder / "sweep.toml").write_text(SWEEP)
    pictures = np.random.default_rng(0).integers(0, 256, (160, 8, 8), dtype=np.uint8)
    np.savez("digits.npz", x_train=pictures[:, None], y_train=np.arange(160) % 2)
    for i, picture in enumerate(pictures[:40]):
        place = folder / "pictures" / ("left" if i % 2 else "right")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(place / f"{i}.png")
    stored = load(GOLDEN)
    captured()
    found = replace(agreeing(replace(stored, defenses=stored.defenses[:2])), hashes=HASHES)
    results = (
        "result.json",
        "main.json",
        "branch.json",
        "out/result.json",
        "leakaudit-out/result.json",
        "results/1.json",
        "strengths/model-gaussian-std=0.1/result.json",
    )
    for name in results:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(to_json(found))
    called("gate", "result.json", "-o", "gate.json")
    called("report", "result.json", "-o", "report.html")
    called("sign", "--new-key", "officer")
    assert called("sign", "result.json", "--key", "officer.pem", "--report", "report.html") == 0
    assert called("obscure", "fit", "model.py", "-s", "steps=1:epochs=1") == 0
    called("obscure", "apply", "generator.safetensors", "model.py")
    obscurer, card = read(Path("generator.safetensors"))
    for name, pictures in (("one", obscurer.pictures), ("two", obscurer.pictures.flip(0))):
        replace(obscurer, pictures=pictures).save(f"{name}.safetensors", card)


def captured() -> None:
    """Write what a user has of a client: its weights before and after, its records, and files of captured updates."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.LeakyReLU(), nn.Flatten(), nn.Linear(256, 2))
    after = {name: value + 0.01 for name, value in net.state_dict().items()}
    torch.save(net.state_dict(), "b.pt")
    torch.save(after, "a.pt")
    np.savez("records.npz", x=np.random.default_rng(1).random((8, 1, 8, 8), dtype=np.float32), y=np.arange(8) % 2)
    claims = Claims(local_steps=4, local_lr=0.1, batch_size=8, records=8, defense="none")
    for name in ("update", "new"):
        write_capture(f"{name}.safetensors", before=net.state_dict(), after=after, claims=claims)
    for node in (0, 1):
        sent = {name: value + 0.01 * node for name, value in after.items()}
        write_capture(f"node-{node}.safetensors", before=net.state_dict(), after=sent, claims=claims)


def called(*words: str) -> int:
    """Call the command line in this process and return its exit code."""
    from leakaudit.cli import entry

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["leakaudit", *words])
        with pytest.raises(SystemExit) as caught:
            entry.main()
    return int(caught.value.code or 0)


@pytest.fixture
def run(stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line in a copy of the stage, where attacking and training take no time."""
    shutil.copytree(stage, tmp_path, dirs_exist_ok=True)
    first = load(stage / "result.json")

    def audit(target: object, plan: Plan, **given: Any) -> AuditResult:
        return replace(first, settings=plan.settings(), complete=True)

    def parsed(settings: str, *, quick: bool = False) -> object:
        return replace(given(settings, quick=quick), steps=1, epochs=1)

    given = obscurer_fit.parsed
    monkeypatch.setattr(obscurer_fit, "parsed", parsed)
    monkeypatch.setattr("leakaudit.audit.audit.audit", audit)
    monkeypatch.setattr("leakaudit.options.gating.Gating.early", lambda gating, target: None)
    monkeypatch.setattr("leakaudit.reports.pdf.write", lambda path, page, private: path.write_text(page))
    monkeypatch.setattr("webbrowser.open", lambda address: address.startswith("file:///"))
    monkeypatch.setenv("COLUMNS", "80")
    return caller(monkeypatch, tmp_path, capsys, MODEL)


@pytest.mark.usefixtures("fresh_registry")
@pytest.mark.parametrize("line", examples())
def test_every_example_does_what_it_says(run: Run, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "verify" not in line:  # which reads every byte of a report
        monkeypatch.setattr("leakaudit.reports.html.render", lambda result, outcome=None: "<!doctype html>\n")
    monkeypatch.setattr("leakaudit.spread.serving.there", lambda folder, patience: folder.is_dir())  # nobody waits
    line, _, redirected = line.partition(" > ")
    for part in line.split(" && "):
        words = tuple(shlex.split(part)[1:])
        if words[0] == "sign":
            for left in Path().glob("*.sig" if "--new-key" not in words else "officer*"):
                left.unlink()
        if "--baseline" in words and words[0] == "scan":  # it compares with a scan of its own settings
            baseline = replace(load(Path("main.json")), settings=Plan(defenses=("obscure",), records=64).settings())
            Path("main.json").write_text(to_json(baseline))
        done = run(*words)
        assert done.code in CODES.get(words[0], {0}), done
    assert not redirected or done.out.startswith("{")


def test_every_command_has_an_example_and_a_screen_that_fits(run: Run) -> None:
    tried = {tuple(shlex.split(line)[1 : 1 + length]) for line in examples() for length in (1, 2)}
    assert set(COMMANDS) <= tried
    for words in ((), *COMMANDS):
        for flag in ("-h", "--help"):
            told = run(*words, flag)
            assert told.code == 0
            assert [line for line in told.out.splitlines() if len(line) > 80] == []
            assert told.out.startswith("Usage: ")
        names = [line.split()[0] for line in told.out.splitlines() if line.startswith("  -")]
        assert len(names) == len(set(names))


def test_the_reference_is_up_to_date() -> None:
    assert command_reference.page() == command_reference.PAGE.read_text(encoding="utf-8")


def test_without_a_command_the_help_is_shown_and_that_is_usage(run: Run) -> None:
    shown = run()
    assert shown.code == 2
    assert "Audit:" in shown.out + shown.err
    assert run("obscure").code == 2


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (("scn",), "'scan'"),
        (("obscure", "fitt"), "'fit'"),
        (("scan", "--recods", "3"), "--records"),
        (("list", "attack"), "attacks"),
    ],
)
def test_a_mistyped_command_or_option_names_the_nearest(run: Run, words: tuple[str, ...], near: str) -> None:
    told: Outcome = run(*words)
    assert told.code == 2
    assert near in told.err


def test_the_version_in_three_ways(run: Run) -> None:
    from leakaudit import __version__

    assert {run(flag).out for flag in ("-V", "--version")} == {f"leakaudit {__version__}\n"}
    done = subprocess.run(
        [sys.executable, "-m", "leakaudit", "-V"],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.stdout == f"leakaudit {__version__}\n", done.stderr
