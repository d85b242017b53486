"""One hunt over all outputs: what each holds at each level, and for every output and kind a control that must be found.

Kinds: a private picture, a row of its pixels in any text, what an exception or a plug-in said, the name of the machine
and of whoever ran it. In `full` the hunt finds what is there; below it finds nothing, and finds all that is planted.
`python -m tests.redaction_table` prints the table.
"""

from __future__ import annotations

import base64
import gzip
import importlib.util
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save

from leakaudit.errors import UserError, first_line, quoting
from leakaudit.result.schema import Images, to_json
from tests.hostile import Slots, names
from tests.image_hunt import likeness, pictures
from tests.leaving import HOST, PLUGIN, SAID, USER, VICTIMS, WORDS, formats, judged, left, printed, private, row
from tests.text_hunt import Pixels, told

FOUND = 0.9  # a correlation that nobody takes for chance
KINDS = {"row", *WORDS}
UNSAID = (
    "tensorboard",
    "leakaudit compare",
    "leakaudit history",
    "leakaudit scan --quiet",
    "stderr",
    "officer",
    ".sig",
    "leakaudit sign",
    "leakaudit verify",
    "live view",
)  # no exception, even in full


@cache
def pixels() -> Pixels:
    return Pixels.of(private().double().numpy())


def hunted(name: str, data: bytes) -> set[str]:
    return told(name, data, pixels(), WORDS)


def shows(data: bytes, record: int = 7) -> bool:
    return any(likeness(picture, private())[record] > FOUND for picture in pictures(data))


def test_in_full_the_hunt_finds_what_is_there_and_neither_person_nor_machine() -> None:
    for name, data in left("full").outputs().items():
        if name.startswith("defenses"):
            continue  # what was learned of records, which is why it stays with them
        expected = set() if any(word in name for word in UNSAID) else {"row", "exception"}
        assert hunted(name, data) == expected, name


@pytest.mark.parametrize("level", ["redacted", "none"])
def test_below_full_nothing_private_is_in_any_output(level: Images) -> None:
    made = left(level)
    for name, data in made.outputs().items():
        assert hunted(name, data) == set(), name
        assert all(float(likeness(picture, private()).max()) < FOUND for picture in made.found.get(name, [])), name
        if level == "none":
            assert made.found.get(name, []) == [], name


def test_below_full_type_and_line_stand_for_an_exception_and_bounds_for_the_rest() -> None:
    result = left("redacted").result
    control, talks, broken = (
        next(d for d in result.defenses if d.spec.endswith(n)) for n in ("none", "Talks", "Broken")
    )
    reasons = {a.name: str(a.reason) for a in control.attacks}
    crash, excuse = reasons["crash"], reasons["excuse"]
    assert crash.startswith("RuntimeError, line ")
    assert crash.endswith(" of mine.py")
    assert excuse.startswith("an exception, line ")  # a class that code made up has a name that code made up
    assert next(a for a in control.attacks if a.name == "noted").notes == ("left out: --images full shows it",) * 3
    assert len(talks.facts) == 8
    assert broken.why[0].facts["told"] == f"OSError, line {BROKEN} of mine.py"
    assert talks.spec == "~/study/mine.py:Talks"
    assert str(result.environment["command"]).startswith(
        "leakaudit scan ~/study/faces.py --images redacted -d ~/study/"
    )
    assert str(result.environment["command"]).endswith("-o out")


BROKEN = 1 + PLUGIN.splitlines().index("        raise OSError(5, ROW, ROW)")


def planted(payload: str) -> dict[str, bytes]:
    """Every output of a small result with a text in every string that is shown; the PDF, which is slow, with one."""
    from leakaudit.compare.history import History, Run
    from leakaudit.reports import history

    whole = left("none").result
    few = tuple(replace(d, attacks=d.attacks[:1], facts={}, guarantees=()) for d in whole.defenses[:1])
    result = replace(whole, defenses=few, findings=whole.findings[:1], assumptions=(), baselines=(), not_tested=())
    slots = Slots(payload, lambda path: not names(path))
    filled = slots.fill(result)
    shown: dict[str, str | bytes] = {"result.json": to_json(filled)}
    shown |= formats(filled, slots.fill(judged(result))) | printed(
        replace(result, target=result.target | {"name": payload})
    )
    shown["history.html"] = history.render(History(payload, (Run(1, payload, filled),), (), (payload,)))
    return {name: made if isinstance(made, bytes) else made.encode("utf-8", "replace") for name, made in shown.items()}


def test_what_is_planted_is_found_in_every_output() -> None:
    payload = f" {SAID} {HOST} /home/{USER}/x {' '.join(map(str, row()[:20]))}"
    for name, data in planted(payload).items():
        assert hunted(name, data) == KINDS, name
    picture = f" {as_png(7, 'base64').decode()}"
    for name, data in planted(picture).items():
        assert name == "report.pdf" or shows(data), name  # its long words are broken: pictures in it are found below


def test_private_pictures_within_a_pdf_are_found() -> None:
    if "report.pdf" not in left("full").found:
        pytest.skip("needs the extra leakaudit[pdf]")
    assert (shown_records("report.pdf") > 0.999).sum() == VICTIMS


