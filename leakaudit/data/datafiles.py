"""`--data`: a folder of class folders, alone or in train/ and test/, or an .npz. Nothing read here runs code."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from leakaudit.data.datasets import Pixels, Placed
from leakaudit.data.pictures import to_picture
from leakaudit.data.sources import TEST, TRAIN, VALIDATION, split_of
from leakaudit.errors import UserError
from leakaudit.files.archives import arrays
from leakaudit.files.pictures import SUFFIXES, pages_of, picture_of
from leakaudit.files.reading import short
from leakaudit.work.freememory import free_bytes

TEST_KEYS = (("x_test", "y_test"), ("test_images", "test_labels"))
ARRAY_KEYS = (
    ("x_train", "y_train"),
    ("train_images", "train_labels"),  # of MedMNIST
    ("x", "y"),
    ("images", "labels"),
    *TEST_KEYS,
)
_UNREAD = (("x_val", "y_val"), ("val_images", "val_labels"))
_SPLITS = {*TRAIN, *TEST, *VALIDATION}
_MASKS = {"masks", "mask", "labels", "annotations", "segmentations", "gt", "ground_truth", "groundtruth", "labelstr"}
_IMAGES = {"images", "image", "img", "imgs", "original", "imagestr", "imagests"}
_KINDS = ", ".join(sorted(SUFFIXES))


class Read(NamedTuple):
    """What `--data` holds: training records, test records if they are apart, and notes on what was not read."""

    train: Any
    test: Any | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClassFolders(Placed):
    """A folder with one folder of pictures per class; the sorted folder names are the classes."""

    files: tuple[tuple[Path, int], ...]
    classes: tuple[str, ...]
    volumes: bool = False  # whether the pages of a file are the slices of a volume

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, label = self.files[index]
        if not self.volumes:
            return picture_of(path), label
        pages = [to_picture(page, str(path)) for page in pages_of(path)]
        if len({tuple(page.picture.shape) for page in pages}) > 1:
            raise UserError(f"the pages of {path} differ in size or channels, so they are no volume: give such.")
        first = pages[0]
        return (first if len(pages) == 1 else replace(first, picture=torch.stack([p.picture for p in pages], 1))), label

    def place(self, index: int) -> str:
        """Return the file of a record."""
        return str(self.files[index][0])


def as_volumes(data: Any) -> Any:
    """Return data whose files of several pages are volumes, if it has files."""
    return replace(data, volumes=True) if isinstance(data, ClassFolders) else data


def read_data(path: Path) -> Read:
    """Read a folder of class folders, or an .npz; raises UserError naming the path."""
    if path.is_dir():
        return read_folder(path)
    if not path.exists():
        raise UserError(f"no such file or folder: {path}; give --data a folder of class folders or an .npz.")
    if path.suffix.lower() != ".npz":
        raise UserError(f"{path} is neither a folder nor an .npz: give --data a folder of class folders or an .npz.")
    return read_npz(path)


def read_folder(path: Path) -> Read:
    """List a folder of class folders, or of a train/ and a test/ (else a val/) of such; raises UserError."""
    found = {folder.name: folder for folder in _folders(path)}
    train = split_of(found, TRAIN)
    if train is None or not (_like(found[train], found) or {name.lower() for name in found} <= _SPLITS):
        _check_splits(path, found)
        data, notes = class_folders(path)
        return Read(data, None, (*notes, *_nested(found)))
    data, notes = class_folders(found[train])
    name = split_of(found, (*TEST, *VALIDATION))
    test = None
    if name is not None:
        test, more = class_folders(found[name], data.classes)
        notes = (*notes, *more)
    read = f"{path}: {train}/ was read as train_data" + (f" and {name}/ as test_data" if name else "")
    rest = [f"{each}/" for each in found if each not in (train, name)]
    return Read(data, test, (read + (f"; {' and '.join(rest)} was not read." if rest else "."), *notes))


def _like(train: Path, found: Mapping[str, Path]) -> bool:
    """Whether a folder called train holds class folders itself, and another of the splits' names stands beside it."""
    return len(_folders(train)) > 1 and any(name.lower() in _SPLITS for name in found if name != train.name)


def _check_splits(path: Path, found: Mapping[str, Path]) -> None:
    """Raise UserError where folders that look like splits would be taken as classes."""
    words = {name: set(re.split(r"[^a-z]+", name.lower())) for name in found}
    splits = [name for name in found if words[name] & _SPLITS and len(_folders(found[name])) > 1]
    flat = [name for name in found if not _folders(found[name])]  # a class called train has folders where others do
    if len(splits) > 1 or (splits and (flat or len(found) == 1)):
        look = "look like splits and not like classes" if len(splits) > 1 else "looks like a split and not like a class"
        raise UserError(
            f"{path} holds {' and '.join(splits)}, which {look}: call one train and one test, or name the one that is "
            "meant."
        )


