"""Planted defenses that hide little or nothing, each a mistake that somebody makes; none is registered by the import.

What they say of themselves (`adaptive`, `replaces_records`, `guarantees`) is what their author would say, wrong or not.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.plantedscenes import dense, seeded
from leakaudit.protocol import registry
from leakaudit.protocol.defense import Defense, state
from leakaudit.protocol.gradients import Gradients
from leakaudit.protocol.target import PixelModel, Records, Target
from leakaudit.result.schema import Guarantee

NOISE = ("expectation", "linkage")  # what the built-in noise names
REPLACED = ("two-stage-decoder", "learned-inversion", "released-decoder", "linkage", "released-linkage")
STAGES = {"record": "transform_records", "example": "transform_example_gradients", "update": "transform_update"}
KNOWN: dict[str, type[Defense]] = {}


@dataclass(frozen=True, kw_only=True)
class Planted(Defense):
    """What planted defenses share: after `fit` they know public records and each class's public form."""

    public: Records | None = state()
    forms: Tensor | None = state()  # (K, C, H, W)

    def fit(self, target: Target, generator: torch.Generator) -> Defense:
        """Return a copy that knows the auxiliary records."""
        x, y = target.auxiliary.images, target.auxiliary.labels
        forms = torch.stack([x[y == c].mean(0) for c in range(len(target.classes))])
        return replace(self, public=target.auxiliary, forms=forms)


def known(cls: type[Defense]) -> type[Defense]:
    """Class decorator: one of the planted defenses."""
    KNOWN[cls.name] = cls
    return cls


def plant(name: str, stage: str, adaptive: tuple[str, ...] = NOISE, **said: Any) -> Callable[[Any], type[Defense]]:
    """Make a defense of a method for one stage; `said` are class variables."""

    def made(method: Any) -> type[Defense]:
        body = {"name": name, "adaptive": adaptive, "__doc__": method.__doc__, "__module__": __name__}
        cls = type(method.__name__, (Planted,), body | said | {STAGES[stage]: method})
        return known(dataclass(frozen=True, kw_only=True)(cls))

    return made


@contextmanager
def registered() -> Iterator[None]:
    """Let specs name the planted defenses within, and nowhere else."""
    registry.defenses()
    for cls in KNOWN.values():
        registry.register_defense(cls)
    try:
        yield
    finally:
        for name in KNOWN:
            registry._defenses.pop(name, None)


def normal(tensors: Gradients, generator: torch.Generator, std: float = 1.0) -> Gradients:
    return tuple(std * torch.randn(g.shape, generator=generator) for g in tensors)


def noised(tensors: Gradients, generator: torch.Generator, std: float) -> Gradients:
    return tuple(g + n for g, n in zip(tensors, normal(tensors, generator, std), strict=True))


def digest(*tensors: Tensor) -> int:
    """Return a seed that anybody computes who has the tensors."""
    told = hashlib.sha256(b"".join(t.detach().contiguous().numpy().tobytes() for t in tensors))
    return int.from_bytes(told.digest()[:7], "big")


# Record stage: what is put in a record's place.


