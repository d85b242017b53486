"""The desk: what is known is not computed again, and what is kept is never believed where it is not whole and ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from leakaudit.errors import UserError
from leakaudit.units import desk
from leakaudit.units.desk import Desk
from leakaudit.units.packing import Header, Unreadable, Values, glanced, header_of, packed, unkept, unpacked
from leakaudit.units.shelf import CLAIMS, KEPT, PRIVATE, Claim, Shelf, host, opened
from leakaudit.units.unit import FORMAT, Elsewhere, Unit
from leakaudit.work.progress import Monitor, expired, monitored


@dataclass(frozen=True)
class Scored(Values):
    """An outcome of plain values."""

    value: float
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fitted:
    """An outcome that is an object."""

    weights: Tensor
    call: Callable[[], int] | None = None


PLAIN = Unit("attack", "plain", {"settings": {"images": "full"}, "n": 1})
SECRET = Unit("run", "secret", {"n": 2}, private=True)
OBJECT = Unit("fit", "object", {"n": 3})


@dataclass
class Work:
    """A computation that counts."""

    times: int = 0
    outcome: object = field(default_factory=lambda: Scored(0.1 + 0.2, ("a", "é")))

    def __call__(self) -> object:
        self.times += 1
        return self.outcome


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return opened(tmp_path / "shelf")


def do(own: Desk, unit: Unit, work: Work, *, wait: bool = False, begin: bool = True) -> object:
    with desk.at(own):
        return desk.done(unit, type(work.outcome), work, wait=wait, begin=begin)


@pytest.mark.parametrize("unit", [PLAIN, SECRET, OBJECT], ids=lambda unit: unit.work)
def test_what_is_known_is_not_computed_again(shelf: Shelf, unit: Unit) -> None:
    value: object = Fitted(torch.rand(3)) if unit is OBJECT else Scored(1 / 3, ("x",))
    work, own = Work(outcome=value), Desk(shelf)
    assert do(own, unit, work) is value
    do(own, unit, work)
    later = Desk(shelf)
    again = do(later, unit, work)
    assert work.times == 1
    assert later.found == {unit.key}
    assert own.found == set()
    if isinstance(value, Fitted):
        assert isinstance(again, Fitted)
        assert torch.equal(again.weights, value.weights)
    else:
        assert again == value
    assert not list((shelf.folder / CLAIMS).iterdir())


def test_without_a_desk_or_a_name_everything_is_computed(shelf: Shelf) -> None:
    work = Work()
    assert desk.done(PLAIN, Scored, work) == desk.done(PLAIN, Scored, work)  # type: ignore[arg-type]
    with desk.at(Desk(shelf)):
        desk.done(None, Scored, work)  # type: ignore[arg-type]
    assert work.times == 3
    assert not desk.is_known(PLAIN)
    assert list(shelf.kept()) == []


def _future(data: bytes) -> bytes:
    line, _, body = data.partition(b"\n")
    return json.dumps(json.loads(line) | {"format": "leakaudit.outcome/2"}).encode() + b"\n" + body


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut short": lambda data: data[:-3],
    "cut in its header": lambda data: data[:20],
    "one bit other": lambda data: data[:-2] + bytes([data[-2] ^ 1]) + data[-1:],
    "something else": lambda data: os.urandom(300),
    "deep": lambda data: b"[" * 100_000,
    "of a later format": _future,
    "another one's": lambda data: packed(OBJECT, Scored(9.0), seconds=0, attempt="", late=False),
    "of another shape": lambda data: packed(PLAIN, Other("x"), seconds=0, attempt="", late=False),
    "a list": lambda data: _with_body(data, b"[1, 2]"),
    "no number": lambda data: _with_body(data, b'{"value": NaN, "names": []}'),
}


@dataclass(frozen=True)
class Other(Values):
    """An outcome as an earlier version might have had it."""

    text: str


def _with_body(data: bytes, body: bytes) -> bytes:
    import hashlib

    header = json.loads(data.partition(b"\n")[0]) | {"sha256": hashlib.sha256(body).hexdigest()}
    return json.dumps(header).encode() + b"\n" + body


@pytest.mark.parametrize("broken", BROKEN)
def test_what_is_no_whole_outcome_of_this_is_computed_anew(shelf: Shelf, broken: str) -> None:
    work = Work()
    do(Desk(shelf), PLAIN, work)
    path = shelf.place(PLAIN.key, False)
    path.write_bytes(BROKEN[broken](path.read_bytes()))
    assert do(Desk(shelf), PLAIN, work) == work.outcome
    assert work.times == 2
    do(Desk(shelf), PLAIN, work)  # it was mended
    assert work.times == 2


def test_an_object_of_a_class_that_changed_is_computed_anew(shelf: Shelf) -> None:
    do(Desk(shelf), OBJECT, Work(outcome=Fitted(torch.ones(2))))
    work = Work(outcome=Scored(1.0))
    path = shelf.place(OBJECT.key, False)
    assert do(Desk(shelf), OBJECT, work) == Scored(1.0)  # what is there is no `Scored`
    assert path.read_bytes().endswith(b"}")
    assert work.times == 1


def test_a_full_disk_goes_on(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Shelf, key: str, data: bytes, private: bool) -> None:
        raise UserError("cannot write there: No space left on device; choose another place.")

    monkeypatch.setattr(Shelf, "put", full)
    work, own = Work(), Desk(shelf)
    assert do(own, PLAIN, work) == do(own, PLAIN, work) == work.outcome
    assert do(own, SECRET, work) == do(own, SECRET, work)
    assert work.times == 2
    assert "No space left" in own.trouble
    assert shelf.get(PLAIN.key, False) is None


def test_units_within_a_unit_are_kept_under_one_claim(shelf: Shelf) -> None:
    own, inner, claims = Desk(shelf), Work(), []

    def outer() -> Scored:
        found = desk.done(SECRET, Scored, inner)  # type: ignore[arg-type]
        claims.append({claim.work for claim in shelf.claims().values()})
        desk.done(OBJECT, Scored, inner)  # type: ignore[arg-type]
        raise RuntimeError(str(found.value))

    with desk.at(own), pytest.raises(RuntimeError, match=r"0\.3"):
        desk.done(PLAIN, Scored, outer)
    assert claims == [{"plain"}]
    assert not list((shelf.folder / CLAIMS).iterdir())  # however it ends
    work = Work(outcome=Scored(7.0))
    with desk.at(Desk(shelf)):  # what was finished within counts, though the whole was not
        desk.done(SECRET, Scored, inner)  # type: ignore[arg-type]
        assert desk.done(PLAIN, Scored, work) == Scored(7.0)  # type: ignore[arg-type]
    assert inner.times == 2
    assert [path.name for path, private in shelf.kept() if not private] == sorted([PLAIN.key, OBJECT.key])


def test_what_time_ended_early_counts_for_its_run_alone(shelf: Shelf) -> None:
    def ended() -> Scored:
        assert expired()
        return Scored(0.0)

    own, other = Desk(shelf), Desk(shelf)
    with desk.at(own), monitored(Monitor(deadline=time.monotonic() - 1)):
        assert desk.done(PLAIN, Scored, ended) == Scored(0.0)
    work = Work()
    same = Desk(shelf, attempt=own.attempt)  # another participant of that run
    assert do(same, PLAIN, work) == Scored(0.0)
    assert do(other, PLAIN, work) == work.outcome
    assert work.times == 1
    assert do(Desk(shelf), PLAIN, work) == work.outcome
    assert work.times == 1


def test_a_part_of_what_time_ended_early_is_not_kept(shelf: Shelf) -> None:
    def ended() -> Scored:
        assert expired()
        return Scored(0.0)

    with desk.at(Desk(shelf)), monitored(Monitor(deadline=time.monotonic() - 1)):
        desk.done(PLAIN, Scored, lambda: desk.done(OBJECT, Scored, ended))
    assert shelf.get(PLAIN.key, False) is not None
    assert shelf.get(OBJECT.key, False) is None


def test_fresh_takes_up_nothing_of_another_run(shelf: Shelf) -> None:
    work = Work()
    do(Desk(shelf), PLAIN, work)
    own = Desk(shelf, fresh=True)
    do(own, PLAIN, work)
    do(Desk(shelf, attempt=own.attempt, fresh=True), PLAIN, work)  # another participant of the same
    assert work.times == 2
    do(Desk(shelf), PLAIN, work)
    assert work.times == 2


def test_what_cannot_be_written_everybody_makes_himself(shelf: Shelf) -> None:
    work, own = Work(outcome=Fitted(torch.ones(1), lambda: 3)), Desk(shelf)  # a lambda cannot be pickled
    found = do(own, OBJECT, work)
    assert isinstance(found, Fitted)
    assert do(own, OBJECT, work) is found
    other = Desk(shelf, attempt=own.attempt)
    do(other, OBJECT, work)
    assert work.times == 2
    assert other.unkept == {OBJECT.key}
    header, body = header_of(shelf.get(OBJECT.key, False) or b"", OBJECT.key)
    assert header.unkept
    assert body == b""
    do(Desk(shelf), OBJECT, work)
    assert work.times == 3


@pytest.mark.parametrize("keeps", [False, True])
def test_what_is_private_goes_when_the_scan_ends(shelf: Shelf, keeps: bool) -> None:
    own, work = Desk(shelf, keeps=keeps), Work()
    for unit in (PLAIN, SECRET):
        do(own, unit, work)
    (path,) = (shelf.folder / PRIVATE).rglob(SECRET.key)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert PRIVATE in path.parts
    own.close()
    assert path.exists() == keeps
    assert shelf.place(PLAIN.key, False).exists()


def test_what_is_not_to_be_begun_is_not_kept(shelf: Shelf) -> None:
    work = Work()
    assert do(Desk(shelf), PLAIN, work, begin=False) == work.outcome
    assert list(shelf.kept()) == []
    assert not list((shelf.folder / CLAIMS).iterdir())


def test_what_another_one_is_at_is_elsewhere_until_it_is_there(shelf: Shelf) -> None:
    assert shelf.claim(PLAIN.key, Claim("other", host(), os.getpid(), "plain"))
    own, work, shown = Desk(shelf), Work(), list[str]()
    with pytest.raises(Elsewhere, match="plain"):
        do(own, PLAIN, work)
    assert own.missing == {PLAIN.key: False}
    assert {claim.who: claim.work for claim in shelf.claims().values()} == {"other": "plain"}

    def finish() -> None:
        time.sleep(1.0)
        shelf.put(PLAIN.key, packed(PLAIN, Scored(5.0), seconds=2.0, attempt="x", late=False), False)
        shelf.release(PLAIN.key, "other")

    helper = threading.Thread(target=finish)
    helper.start()
    with desk.at(own), monitored(Monitor(stage=shown.append)):
        desk.wait_for_others()
    helper.join()
    assert do(own, PLAIN, work) == Scored(5.0)
    assert work.times == 0
    assert own.took == {"plain": 2.0}
    assert shown == ["waiting for plain"]


def test_whoever_only_gathers_says_what_it_waits_for(shelf: Shelf) -> None:
    """Nobody is at work: it asks what to say, with the seconds, and ends where it is told that nobody will come."""
    shown, seconds = list[str](), list[float]()

    def attended(alone: float) -> str:
        seconds.append(alone)
        if len(seconds) == 3:
            raise UserError("nobody will come.")
        return "waiting for a worker"

    own = Desk(shelf, idle=True, attended=attended)
    with pytest.raises(Elsewhere):
        do(own, PLAIN, Work())
    with desk.at(own), monitored(Monitor(stage=shown.append)), pytest.raises(UserError, match="nobody will come"):
        desk.wait_for_others()
    assert shown == ["waiting for a worker"]
    assert seconds == sorted(seconds)
    assert seconds[-1] > 0


def test_whoever_computes_shows_signs_of_life(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "BEAT", 0.01)
    ages: list[float] = []

    def slow() -> Scored:
        path = shelf.folder / CLAIMS / PLAIN.key
        os.utime(path, (1.0, 1.0))
        until = time.monotonic() + 10
        while path.stat().st_mtime < 2 and time.monotonic() < until:
            time.sleep(0.01)
        ages.append(path.stat().st_mtime)
        return Scored(1.0)

    with desk.at(Desk(shelf)):
        desk.done(PLAIN, Scored, slow)
    assert ages[0] > 2


def test_participants_that_compute_the_same_leave_the_same(tmp_path: Path) -> None:
    """Two processes that go through the same pieces at once: each is computed once, and both know all."""
    code = (
        "import sys, time; from pathlib import Path\n"
        "from leakaudit.units import desk; from leakaudit.units.desk import Desk\n"
        "from leakaudit.units.shelf import opened\n"
        "from leakaudit.units.unit import Unit; from tests.leakaudit.test_desk import Scored\n"
        "own, found = Desk(opened(Path(sys.argv[1]))), {}\n"
        "def work(n): time.sleep(0.01); return Scored(float(n))\n"
        "with desk.at(own):\n"
        "    for n in range(20):\n"
        "        found[n] = desk.done(Unit('x', f'{n}', {'n': n}), Scored, lambda: work(n), wait=True).value\n"
        "print(len(own.computed), sum(found.values()))"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "shelf")]
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [one.communicate()[0].split() for one in both]
    assert [one.returncode for one in both] == [0, 0]
    assert sum(int(computed) for computed, _ in told) == 20
    assert {total for _, total in told} == {"190.0"}


def test_a_header_says_what_it_is_of_without_what_follows(shelf: Shelf) -> None:
    do(Desk(shelf, attempt="run"), PLAIN, Work())
    found = glanced(shelf.place(PLAIN.key, False))
    assert found is not None
    assert (found.kind, found.work, found.key, found.attempt) == ("attack", "plain", PLAIN.key, "run")
    assert (found.images, found.format) == ("full", FORMAT)
    path = shelf.folder / KEPT / "x"
    path.write_bytes(b"x" * 100_000)
    assert glanced(path) is None
    assert glanced(shelf.folder) is None
    assert isinstance(found, Header)


def test_values_keep_every_bit_and_no_number_passes_for_another() -> None:
    values = Scored(1e-320, ("\ud800", "\0"))
    data = packed(PLAIN, values, seconds=0.1, attempt="a", late=True)
    header, body = header_of(data, PLAIN.key)
    assert header.late
    assert unpacked(body, Scored) == values
    with pytest.raises(ValueError, match="JSON"):
        packed(PLAIN, replace(values, value=float("nan")), seconds=0.1, attempt="a", late=False)
    with pytest.raises(Unreadable):
        header_of(data, SECRET.key)
    with pytest.raises(Unreadable):
        unpacked(b'{"value": "1", "names": []}', Scored)
    assert header_of(unkept(PLAIN, "a"), PLAIN.key)[0].unkept
