"""The networks the benchmarks attack: untrained and seeded, and two trained by others."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakaudit.protocol.target import PixelModel

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_WEIGHTS = Path(__file__).resolve().parents[1].parent / "shared" / "weights"
WEIGHTS = _WEIGHTS / "cifar10_resnet20.pth"
TRAINED = {"resnet20": (3, WEIGHTS), "resnet56": (9, _WEIGHTS / "cifar10_resnet56.pth")}  # blocks of a stage


def cnn6(classes: int = 10) -> nn.Module:
    """Six layers: five 3×3 convolutions with LeakyReLU, two of them strided, and a dense one."""
    plan = ((3, 12, 1), (12, 24, 2), (24, 36, 1), (36, 36, 1), (36, 64, 2))
    layers: list[nn.Module] = []
    for before, after, stride in plan:
        layers += [nn.Conv2d(before, after, 3, stride=stride, padding=1), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 8 * 8, classes))


def convnet(classes: int = 10, width: int = 32) -> nn.Module:
    """Eight 3×3 convolutions with BatchNorm and ReLU, two 3×3 max-pools, after Geiping et al. 2020 (there width 64)."""
    plan = (3, width, 2 * width, 2 * width, 4 * width, 4 * width, 4 * width, 4 * width, 4 * width)
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(itertools.pairwise(plan)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        if i in (5, 7):
            layers += [nn.MaxPool2d(3)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * width * 3 * 3, classes))


def resnet18(classes: int = 10) -> nn.Module:
    """Return torchvision's ResNet-18 as it is, on 32×32 pictures."""
    from torchvision.models import resnet18 as build

    return build(num_classes=classes)  # type: ignore[no-any-return]


def vgg11(classes: int = 10) -> nn.Module:
    """VGG-11 with BatchNorm (Simonyan and Zisserman 2015, A) for 32×32 pictures: one dense layer in place of three."""
    layers: list[nn.Module] = []
    before = 3
    for stage in ((64,), (128,), (256, 256), (512, 512), (512, 512)):
        for after in stage:
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
            before = after
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, classes))


def dense(classes: int = 10) -> nn.Module:
    """Return a dense network with biases: the closed-form case."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3 * 32 * 32, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, classes)
    )


def lenet(classes: int = 10) -> nn.Module:
    """Return the LeNet of DLG (Zhu et al. 2019): three 5×5 convolutions of 12 channels, sigmoids, one dense layer."""
    layers: list[nn.Module] = []
    for before, stride in ((3, 2), (12, 2), (12, 1)):
        layers += [nn.Conv2d(before, 12, 5, stride=stride, padding=2), nn.Sigmoid()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(12 * 8 * 8, classes))


def resnet18_cifar(classes: int = 10) -> nn.Module:
    """Return a ResNet-18 with the stem used for CIFAR: a 3×3 convolution of stride 1 and no max-pool."""
    network = resnet18(classes)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


class Block(nn.Module):
    """Two 3×3 convolutions beside a shortcut without parameters (He et al. 2016, option A)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.relu2 = nn.ReLU()
        self.stride, self.more = stride, (after - before) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, after, H/stride, W/stride) for (N, before, H, W): the shortcut subsamples and adds zero maps."""
        found = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        short = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more, self.more))
        return self.relu2(found + short)  # type: ignore[no-any-return]


class ResNetCifar(nn.Module):
    """The ResNet for CIFAR of He et al. 2016, 6·blocks + 2 layers deep, with the names of its published weights."""

    def __init__(self, blocks: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(blocks)))
        self.layer2 = nn.Sequential(Block(16, 32, 2), *(Block(32, 32, 1) for _ in range(blocks - 1)))
        self.layer3 = nn.Sequential(Block(32, 64, 2), *(Block(64, 64, 1) for _ in range(blocks - 1)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes) for normalised pictures (N, 3, 32, 32)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.pool(self.layer3(self.layer2(self.layer1(x)))).flatten(1)
        return self.linear(x)  # type: ignore[no-any-return]


def trained(name: str) -> PixelModel:
    """Return a network of `TRAINED`, in eval mode: trained on CIFAR-10 by others, 91.7 and 93.4 % on the test images.

    Raises FileNotFoundError where its weights are absent.
    """
    blocks, weights = TRAINED[name]
    network = ResNetCifar(blocks)
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return PixelModel(network, IMAGENET_MEAN, IMAGENET_STD).eval()


def trained_resnet20() -> PixelModel:
    """Return the trained ResNet-20, in eval mode. Raises FileNotFoundError where its weights are absent."""
    return trained("resnet20")


NETWORKS = {
    "lenet": lenet,
    "cnn6": cnn6,
    "convnet": convnet,
    "convnet16": partial(convnet, width=16),
    "convnet64": partial(convnet, width=64),
    "resnet18": resnet18,
    "vgg11": vgg11,
    "resnet18-cifar": resnet18_cifar,
    "dense": dense,
}


def build(name: str, seed: int = 0) -> PixelModel:
    """Return an untrained network of this name under `seed`, taking CIFAR-10 pictures in [0, 1]."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = NETWORKS[name]()
    return PixelModel(network, CIFAR_MEAN, CIFAR_STD)
