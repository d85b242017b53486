"""How candidates are replayed: what is drawn for each, in which light it is looked at, and which score to trust."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from leakaudit.attacks._clearing import Clearing, clearing_of
from leakaudit.attacks._likelihood import Noise, Replays, certain, noise_of, scores_of
from leakaudit.attacks._linking import Scores, most_trusted
from leakaudit.attacks._replaying import Layout, Parts, Play, layout_for
from leakaudit.protocol.labels import hard
from leakaudit.protocol.target import Records
from leakaudit.protocol.task import Task
from leakaudit.work.memory import need
from leakaudit.work.progress import expired, track

WATCHED, REPEATS = 6, 12  # records, and draws of each, by which the noise of a defense is measured
SAME_NOISE = 1e-4  # relative: two records' noise under one seed is the same, but for rounding
CLASSES, SHOWN, SOUGHT = 2, 24, 12  # rehearsals: so many auxiliary records of so many classes, so many of them sought
View = Callable[[Tensor, tuple[int, ...]], Tensor]


def _as_sent(rows: Tensor, widths: tuple[int, ...]) -> Tensor:
    return rows


def _in_order(rows: Tensor, widths: tuple[int, ...]) -> Tensor:
    """Return rows (..., F) with the magnitudes of every part in order: what permutations and signs cannot hide."""
    return torch.cat([part.abs().sort(-1).values for part in torch.split(rows, list(widths), -1)], -1)


def _zeros(rows: Tensor, widths: tuple[int, ...]) -> Tensor:
    """Return 1 where an entry is zero, −1 for a negative zero, 0 elsewhere: what multiplying by 0 cannot hide."""
    sign = torch.where(torch.signbit(rows), -torch.ones_like(rows), torch.ones_like(rows))
    return torch.where(rows == 0, sign, torch.zeros_like(rows))


def _fractions(rows: Tensor, widths: tuple[int, ...]) -> Tensor:
    """Return what is left of the entries beside whole numbers: what whole numbers of noise cannot hide."""
    return rows - rows.round()


# In which light rows are looked at, by the name that their scores begin with. The first is what was sent.
VIEWS: dict[str, View] = {"": _as_sent, "zeros, ": _zeros, "in order, ": _in_order, "fractions, ": _fractions}
FIXED = ("", "zeros, ")  # where nothing is drawn: what is a function of the record shows there
CLEARED = "cleared, "  # without the noise that entries share, where they do


def unknown(sent: list[Parts], records: Records) -> Tensor | None:
    """Return no likelihood."""
    return None


@dataclass(frozen=True)
class Way:
    """What is compared: how a candidate is played, with and without the defense, and a likelihood in closed form."""

    play: Play
    bare: Play | None
    known: Callable[[list[Parts], Records], Tensor | None] = unknown  # (N, U) of N that were sent and U candidates


@dataclass(frozen=True)
class Played:
    """How candidates are played, and what was seen of it beforehand."""

    way: Way
    layout: Layout
    seeds: tuple[int, ...]
    noises: dict[str, Noise]  # by view
    sizes: dict[str, float]  # by view: the root mean square of an entry, by which rows are divided
    shifts: Tensor | None  # (K, F): what further draws add to the row of any record, where it is the same for all
    clearing: Clearing | None = None
    modes: tuple[int, ...] = ()  # which of the seeds give what is a function of the record, though others do not

    @property
    def steady(self) -> bool:
        """Whether every draw is the same."""
        return self.noises[""].steady

    @property
    def _device(self) -> torch.device:
        return self.noises[""].variance.device

    def narrowed(self, names: tuple[str, ...]) -> Played:
        """Return it without the views that no score of these names is of, but for those where it may be certain."""
        sure = ("", CLEARED)
        left = {
            view: noise for view, noise in self.noises.items() if view in sure or any(n.startswith(view) for n in names)
        }
        return replace(self, noises=left)

    def row(self, parts: Parts) -> Tensor:
        """Return the row (F,) of one client, as it was sent."""
        return self.layout.row(parts)

    def replays(self, candidates: Records, label: str) -> dict[str, Replays] | None:
        """Return the replays of U candidates by view; None where the time did not suffice."""
        seeds = self.seeds if self.shifts is None else self.seeds[:1]
        shifts = None if self.shifts is None else (self.shifts.mean(0), self.shifts[: len(self.seeds)])
        each = 4 * (1 + len(self.noises)) * sum(self.layout.widths)  # of every view, and one of them in two copies
        plays = len(seeds) * len(candidates)
        need(plays * each, f"{len(seeds)} replays of {len(candidates)} candidates", "draws or candidates", self._device)
        rows: dict[str, list[Tensor]] = {view: [] for view in self.noises}
        bare: dict[str, list[Tensor]] = {view: [] for view in self.noises}
        for j in track(label, len(candidates)):
            one = candidates[j : j + 1]
            played = torch.stack([self.row(self.way.play(one, seed)) for seed in seeds]).nan_to_num_(0, 0, 0)
            raw = None if self.way.bare is None else self.row(self.way.bare(one, seeds[0])).nan_to_num(0, 0, 0)
            for view in self.noises:
                moved = played if shifts is None else played + shifts[bool(view)]
                rows[view].append(self._look(view, moved))
                bare[view] += [] if raw is None else [self._look(view, raw)]
        if any(len(each) < len(candidates) for each in rows.values()):
            return None
        return {view: self._replays(view, rows, bare) for view in self.noises}

    def _replays(self, view: str, rows: dict[str, list[Tensor]], bare: dict[str, list[Tensor]]) -> Replays:
        """Return the replays of a view, and let go of the single rows that they are made of."""
        played, raw = torch.stack(rows.pop(view)), bare.pop(view)
        draws = played.shape[1] if self.shifts is None or view else len(self.shifts)
        shown = torch.stack(raw) if raw else None
        return Replays(played, shown, self.noises[view], self.layout.widths, draws, self.modes)

    def _look(self, view: str, rows: Tensor) -> Tensor:
        return _looked(view, rows, self.layout.widths, self.clearing) / self.sizes[view]

    def scores(
        self, sent: list[Parts], replays: dict[str, Replays], candidates: Records, names: tuple[str, ...] = ()
    ) -> Scores:
        """Return the scores (N, U) of U candidates for what N clients sent, by name: those of `names`, if any."""
        seen = self._rows(sent)
        found: Scores = {}
        for view, of in replays.items():
            asked = [name.removeprefix(view) for name in names if name.startswith(view)]
            if asked or not names:
                found |= {view + name: each for name, each in scores_of(self._look(view, seen), of, asked).items()}
        known = self.way.known(sent, candidates)
        return found if known is None else found | {"known likelihood": known.to(seen)}

    def certain(self, sent: list[Parts], replays: dict[str, Replays], places: Tensor) -> Tensor:
        """Return which candidate (N,) of line-ups (N, M) it is for certain, in any view; −1 for none."""
        seen, found = self._rows(sent), torch.full((len(sent),), -1, device=places.device)
        for view, of in replays.items():
            sure = certain(self._look(view, seen), of, places)
            found = torch.where(found < 0, sure, found)
        return found

    def _rows(self, sent: list[Parts]) -> Tensor:
        return torch.stack([self.row(parts) for parts in sent]).nan_to_num(0, 0, 0)


def _looked(view: str, rows: Tensor, widths: tuple[int, ...], clearing: Clearing | None) -> Tensor:
    return clearing(rows) if view == CLEARED and clearing is not None else VIEWS[view](rows, widths)


def prepared(way: Way, run: Records, draws: int, generator: torch.Generator) -> Played:
    """Look at how the defense treats a few records: what it sends of them, and what it draws at random.

    Where nothing is drawn there is one replay of a candidate. Where a draw adds the same to every record, one is enough
    as well: that is noise in closed form. Only rows that are not sketched are looked at in every view.
    """
    few = [run[i : i + 1] for i in range(min(WATCHED, len(run)))]
    layout = layout_for(few, way.play, generator)
    runs: list[Tensor] = []
    drawn: list[list[int]] = []
    for one in few:
        drawn.append(torch.randint(2**62, (REPEATS,), generator=generator).tolist())
        runs.append(torch.stack([layout.row(way.play(one, seed)) for seed in drawn[-1]]).nan_to_num(0, 0, 0))
        if len(runs) == 2 and noise_of(runs).steady:  # two records that never differ: nothing is drawn
            break
    steady = noise_of(runs).steady
    views = [""] if layout.signs else list(FIXED if steady else VIEWS)
    clearing = None if steady else clearing_of(runs)
    views += [] if clearing is None else [CLEARED]
    looks = {view: [_looked(view, rows, layout.widths, clearing) for rows in runs] for view in views}
    sizes = {view: float(torch.cat(rows).double().square().mean().sqrt()) or 1.0 for view, rows in looks.items()}
    noises = {view: noise_of([one / sizes[view] for one in rows]) for view, rows in looks.items()}
    chosen = torch.randint(2**62, (1 if steady else draws,), generator=generator).tolist()
    rare: dict[bytes, int] = {}
    # Of one label, so that pictures must tell them apart.
    alike = [Records(one.images, few[0].labels, targets=few[0].targets) for one in few]
    for seed in [] if steady else _recurring(runs, drawn):
        rows = [_bytes(layout.row(way.play(one, seed))) for one in alike]
        if len(set(rows)) == len(rows):
            rare.setdefault(rows[0], seed)
    modes = list(rare.values())[:draws]
    shifts = None if steady or modes else _shifts(way, layout, few[:2], chosen[0], generator)
    seeds = (*modes, *chosen[len(modes) :])
    return Played(way, layout, seeds, noises, sizes, shifts, clearing, tuple(range(len(modes))))


def _recurring(runs: Sequence[Tensor], seeds: Sequence[Sequence[int]]) -> list[int]:
    """Return seeds under which a record's row is what it is under another seed too, and no other record's row.

    A defense that draws at random, but not always, is a function of the record then; the seeds make the same choice
    for other records, mostly. Draws chosen afresh may miss what happens seldom.
    """
    whose: dict[bytes, dict[int, list[int]]] = {}
    for i, (rows, used) in enumerate(zip(runs, seeds, strict=True)):
        for row, seed in zip(rows, used, strict=True):
            whose.setdefault(_bytes(row), {}).setdefault(i, []).append(seed)
    found = [own for by in whose.values() if len(by) == 1 for own in by.values() if len(own) > 1]
    return [own[0] for own in sorted(found, key=len, reverse=True)]


def _bytes(row: Tensor) -> bytes:
    data: bytes = row.detach().cpu().numpy().tobytes()
    return data


def _shifts(way: Way, layout: Layout, run: list[Records], first: int, generator: torch.Generator) -> Tensor | None:
    """Return by how much the rows (K, F) of a record differ from that under the `first` seed, the first by nothing.

    None where that depends on the record.
    """
    base = [layout.row(way.play(one, first)) for one in run]
    found = [torch.zeros_like(base[0])]
    for seed in torch.randint(2**62, (REPEATS,), generator=generator).tolist():
        each = [layout.row(way.play(one, seed)) - start for one, start in zip(run, base, strict=True)]
        if len(each) < 2 or not float((each[0] - each[1]).norm()) <= SAME_NOISE * float(each[0].norm()):
            return None
        found.append(each[0])
    return torch.stack(found)


def trusted(
    name: str, played: Played, own: Records, task: Task, foremost: tuple[str, ...], generator: torch.Generator
) -> tuple[str, ...]:
    """Return which scores find the attacker's own records among others of their class; ties go to what is foremost.

    Views that did not do best in one class are not looked at in the next.
    """
    labels, best = hard(own.labels, task), foremost
    rehearsed: list[tuple[Scores, Tensor]] = []
    for label in torch.bincount(labels).argsort(descending=True, stable=True)[:CLASSES].tolist():
        members = (labels == label).nonzero()[:, 0]
        members = members[torch.randperm(len(members), generator=generator)[:SHOWN].to(members.device)]
        if len(members) < 2 or expired():
            continue
        shown = own[members]
        replays = played.replays(shown, f"{name}: rehearsal")
        if replays is None:
            continue
        seeds = torch.randint(2**62, (min(SOUGHT, len(members)),), generator=generator).tolist()
        sent = [played.way.play(shown[i : i + 1], seed) for i, seed in enumerate(seeds)]
        scores = played.scores(sent, replays, shown)
        rehearsed.append((scores, torch.arange(len(seeds), device=next(iter(scores.values())).device)))
        plain = tuple(name for name in scores if not name.startswith((*tuple(VIEWS)[1:], CLEARED)))
        best = most_trusted(rehearsed, (foremost, plain))
        played = played.narrowed(best)
    return best if rehearsed else ()
