"""Label rules against the labels that made the update."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from leakaudit.attacks._counting import Chances, Played, likeliest_counts, regressed
from leakaudit.attacks._labels import find_head, infer_labels, one_label, soft_labels
from leakaudit.errors import NotApplicable
from leakaudit.protocol.client import share
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.exposure import Exposure
from leakaudit.protocol.federation import parse_client
from leakaudit.protocol.registry import parse_attack, parse_defense
from leakaudit.protocol.target import PixelModel, Records
from tests.attacks.attack_scenes import conv_model, dense_model, records, seeded, shared_update

SHAPE = (1, 8, 8)
NOTHING = Exposure()


def without_bias(classes: int) -> PixelModel:
    network = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, classes, False)))
    return PixelModel(network, [0.4], [0.25])


def every_class(classes: int, seed: int = 0) -> Records:
    drawn = records(2 * classes, SHAPE, classes, seed)
    return Records(drawn.images, torch.arange(2 * classes) % classes)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("build", [dense_model, conv_model, None], ids=["dense", "conv", "no-bias"])
def test_one_record_is_always_told(build: object, classes: int, generator: torch.Generator) -> None:
    model = without_bias(classes) if build is None else build(SHAPE, classes)  # type: ignore[operator]
    private = every_class(classes)
    update = shared_update(model, private, exposure=NOTHING, classes=classes)
    assert update.labels is None
    assert infer_labels(model, update, generator).flatten().tolist() == private.labels.tolist()


class Tempered(nn.Module):
    """A classifier with a learned temperature: a parameter without dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.dense = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.scale * self.dense(x.flatten(1))
        return found


def test_parameters_without_dimensions_do_no_harm(generator: torch.Generator) -> None:
    model, private = PixelModel(seeded(Tempered), [0.4], [0.25]), every_class(4)
    update = shared_update(model, private, exposure=NOTHING, classes=4)
    found = parse_attack("labels")(model, update, generator)
    assert found.labels is not None
    assert found.statuses == ("converged",) * len(private)
    assert torch.equal(found.labels.flatten(), private.labels)


@pytest.mark.parametrize(
    "spec", ["prune:sparsity=0.9", "gaussian:std=0.05", "dp-sgd:noise_multiplier=0", "clip", "sign", "qsgd"]
)
def test_one_record_is_told_through_defenses(spec: str, generator: torch.Generator) -> None:
    model, private = conv_model(SHAPE, 10), every_class(10)
    update = shared_update(model, private, defense=parse_defense(spec), exposure=NOTHING, classes=10)
    found = infer_labels(model, update, generator).flatten()
    assert float((found == private.labels).float().mean()) >= 0.9


@pytest.mark.parametrize("classes", [3, 10])
def test_signs_tell_one_record_without_a_bias(classes: int, generator: torch.Generator) -> None:
    model, private = without_bias(classes), every_class(classes)
    update = shared_update(model, private, defense=parse_defense("sign"), exposure=NOTHING, classes=classes)
    assert infer_labels(model, update, generator).flatten().tolist() == private.labels.tolist()


def test_the_sign_rule_on_a_gradient_by_hand() -> None:
    softmax, h = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([1.0, -2.0, 0.5])
    for label in range(3):
        error = softmax - torch.eye(3)[label]
        assert int(one_label(torch.outer(error, h), error, h)) == label
        assert int(one_label(torch.outer(error, h), None, -h)) == label  # without a bias h may point anywhere


@pytest.mark.parametrize("auxiliary", [True, False])
@pytest.mark.parametrize("build", [conv_model, None], ids=["conv", "no-bias"])
def test_a_batch_is_counted_with_repeats(build: object, auxiliary: bool, generator: torch.Generator) -> None:
    classes, batch = 5, 8
    model = without_bias(classes) if build is None else build(SHAPE, classes)  # type: ignore[operator]
    private = records(4 * batch, SHAPE, classes, seed=5)
    update = shared_update(
        model,
        private,
        exposure=Exposure(auxiliary=auxiliary),
        classes=classes,
        batch_size=batch,
        auxiliary=records(40, SHAPE, classes, seed=6),
    )
    found = infer_labels(model, update, generator)
    assert found.shape == (4, batch)
    truth = private.labels.view(4, batch)
    right = sum(sum((Counter(a) & Counter(b)).values()) for a, b in zip(found.tolist(), truth.tolist(), strict=True))
    assert any(max(Counter(row).values()) > 1 for row in truth.tolist())
    assert right >= 0.8 * 4 * batch


