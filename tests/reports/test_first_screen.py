"""The first screen: one piece of HTML that leaks no style, runs nothing, and says what the result says."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace

import pytest
from PIL import Image

from leakaudit.gate.consistency import doubts
from leakaudit.judge import ranking
from leakaudit.reports import first_screen, pictures, steps
from leakaudit.reports.first_screen import fragment, strip
from leakaudit.reports.html import render
from leakaudit.reports.html_text import named
from leakaudit.result.schema import AttackResult, AuditResult, DefenseResult, Picture, RecordScore
from tests.outcomes import every
from tests.reports.crowds import crowd
from tests.reports.page import Page
from tests.reports.test_html import poisoned


def picture(shades: list[int]) -> str:
    made, buffer = Image.new("L", (16, 16)), io.BytesIO()
    made.putdata([shades[i % len(shades)] for i in range(256)])
    made.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


FLAT, RICH = picture([7]), picture([(37 * i * i + 11 * i) % 251 for i in range(256)])


def drew(template: AttackResult, name: str, gains: dict[int, float], flat: tuple[int, ...] = ()) -> AttackResult:
    """An attack whose pictures gained so many dB over the best guess, by victim."""
    score = RecordScore(0, 0, "face", "converged", psnr=10.0, identified=False)
    rows = tuple(
        Picture(v, 0, "face", FLAT if v in flat else RICH, None, RICH, psnr=10.0 + gain) for v, gain in gains.items()
    )
    records = tuple(replace(score, victim=v, gain=gain) for v, gain in gains.items())
    return replace(template, name=name, role="standard", records=records, gallery=rows)


def drawn(golden: AuditResult, *attacks: list[AttackResult]) -> AuditResult:
    """The golden result with other attacks on its first defenses."""
    rows = tuple(replace(d, attacks=tuple(a)) for d, a in zip(golden.defenses, attacks, strict=False))
    return replace(golden, defenses=rows, settings=golden.settings | {"defenses": ""})


def chosen(result: AuditResult) -> list[int]:
    return [victim for victim, _ in pictures.chosen([pictures.drawn_of(d) for d in result.defenses])]


def test_the_fragment_stands_alone_and_leaks_no_style(golden: AuditResult) -> None:
    text = fragment(golden)
    page = Page(text)
    assert page.faults == []
    assert page.tags["style"] == 1
    assert not {"script", "link", "a", "iframe", "body", "html"} & set(page.tags)
    assert all(b.startswith("data:image/png;base64,") for b in page.bound)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name == "style"]
    sheet = re.sub(r"@media[^{]*\{|\}\s*\}", "}", re.findall(r"<style>(.*?)</style>", text, re.DOTALL)[0])
    selectors = [each for rule in re.findall(r"([^{}]+)\{", sheet) for each in rule.split(",")]
    assert len(selectors) > 40
    assert [each for each in selectors if ".leakaudit" not in each] == []
    assert fragment(golden) == text
    assert fragment(golden) != fragment(replace(golden, chance_accuracy=0.1))


def test_its_text_is_escaped(golden: AuditResult) -> None:
    text = fragment(poisoned(golden))
    assert Page(text).faults == []
    assert "<script" not in text
    assert "<img src=x" not in text
    assert set(Page(text).tags) <= {*Page(fragment(golden)).tags, "details", "summary"}
    assert str(named("a <b>x</b> b", ["<b>x</b>", "b"])) == "a <b>&lt;b&gt;x&lt;/b&gt;</b> <b>b</b>"
    assert str(named("in prune:a=1 or prune", ["prune", "prune:a=1"])) == "in <b>prune:a=1</b> or <b>prune</b>"


def test_every_card_says_what_the_result_says_of_its_defense(four: AuditResult) -> None:
    found = strip(four)
    assert [c.spec for c in found.cards] == [d.spec for d in four.defenses]
    for card, defense in zip(found.cards, four.defenses, strict=True):
        worst = ranking.worst(defense)
        assert worst is not None
        share = worst.identification
        assert card.lines[0] == f"{round((share.value or 0) * share.n)} of {share.n} identified"
        asked = [a for a in defense.attacks if a.role != "bound" and a.identification.value is not None]
        assert card.lines[1] == f"by {worst.name}" if share.value else f"by any of {len(asked)} attacks"
        assert card.verdict == defense.verdict
        assert card.lines[2].startswith("accuracy ")
    bare = replace(four, defenses=tuple(replace(d, attacks=()) for d in four.defenses))
    assert {c.lines[0] for c in strip(bare).cards} == {"identification not measured"}
    words = Page(fragment(four)).words
    assert all(" ".join(card.lines) in words for card in found.cards)


def test_one_record_is_shown_under_every_defense_and_its_best_picture(four: AuditResult) -> None:
    alts = [str(image["alt"]) for image in Page(fragment(four)).images]
    assert len(alts) == 1 + len(four.defenses)
    assert len({re.search(r"victim \d+, record \d+", alt)[0] for alt in alts}) == 1  # type: ignore[index]
    assert alts[0].startswith("original of")
    for alt, defense in zip(alts[1:], four.defenses, strict=True):
        victim = int(re.search(r"victim (\d+)", alt)[1])  # type: ignore[index]
        name = alt.rpartition(" by ")[2]
        gains = {
            a.name: r.gain or 0.0
            for a in defense.attacks
            if a.role != "bound" and any(p.victim == victim for p in a.gallery)
            for r in a.records
            if r.victim == victim
        }
        assert gains[name] == max(gains.values())


def test_the_record_is_the_one_that_lost_most_and_flat_ones_come_last(golden: AuditResult) -> None:
    one = golden.defenses[0].attacks[3]
    undefended = drew(one, "a", {0: 30.0, 1: 2.0, 2: 9.0, 3: 5.0}, flat=(0,))
    weaker = drew(one, "b", {2: 3.0, 3: 20.0})
    defended = drew(one, "a", {0: -1.0, 1: -2.0, 2: -3.0})
    result = drawn(golden, [weaker, undefended], [defended])
    assert chosen(result) == [2, 1, 3, 0]  # 3 is kept under one defense alone, 0 is flat
    assert [v for v, _ in pictures.by_gain([pictures.drawn_of(d) for d in result.defenses])] == [3, 2, 1, 0]
    handed = replace(drew(one, "c", {2: 99.0}), role="bound")
    assert pictures.drawn_of(result.defenses[0])[2, 0].attack.name == "a"
    assert pictures.drawn_of(result.defenses[0])[3, 0].gain == 20.0
    assert pictures.drawn_of(drawn(golden, [handed, undefended]).defenses[0])[2, 0].attack.name == "a"
    older = replace(undefended, records=())  # of a result that does not hold gains
    assert "drawn by a: PSNR 19.0 dB" in Page(fragment(drawn(golden, [older], [defended]))).words
    small = Page(fragment(result)).words
    assert "drawn by a: +9.0 dB" in small
    assert "drawn by a: no nearer than a guess" in small


def test_pictures_appear_as_the_result_may_show_them(four: AuditResult) -> None:
    none = Page(fragment(replace(four, images="none")))
    assert none.images == []
    assert "made without pictures" in none.words
    assert "64 of 64 identified" in none.words
    redacted = Page(fragment(replace(four, images="redacted", stand_in="A cat.")))
    assert len(redacted.images) == 1 + len(four.defenses)
    assert all(str(image["alt"]).startswith("public stand-in") for image in redacted.images)
    assert "the private record never leaves" not in redacted.words
    gone = tuple(replace(d, attacks=tuple(replace(a, gallery=()) for a in d.attacks)) for d in four.defenses)
    assert "No attack left a picture." in Page(fragment(replace(four, defenses=gone))).words


@pytest.mark.parametrize("count", [1, 12, 40])
def test_it_holds_for_few_and_for_many_defenses_with_long_names(golden: AuditResult, count: int) -> None:
    result = crowd(golden, count, long=True)
    found = strip(result)
    assert len(found.cards) == min(count, first_screen.MOST)
    assert found.cards[0].spec == "none"
    assert found.more == max(0, count - first_screen.MOST)
    worst = sorted(("fail", "inconclusive", "pass").index(d.verdict) for d in result.defenses[1:])
    shown = sorted(("fail", "inconclusive", "pass").index(c.verdict) for c in found.cards[1:])
    assert shown == worst[: len(shown)]
    page = Page(fragment(result))
    assert page.faults == []
    assert ("of no worse verdict" in page.words) is (found.more > 0)


def test_doubts_and_an_interruption_stand_before_the_verdict(golden: AuditResult) -> None:
    assert len(doubts(golden)) > first_screen.DOUBTS
    text = fragment(replace(golden, complete=False))
    words = Page(text).words
    first = words.index("This audit is not complete.")
    assert first < words.index("contradict what it claims") < words.index("Fail, so far")
    assert words.index(f"{len(doubts(replace(golden, complete=False))) - first_screen.DOUBTS} more") < words.index(
        "Fail, so far"
    )


def test_each_reader_finds_a_line_and_a_link_that_leads_somewhere(golden: AuditResult, four: AuditResult) -> None:
    for result in (golden, four, replace(four, verdict="pass", images="none")):
        for outcome in (None, every(result)["fail"][1]):
            tasks = steps.tasks(result, outcome)
            assert len(tasks) <= 5
            assert [t.who for t in tasks[:3]] == ["Engineer", "Privacy officer", "Reviewer"]
            ids = set(Page(render(result, outcome)).ids)
            assert {anchor for task in tasks for anchor, _ in task.links} <= ids
    assert "keep it as you keep the records" in steps.tasks(four)[1].text
    assert "keep it as you keep" not in steps.tasks(replace(four, images="none"))[1].text


def test_a_control_alone_or_nothing_at_all_has_a_first_screen(golden: AuditResult) -> None:
    alone: tuple[DefenseResult, ...] = (replace(golden.defenses[0], requested=True),)
    assert "without a defense" in Page(fragment(replace(golden, defenses=alone))).words
    empty = Page(fragment(replace(golden, defenses=(), target={})))
    assert "No defense was measured." in empty.words
    assert "Unnamed model" in empty.words
