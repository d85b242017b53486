"""The benchmark of the four claims, on sizes of seconds: what it writes, that it goes on, and that it tells no lies."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import frontier, obscure
from benchmarks.adversaries import Count, Effort, Opponents
from benchmarks.distinct import distances, nearest_error
from benchmarks.federated import Client, averaged, fedavg, iid, skewed
from benchmarks.measuring import Scene, measure
from benchmarks.membership import by_weights
from benchmarks.rows import Piece, code_version
from benchmarks.views import pooled
from leakaudit.protocol.attack import Reconstruction
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.gradients import mean_gradient
from leakaudit.protocol.registry import parse_defense
from leakaudit.protocol.target import PixelModel, Records, Target
from leakaudit.score.utility import PEAK_RATE
from leakaudit.work.seeding import derive

TINY = frontier.Size(
    name="tiny",
    epochs={"lfw": 2, "mnist": 2},
    rounds=1,
    seeds=1,
    distances=12,
    effort=Effort(
        released=Count(12, 6),
        linked=Count(8, 4),
        inverted=Count(2, 1),
        pooled=Count(4, 2),
        views=3,
        candidates=8,
        steps=3,
        tuned=1,
        decoder_steps=3,
        draws=1,
    ),
    settings={"steps": "2", "epochs": "1", "latent": "8", "width": "8"},
    federated={"steps": "1", "epochs": "1", "latent": "4", "width": "8"},
)
REQUIRED = {
    "dataset", "defense", "strength", "accuracy", "accuracy_low", "accuracy_high", "attack", "identification",
    "identification_low", "identification_high", "chance", "r2",
}  # fmt: skip


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 64, 2))


def drawn(count: int, generator: torch.Generator) -> Records:
    """Return noisy pictures (count, 1, 8, 8) of two classes: brighter on the left, and on the right."""
    labels = torch.arange(count) % 2
    images = 0.5 * torch.rand((count, 1, 8, 8), generator=generator)
    images[labels == 0, :, :, :4] += 0.3
    images[labels == 1, :, :, 4:] += 0.3
    return Records(images, labels)


@pytest.fixture
def target(generator: torch.Generator) -> Target:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = PixelModel(network(), [0.4], [0.3])
    sets = [drawn(count, generator) for count in (48, 40, 36)]
    return Target("tiny", model, F.cross_entropy, *sets, classes=("0", "1"))


@pytest.fixture
def tiny(target: Target, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make the command measure the tiny target as `lfw`; the list grows with every target that is built."""
    built: list[int] = []

    def build(size: frontier.Size, seed: int) -> Target:
        built.append(seed)
        return target

    monkeypatch.setitem(obscure.TARGETS, "lfw", build)
    monkeypatch.setattr(obscure, "SMALL", TINY)
    monkeypatch.setattr(obscure, "perceptual", lambda: "not in tests")
    return built


def run(file: Path, *more: str, dataset: str = "lfw") -> list[dict[str, Any]]:
    obscure.main(["--quick", "--datasets", dataset, "--json", str(file), "--seeds", "1", *more])
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [row for line in lines for row in line["rows"]]


