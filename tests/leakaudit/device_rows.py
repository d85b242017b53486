"""Everything that is registered, on a device that is not the CPU and on the CPU: both must come to the same, bit for bit.

Run as `python -m tests.leakaudit.device_rows [FILE]`, in a process of its own (`tests.pretend`): it prints a table of
rows, and writes them to FILE as JSON. A row is what was tried, by its name, and what is wrong with it, if anything.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakaudit.attacks._attacking import starts
from leakaudit.audit import fingerprint, plan
from leakaudit.engine import matching as engine
from leakaudit.engine.stacked import Trials, Unsupported
from leakaudit.errors import NotApplicable
from leakaudit.load.preflight import preflight
from leakaudit.protocol import registry
from leakaudit.protocol.attack import Attack
from leakaudit.protocol.client import release, share
from leakaudit.protocol.defense import Defense, chain
from leakaudit.protocol.gradients import Mode, in_mode
from leakaudit.protocol.registry import parse_defense
from leakaudit.protocol.stages import apart, later_changes, model_changed
from leakaudit.protocol.target import PixelModel, Records, Target
from leakaudit.protocol.weakened import weakened
from leakaudit.score.utility import utility
from leakaudit.work.seeding import forked
from tests import pretend
from tests.attacks.attack_scenes import EVERYTHING, Shifted, records

SHAPE, CLASSES, VICTIMS, LINE_UP = (1, 8, 8), 3, 2, 4
CASES: dict[str, tuple[str, int, Mode]] = {  # each network, batch and mode beside each other one
    "conv-1-eval": ("conv", 1, "eval"),
    "conv-4-train": ("conv", 4, "train"),
    "dense-1-train": ("dense", 1, "train"),
    "dense-4-eval": ("dense", 4, "eval"),
}
SHORT = {  # settings that only how well a thing works depends on
    "steps": 2, "restarts": 1, "undo_steps": 2, "decoder_steps": 2, "draws": 2, "pairs": 8, "rehearsals": 2,
    "epochs": 1, "pictures": 2, "latent": 4, "candidates": 2, "policies": 1, "points": 2, "probes": 4, "bottleneck": 4,
}  # fmt: skip


def network(name: str) -> nn.Module:
    with forked(0):
        if name == "dense":
            return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, CLASSES))
        built = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, CLASSES)
        )
        nn.init.uniform_(built[1].running_mean, -0.5, 0.5)
        nn.init.uniform_(built[1].running_var, 0.5, 2)
        return built


def target(name: str, device: str) -> Target:
    """Return a target as loading makes one: records on the CPU, the model on the device."""
    model = PixelModel(network(name), (0.4,), (0.25,)).to(device)
    sets = [records(24, SHAPE, CLASSES, seed) for seed in (1, 2, 3)]
    return Target(name, model, F.cross_entropy, *sets, classes=("a", "b", "c"))


def short(thing: Any) -> Any:
    known = registry.settings_of(type(thing))
    return replace(thing, **{k: v for k, v in SHORT.items() if k in known})


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def an_attack(name: str, case: str, device: str) -> Any:
    """Return what an attack makes of what two clients share, behind what it was built against."""
    attack: Attack = short(registry.attacks()[name]())
    needs = attack.needs
    built, batch, mode = CASES[case]
    if needs.dense_input or needs.batchnorm or "buffers" in attack.requires:
        built = "dense" if needs.dense_input else "conv"
    against = target(built, device)
    parts = [parse_defense(needs.defense)] if needs.defense else []
    parts += [Shifted()] if needs.replaced_records or attack.examines & {"records"} else []
    defense = chain(*parts)
    released = release(defense, against.private[: VICTIMS * batch], drawn())
    exposure = replace(EVERYTHING, labels="labels" in attack.requires)
    update = share(
        against.model,
        against.loss,
        released.to(against.device),
        defense,
        exposure,
        batch_size=batch,
        classes=CLASSES,
        mode=mode,
        generator=drawn(1),
        auxiliary=against.auxiliary,
    )
    strangers = [name for name, tensor in tensors(update) if tensor.device.type != against.device.type]
    if strangers:
        raise AssertionError(f"not on the model's device: {strangers}")
    with forked(7):
        if attack.kind != "linkage":
            return attack(against.model, update, drawn(2))
        shown = records(VICTIMS * LINE_UP, SHAPE, CLASSES, 4).to(against.device)
        update = replace(update, candidate_labels=shown.labels.view(VICTIMS, LINE_UP))
        return attack.link(against.model, update, shown.images.view(VICTIMS, LINE_UP, *SHAPE), drawn(2))


def a_defense(name: str, case: str, device: str) -> Any:
    """Return what a defense makes at every stage, at full and at half strength, and what it costs."""
    built, batch, mode = CASES[case]
    of = target(built, device)
    with forked(7):
        defense: Defense = short(registry.defenses()[name]()).fit(of, drawn())
    found: dict[str, Any] = {"learned": fingerprint.of_defense(defense)}
    for strength in (1.0, 0.5):
        at = weakened(defense, strength)
        own = of.private[: VICTIMS * batch]
        released = release(at, own, drawn(1))
        replayed = release(at, own.to(of.device), drawn(1))  # an attacker's, where the model is
        where = {replayed.images.device.type, replayed.labels.device.type}, released.images.device.type
        if where != ({of.device.type}, "cpu"):
            raise AssertionError(f"released records lie elsewhere than those that were given: {where}")
        with forked(7):
            model = at.transform_model(copy.deepcopy(of.model), drawn(2))
            found[f"shared at {strength}"] = share(
                model,
                of.loss,
                released.to(of.device),
                at,
                replace(EVERYTHING, defense=False, auxiliary=False),
                batch_size=batch,
                classes=CLASSES,
                mode=mode,
                generator=drawn(3),
            )
        found[f"replayed at {strength}"] = replayed
    pictures = of.auxiliary.images[:4].to(of.device)
    with forked(7):
        found["likelihood"] = defense.likelihood(replayed.images, pictures)
        found["touched"] = sorted(defense.touched(model, pictures))
        found["changes"] = sorted(later_changes(model, of.loss, [of.private[:batch]], defense, mode, 5))
        found["model"] = model_changed(of.model, model, of.private[:4])
        found["apart"] = apart(defense, of.private, drawn(4))
        found["costs"] = utility(
            of, defense, release(defense, of.private, drawn(1)), batch_size=8, epochs=1, seeds=1, seed=0
        )
    return found


def the_engine(way: str, case: str, device: str) -> Any:
    built, batch, mode = CASES[case]
    of = target(built, device)
    update = share(
        of.model,
        of.loss,
        of.private[: VICTIMS * batch].to(of.device),
        Defense(),
        EVERYTHING,
        batch_size=batch,
        classes=CLASSES,
        mode=mode,
        generator=drawn(),
    )
    assert update.labels is None
    images = starts(of.model, update, 2, drawn(1))
    rows = torch.arange(VICTIMS, device=of.device).repeat_interleave(2)
    labels = of.private.labels[: VICTIMS * batch].to(of.device).view(VICTIMS, batch)[rows]
    with in_mode(of.model, mode):
        if way == "match":
            return engine.match(of.model, of.loss, images, labels, update.gradients, engine.squared, rows)
        return engine.WAYS[way](Trials(of.model, of.loss, images, labels, update.gradients, engine.cosine, rows))


def the_checks(case: str, device: str) -> Any:
    built, batch, mode = CASES[case]
    found = preflight(target(built, device), mode=mode, batch_size=batch, records=8, candidates=4, costs=True)
    return [each for each in found if each.id != "cost"]  # which is a time


def tensors(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors in a value, with where they stand."""
    if isinstance(value, Tensor):
        yield path, value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for each in dataclasses.fields(value):
            yield from tensors(getattr(value, each.name), f"{path}.{each.name}")
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from tensors(each, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for i, each in enumerate(value):
            yield from tensors(each, f"{path}.{i}")


def plain(value: Any) -> Any:
    """Return a value with nothing of a device left in it, which equals another where both are the same to the bit."""
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), value.detach().cpu().contiguous().numpy().tobytes()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value if isinstance(value, str | int | float | bool | None) else type(value).__name__


