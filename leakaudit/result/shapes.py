"""What records are: pictures or volumes, of which size, and what of them can be shown on a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from leakaudit.result.schema import Value


def sizes_of(channels: int, height: int, width: int, depth: int) -> tuple[int, ...]:
    """Return channels, of volumes their slices, height and width of a picture that is kept with C·D channels."""
    return (channels, height, width) if depth == 1 else (channels // depth, depth, height, width)


def written(sizes: Sequence[int]) -> str:
    """Return channels, of a volume its slices, height and width as a result holds them: `1×28×28`, `1×28×28×28`."""
    return "×".join(map(str, sizes))


def in_words(sizes: Sequence[int]) -> str:
    """Return what records of these sizes are: `pictures 1×28×28` or `volumes 1×28×28×28`."""
    return f"{'volumes' if len(sizes) == 4 else 'pictures'} {written(sizes)}"


def channels_in_words(sizes: Sequence[int]) -> str:
    """Return `pictures of 3 channel(s)`, or `volumes of 1 channel(s) and 28 slices`."""
    volumes = len(sizes) == 4
    return f"{'volumes' if volumes else 'pictures'} of {sizes[0]} channel(s){f' and {sizes[1]} slices' * volumes}"


def kind_told(shape: Value) -> Value:
    """Return a shape that a result holds, and that it is one of volumes where it is."""
    return f"volumes {shape}" if isinstance(shape, str) and shape.count("×") == 3 else shape


def what_is_shown(target: Mapping[str, Any]) -> str:
    """Return the sentence that says what a picture of a result shows of a record; empty where it shows all of it."""
    parts = str(target.get("input_shape") or "").split("×")
    if len(parts) not in (3, 4) or not all(part.isdecimal() for part in parts):
        return ""
    channels, depth = int(parts[0]), int(parts[1]) if len(parts) == 4 else 1
    colour = "" if channels in (1, 3) else f"the mean of {'its' if depth == 1 else 'the'} {channels} channels, in grey"
    if depth == 1:
        return f"Shown of each record: {colour}." if colour else ""
    return f"Shown of each volume: the middle one of its {depth} slices{f', {colour}' if colour else ''}."
