"""What a learned attack learns from: updates of auxiliary batches through the defense, read record by record."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from leakaudit.attacks._labels import Head, find_head, one_label
from leakaudit.attacks._sketch import folded, widths_within
from leakaudit.attacks.expectation import defended, expected
from leakaudit.protocol.client import SharedUpdate, release, sent
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.gradients import Gradients, mean_gradient
from leakaudit.protocol.labels import class_means, hard, soft
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.work.memory import need
from leakaudit.work.progress import track

FEATURES = 4096  # numbers that an update is reduced to, and as many for each reading of the head's input
LEAST = 8  # auxiliary records, to learn anything from
_VALUES = 2**27  # most numbers in the auxiliary pictures: half a gigabyte
_ALIKE = 0.05  # classes whose p − y are nearer to linear dependence than this are not told apart by it
Rows = dict[str, Tensor]  # what was read of updates, by name: (N, F) for N records


@dataclass(frozen=True)
class Reader:
    """What is read of one update for each of its B records: `folded` tensor by tensor, and the input of the head.

    Rows k of the head's gradient are the mean of (p_k − y_k)·h over the batch: a mixture of the classes' sums of h,
    with the classes' mean p − y over auxiliary records as its columns. "head by class" is its least-squares solution,
    for each record the mean h of its class in the batch: at B = 1 the projection on p − y, linear in the update and so
    as little disturbed by noise as can be. "head by bias", at B = 1 alone, takes the bias's own p − y, exact without
    noise; it is all that is read of a head whose outputs are no classes.

    A batch has no order, so records of one class are told apart by one that both sides know: they stand in order of
    brightness, and "rank" says which of how many one is, by the normal score to be expected of it.
    """

    widths: tuple[int, ...]
    signs: tuple[Tensor, ...]  # ±1, (n,) per parameter; then (D,) for h
    head: Head | None
    factors: Tensor  # (K, K): the mean of p − y for every label
    means: Tensor  # (K, F): what a record of every label adds to "update"

    def label(self, gradient: Gradients) -> Tensor:
        """Return the label () read off the head of an update of one record."""
        assert self.head is not None
        return one_label(*self.head.gradients(gradient), self.head.features)

    def __call__(self, gradient: Gradients, labels: Tensor) -> Rows:
        """Return the rows (B, F) of an update, each tensor (*parameter.shape), of records under `labels` (B,)."""
        parts = [folded(g.flatten(), s, w) for g, s, w in zip(gradient, self.signs, self.widths, strict=False)]
        found = {"update": (torch.cat(parts) - self.means[labels].mean(0)).expand(len(labels), -1)}
        if self.head is not None:
            weight, bias = self.head.gradients(gradient)
            if self.head.by_class:
                found["head by class"] = self._by_class(weight, labels)
            if bias is not None and len(labels) == 1:
                given = bias @ weight / bias.square().sum().clamp_min(1e-12)
                found["head by bias"] = folded(given, self.signs[-1], FEATURES)[None]
        if len(labels) > 1:
            found["rank"] = ranks(labels)[:, None]
        return found

    def _by_class(self, weight: Tensor, labels: Tensor) -> Tensor:
        present, place, counts = torch.unique(labels, return_inverse=True, return_counts=True)
        columns = self.factors[present].T
        long = columns.norm(dim=0).clamp_min(1e-6)
        shares = torch.linalg.pinv(columns / long, rcond=_ALIKE) / (long * counts / len(labels))[:, None]
        return torch.stack([folded(h, self.signs[-1], FEATURES) for h in shares @ weight])[place]


def ranks(labels: Tensor) -> Tensor:
    """Return the normal score (B,) of every record among those of its class, which stand in ascending order (B,)."""
    alike = labels[:, None] == labels
    place = alike.tril(-1).sum(1)
    scores: Tensor = torch.special.ndtri((place + 0.625) / (alike.sum(1) + 0.25))  # Blom 1958
    return scores


def reader_for(model: PixelModel, update: SharedUpdate, shown: Records, generator: torch.Generator) -> Reader:
    """Return a reader for updates of this model; `shown` are auxiliary records as the defense replaced them."""
    classified = update.task.by_class
    head = find_head(model, update, shown.images[:64], by_class=classified)
    if head is not None and not classified and (head.bias is None or not head.at.pooled or update.batch_size > 1):
        head = None
    sizes = [g[0].numel() for g in update.gradients]
    lengths = [*sizes, 0 if head is None else int(head.features.numel())]
    drawn = [torch.randint(2, (n,), generator=generator, device=generator.device).to(torch.int8) for n in lengths]
    classes = update.classes
    factors = shown.images.new_zeros(classes, classes)
    if head is not None and head.by_class:
        with torch.no_grad():
            said = torch.cat([model(x).softmax(1) for x in torch.split(shown.images, 128)])
        factors = class_means(said - soft(shown.labels, classes), hard(shown.labels, update.task), classes)
    widths = widths_within(sizes, FEATURES)
    return Reader(
        widths=widths,
        signs=tuple((2 * s - 1).to(shown.images.device) for s in drawn),
        head=head,
        factors=factors,
        means=factors.new_zeros(classes, sum(widths)),
    )


@dataclass(frozen=True)
class Lesson:
    """What the attacker learns from: rows of N records in auxiliary updates, the label it knows of each, pictures."""

    rows: Rows
    settled: Rows | None  # without the noise of the update stage, where that has any
    labels: Tensor  # (N,)
    private: Tensor  # (N, C, H, W)
    held: Tensor  # (N,): about a tenth of the records, to choose on


def batches(held: Tensor, brightness: Tensor, size: int, passes: int, generator: torch.Generator) -> list[Tensor]:
    """Return batches of `size` of N records as places (size,), every record about once a pass.

    Records `held` (N,) and the others are never together. In a batch records stand by `brightness` (N,).
    """
    found: list[Tensor] = []
    for _ in range(passes):
        parts = []
        for side in (held, ~held):
            places = side.nonzero()[:, 0].cpu()
            if size > 1:
                places = places[torch.randperm(len(places), generator=generator, device=generator.device).cpu()]
            parts += [p for p in torch.split(places, size) if len(p) == size]
        found += sorted(parts, key=lambda p: int(p.min()))  # so that both sides are met early
    bright = brightness.cpu()
    return [p[bright[p].argsort(stable=True)] for p in found]


def lesson_of(
    model: PixelModel,
    update: SharedUpdate,
    defense: Defense,
    auxiliary: Records,
    pairs: int,
    draws: int,
    generator: torch.Generator,
    label: str,
) -> tuple[Reader, Lesson | None]:
    """Compute updates of at most `pairs` auxiliary records in batches through the defense, and read them.

    Up to `draws` of a record where there are fewer records than that, in other batches each time; None where the time
    did not suffice for `LEAST` records and two batches.
    """
    device, batch = auxiliary.images.device, update.batch_size
    size = min(len(auxiliary), pairs, max(2, _VALUES // auxiliary.images[0].numel()))
    times = max(1, min(draws, pairs // size))
    each = 4 * FEATURES * 4 + 2 * auxiliary.images[0].numel() * 4  # rows with and without noise, singly and stacked
    whole = 5 * 4 * sum(g[0].numel() for g in update.gradients)  # some updates of one client, and what folds them
    need(times * size * each + whole, f"{times * size} pairs", "pairs or draws", device)
    order = torch.randperm(len(auxiliary), generator=generator, device=generator.device)[:size].to(device)
    own = auxiliary[order]
    releases = [release(defense, own, generator) for _ in range(times)]
    reader = reader_for(model, update, releases[0], generator)
    held = torch.zeros(size, dtype=torch.bool, device=device)
    held[torch.arange(0, size, 10)] = True
    held[: batch * (int(held.sum()) < batch)] = True
    plan = batches(held, own.images.flatten(1).mean(1), batch, times, generator)
    seen: list[Rows] = []
    calm: list[Rows] = []
    labels: list[Tensor] = []
    noisy: bool | None = False if update.client.local else None  # what local steps send is no function of one gradient
    read = batch == 1 and update.labels is None and reader.head is not None and reader.head.by_class
    for i in track(label, len(plan)):
        released = releases[i * times // len(plan)]
        x, y = released.images[plan[i].to(device)], released.labels[plan[i].to(device)]
        gradient, _ = sent(model, update.loss, x, y, defense, update.mode, generator, update.client)
        labels.append(reader.label(gradient)[None] if read else hard(y, update.task))
        seen.append(reader(gradient, labels[-1]))
        if noisy is not False:  # known from the first batch
            observed = defense.observe(model, x, y, generator)
            plain = mean_gradient(model, update.loss, x, y)
            twice = [defended(observed, plain, update, generator) for _ in range(2)]
            noisy = noisy or any(not torch.equal(a, b) for a, b in zip(*twice, strict=True))
            calm.append(reader(expected(observed, plain, update, generator, 1), labels[-1]))
    places = torch.cat([plan[i] for i in range(len(seen))]).to(device) if seen else order[:0]
    if len(places) < max(LEAST, 2 * batch) or bool(held[places].all()):
        return reader, None
    lesson = Lesson(
        rows=stacked_rows(seen),
        settled=stacked_rows(calm) if noisy else None,
        labels=torch.cat(labels),
        private=own.images[places],
        held=held[places],
    )
    return (reader, lesson) if batch == 1 else centred(reader, lesson, batch)


def centred(reader: Reader, lesson: Lesson, batch: int) -> tuple[Reader, Lesson]:
    """Return both with `Reader.means` taken off: what is left of an update says how records differ from their class.

    It is the least-squares solution of the updates not held out, for the shares of the classes in their batches.
    """
    shares = torch.nn.functional.one_hot(lesson.labels.view(-1, batch), len(reader.means)).float().mean(1)
    rows, train = lesson.rows["update"][::batch], ~lesson.held[::batch]
    means = torch.linalg.pinv(shares[train], rcond=1e-3) @ rows[train]
    added = (shares @ means).repeat_interleave(batch, 0)

    def less(found: Rows) -> Rows:
        return found | {"update": found["update"] - added}

    settled = None if lesson.settled is None else less(lesson.settled)
    return replace(reader, means=means), replace(lesson, rows=less(lesson.rows), settled=settled)


def stacked_rows(rows: list[Rows]) -> Rows:
    """Return rows (N, F) by name, finite, of readings of N records in all."""
    return {name: torch.cat([row[name] for row in rows]).nan_to_num(0, 0, 0) for name in rows[0]}
