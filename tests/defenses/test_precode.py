"""PRECODE: its gradient is that of ℓ + β·KL, it draws where gradients are taken, and the engine is right through it."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakaudit.defenses.precode import Bottleneck, Precode, bottlenecks, with_noise
from leakaudit.engine import matching as engine
from leakaudit.engine.recording import Unsupported
from leakaudit.engine.stacked import Trials
from leakaudit.errors import UserError
from leakaudit.protocol.gradients import example_gradients, fast_example_gradients, mean_gradient, parameters_of
from leakaudit.protocol.target import PixelModel, Records, Target, reinitialised
from leakaudit.score.measures import accuracy

BETA = 0.5  # large, so that what a wrong weight of the KL does is seen


def plain() -> PixelModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(16, 3))
    return PixelModel(network, [0.4], [0.25])


def defended() -> tuple[PixelModel, Bottleneck]:
    model = Precode(bottleneck=6, beta=BETA).transform_model(plain(), torch.Generator().manual_seed(1))
    (inserted,) = bottlenecks(model).values()
    return model, inserted


def batch(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.rand((count, 1, 4, 4), generator=generator), torch.arange(count) % 3


def close(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> bool:
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(found, wanted, strict=True))


def penalised(model: PixelModel, x: Tensor, y: Tensor, noise: Tensor, create_graph: bool = False) -> tuple[Tensor, ...]:
    """The gradient of CE + β·KL written out, without the module's own way."""
    inserted = next(iter(bottlenecks(model).values()))
    *body, _ = model.network  # type: ignore[misc]
    h = (x - model.mean) / model.std
    for layer in body:
        h = layer(h)
    mean, raw = inserted.encoder(h).split(6, 1)
    deviation = F.softplus(raw) + 1e-6
    logits = inserted.head(inserted.decoder(mean + deviation * noise))
    prior, posterior = torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(mean, deviation)
    kl = torch.distributions.kl_divergence(posterior, prior).sum(1).mean()
    return torch.autograd.grad(
        F.cross_entropy(logits, y) + BETA * kl, parameters_of(model)[1], create_graph=create_graph
    )


def test_the_gradient_is_that_of_the_loss_and_the_divergence(generator: torch.Generator) -> None:
    (model, inserted), (x, y) = defended(), batch(5, generator)
    noise = torch.randn((5, 6), generator=generator)
    with with_noise(inserted, noise):
        found = mean_gradient(model, F.cross_entropy, x, y)
    assert close(found, penalised(model, x, y, noise))
    inserted.beta = 0.0
    with with_noise(inserted, noise):
        assert not close(mean_gradient(model, F.cross_entropy, x, y), found)


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_it_draws_where_gradients_are_taken_and_only_there(mode: bool, generator: torch.Generator) -> None:
    (model, inserted), (x, _) = defended(), batch(4, generator)
    model.train(mode)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, second = model(x), model(x)
        torch.manual_seed(0)
        assert torch.equal(model(x), first)
        assert not torch.equal(first, second)
        assert not torch.equal(first[0] - first[1], first[2] - first[3])
        with torch.no_grad():
            state = torch.get_rng_state()
            mean = model(x)
            assert torch.equal(model(x), mean)
            assert torch.equal(state, torch.get_rng_state())
        with with_noise(inserted, torch.zeros(6)):
            assert torch.equal(model(x), mean)
        many = torch.stack([model(x) for _ in range(3000)]).mean(0)
    assert torch.allclose(many, mean, atol=0.05)  # the decoder and the head are linear


def test_accuracy_is_that_of_the_mean(generator: torch.Generator) -> None:
    (model, _), (x, y) = defended(), batch(30, generator)
    assert accuracy(model, Records(x, y)) == accuracy(model, Records(x, y))


@pytest.mark.parametrize("each", [example_gradients, fast_example_gradients()], ids=["looped", "fast"])
def test_per_example_gradients_add_up_to_the_batch(each, generator: torch.Generator) -> None:
    (model, inserted), (x, y) = defended(), batch(4, generator)
    noise = torch.randn(6, generator=generator)
    with with_noise(inserted, noise):
        whole = mean_gradient(model, F.cross_entropy, x, y)
        single = each(model, F.cross_entropy, x, y)
    assert close(tuple(g.mean(0) for g in single), whole)


def test_per_example_gradients_draw_for_each_record(generator: torch.Generator) -> None:
    (model, _), (x, _) = defended(), batch(1, generator)
    with torch.random.fork_rng(devices=[]):
        found = fast_example_gradients()(model, F.cross_entropy, x.expand(2, 1, 4, 4), torch.tensor([1, 1]))
    assert not torch.equal(found[0][0], found[0][1])


