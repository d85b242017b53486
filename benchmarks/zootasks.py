"""Tasks of the zoo: how networks end, what they return, what labels are, and what is not about pictures."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from benchmarks.zookit import CLASSES, RECORDS, Brought, Entry, Truth, labels, pictures, small

TASKS: list[Entry] = []
FINDINGS = 5
DEFENDED = ("none", "gaussian:std=0.01", "obscure")


def task(name: str, about: str, **told: Any) -> Callable[..., Any]:
    """Decorator: an entry of a function that returns (model, truth) or (model, truth, further names of model.py)."""

    def add(build: Callable[[], Any]) -> Callable[[], Any]:
        def bring(folder: Path) -> Brought:
            net, found, *more = build()
            return Brought(net, TensorDataset(found.pictures, found.labels), found, *more)

        TASKS.append(Entry(name=name, about=about, build=bring, **told))
        return build

    return add


class Returning(nn.Module):
    """An embedding and a head, returned as `form` has it."""

    def __init__(self, form: Callable[[Tensor, Tensor], Any], out: int = CLASSES) -> None:
        super().__init__()
        self.trunk = nn.Sequential(*small()[:-1], nn.Linear(128, 32), nn.LeakyReLU())  # type: ignore[index]
        self.head, self.form = nn.Linear(32, out), form

    def forward(self, x: Tensor) -> Any:
        """Return the outputs (N, ...) for pictures (N, C, H, W)."""
        z = self.trunk(x)
        return self.form(z, self.head(z))


def _tuple(z: Tensor, logits: Tensor) -> Any:
    return z, logits


def _dict(z: Tensor, logits: Tensor) -> Any:
    return {"embedding": z, "prediction": logits}


def _logits(z: Tensor, logits: Tensor) -> Any:
    return {"embedding": z, "logits": logits}


def _alone(z: Tensor, logits: Tensor) -> Any:
    return (logits,)


def classes(side: int = 32) -> Truth:
    return Truth(pictures(side=side), labels())


def of_labels(found: Tensor, channels: int = 3, side: int = 32) -> Truth:
    """Return the pictures with other labels (N, *shape)."""
    return Truth(pictures(channels, side), found)


# -- ends of a classifier -------------------------------------------------------------------------


class Temperature(nn.Module):
    """Divides logits by what is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.temperature = small(), nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (N, ...) for pictures (N, C, H, W)."""
        return self.net(x) / self.temperature  # type: ignore[no-any-return]


def end(name: str, about: str, build: Callable[[], nn.Module], **more: Any) -> None:
    task(name, about)(lambda: (build(), classes(), more))


end("log-softmax", "A net that ends in LogSoftmax", lambda: nn.Sequential(small(), nn.LogSoftmax(1)))
end("nll", "LogSoftmax with NLLLoss", lambda: nn.Sequential(small(), nn.LogSoftmax(1)), loss=nn.NLLLoss())
end("softmax", "A net that ends in Softmax", lambda: nn.Sequential(small(), nn.Softmax(1)))
end("temperature", "Logits divided by a learned temperature", Temperature)
end(
    "convolution-head",
    "A head of a 1×1 convolution and average pooling",
    lambda: nn.Sequential(*small()[:4], nn.Conv2d(8, CLASSES, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),  # type: ignore[index]
)
end("label-smoothing", "CrossEntropyLoss with label smoothing", small, loss=nn.CrossEntropyLoss(label_smoothing=0.1))
end(
    "class-weights",
    "CrossEntropyLoss with class weights",
    small,
    loss=nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5])),
)


def focal(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the focal loss of Lin et al. 2017."""
    each = F.cross_entropy(outputs, labels, reduction="none")
    return ((1 - (-each).exp()) ** 2 * each).mean()


end("focal", "A focal loss", small, loss=focal)

# -- what a model returns -------------------------------------------------------------------------


def returns(name: str, about: str, form: Any, said: tuple[str, ...] = (), **more: Any) -> None:
    told: dict[str, Any] = {"expect": "refused", "says": said} if said else {}
    task(name, about, **told)(lambda: (Returning(form), classes(), more))


returns("tuple-unnamed", "(embedding, logits), output not named", _tuple, ("output", "32"))
returns("tuple-named", "(embedding, logits) with output = 1", _tuple, output=1)
returns("dict-unnamed", "A dict without logits, output not named", _dict, ("output", "prediction", "embedding"))
returns("dict-named", 'A dict with output = "prediction"', _dict, output="prediction")
returns("dict-wrong", "A dict and an output it has not", _dict, ("prediction", "embedding"), output="nothing")
returns("dict-logits", "A dict with logits", _logits)
Named = namedtuple("Named", ("features", "scores"))
returns("namedtuple-unnamed", "A named tuple, output not named", Named, ("features", "scores"))
returns("namedtuple-named", 'A named tuple with output = "scores"', Named, output="scores")
returns("tuple-of-one", "A tuple of one tensor", _alone)

