"""What a scan will do: the effective settings, and which attacks run on which defense with how much effort."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

from leakaudit.errors import UserError, sentence, worded
from leakaudit.files.reading import short
from leakaudit.judge.scope import left_out as missing
from leakaudit.judge.scope import roles
from leakaudit.protocol.attack import Attack
from leakaudit.protocol.defense import Defense, parts_of
from leakaudit.protocol.exposure import preset
from leakaudit.protocol.registry import UnknownName, attacks, parse_attack, settings_values
from leakaudit.protocol.stages import declared
from leakaudit.result.batteries import BATTERIES, TRAINING_BATCH, Battery
from leakaudit.result.federation import FEDSGD, Client, parse_client, spec_of
from leakaudit.result.outward import default_images, in_place
from leakaudit.result.rules import ANYTHING, PLANTING, STAGES
from leakaudit.result.schema import Images, Known, Value
from leakaudit.result.specs import split, together
from leakaudit.score.utility import Senders

# What a whole number may be: far more than an audit can do, and little enough for every number that follows from it.
LIMITS = {
    "records": (1, 10**6),
    "batch_size": (1, 10**6),
    "candidates": (2, 10**6),
    "seeds": (1, 1000),
    "epochs": (1, 10**5),
    "memory": (1, 2**60),
    "seed": (0, 2**63 - 1),
}
MOST_SECONDS = 30 * 365 * 86_400  # of a budget

EFFORT = ("steps", "restarts", "decoder_steps", "undo_steps", "draws", "pairs", "rehearsals")  # less of it is weaker


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The settings of a scan. `None` for seeds and epochs means the battery's own."""

    defenses: tuple[str, ...] = ()  # specs; the undefended control runs beside them
    attacks: tuple[str, ...] = ()  # empty: the battery's
    battery: str = "standard"  # quick, standard or full
    exposure: str = "adaptive"  # what the adversary knows: honest-but-curious, adaptive or malicious-server
    stages: tuple[str, ...] = ()  # moments of training, of `STAGES`, at which it is audited; none: as given
    mode: str = "eval"  # the client's: train or eval
    records: int = 16  # private ones that are attacked
    batch_size: int = 1  # records behind one shared update, of all clients that are summed in it
    client: str = ""  # what a client does before it sends, a spec; empty: as model.py says, else fedsgd
    candidates: int = 100  # in a line-up, all of one class
    max_identification: float = 0.25  # share of records that an attack may identify
    max_accuracy_loss: float = 0.1  # share of accuracy a defense may cost; asked by the advice only, not by the verdict
    all_attacks: bool = False  # skip none that cannot change a verdict any more; what `attacks` names is never skipped
    utility: bool = True  # measure accuracy, by training runs
    seeds: int | None = None  # training runs per defense
    epochs: int | None = None  # of each training run
    budget: float | None = None  # seconds for the whole scan
    memory: int | None = None  # bytes that a step of an attack may take beside model and data; None: what is free
    images: Images = field(default_factory=default_images)  # by CI where nobody says
    seed: int = 0  # one fixes everything

    def __post_init__(self) -> None:
        self._check_types()
        object.__setattr__(self, "stages", tuple(sorted(self.stages, key=_turn)))
        if self.client:
            object.__setattr__(self, "mode", self.sender().mode or self.mode)
        checks = (
            (self.battery in BATTERIES, f"battery must be one of {', '.join(BATTERIES)}"),
            (self.mode in ("train", "eval"), "{--mode} must be train or eval"),
            (self.images in ("full", "redacted", "none"), "{--images} must be full, redacted or none"),
            *_in_limits(self),
            (
                self.batch_size in (1, self.sender().clients) or self.batch_size % self.sender().clients == 0,
                f"{{--batch-size}} must be a multiple of the {self.sender().clients} clients whose updates are summed",
            ),
            (
                set(self.stages) <= set(STAGES) and len(set(self.stages)) == len(self.stages),
                f"{{--stages}} takes some of {', '.join(STAGES)}, each once",
            ),
            (self.records >= self.batch_size, "{--records} must be at least {--batch-size}"),
            (self.records % max(1, self.batch_size) == 0, "{--records} must be a multiple of {--batch-size}"),
            (0 < self.max_identification < 1, "{--max-identification} must be between 0 and 1"),
            (0 <= self.max_accuracy_loss <= 1, "{--max-accuracy-loss} must be between 0 and 1"),
            (self.budget is None or self.budget > 0, "{--budget} must be positive"),
            (self.budget is None or self.budget <= MOST_SECONDS, "{--budget} must be at most 30 years"),
        )
        for holds, rule in checks:
            if not holds:
                raise UserError(*worded(f"{rule}."))
        preset(self.exposure)

    def _check_types(self) -> None:
        for name in LIMITS:
            value = getattr(self, name)
            optional = name in ("seeds", "epochs", "memory") and value is None
            if not optional and type(value) is not int:
                raise UserError(f"{name} takes a whole number, not {short(value)}.")
        for name in ("defenses", "attacks", "stages"):
            value = getattr(self, name)
            if not isinstance(value, tuple) or not all(isinstance(spec, str) for spec in value):
                raise UserError(f"{name} takes specs like 'prune:sparsity=0.9', not {short(value)}.")
        for name in ("max_identification", "max_accuracy_loss", "budget"):
            value = getattr(self, name)
            if (value is not None or name != "budget") and type(value) not in (int, float):
                raise UserError(f"{name} takes a number, not {short(value)}.")
        for name in ("battery", "exposure", "mode", "images", "client"):
            if not isinstance(getattr(self, name), str):
                raise UserError(f"{name} takes a word, not {short(getattr(self, name))}.")
        for name in ("utility", "all_attacks"):
            if type(getattr(self, name)) is not bool:
                raise UserError(f"{name} takes true or false, not {short(getattr(self, name))}.")

    @property
    def victims(self) -> int:
        """How many clients are attacked."""
        return self.records // self.batch_size

    def sender(self) -> Client:
        """Return the client that sends."""
        return parse_client(self.client or "fedsgd")

    @property
    def own(self) -> int:
        """How many records each client holds."""
        return max(1, self.batch_size // self.sender().clients)

    def run(self, private: int, steps: int, epochs: int = 0) -> tuple[int, int, int]:
        """Return what accounting needs of the training runs of so many `steps`: of how many records batches are drawn.

        With them how large these are, and how many steps see a record's client: with local steps those of its own,
        which holds as many records as the training run leaves it.
        """
        sender = self.sender()
        if not sender.local:
            return private, TRAINING_BATCH, steps
        own = Senders(TRAINING_BATCH, sender, self.own).records_of_one(private)
        return own, sender.step_size(own), (epochs * sender.steps(own) if steps else 0)

    def settled(self, given: Client | None, private: int) -> Plan:
        """Return the plan with the client of model.py (`given`) in place where no other was asked for.

        Where `batch_size` names no more than one record, a client that trains in batches holds four of them, and as
        many records are attacked as make four updates, of the `private` ones that there are.
        """
        spec = self.client or spec_of(given or FEDSGD)
        sender = parse_client(spec)
        own = 4 * sender.batch_size if sender.local_epochs else sender.batch_size
        size = self.batch_size if self.batch_size > 1 else sender.clients * max(1, own)
        if size == self.batch_size:
            return replace(self, client=spec)
        updates = max(1, min(max(4, self.records // size), private // size))
        return replace(self, client=spec, batch_size=size, records=updates * size)

    @property
    def skips(self) -> bool:
        """Whether attacks are skipped that cannot change a verdict any more."""
        return not self.all_attacks and self.battery != "full"

    def effort(self) -> Battery:
        """Return the battery with the scan's own seeds and epochs in place."""
        base = BATTERIES[self.battery]
        return replace(
            base,
            attacks=self.attacks or base.attacks,
            seeds=self.seeds or base.seeds,
            epochs=self.epochs or base.epochs,
        )

    def settings(self) -> dict[str, Value]:
        """Return the effective settings, as the result records them."""
        values: dict[str, Value] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            values[f.name] = in_place(together(value), self.images) if isinstance(value, tuple) else value
        if self.sender() == FEDSGD:  # as all results had it before there were others
            del values["client"]
        if not self.stages:
            del values["stages"]
        effort = self.effort()
        return values | {
            "attacks": in_place(together(effort.attacks), self.images),
            "seeds": effort.seeds,
            "epochs": effort.epochs,
            "steps": effort.steps,
            "restarts": effort.restarts,
            "tuning_victims": effort.tuning_victims,
            "decoder_steps": effort.decoder_steps,
            "training_batch_size": TRAINING_BATCH,
        }


def _turn(stage: str) -> int:
    return STAGES.index(stage) if stage in STAGES else len(STAGES)


def _in_limits(plan: Plan) -> Iterator[tuple[bool, str]]:
    """Yield, for each of the `LIMITS`, whether a plan keeps it, and the sentence to say where it does not."""
    for name, (least, most) in LIMITS.items():
        value = getattr(plan, name)
        option = "{--" + name.replace("_", "-") + "}"
        yield value is None or value >= least, f"{option} must be at least {least}"
        yield value is None or value <= most, f"{option} must be at most {most}"


def with_effort(attack: Attack, spec: str, effort: Battery) -> Attack:
    """Return an attack with the battery's effort in those settings of its `effort` that its spec leaves open."""
    given = {part.partition("=")[0].strip().replace("-", "_") for part in split(spec)[1].split(":")}
    left: dict[str, Any] = {name: getattr(effort, name) for name in attack.effort if name not in given}
    return replace(attack, **left) if left else attack


def attacks_for(
    defense: Defense,
    effort: Battery,
    changes: frozenset[str] | None = None,
    *,
    planting: bool = False,
    generator: bool = False,
) -> list[tuple[Attack, str]]:
    """Return (attack, role) pairs for one defense, each attack once: the battery's, the examiners, the defense's own.

    Examiners are the attacks that `examine` what the defense was seen to change (`changes`, names of
    `stages.CHANGES`; as its code declares it where it was not tried yet); what a defense names as its `adaptive`
    attacks is added to them. Both count as adaptive where there is a defense. One that is in the battery too is run
    once. Examiners that change the model are among them only where the exposure lets a server do so (`planting`), and
    those that need a generator of pictures only where one was given (`generator`).
    """
    seen = (declared(defense) if changes is None else changes) | {ANYTHING}
    chosen = [with_effort(parse_attack(spec), spec, effort) for spec in effort.attacks]
    there = {n: cls for n, cls in attacks().items() if planting or PLANTING not in cls.requires}
    names = [n for n, cls in there.items() if cls.examines & seen and (generator or not cls.needs.generator)]
    found = [with_effort(parse_attack(name), name, effort) for name in names]
    own = [with_effort(_adaptive(part, spec), spec, effort) for part in parts_of(defense) for spec in part.adaptive]
    adaptive = {attack.name: attack for attack in (*found, *own)}
    names_of = [attack.name for attack in chosen]
    role = roles(names_of, catalogue(), seen, [attack.name for attack in own])
    more = (attack for name, attack in adaptive.items() if name not in names_of)
    return [(attack, role[attack.name]) for attack in (*chosen, *more)]


def catalogue() -> tuple[Known, ...]:
    """Return every attack that is known, as a result holds it."""
    return tuple(
        Known(name, tuple(sorted(cls.examines)), tuple(sorted(cls.requires)), tuple(sorted(cls.covers)))
        for name, cls in attacks().items()
    )


def own_attacks(defense: Defense) -> tuple[str, ...]:
    """Return the names of the attacks that the parts of a defense name as built against them, each once."""
    return tuple(dict.fromkeys(_adaptive(part, spec).name for part in parts_of(defense) for spec in part.adaptive))


def lowered(plan: Plan) -> tuple[str, ...]:
    """Return the attacks, of those that every audit like this runs, whose specs may make them weaker.

    That is less effort than the battery gives or than they have by themselves, or any other setting of one's own.
    """
    base = BATTERIES[plan.battery]
    always = {split(spec)[0] for spec in base.attacks} | {name for name, cls in attacks().items() if cls.examines}
    found = []
    for spec in plan.attacks:
        attack = parse_attack(spec)
        usual = settings_values(with_effort(type(attack)(), attack.name, base))
        own = settings_values(with_effort(attack, spec, base))
        changed = [name for name in own if own[name] != usual[name]]
        if attack.name in always and any(name not in EFFORT or _less(own[name], usual[name]) for name in changed):
            found.append(attack.name)
    return tuple(found)


def _less(value: Value, usual: Value) -> bool:
    return not (isinstance(value, int | float) and isinstance(usual, int | float) and value >= usual)


def left_out(plan: Plan) -> tuple[str, ...]:
    """Return the attacks of the battery that a plan does not run."""
    return missing(plan.battery, (parse_attack(spec).name for spec in plan.effort().attacks))


def _adaptive(defense: Defense, spec: str) -> Attack:
    """Return an adaptive attack of a defense; an error names the defense, which may be somebody's own."""
    try:
        return parse_attack(spec)
    except UserError as error:
        kind = UnknownName if isinstance(error, UnknownName) else UserError  # no class of their own
        raise kind(
            f"the defense {defense.name!r} names an adaptive attack that cannot be used: {sentence(error)}"
        ) from error
