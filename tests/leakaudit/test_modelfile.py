from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from leakaudit.errors import UserError
from leakaudit.load.loading import load_target
from leakaudit.protocol.usercode import file_of, import_file

HEAD = """
import torch
from torch import nn
from torch.utils.data import TensorDataset
"""
DATA = "train_data = TensorDataset(torch.rand(40, 1, 6, 6), torch.arange(40) % 2)\n"
MODEL = "model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))\n"


def write(folder: Path, text: str, name: str = "model.py") -> str:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_classes_of_a_file_are_found_again_wherever_it_lies(tmp_path: Path) -> None:
    """A defense that one process learned is read by another, which may have the file elsewhere."""
    (tmp_path / "there").mkdir()
    one, moved = (import_file(Path(write(tmp_path / name, "class Own: pass\n")), "is read") for name in ("a", "there"))
    other = import_file(Path(write(tmp_path / "a", "class Own: x = 1\n")), "is read")
    assert one.Own.__module__ == moved.Own.__module__ != other.Own.__module__


def test_a_file_is_loaded_the_same_for_the_same_seed(tmp_path: Path) -> None:
    spec = write(tmp_path, HEAD + DATA + MODEL)
    first, again, other = (load_target(spec, seed=seed) for seed in (0, 0, 1))
    assert first.name == "model.py"
    assert torch.equal(first.model.network[1].weight, again.model.network[1].weight)
    assert torch.equal(first.private.images, again.private.images)
    assert not torch.equal(first.model.network[1].weight, other.model.network[1].weight)


def test_a_factory_after_the_colon_replaces_model(tmp_path: Path) -> None:
    text = HEAD + DATA + MODEL + "def wide():\n    return nn.Sequential(nn.Flatten(), nn.Linear(36, 5))\n"
    target = load_target(write(tmp_path, text) + ":wide")
    assert (target.name, len(target.classes)) == ("model.py:wide", 5)
    assert target.factory is not None


def test_all_names_are_used(tmp_path: Path) -> None:
    text = (
        HEAD
        + "def train_data():\n    return TensorDataset(torch.rand(40, 1, 6, 6) * 2 - 1, torch.arange(40) % 2)\n"
        + "test_data = TensorDataset(torch.rand(9, 1, 6, 6) * 2 - 1, torch.arange(9) % 2)\n"
        + "auxiliary_data = TensorDataset(torch.rand(7, 1, 6, 6) * 2 - 1, torch.arange(7) % 2)\n"
        + MODEL
        + "loss = nn.CrossEntropyLoss(label_smoothing=0.1)\nmean, std = 0.5, [0.5]\n"
        + "classes = ['a', 'b']\ndevice = 'cpu'\n"
    )
    target = load_target(write(tmp_path, text))
    assert (len(target.private), len(target.test), len(target.auxiliary)) == (40, 9, 7)
    assert target.classes == ("a", "b")
    assert float(target.model.mean) == 0.5
    assert target.loss.label_smoothing == 0.1  # type: ignore[attr-defined]
    assert target.device.type == "cpu"


def test_a_folder_with_its_own_attacks_and_defenses(tmp_path: Path) -> None:
    """Two such folders in turn: each gets its own helpers, and ours stay ours."""
    for classes, folder in ((3, tmp_path / "one"), (4, tmp_path / "two")):
        spec = write(
            folder,
            HEAD
            + DATA
            + "import attacks\nimport defenses\n"
            + "def model():\n    import attacks\n    return attacks.build(defenses.CLASSES)\n",
        )
        build = "from torch import nn\ndef build(n):\n    return nn.Sequential(nn.Flatten(), nn.Linear(36, n))\n"
        write(folder, build, "attacks.py")
        write(folder, f"CLASSES = {classes}\n", "defenses.py")
        before = list(sys.path)
        target = load_target(spec)
        assert len(target.classes) == classes
        assert len(target.fresh(0).network[1].bias) == classes  # the helper is found later, too
        assert sys.path == before
        assert "attacks" not in sys.modules
    import leakaudit.attacks
    import leakaudit.defenses

    ours = {Path(path).resolve() for path in [*leakaudit.attacks.__path__, *leakaudit.defenses.__path__]}
    assert not any(path.is_relative_to(tmp_path) for path in ours)


def test_a_module_by_its_dotted_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "a_users_package"
    write(package, "", "__init__.py")
    write(package, HEAD + DATA + MODEL + "def small():\n    return model\n", "nets.py")
    monkeypatch.chdir(tmp_path)
    assert load_target("a_users_package.nets").name == "a_users_package.nets"
    assert load_target("a_users_package.nets:small").factory is not None
    with pytest.raises(UserError, match=r"no file or module named 'a_users_package\.absent'"):
        load_target("a_users_package.absent")
    with pytest.raises(UserError, match=r"no file or module named 'no_such_module'"):
        load_target("no_such_module")
    write(package, "import not_installed_anywhere\n", "lacking.py")
    with pytest.raises(UserError, match=r"lacking, line 1 of lacking\.py fails .*not_installed_anywhere"):
        load_target("a_users_package.lacking")


