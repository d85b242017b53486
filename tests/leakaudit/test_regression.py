"""Changes between two results: which defenses are pairs, what counts as the worst attack, what is lost on the way."""

from __future__ import annotations

from dataclasses import replace

import pytest

from leakaudit.compare.changes import Change, changes, paired_defenses
from leakaudit.compare.comparable import differences, remarks
from leakaudit.result.schema import AuditResult, Value
from tests.leakaudit.results import attack, defense, lost, result, some


def change(before: AuditResult, after: AuditResult, metric: str) -> Change:
    return next(c for c in changes(before, after, 0.25) if c.metric == metric and c.defense != "none")


def test_a_record_counts_by_the_worst_attack_on_it() -> None:
    before = result(defense("clip", attack(some(10)), attack(some(5), name="inverting-gradients")))
    # linkage finds fewer, the other attack finds ten more: eight of them new.
    after = result(
        defense("clip", attack(some(2)), attack([6 <= i < 18 for i in range(40)], name="inverting-gradients"))
    )
    found = change(before, after, "identification")
    assert (found.rose, found.fell) == (8, 4)
    assert found.change.value == pytest.approx(4 / 40)
    assert found.before.value == pytest.approx(10 / 40)
    assert found.after.value == pytest.approx(14 / 40)


def test_the_bound_is_compared_apart() -> None:
    handed = attack(some(40), name="released-linkage", role="bound")
    before = result(defense("mixup", attack(some(0)), handed))
    after = result(defense("mixup", attack(some(20)), handed))
    assert change(before, after, "identification").rose == 20
    assert change(before, after, "bound").rose == 0


def test_pictures_worse_than_a_guess_do_not_count() -> None:
    before = result(defense("clip", attack(some(0), psnr=[5.0] * 40)))
    nearer = result(defense("clip", attack(some(0), psnr=[9.5] * 40)))
    near = result(defense("clip", attack(some(0), psnr=[13.0] * 40)))
    assert change(before, nearer, "psnr").p == 1.0  # a guess without an update has 10 dB
    assert (change(before, near, "psnr").p or 1) < 1e-6
    assert change(before, near, "psnr").change.value == pytest.approx(3.0)


def test_victims_are_the_units() -> None:
    before = result(defense("clip", attack(some(0), batch=8)))
    after = result(defense("clip", attack(some(40), batch=8)))
    found = change(before, after, "identification")
    assert (found.rose, found.change.n) == (40, 5)
    assert found.p == pytest.approx(2**-5)


def test_an_attack_that_is_gone_is_said_to_be() -> None:
    before = result(defense("clip", attack(some(0)), attack(some(3), name="dlg")))
    crashed = result(defense("clip", attack(some(0)), lost("dlg", "failed", 40, "RuntimeError: boom")))
    dropped = result(defense("clip", attack(some(0))))
    nowhere = result(defense("clip", attack(some(0)), lost("dlg", "not-applicable", 40, "no dense layer")))
    assert "RuntimeError: boom" in change(before, crashed, "identification").lost[0]
    assert "not run" in change(before, dropped, "identification").lost[0]
    assert change(before, nowhere, "identification").lost == ()
    assert change(before, crashed, "identification").attacks == ("linkage",)


def test_a_changed_setting_is_a_change_of_one_defense() -> None:
    before = result(defense("gaussian:std=0.1", attack(some(0))), defense("clip", attack(some(0))))
    after = result(defense("clip", attack(some(0))), defense("gaussian:std=0.0001", attack(some(0))))
    pairs = [(a.spec, b.spec) for a, b in paired_defenses(before, after)]
    assert pairs == [("none", "none"), ("clip", "clip"), ("gaussian:std=0.1", "gaussian:std=0.0001")]
    two = result(defense("gaussian:std=1", attack(some(0))), defense("gaussian:std=2", attack(some(0))))
    assert [(a.spec, b.spec) for a, b in paired_defenses(before, two)] == [("none", "none")]


