"""The commands scan and demo, and the app that all commands are added to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import typer.main

from leakaudit.errors import UserError, quote
from leakaudit.files.folder import claimed, stored
from leakaudit.files.writing import writable
from leakaudit.gate.pyproject import read
from leakaudit.options import names
from leakaudit.options.browser import Open
from leakaudit.options.command import Command, Group
from leakaudit.options.common import (
    AUDIT,
    EPILOG,
    JUDGED,
    MODEL,
    SCENE,
    WHAT,
    WORK,
    AllAttacks,
    AsJson,
    BatchSize,
    Budget,
    Candidates,
    Checkpoint,
    ClientMode,
    ClientSpec,
    Data,
    Device,
    Epochs,
    ExitZero,
    Images,
    LpipsWeights,
    MaxAccuracyLoss,
    MaxIdentification,
    Memory,
    Mode,
    NoUtility,
    Output,
    Preset,
    Quiet,
    Records,
    Seed,
    Seeds,
    Stages,
    Target,
    Tensorboard,
    Verbose,
    examples,
    name_what_was_left_out,
    named,
    tell_where,
)
from leakaudit.options.gating import Baseline, Gating, configured_waivers
from leakaudit.options.settings import FROM_ENVIRONMENT, Config
from leakaudit.options.spreading import Cache, Executor, Fresh, Keep, Resume, Workers
from leakaudit.protocol.usercode import registers
from leakaudit.result.outward import default_images
from leakaudit.scans.run import Judging, Voice, run

if TYPE_CHECKING:
    from leakaudit.protocol.target import Target as Loaded


app = typer.Typer(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    name="leakaudit",
    help="What can somebody who sees a shared gradient rebuild of the data behind it, and what does preventing that "
    "cost in accuracy?\n\n\b\n"
    "  leakaudit demo                       a face out of a gradient, in minutes\n"
    "  leakaudit doctor model.py            check the set-up before a long run\n"
    "  leakaudit scan model.py -d obscure   audit your model\n"
    "  leakaudit report leakaudit-out       its report again, from what is stored\n"
    "  leakaudit scan -h                    a command's options, with examples",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command(
    cls=Command,
    context_settings=FROM_ENVIRONMENT,
    rich_help_panel=AUDIT,
    short_help="Attack a model with and without defenses; measure, report.",
    epilog=examples(
        "leakaudit scan",
        "leakaudit scan model.py --defense obscure --open",
        "leakaudit scan model.py --client fedavg:epochs=1:batch=8:lr=0.01",
        "leakaudit scan model.py -d prune:sparsity=0.99 -d dp-sgd -d obscure",
        "leakaudit scan model.py -d obscure,dp-sgd:noise_multiplier=0.5 --quick",
        "leakaudit scan model.py:make_model --data pictures/ --budget 30m -o out",
        "leakaudit scan model.py -d obscure --full --memory 4GB --verbose",
        "leakaudit scan model.py -d obscure --records 64 --gate --baseline main.json",
        "leakaudit scan model.py -d obscure --json > verdict.json",
        "leakaudit scan model.py --update update.safetensors --data records.npz",
        "leakaudit scan -a my_attack.py:MyAttack:steps=200 -d my_defense.py:MyDefense",
        "leakaudit scan model.py -d obscure --tensorboard runs",
        settings=True,
        codes=EPILOG,
    ),
)
def scan(  # noqa: PLR0913 - a command: its options
    target: Target = MODEL,
    defense: Annotated[
        list[str] | None,
        typer.Option(
            "--defense",
            "-d",
            metavar="SPEC",
            help="name[:setting=value…], or path.py:Class for one of your own; commas chain; repeat for several. "
            "The undefended control always runs.",
            autocompletion=names.defenses,
            rich_help_panel=WHAT,
        ),
    ] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(
            "--attack",
            "-a",
            metavar="SPEC",
            help="Replace the battery's attacks: name[:setting=value…], or path.py:Class; no commas: repeat for "
            "several. What the audit chooses for a defense runs all the same; with others left out nothing is a pass.",
            autocompletion=names.attacks,
            rich_help_panel=WHAT,
        ),
    ] = None,
    data: Data = None,
    update: Annotated[
        Path | None,
        typer.Option(
            "--update",
            metavar="FILE",
            help="Attack what a real client sent, a file of leakaudit capture. --data then are the records that made "
            "it, in their order; without them nothing is scored on it.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    checkpoint: Checkpoint = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A short first look: passes only what is proven.", rich_help_panel=WORK)
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="A long battery: more iterations, restarts, seeds.", rich_help_panel=WORK)
    ] = False,
    all_attacks: AllAttacks = False,
    records: Records = 16,
    budget: Budget = None,
    memory: Memory = None,
    no_utility: NoUtility = False,
    seeds: Seeds = None,
    epochs: Epochs = None,
    candidates: Candidates = 100,
    batch_size: BatchSize = 1,
    client: ClientSpec = "",
    stages: Stages = None,
    mode: ClientMode = Mode.eval,
    exposure: Annotated[
        Preset,
        typer.Option(
            "--exposure",
            metavar="PRESET",
            help=f"What the adversary knows: {', '.join(p.value for p in Preset)}. A pass takes adaptive or more.",
            rich_help_panel=SCENE,
        ),
    ] = Preset.adaptive,
    device: Device = "auto",
    seed: Seed = 0,
    max_identification: MaxIdentification = 0.25,
    max_accuracy_loss: MaxAccuracyLoss = 0.1,
    gate: Annotated[
        bool,
        typer.Option(
            "--gate",
            help="Exit by [tool.leakaudit.assert] of pyproject.toml; writes gate.json too.",
            rich_help_panel=JUDGED,
        ),
    ] = False,
    baseline: Baseline = None,
    exit_zero: ExitZero = False,
    output: Output = Path("leakaudit-out"),
    images: Images = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    json: AsJson = False,
    open: Open = False,
    tensorboard: Tensorboard = None,
    lpips_weights: LpipsWeights = None,
    workers: Workers = 1,
    executor: Executor = "local",
    cache: Cache = None,
    fresh: Fresh = False,
    resume: Resume = False,
    keep_intermediates: Keep = False,
    config: Config = None,
) -> None:
    """Audit a model: attack it undefended and under each defense, measure accuracy, write a report."""
    given = dict(locals())  # every option by its name, as a sweep has them from its file
    named(target)
    writable(output)
    _file_exists(lpips_weights, "--lpips-weights")
    if quick and full:
        raise UserError("--quick and --full exclude each other: give one.")
    voice = Voice(quiet, json, tensorboard, opens=open, verbose=verbose)
    if baseline is not None and not gate:
        raise UserError("--baseline is what --gate compares with: give both, or neither.")
    shown = images.value if images is not None else default_images()
    quote(shown == "full")
    from leakaudit.result.schema import load as load_result

    found, baseline = read(config), baseline and stored(baseline)
    before = load_result(baseline) if baseline is not None else None  # it may lie where the output goes
    with claimed(output, shown == "full") as earlier:  # at once: loading libraries takes seconds
        with voice.starting():
            from leakaudit.captured.scanning import asked
            from leakaudit.options.plans import check_specs, planned
            from leakaudit.protocol.registry import attacks, defenses
            from leakaudit.spread.job import Request
            from leakaudit.spread.sharing import Sharing

            attacks(), defenses()
        sharing = Sharing(cache, workers, executor, fresh, resume, keep_intermediates)
        plan = planned(given, shown)
        paths = [None if path is None else str(path) for path in (data, update, checkpoint, lpips_weights)]
        request = Request(target, plan, paths[0], paths[1], paths[2], device, paths[3])
        if update is not None:
            plan = asked(update, data, plan).plan
        if not quiet:
            tell_where(config)  # ahead of what it names, which is run
        check_specs(plan, wait=registers(target))
        gating = Gating.read(found, baseline, plan, before) if gate else None

        def load() -> Loaded:
            loaded, _ = request.load()
            check_specs(plan, wait=False)
            return loaded

        if not quiet:
            name_what_was_left_out()
        run(
            load,
            plan,
            output,
            replace(voice, earlier=earlier),
            lpips_weights=lpips_weights,
            judging=Judging(gating, configured_waivers(found), exit_zero),
            shared=(sharing, request),
        )


@app.command(
    cls=Command,
    context_settings=FROM_ENVIRONMENT,
    short_help="The same on embedded pictures, in two or three minutes.",
    rich_help_panel=AUDIT,
    epilog=examples(
        "leakaudit demo --open",
        "leakaudit demo -o faces --seed 1",
        "leakaudit demo --quiet --images none",
    ),
)
def demo(
    output: Output = Path("leakaudit-demo"),
    seed: Seed = 0,
    device: Device = "cpu",
    images: Images = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    json: AsJson = False,
    open: Open = False,
) -> None:
    """Train a small CNN on 200 embedded pictures, take a face out of its gradient, then defend it. No download.

    Always exits 0 when it ends: it shows the audit, it does not gate anything.
    """
    writable(output)
    shown = images.value if images is not None else default_images()
    quote(shown == "full")
    with claimed(output, shown == "full") as earlier:
        voice = Voice(quiet, json, earlier=earlier, opens=open, verbose=verbose)
        with voice.starting():
            from leakaudit.scene.demo import demo_plan, demo_target

        plan = demo_plan(seed, shown)
        if not quiet:
            typer.echo(
                f"leakaudit demo: a small CNN learns faces; its gradients are attacked as they are, and under "
                f"{', '.join(plan.defenses[:-1])} and {plan.defenses[-1]}.",
                err=True,
            )
        run(lambda: demo_target(seed, device), plan, output, voice, judging=Judging(exit_zero=True))


def _file_exists(path: Path | None, option: str) -> None:
    if path is not None and not path.is_file():
        raise UserError(f"{option} {path}: no such file.")
