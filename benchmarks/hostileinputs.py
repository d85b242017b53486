"""Valid artifacts for `python -m benchmarks.hostile`, and what is done to their JSON and TOML."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import typer.main
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from benchmarks import hostilefiles as files
from leakaudit.cli.entry import app

MODEL = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

g = torch.Generator().manual_seed(0)
labels = torch.arange(80) % 2
images = torch.rand(80, 1, 8, 8, generator=g) * 0.5 + labels[:, None, None, None] * 0.5
train_data = TensorDataset(images, labels)
classes = ["left", "right"]
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.LeakyReLU(), nn.Flatten(), nn.Linear(256, 2))
"""
PROJECT = """
[tool.leakaudit]
defense = ["clip"]
records = 2
[tool.leakaudit.assert]
preset = "recommended"
identification = { max = 0.3 }
findings = { severity = "error" }
[tool.leakaudit.assert.regression]
identification = { detect = 0.3 }
[[tool.leakaudit.waiver]]
rule = "identified"
reason = "known"
expires = 2099-01-01
"""
CHEAP = ("--quick", "--no-utility", "--records", "2", "--budget", "1s", "-a", "labels", "--images", "none")
# No path of these can be written: the inputs run with all the rights of who runs them.
TEXTS = (
    "", " ", "0", "-1", "-0.0", "nan", "inf", "-inf", "1e309", "1e-320", "9" * 30, "9" * 5000, "true", "None", "[]",
    "=", ":", ",", files.CONTROLS, "\udcff\udcfe", "a" * 5000, "../" * 500 + "proc/x", "device", "/proc/self/x",
    "/proc/nowhere/x", ".", "/proc", "~", "%s%n", "１２", "1_0",
)  # fmt: skip
WRONG: tuple[Any, ...] = (
    "nan", "false", "1", "", None, True, [], {}, -1, 0, 1.5, float("nan"), float("inf"), -float("inf"), 10**400,
    1e308, [[]], {"": None},
    files.CONTROLS, "\ud800", "x" * 2_000_000, [0] * 100_000, "DEEP", "DIGITS", "TWICE", -0.0, 2**63, 1e-320,
    "<script>alert(1)</script>",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A command, and what is done to the folder of valid artifacts before it."""

    family: str
    words: tuple[str, ...]
    change: Callable[[Path, Random], str]  # returns what it did, in a word
    path: tuple[str, ...] = ()  # folders, below the run's, that come onto sys.path: installed packages


def arrange(kit: Path, *, last: bool = False) -> tuple[tuple[str, ...], ...]:
    """Return the commands that make the valid artifacts, in their order; afterwards write what is no command's."""
    if not last:
        return (
            ("scan", "model.py", *CHEAP, "-d", "clip", "-o", "out"),
            ("gate", "out/result.json", "-o", "gate.json"),
            ("report", "out/result.json"),
            ("obscure", "fit", "model.py", "-s", "steps=1:epochs=1:pictures=1", "-o", "generator.safetensors"),
        )
    random = Random(0)
    np.savez(kit / "data.npz", **files.arrays(random))
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.LeakyReLU(), nn.Flatten(), nn.Linear(256, 2))
    torch.save(network.state_dict(), kit / "weights.pt")
    save_file(network.state_dict(), kit / "weights.safetensors")
    for number, picture in enumerate(files.arrays(random)["x"]):
        place = kit / "pictures" / ("left", "right")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(place / f"{number // 2}.png")
    for number in range(3):
        place = kit / "history" / str(number)
        place.mkdir(parents=True)
        shutil.copy(kit / "out" / "result.json", place)
    shutil.copy(kit / "out" / "result.json", kit / "before.json")
    (kit / "device").symlink_to("/dev/full")
    return ()


def nothing(folder: Path, random: Random) -> str:
    """Leave the artifacts valid."""
    return ""


def on(name: str, builds: tuple[files.Build, ...]) -> Callable[[Path, Random], str]:
    """Return a change that spoils one file in one of these ways."""

    def change(folder: Path, random: Random) -> str:
        build = random.choice(builds)
        build(folder / name, random)
        return f"{name}: {build.__name__}"

    return change


