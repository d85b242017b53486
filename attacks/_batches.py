"""Linking records to updates of several: what auxiliary batches teach, and which candidates explain an update."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from leakaudit.attacks._contributions import Reader, Rows, reader_for, with_statistics
from leakaudit.attacks._explaining import RULES, Products, Span, explained, products_in, shared_weight, span_of
from leakaudit.attacks._linking import Scores, distinct, most_trusted
from leakaudit.errors import NotApplicable
from leakaudit.protocol.client import SharedUpdate, by_place, release, sent
from leakaudit.protocol.gradients import Gradients
from leakaudit.protocol.labels import hard
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.result.numbers import percent
from leakaudit.work.progress import expired, track

SPANNED = 768  # auxiliary records at most, whose gradients are regressed off
COMPANIONS = 15  # of the class, beside each record of a rehearsed batch
RATE = 0.01  # of false alarms, at which the rehearsals say how many records are found
STATISTICS = 256  # auxiliary pictures, whose statistics stand for those of BatchNorm in train mode


@dataclass(frozen=True)
class Way:
    """How candidates are scored: what is looked at, in which metric, by which rule."""

    view: str
    metric: str
    rule: str

    @property
    def name(self) -> str:
        """What the score is called."""
        return f"{self.view}{self.metric}, {self.rule}"


FOREMOST = Way("record", ", whitened", "jointly").name  # by theory, where rehearsals do not tell


@dataclass(frozen=True)
class Shown:
    """The rows of some records by view, and their products with the auxiliary records' rows."""

    rows: Rows
    along: Rows


@dataclass(frozen=True)
class Taught:
    """What was learned of a client: how records become rows, what auxiliary ones span, and what one weighs, by view."""

    reader: Reader
    spans: dict[str, Span]
    weights: dict[str, float]

    def ways(self) -> dict[str, Way]:
        """Return every way to score, by the name of the score."""
        every = (Way(view, m, rule) for view, span in self.spans.items() for m in span.inverses for rule in RULES)
        return {way.name: way for way in every}

    def shown(self, rows: Rows) -> Shown:
        """Return rows with what scores need of them."""
        return Shown(rows, {view: self.spans[view].along(each) for view, each in rows.items()})

    def scores(self, shown: Shown, update: Tensor, line_ups: Tensor, names: tuple[str, ...]) -> Scores:
        """Return scores (B, M) by name of line-ups (B, M) of places among what is shown, for one update (F,)."""
        places, inside = torch.unique(line_ups, return_inverse=True)
        ways, found, known = self.ways(), {}, dict[tuple[str, str], Products]()
        for name in names:
            way = ways[name]
            key = way.view, way.metric
            if key not in known:
                rows, along = shown.rows[way.view][places], shown.along[way.view][places]
                known[key] = products_in(self.spans[way.view], way.metric, update, rows, along)
            found[name] = explained(known[key], inside, self.weights[way.view], way.rule).to(update)
        return found


@dataclass(frozen=True)
class Rehearsed:
    """Auxiliary batches that went through the defense, R of them: their records, line-ups of a class, and updates."""

    members: tuple[Tensor, ...]  # (B,) places among the held records
    line_ups: tuple[Tensor, ...]  # (B, M) places of each member, first, and of others of its class, which may recur
    updates: tuple[Gradients, ...]


