"""Stacks stay within the memory: pieces cover every trial once, in order; what is measured is what is taken."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from leakaudit.engine import matching as engine
from leakaudit.errors import TooLittleMemory
from leakaudit.protocol.gradients import parameters_of
from leakaudit.protocol.target import PixelModel
from leakaudit.work.freememory import free_bytes
from leakaudit.work.memory import Cost, Memory, bounded, exhausted, in_pieces
from leakaudit.work.peak import peak_bytes
from leakaudit.work.quantities import parse

CPU = torch.device("cpu")
EXHAUSTED = (
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4000 bytes."),
    RuntimeError("std::bad_alloc"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
)


class Owner:
    """Something to hold the knowledge of a work, as a model does."""


def ranges(
    trials: int, memory: Memory, owner: Owner, cost: Cost, bears: int = sys.maxsize
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Run a stack that is exhausted above `bears` trials; return what came back and what was called."""
    called = []

    def call(start: int, stop: int) -> tuple[int, int]:
        called.append((start, stop))
        if stop - start > bears:
            raise EXHAUSTED[len(called) % len(EXHAUSTED)]
        return start, stop

    with bounded(memory):
        return in_pieces(call, trials, owner, "shape", CPU, lambda: cost), called


@given(
    trials=st.integers(1, 300),
    bears=st.integers(1, 300),
    base=st.integers(0, 2000),
    each=st.integers(0, 500),
    room=st.integers(1, 10**5),
)
def test_pieces_cover_every_trial_once_in_order_and_within_the_limit(
    trials: int, bears: int, base: int, each: int, room: int
) -> None:
    memory, owner, cost = Memory(room), Owner(), Cost(base, each)
    if cost.of(1) > room // 2:
        with pytest.raises(TooLittleMemory, match="one trial needs about"):
            ranges(trials, memory, owner, cost, bears)
        return
    found, called = ranges(trials, memory, owner, cost, bears)
    assert [i for start, stop in found for i in range(start, stop)] == list(range(trials))
    lengths = [stop - start for start, stop in called]
    assert max(cost.of(n) for n in lengths) <= room / 2
    assert max(stop - start for start, stop in found) <= bears
    # A failed piece is not tried again at its length, now or later, and what was finished is not done again.
    failed = [n for n in lengths if n > bears]
    assert failed == sorted(set(failed), reverse=True)
    assert len(called) == len(found) + len(failed)
    _, later = ranges(trials, memory, owner, cost, bears)
    assert later == found or not failed
    assert max(stop - start for start, stop in later) <= bears
    assert bool(memory.notes()) == (len(found) > 1)


def test_pieces_are_as_even_as_can_be() -> None:
    found, _ = ranges(64, Memory(160), Owner(), Cost(0, 2))  # 40 would fit
    assert [stop - start for start, stop in found] == [32, 32]
    found, _ = ranges(10, Memory(160), Owner(), Cost(0, 20))
    assert [stop - start for start, stop in found] == [4, 3, 3]


def test_what_was_done_is_said_once() -> None:
    memory, owner = Memory(4 * 10**9), Owner()
    for trials in (64, 63, 12, 64):
        ranges(trials, memory, owner, Cost(0, 240 * 10**6), bears=6)
    assert memory.notes() == (
        "ran in pieces of 8 of 64 trials to stay within --memory 4GB",
        "out of memory at 8 trials at once: went on with 4",
    )


def test_what_is_learned_belongs_to_the_work_and_its_owner() -> None:
    memory, owner = Memory(1000), Owner()
    ranges(8, memory, owner, Cost(0, 1), bears=3)
    assert ranges(8, memory, owner, Cost(0, 1))[1] == [(0, 2), (2, 4), (4, 6), (6, 8)]
    assert ranges(8, memory, Owner(), Cost(0, 1))[1] == [(0, 8)]
    with bounded(memory):
        assert in_pieces(lambda a, b: (a, b), 8, owner, "other shape", CPU, lambda: Cost(0, 1)) == [(0, 8)]


def test_at_one_trial_the_error_is_raised() -> None:
    def call(start: int, stop: int) -> None:
        raise RuntimeError("CUDA out of memory")

    with pytest.raises(RuntimeError, match="out of memory"), bounded(Memory(10**6)) as memory:
        in_pieces(call, 4, Owner(), "", CPU, lambda: Cost(0, 1))
    assert memory.notes()[-1] == "out of memory at 2 trials at once: went on with 1"


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), ValueError("out of memory"), KeyError("x")])
def test_another_error_is_raised_at_once(error: Exception) -> None:
    calls: list[int] = []

    def call(start: int, stop: int) -> None:
        calls.append(stop)
        raise error

    with pytest.raises(type(error)), bounded(Memory(10**6)):
        in_pieces(call, 4, Owner(), "", CPU, lambda: Cost(0, 1))
    assert calls == [4]


def test_every_way_of_running_out_is_known() -> None:
    assert all(exhausted(error) for error in EXHAUSTED)
    assert not exhausted(RuntimeError("vmap: no batching rule"))


