"""How much memory work may take, and how it is split into pieces that stay within it.

The audit installs one `Memory` for each attack; a stack of trials runs through `in_pieces`, which measures what a trial
takes, splits a stack that is too large, and goes on with half a piece where the memory is exhausted all the same.
What it did is in `Memory.notes`. The limit is on what a piece takes beside the model and the data. Its tensors get a
share of it, the rest is for copies that kernels make and gaps that allocators leave: on a CPU the process grew by 1.0
to 2.1 times the tensors of a step (eight networks, batches of 1 to 64).

With a limit set, the pieces depend only on it and on the work. Without one it is what is free when the work is first
met, so the pieces depend on the machine only where the stack does not fit into that.

What an attack holds at once whatever the pieces (all restarts of all victims, say, or what it learns from) it announces
by `held` before it makes it: more than the limit, or than what is free, is refused in one sentence, and what is held is
taken off the pieces' limit. A system that promises more memory than it has would otherwise kill the process.
"""

from __future__ import annotations

import gc
import math
import sys
import weakref
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from leakaudit.errors import TooLittleMemory, message_of
from leakaudit.work.freememory import free_bytes
from leakaudit.work.peak import peak_bytes
from leakaudit.work.quantities import readable
from leakaudit.work.seeding import forked

SHARES = {"cuda": 0.8}  # for tensors; what CUDA's allocator reports holds most of the kernels' own
PROBES = (1, 2, 4)  # trials in the runs that measure what a trial takes
CLEAR = 10  # times what one trial alone takes: no way of running a stack takes that for each of its trials
MOST = 10**27  # bytes that a sentence names: a setting may have as many digits as somebody types
EXHAUSTED = ("out of memory", "not enough memory", "can't allocate memory", "bad_alloc", "alloc_failed")
T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """What n trials at once take: `base` + n · `each` bytes."""

    base: int
    each: int

    def of(self, trials: int) -> int:
        """Return the bytes of a piece of `trials`."""
        return self.base + trials * self.each


@dataclass(eq=False)
class _Work:
    """What is known of one kind of work: its limit and cost, and what was done to stay within."""

    room: int  # bytes: what was set, or free when the work was first met
    share: float  # of them, for tensors
    cost: Cost | None = None  # as its caller knows it
    peaks: dict[int, int] = field(default_factory=dict)  # bytes by trials, as measured
    most: int = sys.maxsize  # trials in a piece: halved when the memory is exhausted
    split: tuple[int, int] = (0, 0)  # the largest stack that was split in advance, and the length of its pieces
    halved: list[tuple[int, int]] = field(default_factory=list)

    def limit(self, held: int) -> int:
        """Return what the tensors of a piece may take beside the bytes that are held."""
        return max(0, int(self.share * (self.room - held)))


@dataclass
class Memory:
    """The memory of one piece of an audit: `limit` in bytes, or None for what is free; and what became of it."""

    limit: int | None = None
    held: int = 0  # bytes that are held beside the pieces, where a limit is set: what is free knows of them already
    works: weakref.WeakKeyDictionary[Any, dict[Hashable, _Work]] = field(default_factory=weakref.WeakKeyDictionary)
    noted: dict[_Work, None] = field(default_factory=dict)  # what was split or halved, in order
    refusal: str | None = None  # why work was refused, if it was

    def work(self, owner: object, key: Hashable, device: torch.device) -> _Work:
        """Return what is known of the work that `owner` (a model) and `key` (shapes) stand for."""
        known = self.works.setdefault(owner, {})
        if (key, device) not in known:
            room = self.limit or free_bytes(device) or sys.maxsize
            known[key, device] = _Work(room, SHARES.get(device.type, 0.5))
        return known[key, device]

    def notes(self) -> tuple[str, ...]:
        """Return what became of the largest stack that was split, and every halving, one sentence each."""
        found: list[str] = []
        split = [(*work.split, work.room) for work in self.noted if work.split[0]]
        if split:
            trials, length, room = max(split, key=lambda s: (s[0], -s[1]))
            within = f"--memory {readable(room)}" if self.limit else f"the {readable(room)} that were free"
            found.append(f"ran in pieces of {length} of {trials} trials to stay within {within}")
        for most, less in (pair for work in self.noted for pair in work.halved):
            found.append(f"out of memory at {most} trials at once: went on with {less}")
        return tuple(dict.fromkeys(found))


_memory: ContextVar[Memory] = ContextVar("memory", default=Memory())  # noqa: B039 - holds on to no model


@contextmanager
def bounded(memory: Memory) -> Iterator[Memory]:
    """Install a memory for the enclosed work."""
    token = _memory.set(memory)
    try:
        yield memory
    finally:
        _memory.reset(token)


def need(size: float, what: str, fewer: str, device: torch.device) -> None:
    """Raise TooLittleMemory unless `size` bytes are left of the limit or, where none is set, free on `device`.

    To be asked before anything of that size is made. The sentence begins with `what`, a plural ("4 restarts of 16
    victims"), and ends with what to give `fewer` of ("restarts"), if
    there is anything.
    """
    memory = _memory.get()
    free = memory.limit - memory.held if memory.limit else free_bytes(device)
    if free is None or size <= free:
        return
    needed = readable(min(math.ceil(size), MOST) + memory.held, up=True)
    there = f"--memory allows {readable(memory.limit)}" if memory.limit else f"{readable(free)} are free"
    ways = [f"at least {needed}"] * bool(memory.limit) + [f"fewer {fewer}"] * bool(fewer)
    memory.refusal = f"{what} take about {needed} and {there}" + (f": give {' or '.join(ways)}" if ways else "")
    raise TooLittleMemory(memory.refusal)


