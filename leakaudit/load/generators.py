"""A user's `generator` of pictures, checked before anything is measured: every wrong thing ends in one sentence."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from leakaudit.data.records import TOLERANCE
from leakaudit.errors import UserError, first_line
from leakaudit.files.reading import short
from leakaudit.load.modelfile import resolve
from leakaudit.protocol.target import PictureGenerator
from leakaudit.work.seeding import generator_for, seeded

DRAWN = 3  # latents that it is tried on
MEND = "give a torch.nn.Module or a function from latents (N, *latent) to pictures (N, C, H, W) in [0, 1]"


def picture_generator(
    given: Any, latent: Any, sizes: tuple[int, ...], device: torch.device, seed: int
) -> PictureGenerator | None:
    """Return the adversary's generator of pictures, tried on normal latents; None where none was given.

    `given` draws pictures (N, C, H, W) in [0, 1], or volumes (N, C, D, H, W), of these `sizes` from normal latents
    (N, *latent), or is a function without arguments that returns what does; `latent` is the shape of one latent, or its
    only number.
    A module is copied, frozen, put into eval mode and on the device. A `torch.Generator` is somebody's source of random
    numbers, and no generator of pictures.
    """
    if isinstance(given, torch.Generator):
        given = None
    make, whole = resolve(given, "generator", seed), resolve(latent, "latent", seed)
    if make is None:
        if whole is not None and given is None:
            raise UserError(f"`latent` is set, but there is no `generator`: {MEND}.")
        return None
    shape = _sizes(whole)
    if not callable(make) or isinstance(make, type):
        raise UserError(f"`generator` is {type(make).__name__}, not callable: {MEND}.")
    try:
        own = copy.deepcopy(make)
    except Exception as error:  # user modules may hold anything
        raise UserError(f"`generator` cannot be copied ({first_line(error)}): give what builds it.") from error
    if isinstance(own, nn.Module):
        own = own.to(device).eval().requires_grad_(False)
    _check(own, shape, sizes, device)
    return PictureGenerator(own if len(sizes) == 3 else _folded(own), shape)


def _folded(make: Any) -> Any:
    """Return a generator of volumes (N, C, D, H, W) as one of pictures (N, C·D, H, W); layers stay layers."""
    if isinstance(make, nn.Module):
        return nn.Sequential(*(make if isinstance(make, nn.Sequential) else (make,)), nn.Flatten(1, 2))
    return lambda latents: make(latents).flatten(1, 2)


def _sizes(latent: Any) -> tuple[int, ...]:
    """Return the shape of one latent; raises UserError for what is none."""
    if latent is None:
        raise UserError("`generator` needs `latent`, the shape of one of its latents: set, for example, latent = 128.")
    found = (latent,) if isinstance(latent, int) else latent
    whole = isinstance(found, Sequence) and not isinstance(found, str) and len(found) > 0
    if not whole or not all(type(n) is int and n > 0 for n in found):
        raise UserError(f"`latent` is {short(latent)}: give a number like 128, or a shape like (128, 1, 1).")
    return tuple(found)


def _check(make: Any, latent: tuple[int, ...], sizes: tuple[int, ...], device: torch.device) -> None:
    drawn = torch.randn((DRAWN, *latent), generator=generator_for(0, "latents")).to(device).requires_grad_(True)
    try:
        with seeded(0, "generator"), torch.enable_grad():
            pictures = make(drawn)
    except Exception as error:  # user code may raise anything
        raise UserError(
            f"`generator` fails on latents of shape {tuple(drawn.shape)} ({first_line(error)}): check `latent`."
        ) from error
    if not isinstance(pictures, Tensor) or tuple(pictures.shape) != (DRAWN, *sizes):
        found = f"shape {tuple(pictures.shape)}" if isinstance(pictures, Tensor) else type(pictures).__name__
        raise UserError(
            f"`generator` returns {found} for {DRAWN} latents, not {(DRAWN, *sizes)}: give pictures like those of "
            "train_data."
        )
    if not pictures.is_floating_point() or not bool(pictures.isfinite().all()):
        raise UserError("`generator` returns pixels that are not finite numbers: check its weights.")
    low, high = (float(end.detach()) for end in pictures.aminmax())
    if low < -TOLERANCE or high > 1 + TOLERANCE:
        raise UserError(
            f"`generator` returns pixels from {low:.3g} to {high:.3g}, not 0 to 1: end it in a sigmoid, or map its "
            "tanh by (x + 1) / 2."
        )
    slope = torch.autograd.grad(pictures.sum(), drawn, allow_unused=True)[0] if pictures.requires_grad else None
    if slope is None or not bool(slope.isfinite().all()):
        raise UserError(
            "`generator` passes no gradient to its latents, by which it is searched: leave out no_grad and detach."
        )
