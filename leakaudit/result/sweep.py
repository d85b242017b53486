"""What a sweep found: frozen dataclasses ⇄ the JSON schema `leakaudit.sweep/1`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cattrs.preconf.json import make_converter

from leakaudit.files.jsonfile import structured
from leakaudit.files.reading import text_of
from leakaudit.result.schema import Estimate, Value, Verdict
from leakaudit.result.tasks import MeasureName

SCHEMA = "leakaudit.sweep/1"
State = Literal["audited", "interrupted", "failed", "waiting"]


@dataclass(frozen=True)
class Row:
    """One scan: a model at a moment of training under one defense of one strength."""

    name: str  # of its folder beside this file, which holds its result.json and report.html
    defense: str  # its spec; none: the undefended model alone
    varied: dict[str, Value]  # the settings that the sweep varies, with their values here
    state: State  # failed: it could not be audited; waiting: not begun
    trouble: str = ""  # why it could not be audited
    verdict: Verdict | None = None  # None where there is no result
    attack: str = ""  # the worst that an adversary can run; empty where none was scored
    identification: Estimate = field(default_factory=Estimate)  # by it
    accuracy: Estimate = field(default_factory=Estimate)  # by the frontier's measure
    loss: Estimate = field(default_factory=Estimate)  # of accuracy, to the undefended model
    keeps: Verdict | None = None  # whether the limits of leakage and of the loss are kept
    best: bool = False  # no other row identifies less at no less accuracy, or is more accurate and identifies no more
    digest: str = ""  # SHA-256 of its result.json


@dataclass(frozen=True)
class Front:
    """All scans of one model at one moment of training, and the undefended model that they share."""

    model: str  # as the sweep file calls it
    stage: str  # empty: its weights as they were given
    measure: MeasureName
    max_identification: float | None  # the limits; None where nothing was audited, or there is none
    max_accuracy_loss: float | None
    control: Estimate  # identification without a defense
    control_accuracy: Estimate
    advice: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Sweep:
    """A whole sweep. It says nothing that the results beside it do not say."""

    source: str  # the sweep file, as given
    verdict: Verdict | None  # the worst of all scans; one that was not audited is inconclusive; None: none was
    fronts: tuple[Front, ...]
    leakaudit: str = ""  # the version that wrote it
    schema: str = SCHEMA


_converter = make_converter()


def to_json(sweep: Sweep) -> str:
    """Return the sweep as JSON: sorted keys, no NaN (ValueError), one trailing newline."""
    return json.dumps(_converter.unstructure(sweep), indent=1, sort_keys=True, allow_nan=False) + "\n"


def load(path: Path) -> Sweep:
    """Read a sweep; raises UserError when the file is missing or none."""
    return structured(text_of(path), str(path), SCHEMA, Sweep, "a sweep.json written by leakaudit sweep")
