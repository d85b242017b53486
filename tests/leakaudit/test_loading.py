from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from leakaudit.data.records import NORMALISATIONS, fingerprints
from leakaudit.errors import UserError
from leakaudit.load.loading import target_from_objects
from leakaudit.score.utility import train


def network(channels: int = 3, classes: int = 4) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(classes)
    )


def small(channels: int = 3, classes: int = 4, side: int = 6) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * side * side, classes))


def pictures(count: int = 40, channels: int = 3, side: int = 6, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, channels, side, side, generator=generator)
    images[0, :, 0, 0], images[0, :, 0, 1] = 0, 1  # the whole range is used
    return TensorDataset(images, torch.arange(count) % 4)


def changed(data: TensorDataset, change: Any) -> TensorDataset:
    return TensorDataset(*change(*data.tensors))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [5, 12])
def test_a_target_of_any_size(channels: int, side: int) -> None:
    target = target_from_objects(network(channels), pictures(60, channels, side))
    assert target.input_shape == (channels, side, side)
    assert target.classes == ("0", "1", "2", "3")
    assert (len(target.private), len(target.test), len(target.auxiliary)) == (33, 12, 15)
    assert "12 records (20% of train_data)" in target.notes[0]
    assert "15 records (25% of train_data)" in target.notes[1]
    assert target.model(target.private.images[:2]).shape == (2, 4)


@pytest.mark.parametrize("raw", [False, True])
def test_pixels_are_those_the_data_was_made_from(raw: bool) -> None:
    mean, std = NORMALISATIONS["ImageNet"]
    pixels, labels = pictures().tensors
    pixels = (pixels * 255).round() / 255
    scale, shift = torch.tensor(std).view(1, 3, 1, 1), torch.tensor(mean).view(1, 3, 1, 1)
    given_ = (pixels * 255).to(torch.uint8) if raw else (pixels - shift) / scale
    net = small()
    target = target_from_objects(net, TensorDataset(given_, labels), mean=mean, std=torch.tensor(std))
    truth = {key: (x, y) for key, x, y in zip(fingerprints(pixels), pixels, labels, strict=True)}
    for records in (target.private, target.test, target.auxiliary):
        for key, image, label in zip(fingerprints(records.images), records.images, records.labels, strict=True):
            assert torch.allclose(image, truth[key][0], atol=1e-6)
            assert int(label) == int(truth[key][1])
    x = target.private.images[:2]
    assert torch.allclose(target.model(x), net((x - shift) / scale), atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 99),
    copies=st.integers(0, 20),
    test=st.sampled_from(["none", "own", "overlapping"]),
    auxiliary=st.sampled_from(["none", "own", "overlapping"]),
    loader=st.booleans(),
)
def test_roles_never_share_a_picture(seed: int, copies: int, test: str, auxiliary: str, loader: bool) -> None:
    base = pictures(40, 1, seed=1)
    images, labels = base.tensors
    again = torch.randperm(40, generator=torch.Generator().manual_seed(seed))[:copies]
    train: Any = TensorDataset(torch.cat([images, images[again]]), torch.cat([labels, labels[again]]))

    def other(kind: str, own_seed: int) -> TensorDataset | None:
        if kind == "none":
            return None
        own = pictures(12, 1, seed=own_seed)
        mixed = [own.tensors[i] if kind == "own" else torch.cat([own.tensors[i], base.tensors[i][:9]]) for i in (0, 1)]
        return TensorDataset(*mixed)

    target = target_from_objects(
        small(1),
        DataLoader(train, batch_size=8, shuffle=True) if loader else train,
        test_data=other(test, 2),
        auxiliary_data=other(auxiliary, 3),
        seed=seed,
    )
    sets = [set(fingerprints(r.images)) for r in (target.private, target.test, target.auxiliary)]
    assert all(sets)
    assert not sets[0] & sets[1] | sets[0] & sets[2] | sets[1] & sets[2]
    if test == auxiliary == "own" and not copies:
        assert target.notes == ()
    if test == "overlapping":
        assert any("records of test_data were exact copies" in note for note in target.notes)


