"""The audit: share, attack, score, judge. It prints nothing and writes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from leakaudit.audit.attacking import attacked, lacking
from leakaudit.audit.canary import Planting, planted
from leakaudit.audit.clock import Clock
from leakaudit.audit.costs import NOMINAL, measured
from leakaudit.audit.course import Course, Measured, Staged
from leakaudit.audit.pieces import Piece, chosen, in_turn, outline, pieces_of
from leakaudit.audit.taking import unlike
from leakaudit.audit.weaker import seen_weakened
from leakaudit.errors import OutOfTime, UserError, first_line
from leakaudit.judge.caps import capped, caps
from leakaudit.judge.captured import about_captured, is_captured, on_trust
from leakaudit.judge.exposed import exposed
from leakaudit.judge.moments import here, over_stages
from leakaudit.judge.scope import assumptions, not_tested
from leakaudit.judge.settled import Tally, drawer
from leakaudit.judge.verdict import Case, errors_of, judge, overall
from leakaudit.judge.words import sentences
from leakaudit.protocol.defense import Defense, replaces_records
from leakaudit.protocol.registry import parse_attack
from leakaudit.protocol.stages import CHANGES
from leakaudit.protocol.target import Records, Target
from leakaudit.result.batteries import TRAINING_BATCH
from leakaudit.result.dates import now
from leakaudit.result.outward import all_in_place
from leakaudit.result.rules import FIT, UPDATES, WEAKENED, scored_victims
from leakaudit.result.schema import (
    AttackResult,
    AuditResult,
    Controls,
    DefenseResult,
    Estimate,
    Examined,
    Finding,
    Guarantee,
    Reason,
    Waiver,
)
from leakaudit.scene import fingerprint, provenance
from leakaudit.scene.examine import Subject, examine
from leakaudit.scene.plan import Plan, catalogue, left_out, lowered, own_attacks
from leakaudit.scene.provenance import settings
from leakaudit.scene.scene import Scene, beside_strangers, set_scene
from leakaudit.scene.told import SETTINGS, at_level, quick_fit, stated, vouched
from leakaudit.scene.updates import Updates
from leakaudit.score.diagnosis import compare_with_control, inspected
from leakaudit.score.identification import hidden, of_line_ups
from leakaudit.score.measures import chance, majority
from leakaudit.score.scoring import skipped
from leakaudit.score.standin import SENTENCE
from leakaudit.score.utility import Senders, Utility, utility
from leakaudit.work import ends
from leakaudit.work.precision import exact
from leakaudit.work.progress import current, expired, stage
from leakaudit.work.seeding import generator_for, seeded

Keep = Callable[[AuditResult], None]
KeepLearned = Callable[[str, Defense], None]


@exact()
@at_level
def audit(
    target: Target,
    plan: Plan,
    *,
    lpips_weights: Path | None = None,
    keep: Keep | None = None,
    keep_learned: KeepLearned | None = None,
    command: str = "",
    waivers: tuple[Waiver, ...] = (),
    staged: Staged | None = None,
) -> AuditResult:
    """Audit a target and return the result.

    `keep` is called with the result so far after every finished piece, so that nothing computed is lost; an interrupt
    ends the audit with `complete=False`. `keep_learned` is called with the spec of every defense and what it learned.
    `waivers` are those configured: they go into the result and change nothing else in it. `staged` says at which moment
    of training the target is, and what earlier ones gave (`leakaudit.audit.stages`). Raises UserError for settings
    that cannot work on this target.
    """
    plan = plan if target.received else plan.settled(target.client, len(target.private))
    asked = chosen(plan)
    for spec in plan.effort().attacks:
        parse_attack(spec)
    begun, made = current().started or time.monotonic(), now()
    stage("checking the model and the data")
    scene = set_scene(target, plan, lpips_weights, command, waivers)
    interrupted = False
    stage("looking for the planted leak")
    try:
        found = planted(plan, begun, examined)
    except KeyboardInterrupt:
        ends.took()
        found, interrupted = Planting("inconclusive", ended="interrupt"), True
    controls = Controls(found.verdict, found.told, scene.told_apart, lowered(plan), left_out(plan), found.ended)
    scene = replace(scene, findings=(*scene.findings, *provenance.left_out_plugins()))
    stage("measuring what this machine takes")
    costs = NOMINAL if plan.budget is None or interrupted else measured(target, plan)
    clock = Clock(plan.budget, outline(plan, scene.sizes()), costs, begun)
    course = Course(scene, clock, controls, made, staged or Staged())
    return run(course, asked, keep, keep_learned, complete=not interrupted)


def examined(scene: Scene, asked: Sequence[tuple[str, Defense]]) -> AuditResult:
    """Audit defenses in a scene, without a time budget: what is planted, say."""
    return run(Course(scene, Clock(None, ()), Controls()), asked)


def run(
    course: Course,
    asked: Sequence[tuple[str, Defense]],
    keep: Keep | None = None,
    keep_learned: KeepLearned | None = None,
    *,
    complete: bool = True,
) -> AuditResult:
    """Audit defenses by their specs, the control first, and return the result; an interrupt leaves it incomplete.

    It did so already where `complete` is False. What earlier stages found of a defense that was not reached is kept.
    Under a time budget all are fitted before anything is attacked: one that is not fitted in time has no row at all.
    """
    try:
        for spec, defense in asked if complete and course.clock.budget is not None else ():
            _prepare(course, spec, defense, keep_learned)
        for spec, defense in asked if complete else ():
            for _ in _audit_defense(course, spec, defense, keep_learned):
                if keep is not None:
                    keep(_result(course, complete=False))
    except KeyboardInterrupt:
        ends.took()
        complete = False
    for spec, defense in () if complete else asked:
        if spec in course.staged.before and spec not in course.rows:
            course.rows[spec] = _broken(course, spec, defense, "the audit was interrupted before")
    result = _result(course, complete=complete)
    if keep is not None:
        keep(result)
    return result


def _prepare(course: Course, spec: str, defense: Defense, keep_learned: KeepLearned | None) -> None:
    """Fit a defense and try it, unless that is done. Where it cannot be, there is a row already, which says why."""
    if spec in course.prepared:
        return
    scene, clock = course.scene, course.clock
    fit, *planned = pieces_of(spec, defense, scene.plan, None, scene.sizes())
    try:
        with clock.piece(fit) as too_long:
            if too_long and replaces_records(defense):
                raise OutOfTime(too_long)
            subject, course.noticed[spec] = _fitted(course, spec, defense, keep_learned)
    except UserError:
        raise
    except Exception as error:  # a user's model may raise anything while a generator is fitted around it
        clock.skip(planned)
        course.prepared[spec] = _broken(course, spec, defense, first_line(error))
        return
    # Its attacks are those of what fitting made of it, and of what it was seen to change.
    clock.found(spec, pieces_of(spec, subject.defense, scene.plan, subject.changes, scene.sizes())[1:])
    course.prepared[spec] = subject


def _audit_defense(course: Course, spec: str, defense: Defense, keep_learned: KeepLearned | None) -> Iterator[None]:
    """Audit one defense; its row stands in the course, more complete each time this yields."""
    scene, plan, clock = course.scene, course.scene.plan, course.clock
    _prepare(course, spec, defense, keep_learned)
    subject = course.prepared.pop(spec)
    if isinstance(subject, DefenseResult):
        course.rows[spec] = subject
        yield
        return
    measured = Measured()
    pieces = [piece for piece in clock.ahead if piece.work.defense == spec]
    tally = _tally(course, spec, pieces)
    updates = Updates(scene, subject, max((piece.attack.asks for piece in pieces if piece.attack), default=0))
    for piece in in_turn(pieces, clock.costs):
        attack = piece.attack
        if attack and tally.skipped(attack.name) and not lacking(scene, attack, piece.role):
            clock.skip([piece])
            tally.add(skipped(attack, piece.role, plan.victims, tally.settled_by))
            continue
        with clock.piece(piece) as too_long:
            if attack is not None:
                result = attacked(updates, attack, piece.role, too_long)
                tally.add(result)
            elif piece.work.name == UPDATES:
                updates.compute()
                course.noticed[spec] = (*course.noticed.get(spec, ()), *unlike(updates))
                continue  # nothing is known of the row yet
            elif piece.role == WEAKENED:
                too_long = too_long or (f"the verdict was settled by {tally.settled_by}" if tally.settled_by else "")
                strength, found = seen_weakened(scene, subject, tally.results, too_long)
                measured = replace(measured, strength=strength, weakened=found)
            else:
                outcome = _accuracy(scene, subject.defense, subject.released, too_long)
                measured = replace(measured, outcome=outcome)
        course.rows[spec] = _row(course, subject, tally.results, measured)
        if attack is not None:
            tally.judged(attack.name, course.rows[spec].why)
            if not scored_victims(result):
                clock.forget(piece)
        yield
    row = _row(course, subject, tally.results, measured)
    more = compare_with_control(
        row, course.rows.get("none", row), measured.outcome, plan.batch_size, scene.target.task.measure.name
    )
    course.noticed[spec] = (*course.noticed[spec], *more)
    course.rows[spec] = _row(course, subject, tally.results, measured)  # an error that was noticed blocks a pass
    yield


def _tally(course: Course, spec: str, pieces: Sequence[Piece]) -> Tally:
    """Return the empty tally of a defense. The control runs every attack: by what they find there all others count."""
    plan, control = course.scene.plan, course.rows.get("none")
    names = [piece.work.name for piece in pieces if piece.attack is not None]
    kept = {parse_attack(each).name for each in plan.attacks} | {drawer(control.attacks if control else ())}
    return Tally(names, plan.skips and spec != "none" and control is not None, frozenset(kept))


def _fitted(
    course: Course, spec: str, defense: Defense, keep_learned: KeepLearned | None
) -> tuple[Subject, tuple[Finding, ...]]:
    """Fit a defense and try it; return it with what it changes, and what is odd about what it made of the records."""
    target, seed = course.scene.target, course.scene.plan.seed
    with seeded(seed, spec, FIT):  # for those that draw from a global generator
        fitted = defense.fit(target, generator_for(seed, spec, FIT))
    if replaces_records(defense) and expired():
        raise OutOfTime("the time budget ended its training early, so what it would hide is not known")
    if (found := fingerprint.of_defense(fitted)) is not None:
        course.learned[f"defense:{spec}"] = found
    if keep_learned is not None:
        keep_learned(spec, fitted)
    stage("trying what it changes")
    run = course.scene.plan.run(len(target.private), 0)
    fitted.facts(*run), _guarantees(course.scene, fitted, run)  # what may raise does so before attacks
    subject = examine(course.scene, spec, fitted)
    odd = inspected(spec, fitted, beside_strangers(course.scene), subject.released, seed) if subject.replaced else ()
    return subject, (*quick_fit(spec, defense, course.scene.plan.images), *odd)


def _accuracy(scene: Scene, defense: Defense, released: Records, too_long: str) -> Utility:
    effort, reason = scene.plan.effort(), too_long
    try:
        if not too_long:
            return utility(
                scene.target,
                defense,
                released,
                senders=Senders(TRAINING_BATCH, scene.plan.sender(), scene.plan.own),
                epochs=effort.epochs,
                seeds=effort.seeds,
                seed=scene.plan.seed,
            )
    except Exception as error:  # the user's model, loss or factory may raise anything
        reason = f"training failed ({first_line(error)})"
    return Utility((), Estimate(reason=reason), chance(scene.target.test, scene.target.task), 0, effort.epochs)


def _guarantees(scene: Scene, defense: Defense, run: tuple[int, int, int]) -> tuple[Guarantee, ...]:
    stated = defense.guarantees(*run, hidden(scene.candidates, scene.line_ups))
    return of_line_ups(stated, defense, scene.candidates, scene.line_ups)


def _row(course: Course, subject: Subject, results: list[AttackResult], measured: Measured) -> DefenseResult:
    scene, plan, spec, defense = course.scene, course.scene.plan, subject.spec, subject.defense
    skipped = Estimate(reason="not measured yet" if plan.utility else "training runs were switched off")
    outcome = measured.outcome or Utility((), skipped, 0.0, 0, 0)
    control = course.rows["none"].attacks if spec != "none" and "none" in course.rows else tuple(results)
    run = plan.run(len(scene.target.private), outcome.steps, outcome.epochs)
    guarantees = _guarantees(scene, defense, run)
    guarantees = vouched(defense, guarantees, plan.images)
    captured = {} if scene.target.received is None else dict(scene.target.received.told)
    trusted = is_captured(captured, spec)
    guarantees = tuple(map(on_trust, guarantees)) if trusted else guarantees
    examined = Examined(
        changes=tuple(name for name in CHANGES if name in subject.changes),
        independent=None if trusted else subject.independent,  # that of the claimed defense, which nobody saw
        repeats=subject.repeats,
        strength=measured.strength,
        weakened=measured.weakened,
        **exposed(results, scene.candidates.chance, scene.baselines)._asdict(),
    )
    errors = errors_of(spec, (*scene.findings, *course.noticed.get(spec, ())))
    verdict, why = judge(
        Case(
            attacks=results,
            control=control,
            baselines=scene.baselines,
            chance=scene.candidates.chance,
            limit=plan.max_identification,
            planting=scene.exposure.model_control,
            is_control=spec == "none",
            replaces_records=subject.replaced,
            examined=examined,
            guarantees=guarantees,
            errors=errors,
            alike=scene.candidates.targets is None,
        )
    )
    verdict, why = capped(verdict, why, _caps(course))
    earlier = course.staged.before.get(spec, ())
    stages = (*earlier, *here(course.staged.now, verdict, why, results))
    verdict, why = over_stages(verdict, why, earlier, plan.max_identification, plan.stages[len(stages) :])
    verdict, why = about_captured(verdict, why, spec, results, captured, errors)
    return DefenseResult(
        spec=spec,
        settings=stated(defense, settings(defense), plan.images, SETTINGS),
        facts=stated(defense, defense.facts(*run), plan.images),
        replaces_records=subject.replaced,
        attacks=tuple(results),
        accuracy=outcome.estimate,
        accuracies=outcome.accuracies,
        verdict=verdict,
        reasons=sentences(why),
        why=why,
        requested=requested(spec, plan),
        guarantees=guarantees,
        stronger=dict(defense.stronger),
        lowest=dict(defense.lowest),
        examined=examined,
        adaptive=own_attacks(defense),
        stages=stages,
    )


def requested(spec: str, plan: Plan) -> bool:
    """Return whether a defense was asked for; the control is where nothing else was."""
    return spec in plan.defenses or set(plan.defenses) <= {"none"}


def _caps(course: Course) -> tuple[Reason, ...]:
    scene = course.scene
    return caps(scene.plan.settings(), provenance.exposed(scene.exposure), course.controls, scene.findings)


def _broken(course: Course, spec: str, defense: Defense, told: str) -> DefenseResult:
    plan, earlier = course.scene.plan, course.staged.before.get(spec, ())
    own = (Reason("not-applied", facts={"told": told}),)
    verdict, why = over_stages("inconclusive", own, earlier, plan.max_identification)
    return DefenseResult(
        spec=spec,
        settings=stated(defense, settings(defense), plan.images, SETTINGS),
        facts={},
        replaces_records=replaces_records(defense),
        attacks=(),
        accuracy=Estimate(reason=sentences(own)[0]),
        accuracies=(),
        verdict=verdict,
        reasons=sentences(why),
        why=why,
        requested=requested(spec, plan),
        stages=(*earlier, *here(course.staged.now, "inconclusive", own, ())),
    )


def _result(course: Course, *, complete: bool) -> AuditResult:
    scene, rows, clock = course.scene, tuple(course.rows.values()), course.clock
    target, plan = scene.target, scene.plan
    verdict, why = overall(rows) if complete else ("inconclusive", (Reason("interrupted"),))
    known, exposure = catalogue(), {"preset": plan.exposure, **provenance.exposed(scene.exposure)}
    found = AuditResult(
        target=provenance.describe(target),
        exposure=exposure,
        assumptions=assumptions(plan.settings(), exposure, provenance.describe(target), target.notes),
        findings=(*scene.findings, *(finding for found in course.noticed.values() for finding in found)),
        baselines=scene.baselines,
        chance_accuracy=chance(target.test, target.task),
        chance_labels=majority(target.test) if target.task.grouped else None,
        measure=target.task.measure.name,
        chance_identification=scene.candidates.chance,
        max_identification=plan.max_identification,
        defenses=rows,
        verdict=verdict,
        reasons=sentences(why),
        why=why,
        not_tested=not_tested(rows, known, plan.settings()),
        known=known,
        settings=plan.settings(),
        environment=scene.environment,
        hashes=scene.hashes | course.learned,
        waivers=scene.waivers,
        images=plan.images,
        controls=course.controls,
        stand_in=SENTENCE if plan.images == "redacted" else "",
        complete=complete,
        captured={} if target.received is None else dict(target.received.told),
        claims=() if target.received is None else target.received.claims,
        made=course.made,
        timings=dict(clock.timings) | {"total": round(time.monotonic() - clock.started, 3)},
    )
    return all_in_place(found, plan.images)
