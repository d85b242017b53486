"""What a scan will do: the effective settings, the batteries of attacks, and the sentences its numbers stand beside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from leakaudit.errors import UserError, sentence, worded
from leakaudit.files.reading import short
from leakaudit.protocol.attack import Attack
from leakaudit.protocol.coverage import covered_by, uncovered
from leakaudit.protocol.defense import Defense, parts_of
from leakaudit.protocol.exposure import Exposure, preset
from leakaudit.protocol.registry import UnknownName, attacks, parse_attack, settings_values
from leakaudit.protocol.stages import ANYTHING, BESIDES, declared
from leakaudit.protocol.target import Target
from leakaudit.result.adversary import GRANTED
from leakaudit.result.outward import default_images, in_place
from leakaudit.result.rules import scored_victims
from leakaudit.result.schema import DefenseResult, Images, Value
from leakaudit.result.specs import split, together


@dataclass(frozen=True)
class Battery:
    """Which attacks run, and how much effort each part of the audit gets."""

    attacks: tuple[str, ...]
    steps: int  # of every iterative gradient-matching attack
    restarts: int
    seeds: int  # training runs per defense
    epochs: int
    tuning_victims: int
    decoder_steps: int  # of the decoders trained against data-replacing defenses


_ALL = ("analytic", "peeling", "labels", "dlg", "idlg", "inverting-gradients", "linkage")

BATTERIES: dict[str, Battery] = {
    "quick": Battery(("analytic", "peeling", "labels", "inverting-gradients", "linkage"), 150, 1, 1, 5, 4, 200),
    "standard": Battery(_ALL, 400, 1, 3, 15, 4, 600),
    "full": Battery(_ALL, 1200, 4, 5, 30, 8, 1500),
}


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

APART = {"apart": True}  # marks a setting of how it is shown or how long it may take: it changes no measurement
EFFORT = ("steps", "restarts", "decoder_steps", "undo_steps", "draws", "pairs", "rehearsals")  # less of it is weaker
TRAINING_BATCH = 32  # records in each shared update of the training runs that measure accuracy


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The settings of a scan. `None` for seeds and epochs means the battery's own."""

    defenses: tuple[str, ...] = ()
    attacks: tuple[str, ...] = ()  # empty: the battery's
    battery: str = "standard"
    exposure: str = "adaptive"
    mode: str = "eval"
    records: int = 16
    batch_size: int = 1
    candidates: int = 100
    max_identification: float = 0.25
    max_accuracy_loss: float = 0.1  # share of accuracy a defense may cost; asked by the advice only, not by the verdict
    utility: bool = True
    seeds: int | None = None
    epochs: int | None = None
    budget: float | None = field(default=None, metadata=APART)  # seconds for the whole scan
    # Bytes that a step of an attack may take beside model and data; None: what is free.
    memory: int | None = field(default=None, metadata=APART)
    images: Images = field(default_factory=default_images, metadata=APART)  # by CI where nobody says
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_types()
        checks = (
            (self.battery in BATTERIES, f"battery must be one of {', '.join(BATTERIES)}"),
            (self.mode in ("train", "eval"), "{--mode} must be train or eval"),
            (self.images in ("full", "redacted", "none"), "{--images} must be full, redacted or none"),
            *_in_limits(self),
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
        for name in ("defenses", "attacks"):
            value = getattr(self, name)
            if not isinstance(value, tuple) or not all(isinstance(spec, str) for spec in value):
                raise UserError(f"{name} takes specs like 'prune:sparsity=0.9', not {short(value)}.")
        for name in ("max_identification", "max_accuracy_loss", "budget"):
            value = getattr(self, name)
            if (value is not None or name != "budget") and type(value) not in (int, float):
                raise UserError(f"{name} takes a number, not {short(value)}.")
        for name in ("battery", "exposure", "mode", "images"):
            if not isinstance(getattr(self, name), str):
                raise UserError(f"{name} takes a word, not {short(getattr(self, name))}.")
        if type(self.utility) is not bool:
            raise UserError(f"utility takes true or false, not {short(self.utility)}.")

    @property
    def victims(self) -> int:
        """How many clients are attacked."""
        return self.records // self.batch_size

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


def attacks_for(defense: Defense, effort: Battery, changes: frozenset[str] | None = None) -> list[tuple[Attack, str]]:
    """Return (attack, role) pairs for one defense, each attack once: the battery's, the examiners, the defense's own.

    Examiners are the attacks that `examine` what the defense was seen to change (`changes`, names of
    `stages.CHANGES`; as its code declares it where it was not tried yet); what a defense names as its `adaptive`
    attacks is added to them. Both count as adaptive where there is a defense. One that is in the battery too is run
    once.
    """
    seen = (declared(defense) if changes is None else changes) | {ANYTHING}
    chosen = [with_effort(parse_attack(spec), spec, effort) for spec in effort.attacks]
    names = [name for name, cls in attacks().items() if cls.examines & seen]
    found = [with_effort(parse_attack(name), name, effort) for name in names]
    own = [with_effort(_adaptive(part, spec), spec, effort) for part in parts_of(defense) for spec in part.adaptive]
    adaptive = {attack.name: attack for attack in (*found, *own)}
    defended = bool(own or seen - BESIDES - {ANYTHING})
    pairs = []
    there = {attack.name for attack in chosen}
    for attack in (*chosen, *(attack for name, attack in adaptive.items() if name not in there)):
        standard = "adaptive" if defended and attack.name in adaptive else "standard"
        pairs.append((attack, "bound" if "released" in attack.requires else standard))
    return pairs


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
    names = {parse_attack(spec).name for spec in plan.effort().attacks}
    return tuple(spec for spec in BATTERIES[plan.battery].attacks if split(spec)[0] not in names)


def _adaptive(defense: Defense, spec: str) -> Attack:
    """Return an adaptive attack of a defense; an error names the defense, which may be somebody's own."""
    try:
        return parse_attack(spec)
    except UserError as error:
        kind = UnknownName if isinstance(error, UnknownName) else UserError  # no class of their own
        raise kind(
            f"the defense {defense.name!r} names an adaptive attack that cannot be used: {sentence(error)}"
        ) from error


def assumptions(target: Target, plan: Plan, exposure: Exposure) -> tuple[str, ...]:
    """Return the sentences every number of this audit stands beside."""
    facts = exposure.facts()
    counted = {"auxiliary": f" ({len(target.auxiliary)})"}
    granted = [words + counted.get(name, "") for name, words in GRANTED.items() if name in facts]
    missing = [name for name in GRANTED if name not in facts]
    mode = "evaluation mode (fixed BatchNorm statistics, no dropout)" if plan.mode == "eval" else "training mode"
    return (
        f"Each of {plan.victims} clients shares one FedSGD gradient of a batch of {plan.batch_size}, "
        f"computed in {mode}, at the model's present weights.",
        f"The adversary sees that gradient and the model, {', '.join(granted) or 'and nothing else'}"
        f" (not granted: {', '.join(missing) or 'nothing'}).",
        *(() if "labels" in facts else ("Labels are not given to the adversary: it infers them from the update.",)),
        *(("Candidates of a line-up come with their label, which they share.",) if "defense" in facts else ()),
        "The attacks' prior, step size and length are chosen on the adversary's own records, never on a victim's."
        + (
            " Where the time budget ended that, an attack ran at its default settings."
            if plan.budget is not None
            else ""
        )
        if "auxiliary" in facts
        else "The adversary owns no records to tune on: attacks run at their default settings, which can be weaker.",
        "One update per record is seen; repeated rounds of the same record would leak more.",
        *(
            (
                "Accuracy is another experiment than the attacks: models trained from fresh weights in training mode, "
                f"by Adam on shared updates of {TRAINING_BATCH} records. A defense whose noise depends on the batch "
                f"size (dp-sgd adds σC/B) is weaker there than in the attacked batches of {plan.batch_size}.",
                f"An interval of accuracy is over training runs, all on the same {len(target.test)} test records: how "
                "it would come out on others is not in it.",
            )
            if plan.utility
            else ()
        ),
        *(
            (f"Only these attacks were chosen, besides the defenses' adaptive ones: {', '.join(plan.attacks)}.",)
            if plan.attacks
            else ()
        ),
        *target.notes,
    )


def not_tested(rows: Sequence[DefenseResult]) -> tuple[str, ...]:
    """Return what this audit cannot speak of: attacks it knows but did not run, and what nothing that ran covers.

    An attack ran where at least one of its victims was scored under any of the defenses: one that could not be run, or
    crashed, covers nothing.
    """
    known = attacks()
    tried = {attack.name for row in rows for attack in row.attacks}
    ran = {attack.name for row in rows for attack in row.attacks if scored_victims(attack)}
    left = [name for name in known if name not in tried]
    covered = {surface for name in ran if name in known for surface in covered_by(known[name])}
    return (
        *((f"Attacks known here but not run in this scan: {', '.join(left)}.",) if left else ()),
        *uncovered(covered, replaced=any(row.replaces_records for row in rows)),
    )