def _nested(found: Mapping[str, Path]) -> tuple[str, ...]:
    """Return a note where every class folder holds folders of the same names, which may be the classes instead."""
    names = [frozenset(inner.name for inner in _folders(folder)) for folder in found.values()]
    common = sorted(frozenset.intersection(*names)) if names else []
    if len(common) < 2:
        return ()
    return (
        f"The classes are the outer folders, {' and '.join(list(found)[:4])}{', …' if len(found) > 4 else ''}: each "
        f"holds {' and '.join(common[:4])}, which were read as parts of it.",
    )


def class_folders(path: Path, known: Sequence[str] = ()) -> tuple[ClassFolders, tuple[str, ...]]:
    """List a folder of class folders, whatever folders are in those, with notes on what of it is no picture.

    `known` are the classes that there may be, where another folder has said so. Raises UserError where there are fewer
    than two with pictures.
    """
    held, others = {}, 0
    for folder in _folders(path):
        files = _files(folder)
        held[folder.name] = [file for file in files if file.suffix.lower() in SUFFIXES]
        others += len(files) - len(held[folder.name])
        if not held[folder.name]:
            raise UserError(_empty(folder, files))
    loose = [file for file in _children(path) if file.is_file() and not file.name.startswith(".")]
    pictures = sum(file.suffix.lower() in SUFFIXES for file in loose)
    if set(map(str.lower, held)) & _MASKS and set(map(str.lower, held)) <= {*_MASKS, *_IMAGES}:
        raise UserError(
            f"{path} holds the folders {' and '.join(held)}, which look like pictures and what is marked in them, not "
            "like classes: give such pairs as train_data in model.py."
        )
    if len(held) < (1 if known else 2):
        beside = f" and {pictures} picture(s) beside them" if pictures else ""
        inner = [folder for name in held if len(_folders(folder := path / name)) > 1]
        mend = f", or {inner[0]} if that holds the class folders" if inner else ""
        raise UserError(
            f"{path} holds {len(held)} class folder(s){beside}: give at least two, each with {_KINDS} files{mend}."
        )
    odd = next((name for name in held if known and name not in known), None)
    if odd is not None:
        raise UserError(f"{path / odd} is a class that train has not: give both the same class folders.")
    classes = tuple(known) or tuple(held)
    told = []
    if pictures:
        told.append(f"{pictures} picture(s) beside the class folders of {path} were not read: they have no class.")
    if others:
        told.append(f"{others} file(s) in the class folders of {path} are no {_KINDS} and were not read.")
    listed = tuple((file, classes.index(name)) for name in held for file in held[name])
    return ClassFolders(listed, classes), tuple(told)


def _empty(folder: Path, files: Sequence[Path]) -> str:
    kinds = sorted({file.suffix.lower() or "no ending" for file in files})
    if kinds:
        return f"the class folder {folder} holds no picture, only files of {', '.join(kinds[:4])}: put {_KINDS} there."
    return f"the class folder {folder} holds no picture: put {_KINDS} files there or remove it."


def _children(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from error


def _folders(path: Path) -> list[Path]:
    return [p for p in _children(path) if p.is_dir() and not p.name.startswith((".", "__"))]


def _files(folder: Path, within: frozenset[Path] = frozenset()) -> list[Path]:
    """Return all files in a folder and in those within it, sorted, but for hidden ones; a link back is not followed."""
    found: list[Path] = []
    within |= {folder.resolve()}
    for child in _children(folder):
        if child.name.startswith((".", "__")) or child.name.lower() == "thumbs.db":
            continue
        if not child.is_dir():
            found.append(child)
        elif child.resolve() not in within:
            found += _files(child, within)
    return found


def read_npz(path: Path) -> Read:
    """Return what an .npz of x_train/y_train[, x_test/y_test], x/y, images/labels, MedMNIST's names or a test set alone
    holds. Pictures are uint8, uint16 or floats in [0, 1]; object arrays are refused. Raises UserError naming the path.
    """
    room = free_bytes(torch.device("cpu"))
    with arrays(path, None if room is None else room // 2) as archive:
        names = set(archive.members)
        pairs = [(x, y) for x, y in ARRAY_KEYS if x in names and y in names]
        wanted = list(dict.fromkeys([*pairs[:1], *[pair for pair in TEST_KEYS if pair in pairs][:1]]))
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
    train, *rest = [_pixels(held, x, y, named, path) for x, y in wanted]
    unread = [x for x, y in _UNREAD if {x, y} <= names]
    return Read(train, rest[0] if rest else None, tuple(f"{x} of {path} was not read." for x in unread))


def _pixels(held: Mapping[str, Any], x_key: str, y_key: str, classes: tuple[str, ...] | None, path: Path) -> Pixels:
    x, y = held[x_key], held[y_key]
    if x.ndim not in (3, 4, 5):
        raise UserError(
            f"{x_key} in {path} has shape {x.shape}: give pictures (N, H, W), (N, H, W, C) or (N, C, H, W), of volumes "
            "with D before H."
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