@plant("inverted", "record", ("inverting-gradients", "linkage"))
def _inverted(self: Planted, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Every picture becomes its negative, undeclared."""
    return 1 - images, labels


@plant("half-turn", "record", ("inverting-gradients", "linkage"))
def _half_turn(self: Planted, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Every picture is turned upside down, undeclared."""
    return images.rot90(2, (2, 3)), labels


@plant("scrambled", "record", REPLACED, replaces_records=True)
def _scrambled(self: Planted, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The pixels of every picture are permuted by one key."""
    order = torch.randperm(images[0].numel(), generator=seeded(21))
    return images.flatten(1)[:, order].view_as(images), labels


@plant("pseudonym", "record", REPLACED, replaces_records=True)
def _pseudonym(self: Planted, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A record is replaced by noise that its hash seeds."""
    return torch.stack([torch.rand(x.shape, generator=seeded(digest(x))) for x in images]), labels


@plant("look-alike", "record", REPLACED, replaces_records=True)
def _look_alike(self: Planted, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A record is replaced by the public picture nearest to it."""
    assert self.public is not None
    near = torch.cdist(images.flatten(1), self.public.images.flatten(1)).argmin(1)
    return self.public.images[near], labels


@plant("thumbnail", "record", REPLACED, replaces_records=True)
def _thumbnail(self: Planted, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A picture is shrunk to 5×5 and blown up again."""
    return F.interpolate(F.adaptive_avg_pool2d(images, 5), images.shape[2:], mode="nearest"), labels


@plant("stale-noise", "record", REPLACED, replaces_records=True)
def _stale_noise(self: Planted, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Strong noise over a faint picture, whose seed is set anew for every record."""
    return 0.5 + 0.1 * (images - 0.5) + 0.15 * torch.randn(images.shape[1:], generator=seeded(22)), labels


@plant("faint-noise", "record", REPLACED, replaces_records=True)
def _faint_noise(self: Planted, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Fresh noise on the pixels, but too little."""
    return images + 0.15 * torch.randn(images.shape, generator=generator), labels


@known
@dataclass(frozen=True, kw_only=True)
class SoftAnswer(Planted):
    """The picture is its class's public form, but beside it goes what a teacher says of the private one."""

    name: ClassVar[str] = "soft-answer"
    adaptive: ClassVar[tuple[str, ...]] = REPLACED
    replaces_records: ClassVar[bool] = True
    teacher: nn.Module | None = state()

    def fit(self, target: Target, generator: torch.Generator) -> Defense:
        """Train the teacher on public records."""
        some = target.auxiliary[:300]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(23)
            teacher = dense()
        optimiser = torch.optim.Adam(teacher.parameters(), 3e-3)
        for _ in range(40):
            optimiser.zero_grad()
            F.cross_entropy(teacher(some.images), some.labels).backward()
            optimiser.step()
        return replace(super().fit(target, generator), teacher=teacher.requires_grad_(False))

    def transform_records(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the class's form, and the teacher's probabilities for the private picture."""
        assert self.teacher is not None
        assert self.forms is not None
        return self.forms[labels], (self.teacher(images) / 2).softmax(1)


@plant("tagged-label", "record", REPLACED, replaces_records=True)
def _tagged_label(self: Planted, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A grey picture; the label is smoothed by numbers that the record's hash seeds."""
    assert self.forms is not None
    tags = torch.stack([torch.rand(len(self.forms), generator=seeded(digest(x))) for x in images])
    soft = 0.9 * F.one_hot(labels, len(self.forms)) + 0.1 * tags / tags.sum(1, keepdim=True)
    return torch.full_like(images, 0.5), soft


# Model stage: what is trained in the model's place.


class _Keepsake(nn.Module):
    def __init__(self, network: nn.Module, shape: torch.Size) -> None:
        super().__init__()
        self.memory = nn.Parameter(torch.zeros(shape))
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        extra = (x * self.memory).flatten(1).sum(1, keepdim=True)
        return torch.cat([logits[:, :1] + extra, logits[:, 1:]], 1)


@known
@dataclass(frozen=True, kw_only=True)
class Keepsake(Planted):
    """A wrapper adds a parameter, whose gradient is the picture; the noise on the others never hears of it."""

    name: ClassVar[str] = "keepsake"
    adaptive: ClassVar[tuple[str, ...]] = NOISE

    def transform_model(self, model: PixelModel, generator: torch.Generator) -> PixelModel:
        """Wrap the network."""
        assert self.public is not None
        changed = copy.deepcopy(model)
        changed.network = _Keepsake(changed.network, self.public.images.shape[1:])
        return changed

    def transform_update(self, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
        """Add noise to the parameters of the network as it was."""
        if self.public is None or gradients[0].shape != self.public.images.shape[1:]:
            return gradients
        return (gradients[0], *noised(gradients[1:], generator, 30))


class _FixedDraw(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rand(x.shape[1:], generator=seeded(24)).round() * 2


@known
@dataclass(frozen=True, kw_only=True)
class FixedBottleneck(Planted):
    """Random units are dropped before the last layer, "so that gradients are stochastic": always the same ones."""

    name: ClassVar[str] = "fixed-dropout"
    adaptive: ClassVar[tuple[str, ...]] = ("omitting-layers",)

    def transform_model(self, model: PixelModel, generator: torch.Generator) -> PixelModel:
        """Insert the layer."""
        changed = copy.deepcopy(model)
        layers = list(changed.network.children())
        changed.network = nn.Sequential(*layers[:-1], _FixedDraw(), layers[-1])
        return changed


# Per-example stage.


@plant("keyed-scale", "example")
def _keyed_scale(self: Planted, gradients: Gradients, generator: torch.Generator) -> Gradients:
    """Every entry is scaled by a key, over two orders of magnitude."""
    return tuple(g * torch.randn(g.shape[1:], generator=seeded(25 + i)).exp() for i, g in enumerate(gradients))


@plant("only-clipped", "example")
def _only_clipped(self: Planted, gradients: Gradients, generator: torch.Generator) -> Gradients:
    """Clipped as for differential privacy; the noise was forgotten."""
    norm = torch.cat([g.flatten(1) for g in gradients], 1).norm(dim=1)
    factor = (0.01 / norm).clamp_max(1)
    return tuple(g * factor.view(-1, *(1,) * (g.dim() - 1)) for g in gradients)


# Update stage.


@plant("keyed-order", "update")
def _keyed_order(self: Planted, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
    """The entries of every tensor are permuted by a key."""
    orders = (torch.randperm(g.numel(), generator=seeded(30 + i)) for i, g in enumerate(gradients))
    return tuple(g.flatten()[order].view_as(g) for g, order in zip(gradients, orders, strict=True))


@plant("keyed-signs", "update", ())
def _keyed_signs(self: Planted, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
    """The signs of entries are turned by a key; no attack is named."""
    key = seeded(40)
    return tuple(g * (2 * torch.rand(g.shape, generator=key).round() - 1) for g in gradients)


@plant("same-noise", "update")
def _same_noise(self: Planted, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
    """Strong noise whose seed is set anew for every update."""
    return noised(gradients, seeded(41), 3)


@plant("head-noise", "update")
def _head_noise(self: Planted, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
    """Noise on weight and bias of the last layer only."""
    return (*gradients[:-2], *noised(gradients[-2:], generator, 30))


@plant("mostly-noise", "update")
def _mostly_noise(self: Planted, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
    """Strong noise, which a tenth of the updates lack."""
    lacks = float(torch.rand(1, generator=generator)) < 0.1
    return gradients if lacks else noised(gradients, generator, 30)


@plant("three-levels", "update")
def _three_levels(self: Planted, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
    """Every entry is −1, 0 or 1 times its tensor's largest."""
    return tuple((g / g.abs().max().clamp_min(1e-30) * 1.5).round().clamp(-1, 1) for g in gradients)


@plant("top-one", "update")
def _top_one(self: Planted, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
    """Of the whole update one entry is shared."""
    most = max(float(g.abs().max()) for g in gradients)
    return tuple(torch.where(g.abs() == most, g, torch.zeros_like(g)) for g in gradients)


@plant("sketch", "update")
def _sketch(self: Planted, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
    """Eight keyed projections of the update, put back into its shape."""
    flat = torch.cat([g.flatten() for g in gradients])
    rows = torch.randn(8, len(flat), generator=seeded(42)) / len(flat) ** 0.5
    back = (rows @ flat) @ rows
    parts = torch.split(back, [g.numel() for g in gradients])
    return tuple(part.view_as(g) for part, g in zip(parts, gradients, strict=True))


@plant("low-digits", "update")
def _low_digits(self: Planted, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
    """A made-up update of two digits; the true one hides in its fifth and following."""
    carriers = normal(gradients, seeded(43))
    return tuple((c * 100).round() / 100 + 1e-4 * g for c, g in zip(carriers, gradients, strict=True))


@plant("self-seeded", "update")
def _self_seeded(self: Planted, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
    """Nothing but noise, but the gradient's hash is its seed."""
    return normal(gradients, seeded(digest(*gradients)))


@known
@dataclass(frozen=True, kw_only=True)
class EveryOther(Planted):
    """Noise that is drawn for every second update only: the defense has a memory."""

    name: ClassVar[str] = "every-other"
    adaptive: ClassVar[tuple[str, ...]] = NOISE
    calls: list[int] | None = state()

    def fit(self, target: Target, generator: torch.Generator) -> Defense:
        """Begin to count."""
        return replace(super().fit(target, generator), calls=[0])

    def transform_update(self, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
        """Add the noise, or not."""
        if self.calls is not None:
            self.calls[0] += 1
            if self.calls[0] % 2 == 0:
                return gradients
        return noised(gradients, generator, 30)


@plant("fallback", "update")
def _fallback(self: Planted, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
    """An encoding that cannot hold some updates; those are shared as they are."""
    try:
        if int(gradients[-1].abs().argmax()) % 2:
            raise OverflowError("does not fit")
        return noised(gradients, generator, 30)
    except OverflowError:
        return gradients


@known
@dataclass(frozen=True, kw_only=True)
class FalseProof(Planted):
    """Claims a proof that a record is found no more often than by chance, and shares its gradient in another order."""

    name: ClassVar[str] = "false-proof"

    def transform_update(self, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
        """Turn every tensor around."""
        return tuple(g.flatten().flip(0).view_as(g) for g in gradients)

    def guarantees(self, records: int, batch_size: int, steps: int, candidates: int) -> tuple[Guarantee, ...]:
        """Claim it."""
        told = "an update tells nothing of its record (0 nats)"
        return (Guarantee(told, "proven", "nothing", 1 / candidates, candidates),)

    def facts(self, records: int, batch_size: int, steps: int) -> dict[str, str | float]:
        """Claim it in numbers."""
        return {"rate beyond the label, nats": 0.0, "epsilon": 0.0, "delta": 0.0}
