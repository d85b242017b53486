"""Everything that is registered, on a device that is not the CPU and on the CPU: both come to the same.

Bit for bit, but for the last digits of what the engine finds (`ROUNDING`).

Run as `python -m tests.leakaudit.device_rows [FILE]`, in a process of its own (`tests.pretend`): it prints a table of
rows, and writes them to FILE as JSON. A row is what was tried, by its name, and what is wrong with it, if anything.
With one seed an audit is therefore the same on every device, but for the rounding of its kernels.

With `--device cuda` the device is a real one: numbers may then be off by its rounding (`THERE`), how far is said, and
everything is run a second time, of which other bits are told.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import math
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import leakaudit
from benchmarks.differing import differences, plain, tensors
from leakaudit.attacks._attacking import starts
from leakaudit.audit import weaker
from leakaudit.engine import matching as engine
from leakaudit.engine.stacked import Trials, Unsupported
from leakaudit.errors import NotApplicable
from leakaudit.load.generators import picture_generator
from leakaudit.load.preflight import preflight
from leakaudit.protocol import registry
from leakaudit.protocol.attack import Attack, Beforehand
from leakaudit.protocol.client import release, share
from leakaudit.protocol.defense import Defense, chain
from leakaudit.protocol.federation import FEDSGD, parse_client
from leakaudit.protocol.gradients import Mode, in_mode
from leakaudit.protocol.registry import parse_defense
from leakaudit.protocol.stages import apart, later_changes, model_changed
from leakaudit.protocol.target import PixelModel, Target
from leakaudit.protocol.weakened import weakened
from leakaudit.result.schema import to_json
from leakaudit.scene import fingerprint, plan
from leakaudit.score import tuning
from leakaudit.score.utility import Senders, utility
from leakaudit.units import desk
from leakaudit.units.desk import Desk
from leakaudit.units.shelf import opened
from leakaudit.work.precision import exact
from leakaudit.work.seeding import forked, random_states
from tests import pretend
from tests.attacks.attack_scenes import EVERYTHING, Shifted, TinyViT, pictures_of, records

SHAPE, CLASSES, VICTIMS, LINE_UP = (1, 8, 8), 3, 2, 4
CASES: dict[str, tuple[str, int, Mode]] = {  # each network, batch and mode beside each other one
    "conv-1-eval": ("conv", 1, "eval"),
    "conv-4-train": ("conv", 4, "train"),
    "dense-1-train": ("dense", 1, "train"),
    "dense-4-eval": ("dense", 4, "eval"),
}
DROPOUT = "dropout-1-train"  # a network that draws from the device's own generator
DROPPING = [  # what is run on that: whatever runs the model in the client's mode
    ("engine", "match"), ("attack", "dlg"), ("attack", "inverting-gradients"), ("attack", "linkage"),
    ("defense", "none"), ("defense", "precode"),
]  # fmt: skip
THERE = 1e-3  # relative: of all numbers on a real device, whose kernels round otherwise
HASHED = {"/learned"}  # digests: another rounding is another digest
ROUNDING = 1e-4  # relative: on a device the engine multiplies and adds in another order than on a CPU, to wait for less
SHORT = {  # settings that only how well a thing works depends on
    "steps": 2, "restarts": 1, "undo_steps": 2, "decoder_steps": 2, "draws": 2, "pairs": 8, "rehearsals": 2,
    "epochs": 1, "pictures": 2, "latent": 4, "candidates": 2, "policies": 1, "points": 2, "probes": 4, "bottleneck": 4,
}  # fmt: skip


def case_of(name: str) -> tuple[str, int, Mode]:
    """Return network, batch size and mode of a case."""
    return ("dropout", 1, "train") if name == DROPOUT else CASES[name]


def network(name: str) -> nn.Module:
    with forked(0):
        if name == "dense":
            return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, CLASSES))
        if name == "dropout":
            return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Dropout(0.25), nn.Linear(12, CLASSES))
        if name == "vit":
            return TinyViT((1, 8, 8), 4, 12, CLASSES)
        if name == "chain":
            return nn.Sequential(
                nn.Conv2d(1, 4, 3, padding=1), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(256, CLASSES)
            )
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


@exact()  # as an audit is
def an_attack(name: str, case: str, device: str) -> Any:
    """Return what an attack makes of what two clients share, behind what it was built against."""
    attack: Attack = short(registry.attacks()[name]())
    if attack.kind != "linkage" and case != next(iter(CASES)) and "rehearsals" in registry.settings_of(type(attack)):
        attack = replace(attack, rehearsals=0)  # type: ignore[call-arg]  # a rehearsal is a tuning: once is enough
    needs = attack.needs
    built, batch, mode = case_of(case)
    if needs.dense_input or needs.batchnorm or "buffers" in attack.requires:
        built = "dense" if needs.dense_input else "conv"
    built = "vit" if needs.tokens else "chain" if needs.chain else built
    against = target(built, device)
    parts = [parse_defense(needs.defense)] if needs.defense else []
    parts += [Shifted()] if needs.replaced_records or attack.examines & {"records"} else []
    defense = chain(*parts)
    if attack.plants():
        known = Beforehand(SHAPE, CLASSES, batch, against.loss, mode, against.auxiliary.to(against.device))
        against = replace(against, model=attack.plant(against.model, known, drawn(5)))
    released = release(defense, against.private[: VICTIMS * batch], drawn())
    exposure = replace(EVERYTHING, labels="labels" in attack.requires)
    with forked(6):
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
            client=parse_client(f"fedavg:epochs=2:batch={max(1, batch // 2)}") if needs.local_steps else FEDSGD,
        )
    if needs.generator:
        given = pictures_of(SHAPE)
        update = replace(update, prior=picture_generator(given.make, given.latent, SHAPE, against.device, 0))
    strangers = [name for name, tensor in tensors(update) if tensor.device.type != against.device.type]
    if strangers:
        raise AssertionError(f"not on the model's device: {strangers}")
    with forked(7):
        if attack.kind != "linkage":
            return attack(against.model, update, drawn(2))
        shown = records(VICTIMS * LINE_UP, SHAPE, CLASSES, 4).to(against.device)
        update = replace(update, candidate_labels=shown.labels.view(VICTIMS, LINE_UP))
        return attack.link(against.model, update, shown.images.view(VICTIMS, LINE_UP, *SHAPE), drawn(2))


@exact()
def a_defense(name: str, case: str, device: str) -> Any:
    """Return what a defense makes at every stage, at full and at half strength, and what it costs."""
    built, batch, mode = case_of(case)
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
            of, defense, release(defense, of.private, drawn(1)), senders=Senders(8), epochs=1, seeds=1, seed=0
        )
    return found


@exact()
def the_engine(way: str, case: str, device: str) -> Any:
    built, batch, mode = case_of(case)
    of = target(built, device)
    with forked(6):
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
    with in_mode(of.model, mode), forked(7):
        if way == "match":
            return engine.match(of.model, of.loss, images, labels, update.gradients, engine.squared, rows)
        try:
            return engine.WAYS[way](Trials(of.model, of.loss, images, labels, update.gradients, engine.cosine, rows))
        except Exception as error:  # what a way cannot run it refuses, on every device in the same words
            return str(error).splitlines()[0]


def the_checks(_: str, case: str, device: str) -> Any:
    built, batch, mode = case_of(case)
    found = preflight(target(built, device), mode=mode, batch_size=batch, records=8, candidates=4, costs=True)
    return [each for each in found if each.id != "cost"]  # which is a time


def a_scan(device: str) -> Any:
    """Return the result of a whole scan as it is written, but for times and the device's name."""
    sets = [TensorDataset(of.images, of.labels) for of in (records(n, SHAPE, CLASSES, n) for n in (24, 18, 16))]
    return scanned(network("conv"), sets, device, defense="mixup,gaussian", augment="crop, mirror")


