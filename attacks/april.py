"""APRIL: in a vision transformer the gradient of learnt positions is that of every token, which solves its input."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from leakaudit.attacks._attacking import client_mode, memory_safe, need_one_gradient, need_sum_of_gradients
from leakaudit.attacks._labels import probe_pictures
from leakaudit.attacks._rows import precision_of
from leakaudit.attacks.analytic import known_labels_or_none
from leakaudit.engine.dense import Use, layers_at_work
from leakaudit.errors import NotApplicable
from leakaudit.protocol.attack import Attack, Needs, Reconstruction, Status
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.gradients import parameters_of
from leakaudit.protocol.registry import register_attack
from leakaudit.protocol.target import PixelModel

ALIKE = 1e-4  # how far two gradients may differ, relative, that are one by construction


@dataclass(frozen=True)
class Tokens:
    """A patch embedding of h × w patches (d × h × w of volumes), and the learnt positions added to what it gives.

    `first` is the place of the first patch among the tokens, `attention` the self-attention that sees the tokens as
    they are, without normalisation or a shortcut around it; None where there is none.
    """

    patches: nn.Conv2d | nn.Conv3d
    grid: tuple[int, ...]
    positions: nn.Parameter
    first: int
    attention: nn.MultiheadAttention | None


def token_rows(values: Tensor, width: int, places: int) -> Tensor:
    """Return positions kept as (…, T, d), or as maps (…, d, h, w) of two `places`, as (T, d)."""
    if values.shape[-1] != width:
        values = values.movedim(-1 - places, -1)
    return values.reshape(-1, width)


def tokens_of(model: PixelModel, update: SharedUpdate, pictures: Tensor) -> Tokens:
    """Return how the model makes tokens, found and checked on one of the `pictures` (N, C, H, W).

    Raises NotApplicable with the reason where nothing is added to the patches whose gradient is theirs.
    """
    picture = pictures[:1].to(model.mean.dtype)
    with torch.enable_grad():
        logits, uses, made = _seen(model, picture.requires_grad_())
    layer = next((u.layer for u in uses), None)
    if not isinstance(layer, nn.Conv2d | nn.Conv3d) or not _is_normalised(uses[0].given, model, picture):
        raise NotApplicable("the model does not begin with a convolution that cuts the picture into patches")
    if tuple(layer.kernel_size) != tuple(layer.stride) or any(layer.padding) or layer.groups != 1:
        raise NotApplicable("the first convolution does not cut the picture into patches")
    attention = next((u for u in uses if isinstance(u.layer, nn.MultiheadAttention) and u.given is not None), None)
    trained = parameters_of(model)[1]
    sought = [made, *([] if attention is None or attention.given is None else [attention.given]), *trained]
    label = torch.zeros(1, dtype=torch.long, device=picture.device)
    slopes = torch.autograd.grad(update.loss(logits, label), sought, allow_unused=True)
    if slopes[0] is None:
        raise NotApplicable("the patches do not reach the loss")
    grid, width = tuple(made.shape[2:]), layer.out_channels
    patches = slopes[0].flatten(2).transpose(1, 2).reshape(-1, width)
    for p, slope in zip(trained, slopes[len(sought) - len(trained) :], strict=True):
        if slope is None or not _may_be_positions(p, width, len(grid)):
            continue
        rows = token_rows(slope, width, len(grid))
        for first in range(len(rows) - len(patches), -1, -1):
            if _alike(rows[first : first + len(patches)], patches):
                own = slopes[1] if attention is not None else None
                direct = own is not None and own.numel() == rows.numel() and _alike(own.reshape(rows.shape), rows)
                through = attention.layer if direct and attention is not None else None
                assert through is None or isinstance(through, nn.MultiheadAttention)
                return Tokens(layer, grid, p, first, through)
    raise NotApplicable("no learnt positions are added to the patches: their gradient is not known")


def _seen(model: PixelModel, picture: Tensor) -> tuple[Tensor, list[Use], Tensor]:
    """Return the logits, every use of a convolution and of an attention, and what the first convolution gives."""
    made: list[Tensor] = []
    handles = [
        layer.register_forward_hook(lambda _, __, out: made.append(out))
        for layer in model.modules()
        if isinstance(layer, nn.Conv2d | nn.Conv3d)
    ]
    try:
        logits, uses = layers_at_work(
            model, picture, lambda m: isinstance(m, nn.Conv2d | nn.Conv3d | nn.MultiheadAttention)
        )
    finally:
        for handle in handles:
            handle.remove()
    return logits, uses, made[0] if made else logits


def _is_normalised(given: Tensor | None, model: PixelModel, picture: Tensor) -> bool:
    normalised = ((picture - model.mean) / model.std).flatten()
    return (
        given is not None
        and given.numel() == len(normalised)
        and torch.allclose(given.flatten(), normalised, atol=1e-5)
    )


def _may_be_positions(p: nn.Parameter, width: int, places: int) -> bool:
    return p.dim() >= 2 and (p.shape[-1] == width or (p.dim() > places and p.shape[-1 - places] == width))


def _alike(one: Tensor, other: Tensor) -> bool:
    return bool(other.any()) and float((one - other).norm()) <= ALIKE * float(other.norm())


def least_squares(matrix: Tensor, right: Tensor, rounding: float) -> Tensor:
    """Return the X (n, …) of least norm of matrix (m, n) X = right (m, …), directions below `rounding` left out."""
    found: Tensor = torch.linalg.pinv(matrix, rtol=rounding) @ right
    return found


def patches_of(tokens: Tokens, slope: Tensor, weights: tuple[Tensor | None, Tensor | None]) -> tuple[Tensor, Tensor]:
    """Return the patches (n, C·k·k) of one record, normalised, and the norm of what its equations leave.

    `slope` (T, d) is the gradient of the positions; `weights` are those of the patch embedding (d, C, k, k) and of the
    attention's three projections (3d, d), None where they are not shared.
    """
    count = math.prod(tokens.grid)
    embedding, projections = weights
    rounding = precision_of(slope).rounding / 10
    slope = slope.double()
    own = slope[tokens.first : tokens.first + count]
    if embedding is not None:
        right = embedding.double().flatten(1)
        found = least_squares(own.T, right, rounding)
        return found, _left(own.T @ found, right, rounding)
    assert projections is not None
    assert tokens.attention is not None
    right = (projections.double().T @ tokens.attention.in_proj_weight.detach().double()).T
    inputs = least_squares(slope.T, right, rounding)
    made = (inputs - token_rows(tokens.positions.detach(), slope.shape[1], len(tokens.grid)))[
        tokens.first : tokens.first + count
    ]
    if tokens.patches.bias is not None:
        made = made - tokens.patches.bias.detach()
    weight = tokens.patches.weight.detach().double().flatten(1)
    return made @ torch.linalg.pinv(weight).T, _left(slope.T @ inputs, right, rounding)


def _left(made: Tensor, right: Tensor, rounding: float) -> Tensor:
    """Return the norm of what equations leave, zero where it is rounding."""
    rest: Tensor = (made - right).norm()
    return torch.where(rest > 100 * rounding * right.norm(), rest, 0.0)


def _joined(patches: Tensor, tokens: Tokens, shape: tuple[int, int, int]) -> Tensor:
    """Return the picture (C, H, W), or (C·D, H, W), of patches (n, C·k·k); what no patch covers is left zero."""
    grid, kernel, channels = tokens.grid, tokens.patches.kernel_size, tokens.patches.in_channels
    count, depth = len(grid), shape[0] // channels
    blocks = patches.reshape(*grid, channels, *kernel)
    order = [count, *(axis for i in range(count) for axis in (i, count + 1 + i))]
    sizes = [n * k for n, k in zip(grid, kernel, strict=True)]
    volume = patches.new_zeros(channels, *(shape[1:] if count == 2 else (depth, *shape[1:])))
    volume[(slice(None), *map(slice, sizes))] = blocks.permute(order).reshape(channels, *sizes)
    return volume.reshape(shape)


@register_attack
@dataclass(frozen=True, kw_only=True)
class April(Attack):
    """Solve a vision transformer's patches from its gradient (APRIL, Lu et al. 2022, arXiv 2112.14087, closed form).

    Positions that are learnt and added to the tokens z (T × d) have the gradient ∂z itself, T × d, of one record. The
    patch embedding z = P·Eᵀ + … then has ∂E = ∂zᵀ·P, linear in the patches P (T × pixels): whatever follows, be it
    normalisation, shortcuts or many blocks. The paper solves for the input of the first attention instead, from
    zᵀ∂z = Σ ∂Wᵀ·W over its three projections, which this does where the patch embedding is frozen and the attention
    sees the tokens as they are; the patches are then (z − positions − bias)·pinv(E)ᵀ. Either is exact where the
    gradients of the tokens span as many directions as there are patches; a narrower model gives the least solution.
    """

    family: ClassVar[str] = "closed-form"
    name: ClassVar[str] = "april"
    summary: ClassVar[str] = "closed form: a vision transformer's learnt positions give away its patches"
    source: ClassVar[str] = "Lu et al. 2022 (APRIL)"
    covers: ClassVar[frozenset[str]] = frozenset({"layer-by-layer"})
    needs: ClassVar[Needs] = Needs(one_record=True, tokens=True)
    closed_form: ClassVar[bool] = True

    @memory_safe
    def __call__(self, model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Reconstruction:
        """Return the pictures; a victim whose positions have a gradient of zero, or not finite, is `diverged`."""
        if update.batch_size != 1:
            raise NotApplicable(f"it needs one record per update, here there are {update.batch_size}")
        need_sum_of_gradients(update)
        with client_mode(model, update, generator):
            tokens = tokens_of(model, update, probe_pictures(update, generator, model.mean.device, most=1))
        count, width = math.prod(tokens.grid), tokens.patches.out_channels
        place = {id(p): i for i, p in enumerate(parameters_of(model)[1])}
        slopes = update.gradients[place[id(tokens.positions)]]
        embedding, projections = (
            update.gradients[place[id(p)]] if p is not None and id(p) in place else None
            for p in (tokens.patches.weight, tokens.attention.in_proj_weight if tokens.attention else None)
        )
        if embedding is None:
            need_one_gradient(update)  # the projections' own weights enter, and these move in local steps
        if embedding is None and projections is None:
            raise NotApplicable("neither the patch embedding nor an attention that sees its tokens shares a gradient")
        flat = torch.zeros((update.victims, *update.input_shape), dtype=torch.float64, device=slopes.device)
        rests = torch.full((update.victims,), torch.inf)
        statuses: list[Status] = ["diverged"] * update.victims
        for v, slope in enumerate(slopes):
            weights = (None if embedding is None else embedding[v], None if projections is None else projections[v])
            if not (slope.any() and all(g.isfinite().all() for g in (slope, *weights) if g is not None)):
                continue
            patches, rest = patches_of(tokens, token_rows(slope, width, len(tokens.grid)), weights)
            flat[v], rests[v], statuses[v] = _joined(patches, tokens, update.input_shape), float(rest), "converged"
        images = (flat * model.std + model.mean).to(model.mean.dtype).clamp(0, 1)
        narrow = f"The model is {width} wide and has {count} patches: of many pictures that fit, the least is given."
        return Reconstruction(
            images=images[:, None],
            labels=known_labels_or_none(model, update, generator),
            objective=rests.to(model.mean),
            statuses=tuple(statuses),
            reason=None if "diverged" not in statuses else "the gradient of the positions is zero or not finite",
            notes=(narrow,) if count > width else (),
        )
