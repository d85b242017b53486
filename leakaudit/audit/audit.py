"""The audit: share, attack, score, judge. It prints nothing and writes nothing but what a defense learned."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from leakaudit.audit import fingerprint
from leakaudit.audit.clock import Clock
from leakaudit.audit.plan import (
    TRAINING_BATCH,
    Plan,
    assumptions,
    attack_weight,
    attacks_for,
    capped,
    not_tested,
    weight_of,
)
from leakaudit.audit.provenance import describe, exposed, settings
from leakaudit.audit.scene import Scene, set_scene
from leakaudit.errors import NotApplicable, UserError
from leakaudit.judge.verdict import judge, overall
from leakaudit.protocol.attack import Attack, Reconstruction
from leakaudit.protocol.client import SharedUpdate, release, share
from leakaudit.protocol.defense import Defense, replaces_records
from leakaudit.protocol.exposure import Exposure
from leakaudit.protocol.gradients import Mode
from leakaudit.protocol.registry import parse_attack, parse_defense
from leakaudit.protocol.target import PixelModel, Records, Target
from leakaudit.result.schema import AttackResult, AuditResult, DefenseResult, Estimate, Finding, Value, Waiver
from leakaudit.score.diagnosis import concluded, inspected
from leakaudit.score.scoring import failed, score
from leakaudit.score.standin import SENTENCE
from leakaudit.score.tuning import tune
from leakaudit.score.utility import Utility, majority, utility
from leakaudit.work.memory import Memory, bounded, exhausted
from leakaudit.work.progress import expired
from leakaudit.work.seeding import derive, generator_for

Keep = Callable[[AuditResult], None]


def audit(
    target: Target,
    plan: Plan,
    *,
    lpips_weights: Path | None = None,
    keep: Keep | None = None,
    directory: Path | None = None,
    command: str = "",
    waivers: tuple[Waiver, ...] = (),
) -> AuditResult:
    """Audit a target and return the result.

    `keep` is called with the result so far after every finished piece, so that nothing computed is lost; an interrupt
    ends the audit with `complete=False`. `directory` is where defenses save what they learned. `waivers` are those
    configured: they go into the result and change nothing in it. Raises UserError for settings that cannot work on
    this target.
    """
    specs = [spec for spec in plan.defenses if spec != "none"]
    if len(set(specs)) != len(specs):
        raise UserError("a --defense is given twice: give each once.")
    chosen: list[tuple[str, Defense]] = [("none", parse_defense("none")), *((s, parse_defense(s)) for s in specs)]
    for spec in plan.effort().attacks:
        parse_attack(spec)
    scene = set_scene(target, plan, lpips_weights, command, waivers)
    scene = replace(scene, findings=(*scene.findings, *_left_behind(plan, directory)))
    weight = sum(weight_of(defense, plan) for _, defense in chosen)
    clock = Clock(plan.budget, weight)
    rows: list[DefenseResult] = []
    noticed: dict[str, tuple[Finding, ...]] = {}
    learned: dict[str, str] = {}  # the hash of what each fitted defense learned
    complete = True
    try:
        for spec, defense in chosen:
            requested = spec in plan.defenses or not specs
            for row, found in _audit_defense(scene, spec, defense, requested, rows, learned, clock, directory):
                rows, noticed[spec] = [*(r for r in rows if r.spec != spec), row], found
                if keep is not None:
                    keep(_result(scene, rows, noticed, learned, clock, complete=False))
    except KeyboardInterrupt:
        complete = False
    result = _result(scene, rows, noticed, learned, clock, complete=complete)
    if keep is not None:
        keep(result)
    return result


def _audit_defense(
    scene: Scene,
    spec: str,
    defense: Defense,
    requested: bool,
    before: list[DefenseResult],
    learned: dict[str, str],
    clock: Clock,
    directory: Path | None,
) -> Iterator[tuple[DefenseResult, tuple[Finding, ...]]]:
    """Yield the row of one defense and what was noticed of it, more complete each time."""
    target, plan = scene.target, scene.plan
    findings: tuple[Finding, ...] = ()
    try:
        with clock.piece(f"{spec}: fit", 2.0 if replaces_records(defense) else 0.0):
            fitted = defense.fit(target, generator_for(plan.seed, spec, "fit"))
            if replaces_records(defense) and expired():
                raise RuntimeError("the time budget ended its training early, so what it would hide is not known")
            if (found := fingerprint.of_defense(fitted)) is not None:
                learned[f"defense:{spec}"] = found
            if directory is not None and plan.images == "full":  # what it learned describes private records
                _save(fitted, directory / "defenses" / _slug(spec))
            released = release(fitted, target.private, generator_for(plan.seed, spec, "release"))
            if replaces_records(defense):
                findings = inspected(spec, fitted, target, released, plan.seed)
    except UserError:
        raise
    except Exception as error:  # a user's model may raise anything while a generator is fitted around it
        clock.left -= weight_of(defense, plan) - (2.0 if replaces_records(defense) else 0.0)
        yield _broken(spec, defense, requested, f"the defense could not be applied: {_first_line(error)}"), ()
        return

    results: list[AttackResult] = []
    for attack, role in attacks_for(fitted, plan.effort()):
        with clock.piece(f"{spec}: {attack.name}", attack_weight(attack)):
            results.append(_run(scene, spec, fitted, released, attack, role))
        yield _row(scene, spec, fitted, requested, results, before, None), findings
    outcome = None
    if plan.utility:
        with clock.piece(f"{spec}: accuracy", 3.0):
            outcome = _accuracy(scene, fitted, released)
    row = _row(scene, spec, fitted, requested, results, before, outcome)
    yield (
        row,
        (*findings, *concluded(row, next((r for r in before if r.spec == "none"), row), outcome, plan.batch_size)),
    )


def _share(
    scene: Scene, spec: str, model: PixelModel, defense: Defense, records: Records, exposure: Exposure, who: str
) -> SharedUpdate:
    mode: Mode = "train" if scene.plan.mode == "train" else "eval"
    device = scene.target.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(scene.plan.seed, spec, who, "client"))  # dropout draws from the global generator
        return share(
            model,
            scene.target.loss,
            Records(records.images.to(device), records.labels.to(device)),
            defense,
            exposure,
            batch_size=scene.plan.batch_size,
            classes=len(scene.target.classes),
            mode=mode,
            generator=generator_for(scene.plan.seed, spec, who, "update"),
            auxiliary=copy.deepcopy(scene.target.auxiliary),
        )


def _run(scene: Scene, spec: str, defense: Defense, released: Records, attack: Attack, role: str) -> AttackResult:
    """Run one attack within the plan's memory; the result notes what was done to stay there."""
    with bounded(Memory(scene.plan.memory)) as memory:
        result = _attacked(scene, spec, defense, released, attack, role, memory)
    return replace(result, notes=(*result.notes, *memory.notes()))