def test_every_row_has_its_fields_and_every_control_is_there(
    tiny: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    specs = ("none", "class-conditional", "gaussian:std=0.5", "public-only", "no-such-defense")
    rows = run(tmp_path / "rows.json", "--defenses", *specs, "--plot", str(tmp_path / "plot.svg"))
    assert all(row.keys() >= REQUIRED for row in rows)
    assert all(0 <= row["accuracy"] <= 1 for row in rows if row["kind"] in ("attack", "worst", "control"))
    kinds = {spec: {row["kind"] for row in rows if row["spec"] == spec} for spec in specs}
    assert kinds["none"] == {"attack", "labels", "weights", "worst", "selected"}
    assert kinds["class-conditional"] == {"attack", "labels", "distinct", "weights", "worst", "selected"}
    assert kinds["public-only"] == {"control"}
    assert {row["setting"] for row in rows if row["spec"] == "public-only"} == {"public-data"}
    views = {(row["spec"], row["attack"]): set() for row in rows if row["kind"] == "attack"}
    for row in rows:
        if row["kind"] == "attack":
            assert row["status"] == "measured", row["reason"]
            assert row["identification_low"] <= row["identification"] <= row["identification_high"]
            views[row["spec"], row["attack"]].add(row["views"])
    assert views["none", "linkage"] == {1}  # the same update again says nothing
    assert views["gaussian:std=0.5", "linkage"] == {1, 3}
    assert views["class-conditional", "released-linkage"] == {1, 3}
    assert all(row["piece_seconds"] > 0 for row in rows)
    shown = capsys.readouterr().out
    assert f"4 pieces in 0 minutes: 4 by code {code_version()} on cpu" in shown
    assert "skipped: no-such-defense" in shown
    assert "chance 12.5 %" in shown
    assert "none (needs no public data)" in shown
    assert "<svg" in (tmp_path / "plot.svg").read_text(encoding="utf-8")


def test_undefended_records_are_found_and_generated_ones_are_not(target: Target) -> None:
    effort = replace(TINY.effort, released=Count(40, 6), linked=Count(40, 6), views=1)
    found = {}
    for spec in ("none", "class-conditional:latent=8"):
        blind = frontier.client_side(target, "private-only")
        assert len(blind.auxiliary) == len(blind.test) == 0
        defense = parse_defense(spec).fit(blind, torch.Generator().manual_seed(0))
        opponents = Opponents(target, spec, defense, effort, 0)
        attacks = {attack.name: (attack, role) for attack, role in opponents.attacks()}
        for name in ("linkage", "released-linkage"):
            if name in attacks:
                found[defense.name, name] = opponents.run(*attacks[name])[0].private.identification
    assert found["none", "linkage"].value == 1
    for name in ("linkage", "released-linkage"):
        assert found["class-conditional", name].low < 1 / 8
        assert found["class-conditional", name].value < 0.5


def test_fedavg_is_a_piece_of_its_own_with_both_splits(
    target: Target, tiny: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(obscure.TARGETS, "mnist", lambda size, seed: target)
    monkeypatch.setattr(obscure, "FILES", {})
    monkeypatch.setattr(frontier, "SWEEP", ((frontier.PRIVATE, "none"),))
    monkeypatch.setattr(frontier, "QUICK", ("none",))
    monkeypatch.setattr(obscure, "SMALL", replace(TINY, clients=("none",)))
    rows = run(tmp_path / "rows.json", dataset="mnist")
    assert [row["split"] for row in rows if row["kind"] == "federated"] == ["iid", "skewed"]
    assert all(0 <= row["accuracy"] <= 1 for row in rows if row["kind"] == "federated")
    assert len((tmp_path / "rows.json").read_text().splitlines()) == 2


def test_a_run_goes_on_where_the_last_one_ended(tiny: list[int], tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    first = run(file, "--defenses", "none", "gaussian:std=0.5")
    assert tiny == [0]
    assert run(file, "--defenses", "none", "gaussian:std=0.5") == first
    assert tiny == [0]  # nothing was measured again
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    file.write_text(lines[0] + lines[1][:-40], encoding="utf-8")  # killed as it wrote the second piece
    again = run(file, "--defenses", "none", "gaussian:std=0.5")
    assert tiny == [0, 0]

    def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in rows]

    assert without_times(again) == without_times(first)
    with pytest.raises(SystemExit):
        run(file, "--seed", "1")


def test_an_interrupt_leaves_whole_pieces_only(
    tiny: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(scene: Scene, piece: Piece) -> Any:
        for i, row in enumerate(measure(scene, piece)):
            if piece.spec == "sign" and i == 2:
                raise KeyboardInterrupt
            yield row

    monkeypatch.setattr(obscure, "measure", interrupted)
    assert {row["spec"] for row in run(tmp_path / "rows.json", "--defenses", "none", "sign")} == {"none"}


def test_fedavg_of_one_step_each_is_the_weighted_average(target: Target) -> None:
    private = target.private
    parts = [private[:6], private[6:18]]
    clients = [Client(part, Defense(), part) for part in parts]
    # With a batch as large as the shard each client takes one step of Adam, the first: rate · g / (|g| + 1e-8).
    model = target.fresh(derive(3, "fedavg"))
    with torch.no_grad():
        steps = []
        for part in parts:
            with torch.enable_grad():
                gradient = mean_gradient(model, target.loss, part.images, part.labels)
            steps.append([-PEAK_RATE * g / (g.abs() + 1e-8) for g in gradient])
        for p, a, b in zip(model.parameters(), *steps, strict=True):
            p += (6 * a + 12 * b) / 18
    found = fedavg(target, clients, rounds=1, batch_size=12, seed=3)
    assert found.training is False
    for mine, theirs in zip(model.parameters(), found.parameters(), strict=True):
        torch.testing.assert_close(theirs, mine)


def test_averaging_weighs_by_records_and_leaves_counters() -> None:
    states = [
        {"w": torch.tensor([0.0, 3.0]), "n": torch.tensor(2)},
        {"w": torch.tensor([3.0, 0.0]), "n": torch.tensor(5)},
    ]
    found = averaged(states, [1, 2])
    torch.testing.assert_close(found["w"], torch.tensor([2.0, 1.0]))
    assert int(found["n"]) == 2


@pytest.mark.parametrize("classes", [10, 2])
def test_splits_are_partitions_and_the_skewed_one_is_by_class(classes: int, generator: torch.Generator) -> None:
    labels = torch.randint(classes, (200,), generator=generator)
    for split in (iid, skewed):
        parts = split(labels, 5, generator)
        assert len(parts) == 5
        assert torch.cat(parts).sort().values.tolist() == list(range(200))
    held = [set(labels[part].tolist()) for part in parts]
    assert all(len(each) == max(1, classes // 5) for each in held)
    assert min(len(set(labels[part].tolist())) for part in iid(labels, 5, generator)) > classes // 5


def test_views_are_pooled_record_by_record(generator: torch.Generator) -> None:
    images, scores = torch.rand((6, 1, 1, 2, 2), generator=generator), torch.rand((6, 4), generator=generator)
    scores[3:] *= 100  # a view's scale must not decide
    guess = Reconstruction(
        images, torch.arange(6)[:, None], torch.zeros(6), ("converged",) * 5 + ("diverged",), linkage=scores
    )
    found = pooled(guess, 3)
    assert found.images is not None
    assert found.linkage is not None
    torch.testing.assert_close(found.images, (images[:3] + images[3:]) / 2)
    standard = (scores - scores.mean(1, keepdim=True)) / scores.std(1, keepdim=True, correction=0)
    torch.testing.assert_close(found.linkage, standard[:3] + standard[3:])
    assert found.statuses == ("converged", "converged", "diverged")


def test_a_permutation_of_the_private_records_is_not_distinct(target: Target, generator: torch.Generator) -> None:
    private = target.private
    shifted = Records(private.images.roll(2, 0), private.labels)  # the picture of another record of the class
    found = distances(target, shifted, 40, "none", generator)
    assert (found["mse_released"] or 0) > 0.01
    assert found["nearest_private_released"] == pytest.approx(0, abs=1e-12)
    assert (found["nearest_private_test"] or 0) > 0.001
    assert (found["nearer_private"] or 0) >= 0.7  # only those in the drawn part of the set can be found there
    fresh = distances(target, drawn(48, generator), 40, "none", generator)
    assert fresh["nearer_private_low"] is not None
    assert fresh["nearer_private_low"] < 0.5
    assert fresh["lpips_released"] is None
    one, two = private.images[:1], private.images[1:2]
    torch.testing.assert_close(nearest_error(one, two), (one - two).double().square().mean().view(1))


def test_the_weights_of_a_classifier_that_knows_its_records_tell_them(target: Target) -> None:
    (alone,) = by_weights(target, Defense(), target.private, target.model, 10, 8, 0)
    assert alone.by == "the trained model's loss"
    members = {picture.numpy().tobytes() for picture in target.private.images}

    class Knowing(nn.Module):
        def logits(self, pictures: torch.Tensor) -> torch.Tensor:
            sure = torch.tensor([[9.0 if p.numpy().tobytes() in members else 0.0] for p in pictures])
            return sure * F.one_hot((pictures[..., 4:].mean((1, 2, 3)) > pictures[..., :4].mean((1, 2, 3))).long(), 2)

    class Owner(Defense):
        reference = Knowing()

    found = {k.by: k for k in by_weights(target, Owner(), target.private, target.model, 20, 8, 0)}
    assert found["reference"].auc == 1
    assert found["reference"].identification.value == 1
    assert found["the trained model's loss"].auc < 0.8  # it was not trained


def test_released_copies_give_their_records_away(target: Target) -> None:
    class Copies(Defense):
        replaces_records = True

    found = {k.by: k for k in by_weights(target, Copies(), target.private, target.model, 20, 8, 0)}
    assert found["pictures"].auc == 1


def test_settings_are_added_only_where_a_defense_has_them_open() -> None:
    added = {"latent": "5", "mirror": "false"}
    assert frontier.effective("none", added) == "none"
    assert frontier.effective("obscure:latent=7", added) == "obscure:latent=7:mirror=false"
    assert frontier.effective("class-conditional,clip:max_norm=1", added) == (
        "class-conditional:latent=5:mirror=false,clip:max_norm=1"
    )


def test_every_entry_of_the_sweep_is_known_or_says_why_not() -> None:
    reasons = {spec: frontier.unknown(spec) for _, spec in frontier.SWEEP}
    assert len(reasons) == len(frontier.SWEEP)
    assert all(reasons[spec] is None for spec in ("none", "dp-sgd:noise_multiplier=1", "prune:sparsity=0.999"))
    assert reasons["class-conditional"] is reasons["obscure"] is None


def test_mnist_is_split_into_disjoint_roles(shared: Path) -> None:
    target = frontier.mnist(replace(TINY, private=300, auxiliary=300, test=200), 0)
    assert [len(r) for r in (target.private, target.auxiliary, target.test)] == [300, 300, 200]
    assert int(target.private.labels.bincount(minlength=10).min()) >= 10
    one, other = ({p.numpy().tobytes() for p in r.images} for r in (target.private, target.auxiliary))
    assert not one & other
