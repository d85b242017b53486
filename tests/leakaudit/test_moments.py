"""Audits of clients with local steps and at several moments of training: what they say, and that it holds together."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from leakaudit.audit.stages import audit_at_stages
from leakaudit.defenses.gaussian import Gaussian
from leakaudit.errors import UserError
from leakaudit.gate.claims import claims
from leakaudit.gate.moments import moments
from leakaudit.judge.moments import AHEAD, LEAKED, OPEN, over_stages
from leakaudit.judge.verdict import overall, rejudge
from leakaudit.judge.words import sentences
from leakaudit.protocol.defense import Defense
from leakaudit.reports.coverage import Situation, matrix, own, stages
from leakaudit.reports.html import render
from leakaudit.reports.situations import table
from leakaudit.result.federation import client_from, parse_client
from leakaudit.result.schema import AuditResult, Estimate, Reason, Stage, Verdict, from_json, to_json
from leakaudit.scene.plan import Plan
from leakaudit.score.utility import Senders
from leakaudit.work.progress import Monitor, current, monitored
from tests.leakaudit.audited import target

PLAN = Plan(
    battery="quick",
    exposure="honest-but-curious",  # which leaves out all that takes long
    attacks=("labels", "inverting-gradients:steps=4"),
    defenses=("gaussian:std=10",),
    records=8,
    batch_size=4,
    candidates=4,
    images="full",
    epochs=2,
    seeds=1,
)


@pytest.fixture(scope="module")
def federated() -> AuditResult:
    plan = replace(PLAN, client="fedavg:epochs=1:batch=2:lr=0.1", stages=("trained", "init"))
    return audit_at_stages(target(), plan)


def test_the_settings_and_the_assumptions_say_what_a_client_does(federated: AuditResult) -> None:
    assert federated.settings["client"] == "fedavg:epochs=1:batch=2:lr=0.1"
    told = "Each of 2 clients trains on its 4 records in batches of 2 (1 epoch, 2 steps of SGD, learning rate 0.1)"
    assert federated.assumptions[0].startswith(told)


def test_every_row_holds_what_was_found_at_each_stage(federated: AuditResult) -> None:
    assert federated.settings["stages"] == "init trained"
    for row in federated.defenses:
        assert [(stage.name, stage.epochs) for stage in row.stages] == [("init", 0), ("trained", 2)]
        assert all(stage.why for stage in row.stages)
        assert row.verdict == min((s.verdict for s in row.stages), key=("fail", "inconclusive", "pass").index)
    hidden = federated.defenses[1]
    assert hidden.verdict == "inconclusive"
    assert hidden.why[0].id == OPEN


def test_accuracy_is_that_of_a_federation(federated: AuditResult) -> None:
    assert federated.defenses[0].accuracy.value is not None
    assert any("a federation of clients like these" in sentence for sentence in federated.assumptions)


def test_what_is_stored_holds_together_and_is_read_back(federated: AuditResult) -> None:
    assert list(claims(federated)) == []
    assert from_json(to_json(federated)) == federated
    for row in federated.defenses:
        assert rejudge(federated, row) == (row.verdict, row.why)
    forged = replace(federated, defenses=tuple(replace(row, verdict="pass") for row in federated.defenses))
    assert list(claims(forged))
    nobody = replace(federated, settings=federated.settings | {"client": "fedavg:epochs=never"})
    assert any("client is none" in told for told in claims(nobody))


def test_the_matrix_tells_what_was_tried_from_what_was_not(federated: AuditResult) -> None:
    assert own(federated) == Situation(4, 2, "eval")
    assert stages(federated) == ("init", "early", "trained")
    cells = matrix(federated)[1].cells
    assert {at for at, cell in cells.items() if cell.coverage == "tested"} == {
        (Situation(4, 2, "eval"), "init"),
        (Situation(4, 2, "eval"), "trained"),
    }
    assert cells[Situation(4, 2, "train"), "init"].coverage == "not-applicable"  # it has neither BatchNorm nor dropout
    assert cells[Situation(1, 1, "eval"), "early"].coverage == "not-tested"
    assert len(table(federated)) == 8 + 1 + 8
    assert "stage early, whatever a client does" in render(federated)


def test_a_stage_that_was_tried_is_in_the_matrix_though_the_last_one_had_no_time(federated: AuditResult) -> None:
    row = federated.defenses[1]
    early, last = row.stages
    silent = tuple(replace(a, identification=Estimate(), statuses={"budget": 2}, records=()) for a in row.attacks)
    late = replace(row, attacks=silent, stages=(early, replace(last, identification=Estimate())))
    cells = matrix(replace(federated, defenses=(late,)))[0].cells
    assert {at for at, cell in cells.items() if cell.coverage == "tested"} == {(Situation(4, 2, "eval"), "init")}


def test_each_stage_gets_its_part_of_a_time_budget(federated: AuditResult, monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[tuple[float | None, bool]] = []

    def audited(_: object, plan: Plan, **__: object) -> AuditResult:
        ends.append((plan.budget, current().started == begun))
        return federated

    begun = time.monotonic()
    monkeypatch.setattr("leakaudit.audit.audit.audit", audited)
    with monitored(Monitor(started=begun)):
        audit_at_stages(target(), replace(PLAN, budget=90.0, stages=("init", "early", "trained"), epochs=1))
    assert ends == [(30.0, True), (60.0, True), (90.0, True)]  # seconds since all of it began


@pytest.mark.parametrize(
    ("verdict", "earlier", "expected", "first"),
    [
        ("pass", ("pass",), "pass", "within-limit"),
        ("pass", ("fail",), "fail", LEAKED),
        ("pass", ("inconclusive", "pass"), "inconclusive", OPEN),
        ("inconclusive", ("fail", "pass"), "fail", LEAKED),
        ("fail", ("pass", "inconclusive"), "fail", "within-limit"),
    ],
)
def test_a_defense_is_as_safe_as_at_its_worst_stage(
    verdict: Verdict, earlier: tuple[Verdict, ...], expected: Verdict, first: str
) -> None:
    told = tuple(Stage("init", 0, 0.1, each, "replay", Estimate(0.0, 0.0, 0.2, 16)) for each in earlier)
    found, why = over_stages(verdict, (Reason("within-limit"),), told, 0.25)
    assert found == expected
    assert why[0].id == first


def test_nothing_passes_before_the_last_stage() -> None:
    assert over_stages("pass", (Reason("within-limit"),), (), 0.25, ("early", "trained")) == (
        "inconclusive",
        (Reason(AHEAD, facts={"stage": "early"}), Reason("within-limit")),
    )
    assert over_stages("fail", (), (), 0.25, ("trained",)) == ("fail", ())
    assert "The stage trained of training was not reached" in sentences((Reason(AHEAD, facts={"stage": "trained"}),))[0]


def test_at_a_lower_limit_than_its_scan_a_stage_is_undecided() -> None:
    passed = Stage("init", 0, 0.1, "pass", "replay", Estimate(0.0, 0.0, 0.2, 16))
    assert over_stages("pass", (), (passed,), 0.1)[0] == "inconclusive"
    proven = replace(passed, why=(Reason("independent"),))
    assert over_stages("pass", (), (proven,), 0.1)[0] == "pass"
    for bound, verdict in ((0.05, "pass"), (0.15, "inconclusive")):
        bounded = replace(passed, why=(Reason("proven", facts={"bound": bound}),))
        assert over_stages("pass", (), (bounded,), 0.1)[0] == verdict


def _restaged(result: AuditResult, change: Callable[[Stage], Stage], at: int) -> AuditResult:
    """Return a result in which a stage of every row says something else, and all verdicts follow from that."""
    rows = []
    for row in result.defenses:
        stages = list(row.stages)
        stages[at] = change(stages[at])
        verdict, why = rejudge(result, replace(row, stages=tuple(stages)))
        rows.append(replace(row, stages=tuple(stages), verdict=verdict, why=why, reasons=sentences(why)))
    verdict, why = overall(rows)
    return replace(result, defenses=tuple(rows), verdict=verdict, why=why, reasons=sentences(why))


@pytest.mark.parametrize(
    ("at", "change", "told"),
    [
        (0, lambda s: replace(s, verdict="pass", why=(Reason("identification-above-limit"),)), "those of another"),
        (0, lambda s: replace(s, verdict="pass", why=()), "no reason"),
        (0, lambda s: replace(s, verdict="pass", identification=Estimate(1.0, 0.9, 1.0, 8)), "than the limit allows"),
        (0, lambda s: replace(s, epochs=2), "the stage init is not the same one"),
        (0, lambda s: replace(s, name="trained"), "audited at the stages trained, trained"),
        (1, lambda s: replace(s, verdict="pass"), "not what its own numbers give"),
        (1, lambda s: replace(s, attack="replay"), "not what its own numbers give"),
    ],
)
def test_what_is_forged_of_a_stage_is_seen(
    federated: AuditResult, at: int, change: Callable[[Stage], Stage], told: str
) -> None:
    assert list(moments(_restaged(federated, lambda stage: stage, at))) == []
    assert any(told in clause for clause in claims(_restaged(federated, change, at)))


def test_stages_that_were_asked_for_are_not_left_out(federated: AuditResult) -> None:
    bare = replace(federated, defenses=tuple(replace(row, stages=()) for row in federated.defenses))
    assert any("audited at the stages none" in told for told in claims(bare))
    assert any("settings say none" in told for told in claims(replace(federated, settings={})))


@pytest.mark.parametrize(
    ("typed", "agrees"),
    [
        ("--client fedavg:batch=2:lr=0.1 --stages 'init, trained'", True),
        ("--client=fedavg:batch=2:lr=0.01", False),
        ("--stages trained", False),
    ],
)
def test_the_command_and_the_settings_agree_about_the_client(federated: AuditResult, typed: str, agrees: bool) -> None:
    told = replace(federated, environment=federated.environment | {"command": f"leakaudit scan model.py {typed}"})
    assert any("the command says --" in clause for clause in claims(told)) is not agrees


def test_an_interrupt_keeps_what_earlier_stages_found() -> None:
    def stop(result: AuditResult) -> None:
        if len(result.defenses) == 1 and len(result.defenses[0].stages) == 2:
            raise KeyboardInterrupt

    result = audit_at_stages(target(), replace(PLAN, stages=("init", "trained")), keep=stop)
    assert not result.complete
    assert [[stage.name for stage in row.stages] for row in result.defenses] == [["init", "trained"]] * 2
    assert result.defenses[1].stages[0].identification.n == PLAN.records
    assert list(claims(result)) == []


def test_a_defense_that_failed_at_a_stage_is_not_passed_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    fit, tries = Gaussian.fit, []

    def once(self: Gaussian, *given: Any) -> Defense:
        tries.append(1)
        if len(tries) == 1:
            raise RuntimeError("not today")
        return fit(self, *given)

    monkeypatch.setattr(Gaussian, "fit", once)
    result = audit_at_stages(target(), replace(PLAN, stages=("init", "trained")))
    assert result.defenses[1].stages[0].verdict == "inconclusive"
    assert len(result.defenses[1].stages) == 2
    assert result.defenses[1].why[0].id == OPEN
    assert list(claims(result)) == []


@pytest.mark.parametrize(
    ("asked", "given", "size", "records"),
    [
        ({}, None, 1, 16),
        ({}, "fedavg:epochs=1:batch=4", 16, 64),
        ({"batch_size": 8, "records": 16}, "fedavg:epochs=1:batch=4", 8, 16),
        ({"client": "fedsgd"}, "fedavg:batch=4", 1, 16),
        ({"client": "fedavg:steps=3"}, None, 1, 16),
        ({"client": "fedsgd:clients=4"}, None, 4, 16),
        ({"client": "fedavg:epochs=1:batch=40"}, None, 160, 320),  # as many as there are
    ],
)
def test_a_plan_is_settled_by_its_client(asked: dict[str, object], given: str | None, size: int, records: int) -> None:
    plan = Plan(**asked).settled(client_from(given), 400)  # type: ignore[arg-type]
    assert (plan.batch_size, plan.records) == (size, records)
    assert plan.settled(None, 400) == plan


@pytest.mark.parametrize(("private", "own", "steps"), [(1000, 80, 20), (200, 40, 10)])
def test_an_epsilon_is_of_the_clients_that_train(private: int, own: int, steps: int) -> None:
    """The training run deals few private records to smaller clients, whose batches are a larger share of theirs."""
    plan = Plan(client="fedavg:epochs=1:batch=8", batch_size=80, records=80)
    assert plan.run(private, 6, epochs=2) == (own, 8, steps)
    assert Senders(32, plan.sender(), plan.own).records_of_one(private) == own


def test_the_mode_of_a_client_is_that_of_the_plan() -> None:
    assert Plan(client="fedsgd:mode=train").mode == "train"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"client": "fedavg:clients=3", "batch_size": 8}, "multiple of the 3 clients"),
        ({"client": "fedsg"}, "unknown client"),
        ({"stages": ("late",)}, "init, early, trained"),
        ({"stages": ("init", "init")}, "each once"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_in_a_sentence(settings: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        Plan(**settings)  # type: ignore[arg-type]


def test_a_client_is_a_spec_or_a_client() -> None:
    assert client_from(parse_client("fedavg")) == client_from("fedavg")
    with pytest.raises(UserError, match=r"leakaudit\.Client"):
        client_from(3)
