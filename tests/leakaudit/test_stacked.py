"""The stacked pass against the loop in float64: every kind of layer, every way a layer can go, and every refusal."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakaudit.engine import kinds, layers
from leakaudit.engine import matching as engine
from leakaudit.engine.recording import Unsupported
from leakaudit.engine.stacked import Trials
from leakaudit.protocol.gradients import Gradients, Mode, in_mode, parameters_of
from leakaudit.protocol.target import PixelModel

SHAPE, CLASSES = (2, 8, 8), 3


class Residual(nn.Module):
    """Two convolutions with a skip, in-place additions and activations: what a record of layers must survive."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.body = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm(self.stem(x)), inplace=True)
        y = self.body(x)
        y += x
        found: Tensor = self.head(torch.tanh_(y).mean((2, 3)))
        return found


class Tokens(nn.Module):
    """Pixels as tokens: dense layers and LayerNorm at every position."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 4))
        self.whole = nn.LayerNorm((64, 4))
        self.head = nn.Linear(4, CLASSES, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.whole(self.inner(x.flatten(2).transpose(1, 2))).mean(1))
        return found


def then_dense(*parts: nn.Module, width: int) -> nn.Module:
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(width, CLASSES))


VOLUME = nn.Flatten(2), nn.Unflatten(2, (4, 4, 4))  # the 64 pixels of a channel as 4×4×4

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "dense": lambda: nn.Sequential(nn.Flatten(), nn.Linear(128, 6), nn.Sigmoid(), nn.Linear(6, CLASSES)),
    "strided": lambda: then_dense(nn.Conv2d(2, 6, (3, 2), stride=(2, 3), padding=(1, 0)), nn.Tanh(), width=72),
    "dilated": lambda: then_dense(nn.Conv2d(2, 6, 3, dilation=2, padding=1, bias=False), nn.SiLU(), width=216),
    "large kernel": lambda: then_dense(nn.Conv2d(2, 4, 5, padding=2), nn.Sigmoid(), nn.AvgPool2d(4), width=16),
    "wide": lambda: nn.Sequential(
        nn.Conv2d(2, 16, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(16, 16, 3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(576, CLASSES),
    ),
    "small maps": lambda: nn.Sequential(
        nn.AvgPool2d(2),
        nn.Conv2d(2, 16, 3, padding=1),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(16, 20, 3, stride=2, padding=1),
        nn.Flatten(),
        nn.Linear(20, CLASSES),
    ),
    "depthwise": lambda: then_dense(
        nn.Conv2d(2, 6, 1), nn.Conv2d(6, 12, 3, groups=6, padding=1), nn.GELU(), nn.AvgPool2d(4), width=48
    ),
    "groupnorm": lambda: then_dense(
        nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Softplus(), nn.InstanceNorm2d(4), nn.AvgPool2d(3), width=16
    ),
    "normalised vector": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(128, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, CLASSES)
    ),
    "pooled": lambda: then_dense(nn.Conv2d(2, 6, 3), nn.LeakyReLU(0.2), nn.MaxPool2d(3), width=24),
    "residual": Residual,
    "tokens": Tokens,
    "affine instances": lambda: then_dense(
        nn.Conv2d(2, 4, 3), nn.InstanceNorm2d(4, affine=True, track_running_stats=True), nn.Tanh(), width=144
    ),
    "line": lambda: then_dense(nn.Flatten(2), nn.Conv1d(2, 4, 5, stride=2, padding=1), nn.Tanh(), width=124),
    "strided volume": lambda: then_dense(
        *VOLUME,
        nn.Conv3d(2, 6, (3, 2, 1), stride=(1, 2, 1), padding=(1, 0, 1), dilation=(1, 2, 1)),
        nn.Tanh(),
        width=144,
    ),
    "small volume": lambda: then_dense(
        *VOLUME, nn.Conv3d(2, 8, 2, stride=2), nn.Tanh(), nn.Conv3d(8, 16, 2, bias=False), nn.SiLU(), width=16
    ),
    "wide volume": lambda: then_dense(
        *VOLUME, nn.Conv3d(2, 16, 3, padding=1), nn.GELU(), nn.Conv3d(16, 16, 2), nn.AvgPool3d(3), width=16
    ),
    "normalised volume": lambda: then_dense(
        *VOLUME,
        nn.Conv3d(2, 4, 2, padding=1),
        nn.BatchNorm3d(4),
        nn.Tanh(),
        nn.MaxPool3d(2),
        nn.Conv3d(4, 8, 3, groups=2, padding=1),
        nn.GroupNorm(2, 8),
        nn.InstanceNorm3d(8, affine=True),
        nn.Softplus(),
        nn.AdaptiveAvgPool3d(2),
        width=64,
    ),
}


VOLUMES = ("strided volume", "small volume", "wide volume")


def model_of(network: nn.Module, seed: int = 0) -> PixelModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
                nn.init.uniform_(module.running_mean, -0.5, 0.5)
                nn.init.uniform_(module.running_var, 0.5, 2)
        for parameter in network.parameters():  # so that γ and β differ from one and zero
            parameter.data += 0.1 * torch.randn_like(parameter)
    return PixelModel(network, (0.4, 0.5), (0.2, 0.3)).double()


def scene(model: PixelModel, rows: list[int], batch: int, seed: int = 1) -> tuple[Tensor, Tensor, Gradients, Tensor]:
    """Pictures (T, B, …), labels (T, B), updates of two victims and the rows (T,)."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand((len(rows), batch, *SHAPE), generator=generator, dtype=torch.float64)
    labels = torch.randint(CLASSES, (len(rows), batch), generator=generator)
    shared = tuple(torch.randn((3, *p.shape), generator=generator, dtype=p.dtype) for p in parameters_of(model)[1])
    return images, labels, shared, torch.tensor(rows)


