"""The result of an audit: frozen dataclasses ⇄ the JSON schema `leakaudit.result/1`.

Everything a report shows is in here, pictures included; what was not measured is null with a reason beside it.
Fields may be added to version 1 (with a default); none may be removed or change its meaning.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cattrs.preconf.json import make_converter

from leakaudit.errors import Setting, UserError
from leakaudit.files.jsonfile import leave_out, structured
from leakaudit.files.reading import text_of
from leakaudit.files.typed import Bulk
from leakaudit.result import display
from leakaudit.result.attempts import Attempt
from leakaudit.result.claims import ClaimRow
from leakaudit.result.estimates import estimates_of
from leakaudit.result.tasks import MeasureName

if TYPE_CHECKING:
    from pandas import DataFrame

SCHEMA = "leakaudit.result/1"

Verdict = Literal["pass", "fail", "inconclusive"]

Severity = Literal["info", "warning", "error"]

Value = str | int | float | bool | None
Images = Literal["full", "redacted", "none"]  # private ones, public stand-ins, or no picture at all


@dataclass(frozen=True)
class Estimate:
    """A number with its interval. `value` is None where it was not measured, and `reason` says why."""

    value: float | None = None
    low: float | None = None  # bounds of the two-sided 95 % interval, None where it has no interval
    high: float | None = None
    n: int = 0  # records (or seeds) behind it
    reason: str | None = None


@dataclass(frozen=True)
class Reason:
    """Why a verdict is what it is, as values. Every surface writes its own sentence from them (`judge.words`)."""

    id: str  # kebab-case, a key of `judge.words.REASONS`
    defense: str = ""  # of reasons of a whole audit: which defense it is about
    attack: str = ""
    role: str = ""  # of that attack
    measured: Estimate | None = None
    limit: float | None = None
    needs: tuple[Setting, ...] = ()  # what would settle it
    facts: dict[str, Value] = field(default_factory=dict)  # further numbers that its sentence names


@dataclass(frozen=True)
class Mend:
    """What to do about a finding or a check, as values: a key of `judge.words.MENDS`, and the settings it names."""

    id: str
    needs: tuple[Setting, ...] = ()


@dataclass(frozen=True)
class Finding:
    """Something the audit noticed."""

    id: str  # kebab-case
    severity: Severity
    message: str
    evidence: dict[str, Value] = field(default_factory=dict)
    mend: str = ""  # what to do about it, one sentence
    why: tuple[Reason, ...] = ()  # the reasons of a verdict that it tells
    todo: Mend | None = None  # the mend as values, where it is one of ours


@dataclass(frozen=True)
class Waiver:
    """Somebody's decision to let one check of the gate go, for a reason and until a day."""

    rule: str  # which check, by the name of its rule, e.g. "identification"; `*` stands for any text
    reason: str
    expires: str  # ISO date, the last day it holds
    defense: str = "*"
    attack: str = "*"
    by: str = ""  # who decided


@dataclass(frozen=True)
class RecordScore:
    """One private record against what one attack made of it. Scores are None unless the victim's status allows them."""

    victim: int
    record: int  # position within the victim's batch
    label: str
    status: str  # converged | diverged | not-applicable | out-of-memory | budget | failed; of one skipped, skipped
    mse: float | None = None
    psnr: float | None = None  # dB
    ssim: float | None = None
    lpips: float | None = None
    psnr_released: float | None = None  # against x̃, for data-replacing defenses
    identified: bool | None = None
    rank: int | None = None  # of the true record among the candidates, 1 is nearest
    guessed_label: str | None = None
    exact: bool | None = None  # rebuilt, or confirmed among the candidates, beyond doubt
    candidates: int | None = None  # size of its own line-up, where the records' line-ups differ in size
    gain: float | None = None  # dB above the best that needs no update of it
    swapped: float | None = None  # dB, median PSNR of what was drawn for other victims' records of its class


@dataclass(frozen=True)
class Picture:
    """One row of a gallery. Each picture is a base64 PNG, or None where there is none."""

    victim: int
    record: int
    label: str
    original: Bulk | None = field(repr=False)  # none of them in a log: a picture is as private as its record
    shared: Bulk | None = field(repr=False)  # what a data-replacing defense put in its place, else None
    reconstruction: Bulk | None = field(repr=False)
    psnr: float | None = None
    ssim: float | None = None
    identified: bool | None = None


