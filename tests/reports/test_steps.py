"""The headline and who must do what: as people speak, by the verdict, whatever was not measured."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product

import pytest

from leakaudit.reports import first_screen, steps
from leakaudit.reports.first_screen import strip
from leakaudit.reports.html import render
from leakaudit.result.schema import AttackResult, AuditResult, DefenseResult, Estimate, Verdict
from tests.reports.page import Page

NOTHING = Estimate(reason="nothing was scored")


def verdicts(golden: AuditResult, *given: Verdict, overall: Verdict) -> AuditResult:
    """The golden result with defenses a, b, … of these verdicts."""
    rows = tuple(replace(golden.defenses[1], spec="abcdefghijkl"[i], verdict=v) for i, v in enumerate(given))
    return replace(golden, defenses=(replace(golden.defenses[0], requested=False), *rows), verdict=overall, settings={})


@pytest.mark.parametrize(
    ("given", "overall", "officer", "headline"),
    [
        (("fail",), "fail", "Do not approve sharing under a.", "shares under a, an attacker can"),
        (("fail", "fail"), "fail", "Do not approve sharing under either defense.", "shares under either defense, an"),
        (("fail",) * 3, "fail", "Do not approve sharing under any of the 3 defenses.", "under any of the 3 defenses"),
        (("fail", "inconclusive"), "fail", "under a, nor yet under b.", "under a, an attacker"),
        (("fail", "pass"), "fail", "under a. Under b, read first what was not tested.", "b held against every attack"),
        (("inconclusive",), "inconclusive", "Do not approve yet: undecided is not safe.", "are safe under a: no clear"),
        (("pass", "pass"), "pass", "approve only after reading what was not tested.", "under either defense more"),
        (("fail",) * 4 + ("pass",) * 8, "fail", "under 4 of the 12 defenses.", "8 of the 12 defenses held"),
    ],
)
def test_the_words_go_with_the_verdict(
    golden: AuditResult, given: tuple[Verdict, ...], overall: Verdict, officer: str, headline: str
) -> None:
    result = verdicts(golden, *given, overall=overall)
    assert officer in steps.tasks(result)[1].text
    assert headline in steps.headline(result)


def test_no_sentence_of_any_mix_stumbles(golden: AuditResult) -> None:
    order: tuple[Verdict, ...] = ("fail", "inconclusive", "pass")
    for given in product(order, repeat=3):
        result = verdicts(golden, *given, overall=min(given, key=order.index))
        told = [steps.headline(result), *(task.text for task in steps.tasks(result))]
        for text in told:
            assert re.search(r"[a-z)%]\.$", text), text
            assert not re.search(r"  |\.\.| [,.]|in place|defenses tried|\bmay\b", text), text
        assert ("Do not approve" in told[2]) is (result.verdict != "pass")


def test_an_interrupted_pass_is_not_approved(golden: AuditResult) -> None:
    result = replace(verdicts(golden, "pass", overall="inconclusive"), complete=False)
    assert "Do not approve yet" in steps.tasks(result)[1].text


def with_chance(four: AuditResult) -> AuditResult:
    """A result whose undefended model learned nothing, and whose limit of lost accuracy lies below chance."""
    return replace(four, chance_accuracy=0.99, settings=four.settings | {"max_accuracy_loss": 0.1, "epochs": 5})


def test_accuracy_at_chance_is_no_choice(four: AuditResult) -> None:
    learned = replace(four, chance_accuracy=0.1)
    assert first_screen.first(learned)["drawing"].allowed
    result = with_chance(four)
    shows = first_screen.first(result)
    assert not shows["drawing"].allowed
    assert "limit 8" not in " ".join(word.text for word in shows["drawing"].words)
    page = Page(render(result)).words
    assert "Nothing is shaded, since accuracy says nothing here" in page
    engineer = steps.tasks(result)[0].text
    assert "undefended it is not clearly above chance (99%); give more --epochs than 5, or more data." in engineer
    assert "both limits" not in page.partition("Findings")[0]
    assert all(card.lines[-1].endswith(", chance 99%") for card in shows["strip"].cards)
    assert not any("chance" in card.lines[-1] for card in strip(learned).cards)


def test_nothing_below_chance_is_shaded(four: AuditResult) -> None:
    """Where the limit of lost accuracy lies below chance, the shade ends at chance."""
    wide = replace(four, settings=four.settings | {"max_accuracy_loss": 0.9}, chance_accuracy=0.1)
    low = replace(wide, chance_accuracy=0.0)
    (ends,), (all_) = first_screen.first(wide)["drawing"].allowed, first_screen.first(low)["drawing"].allowed
    chance = [line for line in first_screen.first(wide)["drawing"].lines if line.kind == "chance"]
    level = next(line.points[0][1] for line in chance if line.points[0][1] == line.points[1][1])
    assert max(y for _, y in ends.points) == pytest.approx(level)
    assert len(all_) == 1


def without(defense: DefenseResult, **changes: object) -> DefenseResult:
    def bare(a: AttackResult) -> AttackResult:
        emptied = replace(a, gallery=(), records=(), identification=NOTHING, psnr=NOTHING, label_accuracy=NOTHING)
        return replace(emptied, **changes)  # type: ignore[arg-type]

    return replace(defense, attacks=tuple(bare(a) for a in defense.attacks))


def test_a_card_without_a_picture_says_why_in_a_box_as_large(four: AuditResult) -> None:
    none, one, *_ = four.defenses
    cases = {
        "no time to draw": without(one, statuses={"budget": 16}),
        "no attack drew it": without(one, statuses={"not-applicable": 16}),
        "no picture kept": replace(one, attacks=tuple(replace(a, gallery=()) for a in one.attacks)),
        "not attacked": replace(one, attacks=()),
    }
    for why, defense in cases.items():
        found = strip(replace(four, defenses=(none, defense)))
        assert (found.cards[1].picture, found.cards[1].empty) == (None, why)
        text = render(replace(four, defenses=(none, defense)))
        assert found.original is not None
        box = f'<span class="la-empty"><svg width="{found.original.width}" height="{found.original.height}"'
        assert box in text
        assert f"<span>{why}</span>" in text


def test_names_break_behind_a_mark_and_nowhere_else() -> None:
    from leakaudit.reports.html_text import parted

    assert str(parted("a,gaussian:std=0.01")) == "a,<wbr>gaussian:<wbr>std=<wbr>0.01"
    assert str(parted("none")) == "none"
    assert str(parted("<b>:&")) == "&lt;b&gt;:<wbr>&amp;"
