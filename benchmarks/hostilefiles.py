"""Hostile files for `python -m benchmarks.hostile`: archives, weights and pictures that are not what they say."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save
from torch import nn

CONTROLS = "\x1b[31mred\x07\u202e\u200b\r\n"
Build = Callable[[Path, Random], None]


class Runs:
    """Unpickled, it runs a command that leaves the canary behind."""

    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


def canary(path: Path) -> Path:
    """What a file that was taken for code leaves: beside the folder `work` that it lies in."""
    return next(folder for folder in path.absolute().parents if folder.name == "work").with_name("canary")


# -- bytes ----------------------------------------------------------------------------------------


def spoil(path: Path, random: Random) -> None:
    """Change a file's bytes without a look at what they mean."""
    data = bytearray(path.read_bytes())
    way = random.randrange(9)
    if way == 0:
        for _ in range(random.choice((1, 5, 50))):
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    elif way == 1:
        del data[random.randrange(len(data)) :]
    elif way == 2:
        data = bytearray()
    elif way == 3:
        data = bytearray(len(data))
    elif way == 4:
        data = bytearray(random.randbytes(2000))
    elif way == 5:
        data[:0] = random.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"\x1b[31m"))
    elif way == 6:
        data += random.randbytes(500)
    elif way == 7:
        start = random.randrange(len(data))
        data[start : start + 200] = b"\xff" * 200
    else:
        start = random.randrange(len(data))
        data[start:start] = data[: random.randrange(1, len(data) + 1)]
    path.write_bytes(bytes(data))


def special(path: Path, random: Random) -> None:
    """Put what is no regular file in a file's place, or one that is too large or may not be read."""
    way = random.choice(("fifo", "folder", "zero", "tty", "loop", "nowhere", "closed", "sparse", "shm", "self"))
    path.unlink(missing_ok=True)
    if way == "fifo":
        os.mkfifo(path)
    elif way == "folder":
        path.mkdir()
    elif way == "loop":
        path.symlink_to(path.name)
    elif way == "closed":
        path.write_text("{}")
        path.chmod(0)
    elif way == "sparse":
        with path.open("wb") as file:
            file.truncate(6 << 30)
    else:
        target = {"zero": "/dev/zero", "tty": "/dev/tty", "nowhere": "/nowhere/at/all", "shm": "/dev/full"}
        path.symlink_to(target.get(way, "/proc/self/mem"))


# -- npz ------------------------------------------------------------------------------------------


def arrays(random: Random) -> dict[str, np.ndarray[Any, Any]]:
    """Pictures and labels as they should be: 80 of 1×8×8 in two classes."""
    labels = np.arange(80) % 2
    noise = np.random.default_rng(random.randrange(1 << 30)).random((80, 8, 8))
    return {"x": ((noise + labels[:, None, None]) * 127).astype(np.uint8), "y": labels}


def _npy(shape: str, descr: str = "'|u1'", body: bytes = b"") -> bytes:
    head = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + body


def claimed_npz(path: Path, random: Random) -> None:
    """Members whose headers claim what is not there."""
    shapes = (
        "(1000000000, 64, 64, 3)",
        "(-1, 8, 8)",
        "(2**62,)",
        "(80, 8, 8)",
        "()",
        "(80, 0, 0)",
        "'x'",
        "(True, 8, 8)",
    )
    kinds = ("'|u1'", "'<f8'", "'|O'", "'<U9999999'", "'<c16'", "[('a', '<f4')]", "'<M8[s]'", "1", "'|V8'")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "x.npy", _npy(random.choice(shapes), random.choice(kinds), bytes(random.choice((0, 80, 5120))))
        )
        archive.writestr("y.npy", _npy("(80,)", "'<i8'", bytes(640)))


