"""The engine in float32, as it is used, against plain autograd in float64: 1e-4 relative on every kind of network."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakaudit.engine import matching as engine
from leakaudit.protocol.gradients import Gradients, Mode, in_mode, mean_gradient, parameters_of
from leakaudit.protocol.target import LossFunction, PixelModel

CLASSES, SIDE = 5, 16


def small(norm: Callable[[int], nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        norm(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        norm(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, CLASSES),
    )


class ChannelsLast(nn.Module):
    """LayerNorm over the channels of a map, as in ConvNeXt."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return found


def transformer() -> nn.Module:
    """torchvision's vision transformer, the network of vit_b_16, in small; its head starts at zero and is filled."""
    from torchvision.models import VisionTransformer

    network = VisionTransformer(SIDE, 4, 2, 2, 16, 32, num_classes=CLASSES)
    nn.init.normal_(network.heads.head.weight, std=0.3)
    return network


def mobile() -> nn.Module:
    from torchvision.models.mobilenetv2 import InvertedResidual

    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        InvertedResidual(8, 8, 1, 4),
        InvertedResidual(8, 16, 2, 4),
        nn.Flatten(),
        nn.Linear(16 * 64, CLASSES),
    )


def squeezed() -> nn.Module:
    """A block of MobileNetV3 with its hardswish and hardsigmoid, whose kernel torch cannot differentiate twice."""
    from torchvision.models.mobilenetv3 import InvertedResidual, InvertedResidualConfig

    block = InvertedResidualConfig(8, 3, 16, 16, True, "HS", 2, 1, 1.0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), InvertedResidual(block, nn.BatchNorm2d), nn.Flatten(), nn.Linear(1024, CLASSES)
    )


def resnet() -> nn.Module:
    """A small torchvision ResNet without its last two stages: BatchNorm over single pixels has no exact float32."""
    from torchvision.models.resnet import BasicBlock, ResNet

    network = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=CLASSES)
    network.layer3, network.layer4, network.fc = nn.Identity(), nn.Identity(), nn.Linear(128, CLASSES)
    return network


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "no normalisation": lambda: small(lambda _: nn.Identity()),
    "batchnorm": lambda: small(nn.BatchNorm2d),
    "groupnorm": lambda: small(lambda n: nn.GroupNorm(4, n)),
    "layernorm": lambda: small(ChannelsLast),
    "depthwise": mobile,
    "hardsigmoid": squeezed,
    "attention": transformer,
    "resnet": resnet,
}


def reference(
    model: PixelModel, loss: LossFunction, images: Tensor, labels: Tensor, shared: Gradients
) -> tuple[Tensor, Tensor]:
    """1 − cos(∇ℓ, g) and its slope by autograd through everything, in float64."""
    exact = copy.deepcopy(model).double()
    x = images.double().requires_grad_(True)
    with engine.twice_differentiable():
        outcome = loss(exact(x), labels)
    found = torch.autograd.grad(outcome, parameters_of(exact)[1], create_graph=True)
    a, b = (torch.cat([g.flatten() for g in gs]) for gs in (found, [s.double() for s in shared]))
    value = 1 - F.cosine_similarity(a, b, dim=0)
    return value.detach(), torch.autograd.grad(value, x)[0]


@pytest.mark.parametrize("trials", [1, 3])
@pytest.mark.parametrize(("mode", "batch"), [("eval", 1), ("eval", 3), ("train", 3)])
@pytest.mark.parametrize("name", NETWORKS)
def test_float32_is_exact_to_1e_4(name: str, mode: Mode, batch: int, trials: int, ways: list[str]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = PixelModel(NETWORKS[name](), (0.4, 0.5, 0.5), (0.2, 0.3, 0.2))
    generator = torch.Generator().manual_seed(1)
    images, truth = (torch.rand((trials, batch, 3, SIDE, SIDE), generator=generator) for _ in range(2))
    labels = torch.randint(CLASSES, (trials, batch), generator=generator)
    with in_mode(model, mode):
        each = [mean_gradient(model, F.cross_entropy, x, y) for x, y in zip(truth, labels, strict=True)]
        shared = tuple(torch.stack(column) for column in zip(*each, strict=True))
        values, slopes = engine.match(model, F.cross_entropy, images, labels, shared, engine.cosine)
        for t in range(trials):
            value, slope = reference(model, F.cross_entropy, images[t], labels[t], tuple(s[t] for s in shared))
            assert float(values[t]) == pytest.approx(float(value), rel=1e-4, abs=1e-6)
            assert float((slopes[t] - slope).norm()) < 1e-4 * float(slope.norm())
    if trials > 1:
        assert ways[-1] == ("vectorised" if name == "attention" else "stacked")
