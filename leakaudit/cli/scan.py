"""The commands scan and demo, and the app that all commands are added to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.main

from leakaudit.cli.defaults import checked
from leakaudit.cli.gate import Baseline, Gating, configured_waivers
from leakaudit.cli.options import (
    EPILOG,
    TARGET_HELP,
    Checkpoint,
    Data,
    Device,
    Mode,
    Seed,
    examples,
    name_what_was_left_out,
)
from leakaudit.cli.run import AsJson, Quiet, Verbose, Voice, run
from leakaudit.errors import UserError, quote
from leakaudit.files.folder import claimed
from leakaudit.files.reading import short
from leakaudit.files.writing import writable
from leakaudit.gate.pyproject import read
from leakaudit.result.outward import default_images

if TYPE_CHECKING:
    from leakaudit.audit.plan import Plan
    from leakaudit.protocol.target import Target


app = typer.Typer(
    name="leakaudit",
    help="What can somebody who sees a shared gradient rebuild of the data behind it, and what does preventing that "
    "cost in accuracy?\n\n\b\n"
    "  leakaudit demo                             a face out of a gradient, in minutes\n"
    "  leakaudit scan model.py --defense obscure  audit your model\n"
    "  leakaudit obscure fit model.py             a generator that puts drawn pictures in your records' place\n"
    "  leakaudit doctor model.py                  check the set-up before a long run",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Preset(str, Enum):  # noqa: UP042 - typer shows the values
    """Exposure presets."""

    honest = "honest-but-curious"
    adaptive = "adaptive"
    malicious = "malicious-server"


class Images(str, Enum):  # noqa: UP042
    """How pictures appear in the result."""

    full = "full"
    redacted = "redacted"
    none = "none"


ImagesOption = Annotated[
    Images | None,
    typer.Option(
        "--images",
        help="Pictures in the result: full, redacted (public pictures degraded alike) or none. "
        "Default: full, or redacted where CI=true.",
    ),
]

ExitZero = Annotated[bool, typer.Option("--exit-zero", help="Exit 0 whatever the verdict.")]


@app.command(
    short_help="Attack a model with and without defenses; measure, report.",
    epilog=examples(
        "leakaudit scan model.py --defense obscure",
        "leakaudit scan model.py -d prune:sparsity=0.99 -d dp-sgd -d obscure",
        "leakaudit scan model.py -d obscure,dp-sgd:noise_multiplier=0.5 --quick",
        "leakaudit scan model.py:make_model --data pictures/ --budget 30m -o out",
        "leakaudit scan model.py -d obscure --full --memory 4GB --verbose",
        "leakaudit scan model.py -d obscure --records 64 --gate --baseline main.json",
        "leakaudit scan model.py -d obscure --json > verdict.json",
        "leakaudit scan model.py -a my_attack.py:MyAttack:steps=200 -d my_defense.py:MyDefense",
        "leakaudit scan model.py -d obscure --tensorboard runs",
    ),
)
def scan(  # noqa: PLR0913 - a command: its options
    target: Annotated[str, typer.Argument(help=TARGET_HELP)],
    defense: Annotated[
        list[str] | None,
        typer.Option(
            "--defense",
            "-d",
            help="name[:setting=value…], or path.py:Class for one of your own; commas chain; repeat for several. "
            "The undefended control always runs.",
        ),
    ] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(
            "--attack",
            "-a",
            help="Replace the battery's attacks: name[:setting=value…], or path.py:Class for one of your own; repeat. "
            "What the audit chooses for a defense runs all the same; with others left out nothing is a pass.",
        ),
    ] = None,
    data: Data = None,
    checkpoint: Checkpoint = None,
    quick: Annotated[bool, typer.Option("--quick", help="A short first look: passes only what is proven.")] = False,
    full: Annotated[bool, typer.Option("--full", help="A long battery: more iterations, restarts and seeds.")] = False,
    budget: Annotated[
        str | None,
        typer.Option("--budget", help="Time for the whole scan: 90s, 10m, 2h. Unfinished work is shown as that."),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            help="What a step of an attack may take beside the model and the data: 512MB, 4GB. "
            "More runs in pieces, or is refused and says what it needs. Default: what is free.",
        ),
    ] = None,
    records: Annotated[int, typer.Option("--records", help="Private records to attack.")] = 16,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Records in one shared update.")] = 1,
    candidates: Annotated[int, typer.Option("--candidates", help="Same-class candidates per identification.")] = 100,
    max_identification: Annotated[
        float,
        typer.Option("--max-identification", help="Pass needs upper bounds at or below this, but for chance hits."),
    ] = 0.25,
    max_accuracy_loss: Annotated[
        float,
        typer.Option(
            "--max-accuracy-loss", help="Share of accuracy a defense may cost: what the advice looks for, no verdict."
        ),
    ] = 0.1,
    mode: Annotated[Mode, typer.Option("--mode", help="The client's mode: eval or train.")] = Mode.eval,
    exposure: Annotated[
        Preset, typer.Option("--exposure", help="What the adversary knows. A pass takes adaptive.")
    ] = Preset.adaptive,
    no_utility: Annotated[
        bool, typer.Option("--no-utility", help="Do not measure accuracy (no training runs).")
    ] = False,
    seeds: Annotated[int | None, typer.Option("--seeds", help="Training runs per defense.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Epochs of each training run.")] = None,
    images: ImagesOption = None,
    lpips_weights: Annotated[
        Path | None, typer.Option("--lpips-weights", help="AlexNet features for LPIPS; else the torch cache.")
    ] = None,
    device: Device = "auto",
    seed: Seed = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for result.json and report.html.")] = Path(
        "leakaudit-out"
    ),
    tensorboard: Annotated[
        Path | None,
        typer.Option("--tensorboard", help="Log losses, results and full pictures into this folder as the scan runs."),
    ] = None,
    gate: Annotated[
        bool, typer.Option("--gate", help="Exit by [tool.leakaudit.assert] of ./pyproject.toml; writes gate.json too.")
    ] = False,
    baseline: Baseline = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
    exit_zero: ExitZero = False,
) -> None:
    """Audit a model: attack it undefended and under each defense, measure accuracy, write a report."""
    writable(output)
    _file_exists(lpips_weights, "--lpips-weights")
    if quick and full:
        raise UserError("--quick and --full exclude each other: give one.")
    voice = Voice(quiet, as_json, tensorboard, verbose=verbose)
    if baseline is not None and not gate:
        raise UserError("--baseline is what --gate compares with: give both, or neither.")
    shown = images.value if images is not None else default_images()
    quote(shown == "full")
    from leakaudit.result.schema import load as load_result

    before = load_result(baseline) if baseline is not None else None  # it may lie where the output goes
    with claimed(output, shown == "full") as earlier:  # at once: loading libraries takes seconds
        with voice.starting():
            from leakaudit.audit.plan import Plan
            from leakaudit.load.loading import load_target
            from leakaudit.protocol.registry import attacks, defenses
            from leakaudit.work.quantities import parse, seconds

            attacks(), defenses()
        plan = Plan(
            defenses=tuple(defense or ()),
            attacks=tuple(attack or ()),
            battery="quick" if quick else "full" if full else "standard",
            exposure=exposure.value,
            mode=mode.value,
            records=records,
            batch_size=batch_size,
            candidates=candidates,
            max_identification=max_identification,
            max_accuracy_loss=max_accuracy_loss,
            utility=not no_utility,
            seeds=seeds,
            epochs=epochs,
            budget=None if budget is None else seconds(budget),
            memory=None if memory is None else parse(memory),
            images=shown,
            seed=seed,
        )
        _check_specs(plan, loaded=False)
        gating = Gating.read(baseline, plan, before) if gate else None

        def load() -> Target:
            loaded = load_target(target, data=data, checkpoint=checkpoint, device=device, seed=seed)
            _check_specs(plan, loaded=True)
            return loaded

        if not quiet:
            name_what_was_left_out()
        run(
            load,
            plan,
            output,
            replace(voice, earlier=earlier),
            lpips_weights=lpips_weights,
            exit_zero=exit_zero,
            gate=gating,
            waivers=configured_waivers(),
        )


@app.command(
    short_help="The same on embedded pictures, in two or three minutes.",
    epilog=examples("leakaudit demo", "leakaudit demo -o faces --seed 1", "leakaudit demo --quiet --images none"),
)
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for result.json and report.html.")] = Path(
        "leakaudit-demo"
    ),
    seed: Seed = 0,
    images: ImagesOption = None,
    device: Device = "cpu",
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Train a small CNN on 200 embedded pictures, take a face out of its gradient, then defend it. No download.

    Always exits 0 when it ends: it shows the audit, it does not gate anything.
    """
    writable(output)
    shown = images.value if images is not None else default_images()
    quote(shown == "full")
    with claimed(output, shown == "full") as earlier:
        voice = Voice(quiet, as_json, earlier=earlier, verbose=verbose)
        with voice.starting():
            from leakaudit.cli.demo import demo_plan, demo_target

        plan = demo_plan(seed, shown)
        run(lambda: demo_target(seed, device), plan, output, voice, exit_zero=True)


