"""FedAvg (McMahan et al. 2017) with a defense in every client: how well the averaged model does.

Each client fits the defense on its own shard, replaces its records, trains the server's model on them for one local
epoch, every step through the defense's later stages, and sends the difference; the server adds the average, weighted by
records. Local training is that of `leakaudit.score.utility.train`, begun anew in every round. A defense that is
`renewable` draws anew each round. `pooled` clients draw from what all of them fitted.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from leakaudit.defenses.class_conditional import ClassConditional
from leakaudit.defenses.obscure import Obscure
from leakaudit.defenses.obscurer import Obscurer
from leakaudit.protocol.client import release
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.registry import parse_defense
from leakaudit.protocol.target import PixelModel, Records, Target
from leakaudit.score.utility import shared_update, train
from leakaudit.work.seeding import derive, generator_for

SPLITS = ("iid", "skewed")


@dataclass(frozen=True)
class Client:
    """One client: its records, its own fitted defense, and what that released of them."""

    records: Records
    defense: Defense
    released: Records


@dataclass(frozen=True, kw_only=True)
class Exchanged(Defense):
    """Every record gives way to a draw of the class statistics of any client, each as likely as it has records.

    `parts` are the clients' fitted defenses, and `labels` their records' labels: what is exchanged.
    """

    parts: tuple[Defense, ...] = ()
    labels: tuple[Tensor, ...] = ()

    @property
    def renewable(self) -> bool:
        """A further draw says nothing more of a record: none enters."""
        return True

    def transform_records(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw a client's label for each record, and a picture of that client's for it."""
        owner = torch.cat([torch.full_like(own, i) for i, own in enumerate(self.labels)])
        chosen = torch.randint(len(owner), (len(images),), generator=generator)
        drawn, told = images.clone(), torch.cat(self.labels)[chosen]
        for i, part in enumerate(self.parts):
            mine = owner[chosen] == i
            if mine.any():
                drawn[mine] = part.transform_records(images[mine], told[mine], generator)[0]
        return drawn, told


def iid(labels: Tensor, clients: int, generator: torch.Generator) -> list[Tensor]:
    """Return the record indices of each client, a random partition into parts that differ by one at most."""
    order = torch.randperm(len(labels), generator=generator)
    return list(torch.tensor_split(order, clients))


def skewed(labels: Tensor, clients: int, generator: torch.Generator) -> list[Tensor]:
    """Return the record indices of each client where every class belongs to one client, 2 of 10 classes to each of 5.

    With fewer classes than clients every client holds one class, and clients of the same class share its records.
    """
    classes = sorted(set(labels.tolist()))
    order = [classes[i] for i in torch.randperm(len(classes), generator=generator).tolist()]
    parts: list[list[Tensor]] = [[] for _ in range(clients)]
    for place, label in enumerate(order):
        mine = (labels == label).nonzero().flatten()
        mine = mine[torch.randperm(len(mine), generator=generator)]
        holders = [i for i in range(clients) if i % len(order) == place] or [place % clients]
        for client, part in zip(holders, torch.tensor_split(mine, len(holders)), strict=True):
            parts[client].append(part)
    return [torch.cat(part) for part in parts]


def clients_of(target: Target, spec: str, split: str, clients: int, seed: int) -> list[Client]:
    """Return the clients of a split, each with the defense of this spec fitted on its own records."""
    divide = {"iid": iid, "skewed": skewed}[split]
    found = []
    for i, index in enumerate(divide(target.private.labels, clients, generator_for(seed, "split", split))):
        own = replace(target, private=target.private[index])
        defense = parse_defense(spec).fit(own, generator_for(seed, "client", split, i, "fit"))
        generator = generator_for(seed, "client", split, i, "release")
        found.append(Client(own.private, defense, release(defense, own.private, generator)))
    return found


def pooled(clients: Sequence[Client], seed: int) -> list[Client] | None:
    """Return the same clients, who exchanged what they fitted and draw from all of it; None where that cannot be."""
    given = [client.defense for client in clients]
    obscurers = [each.obscurer for each in given if isinstance(each, Obscure) and each.obscurer and each.renewable]
    defenses: list[Defense]
    if len(obscurers) == len(clients):
        whole = Obscurer.pooled(obscurers)
        defenses = [replace(each, obscurer=whole) for each in given if isinstance(each, Obscure)]
    elif all(isinstance(each, ClassConditional) for each in given):
        exchanged = Exchanged(parts=tuple(given), labels=tuple(client.records.labels for client in clients))
        defenses = [exchanged for _ in clients]
    else:
        return None
    return [
        Client(client.records, defense, release(defense, client.records, generator_for(seed, "pooled", "release", i)))
        for i, (client, defense) in enumerate(zip(clients, defenses, strict=True))
    ]


def averaged(states: Sequence[dict[str, Tensor]], sizes: Sequence[int]) -> dict[str, Tensor]:
    """Return Σ n_i/n · state_i for everything that is a floating-point number, the first one's for the rest."""
    total = sum(sizes)
    return {
        name: sum((state[name] * (n / total) for state, n in zip(states, sizes, strict=True)), torch.zeros_like(first))
        if first.is_floating_point()
        else first
        for name, first in states[0].items()
    }


def fedavg(target: Target, clients: Sequence[Client], *, rounds: int, batch_size: int, seed: int) -> PixelModel:
    """Return the server's model after so many rounds from fresh weights."""
    model: PixelModel = clients[0].defense.transform_model(target.fresh(derive(seed, "fedavg")), generator_for(seed))
    for turn in range(rounds):
        start = copy.deepcopy(model.state_dict())
        states = []
        for i, client in enumerate(clients):
            defense, records = client.defense, client.released
            if turn and defense.renewable:
                records = release(defense, client.records, generator_for(seed, "renew", turn, i))
            model.load_state_dict(start)
            update = shared_update(model, target.loss, defense, generator_for(seed, "noise", turn, i))
            train(
                model,
                records,
                target.loss,
                epochs=1,
                batch_size=batch_size,
                seed=derive(seed, "local", turn, i),
                update=update,
                label=f"round {turn + 1} of {rounds}",
                augment=target.augment,
            )
            states.append(copy.deepcopy(model.state_dict()))
        # The average of the clients' models is the server's model plus the average of their differences.
        model.load_state_dict(averaged(states, [len(client.records) for client in clients]))
    return model