def test_what_a_failed_piece_made_is_freed_before_the_next() -> None:
    """An error holds its traceback, which holds the frames' tensors: they must be gone when half of it is tried."""
    alive = 0

    class Held:
        def __init__(self) -> None:
            nonlocal alive
            alive += 1
            assert alive == 1

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def call(start: int, stop: int) -> int:
        held = [Held()]
        held.append(held)  # type: ignore[arg-type] # a cycle, as autograd's frames can have
        if stop - start > 1:
            raise MemoryError
        held.clear()
        return start

    with bounded(Memory(10**6)):
        assert in_pieces(call, 4, Owner(), "", CPU, lambda: Cost(0, 1)) == [0, 1, 2, 3]


def stack_of(base: int, each: int, calls: list[int]) -> Callable[[int, int], Tensor]:
    """Return a call on trials that makes `base` + n · `each` bytes, and notes its n."""

    def call(start: int, stop: int) -> Tensor:
        calls.append(stop - start)
        kept = torch.zeros(base, dtype=torch.uint8), torch.zeros((stop - start) * each, dtype=torch.uint8)
        assert len(kept) == 2
        return torch.arange(start, stop)

    return call


def test_without_a_cost_the_call_itself_is_measured_once() -> None:
    memory, owner, calls = Memory(16_000), Owner(), []
    with bounded(memory):
        for _ in range(2):
            found = in_pieces(stack_of(1000, 500, calls), 32, owner, "", CPU)
            assert torch.equal(torch.cat(found), torch.arange(32))
    assert calls == [1, 2, 4, *[11, 11, 10] * 2]  # (8000 − 1000) // (500 + 8 returned) = 13 fit
    assert memory.notes() == ("ran in pieces of 11 of 32 trials to stay within --memory 16KB",)


def test_one_trial_that_runs_another_way_does_not_mislead() -> None:
    """One trial takes 500, a stack 270 for each: a line through 1 and 2 trials would fall on 40 for each."""
    calls: list[int] = []

    def call(start: int, stop: int) -> None:
        calls.append(stop - start)
        assert torch.zeros(500 if stop - start == 1 else 270 * (stop - start), dtype=torch.uint8).numel()

    with bounded(Memory(2080)):  # 1040 of it for tensors
        in_pieces(call, 9, Owner(), "", CPU)
    assert calls == [1, 2, 3, 3, 3]


def test_what_is_drawn_does_not_depend_on_what_was_measured() -> None:
    def draw(start: int, stop: int) -> Tensor:
        return torch.rand(stop - start)

    with torch.random.fork_rng(devices=[]), bounded(Memory(10**6)):
        torch.manual_seed(3)
        (measured,) = in_pieces(draw, 8, Owner(), "", CPU)
        torch.manual_seed(3)
        assert torch.equal(measured, torch.rand(8))


def test_where_the_stack_clearly_fits_one_trial_is_enough_to_know() -> None:
    calls: list[int] = []
    with bounded(Memory(10**6)) as memory:
        in_pieces(stack_of(1000, 500, calls), 32, Owner(), "", CPU)
    assert calls == [1, 32]
    assert memory.notes() == ()


def test_one_trial_that_is_too_much_names_the_setting_and_the_need() -> None:
    with bounded(Memory(10_000)) as memory, pytest.raises(TooLittleMemory, match="give at least") as caught:
        in_pieces(stack_of(9_000, 500, []), 4, Owner(), "", CPU)
    assert "--memory allows 10KB" in str(caught.value)
    assert memory.refusal == str(caught.value)
    enough = parse(str(caught.value).rsplit(" ", 1)[1])
    with bounded(Memory(enough)):
        assert len(in_pieces(stack_of(9_000, 500, []), 4, Owner(), "", CPU)) > 1


def test_without_a_setting_one_trial_is_always_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leakaudit.work.memory.free_bytes", lambda device: 1000)
    calls: list[int] = []
    with bounded(Memory()) as memory:
        in_pieces(stack_of(9_000, 500, calls), 2, Owner(), "", CPU)
    assert calls == [1, 1, 1]  # the first is the measurement
    assert memory.notes() == ("ran in pieces of 1 of 2 trials to stay within the 1KB that were free",)


def test_a_single_trial_without_a_setting_is_not_measured() -> None:
    calls: list[int] = []
    in_pieces(stack_of(0, 1, calls), 1, Owner(), "", CPU)
    assert calls == [1]


def test_what_is_free_is_found() -> None:
    free = free_bytes(CPU)
    assert free is not None
    assert 10**6 < free < 10**14


