"""What an outcome depends on is in its name: nothing stale is taken up, and what is not changed is not done again."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from leakaudit.protocol.target import PictureGenerator, PixelModel, Records, Target
from leakaudit.scene import fingerprint, plan
from leakaudit.scene.naming import CODE, PRIVATE, SCORED, SETTINGS
from leakaudit.scene.plan import Plan
from leakaudit.score import metrics
from leakaudit.units.packing import header_of, unpacked
from tests.leakaudit import audited
from tests.leakaudit.named import EVERY, changed, keys
from tests.leakaudit.shelves import SMALL, Store, scanned, tiny  # noqa: F401 - a fixture

# Another value of every setting of a plan; of what changes which pieces there are, one that leaves those there were.
OTHERS: dict[str, Any] = {
    "defenses": ("gaussian:std=30", "clip"),
    "attacks": ("labels", "analytic"),
    "battery": "standard",
    "exposure": "honest-but-curious",
    "stages": ("init",),
    "mode": "train",
    "records": 6,
    "batch_size": 2,
    "client": "fedavg:steps=1:batch=1:lr=0.1",
    "candidates": 10,
    "max_identification": 0.4,
    "max_accuracy_loss": 0.3,
    "all_attacks": True,
    "utility": False,
    "seeds": 2,
    "epochs": 2,
    "budget": 1e6,
    "memory": 2**40,
    "images": "none",
    "seed": 1,
}
NAMED_BESIDES = {"battery", "epochs", "stages"}  # by an attack's own settings, by `epochs`, by another model


def values(store: Store) -> dict[str, tuple[str, str]]:
    """Return the kind and the hash of every outcome by its key."""
    found = {}
    for key, data in store.items():
        header, body = header_of(data, key)
        plain = body.startswith(b"{")
        found[key] = header.kind, fingerprint.of_value(body if plain else unpacked(body, object))
    return found


@pytest.fixture(scope="module")
def usual() -> dict[str, tuple[str, str]]:
    """What a scan of the small settings leaves; computed by the first test that asks, within its patches."""
    return {}


def test_every_setting_of_a_plan_is_thought_of() -> None:
    assert set(OTHERS) == {f.name for f in fields(Plan)}
    assert set(SETTINGS) == set(CODE) == EVERY
    assert PRIVATE <= EVERY


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("name", OTHERS)
def test_a_setting_changes_what_it_is_in_the_name_of_and_nothing_else(
    name: str, usual: dict[str, tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(plan.BATTERIES, "standard", replace(plan.BATTERIES["quick"], steps=4))
    if not usual:
        store = Store()
        scanned(store)
        usual.update(values(store))
        assert {kind for kind, _ in usual.values()} == EVERY - {"moment"}
    store = Store()
    scanned(store, **{name: OTHERS[name]})
    other = values(store)
    assert other
    for key, (kind, value) in usual.items():
        if name in SETTINGS[kind]:  # type: ignore[index]
            assert key not in other, kind
        elif name not in NAMED_BESIDES and not (name == "utility" and kind == "training"):
            assert key in other, kind
        if key in other:
            assert other[key][1] == value, kind


class Dropping(nn.Module):
    """A network with rates that are neither parameters nor buffers."""

    def __init__(self, rate: float = 0.5, momentum: float = 0.1, shift: float = 0.0, fails: float = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.drop, self.line = nn.BatchNorm2d(1, momentum=momentum), nn.Dropout(rate), nn.Linear(64, 2)
        self.shift, self.fails = shift, fails

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.fails:
            raise ValueError("not in this mode")
        return self.line(self.drop(self.norm(x)).flatten(1)) + self.shift  # type: ignore[no-any-return]


def dropping(**settings: float) -> Target:
    return replace(audited.target(), model=PixelModel(Dropping(**settings)).eval())


def picturing(scale: float) -> PictureGenerator:
    return PictureGenerator(lambda z: (scale * z).sigmoid().view(-1, 1, 8, 8), (64,))


class Reversed(torch.autograd.Function):
    """Nothing forward; backward the slope is scaled."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, by: float) -> Tensor:
        ctx.by = by
        return x.clone()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.by * slope, None


class Backward(nn.Module):
    """A network whose gradient is not what its outputs tell."""

    def __init__(self, by: Any, above: float = 1e9) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.line, self.above, self.held = nn.Linear(64, 2), above, SimpleNamespace(by=by)

    def forward(self, x: Tensor) -> Tensor:
        return Reversed.apply(self.line(x.flatten(1)), self.held.by).clamp(max=self.above)  # type: ignore[no-any-return]


def backward(by: float, above: float = 1e9) -> Target:
    return replace(audited.target(), model=PixelModel(Backward(by, above)).eval())


def capped(most: float) -> Target:
    """A loss that differs on records alone that are far off."""

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, labels).clamp(max=most)

    return replace(audited.target(), loss=loss)


def with_record(role: str) -> Callable[[], Target]:
    def changed() -> Target:
        target = audited.target()
        records: Records = getattr(target, role)
        images = records.images.clone()
        images[-1, 0, 3, 3] += 1e-3
        return replace(target, **{role: replace(records, images=images)})

    return changed


def with_weight() -> Target:
    target = audited.target()
    with torch.no_grad():
        next(target.model.parameters()).view(-1)[0] += 1e-6
    return target


def frozen() -> Target:
    target = audited.target()
    next(target.model.parameters()).requires_grad_(False)
    return target


def units(first: int) -> Target:
    target = audited.target()
    numbers = torch.arange(len(target.private))
    numbers[0] = first
    return replace(target, private=replace(target.private, units=numbers))


