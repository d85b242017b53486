"""From a user's `model.py` or objects to a `Target`: every wrong thing ends in one sentence."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from leakaudit.data.datafiles import as_volumes, read_data
from leakaudit.data.datasets import Divided, Item, classes_of, divide, is_data, is_stream
from leakaudit.data.noticing import clauses, drawn_anew, misdeclared
from leakaudit.data.pictures import ANY, Expected
from leakaudit.data.records import fingerprints, is_grey, one_size, per_channel, to_records, without
from leakaudit.data.sources import opened
from leakaudit.errors import Setting, UserError, first_line, sentence
from leakaudit.files.reading import short
from leakaudit.load.expected import arranged, expected_of
from leakaudit.load.generators import picture_generator
from leakaudit.load.groups import Ids, check_lengths, read_groups, units_of
from leakaudit.load.modelfile import is_factory, read_spec, resolve
from leakaudit.load.network import check_weights, kind_of, network_of
from leakaudit.load.outputs import read_outputs
from leakaudit.load.scales import check_scale
from leakaudit.load.tasks import Labelled, labelled
from leakaudit.protocol.target import LossFunction, PixelModel, Records, Target
from leakaudit.protocol.usercode import importable
from leakaudit.result.augmentation import augmentation_from
from leakaudit.result.federation import client_from
from leakaudit.result.numbers import percent
from leakaudit.result.shapes import sizes_of

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

    The module gives `model` and `train_data`, optionally `test_data`, `auxiliary_data`, `groups`, `loss`, `output`,
    `mean`, `std`, `classes`, `device`, `generator`, `latent`, `client` and `augment`, each an object or a
    zero-argument callable; `factory` replaces `model`. `data` (a folder of class folders or an .npz) replaces all three
    data names and `groups`, `checkpoint` the weights. At most `limit` records are read per role. The same seed gives
    the same target. Raises UserError naming the file, the name and the mend.
    """
    file = read_spec(spec, seed)
    values = dict(file.values)
    read = None if data is None else read_data(data)
    with importable(file.folder):
        auto = values.pop("device", None) if device == "auto" else None
        try:
            if "model" not in values:
                raise UserError("it defines no `model`: set model to a torch.nn.Module or a function that returns one.")
            if read is not None:
                values |= {"train_data": read.train, "test_data": read.test, "auxiliary_data": None, "groups": None}
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
    notes = (*target.notes, *(read.notes if read is not None else ()))
    return replace(target, factory=factory, folder=file.folder, given=given, notes=notes)


