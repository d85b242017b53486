"""Files and folders of the zoo: the same pictures as they lie on a disk, most of them named by `--data`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.zoodata import Map, kind
from benchmarks.zookit import RECORDS, Truth, arrays, labels


def _numbers(of: Truth, first: int, last: int) -> tuple[Any, Any]:
    return arrays(of)[first:last], of.labels.numpy()[first:last, None]


def medmnist(of: Truth, folder: Path, tags: Tensor | None = None) -> Path:
    """Write a file as MedMNIST has them: uint8, labels (N, 1) or (N, findings), three parts."""
    y = (of.labels[:, None] if tags is None else tags).numpy().astype(np.uint8)
    x, held = arrays(of), {}
    for part, rows in {"train": slice(0, 40), "val": slice(40, 48), "test": slice(48, 60)}.items():
        held |= {f"{part}_images": x[rows], f"{part}_labels": y[rows]}
    np.savez(folder / "medmnist.npz", **held)
    return folder / "medmnist.npz"


kind("medmnist", "MedMNIST's file, colour (--data)")(medmnist)
kind("medmnist-grey", "MedMNIST's file, grey (--data)", 1)(medmnist)
kind("medmnist-3d", "MedMNIST's file of volumes (--data)", 1, 12, 12)(medmnist)


@kind("medmnist-multi", "MedMNIST's file, several findings each (--data)", 1, kind="multi-label", width=None)
def _multi(of: Truth, folder: Path) -> Any:
    tags = torch.stack([(torch.arange(RECORDS) // (k + 1)) % 2 for k in range(5)], 1)
    return medmnist(of, folder, tags), {"out": 5, "truth": Truth(of.pictures, tags)}


@kind("medmnist-package", "A dataset of the medmnist package, as it is", side=28, package="medmnist")
def _package(of: Truth, folder: Path) -> Any:
    import medmnist as package

    x, y = arrays(of), of.labels.numpy()[:, None].astype(np.uint8)
    held = {f"{p}_{k}": v for p in ("train", "val", "test") for k, v in (("images", x), ("labels", y))}
    np.savez(folder / "pathmnist.npz", **held)
    found = package.PathMNIST(split="train", root=str(folder), download=False)
    found.info = found.info | {"n_samples": {"train": RECORDS, "val": RECORDS, "test": RECORDS}}  # fewer than there are
    return found


kind("npz", "x_train, y_train, x_test, y_test (--data)")(
    lambda t, f: _saved(f, x_train=arrays(t)[:45], y_train=labels()[:45], x_test=arrays(t)[45:], y_test=labels()[45:])
)
kind("npz-names", "Arrays of other names (--data)", expect="refused", says=("x_train", "pixels"))(
    lambda t, f: _saved(f, pixels=arrays(t), tags=labels())
)


def _saved(folder: Path, **held: Any) -> Path:
    np.savez(folder / "data.npz", **{name: np.asarray(value) for name, value in held.items()})
    return folder / "data.npz"


def folders(of: Truth, folder: Path, suffix: str = ".png", rows: Any = range(RECORDS)) -> Path:
    """Write a folder for each class."""
    from PIL import Image

    for i in rows:
        place = folder / f"class-{int(of.labels[i])}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(arrays(of)[i]).save(place / f"{i:03}{suffix}")
    return folder


kind("folders", "A folder for each class, PNG (--data)")(lambda t, f: folders(t, f / "all"))
kind("folders-grey", "A folder for each class, grey PNG (--data)", 1)(lambda t, f: folders(t, f / "all"))
kind("folders-tiff", "A folder for each class, TIFF (--data)")(lambda t, f: folders(t, f / "all", ".tif"))


@kind("folders-split", "train/ and test/ with a folder for each class (--data)")
def _split(of: Truth, folder: Path) -> Any:
    folders(of, folder / "all" / "train", rows=range(45))
    folders(of, folder / "all" / "test", rows=range(45, RECORDS))
    return folder / "all"


@kind("folders-corrupt", "A folder for each class, one file cut short (--data)", expect="refused", says=("042.png",))
def _corrupt(of: Truth, folder: Path) -> Any:
    folders(of, folder / "all")
    place = next((folder / "all").glob("*/042.png"))
    place.write_bytes(place.read_bytes()[:200])
    return folder / "all"


@kind("tiff-16", "16-bit TIFF in class folders (--data)", 1, levels=65535)
def _tiff16(of: Truth, folder: Path) -> Any:
    from PIL import Image

    for i in range(RECORDS):
        place = folder / "all" / f"class-{int(of.labels[i])}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((of.pictures[i, 0].double() * 65535).round().numpy().astype(np.uint16)).save(place / f"{i}.tif")
    return folder / "all"


@kind("tiff-bands", "TIFF of 6 bands read by tifffile", 6, package="tifffile")
def _bands(of: Truth, folder: Path) -> Any:
    import tifffile

    for i in range(RECORDS):
        tifffile.imwrite(folder / f"{i}.tif", (of.pictures[i] * 255).round().byte().numpy(), photometric="minisblack")
    return Map(lambda i: (tifffile.imread(folder / f"{i}.tif"), int(of.labels[i])))


@kind("image-folder", "torchvision's ImageFolder with ToTensor", package="torchvision")
def _image_folder(of: Truth, folder: Path) -> Any:
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    return ImageFolder(str(folders(of, folder / "all")), transforms.ToTensor())
