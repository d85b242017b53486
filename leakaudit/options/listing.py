"""What `leakaudit list` shows: every attack, defense and metric with what it is, and which attacks a defense meets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.text import Text

from leakaudit.audit.choice import Choice, Runs, Why, choices
from leakaudit.protocol import registry
from leakaudit.protocol.attack import FAMILIES, family_of
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.stages import CHANGES, declared
from leakaudit.result.adversary import PRESETS
from leakaudit.result.batteries import BATTERIES
from leakaudit.result.plaintext import visible
from leakaudit.result.scores import SCORES, Score
from leakaudit.score.metrics import Metric, further

Row = dict[str, Any]
KEYS = (
    *("family", "needs", "effort", "settings", "requires", "examines", "changes", "adaptive", "threshold", "baseline"),
    *("source", "from"),
)
NEEDS = {  # what an attack is not applicable to that `needs` it
    "one_record": "to several records in one update",
    "several_records": "to one record in an update",
    "dense_input": "to a model whose first layer is not dense",
    "tokens": "to a model that is no vision transformer with learnt positions",
    "chain": "to a model that is not one layer after another with activations that can be undone",
    "generator": "where model.py gives no generator of pictures",
    "batchnorm": "to a model without BatchNorm statistics",
    "replaced_records": "where the records are seen to stay",
}
HEADINGS: dict[Runs, str] = {
    "always": "{count} run whatever the scan sees",
    "expected": "{count} more if the scan sees {spec} do what its code says",
    "possible": "{count} more if the scan sees {spec} change something else",
    "granted": "{count} more under --exposure malicious-server",
    "given": "{count} more where model.py gives a generator of pictures",
    "asked": "{count} run only where --attack names them",
}
FOOTNOTE = (
    "A scan fits a defense and tries it before it attacks: what it sees it change decides, whatever its code tells. "
    "A bound is handed the replaced records, which no attacker sees. "
    "--attack replaces the attacks that a battery runs, and no others."
)


def rows(kind: str) -> list[Row]:
    """Return one row per thing, built in or of a plug-in; `kind` is attacks, defenses or metrics."""
    if kind == "metrics":
        return [*map(_score, SCORES.values()), *map(_further, further())]
    if kind == "attacks":
        return [
            _described(name, cls)
            | {"kind": cls.kind, "family": family_of(cls), "needs": _scene(cls), "effort": list(cls.effort)}
            | {"requires": sorted(cls.requires), "examines": sorted(cls.examines)}
            for name, cls in registry.attacks().items()
        ]
    return [
        _described(name, cls)
        | {
            "changes": [change for change in CHANGES if change in declared(cls())],
            "adaptive": list(cls.adaptive),
            "replaces_records": cls.replaces_records,
        }
        for name, cls in registry.defenses().items()
    ]


def _scene(cls: Any) -> list[str]:
    """Return what an attack must meet to do its work: names of `Needs`, and the defense whose mark it reads."""
    return [f"the defense {value}" if name == "defense" else name for name, value in asdict(cls.needs).items() if value]


def _score(score: Score) -> Row:
    leaks = "higher" if score.direction == "max" else "lower"
    worse = "costs" if score.name.startswith("accuracy") else "leaks"
    row = {"name": score.name, "summary": f"{score.summary or score.title} ({leaks} {worse} more)", "unit": score.unit}
    limits = [] if score.limits is None else [f"{score.limits[0]:g} to {score.limits[1]:g}"]
    return row | {"threshold": limits, "baseline": [score.compared] if score.compared else []}


def _further(metric: Metric) -> Row:
    leaks = "higher" if metric.higher_leaks else "lower"
    return {"name": metric.name, "summary": f"{metric.summary} ({leaks} leaks more)", "unit": metric.unit}


def against(defense: Defense) -> list[Row]:
    """Return one row per attack, with what becomes of it where a scan has this defense, and why."""
    return [asdict(choice) for choice in choices(defense)]


def show_against(spec: str, defense: Defense) -> None:
    """Print for a person which attacks a scan would run on a defense, and why."""
    console, found = Console(), choices(defense)
    widest = max(len(choice.attack) for choice in found if choice.runs != "asked")
    may = [CHANGES[change] for change in CHANGES if change in declared(defense)]
    _print(console, Text(visible(f"{spec} may change, as its code tells: {_and(may) or 'nothing'}.")), "    ")
    for runs, heading in HEADINGS.items():
        some = [choice for choice in found if choice.runs == runs]
        if some:
            console.print()
            _print(console, Text(visible(heading.format(count=len(some), spec=spec)), "bold"), "    ")
        for choice in some if runs != "asked" else ():
            told = f"{'; '.join(map(_because, choice.why))}{'; a bound' * (choice.role == 'bound')}"
            _print(console, Text.assemble("  ", choice.attack.ljust(widest + 2), visible(told)), " " * (widest + 4))
        if some and runs == "asked":
            _print(console, Text("  " + ", ".join(choice.attack for choice in some)), "  ")
    console.print()
    _print(console, Text("Not applicable, and then reported as that, which never counts as safe", "bold"), "    ")
    for case, those in _unfit([choice for choice in found if choice.runs not in ("granted", "given", "asked")]).items():
        _print(console, Text.assemble(f"  {case}  ", (", ".join(those), "dim")), " " * 6)
    console.print()
    _print(console, Text(FOOTNOTE), "")


def _because(why: Why) -> str:
    if why.id == "battery":
        others = [name for name in BATTERIES if name not in why.of]
        return "in every battery" + (f" but {_and(others)}" if others else "")
    if why.id == "anything":
        return "examines every defense"
    if why.id == "named":
        return f"built against {_and(why.of)}"
    return f"examines {' or '.join(CHANGES[change] for change in why.of)}"


def _unfit(found: Sequence[Choice]) -> dict[str, list[str]]:
    """Return the attacks that are not applicable in a case, by the case."""
    cases = {words: [each.attack for each in found if need in each.needs] for need, words in NEEDS.items()}
    cases |= {
        f"under --exposure {preset}": [each.attack for each in found if preset in each.lacks] for preset in PRESETS
    }
    return {case: those for case, those in cases.items() if those}


def _and(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def _described(name: str, cls: Any) -> Row:
    row = {
        "name": name,
        "summary": cls.summary,
        "settings": registry.settings_values(cls()),
        "source": cls.source,
    }
    return row | {"from": registry.origin(cls)} if registry.origin(cls) else row


def show(found: list[Row]) -> None:
    """Print rows for a person."""
    console = Console()
    for row in found:
        _print(console, Text.assemble((str(row["name"]), "bold"), visible(f"  {row['summary']}")), "    ")
        for key in KEYS:
            value = row.get(key)
            if not value:
                continue
            if key == "family":
                value = f"{value}: {FAMILIES[value]}"
            if isinstance(value, dict):
                value = [f"{k}={v}" for k, v in value.items()]
            text = ", ".join(value) if isinstance(value, list) else str(value)
            _print(console, Text.assemble("    ", (key, "dim"), visible(f" {text}")), " " * 8)


def _print(console: Console, text: Text, indent: str) -> None:
    """Print a line, wrapped to the terminal with its further lines indented; into a pipe it goes whole."""
    if not console.is_terminal:
        console.print(text, soft_wrap=True)
        return
    first, *rest = text.wrap(console, console.width)
    console.print(first, soft_wrap=True)
    if rest:
        begun = len(text.plain) - len(text.plain[len(first) :].lstrip())
        for line in text[begun:].wrap(console, max(20, console.width - len(indent))):
            console.print(Text(indent) + line, soft_wrap=True)
