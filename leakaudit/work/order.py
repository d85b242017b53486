"""The same bits again on a GPU: kernels that add up in whatever order their threads arrive are told to keep to one.

cuDNN's gradients of convolutions do so, and torch's sums into chosen rows (`index_add`, the gradient of an embedding).
The last digits then differ from run to run, and what was measured in one process is not what another would have
measured. A few of torch's kernels know no order (`docs/time.md`, "On a GPU"): they run all the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress

import torch

from leakaudit.work.seeding import devices_in_use

_UNORDERED = ".*does not have a deterministic implementation"  # what torch warns of at each call


def in_order() -> Callable[[], None]:
    """Have kernels keep to one order, where a device beside the CPU is in use; return what sets torch's flags back.

    The flags are the process's. A CPU on one thread keeps to one order by itself.
    """
    if not devices_in_use():
        return lambda: None
    mode, lenient = torch._C._get_deterministic_algorithms(), torch._C._get_deterministic_algorithms_warn_only()
    filling = torch._C._get_deterministic_fill_uninitialized_memory()
    tried = torch.backends.cudnn.benchmark
    # Not by `torch.use_deterministic_algorithms`, which loads torch's compiler for a second.
    torch._C._set_deterministic_algorithms(True, warn_only=lenient if mode else True)
    torch._C._set_deterministic_fill_uninitialized_memory(False)  # nothing here reads what it has not written
    torch.backends.cudnn.benchmark = False  # which algorithm is taken would depend on what else the machine does
    warnings.filterwarnings("ignore", message=_UNORDERED)
    silent = warnings.filters[0]

    def restore() -> None:
        torch._C._set_deterministic_algorithms(mode, warn_only=lenient)
        torch._C._set_deterministic_fill_uninitialized_memory(filling)
        torch.backends.cudnn.benchmark = tried
        with suppress(ValueError):  # somebody has set them anew
            warnings.filters.remove(silent)  # type: ignore[attr-defined]

    return restore