def test_a_model_that_holds_itself_is_refused() -> None:
    inner = nn.Sequential(nn.ReLU())
    model = nn.Sequential(
        nn.Flatten(), inner, inner, nn.Linear(108, 4)
    )  # a layer that stands twice is none within itself
    target_from_objects(model, pictures())
    inner.add_module("outer", model)
    with pytest.raises(UserError, match="holds itself"):
        target_from_objects(model, pictures())


def test_a_limit_is_kept_and_said() -> None:
    target = target_from_objects(small(), pictures(100), test_data=pictures(50, seed=1), limit=20)
    assert (len(target.private), len(target.test), len(target.auxiliary)) == (20, 20, 20)
    assert target.notes[0] == "40 of the 100 records of train_data were read, drawn at random."
    assert "20 of the 50 records of test_data" in target.notes[1]


def test_the_seed_decides_the_draw() -> None:
    def drawn(seed: int) -> Tensor:
        return target_from_objects(small(), pictures(), seed=seed).private.images

    assert torch.equal(drawn(3), drawn(3))
    assert not torch.equal(drawn(3), drawn(4))


def test_the_callers_model_and_random_state_stay_as_they_are() -> None:
    net = network()
    net(torch.rand(2, 3, 6, 6))
    kept = copy.deepcopy(net.state_dict())
    before = torch.get_rng_state()
    target = target_from_objects(
        net, changed(pictures(), lambda x, y: (x * 2 - 1, y)), mean=0.5, std=0.5, loss=lambda a, b: a.sum()
    )
    with torch.no_grad():
        next(target.model.parameters()).zero_()
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in kept.items())
    assert net.training
    assert torch.equal(before, torch.get_rng_state())


def test_callables_are_called_and_a_model_constructor_is_kept() -> None:
    class Built(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Flatten(), nn.Linear(108, 4))

    target = target_from_objects(
        Built, pictures, loss=nn.CrossEntropyLoss, mean=lambda: 0.0, classes=lambda: list("abcd"), seed=1
    )
    again = target_from_objects(Built, pictures, seed=1)
    assert target.factory is Built
    assert target.classes == tuple("abcd")
    assert isinstance(target.loss, nn.CrossEntropyLoss)
    assert torch.equal(target.model.network[1].weight, again.model.network[1].weight)
    assert not torch.equal(target.fresh(5).network[1].weight, target.model.network[1].weight)
    assert target_from_objects(Built(), pictures()).factory is None
    assert target_from_objects(Built(), pictures(), factory=Built).factory is Built


def factories(net: nn.Module) -> dict[str, Any]:
    calls = iter(range(10**6))
    return {
        "same": lambda: net,
        "wrapped": lambda: nn.Sequential(net),
        "head": lambda: nn.Sequential(*net[:-1], nn.Linear(4, 4)),  # type: ignore[index]
        "sometimes": lambda: net if next(calls) % 3 else copy.deepcopy(net),
    }


