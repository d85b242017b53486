"""A plain training loop whose update is captured as it leaves, and then audited. No framework is needed.

    python examples/captured_loop.py update.safetensors
    leakaudit capture update.safetensors --model examples/minimal.py
    leakaudit scan examples/minimal.py --update update.safetensors

The records that made it lie beside it, so that the audit can be scored: `--data update-records.npz`.
"""

import copy
import sys
from pathlib import Path

import minimal
import numpy as np
import torch
from torch.nn import functional as F

from leakaudit.captured.form import Claims
from leakaudit.captured.writing import write_capture

RECORDS, BATCH, RATE = 8, 4, 0.05


def main(place: Path) -> None:
    """Train for one pass, as a client of a federation does, and write what it sends."""
    torch.manual_seed(0)
    model = minimal.model()
    before = copy.deepcopy(model.state_dict())
    rows = torch.randperm(len(minimal.images))[:RECORDS]
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE)
    for part in torch.split(rows, BATCH):
        optimiser.zero_grad()
        F.cross_entropy(model(minimal.images[part]), minimal.labels[part]).backward()
        optimiser.step()
    claims = Claims(local_epochs=1, batch_size=BATCH, local_lr=RATE, mode="eval", records=RECORDS, defense="none")
    write_capture(place, before=before, after=model.state_dict(), claims=claims)
    truth = {"images": minimal.images[rows].numpy(), "labels": minimal.labels[rows].numpy()}
    np.savez(place.with_name(f"{place.stem}-records.npz"), **truth)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
