"""The obscurer as a file: two tensors and a header of plain JSON, read without running anything that is in it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leakaudit.defenses._private_release import Spent
from leakaudit.errors import UserError, first_line
from leakaudit.files.jsonfile import parsed
from leakaudit.files.reading import reading, short
from leakaudit.files.typed import Misfit, typed
from leakaudit.files.weights import safetensors_header
from leakaudit.files.writing import write_atomically
from leakaudit.protocol.target import Records, Target
from leakaudit.result.shapes import channels_in_words, sizes_of
from leakaudit.version import __version__

FORMAT = "leakaudit.obscurer/1"
KEY = "obscurer"  # the one entry of the header: safetensors writes several in any order
WHOLE = "a whole safetensors file"
MAKE = "make one with `leakaudit obscure fit model.py`"
Value = str | int | float | bool | None


def idle_settings(settings: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of settings of `obscure` that have no part in a fit, as the others are set."""
    if settings.get("epsilon") is not None:
        return frozenset(("pictures", "steps", "epochs", "temperature", "opinion", "latent", "shared"))
    drawn = ("pictures", "steps", "latent", "shared") if settings.get("public") else ()
    return frozenset(("delta", *drawn))


@dataclass(frozen=True)
class Source:
    """One client of a pool: the SHA-256 of what it gave, of how many and which records, how it was fitted.

    `auc` is what the client measured of its own pictures, as `Card.measured` has it. With `epsilon` what it gave is
    (ε, `delta`)-private; then how many records it has is not told, and stands here as 0.
    """

    sha256: str
    pictures: int
    records: int
    digest: str = ""
    settings: Mapping[str, Value] = field(default_factory=dict)
    auc: float | None = None
    epsilon: float | None = None
    delta: float = 0.0
    leakaudit: str = ""


@dataclass(frozen=True)
class Card:
    """What is known of an obscurer: from what it was fitted, what is proven of it and what was measured.

    `classes` names the K classes; `records` counts the private records per class, `shape` (C, H, W) is theirs and
    `digest` the SHA-256 of the whole set; `nats` is the mean rate over them. `seed` is None where it was drawn afresh.
    `learned` are what the fit itself measured, `measured` what was measured of the pictures afterwards, `found` the
    failure modes noticed, a sentence each. `sources` are the clients of a pool, whose records are counted together.
    With `epsilon` the whole file is (ε, `delta`)-private: `spent` has what was released with noise, and nothing that
    was measured on the records stands here.
    """

    classes: tuple[str, ...]
    settings: Mapping[str, Value] = field(default_factory=dict)
    nats: float = 0.0
    records: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()
    digest: str = ""
    seed: int | None = None
    target: str = ""
    leakaudit: str = __version__
    learned: Mapping[str, Value] = field(default_factory=dict)
    measured: Mapping[str, Value] = field(default_factory=dict)
    found: tuple[str, ...] = ()
    sources: tuple[Source, ...] = ()
    epsilon: float | None = None
    delta: float = 0.0
    spent: tuple[Spent, ...] = ()


def digest(records: Records) -> str:
    """Return the SHA-256 of a whole set of records, pictures at 8 bits and labels, in their order.

    It tells whether a set is the same, and nothing of a record on its own.
    """
    state = hashlib.sha256(repr(tuple(records.images.shape)).encode())
    state.update((records.images * 255).round().to(torch.uint8).cpu().contiguous().numpy().tobytes())
    state.update(records.labels.long().cpu().contiguous().numpy().tobytes())
    return state.hexdigest()


@dataclass(frozen=True)
class Contents:
    """The fields of an `Obscurer` as a file holds them: pictures (J, C, H, W), probabilities (J, K), slope, mirror.

    `depth` is the number of slices D of volumes, whose pictures are (J, C·D, H, W).
    """

    pictures: Tensor
    labels: Tensor
    slope: float
    mirror: bool
    depth: int = 1


def fingerprint(obscurer: Contents) -> str:
    """Return the SHA-256 of pictures and probabilities as a file holds them, which stands in its header."""
    return _sum(_tensors(obscurer))


def _tensors(obscurer: Contents) -> dict[str, Tensor]:
    return {
        "pictures": (obscurer.pictures * 255).round().to(torch.uint8).cpu().contiguous(),
        "labels": obscurer.labels.float().cpu().contiguous(),
    }


def write(obscurer: Contents, path: Path, card: Card) -> None:
    """Write an obscurer whole or not at all, for its owner alone, its pictures at 8 bits. The same one, the same bytes.

    Raises UserError where the place cannot be written.
    """
    from safetensors.torch import save

    tensors = _tensors(obscurer)
    header = {
        "format": FORMAT,
        "sha256": _sum(tensors),
        "slope": obscurer.slope,
        "mirror": obscurer.mirror,
        "shape": list(obscurer.pictures.shape[1:]),
        **({} if obscurer.depth == 1 else {"depth": obscurer.depth}),
        "card": asdict(card),
    }
    write_atomically(path, save(tensors, {KEY: json.dumps(header, sort_keys=True, allow_nan=False)}), private=True)


