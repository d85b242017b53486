"""The folder that a scan writes into: its own while it runs, and without what an earlier scan left in it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

from leakaudit.errors import Interrupted, Setting, Untouched, UserError, sentence
from leakaudit.files.writing import PROBE, make, owner_only, probe, sweep, why, write_atomically

REPORT, RESULT, GATE, LEARNED = "report.html", "result.json", "gate.json", "defenses"
SIGNED = (RESULT, REPORT, "report.pdf", GATE)
OURS = (*SIGNED, *(f"{name}.sig" for name in SIGNED))
LEARNED_IN = (".safetensors", ".npz", ".pt", ".json", ".md")  # a folder of code is nobody's but the user's
KEPT = 10  # earlier scans that are kept


def stored(path: Path) -> Path:
    """Return the file of a result: where a folder is named, the one that a scan wrote into it.

    Raises UserError where the folder holds none. What a file is, its reader tells.
    """
    if not path.is_dir():
        return path
    if not (path / RESULT).is_file():
        raise UserError(f"{path} holds no {RESULT}: name a folder that a scan wrote into, or a result.")
    return path / RESULT


@contextmanager
def claimed(folder: Path, private: bool) -> Iterator[str]:
    """Hold a folder for one scan; yield a sentence that says where an earlier one's files were put, if there were any.

    The folder is made, and taken away again if it stays empty; what a killed process left half written is removed.
    Raises UserError where another scan holds it; one that ends the scan says where the files are, too. The hold ends
    with the process, however that ends.
    """
    existed = folder.exists()
    try:
        hold = _hold(folder, private)
        try:
            sweep(folder)
            earlier = _set_aside(folder)
            put = f"What an earlier scan left in {folder} is in {earlier} now." if earlier else ""
            try:
                yield put
            except Untouched as error:  # nothing took the place of what was there
                _put_back(earlier, folder)
                raise Untouched(*error.parts, f" {folder} is as it was." * bool(put)) from error
            except UserError as error:
                raise UserError(*sentence(error).parts, f" {put}" * bool(put)) from error
            except KeyboardInterrupt as error:  # nobody was told yet, and may look for yesterday's result
                raise Interrupted(put) from error
        finally:
            if not existed:
                with suppress(OSError):
                    folder.rmdir()
            if hold is not None:
                os.close(hold)
    except OSError as error:
        raise UserError(
            "cannot write to ", Setting("output", str(folder)), f": {error.strerror or error}; choose another folder."
        ) from error


def _hold(folder: Path, private: bool) -> int | None:
    """Make and lock a folder; None where the system or its file system knows no locks."""
    while True:
        make(folder, private)
        try:
            import fcntl
        except ImportError:
            return None
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if folder.exists() and os.path.samestat(os.fstat(handle), folder.stat()):
                return handle
            os.close(handle)  # another scan took it away between the two lines: make it again
        except BlockingIOError as error:
            os.close(handle)
            raise UserError(
                "another scan is writing into ",
                Setting("output", str(folder)),
                ": wait until it has ended, or choose another folder.",
            ) from error
        except OSError:
            os.close(handle)
            return None


def _set_aside(folder: Path) -> Path | None:
    """Move what an earlier scan left in a folder out of it, so that no file of it passes for a later one's.

    It goes beside the folder, where whoever passes that on does not pass it on too; or, where nothing can be moved
    there (the folder is a mount, say), into a hidden folder within.
    """
    found = [path for name in OURS if (path := folder / name).is_file() or path.is_dir()]
    found += [path for path in (folder / LEARNED,) if _learned(path)]
    if not found:
        return None
    whole = folder.resolve()
    apart = whole if folder.name in ("", "..") or folder.is_symlink() else folder
    beside, within = apart.parent / f".{whole.name}.earlier", folder / ".earlier"
    places = (within,) if whole.parent == whole or whole.is_mount() else (beside, within)
    for place in places:
        with suppress(OSError) if place != places[-1] else owner_only():
            return _moved(found, place)
    return None


def _learned(folder: Path) -> bool:
    """Whether a folder holds what defenses learned, and nothing else."""
    files = [path for path in folder.rglob("*") if not path.is_dir()] if folder.is_dir() else []
    return bool(files) and all(path.suffix in LEARNED_IN for path in files)


def _moved(found: list[Path], place: Path) -> Path:
    """Move files into a new folder of `place`, named by when the newest was written, and forget the oldest such."""
    written = datetime.fromtimestamp(max(path.stat().st_mtime for path in found), UTC)
    make(place, private=True)
    (place / ".gitignore").write_text("*\n")
    stamp, count = written.strftime("%Y-%m-%dT%H-%M-%SZ"), 1
    while True:
        into = place / (stamp if count == 1 else f"{stamp}-{count}")
        try:
            into.mkdir(mode=0o700)
            break
        except FileExistsError:
            count += 1
    for path in found:
        os.replace(path.resolve() if path.is_symlink() else path, into / path.name)  # a link stays where it is
    for old in sorted(each for each in place.iterdir() if each.is_dir())[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return into


def _put_back(earlier: Path | None, folder: Path) -> None:
    """Move what was set aside to where it was; what cannot be moved stays where it is."""
    for path in sorted(earlier.iterdir()) if earlier is not None else ():
        there = folder / path.name
        os.replace(path, there.resolve() if there.is_symlink() else there)
    if earlier is not None:
        earlier.rmdir()
        if [each.name for each in earlier.parent.iterdir()] == [".gitignore"]:
            shutil.rmtree(earlier.parent)


@dataclass
class Output:
    """What a scan writes, by name: into its folder or, while that takes nothing, in memory."""

    folder: Path
    private: bool
    held: dict[str, str] = field(default_factory=dict)
    trouble: str = ""  # why the folder took nothing the last time

    def keep(self, name: str, text: str) -> None:
        """Write a file now, or hold it until the folder takes it; `trouble` says why it did not."""
        self.held[name] = text
        try:
            write_atomically(self.folder / name, text, self.private)
            self.trouble = ""
        except UserError as error:
            self.trouble = _cause(error)

    def settle(self, texts: Mapping[str, str]) -> dict[str, Path]:
        """Write files at the end, and all that is held with them; return where each stands.

        Where the folder takes them no more, all go into a new folder elsewhere, so that they stand together. Raises
        UserError where no place takes them.
        """
        self.held |= texts
        size = sum(len(text.encode()) for text in self.held.values())
        for folder in chain([self.folder], elsewhere(size)):
            try:
                for name, text in self.held.items():
                    write_atomically(folder / name, text, self.private)
            except UserError as error:
                self.trouble = self.trouble or _cause(error)
                if folder != self.folder:
                    shutil.rmtree(folder, ignore_errors=True)
                continue
            self.folder = folder
            return {name: folder / name for name in self.held}
        raise UserError(f"nothing could be kept: {self.folder} takes no more ({self.trouble}), nor does another place.")


def _cause(error: UserError) -> str:
    return why(error.__cause__) if isinstance(error.__cause__, Exception) else str(error)


def kept(save: Callable[[Path], None], path: Path) -> Path:
    """Call `save` on a path or, where that takes nothing any more, on one of that name elsewhere; return which.

    Raises the UserError of the first where no place takes it.
    """
    try:
        save(path)
        return path
    except UserError:
        for folder in elsewhere(PROBE):
            try:
                save(folder / path.name)
                return folder / path.name
            except UserError:
                shutil.rmtree(folder, ignore_errors=True)
        raise


def elsewhere(size: int) -> Iterator[Path]:
    """Make new folders for their owner alone, each in a place that takes `size` bytes now."""
    for base in dict.fromkeys((tempfile.gettempdir(), os.getcwd(), os.path.expanduser("~"))):
        with suppress(OSError):
            probe(Path(base), size)
            yield Path(tempfile.mkdtemp(prefix="leakaudit-", dir=base))