def a_scan_of_findings(device: str) -> Any:
    """Return the same of a scan of volumes with several findings each."""

    def volumes(count: int) -> list[tuple[Tensor, Tensor]]:
        pictures = records(6 * count, SHAPE, CLASSES, count).images.view(count, 1, 6, *SHAPE[1:])
        return [(x, (x.mean((0, 2, 3)) > 0.5).float()) for x in pictures]

    with forked(0):
        built = nn.Sequential(nn.Conv3d(1, 4, 3, 2, 1), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(192, 6))
    return scanned(built, [volumes(n) for n in (24, 18, 40)], device, defense="class-conditional")


def a_scan_taken_up(device: str) -> Any:
    """Return the same of a scan that takes up what attacks drew on the device, then of one that does nothing."""
    with tempfile.TemporaryDirectory() as folder:
        shelf = opened(Path(folder))
        for _ in range(3):
            with desk.at(Desk(shelf)) as own:
                found = a_scan(device)
            assert own is not None
            if own.unkept:
                raise AssertionError(f"{len(own.unkept)} outcomes cannot be written")
            for path, private in list(shelf.kept()) if not own.found else ():
                if not private:
                    path.unlink()
    return found | {"computed again": len(own.computed)}


def scanned(built: nn.Module, sets: list[Any], device: str, **options: Any) -> Any:
    plan.BATTERIES["quick"] = replace(plan.BATTERIES["quick"], steps=2, tuning_victims=1, decoder_steps=2, epochs=1)
    options |= {"battery": "quick", "attacks": ["labels"], "all_attacks": True, "records": 2, "candidates": 3}
    result = leakaudit.scan(built, sets[0], test_data=sets[1], auxiliary_data=sets[2], device=device, **options)
    for defense in result.defenses:
        for attack in defense.attacks:
            if "failed" in attack.statuses:
                raise AssertionError(f"{attack.name} on {defense.spec} failed: {attack.reason}")
    written = json.loads(to_json(result))
    written["timings"], written["made"] = {}, ""
    written["environment"].pop("card", None)
    written["environment"]["device"] = written["hashes"]["environment"] = ""
    return written


