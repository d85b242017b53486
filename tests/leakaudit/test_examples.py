"""The examples load, pass preflight, and give what their comments say."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from leakaudit.load.loading import load_target
from leakaudit.load.preflight import preflight, raise_on_errors

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_minimal() -> None:
    target = load_target(str(EXAMPLES / "minimal.py"))
    assert target.classes == ("face", "other")
    assert target.input_shape == (1, 25, 25)
    raise_on_errors(preflight(target, mode="eval", batch_size=1, records=16))


@pytest.mark.parametrize("name", ["cifar10", "torchvision_resnet18"])
def test_cifar10(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read from a small folder named by CIFAR10_DATA: the real files take seconds to unpack."""
    generator = np.random.default_rng(0)
    for file, key in (("cifar10_train_a", "train"), ("cifar10_train_b", "train"), ("cifar10_test", "test")):
        x = generator.integers(0, 256, (40, 32, 32, 3)).astype(np.uint8)
        np.savez(tmp_path / f"{file}.npz", **{f"x_{key}": x, f"y_{key}": (np.arange(40) % 10).astype(np.uint8)})
    monkeypatch.setenv("CIFAR10_DATA", str(tmp_path))
    target = load_target(str(EXAMPLES / f"{name}.py"))
    assert (len(target.private), len(target.test), len(target.auxiliary)) == (40, 40, 40)
    assert target.classes[9] == "truck"
    assert target.factory is not None
    with np.load(tmp_path / "cifar10_train_a.npz") as archive:
        truth = archive["x_train"].transpose(0, 3, 1, 2)
    for image in target.private.images[:3]:
        pixels = np.round(image.numpy() * 255).astype(np.uint8)
        assert (truth == pixels).all((1, 2, 3)).sum() == 1
    raise_on_errors(preflight(target, mode="eval", batch_size=1, records=16))


def test_real_cifar10(shared: Path) -> None:
    target = load_target(str(EXAMPLES / "cifar10.py"))
    assert (len(target.private), len(target.test), len(target.auxiliary)) == (2000, 2000, 1000)
    assert target.notes == ()


def test_an_example_may_be_copied_elsewhere(tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "minimal.py", tmp_path / "attacks.py")
    assert load_target(str(tmp_path / "attacks.py")).name == "attacks.py"


def test_a_loop_of_ones_own_is_captured(tmp_path: Path) -> None:
    """The file holds what the model became, and the records beside it made exactly that."""
    import runpy
    import sys
    from unittest import mock

    import torch
    from torch.nn import functional as F

    from leakaudit.captured.reading import read_capture

    with mock.patch.object(sys, "path", [str(EXAMPLES), *sys.path]):
        loop = runpy.run_path(str(EXAMPLES / "captured_loop.py"))
        loop["main"](tmp_path / "update.safetensors")
    found = read_capture(tmp_path / "update.safetensors")
    with np.load(tmp_path / "update-records.npz") as archive:
        images, labels = torch.from_numpy(archive["images"]), torch.from_numpy(archive["labels"])
    model = loop["minimal"].model()
    model.load_state_dict(dict(found.before))
    optimiser = torch.optim.SGD(model.parameters(), lr=found.claims.local_lr or 0.0)
    for x, y in zip(torch.split(images, 4), torch.split(labels, 4), strict=True):
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimiser.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, found.updates[0][name])
