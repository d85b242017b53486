"""How much work an attack or a defense's fit is, counted in what a machine's speed can be measured by.

The audit measures what one of each takes on the model at hand, and so knows seconds before it begins.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """What the amount of work depends on besides settings."""

    victims: int  # clients that are attacked
    asked: int  # updates that attacks which link are asked about
    candidates: int  # different pictures in their line-ups
    line_up: int  # pictures in each
    private: int
    auxiliary: int
    batch: int = 1  # records of a client
    defended: bool = True  # whether there is anything to draw or to undo
    generator: bool = False  # whether the user gave the adversary a generator of pictures
    pixels: int = 3 * 32 * 32  # of a picture, over all channels
    local_steps: int = 1  # of all clients behind an update together


@dataclass(frozen=True)
class Amount:
    """So much work: `updates` of one client, `slopes` of the gradient matching of one trial, `training` steps.

    `own` are training steps of small networks of our own (a decoder, a reference) on 32 pictures of the data's size.
    """

    updates: float = 0.0
    slopes: float = 0.0
    training: float = 0.0
    own: float = 0.0

    def __add__(self, other: Amount) -> Amount:
        """Return both together."""
        return Amount(
            self.updates + other.updates,
            self.slopes + other.slopes,
            self.training + other.training,
            self.own + other.own,
        )

    def times(self, factor: float) -> Amount:
        """Return it so many times over."""
        return Amount(self.updates * factor, self.slopes * factor, self.training * factor, self.own * factor)
