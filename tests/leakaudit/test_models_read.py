"""Models as their owners train them: wrapped, in other precisions, with several outputs; what is refused, and how."""

from __future__ import annotations

import copy
import warnings
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import TensorDataset

from leakaudit.errors import UserError
from leakaudit.load.loading import target_from_objects
from leakaudit.load.second import second
from leakaudit.protocol.gradients import in_mode, mean_gradient, parameters_of
from leakaudit.protocol.target import Target, shared_parameters

SIDE, CLASSES = 8, 3


def data(count: int = 40) -> TensorDataset:
    images = torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return TensorDataset(images, torch.arange(count) % CLASSES)


def net(out: int = CLASSES) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, out))


def read(model: Any, **given: Any) -> Target:
    return target_from_objects(model, data(), **given)


class Around(nn.Module):
    """A network within a forward of somebody's own."""

    def __init__(self, run: Callable[[nn.Module, Tensor], Any], network: nn.Module | None = None) -> None:
        super().__init__()
        self.net, self.run = network or net(), run

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def compiled() -> nn.Module:
    return torch.compile(net(), backend="eager")  # type: ignore[return-value]


def grad_sampled() -> nn.Module:
    module = pytest.importorskip("opacus.grad_sample").GradSampleModule(net())
    F.cross_entropy(module(torch.rand(4, 3, SIDE, SIDE)), torch.arange(4) % CLASSES).backward()
    return module  # type: ignore[no-any-return]


def cast(m: Any, x: Tensor) -> Any:
    return m.net(x.to(next(m.net.parameters()).dtype))


@torch.autocast("cpu", dtype=torch.bfloat16)
def mixed(m: Any, x: Tensor) -> Any:
    return m.net(x)


def mixed_on_a_gpu(m: Any, x: Tensor) -> Any:
    with torch.autocast("cuda", dtype=torch.float16):
        return m.net(x)


PLAIN: dict[str, tuple[Callable[[], nn.Module], str]] = {  # what they are, and what is said of it
    "DataParallel": (lambda: nn.DataParallel(net()), "DataParallel around"),
    "torch.compile": (compiled, "torch.compile around"),
    "nested": (lambda: nn.DataParallel(nn.Sequential(nn.DataParallel(net()))), "DataParallel around"),
    "GradSampleModule": (grad_sampled, "GradSampleModule around"),
    "AveragedModel": (lambda: torch.optim.swa_utils.AveragedModel(net()), "AveragedModel around"),
    "float64": (lambda: net().double(), "are float64: it is computed in float32"),
    "float64 pictures": (lambda: Around(cast, net().double()), "computed in float32"),
    "autocast": (lambda: Around(mixed), "computes in bfloat16"),
    "autocast on a GPU": (lambda: Around(mixed_on_a_gpu), ""),
    "tied": (lambda: Around(lambda m, x: m.net(x)), ""),
}


@pytest.mark.parametrize(("build", "says"), PLAIN.values(), ids=PLAIN.keys())
@pytest.mark.parametrize("built", [False, True])
def test_a_model_is_computed_as_the_plain_one_in_float32(
    build: Callable[[], nn.Module], says: str, built: bool
) -> None:
    given = build()
    kept = {name: t.clone() for name, t in given.state_dict().items()}
    target, expected = read(build if built else given), read(net())
    x, y = target.private.images[:2], target.private.labels[:2]
    own, wanted = (mean_gradient(t.model, t.loss, x, y) for t in (target, expected))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(own, wanted, strict=True))
    assert all(p.dtype == torch.float32 for p in target.model.parameters())
    assert says in " ".join(target.notes)
    fresh = target.fresh(1)
    assert [p.shape for p in parameters_of(fresh)[1]] == [p.shape for p in parameters_of(target.model)[1]]
    assert fresh(x).dtype == target.model(x).dtype == torch.float32
    assert all(torch.equal(t, kept[name]) for name, t in given.state_dict().items())  # the caller's is left alone
    copy.deepcopy(target.model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("casts", [False, True])
def test_low_precision_is_computed_in_float32_on_the_weights_as_they_are(dtype: torch.dtype, casts: bool) -> None:
    low = net().to(dtype)
    target = read(Around(cast, low) if casts else low)
    x = target.private.images[:2]
    assert torch.allclose(target.model(x), copy.deepcopy(low).float()(x), atol=1e-6)
    assert f"are {str(dtype).removeprefix('torch.')}" in target.notes[0]


def test_lazy_layers_and_what_a_forward_pass_leaves_are_copied() -> None:
    def lazy() -> nn.Module:
        return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(CLASSES))

    given = lazy()
    for target in (read(given), read(lazy)):
        assert target.fresh(0)(target.private.images[:1]).shape == (1, CLASSES)
    assert any(torch.nn.parameter.is_lazy(p) for p in given.parameters())
    old = net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(old[0])
    old(torch.rand(1, 3, SIDE, SIDE))
    target = read(old)
    mean_gradient(target.model, target.loss, target.private.images[:1], target.private.labels[:1])
    copy.deepcopy(target.model)