# -- what labels are ------------------------------------------------------------------------------


def findings() -> Tensor:
    """Return 0 or 1 for each of five findings (N, 5), told by the picture."""
    bright = pictures().mean((1, 2, 3))
    order = bright.argsort().argsort()
    return torch.stack([(order + 12 * k) % RECORDS < 24 for k in range(FINDINGS)], 1).float()


MULTI = {"kind": "multi-label", "width": None}
task("multi-label", "Five findings, floats, BCEWithLogitsLoss", defenses=DEFENDED, **MULTI)(
    lambda: (small(out=FINDINGS), of_labels(findings()), {"loss": nn.BCEWithLogitsLoss()})
)
task("multi-label-whole", "Five findings, whole numbers, no loss given", **MULTI)(
    lambda: (small(out=FINDINGS), of_labels(findings().long()))
)
task("multi-label-softmargin", "Five findings, MultiLabelSoftMarginLoss", **MULTI)(
    lambda: (small(out=FINDINGS), of_labels(findings()), {"loss": nn.MultiLabelSoftMarginLoss()})
)

ONE = {"kind": "one logit", "width": 2}


def halves() -> Tensor:
    return (labels() == 0).long()


task("one-logit-float", "One logit (N, 1), labels floats (N, 1), BCEWithLogitsLoss", **ONE)(
    lambda: (small(out=1), of_labels(halves().float()[:, None]), {"loss": nn.BCEWithLogitsLoss()})
)
task("one-logit-whole", "One logit, labels whole numbers, no loss given", **ONE)(
    lambda: (small(out=1), of_labels(halves()))
)
task("one-logit-flat", "One logit without its axis (N,), labels whole", **ONE)(
    lambda: (
        nn.Sequential(small(out=1), nn.Flatten(0)),
        of_labels(halves()),
        {"loss": lambda z, y: F.binary_cross_entropy_with_logits(z, y.float())},
    )
)
task("one-probability", "Sigmoid and BCELoss", **ONE)(
    lambda: (nn.Sequential(small(out=1), nn.Sigmoid()), of_labels(halves().float()[:, None]), {"loss": nn.BCELoss()})
)
task("soft-labels", "Probabilities of three classes", kind="soft labels", width=CLASSES)(
    lambda: (small(), of_labels(0.85 * F.one_hot(labels(), CLASSES).float() + 0.05))
)
task("one-hot-float", "One-hot labels, floats")(lambda: (small(), of_labels(F.one_hot(labels(), CLASSES).float())))
task("one-hot-whole", "One-hot labels, whole numbers")(lambda: (small(), of_labels(F.one_hot(labels(), CLASSES))))
task("labels-column", "Labels (N, 1), whole numbers, as MedMNIST has them")(
    lambda: (small(), of_labels(labels()[:, None]))
)
task("labels-too-large", "A label beyond the model's classes", expect="refused", says=("label", "classes"))(
    lambda: (small(out=2), classes())
)

NUMBER = {"kind": "regression", "width": None}


def age() -> Tensor:
    return 40 + 50 * pictures().mean((1, 2, 3))


task("regression", "A number (N, 1), mean squared error", **NUMBER)(
    lambda: (small(out=1), of_labels(age()[:, None]), {"loss": nn.MSELoss()})
)
task("regression-flat", "A number (N,) beside an output (N, 1)", **NUMBER)(
    lambda: (small(out=1), of_labels(age()), {"loss": lambda z, y: F.mse_loss(z[:, 0], y)})
)
task("regression-several", "Four numbers (key points), smooth L1", **NUMBER)(
    lambda: (
        small(out=4),
        of_labels(torch.stack([age() * k for k in (0.1, 0.2, 0.3, 0.4)], 1)),
        {"loss": nn.SmoothL1Loss()},
    )
)
task("regression-no-loss", "A number, no loss given", expect="refused", says=("loss",))(
    lambda: (small(out=1), of_labels(age()[:, None]))
)

MASK = {"kind": "segmentation", "width": None}


def masks() -> Tensor:
    """Return the third of each picture's greys that a pixel is of (N, H, W)."""
    return (pictures().mean(1) * 2.99).long()


