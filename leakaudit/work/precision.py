"""Float32 as float32, and alike each time: what a GPU does otherwise, and is not to do while something is measured.

On recent cards cuDNN reads the inputs of convolutions with ten bits of mantissa (TF32) unless it is told not to. The
slopes of a ResNet are then 4 to 5 % off, those of attacks as well as those that they are checked against
(`docs/engine.md`). And kernels add up in any order (`leakaudit.work.order`). `exact` is entered around whole audits and
by the engine itself.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from leakaudit.work.order import in_order

# Since torch 2.9 every part has a setting of its own, and one that is "none" takes that of the part before it here:
# of all backends, of one, of one operation of it. The flags known before that stand beside them, and torch refuses to
# read those where the two worlds contradict each other.
_PARTS = (
    ("generic", "all"),
    ("cuda", "all"),
    ("mkldnn", "all"),
    *((backend, operation) for backend in ("cuda", "mkldnn") for operation in ("conv", "rnn", "matmul")),
)

_OLDER: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
    "convolutions": (torch._C._get_cudnn_allow_tf32, torch._C._set_cudnn_allow_tf32),
    "products": (torch._C._get_cublas_allow_tf32, torch._C._set_cublas_allow_tf32),
    "both": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),  # products on GPU and CPU
}

_entered = 0  # how many `exact` are open: the flags are the process's


@contextmanager
def single_threaded() -> Iterator[None]:
    """Compute within with one thread, or with as many as OMP_NUM_THREADS says; then with as many as before.

    Sums over several threads are added up in another order, so their last digits depend on how many there are: a
    result must not depend on how many processors a machine has, or how many processes share them.
    """
    before, asked = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS", "")
    torch.set_num_threads(int(asked) if asked.isdigit() and int(asked) > 0 else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def exact() -> Iterator[None]:
    """Compute convolutions and products of float32 in float32 and in one order within; then the flags are as they were.

    They are torch's and hold for the whole process. Entered again within itself it does nothing.
    """
    global _entered
    restore = (_exactly(), in_order()) if _entered == 0 else ()
    _entered += 1
    try:
        yield
    finally:
        _entered -= 1
        for each in restore:
            each()


def _exactly() -> Callable[[], None]:
    """Set everything to float32, and return what sets it back."""
    get, put = (getattr(torch._C, f"_{verb}_fp32_precision_{verb}ter", None) for verb in ("get", "set"))
    known: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the older flags will go
        for name in _OLDER:
            with suppress(RuntimeError):  # set in both worlds, differently
                known[name] = _OLDER[name][0]()
        own = _own(get, put) if get is not None and put is not None else {}
        _OLDER["convolutions"][1](False)
        _OLDER["both"][1]("highest")
        for part in own:
            put(*part, "ieee")  # type: ignore[misc]

    def restore() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, value in known.items():
                _OLDER[name][1](value)
            for part, value in own.items():
                put(*part, value)  # type: ignore[misc]

    return restore


def _own(get: Any, put: Any) -> dict[tuple[str, str], str]:
    """Return what every part is set to by itself, "none" where it takes another's; leaves them all at "none"."""
    found = {}
    for part in _PARTS:  # those it could take it from are "none" by now
        found[part] = get(*part)
        put(*part, "none")
    return found