@dataclass(frozen=True)
class Further:
    """The score of an attack by a metric that a plug-in brings: its median over the records."""

    name: str
    estimate: Estimate
    higher_leaks: bool
    unit: str = ""


@dataclass(frozen=True)
class AttackResult:
    """One attack on one defended model."""

    name: str
    kind: str  # reconstruction | labels | linkage
    role: str  # standard | adaptive | bound
    settings: dict[str, Value]  # effective, after tuning
    tuned: dict[str, Value]  # what was chosen on auxiliary records; empty if nothing was
    requires: tuple[str, ...]
    statuses: dict[str, int]  # how many victims ended how
    reason: str | None  # why, where not all converged
    identification: Estimate  # share of records identified among the candidates
    candidates: int  # M, the (median) size of a candidate set; 0 where identification was not scored
    psnr: Estimate  # median over records, dB; after optimal assignment; against x
    ssim: Estimate
    lpips: Estimate
    r2: Estimate  # share of the variance of x explained beyond the class mean, ≤ 1
    psnr_released: Estimate  # against x̃
    label_accuracy: Estimate
    records: tuple[RecordScore, ...] = field(default=(), repr=False)
    gallery: tuple[Picture, ...] = field(default=(), repr=False)  # worst (most leaking) first
    notes: tuple[str, ...] = ()  # how it ran where that was not as planned, e.g. in pieces for lack of memory
    doubts: dict[str, Value] = field(default_factory=dict)  # by kebab id, what makes its scores weaker than they look
    asked: dict[str, Value] = field(default_factory=dict)  # the settings in `tuned` before; empty in older results
    further: tuple[Further, ...] = ()  # by metrics of plug-ins
    swapped: Estimate = field(default_factory=Estimate)  # median PSNR of what it drew for others of the class, dB
    gain: Estimate = field(default_factory=Estimate)  # median of PSNR less the best guess, record by record, dB
    exact: int = 0  # records that it rebuilt or confirmed exactly
    settled_by: str = ""  # the attack that had settled the verdict, so that this one was skipped; empty where it ran
    captured: tuple[Attempt, ...] = ()  # what it made of captured updates whose records nobody knows


@dataclass(frozen=True)
class Guarantee:
    """What is known of a defense without attacking it: a proven statement, or something that nothing bounds."""

    statement: str
    kind: Literal["proven", "not-bounded"]
    assumes: str = ""  # under what a proven statement holds
    identification: float | None = None  # where that bounds it: how often a record is picked out of `candidates`
    candidates: int = 0
    states: tuple[str, ...] = ()  # names of the defense's facts that the statement says already


@dataclass(frozen=True)
class Examined:
    """What the audit found out about a defense by trying it, whatever the defense says of itself."""

    changes: tuple[str, ...] = ()  # what of an exchange differs from an undefended one, by name (`protocol.stages`)
    independent: bool | None = None  # all that is shared is the same, bit for bit, whichever record of a class it is of
    strength: float | None = None  # share of its strength at which an attack was seen to work; None: at none
    weakened: Estimate = field(default_factory=Estimate)  # what that attack identified there
    union: Estimate = field(default_factory=Estimate)  # share of the victims' records that any attack identified
    union_guess: float = 0.0  # what guessing as often would
    by_class: dict[str, Estimate] = field(default_factory=dict)  # the union by class
    tenth: Estimate = field(default_factory=Estimate)  # the union among the tenth of records most often identified
    repeats: bool | None = None  # what is shared of a record is the same again under the same seed


@dataclass(frozen=True)
class Controls:
    """What shows that the audit could have found a leak, and what was done to weaken it."""

    canary: Verdict | None = None  # of a planted leak, audited by the same code: anything but fail discredits a pass
    canary_told: str = ""  # what happened there
    auxiliary: Estimate = field(default_factory=Estimate)  # AUC of a classifier telling auxiliary from private records
    lowered: tuple[str, ...] = ()  # attacks that were given less effort than the battery gives
    left_out: tuple[str, ...] = ()  # attacks of the battery that did not run
    canary_ended: Literal["", "budget", "interrupt"] = ""  # what ended the search for the planted leak before its end


