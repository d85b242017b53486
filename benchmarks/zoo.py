"""Models, tasks and kinds of data as people bring them: what works, what is refused in which words, what goes wrong.

    python -m benchmarks.zoo                      all: looked at as by doctor, and scanned in short
    python -m benchmarks.zoo --quick              a third of them, looked at only
    python -m benchmarks.zoo --only swin volumes  these, with what was noted and found
    python -m benchmarks.zoo --json zoo.json --markdown docs/models.md
    python -m benchmarks.zoo --json zoo.json --only swin    the file's other rows stay as they are

All weights are random and all pictures made here. An entry is *wrong* where it is refused and should work (or the other
way round), where the refusal does not say what it must, where pictures, labels, shape, task or classes are not those
that were brought, where an attack fails, or where no attack names the records of an undefended model; a *crash* is any
exception but the one sentence for a user. Exits 1 where anything is wrong or crashed. What needs a package that is not
installed is skipped by name.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import import_module, metadata, util
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch

from benchmarks.zoodata import DATA
from benchmarks.zookit import Brought, Entry, Truth
from benchmarks.zoomodels import MODELS
from benchmarks.zooothers import OTHERS
from benchmarks.zootasks import TASKS
from leakaudit.audit.rehearsing import Rehearsed, rehearsed
from leakaudit.audit.stages import audit_at_stages
from leakaudit.errors import UserError, sentence
from leakaudit.load.loading import load_target, target_from_objects
from leakaudit.load.preflight import preflight
from leakaudit.load.units import with_units
from leakaudit.protocol.target import Target
from leakaudit.result.schema import AuditResult, Finding
from leakaudit.scene import plan as plans
from leakaudit.scene.plan import Plan

for _more in ("zoowrapped", "zoofiles"):  # they add to those above
    import_module(f"benchmarks.{_more}")

GROUPS: dict[str, list[Entry]] = {"models": MODELS, "tasks": TASKS, "data": DATA, "others": OTHERS}
SECONDS = 600  # of one entry, before it is stopped and called wrong
BUDGET = 300.0  # seconds of its scan
RECORDS = 4
SHORT = replace(plans.BATTERIES["quick"], steps=6, tuning_victims=1, decoder_steps=20)
Outcome = Literal["works", "refused", "wrong", "crash", "skipped"]
COLOURS = {"works": "32", "refused": "36", "wrong": "33", "crash": "31", "skipped": "2"}
MARK = "<!-- made by python -m benchmarks.zoo --markdown: do not edit below -->\n"


@dataclass(frozen=True)
class Row:
    """What became of one entry; `told` is the refusal, or what is wrong."""

    group: str
    name: str
    about: str
    outcome: Outcome
    told: str = ""
    seconds: float = 0.0
    read: str = ""  # what was read: shape, task, classes
    noted: tuple[str, ...] = ()  # notes and warnings, as a user sees them


class TooLong(BaseException):
    """An entry took longer than it may; no `except Exception` keeps it."""


class Refused(Exception):
    """The sentence with which a user is sent back."""


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise TooLong within once the time is over."""

    def stop(*_: Any) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def loaded(brought: Brought) -> Target:
    """Return the target of what is brought, as a scan loads it."""
    if not isinstance(brought.data, Path):
        return with_units(target_from_objects(brought.model, brought.data, **brought.more, device="cpu"))
    sys.modules["zoo_brought"] = held = ModuleType("zoo_brought")  # in place of a model.py
    vars(held).update(brought.more, model=brought.model)
    return with_units(load_target("zoo_brought", data=brought.data, device="cpu"))


def plan(entry: Entry) -> Plan:
    """Return a short scan."""
    return Plan(
        defenses=entry.defenses, battery="quick", records=RECORDS, seeds=1, epochs=1, budget=BUDGET, candidates=8
    )


def looked(target: Target) -> tuple[Finding, ...]:
    """Return what is found before a scan; raises Refused where doctor is not ready."""
    findings = preflight(target, mode="eval", batch_size=1, records=RECORDS, costs=True)
    error = next((finding for finding in findings if finding.severity == "error"), None)
    if error is not None:
        raise Refused(error.message)
    return findings


