"""What a record adds to an update: sums stay sums, the defense's own stage acts, and the model is left as it was."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from leakaudit.attacks import _contributions as contributions
from leakaudit.attacks._contributions import moved_by, reader_for, with_statistics
from leakaudit.protocol.client import SharedUpdate, share
from leakaudit.protocol.federation import parse_client
from leakaudit.protocol.gradients import in_mode, mean_gradient, parameters_of
from leakaudit.protocol.registry import parse_defense
from leakaudit.protocol.target import PixelModel, Records
from tests.attacks.attack_scenes import EVERYTHING, batchnorm_model, conv_model, records, shared_update

SHAPE, SIZE = (1, 8, 8), 4


def scene(spec: str = "none") -> tuple[PixelModel, SharedUpdate, Records]:
    model, private = conv_model(SHAPE), records(SIZE, SHAPE, 3, seed=1)
    return model, shared_update(model, private, defense=parse_defense(spec), batch_size=SIZE), private


@pytest.mark.parametrize("spec", ["none", "dp-sgd:noise_multiplier=0:max_norm=0.5"])
@pytest.mark.parametrize("features", [2**15, 200])
def test_what_records_add_is_the_update(
    spec: str, features: int, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contributions, "FEATURES", features)
    model, update, private = scene(spec)
    assert update.defense is not None
    read = reader_for(model, update, update.defense, 2, None, generator)
    rows = read(private, generator, "rows")
    assert rows is not None
    assert list(rows) == ["record"]
    shared = read.row(tuple(g[0] for g in update.gradients))
    assert len(shared) == sum(read.widths)
    torch.testing.assert_close(rows["record"].mean(0), shared, atol=1e-6, rtol=1e-4)


def test_along_the_way_the_mean_of_gradients_is_taken(generator: torch.Generator) -> None:
    model, update, private = scene()
    assert update.defense is not None
    path = tuple(0.1 * g[0] for g in update.gradients)
    update = replace(update, client=parse_client("fedavg:epochs=2"))
    read = reader_for(model, update, parse_defense("none"), 2, path, generator)
    rows = read(private[:1], generator, "rows", ("along",))
    assert rows is not None
    found = []
    for share_of_it in contributions.PATH:
        other = copy.deepcopy(model)
        with torch.no_grad():
            for p, way in zip(parameters_of(other)[1], path, strict=True):
                p.sub_(share_of_it * way)
        found.append(read.row(mean_gradient(other, F.cross_entropy, private.images[:1], private.labels[:1])))
    torch.testing.assert_close(rows["along"][0], torch.stack(found).mean(0), atol=1e-6, rtol=1e-4)


def test_the_model_is_left_as_it_was() -> None:
    model = batchnorm_model(SHAPE)
    before = copy.deepcopy(model.state_dict())
    _, parameters = parameters_of(model)
    pictures = records(16, SHAPE, 3, seed=2).images

    def spoilt() -> None:
        with with_statistics(model, pictures), moved_by(model, tuple(torch.ones_like(p) for p in parameters), 0.5):
            assert not model.network[1].training  # type: ignore[index, union-attr]
            raise RuntimeError("on purpose")

    with in_mode(model, "train"), pytest.raises(RuntimeError, match="on purpose"):
        spoilt()
    assert model.network[1].momentum == 0.1  # type: ignore[index, union-attr]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_in_train_mode_records_are_seen_with_statistics_of_others(generator: torch.Generator) -> None:
    """A large batch's statistics hardly depend on one record: what its records add is then nearly the update."""
    model, private = batchnorm_model(SHAPE), records(64, SHAPE, 3, seed=1)
    update = share(
        model, F.cross_entropy, private, parse_defense("none"), EVERYTHING, batch_size=64, classes=3, mode="train",
        generator=torch.Generator().manual_seed(0), auxiliary=records(64, SHAPE, 3, seed=3),
    )  # fmt: skip
    read = reader_for(model, update, parse_defense("none"), 2, None, generator)
    shared = read.row(tuple(g[0] for g in update.gradients))
    with in_mode(model, "train"), with_statistics(model, records(256, SHAPE, 3, seed=3).images):
        rows = read(private, generator, "rows")
    assert rows is not None
    assert float(F.cosine_similarity(rows["record"].mean(0), shared, dim=0)) > 0.8
