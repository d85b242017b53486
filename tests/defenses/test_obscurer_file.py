"""The obscurer as a file: what is saved is what is loaded, and what is not one is refused in a sentence."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from leakaudit import Obscurer, UserError
from leakaudit.defenses import _refinement as refinement
from leakaudit.defenses import obscurer_leakage
from leakaudit.defenses.obscure import Obscure
from leakaudit.defenses.obscurer import read
from leakaudit.defenses.obscurer_card import Costs, escaped, render
from leakaudit.defenses.obscurer_file import Card, digest
from leakaudit.defenses.obscurer_leakage import overhead, remembered
from leakaudit.protocol.target import PixelModel, Records, Target
from leakaudit.work import resume

Generator = torch.Generator


def made(count: int = 12, classes: int = 3, shape: tuple[int, int, int] = (3, 8, 8), slope: float = 0.1) -> Obscurer:
    rng = Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (count, *shape), generator=rng).float() / 255
    return Obscurer(pictures, torch.rand(count, classes, generator=rng).softmax(1), slope=slope, mirror=False)


def target(classes: tuple[str, ...] = ("a", "b", "c"), shape: tuple[int, int, int] = (3, 8, 8)) -> Target:
    rng = Generator().manual_seed(1)
    sets = []
    for _ in range(3):
        labels = torch.arange(36) % len(classes)
        images = (torch.rand(36, *shape, generator=rng) * 0.5 + labels[:, None, None, None] / 8).clamp(0, 1)
        sets.append(Records(images, labels))
    flat = shape[0] * shape[1] * shape[2]
    model = PixelModel(nn.Sequential(nn.Flatten(), nn.Linear(flat, len(classes))))
    return Target("t.py", model, nn.CrossEntropyLoss(), *sets, classes=classes)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    made().save(tmp_path / "g.safetensors", CARD)
    return tmp_path / "g.safetensors"


CARD = Card(("a", "b", "c"), {"rate": 0.1, "mirror": False}, 0.1, (4, 4, 4), (3, 8, 8), "ab12", 5, "t.py")


def header(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return dict(json.loads(file.metadata()["obscurer"]))


def test_loaded_equals_saved_bit_for_bit(saved: Path, generator: Generator) -> None:
    first, (second, card) = made(), read(saved)
    assert torch.equal(first.pictures, second.pictures)
    assert torch.equal(first.labels, second.labels)
    assert (first.slope, first.mirror) == (second.slope, second.mirror)
    assert card == CARD
    x = torch.rand(5, 3, 8, 8, generator=generator)
    for one, other in zip(first(x, Generator().manual_seed(2)), second(x, Generator().manual_seed(2)), strict=True):
        assert torch.equal(one, other)
    again = saved.with_name("again.safetensors")
    second.save(again, card)
    assert again.read_bytes() == saved.read_bytes()


def test_what_is_not_an_obscurer_is_refused_and_never_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
            return os.mkdir, (str(tmp_path / "executed"),)

    for name in ("pickle.safetensors", "torch.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
        if name.startswith("torch"):
            torch.save(Bomb(), tmp_path / name)
        with pytest.raises(UserError, match="cannot be read as a whole safetensors file"):
            Obscurer.load(tmp_path / name)
    assert not (tmp_path / "executed").exists()
    pickle.loads(pickle.dumps(Bomb()))  # the test could fail: whoever unpickles it runs it
    assert (tmp_path / "executed").exists()


def test_missing_truncated_and_foreign_files(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        Obscurer.load(tmp_path / "none.safetensors")
    whole = saved.read_bytes()
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        saved.write_bytes(whole[:length])
        with pytest.raises(UserError, match="cannot be read as a whole safetensors file"):
            Obscurer.load(saved)
    save_file({"weight": torch.ones(2)}, saved)
    with pytest.raises(UserError, match="no obscurer"):
        Obscurer.load(saved)


def rewritten(
    path: Path, tensors: dict[str, torch.Tensor] | None = None, text: str | None = None, **changes: object
) -> None:
    held = header(path)
    with safe_open(path, framework="pt") as file:
        kept = {name: file.get_tensor(name) for name in ("pictures", "labels")}
    save_file(kept | (tensors or {}), path, {"obscurer": json.dumps({**held, **changes}) if text is None else text})


NAN = torch.full((12, 3), float("nan"))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"format": "leakaudit.obscurer/2"}, "obscurer/2"),
        ({"format": None}, "format None"),
        ({"text": "[1]"}, "header"),
        ({"text": "{"}, "is not JSON"),
        ({"text": "[" * 100_000}, "nested too deeply"),
        ({"slope": -1.0}, "slope"),
        ({"slope": float("nan")}, "it holds NaN"),
        ({"slope": "steep"}, "slope"),
        ({"mirror": 1}, "mirror"),
        ({"shape": [3, 8, 9]}, "shape"),
        ({"depth": 2}, "says 2 slices"),
        ({"depth": 0}, "says 0 slices"),
        ({"depth": True}, "says True slices"),
        ({"card": {}}, "incomplete"),
        ({"card": None}, "incomplete"),
        ({"tensors": {"pictures": torch.rand(12, 3, 8, 8)}}, "float32"),
        ({"tensors": {"pictures": torch.zeros(12, 192, dtype=torch.uint8)}}, "4-dimensional"),
        ({"tensors": {"labels": torch.rand(12, 3).double()}}, "float64"),
        ({"tensors": {"labels": torch.full((11, 3), 1 / 3)}}, "11 rows"),
        ({"tensors": {"labels": torch.full((12, 4), 1 / 4)}}, "4 classes"),
        ({"tensors": {"labels": NAN}}, "NaN"),
        ({"tensors": {"labels": torch.ones(12, 3)}}, "add up"),
        ({"tensors": {"labels": torch.tensor([[2.0, -1.0, 0.0]]).repeat(12, 1)}}, "below 0"),
        ({"tensors": {"pictures": torch.zeros(0, 3, 8, 8, dtype=torch.uint8)}}, "shape"),
        ({"tensors": {"pictures": torch.zeros(12, 3, 8, 8, dtype=torch.uint8)}}, "those that were written"),
    ],
)
def test_a_damaged_file_is_one_sentence(saved: Path, change: dict[str, Any], word: str) -> None:
    rewritten(saved, **change)
    with pytest.raises(UserError, match=word) as caught:
        Obscurer.load(saved)
    assert str(saved) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_must_fit_the_target(saved: Path) -> None:
    assert Obscurer.load(saved, target()).slope == 0.1
    Obscurer.load(saved, target(("0", "1", "2")))  # nobody named them
    Obscurer.load(saved, target(shape=(3, 20, 11)))  # pictures are resized to the batch
    for wrong, word in (
        (target(shape=(1, 8, 8)), "channel"),
        (target(("a", "b")), "3 classes, not 2"),
        (target(("b", "a", "c")), "class 0 is 'a', not 'b'"),
    ):
        with pytest.raises(UserError, match=word):
            Obscurer.load(saved, wrong)


def test_volumes_are_drawn_for_volumes_alone(tmp_path: Path, generator: Generator) -> None:
    """In a file, for a target, and in a client's loop, where volumes are (N, C, D, H, W)."""
    obscurer = replace(made(shape=(6, 8, 8)), depth=3)
    assert repr(obscurer).startswith("Obscurer(12 volumes 2×3×8×8")
    obscurer.save(tmp_path / "v.safetensors", CARD)
    loaded = Obscurer.load(tmp_path / "v.safetensors")
    assert loaded.depth == 3
    pictures, volumes = target(shape=(6, 8, 8)), target(shape=(6, 10, 8))
    volumes.model.depth = 3
    Obscurer.load(tmp_path / "v.safetensors", volumes)
    with pytest.raises(UserError, match=r"volumes of 2 channel\(s\) and 3 slices, not pictures of 6 channel"):
        Obscurer.load(tmp_path / "v.safetensors", pictures)
    x = torch.rand(2, 2, 3, 9, 7, generator=generator)
    drawn, p = loaded(x, generator.manual_seed(1))
    expected, _ = loaded.draw(x.flatten(1, 2), generator.manual_seed(1))
    assert torch.equal(drawn, expected.view(x.shape))
    assert p.shape == (2, 3)
    for wrong, word in (
        (x.flatten(1, 2), r"float volumes \(N, C, D, H, W\)"),
        (x[:, :1], r"volumes of 1 channel\(s\) and 3 slices and was fitted on volumes of 2"),
        (x[:, :, :2], "2 slices and was fitted on volumes of .* 3 slices"),
    ):
        with pytest.raises(UserError, match=word):
            loaded(wrong)
    with pytest.raises(UserError, match=r"float pictures \(N, C, H, W\)"):
        made()(x)


