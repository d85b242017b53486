"""What the user's network returns, looked at on two records in both modes: what the loss is of, what is left out."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from leakaudit.data.refusal import BOXES, SOUND, TOKENS, refused
from leakaudit.errors import UserError, first_line, message_of
from leakaudit.files.reading import short
from leakaudit.network.outputs import Layout, Main, Named, Unpacking, Whole, main_of, said, tensors_of
from leakaudit.network.plain import LOW, precisions
from leakaudit.protocol.gradients import Mode, in_mode, parameters_of
from leakaudit.protocol.target import LossFunction, PixelModel, Records, begin
from leakaudit.work.precision import exact
from leakaudit.work.seeding import seeded

SHOWN = 8  # outputs that a refusal names
LOOKED = 2**22  # numbers in a picture up to which it is tried what else a network takes


@dataclass(frozen=True)
class Opened:
    """What was found out: the output (1, ...) of the first record, the loss as it takes what the model gives, notes."""

    outputs: Tensor
    loss: LossFunction | None
    notes: tuple[str, ...]


def read_outputs(model: PixelModel, records: Records, loss: LossFunction | None, named: Any) -> Opened:
    """Look at the outputs of the first records, set how `model` reads them, and return what else there is to know.

    `loss` is the user's, None: none was given; `named` which output it takes, where the user says so. Lazy layers have
    their weights afterwards. Raises UserError where there is no output, or several of which none was named.
    """
    if isinstance(named, bool) or not (named is None or isinstance(named, int | str) or callable(named)):
        raise UserError(f"`output` is {short(named)}: give a number, a name, or a function of what the model returns.")
    two = records[:2]
    with seeded(0, "outputs"), exact(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of autocast on devices that are not there, say: the user's own runs tell them
        notes, eval_ = _first(model, two)
        train = _trained(model, two)
    forms = [eval_] if train is None else [eval_, train]
    loss, more = _read(model, forms, two, loss, named)
    outputs = main_of(eval_, named)
    if not outputs.ndim or outputs.shape[0] != 1 or not outputs.numel() or not outputs.is_floating_point():
        raise UserError(
            f"`model` gives an output of shape {tuple(outputs.shape)} for a batch of one picture, not (1, ...): "
            "give a model whose output has a row for each picture, as a classifier's K logits."
        )
    return Opened(outputs.float(), loss, (*notes, *more))


def _first(model: PixelModel, two: Records) -> tuple[list[str], Any]:
    """Run the network for the first time, in eval mode, and see which precisions it computes in."""
    one, notes = two.images[:1], []
    kept, failure = dict(_kept(model.network)), None
    try:
        with precisions() as seen:
            begin(model, one)
    except Exception as error:  # user code may raise anything; with the error goes what its pass held in memory
        failure = _fails(model, one, error)
    if failure is not None:
        model.float32 = True  # what casts its pictures to what its weights were fails without
        try:
            begin(model, one)
        except Exception:
            raise failure from None
    model.caches = tuple(place for place, held in _kept(model.network) if held - kept.get(place, set()))
    low = sorted(str(dtype).removeprefix("torch.") for dtype in LOW[:2] if dtype in seen)
    if low or model.float32:
        model.float32 = True
        what = f"computes in {' and '.join(low)}" if low else "casts what it computes"
        notes.append(f"The model {what} (torch.autocast, or casts of its own): here it is computed in float32.")
    return notes, _output(model, one, "eval")


def _kept(network: nn.Module) -> Iterator[tuple[tuple[str, str], set[int]]]:
    """Yield the layers and their attributes that are dictionaries of tensors, with the ids of these."""
    for layer, module in network.named_modules():
        for name, value in vars(module).items():
            if type(value) is dict and not name.startswith("_"):
                yield (layer, name), {id(part) for part in value.values() if isinstance(part, Tensor)}


def _output(model: PixelModel, x: Tensor, mode: Mode) -> Any:
    """Return what the network returns, without its graph, after a backward pass through it."""
    x = x.to(next(model.parameters()).device, copy=True).requires_grad_()  # as attacks have it
    with torch.enable_grad(), in_mode(model, mode), _no_reentrance():
        found = model.output(x)
        reached = [t.float().sum() for _, t in tensors_of(found) if t.requires_grad and not t.is_complex()]
        if reached:
            total = torch.stack([each.reshape(()) for each in reached]).sum()
            torch.autograd.grad(total, [x, *parameters_of(model)[1]], allow_unused=True)
    return found


@contextmanager
def _no_reentrance() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "use_reentrant" not in message_of(error):
            raise
        raise UserError(
            "`model` recomputes activations by torch.utils.checkpoint with use_reentrant=True, which allows no "
            "gradients of its gradient: give use_reentrant=False (of transformers: gradient_checkpointing_enable("
            'gradient_checkpointing_kwargs={"use_reentrant": False})).'
        ) from error


def _runs(model: PixelModel, x: Tensor, mode: Mode) -> bool:
    try:
        with torch.no_grad(), in_mode(model, mode):
            model.output(x.to(model.mean.device))
    except Exception:  # user code may raise anything
        return False
    return True


def _trained(model: PixelModel, two: Records) -> Any:
    """Return what the network returns of two records in train mode; None where it does not run."""
    try:
        return _output(model, two.images, "train")
    except UserError:
        raise
    except Exception:  # user code may raise anything; what stops a scan in train mode, its preflight says
        return None


def _fails(model: PixelModel, x: Tensor, error: Exception) -> UserError:
    asked = _arguments(model.network)
    if "embedding" in message_of(error).lower() or ("input_ids" in asked and "pixel_values" not in asked):
        return refused(f"`model` takes {TOKENS}")
    if {"input_values", "input_features"} & set(asked[:1]):
        return refused(f"`model` takes {SOUND}")
    if isinstance(error, NotImplementedError) and "forward" in message_of(error):
        inner = [name for name, child in model.network.named_children() if any(True for _ in child.parameters())]
        mend = f", as the one it holds as {inner[0]!r}" if len(inner) == 1 else ""
        return UserError(
            f"`model` ({type(model.network).__name__}) has no forward: give a network that takes pictures{mend}."
        )
    if len(asked := _demanded(model.network)) > 1:
        return UserError(
            f"`model` asks for {len(asked)} inputs ({', '.join(asked)}), and records have one picture: give a network "
            "that takes pictures alone, as a module that fills in the rest."
        )
    message = f"`model` fails on a batch of shape {tuple(x.shape)} ({first_line(error)})"
    said_ = message_of(error).lower().replace("nvidia", "cuda")
    where = next((kind for kind in ("cuda", "mps", "xpu") if kind in said_), None)
    if where is not None and x.device.type != where:
        return UserError(f"{message}: let its forward compute where its input lies (x.device), not on {where} alone.")
    two, small = x.repeat(2, 1, 1, 1), x.numel() <= LOOKED
    if small and _runs(model, two, "eval"):
        return UserError(f"{message}, and not on two pictures: let it take batches of any size.")
    if small and _runs(model, two, "train"):
        return UserError(f"{message} in eval mode, and not in train mode: let it run in both.")
    return UserError(f"{message}: check that it takes pictures like those of train_data.")


def _arguments(network: nn.Module) -> list[str]:
    try:
        return list(inspect.signature(network.forward).parameters)
    except (TypeError, ValueError):
        return []


def _demanded(network: nn.Module) -> list[str]:
    """Return the names of the arguments that a network's forward cannot do without."""
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        asked = inspect.signature(network.forward).parameters.values()
    except (TypeError, ValueError):
        return []
    return [each.name for each in asked if each.kind in plain and each.default is inspect.Parameter.empty]


