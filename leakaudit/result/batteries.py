"""The batteries of attacks and their effort: what a scan runs, and what a result of one must have run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Battery:
    """Which attacks run, and how much effort each part of the audit gets."""

    attacks: tuple[str, ...]
    steps: int  # of every iterative gradient-matching attack
    restarts: int
    seeds: int  # training runs per defense
    epochs: int
    tuning_victims: int
    decoder_steps: int  # of the decoders trained against data-replacing defenses


_ALL = ("analytic", "peeling", "labels", "dlg", "idlg", "inverting-gradients", "linkage")

BATTERIES: dict[str, Battery] = {
    "quick": Battery(("analytic", "peeling", "labels", "inverting-gradients", "linkage"), 150, 1, 1, 5, 4, 200),
    "standard": Battery(_ALL, 400, 1, 3, 15, 4, 600),
    "full": Battery(_ALL, 1200, 4, 5, 30, 8, 1500),
}

FIXED = ("steps", "restarts", "tuning_victims", "decoder_steps")  # a battery's own, which no option changes
TRAINING_BATCH = 32  # records in each shared update of the training runs that measure accuracy