def test_its_text_shows_no_pixel() -> None:
    assert repr(made(slope=0.0)).endswith("slope=0, mirror=False)")
    assert "tensor" not in repr(made())


def test_a_batch_must_fit(generator: Generator) -> None:
    obscurer = made()
    x, p = obscurer(torch.rand(2, 3, 16, 12, generator=generator).half())
    assert x.shape == (2, 3, 16, 12)
    assert x.dtype == p.dtype == torch.float16
    for wrong, word in (
        (torch.rand(2, 1, 8, 8), "channel"),
        (torch.rand(3, 8, 8), "N, C, H, W"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "uint8"),
        (torch.rand(2, 3, 8, 8) * 4 - 2, "normalise what it returns"),
        (torch.full((2, 3, 8, 8), float("nan")), "nan"),
    ):
        with pytest.raises(UserError, match=word):
            obscurer(wrong)


def test_the_audits_file_can_be_loaded_and_holds_no_record(tmp_path: Path) -> None:
    aim = target()
    fitted = Obscure(steps=1, epochs=1).fit(aim, Generator().manual_seed(0))
    (file,) = fitted.save(tmp_path / "new")
    obscurer, card = read(file, aim)
    assert isinstance(fitted, Obscure)
    assert fitted.obscurer is not None
    assert torch.equal(obscurer.pictures, fitted.obscurer.pictures)
    assert card.records == (12, 12, 12)
    assert card.digest == digest(aim.private) != digest(aim.test)
    assert card.settings["steps"] == 1
    whole = file.read_bytes()
    for picture in (aim.private.images * 255).round().to(torch.uint8):
        assert picture.numpy().tobytes() not in whole


