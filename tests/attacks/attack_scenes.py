"""Small models and updates for the attack tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakaudit.protocol.attack import Attack, Beforehand
from leakaudit.protocol.client import SharedUpdate, release, share
from leakaudit.protocol.defense import Defense, chain
from leakaudit.protocol.exposure import Exposure
from leakaudit.protocol.federation import FEDSGD, Client, parse_client
from leakaudit.protocol.gradients import Mode
from leakaudit.protocol.registry import parse_defense
from leakaudit.protocol.target import PictureGenerator, PixelModel, Records

EVERYTHING = Exposure(buffers=True, defense=True, auxiliary=True, released=True)


@dataclass(frozen=True, kw_only=True)
class Shifted(Defense):
    """An identity-like replacing defense: x̃ = 1 − x, undone by whoever has seen a few pairs."""

    name: ClassVar[str] = "shifted"
    replaces_records: ClassVar[bool] = True

    def transform_records(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return 1 - images, labels


def seeded(build: type[nn.Module] | object, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build()  # type: ignore[operator]
    assert isinstance(module, nn.Module)
    return module


def dense_model(shape: tuple[int, int, int] = (1, 8, 8), classes: int = 3, seed: int = 0) -> PixelModel:
    size = shape[0] * shape[1] * shape[2]
    network = seeded(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(size, 24), nn.Sigmoid(), nn.Linear(24, classes)), seed
    )
    return PixelModel(network, [0.4] * shape[0], [0.25] * shape[0])


def conv_model(shape: tuple[int, int, int] = (1, 8, 8), classes: int = 3, seed: int = 0) -> PixelModel:
    c, h, w = shape
    network = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(c, 8, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(8, 8, 3, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(8 * ((h + 1) // 2) * ((w + 1) // 2), classes),
        ),
        seed,
    )
    return PixelModel(network, [0.4] * c, [0.25] * c)


class TinyViT(nn.Module):
    """Patches, a class token, learnt positions, pre-norm blocks: a vision transformer as torchvision builds them."""

    def __init__(self, shape: tuple[int, int, int], patch: int, width: int, classes: int, blocks: int = 2) -> None:
        super().__init__()
        c, h, w = shape
        self.patches = nn.Conv2d(c, width, patch, stride=patch)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.1 * torch.randn(1, 1 + (h // patch) * (w // patch), width))
        layer = partial(nn.TransformerEncoderLayer, width, 2, 2 * width, 0.0, batch_first=True, norm_first=True)
        self.blocks = nn.ModuleList(layer() for _ in range(blocks))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes) of normalised pictures (N, C, H, W)."""
        z = self.patches(x).flatten(2).transpose(1, 2)
        z = torch.cat([self.token.expand(len(z), -1, -1), z], 1) + self.positions
        for block in self.blocks:
            z = block(z)
        return self.head(z[:, 0])  # type: ignore[no-any-return]


def vit_model(shape: tuple[int, int, int] = (1, 8, 8), classes: int = 3, seed: int = 0) -> PixelModel:
    """Return a vision transformer of 3×3 patches: a picture's last rows and columns may be left over."""
    return PixelModel(seeded(lambda: TinyViT(shape, 3, 24, classes), seed), [0.4] * shape[0], [0.25] * shape[0])


def batchnorm_model(shape: tuple[int, int, int] = (1, 8, 8), classes: int = 3, seed: int = 0) -> PixelModel:
    """A model whose BatchNorm keeps statistics that no single batch has."""
    c, h, w = shape
    network = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(c, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(8 * h * w, classes),
        ),
        seed,
    )
    generator = torch.Generator().manual_seed(seed)
    network[1].running_mean = torch.randn(8, generator=generator)  # type: ignore[index]
    network[1].running_var = torch.rand(8, generator=generator) + 0.5  # type: ignore[index]
    return PixelModel(network, [0.4] * c, [0.25] * c)


def smooth_pictures(count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Return pictures with the low frequencies that a total-variation prior expects."""
    c, h, w = shape
    coarse = torch.rand((count, c, 3, 3), generator=generator)
    return F.interpolate(coarse, (h, w), mode="bilinear", align_corners=True)


def records(count: int, shape: tuple[int, int, int], classes: int, seed: int) -> Records:
    generator = torch.Generator().manual_seed(seed)
    images = smooth_pictures(count, shape, generator)
    return Records(images, torch.randint(classes, (count,), generator=generator))


Builder = Callable[[tuple[int, int, int]], PixelModel]
PICTURES: dict[str, Builder] = {
    "dense": dense_model,
    "batchnorm": batchnorm_model,
    "tokens": vit_model,
    "convolutions": conv_model,
}


def kind_for(attack: Attack) -> str:
    """Return of which kind, a key of `PICTURES`, a model must be for the attack to do its work."""
    needs = attack.needs
    batchnorm = needs.batchnorm or "buffers" in attack.requires  # whoever asks for its statistics needs some
    kind = "dense" if needs.dense_input else "batchnorm" if batchnorm else "convolutions"
    return "tokens" if needs.tokens else kind


def scene(
    attack: Attack, shape: tuple[int, int, int] = (1, 8, 8), batch: int = 1, model: PixelModel | None = None
) -> tuple[PixelModel, SharedUpdate]:
    """Return a model, by default of pictures, and what two clients share of it, as the attack `needs` them."""
    needs = attack.needs
    batch = max(batch, 2 if needs.several_records else 1)
    model = PICTURES[kind_for(attack)](shape) if model is None else model
    own = records(12, shape, 3, seed=2)
    if attack.plants():
        known = Beforehand(shape, 3, batch, F.cross_entropy, "eval", own)
        model = attack.plant(model, known, torch.Generator().manual_seed(5))
    parts = (
        parse_defense(needs.defense) if needs.defense else Defense(),
        Shifted() if needs.replaced_records else Defense(),
    )
    client = parse_client("fedavg:epochs=2:batch=1:lr=0.1") if needs.local_steps else FEDSGD
    update = shared_update(
        model,
        records(2 * batch, shape, 3, seed=1),
        defense=chain(*(part for part in parts if type(part) is not Defense)),
        exposure=replace(EVERYTHING, labels="labels" in attack.requires),
        batch_size=batch,
        auxiliary=own,
        client=client,
    )
    return model, replace(update, prior=pictures_of(shape)) if needs.generator else update


def pictures_of(shape: tuple[int, int, int]) -> PictureGenerator:
    """Return a generator of two layers, from 8 latents to pictures."""
    size = shape[0] * shape[1] * shape[2]
    layers = seeded(lambda: nn.Sequential(nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, size), nn.Sigmoid()))
    return PictureGenerator(nn.Sequential(*layers, nn.Unflatten(1, shape)).requires_grad_(False), (8,))


def shared_update(  # noqa: PLR0913 - all that an update depends on
    model: PixelModel,
    private: Records,
    *,
    defense: Defense | None = None,
    exposure: Exposure = EVERYTHING,
    batch_size: int = 1,
    classes: int = 3,
    mode: Mode = "eval",
    auxiliary: Records | None = None,
    client: Client = FEDSGD,
) -> SharedUpdate:
    defense = defense or Defense()
    generator = torch.Generator().manual_seed(99)
    return share(
        model,
        F.cross_entropy,
        release(defense, private, generator),
        defense,
        exposure,
        batch_size=batch_size,
        classes=classes,
        mode=mode,
        generator=generator,
        auxiliary=auxiliary,
        client=client,
    )
