"""What a chip could do: its peak in float32, and how many floating-point operations a piece of work is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

# 10¹² operations a second in float32 without tensor cores, at boost clock, by a part of the name that CUDA gives.
# From NVIDIA's data sheets: H200, H100 (SXM5 and PCIe), A100, A40, L40S, V100 (SXM2 and PCIe), T4.
PEAKS = {
    "H200": 66.9,
    "H100 80GB HBM3": 66.9,
    "H100 PCIe": 51.2,
    "A100": 19.5,
    "A40": 37.4,
    "L40S": 91.6,
    "V100-SXM2": 15.7,
    "V100-PCIE": 14.0,
    "T4": 8.1,
}


def peak(device: torch.device) -> float | None:
    """Return the float32 operations a second that a device is made for; None for one that is not known, or a CPU."""
    return None if device.type != "cuda" else peak_of(torch.cuda.get_device_name(device))


def peak_of(name: str) -> float | None:
    """Return the float32 operations a second of a chip of this name; None where it is unknown or only a part of one."""
    if "MIG" in name:
        return None
    return next((1e12 * found for part, found in PEAKS.items() if part in name), None)


class _Operations(TorchDispatchMode):
    """Adds up torch's formulas. Its own `FlopCounterMode` follows modules as well, and cannot where gradients do."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.total += int(formula(*args, **(kwargs or {}), out_val=found))
        return found


def operations(call: Callable[[], object]) -> int:
    """Return the floating-point operations of the convolutions and matrix products in `call`, a multiply-add as two."""
    with _Operations() as counter:
        call()
    return counter.total
