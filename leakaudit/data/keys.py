"""Which parts of a record are its picture and its label: by place in tuples, by name in dicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from leakaudit.data.pictures import PAIRS
from leakaudit.data.refusal import BOXES, TEXT, other_than_label, other_than_pictures, refused
from leakaudit.errors import UserError
from leakaudit.files.reading import short

# The first that a record has is read: what is prepared for the model before what it was prepared of.
IMAGE_KEYS = ("pixel_values", "image", "images", "img", "x", "input", "inputs")
_FILES = ("jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp", "ppm", "npy")  # of a web dataset
LABEL_KEYS = ("label", "labels", "target", "targets", "y")
_OTHER_LABELS = ("fine_label", "cls", "class", "mask", "masks", "segmentation", "annotation")
_OBJECTS = ("objects", "annotations", "boxes", "bbox", "bboxes")


def image_and_label(record: Any, name: str, position: int) -> tuple[Any, Any, tuple[str, ...]]:
    """Return image and label of a record, and clauses on what of it was left out; raises UserError naming `name`."""
    if isinstance(record, Mapping):
        return _by_name(record, name, position)
    if isinstance(record, tuple | list):
        if len(record) >= 2:
            _in_order(record[0], record[1], name, position)
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
    labels = [key for key in (*LABEL_KEYS, *_OTHER_LABELS) if record.get(key) is not None]
    if not images:
        other = other_than_pictures(record)
        if other is not None:
            raise refused(f"record {position} of {name} is {other} (keys: {_listed(list(record)[:8])})")
    if images and not labels and any(key in record for key in _OBJECTS):
        raise refused(f"the label of record {position} of {name} is {BOXES}")
    if not images or not labels:
        lacking, keys = ("a label", LABEL_KEYS) if images else ("an image", IMAGE_KEYS)
        raise UserError(
            f"{name} yields dicts without {lacking} (keys: {_listed(list(record)[:8]) or 'none'}): "
            f"name the key one of {', '.join(keys)}."
        )
    told = [_told(images)] if len(images) > 1 else []
    told += [_told(labels)] if len(labels) > 1 else []
    return record[images[0]], record[labels[0]], tuple(told)


def _told(keys: Sequence[str]) -> str:
    return f"`{keys[0]}` was read and not {' or '.join(f'`{key}`' for key in keys[1:])}"


def _in_order(image: Any, label: Any, name: str, position: int) -> None:
    """Raise UserError where a label stands where a picture should."""
    if not isinstance(image, int | float | np.number) and not (isinstance(image, Tensor) and image.ndim == 0):
        return
    if isinstance(label, str) or other_than_label(label) is not None:
        raise refused(f"record {position} of {name} is {TEXT}")
    if hasattr(label, "convert") or getattr(label, "ndim", 0) >= 2:
        raise UserError(f"record {position} of {name} has its label first, then its image: {PAIRS}, in that order.")


def _listed(keys: Sequence[Any]) -> str:
    return ", ".join(short(key).strip("'") for key in keys)
