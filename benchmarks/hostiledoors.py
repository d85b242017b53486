"""Where hostile inputs come in, for `python -m benchmarks.hostile`: every option, setting and file of every command.

Options, commands, attacks, defenses and settings are read off the program itself, so that what is added to it is tried
as well. An input is fixed by the seed and its number alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from random import Random

from benchmarks import hostilefiles as files
from benchmarks.hostileinputs import (
    CHEAP,
    MODEL,
    TEXTS,
    Case,
    commands,
    nothing,
    on,
    with_wrong,
    wrong_json,
    wrong_toml,
)
from benchmarks.hostilemodels import MODELS
from leakaudit.protocol.registry import attacks, defenses

# -- options and settings -------------------------------------------------------------------------


VALID: dict[tuple[str, ...], tuple[str, ...]] = {
    ("scan",): ("model.py", *CHEAP),
    ("demo",): ("--quiet", "-o"),  # needs minutes: its options are tried with an output that cannot be
    ("doctor",): ("model.py",),
    ("report",): ("out/result.json",),
    ("verify",): ("report.html", "out/result.json"),
    ("gate",): ("out/result.json",),
    ("compare",): ("out/result.json", "before.json"),
    ("init",): ("model.py", "--result", "out/result.json"),
    ("history",): ("history",),
    ("list",): ("attacks",),
    ("obscure", "fit"): ("model.py", "-s", "steps=1:epochs=1:pictures=1", "-o", "new.safetensors"),
    ("obscure", "apply"): ("generator.safetensors", "model.py"),
}


def option(random: Random) -> Case:
    """One option of one command with a hostile value, or a hostile operand, or a word too many."""
    words, options, _ = random.choice(commands())
    valid = VALID.get(words, ("out/result.json",))
    value = random.choice(TEXTS)
    if words == ("demo",):
        return Case("options", ("demo", "--quiet", "--images", random.choice(TEXTS), "-o", "/proc/x"), nothing)
    way = random.random()
    if way < 0.12:
        given = (*valid[:-1], value)
    elif way < 0.2:
        given = (value, *valid[1:])
    elif way < 0.25:
        given = (*valid, value)
    else:
        name = random.choice(list(options))
        given = (*valid, f"{name}={value}" if random.random() < 0.5 and name.startswith("--") else name)
        given = given if "=" in given[-1] or options[name] else (*given, value)
    return Case("options", (*words, *given), nothing)


def setting(random: Random) -> Case:
    """A defense or an attack with a hostile setting, on the way to a scan, a fit or in the project's table."""
    kind, table = random.choice((("-d", defenses()), ("-a", attacks())))
    name = random.choice(list(table))
    names = [f.name for f in fields(table[name]) if f.init] or ["x"]
    spec = f"{name}:{random.choice(names)}={random.choice(TEXTS)}"
    if random.random() < 0.2:
        spec = random.choice(
            (
                f"{name}{random.choice(TEXTS)}",
                f"{name}," * 300 + name,
                ",".join(TEXTS[:9]),
                f"nothing.py:{name}",
                f"model.py:{name}",
                "/dev/zero:X",
            )
        )
    if random.random() < 0.15:
        return Case(
            "settings", ("obscure", "fit", "model.py", "-s", spec.partition(":")[2], "-o", "new.safetensors"), nothing
        )
    return Case("settings", ("scan", "model.py", *CHEAP[:-4], kind, spec, "--images", "none"), nothing)


# -- the doors ------------------------------------------------------------------------------------

REPORTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("out/result.json", ("report", "out/result.json")),
    ("out/result.json", ("report", "out/result.json", "--gate", "gate.json")),
    ("out/result.json", ("verify", "report.html", "out/result.json")),
    ("out/result.json", ("gate", "out/result.json", "--junit", "j.xml", "--sarif", "s.sarif", "--markdown", "m.md",
    "--html", "h.html")),
    ("out/result.json", ("gate", "before.json", "--baseline", "out/result.json")),
    ("out/result.json", ("init", "model.py", "--result", "out/result.json")),
    ("before.json", ("compare", "before.json", "out/result.json", "--markdown", "m.md")),
    ("before.json", ("compare", "out/result.json", "before.json")),
    ("before.json", ("scan", "model.py", *CHEAP, "--gate", "--baseline", "before.json")),
    ("history/1/result.json", ("history", "history")),
    ("gate.json", ("report", "out/result.json", "--gate", "gate.json")),
    ("gate.json", ("verify", "report.html", "out/result.json", "--gate", "gate.json")),
)  # fmt: skip