def shown_records(name: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    found = np.stack([likeness(picture, private()) for picture in left("full").found[name]])
    return np.asarray(found.max(0))


def as_bytes(record: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    return (private()[record, 0].numpy() * 255).round().astype(np.uint8)


def as_png(record: int, form: str = "") -> bytes:
    file = io.BytesIO()
    Image.fromarray(as_bytes(record)).save(file, "PNG")
    return base64.b64encode(file.getvalue()) if form else file.getvalue()


def zipped(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.bin", data)
    return file.getvalue()


def as_array(writer: Callable[..., None], **named: object) -> bytes:
    file = io.BytesIO()
    writer(file, **named)
    return file.getvalue()


def as_event() -> bytes:
    from leakaudit.watch.tensorboard import Events

    folder = left("full").folder.parent / "planted"
    events = Events(folder, private=True)
    events.add_images("victims", private()[7:8], 0)
    events.close()
    return next(folder.iterdir()).read_bytes()


def as_pdf() -> bytes:
    from leakaudit.reports.pdf import to_pdf

    return bytes(to_pdf(f'<img src="data:image/png;base64,{as_png(7, "base64").decode()}">'))


def lines(data: bytes, width: int = 76) -> bytes:
    return b"\r\n".join(data[i : i + width] for i in range(0, len(data), width))


def drawn_in_a_terminal() -> bytes:
    plane = np.vstack([as_bytes(7), np.zeros((1, 25), int)])
    cells = [
        "".join(f"\x1b[38;2;{a};{a};{a};48;2;{b};{b};{b}m▀\x1b[0m" for a, b in zip(*plane[i : i + 2], strict=True))
        for i in range(0, 26, 2)
    ]
    return "\n".join(["fit", *(f"\x1b[2K  {line} x {line}" for line in cells), "end"]).encode()


CONTAINERS: dict[str, Callable[[], bytes]] = {
    "a terminal": drawn_in_a_terminal,
    "a picture": lambda: as_png(7),
    "a picture after other bytes": lambda: b"xyz" * 100 + as_png(7),
    "a data URI": lambda: b'<svg><image href="data:image/png;base64,' + as_png(7, "base64") + b'"/></svg>',
    "lines of base64": lambda: b"begin\r\n" + lines(as_png(7, "base64")) + b"\r\nend",
    "hexadecimal": lambda: as_png(7).hex().encode(),
    "percent signs": lambda: b"data:image/png," + "".join(f"%{b:02x}" for b in as_png(7)).encode(),
    "JSON with slashes escaped": lambda: json.dumps({"x": as_png(7, "base64").decode()}).replace("/", "\\/").encode(),
    "a zip file": lambda: zipped(as_png(7)),
    "a zip file in base64": lambda: b'{"x": "' + base64.b64encode(zipped(as_png(7))) + b'"}',
    "gzip": lambda: gzip.compress(as_png(7)),
    "an array": lambda: as_array(np.save, arr=private()[7, 0].numpy()),
    "arrays in a zip file": lambda: as_array(np.savez_compressed, x=private()[5:9].numpy()),
    "safetensors": lambda: save({"x": private()[5:9].numpy()}),
    "TensorBoard": as_event,
    "a PDF": as_pdf,
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_picture_is_found_in_every_container(container: str) -> None:
    if container == "TensorBoard" and importlib.util.find_spec("tensorboard") is None:
        pytest.skip("needs the extra leakaudit[tensorboard]")
    if container == "a PDF" and "report.pdf" not in left("full").found:
        pytest.skip("needs the extra leakaudit[pdf]")
    assert shows(CONTAINERS[container]())
    assert not shows(CONTAINERS[container](), 8 if container not in ("arrays in a zip file", "safetensors") else 20)


ROWS: dict[str, Callable[[list[float]], bytes]] = {
    "a sentence": lambda r: f"RuntimeError: bad pixel, {', and '.join(f'{x:.2f}' for x in r)}".encode(),
    "bytes in a list": lambda r: str([round(255 * x) for x in r]).encode(),
    "a column of a table": lambda r: "\n".join(f"{i},{x},0.5" for i, x in enumerate(r)).encode(),
    "a drawn path": lambda r: ('<path d="M' + "L".join(f"{3 * i} {x:.3f}" for i, x in enumerate(r)) + '"/>').encode(),
    "JSON": lambda r: json.dumps({"evidence": {"x": r}}, indent=1).encode(),
    "a text in base64": lambda r: b'{"x": "' + base64.b64encode(" ".join(map(str, r)).encode()) + b'"}',
    "a zip file": lambda r: zipped(" ".join(map(str, r)).encode()),
    "numbers of four bytes": lambda r: b"\x0a" + np.array(r, dtype="<f4").tobytes(),
}


@pytest.mark.parametrize("form", ROWS)
def test_sixteen_pixels_are_found_in_every_form_and_others_are_not(form: str) -> None:
    pixel_row = row()[:16]
    assert hunted("x", ROWS[form](pixel_row)) == {"row"}
    assert hunted("x", ROWS[form]([min(1.0, x + 0.05 * (i % 2)) for i, x in enumerate(pixel_row)])) == set()


def test_a_name_of_a_file_is_searched_too() -> None:
    assert hunted(f"events.{HOST}.1", b"") == {"host"}


def test_an_exception_that_cannot_say_anything_is_its_type() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise self

    with quoting(True):
        assert first_line(Mute("x")) == "Mute"
        assert first_line(UserError("plain.")) == "plain"