def data_records(path: Path, expected: Expected = ANY) -> tuple[Records, tuple[str, ...] | None]:
    """Return all records of a folder of class folders or an .npz, in their order, and its class names if it has any.

    Of an archive with training and test records those of training are meant. `expected` is what the records are for.
    Raises UserError naming the path.
    """
    data, name = read_data(path).train, str(path)
    data = as_volumes(data) if expected.volumes else data
    parts = divide(data, [1.0], name=name, limit=len(data), seed=0, expected=expected).parts
    items = sorted(parts[0], key=lambda item: item.position)
    shape, depth = one_size([(name, items)])
    return to_records(items, shape, (0.0,), (1.0,), name, torch.device("cpu"), depth), classes_of(data)


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
    output: Any = None,
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
    gives a scalar, cross-entropy by default; `output`: of which of several outputs (`network.outputs.main_of`). Records
    stay on the CPU, the model lies on `device`. Raises UserError. See `picture_generator` and `client_from` too.
    """
    where = _device(device)
    network, factory, told = network_of(model, factory, checkpoint, seed)
    data, held = _data((train_data, test_data, auxiliary_data), seed)
    means, stds = (per_channel(resolve(v, n, seed), n, d) for v, n, d in ((mean, "mean", 0.0), (std, "std", 1.0)))
    read = _records(network, data, resolve(groups, "groups", seed), (means, stds), limit, seed)
    pixel_model = PixelModel(network, means, stds, depth=read.depth, grey=read.grey).to(where)
    found = read_outputs(pixel_model, read.records["train_data"], _loss(loss, seed, where), output)
    learned = labelled(read.records, found.outputs, found.loss)
    _check_labels(learned, read.items)
    _check_model(pixel_model, read)
    private, test, auxiliary, dropped = _disjoint(learned.records)
    return Target(
        name=name,
        model=pixel_model,
        loss=learned.loss,
        private=private,
        test=test,
        auxiliary=auxiliary,
        classes=_classes(resolve(classes, "classes", seed), learned, data["train_data"]),
        task=learned.task,
        notes=(*told, *found.notes, *held, *_told(read, data, learned), *learned.notes, *dropped),
        held_out=tuple(role for role in HELD_OUT if role not in data),
        factory=factory,
        generator=picture_generator(generator, latent, sizes_of(*read.shape, read.depth), where, seed),
        client=client_from(resolve(client, "client", seed)),
        augment=augmentation_from(resolve(augment, "augment", seed)),
    )


def _data(given: Sequence[Any], seed: int) -> tuple[dict[str, Any], list[str]]:
    """Return the data of every role that there is, with notes where one thing held several."""
    return opened({r: resolve(each, r, seed) for r, each in zip(ROLES, given, strict=True) if each is not None}, seed)


class _Read(NamedTuple):
    """All three roles: what the data gave, and the records made of it, labels as given; of which shape and depth."""

    items: dict[str, list[Item]]
    records: dict[str, Records]
    shape: tuple[int, int, int]
    depth: int
    grey: bool  # whether all pictures have several channels, which are equal
    notes: list[str]


def _records(
    network: nn.Module,
    data: dict[str, Any],
    groups: Any,
    scale: tuple[tuple[float, ...], tuple[float, ...]],
    limit: int,
    seed: int,
) -> _Read:
    """Read all three roles, as `network` takes them."""
    expected = expected_of(network)
    found, units, notes = _read(data, read_groups(groups, data), limit, seed, expected)
    items, told = arranged(network, found, expected)
    shape, depth = one_size([(_named(role, data), found) for role, found in items.items()])
    records = {r: to_records(i, shape, *scale, _named(r, data), torch.device("cpu"), depth) for r, i in items.items()}
    doubts = [misdeclared(items[role], scale, role) for role in data]
    notes += [*told, *(doubt for doubt in doubts if doubt is not None)]
    records = {role: replace(found, units=units.get(role)) for role, found in records.items()}
    grey = depth == 1 < shape[0] and all(is_grey(each.images) for each in records.values())
    return _Read(items, records, shape, depth, grey, notes)


def _told(read: _Read, data: Mapping[str, Any], learned: Labelled) -> list[str]:
    """Return what is said of the records: what was held out of train_data and for what, and how they were read."""
    purposes = {
        "test_data": f"to measure {learned.task.measure.name} on",
        "auxiliary_data": "as the adversary's own records",
    }
    held = [
        f"No {role} was given: {len(read.items[role])} records ({percent(share)} of train_data) were held out "
        f"{purposes[role]}."
        for role, share in HELD_OUT.items()
        if role not in data
    ]
    return [*read.notes, *held]


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


def _named(role: str, data: dict[str, Any]) -> str:
    return role if role in data else f"train_data (the part held out as {role})"


def _read(
    data: dict[str, Any], groups: dict[str, Ids], limit: int, seed: int, expected: Expected
) -> tuple[dict[str, list[Item]], dict[str, Tensor], list[str]]:
    """Read all three roles, holding out of train_data what is not given; with the units that `groups` gives, if any."""
    _check_limit(limit)
    for role, source in data.items():
        if isinstance(source, str | Path):
            mend = ": read it there, or give it as ", Setting("data"), "."
            raise UserError(f"`{role}` is the name of a file or folder, {short(str(source))}", *mend)
        if not is_data(source):
            raise UserError(f"`{role}` is {kind_of(source)}: give a Dataset or DataLoader of (image, label) pairs.")
    held = {role: share for role, share in HELD_OUT.items() if role not in data}
    plan = [("train_data", ["train_data", *held], [1 - sum(held.values()), *held.values()])]
    plan += [(role, [role], [1.0]) for role in HELD_OUT if role in data]
    items: dict[str, list[Item]] = {}
    notes: list[str] = []
    counts: dict[str, int] = {}
    for source, roles, shares in plan:
        given = as_volumes(data[source]) if expected.volumes else data[source]
        divided = divide(given, shares, name=source, limit=limit, seed=seed, expected=expected)
        counts[source] = divided.total
        items |= dict(zip(roles, divided.parts, strict=True))
        notes += _how_read(divided, source, is_stream(given))
        every = [item for part in divided.parts for item in part]
        notes += [*clauses(every, source), *drawn_anew(given, every, source, expected, seed)]
    check_lengths(groups, {source: (count, not is_stream(data[source])) for source, count in counts.items()})
    items = {role: items[role] for role in ROLES}
    sources = {role: role if role in data else "train_data" for role in ROLES}
    return items, units_of(groups, items, sources) if groups else {}, notes


def _how_read(divided: Divided, name: str, stream: bool) -> list[str]:
    """Return a note on how many records of a data set were read, where not all of one that holds them were."""
    read, count = sum(map(len, divided.parts)), divided.total
    if not stream:
        return [f"{read} of the {count} records of {name} were read, drawn at random."] if read < count else []
    which = f"all {count} that it gave" if divided.ended else f"its first {count}"
    used = "" if read == count else f", of which {read} are used, drawn at random"
    return [f"{name} gives its records one after another: {which} were read, in its own order{used}."]


def _disjoint(records: Mapping[str, Records]) -> tuple[Records, Records, Records, list[str]]:
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


def _check_labels(learned: Labelled, items: Mapping[str, Sequence[Item]]) -> None:
    width = len(learned.names)
    for role, found in learned.records.items() if learned.task.kind == "classes" else ():
        wrong = ((found.labels < 0) | (found.labels >= width)).nonzero()
        if len(wrong):
            at = int(wrong[0])
            raise UserError(
                f"{items[role][at].where} has the label {int(found.labels[at])}, but the model has {width} classes: "
                f"labels run from 0 to {width - 1}."
            )


def _loss(loss: Any, seed: int, device: torch.device) -> LossFunction | None:
    """Return the user's loss, if any; a class or a function without arguments is called first."""
    if loss is None:
        return None
    chosen = loss
    if isinstance(loss, type) or (is_factory(loss) and not _takes_two(loss)):
        chosen = resolve(loss, "loss", seed)
    if isinstance(chosen, nn.Module):
        own = next((name for name, each in chosen.named_parameters() if each.requires_grad), None)
        if own is not None:
            raise UserError(
                f"`loss` has weights of its own ({own!r}), whose gradients clients would share too: let `model` hold "
                "them and return the logits."
            )
        chosen = copy.deepcopy(chosen).to(device)
    if not callable(chosen):
        raise UserError(f"`loss` is {kind_of(chosen)}: give a function of (logits, labels) that returns a scalar.")
    found: LossFunction = chosen
    return found