def differences(one: Any, other: Any, path: str = "") -> Iterator[str]:
    """Yield where two plain values differ."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        for key in one:
            yield from differences(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            yield from differences(a, b, f"{path}/{i}")
    elif one != other and not (one != one and other != other):
        told = [each if not isinstance(each, tuple) else "other bits" for each in (one, other)]
        yield f"{path}: {told[0]!r} on the CPU, {told[1]!r} on the device"


@dataclass
class Row:
    """What was tried, and what is wrong with it; `drew` says what drew on the device's own generator there."""

    name: str
    wrong: str = ""
    drew: list[str] = field(default_factory=list)


def row(name: str, call: Callable[[str], Any]) -> Row:
    """Run a call on both devices and compare."""
    try:
        expected = outcome(call, "cpu")
        before = torch.pretend.get_rng_state()  # type: ignore[attr-defined]
        with pretend.counted() as (_, draws):
            found = outcome(call, pretend.NAME)
        wrong = list(differences(plain(expected), plain(found)))
        if not torch.equal(before, torch.pretend.get_rng_state()):  # type: ignore[attr-defined]
            wrong.append("the device's random state is not as it was")
        return Row(name, "; ".join(wrong[:3]), sorted(draws))
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)
        frames = [f"{Path(f.filename).name}:{f.lineno}" for f in place if "leakaudit" in f.filename or "/work/" in f.filename]
        return Row(name, f"{type(error).__name__}: {error} ({' > '.join(frames[-4:])})")


def outcome(call: Callable[[str], Any], device: str) -> Any:
    try:
        return call(device)
    except (NotApplicable, Unsupported) as reason:
        return f"not applicable: {reason}"


def rows() -> Iterator[Row]:
    for case in CASES:
        yield row(f"preflight {case}", lambda device, case=case: the_checks(case, device))  # type: ignore[misc]
        for way in ("match", *engine.WAYS):
            yield row(f"engine {way} {case}", lambda device, w=way, c=case: the_engine(w, c, device))  # type: ignore[misc]
        for name in registry.attacks():
            yield row(f"attack {name} {case}", lambda device, n=name, c=case: an_attack(n, c, device))  # type: ignore[misc]
        for name in registry.defenses():
            yield row(f"defense {name} {case}", lambda device, n=name, c=case: a_defense(n, c, device))  # type: ignore[misc]


def main() -> None:
    torch.set_num_threads(1)
    pretend.install()
    import time
    found = []
    t = time.process_time()
    for each in rows():

        found.append(each); took=time.process_time() - t; t = time.process_time()
        print(f"{'ok' if not each.wrong else 'WRONG':<6}{each.name}  {each.wrong} {each.drew or ''} {took:.2f}s", flush=True)
    if sys.argv[1:]:
        Path(sys.argv[1]).write_text(json.dumps([dataclasses.asdict(each) for each in found]))
    print(time.process_time())


if __name__ == "__main__":
    main()
