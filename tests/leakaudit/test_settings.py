"""Where settings come from: the command line, variables, the nearest file, the defaults; and what is said of each."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import typer.main

from leakaudit.cli.entry import app
from leakaudit.gate.pyproject import find
from leakaudit.options import names
from leakaudit.options.common import say
from leakaudit.options.settings import options, variable_of
from leakaudit.protocol import registry
from leakaudit.result.schema import AuditResult, to_json
from leakaudit.scene.plan import Plan
from tests.leakaudit.command_line import Run, caller, sentence
from tests.leakaudit.results import result

ROOT: Any = typer.main.get_command(app)
SETTINGS = {name: param for name, param in options(ROOT.commands["scan"]).items() if param.allow_from_autoenv}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line, whose scan keeps its plan and its command in a file and attacks nothing."""
    for name in [name for name in os.environ if name.startswith("LEAKAUDIT_")]:
        monkeypatch.delenv(name)

    def audit(target: object, plan: Plan, *, command: str, **given: object) -> AuditResult:
        Path("asked.json").write_text(json.dumps(plan.settings() | {"command": command}))
        return result(settings=plan.settings())

    monkeypatch.setattr("leakaudit.audit.audit.audit", audit)
    monkeypatch.setattr("leakaudit.spread.job.load_target", lambda *args, **given: None)
    return caller(monkeypatch, tmp_path, capsys, "raise SystemExit('the model was run')\n")


def asked(run: Run, *words: str) -> dict[str, Any]:
    done = run("scan", *words)
    assert done.code in (0, 1, 3), done
    found: dict[str, Any] = json.loads(Path("asked.json").read_text())
    return found