class Apply(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def followed(end: str, classes: int, steps: int = 0) -> PixelModel:
    """A net whose last layer something follows, trained for `steps` steps until it is sure of the records."""
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    dense = [nn.Flatten(), nn.Linear(128, classes)]
    ends: dict[str, Callable[[], list[nn.Module]]] = {
        "none": lambda: dense,
        "log": lambda: [*dense, nn.LogSoftmax(1)],
        "softmax": lambda: [*dense, nn.Softmax(1)],
        "temperature": lambda: [*dense, Apply(lambda z: z / 0.25)],
        "convolution": lambda: [nn.Conv2d(8, classes, 1), *pool],
        "convolution, relu": lambda: [nn.Conv2d(8, classes, 1), nn.ReLU(), *pool],
        "convolution, softmax": lambda: [nn.Conv2d(8, classes, 1), *pool, nn.Softmax(1)],
        "wide convolution": lambda: [nn.Conv2d(8, classes, 4), nn.Flatten()],
        "frozen": lambda: [nn.Flatten(), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, classes).requires_grad_(False)],
    }

    def build() -> nn.Module:
        dense[1].reset_parameters()  # type: ignore[operator]
        return nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.LeakyReLU(0.2), *ends[end]())

    model, private = PixelModel(seeded(build), [0.4], [0.25]), every_class(classes)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(private.images), private.labels).backward()
        optimiser.step()
    return model


@pytest.mark.parametrize("steps", [0, 60])
@pytest.mark.parametrize(
    "end", ["log", "softmax", "temperature", "convolution", "convolution, softmax", "wide convolution", "frozen"]
)
def test_labels_are_told_through_what_follows_the_last_layer(end: str, steps: int, generator: torch.Generator) -> None:
    model, private = followed(end, 10, steps), every_class(10)
    for defense in (None, "clip"):
        chosen = parse_defense(defense) if defense else None
        update = shared_update(model, private, defense=chosen, exposure=NOTHING, classes=10)
        found = infer_labels(model, update, generator).flatten()
        # A clip changes a gradient's length, and with it where a Softmax's slopes stand: their direction remains.
        assert float((found == private.labels).float().mean()) >= (1 if defense is None else 0.8)


def test_an_activation_behind_the_last_convolution_leaves_the_sign(generator: torch.Generator) -> None:
    """What a true class whose map is dead shares is nothing: then its label is guessed."""
    model, private = followed("convolution, relu", 4, 60), every_class(4)
    update = shared_update(model, private, exposure=NOTHING, classes=4)
    alive = update.gradients[-1].amin(1) < 0
    assert int(alive.sum()) >= 6
    found = infer_labels(model, update, generator).flatten()
    assert torch.equal(found[alive], private.labels[alive])


@pytest.mark.parametrize("steps", [0, 60])
def test_a_log_softmax_changes_nothing_of_an_update_nor_of_what_is_read_off_it(
    steps: int, generator: torch.Generator
) -> None:
    plain, logged = followed("none", 10, steps), followed("log", 10)
    logged.load_state_dict(plain.state_dict())
    private = every_class(10)
    for batch in (1, 4):
        found = []
        for model in (plain, logged):
            update = shared_update(model, private, exposure=NOTHING, classes=10, batch_size=batch)
            found.append(infer_labels(model, update, torch.Generator().manual_seed(1)))
        assert torch.equal(*found)


def shared_of(found: Tensor, private: Records) -> float:
    truth = private.labels.view(found.shape)
    right = sum(sum((Counter(a) & Counter(b)).values()) for a, b in zip(found.tolist(), truth.tolist(), strict=True))
    return right / truth.numel()


@pytest.mark.parametrize("end", ["softmax", "temperature", "convolution", "convolution, softmax"])
def test_batches_are_counted_with_what_follows(end: str, generator: torch.Generator) -> None:
    model, private = followed(end, 5), records(32, SHAPE, 5, seed=5)
    own = records(60, SHAPE, 5, seed=6)
    update = shared_update(model, private, exposure=Exposure(auxiliary=True), classes=5, batch_size=8, auxiliary=own)
    assert shared_of(infer_labels(model, update, generator), private) >= 0.8


