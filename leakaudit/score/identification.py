"""Could somebody pick the private record out of a line-up? Identification among M candidates of the same class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from leakaudit.protocol.target import Records


@dataclass(frozen=True)
class CandidateSets:
    """A line-up per victim record: `indices` (N, M) into `pictures` (P, C, H, W); the truth is at `position` (N,)."""

    pictures: Tensor
    indices: Tensor
    position: Tensor

    @property
    def size(self) -> int:
        """M, the number of candidates of every record; below 2 nothing can be identified."""
        return int(self.indices.shape[1])

    @property
    def chance(self) -> float:
        """1/M, the rate of somebody who guesses."""
        return 1 / self.size

    def __len__(self) -> int:
        return int(self.indices.shape[0])

    def __getitem__(self, rows: Tensor | slice) -> CandidateSets:
        return CandidateSets(self.pictures, self.indices[rows], self.position[rows])

    def first_of_each(self, batch_size: int) -> CandidateSets:
        """Return the line-ups of each victim's first record: what linkage attacks are asked about."""
        return self[torch.arange(0, len(self), batch_size)]

    def images(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """Return the candidates (n, M, C, H, W) of some rows: everything at once can be large."""
        return self.pictures[self.indices[rows]]


def candidate_sets(
    private: Records,
    victims: Tensor,
    pool: Records,
    size: int,
    generator: torch.Generator,
    *,
    batch_size: int = 1,
) -> CandidateSets:
    """Draw a line-up for each of the victim records `private[victims]`, victims (N,) in batches of `batch_size`.

    Each holds the record at a random position and M − 1 distinct distractors of its class from the other private
    records and `pool` (disjoint from them). Exact copies of the record are no distractors, nor are records of its own
    batch: to find one of those is a hit as well. M is the largest number ≤ `size` that every record can have, so
    that chance is 1/M for all.
    """
    pictures = torch.cat([private.images, pool.images])
    labels = torch.cat([private.labels, pool.labels]).tolist()
    content = [hash(picture.numpy().tobytes()) for picture in pictures.cpu()]
    by_class: dict[int, dict[int, int]] = {}
    for index, (label, key) in enumerate(zip(labels, content, strict=True)):
        by_class.setdefault(label, {}).setdefault(key, index)  # one index per distinct picture
    records = victims.tolist()
    distractors: list[list[int]] = []
    for row, record in enumerate(records):
        start = row // batch_size * batch_size
        batch = {content[i] for i in records[start : start + batch_size]}
        distractors.append([i for key, i in by_class[labels[record]].items() if key not in batch])
    feasible = min([size, *(len(found) + 1 for found in distractors)])
    rows, positions = [], []
    for record, found in zip(records, distractors, strict=True):
        drawn = torch.randperm(len(found), generator=generator, device=generator.device)[: feasible - 1].tolist()
        position = int(torch.randint(feasible, (1,), generator=generator, device=generator.device))
        rows.append([*(found[i] for i in drawn[:position]), record, *(found[i] for i in drawn[position:])])
        positions.append(position)
    return CandidateSets(pictures, torch.tensor(rows).reshape(len(records), feasible), torch.tensor(positions).long())


def identify(candidates: CandidateSets, guess: Tensor) -> tuple[Tensor, Tensor]:
    """Return (rank (N,), identified (N,)): the truth's rank among its candidates by MSE to `guess` (N, C, H, W)."""
    scores = [
        -(candidates.images(slice(i, i + 1))[0].to(guess.device) - guess[i]).square().flatten(1).mean(1)
        for i in range(len(candidates))
    ]
    stacked = torch.stack(scores) if scores else guess.new_zeros(0, candidates.size)
    return identify_by_scores(stacked.cpu(), candidates.position)


def identify_by_scores(scores: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    """Return (rank (N,), identified (N,)) of the truth at `position` (N,) by `scores` (N, M), larger is likelier.

    Ties go to the lower index. The position is uniformly random, so that gives an attacker who cannot tell candidates
    apart exactly chance, and needs no random numbers. NaN ranks last.
    """
    scores = torch.where(scores.isnan(), torch.full_like(scores, -torch.inf), scores)
    true = scores.gather(1, position[:, None])
    before = torch.arange(scores.shape[1], device=scores.device)[None] < position[:, None]
    rank = 1 + (scores > true).sum(1) + ((scores == true) & before).sum(1)
    return rank, rank == 1
