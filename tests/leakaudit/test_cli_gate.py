"""`leakaudit gate`, `compare` and `scan --gate` as CI calls them: exit codes, files, and sentences on bad input."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from leakaudit.result import outcome
from leakaudit.result.schema import AuditResult, load, to_json
from tests.leakaudit.command_line import Run, caller, sentence
from tests.leakaudit.results import attack, defense, result, some

MODEL = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

generator = torch.Generator().manual_seed(0)
x = torch.rand(60, 1, 6, 6, generator=generator)
train_data = TensorDataset(x, torch.arange(60) % 2)
torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 2))
"""


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    return caller(monkeypatch, tmp_path, capsys, MODEL)


def stored(name: str, made: AuditResult) -> str:
    Path(name).write_text(to_json(made))
    return name


def leaking(hits: int, accuracies: Sequence[float] = (0.8, 0.81, 0.82)) -> AuditResult:
    return result(defense("clip", attack(some(hits), psnr=[9.0] * 40), accuracies=accuracies))


@pytest.mark.parametrize(("hits", "code", "word"), [(0, 0, "PASS"), (40, 1, "FAIL"), (7, 3, "INCONCLUSIVE")])
def test_the_exit_code_is_the_gates(call: Run, hits: int, code: int, word: str) -> None:
    said = call("gate", stored("r.json", leaking(hits)))
    assert said.code == code, said
    assert f"GATE {word}" in said.out
    assert "no pyproject.toml has [tool.leakaudit.assert]" in said.out
    assert call("gate", "r.json", "--exit-zero").code == 0


def test_a_regression_fails_and_none_does_not(call: Run) -> None:
    stored("main.json", leaking(0))
    assert call("gate", "main.json", "--baseline", "main.json").code == 0
    said = call("gate", stored("r.json", leaking(40)), "--baseline", "main.json", "--verbose")
    assert said.code == 1
    assert "from 0 to 40 of 40 records" in " ".join(said.out.split())


