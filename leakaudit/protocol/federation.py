"""Which of its records a client's local steps see. What it is described by stands in `leakaudit.result.federation`."""

from __future__ import annotations

import torch
from torch import Tensor

from leakaudit.result.federation import FEDSGD, PRESETS, Client, parse_client, spec_of

__all__ = ["FEDSGD", "PRESETS", "Client", "local_batches", "parse_client", "spec_of"]


def local_batches(client: Client, records: int, generator: torch.Generator) -> list[Tensor]:
    """Return which of its records (n,) each local step of a client sees: a fresh order for every pass over them."""
    size = client.step_size(records)
    found: list[Tensor] = []
    for _ in range(client.passes(records)):
        if size == records:
            found.append(torch.arange(records))
        else:
            found += torch.split(torch.randperm(records, generator=generator, device=generator.device), size)
    return found[: client.steps(records)]