def test_the_nearest_place_wins(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(run)["records"] == 16
    Path("pyproject.toml").write_text('[tool.leakaudit]\nrecords = 4\nseed = 4\nimages = "none"\n')
    assert asked(run)["records"] == 4
    monkeypatch.setenv("LEAKAUDIT_RECORDS", "5")
    monkeypatch.setenv("LEAKAUDIT_IMAGES", "redacted")
    found = asked(run, "--records", "6")
    assert (found["records"], found["images"], found["seed"]) == (6, "redacted", 4)
    monkeypatch.setenv("LEAKAUDIT_RECORDS", "")  # as if it were not there
    assert asked(run)["records"] == 4


def test_every_kind_of_option_is_read_from_a_variable(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"DEFENSE": "clip prune:sparsity=0.5,dp-sgd", "QUICK": "true", "MAX_ACCURACY_LOSS": "0.25", "MODE": "train",
             "MEMORY": "1.5GiB", "BUDGET": "2m", "NO_UTILITY": "1", "OUTPUT": "there", "JSON": "1"}  # fmt: skip
    for name, value in given.items():
        monkeypatch.setenv(f"LEAKAUDIT_{name}", value)
    found = asked(run)
    assert found["defenses"] == "clip prune:sparsity=0.5,dp-sgd"
    assert (found["battery"], found["max_accuracy_loss"], found["mode"]) == ("quick", 0.25, "train")
    assert (found["memory"], found["budget"], found["utility"]) == (3 * 2**29, 120, False)
    assert Path("there/result.json").exists()


def test_the_recorded_command_says_what_was_set_elsewhere(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("pyproject.toml").write_text('[tool.leakaudit]\nquick = true\nattack = ["labels", "dlg"]\nquiet = true\n')
    monkeypatch.setenv("LEAKAUDIT_SEED", "3")
    monkeypatch.setenv("LEAKAUDIT_OPEN", "0")
    found = asked(run, "model.py", "-d", "clip", "--open", "-o", "out")
    Path("pyproject.toml").unlink()
    monkeypatch.delenv("LEAKAUDIT_SEED")
    words = found.pop("command").split()
    assert words[:2] == ["leakaudit", "scan"]
    again = asked(run, *words[2:])
    again.pop("command")
    assert again == found
    assert "--open" not in words
    assert "--quiet" not in words


def test_of_quick_and_full_the_nearer_wins(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("pyproject.toml").write_text("[tool.leakaudit]\nquick = true\n")
    found = asked(run, "--full")
    assert found["battery"] == "full"
    assert "--quick" not in found["command"]
    monkeypatch.setenv("LEAKAUDIT_FULL", "1")
    assert asked(run)["battery"] == "full"
    Path("pyproject.toml").write_text("[tool.leakaudit]\nquick = true\nfull = true\n")
    monkeypatch.delenv("LEAKAUDIT_FULL")
    sentence(run("scan"), "--quick", "--full")
    Path("pyproject.toml").write_text("[tool.leakaudit]\nquiet = true\n")
    assert "Limit" in run("scan", "--verbose").out
    assert "Limit" not in run("scan").out


@pytest.mark.parametrize("command", ["scan", "doctor"])
@pytest.mark.parametrize(
    ("name", "value"),
    [("RECORDS", "x"), ("RECORDS", "0"), ("MODE", "half"), ("SEED", "-1"), ("BATCH_SIZE", "1.5")],
)
def test_a_bad_variable_is_named(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str, name: str, value: str
) -> None:
    monkeypatch.setenv(f"LEAKAUDIT_{name}", value)
    sentence(run(command), f"LEAKAUDIT_{name}")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("recrods = 4", ("'recrods'", "did you mean 'records'", "max-identification")),
        ("records = 0", ("records in", "at least 1")),
        ("images = 'half'", ("images is 'half'", "redacted")),
        ("exit-zero = true", ("exit-zero", "command line")),
        ("config = 'a'", ("config",)),
        ("budget = 'soon'", ("budget in", "'soon'")),
    ],
)
@pytest.mark.parametrize("file", ["pyproject.toml", "ci.toml"])
def test_a_bad_line_of_a_file_is_named_with_the_file(run: Run, file: str, line: str, words: tuple[str, ...]) -> None:
    Path(file).write_text(f"[tool.leakaudit]\n{line}\n")
    sentence(run("scan", *(["--config", file] if file != "pyproject.toml" else [])), file, *words)


@pytest.mark.parametrize("table", ["assert]\nsecrecy = 1", "waiver]\nrule = 1"])
def test_what_a_gate_is_asked_is_read_from_the_same_file(run: Run, table: str) -> None:
    Path("ci.toml").write_text(f"[tool.leakaudit]\nrecords = 3\n[{'[' * ('waiver' in table)}tool.leakaudit.{table}\n")
    if "waiver" in table:
        Path("ci.toml").write_text("[[tool.leakaudit.waiver]]\nrule = 1\n")
    sentence(run("scan", "--config", "ci.toml", "--gate"), "ci.toml: ")
    sentence(run("scan", "--config", "no.toml"), "no.toml")


def test_an_unknown_variable_is_a_warning_and_nothing_more(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEAKAUDIT_IMAGE", "none")
    monkeypatch.setenv("LEAKAUDIT_EXIT_ZERO", "1")
    monkeypatch.setenv("LEAKAUDIT_DEBUG", "1")
    done = run("scan")
    lines = [line for line in done.err.splitlines() if "warning" in line]
    assert len(lines) == 2
    assert "LEAKAUDIT_EXIT_ZERO" in lines[0]
    assert "did you mean 'LEAKAUDIT_IMAGES'" in lines[1]
    assert "warning" not in run("scan", "--quiet").err
    assert "warning" not in run("report", "leakaudit-out").err  # which reads none


def test_every_setting_has_its_variable_and_its_key() -> None:
    assert {"records", "images", "budget", "memory", "device", "defense", "json", "open"} <= set(SETTINGS)
    assert all(variable_of(param.name) == f"LEAKAUDIT_{name.upper()}" for name, param in SETTINGS.items())
    for name in ("doctor", "demo"):
        shared = [n for n, p in options(ROOT.commands[name]).items() if p.allow_from_autoenv]
        assert set(shared) <= set(SETTINGS)
        assert shared
    for command in ROOT.commands["obscure"].commands.values():  # a seed that everybody knows undoes what it draws
        assert {n for n, p in options(command).items() if p.allow_from_autoenv} <= {"data", "checkpoint", "device"}


def test_the_nearest_file_with_the_table_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "repository" / "package" / "models"
    inner.mkdir(parents=True)
    table = "[tool.leakaudit]\nrecords = 4\n"
    (tmp_path / "pyproject.toml").write_text(table)
    assert found(inner) == tmp_path / "pyproject.toml"
    (tmp_path / "repository" / ".git").mkdir()  # what lies above the repository is another project's
    assert found(inner) is None
    (tmp_path / "repository" / "pyproject.toml").write_text(table)
    (inner / "pyproject.toml").write_text("[tool.other]\n")  # one without the table is passed over
    assert found(inner) == tmp_path / "repository" / "pyproject.toml"
    assert found(tmp_path / "elsewhere", inner) == tmp_path / "pyproject.toml"  # the first folder that has one
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    os.chown(tmp_path / "pyproject.toml", 4711, -1) if os.getuid() == 0 else pytest.skip("only root gives files away")
    assert found(tmp_path / "elsewhere") is None  # somebody else's, above the folder
    assert found(tmp_path) is None  # nor in the folder itself: anybody may put one into /tmp


def found(*folders: Path) -> Path | None:
    place = find(*folders)
    return None if place is None else place.resolve()


def test_the_file_is_looked_for_from_the_models_folder(run: Run) -> None:
    Path("models").mkdir()
    Path("models/net.py").write_text("")
    Path("models/pyproject.toml").write_text("[tool.leakaudit]\nrecords = 3\n")
    Path("pyproject.toml").write_text("[tool.leakaudit]\nrecords = 4\n")
    assert asked(run, "models/net.py")["records"] == 3
    assert asked(run, "model.py")["records"] == 4
    assert asked(run, "models/net.py", "--config", "pyproject.toml")["records"] == 4
    done = run("scan", "models/net.py:make")
    assert "settings of models/pyproject.toml" in done.err


def test_a_gate_looks_from_the_present_folder(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = to_json(result())
    Path("inner").mkdir()
    Path("pyproject.toml").write_text("[tool.leakaudit]\noutside = 1\n")
    Path("inner/pyproject.toml").write_text("[tool.leakaudit]\ninside = 1\n")
    Path("inner/result.json").write_text(stored)
    monkeypatch.chdir("inner")
    sentence(run("gate", "result.json"), "'inside'")
    Path("pyproject.toml").unlink()
    sentence(run("gate", "result.json"), "'outside'")


def test_without_a_model_one_sentence_says_how_to_make_one(run: Run) -> None:
    Path("model.py").unlink()
    for command in ("scan", "doctor"):
        sentence(run(command), "no model.py", "train_data")


@pytest.mark.parametrize(("option", "name", "near"), [("-a", "linkge", "linkage"), ("-d", "clip,prne", "prune")])
def test_a_mistyped_name_is_refused_before_the_model_is_read(
    run: Run, monkeypatch: pytest.MonkeyPatch, option: str, name: str, near: str
) -> None:
    def load(*args: object, **given: object) -> None:
        raise AssertionError("the model was read")

    monkeypatch.setattr("leakaudit.spread.job.load_target", load)
    sentence(run("scan", option, name), f"did you mean '{near}'")
    Path("beside.py").write_text("from leakaudit.protocol.registry import register_attack, register_defense\n")
    assert run("scan", option, name).code == 4  # which may register it


def test_names_are_completed_as_they_are_registered() -> None:
    ours = {"attacks": registry.attacks(), "defenses": registry.defenses()}
    for kind, known in ours.items():
        built_in = {name: cls.summary for name, cls in known.items() if registry.built_in(cls)}
        assert names.built_in(kind) == built_in
    assert names.defenses("clip,pr") == [(f"clip,{n}", names.built_in("defenses")[n]) for n in ("precode", "prune")]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("leakaudit sc", {"scan"}),
        ("leakaudit scan -d ob", {"obscure"}),
        ("leakaudit scan --attack re", {"replay", "released-decoder", "released-demixing", "released-linkage",
                                        "released-replay"}),
        ("leakaudit list attacks --defense so", {"soteria"}),
        ("leakaudit list m", {"metrics"}),
        ("leakaudit scan --images r", {"redacted"}),
        ("leakaudit scan --rec", {"--records"}),
        ("leakaudit obscure f", {"fit"}),
    ],
)  # fmt: skip
def test_a_shell_is_answered(run: Run, monkeypatch: pytest.MonkeyPatch, typed: str, expected: set[str]) -> None:
    monkeypatch.setenv("_LEAKAUDIT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
    done = run()
    assert (done.code, set(done.out.split())) == (0, expected), done


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_told_how_to_ask(run: Run, monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    monkeypatch.setenv("_LEAKAUDIT_COMPLETE", f"source_{shell}")
    assert "_LEAKAUDIT_COMPLETE=complete" in run().out
    monkeypatch.delenv("_LEAKAUDIT_COMPLETE")
    monkeypatch.setattr("shellingham.detect_shell", lambda: (shell, shell))
    assert "_LEAKAUDIT_COMPLETE=complete" in run("--show-completion").out


def test_a_folder_is_reported_again_with_what_its_gate_said(run: Run) -> None:
    assert run("scan", "--gate").code in (0, 1, 3)
    written = Path("leakaudit-out/report.html").read_bytes()
    Path("leakaudit-out/report.html").unlink()
    assert run("report", "leakaudit-out").code == 0
    assert Path("leakaudit-out/report.html").read_bytes() == written
    Path("leakaudit-out/result.json").unlink()
    sentence(run("report", "leakaudit-out"), "leakaudit-out holds no result.json")


def test_sentences_wrap_in_a_terminal_and_go_whole_into_a_pipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "Signed result.json by the key " + "0123456789abcdef" * 4 + " and nobody else's."
    say(words)
    assert capsys.readouterr().out == words + "\n"
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    monkeypatch.setenv("COLUMNS", "80")
    say(words)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 1
    assert max(map(len, lines)) <= 80
    assert " ".join(lines) == words
    say(f"  - {words}")
    assert all(line.startswith("    ") for line in capsys.readouterr().out.splitlines()[1:])


def test_a_page_is_opened_where_somebody_sits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from leakaudit.options.browser import show

    opened: list[str] = []
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or len(opened) == 1)
    show(tmp_path / "a b.html")
    assert opened == [(tmp_path / "a b.html").as_uri()]
    assert capsys.readouterr().err == ""
    show(tmp_path / "a.html")
    assert f"no browser was found here; the report is {tmp_path / 'a.html'}" in capsys.readouterr().err
    monkeypatch.setenv("CI", "true")
    show(tmp_path / "a.html")
    assert len(opened) == 2
    assert "CI=true" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--records", "foo"), "it takes a whole number"),
        (("--max-identification", "foo"), "it takes a number"),
        (("--mode", "foo"), "'foo' is not one of 'eval', 'train'"),
        (("--batery", "quick"), "--quick"),
        (("--battery", "full"), "--full"),
        (("--record", "3"), "--records"),
    ],
)
def test_what_is_refused_is_refused_in_our_words(run: Run, words: tuple[str, ...], told: str) -> None:
    done = run("scan", *words)
    assert done.code == 2
    assert told in done.err
    assert "Input should be" not in done.err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_a_file_of_somebody_else_is_not_read_even_in_the_folder_itself(tmp_path: Path) -> None:
    file = tmp_path / "pyproject.toml"
    file.write_text("[tool.leakaudit]\nrecords = 3\n")
    assert find(tmp_path) is not None
    os.chown(file, 1234, 1234)
    assert find(tmp_path) is None
    os.chown(tmp_path, 1234, 1234)  # their folder: who works there trusts them
    assert find(tmp_path) is not None


def test_a_file_that_is_named_must_hold_the_table(run: Run) -> None:
    Path("other.toml").write_text("[tool.ruff]\n")
    sentence(run("scan", "--config", "other.toml"), "other.toml has no table [tool.leakaudit]")