def test_a_container_limits_what_is_free(tmp_path: Path) -> None:
    def write(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    write("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:    5000 kB\n")
    assert free_bytes(CPU, tmp_path) == 5000 * 1024
    write("proc/self/cgroup", "0::/slice/job\n")
    write("sys/fs/cgroup/slice/job/memory.max", "max\n")
    write("sys/fs/cgroup/slice/job/memory.current", "700\n")
    write("sys/fs/cgroup/slice/memory.max", "3000\n")
    write("sys/fs/cgroup/slice/memory.current", "1000\n")
    write("sys/fs/cgroup/slice/memory.stat", "anon 600\ninactive_file 400\n")
    assert free_bytes(CPU, tmp_path) == 3000 - 1000 + 400
    write("proc/self/cgroup", "9:name=systemd:/\n4:memory:/job\n0::/\n")
    write("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "2000\n")
    write("sys/fs/cgroup/memory/job/memory.usage_in_bytes", "500\n")
    assert free_bytes(CPU, tmp_path) == 1500


class Square(torch.autograd.Function):
    """x², with 4 kB of scratch in its backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        scratch = torch.zeros(1000)
        return 2 * g * x + scratch[0]


def test_the_peak_counts_storages_made_in_the_call_once() -> None:
    given_, made = torch.zeros(10, 25), []  # 1000 bytes
    assert peak_bytes(lambda: given_.view(-1)[3:].t(), CPU) == 0
    assert peak_bytes(lambda: given_.add_(1).mul_(2), CPU) == 0
    assert peak_bytes(lambda: (given_ + 1).add_(1).view(-1).detach(), CPU) == 1000
    assert peak_bytes(lambda: ((given_ + 1) + 1) + 1, CPU) == 2000  # the first is gone when the third is made
    assert peak_bytes(lambda: [given_ + i for i in range(3)], CPU) == 3000
    assert peak_bytes(lambda: made.append(given_ + 1), CPU) == 1000
    assert peak_bytes(lambda: made[0].add_(given_), CPU) == 0


def test_the_peak_sees_the_backward_pass_of_a_custom_function() -> None:
    x = torch.ones(25, requires_grad=True)  # 100 bytes

    def call() -> None:
        torch.autograd.grad(Square.apply(x).sum(), x)

    assert 4000 + 100 <= peak_bytes(call, CPU) <= 4000 + 500


def test_what_the_graph_keeps_is_alive_and_then_is_not() -> None:
    x = torch.ones(250, requires_grad=True)

    def deep() -> None:
        y = x
        for _ in range(10):
            y = y.exp()  # keeps its output for the backward pass
        y.sum().backward()

    with torch.no_grad():
        flat = peak_bytes(lambda: x.exp().exp().exp(), CPU)
    assert flat == 2000
    assert 10_000 <= peak_bytes(deep, CPU) <= 14_000
    assert peak_bytes(deep, CPU) == peak_bytes(deep, CPU)


@pytest.mark.parametrize("width", [4, 24])  # below and above what runs as one vectorised pass
def test_the_engines_memory_grows_at_most_linearly_in_trials(width: int) -> None:
    """A stack may take another way than one trial does, so the line is drawn through 2 and 4 trials."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.LeakyReLU(), nn.Conv2d(width, width, 3, padding=1), nn.LeakyReLU(),
        nn.Flatten(), nn.Linear(width * 256, 10),
    )  # fmt: skip
    model = PixelModel(network, (0.5,) * 3, (0.25,) * 3).eval()
    shared = tuple(torch.randn(1, *p.shape) for p in parameters_of(model)[1])

    def step(trials: int) -> object:
        images, labels = torch.rand(trials, 1, 3, 16, 16), torch.zeros(trials, 1, dtype=torch.long)
        rows = torch.zeros(trials, dtype=torch.long)
        return engine.match(model, F.cross_entropy, images, labels, shared, engine.cosine, rows)

    for n in (1, 2):
        step(n)  # what an engine learns of a model beforehand is not what a step takes
    peaks = {n: peak_bytes(lambda n=n: step(n), CPU) for n in (1, 2, 4, 8)}  # type: ignore[misc]
    each = (peaks[4] - peaks[2]) / 2
    assert each > 0
    assert peaks[8] <= 1.05 * (peaks[4] + 4 * each)
    assert peaks[4] <= 4.2 * max(peaks[1], peaks[2] / 2)


CAPPED = """
import resource, sys, torch
from leakaudit.work.memory import Memory, bounded, in_pieces

torch.set_num_threads(1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 300 * 2**20, resource.RLIM_INFINITY))
try:
    torch.zeros(600 * 2**18)
    sys.exit(77)  # the limit does not bite here
except RuntimeError:
    pass

def call(start, stop):
    return torch.ones(stop - start, 40 * 2**18).mul_(2).sum(1)  # 40 MiB for each trial

with bounded(Memory(10**12)) as memory:
    found = torch.cat(in_pieces(call, 16, torch.nn.Identity(), "", torch.device("cpu"), None))
assert found.shape == (16,) and (found == 80 * 2**18).all(), found
print("; ".join(memory.notes()))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to set a limit above what is in use")
def test_a_real_shortage_of_memory_halves_the_stack_and_goes_on() -> None:
    done = subprocess.run([sys.executable, "-c", CAPPED], capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip("a limit on the address space does not stop torch from allocating here")
    assert done.returncode == 0, done.stderr
    assert "out of memory at 16 trials at once: went on with 8" in done.stdout
    assert "out of memory at 8 trials at once: went on with 4" in done.stdout
