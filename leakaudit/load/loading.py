"""From a user's `model.py` or objects to a `Target`: every wrong thing ends in one sentence."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leakaudit.errors import UserError, first_line, sentence
from leakaudit.files.reading import short
from leakaudit.load.checkpoints import load_checkpoint
from leakaudit.load.datafiles import read_data
from leakaudit.load.datasets import Item, classes_of, divide, is_data, is_stream
from leakaudit.load.generators import picture_generator
from leakaudit.load.groups import Ids, check_lengths, read_groups, units_of
from leakaudit.load.modelfile import is_factory, read_spec, resolve
from leakaudit.load.records import fingerprints, one_size, per_channel, to_records, without
from leakaudit.protocol.gradients import in_mode
from leakaudit.protocol.labels import expected_loss
from leakaudit.protocol.target import LossFunction, PixelModel, Records, Target, common_tensors, own_copy
from leakaudit.protocol.usercode import importable
from leakaudit.result.augmentation import augmentation_from
from leakaudit.result.federation import client_from
from leakaudit.result.numbers import percent

HELD_OUT = {"test_data": 0.20, "auxiliary_data": 0.25}  # of train_data, for what the user does not give
ROLES = {"train_data": "private", "test_data": "test", "auxiliary_data": "auxiliary"}


def load_target(
    spec: str,
    *,
    data: Path | None = None,
    checkpoint: Path | None = None,
    device: str = "auto",
    seed: int = 0,
    limit: int = 4000,
) -> Target:
    """Load what a scan audits from `model.py`, `package.module`, or either followed by `:factory`.

    The module gives `model` and `train_data`, optionally `test_data`, `auxiliary_data`, `groups`, `loss`, `mean`,
    `std`, `classes`, `device`, `generator`, `latent`, `client` and `augment`, each an object or a zero-argument
    callable; `factory` replaces `model`. `data` (a folder of class folders or an .npz) replaces all three data names
    and `groups`, `checkpoint` the weights. At most `limit` records are read per role. The same seed gives the same
    target. Raises UserError naming the file, the name and the mend.
    """
    file = read_spec(spec, seed)
    values = dict(file.values)
    train = test = None
    if data is not None:
        train, test = read_data(data)
    with importable(file.folder):
        auto = values.pop("device", None) if device == "auto" else None
        try:
            if "model" not in values:
                raise UserError("it defines no `model`: set model to a torch.nn.Module or a function that returns one.")
            if data is not None:
                values |= {"train_data": train, "test_data": test, "auxiliary_data": None, "groups": None}
            elif "train_data" not in values:
                raise UserError("it defines no `train_data`: set it to a Dataset or DataLoader, or give --data.")
            chosen = resolve(auto, "device", seed) if auto is not None else device
            values.pop("device", None)
            target = target_from_objects(
                values.pop("model"),
                values.pop("train_data"),
                **values,
                device=chosen,
                seed=seed,
                limit=limit,
                name=file.name,
                checkpoint=checkpoint,
            )
        except UserError as error:
            raise UserError(f"{spec}: {sentence(error)}") from error
    factory = target.factory and _beside(file.folder, target.factory)
    asked = {"target": spec, "data": data, "checkpoint": checkpoint, "device_asked": device}
    given = {name: str(value) for name, value in asked.items() if value not in (None, "auto")}
    return replace(target, factory=factory, folder=file.folder, given=given)


def data_records(path: Path) -> tuple[Records, tuple[str, ...] | None]:
    """Return all records of a folder of class folders or an .npz, in their order, and its class names if it has any.

    Raises UserError naming the path.
    """
    data, _ = read_data(path)
    name = str(path)
    parts, _ = divide(data, [1.0], name=name, limit=len(data), seed=0)
    items = sorted(parts[0], key=lambda item: item.position)
    return to_records(items, one_size([(name, items)]), (0.0,), (1.0,), name, torch.device("cpu")), classes_of(data)


def _beside(folder: Path, factory: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Let a constructor import what lies beside its file also when it is called later."""

    def build() -> nn.Module:
        with importable(folder):
            return factory()

    return build


