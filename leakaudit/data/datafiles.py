"""`--data`: a folder of class folders, or an .npz. Nothing read here runs code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from leakaudit.data.datasets import Pixels
from leakaudit.errors import UserError
from leakaudit.files.archives import arrays
from leakaudit.files.pictures import SUFFIXES, picture_of
from leakaudit.files.reading import short
from leakaudit.work.freememory import free_bytes

ARRAY_KEYS = (("x_train", "y_train"), ("x", "y"), ("images", "labels"), ("x_test", "y_test"))


@dataclass(frozen=True)
class ClassFolders:
    """A folder with one folder of pictures per class; the sorted folder names are the classes."""

    files: tuple[tuple[Path, int], ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, label = self.files[index]
        return picture_of(path), label


def read_data(path: Path) -> tuple[Any, Any | None]:
    """Return (train, test or None) for a folder of class folders or an .npz; raises UserError naming the path."""
    if path.is_dir():
        return class_folders(path), None
    if not path.exists():
        raise UserError(f"no such file or folder: {path}; give --data a folder of class folders or an .npz.")
    if path.suffix.lower() != ".npz":
        raise UserError(f"{path} is neither a folder nor an .npz: give --data a folder of class folders or an .npz.")
    return read_npz(path)


def class_folders(path: Path) -> ClassFolders:
    """List a folder of class folders; raises UserError where there are fewer than two with pictures."""
    try:
        folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
        held = {f.name: sorted(p for p in f.iterdir() if p.suffix.lower() in SUFFIXES) for f in folders}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from error
    empty = next((name for name, files in held.items() if not files), None)
    kinds = ", ".join(sorted(SUFFIXES))
    if len(held) < 2:
        raise UserError(f"{path} holds {len(held)} class folder(s): give at least two, each with {kinds} files.")
    if empty is not None:
        raise UserError(f"the class folder {path / empty} holds no picture: put {kinds} files there or remove it.")
    classes = tuple(held)
    return ClassFolders(tuple((file, classes.index(name)) for name in classes for file in held[name]), classes)


def read_npz(path: Path) -> tuple[Pixels, Pixels | None]:
    """Return (train, test or None) of an .npz with x_train/y_train[, x_test/y_test], x/y, images/labels or a test set
    alone. Pictures are uint8 or floats in [0, 1]; object arrays are refused. Raises UserError naming the path.
    """
    room = free_bytes(torch.device("cpu"))
    with arrays(path, None if room is None else room // 2) as archive:
        names = set(archive.members)
        pairs = [(x, y) for x, y in ARRAY_KEYS if x in names and y in names]
        wanted = set(pairs[:1]) | ({ARRAY_KEYS[-1]} & set(pairs))
        held = {key: archive.read(key) for pair in wanted for key in pair}
        classes = archive.read("classes") if "classes" in names else None
    if not pairs:
        keys = "; ".join(f"{x} and {y}" for x, y in ARRAY_KEYS)
        raise UserError(
            f"{path} holds {', '.join(short(n)[1:-1] for n in sorted(names)[:8]) or 'nothing'}: name its arrays {keys}."
        )
    named = None
    if classes is not None and classes.dtype.kind in "SU" and classes.ndim == 1:
        named = tuple(c.decode("utf-8", "replace") if isinstance(c, bytes) else str(c) for c in classes.tolist())
    train, *rest = [_pixels(held[x], held[y], x, y, named, path) for x, y in pairs if (x, y) in wanted]
    return train, rest[0] if rest else None


def _pixels(x: Any, y: Any, x_key: str, y_key: str, classes: tuple[str, ...] | None, path: Path) -> Pixels:
    if x.ndim not in (3, 4) or (x.ndim == 4 and not {x.shape[1], x.shape[3]} & {1, 3}):
        raise UserError(
            f"{x_key} in {path} has shape {x.shape}: give pictures (N, H, W), (N, H, W, C) or (N, C, H, W)."
        )
    if not x.size:
        raise UserError(f"{x_key} in {path} has shape {x.shape}, so no pixel: give at least one picture.")
    if x.dtype.kind not in "fub":
        raise UserError(f"{x_key} in {path} is {x.dtype}: give uint8, or floats in [0, 1].")
    if y.ndim == 0:
        raise UserError(f"{y_key} in {path} is one number: give one label for each picture.")
    if len(x) != len(y):
        raise UserError(f"{path} holds {len(x)} pictures in {x_key} but {len(y)} labels in {y_key}: give one each.")
    return Pixels(x, y, classes)
