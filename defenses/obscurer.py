"""The obscurer: a set of drawn pictures with their labels, and the random choice that puts them in a record's place."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from leakaudit.defenses._reference import moved
from leakaudit.errors import UserError
from leakaudit.protocol.target import Records, Target
from leakaudit.result.shapes import channels_in_words, in_words, sizes_of

if TYPE_CHECKING:
    from leakaudit.defenses.obscurer_file import Card, Contents

LOOK = 4  # the choice compares pictures averaged to 4×4
SHIFT = 2  # pixels, of the shifts that a client adds
MOST_POOLED = 200_000  # pictures of a pool
MOST_VALUES = 2**30  # numbers of them, each of four bytes in memory


@dataclass(frozen=True)
class Obscurer:
    """Puts one of `pictures` (J, C, H, W) in [0, 1], with its probabilities `labels` (J, K), in the place of a record.

    The picture j is drawn from q(j | x) ∝ exp(slope · s_j(x)), where s_j(x) in [0, 1] says how alike x and picture j
    look at 4×4 pixels, `slope` ≥ 0. At slope 0 every picture is as likely, whatever x is. Of volumes of D = `depth`
    slices each picture is (C·D, H, W), slice by slice within each channel, and slices are compared one by one.

    Examples:
        In a client's own training loop, before the pictures are normalised:

        >>> obscurer = Obscurer.load("generator.safetensors")
        >>> x, p = obscurer(x)  # x (N, C, H, W) in [0, 1]; p (N, K) are probabilities
        >>> loss = torch.nn.functional.cross_entropy(model(normalise(x)), p)
    """

    pictures: Tensor
    labels: Tensor
    slope: float = 0.0
    mirror: bool = True
    depth: int = 1

    def __repr__(self) -> str:
        """Name the sizes alone: the pictures tell of private records, and logs are kept."""
        return (
            f"Obscurer({len(self.pictures)} {in_words(self.sizes)}, {self.labels.shape[1]} classes, "
            f"slope={self.slope:.4g}, mirror={self.mirror})"
        )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Channels, of volumes their slices, height and width of each picture."""
        channels, height, width = self.pictures.shape[1:]
        return sizes_of(channels, height, width, self.depth)

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return pictures of the shape of `images` (N, C, H, W) and probabilities (N, K) in their place.

        `images` are floats in [0, 1], of any size; what comes back lies there too, on their device and of their type.
        Volumes are (N, C, D, H, W), of as many slices as it was fitted on.
        A picture comes mirrored (if `mirror`) or not and shifted by up to two pixels. The labels of the records are
        not asked for: those of the pictures take their place. Without a generator the global random state is drawn on,
        but for the choice above slope 0: that is the operating system's, since torch keeps 32 bits of a seed, which can
        be searched. Raises leakaudit.UserError on images that do not fit.
        """
        _check(images, self)
        pictures, labels = self.draw(images if self.depth == 1 else images.flatten(1, 2), generator)
        return pictures.view(images.shape), labels

    def draw(self, images: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return what a call does, whatever `images` hold: for attacks, whose guesses may leave [0, 1].

        Volumes are given, and come back, as `pictures` holds them.
        """
        secret = generator is None
        if generator is None:
            generator = torch.Generator().manual_seed(int(torch.randint(2**62, (1,))))
        chosen = self.choose(images, generator, secret=secret)
        height, width = images.shape[2:]
        pictures = self.pictures[chosen]
        if self.slope and images.requires_grad:  # for attacks: the mean's slope, straight through the choice
            mean = torch.einsum("nj,jchw->nchw", self.chances(images), self.pictures)
            pictures = pictures + mean - mean.detach()
        pictures = moved(pictures, generator, mirror=self.mirror, shift=SHIFT)
        if pictures.shape[2:] != images.shape[2:]:
            pictures = F.interpolate(pictures, (height, width), mode="bilinear", align_corners=False)
        return pictures.to(images), self.labels[chosen].to(images)

    @staticmethod
    def load(path: str | Path, target: Target | None = None) -> Obscurer:
        """Return the obscurer of a file. Nothing in the file is executed.

        Raises leakaudit.UserError, one sentence, on a file that is not one, is damaged, or does not fit `target`: other
        channels, slices or classes. Its pictures need not have the target's height and width.
        """
        return read(Path(path), target)[0]

    def save(self, path: str | Path, card: Card) -> None:
        """Write the obscurer with what is known of it; `load` gives it back bit for bit (pictures have 8 bits).

        Raises leakaudit.UserError where the place cannot be written.
        """
        from leakaudit.defenses.obscurer_file import write

        write(contents_of(self), Path(path), card)

    @staticmethod
    def pooled(parts: Sequence[Obscurer]) -> Obscurer:
        """Return one obscurer that draws from the pictures of all, for clients of one federation.

        Whoever draws from it has all its pictures. Where all hold the same pictures, each with probabilities of its
        own, these are averaged. Raises leakaudit.UserError where they do not fit together, or one has a rate above 0.
        """
        return pooled(parts)

    def choose(self, images: Tensor, generator: torch.Generator, *, secret: bool = False) -> Tensor:
        """Return indices (N,) of the pictures chosen. At slope 0 none comes twice before each came once.

        If `secret`, the operating system draws where the choice depends on the record, and not the generator.
        """
        device = self.pictures.device
        if self.slope == 0:
            rounds = max(1, -(-len(images) // len(self.pictures)))
            orders = [
                torch.randperm(len(self.pictures), generator=generator, device=generator.device) for _ in range(rounds)
            ]
            return torch.cat(orders)[: len(images)].to(device)
        found = []
        for part in torch.split(images, 256):
            chances = self.chances(part).detach().to(generator.device)
            drawn = secretly(chances) if secret else torch.multinomial(chances, 1, generator=generator)[:, 0]
            found.append(drawn)
        return torch.cat(found).to(device)

    def chances(self, images: Tensor) -> Tensor:
        """Return q(j | x), (N, J), for records (N, C, H, W)."""
        return (self.slope * self.alike(images)).softmax(1)

    def alike(self, images: Tensor) -> Tensor:
        """Return s_j(x) in [0, 1], (N, J): 1 − ‖Ax − Ab_j‖² over the median of ‖Ab_i − Ab_j‖², not below 0."""
        theirs = looked_at(self.pictures)
        some = torch.cdist(theirs[:500], theirs[-500:]).square()
        scale = some.median().clamp_min(1e-12)
        ours = looked_at(images.to(theirs))
        return (1 - torch.cdist(ours, theirs).square() / scale).clamp_min(0)

    def rates(self, images: Tensor) -> Tensor:
        """Return KL(q(j | x) ‖ uniform) in nats, (N,): its mean is no less than what j tells of x."""
        found = []
        for part in torch.split(images, 256):
            q = self.chances(part)
            found.append((q * (q * q.shape[1]).clamp_min(1e-30).log()).sum(1))
        return torch.cat(found).clamp_min(0)

    def likelihood(self, released: Tensor, candidates: Tensor) -> Tensor:
        """Return log q(j | x) (N, M) for released pictures (N, C, H, W) and candidates (M, C, H, W).

        j is the picture nearest to the released one, which is exact but for shifts.
        """
        theirs = looked_at(self.pictures)
        both = torch.cat([theirs, looked_at(self.pictures.flip(3))]) if self.mirror else theirs
        nearest = torch.cdist(looked_at(released.to(theirs)), both).argmin(1) % len(theirs)
        return self.chances(candidates)[:, nearest].T.clamp_min(1e-30).log()


def read(path: Path, target: Target | None = None) -> tuple[Obscurer, Card]:
    """Return the obscurer of a file and its card. Raises UserError as `Obscurer.load` does."""
    from leakaudit.defenses import obscurer_file

    contents, card = obscurer_file.read(path, target)
    return Obscurer(contents.pictures, contents.labels, contents.slope, contents.mirror, contents.depth), card


def contents_of(obscurer: Obscurer) -> Contents:
    """Return what a file holds of it."""
    from leakaudit.defenses.obscurer_file import Contents

    return Contents(obscurer.pictures, obscurer.labels, obscurer.slope, obscurer.mirror, obscurer.depth)


def pooled(parts: Sequence[Obscurer], names: Sequence[str] = ()) -> Obscurer:
    """Return one obscurer of the pictures of all, or of the mean of what all say of the same pictures.

    Pictures are put one after another, each with its own probabilities, made to add up to 1: drawn uniformly, a
    client's pictures come up as often as it has records. Where all hold the very same pictures, each with an opinion of
    its own of them, the probabilities are their mean. `names` are for messages. Raises UserError, one sentence, on
    fewer than two, one given twice, other sizes or numbers of classes, another use of mirror images, or a rate above 0.
    """
    names = list(names) or [f"obscurer {n}" for n in range(1, len(parts) + 1)]
    if len(parts) < 2:
        raise UserError(f"a pool was asked for of {len(parts)}: give the generators of at least two clients.")
    first = parts[0]
    for part, name in zip(parts, names, strict=True):
        _check_alike(part, first, name, names[0])
    seen: dict[str, str] = {}
    for part, name in zip(parts, names, strict=True):
        same = seen.setdefault(mark(part), name)
        if same is not name:
            raise UserError(f"{name} holds the same as {same}: give each client's generator once.")
    if all(torch.equal(part.pictures, first.pictures) for part in parts[1:]):
        labels = torch.stack([part.labels for part in parts]).mean(0)
        return replace(first, labels=labels / labels.sum(1, keepdim=True))
    count = sum(len(part.pictures) for part in parts)
    if count > MOST_POOLED or count * first.pictures[0].numel() > MOST_VALUES:
        most = min(MOST_POOLED, MOST_VALUES // first.pictures[0].numel())
        raise UserError(
            f"the pool would hold {count:,} pictures, and holds {most:,} of this size at most: fit each client with "
            "fewer, by --settings pictures=1 or --limit."
        )
    labels = torch.cat([part.labels for part in parts])
    return replace(first, pictures=torch.cat([p.pictures for p in parts]), labels=labels / labels.sum(1, keepdim=True))


def mark(part: Obscurer) -> str:
    """Return the SHA-256 of an obscurer's pictures and probabilities, the one that its file holds."""
    from leakaudit.defenses.obscurer_file import fingerprint

    return fingerprint(contents_of(part))


def _check_alike(part: Obscurer, first: Obscurer, name: str, other: str) -> None:
    if part.slope:
        raise UserError(
            f"{name} was fitted with a rate above 0, which bounds what a choice among its own client's pictures tells: "
            "fit it at rate=0 before it is pooled."
        )
    if part.sizes != first.sizes:
        said, wanted = (in_words(each.sizes) for each in (part, first))
        raise UserError(f"{name} draws {said}, and {other} {wanted}: fit all clients on one size.")
    if part.labels.shape[1] != first.labels.shape[1]:
        knows, known = part.labels.shape[1], first.labels.shape[1]
        raise UserError(f"{name} knows {knows} classes, and {other} {known}: fit all clients on the same classes.")
    if part.mirror != first.mirror:
        raise UserError(f"{name} and {other} differ in whether pictures may be mirrored: fit all with one `mirror`.")


def _check(images: Tensor, obscurer: Obscurer) -> None:
    own = obscurer.sizes
    if not isinstance(images, Tensor) or not images.is_floating_point() or images.ndim != len(own) + 1:
        kind = f"{images.dtype} of shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        wanted = "volumes (N, C, D, H, W)" if len(own) == 4 else "pictures (N, C, H, W)"
        raise UserError(f"the obscurer was given {kind}: give float {wanted} in [0, 1].")
    if tuple(images.shape[1:-2]) != own[:-2]:
        said, wanted = (channels_in_words(sizes) for sizes in (images.shape[1:], own))
        raise UserError(
            f"the obscurer was given {said} and was fitted on {wanted}: give {wanted.partition(' ')[0]} like those it "
            "was fitted on."
        )
    low, high = (float(v) for v in images.detach().aminmax()) if images.numel() else (0.0, 1.0)
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise UserError(
            f"the obscurer was given pixels from {low:.3g} to {high:.3g}: give them in [0, 1], and normalise what it "
            "returns, not what it takes."
        )


def secretly(chances: Tensor) -> Tensor:
    """Return one index (N,) per row of chances (N, J), drawn by the random numbers of the operating system."""
    bits = np.frombuffer(os.urandom(8 * len(chances)), dtype=np.uint64) >> np.uint64(12)
    drawn = torch.from_numpy((bits + 0.5) * 2.0**-52).to(chances.device)
    total = chances.double().cumsum(1)
    return torch.searchsorted(total, (drawn * total[:, -1])[:, None])[:, 0].clamp_max(chances.shape[1] - 1)


def looked_at(images: Tensor) -> Tensor:
    """Return pictures averaged to 4×4, (N, 16·C)."""
    return F.adaptive_avg_pool2d(images, LOOK).flatten(1)


def with_rate(make: Callable[[float], Obscurer], records: Records, rate: float) -> tuple[Obscurer, float]:
    """Return the obscurer of the largest slope whose mean rate over the records is at most `rate` nats, and that."""

    def mean_rate(slope: float) -> float:
        return float(make(slope).rates(records.images).mean())

    low, high = 0.0, 1.0
    while rate and mean_rate(high) <= rate and high < 1e4:
        low, high = high, 2 * high
    for _ in range(30 if rate else 0):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_rate(middle) <= rate else (low, middle)
    return make(low), mean_rate(low) if low else 0.0


def identification_bound(rate: float, candidates: int) -> float:
    """Return a bound on how often anybody picks a record out of M equally likely ones, at most 1.

    For a release that carries `rate` nats about the record on average: the lesser of Fano's (R + ln 2)/ln M and
    Pinsker's 1/M + √(R/2). At R = 0 that is chance itself.
    """
    return min(1.0, (rate + math.log(2)) / math.log(candidates), 1 / candidates + math.sqrt(rate / 2))
