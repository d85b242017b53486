"""Who gets how much of what is left of a time budget, by what each is expected to take and how soon it gets any."""

from __future__ import annotations

from collections.abc import Sequence

from leakaudit.audit.pieces import Piece, rank

FITS = 0.6  # of what is left of the budget, that fits may take together, where the rest needs more than is left
SAFE = 1.3  # times what a piece is expected to take, that it is given where there is a choice
SHORT, GRACE = 0.1, 0.3  # seconds: less is kept for nothing, and what is begun may take so many, if it must


def share_of(left: float, pieces: Sequence[Piece], needs: Sequence[float], lanes: int = 1) -> float:
    """Return the seconds that the first of all pieces to come is given: 0 where too little would come of it.

    `left` are the seconds that are left in each of so many `lanes`, `needs` what each piece is expected to take.
    """
    first, room = pieces[0], left * lanes
    every = [(piece, max(SHORT, need)) for piece, need in zip(pieces, needs, strict=True)]
    if any(piece.all_or_nothing for piece in pieces):
        fits = sum(need for piece, need in every if piece.all_or_nothing)
        room = _for_fits(room, every) if first.all_or_nothing else room - min(fits, _for_fits(room, every))
        every = [each for each in every if each[0].all_or_nothing is first.all_or_nothing]
    least = [min(1.0, max(piece.least, SHORT / need)) for piece, need in every]
    every = [each for each, share in zip(every, least, strict=True) if share * each[1] <= left]  # a lane does it alone
    if not every or every[0][0] is not first:
        return 0.0
    own, ranks = every[0][1], [rank(piece) for piece, _ in every]
    least = [min(1.0, max(piece.least, SHORT / need)) for piece, need in every]
    given = shared_out(room, [need for _, need in every], least, ranks)[0]
    # Half of what is over is there for whoever takes longer than expected: what it leaves returns. To what a verdict
    # rests on all is over that says less.
    before = sum(need for (_, need), other in zip(every, ranks, strict=True) if other <= ranks[0])
    over = max(0.0, room - before) * max(own / before, 0.5)
    return min(left, max(GRACE, given + over)) if given else 0.0


def _for_fits(room: float, every: Sequence[tuple[Piece, float]]) -> float:
    """Return what fits may take of what is left: all that the rest will not need, or a fixed share if that is more.

    Never what the verdicts on the others rest on, where that is less than the rest of that share.
    """
    rest = [(rank(piece), need) for piece, need in every if not piece.all_or_nothing]
    most = max(FITS * room, room - sum(need for _, need in rest))
    decisive = sum(need for rank_, need in rest if not rank_)
    return max((1 - FITS) * room, min(most, room - decisive))


def shared_out(
    left: float, needs: Sequence[float], least: Sequence[float], ranks: Sequence[int] | None = None
) -> list[float]:
    """Return seconds for each of some pieces of work, of `left` in all.

    Each gets what it needs. Where that is too much in all, it gets up to `SAFE` times that, but none more than a level
    at which it is enough, or than its `least` share of what it needs. One for which there is less than that gets
    nothing: they are chosen by their `ranks`, the lowest first, among equals the cheapest first (of equals the first).
    """
    if left <= 0:
        return [0.0] * len(needs)
    if sum(needs) <= left:
        return list(needs)
    order = ranks or [0] * len(needs)
    kept, rest = [], left
    for i in sorted(range(len(needs)), key=lambda i: (order[i], needs[i], i)):
        if least[i] * needs[i] <= rest:
            kept.append(i)
            rest -= least[i] * needs[i]
    given = dict(zip(kept, _levelled(left, [(least[i] * needs[i], SAFE * needs[i]) for i in kept]), strict=True))
    return [given.get(i, 0.0) for i in range(len(needs))]


def _levelled(left: float, bounds: Sequence[tuple[float, float]]) -> list[float]:
    """Return what each gets at the level at which as much as there is is given: at least, and at most, its bounds.

    What is given at a level grows in straight lines between the bounds.
    """

    def at(level: float) -> list[float]:
        return [min(max(level, low), high) for low, high in bounds]

    below = 0.0
    for above in sorted({each for pair in bounds for each in pair}):
        if sum(at(above)) > left:
            growing = sum(low <= below < high for low, high in bounds)
            return at(below + (left - sum(at(below))) / max(1, growing))
        below = above
    return at(below)
