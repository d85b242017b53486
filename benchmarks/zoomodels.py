"""Models of the zoo, with random weights at small sizes, as their libraries build them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zookit import CLASSES, Brought, Entry, around

MODELS: list[Entry] = []


def model(name: str, about: str, channels: int = 3, side: int = 32, depth: int = 0, **told: Any) -> Callable[..., Any]:
    """Decorator: an entry of a function that builds a model (or returns one with further names of model.py)."""

    def add(build: Callable[[], Any]) -> Callable[[], Any]:
        def bring(folder: Path) -> Brought:
            found = build()
            given, more = found if isinstance(found, tuple) else (found, {})
            return around(given, channels, side, depth=depth, **more)

        shape = (channels, depth, side, side) if depth else (channels, side, side)
        MODELS.append(Entry(name=name, about=about, build=bring, **({"shape": shape} | told)))
        return build

    return add


# -- torchvision ----------------------------------------------------------------------------------


def vision(name: str, about: str, build: Callable[[Any], Any], side: int = 32, **told: Any) -> None:
    """Add a classifier of torchvision."""

    def made() -> Any:
        import torchvision.models as models

        return build(models)

    model(name, about, side=side, package="torchvision", **told)(made)


vision("resnet18", "ResNet-18 (torchvision)", lambda m: m.resnet18(num_classes=CLASSES))
vision("vgg", "A narrow VGG (torchvision)", lambda m: _vgg(m))
vision("mobilenet-v3", "MobileNetV3-Small (torchvision)", lambda m: m.mobilenet_v3_small(num_classes=CLASSES))
vision(
    "densenet",
    "DenseNet of two blocks (torchvision)",
    lambda m: m.DenseNet(growth_rate=8, block_config=(2, 2), num_init_features=16, num_classes=CLASSES),
)
vision("efficientnet", "EfficientNet-B0 (torchvision)", lambda m: m.efficientnet_b0(num_classes=CLASSES))
vision("shufflenet", "ShuffleNetV2 ×0.5 (torchvision)", lambda m: m.shufflenet_v2_x0_5(num_classes=CLASSES))
vision(
    "squeezenet", "SqueezeNet 1.1, head of a convolution (torchvision)", lambda m: m.squeezenet1_1(num_classes=CLASSES)
)
vision(
    "googlenet-aux",
    "GoogLeNet with auxiliary heads, no loss given (torchvision)",
    lambda m: m.googlenet(num_classes=CLASSES, aux_logits=True, init_weights=False),
    says=("aux",),
)
vision(
    "googlenet-loss",
    "GoogLeNet with auxiliary heads, and a loss of all three (torchvision)",
    lambda m: (m.googlenet(num_classes=CLASSES, aux_logits=True, init_weights=False), {"loss": all_heads}),
)
vision(
    "inception-v3",
    "Inception v3 without auxiliary heads, only looked at (torchvision)",
    lambda m: m.inception_v3(num_classes=CLASSES, aux_logits=False, init_weights=False),
    side=75,
    scanned=False,
)
vision(
    "vit",
    "Vision transformer of two layers (torchvision)",
    lambda m: m.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=CLASSES),
)
vision(
    "swin",
    "Swin transformer of two stages (torchvision)",
    lambda m: m.SwinTransformer([2, 2], 24, [2, 2], [2, 4], [4, 4], num_classes=CLASSES),
)
vision("convnext", "ConvNeXt of two stages (torchvision)", lambda m: _convnext(m))


def _vgg(models: Any) -> nn.Module:
    from torchvision.models.vgg import VGG, make_layers

    found: nn.Module = VGG(make_layers([16, "M", 32, "M", 64, 64, "M"]), num_classes=CLASSES, init_weights=False)
    found.avgpool = nn.AdaptiveAvgPool2d(1)
    found.classifier = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, CLASSES))
    return found


def _convnext(models: Any) -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig

    found: nn.Module = models.ConvNeXt([CNBlockConfig(16, 32, 2), CNBlockConfig(32, None, 2)], num_classes=CLASSES)
    return found


def all_heads(outputs: Any, labels: Tensor) -> Tensor:
    """Return the loss of GoogLeNet's paper: the auxiliary heads count for 0.3, where there are any."""
    if isinstance(outputs, Tensor):
        return F.cross_entropy(outputs, labels)
    first, *rest = (F.cross_entropy(each, labels) for each in outputs if each is not None)
    return first + 0.3 * sum(rest, torch.zeros(()))


@model("r3d", "ResNet for video, one block a stage (torchvision)", side=32, depth=8, package="torchvision")
def _r3d() -> Any:
    from torchvision.models.video.resnet import BasicBlock, BasicStem, Conv3DSimple, VideoResNet

    return VideoResNet(BasicBlock, [Conv3DSimple] * 4, [1, 1, 1, 1], BasicStem, num_classes=CLASSES)


