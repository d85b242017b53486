"""A defense before it is attacked: fitted, tried, and looked at for what is odd about what it made of the records."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace

from leakaudit.errors import OutOfTime, UserError, first_line
from leakaudit.protocol.defense import Defense, replaces_records
from leakaudit.protocol.target import Records
from leakaudit.result.rules import FIT
from leakaudit.result.schema import Finding, Guarantee
from leakaudit.scene import fingerprint
from leakaudit.scene.examine import Subject, examine
from leakaudit.scene.scene import Scene, beside_strangers
from leakaudit.scene.told import quick_fit
from leakaudit.score.diagnosis import inspected
from leakaudit.score.identification import hidden, of_line_ups
from leakaudit.units import desk
from leakaudit.work.memory import exhausted
from leakaudit.work.progress import expired, note_passing, stage
from leakaudit.work.resume import resumable
from leakaudit.work.seeding import generator_for, seeded


@dataclass(frozen=True)
class Prepared:
    """A defense that can be attacked, and what was noticed about it."""

    subject: Subject
    noticed: tuple[Finding, ...]
    learned: str | None  # the hash of what it learned
    as_given: bool = False  # the released records are the private ones, and not kept beside them

    def within(self, scene: Scene) -> Subject:
        """Return the defense with the records that it released."""
        return replace(self.subject, released=scene.target.private) if self.as_given else self.subject


def prepare(scene: Scene, spec: str, defense: Defense) -> Prepared | str:
    """Fit a defense and try it; return why it cannot be applied where that is so.

    Raises OutOfTime where the time budget ended what cannot be done in part, UserError where settings cannot work on
    this target at all, `Elsewhere` where another participant is at it, and whatever says that the memory is exhausted.
    """
    unit = scene.unit("prepare", f"{spec}: {FIT}", defense=(spec, defense))

    def tried() -> Prepared | str:
        try:
            return _prepared(scene, spec, defense)
        except OutOfTime:
            raise
        except Exception as error:  # a user's model may raise anything while a generator is fitted around it
            unsuited = isinstance(error, UserError) and spec == "none"  # elsewhere the defense does not suit the target
            if unsuited or exhausted(error):
                raise
            note_passing()  # the next scan may have what was missing
            return first_line(error)

    kind: type[Prepared | str] = object  # type: ignore[assignment]
    return desk.done(unit, kind, tried)


def _prepared(scene: Scene, spec: str, defense: Defense) -> Prepared:
    target, seed = scene.target, scene.plan.seed

    unit = scene.unit("fit", f"{spec}: learning", defense=(spec, defense))

    def fit() -> Defense:
        with ExitStack() as stack:
            if unit is not None and (half := desk.place_beside(unit)) is not None:
                stack.enter_context(resumable(half, {"piece": unit.key}))  # one that takes an hour may be killed, too
            stack.enter_context(seeded(seed, spec, FIT))  # for those that draw from a global generator
            return defense.fit(target, generator_for(seed, spec, FIT))

    fitted = desk.done(unit, Defense, fit)
    if replaces_records(defense) and expired():
        raise OutOfTime("the time budget ended its training early, so what it would hide is not known")
    stage("trying what it changes")
    run = scene.plan.run(len(target.private), 0)
    fitted.facts(*run), guarantees(scene, fitted, run)  # what may raise does so before attacks
    subject = examine(scene, spec, fitted)
    odd = inspected(spec, fitted, beside_strangers(scene), subject.released, seed) if subject.replaced else ()
    noticed = (*quick_fit(spec, defense, scene.plan.images), *odd)
    same = same_records(subject.released, target.private)
    kept = replace(subject, released=target.private[:0]) if same else subject
    return Prepared(kept, noticed, fingerprint.of_defense(fitted), same)


def same_records(one: Records, other: Records) -> bool:
    """Whether two sets of records are the same, bit for bit."""
    return one is other or fingerprint.of_value(one) == fingerprint.of_value(other)


def guarantees(scene: Scene, defense: Defense, run: tuple[int, int, int]) -> tuple[Guarantee, ...]:
    """Return what a fitted defense guarantees over a training run, for these line-ups."""
    stated = defense.guarantees(*run, hidden(scene.candidates, scene.line_ups))
    return of_line_ups(stated, defense, scene.candidates, scene.line_ups)
