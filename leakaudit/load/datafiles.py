"""`--data` and `--checkpoint`: a folder of class folders, an .npz, and saved weights. Nothing read here runs code."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from leakaudit.errors import Setting, UserError, first_line
from leakaudit.load.datasets import Pixels

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
ARRAY_KEYS = (("x_train", "y_train"), ("x", "y"), ("images", "labels"), ("x_test", "y_test"))
NESTED = ("state_dict", "model", "model_state_dict")
PREFIXES = ("module.", "model.", "_orig_mod.")  # DataParallel, Lightning, torch.compile


@dataclass(frozen=True)
class ClassFolders:
    """A folder with one folder of pictures per class; the sorted folder names are the classes."""

    files: tuple[tuple[Path, int], ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        path, label = self.files[index]
        with Image.open(path) as picture:
            picture.load()
            return picture, label


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
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = set(archive.files)
            pairs = [(x, y) for x, y in ARRAY_KEYS if x in names and y in names]
            wanted = set(pairs[:1]) | ({ARRAY_KEYS[-1]} & set(pairs))
            arrays = {key: archive[key] for pair in wanted for key in pair}
            classes = archive["classes"] if "classes" in names else None
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{path} cannot be read as an .npz of plain arrays ({first_line(error)}).") from error
    if not pairs:
        keys = "; ".join(f"{x} and {y}" for x, y in ARRAY_KEYS)
        raise UserError(f"{path} holds {', '.join(sorted(names)) or 'nothing'}: name its arrays {keys}.")
    named = None
    if classes is not None and classes.dtype.kind in "SU" and classes.ndim == 1:
        named = tuple(c.decode("utf-8", "replace") if isinstance(c, bytes) else str(c) for c in classes.tolist())
    train, *rest = [_pixels(arrays[x], arrays[y], x, y, named, path) for x, y in pairs if (x, y) in wanted]
    return train, rest[0] if rest else None


def _pixels(x: Any, y: Any, x_key: str, y_key: str, classes: tuple[str, ...] | None, path: Path) -> Pixels:
    if x.ndim not in (3, 4) or (x.ndim == 4 and not {x.shape[1], x.shape[3]} & {1, 3}):
        raise UserError(
            f"{x_key} in {path} has shape {x.shape}: give pictures (N, H, W), (N, H, W, C) or (N, C, H, W)."
        )
    if x.dtype.kind not in "fub":
        raise UserError(f"{x_key} in {path} is {x.dtype}: give uint8, or floats in [0, 1].")
    if len(x) != len(y):
        raise UserError(f"{path} holds {len(x)} pictures in {x_key} but {len(y)} labels in {y_key}: give one each.")
    return Pixels(x, y, classes)


def load_checkpoint(network: nn.Module, path: Path) -> None:
    """Load saved weights into `network`; raises UserError naming the file and what does not fit.

    Accepts `.safetensors`, or a torch file (weights only) with a state dict, bare or under `state_dict`, `model` or
    `model_state_dict`; a prefix common to all its keys (`module.`, `model.`) is dropped where the network has none.
    """
    if not path.is_file():
        raise UserError(f"no such checkpoint: {path}; give ", Setting("checkpoint"), " a .safetensors or a torch file.")
    state = _unprefixed(_read_state(path), set(network.state_dict()))
    own = network.state_dict(keep_vars=True)
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own]
    shaped = [
        k for k, value in state.items() if k in own and not nn.parameter.is_lazy(own[k]) and own[k].shape != value.shape
    ]
    wrong = [f"misses {missing[0]!r}{_more(missing)}"] if missing else []
    wrong += [f"has an unexpected {unexpected[0]!r}{_more(unexpected)}"] if unexpected else []
    if shaped:
        key = shaped[0]
        wrong += [f"has {key!r} of shape {tuple(state[key].shape)}, not {tuple(own[key].shape)}{_more(shaped)}"]
    if wrong:
        raise UserError(f"{path} does not fit the model: it {', '.join(wrong)}; give the checkpoint of this model.")
    try:
        network.load_state_dict(state, strict=not any(k not in state for k in own))
    except (RuntimeError, TypeError) as error:
        raise UserError(f"{path} does not fit the model ({first_line(error)}).") from error


def _more(keys: list[str]) -> str:
    return f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both readers raise many types on a broken file
        mend = "save it with torch.save(model.state_dict(), path)"
        raise UserError(f"{path} cannot be read as plain weights ({first_line(error)}): {mend}.") from error
    for key in NESTED:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        keys = f" with keys {', '.join(map(str, list(loaded)[:4]))}" if isinstance(loaded, Mapping) else ""
        places = ", ".join(NESTED)
        raise UserError(
            f"{path} holds {type(loaded).__name__}{keys}, not a state dict: save one, bare or under {places}."
        )
    return {str(key): value for key, value in loaded.items()}


def _unprefixed(state: dict[str, Tensor], own: set[str]) -> dict[str, Tensor]:
    while not set(state) & own:
        prefix = next((p for p in PREFIXES if all(key.startswith(p) for key in state)), None)
        if prefix is None:
            return state
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state