def target_from_objects(  # noqa: PLR0913 - all that a user may give
    model: Any,
    train_data: Any,
    *,
    test_data: Any = None,
    auxiliary_data: Any = None,
    groups: Any = None,
    loss: Any = None,
    mean: Any = None,
    std: Any = None,
    classes: Any = None,
    device: Any = "auto",
    generator: Any = None,
    latent: Any = None,
    client: Any = None,
    augment: Any = None,
    seed: int = 0,
    limit: int = 4000,
    name: str = "model",
    factory: Callable[[], nn.Module] | None = None,
    checkpoint: Path | None = None,
) -> Target:
    """Build a Target from objects (or zero-argument callables that return them). The caller's model is not changed.

    `train_data`, `test_data`, `auxiliary_data`: Dataset or DataLoader of (image, label) or dicts, in the model's input
    space, pixel = x·std + mean in [0, 1]; PIL pictures and uint8 arrays are taken as pixels. Missing test and auxiliary
    data are held out of `train_data` (20 % and 25 %). `groups`: whose each record is (a person, a site), as hashable
    ids in the order of `train_data`, or a dict of such by data name; None as an id: not known. `loss(logits, labels)`
    gives a scalar, cross-entropy by default. `generator` and `latent`: see `picture_generator`; `client`: a `Client` or
    its spec; `augment`: see `augmentation_from`. Records stay on the CPU; the model goes to `device`. Raises UserError.
    """
    where = _device(device)
    network, factory, told = _network(model, factory, checkpoint, seed)
    given = {"train_data": train_data, "test_data": test_data, "auxiliary_data": auxiliary_data}
    data = {role: resolve(value, role, seed) for role, value in given.items() if value is not None}
    means, stds = (per_channel(resolve(v, n, seed), n, d) for v, n, d in ((mean, "mean", 0.0), (std, "std", 1.0)))
    items, units, notes = _read(data, read_groups(resolve(groups, "groups", seed), data), limit, seed)
    shape = one_size([(_named(role, data), found) for role, found in items.items()])
    records = {r: to_records(i, shape, means, stds, _named(r, data), torch.device("cpu")) for r, i in items.items()}
    records = {role: replace(found, units=units.get(role)) for role, found in records.items()}
    pixel_model = PixelModel(network, means, stds).to(where)
    width = int((logits := _probe(pixel_model, records["train_data"][:1])).shape[1])
    _check_labels(items, width, data)
    _check_weights(pixel_model)
    private, test, auxiliary, dropped = _disjoint(records)
    return Target(
        name=name,
        model=pixel_model,
        loss=expected_loss(_loss(loss, seed, logits, records["train_data"].labels[:1].to(where))),
        private=private,
        test=test,
        auxiliary=auxiliary,
        classes=_classes(resolve(classes, "classes", seed), width, data["train_data"]),
        notes=(*told, *notes, *dropped),
        held_out=tuple(role for role in HELD_OUT if role not in data),
        factory=factory,
        generator=picture_generator(generator, latent, shape, where, seed),
        client=client_from(resolve(client, "client", seed)),
        augment=augmentation_from(resolve(augment, "augment", seed)),
    )


def _check_limit(limit: Any) -> None:
    if type(limit) is not int or limit < 3:
        raise UserError(f"limit is {short(limit)}: read at least 3 records per role.")


def _device(device: Any) -> torch.device:
    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).item()  # also refuses cuda without a GPU, and meta
    except Exception as error:  # assertion, runtime or type error, by backend
        raise UserError(
            f"device {short(device)} cannot be used here ({first_line(error)[:160]}): give auto, cpu or cuda."
        ) from error
    return chosen


def _network(
    model: Any, factory: Callable[[], nn.Module] | None, checkpoint: Path | None, seed: int
) -> tuple[nn.Module, Callable[[], nn.Module] | None, list[str]]:
    """Return a network of our own with finite float32 weights, the constructor where the user gave one, and notes."""
    built = is_factory(model)
    if built and factory is None:
        factory = model
    given = resolve(model, "model", seed)
    if not isinstance(given, nn.Module):
        source = "what model() returned is" if built else "`model` is"
        raise UserError(
            f"{source} {_kind(given)}, not a torch.nn.Module: give a classifier or a function that returns one."
        )
    if _holds_itself(given):
        raise UserError("`model` holds itself among its own layers: take that layer out.")
    network, failure = own_copy(given)
    if failure is not None and not built:
        raise UserError(f"`model` {failure}: give a function that returns the model instead.")
    notes = _given_again(model, given, failure, seed) if built else []
    if checkpoint is not None:
        notes += load_checkpoint(network, checkpoint)
    parameters = list(network.named_parameters())
    if not any(p.requires_grad for _, p in parameters):
        raise UserError("`model` has no parameter that is trained, so it shares no gradient: give a trainable model.")
    real = {n: p.is_floating_point() or p.is_complex() for n, p in parameters}
    odd = next((n for n, p in parameters if real[n] and p.dtype != torch.float32), None)
    if odd is not None:
        dtype = str(network.get_parameter(odd).dtype).removeprefix("torch.")
        raise UserError(f"the parameter {odd!r} of `model` is {dtype}, not float32: call model.float().")
    return network, factory, notes