@dataclass(frozen=True)
class Known:
    """An attack that was known when the audit ran: what decides where it must run, and what it covers."""

    name: str
    examines: tuple[str, ...] = ()  # what of an exchange it always runs on, by name (`protocol.stages`), or "anything"
    requires: tuple[str, ...] = ()  # facts of the exposure
    covers: tuple[str, ...] = ()  # names of `result.surfaces`


@dataclass(frozen=True)
class Stage:
    """What an audit found of one defense at one moment of training."""

    name: str  # init | early | trained
    epochs: int  # of training, without a defense, before it
    accuracy: float  # of the model at that moment, on the test records
    verdict: Verdict
    attack: str = ""  # that identified most
    identification: Estimate = field(default_factory=Estimate)
    why: tuple[Reason, ...] = ()


@dataclass(frozen=True)
class DefenseResult:
    """One defense: what it leaks, what it costs, and what follows."""

    spec: str  # as typed, e.g. "obscure,dp-sgd:noise_multiplier=0.5"
    settings: dict[str, Value]
    facts: dict[str, Value]  # e.g. {"epsilon": 3.2, "delta": 1e-5}
    replaces_records: bool
    attacks: tuple[AttackResult, ...]
    accuracy: Estimate  # test accuracy of a model trained on the shared updates
    accuracies: tuple[float, ...]  # per seed
    verdict: Verdict
    reasons: tuple[str, ...]  # why this verdict, one sentence each
    requested: bool = True  # False for the undefended control the audit added itself
    guarantees: tuple[Guarantee, ...] = ()  # proven, or not bounded; empty in older results
    why: tuple[Reason, ...] = ()  # the reasons as values; empty in older results, which are judged again
    stronger: dict[str, int] = field(default_factory=dict)  # which way a setting makes it more private, 1 or -1
    lowest: dict[str, float] = field(default_factory=dict)  # the lowest value of such a setting, where it is not 0
    examined: Examined | None = None  # None in results from before it was
    adaptive: tuple[str, ...] = ()  # attacks that the defense itself names as built against it
    stages: tuple[Stage, ...] = ()  # moments of training, in their order, the last one this row's; none: as given


@dataclass(frozen=True)
class Baseline:
    """What a guess without any update scores: leakage is what exceeds this."""

    name: str  # random | class-mean | prior
    description: str
    identification: Estimate
    psnr: Estimate
    ssim: Estimate
    lpips: Estimate


