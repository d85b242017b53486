"""Kinds of data of the zoo: the same pictures in every form that people keep them in."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, StackDataset, Subset, TensorDataset

from benchmarks.zookit import CLASSES, RECORDS, Brought, Entry, Truth, arrays, small, truth

DATA: list[Entry] = []
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


def kind(name: str, about: str, channels: int = 3, side: int = 32, depth: int = 0, **told: Any) -> Callable[..., Any]:
    """Decorator: an entry of a function of (truth, folder) that returns data, or data and further names of model.py."""

    def add(build: Callable[[Truth, Path], Any]) -> Callable[[Truth, Path], Any]:
        levels, takes = told.pop("levels", 255), told.pop("takes", channels)

        def bring(folder: Path) -> Brought:
            found = truth(channels, side, depth=depth, levels=levels)
            made = build(found, folder)
            data, more = made if isinstance(made, tuple) and isinstance(made[1], dict) else (made, {})
            found, out = more.pop("truth", found), more.pop("out", CLASSES)
            return Brought(lambda: small(takes, out, depth), data, found, more)

        shape = (channels, depth, side, side) if depth else (channels, side, side)
        DATA.append(Entry(name=name, about=about, build=bring, **({"shape": shape} | told)))
        return build

    return add


class Map(Dataset[Any]):
    """A dataset of what a function gives of an index."""

    def __init__(self, give: Callable[[int], Any], count: int = RECORDS) -> None:
        self.give, self.count = give, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.give(index)


def opened(of: Truth, made: Callable[[Any], Any], scale: float = 255, dtype: Any = np.uint8) -> Map:
    """Return a dataset of PIL pictures: `made` of arrays of the pictures on that scale."""
    scaled = (of.pictures.double() * scale).movedim(1, -1).numpy()
    scaled = scaled.round() if np.issubdtype(dtype, np.integer) else scaled
    found = (scaled[..., 0] if scaled.shape[-1] == 1 else scaled).astype(dtype)
    return Map(lambda i: (made(found[i]), int(of.labels[i])))


def pil(mode: str = "") -> Callable[[Any], Any]:
    from PIL import Image

    return lambda array: Image.fromarray(array).convert(mode) if mode else Image.fromarray(array)


# -- tensors and arrays ---------------------------------------------------------------------------

kind("tensor-dataset", "TensorDataset of floats in [0, 1]")(lambda t, _: TensorDataset(t.pictures, t.labels))
kind("pair", "(pictures, labels), two tensors")(lambda t, _: (t.pictures, t.labels))
kind("pair-numpy", "(pictures, labels), two arrays of uint8, channels last")(lambda t, _: (arrays(t), t.labels.numpy()))
kind("list", "A list of (picture, label)")(lambda t, _: list(zip(t.pictures, t.labels.tolist(), strict=True)))
kind("uint8", "uint8 tensors")(lambda t, _: TensorDataset((t.pictures * 255).round().byte(), t.labels))
kind("float16", "float16 tensors", tolerance=1e-3)(lambda t, _: TensorDataset(t.pictures.half(), t.labels))
kind("float64", "float64 arrays, channels last")(
    lambda t, _: Map(lambda i: (t.pictures[i].permute(1, 2, 0).double().numpy(), int(t.labels[i])))
)
kind("without-channel", "Grey pictures (H, W)", 1)(lambda t, _: TensorDataset(t.pictures[:, 0], t.labels))
kind("0-to-255", "Floats from 0 to 255", expect="refused", says=("255",))(
    lambda t, _: TensorDataset(t.pictures * 255, t.labels)
)


def normalised(of: Truth, mean: Any = MEAN, std: Any = STD) -> TensorDataset:
    return TensorDataset(
        (of.pictures - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1), of.labels
    )


kind("normalised", "Normalised floats with their mean and std")(
    lambda t, _: (normalised(t), {"mean": MEAN, "std": STD})
)
kind("normalised-unsaid", "Normalised floats without mean and std", expect="refused", says=("mean", "std"))(
    lambda t, _: normalised(t)
)
kind("normalised-wrong", "Normalised to (−1, 1), with ImageNet's constants", says=("mean", "std", "0.5"), tolerance=1)(
    lambda t, _: (normalised(t, (0.5,) * 3, (0.5,) * 3), {"mean": MEAN, "std": (0.3, 0.3, 0.3)})
)
kind(
    "normalised-wider",
    "Normalised with 0.5 and 0.25, said to be 0.5 and 0.5",
    says=("std",),
    untrue=("cifar",),
    expect="refused",
)(lambda t, _: (normalised(t, (0.5,) * 3, (0.25,) * 3), {"mean": 0.5, "std": 0.5}))

# -- PIL ------------------------------------------------------------------------------------------

for _mode, _channels, _from in (("L", 1, 1), ("RGB", 3, 3), ("P", 3, 3), ("1", 1, 1)):
    kind(
        f"pil-{_mode.lower()}", f"PIL pictures of mode {_mode}", _channels, tolerance=1 if _mode in "P1" else 0.6 / 255
    )(
        lambda t, _, mode=_mode: opened(t, pil(mode))  # type: ignore[misc]
    )
kind("pil-rgba", "PIL pictures of mode RGBA, opaque")(lambda t, _: opened(t, pil("RGBA")))
kind("pil-la", "PIL pictures of mode LA, opaque", 1)(lambda t, _: opened(t, pil("LA")))
kind("pil-cmyk", "PIL pictures of mode CMYK", tolerance=1)(lambda t, _: opened(t, pil("CMYK")))
kind("pil-f", "PIL pictures of mode F, from 0 to 1", 1)(lambda t, _: opened(t, pil(), 1, np.float32))
kind("pil-f-255", "PIL pictures of mode F, from 0 to 255", 1, expect="refused", says=("255",))(
    lambda t, _: opened(t, pil(), 255, np.float32)
)
kind("pil-i-12", "PIL pictures of mode I, 12-bit values", 1, levels=4095, expect="refused", says=("4095",))(
    lambda t, _: opened(t, pil(), 4095, np.int32)
)
kind("pil-i16", "PIL pictures of mode I;16, 16-bit values", 1, levels=65535)(
    lambda t, _: opened(t, pil(), 65535, np.uint16)
)
kind("pil-i16-12", "PIL pictures of mode I;16, 12-bit values", 1, levels=4095, expect="refused", says=("4095",))(
    lambda t, _: opened(t, pil(), 4095, np.uint16)
)
kind(
    "grey-for-three", "Grey PIL pictures for a network of three channels", 1, takes=3, shape=(3, 32, 32), says=("grey",)
)(lambda t, _: (opened(t, pil("L")), {"truth": Truth(t.pictures.expand(-1, 3, -1, -1), t.labels)}))
kind("colour-for-one", "Colour pictures for a network of one channel", takes=1, expect="refused", says=("channel",))(
    lambda t, _: opened(t, pil("RGB"))
)
kind("sizes", "Pictures of different sizes", expect="refused", says=("size",))(
    lambda t, _: Map(lambda i: (t.pictures[i, :, : 32 - i % 3], int(t.labels[i])))
)

# -- channels and volumes -------------------------------------------------------------------------

for _channels in (2, 4, 8, 13):
    kind(f"{_channels}-channels", f"Pictures of {_channels} channels", _channels)(
        lambda t, _: TensorDataset(t.pictures, t.labels)
    )
kind("4-channels-last", "Arrays of 4 channels, channels last", 4)(lambda t, _: (arrays(t), t.labels.numpy()))
kind(
    "volumes",
    "Volumes (1, D, H, W) for a network of three dimensions",
    1,
    16,
    10,
    defenses=("none", "gaussian:std=0.01", "obscure"),
)(lambda t, _: TensorDataset(t.pictures, t.labels))
kind("volumes-2", "Volumes of two channels (two sequences of an MRI)", 2, 12, 8)(
    lambda t, _: TensorDataset(t.pictures, t.labels)
)
kind("video", "Films (T, C, H, W) for a network of (C, T, H, W)", 3, 12, 8, expect="refused", says=("(3, d, h, w)",))(
    lambda t, _: TensorDataset(t.pictures.transpose(1, 2), t.labels)
)
kind("volumes-bare", "Volumes (D, H, W) without a channel", 1, 12, 8)(
    lambda t, _: TensorDataset(t.pictures[:, 0], t.labels)
)

# -- loaders, streams, packages -------------------------------------------------------------------

kind("loader", "A shuffling DataLoader")(lambda t, _: DataLoader(TensorDataset(t.pictures, t.labels), 8, shuffle=True))


def collated(rows: Any) -> dict[str, Tensor]:
    return {"pixel_values": torch.stack([x for x, _ in rows]), "labels": torch.stack([y for _, y in rows])}


kind("loader-collate", "A DataLoader whose collate makes dicts")(
    lambda t, _: DataLoader(TensorDataset(t.pictures, t.labels), 8, collate_fn=collated)
)


@kind("subset", "A Subset of a ConcatDataset")
def _subset(of: Truth, folder: Path) -> Any:
    halves = [TensorDataset(of.pictures[part], of.labels[part]) for part in (slice(0, 30), slice(30, 60))]
    return Subset(ConcatDataset(halves), range(2, 59))


kind("stack", "A StackDataset of dicts")(lambda t, _: StackDataset(image=t.pictures, label=t.labels))
kind("paths", "Names of files in place of pictures", expect="refused", says=("file",))(
    lambda t, _: [(f"pictures/{k}.png", k % CLASSES) for k in range(RECORDS)]
)


@kind("monai-dicts", "Dicts of MetaTensors (MONAI)", package="monai")
def _meta(of: Truth, folder: Path) -> Any:
    from monai.data import Dataset as Dicts
    from monai.data import MetaTensor

    return Dicts([{"image": MetaTensor(x), "label": int(y)} for x, y in zip(of.pictures, of.labels, strict=True)])


class Stream(IterableDataset[Any]):
    """Yields rows one after another, in an order that is random each time."""

    def __init__(self, of: Truth) -> None:
        self.of = of

    def __iter__(self) -> Iterator[Any]:
        for i in torch.randperm(RECORDS).tolist():
            yield self.of.pictures[i], int(self.of.labels[i])


STREAM = ("one after another",)
kind("stream", "An IterableDataset", says=STREAM)(lambda t, _: Stream(t))


class Endless(IterableDataset[Any]):
    """Yields pictures that never end."""

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield torch.rand(3, 8, 8), int(torch.randint(CLASSES, ()))


kind("stream-endless", "An IterableDataset without an end", side=8, says=("first",), leaks=False)(
    lambda t, _: (Endless(), {"truth": None})
)


@kind("two-images", "Rows of a raw image beside pixel_values", says=("pixel_values",))
def _two(of: Truth, folder: Path) -> Any:
    raw = [pil()(np.kron(each, np.ones((2, 2, 1), np.uint8))) for each in arrays(of)]
    made = (of.pictures - 0.5) / 0.5
    rows = [{"image": raw[i], "pixel_values": made[i], "label": i % CLASSES} for i in range(RECORDS)]
    return rows, {"mean": 0.5, "std": 0.5}


@kind(
    "augmented",
    "Random flips and crops in the dataset's transform",
    says=("another picture each time", "random"),
    tolerance=1,
)
def _augmented(of: Truth, folder: Path) -> Any:
    def give(i: int) -> Any:
        x = F.pad(of.pictures[i], (3, 3, 3, 3), mode="reflect")
        dy, dx = torch.randint(0, 7, (2,)).tolist()
        x = x[:, dy : dy + 32, dx : dx + 32]
        return (x.flip(2) if torch.rand(()) < 0.5 else x), int(of.labels[i])

    return Map(give)


def _encoded(of: Truth, i: int) -> bytes:
    held = io.BytesIO()
    pil()(arrays(of)[i]).save(held, "PNG")
    return held.getvalue()


def _table(of: Truth, rows: range = range(RECORDS)) -> Any:
    import datasets

    told = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    held = {"image": [{"bytes": _encoded(of, i), "path": None} for i in rows], "label": [i % CLASSES for i in rows]}
    return datasets.Dataset.from_dict(held, features=told)


kind("hf-dataset", "A Dataset of Hugging Face", package="datasets")(lambda t, _: _table(t))


@kind("hf-dataset-dict", "A DatasetDict with train and test", package="datasets")
def _dict(of: Truth, folder: Path) -> Any:
    import datasets

    return datasets.DatasetDict({"train": _table(of, range(45)), "test": _table(of, range(45, RECORDS))})


@kind("hf-streaming", "A streaming IterableDataset of Hugging Face", package="datasets", says=STREAM)
def _streaming(of: Truth, folder: Path) -> Any:
    return _table(of).to_iterable_dataset()


@kind("webdataset", "A WebDataset of a tar file", package="webdataset", says=STREAM)
def _tar(of: Truth, folder: Path) -> Any:
    import webdataset

    with webdataset.TarWriter(str(folder / "data.tar")) as tar:
        for i in range(RECORDS):
            tar.write({"__key__": f"{i:04}", "png": _encoded(of, i), "cls": i % CLASSES})
    return webdataset.WebDataset(str(folder / "data.tar"), shardshuffle=False).decode("pil").to_tuple("png", "cls")


@kind("datamodule", "A LightningDataModule with train and test loaders", package="lightning")
def _module(of: Truth, folder: Path) -> Any:
    import lightning

    class Module(lightning.LightningDataModule):
        def setup(self, stage: str | None = None) -> None:
            self.parts = (
                TensorDataset(of.pictures[:45], of.labels[:45]),
                TensorDataset(of.pictures[45:], of.labels[45:]),
            )

        def train_dataloader(self) -> Any:
            return DataLoader(self.parts[0], 8, shuffle=True)

        def test_dataloader(self) -> Any:
            return DataLoader(self.parts[1], 8)

    return Module()


kind("labels-words", "Labels that are words", expect="refused", says=("whole number",))(
    lambda t, _: [(x, ("cat", "dog", "owl")[k % 3]) for k, x in enumerate(t.pictures)]
)
kind("no-labels", "Pictures without labels", expect="refused", says=("label",))(lambda t, _: list(t.pictures))
kind("empty", "A dataset of no records", expect="refused", says=("record",))(lambda t, _: [])
kind("complex", "Complex numbers (k-space of an MRI)", 1, expect="refused", says=("complex",))(
    lambda t, _: TensorDataset(torch.fft.fft2(t.pictures), t.labels)
)
kind("nan", "Pictures with NaN", expect="refused", says=("finite",))(
    lambda t, _: TensorDataset(t.pictures.where(t.pictures > 0, torch.tensor(float("nan"))), t.labels)
)
