"""The thing under audit: a classifier, its loss, and the records around it. All pictures here are in [0, 1]."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from leakaudit.network.outputs import logits_of
from leakaudit.network.plain import common_tensors, computing, left_behind, plain
from leakaudit.protocol.received import Received
from leakaudit.protocol.task import CLASSES, Task
from leakaudit.result.federation import Client
from leakaudit.result.shapes import sizes_of
from leakaudit.work.seeding import forked

LossFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, repr=False)
class Records:
    """Labelled pictures: `images` (N, C, H, W) float32 in [0, 1] and integer `labels` (N,).

    Where labels are no classes (`leakaudit.protocol.task`) they are label groups, and `targets` (N, *shape) are what
    the loss takes. Released records carry those, or probabilities (N, classes), as `labels` instead. `units` (N,) says
    whose they are: records of one unit of privacy (a person, a site) carry the same number, −1 where it is not known.
    """

    images: Tensor
    labels: Tensor
    units: Tensor | None = None
    targets: Tensor | None = None

    def __repr__(self) -> str:
        return f"Records({tuple(self.images.shape)})"  # no pixel and no label: it ends up in logs

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    def __getitem__(self, index: Tensor | Sequence[int] | slice) -> Records:
        picked = index if isinstance(index, Tensor | slice) else torch.as_tensor(list(index), dtype=torch.long)
        units, targets = (None if own is None else own[picked] for own in (self.units, self.targets))
        return Records(self.images[picked], self.labels[picked], units, targets)

    @property
    def taught(self) -> Tensor:
        """What a loss is given: the targets (N, *shape) where there are any, else the labels."""
        return self.labels if self.targets is None else self.targets

    def to(self, device: torch.device) -> Records:
        """Return the same records on a device."""
        units, targets = (None if own is None else own.to(device) for own in (self.units, self.targets))
        return Records(self.images.to(device), self.labels.to(device), units, targets)


class PixelModel(nn.Module):
    """A model that takes pictures in [0, 1] and normalises them itself: logits = read((x − mean) / std).

    Attacks, defenses and metrics therefore all live in pixel space, and no score is ever taken on normalised tensors.
    A volume of D slices is a picture of C·D channels, slice by slice within each of its C channels (`depth` is D), and
    becomes (N, C, D, H, W) here. `read` makes the tensor that the loss sees of what the network returns.
    `float32`: the network asks for other precisions (autocast), and is run in float32 all the same. `caches` are layers
    and their attributes in which a pass keeps what it computed of weights: nothing there outlasts the pass. `grey`: all
    of its pictures are, though they have several channels, and so are those that attacks look for.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        *,
        depth: int = 1,
        read: Callable[[Any], Tensor] | None = None,
        float32: bool = False,
        caches: tuple[tuple[str, str], ...] = (),
        grey: bool = False,
    ) -> None:
        super().__init__()
        self.network, self.depth, self.read = network, depth, read or logits_of
        self.float32, self.caches, self.grey, self.by_name = float32, caches, grey, _by_name(network)
        for name, values in (("mean", mean), ("std", std)):
            numbers = torch.tensor(values, dtype=torch.float32)
            numbers = numbers.repeat_interleave(depth) if len(numbers) > 1 else numbers
            self.register_buffer(name, numbers.view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the loss sees (N, ...), of a classifier the logits, for pictures `x` (N, C, H, W) in [0, 1]."""
        return _single(self.read(self.output(x)))

    def predicted(self, x: Tensor) -> Tensor:
        """Return what the model says of pictures (N, C, H, W): of several outputs that the loss sees, the main one."""
        main: Callable[[Any], Tensor] = getattr(self.read, "main", self.read)
        return _single(main(self.output(x)))

    def output(self, x: Tensor) -> Any:
        """Return what the network itself returns for pictures (N, C, H, W) in [0, 1]."""
        inputs = (x - self.mean) / self.std
        if self.depth > 1:
            inputs = inputs.reshape(len(x), -1, self.depth, *x.shape[2:])
        for layer, name in self.caches:
            getattr(self.network.get_submodule(layer), name).clear()
        with computing(self.float32):
            return self.network(**{self.by_name: inputs}) if self.by_name else self.network(inputs)

    def __deepcopy__(self, memo: dict[int, Any]) -> PixelModel:
        """Return a copy, without the graph of a forward pass that layers may keep a part of."""
        made = type(self).__new__(type(self))
        memo |= {id(self): made, **left_behind(self)}
        vars(made).update(copy.deepcopy(dict(vars(self)), memo))
        return made

    def around(self, network: nn.Module) -> PixelModel:
        """Return another network with the same reading and normalisation, on the device where it lies."""
        found = PixelModel(network, **self.reading()).to(self.mean.device)
        found.mean, found.std = self.mean.clone(), self.std.clone()
        return found

    def reading(self) -> dict[str, Any]:
        """Return how a network is run and read, as arguments for another model around it."""
        return {name: getattr(self, name) for name in ("depth", "read", "float32", "caches", "grey")}


def _single(found: Tensor) -> Tensor:
    return found.float() if found.dtype in (torch.float16, torch.bfloat16) else found


def _by_name(network: nn.Module) -> str | None:
    """Return the argument that takes pictures where it is not the first one: of models that take text beside them."""
    try:
        names = list(inspect.signature(network.forward).parameters)
    except (TypeError, ValueError):
        return None
    return "pixel_values" if "pixel_values" in names[1:] else None


@dataclass(frozen=True)
class PictureGenerator:
    """What an adversary knows of pictures, as the user gives it: `make` draws (N, C, H, W) in [0, 1], differentiably.

    From latents (N, *latent), of which each entry is normal with variance 1. It lies on the model's device, frozen.
    """

    make: Callable[[Tensor], Tensor]
    latent: tuple[int, ...]


@dataclass(frozen=True)
class Target:
    """What is audited.

    `private` are the client's records, `test` measures accuracy, `auxiliary` are records the adversary may own;
    the three are disjoint.
    """

    name: str
    model: PixelModel
    loss: LossFunction
    private: Records
    test: Records
    auxiliary: Records
    classes: tuple[str, ...]  # the names of the classes, or of the label groups where labels are no classes
    task: Task = CLASSES
    notes: tuple[str, ...] = ()  # assumptions made while loading, shown in the report
    held_out: tuple[str, ...] = ()  # the roles (`auxiliary_data`, …) that were not given and are a part of train_data
    factory: Callable[[], nn.Module] | None = field(default=None, repr=False)  # the user's own constructor, if given
    folder: Path | None = field(default=None, repr=False)  # where the user's code lies, if it was read from a file
    generator: PictureGenerator | None = field(default=None, repr=False)  # the adversary's, if the user gave one
    client: Client | None = None  # what a client does before it sends, if the user says so
    augment: tuple[str, ...] = ()  # what training does to pictures before every step (`result.augmentation`)
    near_duplicates: tuple[int, int] | None = None  # clusters found among private and test records, and what they hold
    received: Received | None = field(default=None, repr=False)  # captured updates, audited in place of computed ones
    given: Mapping[str, str] = field(default_factory=dict)  # what it was read from: target, data, checkpoint, …

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels (of a volume times its slices), height and width of one picture."""
        c, h, w = self.private.images.shape[1:]
        return int(c), int(h), int(w)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Channels, of a volume its slices, height and width."""
        return sizes_of(*self.input_shape, self.model.depth)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return next(self.model.parameters()).device

    def fresh(self, seed: int) -> PixelModel:
        """Return a new model for a training run: a copy of what the user's factory gives, else `reinitialised`.

        It is a copy since a factory may return the same network, or the same layers, at every call. Raises ValueError
        where the factory returned layers that are in use already and cannot be copied.
        """
        if self.factory is None:
            return reinitialised(self.model, seed)
        with forked(seed):
            given = self.factory()
            found = plain(given)
            if found.failure is not None and common_tensors(given, self.model):
                raise ValueError(f"the model's function returned layers that are in use already and {found.failure}")
            model = self.model.around(found.network.to(self.device))
            if trained_names(model) != trained_names(self.model):
                begin(model, self.private.images[:1])
        return model


def begin(model: PixelModel, one: Tensor) -> None:
    """Pass one picture (1, C, H, W), so that lazy layers have weights, and what forward freezes is frozen."""
    modes = [(module, module.training) for module in model.modules()]
    model.train()  # what some layers keep for eval mode they forget here
    model.eval()
    try:
        with torch.no_grad():
            model.output(one.to(model.mean.device))
    finally:
        for module, training in modes:
            module.training = training


def trained_names(model: nn.Module) -> frozenset[str]:
    """Return the names of the parameters that are trained and have weights."""
    return frozenset(name for name, p in model.named_parameters() if p.requires_grad and not is_lazy(p))


def shared_parameters(model: nn.Module) -> tuple[int, int]:
    """Return how many numbers of the parameters are trained, and so shared, and how many there are."""
    counts = [(p.numel() if p.requires_grad else 0, p.numel()) for p in model.parameters()]
    return sum(shared for shared, _ in counts), sum(each for _, each in counts)


def reinitialised(model: PixelModel, seed: int) -> PixelModel:
    """Return a copy with fresh weights: every module's own `reset_parameters`, under `seed`, the same on every device.

    Parameters that no module resets (class tokens, positional embeddings) keep their values, and so does all that is
    frozen (`requires_grad` is False), with the statistics of its BatchNorm layers (`_kept_buffers`).
    """
    device = model.mean.device
    fresh = copy.deepcopy(model).to("cpu")  # where they are drawn
    frozen = [
        (module, name, p)
        for module in fresh.modules()
        for name, p in module._parameters.items()
        if p is not None and not p.requires_grad
    ]
    buffers = _kept_buffers(fresh) if frozen else []
    kept = [(place, name, tensor, tensor.detach().clone()) for place, name, tensor in frozen]
    held = [(place, name, tensor, tensor.detach().clone()) for place, name, tensor in buffers]
    with forked(seed):
        for module in fresh.modules():
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if callable(reset):
                reset()
    with torch.no_grad():
        # A reset may fill a tensor or put another in its place, and may reach into the layers below its own.
        for module, name, parameter, value in kept:
            module._parameters[name] = parameter
            parameter.copy_(value)
        for module, name, buffer, value in held:
            module._buffers[name] = buffer
            buffer.copy_(value)
    return fresh.to(device)


def _kept_buffers(model: nn.Module) -> list[tuple[nn.Module, str, Tensor]]:
    """Return the buffers that a fresh start leaves: those of modules of which a parameter is frozen.

    A module without parameters (BatchNorm with affine=False) holds statistics of what the layer before it gives: it
    goes with the last module before it, in the order of registration, that has parameters.
    """
    found, frozen = [], False
    for module in model.modules():
        own = [p for p in module._parameters.values() if p is not None]
        frozen = any(not p.requires_grad for p in own) if own else frozen
        found += [(module, name, b) for name, b in module._buffers.items() if frozen and b is not None]
    return found