class Segmenting(nn.Module):
    """A convolution, another after max-pooling, and back to the picture's size."""

    def __init__(self, out: int) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.LeakyReLU(), nn.MaxPool2d(2))
        self.up = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.LeakyReLU(), nn.ConvTranspose2d(8, out, 2, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (N, ...) for pictures (N, C, H, W)."""
        return self.up(self.down(x))  # type: ignore[no-any-return]


task("segmentation", "Masks of three classes (N, H, W), cross-entropy", **MASK)(
    lambda: (Segmenting(3), of_labels(masks()), {"loss": nn.CrossEntropyLoss()})
)
task("segmentation-binary", "Masks of 0 and 1 (N, 1, H, W), BCEWithLogitsLoss", **MASK)(
    lambda: (Segmenting(1), of_labels((masks() > 1).float()[:, None]), {"loss": nn.BCEWithLogitsLoss()})
)
task("segmentation-ignored", "Masks with pixels left out (255)", **MASK)(
    lambda: (
        Segmenting(3),
        of_labels(masks().where(torch.arange(32) > 0, torch.tensor(255))),
        {"loss": nn.CrossEntropyLoss(ignore_index=255)},
    )
)


task("segmentation-255", "Masks of 0 and 255", expect="refused", says=("255",))(
    lambda: (Segmenting(1), of_labels((masks() > 1)[:, None] * 255), {"loss": nn.BCEWithLogitsLoss()})
)


def dice(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return one less the soft Dice of masks."""
    p = outputs.sigmoid()
    return 1 - (2 * (p * labels).sum() + 1) / (p.sum() + labels.sum() + 1)


task("segmentation-dice", "Masks of 0 and 1, a Dice loss", **MASK)(
    lambda: (Segmenting(1), of_labels((masks() > 1).float()[:, None]), {"loss": dice})
)


def backbone(**returned: str) -> nn.Module:
    """Return two strided convolutions that give their maps by name, as torchvision's do."""
    from torchvision.models._utils import IntermediateLayerGetter

    layers = OrderedDict(
        first=nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU()),
        second=nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU()),
    )
    return IntermediateLayerGetter(nn.Sequential(layers), returned)  # type: ignore[no-any-return]


@task("lraspp", "LR-ASPP, a dict of one output (torchvision)", package="torchvision", **MASK)
def _lraspp() -> Any:
    from torchvision.models.segmentation.lraspp import LRASPP

    net = LRASPP(backbone(first="low", second="high"), 8, 16, 3, inter_channels=16)
    return net, of_labels(masks()), {"loss": nn.CrossEntropyLoss()}


@task("fcn", "FCN, a dict of one output (torchvision)", package="torchvision", **MASK)
def _fcn() -> Any:
    from torchvision.models.segmentation.fcn import FCN, FCNHead

    return FCN(backbone(second="out"), FCNHead(16, 3)), of_labels(masks()), {"loss": nn.CrossEntropyLoss()}


@task("deeplab-aux", 'DeepLabV3 with an auxiliary head, output = "out" (torchvision)', package="torchvision", **MASK)
def _deeplab() -> Any:
    return (*_deeplab_unnamed(), {"loss": nn.CrossEntropyLoss(), "output": "out"})


@task(
    "deeplab-unnamed",
    "The same, output not named (torchvision)",
    **MASK | {"package": "torchvision", "says": ("'aux'", "left out"), "untrue": ("of 'network.aux_classifier",)},
)
def _deeplab_unnamed() -> Any:
    from torchvision.models.segmentation.deeplabv3 import ASPP, DeepLabV3
    from torchvision.models.segmentation.fcn import FCNHead

    head = nn.Sequential(ASPP(16, [2, 4], 16), nn.Conv2d(16, 3, 1))
    return DeepLabV3(backbone(first="aux", second="out"), head, FCNHead(8, 3)), of_labels(masks())


@task("segformer", "SegFormer, masks in the size of its output (transformers)", package="transformers", **MASK)
def _segformer() -> Any:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    told: dict[str, Any] = {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [16, 32]}
    told |= {"patch_sizes": [3, 3], "strides": [2, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2]}
    net = SegformerForSemanticSegmentation(SegformerConfig(**told, num_labels=3, decoder_hidden_size=16))
    return net, of_labels(masks()[:, ::2, ::2]), {"loss": nn.CrossEntropyLoss()}


@task("unet-2d", "UNet (MONAI)", package="monai", **MASK)
def _unet() -> Any:
    from monai.networks.nets import UNet

    return UNet(2, 3, 3, channels=(8, 16), strides=(2,)), of_labels(masks()), {"loss": nn.CrossEntropyLoss()}


@task("unet-3d", "UNet of volumes (MONAI)", package="monai", shape=(1, 8, 16, 16), **MASK)
def _unet3() -> Any:
    from monai.networks.nets import UNet

    found = pictures(1, 16, depth=8)
    net = UNet(3, 1, 3, channels=(4, 8), strides=(2,))
    return net, Truth(found, (found[:, 0] * 2.99).long()), {"loss": nn.CrossEntropyLoss()}


@task("to-picture", "A picture out for a picture in (denoising), mean squared error", kind="regression", width=None)
def _to_picture() -> Any:
    return Segmenting(3), Truth(pictures(), pictures().flip(3)), {"loss": nn.MSELoss()}
