"""The obscuring generator as an artifact: fitted with its card, kept across interrupts, applied to records."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from leakaudit.defenses.obscure import Obscure
from leakaudit.defenses.obscurer import Obscurer
from leakaudit.defenses.obscurer_card import Costs
from leakaudit.defenses.obscurer_file import Card, digest
from leakaudit.defenses.obscurer_leakage import overhead, remembered
from leakaudit.errors import UserError
from leakaudit.files.archives import arrays
from leakaudit.protocol.defense import Defense, parts_of
from leakaudit.protocol.registry import parse_defense, settings_values
from leakaudit.protocol.target import Records, Target
from leakaudit.score.diagnosis import inspected
from leakaudit.score.pictures import unfolded
from leakaudit.version import __version__
from leakaudit.work.precision import exact
from leakaudit.work.progress import Work, current
from leakaudit.work.seeding import generator_for

MOST_VALUES = 200_000_000  # of released pictures drawn at once


def parsed(settings: str, *, quick: bool = False) -> Obscure:
    """Return the defense of a spec's tail, `steps=20:mirror=false`, with or without `obscure:`; raises UserError.

    Where it leaves a setting open, a `quick` one has what a quick scan gives it.
    """
    parts = parts_of(parse_defense(spec_of(settings), quick=quick))
    if len(parts) != 1 or not isinstance(parts[0], Obscure):
        raise UserError(f"--settings {settings!r} names another defense: give settings of obscure alone.")
    return parts[0]


def spec_of(settings: str) -> str:
    """Return the spec that `scan -d` takes for these settings."""
    tail = settings.strip().removeprefix("obscure").removeprefix(":")
    return f"obscure:{tail}" if tail else "obscure"


def key_of(defense: Obscure, target: Target, seed: int) -> dict[str, str]:
    """Return all that a fit depends on, by name, so that an interrupted one is taken up only where it is the same."""
    return {
        **{f"setting {name}": str(value) for name, value in settings_values(defense).items()},
        "set of private records": digest(target.private),
        "set of public records": digest(target.auxiliary) if defense.public else "",
        "number of classes": str(len(target.classes)),
        "slices of a volume": str(target.model.depth),
        "seed": str(seed),
        "version of leakaudit": __version__,
        "device": target.device.type,
    }


@exact()
def fit(target: Target, defense: Obscure, seed: int, *, secret: bool = False) -> tuple[Obscurer, Card]:
    """Fit an obscurer on the private records, measure what its pictures remember, and look for failure modes.

    The same target, settings and seed give the same obscurer and card. The seed is not put into the card. With an
    epsilon nothing is measured: what is measured on the records is not covered by it; and where it is to be `secret`,
    its noise comes from no seed. Raises UserError where labels are no classes.
    """
    if target.task.grouped:
        raise UserError(
            f"labels are no classes in {target.name} ({target.task.kind}), and a generator's file holds probabilities "
            "of classes: audit it by `leakaudit scan -d obscure`, where it releases targets."
        )
    current().show(Work("fitting the obscurer"), 0, 0)
    fitted = replace(defense, secret=secret).fit(target, generator_for(seed, "obscurer", "fit"))
    assert isinstance(fitted, Obscure)
    assert fitted.obscurer is not None
    assert fitted.card is not None
    if fitted.epsilon is not None:
        return fitted.obscurer, fitted.card
    current().show(Work("measuring what its pictures remember"), 0, 0)
    measured = remembered(fitted.obscurer, target.private, target.test, generator_for(seed, "obscurer", "measured"))
    return fitted.obscurer, replace(fitted.card, measured=measured, found=_failures(fitted, target, seed))


def _failures(fitted: Defense, target: Target, seed: int) -> tuple[str, ...]:
    """Return what the audit's own checks find, each with its severity."""
    private = target.private
    images, labels = fitted.transform_records(
        private.images, private.labels, generator_for(seed, "obscurer", "inspected")
    )
    found = inspected("obscure", fitted, target, Records(images, labels), seed)
    return tuple(f"{f.severity}: {f.message.removeprefix('obscure: ')}" for f in found)


def costs(obscurer: Obscurer, target: Target, begun: tuple[float, float]) -> Costs:
    """Return what the fit took since `begun` (`now()`) and what a batch takes, if that can be measured."""
    elapsed, processor = (after - before for before, after in zip(begun, now(), strict=True))
    current().show(Work("measuring what a batch costs"), 0, 0)
    try:
        return Costs(elapsed, processor, **overhead(obscurer, target))  # type: ignore[arg-type]
    except Exception:  # the user's model or loss may raise anything in train mode
        return Costs(elapsed, processor)


def now() -> tuple[float, float]:
    """Return seconds of the clock and of CPU time."""
    return time.monotonic(), time.process_time()


@torch.no_grad()
def released(obscurer: Obscurer, records: Records, seed: int | None) -> tuple[Tensor, Tensor]:
    """Return uint8 pictures (N, C, H, W), or volumes (N, C, D, H, W), and probabilities (N, K) in the place of records.

    Without a seed nobody can repeat the choice (`Obscurer.__call__`).
    """
    generator = None if seed is None else generator_for(seed, "obscurer", "applied")
    fits = records.images.shape[1] == obscurer.pictures.shape[1]  # else the call says what does not
    images = unfolded(records.images, obscurer.depth) if fits else records.images
    size = max(1, MOST_VALUES // max(1, records.images[0].numel()))
    drawn = [obscurer(part, generator) for part in torch.split(images, size)]
    pictures = torch.cat([(x * 255).round().clamp(0, 255).to(torch.uint8) for x, _ in drawn])
    return pictures, torch.cat([p for _, p in drawn]).float()


def npz(pictures: Tensor, probabilities: Tensor, classes: tuple[str, ...]) -> bytes:
    """Return released records as an .npz that `--data` reads: `y_train` are the likeliest classes."""
    buffer = io.BytesIO()
    held: Mapping[str, object] = {
        "x_train": pictures.cpu().numpy(),
        "y_train": probabilities.argmax(1).cpu().numpy(),
        "probabilities": probabilities.cpu().numpy(),
        "classes": np.array(classes, dtype=np.str_),
        "made_by": np.array(f"leakaudit {__version__}: obscure apply"),
    }
    np.savez_compressed(buffer, **held)  # type: ignore[arg-type]
    return buffer.getvalue()


def made_by_apply(path: Path) -> bool:
    """Return whether a file is one that `npz` gave."""
    try:
        with arrays(path) as found:
            return "made_by" in found.members
    except UserError:
        return False
