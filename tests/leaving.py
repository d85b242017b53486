"""All that one scan and the commands after it leave behind at a level, where other code tells of records by every way.

A dense network, whose input the analytic attack returns exactly; a defense that mixes records, one that redraws them.
Three attacks and two defenses of somebody's own lie in the home folder of a person, on a machine with a name: their
exceptions, notes, doubts, facts, guarantees and settings hold a row of 60 pixels of a private record.
"""

from __future__ import annotations

import importlib.util
import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from unittest.mock import patch

import torch
from rich.console import Console
from torch import Tensor, nn

from leakaudit.audit.audit import audit
from leakaudit.cli import entry
from leakaudit.errors import UserError, quoting
from leakaudit.files.writing import write_atomically
from leakaudit.load.loading import target_from_objects
from leakaudit.protocol import registry
from leakaudit.protocol.target import Target
from leakaudit.result.outcome import Outcome
from leakaudit.result.outward import in_place
from leakaudit.result.schema import AuditResult, Images, load, to_json
from leakaudit.scene import plan
from leakaudit.work.learned import Learned
from leakaudit.work.progress import Monitor, Sight, monitored, together
from leakaudit.work.seeding import generator_for
from tests.image_hunt import Array, below, distinct, pictures

LEVELS: tuple[Images, ...] = ("full", "redacted", "none")
PRIVATE, VICTIMS = 60, 4
DEFENSES = ("mixup", "class-conditional:latent=4")
TALKING = ("Talks", "Broken")
USER, HOST, SAID = "quistgaard", "vault-host-17", "feldspar"  # SAID stands in every text of the plug-ins
LIVE = "leakaudit scan, the live view"
WORDS = {"exception": SAID, "host": HOST, "user": USER}
PLUGIN = """
from dataclasses import dataclass, replace
from typing import ClassVar
import torch
from leakaudit.errors import NotApplicable
from leakaudit.protocol.attack import Attack, Reconstruction
from leakaudit.protocol.defense import Defense
from leakaudit.result.schema import Guarantee

SAID = {said!r}
PIXELS = {pixels!r}
ROW = SAID + " " + ", ".join(map(str, PIXELS))

@dataclass(frozen=True, kw_only=True)
class Crash(Attack):
    name: ClassVar[str] = "crash"

    def __call__(self, model, update, generator):
        error = RuntimeError(ROW)
        error.add_note(ROW)
        raise error from ValueError(ROW)

@dataclass(frozen=True, kw_only=True)
class Excuse(Attack):
    name: ClassVar[str] = "excuse"

    def __call__(self, model, update, generator):
        raise type(SAID + "0_1_0_2", (NotApplicable,), dict())(ROW)

@dataclass(frozen=True, kw_only=True)
class Noted(Attack):
    name: ClassVar[str] = "noted"

    def __call__(self, model, update, generator):
        v = update.victims
        drawn = torch.rand(v, update.batch_size, 1, 25, 25, generator=generator)
        return Reconstruction(
            drawn, None, torch.zeros(v), ("converged",) * (v - 1) + ("diverged",), reason=ROW, notes=(ROW,) * 3,
            doubts=dict(overfitted=ROW),
        )

@dataclass(frozen=True, kw_only=True)
class Talks(Defense):
    name: ClassVar[str] = "talks"
    said: str = "little"

    def fit(self, target, generator):
        return replace(self, said=ROW)

    def facts(self, records, batch_size, steps):
        return dict(told=ROW) | {{f"value {{i}}": p for i, p in enumerate(PIXELS)}}

    def guarantees(self, records, batch_size, steps, candidates):
        return (Guarantee(ROW, "not-bounded", ROW),)

@dataclass(frozen=True, kw_only=True)
class Broken(Defense):
    name: ClassVar[str] = "broken"

    def fit(self, target, generator):
        raise OSError(5, ROW, ROW)
"""


@dataclass(frozen=True)
class Written:
    """What one audit left behind, read back: every picture by file, and the result; and what commands printed."""

    folder: Path
    result: AuditResult
    found: dict[str, list[Array]]
    printed: dict[str, bytes]

    def all(self) -> list[Array]:
        return distinct([picture for found in self.found.values() for picture in found])

    def outputs(self) -> dict[str, bytes]:
        """Every file by its name, and every stream."""
        return {str(p.relative_to(self.folder)): p.read_bytes() for p in below(self.folder)} | self.printed


def faces() -> tuple[Tensor, Tensor]:
    """The embedded pictures of scikit-image (200, 1, 25, 25), shuffled, and whether each is a face."""
    from leakaudit.scene.demo import faces as embedded

    images, labels = embedded()
    order = torch.randperm(len(labels), generator=generator_for(0, "redaction", "split"))
    return images[order], labels[order]


