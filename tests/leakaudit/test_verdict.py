"""The truth table of the verdict: every way to fail, every way to stay inconclusive, and the only way to pass."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leakaudit.judge.verdict import Case, judge, overall
from leakaudit.judge.words import ENDED, sentences
from leakaudit.result.schema import AttackResult, Baseline, DefenseResult, Estimate, Reason, Verdict
from leakaudit.stats.intervals import clients_needed, median, rate, records_needed

NOTHING = Estimate(reason="not measured")
CHANCE, ALLOWED = 0.01, 0.1


def attack(
    name: str, hits: int, n: int, role: str = "standard", *, psnr: float = 10.0, lost: int = 0, status: str = "diverged"
) -> AttackResult:
    statuses = {"converged": n} | ({status: lost} if lost else {})
    return AttackResult(
        name=name,
        kind="reconstruction",
        role=role,
        settings={},
        tuned={},
        requires=(),
        statuses={k: v for k, v in statuses.items() if v},
        reason=f"{name} stopped" if lost else None,
        identification=rate(hits, n),
        candidates=100 if n else 0,
        psnr=median([psnr] * n),
        ssim=NOTHING,
        lpips=NOTHING,
        r2=NOTHING,
        psnr_released=NOTHING,
        label_accuracy=NOTHING,
    )


def baseline(name: str, psnr: float) -> Baseline:
    return Baseline(name, "", rate(1, 100), median([psnr] * 100), NOTHING, NOTHING)


CONTROL = (attack("inverting", 96, 100, psnr=25.0), attack("analytic", 0, 100))
BASELINES = (baseline("random", 6.0), baseline("class-mean", 13.0), baseline("prior", 10.0))
GOOD = (attack("inverting", 1, 100), attack("analytic", 0, 100), attack("masked", 2, 100, "adaptive"))


def judged(
    *attacks: AttackResult,
    control: tuple[AttackResult, ...] = CONTROL,
    baselines: tuple[Baseline, ...] = BASELINES,
    chance: float = CHANCE,
    allowed: float = ALLOWED,
    is_control: bool = False,
    replaces_records: bool = False,
    min_records: int = 8,
) -> tuple[Verdict, str]:
    verdict, why = judge(
        Case(
            attacks=attacks,
            control=control,
            baselines=baselines,
            chance=chance,
            limit=allowed,
            least=min_records,
            is_control=is_control,
            replaces_records=replaces_records,
        )
    )
    assert why
    reasons = sentences(why)
    for reason in reasons:
        assert reason.endswith(".")
        assert reason[0].isupper()
    return verdict, " ".join(reasons)


def test_a_defense_that_held_passes() -> None:
    verdict, text = judged(*GOOD)
    assert verdict == "pass"
    assert "masked" in text  # the most successful attack
    assert "96%" in text  # on the undefended model


@pytest.mark.parametrize("role", ["standard", "adaptive", "bound"])
def test_identification_above_the_limit_fails_in_every_role(role: str) -> None:
    verdict, text = judged(*GOOD, attack("other", 30, 100, role))
    assert verdict == "fail"
    assert "other" in text
    assert "30 of 100" in text
    assert ("Bound only" in text) == (role == "bound")


def test_a_leak_fails_even_where_nothing_could_have_passed() -> None:
    verdict, _ = judged(attack("inverting", 60, 100), control=())
    assert verdict == "fail"
    verdict, _ = judged(attack("inverting", 8, 8), control=CONTROL)
    assert verdict == "fail"


def test_sharp_pictures_fail_without_identification() -> None:
    sharp = attack("inverting", 1, 100, psnr=16.5)
    assert judged(sharp, *GOOD[1:])[0] == "fail"
    assert judged(replace(sharp, psnr=median([15.5] * 100)), *GOOD[1:])[0] == "pass"
    assert judged(replace(sharp, psnr=Estimate(16.5, 15.0, 18.0, 100)), *GOOD[1:])[0] == "pass"  # the bound counts
    assert judged(sharp, *GOOD[1:], baselines=())[0] == "pass"
    unknown = replace(sharp, identification=NOTHING, candidates=0)
    assert judged(unknown, *GOOD[1:])[0] == "fail"
    verdict, text = judged(*GOOD, replace(sharp, role="bound"))
    assert verdict == "fail"
    assert "Bound only" in text


@pytest.mark.parametrize("control", [(), (attack("inverting", 0, 0, lost=100),), (attack("inverting", 2, 100),)])
def test_attacks_that_do_not_work_undefended_prove_nothing(control: tuple[AttackResult, ...]) -> None:
    verdict, text = judged(*GOOD, control=control)
    assert verdict == "inconclusive"
    assert "undefended model" in text


def test_a_guess_without_the_update_is_what_must_be_beaten() -> None:
    # In a batch, pairing alone lifts a guess above 1/M: an attack at that rate has not been shown to work.
    control = (attack("inverting", 9, 100),)
    assert judged(*GOOD, control=control)[0] == "pass"
    lucky = replace(BASELINES[2], identification=rate(5, 100))
    verdict, text = judged(*GOOD, control=control, baselines=(*BASELINES[:2], lucky))
    assert verdict == "inconclusive"
    assert "guessing" in text


def test_without_an_adaptive_attack_nothing_passes() -> None:
    assert judged(*GOOD[:2])[0] == "inconclusive"
    verdict, text = judged(*GOOD[:2], attack("masked", 0, 0, "adaptive", lost=100, status="failed"))
    assert verdict == "inconclusive"
    assert "built against this defense" in text
    assert "100 failed" in text
    assert judged(*GOOD[:2], attack("handed", 0, 100, "bound"))[0] == "inconclusive"
    labels = replace(attack("masked", 0, 100, "adaptive"), kind="labels", identification=NOTHING)
    assert judged(*GOOD[:2], labels)[0] == "inconclusive"


def test_the_undefended_row_needs_no_adaptive_attack() -> None:
    assert judged(*CONTROL, is_control=True)[0] == "fail"
    weak = (attack("inverting", 7, 200),)
    assert judged(*weak, control=weak, is_control=True)[0] == "pass"
    assert judged(*weak, control=weak, is_control=False)[0] == "inconclusive"


def test_replaced_records_must_have_been_handed_over() -> None:
    assert judged(*GOOD, replaces_records=True)[0] == "inconclusive"
    assert judged(*GOOD, attack("handed", 2, 100, "bound"), replaces_records=True)[0] == "pass"
    lost = attack("handed", 0, 0, "bound", lost=100, status="failed")
    assert judged(*GOOD, lost, replaces_records=True)[0] == "inconclusive"


@pytest.mark.parametrize("status", ["diverged", "failed", "out-of-memory", "budget"])
def test_an_attack_that_matters_and_was_not_scored_is_not_a_pass(status: str) -> None:
    works = attack("inverting", 0, 0, lost=100, status=status)
    verdict, text = judged(works, *GOOD[1:])
    assert verdict == "inconclusive"
    assert "inverting works on the undefended model but has no score" in text
    adaptive = attack("second", 0, 0, "adaptive", lost=100, status=status)
    assert judged(*GOOD, adaptive)[0] == "inconclusive"
    useless = attack("analytic", 0, 0, lost=100, status=status)  # seen not to work on this model
    verdict, text = judged(GOOD[0], useless, GOOD[2])
    assert verdict == "pass"
    assert f"(100 {ENDED.get(status, status)};" in text  # and is still listed


@pytest.mark.parametrize("status", ["failed", "out-of-memory", "budget"])
def test_an_attack_that_crashed_on_the_control_too_is_not_a_pass(status: str) -> None:
    crashed = attack("dlg", 0, 0, lost=100, status=status)
    control = (*CONTROL, crashed)
    for here in (crashed, attack("dlg", 0, 0, lost=100), attack("dlg", 0, 40, lost=60)):
        verdict, text = judged(*GOOD, here, control=control)
        assert verdict == "inconclusive"
        assert "dlg may work, as nothing measured without a defense shows otherwise, but" in text
    assert judged(*GOOD, crashed)[0] == "inconclusive"  # nor is one that was not run there
    assert judged(*GOOD, attack("dlg", 0, 100), control=control)[0] == "pass"  # here it did run
    partly = attack("dlg", 0, 40, lost=60, status=status)  # 0 of 40 there, but the other 60 were not seen
    partly = replace(partly, kind="linkage")  # where a spent budget leaves no score
    assert judged(*GOOD, crashed, control=(*CONTROL, partly))[0] == "inconclusive"
    cut = replace(attack("dlg", 0, 100), statuses={"budget": 100})  # a score, but not of the whole attack
    assert judged(*GOOD, crashed, control=(*CONTROL, cut))[0] == "inconclusive"


def test_an_attack_that_diverges_on_the_control_does_not_work_on_this_model() -> None:
    diverged = attack("dlg", 0, 0, lost=100)
    verdict, text = judged(*GOOD, diverged, control=(*CONTROL, diverged))
    assert verdict == "pass"
    assert "dlg has no score on 100 of 100 victims (100 diverged" in text
    assert judged(*GOOD, attack("dlg", 0, 0, lost=100, status="failed"), control=(*CONTROL, diverged))[0] != "pass"
    mixed = replace(diverged, statuses={"diverged": 99, "out-of-memory": 1})
    assert judged(*GOOD, diverged, control=(*CONTROL, mixed))[0] == "inconclusive"


def test_an_adaptive_attack_that_does_not_apply_blocks_nothing_where_another_was_scored() -> None:
    linkage = attack("linkage", 0, 0, "adaptive", lost=100, status="not-applicable")
    verdict, text = judged(*GOOD, linkage)
    assert verdict == "pass"
    assert "linkage has no score on 100 of 100 victims (100 not applicable" in text
    assert judged(*GOOD[:2], linkage)[0] == "inconclusive"
    handed = attack("released-linkage", 0, 0, "bound", lost=100, status="not-applicable")
    assert judged(*GOOD, linkage, handed, replaces_records=True)[0] == "inconclusive"
    decoder = attack("released-decoder", 2, 100, "bound")
    assert judged(*GOOD, linkage, handed, decoder, replaces_records=True)[0] == "pass"
    half = replace(attack("linkage", 0, 50, "adaptive"), statuses={"converged": 50, "not-applicable": 50})
    assert judged(*GOOD, half)[0] == "inconclusive"  # it applies, and half of its victims have no score


def test_a_standard_attack_that_does_not_apply_is_no_reason() -> None:
    nothing = attack("dlg", 0, 0, lost=100, status="not-applicable")
    for attacks in (GOOD, GOOD[:2], (attack("inverting", 60, 100), *GOOD[1:])):
        verdict, text = judged(*attacks, nothing, control=(*CONTROL, nothing))
        assert verdict == judged(*attacks)[0]
        assert "dlg" not in text


def test_nothing_is_said_of_an_attack_twice() -> None:
    for lost in (
        attack("masked", 0, 0, "adaptive", lost=100, status="failed"),
        attack("masked", 0, 80, "adaptive", lost=20),
    ):
        assert judged(*GOOD[:2], lost)[1].count("masked has") + judged(*GOOD[:2], lost)[1].count("masked was") == 1
        assert judged(*GOOD[:2], lost)[1].count("masked stopped") == 1


def test_the_most_successful_attack_without_the_defense_is_named() -> None:
    text = judged(*GOOD)[1]
    assert "The most successful attack on the undefended model, inverting, identified 96%." in text


def test_a_bound_claims_no_more_than_it_shows() -> None:
    text = judged(*GOOD, attack("handed", 30, 100, "bound"))[1]
    assert "from an update alone it may be less" in text
    assert "no more" not in text
    assert "upper bound" not in judged(*GOOD, replaces_records=True)[1]


def test_failures_count_as_leaks_until_shown_otherwise() -> None:
    few, many = (attack("masked", 0, 100 - lost, "adaptive", lost=lost) for lost in (2, 20))
    assert judged(*GOOD[:2], few)[0] == "pass"
    verdict, text = judged(*GOOD[:2], many)
    assert verdict == "inconclusive"
    assert "20 of 100" in text


def test_failures_are_counted_in_records_not_victims() -> None:
    # 100 victims of 4 records each, 10 of them lost: 40 of 400 records could have leaked, not 10 of 370.
    lost = replace(attack("masked", 0, 360, "adaptive"), statuses={"converged": 90, "diverged": 10})
    verdict, text = judged(*GOOD[:2], lost)
    assert verdict == "inconclusive"
    assert "10 of 100" in text


def test_an_attack_that_ran_out_of_time_is_not_safe() -> None:
    cut = replace(attack("masked", 0, 100, "adaptive"), statuses={"budget": 20, "converged": 80}, reason="time was up")
    verdict, text = judged(*GOOD[:2], cut)
    assert verdict == "inconclusive"
    assert "20 of 100" in text
    little = replace(cut, statuses={"budget": 2, "converged": 98})
    verdict, text = judged(*GOOD[:2], little)
    assert verdict == "pass"
    assert "was cut short on 2 of 100" in text
    linking = replace(attack("linkage", 0, 80, "adaptive"), kind="linkage", statuses={"budget": 20, "converged": 80})
    verdict, text = judged(*GOOD, linking)
    assert verdict == "inconclusive"
    assert "linkage was built against this defense but has no score on 20 of 100" in text
    assert judged(*GOOD[:2], replace(cut, identification=rate(60, 100)))[0] == "fail"  # what it did find counts


def test_an_attack_nobody_scored_at_all() -> None:
    assert judged()[0] == "inconclusive"


def test_too_few_records_says_how_many_are_needed() -> None:
    verdict, text = judged(*(replace(a, identification=rate(0, 16)) for a in GOOD))
    assert verdict == "inconclusive"
    assert "16" in text
    assert "36" in text
    enough = tuple(replace(a, identification=rate(0, 36), statuses={"converged": 36}) for a in GOOD)
    assert judged(*enough)[0] == "pass"
    assert judged(*enough, min_records=50)[0] == "inconclusive"
    assert judged(*GOOD, allowed=0.0, chance=0.0)[0] != "pass"


def test_too_few_candidates_neither_pass_nor_fail() -> None:
    half = tuple(replace(a, identification=rate(50, 100), candidates=2) for a in GOOD)
    verdict, text = judged(*half, chance=0.5)
    assert verdict == "inconclusive"
    assert "same class" in text
    assert judged(*GOOD[:2], attack("masked", 80, 100, "adaptive"), chance=0.5)[0] == "fail"


def settled_by(text: str) -> int:
    found = re.search(r"about (\d+) records would settle it \(--records (\d+)\)", text)
    assert found is not None
    assert found[1] == found[2]
    return int(found[1])


@pytest.mark.parametrize(("hits", "n", "allowed"), [(1, 16, 0.25), (5, 100, 0.1), (9, 100, 0.1), (60, 400, 0.17)])
def test_below_the_limit_it_says_how_many_records_settle_it(hits: int, n: int, allowed: float) -> None:
    verdict, text = judged(*GOOD[:2], attack("masked", hits, n, "adaptive"), allowed=allowed, chance=0.001)
    assert verdict == "inconclusive"
    records = settled_by(text)
    assert records > n
    fewer = records - records // 10
    assert (rate(hits * records // n, records).high or 1.0) <= allowed  # enough, and not many more than that
    assert (rate(-(-hits * fewer // n), fewer).high or 1.0) > allowed


def test_records_to_ask_for_include_lost_ones_and_fill_batches() -> None:
    whole = settled_by(judged(*GOOD[:2], attack("masked", 5, 100, "adaptive"))[1])
    half = replace(attack("masked", 5, 100, "adaptive"), statuses={"converged": 25, "diverged": 25})
    records = settled_by(judged(*GOOD[:2], half)[1])  # 25 of 50 victims with 4 records each
    assert records % 4 == 0
    assert whole == records_needed(0.1, 0.05)
    assert records == 2 * 4 * (clients_needed(0.1, 0.05) or 0)  # where the unit is the client


@pytest.mark.parametrize("hits", [10, 12])
def test_at_or_above_the_limit_more_records_are_not_promised_to_help(hits: int) -> None:
    verdict, text = judged(*GOOD[:2], attack("masked", hits, 100, "adaptive"))
    assert verdict == "inconclusive"
    assert f"{hits}% were identified, so more records would not make it a pass" in text
    assert "--records" not in text


@settings(derandomize=True, max_examples=150, deadline=None)
@given(
    hits=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    roles=st.lists(st.sampled_from(["standard", "adaptive", "bound"]), min_size=4, max_size=4),
    lost=st.lists(st.integers(0, 40), min_size=4, max_size=4),
    extra=st.integers(0, 40),
)
def test_another_attack_never_makes_a_verdict_better(
    hits: list[int], roles: list[str], lost: list[int], extra: int
) -> None:
    attacks = [
        attack("inverting" if i == 0 else f"a{i}", h, 40, role, lost=gone)
        for i, (h, role, gone) in enumerate(zip(hits, roles, lost, strict=False))
    ]
    order = ["fail", "inconclusive", "pass"]
    before = order.index(judged(*attacks)[0])
    more = attack("a9", extra, 40, "bound")  # of a role whose absence is no reason for doubt
    assert order.index(judged(*attacks, more)[0]) <= before
    if before == 2:
        assert any(r == "adaptive" for _, r in zip(hits, roles, strict=False))
        assert max(a.identification.high or 1 for a in attacks) <= ALLOWED


def row(spec: str, verdict: Verdict, requested: bool = True) -> DefenseResult:
    return DefenseResult(
        spec=spec,
        settings={},
        facts={},
        replaces_records=False,
        attacks=(),
        accuracy=NOTHING,
        accuracies=(),
        verdict=verdict,
        reasons=(f"Because of {spec}.",),
        why=(Reason("stored", facts={"told": f"Because of {spec}."}),),
        requested=requested,
    )


def test_the_whole_is_as_bad_as_its_worst_requested_defense() -> None:
    none = row("none", "fail")
    assert overall([none, row("a", "pass")])[0] == "pass"
    assert overall([none, row("a", "pass"), row("b", "inconclusive")])[0] == "inconclusive"
    verdict, why = overall([none, row("a", "pass"), row("b", "inconclusive"), row("c", "fail")])
    assert verdict == "fail"
    assert sentences(why) == ("c: Because of c.",)
    assert overall([none])[0] == "fail"
    assert overall([replace(none, requested=False)])[0] == "inconclusive"
    assert overall([])[0] == "inconclusive"
    assert overall([none, row("a", "fail", requested=False)])[0] == "fail"  # only `none` was asked for
