"""Attacks and defenses of one's own: in a file, in an installed package, in model.py; and what goes wrong there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from leakaudit.errors import UserError
from leakaudit.protocol import plugins, registry
from leakaudit.reports import markdown
from leakaudit.result.schema import load
from leakaudit.result.scores import SCORES
from leakaudit.result.specs import apart, names, split, together
from tests.conftest import Install
from tests.leakaudit.command_line import Run, caller, sentence
from tests.leakaudit.test_cli import FAST, MODEL

HEAD = """
from dataclasses import dataclass
from typing import ClassVar
from leakaudit.attacks.labels import Labels
from leakaudit.defenses.clip import Clip
from leakaudit.protocol.registry import register_attack, register_defense
"""
ATTACK = """
{decorator}
@dataclass(frozen=True, kw_only=True)
class Mine(Labels):
    name: ClassVar[str] = "{name}"
    summary: ClassVar[str] = "the labels, \\x1b[31mmy way"
    guesses: int = 1
"""
DEFENSE = """
{decorator}
@dataclass(frozen=True, kw_only=True)
class Hidden(Clip):
    name: ClassVar[str] = "{name}"
    adaptive: ClassVar[tuple[str, ...]] = ("labels",)
"""

pytestmark = pytest.mark.usefixtures("fresh_registry")


def attack(name: str = "mine", decorator: str = "@register_attack") -> str:
    return HEAD + ATTACK.format(name=name, decorator=decorator)


def defense(name: str = "hidden", decorator: str = "@register_defense") -> str:
    return HEAD + DEFENSE.format(name=name, decorator=decorator)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    return caller(monkeypatch, tmp_path, capsys, MODEL)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("qsgd:levels=4", ("qsgd", "levels=4")),
        (" clip ", ("clip", "")),
        ("my.py:Mine", ("my.py:Mine", "")),
        ("a b/my.py:Mine:steps=5:tv=1", ("a b/my.py:Mine", "steps=5:tv=1")),
        (r"C:\attacks\my.py:Mine:steps=5", (r"C:\attacks\my.py:Mine", "steps=5")),
        (r"C:\attacks\my.py", (r"C:\attacks\my.py", "")),
    ],
)
def test_a_spec_is_a_name_and_settings(spec: str, expected: tuple[str, str]) -> None:
    assert split(spec) == expected


def test_two_classes_of_a_file_are_two_names() -> None:
    assert names("my.py:A:x=1, clip:max_norm=2") == ("my.py:A", "clip")
    assert names("my.py:A") != names("my.py:B")


@pytest.mark.parametrize("specs", [["a b/my.py:Mine", "dlg:steps=3"], ["obscure, clip"], [r"C:\x\my.py:A"], []])
def test_specs_come_out_of_a_result_as_they_went_in(specs: list[str]) -> None:
    assert apart(together(specs)) == specs
    assert together(["dlg:steps=3", "linkage"]) == "dlg:steps=3 linkage"  # as results have always had them


def test_a_file_names_an_attack_and_a_defense(tmp_path: Path) -> None:
    file = tmp_path / "my own.py"
    file.write_text(attack(decorator="") + defense(decorator=""))
    found = registry.parse_attack(f"{file}:Mine:guesses=3")
    assert (found.name, registry.settings_values(found)) == ("mine", {"guesses": 3})
    assert registry.attacks()["mine"] is type(found)
    assert registry.origin(type(found)) == str(file)
    assert registry.parse_attack(f"{file}:Mine") == registry.parse_attack("mine")  # imported once
    chained = registry.parse_defense(f"clip:max_norm=2,{file}:Hidden:max_norm=1")
    assert [part.name for part in chained.parts] == ["clip", "hidden"]  # type: ignore[attr-defined]


def test_a_file_that_was_changed_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "my.py"
    for count in (1, 2):
        file.write_text(attack().replace("guesses: int = 1", f"guesses: int = {count}") + "#" * count)
        assert registry.settings_values(registry.parse_attack(f"{file}:Mine")) == {"guesses": count}
        stamp = file.stat().st_mtime_ns
        assert (file.resolve(), stamp) in registry._files


@pytest.mark.parametrize(
    ("source", "wanted", "words"),
    [
        ("", "Mine", "no class 'Mine'; it defines no attack"),
        (attack(), "Mien", "no class 'Mien' (did you mean 'Mine'?); it has Mine"),
        (defense(), "Hidden", "Hidden cannot be used as attack: it is a defense"),
        ("Mine = 3", "Mine", "it is no class"),
        ("class Mine: pass", "Mine", "does not derive from leakaudit.protocol.attack.Attack"),
        (attack(decorator="").replace("@dataclass(frozen=True, kw_only=True)", ""), "Mine", "it is no dataclass"),
        (attack("labels"), "Mine", "'labels' is that of leakaudit itself; give it a name of its own"),
        (attack("Not A Name"), "Mine", "words in small letters"),
        (attack("accuracy"), "Mine", "'accuracy' is what an audit calls another piece of its work"),
        (attack().replace("guesses: int = 1", "guesses: int"), "Mine", "its setting 'guesses' has no default"),
        (attack().replace("guesses: int = 1", "effort: int = 1"), "Mine", "give the setting another name"),
        (attack() + "    covers: ClassVar = frozenset({'batchnorm'})\n", "Mine", "its `covers` names 'batchnorm'"),
        (attack() + "    family: ClassVar = 'guessing'\n", "Mine", "its `family` names 'guessing'"),
        (attack() + "    effort: ClassVar = ('steps',)\n", "Mine", "its `effort` names 'steps'"),
        (attack() + "    requires: ClassVar = frozenset({'truth'})\n", "Mine", "its `requires` names 'truth'"),
        (attack() + "    kind: ClassVar = 'linkage'\n", "Mine", "it does nothing: define link"),
        (attack() + "    def __post_init__(self) -> None: raise KeyError(3)", "Mine", "cannot be built (KeyError: 3)"),
        ("import no_such_module", "Mine", "line 1 of my.py fails while it is imported (ModuleNotFoundError"),
        ("def", "Mine", "my.py, line 1: invalid syntax"),
        ("raise SystemExit(3)", "Mine", "exits while it is imported"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, wanted: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path("my.py")
    file.write_text(source)
    with pytest.raises(UserError) as caught:
        registry.parse_attack(f"{file}:{wanted}")
    assert words in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert registry.attacks()["labels"].__module__ == "leakaudit.attacks.labels"


def test_a_file_without_a_class_and_none_at_all(tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text(attack())
    with pytest.raises(UserError, match=r"names no class: write .*my\.py:Class; it has Mine\."):
        registry.parse_attack(str(tmp_path / "my.py"))
    with pytest.raises(UserError, match="no such file"):
        registry.parse_attack(str(tmp_path / "none.py:Mine"))


@pytest.mark.parametrize(
    ("change", "words"),
    [("{'norm': 1}", "its `stronger` names 'norm'"), ("{'max_norm': 2}", "1 or -1, not 2")],
)
def test_which_way_a_defense_gets_stronger_is_checked(tmp_path: Path, change: str, words: str) -> None:
    (tmp_path / "my.py").write_text(defense() + f"    stronger: ClassVar = {change}\n")
    with pytest.raises(UserError, match=words):
        registry.parse_defense(f"{tmp_path / 'my.py'}:Hidden")


def test_an_installed_plug_in_is_found_by_name_and_listed_with_its_package(run: Run, install: Install) -> None:
    install("plugged", attack() + defense(), "[leakaudit.attacks]", "mine = plugged:Mine")
    install("plugged_too", defense("veiled"), "[leakaudit.defenses]", "any = plugged_too")
    assert registry.parse_attack("mine:guesses=2").name == "mine"
    assert registry.parse_defense("veiled").name == "veiled"  # a module registers what is in it
    assert registry.origin(registry.attacks()["mine"]) == "the plug-in plugged"
    assert registry.origin(registry.attacks()["labels"]) == ""
    assert plugins.failures() == ()
    outcome = run("list", "attacks")
    assert "\x1b" not in outcome.out
    assert "from the plug-in plugged" in outcome.out
    listed = {row["name"]: row.get("from") for row in json.loads(run("list", "attacks", "--json").out)}
    assert listed["mine"] == "the plug-in plugged"
    assert listed["labels"] is None


@pytest.mark.parametrize(
    ("source", "point", "why"),
    [
        ("def", "x = plugged:Mine", "SyntaxError"),
        ("raise SystemExit(1)", "x = plugged:Mine", "SystemExit"),
        ("class Worse(BaseException): ...\nraise Worse('\\x1b[2J')", "x = plugged:Mine", "Worse"),
        ("import no_such_module", "x = plugged:Mine", "no_such_module"),
        (attack(), "x = plugged:Other", "Other"),
        (attack(), "x = plugged Mine", "AttributeError"),
        (attack("labels"), "x = plugged:Mine", "'labels' is that of leakaudit itself"),
        (attack() + "    def __post_init__(self) -> None: raise KeyError('guesses')", "x = plugged:Mine", "KeyError"),
        (attack() + "raise ValueError", "x = plugged:Mine", "ValueError"),
        ("Mine = 3", "x = plugged:Mine", "it is no class"),
    ],
)
def test_a_plug_in_that_fails_is_named_and_left_out(install: Install, source: str, point: str, why: str) -> None:
    before = registry._attacks["labels"]
    install("plugged", source, "[leakaudit.attacks]", point)
    install("plugged_well", attack("fine"), "[leakaudit.attacks]", "fine = plugged_well:Mine")
    assert {"labels", "fine"} <= registry.attacks().keys()
    assert "mine" not in registry.attacks()
    assert registry.attacks()["labels"] is before
    (told,) = plugins.failures()
    assert told.startswith("The plug-in 'x' of plugged was left out: ")
    assert why in told
    with pytest.raises(registry.UnknownName, match=r"unknown attack 'mine' .* of plugged was left out"):
        registry.parse_attack("mine")


def test_commands_go_on_without_a_plug_in_that_fails(run: Run, install: Install) -> None:
    source = "print('noise')\nclass Worse(BaseException): ...\nraise Worse('\\x1b[2J')"
    for group in ("attacks", "defenses"):
        install(f"plugged_{group}", source, f"[leakaudit.{group}]", f"x = plugged_{group}:Mine")
    assert run("--help").code == 0
    for kind in ("attacks", "defenses"):
        outcome = run("list", kind, "--json")
        assert outcome.code == 0
        assert {"labels", "clip"} & {row["name"] for row in json.loads(outcome.out)}
        for group in ("attacks", "defenses"):
            assert f"leakaudit: warning: The plug-in 'x' of plugged_{group} was left out: Worse" in outcome.err
        assert "\x1b" not in outcome.err
    sentence(run("scan", "model.py", *FAST, "-a", "mine", "-q"), "unknown attack 'mine'", "was left out")


def test_a_plug_in_that_fails_takes_no_other_with_it(install: Install) -> None:
    """It registers a defense, for which the plug-ins with defenses are loaded meanwhile, and then fails."""
    install("plugged_a", attack() + defense() + "\nraise ValueError", "[leakaudit.attacks]", "x = plugged_a:Mine")
    install("plugged_b", defense("veiled"), "[leakaudit.defenses]", "veiled = plugged_b:Hidden")
    registry.attacks()
    assert "veiled" in registry.defenses()
    assert "hidden" not in registry.defenses()
    assert "mine" not in registry.attacks()
    assert len(plugins.failures()) == 1


def test_two_plug_ins_of_one_name_are_one_and_a_remark(install: Install) -> None:
    install("plugged_a", attack(), "[leakaudit.attacks]", "mine = plugged_a:Mine")
    install("plugged_b", attack(), "[leakaudit.attacks]", "mine_too = plugged_b:Mine")
    assert registry.origin(registry.attacks()["mine"]) == "the plug-in plugged_a"
    assert "'mine' is that of the plug-in plugged_a" in plugins.failures()[0]


def test_a_file_takes_no_name_of_a_plug_in_but_may_be_the_plug_in(install: Install, tmp_path: Path) -> None:
    install("plugged", attack(), "[leakaudit.attacks]", "mine = plugged:Mine")
    (tmp_path / "my.py").write_text(attack())
    with pytest.raises(UserError, match="'mine' is that of the plug-in plugged"):
        registry.parse_attack(f"{tmp_path / 'my.py'}:Mine")
    assert registry.parse_attack(f"{tmp_path / 'site' / 'plugged.py'}:Mine").name == "mine"


@pytest.mark.usefixtures("short_battery")
def test_names_that_the_model_registers_are_found_after_it_is_loaded(run: Run, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODEL + attack() + defense())
    few = ("--quick", "--records", "4", "--no-utility", "--exit-zero")
    outcome = run("scan", "model.py", *few, "-a", "mine:guesses=2", "-d", "hidden")
    assert outcome.code == 0, outcome.err
    result = load(tmp_path / "leakaudit-out" / "result.json")
    assert [d.spec for d in result.defenses] == ["none", "hidden"]
    assert result.defenses[0].attacks[0].settings == {"guesses": 2}
    assert result.settings["attacks"] == "mine:guesses=2"
    sentence(run("scan", "model.py", *few, "-a", "mien"), "unknown attack 'mien' (did you mean 'mine'?)")
    sentence(run("scan", "model.py", *few, "-d", "hiden"), "unknown defense 'hiden' (did you mean 'hidden'?)")


@pytest.mark.usefixtures("short_battery")
def test_a_scan_with_a_file_is_told_so_that_it_can_be_repeated(run: Run, install: Install, tmp_path: Path) -> None:
    install("plugged", "raise ValueError('<b>no</b>')", "[leakaudit.attacks]", "x = plugged:Mine")
    folder = tmp_path / "my <b>own"
    folder.mkdir()
    (folder / "my.py").write_text("print('noise')" + attack() + defense())
    specs = ("my <b>own/my.py:Mine:guesses=2", "my <b>own/my.py:Hidden:max_norm=0.5")
    words = ("scan", "model.py", "--quick", "--records", "4", "--no-utility", "--exit-zero", "--json")
    outcome = run(*words, "-a", specs[0], "-d", specs[1])
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["verdict"]
    assert "The plug-in 'x' of plugged was left out" in outcome.err
    result = load(tmp_path / "leakaudit-out" / "result.json")
    assert apart(str(result.settings["attacks"])) == [specs[0]]
    assert apart(str(result.settings["defenses"])) == [specs[1]]
    assert result.defenses[1].spec == specs[1]
    assert [f.message for f in result.findings if f.id == "plugin-left-out"] == list(plugins.failures())
    page = (tmp_path / "leakaudit-out" / "report.html").read_text()
    assert "<b>own" not in page
    assert "<b>no" not in page
    assert "my &lt;b&gt;own/my.py:Hidden" in page
    assert run("report", "leakaudit-out/result.json", "-o", "again.html").code == 0
    assert (tmp_path / "again.html").read_text() == page
    assert run("verify", "again.html", "leakaudit-out/result.json").code == 0
    files = ("-o", "gate.json", "--junit", "gate.xml", "--sarif", "gate.sarif", "--markdown", "gate.md")
    gated = run("gate", "leakaudit-out/result.json", *files)
    assert gated.code in (1, 3), gated.err
    assert any(specs[1] in check["id"] for check in json.loads((tmp_path / "gate.json").read_text())["checks"])


METRICS = """
import torch
from leakaudit.score.metrics import Metric

