"""What a scan ends with in a terminal: table, advice, path, in 20 lines of 80 columns; the gate's lines likewise."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from leakaudit.compare import advice
from leakaudit.judge import ranking
from leakaudit.judge.words import brief
from leakaudit.reports import gate_terminal, terminal
from leakaudit.reports.terminal import summary
from leakaudit.reports.terminal_lines import labels, shortened
from leakaudit.result.outcome import Check, WaiverState
from leakaudit.result.schema import AuditResult, DefenseResult, Estimate, Finding, Reason, Waiver
from tests.leakaudit.results import attack, defense, lost, result, some
from tests.outcomes import check, outcome

PATHS = 3  # lines that follow: an empty one, the report and the result
LONG = "dp-sgd:noise_multiplier={}:max_norm=0.5,prune:sparsity=0.99,clip:max_norm={}"
HOSTILE = "\x1b[31m[bold]漢字" + "長" * 60 + "\u202e:x=1"
STEADY = (0.80, 0.81, 0.82)


def shown(made: AuditResult, width: int = 80, verbose: bool = False, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, errors="strict", write_through=True)
    summary(made, Console(file=file, width=width), verbose)
    return raw.getvalue().decode(encoding)


def row(spec: str, hits: int, verdict: str, **changes: object) -> DefenseResult:
    found = attack(some(hits), name="inverting-gradients", psnr=[12.3] * 40)
    return replace(defense(spec, found, accuracies=STEADY), verdict=verdict, **changes)  # type: ignore[arg-type]


def six(specs: list[str]) -> AuditResult:
    doubt = (Reason("no-bound"), Reason("no-adaptive-attack"))
    rows = [row(spec, i, "inconclusive", why=doubt[i % 2 :]) for i, spec in enumerate(specs)]
    return replace(result(*rows), verdict="inconclusive")


FAILED = result(row("prune:sparsity=0.9", 40, "fail"), verdict="fail")
PASSED = result(row("obscure", 0, "pass"), settings={"max_accuracy_loss": 0.1, "battery": "standard"})
OPEN = six(["clip"])
MANY = six([f"prune:sparsity=0.{i}" for i in range(1, 26)])
ALIKE = six([LONG.format(i, 1) for i in range(5)])
CRASHED = result(
    row("clip", 3, "inconclusive", why=(Reason("no-bound"),)),
    defense("sign", lost("dlg", "failed", 4), lost("linkage", "budget", 4), lost("peeling", "not-applicable", 4)),
    findings=(Finding("some-thing", "warning", "It is wrong."), Finding("other", "info", "By the way.")),
    waivers=(Waiver("psnr", "Once.", "2999-01-31"),),
)
WORST: dict[str, Any] = {
    "defenses": (CRASHED.defenses[0], *six([LONG.format(i, i) for i in range(4)]).defenses[1:], CRASHED.defenses[-1]),
    "complete": False,
    "verdict": "inconclusive",
}
CASES = {
    "fail": (FAILED, "FAIL", "No setting measured here keeps the leakage limit."),
    "pass": (PASSED, "PASS", "obscure keeps both limits."),
    "inconclusive": (
        OPEN,
        "INCONCLUSIVE",
        "No setting measured here is shown to keep the leakage limit; clip is undecided.",
    ),
    "interrupted": (replace(OPEN, complete=False), "INCONCLUSIVE so far", "clip is undecided"),
    "before anything": (replace(OPEN, defenses=(), complete=False), "INCONCLUSIVE so far", "No defense was measured"),
    "six long specs": (six([LONG.format(i, i) for i in range(5)]), "INCONCLUSIVE", "No setting measured here"),
    "specs alike but in the middle": (ALIKE, "INCONCLUSIVE", "No setting measured here"),
    "hostile text": (
        replace(six([HOSTILE, "[/nope]"]), target={"name": HOSTILE * 9}),
        "INCONCLUSIVE",
        "No setting measured here is shown to keep the",
    ),
    "lost": (CRASHED, "PASS", advice.sentences(CRASHED)[1]),
    "all at once": (replace(CRASHED, **WORST), "INCONCLUSIVE so far", "sign keeps the leakage limit."),
    "many": (MANY, "INCONCLUSIVE", "No setting measured here"),
}


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("name", CASES)
def test_it_is_short_and_says_what_matters(name: str, width: int) -> None:
    made, verdict, advised = CASES[name]
    text = shown(made, width)
    lines = text.splitlines()
    assert lines[0].startswith(verdict)
    assert all(cell_len(line) <= width for line in lines)
    assert not set(text) & set("\x1b\u202e")
    assert advised.split(";")[0] in " ".join(text.split())
    if width >= 80:
        assert len(lines) + PATHS <= 20 + max(0, len(made.defenses) - 6)
    for each in made.defenses:
        worst, start = ranking.worst(each), shortened(each.spec, 8)[:3]
        (told,) = [x for x in lines if x.startswith(start)][:1] if made in (FAILED, PASSED, OPEN) else [""]
        if told and worst:
            hits = round((worst.identification.value or 0) * 40)
            assert told.replace("(control)", "").split()[1:4] == [each.verdict, worst.name, str(hits)]


def whole(made: AuditResult, width: int = 80) -> str:
    """Return what is told, and see that each of its sentences is whole and that those left out are counted."""
    text = shown(made, width)
    words = " ".join(text.split())
    assert "…" not in text.partition("By chance")[2]
    first, *more = advice.advise(made).brief
    told = [first, *more, *(why for whys in terminal._unseen(made) for why in whys)]
    assert first in words
    left = sum(said not in words for said in told)
    counts = re.search(r"Not told here: (\d+) sentences?\b", words)
    assert (int(counts[1]) if counts else 0) == left
    return words


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_sentence_is_cut_and_those_left_out_are_counted(width: int) -> None:
    kinds = ("no-bound", "no-adaptive-attack", "quick-battery", "control-not-scored", "weak-adversary", "no-family")
    for n in range(1, 7):
        for told in (SHORT_RUN, {"max_accuracy_loss": 0.1, "battery": "quick"}, {"battery": "quick"}):
            rows = [row(f"clip:max_norm={i}", i, "inconclusive", why=(Reason(kinds[i]),)) for i in range(n)]
            whole(replace(result(*rows, settings=told), verdict="inconclusive"), width)


SHORT_RUN: dict[str, Any] = {"max_accuracy_loss": 0.1, "epochs": 2, "battery": "standard"}


def chanced(spec: str = "clip") -> AuditResult:
    """An audit whose models learned nothing."""
    low = (0.09, 0.10, 0.11)
    control = defense("none", attack([True] * 40), accuracies=low, requested=False, verdict="fail")
    made = defense(spec, attack(some(3)), accuracies=low, verdict="inconclusive", why=(Reason("no-bound"),))
    return result(control, made, settings=SHORT_RUN, verdict="inconclusive")


def test_where_the_model_is_at_chance_accuracy_says_nothing_and_no_limit_of_it_may_be_kept() -> None:
    for text in (shown(chanced()), shown(chanced(), verbose=True)):
        words = " ".join(text.split())
        asked = (
            "Accuracy says nothing here: undefended it is not clearly above chance (10%); "
            "give more --epochs than 2, or more data."
        )
        assert words.count(asked) == 1
        assert "both limits" not in words
        assert "10 points of accuracy" not in words
        assert "records no limit" not in words
        assert "leakage limit; clip is undecided" in words
    fine = replace(OPEN, settings=SHORT_RUN)
    assert "Accuracy says nothing" not in shown(fine)
    assert "both limits; clip is undecided" in " ".join(shown(fine).split())


def test_without_accuracies_nothing_is_said_of_their_limit() -> None:
    off = replace(OPEN, settings=SHORT_RUN | {"utility": False})
    for verbose in (False, True):
        words = " ".join(shown(off, verbose=verbose).split())
        assert "both limits" not in words
        assert "Limit: 25% identified. By chance: 1%." in words
        assert "points of accuracy" not in words.partition("By chance")[2]
        assert "leakage limit; clip is undecided" in words


def test_an_undecided_row_without_an_attack_says_why() -> None:
    why = Reason("not-applied", facts={"told": "the defense could not be applied: too little time"})
    empty = defense("obscure", verdict="inconclusive", why=(why,))
    made = result(row("clip", 3, "inconclusive", why=(Reason("no-bound"),)), empty, settings=SHORT_RUN)
    words = whole(replace(made, verdict="inconclusive"))
    assert "obscure: " + brief((why,)) + "." in words


def test_a_planted_leak_that_time_did_not_let_be_found_is_told_as_that() -> None:
    cut = Reason("canary-unfinished", facts={"ended": "budget"})
    words = whole(six_of(cut))
    assert "not looked for to the end: the time budget was spent." in words
    assert "Scan again to the end, with a larger --budget or none." in words
    assert "was not found, so that it cannot be relied upon" not in words


def six_of(why: Reason) -> AuditResult:
    rows = [row(f"clip:max_norm={i}", 3, "inconclusive", why=(why,)) for i in range(5)]
    return replace(result(*rows, settings=SHORT_RUN), verdict="inconclusive")


def test_the_control_is_named_as_that_where_it_does_not_count() -> None:
    assert "none (control)" in shown(FAILED)
    alone = result(defense("none", attack(some(40)), verdict="fail", requested=True), verdict="fail")
    assert "(control)" not in shown(alone)
    assert not [line for line in shown(FAILED, 40).splitlines() if line.startswith("none") and "…" in line]


def test_of_attacks_that_found_nothing_none_is_the_worst() -> None:
    both = (attack(some(0), name="dlg"), attack(some(0), name="linkage"))
    made = result(defense("obscure", *both, attack(some(9), name="bound", role="bound")), verdict="pass")
    (told,) = [line for line in shown(made).splitlines() if line.startswith("obscure  ")]
    assert "none of 2 attacks" in told
    assert "0 of 40" in told
    for one in (result(defense("obscure", both[0])), result(defense("obscure", *both, verdict="fail"))):
        assert "none of" not in shown(one)  # one attack has a name, and a fail has a cause


def test_every_defense_has_a_row_that_names_no_other() -> None:
    for made in (MANY, ALIKE, CASES["six long specs"][0]):
        table = shown(made).partition("Defense")[2].partition("Limit:")[0].splitlines()[1:]
        names = [line.split()[0] for line in table if " inconclusive " in line]
        assert len(names) == len(set(names)) == len(table) - 1 == len(made.defenses) - 1
    both = ["a" * 40 + "b" + "a" * 40, "a" * 39 + "b" + "a" * 41]  # one is told by all of it, on several lines
    assert "".join(map(str.strip, labels([*both, both[0]], 12, "utf-8")[0])) == both[0]


@pytest.mark.parametrize("width", range(6, 60, 3))
def test_a_name_is_shortened_where_it_can_be_seen(width: int) -> None:
    for words in (LONG, "short", "長" * 40, "a" * 7):
        short = shortened(words, width)
        assert cell_len(short) <= max(3, width)
        assert short == words or ("…" in short and words.startswith(short.partition("…")[0]))
        assert words.endswith(short.partition("…")[2])
    assert shortened("a" * 20, 9, "ascii") == "aaa..aaaa"
    first, second = labels([LONG.format(1, 1), LONG.format(2, 1)], max(width, 12), "utf-8")
    assert first != second


def test_a_column_goes_before_a_name_that_must_be_told_from_others() -> None:
    head = [shown(FAILED, width).splitlines()[2].split() for width in (120, 80, 66, 56, 40)]
    assert head[0] == ["Defense", "Verdict", "Worst", "attack", "Identified", "PSNR", "SSIM", "Accuracy", "Cost"]
    for wider, narrower in pairwise(head):
        assert [word for word in wider if word in narrower] == narrower
    assert head[-1] == ["Defense", "Verdict", "Identified"]


def test_what_is_allowed_is_told_beside_chance() -> None:
    assert "Limits: 25% identified, 10 points of accuracy. By chance: 1% and 10%." in shown(PASSED)
    assert "Limit: 25% identified. By chance: 1% identified, 10% accuracy." in shown(FAILED)


def test_what_a_row_does_not_explain_is_told_in_a_sentence() -> None:
    assert "far closer" not in shown(FAILED)
    rebuilt = Reason("reconstruction-close", attack="dlg", measured=Estimate(30.0), facts={"guess": 9.0})
    told = shown(result(row("clip", 0, "fail", why=(rebuilt,)), row("sign", 0, "fail", why=(rebuilt,))))
    assert "clip and sign: The attack dlg rebuilds pictures far closer" in " ".join(told.split())
    assert "clip: No attack" not in shown(result(row("clip", 0, "pass", why=(Reason("no-bound"),))))


def test_failures_are_counted_and_nothing_harmless_is() -> None:
    words = " ".join(shown(CRASHED).split())
    counts = "2 attacks without a score (1 out of time, 1 failed), 1 warning, 1 waiver"
    assert f"Not told here: {counts}; see the report, or --verbose." in words
    assert words.index("Not told here") < words.index(advice.advise(CRASHED).brief[0])
    assert "Not told here" not in shown(PASSED)
    told = shown(CRASHED, verbose=True)
    for name in ("dlg on sign (4 failed", "linkage on sign (4 out of time", "peeling on sign (4 not applicable"):
        assert f"not scored: {name}" in told
    assert "warning: It is wrong." in told


def test_the_short_advice_is_part_of_the_long_one() -> None:
    for made, *_ in CASES.values():
        found = advice.advise(made)
        assert set(found.brief) <= set(found.sentences)
        assert found.brief[0] == found.sentences[1]


def test_a_poor_terminal_is_served() -> None:
    text = shown(six([LONG.format(1, 1)]), encoding="ascii")
    assert ".." in text
    assert "?" not in text


def gated(*checks: Check, width: int = 80, **changes: object) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    said = replace(outcome(FAILED, "fail", *checks), **changes)  # type: ignore[arg-type]
    gate_terminal.show(said, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80])
def test_the_gate_is_a_screenful_whatever_the_specs_are_called(width: int) -> None:
    checks = [check("fail", f"prune:sparsity=0.{i}:and_more={LONG}") for i in range(20)]
    lines = gated(*checks, *(check("pass", f"sign{i}") for i in range(30)), width=width, notes=("word " * 60,))
    assert len(lines) <= 20
    assert all(cell_len(line) <= width for line in lines)
    told = [i for i, line in enumerate(lines) if line.startswith("FAIL ")]
    assert len(told) == gate_terminal.ROOM // 2
    assert all(lines[i + 1] == "       75% (40 to 90), at most 30%" for i in told)
    assert f"       {20 - len(told)} more, which --verbose lists" in lines
    assert "ok     30 checks" in lines
    assert sum(line.startswith("Next: ") for line in lines) == 1
    assert " ".join(" ".join(lines).split()).endswith("word … (the rest: --verbose)")
    short = [check("fail", f"prune:sparsity=0.{i}") for i in range(9)]
    assert sum(line.startswith("FAIL ") and line.endswith("at most 30%") for line in gated(*short)) == len(short)


def test_the_gate_says_why_where_the_number_does_not() -> None:
    """The reason is whole, below all the checks that have it; it is left out where the number tells as much."""
    why = "The planted leak was not found, so nothing that passes here counts for anything at all."
    open_ = [
        check("inconclusive", spec, measured=Estimate(0.1, 0.0, 0.2, 40), message=f"{spec}: {why}")
        for spec in ("prune:sparsity=0.99", "sign")
    ]
    unmeasured = check("inconclusive", "clip", "accuracy", measured=Estimate(reason=""), message="clip: No time.")
    lines = gated(*open_, unmeasured, check("inconclusive", "mixup"))
    words = " ".join(" ".join(lines).split())
    assert words.count(why) == 1
    assert f"OPEN identification/sign 10% (0 to 20), at most 30% {why} OPEN accuracy/clip No time. OPEN" in words
    assert lines[-2] == "OPEN   identification/mixup                20% (10 to 35), at most 30%"
    assert "may identify too many" not in words
    several = (Reason("no-bound"), Reason("quick-battery"))
    words = " ".join(" ".join(gated(check("fail", "sign", measured=Estimate(0.1, 0.0, 0.2, 40), why=several))).split())
    assert "(1 more reason: --verbose)" in words


def test_the_gate_after_a_scan_names_what_decided_it() -> None:
    console = Console(file=io.StringIO(), width=80)
    waivers = (WaiverState(Waiver("psnr", "Once.", "2001-01-31"), "expired"),)
    said = outcome(FAILED, "fail", check("fail", "prune"), check("pass", "sign"), waivers=waivers)
    gate_terminal.in_a_line(said, console)
    assert isinstance(console.file, io.StringIO)
    words = re.sub(r"\s+", " ", console.file.getvalue()).strip()
    assert words == "GATE FAIL identification/prune failed; 1 waiver expired; 1 of 2 checks passed"
