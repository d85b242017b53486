"""The client: what it shares is the mean gradient, the stages act in order, and the truth stays behind."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import pytest
import torch
from torch import Tensor, nn

from leakaudit.engine import matching as engine
from leakaudit.engine.stacked import Trials
from leakaudit.errors import UserError
from leakaudit.protocol.client import SharedUpdate, release, share
from leakaudit.protocol.defense import Chain, Defense, chain
from leakaudit.protocol.exposure import PRESETS, Exposure
from leakaudit.protocol.gradients import (
    Gradients,
    example_gradients,
    fast_example_gradients,
    in_mode,
    mean_gradient,
    with_parameters,
)
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.result.adversary import GRANTED, WORDS

LOSS = nn.functional.cross_entropy


def records(n: int = 6) -> Records:
    g = torch.Generator().manual_seed(1)
    return Records(torch.rand(n, 1, 6, 6, generator=g), torch.arange(n) % 3)


def model(*, norm: bool = False) -> PixelModel:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, padding=1), *([nn.BatchNorm2d(4)] if norm else []), nn.Tanh(), nn.Flatten()]
    return PixelModel(nn.Sequential(*layers, nn.Linear(144, 3)), (0.5,), (0.25,))


def shared(net: PixelModel, defense: Defense, exposure: Exposure | None = None, **kwargs: object) -> SharedUpdate:
    settings: dict[str, object] = {"batch_size": 2, "classes": 3, "mode": "eval"} | kwargs
    return share(
        net,
        LOSS,
        records(),
        defense,
        exposure or Exposure(),
        generator=torch.Generator().manual_seed(0),
        **settings,  # type: ignore[arg-type]
    )


def test_update_is_the_mean_gradient_against_float64_finite_differences() -> None:
    net = model().double()
    data = records()
    update = share(
        net, LOSS, Records(data.images.double(), data.labels), Defense(), Exposure(),
        batch_size=2, classes=3, mode="eval", generator=torch.Generator(),
    )  # fmt: skip
    weight = net.network[0].weight
    x, y = data.images[2:4].double(), data.labels[2:4]
    for index in ((0, 0, 0, 0), (3, 0, 2, 1)):
        ends = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                weight[index] += step
                ends.append(float(LOSS(net(x), y)))
                weight[index] -= step
        position = update.names.index("network.0.weight")
        assert float(update.gradients[position][1][index]) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5)


def test_victims_are_stacked_in_order_and_do_not_touch_each_other() -> None:
    whole = shared(model(), Defense())
    alone = share(
        model(), LOSS, records()[slice(2, 4)], Defense(), Exposure(),
        batch_size=2, classes=3, mode="eval", generator=torch.Generator(),
    )  # fmt: skip
    assert whole.victims == 3
    for a, b in zip(whole.gradients, alone.gradients, strict=True):
        torch.testing.assert_close(a[1], b[0])


@dataclass(frozen=True, kw_only=True)
class Halve(Defense):
    def transform_update(self, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
        return tuple(g / 2 for g in gradients)


@dataclass(frozen=True, kw_only=True)
class AddOne(Defense):
    def transform_update(self, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
        return tuple(g + 1 for g in gradients)


@dataclass(frozen=True, kw_only=True)
class FirstExampleOnly(Defense):
    def transform_example_gradients(self, gradients: Gradients, generator: torch.Generator) -> Gradients:
        return tuple(g * torch.eye(2)[0].reshape(2, *[1] * (g.ndim - 1)) for g in gradients)


def test_chain_applies_left_to_right() -> None:
    plain, update = shared(model(), Defense()), shared(model(), chain(Halve(), AddOne()))
    for g, seen in zip(plain.gradients, update.gradients, strict=True):
        torch.testing.assert_close(seen, g / 2 + 1)
    assert isinstance(chain(), Chain)
    for g, seen in zip(plain.gradients, shared(model(), chain()).gradients, strict=True):
        torch.testing.assert_close(seen, g)


def test_per_example_stage_sees_each_example() -> None:
    update = shared(model(), FirstExampleOnly())
    first = share(
        model(), LOSS, records()[[0, 2, 4]], Defense(), Exposure(),
        batch_size=1, classes=3, mode="eval", generator=torch.Generator(),
    )  # fmt: skip
    for seen, g in zip(update.gradients, first.gradients, strict=True):
        torch.testing.assert_close(seen, g / 2)


def test_every_fact_about_the_adversary_has_words() -> None:
    facts = {f.name for f in fields(Exposure)}
    assert set(GRANTED) == facts - {"released"}  # which no preset grants
    assert set(WORDS) == facts | {"preset", "rounds"}  # older results name the rounds
    assert not any(granted - set(GRANTED) for granted in (each.facts() for each in PRESETS.values()))


def test_nothing_is_granted_that_is_not_exposed() -> None:
    update = shared(model(norm=True), Halve(), Exposure(), auxiliary=records())
    granted = {"labels", "buffers", "defense", "auxiliary", "released"}
    assert all(getattr(update, name) is None for name in granted)
    everything = Exposure(labels=True, buffers=True, defense=True, auxiliary=True, released=True)
    update = shared(model(norm=True), Halve(), everything, auxiliary=records())
    assert all(getattr(update, name) is not None for name in granted)


def test_an_update_carries_no_tensor_of_the_private_pictures() -> None:
    """The type an attack gets cannot reach the truth: no field holds the records, by value or by storage."""
    update, truth = shared(model(norm=True), Defense(), Exposure(buffers=True, defense=True)), records()
    for field in fields(update):
        value = getattr(update, field.name)
        tensors = (
            [value]
            if isinstance(value, Tensor)
            else [t for t in (value or ()) if isinstance(t, Tensor)]
            if (isinstance(value, tuple))
            else []
        )
        for tensor in tensors:
            assert tensor.numel() != truth.images.numel() or not torch.equal(tensor.flatten(), truth.images.flatten())


def test_mode_and_batchnorm_statistics_are_restored() -> None:
    net = model(norm=True)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    update = shared(net, Defense(), Exposure(buffers=True), mode="train")
    for key, value in net.state_dict().items():
        torch.testing.assert_close(value, before[key])
    assert net.training
    assert update.buffers is not None
    assert not torch.equal(update.buffers[0]["network.1.running_mean"], before["network.1.running_mean"])


def test_in_mode_restores_after_an_error() -> None:
    net = model(norm=True).eval()
    with pytest.raises(RuntimeError), in_mode(net, "train"):
        raise RuntimeError
    assert not any(m.training for m in net.modules())


def test_batchnorm_in_train_mode_on_one_value_is_a_sentence() -> None:
    net = PixelModel(nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)))
    with pytest.raises(UserError, match="--mode eval or a larger --batch-size"):
        shared(net, Defense(), mode="train", batch_size=1)


@dataclass(frozen=True, kw_only=True)
class Noise(Defense):
    def transform_records(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return images + torch.randn(images.shape, generator=generator), labels


def test_released_records_stay_in_range_and_depend_on_the_generator_alone() -> None:
    first, again, other = (release(Noise(), records(), torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)
    assert float(first.images.min()) >= 0
    assert float(first.images.max()) <= 1


def test_replace_keeps_an_update_frozen() -> None:
    update = shared(model(), Defense())
    with pytest.raises(AttributeError):
        update.batch_size = 3  # type: ignore[misc]
    assert replace(update, batch_size=1).batch_size == 1


def twice() -> PixelModel:
    """A model that holds one convolution at two places."""
    torch.manual_seed(0)
    layer = nn.Conv2d(1, 1, 3, padding=1)
    layers = (layer, nn.Tanh(), layer, nn.Flatten(), nn.Linear(36, 3))
    return PixelModel(nn.Sequential(*layers), (0.5,), (0.25,)).double().eval()


def test_other_parameters_are_used_at_every_place_and_the_very_same_come_back() -> None:
    net, data = twice(), records().images.double()
    mine, before = list(net.parameters()), net(data)
    with with_parameters(net, mine, [p + 0.1 for p in mine]):
        moved = net(data)
    assert all(a is b for a, b in zip(mine, net.parameters(), strict=True))
    assert all(m.weight is mine[0] for m in net.network.modules() if isinstance(m, nn.Conv2d))
    assert torch.equal(net(data), before)
    with torch.no_grad():
        for p in mine:
            p += 0.1
    torch.testing.assert_close(net(data), moved)
    with pytest.raises(ZeroDivisionError), with_parameters(net, mine, [p * 2 for p in mine]):
        raise ZeroDivisionError
    assert all(a is b for a, b in zip(mine, net.parameters(), strict=True))


def test_matching_leaves_a_module_used_twice_as_it_was() -> None:
    net, data = twice(), records(2)
    mine = list(net.parameters())
    stacked = tuple(g[None] for g in mean_gradient(net, LOSS, data.images.double(), data.labels))
    guesses = torch.rand((2, 2, 1, 6, 6), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    arguments = (net, LOSS, guesses, data.labels.expand(2, -1), stacked, engine.cosine, torch.tensor([0, 0]))
    values, slopes = engine.WAYS["vectorised"](Trials(*arguments))
    assert all(a is b and type(b) is nn.Parameter for a, b in zip(mine, net.parameters(), strict=True))
    assert net.network[0].weight is net.network[2].weight is mine[0]
    expected, exact = engine.WAYS["loop"](Trials(*arguments))
    torch.testing.assert_close(values, expected)
    assert float((slopes - exact).norm() / exact.norm()) < 1e-4


def test_fast_example_gradients_leave_a_module_used_twice_as_it_was() -> None:
    net, data = twice(), records(3)
    mine, images = list(net.parameters()), data.images.double()
    found = fast_example_gradients()(net, LOSS, images, data.labels)
    assert all(a is b and type(b) is nn.Parameter for a, b in zip(mine, net.parameters(), strict=True))
    assert net.network[0].weight is net.network[2].weight is mine[0]
    for fast, exact in zip(found, example_gradients(net, LOSS, images, data.labels), strict=True):
        torch.testing.assert_close(fast, exact)