def typed_npz(path: Path, random: Random) -> None:
    """Arrays of types and values that are no pictures and labels."""
    held = arrays(random)
    x, y = held["x"], held["y"]
    ways: list[tuple[Any, Any]] = [
        (x, y.astype(np.uint64)), (x, y.astype(np.uint64) + np.uint64(2**63)), (x, y + 2**62), (x, -y), (x, y * 0.5),
        (x, y.astype(complex)), (x, y.astype(object)), (x, y.astype("U3")), (x, y[:, None]), (x, y[:10]), (x, y > 0),
        (x.astype(float), y), (x / 127.5 - 1, y), (x * np.nan, y), (x / np.float16(0), y), (x.astype(complex), y),
        (x.astype(object), y), (x.astype(">f4") / 255, y), (x.astype(np.int64), y), (x.astype(np.float16) / 255, y),
        (x[:, :0], y), (x[:, :, :0], y), (x[:0], y[:0]), (x[:1], y[:1]), (x[:2], y[:2]), (x[..., None, None], y),
        (np.repeat(x[..., None], 4, -1), y), (x[0], y), (x, np.zeros_like(y)), (x, np.arange(80)), (x, y * 100_000),
        (np.asfortranarray(x), y[::-1]), (x.astype("M8[s]"), y), (x, np.array(1)), (np.array(1), y),
        (np.broadcast_to(np.uint8(3), (3, 3000, 3000)), y[:3]),
    ]  # fmt: skip
    x, y = random.choice(ways)
    names: list[Any] = [
        None,
        ["left"],
        ["l", "r", "x"],
        [CONTROLS, "<b>"],
        [["l", "r"]],
        [1, 2],
        ["l" * 100_000, "r"],
        ["l", "l"],
    ]
    classes = random.choice(names) if random.random() < 0.3 else None
    extra = {} if classes is None else {"classes": np.array(classes)}
    keys = random.choice(
        (("x", "y"), ("x_train", "y_train"), ("images", "labels"), ("x_test", "y_test"), ("x", "labels"))
    )
    with np.errstate(all="ignore"):
        np.savez(path, **{keys[0]: x, keys[1]: y}, **extra)


def pickled_npz(path: Path, random: Random) -> None:
    """An array of objects, which would run code where it was unpickled."""
    body = pickle.dumps(Runs(str(canary(path))))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", _npy("(1,)", "'|O'", body))
        archive.writestr(
            random.choice(("y.npy", "y", "y.npy.pkl")), _npy("(1,)", "'|O'", body) if random.random() < 0.5 else body
        )


def zipped_npz(path: Path, random: Random) -> None:
    """An archive with members that are foreign, doubled, encrypted, packed otherwise, misplaced or far too large."""
    np.savez(path, **arrays(random))
    way = random.choice(("foreign", "double", "encrypted", "lzma", "place", "bomb", "many", "comment", "size"))
    packing = {"lzma": zipfile.ZIP_LZMA, "bomb": zipfile.ZIP_DEFLATED}.get(way, zipfile.ZIP_STORED)
    with zipfile.ZipFile(path, "w" if way in ("lzma", "bomb") else "a", packing) as archive:
        if way == "bomb":
            archive.writestr("x.npy", _npy("(300, 1024, 1024, 3)", body=bytes(300 * 3 << 20)), compresslevel=1)
            archive.writestr("y.npy", _npy("(300,)", "'<i8'", bytes(2400)))
        elif way == "many":
            for k in range(20_000):
                archive.writestr(f"{k}.npy", b"")
        else:
            name = {"place": "../../x.npy", "double": "x.npy", "comment": CONTROLS + ".npy"}.get(way, "README")
            archive.writestr(name, _npy("(80, 8, 8)", body=bytes(5120)))
        archive.comment = CONTROLS.encode() * 50
    if way in ("encrypted", "size"):
        data = bytearray(path.read_bytes())
        for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            start = data.find(mark)
            if way == "encrypted":
                data[start + at] |= 1
            else:  # the sizes that the directory claims
                data[start + at + 12 : start + at + 20] = random.randbytes(8)
        path.write_bytes(bytes(data))