def test_every_format_is_written(call: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    stored("r.json", leaking(40))
    options = ("-o", "out/g.json", "--junit", "j.xml", "--sarif", "s.sarif", "--markdown", "m.md", "--html", "r.html")
    said = call("gate", "r.json", *options, "--json")
    assert said.code == 1
    assert json.loads(said.out)["verdict"] == "fail"
    assert outcome.load(Path("out/g.json")).verdict == "fail"
    assert ET.parse("j.xml").getroot().tag == "testsuites"
    assert json.loads(Path("s.sarif").read_text())["version"] == "2.1.0"
    assert "clip" in Path("m.md").read_text()
    assert "identification" in Path("r.html").read_text()
    assert "clip" in Path("summary.md").read_text()


def test_assertions_and_waivers_come_from_pyproject(call: Run) -> None:
    stored("r.json", leaking(7))
    Path("pyproject.toml").write_text("[tool.leakaudit.assert]\nidentification = { max = 0.5 }\n")
    said = call("gate", "r.json")
    assert said.code == 0
    assert "has no [tool.leakaudit.assert]" not in said.out
    strict = '[tool.leakaudit.assert]\npreset = "strict"\n[[tool.leakaudit.waiver]]\nrule = "identification"\n'
    Path("pyproject.toml").write_text(strict + 'reason = "known"\nexpires = 2999-01-31\n')
    said = call("gate", "r.json", "-v")
    assert said.code == 0
    assert "until 2999-01-31: 17.5%" in call("gate", "r.json").out
    assert "Waived until 2999-01-31: known" in said.out
    Path("pyproject.toml").write_text(strict + 'reason = "known"\nexpires = 2001-01-31\n')
    said = call("gate", "r.json", "-v")
    assert said.code == 1
    assert "EXPIRED on 2001-01-31" in said.out
    assert "1 waiver, 1 expired" in call("gate", "r.json").out
    Path("pyproject.toml").write_text("[tool.leakaudit.assert]\nsecrecy = { max = 0.5 }\n")
    sentence(call("gate", "r.json"), "pyproject.toml", "secrecy", "known")


def test_what_cannot_be_compared_is_refused_by_name(call: Run) -> None:
    stored("r.json", leaking(0))
    other = result(defense("clip", attack(some(0))), target={**leaking(0).target, "parameters": 11})
    sentence(
        call("gate", "r.json", "--baseline", stored("main.json", other)), "main.json", "number of parameters", "11"
    )
    sentence(call("compare", "main.json", "r.json"), "main.json", "number of parameters")
    sentence(call("gate", "absent.json"), "absent.json")
    Path("bad.json").write_text("{")
    sentence(call("gate", "r.json", "--baseline", "bad.json"), "bad.json", "JSON")
    sentence(call("gate", "r.json", "--junit", "."), "--junit", "folder")


def test_compare_prints_a_table_json_or_markdown(call: Run) -> None:
    stored("a.json", leaking(0))
    stored("b.json", leaking(40, accuracies=(0.6, 0.61, 0.62)))
    said = call("compare", "a.json", "b.json")
    assert said.code == 0
    rows = {line.split()[0]: line for line in said.out.split("clip\n")[1].splitlines() if line.strip()}
    assert "LOSS" in rows["Identified"]
    assert "LOSS" in rows["Accuracy"]
    assert "no loss shown" in rows["PSNR"]
    read = json.loads(call("compare", "a.json", "b.json", "--json", "--markdown", "m.md").out)
    assert {c["metric"] for c in read["changes"] if c["defense"] == "clip"} == {"identification", "psnr", "accuracy"}
    assert "clip" in Path("m.md").read_text()


def test_a_folder_of_a_scan_stands_for_its_result_in_every_command(call: Run) -> None:
    Path("empty").mkdir()
    stored("r.json", leaking(0))
    for folder, hits in (("main", 0), ("out", 40)):
        Path(folder).mkdir()
        stored(f"{folder}/result.json", leaking(hits))
    said = {
        "gate": call("gate", "out", "--baseline", "main", "-o", "out/gate.json"),
        "compare": call("compare", "main", "out"),
        "report": call("report", "out"),
        "init": call("init", "--result", "main"),
    }
    assert {name: done.code for name, done in said.items()} == {**dict.fromkeys(said, 0), "gate": 1}
    assert "out/result.json" in said["gate"].out
    assert "LOSS" in said["compare"].out
    assert "out/report.html is, byte for byte, what out/result.json says" in call("verify", "out").out
    for words in (
        ("gate", "empty"),
        ("gate", "r.json", "--baseline", "empty"),
        ("compare", "r.json", "empty"),
        ("report", "empty"),
        ("verify", "empty"),
        ("sign", "empty", "--key", "me.pem"),
        ("init", "--result", "empty", "--force"),
        ("scan", "model.py", "--gate", "--baseline", "empty"),
    ):
        sentence(call(*words), "empty holds no result.json", "a folder that a scan wrote into")
    sentence(call("gate", "out", "-o", "out/result.json"), "--output", "the result")


@pytest.mark.usefixtures("short_battery")
def test_a_scan_gates_itself_against_its_own_baseline(call: Run) -> None:
    words = ("scan", "model.py", "-d", "gaussian:std=10", "--records", "12", "--quick", "--no-utility", "-q")
    assert call(*words, "-o", "main").code == 3
    Path("pyproject.toml").write_text(
        '[tool.leakaudit.assert]\npreset = "none"\nregression = { identification = {}, psnr = {} }\n'
        '[[tool.leakaudit.waiver]]\nrule = "psnr"\nreason = "for now"\nexpires = 2999-01-01\n'
    )
    Path("same").mkdir()
    Path("same/result.json").write_bytes(Path("main/result.json").read_bytes())  # it may lie where the output goes
    same = call(*words, "--gate", "--baseline", "same/result.json", "-o", "same")
    assert same.code == 0, same
    assert "GATE PASS" in same.out
    assert load(Path("same/result.json")).waivers[0].reason == "for now"
    leak = list(words)
    leak[3] = "gaussian:std=0"
    worse = call(*leak, "--gate", "--baseline", "main/result.json", "-o", "worse", "--json")
    assert worse.code == 1, worse
    told = json.loads(worse.out)
    assert told["exit_code"] == 1
    assert told["gate"]["verdict"] == "fail"
    assert Path("worse/gate.json").is_file()
    sentence(call(*words, "--baseline", "main/result.json"), "--baseline", "--gate")
    refused = call(*words[:-3], "--seed", "1", "--gate", "--baseline", "main/result.json", "-o", "other")
    sentence(refused, "main/result.json", "--seed")
    assert not Path("other/result.json").exists()


@pytest.mark.usefixtures("short_battery")
def test_another_model_is_refused_before_the_scan(call: Run) -> None:
    words = ("scan", "model.py", "-d", "clip", "--records", "12", "--quick", "--no-utility", "-q")
    call(*words, "-o", "main")
    Path("model.py").write_text(MODEL.replace("Linear(36, 8)", "Linear(36, 9)").replace("Linear(8, 2)", "Linear(9, 2)"))
    sentence(call(*words, "--gate", "--baseline", "main/result.json", "-o", "new"), "number of parameters")
    assert not Path("new/result.json").exists()


@pytest.mark.usefixtures("short_battery")
def test_an_incomparable_baseline_costs_no_result(call: Run) -> None:
    words = ("scan", "model.py", "-d", "clip", "--records", "12", "--quick", "--no-utility", "-q")
    call(*words, "--gate", "-o", "new")
    assert Path("new/gate.json").is_file()
    before = load(Path("new/result.json"))
    stored("main.json", replace(before, hashes={**before.hashes, "candidates": "others"}))
    sentence(call(*words, "--gate", "--baseline", "main.json", "-o", "new"), "candidates", "kept in new")
    assert load(Path("new/result.json")).complete
    assert Path("new/report.html").is_file()
    assert not Path("new/gate.json").exists()  # the one of the scan before


def test_no_output_replaces_an_input_another_output_or_a_device(call: Run) -> None:
    stored("r.json", leaking(0))
    kept = Path("r.json").read_text()
    sentence(call("gate", "r.json", "-o", "r.json"), "--output", "the result")
    sentence(call("gate", "r.json", "--junit", "a", "--sarif", "./a"), "--sarif", "--junit")
    Path("real.xml").write_text("")
    Path("link.xml").symlink_to("real.xml")
    assert call("gate", "r.json", "--junit", "link.xml", "--sarif", "/dev/null").code == 0
    assert Path("link.xml").is_symlink()
    assert "testsuites" in Path("real.xml").read_text()
    assert Path("/dev/null").is_char_device()
    Path("hard.json").hardlink_to("r.json")
    Path("pyproject.toml").write_text("")
    sentence(call("gate", "r.json", "-o", "hard.json"), "--output", "the result")
    sentence(call("gate", "r.json", "-o", "pyproject.toml"), "--output", "the configuration")
    sentence(call("report", "r.json", "-o", "r.json"), "--output", "the result")
    sentence(call("compare", "r.json", "r.json", "--markdown", "r.json"), "--markdown", "result")
    sentence(call("history", ".", "-o", "r.json"), "--output", "history.html")
    assert Path("r.json").read_text() == kept


def test_a_summary_that_cannot_be_written_changes_no_verdict(call: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "/nonexistent/folder/summary.md")
    said = call("gate", stored("r.json", leaking(40)))
    assert said.code == 1
    assert "step summary" in said.err


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[tool.leakaudit]\nexit-zero = true\n", "exit-zero"),
        ('tool = "x"\n', "tool must be a table"),
        ("\ufeff[tool.leakaudit.assert]\nsecrecy = 1\n", "secrecy"),
    ],
)
def test_a_configuration_that_cannot_be_is_a_sentence(call: Run, text: str, word: str) -> None:
    stored("r.json", leaking(0))
    Path("pyproject.toml").write_text(text, encoding="utf-8")
    sentence(call("gate", "r.json"), "pyproject.toml", word)


