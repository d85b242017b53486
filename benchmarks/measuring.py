"""Everything that `benchmarks.obscure` measures of one defense at one strength on one data set."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.adversaries import Opponents, Outcome
from benchmarks.distinct import distances
from benchmarks.federated import SPLITS, Client, clients_of, fedavg, pooled
from benchmarks.frontier import PUBLIC_ONLY, Size, at_epsilon, client_side, effective
from benchmarks.membership import by_weights
from benchmarks.rows import Kind, Piece, Row, Setting, estimate, highest_by_chance, summed
from benchmarks.views import above_guessing
from leakaudit.defenses._class_code import grid_of, records_on_grid
from leakaudit.defenses.obscure import Obscure
from leakaudit.defenses.obscurer import with_rate
from leakaudit.errors import UserError
from leakaudit.protocol.defense import Defense, replaces_records
from leakaudit.protocol.registry import parse_defense
from leakaudit.protocol.target import Records, Target
from leakaudit.result.batteries import TRAINING_BATCH
from leakaudit.score.measures import accuracy
from leakaudit.score.metrics import Metric
from leakaudit.score.utility import Senders, train, utility
from leakaudit.stats import intervals
from leakaudit.work.seeding import derive, generator_for

# Of whom it is asked what the generator and a model trained on its release remember: the rest is found by its updates.
REMEMBERED = ("none", "class-conditional", "obscure", "obscure:epsilon=8")


@dataclass(frozen=True)
class Scene:
    """One data set in one size; `settings` are what its pictures need of every defense that has them."""

    name: str
    target: Target
    size: Size
    seed: int
    lpips: Metric | str
    run: dict[str, Any]
    code: str
    settings: dict[str, str] = field(default_factory=dict)
    fitted: dict[tuple[Setting, str], tuple[Defense, float]] = field(default_factory=dict)  # with what it took

    @property
    def epochs(self) -> int:
        """Of the training that measures accuracy."""
        return self.size.epochs[self.name]

    def clock(self) -> float:
        """Return seconds: of this process on a CPU, which others may share, else as they pass."""
        return time.process_time() if self.target.device.type == "cpu" else time.monotonic()

    def fit(self, setting: Setting, spec: str) -> tuple[Defense, float]:
        """Return the defense fitted, and the seconds it took. What was fitted before is taken again."""
        if (setting, spec) not in self.fitted:
            began = self.clock()
            defense = parse_defense(spec)
            if isinstance(defense, Obscure) and defense.rate:
                base, _ = self.fit(setting, without_rate(spec))
                defense = at_rate(base, defense.rate, self.target)
            else:
                generator = generator_for(self.seed, spec, "fit")
                defense = defense.fit(client_side(self.target, setting), generator)
            self.fitted[setting, spec] = defense, self.clock() - began
        return self.fitted[setting, spec]


def without_rate(spec: str) -> str:
    """Return a spec that leaves the rate open."""
    return ":".join(part for part in spec.split(":") if not part.startswith("rate="))


def at_rate(defense: Defense, rate: float, target: Target) -> Defense:
    """Return a fitted `Obscure` with the largest slope that keeps another rate: pictures and labels are the same."""
    assert isinstance(defense, Obscure)
    assert defense.obscurer is not None
    base = defense.obscurer
    private = records_on_grid(target.private.to(base.pictures.device), grid_of(*target.input_shape[1:]))
    obscurer, nats = with_rate(lambda slope: replace(base, slope=slope), private, rate)
    return replace(defense, rate=rate, obscurer=obscurer, nats=nats)


def measure(scene: Scene, piece: Piece) -> Iterator[Row]:
    """Yield every row of a piece, the summaries last."""
    name, _, strength = piece.spec.partition(":")
    start = Row(
        dataset=scene.name,
        setting=piece.setting,
        defense=name,
        strength=strength or "default",
        spec=piece.spec,
        kind="failed",
        seeds=scene.size.seeds,
        run=scene.run,
        code=scene.code,
        device=str(scene.target.device),
    )
    if piece.spec == PUBLIC_ONLY:
        yield public_only(scene, start)
        return
    full = effective(at_epsilon(piece.spec, scene.name), scene.settings, scene.size.settings)
    if piece.part == "fedavg":
        for split in SPLITS:
            yield from _federated(scene, start, split)
        return
    try:
        yield from _measured(scene, start, full)
    except UserError as error:
        yield replace(start, status="failed", reason=str(error))


def public_only(scene: Scene, start: Row) -> Row:
    """Train on public records with their labels: no private record enters, so nothing of one is there to attack."""
    public = replace(scene.target, private=scene.target.auxiliary)
    row = replace(start, kind="control", reason="no private record enters")
    return _with_accuracy(scene, row, public, Defense(), public.private)


def _measured(scene: Scene, start: Row, full: str) -> Iterator[Row]:
    target, size = scene.target, scene.size
    defense, took = scene.fit(start.setting, full)
    start = replace(start, fit_seconds=took)
    opponents = Opponents(target, full, defense, size.effort, scene.seed, everything=scene.name == "lfw")
    released = opponents.whole
    start = _with_accuracy(scene, start, target, defense, released)
    if replaces_records(defense):
        generator = generator_for(scene.seed, "another")
        found = distances(target, released, size.distances, scene.lpips, generator)
        yield replace(start, kind="distinct", distinct=found)
    rows: list[Row] = []
    for attack, role in opponents.attacks():
        for outcome in opponents.run(attack, role):
            rows.append(_attack_row(start, opponents, outcome))
            yield rows[-1]
    if start.spec in REMEMBERED:
        yield from _weights(scene, start, defense, released)
    yield from _summaries(rows, start)


def _with_accuracy(scene: Scene, row: Row, target: Target, defense: Defense, released: Records) -> Row:
    size, batch, began = scene.size, _batch(released), scene.clock()
    found = utility(
        target, defense, released, senders=Senders(batch), epochs=scene.epochs, seeds=size.seeds, seed=scene.seed
    )  # fmt: skip
    facts = defense.facts(len(released), batch, found.steps)
    return replace(
        row,
        accuracies=list(found.accuracies),
        facts=facts,
        tested=len(target.test),
        training_seconds=scene.clock() - began,
        **estimate("accuracy", found.estimate),
    )


def _attack_row(start: Row, opponents: Opponents, outcome: Outcome) -> Row:
    found, own = outcome.private, outcome.own
    kind: Kind = "labels" if found.kind == "labels" else "attack"
    ended = set(found.statuses)
    return replace(
        start,
        kind=kind,
        attack=found.name,
        role=found.role,
        views=outcome.views,
        chance=opponents.private_line_up.chance,
        bound=opponents.bound(outcome.views, found.identification.n),
        records=found.identification.n or found.label_accuracy.n,
        r2=found.r2.value,
        psnr=found.psnr.value,
        label_accuracy=found.label_accuracy.value,
        rehearsed=None if own is None else own.identification.low,
        rehearsed_rank=None if own is None else above_guessing(own),
        status="measured" if ended <= {"converged", "budget"} else ", ".join(sorted(ended)),
        reason=found.reason,
        seconds=outcome.seconds,
        **estimate("identification", found.identification),
    )


def _weights(scene: Scene, start: Row, defense: Defense, released: Records) -> Iterator[Row]:
    """Yield what is remembered: by a defense that replaces records, and by a model trained on what it releases."""
    target, size, began = scene.target, scene.size, scene.clock()
    model = defense.transform_model(target.fresh(derive(scene.seed, "student")), generator_for(scene.seed, "student"))
    train(
        model,
        released,
        target.loss,
        epochs=scene.epochs,
        batch_size=_batch(released),
        seed=derive(scene.seed, "student", "order"),
        augment=target.augment,
        label="a model to ask",
    )
    victims, candidates = size.effort.released.victims, size.effort.candidates
    for known in by_weights(target, defense, released, model, victims, candidates, scene.seed):
        yield replace(
            start,
            kind="weights",
            attack=f"weights: {known.by}",
            auc=known.auc,
            records=known.records,
            chance=known.chance,
            seconds=scene.clock() - began,
            **estimate("identification", known.identification),
        )


def _batch(records: Records) -> int:
    return min(TRAINING_BATCH, max(8, len(records) // 8))


def _federated(scene: Scene, start: Row, split: str) -> Iterator[Row]:
    """Yield accuracy after FedAvg with each client's own defense, fitted once, and where all pool what they fitted."""
    began, start = scene.clock(), replace(start, kind="federated", split=split)
    spec = effective(start.spec, scene.settings, scene.size.federated)
    try:
        clients = clients_of(client_side(scene.target, start.setting), spec, split, 5, scene.seed)
        together = pooled(clients, scene.seed)
    except Exception as error:  # a generator may not fit a client of one class: a row says so
        yield replace(start, status="failed", reason=f"{type(error).__name__}: {error}"[:300])
        return
    start = replace(start, fit_seconds=scene.clock() - began)
    yield _averaged(scene, start, clients)
    if together is not None:
        yield _averaged(scene, replace(start, split=f"{split}, pooled"), together)


