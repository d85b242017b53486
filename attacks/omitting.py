"""Gradient matching that leaves out the layers a defense spoils, built against Soteria and PRECODE."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from leakaudit.attacks._attacking import client_mode
from leakaudit.attacks._labels import probe_pictures
from leakaudit.attacks.analytic import solve
from leakaudit.attacks.inverting_gradients import InvertingGradients, Match
from leakaudit.defenses.precode import Bottleneck, bottlenecks, with_noise
from leakaudit.engine import matching as engine
from leakaudit.errors import NotApplicable
from leakaudit.protocol.attack import Needs
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.gradients import parameters_of
from leakaudit.protocol.registry import register_attack
from leakaudit.protocol.target import PixelModel

SPOILT = 0.1  # share of a dense layer's gradient that may be off rank one before its input counts as unknown


@contextmanager
def without(model: PixelModel, update: SharedUpdate, omitted: frozenset[str]) -> Iterator[SharedUpdate]:
    """Yield the update without the gradients of these parameters, which are frozen in the model meanwhile.

    Raises NotApplicable where nothing would be left to match.
    """
    names, parameters = parameters_of(model)
    left = [i for i, name in enumerate(names) if name not in omitted]
    if not left:
        raise NotApplicable("the defense touches every layer, so there is none to match")
    frozen = [p for name, p in zip(names, parameters, strict=True) if name in omitted]
    try:
        for p in frozen:
            p.requires_grad_(False)
        yield replace(update, names=tuple(names[i] for i in left), gradients=tuple(update.gradients[i] for i in left))
    finally:
        for p in frozen:
            p.requires_grad_(True)


def drawn_noise(name: str, bottleneck: Bottleneck, shared: dict[str, Tensor]) -> Tensor | None:
    """Return the ε (K,) that the client drew, from one record's gradients by parameter name; None where they hide it.

    The gradient of a dense layer is a product of its output's slope and its input (`solve`): the encoder's tells h, and
    so μ and σ, the decoder's tells z, and ε = (z − μ)/σ. Gradients that another defense has moved off that product by
    more than `SPOILT` tell neither.
    """
    found = []
    for layer in ("encoder", "decoder"):
        weight, bias = (shared[f"{name}.{layer}.{kind}"] for kind in ("weight", "bias"))
        given, rest = solve(weight, bias)
        if not bool(given.isfinite().all()) or float(rest) > SPOILT * float(weight.norm()):
            return None
        found.append(given.to(weight.dtype))
    h, z = found
    with torch.no_grad():
        mean, deviation = bottleneck.statistics(h)
    return (z - mean) / deviation


@register_attack
@dataclass(frozen=True, kw_only=True)
class OmittingLayers(InvertingGradients):
    """Inverting gradients on the layers that the defense does not touch (`Defense.touched`).

    Against Soteria the defended layer is left out (Balunović et al. 2022, section 5): what is zero there is not what a
    candidate's gradient should be, and the layers before it are shared as they are. Against PRECODE the bottleneck and
    the last layer are left out (Scheliga et al. 2022, arXiv 2208.04767), whose gradients depend on the noise directly,
    and candidates run with z = μ. For one record per update the noise itself follows from what is left out
    (`drawn_noise`): candidates then run with the client's own, and the bottleneck's encoder, no longer spoilt, is
    matched like the layers before. That was worth 15 dB on auxiliary CIFAR-10 records through a LeNet. Labels are
    inferred from the whole update: PRECODE leaves the last layer's gradient a product with p − y, and Soteria its bias.

    Where the defense touches no layer, this is inverting gradients. Raises NotApplicable if the defense is not exposed.
    """

    family: ClassVar[str] = "matching"
    name: ClassVar[str] = "omitting-layers"
    summary: ClassVar[str] = "inverting gradients on the layers that the defense does not touch"
    source: ClassVar[str] = "Balunović et al. 2022; Scheliga et al. 2022"
    requires: ClassVar[frozenset[str]] = frozenset({"defense"})
    needs: ClassVar[Needs] = Needs(defense="soteria")

    def matching(
        self, model: PixelModel, update: SharedUpdate, distance: engine.Distance, generator: torch.Generator
    ) -> Match:
        """Return the match of what the defense leaves, with the noise that each update tells.

        Raises NotApplicable where the defense is not exposed, and the match does where it touches every layer.
        """
        if update.defense is None:
            raise NotApplicable("the defense is not exposed")
        with client_mode(model, update, generator):
            omitted = update.defense.touched(model, probe_pictures(update, generator, model.mean.device, most=2))
        inserted = bottlenecks(model)
        parts = parted(inserted, update)

        def match(images: Tensor, labels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            values, slopes = images.new_zeros(len(images)), torch.zeros_like(images)
            for part in parts:
                here = (part.place[rows] >= 0).nonzero()[:, 0]
                with without(model, part.update, omitted - part.exact()) as left:
                    values[here], slopes[here] = engine.match(
                        model,
                        left.loss,
                        images[here],
                        labels[here],
                        left.gradients,
                        distance,
                        rows=part.place[rows[here]],
                        around=partial(part.drawing, inserted),
                    )
            return values, slopes

        return match


@dataclass(frozen=True)
class Part:
    """Victims whose updates tell the noise of the same bottlenecks.

    `update` is theirs alone (n victims), `place` (V,) where in it each victim of the whole one is, −1 for the others,
    and `noise` ε (n, K) by bottleneck, of those that it is known of.
    """

    update: SharedUpdate
    place: Tensor
    noise: dict[str, Tensor]

    def exact(self) -> frozenset[str]:
        """Return the parameters whose gradients the noise no longer spoils: those of its encoder."""
        return frozenset(f"{name}.encoder.{kind}" for name in self.noise for kind in ("weight", "bias"))

    @contextmanager
    def drawing(self, inserted: Mapping[str, Bottleneck], own: Tensor) -> Iterator[None]:
        """Run the enclosed forward pass with the noise of its records' victims `own` (N,); z = μ where unknown."""
        with ExitStack() as stack:
            for name, bottleneck in inserted.items():
                known = self.noise[name][own] if name in self.noise else torch.zeros_like(bottleneck.decoder.weight[0])
                stack.enter_context(with_noise(bottleneck, known.detach()))
            yield


def parted(inserted: Mapping[str, Bottleneck], update: SharedUpdate) -> list[Part]:
    """Return the victims of an update in parts: usually one, as their updates tell the same."""
    solved: list[dict[str, Tensor]] = [{} for _ in range(update.victims)]
    if update.batch_size == 1 and update.is_gradient:  # of several records, or steps, they tell no single noise
        for v, known in enumerate(solved):
            shared = {name: g[v] for name, g in zip(update.names, update.gradients, strict=True)}
            found = {name: drawn_noise(name, bottleneck, shared) for name, bottleneck in inserted.items()}
            known.update({name: noise for name, noise in found.items() if noise is not None})
    parts = []
    for names in dict.fromkeys(tuple(known) for known in solved):
        victims = [v for v, known in enumerate(solved) if tuple(known) == names]
        place = torch.full((update.victims,), -1, device=update.gradients[0].device)
        place[victims] = torch.arange(len(victims), device=place.device)
        own = (
            update
            if len(victims) == update.victims
            else replace(update, gradients=tuple(g[victims] for g in update.gradients))
        )
        parts.append(Part(own, place, {name: torch.stack([solved[v][name] for v in victims]) for name in names}))
    return parts
