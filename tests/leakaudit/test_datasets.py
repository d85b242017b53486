from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, SubsetRandomSampler, TensorDataset

from leakaudit.data.datasets import classes_of, divide, to_picture
from leakaudit.errors import UserError


def numbered(count: int = 30, channels: int = 3) -> tuple[Tensor, Tensor]:
    """Pictures whose every pixel tells their position: position / 100."""
    images = (torch.arange(count).float() / 100).view(-1, 1, 1, 1).expand(count, channels, 4, 5).contiguous()
    return images, torch.arange(count) % 10


def positions(items: list[Any]) -> list[int]:
    found = [round(float(item.picture.max()) * 100) for item in items]
    assert all(item.label == position % 10 for item, position in zip(items, found, strict=True))
    assert all(item.picture.shape[1:] == (4, 5) for item in items)
    return sorted(found)


class Mapped(Dataset[Any]):
    def __init__(self, form: Any, count: int = 30) -> None:
        self.form, (self.images, self.labels) = form, numbered(count)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Any:
        return self.form(self.images[index], self.labels[index])


class Streamed(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(Mapped(lambda x, y: (x, int(y))))


FORMS = {
    "tuple of tensors": lambda x, y: (x, y),
    "list": lambda x, y: [x, int(y)],
    "numpy": lambda x, y: (x.numpy(), np.int64(y)),
    "channels last": lambda x, y: (x.permute(1, 2, 0).numpy(), int(y)),
    "label of shape (1,)": lambda x, y: (x, y.view(1)),
    "a third value": lambda x, y: (x, y, "name.png"),
    "dict": lambda x, y: {"image": x, "label": y},
    "pixel_values": lambda x, y: {"pixel_values": x, "labels": int(y)},
    "img and target": lambda x, y: {"img": x, "target": y},
    "inputs and y": lambda x, y: {"id": 3, "inputs": x, "y": y},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("loader", [False, True])
def test_every_form_of_record_is_read(form: Any, loader: bool) -> None:
    data: Any = Mapped(form)
    (items,), count, _ = divide(DataLoader(data, batch_size=7) if loader else data, [1.0], name="d", limit=99, seed=0)
    assert count == 30
    assert positions(items) == list(range(30))


def pairs_collate(batch: list[Any]) -> dict[str, Any]:
    return {"images": torch.stack([x for x, _ in batch]), "labels": torch.stack([y for _, y in batch])}


@pytest.mark.parametrize(
    "make",
    [
        lambda: Streamed(),
        lambda: DataLoader(Streamed(), batch_size=7),
        lambda: DataLoader(TensorDataset(*numbered()), batch_size=7, shuffle=True),
        lambda: DataLoader(TensorDataset(*numbered()), batch_size=None),
        lambda: DataLoader(TensorDataset(*numbered()), batch_size=7, collate_fn=pairs_collate),
        lambda: DataLoader(TensorDataset(*numbered()), batch_size=7, collate_fn=lambda b: [list(c) for c in zip(*b)]),  # noqa: B905
        lambda: Subset(TensorDataset(*numbered()), range(30)),
        lambda: numbered(),
        lambda: tuple(part.numpy() for part in numbered()),
        lambda: list(zip(*numbered(), strict=True)),
    ],
)
def test_every_kind_of_source_is_read(make: Any) -> None:
    (items,), *_ = divide(make(), [1.0], name="d", limit=99, seed=0)
    assert positions(items) == list(range(30))


def test_a_loader_that_yields_a_part_is_read_as_that_part() -> None:
    sampler = SubsetRandomSampler([3, 5, 8, 13])
    (items,), count, _ = divide(
        DataLoader(TensorDataset(*numbered()), batch_size=3, sampler=sampler), [1.0], name="d", limit=99, seed=0
    )
    assert (positions(items), count) == ([3, 5, 8, 13], 4)


def test_the_same_seed_reads_the_same_and_no_random_state_is_left_changed() -> None:
    generator = torch.Generator().manual_seed(5)
    loader = DataLoader(
        TensorDataset(*numbered()), batch_size=4, shuffle=True, collate_fn=pairs_collate, generator=generator
    )

    def read(seed: int) -> list[int]:
        return [round(float(i.picture.max()) * 100) for i in divide(loader, [1.0], name="d", limit=9, seed=seed)[0][0]]

    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate(), generator.get_state()
    first, again, other = read(0), read(0), read(1)
    assert first == again != other
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()
    assert before[2] == random.getstate()
    assert torch.equal(before[3], generator.get_state())


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 60), limit=st.integers(3, 40), seed=st.integers(0, 9), stream=st.booleans())
def test_parts_are_disjoint_never_empty_and_within_the_limit(count: int, limit: int, seed: int, stream: bool) -> None:
    source: Any = TensorDataset(*numbered(count))
    source = iter(list(source)) if stream else source
    if min(count, 3 * limit if stream else count) < 3:
        with pytest.raises(UserError, match="too few"):
            divide(source, [0.55, 0.2, 0.25], name="d", limit=limit, seed=seed)
        return
    parts, *_ = divide(source, [0.55, 0.2, 0.25], name="d", limit=limit, seed=seed)
    found = [positions(part) for part in parts]
    assert all(1 <= len(part) <= limit for part in found)
    merged = [position for part in found for position in part]
    assert len(set(merged)) == len(merged)
    if max(map(len, found)) < limit:
        assert len(merged) == count


