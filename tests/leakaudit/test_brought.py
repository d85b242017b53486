"""What people bring that looks as if it fitted: it is audited as what it is, or refused in one true sentence."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset, WeightedRandomSampler, default_collate

from leakaudit.data.datafiles import read_data
from leakaudit.errors import UserError, quoting
from leakaudit.load.loading import target_from_objects
from leakaudit.load.preflight import preflight
from leakaudit.protocol.target import Target

COUNT, SIDE = 30, 8
DRAWN = torch.Generator().manual_seed(0)
BYTES = torch.randint(0, 256, (COUNT, 3, SIDE, SIDE), generator=DRAWN).to(torch.uint8)
PICTURES = BYTES.float() / 255
LABELS = torch.arange(COUNT) % 3
MASKS = (torch.rand((COUNT, SIDE, SIDE), generator=DRAWN) > 0.5).long()
BCE = nn.BCEWithLogitsLoss()


def net(classes: int = 3, channels: int = 3) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, 2, 1), nn.Sigmoid(), nn.Flatten(), nn.Linear(4 * (SIDE // 2) ** 2, classes)
    )


class Around(nn.Module):
    """A network whose forward is a function of it and of what it is given."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], classes: int = 3) -> None:
        super().__init__()
        self.net, self.does = net(classes), forward

    def forward(self, x: Tensor) -> Any:
        return self.does(self, x)


@dataclass(slots=True)
class Out:
    scores: Tensor
    loss: Tensor | None = None


@dataclass
class Record:
    image: Tensor
    label: int


def target(data: Any, model: nn.Module | None = None, **given: Any) -> Target:
    return target_from_objects(model or net(), data, seed=0, **given)


def pairs(labels: Tensor) -> TensorDataset:
    return TensorDataset(PICTURES, labels)


def seg(width: int = 1) -> nn.Module:
    return nn.Conv2d(3, width, 3, 1, 1)


