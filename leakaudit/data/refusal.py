"""What leakaudit is not for, said in one sentence: text, tables, sound, detection, graphs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from leakaudit.errors import UserError

TEXT = "text"
TOKENS = "token ids, as models of text take them"
SOUND = "sound"
TABLE = "a row of a table"
GRAPH = "a graph"
BOXES = "boxes, as models that detect objects take them"
CAPTION = "text that describes the picture"

_KEYS = {  # of a record without a picture
    TOKENS: ("input_ids", "token_ids", "attention_mask"),
    SOUND: ("audio", "input_values", "input_features", "waveform", "speech"),
    TEXT: ("text", "sentence", "sentence1", "premise", "question", "document", "tokens", "content", "review"),
    GRAPH: ("edge_index", "edges", "adjacency"),
}
_BOXES = ("boxes", "bbox", "bboxes")
_PICTURE_FILES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif")
_WORDS = 4  # a label of so many words names no class
_NUMBERS = (Tensor, np.ndarray, np.generic, int, float, list, tuple)
_STRIP, _LONG = 7, 4  # nor is one of so few rows or columns, and many times as many of the other
_THIN = 2  # an array of so few rows is no picture: sound of one or two channels


def refused(found: str) -> UserError:
    """Return the one refusal of all that is no model of pictures; `found` is a clause that says what was found."""
    return UserError(f"leakaudit audits models of pictures; {found}.")


def other_than_picture(value: Any) -> str | None:
    """Return what one record's input is where it is plainly no picture, else None.

    Arrays of one dimension have no height and width, whatever they hold; so have those of a few rows or columns.
    """
    if isinstance(value, str):
        return None if value.lower().endswith(_PICTURE_FILES) else TEXT
    if _is_graph(value):
        return GRAPH
    if isinstance(value, Mapping):
        return other_than_pictures(value) or (SOUND if "sampling_rate" in value else None)
    if isinstance(value, list | tuple) and value and all(isinstance(each, str) for each in value):
        return other_than_picture(value[0])
    if hasattr(value, "convert") or not isinstance(
        value, Tensor | np.ndarray | np.generic | int | float | list | tuple
    ):
        return None
    try:
        shape, kind = _shape_and_kind(value)
    except Exception:  # what is no array has no shape, and somebody else says so
        return None
    if len(shape) == 1:
        few = f"{shape[0]:,} whole numbers" if kind in "iub" else f"{shape[0]:,} numbers"
        return f"{few} in a row, with no height and width, as text, tables and sound are"
    if len(shape) == 0:
        return "one number, as a column of a table has"
    if len(shape) == 2 and shape[0] <= _THIN < shape[1]:
        return f"numbers of shape {shape}, as sound has them"
    if len(shape) == 2 and min(shape) <= _STRIP and max(shape) >= _LONG * min(shape):
        return f"numbers of shape {shape}, as series, points and tables have them"
    return None


def other_than_pictures(record: Mapping[Any, Any]) -> str | None:
    """Return what a record by names is where none of its names is a picture's, by what the names say; else None."""
    for what, keys in _KEYS.items():
        if any(key in record for key in keys):
            return what
    values = list(record.values())
    plain = sum(isinstance(v, int | float | np.number) or (isinstance(v, str) and len(v) < 40) for v in values)
    return TABLE if len(values) > 2 and plain == len(values) else None


def other_than_label(label: Any) -> str | None:
    """Return what a label is that belongs to no task of leakaudit's: boxes of objects, captions, a graph; else None."""
    if isinstance(label, Mapping):
        return BOXES if any(key in label for key in _BOXES) else None
    if isinstance(label, str):
        return CAPTION if len(label.split()) >= _WORDS else None
    if isinstance(label, list | tuple) and label:
        return other_than_label(label[0]) if isinstance(label[0], str | Mapping) else None
    return GRAPH if _is_graph(label) else None


def is_table(data: Any) -> bool:
    """Return whether a whole data set is a table: a data frame, a sparse matrix, or an array of rows."""
    if (hasattr(data, "iloc") and hasattr(data, "columns")) or hasattr(data, "tocsr"):
        return True
    return isinstance(data, Tensor | np.ndarray) and data.ndim == 2


def _is_graph(value: Any) -> bool:
    return not isinstance(value, Mapping) and hasattr(value, "edge_index")


def _shape_and_kind(value: Any) -> tuple[tuple[int, ...], str]:
    if isinstance(value, Tensor):
        return tuple(value.shape), "f" if value.is_floating_point() else "i"
    found = np.asarray(value)
    if found.dtype.kind not in "iubf":
        raise TypeError
    return found.shape, found.dtype.kind