def test_a_configuration_that_cannot_be_read_is_not_none(call: Run) -> None:
    stored("r.json", leaking(0))
    Path("pyproject.toml").mkdir()
    sentence(call("gate", "r.json"), "pyproject.toml")


def test_an_estimate_that_none_can_be_is_refused(call: Run) -> None:
    text = to_json(leaking(0))
    Path("r.json").write_text(text.replace('"n": 40', '"n": -40'))
    sentence(call("gate", "r.json"), "r.json", "estimate")
    Path("r.json").write_text(text.replace('"high": 1.0', '"high": 1e+308'))
    sentence(call("gate", "r.json"), "r.json", "estimate")
    Path("r.json").write_text(text.replace('"chance_accuracy": 0.1', '"chance_accuracy": 1e999'))
    sentence(call("gate", "r.json"), "r.json", "JSON")


@pytest.mark.usefixtures("short_battery")
def test_files_with_private_pictures_are_their_owners_alone(call: Run) -> None:
    words = ("scan", "model.py", "--records", "4", "--quick", "--no-utility", "-q")
    for images, mode in (("full", 0o600), ("redacted", 0o644)):
        call(*words, "--images", images, "-o", images)
        for name in ("result.json", "report.html"):
            assert (Path(images) / name).stat().st_mode & 0o777 == mode
