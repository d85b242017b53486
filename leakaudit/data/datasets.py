"""Datasets and loaders in every common form, read as labelled pictures.

Read are map-style and iterable datasets, loaders, and a pair (images, labels) of arrays; records may be tuples, lists
or dicts, singly or in batches. What a dataset yields as PIL pictures or uint8 arrays is *raw*: pixels, not yet
normalised. Everything else is taken to be in the model's input space.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler
from torch.utils.data.dataloader import default_collate

from leakaudit.errors import UserError, first_line
from leakaudit.files.reading import reading, short
from leakaudit.work.seeding import generator_for, seeded

IMAGE_KEYS = ("image", "images", "img", "pixel_values", "x", "input", "inputs")

LABEL_KEYS = ("label", "labels", "target", "y")

MAX_BYTES = 2**30  # of pictures held per role; a limit of records alone would let large pictures fill the memory

MOST = 2**25  # records that a dataset may say it holds

MOST_LABEL = 2**31  # a larger number is no class, and no index

PAIRS = "give (image, label) pairs, or dicts with an image and a label"


@dataclass(frozen=True)
class Item:
    """One record as the dataset gave it: a float picture (C, H, W), raw pixels in [0, 1] or the model's input.

    `label` is a whole number (), or what else the data gives: whole numbers or floats of any shape.
    """

    picture: Tensor
    label: Tensor
    raw: bool
    position: int  # in the dataset, for messages


@dataclass(frozen=True)
class Pixels:
    """Arrays whose values are pixels already: `images` (N, H, W), (N, H, W, C) or (N, C, H, W), uint8 or in [0, 1]."""

    images: Any
    labels: Any
    classes: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.images[index], self.labels[index]


def divide(data: Any, shares: Sequence[float], *, name: str, limit: int, seed: int) -> tuple[list[list[Item]], int]:
    """Divide a dataset at random into disjoint parts with the given shares of it, and read ≤ `limit` records of each.

    Returns the parts and the number of records they were drawn from (for a stream: the number read). Raises UserError
    naming `name` where the data cannot be read or is too small to give every part a record.
    """
    data = _underlying(data)
    count = _length(data)
    with seeded(seed, "data", name):
        if count is None:
            cap = limit * len(shares)
            pool = list(_within_memory(_stream(data, name, cap), len(shares)))
            order = _shuffled(len(pool), seed, name)
            return [[pool[i] for i in part[:limit]] for part in _split(order, shares, name)], len(pool)
        order = _shuffled(count, seed, name)
        parts = _split(order, shares, name)
        return [list(_within_memory(_fetch(data, part[:limit], name), 1)) for part in parts], count


def classes_of(data: Any) -> tuple[str, ...] | None:
    """Return the class names a dataset carries (`.classes`, also under Subset or DataLoader), if any."""
    for _ in range(8):
        found = getattr(data, "classes", None)
        if isinstance(found, Sequence) and not isinstance(found, str) and found:
            return tuple(map(str, found))
        data = getattr(data, "dataset", None)
        if data is None:
            break
    return None


def is_data(data: Any) -> bool:
    """Return whether something can be read as a dataset at all."""
    readable = hasattr(data, "__iter__") or (hasattr(data, "__getitem__") and hasattr(data, "__len__"))
    return readable and not isinstance(data, str | bytes | Mapping | type)


def is_stream(data: Any) -> bool:
    """Return whether a dataset can only be iterated, so that its length is not known before."""
    return _length(_underlying(data)) is None


def _underlying(data: Any) -> Any:
    """Return what is read in place of `data`: the dataset of a loader that yields all of it, in whatever order."""
    if _is_pair(data):
        return _Pair(data[0], data[1])
    if not isinstance(data, DataLoader) or isinstance(data.dataset, IterableDataset):
        return data
    sampler, whole = data.sampler, False
    if type(sampler) is SequentialSampler:
        whole = True
    elif type(sampler) is RandomSampler:
        whole = not sampler.replacement and sampler.num_samples == len(sampler.data_source)
    plain = data.batch_size is None or (type(data.batch_sampler) is BatchSampler and data.collate_fn is default_collate)
    return data.dataset if whole and plain else data


@dataclass(frozen=True)
class _Pair:
    """Arrays in the model's input space (uint8 ones are raw): whole images and labels as two arrays."""

    images: Any
    labels: Any

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.images[index], self.labels[index]


