"""One table over every registered attack and defense: they do on a 3-D network's volumes what they do on pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from leakaudit.errors import NotApplicable
from leakaudit.protocol import registry
from leakaudit.protocol.client import defended_gradient
from leakaudit.protocol.registry import parse_attack
from leakaudit.protocol.target import PixelModel, Records, Target
from leakaudit.score.metrics import psnr
from tests.attacks.attack_scenes import TinyViT, kind_for, records, scene, seeded, shared_update
from tests.attacks.test_every_attack import CANDIDATES, NAMES, run, small

CHANNELS, DEPTH, SIDE = 2, 4, 6
SHAPE = (CHANNELS * DEPTH, SIDE, SIDE)  # as volumes are kept
EXACT = {"analytic", "april", "imprint", "peeling", "r-gap", "spear", "trap-weights"}  # closed forms: they give all


class Tokens(TinyViT):
    """The vision transformer over blocks of a volume."""

    def __init__(self) -> None:
        super().__init__((1, 6, 6), 3, 24, 3)
        self.patches = nn.Conv3d(CHANNELS, 24, (2, 3, 3), stride=(2, 3, 3))
        self.positions = nn.Parameter(0.1 * torch.randn(1, 1 + 8, 24))


def ended(*parts: nn.Module, width: int) -> nn.Module:
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(width, 3))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "dense": lambda: ended(nn.Flatten(), nn.Linear(288, 24), nn.Sigmoid(), width=24),
    "batchnorm": lambda: ended(
        nn.Conv3d(CHANNELS, 4, 3, padding=1), nn.BatchNorm3d(4), nn.LeakyReLU(0.2), width=4 * 144
    ),
    "tokens": Tokens,
    "convolutions": lambda: ended(
        nn.Conv3d(CHANNELS, 8, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv3d(8, 8, 3, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        width=144,
    ),
}


def model(kind: str) -> PixelModel:
    """A 3-D network; BatchNorm keeps statistics that no single batch has."""
    network = seeded(NETWORKS[kind])
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm3d)):
        norm.running_mean = torch.tensor([0.1, -0.2, 0.3, 0.0])
        norm.running_var = torch.tensor([0.5, 1.0, 1.2, 0.8])
    return PixelModel(network, [0.4] * CHANNELS, [0.25] * CHANNELS, depth=DEPTH)


@pytest.mark.parametrize("name", NAMES)
def test_every_attack_draws_volumes(name: str) -> None:
    attack = small(name)
    attacked, update = scene(attack, SHAPE, model=model(kind_for(attack)))
    found = run(attack, attacked, update)
    assert set(found.statuses) == {"converged"}
    if attack.kind == "linkage":
        assert found.linkage is not None
        assert found.linkage.shape == (2, CANDIDATES)
    if found.images is None:
        assert attack.kind != "reconstruction"
        return
    assert found.images.shape == (2, update.batch_size, *SHAPE)
    if name in EXACT:
        private = records(2 * update.batch_size, SHAPE, 3, seed=1).images.view(2, update.batch_size, *SHAPE)
        best = torch.stack(
            [psnr(p, i[None].expand_as(p)).amax() for p, own in zip(private, found.images, strict=True) for i in own]
        )
        assert float(best.min()) > 55


@pytest.mark.parametrize("name", [n for n in NAMES if kind_for(registry.attacks()[n]()) != "convolutions"])
def test_what_a_3d_convolution_rules_out_is_not_applicable(name: str) -> None:
    attack = small(name)
    with pytest.raises(NotApplicable, match=r"Conv3d, not dense|cut the picture into patches|no BatchNorm"):
        run(attack, *scene(attack, SHAPE, model=model("convolutions")))


@pytest.mark.parametrize("name", sorted(registry.defenses()))
def test_every_defense_defends_volumes(name: str) -> None:
    defense = registry.defenses()[name]()
    if "steps" in registry.settings_of(type(defense)):
        defense = replace(defense, steps=2)  # type: ignore[call-arg]
    drawn = [records(24, SHAPE, 3, seed) for seed in range(3)]
    sets = [Records(each.images, torch.arange(24) % 3) for each in drawn]
    target = Target("volumes", model("convolutions"), nn.CrossEntropyLoss(), *sets, classes=("a", "b", "c"))
    generator = torch.Generator().manual_seed(0)
    fitted = defense.fit(target, generator)
    images, labels = fitted.transform_records(target.private.images[:3], target.private.labels[:3], generator)
    assert images.shape == (3, *SHAPE)
    changed = fitted.transform_model(target.model, generator)
    update = defended_gradient(changed, target.loss, images, labels, fitted, generator)
    assert all(bool(g.isfinite().all()) for g in update)


@pytest.mark.parametrize("padding", [0, 1])
def test_labels_are_told_by_a_convolution_over_volumes(padding: int, generator: torch.Generator) -> None:
    head = nn.Conv3d(6, 3, 2, padding=padding), nn.AdaptiveAvgPool3d(1), nn.Flatten()
    network = seeded(lambda: nn.Sequential(nn.Conv3d(CHANNELS, 6, 3, stride=2, padding=1), nn.Tanh(), *head))
    own, private = PixelModel(network, depth=DEPTH), records(12, SHAPE, 3, seed=1)
    found = parse_attack("labels")(own, shared_update(own, private), generator)
    assert found.labels is not None
    assert torch.equal(found.labels.flatten(), private.labels)


def test_a_chain_of_three_dense_layers_is_solved_whole(generator: torch.Generator) -> None:
    """The second layer is solved together with the first, whose input is flat."""
    dense = nn.Flatten(), nn.Linear(288, 300), nn.LeakyReLU(0.2), nn.Linear(300, 290), nn.LeakyReLU(0.2)
    own = PixelModel(seeded(lambda: nn.Sequential(*dense, nn.Linear(290, 3))), depth=DEPTH)
    private = records(2, SHAPE, 3, seed=1)
    found = parse_attack("r-gap")(own, shared_update(own, private), generator)
    assert found.images is not None
    assert float(psnr(private.images, found.images[:, 0]).min()) > 55
