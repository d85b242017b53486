"""A sweep file becomes a list of scans, each the command that it says; every mistake in one is a sentence."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from leakaudit.cli.scan import scan
from leakaudit.errors import UserError
from leakaudit.options.sweepfile import INSTEAD, MOST, SHARED, Asked, listed, read, scans

FULL = """
models = ["model.py", { target = "model.py:make", name = "late", checkpoint = "late.pt" }]
stages = ["early", "trained"]
defenses = ["obscure", { spec = "dp-sgd", noise-multiplier = [0.1, 1], max_norm = [1.0, 2.0] }]

[scan]
quick = true
batch-size = 2
attack = ["analytic", "mine.py:Mine:steps=3"]
"""


def written(tmp_path: Path, text: str) -> Path:
    for name in ("model.py", "late.pt"):
        (tmp_path / name).write_text("")
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    return path


def asked(tmp_path: Path, text: str) -> Asked:
    return read(written(tmp_path, text), scan)


def test_models_moments_and_strengths_are_crossed_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = read(Path(written(tmp_path, FULL.replace('"mine.py:Mine:steps=3"', '"labels"')).name), scan)
    assert found.count == 2 * 2 * 5
    made = scans(found)
    assert len({each.name for each in made}) == len(made) == 20
    assert [(each.model.name, each.stage) for each in made[::5]] == [
        ("model.py", "early"),
        ("model.py", "trained"),
        ("late", "early"),
        ("late", "trained"),
    ]
    specs = [f"dp-sgd:noise_multiplier={a}:max_norm={b}" for a in (0.1, 1) for b in (1.0, 2.0)]
    assert [each.plan.defenses for each in made[:5]] == [("obscure",), *((spec,) for spec in specs)]
    assert [each.strength.line for each in made[1:5]] == [specs[0][:27], specs[1][:27], specs[2][:25], specs[3][:25]]
    assert made[1].strength.values == {"noise_multiplier": 0.1, "max_norm": 1.0}
    last = made[-1]
    assert (last.plan.battery, last.plan.batch_size, last.plan.stages) == ("quick", 2, ("trained",))
    assert last.plan.attacks == ("analytic", "labels")
    assert (last.model.checkpoint, last.model.data, last.device) == ("late.pt", "", "auto")
    assert last.command == (
        "leakaudit scan model.py:make --checkpoint late.pt --defense dp-sgd:noise_multiplier=1:max_norm=2.0 "
        "--stages trained --quick --batch-size 2 --attack analytic --attack labels"
    )
    assert last.name == "late-trained-dp-sgd-noise_multiplier=1-max_norm=2.0"
    lines = list(listed(found, made))
    assert lines[0] == "sweep.toml: 20 scans (2 models, 2 moments of training, 5 defenses and strengths)"
    assert [line.split()[0] for line in lines[1:21]] == [each.name for each in made]
    assert lines[21].endswith(" pieces of work; what scans share is computed once")


def test_paths_are_those_of_the_file_and_modules_are_not(tmp_path: Path) -> None:
    text = FULL.replace('"obscure"', '"mine.py:Other,obscure"').replace(
        'models = ["model.py"', 'models = ["some.module"'
    )
    found = asked(tmp_path, text)
    assert [model.target for model in found.models] == ["some.module", f"{tmp_path}/model.py:make"]
    assert found.models[1].checkpoint == str(tmp_path / "late.pt")
    assert found.strengths[0].spec == f"{tmp_path}/mine.py:Other,obscure"
    assert found.options["attack"] == ["analytic", f"{tmp_path}/mine.py:Mine:steps=3"]


def test_without_defenses_each_model_is_scanned_as_it_is(tmp_path: Path) -> None:
    (one,) = scans(asked(tmp_path, 'models = ["model.py"]'))
    assert (one.name, one.plan.defenses, one.plan.stages) == ("model-none", (), ())
    assert one.plan == replace(one.plan, battery="standard", records=16)
    assert one.command == f"leakaudit scan {tmp_path}/model.py"


def test_names_of_folders_are_short_plain_and_different(tmp_path: Path) -> None:
    text = 'models = [{ target = "model.py", name = "../über/a b" }]\ndefenses = [{ spec = "gaussian", std = [%s] }]'
    made = scans(asked(tmp_path, text % ", ".join(f"0.{'0' * 200}{i}" for i in range(1, 4))))
    names = [each.name for each in made]
    assert len(set(names)) == 3
    assert all(0 < len(name) < 110 and set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789=.-_") for name in names)
    assert not any(name.startswith((".", "-")) for name in names)


@pytest.mark.parametrize(
    ("text", "words"),
    {
        "": ["no sweep", "models"],
        "models = [": ["cannot be read"],
        "models = []": ["models is empty", "at least one"],
        'models = "model.py"': ["models is 'model.py', not a list"],
        "models = [3]": ["models[0] is 3"],
        'models = [""]': ["models[0]", "empty"],
        'models = ["model.py", "model.py"]': ["'model.py'", "a name"],
        "models = [{ name = 'x' }]": ["models[0] has no 'target'"],
        'models = [{ target = "model.py", checkpont = "x" }]': ["models[0]", "'checkpont'", "'checkpoint'"],
        'models = [{ target = "model.py", data = "gone" }]': ["models[0].data", "gone"],
        'model = ["model.py"]': ["'model'", "did you mean 'models'"],
        "stages = []": ["stages is empty", "leave it out"],
        'stages = ["erly"]': ["'erly'", "did you mean 'early'"],
        'stages = ["early", "early"]': ["each once"],
        "defenses = []": ["defenses is empty"],
        'defenses = "obscure"': ["defenses is 'obscure'"],
        'defenses = ["none"]': ["defenses[0]", "by itself"],
        'defenses = ["obscure", "obscure"]': ["defenses[1]", "twice"],
        'defenses = ["obscur"]': ["unknown defense", "'obscure'"],
        "defenses = [{ std = [1.0] }]": ["defenses[0] has no spec"],
        'defenses = [{ spec = "gaussian", std = [] }]': ["defenses[0].std is empty"],
        'defenses = [{ spec = "gaussian", std = [[1]] }]': ["defenses[0].std[0]", "[1]"],
        'defenses = [{ spec = "gaussian", sdt = [1.0] }]': ["no setting 'sdt'", "'std'"],
        'defenses = [{ spec = "gaussian", std = ["1:x=2"] }]': ["defenses[0].std", "colon"],
        'defenses = [{ spec = "gaussian", std = ["much"] }]': ["'std'", "a finite number"],
        'defenses = [{ spec = "gaussian:std=1", std = [2.0] }]': ["set in its spec"],
        'defenses = [{ spec = "obscure,gaussian", std = [2.0] }]': ["a chain", "std"],
        'defenses = [{ spec = "dp-sgd", max-norm = 1.0, max_norm = 2.0 }]': ["twice"],
        f'defenses = [{{ spec = "gaussian", std = {list(range(MOST + 1))} }}]': ["1,001 scans", "1,000"],
        "scan = 3": ["scan is 3"],
        "[scan]\nrecord = 3": ["[scan]", "'record'", "'records'"],
        "[scan]\nrecords = true": ["[scan] records is True", "a whole number"],
        "[scan]\nrecords = 0": ["[scan]", "records must be at least 1"],
        "[scan]\nbatch-size = 3": ["[scan] records must be a multiple of batch-size"],
        '[scan]\nexposure = "adaptiv"': ["exposure takes", "'adaptive'"],
        '[scan]\nbudget = "soon"': ["[scan]", "soon"],
        '[scan]\ndefense = "obscure"': ["[scan] takes no defense", "a list"],
        '[scan]\nstages = "early"': ["[scan] takes no stages"],
        "[scan]\ngate = true": ["no setting 'gate'"],
        "[scan]\nquick = true\nfull = true": ["quick and full"],
        '[scan]\nattack = "analytik"': ["unknown attack", "'analytic'"],
        '[scan]\nlpips-weights = "gone.pt"': ["lpips-weights", "gone.pt"],
    }.items(),
)
def test_a_mistake_is_a_sentence_that_names_it(tmp_path: Path, text: str, words: list[str]) -> None:
    whole = text if text == "" or text.startswith("model") else f'models = ["model.py"]\n{text}'
    with pytest.raises(UserError) as caught:
        scans(asked(tmp_path, whole))
    told = str(caught.value)
    assert told.startswith(str(tmp_path / "sweep.toml"))
    assert told.endswith(".")
    for word in words:
        assert word in told, told


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.toml"):
        read(tmp_path / "gone.toml", scan)


def test_an_unknown_defense_may_wait_for_the_file_of_a_model(tmp_path: Path) -> None:
    found = asked(tmp_path, 'models = ["model.py"]\ndefenses = ["of-its-own"]')
    (tmp_path / "model.py").write_text("from leakaudit.protocol.registry import register_defense")
    (one,) = scans(found)
    assert one.plan.defenses == ("of-its-own",)
    assert len(list(listed(found, [one]))) == 2  # what it would do is not known yet


def test_every_option_of_scan_is_shared_or_has_its_place() -> None:
    """A new one must be decided upon: shared by all scans of a sweep, said elsewhere, or of the command alone."""
    alone = {"target", "update", "gate", "baseline", "exit_zero", "quiet", "verbose", "json", "open", "tensorboard"}
    alone |= {"config", "workers", "executor", "cache", "fresh", "resume", "keep_intermediates"}
    names: set[Any] = set(inspect.signature(scan).parameters)
    assert set(SHARED) <= names
    assert set(INSTEAD) <= names
    assert names == {*SHARED, *INSTEAD, *alone}


def test_the_example_is_one() -> None:
    made = scans(read(Path(__file__).parents[2] / "examples" / "sweep.toml", scan))
    assert len(made) == 7
    assert {each.stage for each in made} == {"trained"}
