from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from leakaudit.data.datafiles import read_data
from leakaudit.errors import UserError
from leakaudit.load.checkpoints import load_checkpoint
from leakaudit.load.loading import target_from_objects


def network(channels: int = 3, classes: int = 2) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(classes))


def folders(root: Path, mode: str = "RGB", size: tuple[int, int] = (9, 8)) -> Path:
    for label, name in enumerate(("wolf", "cat", "dog")):
        (root / name).mkdir(parents=True)
        for i in range(5):
            colour = 40 * label + 3 * i + 1
            Image.new(mode, size, colour if mode == "L" else (colour, 0, 9)).save(root / name / f"{i}.png")
    return root


def test_class_folders_give_sorted_classes_and_pixels(tmp_path: Path) -> None:
    data, test, *_ = read_data(folders(tmp_path))
    assert (test, data.classes, len(data)) == (None, ("cat", "dog", "wolf"), 15)
    target = target_from_objects(network(classes=3), data, mean=0.5, std=0.5)  # pixels are not normalised again
    assert target.classes == ("cat", "dog", "wolf")
    assert target.input_shape == (3, 8, 9)
    shades = {"cat": 40, "dog": 80, "wolf": 0}
    for image, label in zip(target.private.images, target.private.labels, strict=True):
        assert round(float(image[0, 0, 0]) * 255) - shades[target.classes[int(label)]] in range(1, 15)


def test_grey_photographs_among_colour_ones_are_expanded(tmp_path: Path) -> None:
    Image.new("L", (9, 8), 7).save(folders(tmp_path) / "cat" / "grey.png")
    assert target_from_objects(network(classes=3), read_data(tmp_path)[0]).input_shape == (3, 8, 9)


def test_folders_of_two_sizes_name_both(tmp_path: Path) -> None:
    Image.new("RGB", (7, 7)).save(folders(tmp_path) / "cat" / "small.png")
    with pytest.raises(UserError, match=r"differ in size: \(3, .*\(3, .*one size") as caught:
        target_from_objects(network(classes=3), read_data(tmp_path)[0])
    assert "(3, 7, 7)" in str(caught.value)
    assert "(3, 8, 9)" in str(caught.value)


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    broken = folders(tmp_path) / "cat" / "0.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"0\.png cannot be read as a picture \(it is none of PNG"):
        target_from_objects(network(classes=3), read_data(tmp_path)[0])


def test_folders_without_classes_or_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds 0 class folder"):
        read_data(tmp_path)
    folders(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"class folder .*empty holds no picture"):
        read_data(tmp_path)
    with pytest.raises(UserError, match=r"no such file or folder"):
        read_data(tmp_path / "absent")
    (tmp_path / "data.csv").write_text("1,2")
    with pytest.raises(UserError, match=r"neither a folder nor an \.npz"):
        read_data(tmp_path / "data.csv")


def arrays(layout: str, dtype: str, count: int = 20) -> np.ndarray[Any, Any]:
    shape = {"NHWC": (count, 8, 9, 3), "NCHW": (count, 3, 8, 9), "NHW": (count, 8, 9)}[layout]
    pixels = np.random.default_rng(0).integers(0, 256, shape)
    return pixels.astype(np.uint8) if dtype == "uint8" else (pixels / 255).astype(dtype)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "NHW"])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
@pytest.mark.parametrize("keys", [("x_train", "y_train"), ("x", "y"), ("images", "labels"), ("x_test", "y_test")])
def test_npz_layouts_types_and_keys(tmp_path: Path, layout: str, dtype: str, keys: tuple[str, str]) -> None:
    x, y = arrays(layout, dtype), np.arange(20).astype(np.uint8) % 2
    np.savez(tmp_path / "d.npz", **{keys[0]: x, keys[1]: y})
    data, test, *_ = read_data(tmp_path / "d.npz")
    assert test is None
    channels = 1 if layout == "NHW" else 3
    target = target_from_objects(network(channels), data, mean=[0.4] * channels, std=0.25)
    assert target.input_shape == (channels, 8, 9)
    expected = x.astype(np.float64) / (255 if dtype == "uint8" else 1)
    if layout != "NCHW":
        expected = expected.reshape(20, 8, 9, channels).transpose(0, 3, 1, 2)
    for image, label in zip(target.private.images, target.private.labels, strict=True):
        distances = np.abs(expected - image.numpy()).max((1, 2, 3))
        assert distances.min() < 1e-6
        assert y[distances.argmin()] == int(label)