BAD: dict[str, tuple[str, str]] = {
    "syntax error": ("import torch\ndef model(:\n", r"model\.py, line 2: .*SyntaxError"),
    "exception": ("x = 1\n\nraise ValueError('no weights')\n", r"model\.py, line 3 of model\.py fails .*no weights"),
    "missing import": ("import not_installed_anywhere\n", r"line 1 of model\.py .*not_installed_anywhere"),
    "exits": ("import sys\nsys.exit(3)\n", r"line 2 of model\.py exits while it is imported: put"),
    "no model": (HEAD + DATA, r"defines no `model`"),
    "no data": (HEAD + MODEL, r"defines no `train_data`"),
    "wrong model": (HEAD + DATA + "model = 'resnet18'\n", r"`model` is of type str"),
    "wrong data": (HEAD + MODEL + "train_data = 3\n", r"`train_data` is of type int"),
    "factory fails": (HEAD + DATA + "def model():\n    return {}['a']\n", r"model\(\) fails, line 7 of model\.py"),
    "wrong device": (HEAD + DATA + MODEL + "device = 'abacus'\n", r"device 'abacus'"),
    "null bytes": ("\0", r"model\.py: .*null bytes"),
}


@pytest.mark.parametrize(("text", "says"), BAD.values(), ids=BAD.keys())
def test_bad_files_are_one_sentence_that_names_them(tmp_path: Path, text: str, says: str) -> None:
    spec = write(tmp_path, text)
    with pytest.raises(UserError, match=says) as caught:
        load_target(spec)
    assert str(caught.value).startswith(spec)
    assert "\n" not in str(caught.value)


def test_syntax_error_in_a_helper_names_the_helper(tmp_path: Path) -> None:
    write(tmp_path, "x = (\n", "helper.py")
    with pytest.raises(UserError, match=r"model\.py, line 1: .*helper\.py"):
        load_target(write(tmp_path, "import helper\n"))


def test_missing_files_and_names(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file: .*absent\.py"):
        load_target(str(tmp_path / "absent.py"))
    with pytest.raises(UserError, match=r"is a folder"):
        load_target(str(tmp_path))
    with pytest.raises(UserError, match=r"has no 'net'"):
        load_target(write(tmp_path, HEAD + DATA + MODEL) + ":net")


def test_data_replaces_the_files_own(tmp_path: Path) -> None:
    spec = write(tmp_path, HEAD + DATA + "test_data = train_data\n" + MODEL)
    generator = np.random.default_rng(0)
    arrays: dict[str, Any] = {"x": generator.integers(0, 255, (20, 6, 6)).astype(np.uint8), "y": np.arange(20) % 2}
    np.savez(tmp_path / "other.npz", **arrays)
    target = load_target(spec, data=tmp_path / "other.npz")
    assert (len(target.private), len(target.test), len(target.auxiliary)) == (11, 4, 5)
    only_model = write(tmp_path, HEAD + MODEL, "bare.py")
    assert len(load_target(only_model, data=tmp_path / "other.npz").private) == 11
    with pytest.raises(UserError, match=r"no such file or folder: .*absent\.npz"):
        load_target(spec, data=tmp_path / "absent.npz")


def test_a_checkpoint_replaces_the_weights(tmp_path: Path) -> None:
    spec = write(tmp_path, HEAD + DATA + MODEL)
    torch.save({"1.weight": torch.full((2, 36), 0.25), "1.bias": torch.zeros(2)}, tmp_path / "w.pt")
    assert bool((load_target(spec, checkpoint=tmp_path / "w.pt").model.network[1].weight == 0.25).all())


def test_the_argument_decides_before_the_files_device(tmp_path: Path) -> None:
    spec = write(tmp_path, HEAD + DATA + MODEL + "device = 'abacus'\n")
    assert load_target(spec, device="cpu").device.type == "cpu"


class Lazy(ModuleType):
    """A module that loads others, or fails, when it is asked where it lies: as lazy loaders do."""

    def __init__(self, name: str, fails: bool) -> None:
        super().__init__(name)
        del self.__dict__["__loader__"], self.__dict__["__spec__"]
        self.__dict__["fails"], self.__dict__["asked"] = fails, 0

    @property
    def __file__(self) -> str:  # type: ignore[override]
        self.__dict__["asked"] += 1
        if self.__dict__["fails"]:
            raise OSError("it cannot be loaded here")
        for i in range(200):  # so many that a dictionary which is walked meanwhile grows
            sys.modules.setdefault(f"loaded_lazily_{i}", ModuleType(f"loaded_lazily_{i}"))
        return __file__


@pytest.mark.parametrize("fails", [True, False], ids=["fails", "loads others"])
@pytest.mark.parametrize("before", [True, False], ids=["loaded before", "loaded by the file"])
def test_a_lazy_module_is_asked_for_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool, before: bool
) -> None:
    lazy, name = Lazy("a_lazy_module", fails), "a_lazy_module"
    known = set(sys.modules)
    path = write(tmp_path, HEAD + DATA + MODEL + "import sys, helper\nsys.modules.update(helper.LAZY)\n")
    write(tmp_path, "LAZY = {}\n" if before else "import sys\nLAZY = sys.a_lazy_module\n", "helper.py")
    write(tmp_path, "", f"{name}.py")  # one of its name lies beside the file, so it must be looked at
    monkeypatch.setitem(sys.modules, name, lazy) if before else None
    monkeypatch.setattr(sys, "a_lazy_module", {name: lazy}, raising=False)
    try:
        assert len(load_target(path).classes) == 2
        assert lazy.__dict__["asked"]
        assert "helper" not in sys.modules
        assert (sys.modules.get(name) is lazy) or not before  # what was hidden is back
    finally:
        for each in set(sys.modules) - known:
            if each.startswith(("loaded_lazily_", name)):
                del sys.modules[each]


def test_what_is_no_module_has_no_file() -> None:
    assert file_of(object()) is None
    assert file_of(None) is None
    assert file_of(type("Odd", (), {"__file__": 3})()) is None
    assert file_of(sys.modules[__name__]) == __file__