def _read(
    model: PixelModel, forms: Sequence[Any], two: Records, loss: LossFunction | None, named: Named
) -> tuple[LossFunction | None, list[str]]:
    """Set how the model's outputs are read, by what the user's loss takes."""
    if all(isinstance(form, Tensor) for form in forms) and not callable(named):
        return loss, []
    if isinstance(forms[0], list | tuple) and forms[0] and _is_boxes(forms[0][0]):
        raise refused(f"`model` gives {BOXES}")
    mains = [_main(form, named) for form in forms]
    wholes = [form for form in forms if not isinstance(form, Tensor)]
    whole = bool(wholes) and loss is not None and all(_takes(loss, form, two) for form in forms)
    alone = loss is None or all(m is not None and _takes(loss, m, two) for m in mains)
    if whole and not (named is not None and alone):
        return _packed(model, forms, mains, loss, named)
    for form, main, mode in zip(forms, mains, ("", "in train mode "), strict=False):
        if main is None:
            raise UserError(_several(form, mode, named))
    if not alone and loss is not None and any(_takes(loss, form, two) for form in wholes):
        shapes = " and ".join(str(tuple(main.shape)) for main in mains if main is not None)
        raise UserError(
            f"`loss` takes what `model` gives in one mode and not in the other (main outputs of shape {shapes}): let "
            "it take both, the tensor of eval mode and the several outputs of train mode."
        )
    model.read = Main(named)
    return loss, _left_out(forms, mains)