def _check_model(model: PixelModel, read: _Read) -> None:
    check_weights(model)
    if any(item.raw for item in read.items["train_data"]):
        check_scale(model, read.records["train_data"])


def _takes_two(function: Any) -> bool:
    try:
        inspect.signature(function).bind(None, None)
    except (TypeError, ValueError):
        return False
    return True


def _classes(classes: Any, learned: Labelled, data: Any) -> tuple[str, ...]:
    """Return the class names: those given, else the dataset's where they fit the model's width, else numbers.

    Label groups keep their own names: what the user calls the outputs is no name of theirs.
    """
    width = len(learned.names)
    if learned.task.grouped:
        return learned.names
    if classes is None:
        found = classes_of(data)
        return found if found and len(found) == width else learned.names
    if isinstance(classes, int) and classes == width:
        classes = list(map(str, range(width)))
    if isinstance(classes, int):
        raise UserError(f"`classes` is {short(classes)} but the model has {width} outputs: give {width} names.")
    if isinstance(classes, str) or not isinstance(classes, Sequence):
        raise UserError(f"`classes` is {kind_of(classes)}: give a list of {width} names.")
    if len(classes) != width:
        raise UserError(f"`classes` has {len(classes)} name(s) but the model has {width} outputs: give {width} names.")
    return tuple(map(str, classes))