class Margin(nn.Module):
    """A loss whose centres of classes are learned."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(3, 9))

    def forward(self, found: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(found @ self.weight.T, labels)


def apart(found: Tensor, labels: Tensor) -> Tensor:
    """Return a loss that draws records of one label together."""
    return (torch.cdist(found, found) * (labels[:, None] == labels)).mean()


FINDINGS = torch.randint(-1, 2, (COUNT, 5), generator=DRAWN)
ONE_HOT = F.one_hot(MASKS, 2)
REFUSED: dict[str, tuple[str, Callable[[], Target]]] = {
    "findings that nobody knows, no loss": ("run from -1 to 1", lambda: target(pairs(FINDINGS), net(5))),
    "findings that nobody knows, BCE": ("run from -1 to 1", lambda: target(pairs(FINDINGS.float()), net(5), loss=BCE)),
    "classes 1 and 2 of one logit": ("run from 1 to 2", lambda: target(pairs(LABELS % 2 + 1), net(1), loss=BCE)),
    "a label beyond the classes": ("has the label 3", lambda: target(pairs(torch.full((COUNT,), 3)))),
    "masks of 0 and 255": ("hold 0 and 255", lambda: target(pairs(MASKS * 255), seg(2))),
    "one-hot masks, classes last": (
        "in the order of the output, as (2, 8, 8)",
        lambda: target(pairs(ONE_HOT.float()), seg(2), loss=BCE),
    ),
    "a model of half the size": (
        "for masks give both one size",
        lambda: target(pairs(MASKS), nn.Conv2d(3, 3, 2, 2), loss=F.cross_entropy),
    ),
    "captions by name": (
        "leakaudit audits models of pictures; .* text that describes",
        lambda: target([{"image": x, "caption": "a car"} for x in PICTURES]),
    ),
    "objects by name": (
        "leakaudit audits models of pictures; .* boxes",
        lambda: target([{"img": x, "cls": torch.ones(2, 1), "bboxes": torch.rand(2, 4)} for x in PICTURES]),
    ),
    "points": ("shape (20, 3), as series, points", lambda: target(TensorDataset(torch.rand(COUNT, 20, 3), LABELS))),
    "rows in a loader": (
        "leakaudit audits models of pictures; record 0 of train_data is 10 numbers in a row",
        lambda: target(
            DataLoader(TensorDataset(torch.rand(COUNT, 10), LABELS), 6, collate_fn=lambda b: default_collate(b))
        ),
    ),
    "two inputs in a record": (
        "2 inputs beside one label",
        lambda: target([((x, torch.rand(2)), int(y)) for x, y in zip(PICTURES, LABELS, strict=True)]),
    ),
    "two views in a tensor": (
        "is 2 pictures of shape (3, 8, 8)",
        lambda: target([(torch.stack([x, x]), int(y)) for x, y in zip(PICTURES, LABELS, strict=True)]),
    ),
    "bytes for a model that divides": (
        "divides its pictures by 255 itself, .* std = 1/255",
        lambda: target(TensorDataset(BYTES, LABELS), Around(lambda own, x: own.net(x.float() / 255))),
    ),
    "constants of bytes": (
        "divide both by 255",
        lambda: target(TensorDataset(BYTES, LABELS), mean=(123.7, 116.3, 103.5), std=(58.4, 57.1, 57.4)),
    ),
    "a model of train mode": (
        "in eval mode, and not in train mode",
        lambda: target(pairs(LABELS), Around(lambda own, x: own.net(x) if own.training else own.nothing)),
    ),
    "a model of two pictures": (
        "and not on two pictures",
        lambda: target(pairs(LABELS), Around(lambda own, x: own.net(x) if len(x) == 2 else own.nothing)),
    ),
    "a loss with weights": ("weights of its own ('weight')", lambda: target(pairs(LABELS), net(9), loss=Margin())),
    "a loss of pairs": ("compares the records of a batch", lambda: target(pairs(LABELS), net(9), loss=apart)),
    "records that are None": ("is None", lambda: target([(x, 0) if k % 2 else None for k, x in enumerate(PICTURES)])),
    "pictures normalised by their own": (
        "which no constants undo",
        lambda: target(
            TensorDataset((PICTURES - PICTURES.mean((1, 2, 3), True)) / PICTURES.std((1, 2, 3), keepdim=True), LABELS)
        ),
    ),
    "a model of a GPU": (
        "not on cuda alone",
        lambda: target(pairs(LABELS), Around(lambda own, x: own.net(x.to("cuda:99")))),
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_refused_in_a_true_sentence(what: str) -> None:
    wanted, build = REFUSED[what]
    if what == "a model of a GPU" and torch.cuda.is_available():
        pytest.skip("there is one here")
    parts = [re.escape(part) for part in wanted.split(".*")]
    with quoting(True), pytest.raises(UserError, match=".*".join(parts)):
        build()


READ: dict[str, tuple[Any, nn.Module, Mapping[str, Any], str]] = {
    "masks beside arrays": ((PICTURES, MASKS), seg(2), {}, "segmentation"),
    "masks by name": ({"image": PICTURES, "mask": MASKS}, seg(2), {}, "segmentation"),
    "masks with a side of one last": (pairs(MASKS[..., None].float()), seg(), {"loss": BCE}, "segmentation"),
    "-1 and 1": (pairs(LABELS % 2 * 2 - 1), net(1), {"loss": nn.SoftMarginLoss()}, "one logit"),
    "records of a dataclass": (
        [Record(x, int(y)) for x, y in zip(PICTURES, LABELS, strict=True)],
        net(),
        {},
        "classes",
    ),
    "outputs of a dataclass with slots": (
        pairs(LABELS),
        Around(lambda own, x: Out(own.net(x))),
        {},
        "classes",
    ),
    "rows of rows": ([(x.tolist(), int(y)) for x, y in zip(PICTURES, LABELS, strict=True)], net(), {}, "classes"),
    "bytes that the model divides": (
        TensorDataset(BYTES, LABELS),
        Around(lambda own, x: own.net(x / 255)),
        {"std": 1 / 255},
        "classes",
    ),
    "a model that rounds": (
        TensorDataset(BYTES, LABELS),
        Around(lambda own, x: own.net((x * 255).round() / 255)),
        {},
        "classes",
    ),
}


@pytest.mark.parametrize("what", READ)
def test_what_fits_is_read_as_what_it_is(what: str) -> None:
    data, model, given, kind = READ[what]
    found = target(data, model, **given)
    assert found.task.kind == kind
    known = {x.numpy().tobytes() for x in BYTES}
    assert {(x * 255).round().to(torch.uint8).numpy().tobytes() for x in found.private.images} <= known


def test_grey_pictures_in_a_loader_are_one_each() -> None:
    loader = DataLoader(TensorDataset(PICTURES[:, 0], LABELS), 7, collate_fn=lambda batch: default_collate(batch))
    assert target(loader, net(3, 1)).private.images.shape[1:] == (1, SIDE, SIDE)


def test_a_network_of_slices_is_given_volumes() -> None:
    class Slices(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net(3, 1)

        def forward(self, x: Tensor) -> Any:
            return self.net(x.transpose(1, 2).flatten(0, 1)).reshape(len(x), x.shape[2], -1).mean(1)

    found = target(TensorDataset(torch.rand(COUNT, 1, 5, SIDE, SIDE), LABELS), Slices())
    assert found.model.depth == 5


def test_frames_before_channels_are_refused_though_the_network_takes_them() -> None:
    class Frames(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Conv3d(3, 2, 3, 2, 1), nn.Flatten(), nn.LazyLinear(3))

        def forward(self, x: Tensor) -> Any:
            return self.net(x.transpose(1, 2))

    with pytest.raises(UserError, match=r"give \(3, D, H, W\), and a model that takes those"):
        target(TensorDataset(torch.rand(COUNT, 5, 3, SIDE, SIDE), LABELS), Frames())


def test_the_answer_to_minus_one_and_one_is_scored_as_a_class() -> None:
    found = target(pairs(LABELS % 2 * 2 - 1), net(1), loss=nn.SoftMarginLoss())
    assert found.classes == ("-1", "1")
    assert set(found.private.labels.tolist()) == {0, 1}
    logits = torch.tensor([[2.0], [2.0]])
    losses = [float(found.loss(logits, torch.tensor([label, label]))) for label in (0, 1)]
    assert losses == pytest.approx([float(F.softplus(torch.tensor(each))) for each in (2.0, -2.0)])


def test_without_a_loss_a_sigmoid_is_not_taken_twice() -> None:
    found = target(pairs(LABELS % 2), nn.Sequential(net(1), nn.Sigmoid(), nn.Flatten(0)))
    assert any("of what its sigmoid gives" in note for note in found.notes)
    assert float(found.loss(torch.tensor([0.5]), torch.tensor([1]))) == pytest.approx(np.log(2))


class _Drawn(Dataset[tuple[Tensor, int]]):
    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return (PICTURES[index] + torch.rand(()) / 1e3).clamp(0, 1), int(LABELS[index])


def test_random_transforms_are_noticed_behind_a_sampler_and_in_a_collate() -> None:
    def mixed(batch: Any) -> Any:
        x, y = default_collate(batch)
        return torch.lerp(x, x.flip(0), float(torch.rand(()))), y

    behind = DataLoader(_Drawn(), 5, sampler=WeightedRandomSampler([1.0] * COUNT, COUNT))
    within = DataLoader(pairs(LABELS), 5, collate_fn=mixed)
    plain = DataLoader(pairs(LABELS), 5, sampler=WeightedRandomSampler([1.0] * COUNT, COUNT))
    told = [any("transform is random" in note for note in target(each).notes) for each in (behind, within, plain)]
    assert told == [True, True, False]


def test_a_synchronised_batch_norm_trains_as_one_clients() -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3), net()))
    found = target(pairs(LABELS), model)
    assert any("SyncBatchNorm" in note for note in found.notes)
    found.model.train()
    assert found.model(found.private.images[:4]).shape == (4, 3)
    assert type(model[0]) is nn.SyncBatchNorm


@pytest.mark.parametrize("how", ["no_grad", "round", "whole"])
def test_pictures_that_no_slope_reaches_are_said(how: str) -> None:
    def forward(own: Any, x: Tensor) -> Any:
        if how == "no_grad":
            with torch.no_grad():
                x = own.net[0](x)
            return own.net[1:](x)
        return own.net((x * 255).round() / 255 if how == "round" else x)

    found = preflight(target(pairs(LABELS), Around(forward)), mode="eval", batch_size=1, records=2)
    assert any("no slope" in each.message for each in found) == (how != "whole")


def _folders(root: Path, *names: str) -> None:
    for index, name in enumerate(names):
        (root / name).mkdir(parents=True)
        Image.fromarray(BYTES[index].permute(1, 2, 0).numpy()).save(root / name / "one.png")


def test_splits_are_no_classes(tmp_path: Path) -> None:
    _folders(tmp_path / "a", "train/x", "train/y", "test/x", "test/y", "unlabeled")
    read = read_data(tmp_path / "a")
    assert (len(read.train), len(read.test or ()), read.train.classes) == (2, 2, ("x", "y"))
    assert "unlabeled/ was not read" in read.notes[0]
    for names in (("val/x", "val/y", "test/x", "test/y"), ("seg_train/x", "seg_train/y", "seg_test/x", "seg_test/y")):
        place = tmp_path / names[0][:3]
        _folders(place, *names)
        with pytest.raises(UserError, match="look like splits and not like classes"):
            read_data(place)
    _folders(tmp_path / "t", "train/x", "train/y", "unlabeled")
    with pytest.raises(UserError, match="holds train, which looks like a split and not like a class"):
        read_data(tmp_path / "t")
    _folders(tmp_path / "v", "train/steam", "train/electric", "bus/old", "bus/new")
    assert read_data(tmp_path / "v").train.classes == ("bus", "train")
    _folders(tmp_path / "p", "p1/x", "p1/y", "p2/x", "p2/y")
    assert any("outer folders, p1 and p2: each holds x and y" in note for note in read_data(tmp_path / "p").notes)
    _folders(tmp_path / "m", "imagesTr", "labelsTr")
    with pytest.raises(UserError, match="what is marked in them"):
        read_data(tmp_path / "m")
