"""Edits that hang together: what a result determines about itself is found, what it cannot know is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

import leakaudit
from leakaudit.audit.audit import audit
from leakaudit.gate.consistency import doubts
from leakaudit.gate.decision import gate
from leakaudit.gate.unknown import ALWAYS, not_checked
from leakaudit.judge.scope import assumptions
from leakaudit.judge.verdict import overall, rejudge
from leakaudit.judge.words import sentences
from leakaudit.result.batteries import BATTERIES
from leakaudit.result.digests import of_values
from leakaudit.result.schema import AttackResult, AuditResult, Estimate, Guarantee, from_json, to_json
from leakaudit.scene.plan import Plan
from leakaudit.stats.intervals import median, rate
from tests.leakaudit.audited import target

Edit = Callable[[AuditResult], AuditResult]
DRAWS, LINKS = "inverting-gradients", "replay"
COMMAND = "leakaudit scan model.py -d gaussian:std=0.1 --records 8 --max-identification=0.25"


@pytest.fixture(scope="module")
def short() -> Iterator[None]:
    quick = replace(BATTERIES["quick"], steps=3, tuning_victims=2, decoder_steps=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BATTERIES, "quick", quick)
        yield


def scanned(command: str = "", **settings: Any) -> AuditResult:
    plan = Plan(**{"battery": "quick", "records": 8, "candidates": 10, "utility": False} | settings)
    return from_json(to_json(audit(target(), plan, command=command)))


@pytest.fixture(scope="module")
def made(short: None) -> AuditResult:
    """An audit whose attacks leak through the noise; nobody has touched it."""
    return scanned(COMMAND, defenses=("gaussian:std=0.1",))


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 2, "images": "none"},
        {"exposure": "honest-but-curious", "attacks": ("labels", "inverting-gradients:steps=2")},
        {"budget": 1.0, "defenses": ("clip",)},
    ],
)
def test_no_honest_result_contradicts_itself(short: None, settings: dict[str, Any]) -> None:
    assert doubts(scanned(**settings)) == ()


def judged(result: AuditResult) -> AuditResult:
    """Return a result with the verdicts that its numbers give now: whoever edits them takes care of that."""
    rows = tuple(
        replace(d, verdict=v, why=w, reasons=sentences(w)) for d in result.defenses for v, w in [rejudge(result, d)]
    )
    verdict, why = overall(rows)
    return replace(result, defenses=rows, verdict=verdict, why=why, reasons=sentences(why))


def hashed(result: AuditResult) -> AuditResult:
    return replace(result, hashes=result.hashes | of_values(result.settings, result.environment))


def told(result: AuditResult, **settings: Any) -> AuditResult:
    return replace(result, settings=result.settings | settings)


def row(result: AuditResult, **changes: Any) -> AuditResult:
    return replace(result, defenses=(result.defenses[0], replace(result.defenses[1], **changes)))


def seen(result: AuditResult, **changes: Any) -> AuditResult:
    examined = result.defenses[1].examined
    assert examined is not None
    return row(result, examined=replace(examined, **changes))


def on(result: AuditResult, name: str, edit: Callable[[AttackResult], AttackResult]) -> AuditResult:
    return row(result, attacks=tuple(edit(a) if a.name == name else a for a in result.defenses[1].attacks))


def without(result: AuditResult, name: str) -> AuditResult:
    return row(result, attacks=tuple(a for a in result.defenses[1].attacks if a.name != name))


def missed(attack: AttackResult) -> AttackResult:
    """Return an attack that found nobody, as far as records and estimates go; their ranks say otherwise."""
    records = tuple(replace(r, identified=False) if r.identified else r for r in attack.records)
    return replace(attack, records=records, identification=rate(0, attack.identification.n))


def blurred(attack: AttackResult) -> AttackResult:
    records = tuple(replace(r, psnr=None if r.psnr is None else r.psnr - 5) for r in attack.records)
    return replace(attack, records=records, psnr=median([r.psnr for r in records if r.psnr is not None]))


def controls(result: AuditResult, **changes: Any) -> AuditResult:
    assert result.controls is not None
    return replace(result, controls=replace(result.controls, **changes))


def few(result: AuditResult) -> AuditResult:
    """More records in the settings, their hash, and the sentence that says how many."""
    more = hashed(told(result, records=64))
    own = len(assumptions(result.settings, result.exposure, result.target))
    said = assumptions(more.settings, more.exposure, more.target)
    return replace(more, assumptions=(*said, *result.assumptions[own:]))


FOUND: dict[str, Edit] = {
    "limit and reasons": lambda r: judged(replace(r, max_identification=0.99)),
    "limit, settings and reasons": lambda r: judged(told(replace(r, max_identification=0.99), max_identification=0.99)),
    "limit everywhere": lambda r: hashed(
        judged(told(replace(r, max_identification=0.99), max_identification=0.99))
    ),  # the command
    "a reason dropped": lambda r: row(r, why=r.defenses[1].why[1:], reasons=sentences(r.defenses[1].why[1:])),
    "a reason's words": lambda r: row(r, reasons=("All is well.", *r.defenses[1].reasons[1:])),
    "the reasons of the whole": lambda r: replace(r, reasons=("All is well.",)),
    "a verdict made worse": lambda r: row(r, verdict="inconclusive"),
    "not asked for": lambda r: judged(row(r, requested=False)),
    "records that were found, but for their ranks": lambda r: judged(on(r, LINKS, missed)),
    "how near the pictures are": lambda r: judged(on(r, DRAWS, blurred)),
    "a share and not its interval": lambda r: on(
        r, LINKS, lambda a: replace(a, identification=replace(a.identification, value=a.identification.low))
    ),
    "gain": lambda r: on(r, DRAWS, lambda a: replace(a, gain=Estimate(-9.0, -9.0, -9.0, a.gain.n))),
    "labels found": lambda r: on(r, "labels", lambda a: replace(a, label_accuracy=rate(0, 8))),
    "how many records": lambda r: told(r, records=64),
    "how many records, hashed": lambda r: hashed(told(r, records=64)),
    "how many records, hashed and said": few,
    "longer attacks": lambda r: hashed(told(r, steps=5000)),
    "another battery": lambda r: hashed(told(r, battery="full")),
    "a sentence of what was not tested": lambda r: replace(r, not_tested=r.not_tested[1:]),
    "an assumption dropped": lambda r: replace(r, assumptions=r.assumptions[1:]),
    "an assumption changed": lambda r: replace(r, assumptions=("All was tried.", *r.assumptions[1:])),
    "findings": lambda r: replace(r, findings=tuple(f for f in r.findings if f.id != "auxiliary-few")),
    "a bound that was exceeded": lambda r: judged(
        row(
            r,
            guarantees=(Guarantee("Nobody is found.", "proven", "", 0.11, 10),),
        )
    ),
    "a bound below chance": lambda r: row(r, guarantees=(Guarantee("Nobody is found.", "proven", "", 0.05, 10),)),
    "a bound without a line-up": lambda r: row(r, guarantees=(Guarantee("Nobody is found.", "proven", "", 0.01),)),
    "an attack dropped": lambda r: judged(without(r, LINKS)),
    "an attack that identifies nothing dropped": lambda r: without(r, "labels"),
    "a defense dropped": lambda r: judged(replace(r, defenses=r.defenses[:1])),
    "a role": lambda r: judged(on(r, "linkage", lambda a: replace(a, role="standard"))),
    "a bound made of an attack": lambda r: judged(on(r, LINKS, lambda a: replace(a, role="bound"))),
    "what an attack needs": lambda r: on(r, LINKS, lambda a: replace(a, requires=("released",), role="bound")),
    "what was tuned": lambda r: on(r, DRAWS, lambda a: replace(a, tuned=a.tuned | {"tv": 12345.0})),
    "a version": lambda r: replace(r, environment=r.environment | {"torch": "99"}),
    "a date that is none": lambda r: replace(r, made="yesterday"),
    "no date": lambda r: replace(r, made=""),
    "a hash left out": lambda r: replace(r, hashes={k: v for k, v in r.hashes.items() if k != "private"}),
    "the planted leak": lambda r: judged(controls(r, canary="pass")),
    "a planted leak not looked for to the end": lambda r: judged(controls(r, canary_ended="budget")),
    "auxiliary records told apart": lambda r: controls(r, auxiliary=Estimate(0.9, 0.85, 0.95, 40)),
    "attacks left out": lambda r: judged(controls(r, left_out=("dlg",))),
    "the exposure's name": lambda r: judged(replace(r, exposure=r.exposure | {"preset": "malicious-server"})),
    "a fact of the exposure": lambda r: judged(replace(r, exposure=r.exposure | {"auxiliary": False})),
    "chance": lambda r: judged(replace(r, chance_identification=0.9)),
    "what guesses identify": lambda r: replace(
        r, baselines=tuple(replace(b, identification=Estimate(0.95, 0.9, 0.99, 8)) for b in r.baselines)
    ),
    "how near guesses are": lambda r: judged(
        replace(r, baselines=tuple(replace(b, psnr=Estimate(90.0, 80.0, 99.0, 8)) for b in r.baselines))
    ),
    "the union": lambda r: judged(seen(r, union=Estimate(), by_class={}, tenth=Estimate())),
    "where an attack was seen to work": lambda r: judged(seen(r, strength=0.1, weakened=rate(0, 16))),
    "changes": lambda r: judged(seen(r, changes=())),
    "how pictures are shown": lambda r: hashed(told(replace(r, images="none"), images="none")),
    "accuracy from nowhere": lambda r: row(r, accuracies=(0.9, 0.9, 0.9), accuracy=Estimate(0.9, 0.9, 0.9, 3)),
    "the command": lambda r: replace(
        r, environment=r.environment | {"command": COMMAND.replace("--records 8", "--records 64")}
    ),
    "a flag of the command": lambda r: replace(r, environment=r.environment | {"command": COMMAND + " --full"}),
    "an attack that the command asks for": lambda r: replace(
        r, environment=r.environment | {"command": COMMAND + " -adlg"}
    ),
    "a budget that the command gives": lambda r: replace(
        r, environment=r.environment | {"command": COMMAND + " --budget 90h"}
    ),
    "a record twice": lambda r: on(r, DRAWS, lambda a: replace(a, records=(a.records[0],) * 8)),
}
# Nothing in a file can tell these: what is said of them stands in `unknown`, and a signature covers them.
NOT_FOUND: dict[str, Edit] = {
    "a later date": lambda r: replace(r, made="2031-01-01T00:00:00Z"),
    "another commit": lambda r: replace(r, environment=r.environment | {"commit": "0123456789ab"}),
    "other data": lambda r: replace(r, hashes=r.hashes | {"private": "0" * 64}),
    "another version, hashed": lambda r: hashed(replace(r, environment=r.environment | {"torch": "99"})),
    "a promise": lambda r: row(r, guarantees=(Guarantee("Nobody is ever found.", "proven"),)),
    "a note on the data": lambda r: replace(r, assumptions=(*r.assumptions, "The board has seen the data.")),
}


def test_the_audit_leaks_and_contradicts_nothing(made: AuditResult) -> None:
    assert made.verdict == "fail"
    assert doubts(made) == ()
    assert not_checked(made) == ()
    assert gate(made).audited == made.made


@pytest.mark.parametrize("name", FOUND)
def test_an_edit_that_hangs_together_is_found(made: AuditResult, name: str) -> None:
    edited = FOUND[name](made)
    assert edited != made
    assert doubts(from_json(to_json(edited)))


@pytest.mark.parametrize("name", NOT_FOUND)
def test_what_no_file_can_tell_is_said_to_be_unknown(made: AuditResult, name: str) -> None:
    edited = NOT_FOUND[name](made)
    assert edited != made
    assert doubts(edited) == ()
    assert len(ALWAYS) >= 5


def test_another_versions_result_is_said_to_be_unchecked_and_no_contradiction(made: AuditResult) -> None:
    other = hashed(replace(made, environment=made.environment | {"leakaudit": "9.9"}, not_tested=()))
    assert doubts(other) == ()
    assert any("leakaudit 9.9 made it" in clause for clause in not_checked(other))
    older = replace(other, made="", known=(), environment={"leakaudit": leakaudit.__version__}, hashes={})
    assert doubts(older) == ()
    assert any("no date" in clause for clause in not_checked(older))
    assert any("no hash" in clause for clause in not_checked(older))


@pytest.mark.parametrize("size", [2, 10, 49, 98, 100, 997])
def test_a_bound_at_chance_is_one(made: AuditResult, size: int) -> None:
    bounded = row(made, guarantees=(Guarantee("It is a guess.", "proven", "", 1 / size, size),))
    assert not any("that none can be" in doubt for doubt in doubts(bounded))
