"""Datasets and loaders in every common form, read as labelled pictures.

Read are map-style and iterable datasets, loaders, and a pair (images, labels) of arrays; records may be tuples, lists
or dicts, singly or in batches. What a dataset yields as PIL pictures or uint8 arrays is *raw*: pixels, not yet
normalised. Everything else is taken to be in the model's input space.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler
from torch.utils.data.dataloader import default_collate

from leakaudit.data.keys import LABEL_KEYS, image_and_label
from leakaudit.data.labels import to_label
from leakaudit.data.pictures import ANY, PAIRS, Expected, to_picture
from leakaudit.data.refusal import is_table, refused
from leakaudit.errors import UserError, first_line
from leakaudit.work.seeding import generator_for, seeded

MAX_BYTES = 2**30  # of pictures held per role; a limit of records alone would let large pictures fill the memory

MOST = 2**25  # records that a dataset may say it holds


@dataclass(frozen=True)
class Item:
    """One record as the dataset gave it: a float picture (C, H, W), raw pixels in [0, 1] or the model's input.

    A volume is (C, D, H, W). `label` is a whole number (), or what else the data gives: whole numbers or floats of any
    shape. `where` is what messages call it; `deep` and `told`: see `Seen`.
    """

    picture: Tensor
    label: Tensor
    raw: bool
    position: int  # in the dataset
    where: str = ""
    deep: bool = False
    told: tuple[str, ...] = ()


class Placed(ABC):
    """A dataset of ours that can say which file a record is."""

    @abstractmethod
    def place(self, index: int) -> str:
        """Return what messages call a record."""


@dataclass(frozen=True)
class Pixels:
    """Arrays whose values are pixels already: `images` (N, H, W), (N, H, W, C) or (N, C, H, W), of volumes with D.

    They are uint8, uint16, or in [0, 1].
    """

    images: Any
    labels: Any
    classes: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.images[index], self.labels[index]


class Divided(NamedTuple):
    """What was read of a dataset, in parts, and of how many records; `ended`: a stream was read to its end."""

    parts: list[list[Item]]
    total: int
    ended: bool = True


def divide(
    data: Any, shares: Sequence[float], *, name: str, limit: int, seed: int, expected: Expected = ANY
) -> Divided:
    """Divide a dataset at random into disjoint parts with the given shares of it, and read ≤ `limit` records of each.

    Of a stream its first records are read, and `total` says how many. Raises UserError naming `name` where the data
    cannot be read or is too small to give every part a record.
    """
    data = underlying(data)
    table = data[0] if isinstance(data, tuple) and data and not hasattr(data, "_fields") else data
    if is_table(table):
        what = "rows of numbers with no height and width" if isinstance(table, Tensor | np.ndarray) else "a table"
        raise refused(f"{name} holds {what} ({type(table).__name__} of shape {tuple(table.shape)})")
    count = _length(data)
    with seeded(seed, "data", name):
        if count is None:
            cap = limit * len(shares)
            stream = _stream(data, name, cap, expected)
            pool = list(_within_memory(stream, len(shares)))
            ended = len(pool) < cap and next(stream, None) is None
            order = _shuffled(len(pool), seed, name)
            parts = [[pool[i] for i in part[:limit]] for part in _split(order, shares, name)]
            return Divided(parts, len(pool), ended)
        order = _shuffled(count, seed, name)
        found = _split(order, shares, name)
        return Divided([list(_within_memory(fetch(data, part[:limit], name, expected), 1)) for part in found], count)


def classes_of(data: Any) -> tuple[str, ...] | None:
    """Return the class names a dataset carries, also under Subset, ConcatDataset or DataLoader, if any.

    They stand as `.classes`, as the features of a Hugging Face dataset, or in the `.info` of MedMNIST.
    """
    for _ in range(8):
        found = _names_of(data)
        if found:
            return found
        parts = getattr(data, "datasets", None)
        data = parts[0] if isinstance(parts, list) and parts else getattr(data, "dataset", None)
        if data is None:
            break
    return None


def _names_of(data: Any) -> tuple[str, ...]:
    found = getattr(data, "classes", None)
    if not isinstance(found, Sequence):
        features, info = getattr(data, "features", None), getattr(data, "info", None)
        label = (
            next((features[key] for key in LABEL_KEYS if key in features), None)
            if isinstance(features, Mapping)
            else None
        )
        found = getattr(label, "names", None)
        if found is None and isinstance(info, Mapping) and isinstance(info.get("label"), Mapping):
            found = [info["label"].get(str(number)) for number in range(len(info["label"]))]
    if not isinstance(found, Sequence) or isinstance(found, str) or any(name is None for name in found):
        return ()
    return tuple(map(str, found))


def is_data(data: Any) -> bool:
    """Return whether something can be read as a dataset at all."""
    readable = hasattr(data, "__iter__") or (hasattr(data, "__getitem__") and hasattr(data, "__len__"))
    return readable and not isinstance(data, str | bytes | Mapping | type)


def is_stream(data: Any) -> bool:
    """Return whether a dataset can only be iterated, so that its length is not known before."""
    return _length(underlying(data)) is None


def underlying(data: Any) -> Any:
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
        and data[1].ndim >= 1
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


def fetch(data: Any, indices: Iterable[int], name: str, expected: Expected) -> Iterator[Item]:
    """Yield the records at the given positions; raises UserError naming the record that fails."""
    for index in indices:
        try:
            record = data[index]
        except UserError:
            raise
        except Exception as error:  # user code may raise anything
            raise UserError(f"{name} fails at {_file(data, index)} ({first_line(error)}): mend the dataset.") from error
        where = data.place(index) if isinstance(data, Placed) else ""
        found = list(_items(record, name, index, isinstance(data, Pixels), expected, where))
        if len(found) != 1:
            raise UserError(f"{name} gives a batch of {len(found)} pictures as record {index}: {PAIRS}.")
        yield found[0]


def _file(data: Any, index: int) -> str:
    """Return how to call a record that cannot be read: with its file where the dataset lists files, as ImageFolder."""
    try:
        file = data.samples[index][0]
    except Exception:  # most datasets have no such list
        return f"record {index}"
    return f"record {index}, {file}" if isinstance(file, str) else f"record {index}"


def _stream(data: Any, name: str, count: int, expected: Expected) -> Iterator[Item]:
    """Yield the first `count` records of something that can only be iterated, restoring a loader's own generator."""
    found = getattr(data, "generator", None)
    generator = found if isinstance(found, torch.Generator) else None
    kept = None if generator is None else generator.get_state()
    position, collated = 0, isinstance(data, DataLoader) and data.batch_sampler is not None
    try:
        iterator = iter(data)
        while position < count:
            try:
                record = next(iterator)
            except StopIteration:
                return
            for item in _items(record, name, position, False, expected, collated=collated):
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