@pytest.mark.parametrize("kind", ["same", "wrapped", "head", "sometimes"])
def test_a_function_that_returns_the_same_layers_is_copied(kind: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(108, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    net[2].eval()
    before, modes = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    target = target_from_objects(factories(net)[kind], pictures())
    told = [note for note in target.notes if "second call" in note]
    assert bool(told) == (kind != "sometimes")
    if kind == "head":
        assert "with layers of the last one (453 of 473 numbers are the same)" in told[0]
    first, *others = (target.fresh(seed) for seed in range(4))
    start = copy.deepcopy(first.state_dict())
    train(first, target.private, target.loss, epochs=2, seed=0)
    with torch.no_grad():
        target.model.network.train()(target.private.images)
        next(target.model.parameters()).zero_()
    for fresh in (*others, target.fresh(9)):  # every run starts from the net as it was given
        kept = [k for k in start if kind != "head" or not k.startswith("network.3")]
        assert all(torch.equal(start[k], fresh.state_dict()[k]) for k in kept)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes
    assert all(p.grad is None for p in net.parameters())


class Uncopied(nn.Sequential):
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("a lock")


def test_what_cannot_be_copied_must_be_new_at_every_call() -> None:
    def build() -> nn.Module:
        return Uncopied(nn.Flatten(), nn.Linear(108, 4))

    target = target_from_objects(build, pictures())
    assert not torch.equal(target.fresh(0).network[1].weight, target.fresh(1).network[1].weight)
    net = build()
    with pytest.raises(UserError, match="the same layers at every call, and they cannot be copied"):
        target_from_objects(lambda: net, pictures())
    with pytest.raises(UserError, match="give a function that returns the model"):
        target_from_objects(net, pictures())


def smoothed(logits: Tensor, labels: Tensor, label_smoothing: float = 0.1) -> Tensor:
    return nn.functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)


@pytest.mark.parametrize("loss", [smoothed, nn.CrossEntropyLoss(), lambda: smoothed, lambda *both: smoothed(*both)])
def test_losses_are_told_from_what_builds_them(loss: Any) -> None:
    target = target_from_objects(small(), pictures(), loss=loss)
    assert target.loss(torch.zeros(2, 4), torch.zeros(2).long()).ndim == 0


def test_class_names_come_from_the_dataset_where_they_fit() -> None:
    data = pictures()
    data.classes = list("abcd")  # type: ignore[attr-defined]
    assert target_from_objects(small(), data).classes == tuple("abcd")
    assert target_from_objects(small(classes=5), data).classes == tuple("01234")
    assert target_from_objects(small(), data, classes=4).classes == tuple("0123")


def broken_weights(value: float) -> nn.Module:
    net = small()
    with torch.no_grad():
        net[1].bias[2] = value
    return net


def frozen() -> nn.Module:
    return small().requires_grad_(False)


class Returns(nn.Module):
    def __init__(self, form: Any) -> None:
        super().__init__()
        self.inner, self.form = small(), form

    def forward(self, x: Tensor) -> Any:
        return self.form(self.inner(x))


def failing_factory() -> nn.Module:
    raise KeyError("weights")


IMAGENET_MEAN, IMAGENET_STD = NORMALISATIONS["ImageNet"]


def normalised(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return (images - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1), labels


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "model is a number": ({"model": 3}, r"`model` is of type int, not a torch\.nn\.Module"),
    "model is a state dict": ({"model": small().state_dict()}, r"`model` is of type OrderedDict"),
    "model needs arguments": ({"model": nn.Linear}, r"`model` is the class Linear"),
    "factory returns none": ({"model": lambda: None}, r"what model\(\) returned is of type NoneType"),
    "factory fails": ({"model": failing_factory}, r"model\(\) fails, line \d+ of test_loading\.py \(KeyError"),
    "factory exits": ({"model": lambda: sys.exit()}, r"model\(\) exits, line \d+"),
    "mean not needed": ({"mean": 0.5, "std": 0.9}, r"0 to 1 already, so leave mean and std out"),
    "NaN weights": ({"model": broken_weights(float("nan"))}, r"parameter '1\.bias' of `model` holds NaN"),
    "infinite weights": ({"model": broken_weights(float("inf"))}, r"parameter '1\.bias'"),
    "complex weights": (
        {"model": nn.Sequential(nn.Flatten(), nn.Linear(108, 4, dtype=torch.cfloat))},
        r"parameter '1\.weight' of `model` is complex64",
    ),
    "frozen": ({"model": frozen()}, r"no parameter that is trained"),
    "no parameters": ({"model": nn.Flatten()}, r"no parameter that is trained"),
    "model fails": ({"model": small(1)}, r"fails on a batch of shape \(1, 3, 6, 6\) \(RuntimeError: .*\): check"),
    "logits lack a batch": ({"model": Returns(lambda z: z[0])}, r"output of shape \(4,\)"),
    "maps": ({"model": Returns(lambda z: z[..., None, None])}, r"output of shape \(4, 1, 1\)"),
    "no tensor": ({"model": Returns(lambda z: "a")}, r"returns a value of type str, in which no tensor was found"),
    "data is a number": ({"train_data": 7}, r"`train_data` is of type int"),
    "data is a path": (
        {"train_data": "data/train"},
        r"`train_data` is the name of a file .*'data/train': read it there, or give it as",
    ),
    "test data is a dict": ({"test_data": {"train": 1}}, r"`test_data` is a dict that holds train, and no"),
    "data is empty": ({"train_data": []}, r"train_data holds 0 record\(s\), too few"),
    "too few": ({"train_data": pictures(2)}, r"train_data holds 2 record\(s\), too few"),
    "data fails to build": ({"train_data": lambda: 1 / 0}, r"train_data\(\) fails, line \d+ .*ZeroDivisionError"),
    "label too large": (
        {"train_data": changed(pictures(), lambda x, y: (x, y + 1))},
        r"record \d+ of train_data has the label 4, .* 0 to 3",
    ),
    "label negative": ({"test_data": changed(pictures(), lambda x, y: (x, y - 1))}, r"of test_data has the label -1"),
    "two sizes": ({"test_data": pictures(side=7)}, r"\(3, 6, 6\) .* train_data.*, \(3, 7, 7\) .* of test_data"),
    "0 to 255": ({"train_data": changed(pictures(), lambda x, y: (x * 255, y))}, r"0 to 255, so divide them by 255"),
    "normalised": (
        {"train_data": changed(pictures(), normalised)},
        r"span -2\.1.* ImageNet constants, so set mean = \(0",
    ),
    "half": ({"train_data": changed(pictures(), lambda x, y: (x * 2 - 1, y))}, r"half constants, so set mean = 0\.5"),
    "unknown range": (
        {"train_data": changed(pictures(), lambda x, y: (x - 9, y))},
        r"set mean and std to the constants",
    ),
    "NaN pixels": ({"train_data": changed(pictures(), lambda x, y: (x / 0, y))}, r"pixels that are not finite"),
    "mean too long": ({"mean": [0.5, 0.5]}, r"mean has 2 values but the pictures have 3 channel"),
    "std zero": ({"std": 0}, r"std holds 0, but a standard deviation"),
    "mean text": ({"mean": "imagenet"}, r"mean is str, not numbers"),
    "classes too few": ({"classes": ["a"]}, r"`classes` has 1 name\(s\) but the model has 4 outputs"),
    "classes text": ({"classes": "abcd"}, r"`classes` is of type str"),
    "loss is text": ({"loss": "cross-entropy"}, r"`loss` is of type str"),
    "loss per record": ({"loss": nn.CrossEntropyLoss(reduction="none")}, r"`loss` returns shape \(1,\), not a scalar"),
    "loss a number": ({"loss": lambda a, b: 1.0}, r"`loss` returns float"),
    "loss detached": ({"loss": lambda a, b: a.detach().sum()}, r"without a gradient"),
    "loss fails": ({"loss": nn.BCEWithLogitsLoss()}, r"`loss` fails on logits \(1, 4\) and labels \(1,\)"),
    "unknown device": ({"device": "abacus"}, r"device 'abacus' cannot be used here"),
    "meta device": ({"device": "meta"}, r"device 'meta' cannot be used here"),
    "all test private": (
        {"test_data": pictures(), "auxiliary_data": pictures(9, seed=4)},
        r"every picture of test_data",
    ),
    "no such checkpoint": ({"checkpoint": Path("absent.pt")}, r"no such checkpoint: absent\.pt"),
    "limit": ({"limit": 2}, r"read at least 3"),
}


@pytest.mark.parametrize(("given_", "says"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_sentence(given_: dict[str, Any], says: str) -> None:
    arguments = {"model": small(), "train_data": pictures()} | given_
    with pytest.raises(UserError, match=says) as caught:
        target_from_objects(**arguments)
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_cuda_without_a_gpu_is_refused() -> None:
    with pytest.raises(UserError, match=r"device 'cuda' cannot be used here"):
        target_from_objects(small(), pictures(), device="cuda")


@pytest.mark.parametrize("known", sorted(set(NORMALISATIONS) - {"CIFAR-10 (older)"}))
def test_the_constants_a_range_fits_are_named(known: str) -> None:
    mean, std = NORMALISATIONS[known]
    channels = max(len(mean), 1)
    data = changed(
        pictures(40, channels),
        lambda x, y: ((x - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1), y),
    )
    with pytest.raises(UserError, match=f"fit the {known} constants"):
        target_from_objects(small(channels), data)
    assert len(target_from_objects(small(channels), data, mean=mean, std=std).private) == 22


def test_torchvision_models_load() -> None:
    from torchvision.models import VisionTransformer, resnet18

    data = pictures(20, side=32)
    vit = VisionTransformer(image_size=32, patch_size=16, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32)
    assert len(target_from_objects(resnet18(num_classes=4), data).classes) == 4
    assert len(target_from_objects(vit, data).classes) == 1000
