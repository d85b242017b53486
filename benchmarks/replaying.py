"""An attacker of its own for `benchmarks.verdicts`: whether a set-up leaks, with no attack or score of leakaudit.

It runs the whole exchange on every candidate, with own draws, and compares what the server would see with what it saw.
Of leakaudit it uses the defense's methods; the order of the stages, gradients and statistics are written out here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from leakaudit.protocol.defense import Defense
from leakaudit.protocol.target import PixelModel, Records, Target

Seen = dict[str, Tensor]  # what one exchange shows, by name of parameter, buffer or released thing, flattened
Side = Callable[[Seen], Seen]  # what an attacker who was told how a leak is hidden looks at
LEVEL = 1e-4  # of the test, after correction for all that was looked at


@dataclass(frozen=True)
class Found:
    """The attacker's best way of looking: it named a candidate for `named` victims, and was right for `hits`."""

    hits: int
    named: int
    victims: int
    candidates: int
    way: str
    level: float  # of its hits under guessing, corrected for the number of ways

    @property
    def leaky(self) -> bool:
        """Whether that is more than guessing gives."""
        return self.level < LEVEL


@dataclass(frozen=True)
class Client:
    """Anybody's client under a defense, with the network as its model stage makes it."""

    target: Target
    defense: Defense
    mode: str = "eval"
    network: list[PixelModel] = field(default_factory=list)

    def model(self) -> PixelModel:
        """Return the network; a copy where the exchange would change it."""
        if not self.network:
            model = copy.deepcopy(self.target.model)
            self.network.append(self.defense.transform_model(model, torch.Generator().manual_seed(0)))
        return copy.deepcopy(self.network[0]).train() if self.mode == "train" else self.network[0].eval()


