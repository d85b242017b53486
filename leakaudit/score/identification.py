"""Could somebody pick the private record out of a line-up? Identification among M candidates of the same class.

Where labels are no classes, candidates are those whose labels are nearest to the record's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from leakaudit.protocol.defense import Defense
from leakaudit.protocol.target import Records
from leakaudit.protocol.task import CLASSES, Task
from leakaudit.result.schema import Guarantee

GROUP_KNOWN = "of those with the record's label group, which is no secret"


@dataclass(frozen=True)
class CandidateSets:
    """A line-up per victim record: `indices` (N, M) into `pictures` (P, C, H, W); the truth is at `position` (N,).

    The first `sizes` (N,) of the M columns are the line-up; a shorter one is repeated from its start to fill the row.
    A record whose size is 1 has no line-up: nobody else could be meant. `labels` (P,) are those of `pictures`, and
    `targets` (P, *shape) what a loss takes for them, where labels are no classes.
    """

    pictures: Tensor
    indices: Tensor
    position: Tensor
    sizes: Tensor
    labels: Tensor
    targets: Tensor | None = None

    @property
    def columns(self) -> int:
        """M, the size of the largest line-up."""
        return int(self.indices.shape[1])

    @property
    def lined(self) -> Tensor:
        """Which records (N,) have a line-up at all: what identification is scored on."""
        return self.sizes >= 2

    @property
    def size(self) -> int:
        """The median size of the line-ups that there are (of two middle ones the smaller), 1 where there is none."""
        sizes = self.sizes[self.lined]
        return int(sizes.median()) if len(sizes) else 1

    @property
    def chance(self) -> float:
        """The rate of somebody who guesses: the mean of 1/size over the line-ups that there are."""
        sizes = self.sizes[self.lined]
        return float((1 / sizes.double()).mean()) if len(sizes) else 1.0

    def __len__(self) -> int:
        return int(self.indices.shape[0])

    def __getitem__(self, rows: Tensor | slice) -> CandidateSets:
        return replace(self, indices=self.indices[rows], position=self.position[rows], sizes=self.sizes[rows])

    def shortened(self, size: int) -> CandidateSets:
        """Return line-ups of the truth and those next to it, at most `size` candidates, the truth where it falls."""
        rows, places = [], []
        for row, position, length in zip(self.indices, self.position.tolist(), self.sizes.tolist(), strict=True):
            kept = min(size, length)
            start = min(max(0, position - position * kept // max(1, length)), length - kept)
            rows.append(row[start : start + kept])
            places.append(position - start)
        columns = max(map(len, rows), default=1)
        filled = [row[torch.arange(columns) % len(row)] for row in rows]
        sizes = torch.tensor([len(row) for row in rows], dtype=torch.long)
        position = torch.tensor(places, dtype=torch.long)
        return replace(self, indices=torch.stack(filled), position=position, sizes=sizes)

    def images(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """Return the candidates (n, M, C, H, W) of some rows: everything at once can be large."""
        return self.pictures[self.indices[rows]]

    def shown(self) -> list[Tensor]:
        """Return each line-up's candidates (M, C, H, W), without what fills a row.

        Where labels are no classes only those of the true record's label group, which whoever hides a record among
        those of its class does not hide.
        """
        return [self.pictures[row] for row in self.hidden_among()]

    def hidden_among(self) -> list[Tensor]:
        """Return the indices of what `shown` shows."""
        rows = zip(self.indices, self.position.tolist(), self.sizes.tolist(), strict=True)
        if self.targets is None:
            return [row[:size] for row, _, size in rows]
        return [row[:size][self.labels[row[:size]] == self.labels[row[at]]] for row, at, size in rows]

    def image_labels(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """Return the candidates' own labels (n, M) of some rows."""
        return self.labels[self.indices[rows]]

    def image_targets(self, rows: Tensor | slice = slice(None)) -> Tensor | None:
        """Return the candidates' own targets (n, M, *shape) of some rows, None where labels are classes."""
        return None if self.targets is None else self.targets[self.indices[rows]]

    def alone(self) -> int:
        """Return how many line-ups hold no other record with the target of the true one: a label alone tells those."""
        if self.targets is None:
            return 0
        rows = zip(self.indices, self.position.tolist(), self.sizes.tolist(), strict=True)
        flat = self.targets.flatten(1) if self.targets.dim() > 1 else self.targets[:, None]
        same = [(flat[row[:size]] == flat[row[at]]).all(1).sum() for row, at, size in rows if size >= 2]
        return sum(int(count) == 1 for count in same)