def test_what_a_layer_keeps_of_its_weights_does_not_outlast_a_pass() -> None:
    def kept(m: Any, x: Tensor) -> Any:
        if not m.cache:
            m.cache["scale"] = m.scale * 2
        return m.net(x) * m.cache["scale"]

    def build() -> nn.Module:
        model = Around(kept)
        model.cache = {}  # type: ignore[assignment]
        model.scale = nn.Parameter(torch.ones(()))
        return model

    target = read(build)
    for model in (target.model, target.fresh(0)):
        x, y = target.private.images[:2], target.private.labels[:2]
        names, found = parameters_of(model)[0], [mean_gradient(model, target.loss, x, y) for _ in range(2)]
        assert all(bool(g.any()) for g in found[0]), names
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_what_forward_freezes_is_frozen_and_tied_weights_count_once() -> None:
    def freeze(m: Any, x: Tensor) -> Any:
        m.net[0].requires_grad_(False)
        return m.net(x)

    target = read(lambda: Around(freeze))
    assert shared_parameters(target.model) == (111, 223)
    assert len(parameters_of(target.fresh(0))[1]) == 2
    tied = nn.Sequential(nn.Flatten(), nn.Linear(192, 192), nn.Linear(192, 192), nn.Linear(192, CLASSES))
    tied[2].weight = tied[1].weight
    assert shared_parameters(read(tied).model)[1] == 192 * 192 + 2 * 192 + 193 * CLASSES


Pair = namedtuple("Pair", ["embedding", "prediction"])


@dataclass
class Both:
    embedding: Tensor
    prediction: Tensor


@dataclass(slots=True)
class Slots:
    embedding: Tensor
    prediction: Tensor


FORMS: dict[str, tuple[Callable[[Tensor, Tensor], Any], Any, str]] = {
    "tuple": (
        lambda a, b: (a, b),
        1,
        r"\[0\] \(1, 5\), \[1\] \(1, 3\): name .* by `output`, as output = 1 in model",
    ),
    "list": (lambda a, b: [a, b], -1, r"\[1\] \(1, 3\)"),
    "dict": (
        lambda a, b: {"embedding": a, "prediction": b},
        "prediction",
        r"'embedding' \(1, 5\), 'prediction' \(1, 3\)",
    ),
    "namedtuple": (Pair, "prediction", r"'prediction' \(1, 3\)"),
    "namedtuple by place": (Pair, 1, r"'prediction' \(1, 3\)"),
    "dataclass": (Both, "prediction", r"'prediction' \(1, 3\)"),
    "slots": (Slots, "prediction", r"'prediction' \(1, 3\)"),
    "nested": (lambda a, b: {"x": (a, b)}, lambda out: out["x"][1], r"'x'\[1\] \(1, 3\)"),
}


