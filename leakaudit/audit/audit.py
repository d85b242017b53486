"""The audit: share, attack, score, judge. It prints nothing and writes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from leakaudit.audit import fingerprint
from leakaudit.audit.attacking import Subject, attacked
from leakaudit.audit.clock import Clock
from leakaudit.audit.pieces import chosen, outline, pieces_of
from leakaudit.audit.plan import TRAINING_BATCH, Plan, assumptions, not_tested
from leakaudit.audit.provenance import describe, exposed, settings
from leakaudit.audit.scene import Scene, set_scene
from leakaudit.errors import UserError, first_line
from leakaudit.judge.verdict import capped, judge, overall
from leakaudit.judge.words import sentences
from leakaudit.protocol.client import release
from leakaudit.protocol.defense import Defense, replaces_records
from leakaudit.protocol.exposure import preset
from leakaudit.protocol.plugins import failures
from leakaudit.protocol.registry import attacks, defenses, parse_attack
from leakaudit.protocol.target import Records, Target
from leakaudit.result.schema import AttackResult, AuditResult, DefenseResult, Estimate, Finding, Reason, Waiver
from leakaudit.score.diagnosis import compare_with_control, inspected
from leakaudit.score.metrics import further
from leakaudit.score.standin import SENTENCE
from leakaudit.score.utility import Utility, majority, utility
from leakaudit.work.progress import expired
from leakaudit.work.seeding import generator_for

Keep = Callable[[AuditResult], None]
KeepLearned = Callable[[str, Defense], None]


def audit(
    target: Target,
    plan: Plan,
    *,
    lpips_weights: Path | None = None,
    keep: Keep | None = None,
    keep_learned: KeepLearned | None = None,
    command: str = "",
    waivers: tuple[Waiver, ...] = (),
    findings: tuple[Finding, ...] = (),
) -> AuditResult:
    """Audit a target and return the result.

    `keep` is called with the result so far after every finished piece, so that nothing computed is lost; an interrupt
    ends the audit with `complete=False`. `keep_learned` is called with the spec of every defense and what it learned.
    `waivers` are those configured, `findings` what was noticed before: they go into the result and change nothing else
    in it. Raises UserError for settings that cannot work on this target.
    """
    asked = chosen(plan)
    for spec in plan.effort().attacks:
        parse_attack(spec)
    scene = set_scene(target, plan, lpips_weights, command, waivers)
    course = Course(
        replace(scene, findings=(*scene.findings, *findings, *_left_out())), Clock(plan.budget, outline(plan))
    )
    complete = True
    try:
        for spec, defense in asked:
            for _ in _audit_defense(course, spec, defense, keep_learned):
                if keep is not None:
                    keep(_result(course, complete=False))
    except KeyboardInterrupt:
        complete = False
    result = _result(course, complete=complete)
    if keep is not None:
        keep(result)
    return result


@dataclass
class Course:
    """How far an audit has come; by the defenses' specs, in their order."""

    scene: Scene
    clock: Clock
    rows: dict[str, DefenseResult] = field(default_factory=dict)
    noticed: dict[str, tuple[Finding, ...]] = field(default_factory=dict)
    learned: dict[str, str] = field(default_factory=dict)  # the hash of what a fitted defense learned


def _audit_defense(course: Course, spec: str, defense: Defense, keep_learned: KeepLearned | None) -> Iterator[None]:
    """Audit one defense; its row stands in the course, more complete each time this yields."""
    scene, plan, before = course.scene, course.scene.plan, list(course.rows.values())
    requested = spec in plan.defenses or set(plan.defenses) <= {"none"}
    fit, *planned = pieces_of(spec, defense, plan)
    try:
        with course.clock.piece(fit):
            subject, findings = _fitted(course, spec, defense, keep_learned)
    except UserError:
        raise
    except Exception as error:  # a user's model may raise anything while a generator is fitted around it
        course.clock.skip(planned)
        course.rows[spec] = _broken(spec, defense, requested, first_line(error))
        yield
        return

    results: list[AttackResult] = []
    outcome = None
    for piece in pieces_of(spec, subject.defense, plan)[1:]:  # its attacks are those of what fitting made of it
        with course.clock.piece(piece):
            if piece.attack is None:
                outcome = _accuracy(scene, subject.defense, subject.released)
                continue
            results.append(attacked(scene, subject, piece.attack, piece.role))
        course.rows[spec] = _row(scene, spec, subject.defense, requested, results, before, None)
        course.noticed[spec] = findings
        yield
    row = _row(scene, spec, subject.defense, requested, results, before, outcome)
    course.rows[spec] = row
    course.noticed[spec] = (*findings, *compare_with_control(row, course.rows["none"], outcome, plan.batch_size))
    yield


