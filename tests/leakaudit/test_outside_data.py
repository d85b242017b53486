"""Data and weights from outside: what they claim is compared with what is there, and nothing else than they is read."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from leakaudit.data.datafiles import read_data, read_npz
from leakaudit.data.datasets import to_picture
from leakaudit.errors import UserError
from leakaudit.files import archives, pictures
from leakaudit.files.archives import arrays
from leakaudit.load.checkpoints import load_checkpoint
from leakaudit.load.loading import target_from_objects

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 8, 9, 3))
LABELS = np.arange(20) % 2


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def claiming(shape: tuple[int, ...], held: bytes = b"") -> bytes:
    """Return an .npy whose header claims uint8 of a shape."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return buffer.getvalue() + held


def packed(path: Path, members: list[tuple[str, bytes]], how: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def loaded(path: Path) -> Any:
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.LazyLinear(2))
    return target_from_objects(network, read_data(path)[0])


GOOD = [("x.npy", npy(PIXELS.astype(np.uint8))), ("y.npy", npy(LABELS))]


@pytest.mark.parametrize(
    ("members", "how", "says"),
    [
        ([("x.npy", claiming((10**9, 32, 32, 3))), GOOD[1]], zipfile.ZIP_STORED, "claims .* bytes, and holds 0"),
        ([("x.npy", claiming((-1, 8, 8, 3))), GOOD[1]], zipfile.ZIP_STORED, "claims the shape"),
        ([("x.npy", claiming((1,) * 40, b"x")), GOOD[1]], zipfile.ZIP_STORED, "claims the shape"),
        ([*GOOD, ("notes.txt", b"hi")], zipfile.ZIP_STORED, r"holds 'notes\.txt', which is no array"),
        ([("x.npy", b"\x93NUMPY\x01\x00\x10\x00" + b"(" * 100), GOOD[1]], zipfile.ZIP_STORED, "plain arrays"),
        ([("x.npy", npy(PIXELS.astype(complex))), GOOD[1]], zipfile.ZIP_STORED, "complex128: give uint8"),
        ([("x.npy", npy(PIXELS[:, :0])), GOOD[1]], zipfile.ZIP_STORED, "so no pixel"),
        ([("x.npy", npy(PIXELS[:0])), ("y.npy", npy(LABELS[:0]))], zipfile.ZIP_STORED, "so no pixel"),
        ([GOOD[0], ("y.npy", npy(np.array(3)))], zipfile.ZIP_STORED, "is one number"),
        ([GOOD[0], ("y.npy", npy(np.full(20, 2**64 - 1, np.uint64)))], zipfile.ZIP_STORED, "is 1844674407370955"),
        ([GOOD[0], ("y.npy", npy(LABELS.astype(str)))], zipfile.ZIP_STORED, "as one whole number"),
        ([("x.npy", npy(PIXELS.astype(float))), GOOD[1]], zipfile.ZIP_STORED, "as uint8, or divide .* by 255"),
        ([("x.npy", npy(PIXELS / 127.5 - 1)), GOOD[1]], zipfile.ZIP_STORED, r"half constants.* · 0\.5 \+ 0\.5"),
        ([("x.npy", npy(PIXELS * -7.0)), GOOD[1]], zipfile.ZIP_STORED, "not 0 to 1: save them as uint8"),
        ([("x.npy", npy(np.full((20, 8, 9, 3), 1e300))), GOOD[1]], zipfile.ZIP_STORED, "not finite"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_an_npz_is_what_it_claims(tmp_path: Path, members: list[tuple[str, bytes]], how: int, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        loaded(packed(tmp_path / "d.npz", members, how))
    assert "\n" not in str(caught.value)


def test_what_unpacks_to_far_more_than_pictures_do_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(tmp_path / "d.npz", [("x.npy", claiming((900, 32, 32), bytes(900 * 1024)))], zipfile.ZIP_DEFLATED)
    with arrays(path) as archive:
        assert not archive.read("x").any()  # so little may be packed as tightly as it likes
    monkeypatch.setattr(archives, "SMALL", 10**5)
    with pytest.raises(UserError, match="more than 100 times as many"), arrays(path) as archive:
        archive.read("x")


def test_encrypted_and_repeated_members_and_long_lists_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = packed(tmp_path / "d.npz", GOOD)
    data = bytearray(path.read_bytes())
    data[data.find(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="is encrypted"):
        read_npz(path)
    with pytest.warns(UserWarning, match="Duplicate"):
        packed(path, [*GOOD, GOOD[0]])
    with pytest.raises(UserError, match="two members of the same name"):
        read_npz(path)
    packed(path, GOOD)
    read_npz(path)
    monkeypatch.setattr(archives, "DIRECTORY", 10)
    with pytest.raises(UserError, match="its list of members"):
        read_npz(path)


def test_arrays_that_fit_no_memory_are_refused_before_they_are_read(tmp_path: Path) -> None:
    path = packed(tmp_path / "d.npz", GOOD)
    with arrays(path, room=PIXELS.size + 160) as archive:
        assert np.array_equal(archive.read("x"), PIXELS)
        archive.read("y")
    with pytest.raises(UserError, match="would take 0 MiB"), arrays(path, room=PIXELS.size + 159) as archive:
        archive.read("x"), archive.read("y")


def dense() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (torch.float16, None), (torch.bfloat16, None), (torch.float64, "rounded from float64"),
        (torch.complex64, "as complex64, not float32"), (torch.int64, "as int64, not float32"),
        (torch.bool, "as bool, not float32"), (torch.uint8, "as uint8, not float32"),
    ],
)  # fmt: skip
def test_weights_keep_their_value_or_are_refused(tmp_path: Path, kind: torch.dtype, says: str | None) -> None:
    state = {
        name: value.to(kind) if value.is_floating_point() else value for name, value in dense().state_dict().items()
    }
    for name in ("w.pt", "w.safetensors"):
        save_file(state, tmp_path / name) if name.endswith("s") else torch.save(state, tmp_path / name)
        network = dense()
        if says is not None and "not" in says:
            with pytest.raises(UserError, match=says):
                load_checkpoint(network, tmp_path / name)
            continue
        assert [says in note for note in load_checkpoint(network, tmp_path / name)] == ([True] if says else [])
        for key, value in network.state_dict().items():
            assert torch.equal(value, state[key].to(value.dtype))


def test_whole_numbers_stay_whole_and_devices_are_real(tmp_path: Path) -> None:
    for change, says in (
        (lambda key, value: value.float(), "num_batches_tracked' as float32, not int64"),
        (lambda key, value: value.to("meta"), "on the device meta"),
        (lambda key, value: value.to_sparse() if value.ndim else value, "as sparse_coo float32"),
    ):
        torch.save({key: change(key, value) for key, value in dense().state_dict().items()}, tmp_path / "w.pt")
        with pytest.raises(UserError, match=says):
            load_checkpoint(dense(), tmp_path / "w.pt")


def safetensors(header: Any, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (safetensors({}), "holds no tensor"),
        (safetensors({"__metadata__": {"a": "b"}}), "holds no tensor"),
        (safetensors([1]), "its header is no table"),
        (safetensors(b"[" * 50_000), "nested too deeply"),
        (struct.pack("<Q", 2**63), "does not begin with the header"),
        (safetensors({"a": ONE | {"data_offsets": [0, 10**12]}}, bytes(4)), "claims the shape"),
        (safetensors({"a": ONE | {"shape": [10**12]}}, bytes(4)), "plain weights"),
        (safetensors({"a": ONE | {"shape": [-1]}}, bytes(4)), "what is said of no tensor"),
        (safetensors({"a": ONE | {"dtype": "X"}}, bytes(4)), "plain weights"),
        (safetensors({"a": ONE, "b": ONE}, bytes(4)), "plain weights"),
        (safetensors({"a": ONE}, bytes(3)), "cut short"),
        (safetensors({"a": ONE}, bytes(5)), "cut short, or holds more"),
        (safetensors({"a": ONE, "__metadata__": {"a": 1}}, bytes(4)), "other notes than texts"),
        (safetensors({"a": ONE | {"shape": [0], "data_offsets": [0, 0]}}), "misses '0.weight'"),
    ],
)
def test_a_safetensors_file_is_what_it_claims(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=says) as caught:
        load_checkpoint(dense(), tmp_path / "w.safetensors")
    assert "\n" not in str(caught.value)


def test_a_torch_file_is_stored_as_it_is(tmp_path: Path) -> None:
    torch.save(dense().state_dict(), tmp_path / "w.pt")
    with zipfile.ZipFile(tmp_path / "w.pt") as stored:
        members = [(name, stored.read(name)) for name in stored.namelist()]
    packed(tmp_path / "p.pt", members, zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="in it is packed"):
        load_checkpoint(dense(), tmp_path / "p.pt")
    torch.save(dense().state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    load_checkpoint(dense(), tmp_path / "old.pt")


def saved(kind: str, mode: str = "RGB", **how: Any) -> bytes:
    picture = Image.fromarray(PIXELS[0].astype(np.uint8)).convert(mode)
    buffer = io.BytesIO()
    picture.save(buffer, kind, **how)
    return buffer.getvalue()


def png(width: int, height: int) -> bytes:
    """Return a PNG that claims a size and holds almost nothing."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(99)))]
    chunks = [
        struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in (*parts, (b"IEND", b""))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("kind", pictures.FORMATS)
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "CMYK"])
def test_pictures_of_five_formats_are_read(kind: str, mode: str) -> None:
    try:
        data = saved(kind, mode)
    except OSError:
        pytest.skip(f"no {kind} is {mode}")
    seen = to_picture(pictures.decoded(data, "p"), "data")
    assert seen.raw
    assert tuple(seen.picture.shape) in ((3, 8, 9), (1, 8, 9))


@pytest.mark.parametrize("kind", ["GIF", "EPS", "PDF", "PPM", "ICO", "TGA"])
def test_no_other_format_is_opened_whatever_it_is_called(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.png").write_bytes(saved(kind))
    monkeypatch.setattr("subprocess.Popen", lambda *a, **k: pytest.fail("a picture started a program"))
    with pytest.raises(UserError, match="it is none of PNG, JPEG, BMP, WEBP, TIFF"):
        pictures.picture_of(tmp_path / "p.png")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: png(5000, 5000), "5000×5000 pixels, more than 16,777,216"),
        (lambda: png(60_000, 60_000), "cannot be read as a picture"),
        (lambda: png(2**31 - 1, 2**31 - 1), "cannot be read as a picture"),
        (lambda: png(0, 0), "begins as one and is broken"),
        (lambda: png(9, 9), "cannot be read as a picture"),
        (lambda: b"text" * 10_000, "none of PNG"),
        (lambda: saved("TIFF", "LAB"), "pixels of the kind LAB"),
        (lambda: saved("PNG", save_all=True, append_images=[Image.new("RGB", (9, 8))]), "several pictures"),
        (lambda: saved("WEBP", save_all=True, append_images=[Image.new("RGB", (9, 8))]), "several pictures"),
        (lambda: saved("TIFF", save_all=True, append_images=[Image.new("RGB", (9, 8))]), "several pictures"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_picture_is_one_of_a_size_that_a_model_takes(make: Callable[[], bytes], says: str) -> None:
    with pytest.raises(UserError, match=says):
        pictures.decoded(make(), "p.png")


def test_sixteen_bits_are_read_as_they_are() -> None:
    deep = np.linspace(0, 65535, 72).reshape(8, 9).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(deep).save(buffer, "PNG")
    picture = to_picture(pictures.decoded(buffer.getvalue(), "p"), "data").picture
    assert np.abs(picture[0].numpy() - deep / 65535).max() < 1e-6


@pytest.mark.parametrize("kind", pictures.FORMATS)
def test_broken_pictures_are_read_or_refused_in_a_sentence(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    generator, whole = random.Random(0), saved(kind)
    for _ in range(60):
        data = bytearray(whole[: generator.choice([len(whole), generator.randrange(len(whole))])])
        for _ in range(generator.choice([0, 1, 20])):
            data[generator.randrange(len(data) or 1)] = generator.randrange(256)
        try:
            pictures.decoded(bytes(data), "p")
        except UserError:
            continue
    assert capfd.readouterr() == ("", "")