def json_door(random: Random) -> Case:
    """A result, an outcome of the gate, or one of a history."""
    name, words = random.choice(REPORTS)
    return Case("json", words, wrong_json(name))


def toml_door(random: Random) -> Case:
    """The project's table, read by every command that scans or judges."""
    words = random.choice(
        (
            ("gate", "out/result.json"),
            ("gate", "out/result.json"),
            ("scan", "model.py", *CHEAP, "--gate"),
            ("init", "model.py", "--result", "out/result.json", "--force"),
            ("doctor", "nothing.py"),
            ("list", "attacks"),
        )
    )
    return Case("toml", words, wrong_toml)


def page_door(random: Random) -> Case:
    """What `verify` is shown as a report."""
    name = random.choice(("report.html", "report.pdf"))

    def change(folder: Path, random: Random) -> str:
        if name.endswith(".pdf"):
            (folder / name).write_bytes(b"%PDF-1.7\n" + random.randbytes(random.choice((0, 100, 3_000_000))))
        return on(name, (files.spoil, files.special))(folder, random)

    return Case("reports", ("verify", name, "out/result.json"), change)


def data_door(random: Random) -> Case:
    """An .npz for --data, and in the place of records."""
    words = random.choice(
        (
            ("obscure", "apply", "generator.safetensors", "data.npz", "-o", "released.npz"),
            ("obscure", "apply", "generator.safetensors", "data.npz", "-o", "released.npz"),
            (
                "obscure",
                "fit",
                "model.py",
                "--data",
                "data.npz",
                "-s",
                "steps=1:epochs=1:pictures=1",
                "-o",
                "new.safetensors",
            ),
            ("scan", "model.py", *CHEAP, "--data", "data.npz"),
            ("doctor", "model.py", "--data", "data.npz"),
        )
    )
    return Case("npz", words, on("data.npz", files.NPZ))


def weight_door(random: Random) -> Case:
    """A checkpoint, features for LPIPS, or what was kept of a broken-off fit."""
    name, builds = random.choice(
        (("weights.safetensors", files.SAFETENSORS), ("weights.pt", files.TORCH), ("weights.pt", files.TORCH))
    )
    scan = ("scan", "model.py", *CHEAP)
    words = random.choice(
        (("doctor", "model.py", "--checkpoint", name), (*scan, "--checkpoint", name), (*scan, "--lpips-weights", name))
    )
    return Case("checkpoints", words, on(name, builds))


def generator_door(random: Random) -> Case:
    """A fitted generator: its arrays, and every value of its card."""

    def change(folder: Path, random: Random) -> str:
        path = folder / "generator.safetensors"
        if random.random() < 0.4:
            return on(path.name, files.SAFETENSORS)(folder, random)
        from safetensors import safe_open
        from safetensors.torch import load_file, save_file

        with safe_open(path, "pt") as opened:
            notes = dict(opened.metadata())
        key = random.choice(list(notes))
        try:
            notes[key], where = with_wrong(notes[key], random)
        except (ValueError, IndexError):
            notes[key] = where = random.choice(TEXTS[:20])
        arrays = load_file(path)
        try:
            save_file(arrays, path, {key: value.encode("utf-8", "replace").decode() for key, value in notes.items()})
        except BaseException:  # the library's own limit on a header
            path.write_bytes(b"")
        return f"{path.name}: {key}: {where[:60]}"

    partial = random.random() < 0.15
    if partial:
        words: tuple[str, ...] = (
            "obscure",
            "fit",
            "model.py",
            "-s",
            "steps=1:epochs=1:pictures=1",
            "-o",
            "weights.safetensors",
        )

        def kept(folder: Path, random: Random) -> str:
            name = "weights.safetensors.partial"
            os.rename(folder / "generator.safetensors", folder / name)
            (folder / "weights.safetensors").unlink()
            return on(name, files.SAFETENSORS)(folder, random)

        return Case("generators", words, kept)
    words = random.choice(
        (
            ("obscure", "apply", "generator.safetensors", "model.py"),
            ("obscure", "apply", "generator.safetensors", "data.npz"),
        )
    )
    return Case("generators", words, change)


