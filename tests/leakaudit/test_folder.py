"""The folder of a scan: held by one scan, without an earlier one's files, with the rights that its files need."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from leakaudit.errors import Untouched, UserError
from leakaudit.files import folder as folders
from leakaudit.files.folder import KEPT, OURS, claimed, kept
from leakaudit.files.writing import HALF, append, check_writable, owner_only, probe, sweep, writable, write_atomically


def rights(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request: pytest.FixtureRequest) -> object:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_what_is_private_is_its_owners_and_the_rest_follows_the_umask(tmp_path: Path, umask: int) -> None:
    write_atomically(tmp_path / "a" / "b" / "private", b"x", private=True)
    write_atomically(tmp_path / "c" / "d" / "open", "x")
    assert [rights(tmp_path / p) for p in ("a", "a/b", "a/b/private")] == [0o700, 0o700, 0o600]
    assert [rights(tmp_path / p) for p in ("c", "c/d", "c/d/open")] == [0o777 & ~umask, 0o777 & ~umask, 0o666 & ~umask]
    (tmp_path / "c/d/open").chmod(0o640)
    write_atomically(tmp_path / "c/d/open", "y")  # the file was there: its rights are somebody's choice
    assert rights(tmp_path / "c/d/open") == 0o640
    write_atomically(tmp_path / "c/d/open", "y", private=True)
    assert rights(tmp_path / "c/d/open") == 0o600
    with owner_only():
        (tmp_path / "others").write_text("x")
    assert rights(tmp_path / "others") == 0o600
    assert os.umask(umask) == umask


def test_a_private_file_is_private_from_its_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: seen.append(stat.S_IMODE(os.fstat(handle).st_mode)))
    write_atomically(tmp_path / "x", b"picture", private=True)
    assert seen == [0o600]


def test_a_place_is_tried_with_real_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: sizes.append(os.fstat(handle).st_size))
    probe(tmp_path / "new" / "folder")
    check_writable(tmp_path / "new" / "file")
    assert sizes == [1 << 20, 1 << 20]
    assert list(tmp_path.iterdir()) == []

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for call in (lambda: writable(tmp_path / "x"), lambda: check_writable(tmp_path / "y")):
        with pytest.raises(UserError, match="No space left"):
            call()
    with pytest.raises(UserError, match="No space left"):
        write_atomically(tmp_path / "z", "text")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writers_half_is_taken_away(tmp_path: Path) -> None:
    for name in (".result.json.0123abcd", ".other.4567"):
        (tmp_path / f"{name}{HALF}").write_text("{")
    (tmp_path / ".hidden").write_text("mine")
    check_writable(tmp_path / "result.json")  # it may be another's that is being written
    assert len(list(tmp_path.iterdir())) == 3
    os.utime(tmp_path / f".result.json.0123abcd{HALF}", (0, 0))
    check_writable(tmp_path / "result.json")
    assert len(list(tmp_path.iterdir())) == 2
    sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [".hidden"]


def test_a_folder_is_one_scans(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with claimed(out, private=True) as earlier:
        assert earlier == ""
        assert rights(out) == 0o700
        with pytest.raises(UserError, match="another scan is writing"), claimed(out, private=True):
            pass
        assert out.is_dir()
        with claimed(tmp_path / "other", private=False):
            pass
    assert not out.exists()  # nothing came of it
    with claimed(out, private=True):
        (out / "result.json").write_text("{}")
    with claimed(out, private=True) as earlier:
        assert earlier
    assert out.exists()


def test_a_process_that_ends_lets_go_of_its_folder(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        folders._hold(tmp_path, private=True)
        os._exit(0)  # as a kill does: nothing is undone
    os.waitpid(child, 0)
    with claimed(tmp_path, private=True):
        pass


def test_what_an_earlier_scan_left_is_set_aside(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in OURS:
        (out / name).write_text(f"old {name}")
        os.utime(out / name, (0, 0))
    (out / "defenses" / "obscure").mkdir(parents=True)
    (out / "defenses" / "obscure" / "obscure.safetensors").write_text("old")
    os.utime(out / "defenses", (0, 0))
    (out / "mine.txt").write_text("mine")
    with claimed(out, private=False) as earlier:
        aside = tmp_path / ".out.earlier" / "1970-01-01T00-00-00Z"
        assert earlier == f"What an earlier scan left in {out} is in {aside} now."
        assert [p.name for p in out.iterdir()] == ["mine.txt"]
    assert {p.name for p in aside.iterdir()} == {*OURS, "defenses"}
    assert (aside / "result.json").read_text() == "old result.json"
    assert (rights(aside), rights(aside.parent)) == (0o700, 0o700)
    assert (aside.parent / ".gitignore").read_text() == "*\n"


@pytest.mark.parametrize("before", [0, 2])
def test_what_was_refused_before_it_began_sets_nothing_aside(tmp_path: Path, before: int) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for number in range(before):
        (out / "result.json").write_text(str(number))
        with claimed(out, private=False):
            pass
    (tmp_path / "linked").write_text("old")
    (out / "report.html").symlink_to(tmp_path / "linked")
    (out / "result.json").write_text("old")
    (out / "defenses").mkdir()
    (out / "defenses" / "obscure.npz").write_text("old")
    aside = tmp_path / ".out.earlier"
    there = sorted(path for path in tmp_path.rglob("*"))
    with pytest.raises(Untouched, match=r"nothing to resume\. .*out is as it was"), claimed(out, private=False):
        raise Untouched(f"nothing to resume{' yet' * (out / 'result.json').exists()}.")
    assert sorted(path for path in tmp_path.rglob("*")) == there
    assert aside.exists() == bool(before)
    assert (out / "report.html").is_symlink()
    assert [(out / name).read_text() for name in ("report.html", "result.json")] == ["old", "old"]


def test_a_package_called_defenses_is_the_users(tmp_path: Path) -> None:
    (tmp_path / "defenses").mkdir()
    (tmp_path / "defenses" / "__init__.py").write_text("")
    (tmp_path / "result.json").write_text("")
    with claimed(tmp_path, private=False) as earlier:
        assert (tmp_path / "defenses" / "__init__.py").exists()
    assert earlier


def test_the_last_scans_are_kept_and_none_replaces_another(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for number in range(KEPT + 3):
        (out / "result.json").write_text(str(number))
        os.utime(out / "result.json", (10**9 + number // 2, 10**9 + number // 2))
        with claimed(out, private=True):
            pass
    found = [(p / "result.json").read_text() for p in sorted((tmp_path / ".out.earlier").iterdir()) if p.is_dir()]
    assert found == [str(n) for n in range(3, KEPT + 3)]


def test_where_nothing_can_be_put_beside_it_goes_within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "result.json").write_text("old")
    monkeypatch.setattr(Path, "is_mount", lambda self: True)
    with claimed(tmp_path, private=False) as earlier:
        assert str(tmp_path / ".earlier") in earlier


def test_a_link_stays_one_and_its_old_content_is_set_aside(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "store.json").write_text("old")
    (out / "result.json").symlink_to(tmp_path / "store.json")
    with claimed(out, private=False):
        assert not (out / "result.json").exists()
        write_atomically(out / "result.json", "new")
    assert (tmp_path / "store.json").read_text() == "new"
    assert next((tmp_path / ".out.earlier").glob("*/result.json")).read_text() == "old"


def test_an_error_says_where_an_earlier_scans_files_are(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "gate.json").write_text("")
    with (
        pytest.raises(UserError, match=r"no such file\. What .* is in .*\.out\.earlier"),
        claimed(tmp_path / "out", True),
    ):
        raise UserError("no such file.")


def test_an_interrupt_says_where_an_earlier_scans_files_are(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "result.json").write_text("")
    with pytest.raises(KeyboardInterrupt, match=r"^What .* is in .*\.out\.earlier"), claimed(tmp_path / "out", True):
        raise KeyboardInterrupt


def test_the_root_is_a_folder_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "result.json").write_text("old")
    monkeypatch.setattr(folders, "_moved", lambda found, place: place)
    assert folders._set_aside(Path("/")) in (None, Path("/.earlier"))
    monkeypatch.setattr(folders, "OURS", tuple(each.name for each in Path("/").iterdir() if each.is_dir())[:1])
    monkeypatch.setattr(Path, "is_file", lambda self: True)
    assert folders._set_aside(Path("/")) == Path("/.earlier")


def test_what_a_place_does_not_take_is_put_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(path: Path) -> None:
        if path.parent == tmp_path:
            raise UserError("cannot write: no room.")
        write_atomically(path, "x", private=True)

    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    place = kept(save, tmp_path / "generator.safetensors")
    assert place.parent.parent == tmp_path / "tmp"
    assert (place.name, place.read_text()) == ("generator.safetensors", "x")


def test_text_is_added_to_a_file(tmp_path: Path) -> None:
    append(tmp_path / "x", "ä")
    append(tmp_path / "x", "b")
    assert (tmp_path / "x").read_text(encoding="utf-8") == "äb"
