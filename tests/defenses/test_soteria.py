"""Soteria: the mask by its formula, what is shared, which layer, and that it needs one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakaudit.defenses.soteria import Soteria, defended_layer, jacobian_norms, kept_columns
from leakaudit.errors import UserError
from leakaudit.protocol.client import defended_gradient
from leakaudit.protocol.gradients import mean_gradient, parameters_of
from leakaudit.protocol.registry import parse_defense
from leakaudit.protocol.target import PixelModel, Records, Target


def network(*layers: nn.Module, seed: int = 0) -> PixelModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in layers:
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
    return PixelModel(nn.Sequential(*layers), [0.4], [0.25])


def convolutional() -> PixelModel:
    return network(
        nn.Conv2d(1, 4, 3, padding=1), nn.Sigmoid(), nn.Flatten(), nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 3)
    )


def pictures(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand((count, 1, 4, 4), generator=generator)


def test_the_norms_are_those_of_the_jacobian(generator: torch.Generator) -> None:
    model, x = convolutional(), pictures(2, generator).requires_grad_(True)
    given = defended_layer(model, x).given
    exact = torch.stack(
        [
            torch.stack([torch.autograd.grad(given[i, f], x, retain_graph=True)[0][i].norm() for f in range(64)])
            for i in range(2)
        ]
    )
    estimated = jacobian_norms(given, x, 4000, generator)
    assert float(((estimated - exact) / exact).abs().max()) < 0.1


def test_the_columns_left_out_are_those_of_least_quotient() -> None:
    representation = torch.tensor([[1.0, -4.0, 2.0, 0.0, 0.5]])
    norms = torch.tensor([[1.0, 2.0, 4.0, 0.0, 0.1]])  # quotients 1, 0.5, 2, none, 0.2
    assert kept_columns(representation, norms, 25).tolist() == [True, True, True, True, False]
    assert kept_columns(representation, norms, 50).tolist() == [True, False, True, True, False]
    assert kept_columns(representation, norms, 100).tolist() == [False, False, False, True, False]
    assert kept_columns(representation, norms, 0).all()


def test_a_dead_unit_of_one_record_does_not_hide_the_quotient_of_the_batch() -> None:
    representation, norms = torch.tensor([[0.0, 1.0], [4.0, 1.0]]), torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    assert kept_columns(representation, norms, 50).tolist() == [False, True]  # 1/4 and 2/2


@pytest.mark.parametrize("batch", [1, 3])
def test_only_the_masked_columns_of_one_weight_change(batch: int, generator: torch.Generator) -> None:
    model, x, y = convolutional(), pictures(batch, generator), torch.arange(batch)
    plain = mean_gradient(model, F.cross_entropy, x, y)
    shared = defended_gradient(model, F.cross_entropy, x, y, Soteria(percentile=75), generator)
    names = parameters_of(model)[0]
    for name, before, after in zip(names, plain, shared, strict=True):
        if name != "network.3.weight":
            assert torch.equal(before, after), name
            continue
        missing = (after == 0).all(0)
        assert int(missing.sum()) == 48
        assert torch.equal(after[:, ~missing], before[:, ~missing])


def test_it_leaves_the_model_as_it_was(generator: torch.Generator) -> None:
    model = network(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(16, 3)).train()
    before = {name: b.clone() for name, b in model.named_buffers()}
    state = torch.get_rng_state()
    Soteria().observe(model, pictures(4, generator), torch.zeros(4, dtype=torch.long), generator)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())
    assert torch.equal(state, torch.get_rng_state())


def test_the_layer_is_the_first_one_fed_a_representation(generator: torch.Generator) -> None:
    x = pictures(2, generator)
    dense = network(nn.Flatten(), nn.Linear(16, 8), nn.Sigmoid(), nn.Linear(8, 6), nn.Sigmoid(), nn.Linear(6, 3))
    assert defended_layer(convolutional(), x).name == "network.3"
    assert defended_layer(dense, x).name == "network.3"
    assert defended_layer(network(nn.Flatten(), nn.Linear(16, 3)), x).name == "network.1"
    assert Soteria().touched(dense, x) == {"network.3.weight", "network.3.bias"}


def test_unobserved_it_is_the_identity(generator: torch.Generator) -> None:
    gradients = (torch.randn(3, 4, generator=generator),)
    assert torch.equal(Soteria().transform_update(gradients, 1, generator)[0], gradients[0])


def test_it_observes_in_a_chain(generator: torch.Generator) -> None:
    model, x, y = convolutional(), pictures(1, generator), torch.tensor([1])
    chained = parse_defense("soteria:percentile=50,clip:max_norm=0.001")
    shared = defended_gradient(model, F.cross_entropy, x, y, chained, generator)
    assert int((shared[2] == 0).all(0).sum()) == 32
    assert float(torch.cat([g.flatten() for g in shared]).norm()) == pytest.approx(1e-3, rel=1e-4)
    assert chained.touched(model, x) == {"network.3.weight", "network.3.bias"}


def test_a_model_without_a_dense_layer_is_refused(generator: torch.Generator) -> None:
    model = network(nn.Conv2d(1, 3, 4), nn.Flatten())
    records = Records(pictures(4, generator), torch.arange(4) % 3)
    target = Target("bare", model, F.cross_entropy, records, records, records, ("a", "b", "c"))
    with pytest.raises(UserError, match="dense layer"):
        Soteria().fit(target, generator)