def _holds_itself(module: nn.Module, around: tuple[nn.Module, ...] = ()) -> bool:
    """Whether a module stands somewhere within itself: whatever walks through its layers would never end."""
    return any(module is outer for outer in around) or any(
        _holds_itself(inner, (*around, module)) for inner in module.children()
    )


def _given_again(model: Any, first: nn.Module, failure: str | None, seed: int) -> list[str]:
    """Call the user's function once more: say where it gives the same network, or the same layers, as the first time.

    Every audit works on copies; what cannot be copied (`failure` says why) must be new at every call, or UserError.
    """
    try:
        again = resolve(model, "model", seed)
    except UserError:  # training runs will say so
        return []
    common = common_tensors(again, first) if isinstance(again, nn.Module) else 0
    if not common:
        return []
    if failure is not None:
        raise UserError(f"model() returns the same layers at every call, and they {failure}: build new ones in it.")
    total = sum(t.numel() for t in (*first.parameters(), *first.buffers()))
    what = "the same network" if again is first else "a network around the same layers"
    if common < total:
        what = f"a network with layers of the last one ({common:,} of {total:,} numbers are the same)"
    return [
        f"model() returned {what} at its second call: the audit works on copies, and every training run starts from a "
        "copy of it as given."
    ]


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"of type {type(value).__name__}"


def _check_weights(model: PixelModel) -> None:
    for kind, tensors in (("parameter", model.network.named_parameters()), ("buffer", model.network.named_buffers())):
        for name, tensor in tensors:
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise UserError(
                    f"the {kind} {name!r} of `model` holds NaN or infinity: load weights of a run that did not diverge."
                )


def _named(role: str, data: dict[str, Any]) -> str:
    return role if role in data else f"train_data (the part held out as {role})"


def _read(
    data: dict[str, Any], groups: dict[str, Ids], limit: int, seed: int
) -> tuple[dict[str, list[Item]], dict[str, Tensor], list[str]]:
    """Read all three roles, holding out of train_data what is not given; with the units that `groups` gives, if any."""
    _check_limit(limit)
    for role, source in data.items():
        if not is_data(source):
            raise UserError(f"`{role}` is {_kind(source)}: give a Dataset or DataLoader of (image, label) pairs.")
    held = {role: share for role, share in HELD_OUT.items() if role not in data}
    plan = [("train_data", ["train_data", *held], [1 - sum(held.values()), *held.values()])]
    plan += [(role, [role], [1.0]) for role in HELD_OUT if role in data]
    items: dict[str, list[Item]] = {}
    notes: list[str] = []
    counts: dict[str, int] = {}
    for source, roles, shares in plan:
        parts, count = divide(data[source], shares, name=source, limit=limit, seed=seed)
        counts[source] = count
        items |= dict(zip(roles, parts, strict=True))
        read = sum(map(len, parts))
        if read < count:
            notes.append(f"{read} of the {count} records of {source} were read, drawn at random.")
        for role, share in held.items() if source == "train_data" else ():
            purpose = "to measure accuracy on" if role == "test_data" else "as the adversary's own records"
            notes.append(
                f"No {role} was given: {len(items[role])} records ({percent(share)} of train_data) were held out "
                f"{purpose}."
            )
    check_lengths(groups, {source: (count, not is_stream(data[source])) for source, count in counts.items()})
    items = {role: items[role] for role in ROLES}
    sources = {role: role if role in data else "train_data" for role in ROLES}
    return items, units_of(groups, items, sources) if groups else {}, notes


