"""The HTML report: whole, safe, self-contained, and the same every time."""

from __future__ import annotations

import base64
from collections import Counter
from dataclasses import replace
from html import escape
from typing import Any

import pytest

from leakaudit.files.pictures import embedded_size
from leakaudit.judge import ranking
from leakaudit.judge.verdict import CONTROL, LEAKS, Case, judge, reasons_of
from leakaudit.judge.words import grouped, sentence, sentences
from leakaudit.reports import view
from leakaudit.reports.html import render
from leakaudit.result import numbers
from leakaudit.result.schema import (
    AttackResult,
    AuditResult,
    Baseline,
    DefenseResult,
    Estimate,
    Finding,
    Picture,
    Reason,
    from_json,
    to_json,
)
from tests.reports.page import Page

NASTY = "<script>alert('1')</script><img src=x onerror=alert(2)>\"'&"


def nasty(value: Any) -> Any:
    """Return a result in which every text that no schema fixes is an attack on the page."""
    if isinstance(value, tuple):
        return tuple(nasty(v) for v in value)
    if isinstance(value, dict):
        return {f"{k}{NASTY}": nasty(v) for k, v in value.items()}
    return f"{value}{NASTY}" if isinstance(value, str) else value


def poisoned(result: AuditResult) -> AuditResult:
    def estimates(item: Any) -> Any:
        changed = {k: replace(v, reason=nasty(v.reason)) for k, v in vars(item).items() if isinstance(v, Estimate)}
        return replace(item, **changed)

    def attack(a: AttackResult) -> AttackResult:
        gallery = tuple(replace(p, label=p.label + NASTY, shared=NASTY, reconstruction=NASTY) for p in a.gallery)
        text = {
            "name": a.name + NASTY,
            "kind": a.kind + NASTY,
            "reason": nasty(a.reason),
            "requires": nasty(a.requires),
        }
        settings = {"settings": nasty(a.settings), "tuned": nasty(a.tuned), "statuses": a.statuses | {NASTY: 1}}
        return replace(estimates(a), **text, **settings, gallery=gallery)

    def defense(d: DefenseResult) -> DefenseResult:
        text = {"spec": d.spec + NASTY, "settings": nasty(d.settings), "facts": nasty(d.facts)}
        return replace(estimates(d), **text, reasons=nasty(d.reasons), attacks=tuple(attack(a) for a in d.attacks))

    def finding(f: Finding) -> Finding:
        return replace(f, id=nasty(f.id), message=nasty(f.message), evidence=nasty(f.evidence))

    def baseline(b: Baseline) -> Baseline:
        return replace(estimates(b), name=nasty(b.name), description=nasty(b.description))

    return replace(
        result,
        target=nasty(result.target) | {"name": NASTY},
        exposure=nasty(result.exposure),
        assumptions=nasty(result.assumptions),
        findings=tuple(finding(f) for f in result.findings),
        baselines=tuple(baseline(b) for b in result.baselines),
        defenses=tuple(defense(d) for d in result.defenses),
        reasons=nasty(result.reasons),
        not_tested=nasty(result.not_tested),
        settings=nasty(result.settings) | {"command": NASTY},
        environment=nasty(result.environment),
        timings=nasty(result.timings),
        images="full",
    )


def test_the_page_is_well_formed_and_accessible(golden: AuditResult) -> None:
    page = Page(render(golden))
    assert page.faults == []
    repeated = [name for name, count in Counter(page.ids).items() if count > 1]
    assert repeated == []
    links = [link[1:] for link in page.bound if link.startswith("#")]
    assert set(links) <= set(page.ids)
    assert page.headings[0] == 1
    assert all(after <= before + 1 for before, after in zip(page.headings, page.headings[1:], strict=False))
    assert page.tags["caption"] == page.tags["table"] > 5
    assert page.tables.count("caption") == page.tags["table"]
    assert page.images
    assert all(image["alt"] for image in page.images)


def test_nothing_is_loaded_and_nothing_runs(golden: AuditResult) -> None:
    text = render(golden)
    page = Page(text)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert ("content", policy) in page.attributes
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert all(b.startswith(("#", "data:image/png;base64,")) for b in page.bound)
    assert "<script" not in text
    assert "@import" not in text
    assert text.count("url(") == text.count("url(#")
    assert not [name for name, _ in page.attributes if name.startswith("on")]


