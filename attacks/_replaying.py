"""What candidates would have sent: an adversary who knows the defense runs the whole of it on each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leakaudit.attacks._sketch import folded, widths_within
from leakaudit.protocol.client import SharedUpdate, release, sent
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.work.seeding import reseed

FEATURES = 2**15  # numbers that are looked at of one client; larger updates are sketched
_PIECE = 2**18  # entries among which the most telling ones are sought at once
COPIES = 8  # of an update, that are held while its layout is chosen
Parts = tuple[Tensor, ...]  # everything that leaves one client, part by part
Play = Callable[[Records, int], Parts]  # what a record (1, ...) makes a client send under a seed


@dataclass(frozen=True)
class Client:
    """The client as its adversary runs it: one record, in a batch of the adversary's own where updates are of more."""

    model: PixelModel
    update: SharedUpdate  # one of its updates: loss, mode, batch size, what is exposed
    defense: Defense
    company: Records  # the rest of a batch is drawn from these
    buffers: tuple[str, ...]  # those that are seen and change

    def replay(self, record: Records, seed: int) -> Parts:
        """Return what one record (1, ...) makes the client send, all randomness drawn from `seed`."""
        return self._sent(record, seed, self.defense)

    def bare(self, record: Records, seed: int) -> Parts:
        """Return the undefended update of the record: what leaves a client whose defense failed."""
        return self._sent(record, seed, Defense())

    def release(self, record: Records, seed: int) -> Parts:
        """Return what the record stage makes of one record: picture and label, or probabilities."""
        generator = torch.Generator().manual_seed(seed)
        batch, place = self._batch(record, generator)
        reseed(seed, used=True)
        shown = release(self.defense, batch, generator).to(self.model.mean.device)
        return shown.images[place], told_in_numbers(self.update, shown.labels[place])

    def _sent(self, record: Records, seed: int, defense: Defense) -> Parts:
        generator = torch.Generator().manual_seed(seed)
        batch, _ = self._batch(record, generator)
        reseed(seed, used=True)  # what the model itself draws, as dropout does, and a defense that asks no generator
        shown = release(defense, batch, generator).to(self.model.mean.device)
        gradients, buffers = sent(
            self.model,
            self.update.loss,
            shown.images,
            shown.labels,
            defense,
            self.update.mode,
            generator,
            self.update.client,
        )
        return (*gradients, *(buffers[name] for name in self.buffers))

    def _batch(self, record: Records, generator: torch.Generator) -> tuple[Records, int]:
        """Return the record in a batch of others, and where it stands there: anywhere."""
        missing = self.update.batch_size - 1
        if not missing:
            return record, 0
        picked = torch.randint(len(self.company), (missing,), generator=generator)
        place = int(torch.randint(missing + 1, (1,), generator=generator))
        others = self.company[picked.to(self.company.labels.device)]
        with_targets = record.targets is not None and others.targets is not None

        def around(own: Tensor, theirs: Tensor) -> Tensor:
            theirs = theirs.to(own)
            return torch.cat([theirs[:place], own, theirs[place:]])

        return Records(
            around(record.images, others.images),
            around(record.labels, others.labels),
            targets=around(record.taught, others.taught) if with_targets else None,
        ), place


def told_in_numbers(update: SharedUpdate, label: Tensor) -> Tensor:
    """Return a released record's label, probabilities or target as a row of numbers; of a group what stands for it."""
    return update.task.targets_of(label).float().reshape(-1)


def client_of(model: PixelModel, update: SharedUpdate, defense: Defense, candidates: Records) -> Client:
    """Return the client behind an update; a batch is filled with auxiliary records, or with candidates without any."""
    own = update.auxiliary
    seen = () if update.buffers is None else tuple(update.buffers[0])
    before = dict(model.named_buffers())
    moved = tuple(
        name
        for name in seen
        if update.buffers is not None
        and any(not torch.equal(one[name].to(before[name]), before[name]) for one in update.buffers)
    )
    company = own.to(candidates.images.device) if own is not None and len(own) else candidates
    return Client(model, update, defense, company, moved)


def parts_seen(client: Client, victim: int) -> Parts:
    """Return what one victim sent, in the parts of a replay."""
    update = client.update
    buffers = {} if update.buffers is None else update.buffers[victim]
    return (*(g[victim] for g in update.gradients), *(buffers[name] for name in client.buffers))


@dataclass(frozen=True)
class Layout:
    """How parts become one row of numbers: as they are, or a count sketch of each and its most telling entries."""

    widths: tuple[int, ...]  # of the row, part by part; of the sketches, then of the entries kept
    signs: tuple[Tensor, ...]  # ±1 per entry; empty where nothing is sketched
    kept: tuple[Tensor, ...]  # indices of the entries that are kept as they are

    def row(self, parts: Parts) -> Tensor:
        """Return the row (F,) of one client."""
        flat = [part.flatten() for part in parts]
        if not self.signs:
            return torch.cat(flat)
        sketched = [folded(f, s, w) for f, s, w in zip(flat, self.signs, self.widths, strict=False)]
        return torch.cat([*sketched, *(f[k] for f, k in zip(flat, self.kept, strict=True))])


def layout_for(run: Sequence[Records], play: Play, generator: torch.Generator) -> Layout:
    """Return the layout for parts like those that `play` gives of these records.

    Where they are too many, half of the row are sketches, which keep what is equal equal, and half are the entries in
    which these records differ most beside their noise: sketched, noise drowns what a single entry tells.
    """
    seeds = torch.randint(2**62, (2,), generator=generator).tolist()
    first = play(run[0], seeds[0])
    sizes = [part.numel() for part in first]
    if sum(sizes) <= FEATURES:
        return Layout(tuple(sizes), (), ())
    device = first[0].device
    signs = tuple((2 * torch.randint(2, (n,), generator=generator, dtype=torch.int8) - 1).to(device) for n in sizes)
    widths = widths_within(sizes, FEATURES // 2)
    between = [torch.zeros(n, device=device) for n in sizes]
    within = [torch.zeros(n, device=device) for n in sizes]
    for record in run:
        one, two = (play(record, seed) for seed in seeds)
        for i, (a, b, c) in enumerate(zip(one, two, first, strict=True)):
            between[i] += (a.flatten() - c.flatten()).square()  # under the same seed: what the record changes
            within[i] += (a.flatten() - b.flatten()).square()
    kept = most_telling([b / (w + 1e-3 * b.mean() + 1e-30) for b, w in zip(between, within, strict=True)])
    return Layout((*widths, *(len(k) for k in kept)), signs, kept)


def most_telling(told: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return for each tensor (n,) the places, in order, of its entries among the `FEATURES` // 2 largest of all.

    Piece by piece, since `topk` takes 16 bytes for every entry that it is given at once.
    """
    values, places = told[0].new_zeros(0), torch.zeros(0, dtype=torch.long, device=told[0].device)
    start = 0
    for part in told:
        for piece in torch.split(part, _PIECE):
            here = torch.arange(start, start + len(piece), device=part.device)
            values, places = torch.cat([values, piece]), torch.cat([places, here])
            start += len(piece)
            if len(values) > FEATURES // 2:
                best = values.topk(FEATURES // 2).indices
                values, places = values[best], places[best]
    chosen, end = places.sort().values, 0
    found = []
    for part in told:
        found.append(chosen[(chosen >= end) & (chosen < end + len(part))] - end)
        end += len(part)
    return tuple(found)