@dataclass(frozen=True)
class Row:
    """What was tried, and what is wrong with it: nothing where it is empty."""

    name: str
    wrong: str
    far: float = 0.0  # the largest relative difference of numbers between the CPU and the device
    again: str = ""  # where a second time on the device gave other bits


def row(name: str, call: Callable[[str], Any], device: str, compared: bool = True) -> Row:
    """Run a call on both devices and compare; without comparing only see that it runs, and alike a second time."""
    real = device != pretend.NAME
    try:
        expected = plain(outcome(call, "cpu" if compared else device))
        before = random_states()
        with pretend.drawing() as draws, pretend.unordered() as loose:  # a real device counts neither
            found = plain(outcome(call, device))
        different = list(differences(expected, found))
        rounding = THERE if real and compared else ROUNDING if name.startswith(("engine", "attack")) else 0.0
        wrong = [
            each.told
            for each in different
            if each.far > rounding or not (each.tensor or real)  # a pretended device rounds as the CPU does
            if not (real and each.where in HASHED)
        ][:3]
        if compared and draws:  # what the audit itself draws comes from the CPU
            wrong.append(f"drawn from the device's own generator: {', '.join(sorted(draws))}")
        if loose:  # a second time would give other bits on a GPU
            wrong.append(f"adds up in any order: {', '.join(sorted(loose))}")
        states = zip(before, random_states(), strict=True)
        if moved := [name for (name, one), (_, other) in states if not torch.equal(one, other)]:
            wrong.append(f"the random state is not as it was of {moved}")
        again = list(differences(found, plain(outcome(call, device)))) if real and compared else []
        far = max((each.far for each in different if math.isfinite(each.far)), default=0.0)
        return Row(name, "; ".join(wrong), far, "; ".join(each.told for each in again[:3]))
    except Exception as error:
        ours = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename]
        places = " > ".join(f"{Path(f.filename).name}:{f.lineno}" for f in ours[-6:] if "pretend" not in f.filename)
        return Row(name, f"{type(error).__name__}: {error} ({places})")


def outcome(call: Callable[[str], Any], device: str) -> Any:
    try:
        return call(device)
    except (NotApplicable, Unsupported) as reason:
        return f"not applicable: {reason}"


def rows(device: str) -> Iterator[Callable[[], Row]]:
    """Yield what makes every row: each kind of thing, by name, in each case."""
    kinds: dict[str, tuple[Callable[[str, str, str], Any], list[str]]] = {
        "preflight": (the_checks, ["costs"]),
        "engine": (the_engine, ["match", *engine.WAYS]),
        "attack": (an_attack, sorted(registry.attacks())),
        "defense": (a_defense, sorted(registry.defenses())),
    }
    for kind, (call, names) in kinds.items():
        for name in names:
            for case in CASES if kind != "defense" else list(CASES)[:2]:  # of which none asks what network it is
                yield partial(row, f"{kind} {name} {case}", partial(call, name, case), device)
    for kind, name in DROPPING:
        yield partial(row, f"{kind} {name} dropout", partial(kinds[kind][0], name, DROPOUT), device, compared=False)
    yield partial(row, "scan", a_scan, device)
    yield partial(row, "scan taken up", a_scan_taken_up, device)
    yield partial(row, "scan of findings", a_scan_of_findings, device)


def main() -> None:
    """Print the table of rows, and write it where that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.leakaudit.device_rows")
    parser.add_argument("file", nargs="?", type=Path, help="write the rows as JSON")
    parser.add_argument("--device", default=pretend.NAME, help="a real one in the pretended one's place: cuda")
    parser.add_argument("--part", default="1/1", help="2/4: of every four rows the second")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.device == pretend.NAME:
        pretend.install()
    else:
        torch.zeros(1, device=options.device)  # its generator is asked for before anything is drawn
    tuning.LEAST, weaker.SHARES = 2, weaker.SHARES[:1]  # how long is tuned, how often is tried: not what is asked about
    part, of = map(int, options.part.split("/"))
    found = []
    for make in list(rows(options.device))[part - 1 :: of]:
        each = make()
        found.append(each)
        told = f"{each.wrong}{' | again: ' if each.again else ''}{each.again}"
        print(f"{'WRONG' if each.wrong else 'ok':<6}{each.name}  {each.far:.0e}  {told}", flush=True)
    if options.file:
        options.file.write_text(json.dumps({each.name: dataclasses.asdict(each) for each in found}))


if __name__ == "__main__":
    main()
