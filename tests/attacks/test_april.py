"""APRIL: the positions' gradient solves the patches, whatever follows; where it is not known it says so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer

from leakaudit.attacks.april import April
from leakaudit.errors import NotApplicable
from leakaudit.protocol.attack import Reconstruction
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.score.metrics import psnr
from tests.attacks.attack_scenes import TinyViT, conv_model, records, seeded, shared_update

SHAPE, CLASSES, EXACT = (3, 12, 12), 3, 60.0


class Direct(nn.Module):
    """Attention that sees the tokens as they are, without a shortcut: the paper's case."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 48, 4, stride=4)
        self.positions = nn.Parameter(0.1 * torch.randn(1, 9, 48))
        self.attention = nn.MultiheadAttention(48, 4, batch_first=True)
        nn.init.normal_(self.attention.in_proj_bias, 0, 0.1)
        self.head = nn.Linear(9 * 48, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        z = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(F.gelu(self.attention(z, z, z, need_weights=False)[0]).flatten(1))  # type: ignore[no-any-return]


class Maps(nn.Module):
    """Positions kept as maps, a mean over the tokens in place of a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 4, stride=4)
        self.positions = nn.Parameter(torch.randn(24, 3, 3))
        self.block = nn.TransformerEncoderLayer(24, 2, 32, 0.0, batch_first=True)
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        z = (self.patches(x) + self.positions).flatten(2).transpose(1, 2)
        return self.head(self.block(z).mean(1))  # type: ignore[no-any-return]


def torchvisions() -> nn.Module:
    network = VisionTransformer(12, 4, num_layers=2, num_heads=2, hidden_dim=24, mlp_dim=32, num_classes=CLASSES)
    nn.init.normal_(network.heads[0].weight)  # which it begins with zeros, and then no gradient passes
    return network


def model_of(build: Callable[[], nn.Module]) -> PixelModel:
    return PixelModel(seeded(build), [0.5, 0.4, 0.3], [0.2, 0.3, 0.4])


def attacked(model: PixelModel, private: Records, batch: int = 1) -> Reconstruction:
    update = shared_update(model, private, batch_size=batch, classes=CLASSES)
    return April()(model, update, torch.Generator().manual_seed(5))


def scores(found: Reconstruction, private: Records) -> Tensor:
    assert found.images is not None
    return psnr(private.images, found.images[:, 0])


def frozen(model: PixelModel) -> PixelModel:
    patches = model.network.patches
    assert isinstance(patches, nn.Conv2d)
    patches.requires_grad_(False)
    return model


@pytest.mark.parametrize("build", [lambda: TinyViT(SHAPE, 4, 24, CLASSES), torchvisions, Direct, Maps])
def test_pictures_are_exact_whatever_follows_the_patches(build: Callable[[], nn.Module]) -> None:
    private = records(4, SHAPE, CLASSES, seed=1)
    found = attacked(model_of(build), private)
    assert found.statuses == ("converged",) * 4
    assert float(scores(found, private).min()) > EXACT


def test_through_the_attention_where_the_patch_embedding_is_frozen() -> None:
    private = records(4, SHAPE, CLASSES, seed=2)
    assert float(scores(attacked(frozen(model_of(Direct)), private), private).min()) > EXACT


def test_a_model_less_wide_than_it_has_patches_gives_less_and_says_so() -> None:
    private = records(4, SHAPE, CLASSES, seed=3)
    found = attacked(model_of(lambda: TinyViT(SHAPE, 2, 30, CLASSES)), private)
    grey = psnr(private.images, torch.full_like(private.images, 0.5))
    assert "36 patches" in found.notes[0]
    assert float((scores(found, private) - grey).median()) > 3
    assert float(scores(found, private).max()) < EXACT


def test_what_patches_do_not_cover_is_left_at_the_mean() -> None:
    private = records(2, (3, 13, 12), CLASSES, seed=4)
    found = attacked(model_of(lambda: TinyViT((3, 13, 12), 4, 24, CLASSES)), private)
    assert found.images is not None
    assert torch.allclose(found.images[:, 0, 0, 12], torch.tensor(0.5), atol=1e-6)
    assert float(psnr(private.images[:, :, :12], found.images[:, 0, :, :12]).min()) > EXACT


def fixed() -> nn.Module:
    network = TinyViT(SHAPE, 4, 24, CLASSES)
    network.positions.requires_grad_(False)
    return network


@pytest.mark.parametrize(
    ("model", "batch", "why"),
    [
        (model_of(lambda: TinyViT(SHAPE, 4, 24, CLASSES)), 2, "one record per update"),
        (model_of(fixed), 1, "no learnt positions"),
        (frozen(model_of(lambda: TinyViT(SHAPE, 4, 24, CLASSES))), 1, "neither the patch embedding"),
        (conv_model(SHAPE), 1, "does not cut the picture into patches"),
    ],
    ids=["batch", "fixed", "frozen", "convolutions"],
)
def test_where_it_cannot_run_it_says_why(model: PixelModel, batch: int, why: str) -> None:
    with pytest.raises(NotApplicable, match=why):
        attacked(model, records(2, SHAPE, CLASSES, seed=5), batch)
