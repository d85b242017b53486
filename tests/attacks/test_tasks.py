"""Every attack where labels are no classes: it works, or says in one sentence why it is not applicable."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import pytest
import torch
from torch.nn import functional as F

from leakaudit.attacks._labels import known_labels
from leakaudit.attacks._residual import residuals
from leakaudit.attacks.dlg import DLG, IDLG
from leakaudit.attacks.inverting_gradients import InvertingGradients
from leakaudit.attacks.labels import Labels
from leakaudit.attacks.linkage import Linkage
from leakaudit.attacks.replay import Replay
from leakaudit.errors import NotApplicable
from leakaudit.protocol import registry
from leakaudit.protocol.attack import Attack, Reconstruction
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.gradients import example_gradients, fast_example_gradients
from leakaudit.protocol.labels import hard
from leakaudit.protocol.target import PixelModel
from leakaudit.score.metrics import psnr
from leakaudit.score.tuning import quality
from tests.attacks.task_scenes import KINDS, scene, target, with_line_ups
from tests.attacks.test_every_attack import small

SHORT = {"steps": 1, "undo_steps": 1, "decoder_steps": 1, "restarts": 1, "draws": 2, "pairs": 12, "samples": 4096}
# (attack, kind): why it cannot work there, as a pattern of its own words
REASONS: dict[tuple[str, str], str] = {
    **{("fishing", kind): "a record's label is no class" for kind in KINDS},
    **{("cocktail-party", kind): "as many outputs as there are records" for kind in KINDS},
    **{
        (name, kind): reason
        for kind in ("segmentation", "mask of classes")
        for name, reason in {
            "april": "does not cut the picture into patches",
            "r-gap": "the last layer is not dense",
            "learned-start": "no dense layer gives the outputs",
        }.items()
    },
}


def run(attack: Attack, model: PixelModel, update: SharedUpdate, kind: str) -> Reconstruction:
    generator = torch.Generator().manual_seed(3)
    if attack.kind == "linkage":
        seen, candidates = with_line_ups(update, kind)
        return attack.link(model, seen, candidates, generator)
    return attack(model, update, generator)


@pytest.mark.parametrize("kind", ["one logit", "multi-label", "mask of classes"])
@pytest.mark.parametrize("name", sorted(registry.attacks()))
def test_every_attack_takes_every_kind_of_label(name: str, kind: str) -> None:
    settings = registry.settings_of(registry.attacks()[name])
    attack = dataclasses.replace(small(name), **{k: v for k, v in SHORT.items() if k in settings})
    masks = KINDS[kind].masks and attack.needs.defense == "soteria"  # it defends a dense layer
    batch = 1 if attack.needs.one_record else 2
    try:
        model, update, _ = scene(kind, attack, batch, kind="dense" if masks else "")
        found = run(attack, model, update, kind)
    except NotApplicable as refusal:
        told = str(refusal)
    else:
        told = ""
    if told:
        assert REASONS.get((name, kind), "it works here") in told
        return
    assert set(found.statuses) <= {"converged", "diverged"}
    assert found.labels is not None
    assert not found.labels.is_floating_point()
    assert found.labels.shape == (update.victims, update.batch_size)
    assert 0 <= int(found.labels.min()) <= int(found.labels.max()) < update.classes
    if attack.kind == "reconstruction":
        assert found.images is not None
        assert bool(found.images.isfinite().all())


@pytest.mark.parametrize("spec", ["none", "gaussian:std=1e-4"])
@pytest.mark.parametrize("kind", ["one logit", "multi-label", "soft labels", "regression", "one number"])
def test_what_one_record_was_taught_is_read_off_the_head(kind: str, spec: str) -> None:
    model, update, private = scene(kind, Labels(), defense=registry.parse_defense(spec), victims=16)
    found = known_labels(model, update, torch.Generator().manual_seed(1))
    if update.task.own_targets:
        assert found.is_floating_point()
        torch.testing.assert_close(found[:, 0], private.taught, atol=1e-6 if spec == "none" else 3e-3, rtol=0)
    else:
        assert torch.equal(found[:, 0], private.labels)


@pytest.mark.parametrize("kind", ["one logit", "multi-label"])
@pytest.mark.parametrize("spec", ["clip:max_norm=1e-3", "gaussian:std=0.01", "sign"])
def test_findings_are_told_by_their_signs_whatever_the_lengths(kind: str, spec: str) -> None:
    model, update, private = scene(kind, Labels(), defense=registry.parse_defense(spec), victims=16)
    found = known_labels(model, update, torch.Generator().manual_seed(1))
    assert torch.equal(found[:, 0].float(), private.taught.float())


def test_a_mixed_target_is_read_off_as_it_is() -> None:
    fitted = registry.parse_defense("mixup").fit(target("multi-label"), torch.Generator().manual_seed(0))
    model, update, _ = scene("multi-label", Labels(), defense=fitted, victims=8)
    bare = dataclasses.replace(update, labels=None)
    found = known_labels(model, bare, torch.Generator().manual_seed(1))
    assert update.released_labels is not None
    torch.testing.assert_close(found, update.released_labels, atol=1e-5, rtol=0)
    assert bool(((found > 0.01) & (found < 0.99)).any()) or torch.equal(found, found.round())


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_of_batches_more_label_groups_are_found_than_by_chance(kind: str) -> None:
    model, update, private = scene(kind, Labels(), 8, victims=5)
    found = hard(known_labels(model, update, torch.Generator().manual_seed(1)), update.task)
    counts = [
        [torch.bincount(row, minlength=update.classes) for row in each] for each in (found, private.labels.view(5, 8))
    ]
    right = sum(int(torch.minimum(a, b).sum()) for a, b in zip(*counts, strict=True))
    assert right / 40 > 1.2 / update.classes


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_replay_is_certain_of_an_undefended_record(kind: str) -> None:
    model, update, _ = scene(kind, Replay(), victims=6)
    found = run(Replay(), model, update, kind)
    assert found.linkage is not None
    assert found.certain is not None
    assert bool((found.linkage.argmax(1) == 0).all())
    assert bool(found.certain.all())


@pytest.mark.parametrize("kind", ["multi-label", "regression", "segmentation"])
def test_two_records_of_one_picture_are_told_apart_by_their_targets(kind: str) -> None:
    model, update, _ = scene(kind, Replay(), victims=2)
    seen, candidates = with_line_ups(update, kind)
    assert seen.candidate_targets is not None
    assert seen.candidate_labels is not None
    candidates[:, 1] = candidates[:, 0]  # the same picture, with another's target
    groups = seen.candidate_labels[:, :1].expand_as(seen.candidate_labels)  # that is of the same group
    found = Replay().link(
        model, dataclasses.replace(seen, candidate_labels=groups), candidates, torch.Generator().manual_seed(3)
    )
    assert found.linkage is not None
    assert bool((found.linkage.argmax(1) == 0).all())


@pytest.mark.parametrize("kind", ["one logit", "multi-label", "regression", "segmentation", "mask of classes"])
def test_linkage_finds_undefended_records(kind: str) -> None:
    model, update, _ = scene(kind, Linkage(), victims=6)
    found = run(Linkage(), model, update, kind)
    assert found.linkage is not None
    assert bool((found.linkage.argmax(1) == 0).all())


class Guessing(InvertingGradients):
    """The same, with the targets that stand for the guessed label groups."""

    seeks_targets: ClassVar[bool] = False


@pytest.mark.parametrize("kind", ["multi-label", "segmentation", "mask of classes"])
def test_matching_seeks_the_targets_that_nothing_tells(kind: str) -> None:
    attack = registry.parse_attack("inverting-gradients:steps=150:tv=1e-3")
    batch, victims, network = (1, 8, "deep") if KINDS[kind].masks else (2, 4, "conv")
    model, update, private = scene(kind, attack, batch, victims=victims, kind=network)
    found = attack(model, update, torch.Generator().manual_seed(3))
    misled = Guessing(steps=150, tv=1e-3)(model, update, torch.Generator().manual_seed(3))
    assert found.images is not None
    assert found.images.shape == (victims, batch, 1, 8, 8)
    apart, mistaken = quality(found, update, private), quality(misled, update, private)
    assert update.auxiliary is not None
    mean = update.auxiliary.images.mean(0).expand_as(private.images)
    assert apart > float(psnr(private.images, mean).median()) + 1  # the picture that is nearest to all
    assert apart > mistaken + 3


def test_dlg_finds_target_and_picture_together() -> None:
    attack = DLG(steps=200)
    model, update, private = scene("regression", attack, victims=2, kind="dense")
    found = attack(model, update, torch.Generator().manual_seed(3))
    assert found.images is not None
    assert found.labels is not None
    torch.testing.assert_close(found.images[:, 0], private.images, atol=0.1, rtol=0)
    assert torch.equal(found.labels[:, 0], private.labels)


def test_a_residual_is_as_wide_as_the_outputs_whatever_the_groups() -> None:
    model, update, private = scene("multi-label", Labels(), victims=3)
    found = residuals(model, update, torch.Generator().manual_seed(0))
    assert update.classes != found.shape[2]
    x = private.images.clone()
    logits = model(x)
    (expected,) = torch.autograd.grad(3 * F.binary_cross_entropy_with_logits(logits, private.taught), logits)
    torch.testing.assert_close(found[:, 0], expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_gradients_of_records_together_are_those_of_each_alone(kind: str) -> None:
    made = target(kind)
    records = made.private[:4]
    for taught in {id(t): t for t in (records.taught, records.labels)}.values():
        together = fast_example_gradients()(made.model, made.loss, records.images, taught)
        alone = example_gradients(made.model, made.loss, records.images, taught)
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", ["one logit", "multi-label", "regression"])
def test_idlg_is_not_ended_by_a_small_loss(kind: str) -> None:
    """A mean over many findings has small gradients, and the tolerances of L-BFGS are absolute."""
    model, update, private = scene(kind, IDLG(), victims=2, kind="dense")
    loss = update.loss
    tiny = tuple(1e-3 * g for g in update.gradients)
    update = dataclasses.replace(update, gradients=tiny, loss=lambda z, y: 1e-3 * loss(z, y))
    found = IDLG()(model, update, torch.Generator().manual_seed(3))
    assert found.statuses == ("converged", "converged")
    assert quality(found, update, private) > 30


@pytest.mark.parametrize("kind", ["multi-label", "regression"])
def test_an_inversion_is_learned_from_the_heads_input_where_outputs_are_no_classes(kind: str) -> None:
    attack = registry.parse_attack("learned-inversion")
    model, update, private = scene(kind, attack, victims=6, kind="conv")
    assert quality(attack(model, update, torch.Generator().manual_seed(3)), update, private) > 40
