"""Captured updates under the names of a model, whatever a framework called its tensors, and as an attack gets them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from leakaudit.captured.fitting import fitted
from leakaudit.captured.form import Claims
from leakaudit.captured.reading import read_capture
from leakaudit.captured.scanning import asked, targeted
from leakaudit.captured.writing import write_capture, write_captures
from leakaudit.errors import UserError
from leakaudit.load.loading import target_from_objects
from leakaudit.scene.plan import Plan
from tests.captured.small import data

State = dict[str, Tensor]
PLAN = Plan(battery="quick", records=4, images="full")
CLAIMS = Claims(local_steps=2, batch_size=2, local_lr=0.5, momentum=0.5, records=4, mode="train", defense="none")


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = nn.Conv2d(1, 4, 3, stride=2)
        first.bias.requires_grad_(False)
        return nn.Sequential(first, nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 4))


def moved(seed: int = 1) -> State:
    g = torch.Generator().manual_seed(seed)
    begun = network().state_dict()
    return {n: v + torch.rand(v.shape, generator=g) if v.is_floating_point() else v + 1 for n, v in begun.items()}


NAMED: dict[str, Callable[[State], object]] = {
    "as they are": dict,
    "Opacus": lambda state: {f"_module.{n}": v for n, v in state.items()},
    "DataParallel, compiled": lambda state: {f"_orig_mod.module.{n}": v for n, v in state.items()},
    "without names": lambda state: [v.numpy() for v in state.values()],
    "parameters without names": lambda state: [state[n].numpy() for n, _ in network().named_parameters()],
    "what is trained": lambda state: {n: state[n] for n, p in network().named_parameters() if p.requires_grad},
}


@pytest.mark.parametrize("name", NAMED)
def test_tensors_are_found_under_other_names(name: str, tmp_path: Path) -> None:
    before, after = network().state_dict(), moved()
    write_capture(tmp_path / "u.safetensors", before=NAMED[name](before), after=NAMED[name](after))  # type: ignore[arg-type]
    fit = fitted(read_capture(tmp_path / "u.safetensors"), network(), "it")
    trained = [n for n, p in network().named_parameters() if p.requires_grad]
    for found, n in zip(fit.lost(0, trained), trained, strict=True):
        assert torch.equal(found, before[n].double() - after[n].double())
    assert fit.before.keys() == before.keys()
    sent = fit.after(0, "1.running_mean")
    there = name not in ("parameters without names", "what is trained")
    assert (sent is not None) is there
    assert sent is None or torch.equal(sent, after["1.running_mean"].double())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s | {"9.weight": torch.zeros(1)}, "has not"),
        (lambda s: {n: v for n, v in s.items() if n != "4.weight"}, "misses '4.weight'"),
        (lambda s: s | {"4.weight": torch.zeros(36, 4)}, "of shape"),
        (lambda s: s | {"4.weight": torch.zeros(4, 36, dtype=torch.long)}, "whole numbers"),
    ],
)
def test_what_does_not_fit_is_said(change: Callable[[State], State], told: str, tmp_path: Path) -> None:
    write_capture(tmp_path / "u.safetensors", after=change(moved()))
    with pytest.raises(UserError, match=told):
        fitted(read_capture(tmp_path / "u.safetensors"), network(), "it")


def test_rounds_are_pooled_and_statistics_come_along(tmp_path: Path) -> None:
    states, begun = [moved(seed) for seed in (1, 2)], network().state_dict()
    place = tmp_path / "u.safetensors"
    write_captures(place, states, sends="after", before=begun, claims=replace(CLAIMS, rounds=2))
    made = targeted(asked(place, None, PLAN), target_from_objects(network, data(), device="cpu"))
    received = made.received
    assert received is not None
    assert (received.victims, received.batch_size) == (1, 4)
    over = 0.5 * (1 + 1.5)  # the second step goes by half of the first one's pace, too
    trained = [n for n, p in network().named_parameters() if p.requires_grad]
    for found, n in zip(received.gradients, trained, strict=True):
        mean = sum(begun[n].double() - state[n].double() for state in states) / 2
        assert torch.allclose(found[0].double(), mean / over, rtol=1e-6, atol=1e-7)
    assert received.buffers is not None
    mean_of = (states[0]["1.running_var"] + states[1]["1.running_var"]) / 2
    assert torch.allclose(received.buffers[0]["network.1.running_var"], mean_of)
    assert received.buffers[0].keys() == {n for n, b in made.model.named_buffers() if b.is_floating_point()}


def test_the_model_has_the_weights_that_were_captured_before(tmp_path: Path) -> None:
    begun = moved(3)
    write_capture(tmp_path / "u.safetensors", before=begun, difference=moved(), claims=CLAIMS)
    made = targeted(asked(tmp_path / "u.safetensors", None, PLAN), target_from_objects(network, data(), device="cpu"))
    assert all(torch.equal(value, begun[name]) for name, value in made.model.network.state_dict().items())
