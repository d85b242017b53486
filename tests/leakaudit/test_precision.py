"""Float32 is float32: torch's flags are as they were afterwards, and the engine is exact where a GPU would round."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.rounding import Tf32, exactly, unguarded
from leakaudit.engine import matching as engine
from leakaudit.protocol.gradients import mean_gradient
from leakaudit.protocol.target import PixelModel
from leakaudit.work import order, precision
from leakaudit.work.precision import exact
from tests.leakaudit.audited import target

NEWER = hasattr(torch._C, "_set_fp32_precision_setter")  # since torch 2.9


def flags() -> dict[str, Any]:
    """Return everything that can be read of them; a refusal to read is a value too."""
    found: dict[str, Any] = {}
    for name, (read, _) in precision._OLDER.items():
        try:
            found[name] = read()
        except RuntimeError:
            found[name] = "refused"
    if NEWER:
        for part in precision._PARTS:
            found["/".join(part)] = torch._C._get_fp32_precision_getter(*part)
    return found


@pytest.fixture(autouse=True)
def _as_they_were() -> Iterator[None]:
    with exact():
        depth, precision._entered = precision._entered, 0
        for part in precision._PARTS if NEWER else ():
            torch._C._set_fp32_precision_setter(*part, "none")
        torch.backends.cudnn.allow_tf32 = True  # as torch begins
        try:
            yield
        finally:
            precision._entered = depth


SETTINGS: dict[str, Callable[[], object]] = {
    "nothing": lambda: None,
    "convolutions": lambda: setattr(torch.backends.cudnn, "allow_tf32", True),
    "no convolutions": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "products": lambda: torch.set_float32_matmul_precision("high"),
    "bf16": lambda: torch.set_float32_matmul_precision("medium"),
}
if NEWER:
    put = torch._C._set_fp32_precision_setter
    SETTINGS |= {
        "everything": lambda: put("generic", "all", "tf32"),
        "inherited": lambda: (put("generic", "all", "tf32"), put("cuda", "conv", "none"), put("cuda", "rnn", "none")),
        "one operation": lambda: put("cuda", "conv", "ieee"),  # and the older flag still says otherwise
        "on the processor": lambda: put("mkldnn", "all", "bf16"),
    }


@pytest.mark.parametrize("setting", SETTINGS)
def test_everything_is_float32_within_and_as_it_was_afterwards(setting: str) -> None:
    SETTINGS[setting]()
    before = flags()
    with suppress(KeyError), exact():
        with exact():
            pass
        within = flags()
        raise KeyError
    assert set(within.values()) <= {False, "highest", "ieee"}
    after = flags()
    assert {name: after[name] for name, value in before.items() if value != "refused"} == {
        name: value for name, value in before.items() if value != "refused"
    }


def resnet() -> PixelModel:
    """Three stages of torchvision's ResNet, BatchNorm with statistics that eval mode can tell from none."""
    from torchvision.models.resnet import BasicBlock, ResNet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5)
        network.layer4, network.fc = nn.Identity(), nn.Linear(256, 5)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_var, 0.5, 2)
    return PixelModel(network, (0.5,) * 3, (0.25,) * 3).eval()


@pytest.mark.parametrize("guarded", [True, False])
def test_the_engine_stacks_a_resnet_where_convolutions_would_be_rounded(
    guarded: bool, ways: list[str], generator: torch.Generator
) -> None:
    """Without the guard it does not: its judge is as wrong as what it judges."""
    model = resnet()
    images, truth = torch.rand((2, 2, 1, 3, 32, 32), generator=generator)
    labels = torch.tensor([[0], [1]])
    each = [mean_gradient(model, F.cross_entropy, x, y) for x, y in zip(truth, labels, strict=True)]
    shared = tuple(torch.stack(column) for column in zip(*each, strict=True))
    with nullcontext() if guarded else unguarded(), Tf32() as rounding:
        _, slopes = engine.match(model, F.cross_entropy, images, labels, shared, engine.cosine)
    true = torch.stack([exactly(model, images[t], labels[t], tuple(s[t] for s in shared)) for t in range(len(images))])
    off = float((slopes - true).norm() / true.norm())
    assert torch.backends.cudnn.allow_tf32
    if guarded:
        assert (ways[-1], rounding.roundings) == ("stacked", 0)
        assert off < 1e-4
    else:
        assert rounding.roundings > 0
        assert off > 1e-2
        assert ways[-1] == "loop"


@pytest.mark.parametrize("own", [None, False, True])
def test_kernels_keep_to_one_order_on_a_device_and_the_flags_are_as_they_were_afterwards(
    own: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`own` is what the user had asked for: nothing, a warning, an error."""
    get = torch._C._get_deterministic_algorithms, torch._C._get_deterministic_algorithms_warn_only
    fill = torch._C._get_deterministic_fill_uninitialized_memory
    try:
        if own is not None:
            torch._C._set_deterministic_algorithms(True, warn_only=not own)
        torch.backends.cudnn.benchmark = True
        before, filters = ([each() for each in get], fill(), torch.backends.cudnn.benchmark), list(warnings.filters)
        with exact():
            assert (torch.backends.cudnn.benchmark, get[0]()) == (True, own is not None)  # on the CPU nothing is set
        monkeypatch.setattr(order, "devices_in_use", lambda: [("cuda", 0)])
        with suppress(KeyError), exact():
            assert get[0]()
            assert get[1]() is (own is not True)
            assert not torch.backends.cudnn.benchmark
            assert not fill()
            with warnings.catch_warnings(record=True) as told:
                warnings.warn("f_cuda does not have a deterministic implementation, but you set …", stacklevel=1)
                warnings.warn("something else", stacklevel=1)
            assert [str(each.message) for each in told] == ["something else"]
            raise KeyError
        assert ([each() for each in get], fill(), torch.backends.cudnn.benchmark) == before
        assert list(warnings.filters) == filters
    finally:
        torch._C._set_deterministic_algorithms(False, warn_only=False)
        torch.backends.cudnn.benchmark = False


class Seen(Exception):
    """Carries what the flags were where work began."""


@pytest.mark.parametrize("entered", ["audit", "preflight", "fit"])
def test_whatever_is_measured_is_computed_exactly(entered: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from leakaudit.audit import audit as auditing
    from leakaudit.defenses import obscurer_fit
    from leakaudit.defenses.obscure import Obscure
    from leakaudit.load import preflight as preflighting
    from leakaudit.scene.plan import Plan

    def seen(*_: Any, **__: Any) -> None:
        raise Seen(flags())

    made = target()
    calls: dict[str, tuple[object, str, Callable[[], object]]] = {
        "audit": (auditing, "set_scene", lambda: auditing.audit(made, Plan())),
        "preflight": (
            preflighting,
            "_counts",
            lambda: preflighting.preflight(made, mode="eval", batch_size=1, records=4),
        ),
        "fit": (Obscure, "fit", lambda: obscurer_fit.fit(made, Obscure(), 0)),
    }
    owner, name, call = calls[entered]
    torch._C._set_cudnn_allow_tf32(True)
    before = flags()
    monkeypatch.setattr(owner, name, seen)
    with pytest.raises(Seen) as caught:
        call()
    with exact():
        wanted = flags()
    assert caught.value.args[0] == wanted != before