# -- timm -----------------------------------------------------------------------------------------


def timm(name: str, about: str, which: str, side: int = 32, **more: Any) -> None:
    """Add a classifier of timm."""

    def made() -> Any:
        from timm import create_model

        return create_model(which, num_classes=CLASSES, **more)

    model(name, f"{about} (timm)", side=side, package="timm")(made)


timm("timm-resnet", "ResNet-10t", "resnet10t")
timm("timm-vit", "Small vision transformer", "test_vit", 64, img_size=64)
timm("timm-maxvit", "MaxViT", "test_maxvit", 64, img_size=64)
timm("timm-efficientnet", "EfficientNet with BatchNorm", "test_efficientnet")
timm("timm-convnext", "ConvNeXt with drop path", "test_convnext", drop_path_rate=0.1)
timm("timm-nfnet", "Normaliser-free net with standardised weights", "test_nfnet")


@model("timm-mixer", "MLP-Mixer (timm)", package="timm")
def _mixer() -> Any:
    from timm.models.mlp_mixer import MlpMixer

    return MlpMixer(num_classes=CLASSES, img_size=32, patch_size=8, num_blocks=2, embed_dim=32)


@model("timm-convmixer", "ConvMixer (timm)", package="timm")
def _convmixer() -> Any:
    from timm.models.convmixer import ConvMixer

    return ConvMixer(dim=32, depth=2, kernel_size=5, patch_size=4, num_classes=CLASSES)


# -- transformers ---------------------------------------------------------------------------------

TINY = {"num_labels": CLASSES, "image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2}
ATTENTION = {"num_attention_heads": 2, "intermediate_size": 64}


def hugging(name: str, about: str, which: str, **told: Any) -> None:
    """Add an image classifier of transformers."""

    def made() -> Any:
        import transformers

        return getattr(transformers, f"{which}ForImageClassification")(getattr(transformers, f"{which}Config")(**told))

    model(name, f"{about} (transformers)", package="transformers")(made)


hugging("hf-vit", "ViT", "ViT", **TINY, **ATTENTION)
hugging("hf-deit", "DeiT", "DeiT", **TINY, **ATTENTION)
hugging("hf-beit", "BEiT", "Beit", **TINY, **ATTENTION)
hugging(
    "hf-swin",
    "Swin",
    "Swin",
    num_labels=CLASSES,
    image_size=32,
    patch_size=2,
    embed_dim=16,
    window_size=4,
    depths=[1, 1],
    num_heads=[2, 2],
)
hugging("hf-convnext", "ConvNeXt", "ConvNext", num_labels=CLASSES, num_stages=2, hidden_sizes=[16, 32], depths=[1, 1])
hugging(
    "hf-resnet",
    "ResNet",
    "ResNet",
    num_labels=CLASSES,
    embedding_size=16,
    hidden_sizes=[16, 32],
    depths=[1, 1],
    layer_type="basic",
)


@model(
    "peft-lora",
    "LoRA on a ViT, classifier trained (PEFT, transformers)",
    package="peft",
    says=("parameters are shared",),
)
def _lora() -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import ViTConfig, ViTForImageClassification

    net = ViTForImageClassification(ViTConfig(**TINY, **ATTENTION))  # type: ignore[arg-type]
    old = any(name.endswith("query") for name, _ in net.named_modules())
    named = ["query", "value"] if old else ["q_proj", "v_proj"]
    return get_peft_model(net, LoraConfig(r=4, target_modules=named, modules_to_save=["classifier"]))


# -- MONAI ----------------------------------------------------------------------------------------


@model("monai-densenet", "DenseNet (MONAI)", channels=1, package="monai")
def _monai2() -> Any:
    from monai.networks.nets import DenseNet

    return DenseNet(2, 1, CLASSES, init_features=8, growth_rate=8, block_config=(2, 2))


@model("monai-densenet-3d", "DenseNet of volumes (MONAI)", channels=1, side=16, depth=12, package="monai")
def _monai3() -> Any:
    from monai.networks.nets import DenseNet

    return DenseNet(3, 1, CLASSES, init_features=8, growth_rate=8, block_config=(2, 2))


@model("monai-vit", "ViT that returns (logits, hidden states) with output = 0 (MONAI)", 1, package="monai einops")
def _monai_vit() -> Any:
    from monai.networks.nets import ViT

    return ViT(1, 32, 8, 32, 64, 2, 2, classification=True, num_classes=CLASSES, spatial_dims=2), {"output": 0}