def gap(truth, guess):
    truth.zero_()  # what it is given is its own
    return guess.flatten(1).amax(1) - 0.123456

def broken(truth, guess):
    raise KeyError("<b>no</b>")

gap_metric = Metric("largest", gap, higher_leaks=True, unit="au", summary="the largest pixel")
broken_metric = Metric("broken", broken, higher_leaks=False)
short_metric = Metric("short", lambda truth, guess: guess.mean(), higher_leaks=False)
taken = Metric("psnr", gap, higher_leaks=True)
number = 3
"""


@pytest.mark.usefixtures("short_battery")
@pytest.mark.parametrize("images", ["full", "none"])
def test_a_metric_of_a_plug_in_is_measured_listed_and_shown(
    run: Run, install: Install, tmp_path: Path, images: str
) -> None:
    names = ("gap_metric", "broken_metric", "short_metric", "taken", "number")
    install("plugged", METRICS, "[leakaudit.metrics]", *(f"{name} = plugged:{name}" for name in names))
    listed = {row["name"] for row in json.loads(run("list", "metrics", "--json").out)}
    assert listed == {*SCORES, "largest", "broken", "short"}
    told = " ".join(plugins.failures())
    assert "the name 'psnr' is taken" in told
    assert "it is a int, no leakaudit.score.metrics.Metric" in told
    words = ("scan", "model.py", "--quick", "--records", "4", "--no-utility", "--exit-zero", "--images", images, "-v")
    outcome = run(*words, "-a", "inverting-gradients:steps=3", "-a", "labels")
    assert outcome.code == 0, outcome.err
    result = load(tmp_path / "leakaudit-out" / "result.json")
    drawn, labels = result.defenses[0].attacks[:2]
    assert labels.further == ()
    broken, largest, short = drawn.further
    assert [s.name for s in drawn.further] == ["broken", "largest", "short"]
    assert "KeyError" in str(broken.estimate.reason)
    assert "it gave () scores" in str(short.estimate.reason)
    assert largest.estimate.n == 4
    assert 0 < (largest.estimate.value or 0) < 1
    assert (len(str(largest.estimate.value)) <= 4) is (images == "none")  # two digits leave no fingerprint
    assert drawn.psnr.value is not None  # no metric may touch what the others are given
    page = (tmp_path / "leakaudit-out" / "report.html").read_text()
    for text in (page, outcome.out, markdown.render(result)):
        assert "largest 0." in text
        assert "higher leaks more" in " ".join(text.split())
    assert "<b>no" not in page
    plain = replace(result, defenses=tuple(replace(d, attacks=(labels,)) for d in result.defenses))
    assert "plug-in" not in markdown.render(plain)
