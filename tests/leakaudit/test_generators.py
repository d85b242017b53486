"""A user's generator of pictures: read, checked in one sentence each, handed to who may know it."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import leakaudit
from leakaudit.audit.pieces import pieces_of
from leakaudit.errors import UserError
from leakaudit.gate.consistency import doubts
from leakaudit.load.generators import picture_generator
from leakaudit.load.loading import load_target
from leakaudit.protocol.amounts import Sizes
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.target import PictureGenerator
from leakaudit.scene.fingerprint import of_generator
from leakaudit.scene.plan import Plan

SHAPE = (1, 6, 6)
FILE = """
import torch
from torch import nn
from torch.utils.data import TensorDataset
train_data = TensorDataset(torch.rand(40, 1, 6, 6), torch.arange(40) % 2)
model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
"""
GOOD = "generator = nn.Sequential(nn.Linear(8, 36), nn.Sigmoid(), nn.Unflatten(1, (1, 6, 6)))\n"


def drawing(make: Any, latent: Any = 8) -> PictureGenerator | None:
    return picture_generator(make, latent, SHAPE, torch.device("cpu"), 0)


def sigmoid() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 36), nn.Sigmoid(), nn.Unflatten(1, SHAPE))


@pytest.mark.parametrize("form", ["layers", "module", "function"])
def test_volumes_are_drawn_as_they_are_kept(form: str, generator: torch.Generator) -> None:
    layers = nn.Sequential(nn.Linear(8, 96), nn.Sigmoid(), nn.Unflatten(1, (2, 3, 4, 4)))
    nested = nn.Module()
    nested.add_module("layers", layers)
    nested.forward = layers.forward  # type: ignore[method-assign]
    given: dict[str, Any] = {"layers": layers, "module": nested, "function": lambda z: layers(z)}
    made = picture_generator(given[form], 8, (2, 3, 4, 4), torch.device("cpu"), 0)
    assert made is not None
    assert isinstance(made.make, nn.Module) is (form != "function")
    drawn = torch.randn(5, 8, generator=generator)
    assert torch.equal(made.make(drawn), layers(drawn).flatten(1, 2))
    with pytest.raises(UserError, match=r"returns shape \(3, 2, 3, 4, 4\) for 3 latents, not \(3, 6, 4, 4\)"):
        picture_generator(given[form], 8, (6, 4, 4), torch.device("cpu"), 0)


def broken(latents: Tensor) -> Tensor:
    raise RuntimeError("no such latents")


class Uncopied(nn.Module):
    def __deepcopy__(self, memo: dict[int, Any]) -> Uncopied:
        raise TypeError("not me")


@pytest.mark.parametrize(
    ("make", "latent", "said"),
    [
        (sigmoid(), None, "`generator` needs `latent`, the shape of one of its latents"),
        (sigmoid(), 0, "`latent` is 0: give a number like 128"),
        (sigmoid(), "8", "`latent` is '8': give a number"),
        (sigmoid(), (), r"`latent` is \(\): give a number"),
        (sigmoid(), (8, 1.5), "`latent` is .*: give a number"),
        (sigmoid(), 9, r"`generator` fails on latents of shape \(3, 9\) .*: check `latent`"),
        (None, 8, "`latent` is set, but there is no `generator`"),
        (3, 8, "`generator` is int, not callable"),
        (broken, 8, "`generator` fails on latents of shape .*no such latents"),
        (lambda z: z, 8, r"`generator` returns shape \(3, 8\) for 3 latents, not \(3, 1, 6, 6\)"),
        (lambda z: "picture", 8, "`generator` returns str for 3 latents"),
        (lambda z: z.sum() * torch.ones(3, *SHAPE) + 50, 8, "`generator` returns pixels from .*, not 0 to 1"),
        (lambda z: torch.full((3, *SHAPE), torch.nan), 8, "`generator` returns pixels that are not finite"),
        (lambda z: sigmoid()(z).detach(), 8, "`generator` passes no gradient to its latents"),
        (lambda z: torch.rand((3, *SHAPE), requires_grad=True).sigmoid(), 8, "`generator` passes no gradient"),
        (Uncopied(), 8, "`generator` cannot be copied"),
    ],
)
def test_a_wrong_one_is_refused_in_a_sentence(make: Any, latent: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        drawing(make, latent)


def test_a_right_one_is_copied_and_frozen() -> None:
    given = sigmoid().train()
    found = drawing(given, [8])
    assert found is not None
    assert found.latent == (8,)
    assert isinstance(found.make, nn.Module)
    assert not found.make.training
    assert not any(p.requires_grad for p in found.make.parameters())
    assert given.training
    assert all(p.requires_grad for p in given.parameters())
    assert isinstance(drawing(sigmoid).make, nn.Module)  # type: ignore[union-attr] - a function that builds it
    assert drawing(None, None) is None
    assert drawing(torch.Generator(), None) is None  # somebody's random numbers


def test_its_hash_follows_its_weights() -> None:
    found = drawing(sigmoid())
    assert found is not None
    other = copy.deepcopy(found)
    assert of_generator(other) == of_generator(found)
    with torch.no_grad():
        other.make[0].bias.add_(1)  # type: ignore[index]
    assert of_generator(other) != of_generator(found)


def test_model_py_gives_it(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text(FILE + GOOD + "latent = 8\n", encoding="utf-8")
    target = load_target(str(path))
    assert target.generator is not None
    path.write_text(FILE + GOOD, encoding="utf-8")
    with pytest.raises(UserError, match=r"model.py: `generator` needs `latent`"):
        load_target(str(path))
    path.write_text(FILE + "generator = torch.Generator().manual_seed(0)\n", encoding="utf-8")
    assert load_target(str(path)).generator is None


def test_it_is_searched_in_every_audit_that_is_given_one_and_in_no_other() -> None:
    made = Sizes(victims=4, asked=4, candidates=10, line_up=5, private=20, auxiliary=20)
    for generator in (True, False):
        pieces = pieces_of("none", Defense(), Plan(), sizes=replace(made, generator=generator))
        assert ("generative-prior" in {piece.work.name for piece in pieces}) is generator


def test_a_result_that_was_given_one_and_did_not_search_it_contradicts_itself() -> None:
    data = TensorDataset(torch.rand(60, *SHAPE), torch.arange(60) % 2)
    asked: dict[str, Any] = {"battery": "quick", "attacks": "labels", "records": 4, "utility": False}
    without = leakaudit.scan(nn.Sequential(nn.Flatten(), nn.Linear(36, 2)), data, **asked)
    lost = "generative-prior had to run on it, and did not"
    assert not any(lost in told for told in doubts(without))
    given = replace(without, hashes=without.hashes | {"generator": "0" * 64})
    assert any(lost in told for told in doubts(given))


def test_a_scan_uses_it_where_the_adversary_may_know_it() -> None:
    data = TensorDataset(torch.rand(60, *SHAPE), torch.arange(60) % 2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    result = leakaudit.scan(
        model,
        data,
        battery="quick",
        attacks="generative-prior:steps=5",
        records=4,
        utility=False,
        all_attacks=True,
        generator=sigmoid(),
        latent=8,
    )
    (row,) = (a for a in result.defenses[0].attacks if a.name == "generative-prior")
    assert row.statuses == {"converged": 4}
    assert "generator" in result.hashes
