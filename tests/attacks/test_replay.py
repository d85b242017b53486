"""Replay finds the record through whatever is fixed, weighs noise as it must, and finds nothing where nothing is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn

from leakaudit.attacks import _playing, _replaying
from leakaudit.attacks._likelihood import Noise, Replays, certain, scores_of
from leakaudit.attacks._playing import Played, Way
from leakaudit.attacks.replay import ReleasedReplay, Replay
from leakaudit.audit.canary import KeyedPermutation
from leakaudit.errors import NotApplicable
from leakaudit.protocol.attack import Reconstruction
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.gradients import Mode
from leakaudit.protocol.registry import parse_defense
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.stats.intervals import tail
from tests import leaky
from tests.attacks.attack_scenes import (
    EVERYTHING,
    batchnorm_model,
    conv_model,
    dense_model,
    records,
    seeded,
    shared_update,
)

SHAPE, CANDIDATES, VICTIMS, CLASSES = (1, 8, 8), 16, 6, 2


@dataclass(frozen=True)
class Asked:
    """An attack's question, and the answer."""

    model: PixelModel
    update: SharedUpdate
    candidates: Tensor  # (V, M, C, H, W)
    position: Tensor  # (V,)

    def answer(self, attack: Replay | ReleasedReplay, seed: int = 0) -> Reconstruction:
        return attack.link(self.model, self.update, self.candidates, torch.Generator().manual_seed(seed))

    def hits(self, found: Reconstruction) -> int:
        assert found.statuses == ("converged",) * len(self.position)
        return int((self.firsts(found) == self.position).sum())

    def firsts(self, found: Reconstruction) -> Tensor:
        """Of equals the first: the position is uniformly random."""
        assert found.linkage is not None
        return (found.linkage == found.linkage.amax(1, keepdim=True)).int().argmax(1)