class Stop(Exception):
    pass


@pytest.mark.parametrize("where", ["after the first reference", "in the middle of refinement", "nowhere"])
def test_an_interrupted_fit_ends_in_the_same_bytes(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aim, defense = target(), Obscure(steps=2, epochs=1)
    monkeypatch.setattr(refinement, "BATCH", 20)  # 72 pictures: four batches
    whole = defense.fit(aim, Generator().manual_seed(3)).save(tmp_path / "whole")[0]
    stored: list[str] = []
    keep = resume.store

    def interrupting(stage: str, *rest: Any) -> None:
        keep(stage, *rest)
        stored.append(stage)
        if len(stored) == {"after the first reference": 1, "in the middle of refinement": 4}.get(where, 99):
            raise Stop

    path = tmp_path / "g.partial"
    monkeypatch.setattr(resume, "store", interrupting)
    if where != "nowhere":
        with pytest.raises(Stop), resume.resumable(path, {"seed": "3"}):
            defense.fit(aim, Generator().manual_seed(3))
        assert path.exists()
    with resume.resumable(path, {"seed": "3"}) as partial:
        resumed = defense.fit(aim, Generator().manual_seed(3)).save(tmp_path / "resumed")[0]
    assert len(stored) == 6  # two references and four batches, none of them done twice
    assert partial.resumed == {"after the first reference": 1, "in the middle of refinement": 4}.get(where, 0)
    assert resumed.read_bytes() == whole.read_bytes()


def test_copies_are_caught_and_strangers_are_not(generator: Generator) -> None:
    private, test, other = (torch.rand(150, 1, 6, 6, generator=generator) for _ in range(3))
    labels = torch.zeros(150, dtype=torch.long)
    even = torch.full((150, 2), 0.5)
    copying = remembered(Obscurer(private.flip(3), even), Records(private, labels), Records(test, labels), generator)
    assert copying["auc"] == 1.0
    assert copying["caught"] == 1.0
    assert copying["copies"] == 1.0
    assert copying["private_nearest"] < 1e-3 < copying["test_nearest"]  # type: ignore[operator]
    honest = remembered(Obscurer(other, even), Records(private, labels), Records(test, labels), generator)
    assert honest["auc_low"] < 0.5 < honest["auc_high"]  # type: ignore[operator]
    assert honest["caught_low"] <= 0.01 < honest["caught_high"]  # type: ignore[operator]
    few = remembered(Obscurer(other, even), Records(private[:9], labels[:9]), Records(test, labels), generator)
    assert few["records"] == 9
    assert few["caught"] is None


def test_the_cost_is_measured_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obscurer_leakage, "REPEATS", 2)
    aim = target()
    before = {name: tensor.clone() for name, tensor in aim.model.state_dict().items()}
    state = torch.get_rng_state()
    found = overhead(made(), aim)
    assert found["batch"] == 32
    assert found["training"] >= 0
    assert found["drawing"] >= 0
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in aim.model.state_dict().items())


