"""A record is found in its mixture, in pixels or behind random signs, and from the update alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakaudit.attacks._labels import soft_labels
from leakaudit.attacks._linking import standard
from leakaudit.attacks.decoder import ReleasedDecoder, TwoStageDecoder
from leakaudit.attacks.demixing import Demixing, ReleasedDemixing, cosines, learned_filters, whitening
from leakaudit.attacks.dlg import DLG
from leakaudit.attacks.inverting_gradients import InvertingGradients
from leakaudit.attacks.linkage import Linkage, ReleasedLinkage
from leakaudit.defenses.instahide import InstaHide
from leakaudit.defenses.mixup import Mixup
from leakaudit.errors import NotApplicable
from leakaudit.protocol.attack import Attack
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.labels import hard
from leakaudit.protocol.target import PixelModel, Records
from tests.attacks.attack_scenes import conv_model, seeded, shared_update

SHAPE, CANDIDATES, VICTIMS = (1, 16, 16), 10, 12
MIXING: list[Defense] = [Mixup(classes=3), InstaHide(classes=3)]
NAMES = ["mixup", "instahide"]


def natural(count: int, seed: int) -> Tensor:
    """Return pictures with power at all frequencies, more at low ones, as photographs have."""
    generator = torch.Generator().manual_seed(seed)
    scales = [torch.randn((count, 1, n, n), generator=generator) for n in (2, 4, 8, 16)]
    grown = [F.interpolate(s, SHAPE[1:], mode="bilinear", align_corners=True) for s in scales]
    return (0.5 + sum(w * g for w, g in zip((0.25, 0.15, 0.1, 0.05), grown, strict=True))).clamp(0, 1)  # type: ignore[union-attr]


def scene(
    defense: Defense, labels_of: Tensor | None = None
) -> tuple[PixelModel, SharedUpdate, Tensor, Tensor, Records]:
    """Return model, update, candidates (V, M, …), where among them the record stands, and the mixed records."""
    model, pool = conv_model(SHAPE), natural(VICTIMS * CANDIDATES, seed=1)
    candidates = pool.view(VICTIMS, CANDIDATES, *SHAPE)
    position = torch.randint(CANDIDATES, (VICTIMS,), generator=torch.Generator().manual_seed(2))
    # The client owns more records than are attacked: partners are seldom victims, and never candidates.
    images = torch.cat([candidates[torch.arange(VICTIMS), position], natural(60, seed=5)])
    mixed = Records(
        *defense.transform_records(images, torch.arange(60 + VICTIMS) % 3, torch.Generator().manual_seed(6))
    )
    own = Records(natural(120, seed=3), torch.arange(120) % 3)
    update = shared_update(model, mixed[:VICTIMS], defense=None, auxiliary=own)
    return model, dataclasses.replace(update, defense=defense), candidates, position, mixed[:VICTIMS]


def hits(scores: Tensor | None, position: Tensor) -> int:
    assert scores is not None
    return int((scores.argmax(1) == position).sum())


@pytest.mark.parametrize(("defense", "least"), list(zip(MIXING, (9, 5), strict=True)), ids=NAMES)
def test_the_mixture_gives_its_record_away(defense: Defense, least: int, generator: torch.Generator) -> None:
    """Chance is 1.2 of 12, and 5 have a probability of 0.4 %. A bound that mixes candidates with each other is lost."""
    model, update, candidates, position, _ = scene(defense)
    found = ReleasedDemixing(rehearsals=60).link(model, update, candidates, generator)
    assert found.statuses == ("converged",) * VICTIMS
    assert hits(found.linkage, position) >= least
    plain = ReleasedLinkage(draws=2, rehearsals=60).link(model, update, candidates, generator)
    assert hits(plain.linkage, position) <= 3


@pytest.mark.parametrize("defense", MIXING, ids=NAMES)
def test_the_update_gives_it_away(
    defense: Defense, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InvertingGradients, "grid", {"tv": (1e-5, 1e-3)})  # a short tuning: it does not matter here
    model, update, candidates, position, _ = scene(defense)
    bare = dataclasses.replace(update, released=None, labels=None)
    found = Demixing(steps=60, rehearsals=6).link(model, bare, candidates, generator)
    assert found.statuses == ("converged",) * VICTIMS
    assert hits(found.linkage, position) >= 5


def test_nothing_is_found_where_the_record_is_not_in_the_mixture(generator: torch.Generator) -> None:
    model, update, candidates, position, _ = scene(MIXING[0])
    assert update.released is not None
    elsewhere = dataclasses.replace(update, released=update.released.roll(1, 0))
    found = ReleasedDemixing(rehearsals=60).link(model, elsewhere, candidates, generator)
    assert hits(found.linkage, position) <= 4


def test_candidates_are_never_mixed_with_each_other(generator: torch.Generator) -> None:
    """A candidate's score does not depend on who stands beside it, but for the standardising of the line-up."""
    model, update, candidates, _, _ = scene(MIXING[0])
    attack = ReleasedDemixing(rehearsals=40)
    whole = attack.link(model, update, candidates, torch.Generator().manual_seed(0)).linkage
    some = attack.link(model, update, candidates[:, :5], torch.Generator().manual_seed(0)).linkage
    assert whole is not None
    assert some is not None
    torch.testing.assert_close(standard(whole[:, :5]), standard(some), atol=1e-4, rtol=1e-4)