def candidate_sets(
    private: Records,
    victims: Tensor,
    pool: Records,
    size: int,
    generator: torch.Generator,
    *,
    batch_size: int = 1,
    task: Task = CLASSES,
) -> CandidateSets:
    """Draw a line-up for each of the victim records `private[victims]`, victims (N,) in batches of `batch_size`.

    Each holds the record, which stands for its unit of privacy (`Records.units`), at a random position among
    distractors of its class from the other private records and `pool` (disjoint from them): one record of each other
    unit, at most `size` − 1 of them. Exact copies count as one unit. Records of the units of its own batch are no
    distractors: to find one of those is a hit as well. A class with few units has a short line-up, and no other class.
    Where labels are no classes of a `task`, the distractors are those with the labels nearest to the record's, whatever
    group they are in, at random among equally near ones.
    """
    pictures = torch.cat([private.images, pool.images])
    labels = torch.cat([private.labels, pool.labels])
    content = [hash(picture.numpy().tobytes()) for picture in pictures.cpu()]
    units = _units(private, pool, content)
    both = private.targets, pool.targets
    targets = None if both[0] is None or both[1] is None else torch.cat([both[0], both[1]])
    near = None if targets is None else task.features(targets)
    by_class = {} if near is not None else _one_of_each(labels.tolist(), content, units)
    records, rows, positions = victims.tolist(), [], []
    for row, record in enumerate(records):
        start = row // batch_size * batch_size
        batch = records[start : start + batch_size]
        theirs, shown = {units[i] for i in batch}, {content[i] for i in batch}
        if near is None:
            others = by_class[int(labels[record])]
        else:
            others = _nearest_of_each(near, record, content, units, (theirs, shown), size - 1, generator)
        found = [i for i in others if units[i] not in theirs and content[i] not in shown]
        drawn = torch.randperm(len(found), generator=generator, device=generator.device)[: size - 1].tolist()
        position = int(torch.randint(len(drawn) + 1, (1,), generator=generator, device=generator.device))
        rows.append([*(found[i] for i in drawn[:position]), record, *(found[i] for i in drawn[position:])])
        positions.append(position)
    columns = max(map(len, rows), default=1)
    filled = [[row[i % len(row)] for i in range(columns)] for row in rows]
    indices = torch.tensor(filled, dtype=torch.long).reshape(len(rows), columns)
    sizes = torch.tensor([len(row) for row in rows], dtype=torch.long)
    return CandidateSets(pictures, indices, torch.tensor(positions, dtype=torch.long), sizes, labels, targets)


def _units(private: Records, pool: Records, content: list[int]) -> list[tuple[str, int]]:
    """Return the unit of every record; where none is known it is that of its exact copies."""
    known = [-1] * len(content)
    for records, start in ((private, 0), (pool, len(private))):
        if records.units is not None:
            known[start : start + len(records)] = records.units.tolist()
    return [("unit", unit) if unit >= 0 else ("picture", key) for unit, key in zip(known, content, strict=True)]


def _one_of_each(labels: list[int], content: list[int], units: list[tuple[str, int]]) -> dict[int, list[int]]:
    """Return by class one record of each unit, the first, no two of them the same picture."""
    chosen: dict[int, list[int]] = {}
    taken: set[tuple[int, object]] = set()
    for index, (label, key, unit) in enumerate(zip(labels, content, units, strict=True)):
        if (label, key) not in taken and (label, unit) not in taken:
            chosen.setdefault(label, []).append(index)
            taken |= {(label, key), (label, unit)}
    return chosen


