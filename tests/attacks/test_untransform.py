"""A known transform is undone, from the transformed record and from an update; linkage sees through it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from leakaudit.attacks.inverting_gradients import InvertingGradients
from leakaudit.attacks.linkage import Linkage, ReleasedLinkage
from leakaudit.attacks.untransform import Untransform, undone
from leakaudit.defenses.ats import ATS
from leakaudit.errors import NotApplicable
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.score.metrics import psnr
from tests.attacks.attack_scenes import Shifted, conv_model, records, shared_update

SHAPE, CANDIDATES, VICTIMS = (1, 8, 8), 12, 6
FLIPPED = ATS(chosen=(("invert", "contrast 0.6"), ("translate-x 0.15", "invert", "brightness 0.6")))


def scene() -> tuple[PixelModel, SharedUpdate, Tensor, Tensor, Records]:
    """Return model, update, candidates (V, M, …), where among them the private record stands, and the records."""
    model, pool = conv_model(SHAPE), records(VICTIMS * CANDIDATES, SHAPE, 3, seed=1)
    candidates = pool.images.view(VICTIMS, CANDIDATES, *SHAPE)
    position = torch.randint(CANDIDATES, (VICTIMS,), generator=torch.Generator().manual_seed(2))
    private = Records(candidates[torch.arange(VICTIMS), position], torch.arange(VICTIMS) % 3)
    update = shared_update(model, private, defense=FLIPPED, auxiliary=records(20, SHAPE, 3, seed=3))
    return model, update, candidates, position, private


def hits(guess: Tensor, candidates: Tensor, position: Tensor) -> int:
    gaps = (candidates - guess[:, None]).square().flatten(2).sum(2)
    return int((gaps.argmin(1) == position).sum())


@pytest.mark.parametrize(
    "policy",
    [("invert",), ("rotate 20",), ("contrast 0.3", "translate-y 0.15"), ("posterize 4", "shear-x 0.15", "invert")],
    ids="+".join,
)
def test_a_transform_is_undone(policy: tuple[str, ...]) -> None:
    x = records(2, (3, 12, 12), 3, seed=0).images
    defense, labels = ATS(chosen=(policy,)), torch.zeros(2, dtype=torch.long)
    seen, _ = defense.transform_records(x, labels, torch.Generator().manual_seed(0))
    found = undone(defense, seen, labels, [1], 150, "undoing")
    assert float(psnr(x, found).median()) > max(20, 5 + float(psnr(x, seen).median()))


def test_the_policy_of_each_record_is_found_among_the_draws() -> None:
    _, update, _, _, private = scene()
    assert update.released is not None
    found = undone(FLIPPED, update.released[:, 0], private.labels, [1, 2, 3, 4], 150, "undoing")
    assert float(psnr(private.images, found).min()) > 18


def test_the_update_gives_the_record_away(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InvertingGradients, "grid", {"tv": (1e-4, 1e-3)})  # a short tuning: it does not matter here
    model, update, candidates, position, _ = scene()
    update = dataclasses.replace(update, released=None)
    found = Untransform(steps=100, rehearsals=2, draws=4, undo_steps=100)(model, update, generator)
    plain = InvertingGradients(steps=100)(model, update, generator)
    assert found.images is not None
    assert plain.images is not None
    assert hits(found.images[:, 0], candidates, position) >= VICTIMS - 1
    assert hits(plain.images[:, 0], candidates, position) <= VICTIMS // 2


@pytest.mark.parametrize("attack", [Linkage(), ReleasedLinkage()], ids=lambda a: a.name)
def test_linkage_sees_through_the_transform(attack: Linkage | ReleasedLinkage, generator: torch.Generator) -> None:
    model, update, candidates, position, _ = scene()
    found = attack.link(model, update, candidates, generator)
    assert found.linkage is not None
    assert int((found.linkage.argmax(1) == position).sum()) == VICTIMS


def test_without_auxiliary_records_it_runs_as_it_is(generator: torch.Generator) -> None:
    model, update, _, _, _ = scene()
    found = Untransform(steps=5, undo_steps=3)(model, dataclasses.replace(update, auxiliary=None), generator)
    assert found.statuses == ("converged",) * VICTIMS


def test_what_cannot_be_undone_is_not_applicable(generator: torch.Generator) -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Opaque(Shifted):
        def transform_records(
            self, images: Tensor, labels: Tensor, generator: torch.Generator
        ) -> tuple[Tensor, Tensor]:
            return (1 - images).detach(), labels

    model, update, _, _, _ = scene()
    attack = Untransform(steps=3, undo_steps=3, rehearsals=0)
    with pytest.raises(NotApplicable, match="no slope"):
        attack(model, dataclasses.replace(update, defense=Opaque()), generator)
    with pytest.raises(NotApplicable, match="does not replace"):
        attack(model, dataclasses.replace(update, defense=Defense()), generator)