def picture_door(random: Random) -> Case:
    """A folder of class folders."""

    def change(folder: Path, random: Random) -> str:
        held = folder / "pictures"
        way = random.randrange(5)
        if way == 0:
            for name in (b"left/\xff\xfe.png", b"left/\x1b[31m.png"):
                Path(os.fsdecode(os.fsencode(held) + b"/" + name)).write_bytes((held / "left" / "0.png").read_bytes())
            os.rename(
                held / "right", os.fsdecode(os.fsencode(held) + random.choice((b"/\xff", b"/\x1b[31m\n", b"/..x")))
            )
            return "pictures: names"
        names = [f"left/{k}.png" for k in range(3)]
        for name in names if random.random() < 0.3 else names[:1]:
            place = Path(name).with_suffix(random.choice((".png", ".png", ".jpg", ".bmp", ".webp", ".tiff", ".tif")))
            os.rename(held / name, held / place)
            said = on(f"pictures/{place}", files.PICTURES)(folder, random)
        return said

    words = random.choice(
        (
            ("obscure", "apply", "generator.safetensors", "pictures", "-o", "released.npz"),
            ("doctor", "model.py", "--data", "pictures"),
            ("scan", "model.py", *CHEAP, "--data", "pictures"),
        )
    )
    return Case("pictures", words, change)


def model_door(random: Random) -> Case:
    """A model file that holds what it should not, or is none."""
    name = random.choice(list(MODELS))

    def change(folder: Path, random: Random) -> str:
        text = MODELS[name]
        (folder / "model.py").write_bytes(
            text if isinstance(text, bytes) else (MODEL + text).encode("utf-8", "surrogatepass")
        )
        return f"model.py: {name}"

    if random.random() < 0.15:
        return Case("models", ("doctor", "model.py"), on("model.py", (files.spoil, files.special)))
    words = random.choice(
        (
            ("doctor", "model.py"),
            ("doctor", "model.py"),
            ("scan", "model.py", *CHEAP),
            ("obscure", "fit", "model.py", "-s", "steps=1:epochs=1", "-o", "new.safetensors"),
        )
    )
    return Case("models", words, change)


def package_door(random: Random) -> Case:
    """An installed package whose metadata offers plug-ins."""

    def change(folder: Path, random: Random) -> str:
        meta = folder / "site" / "hostile-1.0.dist-info"
        meta.mkdir(parents=True)
        group = random.choice(("leakaudit.attacks", "leakaudit.defenses", "leakaudit.metrics"))
        point = random.choice(
            (
                "a = b",
                "a = nothing:X",
                "a = os:path",
                "a = hostile:X",
                f"{files.CONTROLS!r} = os:path",
                "a = ",
                "= b",
                "a" * 90_000 + " = os:path",
                "a = hostile:X [x]",
                "none = os:path",
                "a = antigravity.x:y:z",
            )
        )
        (meta / "entry_points.txt").write_bytes(
            f"[{group}]\n{point}\n".encode() + random.choice((b"", b"\xff\xff", b"[", b"x" * 100))
        )
        (meta / "METADATA").write_bytes(
            random.choice((b"Name: hostile\nVersion: 1.0\n", b"", b"\xff\xff", b"Name: \x1b[31m\nVersion: nan\n"))
        )
        source = random.choice(
            (
                "raise SystemExit('no')",
                "raise KeyboardInterrupt",
                "1/0",
                "X = 1",
                "class X: pass",
                "def f(): f()\nf()",
                "raise ValueError('\\x1b[31m' * 99999)",
                "X = type('X', (), {'name': '\\x1b'})",
                "(",
                "raise BaseException('x')",
            )
        )
        (folder / "site" / "hostile.py").write_text(source)
        return f"{group}: {point[:30]} ({source[:30]})"

    return Case(
        "packages",
        random.choice((("list", "attacks"), ("list", "defenses"), ("doctor", "model.py"))),
        change,
        ("site",),
    )


FAMILIES: tuple[Callable[[Random], Case], ...] = (
    option, option, option, setting, setting, json_door, json_door, json_door, toml_door, toml_door, page_door,
    data_door, data_door,
    weight_door, weight_door, generator_door, generator_door, picture_door, picture_door, model_door, package_door,
)  # fmt: skip


def case(seed: int, number: int) -> Case:
    """Return the input of this number; families take turns."""
    return FAMILIES[number % len(FAMILIES)](Random(f"{seed} {number}"))
