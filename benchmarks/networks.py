"""The networks the benchmarks attack, untrained and seeded."""

from __future__ import annotations

import itertools
from functools import partial

import torch
from torch import nn

from leakaudit.target import PixelModel

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


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


NETWORKS = {
    "lenet": lenet,
    "cnn6": cnn6,
    "convnet": convnet,
    "convnet16": partial(convnet, width=16),
    "convnet64": partial(convnet, width=64),
    "resnet18": resnet18,
    "resnet18-cifar": resnet18_cifar,
    "dense": dense,
}


def build(name: str, seed: int = 0) -> PixelModel:
    """Return an untrained network of this name under `seed`, taking CIFAR-10 pictures in [0, 1]."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = NETWORKS[name]()
    return PixelModel(network, CIFAR_MEAN, CIFAR_STD)
