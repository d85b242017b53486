"""How much memory is free: on the GPU, in the machine, and under the limit of a container."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch

_sharers: ContextVar[int] = ContextVar("sharers", default=1)


@contextmanager
def shared(among: int) -> Iterator[None]:
    """Count within only an even part of what is free, where so many processes begin at once."""
    token = _sharers.set(among)
    try:
        yield
    finally:
        _sharers.reset(token)


def free_bytes(device: torch.device, root: Path = Path("/")) -> int | None:
    """Return the bytes that are free on `device` now, or None where the system does not say.

    On CUDA what torch keeps in reserve counts as free. On a CPU it is what the machine has available or, where less,
    what the control group (a container's limit) or the process's own limit (`ulimit -v`) leaves; without /proc, half
    the memory built in. `root` is where the file system begins.
    """
    free = _free_bytes(device, root)
    return None if free is None else free // _sharers.get()


def _free_bytes(device: torch.device, root: Path) -> int | None:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    found = [n for n in (_available(root / "proc/meminfo"), *_group_room(root), _own_room(root)) if n is not None]
    if found:
        return max(0, min(found))
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (ValueError, OSError, AttributeError):
        return None


def _available(meminfo: Path) -> int | None:
    kilobytes = _fields(meminfo).get("MemAvailable:")
    return None if kilobytes is None else 1024 * kilobytes


def _group_room(root: Path) -> list[int]:
    """Return what every control group (version 2 or 1) around this process leaves, reclaimable file cache included."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    names = {"": ("", "memory.max", "memory.current"), "memory": ("memory", "memory.limit_in_bytes",
             "memory.usage_in_bytes")}  # fmt: skip
    found = []
    for controllers, path in (line.split(":", 2)[1:] for line in lines if line.count(":") >= 2):
        if controllers not in names:
            continue
        folder, most, used = names[controllers]
        top = root / "sys/fs/cgroup" / folder
        inner = top / path.lstrip("/")
        for group in (inner, *inner.parents):
            highest, now = _number(group / most), _number(group / used)
            if highest is not None and now is not None:
                stat = _fields(group / "memory.stat")
                found.append(highest - now + stat.get("total_inactive_file", stat.get("inactive_file", 0)))
            if group == top:
                break
    return found


def _own_room(root: Path) -> int | None:
    """Return what is left of the address space that the process may take, or None where it is not limited."""
    try:
        import resource

        most = resource.getrlimit(resource.RLIMIT_AS)[0]
        used = int((root / "proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (ImportError, AttributeError, OSError, ValueError, IndexError):
        return None
    return None if most == resource.RLIM_INFINITY else most - used


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())  # "max": no limit
    except (OSError, ValueError):
        return None


def _fields(path: Path) -> dict[str, int]:
    """Return the lines `name number …` of a file, none where it cannot be read."""
    try:
        rows = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {row[0]: int(row[1]) for row in rows if len(row) >= 2 and row[1].isdigit()}