def bent(candidate: Gradients, shared: Gradients) -> tuple[Tensor, Gradients]:
    """A distance that is no function of inner products: Σ (ĝ − g)⁴ / 4."""
    gaps = tuple(c - s for c, s in zip(candidate, shared, strict=True))
    return torch.stack([(g**4).sum() / 4 for g in gaps]).sum(), tuple(g**3 for g in gaps)


DISTANCES = {"cosine": engine.cosine, "squared": engine.squared, "bent": bent}


@pytest.mark.parametrize("rows", [[0], [1, 1, 1], [0, 1, 2], [0, 1, 1], [0, 1, 2, 2], [2, 0, 2]], ids=str)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("name", NETWORKS)
def test_it_equals_the_loop(name: str, distance: str, rows: list[int]) -> None:
    """One trial, restarts of one victim, a victim each, and a mixture; one and two records; eval and train mode."""
    torch.manual_seed(0)
    model = model_of(NETWORKS[name]())
    modes: list[tuple[Mode, int]] = [("eval", 1), ("eval", 2), ("train", 2)]
    for mode, batch in modes:
        images, labels, shared, chosen = scene(model, rows, batch)
        with in_mode(model, mode):
            arguments = (model, F.cross_entropy, images, labels, shared, DISTANCES[distance], chosen)
            values, slopes = engine.WAYS["stacked"](Trials(*arguments))
            expected, exact = engine.WAYS["loop"](Trials(*arguments))
        assert float(exact.abs().max()) > 0
        torch.testing.assert_close(values, expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(slopes, exact, rtol=1e-8, atol=1e-10 * float(exact.abs().max()))


@pytest.mark.parametrize("rows", [[1, 1, 1], [0, 1, 2], [1, 2], [0, 1, 1], [0, 0, 1, 1, 2, 2], [1, 1, 0, 0]], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_it_equals_the_loop_where_launches_cost(name: str, rows: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a device other than the CPU: few kernels, more copies."""
    monkeypatch.setattr(layers.Stack, "launches_cost", True)
    torch.manual_seed(0)
    model = model_of(NETWORKS[name]()).eval()
    images, labels, shared, chosen = scene(model, rows, 2)
    job = Trials(model, F.cross_entropy, images, labels, shared, engine.cosine, chosen)
    (values, slopes), (expected, exact) = engine.WAYS["stacked"](job), engine.WAYS["loop"](job)
    torch.testing.assert_close(values, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(slopes, exact, rtol=1e-8, atol=1e-10 * float(exact.abs().max()))


@pytest.mark.parametrize("costly", [False, True])
@pytest.mark.parametrize("kind", [kinds.Patches, kinds.Grouped, kinds.Ghost])
@pytest.mark.parametrize("name", ["strided", "dilated", "large kernel", "wide", "small maps", "residual", *VOLUMES])
def test_every_way_of_a_convolution_is_exact(
    name: str, kind: type, costly: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the shapes would have chosen, and whether or not launches cost."""
    monkeypatch.setattr(layers.Stack, "launches_cost", costly)
    monkeypatch.setattr(
        "leakaudit.engine.recording.way", lambda layer, *_: kind if layer.w.dim() > 2 else kinds.Patches
    )
    torch.manual_seed(0)
    model = model_of(NETWORKS[name]()).eval()
    arguments = scene(model, [0, 0, 1], 2)
    images, labels, shared, rows = arguments
    values, slopes = engine.WAYS["stacked"](Trials(model, F.cross_entropy, images, labels, shared, engine.cosine, rows))
    expected, exact = engine.WAYS["loop"](Trials(model, F.cross_entropy, images, labels, shared, engine.cosine, rows))
    torch.testing.assert_close(values, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(slopes, exact, rtol=1e-8, atol=1e-10 * float(exact.abs().max()))


def test_the_shapes_choose_all_three_ways() -> None:
    """No way is dead code: a wide map of few channels, one of many, and a small map with many weights."""

    def chosen(channels: int, out: int, side: int, trials: int = 16, span: bool = True) -> type:
        layer = layers.Linear(
            torch.empty(trials, channels, side, side), None, torch.empty(out, channels, 3, 3), 0, None, padding=(1, 1)
        )
        return kinds.way(layer, trials, span)

    assert chosen(3, 12, 32) is kinds.Patches
    assert chosen(64, 128, 32) is kinds.Grouped
    assert chosen(256, 256, 4) is kinds.Ghost
    assert chosen(256, 256, 4, span=False) is kinds.Grouped  # other distances need every entry


def test_a_frozen_layer_is_passed_through() -> None:
    torch.manual_seed(0)
    network = NETWORKS["residual"]()
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not name.startswith(("body", "norm")))
    model = model_of(network).eval()
    images, labels, shared, rows = scene(model, [0, 1], 1)
    assert len(shared) == 3
    found = engine.WAYS["stacked"](Trials(model, F.cross_entropy, images, labels, shared, engine.cosine, rows))
    for a, b in zip(
        found,
        engine.WAYS["loop"](Trials(model, F.cross_entropy, images, labels, shared, engine.cosine, rows)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(128, 128)
        self.head = nn.Linear(128, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.dense(torch.tanh(self.dense(x.flatten(1)))))
        return found


class Scaled(nn.Module):
    """A parameter that no layer owns."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.head = nn.Linear(128, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.scale * x.flatten(1))
        return found


class Overwritten(nn.Module):
    """A convolution whose input is overwritten after it ran; autograd itself refuses that, but not without a record."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
        self.head = nn.Linear(128, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.first(x))
        z = self.second(y)
        y.mul_(2)
        found: Tensor = self.head((y + z).flatten(1))
        return found


class Twice(nn.Module):
    """A layer's weight that is also used beside the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(128, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(torch.tanh(x.flatten(1) * self.head.weight[0]))
        return found


@pytest.mark.parametrize("network", [Tied, Scaled, Overwritten, Twice])
def test_what_cannot_be_followed_is_refused(network: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = model_of(network()).eval()
    images, labels, shared, rows = scene(model, [0, 1], 1)
    with pytest.raises(Unsupported):
        engine.WAYS["stacked"](Trials(model, F.cross_entropy, images, labels, shared, engine.cosine, rows))


class Coupled(nn.Module):
    """Centres over the whole batch, so that trials in one pass would see each other."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(128, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.tanh(x.flatten(1))
        found: Tensor = self.head(flat - flat.mean(0, keepdim=True))
        return found


@pytest.mark.parametrize("network", [Tied, Scaled, Coupled, lambda: nn.Sequential(nn.Dropout(), then_dense(width=128))])
def test_match_falls_back_where_a_stack_would_be_wrong(network: Callable[[], nn.Module], ways: list[str]) -> None:
    """Trials that see each other, and dropout, are found by the check; the result is the loop's."""
    torch.manual_seed(0)
    model = model_of(network())
    images, labels, shared, rows = scene(model, [0, 1, 1], 2)
    with in_mode(model, "train"):
        _, slopes = engine.match(model, F.cross_entropy, images, labels, shared, engine.cosine, rows)
        assert ways[-1] in ("loop", "vectorised")
        if not any(isinstance(m, nn.Dropout) for m in model.modules()):
            _, exact = engine.WAYS["loop"](Trials(model, F.cross_entropy, images, labels, shared, engine.cosine, rows))
            torch.testing.assert_close(slopes, exact, rtol=1e-8, atol=1e-12)


def test_match_takes_the_stack_and_a_loss_without_vmap(ways: list[str]) -> None:
    """A loss that branches on its values is taken trial by trial."""

    def branching(logits: Tensor, labels: Tensor) -> Tensor:
        loss = F.cross_entropy(logits, labels)
        return 2 * loss if float(loss.detach()) > 0.5 else loss

    torch.manual_seed(0)
    model = model_of(NETWORKS["pooled"]()).eval()
    images, labels, shared, rows = scene(model, [0, 1, 1], 2)
    for loss in (F.cross_entropy, branching):
        _, slopes = engine.match(model, loss, images, labels, shared, engine.cosine, rows)
        assert ways[-1] == "stacked"
        _, exact = engine.WAYS["loop"](Trials(model, loss, images, labels, shared, engine.cosine, rows))
        torch.testing.assert_close(slopes, exact, rtol=1e-8, atol=1e-12)


def test_a_loss_that_holds_a_parameter_is_refused() -> None:
    model = model_of(NETWORKS["pooled"]()).eval()

    def decayed(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels) + 1e-4 * sum(p.square().sum() for p in model.parameters())

    images, labels, shared, rows = scene(model, [0, 1], 1)
    with pytest.raises(Unsupported, match="not followed"):
        engine.WAYS["stacked"](Trials(model, decayed, images, labels, shared, engine.cosine, rows))


@pytest.mark.parametrize("distance", DISTANCES)
def test_parameters_that_nothing_uses_have_no_gradient(distance: str) -> None:
    """Even where noise was shared for them; one of them has no dimensions."""
    network = NETWORKS["pooled"]()
    network.register_parameter("unused", nn.Parameter(torch.ones(())))
    model = model_of(network).eval()
    arguments = scene(model, [0, 1, 1], 2)
    images, labels, shared, rows = arguments
    found = engine.WAYS["stacked"](Trials(model, F.cross_entropy, images, labels, shared, DISTANCES[distance], rows))
    exact = engine.WAYS["loop"](Trials(model, F.cross_entropy, images, labels, shared, DISTANCES[distance], rows))
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12)
