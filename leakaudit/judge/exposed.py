"""Who was found by any attack: the union over attacks, by class, and among those who are found most often."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from leakaudit.result.rules import guessing
from leakaudit.result.schema import AttackResult, Baseline, Estimate
from leakaudit.stats.intervals import rate, rate_of_clients

TENTH = 0.1  # of the records
Key = tuple[int, int]  # a victim, and a record of its batch


class Exposed(NamedTuple):
    """What `exposed` returns, named as the fields of `result.schema.Examined`."""

    union: Estimate
    union_guess: float
    by_class: dict[str, Estimate]
    tenth: Estimate


class Exact(NamedTuple):
    """Records that are known beyond doubt, each once, by how they became so."""

    rebuilt: frozenset[Key]  # drawn from the update
    confirmed: frozenset[Key]  # picked out of a line-up, since it replays to the last digits
    handed: frozenset[Key]  # only by attacks that are handed the replaced records


def exact(attacks: Sequence[AttackResult]) -> Exact:
    """Return which records attacks rebuilt or confirmed exactly."""
    by: dict[str, set[Key]] = defaultdict(set)
    for a in attacks:
        how = "handed" if a.role == "bound" else "confirmed" if a.kind == "linkage" else "rebuilt"
        by[how] |= {(r.victim, r.record) for r in a.records if r.exact}
    rebuilt, confirmed = frozenset(by["rebuilt"]), frozenset(by["confirmed"] - by["rebuilt"])
    return Exact(rebuilt, confirmed, frozenset(by["handed"] - rebuilt - confirmed))


def exposed(
    attacks: Sequence[AttackResult], chance: float, baselines: Sequence[Baseline] = (), *, bounds: bool = False
) -> Exposed:
    """Return which share of the victims' records any attack identified, beside what guessing as often would give.

    `union` is over the records, by victim and place, about which at least one attack was asked; attacks with the role
    "bound" are left out (with `bounds`, they alone are counted). `union_guess` is the mean over those records of
    1 − Π (1 − g) over the attacks asked about each, g one in the attack's candidates (`chance` where it does not say)
    or the best baseline's rate where that is more. Attacks that hit the same records make a smaller union than that.

    `tenth` is the rate among the tenth of the records that attacks identified most often. Those who were found are
    found, so the same attacks must not both choose and measure: every other attack ranks the records by how many
    identified them, the rest measure their union on the first tenth, the other way round too, and the two rates are
    averaged. Equal ranks share the places left, and the interval is that of one tenth of the records. It needs two
    attacks about the same records.
    """
    asked = [a for a in attacks if (a.role == "bound") is bounds and any(r.identified is not None for r in a.records)]
    found, classes = _found(asked), {(r.victim, r.record): r.label for a in asked for r in a.records}
    hits = {key: any(by.values()) for key, by in found.items()}
    guesses = [_guesses(a, chance, baselines) for a in asked]
    by_chance = [1 - math.prod(1 - guesses[i][key] for i in by) for key, by in found.items()]
    of_class: dict[str, dict[Key, bool]] = defaultdict(dict)
    for key, hit in hits.items():
        of_class[classes[key]][key] = hit
    return Exposed(
        union=rate_of_clients(_by_victim(hits), "no attack that identifies records was scored"),
        union_guess=math.fsum(by_chance) / len(by_chance) if by_chance else 0.0,
        by_class={label: rate_of_clients(_by_victim(those)) for label, those in sorted(of_class.items())},
        tenth=_most_exposed(found, len(asked)),
    )


def _by_victim(hits: Mapping[Key, bool]) -> list[list[bool]]:
    found: dict[int, list[bool]] = defaultdict(list)
    for (victim, _), hit in hits.items():
        found[victim].append(hit)
    return list(found.values())


def _guesses(attack: AttackResult, chance: float, baselines: Sequence[Baseline]) -> dict[Key, float]:
    """Return by record how often a guess would identify it."""
    sizes = {(r.victim, r.record): r.candidates or attack.candidates for r in attack.records}
    return {key: guessing(1 / size if size else chance, baselines) for key, size in sizes.items()}


def _found(attacks: Sequence[AttackResult]) -> dict[Key, dict[int, bool]]:
    """Return by record which attacks, by number, were asked about it, and whether they identified it."""
    found: dict[Key, dict[int, bool]] = {}
    for i, attack in enumerate(attacks):
        for r in attack.records:
            if r.identified is not None:
                found.setdefault((r.victim, r.record), {})[i] = r.identified
    return dict(sorted(found.items()))


def _most_exposed(found: Mapping[Key, Mapping[int, bool]], attacks: int) -> Estimate:
    halves = [range(0, attacks, 2), range(1, attacks, 2)]
    both = [by for by in found.values() if all(any(i in by for i in half) for half in halves)]
    if not both:
        return Estimate(reason="no two attacks were asked about the same records")
    size = math.ceil(TENTH * len(both))
    rates = []
    for rank, measure in (halves, halves[::-1]):
        pairs = [(_share(by, rank), any(by.get(i) for i in measure)) for by in both]
        last = sorted((share for share, _ in pairs), reverse=True)[size - 1]
        above = [hit for share, hit in pairs if share > last]
        level = [hit for share, hit in pairs if share == last]  # as if the places left were drawn by lot among them
        rates.append((sum(above) + (size - len(above)) * sum(level) / len(level)) / size)
    share = math.fsum(rates) / 2
    ends = rate(round(share * size), size)
    return Estimate(share, ends.low, ends.high, size)


def _share(by: Mapping[int, bool], attacks: Sequence[int]) -> float:
    """Return which share of some attacks identified a record, of those that were asked."""
    told = [by[i] for i in attacks if i in by]
    return sum(told) / len(told)
