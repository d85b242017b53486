"""The file of captured updates: what is written is read back; what somebody else wrote ends in one sentence."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.torch import save
from torch import nn

from leakaudit.captured.form import KEY, SCHEMA, Claims, Sends
from leakaudit.captured.reading import client_of, read_capture
from leakaudit.captured.writing import claims_json, write_capture, write_captures
from leakaudit.errors import UserError
from leakaudit.result.federation import Client

KINDS = (np.float16, np.float32, np.float64, np.int64, np.int32)
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
SHAPES = arrays.array_shapes(min_dims=0, max_dims=3, max_side=3)
SOME = {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(2)}


def array(kind: Any) -> st.SearchStrategy[Any]:
    real = {"allow_nan": False, "allow_infinity": False} if np.issubdtype(kind, np.floating) else None
    return arrays.arrays(kind, SHAPES, elements=real)


VALUES = st.dictionaries(NAMES, st.floats(allow_nan=False, allow_infinity=False) | NAMES)


@settings(max_examples=40, deadline=None)
@given(
    state=st.dictionaries(NAMES, st.sampled_from(KINDS).flatmap(array), min_size=1, max_size=4),
    sends=st.sampled_from(("after", "difference", "gradient")),
    count=st.integers(1, 3),
    begun=st.booleans(),
    claims=st.builds(
        Claims,
        framework=NAMES,
        local_steps=st.none() | st.integers(1, 100),
        local_lr=st.none() | st.floats(1e-6, 10),
        records=st.none() | st.integers(1, 100),
        defense=st.none() | st.just("none"),
        settings=st.lists(VALUES, max_size=2).map(tuple),
    ),
)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    state: dict[str, Any],
    sends: Sends,
    count: int,
    begun: bool,
    claims: Claims,
) -> None:
    path = tmp_path_factory.mktemp("u") / "u.safetensors"
    write_captures(path, [state] * count, sends=sends, before=state if begun else None, claims=claims)
    found = read_capture(path)
    assert (found.claims, found.sends, len(found.updates)) == (claims, sends, count)
    for each in (found.before, *found.updates) if begun else found.updates:
        assert {name: value.numpy().tobytes() for name, value in each.items()} == {
            name: value.tobytes() for name, value in state.items()
        }
        assert {name: tuple(value.shape) for name, value in each.items()} == {n: v.shape for n, v in state.items()}
    before = path.read_bytes()
    write_captures(path, [state] * count, sends=sends, before=state if begun else None, claims=claims)
    assert path.read_bytes() == before
    assert path.stat().st_mode & 0o077 == 0


def test_tensors_of_torch_and_arrays_without_names_are_written(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 2).bfloat16(), nn.BatchNorm1d(2))
    write_capture(tmp_path / "a.safetensors", before=model.state_dict(), after=model.state_dict())
    found = read_capture(tmp_path / "a.safetensors")
    assert found.before.keys() == model.state_dict().keys()
    assert torch.equal(found.updates[0]["0.weight"], model[0].weight.float())
    ordered = [value.float().numpy() for value in model.state_dict().values()]
    write_capture(tmp_path / "b.safetensors", difference=ordered)
    assert sorted(read_capture(tmp_path / "b.safetensors").updates[0], key=int) == [str(i) for i in range(len(ordered))]


def test_claims_speak_of_a_client() -> None:
    claims = Claims(local_epochs=2, batch_size=8, local_lr=0.1, momentum=0.9, clients=3, mode="train", records=24)
    assert client_of(claims, "it") == Client(
        local_epochs=2, batch_size=8, local_lr=0.1, momentum=0.9, clients=3, mode="train"
    )
    assert client_of(Claims(batch_size=8), "it") == Client()
    assert json.loads(claims_json(Claims(local_lr=0.1))) == {"local_lr": 0.1, "schema": SCHEMA}


def file(tensors: dict[str, torch.Tensor], **claims: Any) -> bytes:
    return save(tensors, {KEY: json.dumps({"schema": SCHEMA} | claims)})


def headed(header: bytes, body: bytes = b"\0" * 8) -> bytes:
    return struct.pack("<Q", len(header)) + header + body


AFTER = {f"after/{name}": value for name, value in SOME.items()}
ONE = b'"after/a":{"dtype":"F32","shape":[%d],"data_offsets":[%d,%d]}'
TWICE = b"{" + ONE % (1, 0, 4) + b"," + ONE % (1, 4, 8) + b"}"
HUGE = b'{"__metadata__":{"leakaudit":"{\\"schema\\":\\"leakaudit.captured/1\\"}"},' + ONE % (2**62, 0, 8) + b"}"
HOSTILE: dict[str, tuple[bytes | Callable[[], bytes], str]] = {
    "nothing": (b"", "does not begin"),
    "a pickle": (pickle.dumps(SOME), "safetensors"),
    "truncated": (file(AFTER)[:-3], "cut short"),
    "longer": (file(AFTER) + b"more", "cut short, or holds more"),
    "twice": (headed(TWICE), "twice"),
    "huge": (headed(HUGE), "cannot be read"),
    "a header without an end": (struct.pack("<Q", 2**62), "does not begin"),
    "no metadata": (save(AFTER), "says nothing of how it was captured"),
    "metadata that is none": (save(AFTER, {KEY: "{"}), "not JSON"),
    "another schema": (save(AFTER, {KEY: '{"schema": "leakaudit.result/1"}'}), "schema"),
    "a number in words": (file(AFTER, local_lr="fast"), "local_lr"),
    "no number": (save(AFTER, {KEY: '{"local_lr": NaN}'}), "NaN"),
    "deep": (save(AFTER, {KEY: "[" * 100_000}), "nested too deeply"),
    "no client": (file(AFTER, momentum=7.0), "momentum"),
    "two lengths": (file(AFTER, local_steps=2, local_epochs=2), "not both"),
    "no steps": (file(AFTER, local_steps=0), "between 1"),
    "no records": (file(AFTER, records=-1), "between 1"),
    "records that clients cannot share": (file(AFTER, records=7, clients=2), "as many"),
    "an unknown mode": (file(AFTER, mode="sleep"), "mode"),
    "a missing round": (file(AFTER, rounds=2), "1 updates"),
    "NaN": (file({"after/a": torch.tensor([float("nan")])}), "no finite number"),
    "infinity": (file({"before/a": torch.tensor([float("inf")]), "after/a": torch.zeros(1)}), "no finite number"),
    "complex": (file({"after/a": torch.zeros(1, dtype=torch.complex64)}), "complex64"),
    "8 bits": (file({"after/a": torch.zeros(1).to(torch.float8_e4m3fn)}), "float8"),
    "no update": (file({"before/a": torch.zeros(1)}), "no update"),
    "two kinds": (file(AFTER | {"gradient/a": torch.zeros(1)}), "several kinds"),
    "foreign names": (file({"model.weight": torch.zeros(1)}), "are called"),
    "a gap": (file({"update/1/after/a": torch.zeros(1)}), "without a gap"),
    "numbered and not": (file(AFTER | {"update/0/after/a": torch.zeros(1)}), "several kinds"),
    "another shape": (file(AFTER | {"before/a.weight": torch.zeros(1), "before/a.bias": torch.zeros(2)}), "shape"),
    "not before": (file(AFTER | {"before/a.weight": torch.zeros(2, 3)}), "not in before"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_none_ends_in_one_sentence(name: str, tmp_path: Path) -> None:
    content, told = HOSTILE[name]
    path = tmp_path / "u.safetensors"
    path.write_bytes(content if isinstance(content, bytes) else content())
    with pytest.raises(UserError) as caught:
        read_capture(path)
    words = str(caught.value)
    assert told in words
    assert str(path) in words
    assert "\n" not in words


def test_another_kind_of_file_is_none(tmp_path: Path) -> None:
    torch.save(SOME, tmp_path / "u.pt")
    with pytest.raises(UserError, match="ends in"):
        read_capture(tmp_path / "u.pt")
    with pytest.raises(UserError, match="ends in"):
        write_capture(tmp_path / "u.pt", after=SOME)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "one of after"),
        ({"after": SOME, "gradient": SOME}, "one of after"),
        ({"after": {}}, "no tensor"),
        ({"after": {"a": np.array(["x"])}}, "not numbers"),
        ({"after": SOME, "claims": Claims(settings=({"a": float("nan")},))}, "JSON"),
    ],
)
def test_what_cannot_be_written_is_not(given: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        write_capture(tmp_path / "u.safetensors", **given)
    assert list(tmp_path.iterdir()) == []