def target() -> Target:
    """A dense network, whose input the analytic attack returns exactly; 60 private records."""
    from torch.utils.data import TensorDataset

    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(625, 16), nn.Tanh(), nn.Linear(16, 2))
    images, labels = faces()
    private, test, own = (
        TensorDataset(images[part], labels[part]) for part in (slice(0, 60), slice(60, 130), slice(130, 200))
    )
    return target_from_objects(
        network, private, test_data=test, auxiliary_data=own, name="faces", classes=["no", "yes"]
    )


@cache
def private() -> Tensor:
    """The private records (60, 1, 25, 25)."""
    return target().private.images


def row() -> list[float]:
    """60 pixels of a private record, to four digits."""
    return [round(float(x), 4) for x in private()[7].flatten()[462:522]]


@cache
def left(level: Images) -> Written:
    """The audit at a level and everything it wrote, made once in a process; pytest's end removes the folder."""
    home = Path(_folder().name) / USER
    study, work = home / "study", home / level  # the same code at every level: its path is among what seeds its work
    for place in (study, work):
        place.mkdir(parents=True, exist_ok=True)
    (study / "mine.py").write_text(PLUGIN.format(said=SAID, pixels=row()))
    with _as_person(home, work):
        live = run(level, study / "mine.py", work)
        printed = _commands() | _told_by_scan() | {LIVE: live}
    files = {str(path.relative_to(work)): list(pictures(path.read_bytes())) for path in below(work)}
    files[LIVE] = list(pictures(live))
    return Written(work, load(work / "result.json"), files, printed)


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="leaving-")


def run(level: Images, own: Path, folder: Path) -> bytes:
    """Audit and write as `leakaudit scan --images LEVEL --tensorboard …` and the commands after it do.

    Return what a terminal was shown meanwhile.
    """
    mine = [f"{own}:{name}" for name in ("Crash", "Excuse", "Noted")]
    settings = plan.Plan(
        defenses=(*(f"{own}:{name}" for name in TALKING), *DEFENSES),
        attacks=("analytic", "inverting-gradients:steps=3", *mine),
        battery="quick",
        all_attacks=True,  # whatever may be said is to be seen
        exposure="honest-but-curious",  # the attacks that simulate a defense take most of the time, and show no more
        records=VICTIMS,
        candidates=10,
        utility=False,
        images=level,
    )
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=200, height=24)
    with ExitStack() as stack:
        monitor = together(stack.enter_context(watched(folder / "tensorboard", level)), drawing(console, settings))
        stack.enter_context(monitored(monitor))
        stack.enter_context(quoting(level == "full"))
        result = audit(
            target(),
            settings,
            keep=monitor.kept,
            keep_learned=Learned(folder, level).save,
            command=f"leakaudit scan {own.parent}/faces.py --images {level} -d {own}:Talks -o {folder}/out",
        )
    write(folder, result)
    write_sweep(folder, result, own)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().encode()


def drawing(console: Console, settings: plan.Plan) -> Monitor:
    """What a terminal shows as a scan runs, drawn whenever there is a picture to see, whatever the clock says."""
    from leakaudit.watch.console import display_on

    display = display_on(console, settings)

    def see(make: Callable[[], Sight]) -> None:
        display.look(sight := make())
        if sight.images is not None:
            console.print(display)

    return Monitor(display.show, see=see, stage=display.enter, originals=display.beside)


def write(folder: Path, result: AuditResult) -> None:
    """Write every format there is, as the commands do."""
    from leakaudit.compare.history import read
    from leakaudit.reports import history, html

    write_atomically(folder / "result.json", to_json(result))
    write_atomically(folder / "report.html", html.render(result))
    outcome = judged(result)
    for name, text in (formats(result, outcome) | printed(result)).items():
        write_atomically(folder / name, text)
    write_atomically(folder / "history.html", history.render(read(folder)))


def write_sweep(folder: Path, result: AuditResult, own: Path) -> None:
    """Write what `leakaudit sweep` does beside its scans: of this one, and one that a plug-in's exception ended."""
    from leakaudit.compare.sweep import Entry, ended, frontiers, values
    from leakaudit.options.failing import failed
    from leakaudit.reports.sweep import render
    from leakaudit.result.sweep import to_json

    level: Images = "full" if result.images == "full" else "none"
    with quoting(level == "full"):
        try:
            registry.parse_defense(f"{own}:Broken").fit(target(), generator_for(0, "broken"))
        except OSError as error:
            told, _ = failed(error)
    model = in_place(f"{own.parent}/faces.py", level)
    done = [Entry(f"faces-{name}", model, "", in_place(name, level)) for name in DEFENSES]
    broken = Entry("faces-broken", model, "", in_place(f"{own}:Broken", level), trouble=in_place(told, level))
    found = frontiers([*(ended(each, result) for each in done), broken])
    source = in_place(f"{folder}/sweep.toml", level)
    write_atomically(folder / "sweep.html", render(source, found))
    write_atomically(folder / "sweep.json", to_json(values(source, found)))


def judged(result: AuditResult) -> Outcome:
    """What the gate says of a result by itself."""
    from leakaudit.gate import assertions
    from leakaudit.gate.decision import gate

    return gate(result, assertions.parse({}), source="result.json")


