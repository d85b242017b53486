"""Augmentation in training: what it makes of a picture, the same for every row, and what is said of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from leakaudit.audit.stages import trained_to
from leakaudit.compare.comparable import unlike_target
from leakaudit.errors import UserError
from leakaudit.judge.scope import assumptions
from leakaudit.load.loading import load_target
from leakaudit.protocol.registry import parse_defense
from leakaudit.protocol.target import Records
from leakaudit.result.augmentation import AUGMENTATIONS, augmentation_from, told
from leakaudit.scene.plan import Plan
from leakaudit.scene.provenance import describe
from leakaudit.score import utility as scoring
from leakaudit.score.augmentation import augmented
from leakaudit.score.utility import Senders, train, utility
from tests.leakaudit.audited import target
from tests.leakaudit.results import result


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def results(picture: Tensor, names: tuple[str, ...]) -> list[Tensor]:
    """Return all that may become of a picture (C, H, W) under these augmentations."""
    found = [picture]
    if "crop" in names:
        down, across = picture.shape[1] // 8, picture.shape[2] // 8
        padded = F.pad(picture[None], (across, across, down, down), mode="reflect")[0]
        found = [
            padded[:, y : y + picture.shape[1], x : x + picture.shape[2]]
            for y in range(2 * down + 1)
            for x in range(2 * across + 1)
        ]
    return [*found, *(each.flip(2) for each in found)] if "mirror" in names else found


@pytest.mark.parametrize("names", [(), ("crop",), ("mirror",), ("crop", "mirror")])
def test_a_picture_becomes_one_of_those_that_can_be_enumerated_and_each_comes_up(names: tuple[str, ...]) -> None:
    picture = torch.rand((2, 8, 16), generator=rng())
    expected = results(picture, names)
    given = picture.expand(400, -1, -1, -1)
    found = augmented(given, names, rng(1))
    assert found.shape == given.shape
    hits = [sum(torch.equal(each, one) for each in found) for one in expected]
    assert sum(hits) == 400
    assert min(hits) > 0
    assert torch.equal(found, augmented(given, names, rng(1)))
    assert len(expected) == 1 or not torch.equal(found, augmented(given, names, rng(2)))


def test_a_picture_too_small_for_a_crop_is_not_moved() -> None:
    pictures = torch.rand((5, 1, 7, 7), generator=rng())
    assert torch.equal(augmented(pictures, ("crop",), rng(1)), pictures)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (None, ()),
        ("", ()),
        ("none", ()),
        ((), ()),
        ("mirror", ("mirror",)),
        ("mirror , crop", ("crop", "mirror")),
        (["mirror", "crop", "mirror"], ("crop", "mirror")),
    ],
)
def test_names_are_read_in_the_order_they_act_in(given: Any, names: tuple[str, ...]) -> None:
    assert augmentation_from(given) == names


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("mirorr", "unknown augmentation 'mirorr' (did you mean 'mirror'?); it takes crop, mirror."),
        (("crop", "rotate"), "unknown augmentation 'rotate'"),
        (3, "`augment` is 3: give some of crop, mirror, or none."),
        ([1], "give some of crop, mirror"),
    ],
)
def test_what_is_no_augmentation_is_refused_in_one_sentence(given: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        augmentation_from(given)
    assert message in str(caught.value)


def test_every_name_does_something_and_is_said_in_words() -> None:
    pictures = torch.rand((50, 1, 16, 16), generator=rng())
    for name, words in AUGMENTATIONS.items():
        assert not torch.equal(augmented(pictures, (name,), rng(1)), pictures)
        assert told({"augment": name}) == words
    assert told({"augment": "crop, mirror"}) == "cropped and mirrored"
    assert told({}) == ""


def test_model_py_names_it(tmp_path: Path) -> None:
    file = tmp_path / "model.py"
    text = (
        "import torch\nfrom torch.utils.data import TensorDataset\n"
        "model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))\n"
        "train_data = TensorDataset(torch.rand(40, 1, 8, 8), torch.arange(40) % 2)\n"
    )
    file.write_text(text + 'augment = "crop, mirror"\n')
    assert load_target(str(file)).augment == ("crop", "mirror")
    file.write_text(text + 'augment = "crops"\n')
    with pytest.raises(UserError, match=r"model\.py: unknown augmentation 'crops'"):
        load_target(str(file))


def test_labels_stay_and_released_pictures_are_moved_as_private_ones_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """What each row trains on is that row's records under the same draws: nothing depends on the defense."""
    seen: list[tuple[Tensor, Tensor]] = []

    def spied(images: Tensor, names: Any, generator: torch.Generator) -> Tensor:
        out = augmented(images, names, generator)
        seen.append((images, out))
        return out

    monkeypatch.setattr(scoring, "augmented", spied)
    of = replace(target(), augment=("mirror",))
    coins = []
    for released in (of.private, Records(of.private.images.flip(2), of.private.labels)):
        seen.clear()
        utility(of, parse_defense("none"), released, senders=Senders(8), epochs=2, seeds=1, seed=3)
        coins.append([[not torch.equal(a, b) for a, b in zip(*pair, strict=True)] for pair in seen])
    assert coins[0] == coins[1]
    assert {coin for batch in coins[0] for coin in batch} == {False, True}


def test_training_with_it_is_another_training_and_the_same_by_seed() -> None:
    of = target()

    def weights(augment: tuple[str, ...], seed: int = 1) -> Tensor:
        model = of.fresh(0)
        train(model, of.private, of.loss, epochs=1, seed=seed, augment=augment)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(weights(("crop",)), weights(("crop",)))
    assert not torch.equal(weights(("crop",)), weights(()))
    plan = Plan(battery="quick", epochs=2, stages=("trained",))
    plain, moved = (trained_to(replace(of, augment=names), "trained", plan).model for names in ((), ("crop", "mirror")))
    assert any(not torch.equal(a, b) for a, b in zip(plain.parameters(), moved.parameters(), strict=True))


def test_the_result_says_it_where_models_are_trained_and_two_that_differ_are_not_compared() -> None:
    said = "In training pictures are cropped and mirrored at random, for every defense alike."
    plain, moved = describe(target()), describe(replace(target(), augment=("crop", "mirror")))
    assert moved == plain | {"augment": "crop, mirror"}
    for plan, trains in ((Plan(), True), (Plan(utility=False), False), (Plan(utility=False, stages=("early",)), True)):
        assert (said in assumptions(plan.settings(), {}, moved)) == trains
        assert said not in assumptions(plan.settings(), {}, plain)
    before = result(target=plain)
    told_apart = "the augmentation of pictures in training is none there and crop, mirror here"
    assert unlike_target(before, moved, {}) == (told_apart,)
    assert unlike_target(before, plain, {}) == ()