def _is_pair(data: Any) -> bool:
    return (
        isinstance(data, tuple | list)
        and len(data) == 2
        and all(isinstance(part, Tensor | np.ndarray) for part in data)
        and data[0].ndim >= 3
        and 1 <= data[1].ndim <= 2
        and len(data[0]) == len(data[1])
    )


def _length(data: Any) -> int | None:
    """Return the number of records where any of them can be fetched by its position, else None: a stream."""
    if isinstance(data, DataLoader | IterableDataset) or not hasattr(data, "__getitem__"):
        return None
    try:
        count = len(data)
    except (TypeError, NotImplementedError):
        return None
    except Exception as error:  # a length below zero, or beyond what Python counts
        raise UserError(
            f"the data has no length ({first_line(error)}): let len() say how many records it has."
        ) from error
    return count


def _shuffled(count: int, seed: int, name: str) -> list[int]:
    if count > MOST:  # all positions are drawn at once, 36 bytes each, whatever is read of them
        raise UserError(f"{name} says that it holds {count:,} records: give at most {MOST:,} of them, as a Subset.")
    return [int(i) for i in torch.randperm(count, generator=generator_for(seed, "divide", name))]


def _split(order: list[int], shares: Sequence[float], name: str) -> list[list[int]]:
    """Give every part but the first its share, at least one record; the first takes the rest."""
    sizes = [max(1, round(share * len(order))) for share in shares[1:]]
    if len(order) - sum(sizes) < 1:
        needed = len(shares)
        raise UserError(f"{name} holds {len(order)} record(s), too few: give at least {needed}, better hundreds.")
    parts, start = [], 0
    for size in [len(order) - sum(sizes), *sizes]:
        parts.append(order[start : start + size])
        start += size
    return parts


def _fetch(data: Any, indices: Iterable[int], name: str) -> Iterator[Item]:
    for index in indices:
        try:
            record = data[index]
        except UserError:
            raise
        except Exception as error:  # user code may raise anything
            raise UserError(f"{name} fails at record {index} ({first_line(error)}): mend the dataset.") from error
        found = list(_items(record, name, index, isinstance(data, Pixels)))
        if len(found) != 1:
            raise UserError(f"{name} gives a batch of {len(found)} pictures as record {index}: {PAIRS}.")
        yield found[0]


def _stream(data: Any, name: str, count: int) -> Iterator[Item]:
    """Yield the first `count` records of something that can only be iterated, restoring a loader's own generator."""
    found = getattr(data, "generator", None)
    generator = found if isinstance(found, torch.Generator) else None
    kept = None if generator is None else generator.get_state()
    position = 0
    try:
        iterator = iter(data)
        while position < count:
            try:
                record = next(iterator)
            except StopIteration:
                return
            for item in _items(record, name, position, False):
                yield item
                position += 1
                if position == count:
                    return
    except UserError:
        raise
    except Exception as error:  # user code may raise anything
        raise UserError(f"{name} fails at record {position} ({first_line(error)}): mend the dataset.") from error
    finally:
        if generator is not None and kept is not None:
            generator.set_state(kept)


def _within_memory(items: Iterator[Item], parts: int) -> Iterator[Item]:
    held = 0
    for item in items:
        yield item
        held += item.picture.numel() * 4
        if held >= MAX_BYTES * parts:
            return


def _items(record: Any, name: str, position: int, pixels: bool) -> Iterator[Item]:
    """Yield the pictures of one record or one batch."""
    image, label = _image_and_label(record, name)
    batch: Any = None
    if isinstance(image, list | tuple):
        batch = image
    elif isinstance(image, Tensor | np.ndarray) and image.ndim == 4:
        batch = list(image)
    if batch is None:
        picture, raw = to_picture(image, name, position)
        yield Item(picture, _label(label, name, position), raw or pixels, position)
        return
    labels = list(label) if isinstance(label, list | tuple) or getattr(label, "ndim", 0) > 0 else [label]
    if len(labels) != len(batch):
        raise UserError(
            f"{name} gives {len(batch)} pictures with {len(labels)} label(s) at record {position}: {PAIRS}."
        )
    for offset, (one, its_label) in enumerate(zip(batch, labels, strict=True)):
        picture, raw = to_picture(one, name, position + offset)
        yield Item(picture, _label(its_label, name, position + offset), raw or pixels, position + offset)