def commands() -> list[tuple[tuple[str, ...], dict[str, bool], int]]:
    """Return every command of the program: its words, its options with whether they are flags, its operands' number."""
    found = []

    def walk(command: Any, words: tuple[str, ...]) -> None:
        for name, below in getattr(command, "commands", {}).items():
            walk(below, (*words, name))
        if not getattr(command, "commands", {}):
            options = {
                p.opts[0]: bool(getattr(p, "is_flag", False)) for p in command.params if p.opts[0].startswith("-")
            }
            found.append((words, options, sum(not p.opts[0].startswith("-") for p in command.params)))

    walk(typer.main.get_command(app), ())
    return found


# -- JSON and TOML --------------------------------------------------------------------------------


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of everything in a document."""
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, held in items:
        yield from places(held, (*at, key))


def with_wrong(text: str, random: Random) -> tuple[str, str]:
    """Return a JSON text with one wrong value somewhere, and where."""
    document = json.loads(text)
    at = random.choice(list(places(document))[1:])
    value = random.choice(WRONG)
    place = document
    for key in at[:-1]:
        place = place[key]
    if value == "TWICE" and isinstance(
        at[-1], str
    ):  # a key that stands there twice, or no longer, or one that nobody knows
        kept = place.pop(at[-1])
        if random.random() < 0.5:
            place[random.choice((at[-1].upper(), "\0", "schema", at[-1] + " "))] = kept
    else:
        place[at[-1]] = value
    raw = json.dumps(document).replace('"DEEP"', "[" * 100_000 + "]" * 100_000).replace('"DIGITS"', "9" * 5000)
    return raw, f"{'.'.join(map(str, at))} = {str(value)[:20]!r}"


def wrong_json(name: str) -> Callable[[Path, Random], str]:
    """Return a change of a JSON file: mostly one value of another type or size, else its bytes or the file itself."""

    def change(folder: Path, random: Random) -> str:
        if random.random() < 0.25:
            return on(name, (files.spoil, files.special))(folder, random)
        raw, where = with_wrong((folder / name).read_text(encoding="utf-8"), random)
        (folder / name).write_text(raw, encoding="utf-8", errors="surrogatepass")
        return f"{name}: {where}"

    return change


TOML = (
    "nan", "inf", "-1", "0", "1e308", "9" * 5000, "0x" + "f" * 5000, '"nan"', '"false"', "true", "[]", "{}", '""',
    "1979-05-27", "07:32:00",
    "0001-01-01", '"""\n\n"""', '"\\u001b[31m\\u202e"', "[" * 5000 + "]" * 5000, "{a = " * 2000 + "1" + "}" * 2000,
    "[[1], ['a']]", '"a" * 3',
    '["nan", 1]', '"' + "x" * 100_000 + '"', "-9223372036854775809", "1_000", "'\\'", '"obscure:steps=1e9"',
    '"2099-13-40"',
)  # fmt: skip


def wrong_toml(folder: Path, random: Random) -> str:
    """Change pyproject.toml: a value, a key, a table of another kind, its bytes or the file itself."""
    path = folder / "pyproject.toml"
    way = random.randrange(8)
    if way == 0:
        return on("pyproject.toml", (files.spoil, files.special))(folder, random)
    lines = PROJECT.strip().splitlines()
    at = random.choice([k for k, line in enumerate(lines) if "=" in line])
    value, key = random.choice(TOML), lines[at].partition("=")[0]
    if way == 1:
        value, key = PROJECT, f"{'a.' * 3000}a"
        lines[at] = f"{key} = 1"
    elif way == 2:
        lines.insert(
            random.randrange(len(lines)),
            random.choice(("[" + "a." * 3000 + "a]", "[tool.leakaudit]", "[[tool]]", "tool = 1", "\0", "\x1b[31m = 1")),
        )
    elif way == 3:
        options = [name for words, opts, _ in commands() if words == ("scan",) for name in opts]
        lines.insert(1, f"{random.choice(options).lstrip('-')} = {value}")
    elif way == 4:
        lines = [f"[tool]\nleakaudit = {value}"]
    else:
        lines[at] = f"{key} = {value}"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"pyproject.toml: {key.strip()[:30]} = {value[:20]!r}"