def test_accuracy_needs_three_seeds() -> None:
    before = result(defense("clip", attack(some(0)), accuracies=(0.8, 0.81)))
    after = result(defense("clip", attack(some(0)), accuracies=(0.2, 0.21)))
    assert change(before, after, "accuracy").p is None
    assert "3 seeds" in (change(before, after, "accuracy").reason or "")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"target": {"input_shape": "3×8×8", "classes": 10, "model": "Net", "parameters": 10}}, "picture shape"),
        ({"hashes": {}}, "no hashes"),
        ({"hashes": {**result().hashes, "private": "b2"}}, "private records"),
        ({"hashes": {**result().hashes, "victims": "b2"}}, "which records are attacked"),
        ({"exposure": {"preset": "honest-but-curious", "defense": False}}, "exposure"),
        ({"settings": {**result().settings, "batch_size": 8}}, "--batch-size"),
        ({"schema": "leakaudit.result/2"}, "schema"),
    ],
)
def test_what_makes_results_incomparable_is_named(changed: dict[str, object], named: str) -> None:
    other = replace(result(), **changed)
    assert any(named in clause for clause in differences(result(), other))
    assert differences(result(), result()) == ()


def test_other_versions_are_remarked_and_not_refused() -> None:
    other = replace(result(), environment={"leakaudit": "0.2.0", "torch": "2"})
    assert differences(result(), other) == ()
    assert "leakaudit 0.1.0 there, 0.2.0 here" in remarks(result(), other)[0]


def test_an_attack_that_was_asked_for_less_is_no_proof_of_less_leakage() -> None:
    strong = replace(attack(some(10)), settings={"steps": 400, "step_size": 0.1}, tuned={"step_size": 0.1})
    weak = replace(attack(some(0)), settings={"steps": 1, "step_size": 0.3}, tuned={"step_size": 0.3})
    found = change(result(defense("clip", strong)), result(defense("clip", weak)), "identification")
    assert found.attacks == ()
    assert "steps 400 there, 1 here" in found.lost[0]
    retuned = replace(weak, settings={"steps": 400, "step_size": 0.3})
    assert change(result(defense("clip", strong)), result(defense("clip", retuned)), "identification").lost == ()


def test_an_attack_cut_short_is_no_proof_of_less_leakage() -> None:
    cut = attack(some(0))
    cut = replace(cut, statuses={"budget": 40}, records=tuple(replace(r, status="budget") for r in cut.records))
    found = change(result(defense("clip", attack(some(10)))), result(defense("clip", cut)), "identification")
    assert "40 of 40 victims" in found.lost[0]


def test_the_same_runs_once_more_are_no_loss_and_no_doubt() -> None:
    made = result(defense("clip", attack(some(0)), accuracies=(0.3, 0.9, 0.6)))
    found = change(made, made, "accuracy")
    assert (found.change.low, found.change.high) == (0.0, 0.0)
    assert (found.p or 0) > 0.4


def test_as_many_seeds_are_compared_as_both_have() -> None:
    before = result(defense("clip", attack(some(0)), accuracies=(0.80, 0.81, 0.82, 0.1, 0.1)))
    after = result(defense("clip", attack(some(0)), accuracies=(0.80, 0.81, 0.82)))
    assert change(before, after, "accuracy").change.value == 0


def test_steps_that_an_attack_tunes_are_compared_by_what_it_was_given() -> None:
    """As scans store them: `steps` is among what was tuned (all of them, or half), what was asked for beside."""

    def scanned(hits: int, steps: int, asked: dict[str, Value]) -> AuditResult:
        ran = replace(attack(some(hits), name="dlg"), settings={"steps": steps}, tuned={"steps": steps})
        return result(defense("clip", replace(ran, asked=asked)))

    strong = scanned(30, 400, {"steps": 400})
    found = change(strong, scanned(0, 1, {"steps": 1}), "identification")
    assert found.attacks == ()
    assert "dlg ran with other settings (steps asked for 400 there, 1 here)" in found.lost[0]
    assert change(strong, scanned(0, 200, {"steps": 400}), "identification").lost == ()
    assert change(strong, scanned(0, 200, {}), "identification").lost == ()  # an older result does not say


def test_an_attack_that_tuned_and_one_that_could_not_are_not_the_same() -> None:
    tuned = replace(attack(some(30), name="dlg"), settings={"tv": 0.1}, tuned={"tv": 0.1})
    untuned = replace(attack(some(0), name="dlg"), settings={"tv": 0.1})
    found = change(result(defense("clip", tuned)), result(defense("clip", untuned)), "identification")
    assert "dlg ran with other settings (tuned there, not here)" in found.lost[0]
