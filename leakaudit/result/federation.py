"""What one client does before it sends: how many local steps on how many records, and whose updates are summed.

The description alone, as a user writes it and a result holds it; what such a client computes is in
`leakaudit.protocol.client`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

from leakaudit.errors import UserError, did_you_mean
from leakaudit.files.reading import short
from leakaudit.result.numbers import significant
from leakaudit.result.specs import converted, split

OPTIMIZERS = ("sgd", "adam")
MOST_STEPS = 10_000  # of one client in one round: all of it is computed for every victim
SHORT = {  # what a spec may say for the longer names
    "steps": "local_steps",
    "epochs": "local_epochs",
    "batch": "batch_size",
    "lr": "local_lr",
}


def _demand(holds: bool, rule: str) -> None:
    if not holds:
        raise ValueError(rule)


@dataclass(frozen=True, kw_only=True)
class Client:
    """What a client of a federation does in one round. `Client()` is FedSGD: it sends the gradient of all its records.

    With `local_steps` or `local_epochs` it trains on its own records and sends what became of the weights (McMahan et
    al. 2017, arXiv 1602.05629, algorithm 1). It passes over its records in a fresh random order each time, in batches
    of `batch_size`, of which the last may be smaller. Raises ValueError for settings that no client can have.
    """

    local_steps: int = 0  # optimiser steps in one round; 0 with no epochs: no local training, the gradient is sent
    local_epochs: int = 0  # or passes over its records
    batch_size: int = 0  # records of one local step; 0: all of the client's
    local_lr: float = 0.01
    momentum: float = 0.0  # of sgd
    optimizer: str = "sgd"  # sgd or adam
    clients: int = 1  # U, whose updates are summed before anybody sees them (secure aggregation)
    rounds: int = 1  # in which the same records are sent from the same weights: the server has as many updates of them
    mode: str = ""  # train or eval; empty: what the scan says
    split: str = "iid"  # how accuracy is measured: records dealt to clients at random (iid) or sorted (class)

    def __post_init__(self) -> None:
        for name in ("local_steps", "local_epochs", "batch_size"):
            _demand(0 <= getattr(self, name) <= MOST_STEPS, f"{name} must be between 0 and {MOST_STEPS}")
        _demand(not (self.local_steps and self.local_epochs), "give local_steps or local_epochs, not both")
        _demand(self.local_lr > 0, "local_lr must be positive")
        _demand(0 <= self.momentum < 1, "momentum must be at least 0 and below 1")
        _demand(self.optimizer in OPTIMIZERS, f"optimizer must be one of {', '.join(OPTIMIZERS)}")
        _demand(self.optimizer == "sgd" or self.momentum == 0, "momentum is for sgd alone")
        _demand(self.local or self.batch_size == 0, "batch_size is of local steps: give local_steps or local_epochs")
        _demand(1 <= self.clients <= 1000, "clients must be between 1 and 1000")
        _demand(1 <= self.rounds <= 1000, "rounds must be between 1 and 1000")
        _demand(self.mode in ("", "train", "eval"), "mode must be train or eval")
        _demand(self.split in ("iid", "class"), "split must be iid or class")

    @property
    def local(self) -> bool:
        """Whether it trains on its own records and sends weights, not a gradient."""
        return self.local_steps + self.local_epochs > 0

    def steps(self, records: int) -> int:
        """Return how many optimiser steps it takes in a round on so many records of its own; 1 for FedSGD."""
        if not self.local:
            return 1
        return self.local_steps or self.local_epochs * -(-records // self.step_size(records))

    def step_size(self, records: int) -> int:
        """Return how many records a full local batch holds, of so many of its own."""
        return min(self.batch_size or records, records)

    def passes(self, records: int) -> int:
        """Return how many passes over so many records its steps need, the last one perhaps not whole."""
        return -(-self.steps(records) // -(-records // self.step_size(records)))

    def moved(self, records: int) -> float:
        """Return by how much of one gradient the weights move in a round, if all its steps had the same gradient.

        Σ_k lr Σ_{j≤k} momentum^{k−j} over its steps; for adam, whose steps are of no gradient's length, lr times the
        steps. 1 for FedSGD. What is sent, divided by it, stands where a gradient does.
        """
        if not self.local:
            return 1.0
        total, pace = 0.0, 0.0
        for _ in range(self.steps(records)):
            pace = self.momentum * pace + 1.0
            total += pace
        return self.local_lr * total


FEDSGD = Client()
PRESETS: Mapping[str, Client] = {"fedsgd": FEDSGD, "fedavg": Client(local_epochs=1)}


def parse_client(spec: str) -> Client:
    """Return the client of a spec, "fedavg:epochs=1:batch=8:lr=0.01"; UserError for one that cannot be."""
    name, given = split(spec)
    if name not in PRESETS:
        known = ", ".join(PRESETS)
        raise UserError(f"unknown client {short(name)}{did_you_mean(name, PRESETS)}; the clients: {known}.")
    known_fields, hints = [f.name for f in fields(Client)], get_type_hints(Client)
    values: dict[str, Any] = {}
    if "," in spec:
        raise UserError(f"client {short(name)}: colons part its settings, not commas: fedavg:epochs=1:batch=8.")
    for pair in given.split(":") if given or spec.endswith(":") else ():
        key, equals, text = pair.partition("=")
        key = key.strip().replace("-", "_")
        key = SHORT.get(key, key)
        if not equals:
            raise UserError(f"client {short(name)}: {short(pair)} is not of the form setting=value.")
        if key not in known_fields:
            hint = did_you_mean(key, [*known_fields, *SHORT])
            allowed = ", ".join(known_fields)
            raise UserError(f"client {short(name)} has no setting {short(key)}{hint}; its settings: {allowed}.")
        if key in values:
            raise UserError(f"client {short(name)}: setting {short(key)} is given twice.")
        values[key] = converted(text.strip(), hints[key], f"client {short(name)}: setting {short(key)}")
    base = {f.name: getattr(PRESETS[name], f.name) for f in fields(Client)}
    if "local_steps" in values and "local_epochs" not in values:
        base["local_epochs"] = 0  # what is said takes the place of the preset's
    try:
        return Client(**(base | values))
    except ValueError as error:
        raise UserError(f"client {short(name)}: {error}.") from error


def client_from(given: Any) -> Client | None:
    """Return the client that a user gave, as one or as its spec; raises UserError for what is neither."""
    if given is None or isinstance(given, Client):
        return given
    if not isinstance(given, str):
        raise UserError(f"`client` is {short(given)}: give a leakaudit.Client or a spec like 'fedavg:epochs=1'.")
    return parse_client(given)


def spec_of(client: Client) -> str:
    """Return the shortest spec that `parse_client` makes this client of."""
    base = PRESETS["fedavg" if client.local else "fedsgd"]
    named = {long: word for word, long in SHORT.items()}
    told = [(f.name, getattr(client, f.name)) for f in fields(Client)]
    if client.local_steps:
        told = [(key, value) for key, value in told if key != "local_epochs"]
    parts = [f"{named.get(key, key)}={_told(value)}" for key, value in told if value != getattr(base, key)]
    return ":".join(["fedavg" if client.local else "fedsgd", *parts])


def client_of(settings: Mapping[str, Any]) -> Client:
    """Return the client of a result's settings: FedSGD where they name none, or none that can be."""
    try:
        return parse_client(str(settings.get("client") or "fedsgd"))
    except UserError:
        return FEDSGD


def in_words(client: Client, records: int) -> str:
    """Return what a client of so many records does in a round: the rest of a sentence that begins with it."""
    if not client.local:
        return f"shares one FedSGD gradient of a batch of {records}"
    steps, size = client.steps(records), client.step_size(records)
    rate = significant(client.local_lr)
    how = f"SGD, learning rate {rate}" if client.optimizer == "sgd" else f"Adam, learning rate {rate}"
    how += f", momentum {significant(client.momentum)}" if client.momentum else ""
    times = f"{client.local_epochs} epoch{'s' * (client.local_epochs > 1)}, " if client.local_epochs else ""
    return (
        f"trains on its {records} record{'s' * (records > 1)} in batches of {size} ({times}{steps} "
        f"step{'s' * (steps > 1)} of {how}) and shares what its weights lost"
    )


def _told(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)
