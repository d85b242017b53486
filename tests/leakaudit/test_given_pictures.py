"""What data may give as pictures and volumes, beside what a model takes; and what neither is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from leakaudit.data.noticing import misdeclared
from leakaudit.data.records import NORMALISATIONS
from leakaudit.errors import UserError
from leakaudit.load.expected import expected_of
from leakaudit.load.loading import target_from_objects
from leakaudit.protocol.target import Target

DRAWN = np.random.default_rng(0)


def flat(channels: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 2))


def deep(channels: int) -> nn.Module:
    return nn.Sequential(nn.Conv3d(channels, 4, 3), nn.AdaptiveAvgPool3d(2), nn.Flatten(), nn.Linear(32, 2))


class Repeats(nn.Module):
    """A model that repeats grey pictures itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = flat(3)

    def forward(self, x: Tensor) -> Any:
        return self.inner(x.repeat(1, 3, 1, 1))


class Bands(nn.Module):
    """A model of volumes that is given their slices as channels."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = deep(1)

    def forward(self, x: Tensor) -> Any:
        return self.inner(x[:, None])


class Given(Dataset[Any]):
    def __init__(self, form: Callable[[int], Any], count: int = 12) -> None:
        self.form, self.count = form, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        found = self.form(index)
        return found if isinstance(found, tuple | dict | list | str) else (found, index % 2)


def pixels(*shape: int) -> np.ndarray[Any, Any]:
    return DRAWN.random((12, *shape), dtype=np.float32)


def target(model: nn.Module, form: Callable[[int], Any], **given: Any) -> Target:
    return target_from_objects(model, Given(form), **given)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("tensor", [True, False])
def test_channels_stand_first_or_last_by_what_the_model_takes(channels: int, first: bool, tensor: bool) -> None:
    values = pixels(channels, 7, 9)
    shown = values if first else np.moveaxis(values, 1, -1).copy()
    found = target(flat(channels), lambda i: torch.from_numpy(shown[i]) if tensor else shown[i])
    known = {values[i].tobytes() for i in range(12)}
    assert all(image.numpy().tobytes() in known for image in found.private.images)


def collate(batch: list[Any]) -> tuple[Tensor, Tensor]:
    return torch.stack([torch.as_tensor(x) for x, _ in batch]), torch.tensor([y for _, y in batch])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "form",
    [lambda v: v, lambda v: v.numpy(), lambda v: v.movedim(0, -1).numpy(), lambda v: v[0] if len(v) == 1 else v],
    ids=["tensor", "array", "channels last", "no channel"],
)
@pytest.mark.parametrize("loader", [False, True])
def test_volumes_are_folded_slice_by_slice_and_given_to_the_model_as_they_were(
    channels: int, form: Callable[[Tensor], Any], loader: bool
) -> None:
    volumes = torch.from_numpy(pixels(channels, 5, 7, 8)) / 2
    mean = (0.1, 0.2, 0.3)[:channels]
    data: Any = Given(lambda i: form((volumes[i] - torch.tensor(mean).view(-1, 1, 1, 1)) / 0.5))
    if loader:  # what a loader collates is read in batches where its collate function is the user's own
        if form(volumes[0]).shape[-1] == channels:
            pytest.skip("a batch of tensors has its channels first")
        data = DataLoader(data, batch_size=4, collate_fn=collate)
    found = target_from_objects(deep(channels), data, mean=mean, std=0.5)
    assert (found.model.depth, found.input_shape) == (5, (channels * 5, 7, 8))
    for image in found.private.images:
        gaps = (volumes.flatten(1, 2) - image).abs().amax((1, 2, 3))
        assert float(gaps.min()) < 1e-5
        given = (volumes[int(gaps.argmin())] - torch.tensor(mean).view(-1, 1, 1, 1)) / 0.5
        with torch.no_grad():
            assert torch.allclose(found.model(image[None]), found.model.network(given[None]), atol=1e-4)


def test_grey_pictures_are_repeated_only_for_a_model_that_does_not_do_so_itself() -> None:
    values = pixels(1, 7, 9)
    repeated = target(flat(3), lambda i: values[i])
    assert repeated.input_shape == (3, 7, 9)
    assert any("the one channel was repeated" in note for note in repeated.notes)
    assert target(Repeats(), lambda i: values[i]).input_shape == (1, 7, 9)
    bands = target(Bands(), lambda i: torch.from_numpy(pixels(6, 7, 9)[0]))
    assert (bands.input_shape, bands.model.depth) == ((6, 7, 9), 1)


def grey(values: np.ndarray[Any, Any], mode: str | None = None) -> Any:
    return Image.fromarray(values) if mode is None else Image.fromarray(values).convert(mode)


BYTES = DRAWN.integers(0, 256, (12, 7, 9)).astype(np.uint8)
WIDE = DRAWN.integers(0, 65536, (12, 7, 9)).astype(np.uint16)
UNIT = DRAWN.random((12, 7, 9), dtype=np.float32)
MODES: dict[str, tuple[Callable[[int], Any], np.ndarray[Any, Any], str]] = {
    "L": (lambda i: grey(BYTES[i]), BYTES / 255, ""),
    "LA": (lambda i: grey(BYTES[i], "LA"), BYTES / 255, "In all 12 records read of train_data, the alpha channel"),
    "1": (lambda i: Image.fromarray(BYTES[i] > 99), (BYTES > 99) * 1.0, ""),
    "I;16": (lambda i: grey(WIDE[i]), WIDE / 65535, ""),
    "I": (lambda i: grey(WIDE[i].astype(np.int32)), WIDE / 65535, ""),
    "F": (lambda i: grey(UNIT[i]), UNIT, ""),
    "big-endian": (lambda i: WIDE[i].astype(">u2"), WIDE / 65535, ""),
    "sparse": (lambda i: torch.from_numpy(UNIT[i] * 2 - 1).to_sparse(), UNIT, ""),
    "uint16": (lambda i: WIDE[i], WIDE / 65535, ""),
}


@pytest.mark.parametrize(("form", "values", "note"), MODES.values(), ids=MODES.keys())
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_of_every_mode_keep_their_value(
    form: Callable[[int], Any], values: np.ndarray[Any, Any], note: str, channels: int
) -> None:
    found = target(flat(channels), form, mean=0.5, std=0.5)
    assert found.input_shape[0] == channels
    for image in found.private.images:
        assert np.abs(values - image[0].numpy()).max((1, 2)).min() < 1e-6
    assert any(note in each for each in found.notes)


def colours(channels: int) -> Callable[[int], Any]:
    values = DRAWN.integers(0, 256, (12, 7, 9, channels)).astype(np.uint8)
    return lambda i: Image.fromarray(values[i])


@pytest.mark.parametrize(
    ("model", "form", "says"),
    [
        (flat(1), lambda i: grey(WIDE[i] // 16), r"12 picture\(s\) of 16 bits .* 12 bits do, .* divide them by 4095,"),
        (flat(3), lambda i: grey((WIDE[i] // 16).astype(np.int32)), "divide them by 4095,"),
        (flat(1), lambda i: WIDE[i] // 64, "10 bits do, .* divide them by 1023,"),
        (flat(1), lambda i: WIDE[i] // 4, "14 bits do, .* divide them by 16383,"),
        (flat(1), lambda i: WIDE[i] // 256, "8 bits do, .* divide them by 255,"),
        (flat(1), lambda i: grey(UNIT[i] * 255), "look like 0 to 255, .*divide them by 255"),
        (flat(1), lambda i: grey(UNIT[i] * 4000), "look like 0 to 4095, .*divide them by 4095"),
        (flat(1), lambda i: grey(WIDE[i].astype(np.int32) * 2), r"record .* whole numbers from .*\(mode I\)"),
        (flat(1), lambda i: WIDE[i].astype(np.int16) // 16, "whole numbers without a known white, so subtract"),
        (flat(1), lambda i: (i, grey(BYTES[i]), 1), "record .* begins with a number, and its image comes later"),
        (flat(1), lambda i: (f"{i}.png", grey(BYTES[i]), 1), "begins with a text, '.*png', and its image comes later"),
        (flat(1), colours(3), "has 3 channel.* takes 1: make them grey"),
        (flat(1), colours(4), r"has 3 channel.*\(the alpha channel was left out\).* takes 1"),
        (flat(4), lambda i: grey(BYTES[i]), "has 1 channel.* takes 4"),
        (flat(3), lambda i: torch.rand(4, 7, 9), "has 4 channel.* takes 3: leave the fourth out"),
        (flat(3), lambda i: pixels(3, 7, 3)[0], r"shape \(3, 7, 3\), of which the channels may stand first or last"),
        (flat(3), lambda i: pixels(7, 7, 7)[0], r"\(7, 7, 7\), of which neither end .* a slice if it is a volume"),
        (
            flat(1),
            lambda i: torch.rand(1, 5, 7, 9),
            r"is a volume, of shape \(1, 5, 7, 9\), but `model` takes pictures",
        ),
        (deep(1), lambda i: grey(BYTES[i]), r"is a picture, of shape \(1, 7, 9\), but `model` takes volumes \(1, D"),
        (deep(1), lambda i: torch.rand(1, 7, 9), r"shape \(1, 7, 9\), but `model` takes volumes: give \(1, D, H, W\)"),
        (deep(3), lambda i: torch.rand(3, 7, 9), r"shape \(3, 7, 9\), but `model` takes volumes: give \(3, D, H, W\)"),
        (deep(3), lambda i: torch.rand(5, 3, 7, 9), "has 5 channel.* takes 3: they seem to stand second"),
        (deep(1), lambda i: torch.rand(1, 1, 7, 9), "a volume of one slice"),
        (deep(1), lambda i: torch.rand(1, 5, 7, 8 + i % 2), r"differ in size: \(1, 5, 7, \d\) at record \d+"),
    ],
)
def test_pictures_that_do_not_fit_are_refused_with_the_mend(
    model: nn.Module, form: Callable[[int], Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        target(model, form)


def test_channels_of_four_are_those_of_the_model() -> None:
    form = colours(4)
    assert target(flat(4), form).input_shape == (4, 7, 9)
    found = target(flat(3), form)
    assert found.input_shape == (3, 7, 9)
    assert any("In all 12 records read of train_data, the alpha channel was left out." in note for note in found.notes)


def test_volumes_beside_a_model_that_does_not_say_what_it_takes() -> None:
    for form in (lambda i: pixels(7, 7, 7)[0], lambda i: torch.from_numpy(pixels(1, 7, 7, 7)[0])):
        dense = nn.Sequential(nn.Flatten(), nn.Linear(343, 2))
        found = target(dense, form)
        assert (found.model.depth, found.input_shape) == (7, (7, 7, 7))


def test_what_a_model_takes_is_told_by_its_first_convolution() -> None:
    assert expected_of(nn.Sequential(nn.Linear(2, 2))).volumes is None
    assert expected_of(nn.Sequential(nn.LazyConv3d(4, 3))).channels is None
    assert expected_of(nn.Sequential(nn.Conv1d(4, 3, 1))).series
    frozen = flat(5).requires_grad_(False)
    assert (expected_of(frozen).volumes, expected_of(frozen).channels) == (False, 5)
    assert (expected_of(deep(2)).volumes, expected_of(deep(2)).channels) == (True, 2)


OTHERS: dict[str, tuple[Callable[[int], Any], str]] = {
    "token ids": (lambda i: torch.arange(30), "30 whole numbers in a row"),
    "tokens by name": (lambda i: {"input_ids": torch.arange(30), "labels": 1}, "token ids"),
    "text": (lambda i: ("a film", 1), "is text"),
    "text behind its label": (lambda i: (1, "a film"), "is text"),
    "text by name": (lambda i: {"text": "a film", "label": 1}, r"is text \(keys: text, label\)"),
    "text alone": (lambda i: "a film", "is text"),
    "table": (lambda i: torch.rand(30), "30 numbers in a row, with no height and width"),
    "table by names": (lambda i: {"age": 3, "job": "clerk", "label": 1}, "a row of a table"),
    "sound": (lambda i: torch.rand(1, 16000), r"shape \(1, 16000\), as sound"),
    "sound by name": (lambda i: {"audio": {"array": np.zeros(9), "sampling_rate": 9}, "label": 1}, "is sound"),
    "boxes": (lambda i: (torch.rand(3, 7, 9), {"boxes": torch.rand(2, 4), "labels": torch.ones(2)}), "boxes"),
    "boxes in a list": (lambda i: (torch.rand(3, 7, 9), [{"bbox": [1, 2, 3, 4]}]), "boxes"),
    "boxes by name": (lambda i: {"image": torch.rand(3, 7, 9), "objects": {"bbox": []}}, "boxes"),
    "captions": (lambda i: (torch.rand(3, 7, 9), ["a dog in the grass"] * 5), "text that describes"),
}


@pytest.mark.parametrize(("form", "says"), OTHERS.values(), ids=OTHERS.keys())
def test_what_is_no_data_of_pictures_is_refused_in_one_sentence(form: Callable[[int], Any], says: str) -> None:
    with pytest.raises(UserError, match=rf"^leakaudit audits models of pictures; .*{says}") as caught:
        target(flat(3), form)
    assert " give " not in str(caught.value)  # there is no mend


@pytest.mark.parametrize(
    "data", [np.zeros((9, 3)), (np.zeros((9, 3)), np.zeros(9)), TensorDataset(torch.zeros(9, 3), torch.zeros(9))]
)
def test_tables_are_refused(data: Any) -> None:
    with pytest.raises(UserError, match=r"^leakaudit audits models of pictures"):
        target_from_objects(nn.Linear(3, 2), data)


def test_a_convolution_of_one_dimension_tells_series_from_grey_pictures() -> None:
    with pytest.raises(UserError, match=r"shape \(12, 50\), and `model` a convolution of one dimension"):
        target(nn.Sequential(nn.Conv1d(12, 4, 3), nn.Flatten(), nn.Linear(192, 2)), lambda i: torch.rand(12, 50))
    assert target(flat(1), lambda i: torch.rand(12, 50)).input_shape == (1, 12, 50)


@pytest.fixture(scope="module")
def photographs(shared: Path) -> Tensor:
    found = [np.asarray(Image.open(file)) for file in sorted((shared / "data/photos/kodak24_224").glob("*.png"))]
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2)[:, :, ::4, ::4].float() / 255


@pytest.mark.parametrize("true", ["CIFAR-10", "ImageNet", "half", "none"])
@pytest.mark.parametrize("declared", ["CIFAR-10", "CIFAR-10 (older)", "ImageNet", "half"])
def test_constants_that_do_not_fit_are_noticed_and_those_that_do_are_not(
    true: str, declared: str, photographs: Tensor
) -> None:
    """Independent of where they are looked for: photographs, normalised by hand."""
    known, raw = NORMALISATIONS | {"none": ((0.0,), (1.0,))}, photographs
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in known[true])
    given = (raw - mean) / std
    low, high = (given.amin((0, 2, 3)), given.amax((0, 2, 3)))
    scale = known[declared]
    shift, factor = torch.tensor(scale[0]), torch.tensor(scale[1])
    try:
        found = target_from_objects(flat(3), TensorDataset(given, torch.arange(24) % 2), mean=scale[0], std=scale[1])
    except UserError:
        assert float((low * factor + shift).min()) < 0 or float((high * factor + shift).max()) > 1
        return
    told = [note for note in found.notes if "do not fit" in note]
    assert len(told) == (0 if true == declared else 1)
    assert all((true if true != "none" else "without any") in note for note in told)


def test_no_constants_are_doubted_where_pixels_are_off_the_grey_levels_and_the_extremes() -> None:
    class One:
        raw = False

        def __init__(self) -> None:
            self.picture = torch.rand(3, 9, 9) * 0.6 + 0.2

    for mean, std in NORMALISATIONS.values():
        items: Any = [One() for _ in range(9)]
        assert misdeclared(items, ((0.0,), (1.0,)), "d") is None
        for item in items:
            item.picture = (item.picture - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
        assert misdeclared(items, (mean, std), "d") is None
