"""Every defense where labels are no classes: it releases targets that the loss takes, or refuses in one sentence."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from leakaudit.defenses.obscurer_fit import fit as fit_obscurer
from leakaudit.errors import UserError
from leakaudit.protocol import registry
from leakaudit.protocol.client import defended_gradient, release
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.target import Records
from leakaudit.protocol.weakened import weakened
from tests.attacks.task_scenes import KINDS, target

# (defense, kind): what it refuses, in its own words
REFUSED = {
    ("mixup", "segmentation"): "mixes labels",
    ("mixup", "mask of classes"): "mixes labels",
    ("instahide", "segmentation"): "mixes labels",
    ("instahide", "mask of classes"): "mixes labels",
    ("ats", "segmentation"): "moves pixels",
    ("ats", "mask of classes"): "moves pixels",
    ("soteria", "segmentation"): "dense layer",
    ("soteria", "mask of classes"): "dense layer",
    ("precode", "segmentation"): "dense layer",
    ("precode", "mask of classes"): "dense layer",
}
SHORT = {"steps": 1, "epochs": 1, "pictures": 1, "candidates": 2, "policies": 1, "latent": 4}


@cache
def fitted(name: str, kind: str) -> Defense:
    settings = registry.settings_of(registry.defenses()[name])
    spec = {k: v for k, v in SHORT.items() if k in settings and not (name == "ats" and k == "pictures")}
    defense = replace(registry.defenses()[name](), **spec)
    return defense.fit(target(kind), torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["one logit", "multi-label", "segmentation", "mask of classes"])
@pytest.mark.parametrize("name", sorted(registry.defenses()))
def test_every_defense_takes_every_kind_of_label(name: str, kind: str) -> None:
    made, rng = target(kind), torch.Generator().manual_seed(1)
    if (name, kind) in REFUSED:
        with pytest.raises(UserError, match=REFUSED[name, kind]) as caught:
            fitted(name, kind).transform_model(made.model, rng)
        assert "\n" not in str(caught.value)
        return
    defense, private = fitted(name, kind), made.private[:6]
    released = release(defense, private, rng)
    assert released.images.shape == private.images.shape
    if made.task.own_targets:
        assert released.labels.is_floating_point()
        assert released.labels.shape == private.taught.shape
    model = defense.transform_model(made.model, rng)
    shared = defended_gradient(model, made.loss, released.images, released.labels, defense, rng)
    assert all(bool(g.isfinite().all()) for g in shared)
    half = weakened(defense, 0.5, made.task)
    half_way = release(half, private, rng)
    assert half_way.labels.shape[0] == len(private)
    if made.task.values:  # a mask of classes stays one
        assert torch.equal(half_way.labels, half_way.labels.round())


def is_in(rows: Tensor, table: Tensor) -> bool:
    known = table.reshape(len(table), -1)
    return all(bool((row.flatten() == known).all(1).any()) for row in rows)


@pytest.mark.parametrize("name", ["class-conditional", "obscure"])
@pytest.mark.parametrize("kind", ["multi-label", "one number", "mask of classes"])
def test_what_replaces_records_releases_no_private_target(name: str, kind: str) -> None:
    made = target(kind)
    table, own = made.task.table, made.private
    assert table is not None
    assert is_in(table, made.auxiliary.taught)  # what stands for groups are auxiliary records' targets
    released = release(fitted(name, kind), own, torch.Generator().manual_seed(1)).labels
    if name == "class-conditional" or made.task.values:
        assert is_in(released, table)
    else:  # the mean of the table's, so within their range
        assert bool((released >= table.amin(0) - 1e-5).all())
        assert bool((released <= table.amax(0) + 1e-5).all())
    moved = Records(own.images, own.labels, targets=made.task.targets_of(own.labels))
    again = release(fitted(name, kind), moved, torch.Generator().manual_seed(1)).labels
    assert torch.equal(released, again)  # of a record's own target its group alone is asked


def test_masks_are_never_mirrored() -> None:
    drawn = fitted("obscure", "segmentation")
    assert drawn.obscurer is not None  # type: ignore[attr-defined]
    assert not drawn.obscurer.mirror  # type: ignore[attr-defined]
    assert drawn.mirror  # type: ignore[attr-defined]  # the setting stays what was asked for


def test_a_generator_without_classes_is_no_file() -> None:
    with pytest.raises(UserError, match="labels are no classes"):
        fit_obscurer(target("multi-label"), registry.defenses()["obscure"](), 0)  # type: ignore[arg-type]


def test_a_mixture_of_targets_is_the_mean_by_its_weights() -> None:
    made = target("one number")
    images = made.private.taught.view(-1, 1, 1, 1).expand(-1, 1, 8, 8)  # a picture that says its own target
    mixed = release(fitted("mixup", "one number"), replace(made.private, images=images), torch.Generator())
    torch.testing.assert_close(mixed.images[:, 0, 0, 0], mixed.labels.reshape(-1), atol=1e-5, rtol=0)


def test_the_table_has_every_kind() -> None:
    assert {kind for _, kind in REFUSED} <= set(KINDS)