def _attacked(
    scene: Scene, spec: str, defense: Defense, released: Records, attack: Attack, role: str, memory: Memory
) -> AttackResult:
    """Tune one attack on auxiliary records, run it on the victims, and score it. A crash is a status with a reason."""
    plan, target = scene.plan, scene.target
    victims = plan.victims
    exposure = replace(scene.exposure, released=True) if role == "bound" else scene.exposure
    tuned: dict[str, Value] = {}
    lacking = sorted(attack.requires - exposure.facts())
    if lacking:
        return failed(attack, role, tuned, victims, "not-applicable", f"needs {', '.join(lacking)}, not exposed")
    if expired():
        return failed(attack, role, tuned, victims, "budget", "the time budget was spent before it began")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(plan.seed, spec, attack.name))
            # The attack gets copies: one that changes the model or its knowledge must not change the next one's.
            client = defense.transform_model(copy.deepcopy(target.model), generator_for(plan.seed, spec, "model"))
            model, known = copy.deepcopy(client), copy.deepcopy(defense)
            if attack.grid and exposure.auxiliary and len(scene.rehearsal):
                own = target.auxiliary[scene.rehearsal]
                generator = generator_for(plan.seed, spec, attack.name, "tune")
                rehearsed = release(defense, own, generator)
                rehearsal = _share(scene, spec, client, known, rehearsed, exposure, "rehearsal")
                attack, tuned = tune(attack, model, rehearsal, own, generator)
            update = _share(scene, spec, client, known, released[scene.victims], exposure, "victims")
            generator = generator_for(plan.seed, spec, attack.name, "run")
            if attack.kind == "linkage":
                shown = scene.candidates.first_of_each(plan.batch_size).images()
                guess = attack.link(model, update, shown.to(target.device), generator)
            else:
                guess = attack(model, update, generator)
        if memory.refusal and isinstance(guess, Reconstruction) and "out-of-memory" in guess.statuses:
            guess = replace(guess, reason=memory.refusal)  # it knows more than the attack does
    except NotApplicable as reason:
        return failed(attack, role, tuned, victims, "not-applicable", str(reason))
    except UserError:
        raise
    except Exception as error:  # an attack that crashes must be shown as that, whatever it raised
        if exhausted(error):
            return failed(attack, role, tuned, victims, "out-of-memory", _first_line(error))
        return failed(attack, role, tuned, victims, "failed", f"{type(error).__name__}: {_first_line(error)}")
    try:
        return score(
            attack,
            role,
            tuned,
            target.private[scene.victims],
            released[scene.victims] if replaces_records(defense) else None,
            target.classes,
            guess,
            scene.candidates,
            scene.means,
            scene.lpips,
            plan.images,
            batch_size=plan.batch_size,
        )
    except Exception as error:  # what the attack returned is not what it must return
        return failed(attack, role, tuned, victims, "failed", f"its output cannot be scored: {_first_line(error)}")


