"""Peeling: what fires alone is found, with its label; what does not peel is not claimed; one record is `analytic`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from leakaudit.attacks.analytic import Analytic
from leakaudit.attacks.peeling import Peeling
from leakaudit.errors import NotApplicable
from leakaudit.protocol.attack import Reconstruction
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.exposure import Exposure
from leakaudit.protocol.registry import parse_defense
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.score.metrics import assign, psnr
from tests.attacks.attack_scenes import conv_model, records, seeded, shared_update

SHAPE, CLASSES, EXACT = (1, 8, 8), 10, 60.0  # dB: no better than an eighth of a grey level


def wide(units: int = 256, share: float = 0.06, act: type[nn.Module] = nn.ReLU, classes: int = CLASSES) -> PixelModel:
    """A dense net whose first units fire on so large a share of pictures."""
    network = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, units), act(), nn.Linear(units, classes)))
    model = PixelModel(network, [0.4], [0.25])
    seen = records(300, SHAPE, classes, seed=7).images
    with torch.no_grad():
        first: nn.Linear = network[1]  # type: ignore[index, assignment]
        first.bias.copy_(-((seen - 0.4) / 0.25).flatten(1).matmul(first.weight.T).quantile(1 - share, dim=0))
    return model


def pictures(count: int, seed: int, classes: int = CLASSES) -> Records:
    """Return records of which none is a mixture of the others, as the smooth ones with their nine numbers are."""
    smooth = records(count, SHAPE, classes, seed)
    noise = torch.rand(smooth.images.shape, generator=torch.Generator().manual_seed(seed))
    return replace(smooth, images=0.7 * smooth.images + 0.3 * noise)


def alone(model: PixelModel, private: Records, batch: int, units: int = 1) -> Tensor:
    """Return which records (N,) are, by the truth, the only one of their batch that fires so many units."""
    first = model.network[1]  # type: ignore[index]
    with torch.no_grad():
        before = first(((private.images - model.mean) / model.std).flatten(1))
    fires = (before > 0).view(-1, batch, before.shape[1])
    return (fires & (fires.sum(1, keepdim=True) == 1)).sum(2).flatten() >= units


def attacked(model: PixelModel, update: SharedUpdate) -> Reconstruction:
    return Peeling()(model, update, torch.Generator().manual_seed(5))


def compared(found: Reconstruction, private: Records) -> tuple[Tensor, Tensor]:
    """Return the PSNR (N,) of each record's picture, and whether the label beside it is right."""
    assert found.images is not None
    assert found.labels is not None
    scores, right = [], []
    for v, (pictures, labels) in enumerate(zip(found.images, found.labels, strict=True)):
        own = private[slice(v * len(labels), (v + 1) * len(labels))]
        order = assign(own.images, pictures)
        scores.append(psnr(own.images, pictures[order]))
        right.append(labels[order] == own.labels)
    return torch.cat(scores), torch.cat(right)


def told(found: Reconstruction) -> int:
    return int(found.notes[0].split()[0])


def test_at_least_what_fires_alone_is_rebuilt_with_its_label() -> None:
    model, private = wide(), pictures(64, seed=1)
    update = shared_update(model, private, exposure=Exposure(), batch_size=16, classes=CLASSES)
    found = attacked(model, update)
    scores, right = compared(found, private)
    single = alone(model, private, 16)
    assert 32 < int(single.sum()) < 64
    assert bool((scores[single] > 100).all())
    assert bool(right[single].all())
    assert told(found) == int((scores > EXACT).sum()) >= int(single.sum())
    assert found.statuses == ("converged",) * 4


def test_records_that_depend_on_each_other_take_several_rows() -> None:
    model, private = wide(), records(32, SHAPE, CLASSES, seed=1)  # mixtures of nine pictures, in batches of 16
    found = attacked(model, shared_update(model, private, exposure=Exposure(), batch_size=16, classes=CLASSES))
    scores, _ = compared(found, private)
    single = alone(model, private, 16, units=3)
    assert int(single.sum()) > 8
    assert bool((scores[single] > 100).all())
    assert told(found) == int((scores > EXACT).sum())


def test_batches_of_a_plain_net_peel_whole_and_leave_nothing() -> None:
    model, private = wide(128, 0.5), pictures(12, seed=2)
    update = shared_update(model, private, exposure=Exposure(), batch_size=3, classes=CLASSES)
    found = attacked(model, update)
    assert told(found) == 12
    assert float(compared(found, private)[0].min()) > 100
    norms = update.gradients[0].flatten(1).norm(dim=1)
    assert bool((found.objective < 1e-4 * norms).all())