@dataclass(frozen=True, repr=False)
class AuditResult:
    """A whole audit. A notebook shows it as the first screen of its report; `to_pandas` gives its numbers."""

    target: dict[str, Value]  # name, model class, parameters, input_shape, classes, record counts, ...
    exposure: dict[str, Value]  # the facts, and "preset"
    assumptions: tuple[str, ...]  # sentences every number stands beside
    findings: tuple[Finding, ...]
    baselines: tuple[Baseline, ...]
    chance_accuracy: float
    chance_identification: float
    max_identification: float  # the threshold the verdict is judged by
    defenses: tuple[DefenseResult, ...]  # the control ("none") first
    verdict: Verdict
    reasons: tuple[str, ...]
    not_tested: tuple[str, ...]
    settings: dict[str, Value]  # effective settings of the scan
    environment: dict[str, Value]  # versions; what is needed to run it again
    images: str = "full"  # full | redacted | none
    complete: bool = True  # False when the run was interrupted: what is here was measured, the rest was not
    timings: dict[str, float] = field(default_factory=dict)  # seconds; with `made` all that differs between equal runs
    hashes: dict[str, str] = field(default_factory=dict)  # SHA-256 by what it is of: model, private, victims, ...
    waivers: tuple[Waiver, ...] = ()  # those configured when the audit ran
    why: tuple[Reason, ...] = ()  # the reasons as values; empty in older results
    controls: Controls | None = None  # None in results from before there were any
    stand_in: str = ""  # where pictures are redacted: the public picture drawn in their place, and what was done to it
    known: tuple[Known, ...] = ()  # every attack that was known then, run or not; empty in older results
    captured: dict[str, Value] = field(default_factory=dict)  # what is said of captured updates, where they are audited
    claims: tuple[ClaimRow, ...] = ()  # what is claimed of them beside what was measured
    chance_labels: float | None = None  # share of the commonest label group, where labels are no classes
    measure: MeasureName = "accuracy"  # by what models are judged: what accuracies are of
    made: str = ""  # when the audit began, in UTC, as 2026-11-27T01:20:00Z; empty in older results
    schema: str = SCHEMA

    def control(self) -> DefenseResult | None:
        """Return the undefended row."""
        return next((d for d in self.defenses if d.spec == "none"), None)

    def to_pandas(self) -> DataFrame:
        """Return every number as a table with the columns defense, attack, metric, value, low, high, records.

        A score that was not measured is a row without a value. Raises leakaudit.UserError without pandas.
        """
        return display.table(self)

    def save(self, folder: Path | str) -> Path:
        """Write `result.json` and `report.html` into a folder, as a scan does; return where the report is.

        What an earlier audit left there is set aside; files with private pictures are for their owner alone. Raises
        leakaudit.UserError where nothing can be written.
        """
        return display.keep(self, Path(folder))

    def __repr__(self) -> str:
        """Return three lines: the verdict, the defenses, where to read on."""
        return display.lines(self)

    def _repr_html_(self) -> str:
        """Return the first screen of the report, which notebooks show."""
        return display.screen(self)


# Values that came after version 1 began, parts before what holds them: only written where they say something.
VALUES_LATER: dict[type, tuple[str, ...]] = {
    Setting: ("value",),
    Reason: tuple(f.name for f in fields(Reason) if f.name != "id"),
    Mend: ("needs",),
}
_converter = leave_out(
    make_converter(),
    VALUES_LATER
    | {
        RecordScore: ("exact", "candidates", "gain", "swapped"),
        AttackResult: ("notes", "doubts", "asked", "further", "swapped", "gain", "exact", "settled_by", "captured"),
        Known: ("examines", "requires", "covers"),
        Guarantee: ("states",),
        Examined: tuple(f.name for f in fields(Examined)),
        Controls: tuple(f.name for f in fields(Controls)),
        Stage: ("attack", "identification", "why"),
        DefenseResult: ("guarantees", "why", "stronger", "lowest", "examined", "adaptive", "stages"),
        Finding: ("mend", "why", "todo"),
        AuditResult: (
            "hashes",
            "waivers",
            "why",
            "stand_in",
            "controls",
            "known",
            "captured",
            "claims",
            "measure",
            "chance_labels",
            "made",
        ),
    },
)


def to_json(result: AuditResult) -> str:
    """Return the result as JSON: sorted keys, no NaN (ValueError), one trailing newline."""
    return json.dumps(_converter.unstructure(result), indent=1, sort_keys=True, allow_nan=False) + "\n"


def from_json(text: str, source: str = "result.json") -> AuditResult:
    """Read a result of version 1. Raises UserError naming `source` when it is none."""
    result = structured(text, source, SCHEMA, AuditResult, "a result.json written by a scan")
    for where, estimate, share in estimates_of(result):
        ends = [v for v in (estimate.low, estimate.value, estimate.high) if v is not None]
        if estimate.n < 0 or ends != sorted(ends) or (share and ends and not 0 <= ends[0] <= ends[-1] <= 1):
            raise UserError(f"{source} holds an estimate that none can be ({where}: {estimate}): scan again.")
    return result


def digest(result: AuditResult) -> str:
    """Return the SHA-256 of the result as it is written: what `sha256sum result.json` prints."""
    return hashlib.sha256(to_json(result).encode("utf-8", "surrogatepass")).hexdigest()


def load(path: Path) -> AuditResult:
    """Read a result file; raises UserError when it is missing or none."""
    return from_json(text_of(path), str(path))


def is_private(result: AuditResult) -> bool:
    """Return whether a file with this result is for its owner alone: with private pictures it is."""
    return result.images == "full"