def _check_specs(plan: Plan, *, loaded: bool) -> None:
    """Find a mistyped defense or attack before anything takes long.

    Before the model is loaded a name may still be unknown: the model's own file may register it.
    """
    from leakaudit.protocol.registry import UnknownName, parse_attack, parse_defense

    parsers: tuple[tuple[tuple[str, ...], Callable[[str], object]], ...] = (
        (plan.defenses, parse_defense),
        (plan.attacks, parse_attack),
    )
    for specs, parse in parsers:
        for spec in specs:
            try:
                parse(spec)
            except UnknownName:
                if loaded:
                    raise


def _file_exists(path: Path | None, option: str) -> None:
    if path is not None and not path.is_file():
        raise UserError(f"{option} {path}: no such file.")


def option_names() -> dict[str, str]:
    """Return the parameter of `scan` behind each of its long options, by the option's name with underscores."""
    commands: Any = typer.main.get_command(app)
    options = [(p.name, o[2:]) for p in commands.commands["scan"].params for o in p.opts if o.startswith("--")]
    return {option.replace("-", "_"): name for name, option in options if option != "help"}


def _project_defaults() -> dict[str, dict[str, Any]]:
    """Read `[tool.leakaudit]` of ./pyproject.toml: options of `scan` by their long names, dashes or underscores."""
    table, known = read().scan, option_names()
    defaults: dict[str, Any] = {}
    for key, value in table.items():
        name = known.get(key.replace("-", "_"))
        if name is None:
            raise UserError(
                f"pyproject.toml: [tool.leakaudit] has no setting {short(key)}; known: {', '.join(sorted(known))}."
            )
        if name == "exit_zero":
            raise UserError("pyproject.toml: exit-zero belongs on the command line, where everybody sees it.")
        defaults[name] = checked(scan, name, key, value)
    return {"scan": defaults}