def test_the_cosine_transform_is_orthonormal_and_the_whitening_whitens(generator: torch.Generator) -> None:
    basis = cosines(7)
    torch.testing.assert_close(basis @ basis.T, torch.eye(7), atol=1e-5, rtol=1e-5)
    colours = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.3, 0.1], [0.2, 0.0, 0.1]])
    flat = torch.randn((400, 3, 6, 5), generator=generator)
    pictures = 0.5 + 0.1 * torch.einsum("nchw,cd->ndhw", flat, colours).cumsum(2)
    white = whitening(pictures, pictures)(pictures)
    assert white.shape == (400, 90)
    powers = white.square().mean(0)
    assert 0.9 < float(powers.median()) <= 1
    raw = (pictures - pictures.mean(0)).flatten(1).square().mean(0)
    assert float(powers.max() / powers.min()) < 5 < float(raw.max() / raw.min())


def test_the_filter_is_the_likelihood_ratio_of_white_pictures(generator: torch.Generator) -> None:
    """On white pictures the score is the plain correlation ⟨x̃, x⟩/‖x‖, in that order."""
    pictures = 0.5 + 0.1 * torch.randn((2000, 1, 6, 6), generator=generator)
    mixture = 0.6 * pictures[0] + 0.4 * pictures[1]
    scores = learned_filters(pictures, pictures)(mixture[None], pictures[:50])["pixels"][0]
    centred = (pictures[:50] - 0.5).flatten(1)
    plain = centred @ (mixture - 0.5).flatten() / centred.norm(dim=1)
    assert scores.topk(2).indices.tolist() == [0, 1]
    assert float(torch.corrcoef(torch.stack([scores, plain]))[0, 1]) > 0.95


@pytest.mark.parametrize("bias", [True, False])
def test_the_mixed_label_is_read_off_exactly(bias: bool, generator: torch.Generator) -> None:
    network = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(256, 9), nn.Tanh(), nn.Linear(9, 3, bias=bias)))
    model = PixelModel(network, [0.4], [0.25])
    _, _, _, _, mixed = scene(MIXING[1])
    update = shared_update(model, mixed)
    if not bias:
        with pytest.raises(NotApplicable, match="bias"):
            soft_labels(model, update, generator)
        return
    found = soft_labels(model, dataclasses.replace(update, labels=None), generator)
    assert found.shape == (VICTIMS, 1, 3)
    torch.testing.assert_close(found[:, 0], mixed.labels, atol=1e-4, rtol=0)
    assert (mixed.labels.max(1).values < 0.99).any()  # not a hard label in disguise
    with pytest.raises(NotApplicable, match="one record"):
        soft_labels(model, shared_update(model, mixed, batch_size=2), generator)


def test_hard_labels_are_read_off_too(generator: torch.Generator) -> None:
    model, own = conv_model(SHAPE), Records(natural(6, seed=8), torch.arange(6) % 3)
    found = soft_labels(model, shared_update(model, own), generator)
    torch.testing.assert_close(found[:, 0], torch.eye(3)[own.labels], atol=1e-3, rtol=0)


ATTACKS: list[Attack] = [
    InvertingGradients(steps=5),
    DLG(steps=5),
    TwoStageDecoder(steps=5, decoder_steps=3, rehearsals=0),
    ReleasedDecoder(decoder_steps=3),
    Linkage(draws=1, rehearsals=2),
    ReleasedLinkage(draws=1, rehearsals=20),
    Demixing(steps=5, rehearsals=0),
    ReleasedDemixing(rehearsals=5),
]


@pytest.mark.parametrize("exposed", [True, False])
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.name)
def test_attacks_take_mixed_labels_and_claim_classes(attack: Attack, exposed: bool, generator: torch.Generator) -> None:
    model, update, candidates, _, mixed = scene(MIXING[0])
    update = dataclasses.replace(update, labels=mixed.labels[:, None] if exposed else None)
    update = dataclasses.replace(
        update,
        gradients=tuple(g[:2] for g in update.gradients),
        labels=None if update.labels is None else update.labels[:2],
        released=None if update.released is None else update.released[:2],
    )
    linking = attack.kind == "linkage"
    found = attack.link(model, update, candidates[:2], generator) if linking else attack(model, update, generator)
    assert found.labels is not None
    assert found.labels.shape == (2, 1)
    assert not found.labels.is_floating_point()
    if exposed:
        assert torch.equal(found.labels[:, 0], hard(mixed.labels[:2]))
