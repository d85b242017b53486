"""Small networks of the zoo as people wrap, cast, compile, freeze and share them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from benchmarks.zookit import CLASSES, small
from benchmarks.zoomodels import model


@model("compiled", "torch.compile")
def _compiled() -> Any:
    return torch.compile(small())


@model("data-parallel", "DataParallel")
def _parallel() -> Any:
    return nn.DataParallel(small())


@model("ddp", "DistributedDataParallel")
def _ddp() -> Any:
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    return nn.parallel.DistributedDataParallel(small())


@model("opacus", "GradSampleModule (opacus)", package="opacus")
def _opacus() -> Any:
    from opacus import GradSampleModule

    return GradSampleModule(small())


@model("lightning", "LightningModule around a network (lightning)", package="lightning")
def _lightning() -> Any:
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = small()

        def forward(self, x: Tensor) -> Tensor:
            """Return the outputs (N, ...) for pictures (N, C, H, W)."""
            return self.net(x)  # type: ignore[no-any-return]

        def training_step(self, batch: Any, index: int) -> Tensor:
            return F.cross_entropy(self(batch[0]), batch[1])

    return Module()


class Autocast(nn.Module):
    """Runs in bfloat16 inside its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small()

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (N, ...) for pictures (N, C, H, W)."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.net(x)  # type: ignore[no-any-return]


model("autocast", "torch.autocast inside forward")(Autocast)
model("half", "float16 weights", says=("float32",))(lambda: small().half())
model("bfloat16", "bfloat16 weights", says=("float32",))(lambda: small().bfloat16())
model("double", "float64 weights", says=("float32",))(lambda: small().double())
model("jit-trace", "torch.jit.trace", expect="refused", says=("torchscript",))(
    lambda: torch.jit.trace(small().eval(), torch.rand(2, 3, 32, 32))
)
model("jit-script", "torch.jit.script", expect="refused", says=("torchscript",))(lambda: torch.jit.script(small()))


@model("quantised", "Dynamic quantisation", expect="refused", says=("quantised", "float model"))
def _quantised() -> Any:
    return torch.ao.quantization.quantize_dynamic(small(), {nn.Linear}, dtype=torch.qint8)


class Checkpointed(nn.Module):
    """Recomputes its features in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.features, self.head, self.reentrant = small()[:-1], nn.Linear(128, CLASSES), reentrant  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (N, ...) for pictures (N, C, H, W)."""
        if self.reentrant and not x.requires_grad:
            x = x.detach().requires_grad_()
        return self.head(checkpoint(self.features, x, use_reentrant=self.reentrant))  # type: ignore[no-any-return]


model("checkpoint", "Gradient checkpointing, use_reentrant=False")(lambda: Checkpointed(False))
model("checkpoint-reentrant", "Gradient checkpointing, reentrant", expect="refused", says=("use_reentrant=false",))(
    lambda: Checkpointed(True)
)
model("lazy", "LazyLinear")(lambda: nn.Sequential(*small()[:-1], nn.LazyLinear(CLASSES)))  # type: ignore[index]


@model("frozen", "Frozen backbone, head trained", says=("parameters are shared",))
def _frozen() -> Any:
    net = small()
    for parameter in net[:-1].parameters():  # type: ignore[index]
        parameter.requires_grad_(False)
    return net


class Tied(nn.Module):
    """Uses one convolution twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice = nn.Conv2d(3, 8, 5, stride=2, padding=2), nn.Conv2d(8, 8, 3, padding=1)
        self.again = self.twice
        self.head = nn.Linear(128, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (N, ...) for pictures (N, C, H, W)."""
        x = F.leaky_relu(self.again(F.leaky_relu(self.twice(F.leaky_relu(self.stem(x))))))
        return self.head(F.adaptive_avg_pool2d(x, 4).flatten(1))  # type: ignore[no-any-return]


model("tied", "Weights used twice")(Tied)


class Dropping(nn.Module):
    """Drops by a function that does not ask whether it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small()

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (N, ...) for pictures (N, C, H, W)."""
        return self.net(F.dropout(x, 0.2))  # type: ignore[no-any-return]


model("functional-dropout", "F.dropout that is always on", says=("random", "forward"), leaks=False)(Dropping)


@model("weight-norm", "Weights of a convolution normalised (parametrizations.weight_norm)")
def _normed() -> Any:
    net = small()
    net[0] = nn.utils.parametrizations.weight_norm(net[0])  # type: ignore[index]
    return net


model("averaged", "AveragedModel of stochastic weight averaging", says=("taken off",))(
    lambda: torch.optim.swa_utils.AveragedModel(small())
)


class Rows(nn.Module):
    """Reads a picture row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(96, 16, batch_first=True), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (N, ...) for pictures (N, C, H, W)."""
        return self.head(self.rnn(x.transpose(1, 2).flatten(2))[0][:, -1])  # type: ignore[no-any-return]


model("lstm", "An LSTM over the rows of a picture")(Rows)


@model("same-net", "A function that returns one net at every call", says=("the same network",))
def _same() -> Any:
    net = small()
    return lambda: net


@model("fresh-net", "A function that returns a copy at every call")
def _fresh() -> Any:
    net = small()
    return lambda: copy.deepcopy(net)