def _accuracy(scene: Scene, defense: Defense, released: Records) -> Utility:
    effort = scene.plan.effort()
    try:
        return utility(
            scene.target,
            defense,
            released,
            batch_size=TRAINING_BATCH,
            epochs=effort.epochs,
            seeds=effort.seeds,
            seed=scene.plan.seed,
        )
    except Exception as error:  # the user's model, loss or factory may raise anything
        reason = f"training failed ({type(error).__name__}: {_first_line(error)})"
        return Utility((), Estimate(reason=reason), majority(scene.target.test), 0, effort.epochs)


def _row(
    scene: Scene,
    spec: str,
    defense: Defense,
    requested: bool,
    results: list[AttackResult],
    before: list[DefenseResult],
    outcome: Utility | None,
) -> DefenseResult:
    plan = scene.plan
    skipped = Estimate(reason="not measured yet" if plan.utility else "switched off with --no-utility")
    outcome = outcome or Utility((), skipped, 0.0, 0, 0)
    control = next((r.attacks for r in before if r.spec == "none"), tuple(results))
    verdict, reasons = judge(
        results,
        control,
        chance_identification=scene.candidates.chance,
        max_identification=plan.max_identification,
        is_control=spec == "none",
        replaces_records=replaces_records(defense),
        baselines=scene.baselines,
    )
    verdict, reasons = capped(plan, verdict, reasons)
    run = (len(scene.target.private), TRAINING_BATCH, outcome.steps)
    return DefenseResult(
        spec=spec,
        settings=settings(defense),
        facts=dict(defense.facts(*run)),
        replaces_records=replaces_records(defense),
        attacks=tuple(results),
        accuracy=outcome.estimate,
        accuracies=outcome.accuracies,
        verdict=verdict,
        reasons=reasons,
        requested=requested,
        guarantees=defense.guarantees(*run, scene.candidates.size),
    )


def _broken(spec: str, defense: Defense, requested: bool, reason: str) -> DefenseResult:
    return DefenseResult(
        spec=spec,
        settings=settings(defense),
        facts={},
        replaces_records=replaces_records(defense),
        attacks=(),
        accuracy=Estimate(reason=reason),
        accuracies=(),
        verdict="inconclusive",
        reasons=(reason,),
        requested=requested,
    )


def _result(
    scene: Scene,
    rows: list[DefenseResult],
    noticed: dict[str, tuple[Finding, ...]],
    learned: dict[str, str],
    clock: Clock,
    *,
    complete: bool,
) -> AuditResult:
    target, plan = scene.target, scene.plan
    run = {a.name for row in rows for a in row.attacks}
    verdict, reasons = overall(tuple(rows))
    if not complete:
        verdict, reasons = "inconclusive", ("The audit did not finish: what is here was measured, the rest was not.",)
    counts = torch.bincount(target.test.labels, minlength=1)
    return AuditResult(
        target=describe(target),
        exposure={"preset": plan.exposure, **{k: bool(v) for k, v in exposed(scene.exposure).items()}},
        assumptions=assumptions(target, plan, scene.exposure),
        findings=(*scene.findings, *(finding for found in noticed.values() for finding in found)),
        baselines=scene.baselines,
        chance_accuracy=float(counts.max()) / max(1, len(target.test)),
        chance_identification=scene.candidates.chance,
        max_identification=plan.max_identification,
        defenses=tuple(rows),
        verdict=verdict,
        reasons=reasons,
        not_tested=not_tested(run, replaced=any(row.replaces_records for row in rows)),
        settings=plan.settings(),
        environment=scene.environment,
        hashes=scene.hashes | learned,
        waivers=scene.waivers,
        images=plan.images,
        stand_in=SENTENCE if plan.images == "redacted" else "",
        complete=complete,
        timings=dict(clock.timings) | {"total": round(time.monotonic() - clock.started, 3)},
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _left_behind(plan: Plan, directory: Path | None) -> tuple[Finding, ...]:
    """Return a warning where an earlier scan left private records in a folder that is now to hold none."""
    kept = None if directory is None or plan.images == "full" else directory / "defenses"
    if kept is None or not kept.is_dir() or not any(kept.iterdir()):
        return ()
    message = (
        "The output folder still holds what defenses learned in an earlier scan with --images full: "
        "the folder defenses tells of private records."
    )
    mend = f"Delete {kept} before you pass the output folder on, or give another --output."
    return (Finding("private-files-left", "warning", message, {"folder": str(kept)}, mend),)


def _save(defense: Defense, directory: Path) -> None:
    try:
        defense.save(directory)
    except OSError as error:
        raise UserError(f"cannot write {directory}: {error.strerror or error}; choose another --output.") from error


def _slug(spec: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in spec)