def read(path: Path, target: Target | None = None) -> tuple[Contents, Card]:
    """Return contents and card of a file. Raises UserError, one sentence, for all that is not one or does not fit.

    Only JSON and plain tensors are read. The size of the pictures need not be the target's: a client's batch gives it.
    """
    tensors, header = _parts(path)
    if header.get("format") != FORMAT:
        raise UserError(f"{path} has the format {short(header.get('format'))}, not {FORMAT}: {MAKE}.")
    try:
        card = typed(header["card"], Card)
        slope, mirror, shape = header["slope"], header["mirror"], header["shape"]
    except (KeyError, Misfit) as error:
        raise UserError(f"{path} has an incomplete header ({first_line(error)}): {MAKE}.") from error
    if card.nats < 0:
        raise UserError(f"{path} has an incomplete header (nats is {card.nats}): {MAKE}.")
    for epsilon, delta in [(card.epsilon, card.delta), *((each.epsilon, each.delta) for each in card.sources)]:
        if epsilon is not None and not (0 < epsilon < math.inf and 0 < delta < 1):
            said = f"epsilon {epsilon:g} and delta {delta:g}"
            raise UserError(f"{path} has {said}, which bound nothing: {MAKE}.")
    numeric = isinstance(slope, int | float) and not isinstance(slope, bool)
    if not numeric or not 0 <= slope < math.inf or not isinstance(mirror, bool):
        said = f"slope {short(slope)} and mirror {short(mirror)}"
        raise UserError(f"{path} has {said}, not a number ≥ 0 and true or false: {MAKE}.")
    depth = header.get("depth", 1)  # of volumes alone
    wrong = _wrong(tensors, shape, len(card.classes), depth)
    if not wrong and header.get("sha256") != _sum(tensors):
        wrong = "its pictures or probabilities are not those that were written"
    if wrong:
        raise UserError(f"{path} is damaged or was not written by leakaudit: {wrong}; {MAKE}.")
    contents = Contents(tensors["pictures"].float() / 255, tensors["labels"], float(slope), mirror, depth)
    if target is not None:
        _fits(path, contents, card, target)
    return contents, card


def _sum(tensors: Mapping[str, Tensor]) -> str:
    state = hashlib.sha256()
    for name in ("pictures", "labels"):
        state.update(tensors[name].contiguous().numpy().tobytes())
    return state.hexdigest()


def _parts(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a file: {MAKE}.")
    if not path.exists():
        raise UserError(f"no such file: {path}; {MAKE}.")
    said = safetensors_header(path, WHOLE, MAKE)
    if KEY not in said.texts:
        raise UserError(f"{path} holds {len(said.shapes)} tensor(s) but no obscurer: {MAKE}.")
    header = parsed(said.texts[KEY], f"the header of {path}", MAKE)
    with reading(path, WHOLE, MAKE):
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in said.shapes.keys() & {"pictures", "labels"}}
    if not isinstance(header, dict):
        raise UserError(f"{path} has a header that is not one of an obscurer: {MAKE}.")
    return tensors, header


def _wrong(tensors: Mapping[str, Tensor], shape: object, classes: int, depth: object) -> str | None:
    """Return what is wrong with the tensors, None where nothing is."""
    for name, dtype, dimensions in (("pictures", torch.uint8, 4), ("labels", torch.float32, 2)):
        if name not in tensors:
            return f"it has no tensor {name!r}"
        found = tensors[name]
        if found.dtype != dtype or found.ndim != dimensions or not found.numel():
            said = f"{str(found.dtype).removeprefix('torch.')} of shape {tuple(found.shape)}"
            return f"{name!r} is {said}, not {dimensions}-dimensional {str(dtype).removeprefix('torch.')}"
    pictures, labels = tensors["pictures"], tensors["labels"]
    if list(pictures.shape[1:]) != shape:
        return f"its pictures have shape {tuple(pictures.shape[1:])} and its header says {short(shape)}"
    if type(depth) is not int or depth < 1 or pictures.shape[1] % depth:
        return f"its pictures have shape {tuple(pictures.shape[1:])} and its header says {short(depth)} slices"
    if len(pictures) != len(labels):
        return f"it has {len(pictures)} pictures and {len(labels)} rows of probabilities"
    if labels.shape[1] != classes:
        return f"its probabilities are over {labels.shape[1]} classes and it names {classes}"
    if not bool(torch.isfinite(labels).all()):
        return "its probabilities hold NaN or infinity"
    if float(labels.min()) < 0 or float((labels.sum(1) - 1).abs().max()) > 1e-3:
        return "its probabilities are below 0 or do not add up to 1"
    return None


def _sizes(obscurer: Contents) -> tuple[int, ...]:
    channels, height, width = obscurer.pictures.shape[1:]
    return sizes_of(channels, height, width, obscurer.depth)


def _fits(path: Path, obscurer: Contents, card: Card, target: Target) -> None:
    mend = "fit one on this model's data"
    own, wanted = _sizes(obscurer), target.sizes
    if own[:-2] != wanted[:-2]:
        said = f"it draws {channels_in_words(own)}, not {channels_in_words(wanted)}"
        raise UserError(f"{path} does not fit {target.name}: {said}; {mend}.")
    if len(card.classes) != len(target.classes):
        said = f"it knows {len(card.classes)} classes, not {len(target.classes)}"
        raise UserError(f"{path} does not fit {target.name}: {said}; {mend}.")
    numbers = tuple(map(str, range(len(card.classes))))
    if card.classes != target.classes and numbers not in (card.classes, target.classes):
        at = next(k for k, (a, b) in enumerate(zip(card.classes, target.classes, strict=True)) if a != b)
        said = f"its class {at} is {card.classes[at]!r}, not {target.classes[at]!r}"
        raise UserError(f"{path} does not fit {target.name}: {said}; {mend}.")