def _disjoint(records: dict[str, Records]) -> tuple[Records, Records, Records, list[str]]:
    """Drop from test what is private too, and from auxiliary what is private or test: exact copies at 8 bits."""
    private, notes = records["train_data"], []
    taken = set(fingerprints(private.images))
    kept = {}
    for role in HELD_OUT:
        kept[role], dropped = without(records[role], taken)
        if not len(kept[role]):
            raise UserError(f"every picture of {role} is also a private (or test) one: give {role} other records.")
        if dropped:
            notes.append(f"{dropped} records of {role} were exact copies of private (or test) ones and were removed.")
        taken |= set(fingerprints(kept[role].images))
    return private, kept["test_data"], kept["auxiliary_data"], notes


def _probe(model: PixelModel, one: Records) -> Tensor:
    """Return the logits (1, K) of one record in eval mode; raises UserError where there are none."""
    x = one.images.to(next(model.parameters()).device)
    try:
        with torch.no_grad(), in_mode(model, "eval"):
            logits: Tensor = model(x)
    except Exception as error:  # user code may raise anything
        message = f"`model` fails on a batch of shape {tuple(x.shape)} ({first_line(error)})"
        raise UserError(f"{message}: check that it takes pictures like those of train_data.") from error
    if logits.ndim != 2 or logits.shape[0] != 1 or logits.shape[1] < 2:
        raise UserError(
            f"`model` gives an output of shape {tuple(logits.shape)} for a batch of one picture, not (1, K): "
            "give a classifier with one logit for each of K ≥ 2 classes."
        )
    return logits


def _check_labels(items: Mapping[str, Sequence[Item]], width: int, data: dict[str, Any]) -> None:
    for role, found in items.items():
        wrong = next((item for item in found if not 0 <= item.label < width), None)
        if wrong is not None:
            raise UserError(
                f"{_named(role, data)} gives the label {wrong.label} at record {wrong.position}, but the model has "
                f"{width} classes: labels run from 0 to {width - 1}."
            )


def _loss(loss: Any, seed: int, logits: Tensor, labels: Tensor) -> LossFunction:
    """Return the loss, checked on one record; a class or a function without arguments is called first."""
    if loss is None:
        return nn.functional.cross_entropy
    chosen = loss
    if isinstance(loss, type) or (is_factory(loss) and not _takes_two(loss)):
        chosen = resolve(loss, "loss", seed)
    if isinstance(chosen, nn.Module):
        chosen = copy.deepcopy(chosen).to(logits.device)
    if not callable(chosen):
        raise UserError(f"`loss` is {_kind(chosen)}: give a function of (logits, labels) that returns a scalar.")
    try:
        with torch.enable_grad():
            value = chosen(logits.detach().clone().requires_grad_(), labels)
    except Exception as error:  # user code may raise anything
        raise UserError(
            f"`loss` fails on logits {tuple(logits.shape)} and labels {tuple(labels.shape)} ({first_line(error)}): "
            "give a function of (logits, labels) that returns a scalar."
        ) from error
    if not isinstance(value, Tensor) or value.ndim != 0:
        found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise UserError(f"`loss` returns {found}, not a scalar tensor: average over the batch (reduction='mean').")
    if not value.requires_grad:
        raise UserError("`loss` returns a value without a gradient: compute it from the logits without detaching them.")
    found_loss: LossFunction = chosen
    return found_loss


def _takes_two(function: Any) -> bool:
    try:
        inspect.signature(function).bind(None, None)
    except (TypeError, ValueError):
        return False
    return True


def _classes(classes: Any, width: int, data: Any) -> tuple[str, ...]:
    """Return the class names: those given, else the dataset's where they fit the model's width, else numbers."""
    if classes is None:
        found = classes_of(data)
        return found if found and len(found) == width else tuple(map(str, range(width)))
    if isinstance(classes, int) and classes == width:
        classes = list(map(str, range(width)))
    if isinstance(classes, int):
        raise UserError(f"`classes` is {short(classes)} but the model has {width} outputs: give {width} names.")
    if isinstance(classes, str) or not isinstance(classes, Sequence):
        raise UserError(f"`classes` is {_kind(classes)}: give a list of {width} names.")
    if len(classes) != width:
        raise UserError(f"`classes` has {len(classes)} name(s) but the model has {width} outputs: give {width} names.")
    return tuple(map(str, classes))