# -- weights --------------------------------------------------------------------------------------


def made_safetensors(path: Path, random: Random) -> None:
    """Weights of wrong names, shapes, types and values; or none at all."""
    state: Any = load_file(path) if path.is_file() else {"a": torch.zeros(2)}
    key = random.choice(list(state))
    ways: list[Callable[[], dict[str, torch.Tensor]]] = [
        dict,
        lambda: {k: v for k, v in state.items() if k != key},
        lambda: state | {CONTROLS * 20: torch.zeros(2)},
        lambda: state | {"": torch.zeros(0)},
        lambda: state | {key: state[key].to(torch.complex64)},
        lambda: state | {key: state[key].to(torch.int8)},
        lambda: state | {key: state[key].to(torch.bool)},
        lambda: state | {key: state[key].to(torch.float8_e4m3fn)},
        lambda: state | {key: state[key] * torch.nan},
        lambda: state | {key: state[key].double() * 1e308},
        lambda: state | {key: torch.zeros(0)},
        lambda: state | {key: state[key][None]},
        lambda: {f"module.{k}": v for k, v in state.items()},
        lambda: {f"{'module.' * 500}{k}": v for k, v in state.items()},
        lambda: {str(k): torch.zeros(1) for k in range(3000)},
    ]
    path.write_bytes(
        save(random.choice(ways)(), {"format": CONTROLS, "leakaudit": "nan"} if random.random() < 0.5 else None)
    )


def headed_safetensors(path: Path, random: Random) -> None:
    """A header that lies: its length, its depth, its offsets, its types."""
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    heads: list[Any] = [
        "{" * 100_000, "[" * 100_000, "null", "[]", "{}", '""', "",
        json.dumps({"a": entry | {"data_offsets": [0, 10**18]}}), json.dumps({"a": entry | {"data_offsets": [8, 0]}}),
        json.dumps({"a": entry | {"shape": [10**9, 10**9]}}), json.dumps({"a": entry | {"shape": [-1]}}),
        json.dumps({"a": entry | {"shape": [2**62, 4]}}), json.dumps({"a": entry | {"dtype": "X"}}),
        json.dumps({"a": entry, "b": entry}), json.dumps({"__metadata__": {"a": "b"}}),
        json.dumps({"__metadata__": {"leakaudit": "[" * 5000}, "a": entry}), json.dumps({"__metadata__": [1],
        "a": entry}),
    ]  # fmt: skip
    head = random.choice(heads).encode()
    length = random.choice((len(head), len(head), len(head), 2**63, 2**64 - 1, 0, len(head) + 9))
    path.write_bytes(struct.pack("<Q", length) + head + bytes(8))


def made_torch(path: Path, random: Random) -> None:
    """A torch file: code in its pickle, no state dict, tensors that are odd, itself within itself."""
    state: Any = {
        "0.weight": torch.zeros(4, 1, 3, 3),
        "0.bias": torch.zeros(4),
        "3.weight": torch.zeros(2, 256),
        "3.bias": torch.zeros(2),
    }
    endless: dict[Any, Any] = {}
    endless["state_dict"] = endless
    deep: Any = state
    for _ in range(200):
        deep = {"state_dict": deep}
    held: list[Any] = [
        Runs(str(canary(path))), {"state_dict": Runs(str(canary(path)))}, [1, 2], None, "text", {},
        {"state_dict": {}}, endless, deep,
        {1: torch.zeros(2)}, {CONTROLS: torch.zeros(2)}, state | {"3.bias": state["3.bias"].to(torch.complex64)},
        state | {"3.bias": torch.zeros(2).to_sparse()}, state | {"3.bias": torch.quantize_per_tensor(torch.zeros(2),
        1.0, 0, torch.qint8)},
        state | {"3.bias": torch.zeros(2, device="meta")}, state | {"3.bias": torch.full((2,), torch.nan)},
        state | {"3.bias": 3},
        state | {"3.bias": nn.Parameter(torch.zeros(2))}, state | {"3.weight": torch.zeros(1).expand(2, 256)},
        torch.zeros(3),
        state | {"3.bias": torch.nested.nested_tensor([torch.zeros(1), torch.zeros(2)])}, {"model": state,
        "optimizer": [CONTROLS] * 9},
    ]  # fmt: skip
    buffer = io.BytesIO()
    way = random.randrange(4)
    if way == 0:
        pickle.dump(random.choice(held[:3]), buffer)
    elif way == 1:
        torch.save(random.choice(held), buffer, _use_new_zipfile_serialization=False)
    else:
        torch.save(random.choice(held), buffer)
    path.write_bytes(buffer.getvalue())