def formats(result: AuditResult, outcome: Outcome) -> dict[str, str | bytes]:
    """Every other output of a result and its gate by file name, but for the PDF."""
    from leakaudit.reports import html, junit, markdown, sarif
    from leakaudit.result.outcome import to_json as gate_json

    return {
        "gate.json": gate_json(outcome),
        "gated.html": html.render(result, outcome),
        "junit.xml": junit.render(result, outcome),
        "leakaudit.sarif": sarif.render(result, outcome, sarif.located(result, Path.cwd())),
        "comment.md": markdown.render(result, outcome),
    }


def printed(result: AuditResult) -> dict[str, str | bytes]:
    """The PDF, where one can be made and read. It is of the control alone: laying out the whole takes long."""
    from leakaudit.reports import html, pdf

    found: dict[str, str | bytes] = {}
    if importlib.util.find_spec("weasyprint") and importlib.util.find_spec("pypdf"):
        with suppress(UserError):  # without Pango there is no PDF
            found["report.pdf"] = pdf.to_pdf(html.render(replace(result, defenses=result.defenses[:1])))
    return found


@contextmanager
def watched(folder: Path, level: Images) -> Iterator[Monitor]:
    """The live log of TensorBoard where that is installed."""
    if importlib.util.find_spec("tensorboard") is None:
        yield Monitor()
        return
    from leakaudit.watch.tensorboard import tensorboard_monitor

    with tensorboard_monitor(folder, level) as monitor:
        yield monitor


def _commands() -> dict[str, bytes]:
    """What commands print of what stands in the present folder, by command and stream."""
    here, made = Path.cwd(), {}
    for name, words in {
        "gate": ["gate", f"{here}/result.json", "-o", "gate.cli.json"],
        "gate --verbose": ["gate", "result.json", "--verbose"],
        "gate --json": ["gate", "result.json", "--json"],
        "compare": ["compare", f"{here}/result.json", "result.json", "--markdown", "changes.md"],
        "report": ["report", "result.json", "-o", "again.html"],
        "report --verbose": ["report", "result.json", "-o", "again.html", "-v"],
        "history": ["history", ".", "-o", "again.html"],
        "sign --new-key": ["sign", "--new-key", "officer"],
        "sign": ["sign", "result.json", "--key", "officer.pem", "--report", "report.html", "--name", "A. Officer"],
        "verify": ["verify", "report.html", "result.json", "--key", "officer.pub.pem"],
    }.items():
        for stream, text in zip(("stdout", "stderr"), called(words), strict=True):
            made[f"leakaudit {name}, {stream}"] = text
    return made


def _told_by_scan() -> dict[str, bytes]:
    """What `scan` prints when it ended, of the audit that stands in the present folder."""
    from leakaudit.scans.run import Voice

    found, made = load(Path("result.json")), {}
    voices = {
        "": Voice(),
        " --verbose": Voice(verbose=True),
        " --quiet": Voice(quiet=True),
        " --json": Voice(as_json=True),
    }
    for name, voice in voices.items():
        out = io.StringIO()
        with redirect_stdout(out):
            voice.tell(found, {"report": Path("report.html"), "result": Path("result.json")}, 1)
        made[f"leakaudit scan{name}, stdout"] = out.getvalue().encode()
    return made


def called(words: list[str]) -> tuple[bytes, bytes]:
    """Return what a command prints on both streams."""
    out, err = io.StringIO(), io.StringIO()
    with patch.object(sys, "argv", ["leakaudit", *words]), redirect_stdout(out), redirect_stderr(err):
        try:
            entry.main()
        except SystemExit as end:
            if end.code == 4:
                raise RuntimeError(err.getvalue()) from end
    return out.getvalue().encode(), err.getvalue().encode()


@contextmanager
def _as_person(home: Path, work: Path) -> Iterator[None]:
    """Work in a folder of somebody's home, on a machine with a name, with hardly any steps, not as in CI."""
    short = replace(plan.BATTERIES["quick"], steps=3, tuning_victims=2, decoder_steps=3)
    known = {"HOME": str(home), "USER": USER, "LOGNAME": USER, "HOSTNAME": HOST, "CI": "", "COLUMNS": "200"}
    before = Path.cwd()
    with ExitStack() as stack:
        stack.enter_context(patch.dict("os.environ", known))
        stack.enter_context(patch.dict(plan.BATTERIES, {"quick": short}))
        registry.attacks(), registry.defenses()  # leakaudit's own are read once, and stay
        for known_here in (registry._attacks, registry._defenses, registry._files):
            stack.enter_context(patch.dict(known_here))  # what is made known within is forgotten
        for place in ("socket.gethostname", "socket.getfqdn", "platform.node"):
            stack.enter_context(patch(place, return_value=HOST))
        os.chdir(work)
        try:
            yield
        finally:
            os.chdir(before)
