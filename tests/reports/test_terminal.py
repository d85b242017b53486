"""All that a terminal is told with `--verbose`: within its width, whatever it can print. The rest: the summary."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console

from leakaudit.compare import advice
from leakaudit.judge import ranking
from leakaudit.judge.verdict import reasons_of
from leakaudit.judge.words import sentences
from leakaudit.reports import view
from leakaudit.reports.terminal import summary
from leakaudit.reports.terminal_lines import folded
from leakaudit.result.schema import AuditResult, Estimate, Finding, Reason, Waiver


def shown(
    result: AuditResult, encoding: str = "utf-8", width: int = 80, color: bool = False, verbose: bool = True
) -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, errors="strict", write_through=True)
    console = Console(file=file, width=width, force_terminal=color, color_system="standard" if color else None)
    summary(result, console, verbose)
    return raw.getvalue().decode(encoding)


def test_the_verdict_comes_first_and_every_defense_and_reason_follows(golden: AuditResult) -> None:
    text = shown(golden)
    assert text.startswith("FAIL  golden fixture")
    words = " ".join(text.split())
    for d in golden.defenses:
        assert all(reason in words for reason in sentences(reasons_of(golden, d)))
    assert "expectation-over-noise" in words
    for number in ("100%", "43.9 to 100", "17.5%", "8.8–32", "75%", "±4", "−7", "12.2", "0.20"):
        assert number in words
    assert all(cell_len(line) <= 80 for line in text.splitlines())


def short(golden: AuditResult) -> AuditResult:
    """Give every defense one reason that names no attack."""
    return replace(golden, defenses=tuple(replace(d, why=(Reason("no-bound"),)) for d in golden.defenses))


def test_unscored_attacks_are_named_with_their_reason(golden: AuditResult) -> None:
    golden = short(golden)
    words = " ".join(shown(golden).split())
    for d in golden.defenses:
        for a in d.attacks:
            line = f"not scored: {a.name} on {d.spec} ({ranking.in_words(a)}: {a.reason})"
            assert (line in words) is (ranking.scored(a)[0] == 0)
    again = replace(golden, defenses=(golden.defenses[0], replace(golden.defenses[0], spec="other")))
    assert "not scored: dlg on none, other (4 out of memory:" in " ".join(shown(again).split())


def noted(golden: AuditResult) -> AuditResult:
    """Give every attack of every defense a note on its memory."""
    note = "ran in pieces of 8 of 64 trials to stay within --memory 2GB"
    rows = (replace(d, attacks=tuple(replace(a, notes=(note,)) for a in d.attacks)) for d in golden.defenses)
    return replace(golden, defenses=tuple(rows))


def test_how_an_attack_ran_is_told_once_for_all_defenses(golden: AuditResult) -> None:
    golden = short(golden)
    words = " ".join(shown(noted(golden)).split())
    specs = [
        d.spec for d in golden.defenses for a in d.attacks if a.name == "inverting-gradients" and ranking.scored(a)[0]
    ]
    assert len(specs) > 1
    assert f"note: inverting-gradients on {', '.join(specs)} (ran in pieces of 8 of 64 trials to stay" in words
    assert "needed more memory than was free; ran in pieces" in words  # beside the reason where there is no score
    assert "note: " not in shown(golden)


def test_what_a_reason_told_is_not_told_again(golden: AuditResult) -> None:
    row = golden.defenses[0]
    lost = next(a for a in row.attacks if ranking.scored(a)[0] == 0 and a.reason)
    facts = {"lost": 4, "cut": 0, "victims": 4, "ended": "4 out-of-memory", "told": str(lost.reason)}
    reason = Reason("attack-unfinished", attack=lost.name, facts=facts)
    told = replace(golden, defenses=(replace(row, why=(reason,)),))
    words = " ".join(shown(told, width=200).split())
    assert words.count(str(lost.reason)) == 1
    assert f"not scored: {lost.name}" not in words
    twice = replace(told, defenses=(*told.defenses, replace(told.defenses[0], spec="other")))
    words = " ".join(shown(twice, width=200).split())
    assert words.count(str(lost.reason)) == 1
    assert f"The attack {lost.name} has no score on 4 of 4 victims, as under none." in words


def test_what_is_handed_the_released_records_is_told_as_that(golden: AuditResult) -> None:
    words = " ".join(shown(golden).split())
    handed = ranking.bound(golden.defenses[3])
    assert handed is not None
    assert f"{handed.name}, handed x̃ (the replaced records themselves), 20% (" in words
    assert "x̃" not in shown(replace(golden, defenses=golden.defenses[:1]))


def test_a_long_spec_breaks_at_its_parts_and_is_indented() -> None:
    spec = "dp-sgd:noise_multiplier=1.5:max_norm=0.5,prune:sparsity=0.99,clip:max_norm=1"
    first, *rest = folded(spec, 26, 4)
    assert "".join([first, *(line.removeprefix("    ") for line in rest)]) == spec
    assert all(line.startswith("    ") for line in rest)
    assert all(line.endswith((",", ":")) for line in [first, *rest][:-1])
    assert folded("x" * 30, 10, 4) == ["x" * 10, *["    " + "x" * 8] * 2, "    xxxx"]


def test_a_finding_shows_its_mend_and_a_waiver_is_told(golden: AuditResult) -> None:
    finding = Finding("some-thing", "warning", "This is wrong.", mend="Do that instead.")
    quiet = Finding("other", "info", "By the way.", mend="Never mind.")
    waivers = (
        Waiver("identification", "Accepted by the board.", "2999-01-31", by="Jane"),
        Waiver("psnr", "Was once.", "2001-01-31", defense="prune*", attack="linkage"),
    )
    bare = Finding("value-range", "warning", "That is, too.")  # as a check before a scan leaves it
    words = " ".join(shown(replace(golden, findings=(finding, quiet, bare), waivers=waivers)).split())
    assert "warning: This is wrong. mend: Do that instead." in words
    assert "warning: That is, too. mend: Set mean and std" in words
    assert "Never mind" not in words
    assert "waiver: identification on *, until 2999-01-31 by Jane: Accepted by the board." in words
    assert "waiver, expired: psnr on prune*, attack linkage, until 2001-01-31: Was once." in words


def test_the_advice_ends_it_in_full(golden: AuditResult) -> None:
    words = " ".join(shown(golden).split())
    told = " ".join(advice.sentences(golden))
    assert words.endswith(told)
    assert words.index("none: fail") < words.index("Limit: ") < words.index(told)


def test_wrapped_lines_are_indented(golden: AuditResult) -> None:
    finding = Finding("some-thing", "warning", "word " * 40)
    lines = shown(replace(golden, findings=(finding,))).splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("warning: "))
    assert lines[at + 1].startswith("  word")
    assert lines[at + 2].startswith("  word")


def test_an_interrupted_audit_says_so(golden: AuditResult) -> None:
    assert "interrupted" not in shown(golden)
    assert "FAIL so far" in shown(replace(golden, complete=False))
    assert "interrupted" in shown(replace(golden, complete=False))


def test_text_of_the_result_is_no_markup_and_no_control_code(golden: AuditResult) -> None:
    name = "[bold]x[/] :smile: \x1b[31mred\x07 [/nope]"
    text = shown(replace(golden, target={"name": name}, reasons=(name,)), color=True)
    assert "[bold]x[/] :smile: " in text
    assert "[/nope]" in text
    assert "\x1b[31mred" not in text
    assert "\x07" not in text


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_terminal_that_knows_few_characters_is_served(golden: AuditResult, encoding: str) -> None:
    text = shown(replace(golden, target={"name": "漢 x̃"}), encoding)
    assert text.startswith("FAIL  ? x~")
    assert "-7" in text.split()


def test_nothing_measured_is_a_dash(golden: AuditResult) -> None:
    blank = replace(golden.defenses[2], attacks=golden.defenses[2].attacks[1:])
    text = shown(replace(golden, defenses=(blank,)))
    assert "no attack scored" in text
    assert "none scored" in text.split("Limit:")[0]
    assert " of " not in text.split("Worst attack")[1].split("Limit:")[0]


def test_closest_pictures_are_not_chosen_by_a_lucky_hit(golden: AuditResult) -> None:
    row = golden.defenses[3]
    lucky = replace(row.attacks[0], identification=Estimate(0.3, 0.2, 0.4, 40), psnr=Estimate(7.7, n=40))
    bound = replace(row.attacks[3], psnr=Estimate(33.3, n=40))
    result = replace(golden, defenses=(replace(row, attacks=(lucky, *row.attacks[1:3], bound)),))
    words = shown(result).split()
    assert ranking.drawn(result.defenses[0]) is row.attacks[1]
    assert "12.2" in words
    assert "7.7" not in words
    assert "33.3" not in words


def with_control(result: AuditResult, accuracy: Estimate) -> AuditResult:
    return replace(result, defenses=(replace(result.defenses[0], accuracy=accuracy), *result.defenses[1:]))


@pytest.mark.parametrize("accuracy", [Estimate(0.55, 0.45, 0.65, 3), Estimate(0.5, n=1), Estimate(0.4, n=1)])
def test_where_the_control_learned_nothing_a_defense_costs_nothing_that_could_be_named(
    golden: AuditResult, accuracy: Estimate
) -> None:
    helpless = with_control(golden, accuracy)
    assert [ranking.cost(helpless, d) for d in helpless.defenses] == [None] * 4
    words = " ".join(shown(helpless).split())
    assert "without a defense the accuracy is not clearly above chance (50%)" in words
    assert "+1" not in words
    sound = with_control(golden, Estimate(0.55, n=1))
    assert ranking.cost(sound, sound.defenses[1]) == pytest.approx(0.15)
    assert ranking.no_cost(sound) is None
    assert ranking.no_cost(replace(helpless, defenses=helpless.defenses[:1])) is None


def test_a_cost_of_one_training_run_says_so(golden: AuditResult) -> None:
    assert "1 seed" not in shown(golden)
    once = replace(golden.defenses[3], accuracies=(0.68,))
    text = shown(replace(golden, defenses=(golden.defenses[0], once)))
    assert "1 seed" in text
    assert all(len(line) <= 80 for line in text.splitlines())
    control = replace(golden.defenses[0], accuracies=(0.75,))
    text = shown(replace(golden, defenses=(control, *golden.defenses[1:])))
    assert text.count("1 seed") == 2  # two defenses have a cost, and the control it is measured against had one run


def test_how_the_models_were_trained_is_told_as_far_as_it_is_known(golden: AuditResult) -> None:
    assert view.training(golden) == ""
    told = golden.settings | {"epochs": 15, "training_batch_size": 64, "seeds": 1}
    words = view.training(replace(golden, settings=told))
    assert words.endswith("(15 epochs, batches of 64 records, 1 seed).")
    assert words in " ".join(shown(replace(golden, settings=told)).split())
    assert "batches" not in view.training(replace(golden, settings=golden.settings | {"epochs": 15}))
    blank = tuple(replace(d, accuracy=Estimate(reason="switched off")) for d in golden.defenses)
    assert view.training(replace(golden, settings=told, defenses=blank)) == ""


def test_linkage_whose_time_was_spent_was_not_scored(golden: AuditResult) -> None:
    linkage = golden.defenses[3].attacks[2]
    cut = replace(linkage, statuses={"budget": 30, "converged": 10})
    assert ranking.scored(cut) == (10, 40)
    assert ranking.scored(replace(cut, kind="reconstruction")) == (40, 40)
    nothing = Estimate(reason="the time budget was spent before it began")
    never = replace(golden.defenses[3].attacks[0], statuses={"budget": 40}, identification=nothing, psnr=nothing)
    assert ranking.scored(never) == (0, 40)
    row = replace(golden.defenses[3], attacks=(replace(never, reason=nothing.reason),))
    assert "not scored: inverting-gradients on obscure (40 out of time: the time budget was spent" in " ".join(
        shown(replace(golden, defenses=(row,))).split()
    )
