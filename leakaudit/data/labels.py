"""One label as a dataset gives it: whole numbers or floats of any shape, of a mask as well."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from leakaudit.data.refusal import other_than_label, refused
from leakaudit.errors import UserError
from leakaudit.files.reading import reading, short

MOST = 2**31  # a larger number is no class, and no index
_MASKS = ("1", "L", "P", "I", "F")  # modes of one channel; of a palette the numbers count, not its colours


def to_label(label: Any, where: str) -> Tensor:
    """Return a label as it is given: whole numbers as int64, () where there is one alone, others as float32.

    A PIL picture is a mask of as many numbers (H, W) as it has pixels. Raises UserError, which calls the record by
    `where`.
    """
    other = other_than_label(label)
    if other is not None:
        raise refused(f"the label of {where} is {other}")
    if hasattr(label, "convert") and hasattr(label, "mode"):
        if label.mode not in _MASKS and not label.mode.startswith("I;16"):
            raise UserError(
                f"the label of {where} is a picture in colour (mode {label.mode}): give a mask of one number for each "
                "pixel."
            )
        label = np.array(label)
    with reading(f"the label of {where}", "a number", "give a class as one whole number, or numbers of one shape"):
        plain = isinstance(label, Tensor)
        values = np.asarray(label.detach().cpu().as_subclass(Tensor).numpy() if plain else label)
    if values.dtype.kind not in "iubf" or not values.size:
        raise UserError(f"the label of {where} is {short(label)}: give the class as one whole number.")
    if values.dtype.kind == "f":
        found = torch.from_numpy(values.astype(np.float32))
        if not bool(found.isfinite().all()):
            raise UserError(f"the label of {where} is not finite: give numbers.")
        return found
    most = max((int(values.max()), int(values.min())), key=abs)
    if abs(most) > MOST:
        raise UserError(f"the label of {where} is {most}: classes are counted from 0.")
    whole = torch.from_numpy(values.astype(np.int64))
    return whole.reshape(()) if whole.numel() == 1 else whole
