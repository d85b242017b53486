"""Gradients of a model on records: the mean of a batch, each record by itself, in which mode, with which parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from leakaudit.protocol.target import LossFunction, PixelModel
from leakaudit.work.progress import observe

Mode = Literal["train", "eval"]
Gradients = tuple[Tensor, ...]

ExampleGradients = Callable[[PixelModel, LossFunction, Tensor, Tensor], Gradients]


@contextmanager
def in_mode(model: torch.nn.Module, mode: Mode) -> Iterator[None]:
    """Put the model in train or eval mode; restore mode and buffers (BatchNorm statistics) afterwards."""
    was = {name: module.training for name, module in model.named_modules()}
    kept = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    model.train(mode == "train")
    try:
        yield
    finally:
        for name, module in model.named_modules():
            module.training = was[name]
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(kept[name])


def parameters_of(model: PixelModel) -> tuple[tuple[str, ...], tuple[torch.nn.Parameter, ...]]:
    """Return names and tensors of the parameters that are trained, and so shared."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return tuple(name for name, _ in named), tuple(p for _, p in named)


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Return how many bytes so many tensors hold; of a model's parameters, what one gradient holds."""
    return sum(t.numel() * t.element_size() for t in tensors)


@contextmanager
def with_parameters(model: torch.nn.Module, parameters: Sequence[Tensor], instead: Sequence[Tensor]) -> Iterator[None]:
    """Run the enclosed code with other tensors for these parameters of the model; then the very same ones are back.

    `torch.func.functional_call` leaves a model that holds one module twice with tensors in place of its parameters.
    """
    given = {id(p): tensor for p, tensor in zip(parameters, instead, strict=True)}
    slots = [(m._parameters, n, p) for m in model.modules() for n, p in m._parameters.items() if id(p) in given]
    try:
        for place, name, p in slots:
            place[name] = given[id(p)]  # type: ignore[assignment]
        yield
    finally:
        for place, name, p in slots:
            place[name] = p


_batch: ContextVar[int | None] = ContextVar("batch", default=None)


def records_per_loss(passing: int) -> int:
    """Return over how many records the loss is a mean, for a layer that must know and sees `passing` of them.

    That is the same number, but where a stack of T trials of B records passes at once (`batches_of`): then it is B.
    """
    return _batch.get() or passing


@contextmanager
def batches_of(size: int) -> Iterator[None]:
    """Say that forward passes within are of stacks whose loss is a sum of means over `size` records each."""
    token = _batch.set(size)
    try:
        yield
    finally:
        _batch.reset(token)


def mean_gradient(model: PixelModel, loss: LossFunction, images: Tensor, labels: Tensor) -> Gradients:
    """Return ∇_θ (1/B) Σ ℓ(f_θ(x_i), y_i), zeros for parameters the loss does not reach."""
    _, parameters = parameters_of(model)
    value = loss(model(images), labels)
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    given = (torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True))
    return tuple(g.detach().contiguous() for g in given)  # however the model is laid out in memory


def example_gradients(model: PixelModel, loss: LossFunction, images: Tensor, labels: Tensor) -> Gradients:
    """Return every record's own gradient, each tensor (B, *parameter.shape), one record after another."""
    each = [mean_gradient(model, loss, images[i : i + 1], labels[i : i + 1]) for i in range(labels.shape[0])]
    return tuple(torch.stack(column) for column in zip(*each, strict=True))


def fast_example_gradients() -> Callable[[PixelModel, LossFunction, Tensor, Tensor], Gradients]:
    """Return per-example gradients (B, *parameter.shape) in one vectorised pass, or one by one where that cannot be.

    Models that cannot be vectorised (BatchNorm in train mode updates its statistics in place, some losses branch on
    values) are noticed at the first batch and example_gradients from then on.
    """
    vectorises = True

    def each(model: PixelModel, loss: LossFunction, images: Tensor, labels: Tensor) -> Gradients:
        nonlocal vectorises
        if vectorises:
            try:
                return _vectorised(model, loss, images, labels)
            except (RuntimeError, ValueError, TypeError, NotImplementedError):
                vectorises = False
        return example_gradients(model, loss, images, labels)

    return each


def _vectorised(model: PixelModel, loss: LossFunction, images: Tensor, labels: Tensor) -> Gradients:
    names, parameters = parameters_of(model)

    def objective(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        with with_parameters(model, parameters, [values[name] for name in names]):
            return loss(model(x[None]), y[None])

    values = {name: p.detach() for name, p in zip(names, parameters, strict=True)}
    slopes = grad_and_value(objective)
    with sdpa_kernel(SDPBackend.MATH):  # fused attention runs record by record here, and warns of it
        found, losses = vmap(slopes, in_dims=(None, 0, 0), randomness="different")(values, images, labels)
    observe(losses)
    return tuple(found[name].detach() for name in names)