@pytest.mark.parametrize("spec", ["clip:max_norm=0.01", "dp-sgd:noise_multiplier=1e-12:max_norm=0.1"])
def test_a_factor_on_the_update_or_on_each_record_hides_nothing(spec: str) -> None:
    model, private = wide(128, 0.5), pictures(9, seed=3)
    update = shared_update(model, private, defense=parse_defense(spec), batch_size=3, classes=CLASSES)
    assert float(compared(attacked(model, update), private)[0].min()) > EXACT


def test_the_same_record_twice_fills_two_slots() -> None:
    model, some = wide(128, 0.5), pictures(3, seed=4)
    private = some[[0, 1, 0, 2]]
    found = attacked(model, shared_update(model, private, exposure=Exposure(), batch_size=4, classes=CLASSES))
    scores, right = compared(found, private)
    assert told(found) == 4
    assert float(scores.min()) > EXACT
    assert bool(right.all())


def test_two_classes_and_probabilities_as_labels() -> None:
    model, private = wide(128, 0.3, classes=2), pictures(8, 5, 2)
    update = shared_update(model, private, exposure=Exposure(), batch_size=4, classes=2)
    assert float(compared(attacked(model, update), private)[0].min()) > EXACT
    mixed = replace(private, labels=torch.tensor([[0.7, 0.3], [0.2, 0.8]] * 4))
    update = shared_update(model, mixed, exposure=Exposure(labels=True), batch_size=4, classes=2)
    assert told(attacked(model, update)) == 8


def test_leaky_units_give_near_pictures_that_are_solved_together() -> None:
    model, private = wide(256, 0.3, nn.LeakyReLU), pictures(8, seed=6)
    found = attacked(model, shared_update(model, private, exposure=Exposure(), batch_size=4, classes=CLASSES))
    assert told(found) == int((compared(found, private)[0] > EXACT).sum()) >= 4


@pytest.mark.parametrize(
    ("act", "spec"),
    [(nn.Sigmoid, "none"), (nn.ReLU, "gaussian:std=1"), (nn.ReLU, "sign"), (nn.ReLU, "prune:sparsity=0.99")],
)
def test_what_does_not_peel_is_not_claimed(act: type[nn.Module], spec: str) -> None:
    model, private = wide(128, 0.3, act), pictures(8, seed=7)
    found = attacked(model, shared_update(model, private, defense=parse_defense(spec), batch_size=4, classes=CLASSES))
    assert told(found) == 0
    assert found.statuses == ("converged",) * 2
    assert found.images is not None
    assert found.images.isfinite().all()


def test_one_record_is_the_closed_form_bit_for_bit() -> None:
    model, private = wide(), pictures(6, seed=8)
    update = shared_update(model, private, classes=CLASSES)
    found = attacked(model, update)
    plain = Analytic()(model, update, torch.Generator().manual_seed(5))
    assert found.images is not None
    assert plain.images is not None
    assert torch.equal(found.images, plain.images)
    assert found.statuses == plain.statuses
    assert not found.notes


def test_of_one_pruned_record_the_entries_that_are_left_suffice() -> None:
    model, private = wide(64, 0.5), pictures(6, seed=8)
    update = shared_update(model, private, defense=parse_defense("prune:sparsity=0.6"), classes=CLASSES)
    plain = Analytic()(model, update, torch.Generator().manual_seed(5))
    better = compared(attacked(model, update), private)[0] - compared(plain, private)[0]
    assert float(better.min()) >= 0
    assert float(better.median()) > 1


def test_a_bias_gradient_of_zeros_beside_others_is_diverged() -> None:
    model, private = wide(), pictures(8, seed=9)
    for attack, batch in ((Peeling(), 4), (Analytic(), 1)):
        update = shared_update(model, private, batch_size=batch, classes=CLASSES)
        place = update.names.index("network.1.bias")
        gradients = tuple(torch.zeros_like(g) if i == place else g for i, g in enumerate(update.gradients))
        found = attack(model, replace(update, gradients=gradients), torch.Generator().manual_seed(5))
        assert set(found.statuses) == {"diverged"}
        assert found.reason


def test_a_convolution_is_refused_by_name() -> None:
    update = shared_update(conv_model(), records(4, SHAPE, 3, seed=1), batch_size=2)
    with pytest.raises(NotApplicable, match="the first layer is Conv2d, not dense"):
        attacked(conv_model(), update)