def misread(entry: Entry, target: Target, of: Truth | None) -> Iterator[str]:
    """Yield what was not read as it was brought."""
    depth = target.model.depth
    c, h, w = target.input_shape
    shape = (c // depth, depth, h, w) if depth > 1 else (c, h, w)
    if entry.shape is not None and shape != entry.shape:
        yield f"pictures of {shape} were read, not {entry.shape}"
    if target.task.kind != entry.kind:
        yield f"the task was taken for {target.task.kind}, not {entry.kind}"
    if entry.width is not None and len(target.classes) != entry.width:
        yield f"{len(target.classes)} classes were read, not {entry.width}"
    if of is None:
        return
    known = of.pictures.flatten(1)
    for role in ("private", "test", "auxiliary"):
        records = getattr(target, role)
        if records.images[0].numel() != known.shape[1]:
            yield f"pictures of {records.images[0].numel()} numbers were read, not {known.shape[1]}"
            return
        gaps = torch.stack([(known - x).abs().amax(1) for x in records.images.flatten(1)])
        if entry.tolerance < 1 and float(gaps.amin(1).max()) > entry.tolerance:
            yield f"a picture of {role} is {255 * float(gaps.amin(1).max()):.1f} of 255 levels from any brought"
        if entry.tolerance < 1 and not same_labels(records, of.labels[gaps.argmin(1)]):
            yield f"labels of {role} are not those that were brought"


def same_labels(records: Any, brought: torch.Tensor) -> bool:
    """Whether records have the labels that were brought, whatever form those had."""
    found = records.taught
    if found.numel() == brought.numel():
        return bool(torch.allclose(found.reshape(-1).float(), brought.reshape(-1).float(), atol=1e-6))
    return brought.dim() == 2 and bool((found == brought.argmax(1)).all())  # one-hot, taken as classes


def misjudged(entry: Entry, result: AuditResult) -> Iterator[str]:
    """Yield what is wrong with a result."""
    for defense in result.defenses:
        for attack in defense.attacks:
            if "failed" in attack.statuses:
                yield f"{attack.name} failed on {defense.spec} ({attack.reason})"
        if defense.accuracy.value is None:
            yield f"{defense.spec} has no accuracy ({defense.accuracy.reason})"
    control = result.control()
    found = [a.identification.value for a in control.attacks if a.identification.value is not None] if control else []
    if entry.leaks and (not found or max(found) <= result.chance_identification):
        yield f"no attack names a record of the undefended model ({max(found, default=0):.0%})"


def unforeseen(tried: Sequence[Rehearsed], result: AuditResult) -> Iterator[str]:
    """Yield the attacks that were not applicable without a word of doctor, and those that doctor took for that."""
    control = result.control()
    left = {a.name for a in control.attacks if set(a.statuses) == {"not-applicable"}} if control is not None else set()
    for each in tried:
        if each.outcome == "works" and each.name in left:
            yield f"doctor says that {each.name} works, the scan that it is not applicable"
        ran = control is not None and any(a.name == each.name and "converged" in a.statuses for a in control.attacks)
        if each.outcome == "not-applicable" and ran:
            yield f"doctor says that {each.name} is not applicable, but it ran"


def unsaid(entry: Entry, words: str) -> Iterator[str]:
    """Yield which words are missing where they must stand, and which stand where they must not."""
    missing = [word for word in entry.says if word.lower() not in words.lower()]
    if missing:
        yield f"nothing says {', '.join(map(repr, missing))}"
    untrue = [word for word in entry.untrue if word.lower() in words.lower()]
    if untrue:
        yield f"it says {', '.join(map(repr, untrue))}, which is not so"


def become(entry: Entry, folder: Path, scans: bool) -> tuple[Outcome, str, str, tuple[str, ...]]:
    """Return what became of an entry: outcome, what is told, what was read, and what was noted."""
    read, noted = "", ()
    try:
        torch.manual_seed(0)
        brought = entry.build(folder)
        target = loaded(brought)
        c, h, w = target.input_shape
        read = f"{c}×{h}×{w}, {target.task.kind}, {len(target.classes)}"
        findings = looked(target)
        faults = list(misread(entry, target, brought.truth))
        noted = (*target.notes, *(finding.message for finding in findings if finding.id not in ("memory", "cost")))
        if entry.expect == "works" and scans and not faults:
            tried = rehearsed(target, replace(plan(entry), defenses=()))
            faults += [f"doctor: {each.name} fails ({each.reason})" for each in tried if each.outcome == "fails"]
            noted += tuple(f"{e.name} is not applicable: {e.reason}" for e in tried if e.outcome == "not-applicable")
        if entry.expect == "works" and scans and entry.scanned and not faults:
            result = audit_at_stages(target, plan(entry), command="benchmarks.zoo")
            faults += [*misjudged(entry, result), *unforeseen(tried, result)]
            noted = tuple(dict.fromkeys((*noted, *result.assumptions, *(f.message for f in result.findings))))
    except (UserError, Refused) as error:
        told = str(sentence(error) if isinstance(error, UserError) else error)
        told = told.replace("zoo_brought: ", "").replace(f"{folder}/", "")
        if entry.expect == "works":
            return "wrong", f"refused: {told}", read, noted
        faults = [*unsaid(entry, told), *(["it is no sentence"] if not told.rstrip().endswith(".") else [])]
        return ("wrong", f"{'; '.join(faults)}: {told}", read, noted) if faults else ("refused", told, read, noted)
    except TooLong:
        return "wrong", f"took more than {SECONDS} s", read, noted
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-3:]
        places = " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(last))
        return "crash", f"{type(error).__name__}: {error} [{places}]", read, noted
    if entry.expect == "refused":
        return "wrong", f"works ({read}), where it must be refused", read, noted
    faults += unsaid(entry, "\n".join(noted))
    return ("wrong", "; ".join(faults), read, noted) if faults else ("works", said(entry, noted), read, noted)


