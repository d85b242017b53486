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
from leakaudit.audit.course import Audited, Course, Staged, Subjected
from leakaudit.audit.fitting import prepare
from leakaudit.audit.pieces import LATER, Piece, chosen, in_turn, outline, pieces_of, rank
from leakaudit.audit.rows import broken, result_of, row_of
from leakaudit.audit.taking import unlike
from leakaudit.audit.weaker import seen_weakened, unit_of
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
    lanes = 1 if there is None else there.lanes
    clock = Clock(plan.budget, outline(plan, scene.sizes()), costs, begun, lanes)
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
    Then what the verdicts rest on is done of all of them, and only then the rest.
    What other participants are at is left out at first, and the defenses are gone through again until nothing is: the
    last time all outcomes are at hand, and are put together as one participant alone would have.
    """
    course.asked = tuple(spec for spec, _ in asked)
    try:
        while complete:
            course.elsewhere.clear()
            course.halved = False
            course.audited.clear()
            for spec, defense in asked if course.clock.budget is not None else ():
                _prepare(course, spec, defense, keep_learned)
            for first in (None,) if course.clock.budget is None else (True, False):
                for spec, defense in asked:
                    for _ in _audit_defense(course, spec, defense, keep_learned, first):
                        if keep is not None:
                            keep(result_of(course, complete=False))
            if not course.elsewhere:
                break
            course.another_round()
        for _ in _again(course, asked, keep_learned) if complete and desk.is_main() else ():
            if keep is not None:
                keep(result_of(course, complete=False))
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


def _prepare(
    course: Course, spec: str, defense: Defense, keep_learned: KeepLearned | None, *, last: bool = False
) -> None:
    """Fit a defense and try it, unless that is done. Where it cannot be, there is a row already, which says why.

    `last`: nothing else waits for the time that is left. Raises UserError for a target that cannot be audited at all.
    """
    if spec in course.prepared:
        return
    scene, clock = course.scene, course.clock
    fit, *planned = pieces_of(spec, defense, scene.plan, None, scene.sizes())
    late = False
    try:
        with clock.piece(fit, last=last) as too_long:
            if too_long and replaces_records(defense):
                raise OutOfTime(too_long)
            found = prepare(scene, spec, defense)
    except Elsewhere as error:
        course.left_to_others(spec, error)
        return
    except UserError:
        raise
    except Exception as error:  # what says nothing of the defense: too little time or memory
        found, late = first_line(error), isinstance(error, OutOfTime)
    if isinstance(found, str):
        clock.skip(planned if late else [fit, *planned])
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
    clock.skip([fit])
    clock.found(spec, own)
    clock.known(piece for piece in own if _known(scene, subject, defense, piece))
    course.prepared[spec] = Subjected(subject, tuple(own))


def _known(scene: Scene, subject: Subject, asked: Defense, piece: Piece) -> bool:
    """Return whether the outcome of a piece is on a shelf already."""
    if desk.current() is None:
        return False
    if piece.attack is not None:
        return desk.is_known(
            Updates(scene, subject, asked=asked).unit("attack", piece.attack.name, piece.attack, piece.role)
        )
    if piece.role == WEAKENED:
        return desk.is_known(unit_of(scene, subject.spec, asked))
    seeds = scene.plan.effort().seeds if piece.work.name == ACCURACY else 0
    return bool(seeds) and all(desk.is_known(_training(scene, subject, asked, k)) for k in range(seeds))


def _audit_defense(
    course: Course, spec: str, defense: Defense, keep_learned: KeepLearned | None, first: bool | None = None
) -> Iterator[None]:
    """Audit one defense; its row stands in the course, more complete each time this yields.

    `first`: only what a verdict rests on is done, or with False only the rest of it.
    """
    audited = course.audited.get(spec)
    if audited is None:
        audited, first = _begun(course, spec, defense, keep_learned), first or None
    if audited is None:
        yield
        return
    _tell(course, audited)
    for piece in audited.pieces:
        if first is not None and (rank(piece) < LATER) is not first:
            continue
        attack, tally = piece.attack, audited.tally
        may_be_skipped = attack and tally.skips and attack.name not in tally.kept and audited.waits
        if attack and may_be_skipped and not _settled(course, audited, piece):
            unit = course.updates_of(audited).unit("attack", attack.name, attack, piece.role)
            if not course.speculates(unit):
                continue
        try:
            told = _do(course, audited, piece)
        except Elsewhere as error:
            audited.waits = True
            course.left_to_others(spec, error)
            continue
        if told:
            yield
    if not first and not audited.waits:
        _conclude(course, audited)
        yield
    if course.clock.budget is None:  # else it may be tried again
        course.audited.pop(spec)


def _begun(course: Course, spec: str, defense: Defense, keep_learned: KeepLearned | None) -> Audited | None:
    """Return a defense that is attacked from now on; None where it cannot be, or another participant fits it."""
    _prepare(course, spec, defense, keep_learned)
    found = course.prepared.get(spec)
    if isinstance(found, Subjected):
        course.prepared.pop(spec)
        names = [piece.work.name for piece in found.pieces if piece.attack is not None]
        pieces = tuple(in_turn(found.pieces, course.clock.costs))
        course.audited[spec] = Audited(defense, found.subject, Tally(names, skips=False), pieces)
        return course.audited[spec]
    if found is not None:
        course.rows[spec] = found
    return None


def _do(course: Course, audited: Audited, piece: Piece, *, last: bool = False) -> bool:
    """Do one piece of the work on a defense and judge it anew; return whether anything was done that is known of it.

    `last`: nothing else waits for the time that is left.
    """
    scene, clock, tally, spec = course.scene, course.clock, audited.tally, audited.spec
    attack, updates = piece.attack, course.updates_of(audited)
    if attack and _settled(course, audited, piece):
        clock.skip([piece])
        tally.add(skipped(attack, piece.role, scene.plan.victims, tally.settled_by))
        return False
    with clock.piece(piece, last=last) as too_long:
        if attack is not None:
            result = attacked(updates, attack, piece.role, too_long)
            tally.add(result)
        elif piece.work.name == UPDATES:
            if desk.current() is None or clock.budget is not None:  # else when the first attack asks for them
                updates.compute()
            there = course.noticed.get(spec, ())
            course.noticed[spec] = (*there, *(finding for finding in unlike(updates) if finding not in there))
            return False  # nothing is known of the row yet
        elif piece.role == WEAKENED:
            settled = f"the verdict was settled by {tally.settled_by}" if tally.settled_by else ""
            seen = seen_weakened(scene, audited.subject, audited.asked, tally.results, too_long, settled)
            audited.measured = replace(audited.measured, strength=seen.strength, weakened=seen.weakened)
        else:
            outcome = _accuracy(scene, audited.subject, audited.asked, too_long)
            audited.measured = replace(audited.measured, outcome=outcome)
    row = course.rows[spec] = row_of(course, audited.subject, tally.results, audited.measured)
    if attack is not None:
        tally.judged(attack.name, row.why)
        if not scored_victims(result):
            clock.forget(piece)
        if result.statuses.get("budget"):
            clock.cut(piece)
        else:
            clock.skip([piece])
    return True


def _settled(course: Course, audited: Audited, piece: Piece) -> bool:
    """Return whether an attack is skipped, since another one had settled the verdict."""
    attack = piece.attack
    return attack is not None and audited.tally.skipped(attack.name) and not lacking(course.scene, attack, piece.role)


def _again(course: Course, asked: Sequence[tuple[str, Defense]], keep_learned: KeepLearned | None) -> Iterator[None]:
    """Do again what the time budget left out or cut short, while time is left; the last outcome stands.

    What an attack finds then may settle the verdict on its defense, and what it finds undefended those on the others.
    """
    clock, tried = course.clock, False
    while (piece := clock.again()) is not None:
        spec, tried = piece.work.defense, True
        audited = course.audited.get(spec)
        try:
            with desk.anew():
                if audited is not None:
                    _do(course, audited, piece, last=True)
                else:
                    course.prepared.pop(spec, None)
                    _prepare(course, spec, dict(asked)[spec], keep_learned, last=True)
                    yield from _audit_defense(course, spec, dict(asked)[spec], keep_learned)
        except Elsewhere:  # another participant gives it its time
            clock.skip([piece])
        yield
    for audited in course.audited.values() if tried else ():
        _conclude(course, audited)
        yield


def _conclude(course: Course, audited: Audited) -> None:
    """Compare a defense with the control, and judge it for good: an error that was noticed blocks a pass."""
    spec, subject, measured, plan = audited.spec, audited.subject, audited.measured, course.scene.plan
    before = tuple(finding for finding in course.noticed[spec] if finding not in audited.concluded)
    course.noticed[spec] = before
    row = row_of(course, subject, audited.tally.results, measured)
    audited.concluded = compare_with_control(
        row, course.rows.get("none", row), measured.outcome, plan.batch_size, course.scene.target.task.measure.name
    )
    course.noticed[spec] = (*before, *audited.concluded)
    course.rows[spec] = row_of(course, subject, audited.tally.results, measured)


def _tell(course: Course, audited: Audited) -> None:
    """Tell a tally what is skipped. The control runs every attack: by what they find there all others count."""
    plan, control = course.scene.plan, course.rows.get("none")
    drew = drawer(control.attacks) if control is not None and not course.halved else ""
    kept = {parse_attack(each).name for each in plan.attacks} | {drew}
    known = control is not None or bool(course.elsewhere)  # else nothing says what works here
    audited.tally.skips, audited.tally.kept = plan.skips and audited.spec != "none" and known, frozenset(kept)


def _accuracy(scene: Scene, subject: Subject, asked: Defense, too_long: str) -> Utility:
    effort, reason = scene.plan.effort(), too_long

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
                unit=lambda k: _training(scene, subject, asked, k),
            )
    except Elsewhere:
        raise
    except Exception as error:  # the user's model, loss or factory may raise anything
        reason = f"training failed ({first_line(error)})"
    return Utility((), Estimate(reason=reason), chance(scene.target.test, scene.target.task), 0, effort.epochs)


def _training(scene: Scene, subject: Subject, asked: Defense, k: int) -> Unit | None:
    """Return the name of what a training run comes to, which sees released records alone; None where none is kept."""
    if scene.facts is None:
        return None
    work, epochs = f"{subject.spec}: {ACCURACY}, seed {k + 1}", scene.plan.effort().epochs
    released = fingerprint.of_value(subject.released)
    return scene.unit("training", work, defense=(subject.spec, asked), run=k, epochs=epochs, released=released)