def loss_of(**settings: Any) -> Target:
    return replace(audited.target(), loss=nn.CrossEntropyLoss(**settings))


def of_last(weight: float) -> Target:
    """A loss by a plain function, in which one class counts otherwise."""

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, labels, torch.tensor([1.0, weight]))

    return replace(audited.target(), loss=loss)


def made_by(width: float) -> Target:
    def factory() -> nn.Module:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
        with torch.no_grad():
            network[1].weight.mul_(width)  # type: ignore[union-attr,operator]
        return network

    return replace(audited.target(), model=PixelModel(factory()), factory=factory) if width else audited.target()


# Pairs of targets that differ in one thing.
PAIRS: dict[str, tuple[Callable[[], Target], Callable[[], Target]]] = {
    "weights": (audited.target, with_weight),
    "a private record": (audited.target, with_record("private")),
    "a test record": (audited.target, with_record("test")),
    "an auxiliary record": (audited.target, with_record("auxiliary")),
    "whose a record is": (lambda: units(0), lambda: units(1)),
    "a class's name": (audited.target, lambda: replace(audited.target(), classes=("cat", "dog"))),
    "its name": (audited.target, lambda: replace(audited.target(), name="another")),
    "what is trained": (audited.target, frozen),
    "augmentation": (audited.target, lambda: replace(audited.target(), augment=("flip",))),
    "what was held out": (audited.target, lambda: replace(audited.target(), held_out=())),
    "near-duplicates found": (audited.target, lambda: replace(audited.target(), near_duplicates=(1, 2))),
    "a rate of dropout": (dropping, lambda: dropping(rate=0.4)),
    "momentum of BatchNorm": (dropping, lambda: dropping(momentum=0.2)),
    "a number within a network": (dropping, lambda: dropping(shift=0.1)),
    "the same, where it cannot train": (lambda: dropping(fails=1), lambda: dropping(fails=1, shift=0.1)),
    "what a network does going back": (lambda: backward(1.0), lambda: backward(0.5)),
    "a bound that no record reached": (lambda: backward(1.0, 1e8), lambda: backward(1.0, 1e9)),
    "a loss's bound that no record reached": (lambda: capped(1e8), lambda: capped(1e9)),
    "label smoothing": (loss_of, lambda: loss_of(label_smoothing=0.1)),
    "a class's weight": (loss_of, lambda: loss_of(weight=torch.tensor([1.0, 2.0]))),
    "a class's weight, in a function": (lambda: of_last(1.0), lambda: of_last(2.0)),
    "the factory": (lambda: made_by(1.0), lambda: replace(made_by(1.0), factory=made_by(2.0).factory)),
    "a generator": (audited.target, lambda: replace(audited.target(), generator=picturing(1.0))),
    "what a generator draws": (
        lambda: replace(audited.target(), generator=picturing(1.0)),
        lambda: replace(audited.target(), generator=picturing(2.0)),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_another_target_has_other_outcomes(name: str) -> None:
    one, other = PAIRS[name]
    assert changed(keys(one()), keys(one())) == frozenset()  # read anew it is the same
    assert changed(keys(one()), keys(other())) == EVERY


def test_what_does_not_repeat_is_the_same_word_twice() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.line, self.calls = nn.Linear(64, 2), 0

        def forward(self, x: Tensor) -> Tensor:
            return self.line(x.flatten(1)) + id(object()) % 7919 / 7919 + next(COUNT)  # type: ignore[no-any-return]

    def target() -> Target:
        return replace(audited.target(), model=PixelModel(Noisy()))

    assert changed(keys(target()), keys(target())) == frozenset()


COUNT: Iterator[int] = iter(range(10**9))


def test_another_machine_has_other_outcomes(monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys(audited.target())
    monkeypatch.setattr(platform, "python_version_tuple", lambda: ("3", "99", "0"))
    assert changed(before, keys(audited.target())) == EVERY
    monkeypatch.undo()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert changed(before, keys(audited.target())) == EVERY


def test_flags_that_change_numbers_are_in_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys(audited.target())
    with torch.backends.mkldnn.flags(enabled=False):
        assert changed(before, keys(audited.target())) == EVERY
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    assert changed(before, keys(audited.target())) == EVERY
    monkeypatch.undo()
    torch.use_deterministic_algorithms(True)
    try:
        assert changed(before, keys(audited.target())) == EVERY
    finally:
        torch.use_deterministic_algorithms(False)


def test_lpips_has_a_part_in_scores_alone(tmp_path: Path) -> None:
    file = tmp_path / "alexnet.pth"
    before, missing = keys(audited.target()), keys(audited.target(), file)
    file.write_bytes(b"weights")
    given = keys(audited.target(), file)
    file.write_bytes(b"others")
    assert changed(before, missing) == changed(missing, given) == changed(given, keys(audited.target(), file)) == SCORED


def darker(truth: Tensor, guess: Tensor, by: float = 1.0) -> Tensor:
    return by * (truth - guess).flatten(1).mean(1)


def test_metrics_of_plug_ins_have_a_part_in_scores_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = metrics.Metric("darker", darker, higher_leaks=False)
    others = (replace(metric, unit="dB"), replace(metric, function=partial(darker, by=2.0)))
    metrics.further()
    before = keys(audited.target())
    monkeypatch.setattr(metrics, "_further", {"darker": metric})
    given = keys(audited.target())
    assert changed(before, given) == SCORED
    for other in others:
        monkeypatch.setattr(metrics, "_further", {"darker": other})
        assert changed(given, keys(audited.target())) == SCORED
