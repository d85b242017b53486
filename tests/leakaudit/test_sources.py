"""What holds several data sets, what is read of records and streams, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, TensorDataset

from leakaudit.data.datafiles import read_data
from leakaudit.data.datasets import classes_of, divide
from leakaudit.errors import UserError
from leakaudit.load.loading import load_target, target_from_objects
from leakaudit.protocol.target import Target

DRAWN = np.random.default_rng(0)


def parts(*counts: int) -> list[TensorDataset]:
    """Data sets of pictures that are all different."""
    return [TensorDataset(torch.rand(n, 1, 6, 6), torch.arange(n) % 2) for n in counts]


def loaded(data: Any, **given: Any) -> Target:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 2))
    return target_from_objects(network, data, **given)


def held(target: Target, data: TensorDataset) -> int:
    """Return how many test records of a target are pictures of a data set."""
    known = {picture.numpy().tobytes() for picture in data.tensors[0]}
    return sum(picture.numpy().tobytes() in known for picture in target.test.images)


@pytest.mark.parametrize(
    ("names", "test", "unread"),
    [
        (("train", "test", "validation"), 1, "; 'validation' was not."),
        (("train", "validation"), 1, "'validation' as test_data."),
        (("Train", "VAL", "extra"), 1, "; 'extra' was not."),
        (("train", "other"), None, "'train' as train_data; 'other' was not."),
    ],
)
def test_splits_are_read_by_their_names(names: tuple[str, ...], test: int | None, unread: str) -> None:
    given = parts(20, 8, 8)
    found = loaded(dict(zip(names, given, strict=False)))
    assert held(found, given[0 if test is None else test]) == len(found.test)
    assert any(note.endswith(unread) for note in found.notes)


def test_two_columns_are_a_pair() -> None:
    pictures, labels = parts(20)[0].tensors
    assert len(loaded({"image": pictures, "label": labels}).private) == 11


def test_splits_yield_to_test_data_that_is_given() -> None:
    given = parts(20, 8, 8)
    found = loaded({"train": given[0], "test": given[1]}, test_data=given[2])
    assert held(found, given[2]) == 8
    with pytest.raises(UserError, match=r"a dict that holds a, and no split named train"):
        loaded({"a": given[0]})


class Module:
    """What a LightningDataModule does, without Lightning."""

    def __init__(self, *left_out: str, fails: bool = False) -> None:
        self.sets, self.called, self.fails = parts(20, 8, 8), list[str](), fails
        for name in left_out:
            setattr(self, name, None)

    def prepare_data(self) -> None:
        self.called.append("prepare")

    def setup(self, stage: str) -> None:
        if self.fails:
            raise RuntimeError
        self.called.append(stage)

    def train_dataloader(self) -> Any:
        return DataLoader(self.sets[0], batch_size=4, shuffle=True)

    def val_dataloader(self) -> Any:
        return [DataLoader(self.sets[1], batch_size=4)]

    def test_dataloader(self) -> Any:
        return DataLoader(self.sets[2], batch_size=4)


def test_a_data_module_is_set_up_and_its_loaders_are_read() -> None:
    module = Module()
    found = loaded(module)
    assert module.called == ["prepare", "fit", "test"]
    assert held(found, module.sets[2]) == 8
    assert any(note.endswith("test_dataloader() as test_data; val_dataloader() was not.") for note in found.notes)
    other = Module("test_dataloader")
    assert held(loaded(other), other.sets[1]) == 8
    with pytest.raises(UserError, match=r"setup\('fit'\) of `train_data` fails \(RuntimeError"):
        loaded(Module(fails=True))


def test_lightnings_own_module_is_read() -> None:
    lightning = pytest.importorskip("lightning")

    class Own(lightning.LightningDataModule):  # type: ignore[misc, name-defined]
        def train_dataloader(self) -> Any:
            return DataLoader(parts(20)[0], batch_size=4)

        def on_after_batch_transfer(self, batch: Any, index: int) -> Any:
            return batch

    found = loaded(Own())
    assert found.held_out == ("test_data", "auxiliary_data")
    assert any("on_after_batch_transfer() (what it does to a batch) was not" in note for note in found.notes)
    with pytest.raises(UserError, match=r"without train_dataloader\(\)"):
        loaded(lightning.LightningDataModule())


class Mapped(Dataset[Any]):
    def __init__(self, form: Callable[[int], Any]) -> None:
        self.form = form

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Any:
        return self.form(index)


PICTURES = torch.rand(20, 1, 6, 6)


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        while True:
            yield torch.rand(1, 6, 6), 1


class Ends(Endless):
    def __iter__(self) -> Iterator[Any]:
        return iter((picture, 1) for picture in PICTURES)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (Mapped(lambda i: (PICTURES[i], 1, "a", 2)), "In all 20 records read of train_data, 4 values were given"),
        (Mapped(lambda i: (PICTURES[i], 1, 2)[: 2 + i % 2]), "In 10 of the 20 records read of train_data, 3 values"),
        (
            Mapped(lambda i: {"image": PICTURES[0], "pixel_values": PICTURES[i], "label": 1}),
            "In all 20 records read of train_data, `pixel_values` was read and not `image`.",
        ),
        (
            Mapped(lambda i: {"image": PICTURES[i], "label": 1, "fine_label": 0}),
            "`label` was read and not `fine_label`.",
        ),
        (Endless(), "one after another: its first 15 were read, in its own order, of which 12 are used"),
        (Ends(), "one after another: its first 15 were read"),
        (Mapped(lambda i: (torch.rand(1, 6, 6), 1)), "another picture each time that a record is read (8 of 8 read"),
        (Mapped(lambda i: (PICTURES[i], 1)), "14 of the 20 records of train_data were read, drawn at random."),
        (
            Mapped(lambda i: (PICTURES[i] if i else Image.new("CMYK", (6, 6)), 1)),
            "refused: CMYK colours were converted to RGB",
        ),
    ],
)
def test_what_was_read_is_said(data: Any, said: str) -> None:
    if said.startswith("refused: "):
        with pytest.raises(UserError, match=said.removeprefix("refused: ")):
            loaded(data)
        return
    found = loaded(data, limit=20 if said.startswith(("In", "`")) else 5)
    assert sum(said in note for note in found.notes) == 1, found.notes


def test_a_stream_that_ends_is_said_to_be_whole_and_records_that_stay_are_no_draws() -> None:
    notes = loaded(Ends()).notes
    assert any("all 20 that it gave were read, in its own order." in note for note in notes)
    assert not any("each time" in note for note in loaded(Mapped(lambda i: (PICTURES[i], 1))).notes)


@pytest.mark.parametrize(
    ("mask", "shape"),
    [
        (lambda m: Image.fromarray(m.byte().numpy()), (6, 6)),
        (lambda m: Image.fromarray(m.numpy()), (6, 6)),
        (lambda m: Image.fromarray(m.byte().numpy()).convert("P"), (6, 6)),
        (lambda m: m.long()[None], (1, 6, 6)),
        (lambda m: m.numpy(), (6, 6)),
        (lambda m: m.float(), (6, 6)),
    ],
)
def test_masks_are_labels_of_whole_numbers(mask: Callable[[Tensor], Any], shape: tuple[int, ...]) -> None:
    given = PICTURES[:, 0] > 0.5
    for form in (lambda i: (PICTURES[i], mask(given[i])), lambda i: {"image": PICTURES[i], "mask": mask(given[i])}):
        for item in divide(Mapped(form), [1.0], name="d", limit=99, seed=0).parts[0]:
            assert tuple(item.label.shape) == shape
            assert torch.equal(item.label.bool().reshape(6, 6), given[item.position])
    with pytest.raises(UserError, match="is a picture in colour"):
        divide(Mapped(lambda i: (PICTURES[i], Image.new("RGB", (6, 6)))), [1.0], name="d", limit=9, seed=0)


def test_class_names_are_found_where_packages_keep_them() -> None:
    class Named:
        def __init__(self, **given: Any) -> None:
            self.__dict__ |= given

    assert classes_of(Named(info={"label": {"0": "a", "1": "b"}})) == ("a", "b")
    assert classes_of(Named(features={"label": Named(names=["a", "b"])})) == ("a", "b")
    both = ConcatDataset(parts(3, 3))
    both.datasets[0].classes = ["a", "b"]
    assert classes_of(both) == ("a", "b")


MED = {"path": (28, 28, 3), "blood": (28, 28), "organ": (28, 28, 28)}


@pytest.mark.parametrize("labels", [1, 14])
@pytest.mark.parametrize("shape", MED.values(), ids=MED.keys())
def test_medmnists_files_are_read(tmp_path: Path, shape: tuple[int, ...], labels: int) -> None:
    held = {}
    for split, count in (("train", 20), ("val", 8), ("test", 9)):
        held[f"{split}_images"] = DRAWN.integers(0, 256, (count, *shape), dtype=np.uint8)
        held[f"{split}_labels"] = DRAWN.integers(0, 2, (count, labels)).astype(np.uint8)
    np.savez(tmp_path / "med.npz", **held)
    (tmp_path / "model.py").write_text(
        "from torch import nn\n"
        f"volumes, channels, width = {shape == (28, 28, 28)}, {3 if shape[-1] == 3 else 1}, {max(2, labels)}\n"
        "first = nn.Conv3d(1, 2, 9, 4) if volumes else nn.Conv2d(channels, 2, 9, 4)\n"
        "model = nn.Sequential(first, nn.Flatten(), nn.LazyLinear(width))\n"
    )
    found = load_target(str(tmp_path / "model.py"), data=tmp_path / "med.npz")
    assert len(found.test) == 9
    assert found.model.depth == (28 if shape == (28, 28, 28) else 1)
    assert found.task.kind == ("classes" if labels == 1 else "multi-label")
    assert any(note.endswith("val_images of " + str(tmp_path / "med.npz") + " was not read.") for note in found.notes)


def tree(root: Path, *names: str, pages: int = 1) -> Path:
    for number, name in enumerate(names):
        folder = root / name
        folder.mkdir(parents=True)
        for i in range(6):
            shown = [Image.fromarray(DRAWN.integers(0, 256, (8, 9), dtype=np.uint8)) for _ in range(pages)]
            shown[0].save(folder / f"{number}{i}.tif", save_all=pages > 1, append_images=shown[1:])
    return root


@pytest.mark.parametrize("names", [("train", "test", "val"), ("Train", "validation"), ("train",)])
def test_folders_of_splits_are_read_by_their_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        tree(tmp_path / name, "cat/site", "dog")  # folders within are read with their class
    train, test, notes = read_data(tmp_path)
    assert (len(train), train.classes) == (12, ("cat", "dog"))
    assert (test is None) == (len(names) == 1)
    assert f"{names[0]}/ was read as train_data" in notes[0]
    assert ("val/ was not read." in notes[0]) == ("val" in names)


def test_files_of_several_pages_are_volumes_for_a_model_of_volumes_alone(tmp_path: Path) -> None:
    data, *_ = read_data(tree(tmp_path, "cat", "dog", pages=5))
    network = nn.Sequential(nn.Conv3d(1, 2, 3), nn.Flatten(), nn.LazyLinear(2))
    found = target_from_objects(network, data)
    assert (found.model.depth, found.input_shape) == (5, (5, 8, 9))
    with pytest.raises(UserError, match=r"cat/0\d\.tif holds several pictures|dog/1\d\.tif holds several"):
        loaded(data)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: tree(p, "images", "masks"), "holds the folders images and masks, which look like pictures and"),
        (lambda p: tree(p, "cat"), "holds 1 class folder"),
        (lambda p: tree(p / "all", "cat", "dog"), "give .*, or .*all if that holds the class folders"),
        (lambda p: (tree(p / "train", "cat", "dog"), tree(p / "test", "cat", "cow")), "cow is a class that train has"),
        (lambda p: (tree(p / "train", "cat", "dog"), (p / "test").mkdir()), r"test holds 0 class folder"),
        (lambda p: (tree(p, "cat"), (p / "dog").mkdir(), (p / "dog/a.dcm").write_text("")), r"only files of \.dcm"),
    ],
)
def test_folders_that_are_no_class_folders_are_refused(tmp_path: Path, make: Any, says: str) -> None:
    make(tmp_path)
    with pytest.raises(UserError, match=says):
        read_data(tmp_path)


@pytest.mark.parametrize(("content", "says"), [(b"", "is empty"), (b"\x89PNG\r\n\x1a\nx", "broken"), (b"x", "none of")])
def test_a_broken_file_is_named_and_others_are_counted(tmp_path: Path, content: bytes, says: str) -> None:
    tree(tmp_path, "cat", "dog")
    (tmp_path / "cat/notes.txt").write_text("")
    assert read_data(tmp_path).notes[0].startswith("1 file(s) in the class folders")
    (tmp_path / "dog/10.tif").write_bytes(content)
    with pytest.raises(UserError, match=rf"dog/10\.tif cannot be read as a picture \(it.*{says}"):
        loaded(read_data(tmp_path).train)
