"""A thousand hostile inputs and more: what they end in, what hangs, what swells, what floods, what is left behind.

    python -m benchmarks.hostile                  1,100 inputs
    python -m benchmarks.hostile --count 100 --seed 3
    python -m benchmarks.hostile --only 17 --seed 3   one of them, with what it printed

Each input is a command run in a process of its own, forked from one that has imported everything, in a folder of valid
artifacts of which something was spoiled (`benchmarks.hostiledoors`). Before the first, broken commands are run that
must each be counted as what they are. Exits 1 where anything is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import os
import pkgutil
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from random import Random

import torch

from benchmarks.hostiledoors import case
from benchmarks.hostileinputs import MODEL, PROJECT, Case, arrange

SECONDS, PEAK, FLOOD = 60.0, 2 << 30, 1 << 20
# What the commands are documented to write, by the pattern of its path; all else that appears is left behind.
WRITTEN = (
    "leakaudit-out*", "out/result.json", "out/report.*", "report.html", "report.pdf", "history.html", "*.xml",
    "*.sarif", "m.md", "h.html", "gate.json",
    "released.npz", "new.safetensors", "new.md", "weights.safetensors", "weights.md", "pyproject.toml", ".github*",
    ".gitlab*", "leakaudit-demo*",
)  # fmt: skip
SENTENCE = ("leakaudit: ", "Error: ", "not ready: ")  # ours, the parser's, and what `doctor` ends with
BESIDE = ("leakaudit: warning: ", "leakaudit: what an exception says is left out")  # lines beside the sentence
TEMPORARY = ("*.tmp*", "*.partial", "*.new", "*~", "*/.*")


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (negative: by a signal), what it took, and all that is wrong with it."""

    code: int
    seconds: float
    peak: int
    wrong: tuple[str, ...]
    printed: str


def listed(folder: Path) -> dict[str, int]:
    """Return every path below a folder with its size."""
    found: dict[str, int] = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(place, name)
            found[os.path.relpath(path, folder)] = os.lstat(path).st_size
    return found


