"""The sections of the report: their order, the gate, waivers, hashes, clauses, galleries that fit, the headline."""

from __future__ import annotations

import re
from dataclasses import replace
from html import escape
from typing import Any

import pytest

from leakaudit.gate.consistency import doubts
from leakaudit.judge import ranking
from leakaudit.judge.verdict import LEAST
from leakaudit.reports import html_findings, mapping, pictures, steps
from leakaudit.reports.html import FEW, render
from leakaudit.reports.html_text import unbroken
from leakaudit.result import numbers
from leakaudit.result.outcome import Check, Outcome, WaiverState
from leakaudit.result.rules import most_successful, most_telling
from leakaudit.result.schema import AuditResult, Estimate, Finding, Waiver, digest
from tests.outcomes import every
from tests.reports.page import Page


def headings(text: str) -> list[str]:
    found = re.findall(r"<h2(?: id=\"[\w-]+\")?>(.*?)</h2>", text, re.DOTALL)
    return [re.sub(r"<.*?>", "", heading).strip() for heading in found]


def test_sections_come_in_the_order_in_which_they_are_asked_for(golden: AuditResult) -> None:
    expected = [
        "Fail",
        "Findings",
        "Pictures",
        "Every defense against every attack",
        "What is proven, and what only survived",
        "Controls and baselines",
        "What was not tested",
        "What it cost",
        "Scope, threat model and assumptions",
        "Clauses, and what is evidence for them",
        "Glossary",
        "Reproducing this audit",
        "Digest and sign-off",
    ]
    assert headings(render(golden)) == expected
    gated = headings(render(golden, outcome(golden)))
    assert gated == [*expected[:8], "Checks of the gate", "Waivers", *expected[8:]]


def outcome(result: AuditResult) -> Outcome:
    waiver = Waiver("identification", "accepted until the new data come", "2026-12-31", "gaussian*", by="the DPO")
    old = Waiver("psnr", "it was a test", "2020-01-01")
    failed = Check("identification/g", "identification", "error", "gaussian:std=0.01", "linkage", "fail", "Too many.")
    checks = (
        replace(failed, waiver=waiver, mend="Mend it."),
        Check("accuracy/o", "accuracy", "warn", "obscure", "", "pass", "Accurate enough."),
    )
    states = (WaiverState(waiver, "in-force", ("identification/g",)), WaiverState(old, "expired"))
    return Outcome(
        "r.json", "fail", ("A waiver expired.",), checks, states, "2026-11-23", digest(result), presets=("p",)
    )


def test_the_gate_and_its_waivers_are_shown(golden: AuditResult) -> None:
    page = Page(render(golden, outcome(golden)))
    assert page.faults == []
    expected = [
        "Too many.",
        "Accurate enough.",
        "only warns",
        "waived until 2026-12-31",
        "A waiver expired.",
        "Mend it.",
    ]
    expected += [
        "accepted until the new data come",
        "the DPO",
        "in force",
        "expired",
        "The gate fails: A waiver expired.",
    ]
    assert [e for e in expected if e not in page.words] == []
    assert "made on another result" not in page.words
    assert "made on another result" in Page(render(replace(golden, chance_accuracy=0.1), outcome(golden))).words
    plain = Page(render(golden)).words
    assert "None: no check was waived" in plain
    assert "Checks of the gate" not in plain
    configured = Page(render(replace(golden, waivers=(Waiver("psnr", "why", "2027-01-01", by="me"),)))).words
    assert "not judged: no gate was run with this report" in configured


def test_hashes_and_the_digest_stand_in_the_page(golden: AuditResult) -> None:
    text = render(golden)
    assert text.count(digest(golden)) == 3  # for verify, for the reader, and in what is signed
    assert "holds no hashes" in text
    hashed = Page(render(replace(golden, hashes={"model": "ab12", "victims": "cd34"}))).words
    assert "ab12" in hashed
    assert "holds no hashes" not in hashed


def test_clauses_are_evidence_and_never_certification(golden: AuditResult) -> None:
    page = Page(render(golden))
    assert mapping.CAUTION in page.words
    for framework in mapping.FRAMEWORKS:
        for clause in framework.clauses:
            assert clause.id in page.words
            assert set(clause.evidence) <= set(mapping.SECTIONS) <= set(page.ids)
            assert clause.evidence
            assert clause.open


def test_a_public_stand_in_is_told_from_a_mosaic(golden: AuditResult) -> None:
    said = "The pictures are the public picture x, degraded."
    words = Page(render(replace(golden, images="redacted", stand_in=said))).words
    assert "as close to it as the reconstruction" in words
    assert words.count("public stand-in") > 1
    assert said in words
    assert "nothing of whom" in words
    old = Page(render(replace(golden, images="redacted"))).words
    assert "nothing of whom" not in old
    assert "Pictures are redacted" in old


