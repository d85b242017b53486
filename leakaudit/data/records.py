"""From read items to `Records`: one size, pixels in [0, 1], three disjoint roles."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from leakaudit.data.datasets import Item
from leakaudit.data.pictures import check_whites, scale_of
from leakaudit.errors import UserError
from leakaudit.protocol.target import Records

TOLERANCE = 1e-3  # how far outside [0, 1] a pixel may lie before it is refused; within it, it is clamped
LEVEL = 1 / 255  # one grey level of 8 bits
_ITSELF = 0.02  # how far from 0 and 1 mean and standard deviation of pictures lie that are normalised by their own
_CONSTANT = 2.0  # no mean or standard deviation of pixels from 0 to 1 is larger
_EXACT = 0.02  # of a grey level: what rounding of float32 makes of it, with room
_DISTINCT = 16  # grey levels at least: fewer values lie on levels by chance
_LOOKED_AT = 64  # pictures whose numbers must all be on grey levels
_BYTES = " (ToTensor does), or set std = 1/255 if `model` takes them as they are"
Scale = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std
NORMALISATIONS: dict[str, Scale] = {
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR-10 (older)": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "CIFAR-100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "CLIP": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "MNIST": ((0.1307,), (0.3081,)),
    "Fashion-MNIST": ((0.2860,), (0.3530,)),
    "half": ((0.5,), (0.5,)),
}


def per_channel(value: Any, name: str, default: float) -> tuple[float, ...]:
    """Return a mean or std given as a number, sequence, array or tensor as a tuple; raises UserError naming it."""
    if value is None:
        return (default,)
    mend = f"give {name} as one number or one per channel"
    try:
        numbers = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{name} is {type(value).__name__}, not numbers: {mend}.") from error
    if not numbers.size or not np.isfinite(numbers).all():
        raise UserError(f"{name} holds {'a value that is not finite' if numbers.size else 'no number'}: {mend}.")
    if name == "std" and (numbers <= 0).any():
        raise UserError(f"std holds {numbers.min():g}, but a standard deviation is above 0: {mend}.")
    return tuple(float(number) for number in numbers)


def one_size(roles: Sequence[tuple[str, Sequence[Item]]]) -> tuple[tuple[int, int, int], int]:
    """Return the shape (C·D, H, W) shared by all pictures and their depth D, 1 of pictures; volumes have D slices.

    Raw grey pictures among colour ones count as colour: folders of photographs hold both. Raises UserError naming the
    two sizes where there are two, and where 16-bit pictures hold what fewer bits hold.
    """
    items = [item for _, found in roles for item in found]
    first = items[0]
    colour = any(tuple(item.picture.shape[:1]) == (3,) and item.picture.ndim == 3 for item in items)

    def shape(item: Item) -> tuple[int, ...]:
        channels, *size = item.picture.shape
        return (3 if colour and item.raw and channels == 1 and len(size) == 2 else channels, *size)

    for item in items:
        if shape(item) != shape(first):
            raise UserError(
                f"pictures differ in size: {shape(first)} at {first.where}, {shape(item)} at {item.where}; resize and "
                "crop them to one size."
            )
    check_whites([(item.where, item.picture) for item in items if item.deep])
    channels, *slices, height, width = shape(first)
    depth = slices[0] if slices else 1
    if slices and depth == 1:
        raise UserError(
            f"{first.where} is a volume of one slice, {shape(first)}: give volumes of several, or pictures."
        )
    return (channels * depth, height, width), depth


def to_records(
    items: Sequence[Item],
    shape: tuple[int, int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    name: str,
    device: torch.device,
    depth: int = 1,
) -> Records:
    """Return items as Records: pixel = x·std + mean for those in the model's input space, raw ones as they are.

    Volumes are folded to pictures (C·D, H, W), slice by slice within each channel. Labels stand as they are given, (N,
    *shape). Raises UserError when mean or std do not fit the channels, pixels are not finite or outside [0, 1], or
    labels differ in shape.
    """
    count = shape[0] // depth
    for setting, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, count):
            channels = "1" if count == 1 else f"1 or {count}"
            raise UserError(
                f"{setting} has {len(values)} values but the pictures have {count} channel(s): give {channels}."
            )
    largest = max(*map(abs, mean), *std, 0.0)
    if largest > _CONSTANT and any(item.raw for item in items):
        raise UserError(
            f"mean {listed(mean)} and std {listed(std)} are of pictures from 0 to 255, and pixels run from 0 to 1 "
            "here: divide both by 255."
        )
    images = torch.stack([_folded(item.picture).expand(shape) for item in items])
    raw = torch.tensor([item.raw for item in items])
    scale, shift = (
        numbers if len(numbers) == 1 else numbers.repeat_interleave(depth)
        for numbers in (torch.tensor(std), torch.tensor(mean))
    )
    scale, shift = scale.view(1, -1, 1, 1), shift.view(1, -1, 1, 1)
    if not raw.all():
        images[~raw] = images[~raw] * scale + shift
    _check_range(images, images[~raw], (mean, std), depth, name)
    return Records(images.clamp_(0, 1).to(device), _stacked_labels(items, name).to(device))


def is_grey(images: Tensor) -> bool:
    """Return whether all channels of each of these pictures (N, C, H, W) are equal, but for rounding."""
    return all(bool(((x[1:] - x[:1]).abs() <= TOLERANCE).all()) for x in images)


def _folded(picture: Tensor) -> Tensor:
    return picture.flatten(0, 1) if picture.ndim == 4 else picture


def _stacked_labels(items: Sequence[Item], name: str) -> Tensor:
    first = items[0]
    odd = next((i for i in items if i.label.shape != first.label.shape), None)
    if odd is not None:
        raise UserError(
            f"the labels of {name} differ in shape: {tuple(first.label.shape)} at {first.where}, "
            f"{tuple(odd.label.shape)} at {odd.where}; give labels of one shape."
        )
    floats = any(item.label.is_floating_point() for item in items)
    return torch.stack([item.label.float() if floats else item.label for item in items])


def _check_range(images: Tensor, converted: Tensor, scale: Scale, depth: int, name: str) -> None:
    if not bool(torch.isfinite(images).all()):
        raise UserError(f"{name} holds pixels that are not finite (NaN or infinity): remove or mend those pictures.")
    low, high = float(images.min()), float(images.max())
    if low >= -TOLERANCE and high <= 1 + TOLERANCE:
        return
    if not len(converted):
        raise UserError(_of_pixels(images, depth, name, low, high))
    (mean, std), size = scale, converted.shape[1]
    declared = f"mean {listed(mean)} and std {listed(std)}"
    found = f"the pixels of {name} span {_number(low)} to {_number(high)} under {declared}, not 0 to 1"
    shift, factor = (torch.tensor(v).repeat_interleave(size // len(v)).view(1, -1, 1, 1) for v in scale)
    given = (converted - shift) / factor
    if float(given.min()) >= 0 and float(given.max()) > 2:
        raise UserError(f"{found}: {_scaled(float(given.max()), after=_BYTES)}.")
    if float(given.min()) >= -TOLERANCE and float(given.max()) <= 1 + TOLERANCE:
        raise UserError(
            f"{found}: without them they are 0 to 1 already, so leave mean and std out or apply them first."
        )
    if float(given.max()) > 2 and bool((given == given.round()).all()):
        raise UserError(
            f"{found}: they are whole numbers without a known white, so subtract what is black and divide by what is "
            "white less black, the same for all."
        )
    fitting = explain(given, depth)
    if fitting:
        known_mean, known_std = NORMALISATIONS[fitting]
        raise UserError(
            f"{found}: they fit the {fitting} constants, so set mean = {listed(known_mean)} "
            f"and std = {listed(known_std)}."
        )
    if _by_itself(given):
        raise UserError(
            f"{found}: every picture has mean 0 and standard deviation 1, as if it was normalised by its own, which no "
            "constants undo: give pixels from 0 to 1, and let `model` normalise them."
        )
    raise UserError(f"{found}: set mean and std to the constants the data was normalised with.")


def _by_itself(given: Tensor) -> bool:
    """Whether every picture has mean 0 and standard deviation 1, alone or in each of its channels."""
    flat = given.flatten(1).double()
    mean, std = flat.mean(1).abs().max(), (flat.std(1) - 1).abs().max()
    return float(mean) < _ITSELF and float(std) < _ITSELF


def _of_pixels(images: Tensor, depth: int, name: str, low: float, high: float) -> str:
    """Return what to say of a file's numbers that are taken as pixels, as they are, and are none between 0 and 1."""
    found = f"the pixels of {name} span {_number(low)} to {_number(high)}, not 0 to 1"
    if low >= 0 and high > 2:
        return f"{found}: {_scaled(high, before='save them as uint8, or ')}."
    fitting = explain(images, depth)
    if fitting:
        mean, std = NORMALISATIONS[fitting]
        return (
            f"{found}: they fit the {fitting} constants, so save pixels, value · {listed(std)} + {listed(mean)}, "
            "in their place; the model's mean and std stay as they are."
        )
    return f"{found}: save them as uint8, or as floats between 0 and 1 before any normalisation."


