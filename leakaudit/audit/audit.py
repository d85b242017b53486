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
from leakaudit.audit.course import Course, Measured, Staged, Subjected
from leakaudit.audit.fitting import prepare
from leakaudit.audit.pieces import Piece, chosen, in_turn, outline, pieces_of
from leakaudit.audit.rows import broken, result_of, row_of
from leakaudit.audit.taking import unlike
from leakaudit.audit.weaker import seen_weakened
from leakaudit.errors import OutOfTime, UserError, first_line
from leakaudit.judge.settled import Tally, drawer
from leakaudit.protocol.defense import Defense, replaces_records
from leakaudit.protocol.registry import parse_attack
from leakaudit.protocol.target import Target
from leakaudit.result.batteries import TRAINING_BATCH
from leakaudit.result.dates import now
from leakaudit.result.rules import ACCURACY, UPDATES, WEAKENED, scored_victims
from leakaudit.result.schema import AuditResult, Controls, Estimate, Waiver
from leakaudit.scene import fingerprint, provenance
from leakaudit.scene.examine import Subject
from leakaudit.scene.plan import Plan, left_out, lowered
from leakaudit.scene.scene import Scene, set_scene
from leakaudit.scene.told import at_level
from leakaudit.scene.updates import Updates
from leakaudit.score.diagnosis import compare_with_control
from leakaudit.score.measures import chance
from leakaudit.score.scoring import skipped
from leakaudit.score.utility import Senders, Utility, utility
from leakaudit.units import desk
from leakaudit.units.unit import Elsewhere, Unit
from leakaudit.work import ends
from leakaudit.work.precision import exact
from leakaudit.work.progress import current, stage

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
        there = desk.current()
        gathers = there is None or there.gathers  # nobody asks a participant who only leaves outcomes
        found = planted(plan, begun, examined, scene.facts) if gathers else Planting("inconclusive")
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
    What other participants are at is left out at first, and the defenses are gone through again until nothing is: the
    last time all outcomes are at hand, and are put together as one participant alone would have.
    """
    course.asked = tuple(spec for spec, _ in asked)
    try:
        while complete:
            course.elsewhere.clear()
            for spec, defense in asked if course.clock.budget is not None else ():
                _prepare(course, spec, defense, keep_learned)
            for spec, defense in asked:
                for _ in _audit_defense(course, spec, defense, keep_learned):
                    if keep is not None:
                        keep(result_of(course, complete=False))
            if not course.elsewhere:
                break
            course.another_round()
    except KeyboardInterrupt:
        ends.took()
        complete = False
    for spec, defense in () if complete else asked:
        if spec in course.staged.before and spec not in course.rows:
            course.rows[spec] = broken(course, spec, defense, "the audit was interrupted before")
    result = result_of(course, complete=complete)
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
            found = prepare(scene, spec, defense)
    except Elsewhere as error:
        course.elsewhere.append(str(error))
        return
    except UserError:
        raise
    except Exception as error:  # what says nothing of the defense: too little time or memory
        found = first_line(error)
    if isinstance(found, str):
        clock.skip(planned)
        course.prepared[spec] = broken(course, spec, defense, found)
        return
    subject = found.within(scene)
    if found.learned is not None:
        course.learned[f"defense:{spec}"] = found.learned
    if keep_learned is not None and spec not in course.noticed:
        keep_learned(spec, subject.defense)
    course.noticed[spec] = found.noticed
    # Its attacks are those of what fitting made of it, and of what it was seen to change.
    own = pieces_of(spec, subject.defense, scene.plan, subject.changes, scene.sizes())[1:]
    clock.found(spec, own)
    course.prepared[spec] = Subjected(subject, tuple(own))


def _audit_defense(course: Course, spec: str, defense: Defense, keep_learned: KeepLearned | None) -> Iterator[None]:
    """Audit one defense; its row stands in the course, more complete each time this yields."""
    scene, plan, clock = course.scene, course.scene.plan, course.clock
    _prepare(course, spec, defense, keep_learned)
    found = course.prepared.pop(spec, None)
    if not isinstance(found, Subjected):
        if found is not None:
            course.rows[spec] = found
            yield
        return
    subject, measured, begun = found.subject, Measured(), len(course.elsewhere)
    tally = _tally(course, spec, found.pieces)
    asks = max((piece.attack.asks for piece in found.pieces if piece.attack), default=0)
    updates = course.updates_of(spec, lambda: Updates(scene, subject, asks, asked=defense))
    for piece in in_turn(found.pieces, clock.costs):
        attack = piece.attack
        if attack and tally.skipped(attack.name) and not lacking(scene, attack, piece.role):
            clock.skip([piece])
            tally.add(skipped(attack, piece.role, plan.victims, tally.settled_by))
            continue
        may_be_skipped = attack and tally.skips and attack.name not in tally.kept and len(course.elsewhere) > begun
        if attack and may_be_skipped and not course.speculates(updates.unit("attack", attack.name, attack, piece.role)):
            continue
        try:
            with clock.piece(piece) as too_long:
                if attack is not None:
                    result = attacked(updates, attack, piece.role, too_long)
                    tally.add(result)
                elif piece.work.name == UPDATES:
                    if desk.current() is None or clock.budget is not None:  # else when the first attack asks for them
                        updates.compute()
                    course.noticed[spec] = (*course.noticed.get(spec, ()), *unlike(updates))
                    continue  # nothing is known of the row yet
                elif piece.role == WEAKENED:
                    settled = f"the verdict was settled by {tally.settled_by}" if tally.settled_by else ""
                    seen = seen_weakened(scene, subject, defense, tally.results, too_long or settled)
                    measured = replace(measured, strength=seen.strength, weakened=seen.weakened)
                else:
                    measured = replace(measured, outcome=_accuracy(scene, subject, defense, too_long))
        except Elsewhere as error:
            course.elsewhere.append(str(error))
            continue
        course.rows[spec] = row_of(course, subject, tally.results, measured)
        if attack is not None:
            tally.judged(attack.name, course.rows[spec].why)
            if not scored_victims(result):
                clock.forget(piece)
        yield
    if len(course.elsewhere) > begun:
        return
    row = row_of(course, subject, tally.results, measured)
    more = compare_with_control(
        row, course.rows.get("none", row), measured.outcome, plan.batch_size, scene.target.task.measure.name
    )
    course.noticed[spec] = (*course.noticed[spec], *more)
    course.rows[spec] = row_of(course, subject, tally.results, measured)  # an error that was noticed blocks a pass
    yield


def _tally(course: Course, spec: str, pieces: Sequence[Piece]) -> Tally:
    """Return the empty tally of a defense. The control runs every attack: by what they find there all others count."""
    plan, control = course.scene.plan, course.rows.get("none")
    names = [piece.work.name for piece in pieces if piece.attack is not None]
    kept = {parse_attack(each).name for each in plan.attacks} | {drawer(control.attacks if control else ())}
    known = control is not None or bool(course.elsewhere)  # else nothing says what works here
    return Tally(names, plan.skips and spec != "none" and known, frozenset(kept))


def _accuracy(scene: Scene, subject: Subject, asked: Defense, too_long: str) -> Utility:
    effort, reason, spec = scene.plan.effort(), too_long, subject.spec
    released = "" if scene.facts is None else fingerprint.of_value(subject.released)

    def unit(k: int) -> Unit | None:
        work = f"{spec}: {ACCURACY}, seed {k + 1}"
        return scene.unit("training", work, defense=(spec, asked), run=k, epochs=effort.epochs, released=released)

    try:
        if not too_long:
            return utility(
                scene.target,
                subject.defense,
                subject.released,
                senders=Senders(TRAINING_BATCH, scene.plan.sender(), scene.plan.own),
                epochs=effort.epochs,
                seeds=effort.seeds,
                seed=scene.plan.seed,
                unit=unit,
            )
    except Elsewhere:
        raise
    except Exception as error:  # the user's model, loss or factory may raise anything
        reason = f"training failed ({first_line(error)})"
    return Utility((), Estimate(reason=reason), chance(scene.target.test, scene.target.task), 0, effort.epochs)
