"""Which parts of a record are its picture and its label: by place in tuples, by name in dicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from torch import Tensor

from leakaudit.data.pictures import PAIRS
from leakaudit.data.refusal import BOXES, CAPTION, TEXT, other_than_label, other_than_pictures, refused
from leakaudit.errors import UserError
from leakaudit.files.reading import short

# The first that a record has is read: what is prepared for the model before what it was prepared of.
IMAGE_KEYS = ("pixel_values", "image", "images", "img", "x", "input", "inputs")
_FILES = ("jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp", "ppm", "npy")  # of a web dataset
LABEL_KEYS = ("label", "labels", "target", "targets", "y")
_OTHER_LABELS = ("fine_label", "cls", "class", "mask", "masks", "segmentation", "annotation")
ALL_LABELS = (*LABEL_KEYS, *_OTHER_LABELS)
_CAPTIONS = ("caption", "captions", "text", "sentence", "sentences", "question", "prompt", "answer", "answers")
_OBJECTS = ("objects", "annotations", "boxes", "bbox", "bboxes")


def image_and_label(record: Any, name: str, position: int) -> tuple[Any, Any, tuple[str, ...]]:
    """Return image and label of a record, and clauses on what of it was left out; raises UserError naming `name`."""
    if is_dataclass(record) and not isinstance(record, type | Mapping):
        record = {field.name: getattr(record, field.name) for field in fields(record)}
    if isinstance(record, Mapping):
        return _by_name(record, name, position)
    if isinstance(record, tuple | list):
        if len(record) >= 2:
            _in_order(record, name, position)
            told = f"{len(record)} values were given, and the first two were read, as picture and label"
            return record[0], record[1], (told,) if len(record) > 2 else ()
        raise UserError(f"{name} yields {len(record)} value(s) per record, so no label: {PAIRS}.")
    if isinstance(record, str):
        raise refused(f"record {position} of {name} is {TEXT}")
    if hasattr(record, "edge_index"):
        raise refused(f"record {position} of {name} is a graph")
    what = "one tensor" if isinstance(record, Tensor) else f"one {type(record).__name__}"
    raise UserError(f"{name} yields {what} per record, so no label: {PAIRS}.")


def _by_name(record: Mapping[Any, Any], name: str, position: int) -> tuple[Any, Any, tuple[str, ...]]:
    images = [key for key in (*IMAGE_KEYS, *_FILES) if record.get(key) is not None]
    labels = [key for key in ALL_LABELS if record.get(key) is not None]
    if not images:
        other = other_than_pictures(record)
        if other is not None:
            raise refused(f"record {position} of {name} is {other} (keys: {_listed(list(record)[:8])})")
    if images and _of_objects(record, record[images[0]], labels):
        raise refused(f"the label of record {position} of {name} is {BOXES}")
    if images and not labels and any(key in record for key in _CAPTIONS):
        raise refused(f"the label of record {position} of {name} is {CAPTION}")
    if not images or not labels:
        lacking, keys = ("a label", LABEL_KEYS) if images else ("an image", IMAGE_KEYS)
        raise UserError(
            f"{name} yields dicts without {lacking} (keys: {_listed(list(record)[:8]) or 'none'}): "
            f"name the key one of {', '.join(keys)}."
        )
    told = [_told(images)] if len(images) > 1 else []
    told += [_told(labels)] if len(labels) > 1 else []
    return record[images[0]], record[labels[0]], tuple(told)


def _of_objects(record: Mapping[Any, Any], image: Any, labels: Sequence[str]) -> bool:
    """Whether a record's labels are its objects: boxes alone, or with as many labels as there are boxes."""
    if not labels:
        return any(key in record for key in _OBJECTS)
    boxes = next((record[key] for key in _OBJECTS if getattr(record.get(key), "ndim", 0) == 2), None)
    each = [record[key] for key in labels if getattr(record[key], "ndim", 0) > 0]
    single = getattr(image, "ndim", 2) <= 3  # no batch
    return boxes is not None and single and len(each) == len(labels) and all(len(one) == len(boxes) for one in each)


def _told(keys: Sequence[str]) -> str:
    return f"`{keys[0]}` was read and not {' or '.join(f'`{key}`' for key in keys[1:])}"


def _in_order(record: Sequence[Any], name: str, position: int) -> None:
    """Raise UserError where something else stands where the picture should: a label, an index, a name."""
    first, others = record[0], record[1:]
    number = isinstance(first, int | float | np.number) or (isinstance(first, Tensor | np.ndarray) and first.ndim == 0)
    if not number and not isinstance(first, str):
        return
    if any(hasattr(one, "convert") or getattr(one, "ndim", 0) >= 2 for one in others):
        what = "a number" if number else f"a text, {short(first)}"
        raise UserError(f"record {position} of {name} begins with {what}, and its image comes later: {PAIRS}.")
    if number and (isinstance(record[1], str) or other_than_label(record[1]) is not None):
        raise refused(f"record {position} of {name} is {TEXT}")


def _listed(keys: Sequence[Any]) -> str:
    return ", ".join(short(key).strip("'") for key in keys)
