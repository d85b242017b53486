"""What the gate says: frozen dataclasses ⇄ the JSON schema `leakaudit.gate/1`. Every output format reads these."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cattrs.preconf.json import make_converter

from leakaudit.files.jsonfile import leave_out, structured
from leakaudit.files.reading import text_of
from leakaudit.result.schema import VALUES_LATER, Estimate, Mend, Reason, Value, Verdict, Waiver
from leakaudit.result.tasks import MeasureName

SCHEMA = "leakaudit.gate/1"
Level = Literal["error", "warn"]
State = Literal["in-force", "expired", "unused"]


@dataclass(frozen=True)
class Check:
    """One rule judged on one defense. A waiver does not change the status: it says that the status was accepted."""

    id: str  # rule/defense, unique within an outcome
    rule: str  # kebab-case: identification, psnr, accuracy, …, regression-identification, …
    level: Level
    defense: str
    attack: str  # that decided it; empty where no attack did
    status: Verdict
    message: str  # one sentence with its numbers
    mend: str = ""  # what to do, one sentence; empty where it passed
    measured: Estimate = field(default_factory=Estimate)
    threshold: float | None = None
    direction: Literal["max", "min", ""] = ""  # whether the threshold is the most or the least allowed
    evidence: dict[str, Value] = field(default_factory=dict)
    waiver: Waiver | None = None  # in force, and matching
    why: tuple[Reason, ...] = ()  # where it judges as the audit does: the reasons that its message tells
    todo: Mend | None = None  # the mend as values
    finding: dict[str, Value] = field(default_factory=dict)  # of a check of a finding: its evidence
    measure: MeasureName = "accuracy"  # of a check of accuracy or its loss: what models are judged by

    @property
    def pattern(self) -> str:
        """The pattern of attacks that the rule names, empty where it names none."""
        return self.id.partition(f"/{self.defense}")[0].partition(":")[2]


@dataclass(frozen=True)
class WaiverState:
    """A waiver, and what it does on the day of the gate: an expired one fails, an unused one matches no check."""

    waiver: Waiver
    state: State
    checks: tuple[str, ...] = ()  # ids it matched


@dataclass(frozen=True)
class Outcome:
    """What the gate says of one result, and of its change from a baseline where one was given."""

    source: str  # the result's file, as given
    verdict: Verdict  # of the checks of level error that no waiver covers, and of expired waivers
    reasons: tuple[str, ...]
    checks: tuple[Check, ...]
    waivers: tuple[WaiverState, ...]
    date: str  # ISO; waivers were judged on this day
    result_digest: str
    baseline: str = ""  # the baseline's file; empty without one
    baseline_digest: str = ""
    presets: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # what the reader should know, e.g. other versions on the two sides
    audited: str = ""  # of the result: when its audit began, in UTC; empty where it is not dated
    leakaudit: str = ""  # of the result: which version made it
    commit: str = ""  # of the result: that of the model's code, empty where the audit knew none
    schema: str = SCHEMA


_LATER: dict[type, tuple[str, ...]] = {
    Check: ("why", "todo", "finding", "measure"),
    Outcome: ("audited", "leakaudit", "commit"),
}
_converter = leave_out(make_converter(), VALUES_LATER | _LATER)


def to_json(outcome: Outcome) -> str:
    """Return the outcome as JSON: sorted keys, no NaN (ValueError), one trailing newline."""
    return json.dumps(_converter.unstructure(outcome), indent=1, sort_keys=True, allow_nan=False) + "\n"


def load(path: Path) -> Outcome:
    """Read an outcome; raises UserError when the file is missing or none."""
    return structured(text_of(path), str(path), SCHEMA, Outcome, "a file written by the gate")