def _averaged(scene: Scene, row: Row, clients: list[Client]) -> Row:
    """Return the row with the accuracy of FedAvg, repeated under every seed."""
    size, began = scene.size, scene.clock()
    try:
        batch = min(TRAINING_BATCH, max(4, min(len(c.records) for c in clients) // 4))
        seeds = [derive(scene.seed, "fedavg", k) for k in range(size.seeds)]
        models = [fedavg(scene.target, clients, rounds=size.rounds, batch_size=batch, seed=seed) for seed in seeds]
        found = [accuracy(model, scene.target.test) for model in models]
    except Exception as error:  # of the training
        return replace(row, status="failed", reason=f"{type(error).__name__}: {error}"[:300])
    return replace(
        row,
        accuracies=found,
        seconds=scene.clock() - began,
        **estimate("accuracy", intervals.mean(found, within=(0.0, 1.0))),
    )


def _summaries(rows: list[Row], start: Row) -> Iterator[Row]:
    best = summed(rows)
    if best is None:
        yield replace(start, kind="failed", status="failed", reason="no attack was scored")
        return
    scored = [row for row in rows if row.kind == "attack" and row.identification is not None]
    limit = highest_by_chance([row.records for row in scored], best[0].chance or 0.0)
    yield replace(best[0], kind="worst", attacks=len(scored), by_chance=limit)
    yield replace(best[1], kind="selected", attacks=len(scored), by_chance=None)