def collated(data: Any, count: int, name: str, expected: Expected) -> list[Item]:
    """Return the first records of a loader's dataset as its collate function makes a batch of them; [] of any other."""
    held = _length(data.dataset) if isinstance(data, DataLoader) else None
    if held is None or data.batch_sampler is None:
        return []
    batch = data.collate_fn([data.dataset[index] for index in range(min(count, held))])
    return list(_items(batch, name, 0, False, expected, collated=True))


def _within_memory(items: Iterator[Item], parts: int) -> Iterator[Item]:
    held = 0
    for item in items:
        yield item
        held += item.picture.numel() * 4
        if held >= MAX_BYTES * parts:
            return


def _items(
    record: Any, name: str, position: int, pixels: bool, expected: Expected, place: str = "", collated: bool = False
) -> Iterator[Item]:
    """Yield the pictures of one record or one batch; `place` is what the record is called if not by its position.

    `collated`: a loader made it, of several records if its labels are as many.
    """
    image, label, told = image_and_label(record, name, position)
    image = _array(image)
    batch = _rows(image, label, expected) if collated else None
    batch = _batch(image, label, expected) if batch is None else batch
    if batch is None:
        yield _item(image, label, place or f"record {position} of {name}", position, pixels, expected, told)
        return
    single = not (isinstance(label, list | tuple) or getattr(label, "ndim", 0) > 0)
    labels = [label] if single else list(label)
    if single and isinstance(image, list | tuple):
        raise UserError(
            f"record {position} of {name} has {len(batch)} inputs beside one label: leakaudit audits models that take "
            "one picture, so give the one that the model is given."
        )
    if len(labels) != len(batch):
        raise UserError(
            f"{name} gives {len(batch)} pictures with {len(labels)} label(s) at record {position}: {PAIRS}."
        )
    for at, (one, its_label) in enumerate(zip(batch, labels, strict=True), position):
        yield _item(one, its_label, f"record {at} of {name}", at, pixels, expected, told)


def _item(
    image: Any, label: Any, where: str, position: int, pixels: bool, expected: Expected, told: tuple[str, ...]
) -> Item:
    seen = to_picture(image, where, expected)
    told = (*told, *seen.told)
    return Item(seen.picture, to_label(label, where), seen.raw or pixels, position, where, seen.deep, told)


def _array(image: Any) -> Any:
    """Return rows of rows of numbers, as data sets of Hugging Face give an array, as one array; all else as it is."""
    inner = image
    for _ in range(2):
        if not isinstance(inner, list | tuple) or not inner:
            return image
        inner = inner[0]
    found = np.asarray(image) if isinstance(inner, list | tuple | int | float) else None
    return image if found is None or found.dtype.kind not in "iuf" else found


def _rows(image: Any, label: Any, expected: Expected) -> Sequence[Any] | None:
    """Return the records of a batch without a dimension of channels, as grey pictures and rows of numbers have none."""
    if not isinstance(image, Tensor | np.ndarray) or image.ndim not in (2, 3) or getattr(label, "ndim", 0) == 0:
        return None
    one = image.ndim == 3 and image.shape[0] in {1, expected.channels}
    return None if one or len(label) != len(image) else list(image)


def _batch(image: Any, label: Any, expected: Expected) -> Sequence[Any] | None:
    """Return the pictures of a batch, None where `image` is a single one: a volume has the dimensions of a batch."""
    if isinstance(image, list | tuple):
        return image if image and not isinstance(image[0], str | int | float) else None
    if not isinstance(image, Tensor | np.ndarray) or image.ndim not in (4, 5):
        return None
    if image.ndim == 5:
        return list(image)
    first, inner, last = image.shape[0], image.shape[1], image.shape[-1]
    labels = len(label) if isinstance(label, list | tuple) else label.shape[0] if getattr(label, "ndim", 0) > 0 else 1
    if expected.volumes:
        return list(image) if labels == first != (expected.channels or 1) else None
    channels = {1, 3, expected.channels}
    if labels == 1 and (first > 1 or not channels & {inner, last}):
        return None  # one label, and so one volume
    return list(image)
