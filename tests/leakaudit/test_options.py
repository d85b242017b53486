"""Every option and setting has a type and limits, found out before anything runs: from a terminal and from Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import leakaudit
from leakaudit.errors import UserError
from leakaudit.gate.pyproject import read
from leakaudit.protocol.registry import attacks, defenses, parse_attack, parse_defense, settings_of
from leakaudit.scene.plan import LIMITS, Plan
from tests.leakaudit.command_line import Run, caller, sentence

DATA = (torch.rand(12, 1, 8, 8), torch.arange(12) % 2)
NINES = "9" * 5000


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    return caller(monkeypatch, tmp_path, capsys, "raise SystemExit('the model was run')\n")


@pytest.mark.parametrize("option", [name for name in LIMITS if name != "memory"])
def test_whole_numbers_have_limits(run: Run, option: str) -> None:
    least, most = LIMITS[option]
    flag = "--" + option.replace("_", "-")
    for value in (str(least - 1), str(most + 1), NINES, "nan", "1.5", "", "one"):
        told = run("scan", "model.py", flag, value)
        assert told.code == 2, value
        assert "the model was run" not in told.err
    for value in (True, 1.5, "3", float("nan"), [3], b"3", 10**400, least - 1, most + 1):
        with pytest.raises(UserError) as caught:
            Plan(**{option: value})
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("option", ["max_identification", "max_accuracy_loss", "budget", "memory"])
def test_numbers_have_limits(run: Run, option: str) -> None:
    for text in ("-1", "nan", "inf", "-inf", "1e400", "1e308", NINES, "", "x"):
        assert run("scan", "model.py", "--" + option.replace("_", "-"), text).code == 2, text
    for value in (True, "x", -1.0, float("nan"), float("inf"), -float("inf"), 1e308, 10**400, [0.1], 0.5j):
        with pytest.raises(UserError):
            Plan(**{option: value})


@pytest.mark.parametrize(
    "change",
    [
        {"utility": 1}, {"utility": "no"}, {"mode": ["eval"]}, {"mode": None}, {"battery": {}}, {"images": 1},
        {"exposure": []}, {"exposure": "all"}, {"records": 3, "batch_size": 2}, {"records": 1, "batch_size": 0},
        {"attacks": 5}, {"attacks": [1]}, {"attacks": "\ud800"}, {"attacks": "labels:" * 1000}, {"defense": 5},
        {"defense": ["clip", None]}, {"defense": "clip:max_norm=\udcff"}, {"checkpoint": 5}, {"checkpoint": "\udcff"},
        {"lpips_weights": 5}, {"lpips_weights": "a\0b"}, {"memory": "0"}, {"memory": 0}, {"budget": "nan"},
        {"seed": -1}, {"seed": 2**70}, {"classes": 10**12}, {"classes": True}, {"classes": 3.5}, {"mean": 10**400},
        {"std": 0}, {"groups": 3}, {"loss": 3}, {"device": 3.5}, {"bogus": 1},
    ],
)  # fmt: skip
def test_what_python_gives_is_checked_as_well(change: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with pytest.raises(UserError) as caught:
        leakaudit.scan(model, DATA, **{"records": 2, **change})
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("kind", ["attack", "defense"])
def test_settings_of_a_spec_are_finite_and_of_their_type(kind: str) -> None:
    known: dict[str, type[Any]] = dict(attacks() if kind == "attack" else defenses())
    parse: Any = parse_attack if kind == "attack" else parse_defense
    for name, cls in known.items():
        for setting, found in settings_of(cls).items():
            if found.type in ("str", str):
                continue
            for value in ("nan", "inf", "-inf", "1e400", "-1", NINES, "", "x", "\ud800"):
                if value == "-1" and found.type in ("bool", bool):
                    continue
                with pytest.raises(UserError) as caught:
                    parse(f"{name}:{setting}={value}")
                assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "words",
    [
        ("scan", "model.py", "-o", "\udcff\udcfe"),
        ("scan", "\udcff.py"),
        ("scan", "model.py", "--tensorboard", "\udcff"),
        ("report", "r.json", "-o", "\udcff.html"),
        ("history", "\udcff"),
        ("gate", "r.json", "--junit", "\udcff"),
        ("obscure", "fit", "model.py", "-o", "\udcff.safetensors"),
    ],
)
def test_a_word_that_is_no_utf_8_is_refused_at_once(run: Run, words: tuple[str, ...], tmp_path: Path) -> None:
    sentence(run(*words), "no UTF-8", "\\udcff")
    assert [path.name for path in tmp_path.iterdir()] == ["model.py"]


HOSTILE = (
    "records = true", "records = 1.5", "records = '16'", "records = [1]", f"records = {'9' * 4000}", "seed = -1",
    f"seed = 0x{'f' * 5000}", "max-identification = nan", "max-identification = 'x'", "budget = 60", "quick = 1",
    "quick = 'true'", "defense = 3", "defense = [1]", "defense = {}", "output = 3", "output = ['a']", "images = 1",
    "mode = []", "data = 2027-01-01", "exit-zero = true", "bogus = 1", f"bogus = {'[' * 90}{']' * 90}",
    f"'{'k' * 9000}' = 1",
)  # fmt: skip


@pytest.mark.parametrize("line", HOSTILE)
def test_the_table_of_a_project_is_typed(run: Run, line: str) -> None:
    Path("pyproject.toml").write_text(f"[tool.leakaudit]\n{line}\n")
    told = run("scan", "model.py")
    assert told.code == 2
    assert "the model was run" not in told.err
    assert len(told.err) < 1500


@pytest.mark.parametrize(
    "text",
    [
        f"x = {'[' * 3000}{']' * 3000}", f"x = {'9' * 5000}", f"[a{'.b' * 50_000}]", "a = 1\na = 2", "\0", "\ufffe = 1",
        "x = '" + "a" * 2**20 + "'", f"tool = {'9' * 4000}", f"[tool]\nleakaudit = {'9' * 4000}",
    ],
)  # fmt: skip
def test_toml_that_takes_long_or_deep_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(UserError, match=r"pyproject\.toml") as caught:
        read(tmp_path / "pyproject.toml")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("key", ["rule", "reason", "expires", "defense", "by"])
@pytest.mark.parametrize("value", ["0x" + "f" * 5000, "true", "[]", "{}", "nan", "''", "1"])
def test_waivers_of_another_type_are_refused(run: Run, key: str, value: str) -> None:
    from leakaudit.options.gating import configured_waivers

    kept = {"rule": "'psnr'", "reason": "'r'", "expires": "2030-01-01"}
    block = "".join(f"{name} = {text}\n" for name, text in (kept | {key: value}).items())
    Path("pyproject.toml").write_text(f"[[tool.leakaudit.waiver]]\n{block}")
    if value == "''" and key not in kept:
        return
    with pytest.raises(UserError) as caught:
        configured_waivers(read(Path("pyproject.toml")))
    assert len(str(caught.value)) < 400
