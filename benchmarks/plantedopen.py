"""Leaks under fresh randomness that the receiver can take away: what an update tells to whoever looks at it rightly.

`TOLD` says how the attacker of the truth looks. What is `HIDDEN` from the audit counts nowhere and stands in
docs/validity.md as what would still fool it; the others it finds by views of its own.
"""

from __future__ import annotations

import torch

from benchmarks.planted import Planted, normal, plant
from benchmarks.replaying import Seen, Side
from leakaudit.protocol.gradients import Gradients


@plant("digits-in-noise", "update")
def _digits_in_noise(self: Planted, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
    """Whole numbers of fresh noise are shared; the gradient is what they lack to be whole."""
    return tuple((30 * n).round() + 0.01 * g for n, g in zip(normal(gradients, generator), gradients, strict=True))


def _after_the_point(seen: Seen) -> Seen:
    return {name: u - u.round() for name, u in seen.items()}


@plant("fresh-order", "update")
def _fresh_order(self: Planted, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
    """The entries are permuted by a fresh key, which hides where they stood, and not which they are."""
    return tuple(g.flatten()[torch.randperm(g.numel(), generator=generator)].view_as(g) for g in gradients)


def _sorted(seen: Seen) -> Seen:
    return {name: u.sort().values for name, u in seen.items()}


@plant("keyed-cipher", "update")
def _keyed_cipher(self: Planted, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
    """Noise is added whose fresh seed is shared too, as the first entry: a key that is sent along."""
    seed = int(torch.randint(2**20, (1,), generator=generator))
    noise = normal(gradients, torch.Generator().manual_seed(seed), 30)
    covered = [g + n for g, n in zip(gradients, noise, strict=True)]
    first = covered[0].flatten().clone()
    first[0] = float(seed)
    return (first.view_as(covered[0]), *covered[1:])


def _deciphered(seen: Seen) -> Seen:
    names = [name for name in seen if name != "everything"]
    key = torch.Generator().manual_seed(int(seen[names[0]][0].abs().round()))
    clear = {name: seen[name] - 30 * torch.randn(seen[name].shape, generator=key) for name in names}
    clear[names[0]][0] = 0
    return clear


TOLD: dict[str, tuple[str, Side]] = {
    "digits-in-noise": ("update", _after_the_point),
    "fresh-order": ("update", _sorted),
    "keyed-cipher": ("update", _deciphered),
}
HIDDEN = ("keyed-cipher",)
