"""One table over every registered attack: shapes, range, determinism, statuses; grey and colour, one record and two."""

from __future__ import annotations

import dataclasses
import time

import pytest
import torch

from leakaudit.errors import NotApplicable
from leakaudit.protocol import registry
from leakaudit.protocol.attack import Attack, Reconstruction
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.target import PixelModel
from leakaudit.work.progress import Monitor, monitored
from tests.attacks.attack_scenes import records, scene

NAMES = sorted(registry.attacks())
SMALL = {"steps": 12, "undo_steps": 5, "decoder_steps": 8, "restarts": 2, "draws": 2}
GREY, COLOUR = (1, 8, 8), (3, 9, 8)
HANDED = ("defense", "auxiliary", "released")  # facts that come with the update
CANDIDATES = 5


def small(name: str) -> Attack:
    attack = registry.attacks()[name]()
    settings = registry.settings_of(type(attack))
    # A bound on linkage needs something to weigh its scores by; the decoder's tuning has its own test.
    rehearsals = {"rehearsals": 2 if {"linkage", "released"} <= {attack.kind, *attack.requires} else 0}
    return dataclasses.replace(attack, **{k: v for k, v in (SMALL | rehearsals).items() if k in settings})


def run(attack: Attack, model: PixelModel, update: SharedUpdate, seed: int = 3) -> Reconstruction:
    generator = torch.Generator().manual_seed(seed)
    if attack.kind == "linkage":
        candidates = records(2 * CANDIDATES, update.input_shape, 3, seed=4).images
        return attack.link(model, update, candidates.view(2, CANDIDATES, *update.input_shape), generator)
    return attack(model, update, generator)


@pytest.mark.parametrize("shape", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_shapes_range_and_determinism(name: str, batch: int, shape: tuple[int, int, int]) -> None:
    attack = small(name)
    model, update = scene(attack, shape, batch)
    batch = update.batch_size
    before = {key: value.clone() for key, value in model.state_dict().items()}
    if batch > 1 and attack.needs.one_record:
        with pytest.raises(NotApplicable, match="one record per update"):
            run(attack, model, update)
        return
    found, again = run(attack, model, update), run(attack, model, update)
    assert len(found.statuses) == 2
    assert set(found.statuses) <= {"converged", "diverged", "budget"}
    assert found.objective.shape == (2,)
    assert found.labels is not None
    assert found.labels.shape == (2, batch)
    assert 0 <= int(found.labels.min()) <= int(found.labels.max()) < 3
    if attack.kind == "reconstruction":
        assert found.images is not None
        assert again.images is not None
        assert found.images.shape == (2, batch, *shape)
        assert float(found.images.min()) >= 0
        assert float(found.images.max()) <= 1
        assert torch.equal(found.images, again.images)
    else:
        assert found.images is None
    if attack.kind == "linkage":
        assert found.linkage is not None
        assert again.linkage is not None
        assert found.linkage.shape == (2, CANDIDATES)
        assert found.linkage.isfinite().all()
        assert torch.equal(found.linkage, again.linkage)
    assert found.statuses == again.statuses
    assert model.training  # as it was, though the client ran it in eval mode
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_that_is_not_finite_diverges(name: str) -> None:
    attack = small(name)
    model, update = scene(attack)
    spoilt = tuple(torch.stack([torch.full_like(g[0], torch.nan), g[1]]) for g in update.gradients)
    found = run(attack, model, dataclasses.replace(update, gradients=spoilt))
    # What is handed the replaced records reads them, not the update, apart from the labels.
    assert found.statuses == ("converged" if "released" in attack.requires else "diverged", "converged")
    if attack.kind != "linkage":
        assert bool(found.reason) is ("diverged" in found.statuses)


@pytest.mark.parametrize("name", NAMES)
def test_an_update_of_zeros_is_no_divergence(name: str) -> None:
    attack = small(name)
    for batch in (1,) if attack.needs.one_record else (1, 2):
        model, update = scene(attack, batch=batch)
        silent = tuple(torch.stack([torch.zeros_like(g[0]), g[1]]) for g in update.gradients)
        found = run(attack, model, dataclasses.replace(update, gradients=silent))
        assert found.statuses == ("converged", "converged")
        assert found.reason is None
        if attack.closed_form and attack.kind == "reconstruction":
            assert found.images is not None
            assert bool((found.images[0] == 0.5).all())
            assert "zero in every entry" in found.notes[-1]


@pytest.mark.parametrize("name", [n for n in NAMES if not registry.attacks()[n].closed_form])
def test_a_spent_budget_is_a_status(name: str) -> None:
    model, update = scene(small(name))
    with monitored(Monitor(deadline=time.monotonic() - 1)):
        found = run(small(name), model, update)
    assert found.statuses == ("budget", "budget")
    assert found.reason
    assert ("best so far" in found.reason) is (found.images is not None)  # where there is one


@pytest.mark.parametrize("name", NAMES)
def test_out_of_memory_is_a_status(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, update = scene(small(name))

    def exhausted(*_: object) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 3 GiB")

    monkeypatch.setattr(model.network, "forward", exhausted)
    found = run(small(name), model, update)
    assert found.statuses == ("out-of-memory", "out-of-memory")
    assert found.reason


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_is(name: str) -> None:
    cls = registry.attacks()[name]
    assert cls.name == name
    assert cls.summary
    assert cls.source
    assert cls.__doc__
    assert set(cls.grid) <= set(registry.settings_of(cls))
    assert registry.parse_attack(name) == cls()


@pytest.mark.parametrize(
    "name", [n for n in NAMES if registry.attacks()[n].requires & set(HANDED) and not registry.attacks()[n].plants()]
)
def test_missing_facts_are_not_applicable(name: str) -> None:
    model, update = scene(small(name))
    bare = dataclasses.replace(update, **dict.fromkeys(HANDED))  # type: ignore[arg-type]
    with pytest.raises(NotApplicable, match="not exposed"):
        run(small(name), model, bare)


@pytest.mark.parametrize(
    "spec", ["inverting-gradients:steps=0", "inverting-gradients:tv=-1", "expectation:draws=-1", "dlg:restarts=0"]
)
def test_settings_out_of_range_are_refused(spec: str) -> None:
    with pytest.raises(Exception, match="must"):
        registry.parse_attack(spec)
