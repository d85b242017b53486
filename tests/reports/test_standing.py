"""What is proven, what only survived and what is not bounded are told apart, and a bound stands beside its measure."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console

from leakaudit.reports.html import render
from leakaudit.reports.standing import bound_of, further_facts, in_brief, standing
from leakaudit.reports.terminal import summary
from leakaudit.result.schema import AuditResult, Estimate, Guarantee, from_json, to_json
from leakaudit.stats.intervals import rate

BOUND = "one release picks its record out of 10 in at most 10% of cases"
STATED = (
    Guarantee(BOUND, "proven", "the pictures as <given>", 0.1, 10),
    Guarantee("what the pictures tell", "not-bounded"),
)


def shown(result: AuditResult, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, errors="strict", write_through=True)
    summary(result, Console(file=file, width=80), verbose=True)
    return raw.getvalue().decode(encoding)


def guaranteed(golden: AuditResult, hits: int = 0) -> AuditResult:
    """Return the golden result with guarantees on its last defense, whose attacks each identify `hits` of 16."""
    row = golden.defenses[-1]
    attacks = tuple(
        replace(a, identification=rate(hits, 16), candidates=10, psnr=Estimate(reason="-")) for a in row.attacks
    )
    return replace(golden, defenses=(*golden.defenses[:-1], replace(row, attacks=attacks, guarantees=STATED)))


def test_guarantees_come_back_and_old_results_have_none(golden: AuditResult) -> None:
    result = guaranteed(golden)
    assert from_json(to_json(result)) == result
    assert to_json(result).count('"guarantees"') == 1
    assert all(d.guarantees == () for d in golden.defenses)


def test_a_proven_bound_stands_beside_what_was_measured(golden: AuditResult) -> None:
    found = standing(guaranteed(golden), guaranteed(golden).defenses[-1])
    assert [c.under for c in found.proven] == ["the pictures as <given>"]
    assert "at most 10% of cases – measured: 0 of 16 identified by" in found.proven[0].text
    assert [c.text for c in found.unbounded] == ["what the pictures tell"]
    assert found.fell == ()
    assert len(found.survived) == 2  # on updates, and the bound
    batches = replace(guaranteed(golden), settings=golden.settings | {"batch_size": 4})
    assert "measured" not in standing(batches, batches.defenses[-1]).proven[0].text


def test_what_may_exceed_the_limit_is_not_called_survived(golden: AuditResult) -> None:
    result = guaranteed(golden, hits=2)  # 2 of 16: up to 38 % with 95 % confidence, the limit is 25 %
    found = standing(result, result.defenses[-1])
    assert not found.survived
    assert not found.fell
    assert all("2 of 16 identified" in c.text for c in found.undecided)
    assert "Too few records to say" in render(result)


def test_an_attack_that_leaks_is_not_survived(golden: AuditResult) -> None:
    found = standing(guaranteed(golden, hits=16), guaranteed(golden, hits=16).defenses[-1])
    assert not found.survived
    assert all("16 of 16 identified" in c.text for c in found.fell)
    # Where the attacks do not work without a defense either, surviving them is said to say nothing.
    helpless = guaranteed(golden)
    control = replace(helpless.defenses[0], attacks=())
    helpless = replace(helpless, defenses=(control, *helpless.defenses[1:]))
    assert "says nothing" in standing(helpless, helpless.defenses[-1]).survived[-1].text


def test_every_report_tells_them_apart(golden: AuditResult) -> None:
    result = guaranteed(golden)
    page = render(result)
    section = page[page.index('id="guarantees"') : page.index('id="controls"')]
    assert section.count('<th scope="col">') == len(result.defenses)  # one table, the defenses are its columns
    assert "the pictures as &lt;given&gt;" in section
    assert section.count("Not stated in this result.") == 2 * (len(result.defenses) - 1)
    assert "≤ 10%" in page
    assert "proven, at most" in page
    words = " ".join(shown(result).split())
    assert "Proven: one release picks its record out of 10" in words
    assert "Not bounded: what the pictures tell." in words
    assert words.count("Proven:") == 1
    assert all(cell_len(line) <= 80 for line in shown(result).splitlines())  # a tilde upon an x takes no column


def test_results_that_state_nothing_show_no_bound(golden: AuditResult) -> None:
    page = render(golden)
    assert "proven, at most" not in page
    assert "Proven:" not in shown(golden)
    assert bound_of(golden.defenses[-1]) is None


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_greek_letters_are_spelled_out(golden: AuditResult, encoding: str) -> None:
    row = replace(golden.defenses[-1], guarantees=(Guarantee("ε = 3, δ = 1e-5", "proven", "-"),))
    result = replace(golden, defenses=(golden.defenses[0], row))
    assert in_brief(result, row) == "Proven: ε = 3, δ = 1e-5."
    assert "epsilon = 3, delta = 1e-5" in shown(result, encoding)


def test_what_guarantees_say_is_not_stated_again(golden: AuditResult) -> None:
    facts = {
        "epsilon": 3.2,
        "delta": 1e-05,
        "epsilon assumes": "Poisson sampling",
        "privacy proven": "none",
        "memory": "not bounded",
        "bits per parameter, at most": 1.58,
        "policies": "flip, shift",
    }
    states = ("epsilon", "delta", "epsilon assumes", "privacy proven", "memory")
    told = (Guarantee("(ε, δ)-differentially private: ε = 3.2, δ = 1e-05", "proven", "-", states=states),)
    row = replace(golden.defenses[2], facts=facts, guarantees=told)
    assert further_facts(row) == [("bits per parameter, at most", "1.58"), ("policies", "flip, shift")]
    assert [name for name, _ in further_facts(replace(row, guarantees=()))] == sorted(facts)  # of older results, all


def test_a_share_of_identification_that_a_defense_states_is_a_percentage(golden: AuditResult) -> None:
    facts = {"identification among 100 by one release, at most": 0.01, "epsilon": 0.5, "identifiers": True}
    for guarantees in ((), (Guarantee("something else", "proven"),)):
        told = dict(further_facts(replace(golden.defenses[0], facts=facts, guarantees=guarantees)))
        assert told["identification among 100 by one release, at most"] == "1%"
        assert told["epsilon"] == "0.5"
        assert told["identifiers"] == "yes"