def _image_and_label(record: Any, name: str) -> tuple[Any, Any]:
    if isinstance(record, Mapping):
        image = next((record[key] for key in IMAGE_KEYS if key in record), None)
        label = next((record[key] for key in LABEL_KEYS if key in record), None)
        if image is None or label is None:
            lacking, keys = ("an image", IMAGE_KEYS) if image is None else ("a label", LABEL_KEYS)
            found = ", ".join(short(key).strip("'") for key in list(record)[:8]) or "none"
            raise UserError(
                f"{name} yields dicts without {lacking} (keys: {found}): name the key one of {', '.join(keys)}."
            )
        return image, label
    if isinstance(record, tuple | list):
        if len(record) >= 2:
            return record[0], record[1]
        raise UserError(f"{name} yields {len(record)} value(s) per record, so no label: {PAIRS}.")
    what = "one tensor" if isinstance(record, Tensor) else f"one {type(record).__name__}"
    raise UserError(f"{name} yields {what} per record, so no label: {PAIRS}.")


def to_picture(image: Any, name: str, position: int) -> tuple[Tensor, bool]:
    """Return a picture as float32 (C, H, W) with C 1 or 3, and whether it was raw (a PIL picture or uint8).

    Accepts a PIL picture, or a tensor or array (H, W), (C, H, W) or (H, W, C); raw values are divided by 255.
    """
    channels_first = isinstance(image, Tensor)
    if hasattr(image, "convert") and hasattr(image, "mode"):  # a PIL picture, without importing PIL
        with reading(f"the image of record {position} of {name}", "a picture", PAIRS):
            image = _from_pil(image)
    array = image.detach().cpu() if isinstance(image, Tensor) else None
    if array is None and isinstance(image, np.ndarray) and image.dtype.kind in "buif":
        with np.errstate(over="ignore"):  # what is too large for 32 bits is refused as infinite
            array = torch.from_numpy(np.array(image, dtype=np.float32 if image.dtype != np.uint8 else np.uint8))
    if array is None:
        raise UserError(f"{name} gives {type(image).__name__} as the image of record {position}: {PAIRS}.")
    if array.is_complex():
        raise UserError(f"{name} gives complex numbers as the image of record {position}: {PAIRS}.")
    if array.ndim == 2:
        array = array[None]
    elif array.ndim == 3:
        first, last = array.shape[0] in (1, 3), array.shape[-1] in (1, 3)
        if last and not (first and channels_first):
            array = array.permute(2, 0, 1)
    if array.ndim != 3 or array.shape[0] not in (1, 3) or not array.numel():
        raise UserError(
            f"{name} gives an image of shape {tuple(array.shape)} at record {position}: "
            "give grey (1, H, W) or colour (3, H, W) pictures."
        )
    raw = array.dtype == torch.uint8
    return (array.float() / 255 if raw else array.float()).contiguous(), raw


def _from_pil(image: Any) -> np.ndarray[Any, Any]:
    if image.mode.startswith("I;16"):
        return (np.asarray(image, dtype=np.float64) / 257).round().astype(np.uint8)
    grey = image.mode in ("1", "L", "LA")
    return np.asarray(image.convert("L" if grey else "RGB"))


def _label(label: Any, name: str, position: int) -> Tensor:
    """Return a label as it is given: whole numbers as int64, () where there is one alone, others as float32."""
    with reading(f"the label of record {position} of {name}", "a number", PAIRS):
        values = np.asarray(label.detach().cpu() if isinstance(label, Tensor) else label)
    if values.dtype.kind not in "iubf" or not values.size:
        raise UserError(
            f"{name} gives the label {short(label)} at record {position}: give the class as one whole number."
        )
    if values.dtype.kind == "f":
        found = torch.from_numpy(values.astype(np.float32))
        if not bool(found.isfinite().all()):
            raise UserError(f"{name} gives a label that is not finite at record {position}: give numbers.")
        return found
    if int(values.max()) > MOST_LABEL or int(values.min()) < -MOST_LABEL:
        most = int(values.max()) if int(values.max()) > MOST_LABEL else int(values.min())
        raise UserError(f"{name} gives the label {most} at record {position}: classes are counted from 0.")
    whole = torch.from_numpy(values.astype(np.int64))
    return whole.reshape(()) if whole.numel() == 1 else whole
