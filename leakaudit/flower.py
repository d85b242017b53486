"""Updates as they leave a Flower client, written down for `leakaudit scan --update`: a client mod.

    from leakaudit.flower import capture

    app = ClientApp(mods=[capture("updates/", local_epochs=1, batch_size=8, lr=0.01)])

The first mod of an app is its outermost: it sees what leaves after all the others, such as LocalDpMod. Needs Flower of
1.20 or later with its message API: `pip install 'leakaudit[flower]'`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leakaudit.captured.form import SUFFIX
from leakaudit.captured.recording import Recorder, recorder
from leakaudit.errors import UserError

if TYPE_CHECKING:
    from flwr.app import Context, Message
    from flwr.clientapp.typing import ClientAppCallable, Mod

ROUND = ("server-round", "server_round", "round")  # what a strategy calls it


def capture(folder: Path | str = "updates", *, defenses: Iterable[object] = (), **said: Any) -> Mod:
    """Return a client mod that writes every update that leaves the client to `folder`, a file per round and node.

    `said` are the settings of the client's training, as in `leakaudit.captured.form.Claims`: local_steps or
    local_epochs, batch_size, local_lr (or lr), momentum, optimizer, mode, records, defense. What is not said is taken
    from the message's ConfigRecord, else from the app's run_config, where it stands there under a usual name
    (`local-epochs`, `batch-size`, `lr`, `learning-rate`), and the records from the reply's `num-examples`. `defenses`
    are the other mods, whose settings become the claim that is measured: `[LocalDpMod(1.0, 1.0, 1.0, 1e-5)]`.

    The message passes on unchanged whatever happens: what cannot be written is one warning in the log. The files are
    as private as the updates are. Raises leakaudit.UserError for a setting that there is not, or where Flower is
    missing.

    >>> app = ClientApp(mods=[capture("updates/", local_epochs=1, batch_size=8, lr=0.01)])
    """
    if find_spec("flwr") is None:
        raise UserError("leakaudit.flower needs Flower: pip install 'leakaudit[flower]'.")
    kept = recorder(folder, said, "flwr", defenses)

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        if not message.metadata.message_type.startswith("train"):
            return call_next(message, context)
        came: list[tuple[dict[str, Any], dict[str, Any]]] = []
        kept.capture(lambda: came.append(_received(message, context)))  # before the app, which may write into it
        reply = call_next(message, context)
        if came and not reply.has_error():
            kept.capture(lambda: _written(kept, came[0], reply, context))
        return reply

    return mod


def _received(message: Message, context: Context) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what came: a copy of the arrays of every record, and the configuration, the message's before the app's."""
    content = message.content
    config: dict[str, Any] = dict(context.run_config)
    for record in content.config_records.values():
        config |= dict(record)
    return {key: _arrays(record) for key, record in content.array_records.items()}, config


def _written(
    kept: Recorder, came: tuple[dict[str, Any], dict[str, Any]], reply: Message, context: Context
) -> Path | str:
    """Write the one record of arrays that came and went, by the same names; or say why there is none."""
    before, config = came
    went = {key: _arrays(record) for key, record in reply.content.array_records.items() if len(record)}
    pairs = [(old, new) for old in before.values() for new in went.values() if old and old.keys() == new.keys()]
    if len(pairs) != 1:
        return (
            f"the reply holds {len(went)} records of arrays, {len(pairs)} of them with the names of one that came"
            if went
            else "the reply holds no arrays, as under secure aggregation, whose masked numbers are no weights"
        )
    told = dict(config)
    for record in reply.content.metric_records.values():
        told |= {key: value for key, value in record.items() if key in ("num-examples", "num_examples")}
    node = context.node_config.get(
        "partition-id", context.node_id
    )  # where it stands: the ids of a simulation are drawn
    number = next((int(config[key]) for key in ROUND if key in config), None)
    if number is None:  # a strategy that does not tell: the next round that this node has no file of
        number = 1 + len(list(kept.folder.glob(f"round-*-node-{node}{SUFFIX}")))
    place = f"round-{number:04d}-node-{node}"
    return kept.write(place, told, f"round {number}, node {node}", before=pairs[0][0], after=pairs[0][1])


def _arrays(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: array.numpy() for name, array in record.items()}


__all__ = ["capture"]
