"""In which order a client saw its records: unknown to a server, but for what the labels tell of it.

The records of a batch of an update are B slots. Its clients hold them in turn, and every pass of a client over its own
is an order of them, cut into its steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leakaudit.engine import matching, unrolled
from leakaudit.engine.unrolled import Training
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.federation import Client
from leakaudit.protocol.gradients import Gradients
from leakaudit.protocol.labels import class_means, hard
from leakaudit.protocol.target import PixelModel
from leakaudit.work.progress import track

STARTS = 4  # orders from which a better one is sought
MOST = 400  # orders that are simulated for one update
NEARER = 1e-6  # by which a distance must fall to count

Order = tuple[tuple[tuple[int, ...], ...], ...]  # by client and pass: the client's slots as it saw them


def natural(client: Client, records: int) -> Order:
    """Return the order in which every client sees its own slots in turn, in every pass."""
    own = records // client.clients
    return tuple((tuple(range(u * own, (u + 1) * own)),) * client.passes(own) for u in range(client.clients))


def steps_of(client: Client, order: Order) -> Iterator[list[tuple[int, tuple[int, ...]]]]:
    """Yield of every client its steps: in which pass each is, and the slots it sees."""
    own = len(order[0][0])
    size = client.step_size(own)
    for passes in order:
        cut = [(p, seen[i : i + size]) for p, seen in enumerate(passes) for i in range(0, own, size)]
        yield cut[: client.steps(own)]


def training_of(client: Client, order: Order, apart: int = 0) -> Training:
    """Return the local training of an order. With `apart` = B every pass has slots of its own, B after B."""
    plans = (tuple(torch.tensor(seen) + p * apart for p, seen in steps) for steps in steps_of(client, order))
    return Training(client, tuple(plans), len(order[0][0]))


def _neighbours(order: Order) -> Iterator[Order]:
    """Yield the orders that one change leads to: within a pass two slots exchanged or one moved, or two clients'."""
    for u, passes in enumerate(order):
        for p, seen in enumerate(passes):
            for i, j in itertools.permutations(range(len(seen)), 2):
                moved = list(seen)
                moved.insert(j, moved.pop(i))
                exchanged = list(seen)
                exchanged[i], exchanged[j] = exchanged[j], exchanged[i]
                for found in [moved, exchanged] if i < j else [moved]:
                    mine = (*passes[:p], tuple(found), *passes[p + 1 :])
                    yield (*order[:u], mine, *order[u + 1 :])
    for one, other in itertools.combinations(order, 2):
        for a, b in itertools.product(one[0], other[0]):
            swap = {a: b, b: a}
            yield tuple(tuple(tuple(swap.get(s, s) for s in seen) for seen in passes) for passes in order)


@dataclass
class _Search:
    """The distances of the orders of one update that were tried, by what each step sees: slots alike are exchanged."""

    client: Client
    alike: Sequence[int]  # what each slot is like
    distance: Callable[[Training], float]

    def __post_init__(self) -> None:
        self.known: dict[tuple[object, ...], float] = {}

    def value(self, order: Order) -> float:
        """Return the distance of an order, infinite where too many were tried."""
        plans = steps_of(self.client, order)
        seen = (tuple(tuple(sorted(self.alike[s] for s in rows)) for _, rows in steps) for steps in plans)
        key = tuple(sorted(seen))  # who of the clients did it makes no difference
        if key not in self.known:
            near = len(self.known) < MOST
            self.known[key] = self.distance(training_of(self.client, order)) if near else float("inf")
        return self.known[key]

    def climb(self, order: Order, shuffle: Callable[[int], list[int]]) -> tuple[float, Order]:
        """Return the order, and its distance, from which no change leads nearer."""
        best, found = self.value(order), True
        while found and len(self.known) < MOST:
            found = False
            around = list(_neighbours(order))
            for i in shuffle(len(around)):
                value = self.value(around[i])
                if value < best - NEARER:
                    best, order, found = value, around[i], True
                    break
        return best, order


def orders_told(model: PixelModel, update: SharedUpdate, labels: Tensor, generator: torch.Generator) -> list[Order]:
    """Return for every victim the order that the labels of its slots, (V, B) or (V, B, K), tell best.

    An order is simulated with the mean auxiliary picture of every slot's class, grey where none are exposed: what a
    step does to the last layers is mostly told by its labels, so that the order of labels whose update points most
    along the one that was sent is the client's, long before anything is known of pictures. It is climbed to from
    `STARTS` orders. Slots of one label are alike, and stay so. The caller puts the model in the client's mode.
    """
    client, count = update.client, update.batch_size
    begun = natural(client, count)
    pictures = _typical(update, model)
    orders = []
    for v in track("finding the order of local steps", update.victims):
        told = labels[v]
        alike = list(range(count)) if told.is_floating_point() else told.tolist()
        shown = pictures[hard(told, update.task).to(pictures.device)].to(model.mean)
        wanted = tuple(s[v] for s in update.gradients)

        def distance(
            training: Training, told: Tensor = told, shown: Tensor = shown, wanted: Gradients = wanted
        ) -> float:
            found = unrolled.trained(model, update.loss, shown, told, training)
            return float(matching.cosine(found, wanted)[0].nan_to_num(nan=2.0))

        def shuffle(size: int) -> list[int]:
            drawn: list[int] = torch.randperm(size, generator=generator, device=generator.device).tolist()
            return drawn

        search = _Search(client, alike, distance)
        found = [search.climb(start, shuffle) for start in _starts(begun, shuffle)]
        orders.append(min(found, key=lambda pair: pair[0])[1])
    return orders + [begun] * (update.victims - len(orders))  # where the time was up


def _typical(update: SharedUpdate, model: PixelModel) -> Tensor:
    """Return what a picture of every class (K, C, H, W) is like, as far as the server knows."""
    own = update.auxiliary
    if own is None or not len(own):
        return torch.full((update.classes, *update.input_shape), 0.5).to(model.mean)
    means = class_means(own.images, hard(own.labels, update.task), update.classes)
    return means.view(update.classes, *update.input_shape).to(model.mean)


def _starts(order: Order, shuffle: Callable[[int], list[int]]) -> Iterator[Order]:
    """Yield the order, and random ones; of an order that has no other, itself alone."""
    yield order
    slots = [s for passes in order for s in passes[0]]
    for _ in range(STARTS - 1):
        drawn = [slots[i] for i in shuffle(len(slots))]
        own = len(order[0][0])
        yield tuple(
            tuple(tuple(drawn[u * own + i] for i in shuffle(own)) for _ in passes) for u, passes in enumerate(order)
        )