def _fitted(
    course: Course, spec: str, defense: Defense, keep_learned: KeepLearned | None
) -> tuple[Subject, tuple[Finding, ...]]:
    """Fit a defense and pass the private records through it; return it, and what is odd about what it made of them."""
    target, seed, replaces = course.scene.target, course.scene.plan.seed, replaces_records(defense)
    fitted = defense.fit(target, generator_for(seed, spec, "fit"))
    if replaces and expired():
        raise RuntimeError("the time budget ended its training early, so what it would hide is not known")
    if (found := fingerprint.of_defense(fitted)) is not None:
        course.learned[f"defense:{spec}"] = found
    if keep_learned is not None:
        keep_learned(spec, fitted)
    released = release(fitted, target.private, generator_for(seed, spec, "release"))
    return Subject(spec, fitted, released), inspected(spec, fitted, target, released, seed) if replaces else ()


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
        reason = f"training failed ({first_line(error)})"
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
    skipped = Estimate(reason="not measured yet" if plan.utility else "training runs were switched off")
    outcome = outcome or Utility((), skipped, 0.0, 0, 0)
    control = next((r.attacks for r in before if r.spec == "none"), tuple(results))
    verdict, why = judge(
        results,
        control,
        chance_identification=scene.candidates.chance,
        max_identification=plan.max_identification,
        is_control=spec == "none",
        replaces_records=replaces_records(defense),
        baselines=scene.baselines,
    )
    verdict, why = capped(verdict, why, plan.battery, preset(plan.exposure).model_control)
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
        reasons=sentences(why),
        why=why,
        requested=requested,
        guarantees=defense.guarantees(*run, scene.candidates.size),
        stronger=dict(defense.stronger),
        lowest=dict(defense.lowest),
    )


def _broken(spec: str, defense: Defense, requested: bool, told: str) -> DefenseResult:
    why = (Reason("not-applied", facts={"told": told}),)
    return DefenseResult(
        spec=spec,
        settings=settings(defense),
        facts={},
        replaces_records=replaces_records(defense),
        attacks=(),
        accuracy=Estimate(reason=sentences(why)[0]),
        accuracies=(),
        verdict="inconclusive",
        reasons=sentences(why),
        why=why,
        requested=requested,
    )


def _result(course: Course, *, complete: bool) -> AuditResult:
    scene, rows, clock = course.scene, tuple(course.rows.values()), course.clock
    target, plan = scene.target, scene.plan
    verdict, why = overall(rows) if complete else ("inconclusive", (Reason("interrupted"),))
    counts = torch.bincount(target.test.labels, minlength=1)
    return AuditResult(
        target=describe(target),
        exposure={"preset": plan.exposure, **{k: bool(v) for k, v in exposed(scene.exposure).items()}},
        assumptions=assumptions(target, plan, scene.exposure),
        findings=(*scene.findings, *(finding for found in course.noticed.values() for finding in found)),
        baselines=scene.baselines,
        chance_accuracy=float(counts.max()) / max(1, len(target.test)),
        chance_identification=scene.candidates.chance,
        max_identification=plan.max_identification,
        defenses=rows,
        verdict=verdict,
        reasons=sentences(why),
        why=why,
        not_tested=not_tested(rows),
        settings=plan.settings(),
        environment=scene.environment,
        hashes=scene.hashes | course.learned,
        waivers=scene.waivers,
        images=plan.images,
        stand_in=SENTENCE if plan.images == "redacted" else "",
        complete=complete,
        timings=dict(clock.timings) | {"total": round(time.monotonic() - clock.started, 3)},
    )


def _left_out() -> tuple[Finding, ...]:
    """Return a remark for every plug-in that could not be loaded. What was asked for by name ran without it."""
    attacks(), defenses(), further()  # whatever was asked for: which plug-ins there are does not depend on it
    return tuple(Finding("plugin-left-out", "info", sentence) for sentence in failures())
