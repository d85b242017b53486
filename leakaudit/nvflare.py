"""Updates as they leave an NVFlare client, written down for `leakaudit scan --update`: a filter of task results.

    from leakaudit.nvflare import CaptureFilter

    recipe.add_client_output_filter(CaptureFilter("updates", "fedavg:epochs=1:batch=8:lr=0.01"), tasks=["train"])

Add it after the privacy filters: filters act in order, and the last one sees what leaves. Needs NVFlare of 2.5 or
later: `pip install 'leakaudit[nvflare]'`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from leakaudit.captured.form import Claims
from leakaudit.captured.recording import recorder
from leakaudit.protocol.federation import Client, parse_client

try:
    from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
    from nvflare.apis.dxo_filter import DXOFilter
    from nvflare.apis.event_type import EventType
    from nvflare.apis.fl_constant import FLContextKey
    from nvflare.apis.fl_context import FLContext
    from nvflare.apis.shareable import Shareable
except ImportError:
    raise ImportError("leakaudit.nvflare needs NVFlare: pip install 'leakaudit[nvflare]'.") from None

ROUND = MetaKey.CURRENT_ROUND
KINDS = [DataKind.WEIGHT_DIFF, DataKind.WEIGHTS]


class CaptureFilter(DXOFilter):  # type: ignore[misc]
    """A filter that writes every update it sees to a folder, a file per round and site, and changes nothing.

    `client` says how the site trains, as `leakaudit scan --client` takes it; `records` how many it has; `defense` the
    claimed defense as a spec of leakaudit; `defenses` the settings of the filters before it, each a dictionary with a
    "name": `[{"name": "PercentilePrivacy", "percentile": 10, "gamma": 0.01}]`. How many local steps there were is read
    from NUM_STEPS_CURRENT_ROUND where the client tells it and nobody else does. The weights that a site began with are
    written as well. What cannot be written is one warning in the log, and training goes on. The files are as private as
    the updates are. Raises leakaudit.UserError for settings that cannot be.
    """

    def __init__(
        self,
        folder: str = "updates",
        client: str = "",
        records: int | None = None,
        defense: str | None = None,
        defenses: list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(supported_data_kinds=list(KINDS), data_kinds_to_filter=list(KINDS))
        self.folder, self.client, self.records = str(folder), client, records  # under these names a job is written
        self.defense, self.defenses = defense, defenses
        said = {**(_said(client) if client else {}), "records": records, "defense": defense}
        kept = {key: value for key, value in said.items() if value is not None}
        self._kept = recorder(Path(folder), kept, "nvflare", _each(defenses))
        self._before: dict[str, Any] = {}

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Keep the weights that a task came with: what leaves later may be a difference."""
        if event_type == EventType.BEFORE_TASK_EXECUTION:
            self._kept.capture(lambda: self._keep(fl_ctx.get_prop(FLContextKey.TASK_DATA)))

    def _keep(self, task: Shareable | None) -> None:
        self._before = {}
        try:
            dxo = from_shareable(task) if task is not None else None
        except ValueError:  # not weights: another task
            return
        if dxo is not None and dxo.data_kind == DataKind.WEIGHTS:
            self._before = {name: _copied(value) for name, value in dxo.data.items()}

    def process_dxo(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> None:
        """Write one update; return None, by which NVFlare passes the update on as it is."""
        self._kept.capture(lambda: self._write(dxo, shareable, fl_ctx))

    def _write(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> Path:
        told = (fl_ctx.get_prop(ROUND), shareable.get_header(ROUND), dxo.get_meta_prop(ROUND), 0)
        number = next(each for each in told if each is not None)
        site = fl_ctx.get_identity_name() or "site"
        sends = "difference" if dxo.data_kind == DataKind.WEIGHT_DIFF else "after"
        steps = {"local_steps": dxo.get_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND)}
        given = {"before": self._before if dxo.data.keys() <= self._before.keys() else None, sends: dxo.data}
        return self._kept.write(f"round-{int(number):04d}-{site}", steps, f"round {number}, {site}", **given)


def _said(spec: str) -> dict[str, Any]:
    """Return the claims of a client's spec: what differs from a client who says nothing."""
    client, plain = parse_client(spec), Client()
    found = {f.name: getattr(client, f.name) for f in fields(client) if f.name in {g.name for g in fields(Claims)}}
    kept = {name: value for name, value in found.items() if value != getattr(plain, name)}
    return kept | ({"local_lr": client.local_lr} if client.local else {})


def _each(defenses: Iterable[Mapping[str, Any]] | None) -> Iterable[Mapping[str, Any]]:
    return defenses or ()


def _copied(value: Any) -> Any:
    return value.clone() if hasattr(value, "clone") else value.copy() if hasattr(value, "copy") else value


__all__ = ["CaptureFilter"]
