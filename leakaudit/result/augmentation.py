"""What training does to pictures before every step: its names, as a user writes them and a result holds them.

What each does is in `leakaudit.score.augmentation`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leakaudit.errors import UserError, did_you_mean
from leakaudit.files.reading import short

AUGMENTATIONS = {"crop": "cropped", "mirror": "mirrored"}  # in the order they act in


def augmentation_from(given: Any) -> tuple[str, ...]:
    """Return the names that a user gave, as several or as "crop, mirror", in the order they act in.

    None, "none" and an empty text name none. Raises UserError for what is no such name.
    """
    found = [] if given is None else [each.strip() for each in given.split(",")] if isinstance(given, str) else given
    if not isinstance(found, list | tuple) or not all(isinstance(name, str) for name in found):
        raise UserError(f"`augment` is {short(given)}: give some of {', '.join(AUGMENTATIONS)}, or none.")
    names = [name for name in found if name not in ("", "none")]
    for name in names:
        if name not in AUGMENTATIONS:
            known = ", ".join(AUGMENTATIONS)
            raise UserError(f"unknown augmentation {short(name)}{did_you_mean(name, AUGMENTATIONS)}; it takes {known}.")
    return tuple(name for name in AUGMENTATIONS if name in names)


def told(target: Mapping[str, Any]) -> str:
    """Return what was done to the pictures of a result's target, "cropped and mirrored"; empty where nothing was."""
    names = str(target.get("augment") or "").split(", ")
    return " and ".join(words for name, words in AUGMENTATIONS.items() if name in names)