def test_npz_test_set_is_the_test_role(tmp_path: Path) -> None:
    x, y = arrays("NHWC", "uint8"), np.arange(20) % 2
    np.savez(tmp_path / "d.npz", x_train=x[:15], y_train=y[:15], x_test=x[15:], y_test=y[15:])
    train, test, *_ = read_data(tmp_path / "d.npz")
    assert test is not None
    target = target_from_objects(network(), train, test_data=test)
    assert (len(target.private), len(target.auxiliary), len(target.test)) == (11, 4, 5)


def test_shared_cifar_test_file_is_read(shared: Path) -> None:
    data, test, *_ = read_data(shared / "data" / "cifar10" / "cifar10_test.npz")
    assert (test, len(data), data.classes[9]) == (None, 10000, "truck")
    assert target_from_objects(network(classes=10), data, limit=20).input_shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"a": np.zeros(3)}, "holds a: name its arrays x_train and y_train"),
        ({"x": np.zeros((4, 5, 5, 3)), "y": np.zeros(3, int)}, "4 pictures in x but 3 labels"),
        ({"x": np.zeros((4, 5)), "y": np.zeros(4, int)}, r"x in .* has shape \(4, 5\)"),
        ({"x": np.full((4, 5, 5, 3), "a"), "y": np.zeros(4, int)}, "give uint8"),
        ({"x": np.array([None, "a"], dtype=object), "y": np.zeros(2, int)}, "plain arrays"),
    ],
)
def test_wrong_npz_contents_are_refused(tmp_path: Path, content: dict[str, Any], says: str) -> None:
    np.savez(tmp_path / "d.npz", **content)
    with pytest.raises(UserError, match=says):
        read_data(tmp_path / "d.npz")


def test_an_npz_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.npz").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(UserError, match=r"d\.npz cannot be read as an \.npz"):
        read_data(tmp_path / "d.npz")


def dense() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def wrapped(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    "arrange",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s},
        lambda s: {"model_state_dict": s, "loss": 0.1},
        lambda s: wrapped(s, "module."),
        lambda s: {"state_dict": wrapped(s, "model.module.")},
        lambda s: {k: v for k, v in s.items() if "num_batches" not in k},
    ],
)
@pytest.mark.parametrize("safe", [False, True])
def test_checkpoint_forms(tmp_path: Path, arrange: Any, safe: bool) -> None:
    source, into = dense(), dense()
    content = arrange(source.state_dict())
    if safe and not all(isinstance(v, torch.Tensor) for v in content.values()):
        content = next(v for v in content.values() if isinstance(v, dict))
    path = tmp_path / ("w.safetensors" if safe else "w.pt")
    save_file(content, path) if safe else torch.save(content, path)
    load_checkpoint(into, path)
    for key, value in source.state_dict().items():
        assert torch.equal(into.state_dict()[key], value), key


@pytest.mark.parametrize(
    ("arrange", "says"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "2.bias"}, r"misses '2\.bias'"),
        (lambda s: s | {"3.weight": torch.zeros(1)}, r"unexpected '3\.weight'"),
        (lambda s: s | {"2.bias": torch.zeros(7)}, r"'2\.bias' of shape \(7,\), not \(2,\)"),
        (lambda s: {k: v for k, v in s.items() if not k.startswith("0")}, r"misses '0\.weight' \(and 1 more\)"),
        (lambda s: {"weights": [1, 2]}, "holds dict with keys weights, not a state dict"),
        (lambda s: [1, 2], "holds list, not a state dict"),
        (lambda s: dense(), "cannot be read as plain weights"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(tmp_path: Path, arrange: Any, says: str) -> None:
    path = tmp_path / "w.pt"
    torch.save(arrange(dense().state_dict()), path)
    with pytest.raises(UserError, match=rf"w\.pt.* {says}") as caught:
        load_checkpoint(dense(), path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_broken_and_missing_checkpoints_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"no such checkpoint"):
        load_checkpoint(dense(), tmp_path / name)
    (tmp_path / name).write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match=r"cannot be read as plain weights"):
        load_checkpoint(dense(), tmp_path / name)