@pytest.mark.parametrize(("form", "named", "says"), FORMS.values(), ids=FORMS.keys())
def test_of_several_outputs_one_is_named_or_all_are_refused(
    form: Callable[[Tensor, Tensor], Any], named: Any, says: str
) -> None:
    def run(m: Any, x: Tensor) -> Any:
        return form(m.net(x), m.head(m.net(x)))

    def build() -> nn.Module:
        model = Around(run, net(5))
        model.head = nn.Linear(5, CLASSES)
        return model

    with pytest.raises(UserError, match=f"`model` gives 2 outputs: .*{says}"):
        read(build())
    target = read(build(), output=named)
    assert target.model(target.private.images[:2]).shape == (2, CLASSES)
    assert "left out" in " ".join(target.notes)
    with pytest.raises(UserError, match="`output` names one of what `model` gives, but there is no 'other'"):
        read(build(), output="other")
    with pytest.raises(UserError, match="`output` is True"):
        read(build(), output=True)


def auxiliary(m: Any, x: Tensor) -> Any:
    logits = m.net(x)
    return {"out": logits, "aux": logits * 2} if m.training else logits


def whole(out: Any, y: Tensor) -> Tensor:
    if isinstance(out, Tensor):
        return F.cross_entropy(out, y)
    return F.cross_entropy(out["out"], y) + 0.4 * F.cross_entropy(out["aux"], y)


def test_a_loss_of_the_whole_output_gets_it_and_what_is_left_out_is_said() -> None:
    model = Around(auxiliary)
    target = read(model, loss=whole)
    x, y = target.private.images[:3], target.private.labels[:3]
    for mode in ("eval", "train"):
        model.train(mode == "train")
        with in_mode(target.model, mode):  # type: ignore[arg-type]
            own = mean_gradient(target.model, target.loss, x, y)
            assert torch.equal(target.model.predicted(x), model.net(x))
        wanted = torch.autograd.grad(whole(model(x), y), list(model.parameters()))
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(own, wanted, strict=True))
    assert "'aux' is left out" in " ".join(read(model).notes)
    with pytest.raises(UserError, match="takes what `model` gives in one mode and not in the other"):
        read(model, loss=lambda out, y: F.cross_entropy(out["out"], y))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor, age: Tensor) -> Tensor:
        return self.net(x) + age  # type: ignore[no-any-return]


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "TorchScript": (lambda: torch.jit.script(net()), "TorchScript"),
    "no forward": (lambda: nn.ModuleList([net()]), r"has no forward: give .* holds as '0'"),
    "token ids": (
        lambda: nn.Sequential(nn.Embedding(9, 2), nn.Flatten(), nn.Linear(384, 3)),
        "audits models of pictur",
    ),
    "two inputs": (TwoInputs, r"asks for 2 inputs \(x, age\)"),
    "reentrant": (
        lambda: Around(lambda m, x: checkpoint(m.net, x, use_reentrant=True)),
        "use_reentrant=True, which allows no .* give use_reentrant=False",
    ),
}


@pytest.mark.parametrize(("build", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_audited_is_refused_with_the_mend(build: Callable[[], nn.Module], says: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = build()
    with pytest.raises(UserError, match=says):
        read(model)


def test_quantised_weights_are_refused() -> None:
    quantised = net()
    quantised.register_buffer("weight_q", torch.zeros(2, 2, dtype=torch.int8))
    with pytest.raises(UserError, match=r"quantised \('weight_q' is int8\).* give the float model it was made from"):
        read(quantised)


def test_checkpointing_without_reentrance_works() -> None:
    target = read(Around(lambda m, x: checkpoint(m.net, x, use_reentrant=False)))
    assert not second(target)


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * slope


class _Detached(_Once):
    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0].detach() * slope


@pytest.mark.parametrize(("function", "wrong"), [(_Once, True), (_Detached, True), (torch.square, False)])
def test_a_wrong_slope_of_the_gradient_is_noticed(function: Any, wrong: bool) -> None:
    apply = getattr(function, "apply", function)
    assert bool(second(read(Around(lambda m, x: m.net[3](apply(m.net[:3](x))))))) == wrong