def _nearest_of_each(
    near: Tensor,
    record: int,
    content: list[int],
    units: list[tuple[str, int]],
    taken: tuple[set[tuple[str, int]], set[int]],
    most: int,
    generator: torch.Generator,
) -> list[int]:
    """Return one record of each other unit, no two of the same picture: the nearest to a record by rows (P, D)."""
    shuffled = torch.randperm(len(near), generator=generator, device=generator.device).cpu()
    gaps = (near[shuffled].double() - near[record].double()).square().sum(1)
    met, seen = set(taken[0]), set(taken[1])
    chosen: list[int] = []
    for index in shuffled[gaps.argsort(stable=True).to(shuffled.device)].tolist():
        if len(chosen) == most:
            break
        if units[index] not in met and content[index] not in seen:
            chosen.append(index)
            met.add(units[index])
            seen.add(content[index])
    return chosen


def hidden(shown: CandidateSets, further: CandidateSets) -> int:
    """Return among how many candidates a record is hidden by somebody who does not hide its class: `size` of `shown`.

    Where labels are no classes, among those of its label group: the harmonic mean over line-ups, the smaller of both.
    """
    if shown.targets is None:
        return shown.size
    counts = [
        torch.tensor([len(row) for row in each[each.lined].hidden_among()], dtype=torch.double)
        for each in (shown, further)
    ]
    return min((int(1 / (1 / count).mean() + 1e-9) for count in counts if len(count)), default=1)


def of_line_ups(guarantees: tuple[Guarantee, ...], defense: Defense, *shown: CandidateSets) -> tuple[Guarantee, ...]:
    """Return the guarantees, a bound on identification in that for the line-ups shown where the defense can say it.

    What an attack found among these candidates is then compared with what is proven of these candidates. Of several
    sets of line-ups, which attacks of more and of fewer records are shown, it is the largest bound.
    """
    bounds = [each.identification is not None and each.kind == "proven" for each in guarantees]
    if not any(bounds):
        return guarantees
    found = (defense.picked(each[each.lined].shown()) for each in shown)
    own = max((each for each in found if each is not None), key=lambda g: g.identification or 0.0, default=None)
    told = tuple(own if own and bound else each for each, bound in zip(guarantees, bounds, strict=True))
    if all(each.targets is None for each in shown):
        return told
    return tuple(replace(g, assumes=f"{g.assumes}; {GROUP_KNOWN}") if g.identification else g for g in told)


def identify(candidates: CandidateSets, guess: Tensor) -> tuple[Tensor, Tensor]:
    """Return (rank (N,), identified (N,)): the truth's rank among its candidates by MSE to `guess` (N, C, H, W)."""
    scores = [
        -(candidates.images(slice(i, i + 1))[0].to(guess.device) - guess[i]).square().flatten(1).mean(1)
        for i in range(len(candidates))
    ]
    stacked = torch.stack(scores) if scores else guess.new_zeros(0, candidates.columns)
    return identify_by_scores(stacked.cpu(), candidates.position, candidates.sizes)


def identify_by_scores(scores: Tensor, position: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return (rank (N,), identified (N,)) of the truth at `position` (N,) by `scores` (N, M), larger is likelier.

    Of `sizes` (N,) only so many of the first columns are looked at: what fills a shorter line-up is no candidate.
    Ties go to the lower index. The position is uniformly random, so that gives an attacker who cannot tell candidates
    apart exactly chance, and needs no random numbers. NaN ranks last.
    """
    scores = torch.where(scores.isnan(), torch.full_like(scores, -torch.inf), scores)
    if sizes is not None:
        beyond = torch.arange(scores.shape[1], device=scores.device)[None] >= sizes.to(scores.device)[:, None]
        scores = scores.masked_fill(beyond, -torch.inf)
    true = scores.gather(1, position[:, None])
    before = torch.arange(scores.shape[1], device=scores.device)[None] < position[:, None]
    rank = 1 + (scores > true).sum(1) + ((scores == true) & before).sum(1)
    return rank, rank == 1