@pytest.mark.parametrize(
    ("image", "shape", "value"),
    [
        (Image.new("RGB", (5, 4), (255, 0, 0)), (3, 4, 5), 1.0),
        (Image.new("L", (5, 4), 51), (1, 4, 5), 0.2),
        (Image.new("1", (5, 4), 1), (1, 4, 5), 1.0),
        (Image.new("P", (5, 4)), (3, 4, 5), 0.0),
        (Image.new("RGBA", (5, 4), (51, 51, 51, 255)), (3, 4, 5), 0.2),
        (Image.new("I;16", (5, 4), 65535), (1, 4, 5), 1.0),
        (np.full((4, 5, 3), 51, np.uint8), (3, 4, 5), 0.2),
        (np.full((4, 5), 51, np.uint8), (1, 4, 5), 0.2),
        (torch.full((3, 4, 5), 51, dtype=torch.uint8), (3, 4, 5), 0.2),
        (torch.full((4, 5, 3), 51, dtype=torch.uint8), (3, 4, 5), 0.2),
    ],
)
def test_raw_pictures_become_pixels(image: Any, shape: tuple[int, ...], value: float) -> None:
    seen = to_picture(image, "d")
    assert seen.raw
    assert tuple(seen.picture.shape) == shape
    assert float(seen.picture.max()) == pytest.approx(value)


def test_a_tensor_three_pixels_wide_keeps_its_channels_first() -> None:
    image = torch.rand(1, 7, 3)
    assert torch.equal(to_picture(image, "d").picture, image)


@pytest.mark.parametrize(
    ("form", "says"),
    [
        (lambda x, y: x, "yields one tensor per record"),
        (lambda x, y: (x,), "yields 1 value"),
        (lambda x, y: {"image": x}, r"dicts without a label \(keys: image\)"),
        (lambda x, y: {"photo": x, "label": y}, "dicts without an image"),
        (lambda x, y: (x, float("nan")), "not finite"),
        (lambda x, y: (x, "cat"), "whole number"),
        (lambda x, y: (x, None), "whole number"),
        (lambda x, y: ("file.png", y), "name of a file as its image, 'file.png'"),
        (lambda x, y: (b"file", y), "is not decoded .bytes."),
        (lambda x, y: (x[None, None, None], y), r"shape \(1, 1, 1, 3, 4, 5\)"),
        (lambda x, y: 1 / 0, r"fails at record \d+ \(ZeroDivisionError: division by zero\)"),
        (lambda x, y: (x.expand(2, 3, 4, 5), y.expand(2)), "a batch of 2 pictures"),
    ],
)
def test_records_of_a_wrong_form_are_refused(form: Any, says: str) -> None:
    with pytest.raises(UserError, match=f"^[^;]*train_data .*{says}"):
        divide(Mapped(form), [1.0], name="train_data", limit=9, seed=0)


def test_a_loader_that_yields_one_tensor_is_refused() -> None:
    loader = DataLoader(TensorDataset(*numbered()), batch_size=4, collate_fn=lambda b: torch.stack([x for x, _ in b]))
    with pytest.raises(UserError, match=r"^train_data yields one tensor"):
        divide(loader, [1.0], name="train_data", limit=9, seed=0)


def test_a_batch_with_too_few_labels_is_refused() -> None:
    with pytest.raises(UserError, match=r"4 pictures with 3 label"):
        divide(iter([(torch.rand(4, 1, 5, 5), torch.zeros(3).long())]), [1.0], name="d", limit=9, seed=0)


def test_class_names_are_found_under_subset_and_loader() -> None:
    data = TensorDataset(*numbered())
    data.classes = ["a", "b"]  # type: ignore[attr-defined]
    assert classes_of(DataLoader(Subset(data, [1, 2]))) == ("a", "b")
    assert classes_of(Streamed()) is None


@pytest.mark.parametrize(
    ("length", "said"), [(2**26, "at most 33,554,432 of them"), (10**18, "at most 33,554,432"), (-1, "has no length")]
)
def test_a_dataset_that_lies_of_its_length_is_refused_before_its_positions_are_drawn(length: int, said: str) -> None:
    class Lies(Mapped):
        def __len__(self) -> int:
            return length

    with pytest.raises(UserError, match=said):
        divide(Lies(tuple), (0.8, 0.2), name="train_data", limit=4, seed=0)