def child(work: Path, words: tuple[str, ...], path: tuple[str, ...], command: Callable[[], None]) -> None:
    """Run a command in the forked process, which this ends."""
    code = 99
    try:
        os.setsid()
        os.chdir(work)
        os.environ |= {"HOME": str(work.with_name("home")), "TMPDIR": str(work.with_name("tmp")), "COLUMNS": "120"}
        os.environ["PATH"] = f"{work.with_name('bin')}{os.pathsep}{os.environ['PATH']}"
        tempfile.tempdir = None
        sys.path[:0] = [str(work / folder) for folder in path]
        importlib.invalidate_caches()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        printed = os.open(work.with_name("printed"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        sys.argv = ["leakaudit", *words]
        command()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code & 0xFF)


def waited(pid: int, limit: float, memory: int) -> tuple[int, int, bool, bool]:
    """Wait for a process: its exit code, its peak in bytes, whether it was killed for its time, and for its memory."""
    until, size = time.monotonic() + limit, 0
    late = swollen = False
    pause = 0.002
    while True:
        done, status, used = os.wait4(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), max(used.ru_maxrss << 10, size), late, swollen
        with contextlib.suppress(OSError, ValueError, IndexError):
            size = max(size, int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize())
        if (late := late or time.monotonic() > until) or (swollen := swollen or size > memory + (256 << 20)):
            with contextlib.suppress(OSError):
                os.killpg(pid, signal.SIGKILL)
        time.sleep(pause)
        pause = min(pause * 1.3, 0.1)


def unescaped(text: str) -> bool:
    """Whether a text tells a terminal something: control characters, and those that turn or hide what is said."""
    return any(
        (ord(c) < 32 and c not in "\n\r\t") or 127 <= ord(c) < 160 or c in "\u202e\u202d\u2066\u200b\ufeff"
        for c in text
    )


def faults(code: int, text: str, size: int, *, large: bool, late: bool, swollen: bool) -> Iterator[str]:
    """Yield what is wrong with how a command ended and what it said."""
    if late:
        yield "hang"
    elif code < 0 and not swollen:
        yield f"signal {-code}"
    elif code == 4:
        yield "exit 4"
    elif code not in (0, 1, 2, 3) and not swollen:
        yield f"exit {code}"
    if large or swollen:
        yield "peak"
    if "Traceback (most recent call last)" in text:
        yield "traceback"
    if size > FLOOD:
        yield "flood"
    if unescaped(text):
        yield "unescaped"
    sentences = [s for s in text.splitlines() if s.startswith(SENTENCE) and not s.startswith(BESIDE)]
    if code == 2 and len(sentences) != 1 and "Usage:" not in text:
        yield "no sentence"


def leftovers(work: Path, before: dict[str, int], code: int, named: set[str]) -> Iterator[str]:
    """Yield what a command left that it should not have: anything after bad usage, temporary files, files elsewhere."""
    for name in listed(work).keys() - before.keys():
        top = name.partition("/")[0]
        documented = any(fnmatch(name, pattern) for pattern in WRITTEN) or any(
            word.endswith((name, top)) for word in named
        )
        kept = name.endswith(".partial") and code == 3
        if not kept and (code == 2 or not documented or any(fnmatch(name, pattern) for pattern in TEMPORARY)):
            yield f"left {name}"
    for folder in ("home", "tmp"):
        for name in listed(work.with_name(folder)):
            yield f"left ~{folder}/{name}"
    if work.with_name("canary").exists():
        yield "ran code"


def run(
    base: Path,
    kit: Path,
    tried: Case,
    random: Random,
    command: Callable[[], None],
    limits: tuple[float, int] = (SECONDS, PEAK),
) -> tuple[str, Ended]:
    """Run one input in a fresh folder below `base`; return what was done to it and how it ended."""
    shutil.rmtree(base, ignore_errors=True)
    work = base / "work"
    shutil.copytree(kit, work, symlinks=True)
    for folder in ("home", "tmp", "bin"):
        (base / folder).mkdir()
    for program in ("gs", "gswin64c", "inkscape", "convert", "xdg-open"):  # started, they leave the canary
        (base / "bin" / program).write_text(f"#!/bin/sh\ntouch '{base}/canary'\n")
        (base / "bin" / program).chmod(0o755)
    said = tried.change(work, random)
    before = listed(work)
    sys.stdout.flush()
    sys.stderr.flush()
    begun, pid = time.monotonic(), os.fork()
    if not pid:
        child(work, tried.words, tried.path, command)
    code, peak, late, swollen = waited(pid, *limits)
    seconds, printed = time.monotonic() - begun, base / "printed"
    size = printed.stat().st_size if printed.exists() else 0
    with printed.open("rb") if printed.exists() else open(os.devnull, "rb") as file:
        text = file.read(4 * FLOOD).decode("utf-8", "replace")
    wrong = [
        *faults(code, text, size, large=peak > limits[1], late=late, swollen=swollen),
        *leftovers(work, before, code, set(tried.words)),
    ]
    return said, Ended(code, seconds, peak, tuple(wrong), text)


# -- the planted controls -------------------------------------------------------------------------


def _swells() -> None:
    held = bytearray(600 << 20)
    held[::4096] = b"x" * len(held[::4096])


def _leaves() -> None:
    Path("out.tmp").write_text("")
    (Path.home() / "cache").write_text("")
    sys.exit(2)


def _floods() -> None:
    print("leakaudit: " + "x" * 2 * FLOOD + "\x1b[31m", file=sys.stderr)
    sys.exit(2)


def _starts() -> None:
    os.system("gs -q")
    print("leakaudit: a\nleakaudit: b")
    sys.exit(2)


def _fails() -> None:
    raise ValueError


PLANTED: tuple[tuple[Callable[[], None], set[str]], ...] = (
    (_fails, {"exit 99", "traceback"}),
    (lambda: sys.exit(4), {"exit 4"}),
    (lambda: os.kill(os.getpid(), signal.SIGSEGV), {"signal 11"}),
    (lambda: time.sleep(9), {"hang"}),
    (_swells, {"peak"}),
    (_leaves, {"left out.tmp", "left ~home/cache", "no sentence"}),
    (_floods, {"flood", "unescaped"}),
    (_starts, {"ran code", "no sentence"}),
)


def controls(base: Path, kit: Path) -> list[str]:
    """Run the broken commands; return a sentence for each that was not counted as what it is."""
    missed = []
    for command, wanted in PLANTED:
        limits = 1.0 if "hang" in wanted else SECONDS, 900 << 20
        _, ended = run(base, kit, Case("controls", (), lambda folder, random: ""), Random(0), command, limits)
        if set(ended.wrong) != wanted:
            missed.append(f"a planted fault was counted as {sorted(ended.wrong)}, not {sorted(wanted)}")
    return missed


# -- all of it ------------------------------------------------------------------------------------


def ready() -> Callable[[], None]:
    """Import all that a command may, make scans short, and return the command line. Starts no thread."""
    import leakaudit
    from leakaudit.cli.entry import main
    from leakaudit.scene import plan

    for module in pkgutil.walk_packages(leakaudit.__path__, "leakaudit."):
        with contextlib.suppress(ImportError):
            importlib.import_module(module.name)
    for name in (
        "scipy.stats",
        "scipy.optimize",
        "PIL.Image",
        "safetensors.torch",
        "lpips",
        "torchvision",
        "opacus.accountants",
        "jinja2.ext",
        "tomlkit",
    ):
        importlib.import_module(name)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    sys.dont_write_bytecode = True
    os.environ.pop("CI", None)
    os.environ["TORCH_HOME"] = "/nowhere"
    plan.BATTERIES["quick"] = replace(plan.BATTERIES["quick"], steps=3, tuning_victims=2, decoder_steps=3)
    return main


def make(kit: Path, base: Path, command: Callable[[], None]) -> None:
    """Make the valid artifacts, by the commands themselves."""
    kit.mkdir()
    (kit / "model.py").write_text(MODEL)
    (kit / "pyproject.toml").write_text(PROJECT)
    for words in arrange(kit):
        _, ended = run(base, kit, Case("kit", words, lambda folder, random: ""), Random(0), command)
        if ended.code in (2, 4) or ended.code < 0:
            sys.exit(f"{words} gave no artifact: {ended.printed[-500:]}")
        shutil.rmtree(kit)
        shutil.move(base / "work", kit)
    arrange(kit, last=True)
    warm(base, kit, command)


def warm(base: Path, kit: Path, command: Callable[[], None]) -> None:
    """Run cheap commands in this process, so that no child compiles a template or reads the sources anew."""
    shutil.copytree(kit, base / "warm", symlinks=True)
    here, kept = Path.cwd(), (os.dup(1), os.dup(2))
    os.chdir(base / "warm")
    silent = os.open(os.devnull, os.O_WRONLY)
    for words in (
        ("list", "attacks"),
        ("report", "out/result.json"),
        ("gate", "out/result.json"),
        ("history", "history"),
        ("init", "model.py", "--result", "out/result.json"),
    ):
        sys.argv = ["leakaudit", *words]
        sys.stdout.flush()
        os.dup2(silent, 1), os.dup2(silent, 2)
        with contextlib.suppress(SystemExit):
            command()
        sys.stdout.flush()
        os.dup2(kept[0], 1), os.dup2(kept[1], 2)
    os.chdir(here)
    gc.collect()
    gc.freeze()  # a child touches none of this


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1100)
    parser.add_argument("--first", type=int, default=0, metavar="NUMBER")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="*", default=None, metavar="NUMBER")
    parser.add_argument("--verbose", action="store_true", help="a line for every input")
    chosen = parser.parse_args()
    command = ready()
    codes: Counter[tuple[str, str]] = Counter()
    wrong: Counter[str] = Counter()
    slowest, largest = 0.0, 0
    with tempfile.TemporaryDirectory() as place:
        base, kit = Path(place) / "run", Path(place) / "kit"
        make(kit, base, command)
        missed = controls(base, kit) if chosen.only is None else []
        for number in chosen.only or range(chosen.first, chosen.first + chosen.count):
            tried = case(chosen.seed, number)
            said, ended = run(base, kit, tried, Random(f"{chosen.seed} {number} change"), command)
            codes[tried.family, "hang" if "hang" in ended.wrong else str(ended.code)] += 1
            wrong.update({fault.split(" ")[0] if fault.startswith("left") else fault for fault in ended.wrong})
            slowest, largest = max(slowest, ended.seconds), max(largest, ended.peak)
            if ended.wrong or chosen.only is not None or chosen.verbose:
                words = " ".join(ascii(w)[1:-1][:60] for w in tried.words)
                took = f"{ended.code:3}  {ended.seconds:5.1f} s  {ended.peak >> 20:5} MB"
                print(f"{number:5}  {took}  {words}  [{said[:120]!a}]  {'; '.join(ended.wrong)}", flush=True)
            if chosen.only is not None:
                print(
                    ascii(
                        ended.printed[:1000] + "\n…\n" * (len(ended.printed) > 1000) + ended.printed[1000:][-2000:]
                    ).replace("\\n", "\n")
                )
    table(codes)
    print(f"slowest {slowest:.1f} s, largest {largest >> 20} MB")
    print("wrong:", ", ".join(f"{count} {fault}" for fault, count in wrong.most_common()) or "nothing")
    print("controls:", "; ".join(missed) or ("not run" if chosen.only else f"all {len(PLANTED)} counted"))
    sys.exit(bool(wrong or missed))


def table(codes: Counter[tuple[str, str]]) -> None:
    """Print how many inputs of each family ended in each exit code."""
    columns = sorted({code for _, code in codes})
    print("| inputs | n | " + " | ".join(columns) + " |\n|---|" + "---:|" * (len(columns) + 1))
    for family in dict.fromkeys(family for family, _ in codes):
        row = [codes[family, code] for code in columns]
        print(f"| {family} | {sum(row)} | " + " | ".join(map(str, row)) + " |")
    sums = [sum(n for (_, code), n in codes.items() if code == column) for column in columns]
    print(f"| all | {sum(sums)} | " + " | ".join(map(str, sums)) + " |")


if __name__ == "__main__":
    main()
