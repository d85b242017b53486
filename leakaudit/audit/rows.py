"""The rows of a result, and the result, of what an audit has found so far."""

from __future__ import annotations

import time

from leakaudit.audit.course import Course, Measured
from leakaudit.audit.fitting import guarantees
from leakaudit.judge.caps import capped, caps
from leakaudit.judge.captured import about_captured, is_captured, on_trust
from leakaudit.judge.exposed import exposed
from leakaudit.judge.moments import here, over_stages
from leakaudit.judge.scope import assumptions, not_tested
from leakaudit.judge.verdict import Case, errors_of, judge, overall
from leakaudit.judge.words import sentences
from leakaudit.protocol.defense import Defense, replaces_records
from leakaudit.protocol.stages import CHANGES
from leakaudit.result.outward import all_in_place
from leakaudit.result.schema import AttackResult, AuditResult, DefenseResult, Estimate, Examined, Reason
from leakaudit.scene import provenance
from leakaudit.scene.examine import Subject
from leakaudit.scene.plan import Plan, catalogue, own_attacks
from leakaudit.scene.provenance import settings
from leakaudit.scene.told import SETTINGS, stated, vouched
from leakaudit.score.measures import chance, majority
from leakaudit.score.standin import SENTENCE
from leakaudit.score.utility import Utility
from leakaudit.units import desk


def row_of(course: Course, subject: Subject, results: list[AttackResult], measured: Measured) -> DefenseResult:
    """Return the row of a defense that was attacked, judged by what is known of it by now."""
    scene, plan, spec, defense = course.scene, course.scene.plan, subject.spec, subject.defense
    skipped = Estimate(reason="not measured yet" if plan.utility else "training runs were switched off")
    outcome = measured.outcome or Utility((), skipped, 0.0, 0, 0)
    control = course.rows["none"].attacks if spec != "none" and "none" in course.rows else tuple(results)
    run = plan.run(len(scene.target.private), outcome.steps, outcome.epochs)
    sure = vouched(defense, guarantees(scene, defense, run), plan.images)
    captured = {} if scene.target.received is None else dict(scene.target.received.told)
    trusted = is_captured(captured, spec)
    sure = tuple(map(on_trust, sure)) if trusted else sure
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
            guarantees=sure,
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
        guarantees=sure,
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


def broken(course: Course, spec: str, defense: Defense, told: str) -> DefenseResult:
    """Return the row of a defense that could not be applied; `told` says why."""
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


def result_of(course: Course, *, complete: bool) -> AuditResult:
    """Return the result by what is known by now."""
    scene, clock = course.scene, course.clock
    rows = tuple(course.rows[spec] for spec in course.asked if spec in course.rows)
    target, plan = scene.target, scene.plan
    verdict, why = overall(rows) if complete else ("inconclusive", (Reason("interrupted"),))
    known, exposure = catalogue(), {"preset": plan.exposure, **provenance.exposed(scene.exposure)}
    found = AuditResult(
        target=provenance.describe(target),
        exposure=exposure,
        assumptions=assumptions(plan.settings(), exposure, provenance.describe(target), target.notes),
        findings=(*scene.findings, *(finding for spec in course.asked for finding in course.noticed.get(spec, ()))),
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
        timings=_timings(course) | {"total": round(time.monotonic() - clock.started, 3)},
    )
    return all_in_place(found, plan.images)


def _timings(course: Course) -> dict[str, float]:
    """Return the seconds that each piece took, those of pieces that were known when they were computed."""
    there = desk.current()
    known = {} if there is None else there.took
    found = {}
    for work, seconds in course.clock.timings.items():
        parts = [took for name, took in known.items() if name == work or name.startswith(f"{work}, seed ")]
        found[work] = round(max(seconds, sum(parts)), 3)
    return found
