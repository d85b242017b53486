"""Whether a pass can be believed: planted set-ups, what the audit says of each, and what is true of it.

    python -m benchmarks.verdicts [--quick] [--json FILE] [--only NAME …]

Each set-up is a defense, a small network and records of this benchmark's own making (`plantedscenes`), audited with the
standard battery at the defaults of a scan, without the accuracy, which no verdict depends on. The truth is by
construction: `planted` holds defenses that leak, `plantedsafe` those that cannot tell more than a label, with why. An
attacker written apart from leakaudit's attacks and scores (`replaying`) tries to confirm it; where it does not, that
is printed. Right is fail for what leaks and pass for what does not. Inconclusive is counted by itself: it deceives
nobody and helps nobody. A third of them with `--quick`; `--json` writes rows {name, truth, verdict, right, reason}.

What is known to be hidden from the audit (`plantedopen.HIDDEN`) counts nowhere: `--only` runs it by name.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import plantedsafe  # noqa: F401 - for what it plants
from benchmarks.planted import registered
from benchmarks.plantedopen import HIDDEN, TOLD
from benchmarks.plantedscenes import PLACES, Place
from benchmarks.replaying import Found, Side, look, look_at_batches, look_at_pairs
from benchmarks.tables import table
from leakaudit.audit.audit import audit
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.registry import parse_defense
from leakaudit.protocol.target import Target
from leakaudit.scene.plan import Plan
from leakaudit.work.seeding import generator_for

TOGETHER = 6  # set-ups in one scan


@dataclass(frozen=True)
class SetUp:
    """A defense on a network and records, and whether it leaks."""

    name: str
    stage: str
    leaky: bool
    spec: str
    place: str = "dense"
    side: Side | None = None  # what the attacker of the truth was told
    counted: bool = True


@dataclass(frozen=True)
class Row:
    """What came of a set-up, as `--json` writes it."""

    name: str
    truth: str  # leaky | safe
    verdict: str  # pass | fail | inconclusive
    right: bool
    reason: str  # the first of the verdict


def leaks(stage: str, *specs: str, place: str = "dense") -> tuple[SetUp, ...]:
    where = "" if place == "dense" else f" @ {place}"
    return tuple(SetUp(spec + where, stage, True, spec, place) for spec in specs)


def holds(stage: str, *specs: str, place: str = "dense") -> tuple[SetUp, ...]:
    return tuple(SetUp(spec, stage, False, spec, place) for spec in specs)


# In such an order that every third is a fair sample: `--quick`.
LEAKY = (
    *leaks("record", "inverted", "pseudonym", "half-turn", "look-alike", "scrambled", "thumbnail"),
    *leaks("labels", "tagged-label", "soft-answer"),
    *leaks("record", "stale-noise"),
    *leaks("model", "keepsake", "fixed-dropout"),
    *leaks("record", "faint-noise"),
    *leaks("example", "keyed-scale", "only-clipped"),
    *leaks("update", "keyed-order", "same-noise", "head-noise", "three-levels", "low-digits", "self-seeded"),
    *leaks("update", "every-other", "fallback", "false-proof"),
    *leaks("chain", "half-turn,keyed-order"),
    *leaks("update", "keyed-signs", place="trained"),
    *leaks("none", "none", place="trained"),
    *leaks("update", "prune:sparsity=0.9995", "sign", "top-one", "sketch", place="conv"),
    *leaks("buffers", "gaussian:std=10", "zeros", place="norm"),
    *leaks("update", "mostly-noise", place="many"),
    *leaks("batch", "none", place="sparse-8"),
    *leaks("batch", "none", place="sparse-16"),
    *leaks("record", "pseudonym", place="pairs"),
    *leaks("persons", "gaussian:std=0.5", place="bursts"),
    *(SetUp(name, stage, True, name, side=side) for name, (stage, side) in TOLD.items() if name not in HIDDEN),
)
SAFE = (
    *holds("update", "zeros", "pure-noise", "shuffled-noise", "rounded-away", "public-update", "stored-update"),
    *holds("update", "gaussian:std=30", "dp-sgd:noise_multiplier=30"),
    *holds("chain", "gaussian:std=30,clip:max_norm=1"),
    *holds("record", "constant-record", "constant-all", "class-form", "public-draw", "noise-per-label"),
    *holds("record", "class-conditional", "obscure"),
    *holds("record", "blank-form", place="forms"),
)
OPEN = tuple(
    SetUp(name, stage, True, name, side=side, counted=False) for name, (stage, side) in TOLD.items() if name in HIDDEN
)


def confirmed(setup: SetUp, target: Target, place: Place, defense: Defense, **sizes: int) -> Found:
    """Let the attacker of its own look at a set-up; `defense` is fitted, `sizes` are other ones than its own."""
    batch = place.plan.get("batch_size", 1)
    if batch == 2:
        return look_at_pairs(target, defense)
    if batch > 1:
        return look_at_batches(target, defense, batch=batch)
    told: dict[str, Any] = {"victims": place.plan.get("records", 16), "mode": place.plan.get("mode", "eval")}
    if setup.side is not None:
        told["side"] = setup.side
    if place.person is not None:
        told |= {"person": place.person(target), "line_up": 12}
    return look(target, defense, **told | sizes)


def parts(setups: Sequence[SetUp]) -> Iterator[tuple[str, list[SetUp]]]:
    """Yield the set-ups that are audited together: of one place, and few enough that rows come out early."""
    for place in dict.fromkeys(setup.place for setup in setups):
        own = [setup for setup in setups if setup.place == place]
        for start in range(0, len(own), TOGETHER):
            yield place, own[start : start + TOGETHER]


def rows_of(name: str, setups: Sequence[SetUp], log: Callable[[str], None]) -> Iterator[tuple[SetUp, Row, Found]]:
    """Audit the set-ups of one place together, so that they share the undefended control; then confirm the truth."""
    place, began = PLACES[name], time.process_time()
    target, fitted = place.target(), {}
    specs = tuple(dict.fromkeys(setup.spec for setup in setups if setup.spec != "none"))
    plan = Plan(defenses=specs, utility=False, **place.plan)
    result = audit(target, plan, keep_learned=lambda spec, defense: fitted.update({spec: defense}))
    log(f"{name}: {len(specs)} defenses and none audited in {time.process_time() - began:.0f} s of CPU time")
    began = time.process_time()
    for setup in setups:
        said = next(d for d in result.defenses if d.spec == setup.spec)
        defense = fitted.get(setup.spec) or parse_defense(setup.spec).fit(target, generator_for(0, setup.spec))
        right = said.verdict == ("fail" if setup.leaky else "pass")
        row = Row(setup.name, "leaky" if setup.leaky else "safe", said.verdict, right, said.reasons[0])
        yield setup, row, confirmed(setup, target, place, defense)
    log(f"{name}: the truth of {len(setups)} confirmed in {time.process_time() - began:.0f} s")


def chosen(quick: bool, only: Sequence[str]) -> tuple[SetUp, ...]:
    """Return the set-ups to run. Raises KeyError for a name that none has."""
    if only:
        by_name: dict[str, list[SetUp]] = {}
        for setup in (*LEAKY, *SAFE, *OPEN):
            for name in {setup.name, "leaky" if setup in LEAKY else "safe" if setup in SAFE else "open"}:
                by_name.setdefault(name, []).append(setup)
        return tuple(dict.fromkeys(setup for name in only for setup in by_name[name]))
    return (*LEAKY[::3], *SAFE[::3]) if quick else (*LEAKY, *SAFE)


def cells(setup: SetUp, row: Row, found: Found) -> tuple[str, ...]:
    """Return the row as the table shows it; a truth that the attacker did not confirm is marked."""
    seen = f"{found.hits} of {found.victims}" + (f", named {found.named}" if found.named < found.victims else "")
    seen += "" if found.leaky else f" (p = {found.level:.2g})"
    truth = f"{row.truth}: {seen}" + ("" if found.leaky == setup.leaky else " NOT CONFIRMED")
    right = "right" if row.right else row.verdict if row.verdict == "inconclusive" else f"FALSE {row.verdict.upper()}"
    return row.name, setup.stage, truth, row.verdict, right if setup.counted else f"({right})"


def summary(rows: Sequence[tuple[SetUp, Row]]) -> str:
    """Return the counts in one line."""
    counted = [(setup, row) for setup, row in rows if setup.counted]
    parts = []
    for leaky, wrong in ((True, "pass"), (False, "fail")):
        said = [row.verdict for setup, row in counted if setup.leaky == leaky]
        kind = "leaky" if leaky else "safe"
        parts.append(
            f"{kind}: {said.count(wrong)} false {wrong}, {said.count('inconclusive')} inconclusive of {len(said)}"
        )
    return "; ".join(parts)


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Audit, confirm, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a third of the set-ups")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every row here, as soon as its place is done")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="set-ups by name, or all that are leaky, safe or open"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        setups = chosen(options.quick, options.only)
    except KeyError as unknown:
        parser.error(f"there is no set-up {unknown}; there are: {', '.join(s.name for s in (*LEAKY, *SAFE, *OPEN))}")
    began, spent = time.monotonic(), time.process_time()
    done: list[tuple[SetUp, Row, Found]] = []
    with registered():
        for place, part in parts(setups):
            for entry in rows_of(place, part, log):
                done.append(entry)
                log("    " + " | ".join(cells(*entry)))
            if options.json:
                text = json.dumps([asdict(row) for _, row, _ in done], indent=1)
                options.json.write_text(text + "\n", encoding="utf-8")
    done.sort(key=lambda entry: setups.index(entry[0]))
    print(table(("set-up", "stage", "truth: own attacker's hits", "verdict", ""), [cells(*entry) for entry in done]))
    minutes, core = (time.monotonic() - began) / 60, (time.process_time() - spent) / 60
    print(f"\n{summary([(setup, row) for setup, row, _ in done])}; {minutes:.1f} minutes ({core:.1f} of one core)")


if __name__ == "__main__":
    main()