def test_pictures_that_do_not_fit_are_left_out_and_counted(
    golden: AuditResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = render(golden)
    found = pictures.section(golden)
    assert found.main is not None
    tables = (found.main, *found.each)
    held = sum(cell.weight for table in tables for row in table.rows for cell in row.cells if cell)
    monkeypatch.setattr(pictures, "MOST", held // 2)
    cut = pictures.section(golden)
    assert cut.left_out + sum(
        c is not None for t in (cut.main, *cut.each) if t for r in t.rows for c in r.cells
    ) == sum(c is not None for t in tables for r in t.rows for c in r.cells)
    text = render(golden)
    assert 0 < Page(text).tags["img"] < Page(whole).tags["img"]
    assert f"{cut.left_out} pictures are not shown, to keep this file small" in Page(text).words
    assert "to keep this file small" not in whole


@pytest.mark.parametrize(
    ("verdicts", "overall", "expected"),
    [
        (("fail",), "fail", "shares under gaussian:std=0.01, an attacker can tell which private record it was"),
        (("fail", "pass"), "fail", ". dp-sgd:noise_multiplier=1 held against every attack tried"),
        (("fail", "fail"), "fail", "under either defense, an attacker can"),
        (("pass",), "pass", "No attack that was tried recovers private records under gaussian:std=0.01"),
        (("inconclusive",), "inconclusive", "does not settle whether private records are safe under gaussian"),
        ((), "fail", "From what a client shares without a defense, an attacker can"),
    ],
)
def test_the_headline_names_what_leaks(golden: AuditResult, verdicts: Any, overall: Any, expected: str) -> None:
    tried = tuple(replace(d, verdict=v) for d, v in zip(golden.defenses[1:], verdicts, strict=False))
    result = replace(golden, defenses=(replace(golden.defenses[0], requested=not tried), *tried), verdict=overall)
    assert expected in steps.headline(result)
    shown = expected if overall == "fail" else "its own numbers contradict that"  # these do, a fail aside
    assert shown in Page(render(result)).words.replace(" ,", ",").replace(" .", ".")


def test_the_evidence_of_a_finding_is_in_words() -> None:
    values = {"defense": "d", "measured": 0.75, "low": 0.3, "high": 0.95, "n": 4, "limit": 0.3, "role": "standard"}
    told = html_findings.evidence(Finding("identification-above-limit", "error", "m", values | {"cause": None}))
    assert told == (("measured", "75% (30 to 95), n = 4"), ("limit", "30%"))
    close = {"measured": 20.0, "low": 17.72, "high": 21.9, "unit": "dB", "limit": 16.7, "guess": 13.7, "role": "bound"}
    told = html_findings.evidence(Finding("reconstruction-close", "error", "m", close))
    assert told[0] == ("measured", "20.0 dB (17.7 to 21.9)")
    assert ("kind of attack", "bound") in told


def test_findings_stand_by_severity_and_one_mend_answers_all_it_mends() -> None:
    made = [
        Finding("a", "warning", "d: first", {"defense": "d"}, "Mend."),
        Finding("b", "error", "whole", {}, "Mend."),
        Finding("c", "warning", "d: second", {"defense": "d"}, "Mend."),
        Finding("c", "warning", "d: third", {"defense": "d"}, "Otherwise."),
    ]
    found = html_findings.levels(made)
    assert [(level.severity, level.count) for level in found] == [("error", 1), ("warning", 3)]
    (block,) = found[1].blocks
    (row,) = block.rows  # of one defense, and of no attack
    assert block.about == "d"
    assert [(told.text, told.mend) for told in row.told] == [("First", 1), ("Second", 1), ("Third", 2)]
    assert found[1].mends == ((1, "Mend.", ("a", "c")), (2, "Otherwise.", ("c",)))
    assert found[0].mends == ((1, "Mend.", ("b",)),)


def test_an_attack_on_a_defense_has_one_row_for_all_that_was_found_of_it() -> None:
    about = {"defense": "d", "attack": "a", "role": "adaptive", "measured": 0.75, "low": 0.3, "high": 0.95, "n": 4}
    made = [
        Finding("identification-above-limit", "error", "Long.", about | {"limit": 0.3, "candidates": 7}, "Mend."),
        Finding("reconstruction-close", "error", "Longer.", about | {"measured": 20.0, "unit": "dB"}, "Mend."),
    ]
    ((row,),) = [block.rows for block in html_findings.levels(made)[0].blocks]
    assert (row.attack, row.role) == ("a", "adaptive")
    assert row.told[0].text == "Identified 3 of 4 records, each among 7"
    assert (row.told[0].measured, row.told[0].limit) == ("75% (30 to 95)", "30%")
    assert row.told[1].measured.startswith("20.0 dB")


def test_of_equals_one_report_names_one_attack(golden: AuditResult) -> None:
    """Highest rate, of equals highest lower bound, of equals the first listed: in every sentence and table."""
    template = golden.defenses[0].attacks[3]
    same = Estimate(0.5, 0.3, 0.7, 20)
    rows = [replace(template, name=n, identification=same, role=r) for n, r in (("zz", "standard"), ("aa", "adaptive"))]
    sure = replace(template, name="sure", identification=replace(same, low=0.35), role="standard")
    for attacks, expected in (((*rows,), "zz"), ((*rows, sure), "sure")):
        defenses = tuple(replace(d, attacks=attacks) for d in golden.defenses)
        result = replace(golden, defenses=defenses)
        named = most_successful(attacks)
        worst, telling = ranking.worst(defenses[1]), most_telling(attacks, 0.1)
        assert {named.name if named else "", worst.name if worst else "", telling.name if telling else ""} == {expected}
        words = Page(render(result)).words
        assert f"Without a defense, {expected} identified 50%" in words
        assert f"10 of 20 identified by {expected} accuracy" in words
    strong = replace(rows[0], name="strong", identification=Estimate(0.6, 0.02, 0.99, 3))
    chosen = most_telling([strong, *rows], 0.1)
    assert chosen is not None
    assert chosen.name == "zz"  # the one that shows most is useless as proof where it does not beat a guess


def test_hashes_are_told_in_words(golden: AuditResult) -> None:
    words = Page(render(replace(golden, hashes={"model": "ab12", "defense:obscure": "cd34"}))).words
    assert "the model: its modules and weights ab12" in words
    assert words.index("ab12") < words.index("what obscure learned cd34")


def test_whatever_a_gate_says_the_page_is_whole(golden: AuditResult) -> None:
    for name, (result, said) in every(golden).items():
        page = Page(render(result, said))
        assert page.faults == [], name
        shown = [*(c.message for c in said.checks), *said.reasons, *(w.waiver.reason for w in said.waivers)]
        assert [text for text in shown if text not in page.words] == [], name
        assert headings(render(result, said))[8] == "Checks of the gate"


def test_numbers_that_contradict_the_claims_are_told_first(golden: AuditResult, sound: AuditResult) -> None:
    text = render(golden)  # whose numbers are made up
    banner = text[text.index('<div class="la-banner la-contradicts">') : text.index('id="verdict"')]
    assert all(escape(doubt.split(" (--")[0], quote=False) in banner.replace("&#39;", "'") for doubt in doubts(golden))
    assert doubts(golden)
    assert '<div class="la-banner la-contradicts">' not in render(sound)
    passed = render(replace(sound, verdict="pass"))
    assert "Pass, contradicted" in headings(passed)
    assert f"Pass, contradicted · result {digest(replace(sound, verdict='pass'))[:16]}" in passed
    edited = replace(every(sound)["fail"][1], verdict="pass")
    assert "its own checks and waivers give fail" in Page(render(sound, edited)).words


def test_a_requested_defense_without_a_row_is_named_where_one_looks(sound: AuditResult) -> None:
    specs = " ".join(d.spec for d in sound.defenses)
    cut = replace(sound, complete=False, settings=sound.settings | {"defenses": f"{specs} gaussian:std=1 prune"})
    words = Page(render(cut)).words
    for spec in ("gaussian:std=1", "prune"):
        assert f"{spec} Not audited It was requested and not audited" in words
        assert words.index(f"{spec} Not audited") < words.index("Engineer")
        assert words.count(f"{spec} was requested and not audited.") == 1
    assert "not audited" not in Page(render(sound)).words.lower()


def test_the_frontier_promises_no_limit_by_a_points_place(golden: AuditResult) -> None:
    limited = replace(golden, settings=golden.settings | {"max_accuracy_loss": 0.1})
    for result, lost in ((golden, False), (limited, True)):
        words = Page(render(result)).words
        assert "limits are kept" not in words
        assert "limit is kept" not in words
        assert "judged on the whole interval of every attack, of which a point alone says too little" in words
        assert ("tested against the training runs of the control" in words) is lost


@pytest.mark.parametrize("cut", ["complete", "budget", "status"])
def test_a_time_budget_repeats_nothing(sound: AuditResult, cut: str) -> None:
    same = "The same command, seed and versions give the same result"

    def ended(result: AuditResult, status: str) -> AuditResult:
        attacks = tuple(replace(a, statuses={status: 4}) for a in result.defenses[1].attacks)
        return replace(result, defenses=(result.defenses[0], replace(result.defenses[1], attacks=attacks)))

    plain = ended(sound, "converged")
    assert same in Page(render(plain)).words
    changed = {
        "complete": replace(plain, complete=False),
        "budget": replace(plain, settings=plain.settings | {"budget": 60.0}),
        "status": ended(sound, "budget"),
    }[cut]
    words = Page(render(changed)).words
    assert same not in words
    assert "How far it came depends on how fast the machine was" in words


def test_few_records_of_the_control_are_little_evidence(golden: AuditResult) -> None:
    assert LEAST == FEW

    def told(share: Estimate) -> str:
        attacks = (replace(golden.defenses[0].attacks[3], identification=share),)
        return Page(render(replace(golden, defenses=(replace(golden.defenses[0], attacks=attacks),)))).words

    one = told(Estimate(1.0, 0.6, 1.0, 1))
    assert "of the 1 scored record, against" in one
    assert "fewer than 8 scored records are little evidence" in one
    assert "the attacks work on this model" not in one
    enough = told(Estimate(1.0, 0.6, 1.0, 8))
    assert "of the 8 scored records, against" in enough
    assert "the attacks work on this model" in enough


def test_a_guess_is_no_limit_and_evidence_comes_by_name() -> None:
    values = {"zeta": 1, "guess": 0.014, "alpha": "x", "measured": 0.5, "defense": "none"}
    told = html_findings.evidence(Finding("undefended-leaks", "info", "m", values))
    assert told == (("measured", "50%"), ("a guess without the update", "1.4%"), ("alpha", "x"), ("zeta", "1"))
    assert told == html_findings.evidence(Finding("undefended-leaks", "info", "m", dict(sorted(values.items()))))


def test_no_line_breaks_within_an_option_and_it_is_copied_as_it_is() -> None:
    text = "about 23 would settle it (--records 23.5): <b> --no-utility -- --" + "x" * 99
    made = str(unbroken(text))
    assert made.startswith('about 23 would settle it (<span class="option">--records 23.5</span>): &lt;b&gt; ')
    assert '<span class="option">--no-utility</span> -- --xxx' in made
    assert '<span class="option">--memory 1.5GiB</span> <' in str(unbroken("--memory 1.5GiB")) + " <"
    assert re.sub(r"</?span[^>]*>", "", made) == escape(text)


def test_a_waiver_of_all_defenses_says_so(golden: AuditResult) -> None:
    late = WaiverState(Waiver("psnr", "why", "2020-01-01"), "expired")
    text = render(golden, replace(outcome(golden), waivers=(late,)))
    assert '<th scope="rowgroup" rowspan="1">all defenses</th>' in text


def test_labels_stand_beside_what_naming_the_commonest_class_gives(golden: AuditResult) -> None:
    note = f"names the commonest class is right for {numbers.percent(golden.chance_accuracy)} of the test records"
    assert note in Page(render(golden)).words
    bare = replace(golden.defenses[0], attacks=golden.defenses[0].attacks[:1])
    blank = tuple(replace(a, label_accuracy=Estimate(reason="none")) for a in golden.defenses[1].attacks)
    assert note not in Page(render(replace(golden, defenses=(bare, replace(golden.defenses[1], attacks=blank))))).words


def test_no_clause_claims_what_was_not_run() -> None:
    clauses = {c.id: c for f in mapping.FRAMEWORKS for c in f.clauses}
    for name in ("NISTAML.033", "AML.T0024.000", "ML04:2023"):
        assert "no membership inference is run" in clauses[name].open
        assert "assumes that one of its candidates is the true record" in clauses[name].open
    assert "does that" not in clauses["A.8.29"].open


def test_a_page_says_what_it_shows_of_its_origin_and_who_vouches_for_it(golden: AuditResult) -> None:
    words = Page(render(golden)).words
    assert "agree with each other, not who made them" in words
    assert "leakaudit verify report.html result.json --key author.pub.pem" in words
    assert "Audited: not recorded" in words
    assert f"the result whose SHA-256 is {digest(golden)} ." in words or f"SHA-256 is {digest(golden)}." in words
    dated = replace(golden, made="2026-11-27T01:20:00Z", environment=golden.environment | {"commit": "abc123"})
    words = Page(render(dated)).words
    assert words.count("2026-11-27 01:20:00 UTC") == 2  # at the head, and where it is signed by hand
    assert words.count("abc123") >= 2