def _main(form: Any, named: Named) -> Tensor | None:
    try:
        return main_of(form, named)
    except Exception:  # a function of the user's may raise anything
        return None


def _packed(
    model: PixelModel, forms: Sequence[Any], mains: Sequence[Tensor | None], loss: Any, named: Named
) -> tuple[LossFunction, list[str]]:
    """Let the loss have the whole output."""
    layouts = []
    for form, main, mode in zip(forms, mains, ("", "in train mode "), strict=False):
        if main is None:
            told = _several(form, mode, named).partition(": name the one")[0]
            raise UserError(
                f"{told}: `loss` takes them all; name the prediction among them by `output`, {_example(form)}."
            )
        for place, tensor in tensors_of(form):
            if tensor.dim() < 1 or len(tensor) != len(main):
                raise UserError(
                    f"`loss` takes the whole output of `model`, of which {said(place)} {tuple(tensor.shape)} has no "
                    "row for each picture: give a loss of those that have."
                )
        layouts.append(Layout(form, main))
    model.read = Whole(named)
    names = [said(place) for place, tensor in tensors_of(forms[-1])]
    return Unpacking(loss, layouts), [f"The loss is given the whole output of the model: {', '.join(names)}."]


def _takes(loss: LossFunction, form: Any, two: Records) -> bool:
    """Return whether a loss gives a scalar with a gradient for an output and labels, in some usual form of those."""
    given = [t for _, t in tensors_of(form)]
    if not any(t.requires_grad for t in given):
        return False
    labels = two.labels[: len(given[0])].to(given[0].device)
    for each in (labels, labels.float(), labels.long(), labels.float().reshape(len(labels), -1)):
        try:
            with torch.enable_grad(), warnings.catch_warnings():
                warnings.filterwarnings("error", message="Using a target size")
                value = loss(form, each)
        except Exception:  # user code may raise anything
            continue
        if isinstance(value, Tensor) and value.ndim == 0 and value.requires_grad:
            return True
    return False


def _several(form: Any, mode: str, named: Named) -> str:
    found = list(tensors_of(form))
    if not found:
        return f"`model` returns {mode}{_kind(form)}, in which no tensor was found: let it return the logits."
    shown = ", ".join(f"{said(place)} {tuple(t.shape)}" for place, t in found[:SHOWN])
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    if named is not None:
        told = "its function fails or gives no tensor" if callable(named) else f"there is no {named!r}"
        return f"`output` names one of what `model` gives, but {told}: {mode}{shown}{more}."
    count = f"{len(found)} outputs" if len(found) > 1 else "1 output"
    return f"`model` gives {mode}{count}: {shown}{more}: name the one the loss takes by `output`, {_example(form)}."


def _example(form: Any) -> str:
    places = [place for place, _ in tensors_of(form)]
    place = [each for each in places if len(each) == min(map(len, places))][-1]
    if len(place) == 1:
        return f"as output = {place[0]!r} in model.py"
    return "as output = lambda out: out" + "".join(f"[{name!r}]" for name in place) + " in model.py"


def _kind(form: Any) -> str:
    return f"a value of type {type(form).__name__}"


def _is_boxes(form: Any) -> bool:
    return isinstance(form, dict) and "boxes" in form


def _left_out(forms: Sequence[Any], mains: Sequence[Tensor | None]) -> list[str]:
    """Say which outputs the loss does not see."""
    names: dict[str, None] = {}
    for form, main in zip(forms, mains, strict=True):
        if not isinstance(form, Tensor):
            names |= {said(place): None for place, t in tensors_of(form) if t is not main and t.requires_grad}
    if not names:
        return []
    left = list(names)
    shown = f"{', '.join(left[:SHOWN])}{' and more' if len(left) > SHOWN else ''}"
    return [
        f"The loss is of one output of the model; {shown} {'is' if len(left) == 1 else 'are'} left out of it. A `loss` "
        "that takes the whole output is given all."
    ]