@contextmanager
def held(size: float, what: str, fewer: str, device: torch.device) -> Iterator[None]:
    """Announce that the enclosed work holds so many bytes beside its pieces. Raises TooLittleMemory as `need` does."""
    need(size, what, fewer, device)
    memory = _memory.get()
    taken = math.ceil(size) if memory.limit else 0
    memory.held += taken
    try:
        yield
    finally:
        memory.held -= taken


def exhausted(error: BaseException) -> bool:
    """Return whether an error says that there was not enough memory, on whatever device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in message_of(error).lower() for words in EXHAUSTED)


def in_pieces(
    call: Callable[[int, int], T],
    trials: int,
    owner: object,
    key: Hashable,
    device: torch.device,
    cost: Callable[[], Cost] | None = None,
) -> list[T]:
    """Return what `call(start, stop)` returns on consecutive ranges that cover range(trials) once and in order.

    `owner` (weakly held, say the model) and `key` (say the shape of a trial) name the work: what is learned of its cost
    holds for every later call. `cost` is asked once; without it `call` itself is run beforehand on 1 trial and, where
    that says that the stack might not fit, on 2 and 4, and must bear it. Pieces are as even as can be; what they
    return adds up beside the limit. When `call` runs out of memory, its piece and all later ones are halved; at one
    trial its error is raised. Raises TooLittleMemory when one trial takes more than a limit that was set; one that
    exceeds what is free is tried.
    """
    memory = _memory.get()
    work = memory.work(owner, key, device)
    if cost is not None and work.cost is None:
        work.cost = cost()
    fits = _fits(memory, work, call, trials, device)
    if fits < min(trials, work.most):
        work.split = max(work.split, (trials, math.ceil(trials / math.ceil(trials / fits))))
        memory.noted[work] = None
    found: list[T] = []
    start = 0
    while left := trials - start:
        length = math.ceil(left / math.ceil(left / min(fits, work.most)))
        try:
            found.append(call(start, start + length))
            start += length
            continue
        except Exception as error:
            if length == 1 or not exhausted(error):
                raise
        # Outside the except clause: its traceback holds on to what the failed call had made.
        work.most = max(1, length // 2)
        work.halved.append((length, work.most))
        memory.noted[work] = None
        gc.collect()
        torch.cuda.empty_cache()  # does nothing where CUDA is not in use
    return found


def bearable(call: Callable[[], object], owner: object, key: Hashable, device: torch.device) -> None:
    """Raise TooLittleMemory where `call`, which cannot be split, takes more than a limit that was set.

    It is measured once for each `owner` and `key`, by a run of its own, and must bear that; not at all without a limit.
    """
    memory = _memory.get()
    if memory.limit is not None:
        _fits(memory, memory.work(owner, key, device), lambda start, stop: call(), 1, device)


def _fits(memory: Memory, work: _Work, call: Callable[[int, int], object], trials: int, device: torch.device) -> int:
    """Return how many trials fit into the limit at once, at least one."""
    if work.room == sys.maxsize or (trials == 1 and memory.limit is None):  # nothing to keep to, or nothing to split
        return trials
    limit = work.limit(memory.held)
    cost = work.cost or _measured(work, call, trials, limit, device)
    one = work.peaks.get(1) or cost.of(1)
    if memory.limit is not None and one > limit:
        needed, allowed = readable(math.ceil(one / work.share) + memory.held, up=True), readable(memory.limit)
        memory.refusal = f"one trial needs about {needed} and --memory allows {allowed}: give at least {needed}"
        raise TooLittleMemory(memory.refusal)
    return max(1, min(trials, (limit - cost.base) // max(1, cost.each)))


def _measured(work: _Work, call: Callable[[int, int], object], trials: int, limit: int, device: torch.device) -> Cost:
    """Measure as many trials as the limit bears and return the line through the two longest runs.

    One trial may run another way than a stack does: where no more than two were measured, nothing is taken as fixed.
    """
    for probe in PROBES:
        length, longest = min(probe, trials), max(work.peaks, default=0)
        near = longest == 0 or CLEAR * trials * max(p / n for n, p in work.peaks.items()) > limit
        bears = longest == 0 or work.peaks[longest] * length <= limit * longest
        if not (length > longest and near and bears):
            continue
        try:
            with forked():  # as if it had not run
                work.peaks[length] = peak_bytes(lambda n=length: call(0, n), device)  # type: ignore[misc]
        except Exception as error:
            if length == 1 or not exhausted(error):
                raise
            break  # the pieces themselves find out
    *shorter, longest = sorted(work.peaks)
    if not shorter or shorter[-1] == 1:
        return Cost(0, math.ceil(work.peaks[longest] / longest))
    slope = (work.peaks[longest] - work.peaks[shorter[-1]]) / (longest - shorter[-1])
    each = min(max(0, math.ceil(slope)), work.peaks[longest] // longest)
    return Cost(work.peaks[longest] - longest * each, each)