@pytest.mark.parametrize("trials", [1, 4])
@pytest.mark.parametrize("records", [1, 3])
@pytest.mark.parametrize("way", ["stacked", "loop"])
def test_every_way_of_the_engine_finds_the_second_derivative(
    way: str, records: int, trials: int, generator: torch.Generator
) -> None:
    model, inserted = defended()
    x, y = torch.rand((trials, records, 1, 4, 4), generator=generator), torch.arange(trials * records) % 3
    y = y.view(trials, records)
    noise = torch.randn((trials, 6), generator=generator)
    stack = tuple(torch.randn((trials, *p.shape), generator=generator) for p in parameters_of(model)[1])
    wanted = []
    for picture, label, drawn, *shared in zip(x, y, noise, *stack, strict=True):
        there = picture.clone().requires_grad_(True)
        found = penalised(model, there, label, drawn, create_graph=True)
        norms = engine.inner(found, found).sqrt() * engine.inner(shared, shared).sqrt()
        wanted.append(torch.autograd.grad(1 - engine.inner(found, shared) / norms, there)[0])

    def drawing(rows: Tensor) -> AbstractContextManager[None]:
        assert rows.shape in {(records,), (trials * records,)}
        return with_noise(inserted, noise[rows])

    job = Trials(model, F.cross_entropy, x, y, stack, engine.cosine, torch.arange(trials), drawing)
    _, slopes = engine.WAYS[way](job)
    exact = torch.stack(wanted)
    assert float((slopes - exact).norm() / exact.norm()) < 1e-4


def test_what_cannot_tell_the_derivatives_apart_raises(generator: torch.Generator) -> None:
    (model, _), x = defended(), torch.rand((2, 1, 1, 4, 4), generator=generator)
    shared = tuple(torch.randn((1, *p.shape), generator=generator) for p in parameters_of(model)[1])
    job = (model, F.cross_entropy, x, torch.tensor([[0], [1]]), shared, engine.cosine, torch.zeros(2, dtype=torch.long))
    with pytest.raises(RuntimeError):
        engine.WAYS["vectorised"](Trials(*job))
    with pytest.raises(Unsupported, match="all its trials"):
        engine.WAYS["vectorised"](Trials(*job, around=lambda rows: nullcontext()))


def test_the_engine_gives_up_ways_that_draw_differently(generator: torch.Generator, ways: list[str]) -> None:
    model, _ = defended()
    x, y = torch.rand((3, 1, 1, 4, 4), generator=generator), torch.tensor([[0], [1], [2]])
    shared = tuple(torch.randn((3, *p.shape), generator=generator) for p in parameters_of(model)[1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        engine.match(model, F.cross_entropy, x, y, shared, engine.cosine)
    assert ways[-1] == "loop"


def test_the_first_gradient_cannot_be_matched_by_the_record_itself(generator: torch.Generator) -> None:
    (model, _), (x, y) = defended(), batch(1, generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, second = (mean_gradient(model, F.cross_entropy, x, y) for _ in range(2))
    assert float(engine.cosine(first, second)[0]) > 1e-3


def test_it_survives_copies_and_fresh_weights(generator: torch.Generator) -> None:
    (model, inserted), (x, _) = defended(), batch(2, generator)
    twin, fresh = copy.deepcopy(model), reinitialised(model, 7)
    with torch.no_grad():
        assert torch.equal(twin(x), model(x))
    (other,) = bottlenecks(fresh).values()
    assert not torch.equal(other.encoder.weight, inserted.encoder.weight)
    assert not torch.equal(other.decoder.weight, inserted.decoder.weight)


def test_the_target_keeps_its_own_network() -> None:
    model = plain()
    before = [p.clone() for p in model.parameters()]
    changed = Precode().transform_model(model, torch.Generator().manual_seed(0))
    again = Precode().transform_model(model, torch.Generator().manual_seed(0))
    assert not bottlenecks(model)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(changed.parameters(), again.parameters(), strict=True))
    (inserted,) = bottlenecks(changed).values()
    assert inserted.decoder.in_features == 256
    assert torch.equal(inserted.head.weight, model.network[3].weight)  # type: ignore[index,union-attr]


def test_the_head_is_the_last_dense_layer_at_work_not_by_name(generator: torch.Generator) -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = nn.Linear(8, 3), nn.Linear(16, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x.flatten(1)).relu())  # type: ignore[no-any-return]

    records = Records(*batch(6, generator))
    target = Target("b", PixelModel(Backwards()), F.cross_entropy, records, records, records, ("a", "b", "c"))
    ready = Precode().fit(target, generator)
    changed = ready.transform_model(target.model, generator)
    assert list(bottlenecks(changed)) == ["network.head"]
    assert all(name.startswith("network.head.") for name in ready.touched(changed, records.images))
    bare = replace(target, model=PixelModel(nn.Sequential(nn.Conv2d(1, 3, 4), nn.Flatten())))
    with pytest.raises(UserError, match="dense layer"):
        Precode().fit(bare, generator)
