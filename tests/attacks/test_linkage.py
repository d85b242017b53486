"""Linkage finds the record among candidates where the update still knows it, and not where it does not."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakaudit.attacks._linking import standard
from leakaudit.attacks.linkage import Linkage, ReleasedLinkage, distinct
from leakaudit.audit.attacking import repeated
from leakaudit.defenses.obscure import Obscure
from leakaudit.defenses.obscurer import Obscurer
from leakaudit.errors import NotApplicable
from leakaudit.protocol.client import SharedUpdate, release, share
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.exposure import Exposure
from leakaudit.protocol.federation import parse_client
from leakaudit.protocol.registry import parse_defense
from leakaudit.protocol.target import PixelModel, Records
from tests.attacks.attack_scenes import EVERYTHING, Shifted, conv_model, records, shared_update
from tests.attacks.test_decoder import Unrelated

SHAPE, CANDIDATES, VICTIMS = (1, 8, 8), 12, 6


def scene(defense: Defense | None) -> tuple[nn.Module, SharedUpdate, Tensor, Tensor]:
    """Return model, update, candidates (V, M, …) and where among them the private record stands."""
    model, pool = conv_model(SHAPE), records(VICTIMS * CANDIDATES, SHAPE, 3, seed=1)
    candidates = pool.images.view(VICTIMS, CANDIDATES, *SHAPE)
    position = torch.randint(CANDIDATES, (VICTIMS,), generator=torch.Generator().manual_seed(2))
    private = Records(candidates[torch.arange(VICTIMS), position], torch.arange(VICTIMS) % 3)
    update = shared_update(model, private, defense=defense, auxiliary=records(60, SHAPE, 3, seed=3))
    return model, update, candidates, position


def hits(scores: Tensor | None, position: Tensor) -> int:
    assert scores is not None
    return int((scores.argmax(1) == position).sum())


@pytest.mark.parametrize("spec", ["none", "gaussian:std=0.01", "prune:sparsity=0.9", "clip", "shifted"])
def test_the_gradient_links(spec: str, generator: torch.Generator) -> None:
    defense = Shifted() if spec == "shifted" else parse_defense(spec)
    model, update, candidates, position = scene(defense)
    found = Linkage(draws=2).link(model, update, candidates, generator)  # type: ignore[arg-type]
    assert found.statuses == ("converged",) * VICTIMS
    assert hits(found.linkage, position) >= VICTIMS - 1


def test_the_replaced_record_links(generator: torch.Generator) -> None:
    model, update, candidates, position = scene(Shifted())
    found = ReleasedLinkage(draws=2).link(model, update, candidates, generator)  # type: ignore[arg-type]
    assert hits(found.linkage, position) == VICTIMS


@pytest.mark.parametrize("attack", [Linkage(draws=2), ReleasedLinkage(draws=2)])
def test_nothing_is_linked_where_nothing_is_left(attack: Linkage | ReleasedLinkage, generator: torch.Generator) -> None:
    model, update, candidates, position = scene(Unrelated())
    found = attack.link(model, update, candidates, generator)  # type: ignore[arg-type]
    assert hits(found.linkage, position) <= VICTIMS // 2


def test_the_candidates_order_does_not_matter(generator: torch.Generator) -> None:
    model, update, candidates, _ = scene(parse_defense("none"))
    forward = Linkage().link(model, update, candidates, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    back = Linkage().link(model, update, candidates.flip(1), torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    assert forward.linkage is not None
    assert back.linkage is not None
    torch.testing.assert_close(forward.linkage, back.linkage.flip(1))


def test_the_defenses_own_features_are_used(generator: torch.Generator) -> None:
    """A defense that only its own feature extractor can see through: x̃ is noise but for one number of x."""

    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((1, 2, 3))[:, None]

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class KeepsTheMean(Unrelated):
        reference: nn.Module | None = None

        def transform_records(
            self, images: Tensor, labels: Tensor, generator: torch.Generator
        ) -> tuple[Tensor, Tensor]:
            noise = 0.2 * torch.rand(images.shape, generator=generator)
            mean = images.mean((1, 2, 3), keepdim=True)
            return noise - noise.mean((1, 2, 3), keepdim=True) + mean, labels

    model, update, candidates, position = scene(KeepsTheMean(reference=Mean()))
    found = ReleasedLinkage(draws=2).link(model, update, candidates, generator)  # type: ignore[arg-type]
    assert hits(found.linkage, position) >= VICTIMS - 1


def test_there_is_nothing_to_do_without_candidates_or_a_replacement(generator: torch.Generator) -> None:
    model, update, candidates, _ = scene(None)
    with pytest.raises(NotApplicable, match="candidates"):
        Linkage()(model, update, generator)  # type: ignore[arg-type]
    with pytest.raises(NotApplicable, match="does not replace records"):
        ReleasedLinkage().link(model, update, candidates, generator)  # type: ignore[arg-type]


def test_standardising(generator: torch.Generator) -> None:
    scores = standard(torch.rand((3, 7), generator=generator))
    torch.testing.assert_close(scores.mean(1), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(scores.square().mean(1), torch.ones(3))
    for ties in (torch.ones(2, 4), torch.linspace(0, -1e5, 50)[:, None].expand(-1, 67)):
        assert not standard(ties).any()  # nor where the mean of equal numbers is not that number


def test_line_ups_are_rebuilt_from_their_distinct_pictures(generator: torch.Generator) -> None:
    pool = torch.rand((5, *SHAPE), generator=generator)
    line_ups = pool[torch.tensor([[3, 1, 1], [4, 3, 0]])]
    labels = torch.zeros(2, 3, dtype=torch.long)
    found, places = distinct(line_ups, labels)
    assert len(found) == 4
    torch.testing.assert_close(found.images[places], line_ups, rtol=0, atol=0)
    targets = torch.rand((5, 4), generator=generator)[torch.tensor([[3, 1, 2], [4, 3, 0]])]  # one picture, two targets
    found, places = distinct(line_ups, labels, targets)
    assert len(found) == 5
    assert found.targets is not None
    torch.testing.assert_close(found.targets[places], targets, rtol=0, atol=0)


def test_a_choice_that_is_too_sharp_is_seen_through(generator: torch.Generator) -> None:
    # The only trace of the record is which picture was chosen; the pictures look like nobody.
    pictures = torch.rand((300, *SHAPE), generator=generator)
    uniform = torch.full((300, 3), 1 / 3)
    found = {}
    for slope in (0.0, 40.0):
        defense = Obscure(obscurer=Obscurer(pictures, uniform, slope=slope, mirror=False), nats=slope)
        model, update, candidates, position = scene(defense)
        update = dataclasses.replace(update, labels=torch.arange(VICTIMS)[:, None] % 3)
        claim = ReleasedLinkage(draws=2).link(model, update, candidates, generator)  # type: ignore[arg-type]
        found[slope] = hits(claim.linkage, position)
    assert found[0.0] <= 2
    assert found[40.0] >= 4


def several(
    spec: str = "none", size: int = 4, exposure: Exposure = EVERYTHING, client: str = "fedsgd"
) -> tuple[PixelModel, SharedUpdate, Tensor, Tensor]:
    """Return model, updates of several records each asked about each, candidates, and where the private ones stand."""
    defense, model = Shifted() if spec == "shifted" else parse_defense(spec), conv_model(SHAPE)
    pool = records(4 * size * CANDIDATES, SHAPE, 3, seed=1)
    candidates = pool.images.view(4 * size, CANDIDATES, *SHAPE)
    labels = torch.arange(4 * size) % 3
    position = torch.randint(CANDIDATES, (4 * size,), generator=torch.Generator().manual_seed(2))
    private = Records(candidates[torch.arange(4 * size), position], labels)
    released = release(defense, private, torch.Generator().manual_seed(4))
    update = share(
        model, F.cross_entropy, released, defense, exposure, batch_size=size, classes=3, mode="eval",
        generator=torch.Generator().manual_seed(0), auxiliary=records(120, SHAPE, 3, seed=3),
        client=parse_client(client),
    )  # fmt: skip
    update = dataclasses.replace(repeated(update, size), candidate_labels=labels[:, None].expand(-1, CANDIDATES))
    return model, update, candidates, position


@pytest.mark.parametrize("client", ["fedsgd", "fedavg:epochs=2:batch=2:lr=0.05", "fedavg:epochs=1:batch=1:clients=2"])
def test_records_of_one_update_are_linked_together(client: str, generator: torch.Generator) -> None:
    model, update, candidates, position = several(client=client)
    found = Linkage(rehearsals=4).link(model, update, candidates, generator)
    assert found.statuses == ("converged",) * len(position)
    assert hits(found.linkage, position) == len(position)
    assert any("false alarms" in note for note in found.notes)


def test_nothing_of_several_is_linked_where_nothing_is_left(generator: torch.Generator) -> None:
    model, update, candidates, position = several("gaussian:std=1000")
    found = Linkage(rehearsals=4).link(model, update, candidates, generator)
    assert hits(found.linkage, position) <= 5  # of 16, at a chance of 1 of 12


def test_replaced_records_of_one_update_are_linked_one_by_one(generator: torch.Generator) -> None:
    model, update, candidates, position = several("shifted")
    found = ReleasedLinkage(draws=2).link(model, update, candidates, generator)
    assert hits(found.linkage, position) == len(position)
    assert found.labels is not None
    assert found.labels.shape == (len(position), update.batch_size)