# -- pictures -------------------------------------------------------------------------------------


@functools.cache
def _png(width: int, height: int, *, depth: int = 8, colour: int = 0, body: bytes = b"", extra: bytes = b"") -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    packed = zlib.compress(body or bytes((width + 1) * height))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def _saved(picture: Image.Image, kind: str, **how: Any) -> bytes:
    """Return the bytes of a picture, or none where this Pillow cannot write it."""
    buffer = io.BytesIO()
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        picture.save(buffer, kind, **how)
    return buffer.getvalue()


def picture(path: Path, random: Random) -> None:
    """A picture's name on something else: other formats, programs, bombs, odd modes and sizes."""
    grey, wide = Image.new("L", (8, 8), 100), Image.new("RGB", (9, 7))
    bomb = struct.pack(">I", 0) + b"zTXt"
    contents: list[bytes] = [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(%pipe%touch " + bytes(canary(path)) + b") (w) file\n",
        b"%!PS\n{1 pop} loop\n", b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        b"%PDF-1.4\n%%EOF\n", b"", b"\0" * 5000, b"BM" + b"\xff" * 60, b"RIFF\xff\xff\xff\xffWEBPVP8 ",
        b"II*\0\x08\0\0\0\xff\xff",
        _png(60_000, 60_000, body=b"\0"), _png(2**31 - 1, 2**31 - 1, body=b"\0"), _png(0, 0, body=b"\0"), _png(20_000,
        8_000),
        _png(8, 8, extra=bomb), _png(8, 8, depth=16, body=bytes(17 * 8)), _png(8, 8, depth=3), _png(8, 8, body=b"\0"),
        _saved(grey, "GIF"), _saved(grey, "PPM"), _saved(grey, "TIFF"), _saved(wide, "ICO"), _saved(grey, "TGA"),
        _saved(wide, "PCX"),
        _saved(Image.new("CMYK", (8, 8)), "JPEG"), _saved(Image.new("F", (8, 8), float("nan")), "TIFF"), _saved(wide,
        "PNG"),
        _saved(Image.new("I;16", (8, 8)), "PNG"), _saved(Image.new("P", (8, 8)), "PNG", transparency=0),
        _saved(Image.new("L", (1, 1)), "PNG"),
        _saved(grey, "TIFF", save_all=True, append_images=[wide] * 50), _saved(grey, "WEBP"), _saved(Image.new("RGBA",
        (8, 8)), "PNG"),
        _saved(grey, "PNG")[:40], _saved(wide, "JPEG")[:-9], _saved(grey, "BMP")[:60],
    ]  # fmt: skip
    path.write_bytes(random.choice(contents))


NPZ: tuple[Build, ...] = (
    claimed_npz,
    typed_npz,
    typed_npz,
    typed_npz,
    pickled_npz,
    zipped_npz,
    zipped_npz,
    spoil,
    special,
)
SAFETENSORS: tuple[Build, ...] = (made_safetensors, made_safetensors, headed_safetensors, spoil, special)
TORCH: tuple[Build, ...] = (made_torch, made_torch, made_torch, spoil, special)
PICTURES: tuple[Build, ...] = (picture, picture, picture, spoil, special)
