"""R-GAP: a chain of layers solved from the last to the first, the first ones together."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from leakaudit.attacks._chain import Block, chain_of
from leakaudit.attacks.rgap import RGap
from leakaudit.errors import NotApplicable, UserError
from leakaudit.protocol.attack import Reconstruction
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.score.metrics import psnr
from tests.attacks.attack_scenes import batchnorm_model, records, seeded, shared_update, vit_model

SHAPE, CLASSES, EXACT = (1, 8, 8), 3, 60.0


def chain(act: Callable[[], nn.Module], middle: int = 8) -> PixelModel:
    network = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), act(), nn.Conv2d(8, middle, 3, stride=2, padding=1), act(),
            nn.Flatten(), nn.Linear(16 * middle, 20), act(), nn.Linear(20, CLASSES),
        )
    )  # fmt: skip
    return PixelModel(network, [0.4], [0.25])


def attacked(model: PixelModel, private: Records, batch: int = 1) -> Reconstruction:
    update = shared_update(model, private, batch_size=batch, classes=CLASSES)
    return RGap()(model, update, torch.Generator().manual_seed(5))


def scores(found: Reconstruction, private: Records) -> Tensor:
    assert found.images is not None
    return psnr(private.images, found.images[:, 0])


@pytest.mark.parametrize("act", [lambda: nn.LeakyReLU(0.2, inplace=True), nn.Tanh, nn.Sigmoid, nn.ELU])
def test_pictures_are_exact_through_what_can_be_undone(act: Callable[[], nn.Module]) -> None:
    private = records(3, SHAPE, CLASSES, seed=1)
    found = attacked(chain(act), private)
    assert found.statuses == ("converged",) * 3
    assert float(scores(found, private).min()) > EXACT
    assert found.labels is not None
    assert torch.equal(found.labels[:, 0], private.labels)


def test_a_layer_of_too_few_equations_is_solved_with_those_before_it() -> None:
    model, private = chain(lambda: nn.LeakyReLU(0.2), middle=4), records(3, SHAPE, CLASSES, seed=2)
    blocks = chain_of(model, private.images[:1])
    assert [b.short() for b in blocks] == [False, True, False, False]
    assert float(scores(attacked(model, private), private).min()) > EXACT


def test_relu_hides_what_is_off_and_gives_more_than_grey() -> None:
    private = records(4, SHAPE, CLASSES, seed=3)
    grey = psnr(private.images, torch.full_like(private.images, 0.5))
    assert float((scores(attacked(chain(nn.ReLU), private), private) - grey).median()) > 3


def blocks_of(model: PixelModel) -> list[Block]:
    return chain_of(model, records(1, SHAPE, CLASSES, seed=4).images)


def test_layers_and_their_transposes_are_those_of_autograd() -> None:
    for block in blocks_of(chain(nn.Tanh)):
        generator = torch.Generator().manual_seed(5)
        u = torch.randn(block.given, generator=generator, dtype=torch.float64).requires_grad_()
        weight = block.weight.clone().requires_grad_()
        z = block.layer.double()(u[None])[0]
        assert torch.allclose(block.shifted(block.linear(u)), z)
        slope = torch.randn(z.shape, generator=generator, dtype=torch.float64)
        out = torch.func.functional_call(block.layer, {"weight": weight}, (u[None],))[0]
        own, of_weight = torch.autograd.grad((out * slope).sum(), (u, weight))
        assert torch.allclose(block.back(slope), own)
        assert torch.allclose(block.gradient(slope, u), of_weight)
        other = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        assert torch.allclose((block.gradient(slope, u) * other).sum(), (block.gradient_back(slope, other) * u).sum())


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Conv2d(1, 1, 3, padding=1), nn.Tanh(), nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last((x + self.act(self.first(x))).flatten(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("model", "batch", "why"),
    [
        (chain(nn.Tanh), 2, "one record per update"),
        (batchnorm_model(), 1, "BatchNorm2d cannot be undone"),
        (vit_model(), 1, "is not fed by the layer before it alone|cannot be undone"),
        (PixelModel(seeded(Twice)), 1, "is not fed by the layer before it alone"),
    ],
    ids=["batch", "batchnorm", "transformer", "shortcut"],
)
def test_where_it_cannot_run_it_says_why(model: PixelModel, batch: int, why: str) -> None:
    with pytest.raises(NotApplicable, match=why):
        attacked(model, records(2, SHAPE, CLASSES, seed=6), batch)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match="steps must be at least 1"):
        RGap(steps=0)