class Sum(nn.Module):
    """Two ways to the logits: no layer that all of them pass through."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
        self.other = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 4))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.one(x) + self.other(x)
        return found


def test_without_a_head_labels_are_guessed_one_by_one_or_jointly(generator: torch.Generator) -> None:
    model, private = PixelModel(seeded(Sum), [0.4], [0.25]), every_class(4)
    one = shared_update(model, private, exposure=NOTHING, classes=4)
    assert find_head(model, one, private.images) is None
    assert shared_of(infer_labels(model, one, generator), private) > 0.5
    several = shared_update(model, private, exposure=NOTHING, classes=4, batch_size=2)
    assert shared_of(infer_labels(model, several, generator), private) > 0.5
    for spec in ("idlg:steps=5", "dlg:steps=5", "inverting-gradients:steps=2"):
        found = parse_attack(spec)(model, several, generator)
        assert found.labels is not None
        assert found.labels.shape == (4, 2)
    with pytest.raises(NotApplicable, match="mixed label"):
        soft_labels(model, one, generator)


def test_another_loss_is_fitted_too(generator: torch.Generator) -> None:
    """Under a squared error the true class's slope need not be the least: the label is the one that fits."""

    def squared(logits: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.mse_loss(logits, nn.functional.one_hot(labels, logits.shape[1]).to(logits))

    model, private = conv_model(SHAPE, 5), every_class(5)
    with torch.no_grad():
        model.network[-1].bias += torch.tensor([2.0, -2, 3, 0, -4])  # type: ignore[index, union-attr, operator]
    update = share(
        model, squared, private, Defense(), NOTHING, batch_size=1, classes=5, mode="eval", generator=generator
    )
    assert infer_labels(model, update, generator).flatten().tolist() == private.labels.tolist()


def test_exposed_labels_are_used_as_they_are(generator: torch.Generator) -> None:
    model, private = conv_model(SHAPE), records(4, SHAPE, 3, seed=0)
    update = shared_update(model, private, exposure=Exposure(labels=True), batch_size=2)
    found = parse_attack("inverting-gradients:steps=2")(model, update, generator)
    assert found.labels is not None
    assert found.labels.flatten().tolist() == private.labels.tolist()


@pytest.mark.parametrize("client", ["fedavg:epochs=4:batch=4:lr=0.2", "fedavg:epochs=2:batch=4:lr=0.05:momentum=0.9"])
def test_clients_with_local_steps_are_counted(client: str, generator: torch.Generator) -> None:
    classes, batch = 5, 12
    model, private = conv_model(SHAPE, classes), records(4 * batch, SHAPE, classes, seed=5)
    update = share(
        model, nn.functional.cross_entropy, private, Defense(), Exposure(auxiliary=True), batch_size=batch,
        classes=classes, mode="eval", generator=torch.Generator().manual_seed(0),
        auxiliary=records(100, SHAPE, classes, seed=6), client=parse_client(client),
    )  # fmt: skip
    assert shared_of(infer_labels(model, update, generator), private) >= 0.9


def test_what_clients_send_by_their_counts_is_regressed() -> None:
    """Slopes that are no chances at all, as an optimiser makes them, but a linear function of the counts."""
    generator, size = torch.Generator().manual_seed(0), 10
    steps = torch.randn((4, 4), generator=generator, dtype=torch.float64)
    picked = torch.randint(4, (40, size), generator=generator)
    counts = torch.stack([torch.bincount(row, minlength=4) for row in picked])
    unit, noise = torch.eye(4, dtype=torch.float64), 1e-3 * torch.randn((40, 4), generator=generator)
    known = Chances(unit / 2 + 0.125, 1e-6 * unit, torch.full((4,), 0.25), False, 1.0)
    seen = Played(counts, torch.zeros(40, 4, 3), counts.double() @ steps + noise)
    learned = regressed(known, seen[torch.arange(30)], size)
    nothing = torch.zeros(4, dtype=torch.long)
    found = [likeliest_counts(slope, learned, 0.0, nothing, size) for slope in seen.slopes[30:]]
    assert torch.equal(torch.stack(found), counts[30:])