def _scaled(top: float, before: str = "", after: str = "") -> str:
    """Return what to do with numbers from 0 to `top`; of bytes `before` and `after` are said too."""
    white = scale_of(top)
    if white is None or top <= white / 2:
        return f"divide them by their white, whatever it is: the largest that was read is {_number(top)}"
    before, after = (before, after) if white == 255 else ("", "")
    return f"they look like 0 to {white}, so {before}divide them by {white}{after}"


def explain(inputs: Tensor, depth: int = 1) -> str | None:
    """Return the name of the well-known normalisation that `inputs` (N, C·D, H, W) fit exactly, or None."""
    of = Extremes.of(list(inputs.view(len(inputs), -1, depth, *inputs.shape[2:])))
    return next((name for name, each in NORMALISATIONS.items() if of.fit(each)), None)


class Extremes(NamedTuple):
    """What is known of the numbers of pictures: the least and the largest (C,) of each channel, and some (C, M)."""

    low: Tensor
    high: Tensor
    some: Tensor

    @classmethod
    def of(cls, pictures: Sequence[Tensor]) -> Extremes:
        """Look at pictures (C, …) of one shape, without a copy of them all."""
        flat = [picture.flatten(1) for picture in pictures]
        low, high = torch.stack([one.amin(1) for one in flat]), torch.stack([one.amax(1) for one in flat])
        return cls(low.amin(0), high.amax(0), torch.cat(flat[:_LOOKED_AT], 1))

    def fit(self, scale: Scale) -> bool:
        """Return whether mean and std put all numbers within [0, 1], and exactly so.

        The extremes of every channel are then at 0 and 1, to half a grey level of 8 bits, or some are on grey levels.
        """
        if {len(scale[0]), len(scale[1])} - {1, len(self.low)}:
            return False
        mean, std = (torch.tensor(each) for each in scale)
        bottom, top = self.low * std + mean, self.high * std + mean
        if float(bottom.min()) < -LEVEL / 2 or float(top.max()) > 1 + LEVEL / 2:
            return False
        if float(bottom.abs().max()) <= LEVEL / 2 and float((1 - top).abs().max()) <= LEVEL / 2:
            return True
        levels = (self.some * std.view(-1, 1) + mean.view(-1, 1)) / LEVEL
        on = float((levels - levels.round()).abs().max()) <= _EXACT
        return on and len(torch.unique(levels.round())) >= _DISTINCT


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def listed(values: tuple[float, ...]) -> str:
    """Return a mean or std as Python writes it, shortly."""
    return f"{values[0]:g}" if len(values) == 1 else "(" + ", ".join(f"{value:g}" for value in values) + ")"


def fingerprints(images: Tensor) -> list[bytes]:
    """Return a digest of every picture (N, C, H, W) at 8 bits per channel: equal pictures have equal digests."""
    rounded = (images * 255).round().to(torch.uint8).cpu().numpy()
    return [hashlib.sha256(picture.tobytes()).digest() for picture in rounded]


def without(records: Records, taken: set[bytes]) -> tuple[Records, int]:
    """Return the records whose pictures are not among `taken` fingerprints, and how many were dropped."""
    keep = [i for i, print_ in enumerate(fingerprints(records.images)) if print_ not in taken]
    return records[keep], len(records) - len(keep)