def asked(
    defense: Defense,
    build: Callable[..., PixelModel] = conv_model,
    *,
    batch: int = 1,
    mode: Mode = "eval",
    victims: int = VICTIMS,
) -> Asked:
    """Ask about the first record of each batch, in a line-up of its class; all of a class stand in each."""
    model, g = build(SHAPE), torch.Generator().manual_seed(2)
    pool = records(CLASSES * CANDIDATES, SHAPE, 3, seed=1).images.view(CLASSES, CANDIDATES, *SHAPE)
    label = torch.arange(victims) % CLASSES
    order = torch.stack([torch.randperm(CANDIDATES, generator=g) for _ in range(victims)])
    position = (order == (torch.arange(victims) // CLASSES)[:, None]).int().argmax(1)
    candidates = pool[label[:, None], order]
    own = Records(candidates[torch.arange(victims), position], label)
    if batch > 1:
        others = records(victims * (batch - 1), SHAPE, 3, seed=4)
        images = torch.cat([own.images[:, None], others.images.view(victims, batch - 1, *SHAPE)], 1)
        labels = torch.cat([own.labels[:, None], others.labels.view(victims, batch - 1)], 1)
        own = Records(images.flatten(0, 1), labels.flatten())
    auxiliary = records(24, SHAPE, 3, seed=3)
    update = shared_update(
        model, own, defense=defense, exposure=EVERYTHING, batch_size=batch, mode=mode, auxiliary=auxiliary
    )
    return Asked(model, replace(update, candidate_labels=label[:, None].expand(-1, CANDIDATES)), candidates, position)


def by_luck(hits: int, of: int = VICTIMS) -> bool:
    return tail(hits, of, 1 / CANDIDATES) > 1e-3


HIDE_NOTHING: dict[str, Callable[[], Defense]] = {
    **{cls.__name__: cls for cls in leaky.FIXED},
    "KeyedPermutation": KeyedPermutation,
    "prune": lambda: parse_defense("prune:sparsity=0.9995"),
    "sign": lambda: parse_defense("sign"),
    "none": Defense,
}


@pytest.mark.parametrize("name", HIDE_NOTHING)
def test_everybody_is_found_behind_what_is_fixed(name: str) -> None:
    builds = {"none": (dense_model, conv_model), "LastLayerNoise": (conv_model,), "PixelPermutation": (conv_model,)}
    for build in builds.get(name, (dense_model,)):
        scene = asked(HIDE_NOTHING[name](), build)
        assert scene.hits(scene.answer(Replay(draws=2))) == VICTIMS


@pytest.mark.parametrize("cls", [leaky.Zeros, leaky.Constant, leaky.PublicForm])
def test_where_nothing_is_left_all_candidates_score_alike(cls: type[Defense]) -> None:
    scene = asked(cls())
    for attack in (Replay(), *(() if cls is leaky.Zeros else (ReleasedReplay(),))):  # zeros replace no record
        found = scene.answer(attack)
        assert found.linkage is not None
        assert bool((found.linkage == found.linkage[:, :1]).all())
        assert found.certain is not None
        assert not found.certain.any()
        assert by_luck(scene.hits(found))


def test_pure_noise_leaves_nothing_to_find() -> None:
    scene = asked(leaky.Pure(), dense_model, victims=24)
    found = scene.answer(Replay())
    assert by_luck(scene.hits(found), 24)
    assert not found.certain.any()  # type: ignore[union-attr]


def made(between: float, draws: int, seed: int = 0) -> tuple[Tensor, Replays]:
    """Return rows that three clients sent under noise of known variances, and replays of five candidates."""
    g = torch.Generator().manual_seed(seed)
    variance = torch.rand(40, generator=g) + 0.5
    rows = between * torch.randn(5, 1, 40, generator=g) + torch.randn(5, draws, 40, generator=g) * variance.sqrt()
    seen = rows[:3].mean(1) + torch.randn(3, 40, generator=g) * variance.sqrt()
    return seen, Replays(rows, None, Noise(variance, torch.randn(30, 40, generator=g), False), (30, 10), draws)


@pytest.mark.parametrize("draws", [1, 4, 16])
def test_under_gaussian_noise_the_score_is_the_likelihood_ratio(draws: int) -> None:
    seen, replays = made(0.1, draws)
    spread = (replays.variance * (1 + 1 / draws)).sqrt()
    told = norm(replays.rows.mean(1).numpy(), spread.numpy())
    wanted = torch.stack([torch.from_numpy(told.logpdf(u.numpy()).sum(1)) for u in seen])
    found = scores_of(seen, replays)["likelihood"] / 2  # twice a log-likelihood
    ratio, truth = (each - each[:, :1] for each in (found.double(), wanted))
    torch.testing.assert_close(ratio, truth, rtol=5e-3, atol=2e-2)


def test_the_noise_of_a_defense_is_measured(generator: torch.Generator) -> None:
    model = dense_model(SHAPE)
    scene = asked(parse_defense("gaussian:std=0.3"), dense_model)
    client = _replaying.client_of(model, scene.update, parse_defense("gaussian:std=0.3"), records(6, SHAPE, 3, seed=5))
    few = [client.company[i : i + 1] for i in range(6)]
    played = _playing.prepared(Way(client.replay, client.bare), client.company, 4, generator)
    noise = played.noises[""]
    assert not played.steady
    assert float(noise.variance.mean()) * played.sizes[""] ** 2 == pytest.approx(0.09, rel=0.02)
    assert len(noise.residuals) == len(few) * _playing.REPEATS
    assert played.shifts is not None  # the same for every record: one replay is enough
    still = _playing.prepared(Way(client.bare, None), client.company, 4, generator)
    assert still.steady
    assert not still.noises[""].variance.any()


@pytest.mark.parametrize("std", [1e-3, 3e-3])
def test_noise_that_is_too_weak_is_seen_through_but_never_for_certain(std: float) -> None:
    scene = asked(parse_defense(f"gaussian:std={std}"))
    found = scene.answer(Replay())
    assert scene.hits(found) >= VICTIMS - 1
    assert not found.certain.any()  # type: ignore[union-attr]


def test_certain_is_a_part_that_equals_one_candidates_and_no_others() -> None:
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(6, 1, 40, generator=g)
    noise = Noise(torch.zeros(40), torch.zeros(12, 40), True)
    places = torch.stack([torch.randperm(6, generator=g) for _ in range(6)])
    rank = (places == torch.arange(6)[:, None]).int().argmax(1)

    def chosen(sent: Tensor, told: Tensor, bare: Tensor | None = None) -> list[int]:
        return certain(sent, Replays(told, bare, noise, (30, 10), 1), places).tolist()

    assert chosen(rows[:, 0], rows) == rank.tolist()
    assert chosen(rows[:, 0] * (1 + 1e-6), rows) == rank.tolist()  # but for rounding
    noisy = torch.randn(6, 40, generator=g)
    assert chosen(rows[:, 0] + 0.01 * noisy, rows) == [-1] * 6
    one = torch.cat([noisy[:, :30], rows[:, 0, 30:]], 1)  # a part is enough
    assert chosen(one, rows) == rank.tolist()
    assert chosen(rows[:, 0], noisy[:, None], rows[:, 0]) == rank.tolist()  # as without the defense
    twins = rows.clone()
    twins[1] = twins[0]
    assert chosen(twins[:, 0], twins) == [-1, -1, *rank.tolist()[2:]]
    assert chosen(rows[:, 0].sign(), rows.sign()) == [-1] * 6
    levels = (rows * 1.5).round()  # few magnitudes, so that equality is no coincidence worth a name
    assert chosen(levels[:, 0], levels) == [-1] * 6
    assert chosen(torch.zeros(6, 40), torch.zeros(6, 1, 40)) == [-1] * 6


@pytest.mark.parametrize("cls", [leaky.Failing, leaky.FailingNoise])
def test_a_defense_that_fails_now_and_then_is_certain_for_exactly_those_draws(cls: type[Defense]) -> None:
    scene = asked(cls(), victims=40)
    bare = asked(Defense(), victims=40).update.gradients
    failed = torch.stack([(a == b).flatten(1).all(1) for a, b in zip(scene.update.gradients, bare, strict=True)]).all(0)
    assert 0 < int(failed.sum()) < 20
    found = scene.answer(Replay())
    assert torch.equal(found.certain, failed)  # type: ignore[arg-type]
    assert bool((scene.firsts(found) == scene.position)[failed].all())


@pytest.mark.parametrize("spec", ["none", "KeyedPermutation", "gaussian:std=0.001"])
def test_a_record_is_found_in_a_batch(spec: str) -> None:
    defense = KeyedPermutation() if spec == "KeyedPermutation" else parse_defense(spec)
    scene = asked(defense, dense_model, batch=4, victims=24)
    found = scene.answer(Replay())
    assert tail(scene.hits(found), 24, 1 / CANDIDATES) < 1e-3
    assert found.labels is not None
    assert found.labels.shape == (24, 4)
    assert not found.certain.any()  # type: ignore[union-attr]


def test_nothing_is_found_in_a_batch_of_which_nothing_is_left() -> None:
    scene = asked(leaky.Zeros(), batch=4)
    found = scene.answer(Replay(draws=1))
    assert bool((found.linkage == found.linkage[:, :1]).all())  # type: ignore[index,union-attr]


def test_buffers_beside_strong_noise_are_examined_where_they_change() -> None:
    drowned = parse_defense("gaussian:std=1000")
    for mode, finds in (("train", True), ("eval", False)):
        scene = asked(drowned, batchnorm_model, mode=mode)  # type: ignore[arg-type]
        assert (scene.hits(scene.answer(Replay(draws=2))) == VICTIMS) is finds
    hidden = asked(drowned, batchnorm_model, mode="train")
    hidden = replace(hidden, update=replace(hidden.update, buffers=None))
    assert by_luck(hidden.hits(hidden.answer(Replay(draws=2))))


@pytest.mark.parametrize("cls", [Defense, leaky.ReusedNoise, leaky.LastLayerNoise, leaky.Negative, leaky.Failing])
def test_large_updates_are_sketched(cls: type[Defense], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_replaying, "FEATURES", 200)
    scene = asked(cls())
    assert sum(g[0].numel() for g in scene.update.gradients) > 5 * 200
    found = scene.answer(Replay(draws=2))
    if cls is leaky.Failing:
        sent = torch.stack([g.flatten(1).any(1) for g in scene.update.gradients]).any(0)
        assert torch.equal(found.certain, sent)  # type: ignore[arg-type]
    else:
        assert scene.hits(found) == VICTIMS


def dropout_model(shape: tuple[int, int, int]) -> PixelModel:
    size = shape[0] * shape[1] * shape[2]
    layers = lambda: nn.Sequential(nn.Flatten(), nn.Linear(size, 24), nn.Sigmoid(), nn.Dropout(0.3), nn.Linear(24, 3))  # noqa: E731
    return PixelModel(seeded(layers), [0.4], [0.25])


def test_what_the_model_draws_itself_is_replayed() -> None:
    scene = asked(Defense(), dropout_model, mode="train")
    found = scene.answer(Replay())
    assert scene.hits(found) >= VICTIMS - 2
    again = scene.answer(Replay())
    assert torch.equal(found.linkage, again.linkage)  # type: ignore[arg-type]


def test_the_model_and_the_random_state_are_as_they_were() -> None:
    scene = asked(parse_defense("gaussian"), batchnorm_model, mode="train")
    kept = {name: value.clone() for name, value in scene.model.state_dict().items()}
    modes = [module.training for module in scene.model.modules()]
    random = torch.random.get_rng_state()
    scene.answer(Replay(draws=2))
    assert all(torch.equal(kept[name], value) for name, value in scene.model.state_dict().items())
    assert [module.training for module in scene.model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), random)


def test_candidates_are_replayed_under_their_own_labels() -> None:
    scene = asked(leaky.ReusedNoise())  # from which no label can be read
    labels = scene.update.candidate_labels
    assert labels is not None
    found = scene.answer(Replay(draws=1))
    assert found.labels is not None
    assert torch.equal(found.labels, labels[:, :1])
    wrong = replace(scene, update=replace(scene.update, candidate_labels=(labels + 1) % 3))
    assert not wrong.answer(Replay(draws=1)).certain.any()  # type: ignore[union-attr]
    assert scene.answer(Replay(draws=1)).certain.all()  # type: ignore[union-attr]


def test_a_budget_that_ends_midway_leaves_those_who_were_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = asked(leaky.Negative())
    whole = Played.replays
    turns: list[int] = []

    def ended(self: Played, candidates: Records, label: str) -> dict[str, Replays] | None:
        turns.append(len(candidates))
        return whole(self, candidates, label) if len(turns) == 1 else None

    monkeypatch.setattr(Played, "replays", ended)
    found = scene.answer(Replay(draws=1))
    compared = torch.arange(VICTIMS) % CLASSES == 0  # the victims of the first class
    assert [status == "converged" for status in found.statuses] == compared.tolist()
    assert set(found.statuses) == {"converged", "budget"}
    assert torch.equal(found.certain, compared)  # type: ignore[arg-type]
    assert turns == [CANDIDATES] * 2  # of each class once, whatever number of victims


def test_the_order_of_candidates_does_not_matter() -> None:
    scene = asked(parse_defense("gaussian:std=0.01"))
    flipped = replace(scene, candidates=scene.candidates.flip(1))
    one, other = (each.answer(Replay(draws=2)).linkage for each in (scene, flipped))
    assert torch.equal(one.argmax(1), CANDIDATES - 1 - other.argmax(1))  # type: ignore[union-attr]


@pytest.mark.parametrize("attack", [Replay(), ReleasedReplay()], ids=lambda a: a.name)
def test_without_what_it_needs_it_does_not_apply(attack: Replay | ReleasedReplay, generator: torch.Generator) -> None:
    scene = asked(leaky.Negative())
    for fact in ("defense", *(("released", "released_labels") if attack.name == "released-replay" else ())):
        without = replace(scene, update=replace(scene.update, **{fact: None}))
        with pytest.raises(NotApplicable, match="not exposed"):
            without.answer(attack)
    with pytest.raises(NotApplicable, match="candidates"):
        attack(scene.model, scene.update, generator)
    with pytest.raises(ValueError, match="at least 1"):
        replace(attack, draws=0)


@pytest.mark.parametrize("size", [2, 5])
def test_a_short_line_up_that_is_repeated_to_fill_its_row_is_certain_too(size: int) -> None:
    scene = asked(leaky.ReusedNoise())
    order = [scene.position, *((scene.position + k) % CANDIDATES for k in range(1, size))]
    columns = torch.stack([order[k % size] for k in range(CANDIDATES)], 1)
    candidates = scene.candidates[torch.arange(VICTIMS)[:, None], columns]
    found = replace(scene, candidates=candidates, position=torch.zeros(VICTIMS, dtype=torch.long)).answer(
        Replay(draws=1)
    )
    assert found.certain.all()  # type: ignore[union-attr]


def test_a_candidate_is_tried_at_every_place_of_a_batch() -> None:
    scene = asked(leaky.LastOfBatch(), dense_model, batch=2, victims=6)
    assert scene.update.released is not None
    line_ups = records(6 * CANDIDATES, SHAPE, 3, seed=9).images.view(6, CANDIDATES, *SHAPE)
    line_ups[:, 5] = scene.update.released[:, 1]
    assert scene.update.released_labels is not None
    labels = scene.update.released_labels[:, 1:].expand(-1, CANDIDATES)
    last = Asked(scene.model, replace(scene.update, candidate_labels=labels), line_ups, torch.full((6,), 5))
    assert not by_luck(last.hits(last.answer(Replay(draws=2))))


class WeakChoice(leaky.Planted):
    """A public picture, chosen nearly at random: of 300, by a place on a line that the record moves a little."""

    pictures = torch.rand((300, *SHAPE), generator=torch.Generator().manual_seed(0))

    def transform_records(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        seen = (images.flatten(1) - 0.5) @ leaky.keyed((64, 8))
        odds = (0.3 * nn.functional.normalize(seen) @ leaky.keyed((8, 300), 5)).softmax(1).cumsum(1)
        chosen = torch.searchsorted(odds, torch.rand(len(images), 1, generator=generator))[:, 0]
        return self.pictures[chosen.clamp_max(299)], labels


def test_what_is_certain_is_never_wrong() -> None:
    scene = asked(WeakChoice(), dense_model, victims=24)
    for seed in range(3):
        found = scene.answer(Replay(), seed)
        assert not found.certain[scene.firsts(found) != scene.position].any()  # type: ignore[index]


def test_the_scale_of_an_update_hides_nothing() -> None:
    scene = asked(leaky.Minute(), dense_model)
    assert scene.hits(scene.answer(Replay(draws=1))) == VICTIMS


def test_a_part_of_zeros_changes_no_score() -> None:
    seen, replays = made(1.0, 4)
    found, noise = scores_of(seen, replays), replays.noise
    silent = Noise(nn.functional.pad(noise.variance, (0, 6)), nn.functional.pad(noise.residuals, (0, 6)), False)
    wider = Replays(nn.functional.pad(replays.rows, (0, 6)), None, silent, (*replays.widths, 6), 4)
    for name, scores in scores_of(nn.functional.pad(seen, (0, 6)), wider).items():
        torch.testing.assert_close(scores, found[name], rtol=1e-2, atol=1e-2, msg=name)


@pytest.mark.parametrize("cls", leaky.BY_LOT)
def test_entries_that_are_sent_as_they_are_tell_whose_they_are(cls: type[Defense]) -> None:
    scene = asked(cls(), dense_model, victims=12)
    assert not by_luck(scene.hits(scene.answer(Replay(draws=2))), 12)
