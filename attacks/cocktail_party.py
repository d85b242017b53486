"""The cocktail party attack: unmix a dense layer's gradient into what its records gave it, then invert it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from leakaudit.attacks._attacking import (
    client_mode,
    failed,
    memory_safe,
    need_sum_of_gradients,
    reason_of,
    room_for,
    starts,
)
from leakaudit.attacks._labels import probe_pictures
from leakaudit.attacks._optimise import COPIES, Objective, Pace, best_restart, descend, roughness
from leakaudit.attacks._unmixing import polished, unmixed
from leakaudit.attacks.analytic import known_or_none
from leakaudit.attacks.peeling import labels_to_try
from leakaudit.engine.dense import is_pictures, layers_at_work
from leakaudit.errors import NotApplicable
from leakaudit.protocol.attack import Attack, Effort, Reconstruction, Status
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.gradients import parameters_of
from leakaudit.protocol.labels import hard
from leakaudit.protocol.registry import register_attack
from leakaudit.protocol.target import PixelModel
from leakaudit.work.memory import held, in_pieces
from leakaudit.work.progress import track

WORDS = {
    "diverged": "the layer's gradient is zero or not finite",
    "budget": "the time budget was spent; the best so far is given",
}
UNMIXED = 1e-4  # of a gradient's length: what leaves less has found its records


@dataclass(frozen=True)
class Mixing:
    """The dense layer that is unmixed: `pictures` says that it is given the pictures, `alone` that all passes it."""

    layer: nn.Linear
    pictures: bool
    alone: bool


def mixing_layer(model: PixelModel, pictures: Tensor, batch: int) -> Mixing:
    """Return the first dense layer that mixes one vector per record in at least as many rows as there are records.

    Raises NotApplicable where none with a bias does.
    """
    trained = {id(p) for p in parameters_of(model)[1]}
    with torch.no_grad():
        logits, uses = layers_at_work(model, pictures, lambda m: isinstance(m, nn.Linear))
    for use in uses:
        layer, given = use.layer, use.given
        assert isinstance(layer, nn.Linear)
        shared = layer.bias is not None and {id(layer.weight), id(layer.bias)} <= trained
        once = sum(other.layer is layer for other in uses) == 1
        if not shared or not once or given is None or given.dim() != 2 or layer.out_features < batch:
            continue
        with torch.no_grad():
            passed, _ = _after(model, layer, given, pictures.flip(0))
        return Mixing(layer, is_pictures(given, model, pictures), torch.allclose(passed, logits, 1e-4, 1e-5))
    raise NotApplicable(f"no dense layer with a bias has as many outputs as there are records ({batch})")


def _after(model: PixelModel, layer: nn.Linear, inputs: Tensor, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits (N, K) for inputs (N, D) of a layer, whatever the pictures, and the layer's output (N, O)."""
    outputs = nn.functional.linear(inputs, layer.weight, layer.bias).detach().requires_grad_(torch.is_grad_enabled())
    handle = layer.register_forward_hook(lambda *_: outputs.clone())  # what works in place must not change it
    try:
        return model(pictures), outputs
    finally:
        handle.remove()