def test_text_of_the_result_is_escaped_everywhere(golden: AuditResult) -> None:
    text = render(poisoned(golden))
    plain = Page(render(golden))
    page = Page(text)
    assert page.faults == []
    assert "<script" not in text
    assert "<img src=x" not in text
    # Rejected pictures aside, the poisoned page has the elements of the plain one: no text became markup.
    assert set(page.tags) <= set(plain.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert all(b.startswith(("#", "data:image/png;base64,")) for b in page.bound)
    assert page.words.count("<script>alert('1')</script>") > 100


def test_it_shows_every_defense_attack_status_and_reason(golden: AuditResult) -> None:
    words = Page(render(golden)).words
    expected = [*golden.assumptions, *golden.not_tested, golden.schema, view.heading(golden.verdict)]
    for f in golden.findings:
        expected += [f.id, f.message, f.severity.capitalize()]
    for b in golden.baselines:
        expected += [b.name, b.description, b.identification.reason or b.name]
    for d in golden.defenses:
        expected += [d.spec, view.heading(d.verdict), numbers.pairs(d.settings) if d.settings else d.spec]
        why = reasons_of(golden, d)
        expected += sentences(why) if d.verdict != "fail" else []  # what leaked is a finding
        expected += [d.accuracy.reason or f"{100 * (d.accuracy.value or 0):g}%"]
        for a in d.attacks:
            expected += [a.name, a.kind, ranking.in_words(a), "{} of {}".format(*ranking.scored(a)), a.reason or a.name]
            expected += [a.role] if a.role != "standard" else []
            if ranking.scored(a)[0]:
                estimates = (a.identification, a.psnr, a.ssim, a.lpips, a.r2, a.psnr_released, a.label_accuracy)
                expected += [(e.reason or "").rstrip(".") for e in estimates]
                expected += [f"{e.value:.1f}" for e in (a.psnr, a.psnr_released) if e.value is not None]
    missing = [e for e in expected if e not in words]
    assert missing == []
    for value in [*golden.settings.values(), *golden.environment.values(), *golden.target.values()]:
        assert numbers.plain(value) in words


def test_a_reason_is_given_once(golden: AuditResult) -> None:
    for defense in golden.defenses[2:]:
        own = reasons_of(golden, defense)
        why = (*(replace(reason, defense=defense.spec) for reason in own), Reason("interrupted"))
        words = Page(render(replace(golden, why=why))).words
        told = [words_.rstrip(".") for words_ in sentences(own)]
        assert [words.count(each) for each in told] == [1] * len(told)
        assert words.count(sentences(why)[-1]) == 1


def test_what_leaked_is_a_finding_and_not_said_again(golden: AuditResult) -> None:
    words = Page(render(golden)).words
    (leak,) = [why for why in grouped(reasons_of(golden, golden.defenses[1])) if why[0].id in LEAKS][:1]
    assert sentence(leak) not in words
    assert "expectation-over-noise adaptive Identified 3 of 4 records, each among 4. 75% (30.1–95.4) 30%" in words
    # A failed defense whose leak no finding tells keeps its reasons.
    quiet = replace(golden.defenses[1], attacks=())
    assert golden.defenses[1].reasons[0] in Page(render(replace(golden, defenses=(golden.defenses[0], quiet)))).words


def test_unscored_attacks_are_no_numbers(golden: AuditResult) -> None:
    text = render(golden)
    assert text.count("<strong>Not scored</strong>") == 3
    listed = Page(text).words.partition("Not scored: neither success nor failure")[2].partition("All scores")[0]
    assert "dlg on none (4 out of memory): The attack needed more memory than was free." in listed
    assert text.count('<li id="unscored-') == 3
    for reason in ("The attack needed more memory than was free", "ValueError: draws must be at least 1"):
        table = Page(text).words[
            Page(text).words.index("Victims scored") : Page(text).words.index("What is proven, and")
        ]
        assert reason not in table  # the table refers to the list
    assert "0 of 4" in Page(text).words
    only_failed = replace(golden.defenses[2], attacks=golden.defenses[2].attacks[1:])
    row = render(replace(golden, defenses=(only_failed,)))
    assert "No attack on this defense could be scored." in row
    assert "No undefended control was measured" in row


def test_how_an_attack_ran_stands_beside_its_scores_and_its_reason(golden: AuditResult) -> None:
    note = "ran in pieces of 8 of 64 trials"
    rows = tuple(replace(d, attacks=tuple(replace(a, notes=(note,)) for a in d.attacks)) for d in golden.defenses)
    text = Page(render(replace(golden, defenses=rows))).words
    assert "The attack needed more memory than was free; ran in pieces of 8 of 64 trials" in text
    assert "1 victim: the objective became non-finite; ran in pieces of 8 of 64 trials" in text
    assert note not in Page(render(golden)).words


def test_the_worst_attack_is_marked_and_the_bound_is_not_it(golden: AuditResult) -> None:
    worst = [ranking.worst(d) for d in golden.defenses]
    names = ["inverting-gradients", "expectation-over-noise", "inverting-gradients", "linkage"]
    assert [a.name if a else None for a in worst] == names
    assert (ranking.bound(golden.defenses[3]) or worst[0]) is golden.defenses[3].attacks[3]
    found = [a for a in worst if a and a.identification.value != 0]  # of those that found nothing none is worst
    assert render(golden).count('<tr class="worst">') == len(found) == 3


def test_pictures_full_redacted_none(golden: AuditResult) -> None:
    full = Page(render(golden))
    columns = sum(len(a.gallery) for d in golden.defenses for a in d.attacks)
    shared = sum(p.shared is not None for d in golden.defenses for a in d.attacks for p in a.gallery)
    assert columns > shared > 0
    galleries = [[a.gallery for a in d.attacks if a.gallery] for d in golden.defenses]
    records = sum(len({(p.victim, p.record) for g in of for p in g}) for of in galleries)
    released = sum(len({(p.victim, p.record) for g in of for p in g if p.shared}) for of in galleries)
    folded = render(golden).partition('id="every-picture"')[2].partition("</details>")[0]
    assert folded.count("<img") == columns + records + released
    assert len(full.images) > folded.count("<img")  # above it the first screen, and the same records everywhere
    assert "shared (x̃)" in full.words
    assert "These are private records" in full.words

    redacted = Page(render(replace(golden, images="redacted")))
    assert len(redacted.images) == len(full.images)
    assert "Pictures are redacted" in redacted.words
    assert "These are private records" not in redacted.words

    none = Page(render(replace(golden, images="none")))  # pictures that slipped into the result are not shown either
    assert none.images == []
    assert "made without pictures" in none.words


def test_the_picture_that_is_missing_says_so(golden: AuditResult) -> None:
    gone = tuple(replace(p, reconstruction=None) for p in golden.defenses[0].attacks[3].gallery)
    attacks = (*golden.defenses[0].attacks[:3], replace(golden.defenses[0].attacks[3], gallery=gone))
    page = Page(render(replace(golden, defenses=(replace(golden.defenses[0], attacks=attacks),))))
    assert len(page.images) == len(gone)
    assert page.words.count("not shown") >= len(gone)


def test_only_png_becomes_a_picture(golden: AuditResult) -> None:
    original = golden.defenses[0].attacks[3].gallery[0].original
    assert embedded_size(original) == (4, 4)
    svg = base64.b64encode(b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>").decode()
    gif = base64.b64encode(b"GIF89a".ljust(16, b"x") + b"\0\0\0\x04\0\0\0\x04" + bytes(9)).decode()
    assert embedded_size(gif) is None
    assert [embedded_size(text) for text in (None, "", svg, "x\" onerror='", (original or "")[:20])] == [None] * 5


@pytest.mark.parametrize("low", [0.02, 0.08, 0.2])
@pytest.mark.parametrize("known", [None, 0.1])
def test_the_control_is_judged_as_the_verdict_judges_it(golden: AuditResult, low: float, known: float | None) -> None:
    guess = replace(golden.baselines[0], identification=Estimate(known, n=40 if known else 0), psnr=Estimate(20.0))
    control = (replace(golden.defenses[0].attacks[3], identification=Estimate(low + 0.1, low, low + 0.2, 40)),)
    defenses = (replace(golden.defenses[0], attacks=control), *golden.defenses[1:])
    result = replace(golden, baselines=(guess,), chance_identification=0.05, defenses=defenses)
    words = Page(render(result)).words
    _, why = judge(
        Case(
            attacks=golden.defenses[3].attacks,
            control=control,
            baselines=(guess,),
            chance=0.05,
            limit=0.5,
            replaces_records=True,
        )
    )
    proven = not any(reason.id in CONTROL for reason in why)
    assert proven is (low > max(0.05, known or 0.0))
    assert ("the attacks work on this model" in words) is proven
    assert ("these attacks prove nothing" in words) is not proven


def test_a_cost_without_meaning_is_a_dash_with_its_reason(golden: AuditResult) -> None:
    assert "No cost in accuracy" not in Page(render(golden)).words
    control = replace(golden.defenses[0], accuracy=Estimate(0.55, 0.45, 0.65, 3))
    words = Page(render(replace(golden, defenses=(control, *golden.defenses[1:])))).words
    assert words.count("No cost in accuracy is given") == 1
    assert "+13.0" not in words
    once = tuple(replace(d, accuracies=d.accuracies[:1]) for d in golden.defenses)
    assert Page(render(replace(golden, defenses=once))).words.count("1 seed") == 2


def test_how_the_models_were_trained_stands_beside_the_accuracy(golden: AuditResult) -> None:
    told = golden.settings | {"epochs": 15, "training_batch_size": 64, "seeds": 3}
    words = Page(render(replace(golden, settings=told))).words
    table = words.index("Share of the records that an attack identified")
    assert table < words.index("15 epochs, batches of 64 records, 3 seeds") < words.index("Victims scored")


def test_nothing_is_claimed_of_attacks_that_were_not_made(golden: AuditResult) -> None:
    words = Page(render(golden)).words
    assert "do no better" not in words
    assert "a better one may exist" in words


def test_an_interrupted_audit_says_so_first(golden: AuditResult) -> None:
    assert "not complete" not in Page(render(golden)).words
    words = Page(render(replace(golden, complete=False))).words
    assert words.index("This audit is not complete.") < words.index("At least one tested attack")


@pytest.mark.parametrize("verdict", ["pass", "fail", "inconclusive"])
def test_the_verdict_is_the_first_thing_and_not_told_by_colour_alone(golden: AuditResult, verdict: Any) -> None:
    text = render(replace(golden, verdict=verdict))
    words = Page(text).words
    who = "Engineer" if verdict == "fail" else "Everybody"  # the numbers contradict the others: nobody may rely on it
    assert words.index(verdict.capitalize()) < words.index("the private record") < words.index(who)
    assert view.meaning(replace(golden, verdict=verdict)) in words


def test_the_same_result_gives_the_same_bytes(golden: AuditResult) -> None:
    text = render(golden)
    assert render(golden) == text
    assert render(from_json(to_json(golden))) == text
    backwards = replace(golden, settings=dict(reversed(golden.settings.items())))
    assert render(backwards) == text


def test_an_almost_empty_result_still_renders(golden: AuditResult) -> None:
    empty = {"assumptions": (), "findings": (), "baselines": (), "defenses": (), "reasons": (), "not_tested": ()}
    bare = {"target": {}, "exposure": {}, "settings": {}, "environment": {}, "timings": {}, "complete": False}
    page = Page(render(replace(golden, **empty, **bare)))
    assert page.faults == []
    assert "The frontier cannot be drawn" in page.words
    assert "No defense was measured." in page.words


def test_text_no_file_can_hold_does_not_stop_the_report(golden: AuditResult) -> None:
    lone = from_json(to_json(golden).replace("TinyNet", "Tiny\\ud800Net"))
    assert rb"Tiny\ud800Net" in render(lone).encode("utf-8")


def test_a_big_gallery_stays_small(golden: AuditResult) -> None:
    picture = golden.defenses[0].attacks[3].gallery[0]
    rows = tuple(replace(picture, victim=v) for v in range(8))
    attack = replace(golden.defenses[0].attacks[3], gallery=rows)
    many = replace(golden, defenses=tuple(replace(d, attacks=(attack,) * 6) for d in golden.defenses))
    text = render(many)
    held = sum(len(p.original or "") + len(p.reconstruction or "") for p in rows) * 6 * len(golden.defenses)
    images = len(Page(text).images)
    assert images == 6 * 8 * len(golden.defenses) + 8 * len(golden.defenses) + 8 * (1 + len(golden.defenses)) + 5
    assert len(text) < 250_000 + held


def test_labels_are_escaped_in_the_alternative_text(golden: AuditResult) -> None:
    row = Picture(0, 0, NASTY, golden.defenses[0].attacks[3].gallery[0].original, None, None)
    attack = replace(golden.defenses[0].attacks[3], gallery=(row,))
    text = render(replace(golden, defenses=(replace(golden.defenses[0], attacks=(attack,)),)))
    assert Page(text).images[0]["alt"] == f"original of victim 0, record 0, labelled {NASTY}"
    assert escape(NASTY, quote=False) not in text  # quotes are escaped as well


@pytest.mark.parametrize(("runs", "note"), [(1, "1 seed"), (2, "2 seeds"), (3, "")])
def test_a_cost_on_few_runs_says_so(golden: AuditResult, runs: int, note: str) -> None:
    defenses = tuple(replace(d, accuracies=(0.8,) * runs) for d in golden.defenses)
    changed = replace(golden, defenses=defenses)
    notes = {ranking.cost_note(changed, d) for d in defenses if ranking.cost(changed, d) is not None}
    assert notes == {note}