def exchange(client: Client, which: list[int], seed: int) -> Seen:
    """Return what the server sees of a client whose batch are these private records."""
    generator, model, defense, target = (
        torch.Generator().manual_seed(seed),
        client.model(),
        client.defense,
        client.target,
    )
    x, y = target.private.images[which], target.private.labels[which]
    x, y = defense.transform_records(x, y, generator)
    x = x.clamp(0, 1)
    shown = defense.observe(model, x, y, generator)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]

    def gradient(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(target.loss(model(a), b), [p for _, p in named])

    if shown.needs_example_gradients:
        each = [gradient(x[i : i + 1], y[i : i + 1]) for i in range(len(y))]
        stacked = shown.transform_example_gradients(tuple(map(torch.stack, zip(*each, strict=True))), generator)
        update = tuple(g.mean(0) for g in stacked)
    else:
        update = gradient(x, y)
    update = shown.transform_update(update, len(y), generator)
    seen = {name: g.detach().flatten() for (name, _), g in zip(named, update, strict=True)}
    seen["everything"] = torch.cat(list(seen.values()))
    moved = [b.flatten() for _, b in model.named_buffers() if b.is_floating_point()]
    return seen | ({"statistics": torch.cat(moved)} if client.mode == "train" else {})


def look(  # noqa: PLR0913 - what is known of a set-up, and how long to look
    target: Target,
    defense: Defense,
    *,
    victims: int = 16,
    line_up: int = 20,
    draws: int = 4,
    groups: int = 4,
    mode: str = "eval",
    person: Tensor | None = None,
    side: Side = lambda seen: seen,
) -> Found:
    """Attack fresh clients of one record each. `person` (N,) of the private records: find the person by another shot.

    Line-ups are of one class; victims are of the first `groups` classes: the fewer, the more replays are shared.
    """
    names, pools = _line_ups(target.private, victims, line_up, person, groups)
    replays: dict[int, list[Seen]] = {}
    client, bare = Client(target, defense, mode), Client(target, Defense(), mode)
    scores: dict[str, list[tuple[int | None, int]]] = {}
    for victim, pool, truth in zip(names, pools, _positions(names, pools, person), strict=True):
        for j in pool:
            if j not in replays:
                times = [exchange(client, [j], 7_000 + 97 * j + k) for k in range(draws)]
                raw = exchange(bare, [j], 0)  # a defense that falls back would share this
                replays[j] = [side(each) for each in (*times, raw) if each.keys() == times[0].keys()]
        seen = side(exchange(client, [victim], 1_000_003 + victim))
        for way, said in guesses(seen, [replays[j] for j in pool], draws).items():
            scores.setdefault(way, []).append((said, truth))
    return best(scores, line_up)


def guesses(seen: Mapping[str, Tensor], replays: Sequence[Sequence[Seen]], draws: int) -> dict[str, int | None]:
    """Return whom each way of looking names; None where no single candidate stands out."""
    said: dict[str, int | None] = {}
    for name, u in seen.items():
        drawn = torch.stack([torch.stack([r[name] for r in each]) for each in replays])  # (M, K or K + 1, D)
        far = (drawn - u).square().sum(2)
        nearest = far.min(1).values
        size = u.square().sum() + 1e-30
        same = (nearest <= 1e-8 * size).nonzero().flatten().tolist()
        said[f"{name}, the same"] = same[0] if len(same) == 1 else None
        said[f"{name}, the nearest draw"] = alone(nearest)
        proper = drawn[:, :draws]
        mean = proper.mean(1)
        noise = (proper - mean[:, None]).square().mean((0, 1)) * draws / max(1, draws - 1)
        weight = 1 / (noise + 1e-9 * (noise.mean() + mean.var(0).mean()) + 1e-30)
        said[f"{name}, the mean"] = alone(((mean - u).square() * weight).sum(1))
    return said


def alone(distance: Tensor) -> int | None:
    """Return who is nearest, None where others are as near."""
    order = distance.sort()
    tie = bool(order.values[1] <= order.values[0] * (1 + 1e-9))
    return None if tie else int(order.indices[0])


def best(scores: Mapping[str, Sequence[tuple[int | None, int]]], line_up: int) -> Found:
    """Return the way of looking that guessing explains least."""
    from scipy.stats import binom

    found = []
    for way, said in scores.items():
        named = [(guess, truth) for guess, truth in said if guess is not None]
        hits = sum(guess == truth for guess, truth in named)
        level = float(binom.sf(hits - 1, len(named), 1 / line_up)) if named else 1.0
        found.append(Found(hits, len(named), len(said), line_up, way, min(1.0, level * len(scores))))
    return min(found, key=lambda each: (each.level, -each.hits))


def _line_ups(
    private: Records, victims: int, size: int, person: Tensor | None = None, groups: int = 4
) -> tuple[list[int], list[list[int]]]:
    """Return victims, and for each a line-up of its class that holds it, or another shot of its person."""
    who = torch.arange(len(private)) if person is None else person
    pools: dict[int, list[int]] = {}
    for i in torch.randperm(len(private), generator=torch.Generator().manual_seed(5)).tolist():
        if (label := int(private.labels[i])) >= groups:
            continue
        pool = pools.setdefault(label, [])
        if len(pool) < size and all(who[i] != who[j] for j in pool):
            pool.append(i)
    columns = list(zip(*pools.values(), strict=True))
    shown = [i for column in columns for i in column][:victims]
    if person is not None:
        shown = [next(j for j in range(len(private)) if person[j] == person[i] and j != i) for i in shown]
    return shown, [pools[int(private.labels[i])] for i in shown]


def _positions(names: Sequence[int], pools: Sequence[Sequence[int]], person: Tensor | None) -> list[int]:
    who = (lambda i: i) if person is None else (lambda i: int(person[i]))
    return [[who(j) for j in pool].index(who(i)) for i, pool in zip(names, pools, strict=True)]


def look_at_batches(target: Target, defense: Defense, *, batch: int, victims: int = 4, line_up: int = 20) -> Found:
    """Attack batches in closed form: where a dense unit fires for one record, ∂W_j / ∂b_j is that record, exactly.

    The first layer of the network must be dense. A candidate is named where one such row is that candidate.
    """
    client, (names, pools) = Client(target, defense), _line_ups(target.private, victims * batch, line_up)
    scores: list[tuple[int | None, int]] = []
    for v in range(victims):
        mine = names[v * batch : (v + 1) * batch]
        seen = exchange(client, mine, v)
        weights, biases = list(seen.values())[:2]
        rows = weights.view(len(biases), -1) / biases[:, None]
        rows = rows[biases.abs() > 1e-7]
        for i in mine:
            pool = pools[names.index(i)]
            far = torch.cdist(rows, target.private[pool].images.flatten(1)).min(0).values
            same = (far < 1e-2).nonzero().flatten().tolist()
            same = [k for k in same if pool[k] == i or pool[k] not in mine]  # others of the batch are found as well
            scores.append((same[0] if len(same) == 1 else None, pool.index(i)))
    return best({"a row of the first layer": scores}, line_up)


def look_at_pairs(target: Target, defense: Defense, *, victims: int = 8, line_up: int = 20) -> Found:
    """Attack batches of two through a record stage: every pair of candidates is tried."""
    client, (names, pools) = Client(target, defense), _line_ups(target.private, 2 * victims, line_up)
    single: dict[int, Tensor] = {}
    scores: list[tuple[int | None, int]] = []
    for v in range(victims):
        mine = names[2 * v : 2 * v + 2]
        u = exchange(client, mine, v)["everything"]
        sides = [pools[names.index(i)] for i in mine]
        for j in (*sides[0], *sides[1]):
            if j not in single:
                single[j] = exchange(client, [j], j)["everything"]
        halves = [torch.stack([single[j] for j in side]) / 2 for side in sides]
        far = torch.cdist(u - halves[0], halves[1])  # (M, M)
        at = int(far.argmin())
        picked = (at // far.shape[1], at % far.shape[1])
        scores += [(k, side.index(i)) for k, side, i in zip(picked, sides, mine, strict=True)]
    return best({"every pair": scores}, line_up)