@register_attack
@dataclass(frozen=True, kw_only=True)
class CocktailParty(Attack):
    """Unmix a dense layer's gradient into the inputs of its records, then invert them (Kariyappa et al. 2023).

    After "Cocktail Party Attack" (ICML 2023, arXiv 2209.05578): the rows of ∂W are mixtures of the layer's B inputs,
    which are told apart as independent components (`unmixed`). Three things are added: a layer that is given pictures
    is unmixed by the differences of neighbouring pixels, which is worth 10 to 20 dB; ∂b gives sign and length; and
    where all that the logits depend on passes the layer, the slopes that the model gives for what was found settle it
    further (`polished`), to the last digits where that converges. Nothing needs to fire for one record alone, as
    peeling asks: sigmoid and GELU units hide nothing.

    A first layer gives the pictures. Of a later one the inputs ẑ are features, of which pictures are drawn that have
    them: 1 − cos(h(x̂), ẑ) + tv·R(x̂) is minimised, or the distance where ẑ is exact, for each record by itself. It
    needs as many rows as records.
    """

    family: ClassVar[str] = "unmixing"
    name: ClassVar[str] = "cocktail-party"
    summary: ClassVar[str] = "unmix a dense layer's gradient by independent components, then invert the features"
    source: ClassVar[str] = "Kariyappa et al. 2023 (Cocktail Party Attack); differences and polishing formulated here"
    covers: ClassVar[frozenset[str]] = frozenset({"layer-by-layer"})
    grid: ClassVar[Mapping[str, tuple[float, ...]]] = {"tv": (1e-3, 1e-2, 1e-1, 1.0)}
    effort: ClassVar[tuple[Effort, ...]] = ("steps",)

    steps: int = 400  # of the inversion of features
    restarts: int = 3  # of the search for independent components
    tv: float = 0.1
    step_size: float = 0.1

    def __post_init__(self) -> None:
        if min(self.steps, self.restarts) < 1:
            raise ValueError("steps and restarts must be at least 1")
        if self.tv < 0 or self.step_size <= 0:
            raise ValueError("tv must not be negative and step_size must be positive")

    @memory_safe
    def __call__(self, model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Reconstruction:
        """Return the pictures of every victim; one whose gradient of the layer is zero or not finite is `diverged`."""
        need_sum_of_gradients(update)
        known = known_or_none(model, update, generator)
        with client_mode(model, update, generator):
            probes = probe_pictures(update, generator, model.mean.device, 8)
            mixing = mixing_layer(model, probes, update.batch_size)
            place = {id(p): i for i, p in enumerate(parameters_of(model)[1])}
            weights = update.gradients[place[id(mixing.layer.weight)]]
            biases = update.gradients[place[id(mixing.layer.bias)]]
            usable = weights.isfinite().flatten(1).all(1) & biases.isfinite().all(1) & biases.any(1)
            inputs = weights.new_zeros(update.victims, update.batch_size, weights.shape[2])
            rests, reached = weights.new_full((update.victims,), torch.inf), 0
            for v in track("unmixing", update.victims):
                reached = v + 1
                if bool(usable[v]):
                    inputs[v], rests[v] = self._unmixed(
                        model, mixing, weights[v], biases[v], update, labels_to_try(update, known, v), generator
                    )
            inputs[~usable] = torch.nan
            usable = usable & inputs.isfinite().flatten(1).all(1)
            if mixing.pictures:
                found = self._pictures(model, update, inputs, rests, usable, reached)
            elif not reached:
                return failed(update, "budget", "the time budget ended before the layer was unmixed")
            else:
                found = self._inverted(model, mixing.layer, update, inputs, rests, generator)
        exact = int(((rests < UNMIXED) & usable).sum())
        note = f"{exact} of {update.victims} gradients unmixed whole: the records found explain the layer's gradient."
        return Reconstruction(
            images=found.images,
            labels=None if known is None else hard(known, update.task),
            objective=found.objective,
            statuses=found.statuses,
            reason=found.reason,
            notes=(note,) if mixing.alone and update.is_gradient else (),
        )

    def _unmixed(
        self,
        model: PixelModel,
        mixing: Mixing,
        weight: Tensor,
        bias: Tensor,
        update: SharedUpdate,
        labels: Tensor,
        generator: torch.Generator,
    ) -> tuple[Tensor, float]:
        """Return one victim's inputs (B, D) of the layer, and what share of its gradient they do not explain."""
        shape, size = update.input_shape, update.batch_size

        def differences(rows: Tensor) -> Tensor:
            if not mixing.pictures:
                return rows
            maps = rows.view(len(rows), *shape)
            return torch.cat([maps.diff(dim=2).flatten(1), maps.diff(dim=3).flatten(1)], 1)

        if size == 1:
            found = (bias.double() @ weight.double() / bias.double().square().sum())[None]
        else:
            found = unmixed(weight, bias, size, differences, self.restarts, generator)
        if not (mixing.alone and update.is_gradient and bool(found.isfinite().all())):  # the slopes are of one gradient
            return found.to(weight.dtype), torch.inf
        basis = torch.linalg.svd(torch.cat([weight, bias[:, None]], 1).double(), full_matrices=False).U[:, :size]

        def slopes(inputs: Tensor) -> Tensor:
            with torch.enable_grad():
                dummy = torch.full((size, *shape), 0.5, device=weight.device, dtype=weight.dtype)
                logits, outputs = _after(model, mixing.layer, inputs.to(weight.dtype), dummy)
                each = []
                for label in labels:
                    value = update.loss(logits, label.expand(size, *label.shape))
                    (slope,) = torch.autograd.grad(value, outputs, retain_graph=True)
                    each.append(slope.double())
            tried = torch.stack(each)
            strange = (tried - (tried @ basis) @ basis.T).norm(dim=2) / tried.norm(dim=2).clamp_min(1e-300)
            return tried[strange.argmin(0), torch.arange(size, device=tried.device)]

        found, rest = polished(weight, bias, found, slopes)
        return found.to(weight.dtype), rest

    def _pictures(
        self, model: PixelModel, update: SharedUpdate, inputs: Tensor, rests: Tensor, usable: Tensor, reached: int
    ) -> Reconstruction:
        """Return the inputs (V, B, D) of a first layer as pictures; grey for victims that the time left out."""
        shape = (update.victims, update.batch_size, *update.input_shape)
        images = (inputs.view(shape) * model.std + model.mean).nan_to_num(0.5, 0.5, 0.5).clamp(0, 1)
        images[reached:] = 0.5
        statuses: tuple[Status, ...] = tuple(
            "budget" if v >= reached else "converged" if fine else "diverged" for v, fine in enumerate(usable.tolist())
        )
        return Reconstruction(
            images=images, labels=None, objective=rests, statuses=statuses, reason=reason_of(statuses, WORDS)
        )

    def _inverted(
        self,
        model: PixelModel,
        layer: nn.Linear,
        update: SharedUpdate,
        wanted: Tensor,
        rests: Tensor,
        generator: torch.Generator,
    ) -> Reconstruction:
        """Return pictures whose inputs of a later layer are those `wanted` (V, B, D), of which `rests` (V,) is left."""
        start = starts(model, update, 1, generator)
        match = matching_features(model, layer, update, wanted.nan_to_num(0, 0, 0), rests < UNMIXED)
        usable = wanted.flatten(1).isfinite().all(1)

        def objective(images: Tensor, which: Tensor, progress: Tensor) -> tuple[Tensor, Tensor]:
            values, slopes = match(images, which, progress)
            rough, slope = roughness(images, model.depth)
            values = torch.where(usable[which], values + self.tv * rough, torch.nan)
            return values, slopes + self.tv * slope

        with held(room_for(update, update.victims, COPIES), f"{update.victims} victims", "records", start.device):
            descent = descend(
                objective,
                start,
                torch.arange(update.victims, device=start.device),
                Pace(self.steps, self.step_size, 50),
                label=self.name,
            )
        return best_restart(update, descent, torch.zeros(update.victims, update.batch_size).long(), 1)


def matching_features(
    model: PixelModel, layer: nn.Linear, update: SharedUpdate, wanted: Tensor, whole: Tensor
) -> Objective:
    """Return mean_i 1 − cos(h(x̂_i), ẑ_i) for the inputs h of a dense layer, ẑ (V, B, D), as an objective.

    For victims whose gradient was unmixed `whole` (V,) length counts too: mean_i ‖h(x̂_i) − ẑ_i‖² / ‖ẑ_i‖², which was
    worth 2.7 dB on a small convolutional net.
    In train mode every trial goes through the model by itself, since its statistics are its own.
    """

    def gaps(images: Tensor, targets: Tensor, exact: Tensor) -> tuple[Tensor, Tensor]:
        x, seen = images.detach().requires_grad_(True), []
        handle = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        try:
            with torch.enable_grad():
                for k in range(len(x)) if update.mode == "train" else ():
                    model(x[k])
                if not seen:
                    model(x.flatten(0, 1))
        finally:
            handle.remove()
        features = torch.cat(seen).view(*targets.shape)
        turned = 1 - nn.functional.cosine_similarity(features, targets, dim=2, eps=1e-12)
        apart = (features - targets).square().sum(2) / targets.square().sum(2).clamp_min(1e-12)
        values = torch.where(exact[:, None], apart, turned).mean(1)
        (slopes,) = torch.autograd.grad(values.sum(), x)
        return values.detach(), slopes

    def objective(images: Tensor, which: Tensor, progress: Tensor) -> tuple[Tensor, Tensor]:
        targets, exact, work = wanted[which], whole[which], ("features", images.shape[1:])

        def piece(a: int, b: int) -> tuple[Tensor, Tensor]:
            return gaps(images[a:b], targets[a:b], exact[a:b])

        found = in_pieces(piece, len(images), model, work, images.device)
        values, slopes = zip(*found, strict=True)
        return torch.cat(values), torch.cat(slopes)

    return objective