def test_the_card_says_what_holds_and_shows_users_text_as_it_is() -> None:
    hostile = replace(
        CARD, classes=("<img src=x>", "| a | [b](c)", "line\n# heading"), target="*m*`.py", found=("warning: _x_",)
    )
    text = render(made(), hostile, 'g".safetensors', Costs(2.0, 1.5, 32, 0.001, 0.01), resumed=2)
    assert " <img" not in text
    assert "\\<img src=x\\>" in text
    assert "| \\| a \\| \\[b\\](c) | 4 |" in text
    assert "\n# heading" not in text
    assert r'Obscurer.load("g\".safetensors")' in text
    assert "10% of a training step" in text
    assert "2 stages" in text
    assert "0.1 nats" in text
    assert "not bounded" in text
    assert "keep the draw" in text  # above slope 0 draws add up
    assert "not measured for this file" in text
    assert "5: whoever knows it" in text
    still = render(made(slope=0.0), replace(CARD, nats=0.0, seed=None), "g.safetensors")
    assert "The rate is 0" in still
    assert "keep the draw" not in still
    assert "drawn afresh" in still
    assert escaped("a_b") == "a\\_b"


def test_the_card_shows_no_setting_without_a_part() -> None:
    settings = {"pictures": 2, "temperature": 1.5, "rate": 0.0, "epsilon": None, "delta": 1e-5}
    usual = render(made(), Card(("a", "b", "c"), settings, records=(1, 1, 1), shape=(3, 8, 8)), "g.safetensors")
    private = Card(("a", "b", "c"), {**settings, "epsilon": 8.0}, shape=(3, 8, 8), epsilon=8.0, delta=1e-5)
    assert "| pictures | 2 |" in usual
    assert "| delta" not in usual
    with_epsilon = render(made(), private, "g.safetensors")
    assert "| delta | 1e-05 |" in with_epsilon
    assert not any(f"| {name} |" in with_epsilon for name in ("pictures", "temperature"))
    assert "\n\n## What it was fitted on" in usual
