"""What a network looks as if it took, and pictures arranged for it: only the network itself says what it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from leakaudit.data.datasets import Item
from leakaudit.data.pictures import Expected
from leakaudit.errors import UserError
from leakaudit.protocol.gradients import in_mode

_PLANES = (nn.Conv2d, nn.Conv3d)
_MANY = 4  # channels: more may be slices
Roles = Mapping[str, Sequence[Item]]


def expected_of(network: nn.Module) -> Expected:
    """Tell by the first convolution of a network whether it takes pictures or volumes, and of how many channels."""
    found = [module for module in network.modules() if isinstance(module, (nn.Conv1d, *_PLANES))]
    planes = [module for module in found if isinstance(module, _PLANES)]
    if not planes:
        return Expected(series=bool(found))
    first = planes[0]
    return Expected(isinstance(first, nn.Conv3d), first.in_channels or None)  # 0: a lazy one, not begun


def arranged(network: nn.Module, roles: Roles, expected: Expected) -> tuple[dict[str, list[Item]], list[str]]:
    """Return all records as the network takes them, with notes.

    Grey pictures beside a network of three channels are repeated where it does not take them as they are. Raises
    UserError where it takes neither.
    """
    items = [item for found in roles.values() for item in found]
    same = {role: list(found) for role, found in roles.items()}
    shape = max((tuple(item.picture.shape) for item in items), key=lambda found: (len(found), found[0]))
    volumes = len(shape) == 4
    takes = (_fits(shape, expected) and not (volumes and shape[0] == 1)) or _takes(network, shape, expected)
    if takes and not (volumes and expected.volumes and shape[1] == expected.channels != shape[0]):
        return same, []
    if volumes and shape[0] == 1 and _takes(network, shape[1:], expected):  # slices as channels
        return {r: [replace(i, picture=i.picture.flatten(0, 1)) for i in found] for r, found in same.items()}, []
    if not volumes and shape[0] == 1 and expected.channels == 3 and not expected.volumes:
        repeated = {r: [replace(i, picture=i.picture.expand(3, -1, -1)) for i in found] for r, found in same.items()}
        return repeated, [
            "Pictures are grey and `model` takes three channels: the one channel was repeated, and attacks look for "
            "grey pictures."
        ]
    if _fits(shape, expected):  # whoever needs its output says why it fails
        return same, []
    first = next(item for item in items if tuple(item.picture.shape) == shape)
    raise UserError(_unfit(first, shape, expected))


def _fits(shape: tuple[int, ...], expected: Expected) -> bool:
    if expected.volumes is None:
        return True
    return expected.volumes == (len(shape) == 4) and expected.channels in (None, shape[0])


def _takes(network: nn.Module, shape: Sequence[int], expected: Expected) -> bool:
    """Whether the network takes black pictures of this shape.

    They are as many as it has no channels: a convolution takes a batch of as many pictures for one volume.
    """
    first, count = next(network.parameters()), 3 if expected.channels == 2 else 2
    try:
        with torch.no_grad(), in_mode(network, "eval"):
            network(torch.zeros(count, *shape, device=first.device))
    except Exception:  # user code may raise anything
        return False
    return True


def _unfit(item: Item, shape: tuple[int, ...], expected: Expected) -> str:
    volumes = len(shape) == 4
    what, wanted = ("volume", "pictures") if volumes else ("picture", "volumes")
    if volumes != bool(expected.volumes):
        slices = ", e.g. a slice" if volumes else ""
        form = f"({expected.channels or 'C'}, {'D, ' if expected.volumes else ''}H, W)"
        return f"{item.where} is a {what}, of shape {shape}, but `model` takes {wanted} {form}: give those{slices}."
    mends = {
        (3, 1): "make them grey in the data (transforms.Grayscale()), or give a model of three channels",
        (4, 3): "leave the fourth out in the data, or give a model of four channels",
    }
    told = f" ({'; '.join(item.told)})" if item.told else ""
    mend = mends.get((shape[0], expected.channels or 0), "give data and a model of the same channels")
    if volumes and shape[1] == expected.channels:
        mend = f"they seem to stand second, so give ({shape[1]}, D, H, W), and a model that takes those"
    elif not volumes and shape[0] > _MANY:
        mend += ", or slices if it is a volume"
    return (
        f"{item.where} has {shape[0]} channel(s), as a {what} of shape {shape}{told}, but the first convolution of "
        f"`model` takes {expected.channels}: {mend}."
    )