def said(entry: Entry, noted: tuple[str, ...]) -> str:
    """Return the notes that hold what must be said."""
    found = [next((note for note in noted if word.lower() in note.lower()), "") for word in entry.says]
    return " ".join(dict.fromkeys(found))


def tell(group: str, entry: Entry, *, scans: bool = True) -> Row:
    """Try one entry in a folder of its own."""
    missing = [name for name in entry.package.split() if util.find_spec(name) is None]
    if missing:
        return Row(group, entry.name, entry.about, "skipped", f"{', '.join(missing)} is not installed")
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings(), limited(SECONDS):
        warnings.simplefilter("ignore")
        outcome, told, read, noted = become(entry, Path(place), scans)
    return Row(group, entry.name, entry.about, outcome, told, round(time.monotonic() - begun, 1), read, noted)


def versions() -> dict[str, str]:
    """Return the versions of the packages that entries are of."""
    names = {name for entries in GROUPS.values() for entry in entries for name in entry.package.split()} | {"torch"}
    found = {}
    for name in sorted(names):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


HEADS = {
    "models": "Models",
    "tasks": "Heads, outputs and labels",
    "data": "Kinds of data",
    "others": "What is not about pictures",
}


def markdown(rows: list[Row]) -> str:
    """Return the tables of docs/models.md."""
    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    counts = Counter(row.outcome for row in rows)
    lines = [f"Run with {packages}: " + ", ".join(f"{n} {outcome}" for outcome, n in counts.items()) + "."]
    for group, title in HEADS.items():
        lines += ["", f"## {title}", "", "| name | what is brought | outcome | what is said |", "|---|---|---|---|"]
        for row in (row for row in rows if row.group == group):
            told = row.told.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
            lines.append(f"| {row.name} | {row.about} | {row.outcome} | {told} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a third of them, without a scan")
    parser.add_argument("--only", nargs="*", default=None, metavar="NAME", help="these, or all of a group")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the page whose tables are made anew")
    chosen = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    plans.BATTERIES["quick"] = SHORT
    entries = [(group, entry) for group, held in GROUPS.items() for entry in held]
    rows = known(chosen.json, entries) if chosen.only is not None else {}
    if chosen.only is not None:
        entries = [(group, entry) for group, entry in entries if entry.name in chosen.only or group in chosen.only]
    elif chosen.quick:
        entries = entries[::3]
    for number, (group, entry) in enumerate(entries, 1):
        print(f"[{number}/{len(entries)}] {entry.name} … ", end="", flush=True)
        row = tell(group, entry, scans=not chosen.quick)
        rows[entry.name] = row
        colour = f"\033[{COLOURS[row.outcome]}m" if sys.stdout.isatty() else ""
        print(f"{colour}{row.outcome}{colour and chr(27) + '[0m'}  {row.seconds:.1f} s  {row.told}", flush=True)
        if chosen.only is not None:
            print("\n".join([f"    {row.read}", *(f"    {line}" for line in row.noted)]))
        if chosen.json is not None:
            told = {"versions": versions(), "rows": [asdict(each) for each in rows.values()]}
            chosen.json.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", "utf-8")
    if chosen.markdown is not None:
        written = chosen.markdown.read_text("utf-8").partition(MARK)[0] if chosen.markdown.exists() else ""
        ordered = [rows[e.name] for held in GROUPS.values() for e in held if e.name in rows]
        chosen.markdown.write_text(written + MARK + "\n" + markdown(ordered), "utf-8")
    counts = Counter(row.outcome for row in rows.values())
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    sys.exit(any(row.outcome in ("wrong", "crash") for row in rows.values()))


def known(file: Path | None, entries: list[tuple[str, Entry]]) -> dict[str, Row]:
    """Return the rows of an earlier run of these entries, by name and in their order."""
    if file is None or not file.exists():
        return {}
    held = {row["name"]: row for row in json.loads(file.read_text("utf-8"))["rows"]}
    found = [held[entry.name] for _, entry in entries if entry.name in held]
    return {row["name"]: Row(**row | {"noted": tuple(row["noted"])}) for row in found}


if __name__ == "__main__":
    main()