def taught(
    name: str,
    model: PixelModel,
    update: SharedUpdate,
    own: Records,
    draws: int,
    rehearsals: int,
    generator: torch.Generator,
) -> tuple[Taught, str, tuple[str, ...]] | None:
    """Return what auxiliary records teach of a client, the name of the score to trust, and notes; None if out of time.

    Auxiliary batches as large as the private ones pass the whole defense (`rehearsals` of them at most), and the score
    that finds most of their records among others of their class is trusted. What is regressed off is of other
    auxiliary records.
    """
    assert update.defense is not None
    order = torch.randperm(len(own), generator=generator, device=generator.device).to(own.labels.device)
    count = min(len(own) // 2, max(2 * rehearsals * update.batch_size, 16 * update.classes)) if rehearsals else 0
    held, others = own[order[:count]], own[order[count : count + SPANNED]]
    rehearsed = _rehearsed(name, model, update, held, rehearsals, generator)
    reader = reader_for(model, update, update.defense, draws, _path(update, rehearsed.updates), generator)
    basis = reader(others, generator, f"{name}: auxiliary records")
    rows = reader(held, generator, f"{name}: rehearsed records") if rehearsed.updates else {}
    if basis is None or rows is None:
        return None
    spans = {view: span_of(each) for view, each in basis.items()}
    learned = Taught(reader, spans, dict.fromkeys(reader.views, 1 / update.batch_size))
    if not rehearsed.updates:
        return learned, FOREMOST if FOREMOST in learned.ways() else next(iter(learned.ways())), ()
    seen, members = torch.stack([reader.row(each) for each in rehearsed.updates]), torch.stack(rehearsed.members)
    weights = {view: shared_weight(seen, each[members].sum(1)) for view, each in rows.items()}
    learned = replace(learned, weights=weights)
    trusted, note = _trusted(learned, learned.shown(rows), seen, rehearsed)
    return learned, trusted, (note,)


def _path(update: SharedUpdate, seen: tuple[Gradients, ...]) -> Gradients | None:
    """Return the way w₀ − w_E that clients go on average, by the updates of auxiliary ones or, without any, of all."""
    if not (update.client.local and update.steps > 1):
        return None
    columns = [torch.stack(each) for each in zip(*seen, strict=True)] if seen else list(update.gradients)
    return tuple(update.moved * each.nan_to_num(0, 0, 0).mean(0) for each in columns)


def _rehearsed(
    name: str, model: PixelModel, update: SharedUpdate, held: Records, rehearsals: int, generator: torch.Generator
) -> Rehearsed:
    """Send auxiliary batches through the whole defense: as many as the time suffices for, none of too few records."""
    defense, size = update.defense, update.batch_size
    assert defense is not None
    labels = hard(held.labels, update.task)
    members: list[Tensor] = []
    line_ups: list[Tensor] = []
    updates: list[Gradients] = []
    for _ in track(f"{name}: rehearsal", rehearsals if len(held) >= 2 * size else 0):
        order = torch.randperm(len(held), generator=generator, device=generator.device).to(labels.device)
        batch, beside = order[:size], order[size:]
        released = release(defense, held[batch], generator)
        gradients, _ = sent(
            model, update.loss, released.images, released.labels, defense, update.mode, generator, update.client
        )
        members.append(batch)
        line_ups.append(torch.stack([_line_up(i, beside, labels) for i in batch]))
        updates.append(gradients)
    return Rehearsed(tuple(members), tuple(line_ups), tuple(updates))


def _line_up(record: Tensor, beside: Tensor, labels: Tensor) -> Tensor:
    """Return the place () of a record and those of others (N,), of its class where there are any: (M,), some twice."""
    alike = beside[labels[beside] == labels[record]]
    alike = alike if len(alike) else beside
    return torch.cat([record[None], alike[torch.arange(COMPANIONS, device=alike.device) % min(COMPANIONS, len(alike))]])


def _trusted(learned: Taught, shown: Shown, seen: Tensor, rehearsed: Rehearsed) -> tuple[str, str]:
    """Return the name of the score that finds most records of rehearsed batches, and how many it finds at `RATE`."""
    names = tuple(learned.ways())
    found: list[tuple[Scores, Tensor]] = []
    for update, line_ups in zip(seen, rehearsed.line_ups, strict=True):
        if found and expired():
            break
        first = torch.zeros(len(line_ups), dtype=torch.long, device=line_ups.device)
        found.append((learned.scores(shown, update, line_ups, names), first))
    trusted = most_trusted(found, ((FOREMOST,),) if FOREMOST in names else ((names[0],),))[0]
    scores = torch.cat([each[trusted] for each, _ in found])
    limit = torch.quantile(scores[:, 1:].flatten(), 1 - RATE)
    caught = float((scores[:, 0] > limit).float().mean())
    note = (
        f"On {len(found)} auxiliary batches it finds {percent(caught)} of the records at {percent(RATE)} false alarms, "
        f"by the score {trusted!r}."
    )
    return trusted, note


def linked_in_batches(
    name: str,
    model: PixelModel,
    update: SharedUpdate,
    candidates: Tensor,
    labels: Tensor,
    draws: int,
    rehearsals: int,
    generator: torch.Generator,
) -> tuple[Tensor, list[bool], tuple[str, ...]]:
    """Return scores (V, M) of candidates (V, M, ...) under labels (V, M), which victims are done, and notes.

    Every B victims are the records of one update, each with a line-up of its own; where `places` are not given each
    victim is by itself.
    """
    own, defense = update.auxiliary, update.defense
    if own is None or defense is None:
        raise NotApplicable("the defense or auxiliary records are not exposed")
    scores = torch.zeros(candidates.shape[:2], device=candidates.device)
    done = [False] * update.victims
    own_statistics = by_place(defense)[0].needs_example_gradients  # each record is seen by itself there
    shown = own.images[:0] if own_statistics else own.images[:STATISTICS]
    with with_statistics(model, shown):
        found = taught(name, model, update, own, draws, rehearsals, generator)
        if found is None:
            return scores, done, ()
        learned, trusted, notes = found
        records, places = distinct(candidates, labels, update.candidate_targets)
        rows = learned.reader(records, generator, name, (learned.ways()[trusted].view,))
    if rows is None:
        return scores, done, notes
    seen, each = learned.shown(rows), update.batch_size if update.places is not None else 1
    for start in range(0, update.victims, each):
        group = slice(start, start + each)
        row = learned.reader.row(tuple(g[start] for g in update.gradients))
        scores[group] = learned.scores(seen, row, places[group], (trusted,))[trusted]
        done[group] = [True] * len(done[group])
    return scores, done, notes
