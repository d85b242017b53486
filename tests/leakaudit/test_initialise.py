"""`leakaudit init`: no limit looser than the scan's own, none tighter than what it showed, nothing overwritten."""

from __future__ import annotations

import datetime as dt
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leakaudit.errors import UserError
from leakaudit.gate import assertions
from leakaudit.gate.decision import gate
from leakaudit.gate.initialise import down, start, up
from leakaudit.gate.pyproject import read
from leakaudit.gate.waivers import parse as parse_waivers
from leakaudit.options.again import again
from leakaudit.result import outcome as outcomes
from leakaudit.result.schema import AuditResult, Estimate, Finding, to_json
from leakaudit.stats.intervals import rate
from leakaudit.work.quantities import parse as parse_bytes
from leakaudit.work.quantities import seconds, typed_bytes, typed_seconds
from tests.leakaudit.command_line import Run, caller, sentence
from tests.leakaudit.results import attack, defense, result, some

TODAY = dt.date(2026, 11, 23)
GOOD = (0.78, 0.80, 0.82)


def scanned(
    hits: int = 1, of: int = 40, accuracies: tuple[float, ...] = GOOD, spec: str = "obscure", **changes: Any
) -> AuditResult:
    row = defense(spec, attack(some(hits, of), psnr=[12.0 + i / of for i in range(of)]), accuracies=accuracies)
    made = result(row)
    return replace(made, settings={**made.settings, "records": of}, **changes)


def written(made: AuditResult, options: dict[str, Any] | None = None) -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads(start(made, options or {}, TODAY).block)["tool"]["leakaudit"]
    return table


@given(st.floats(0, 1))
def test_rounding_goes_to_the_looser_side(share: float) -> None:
    assert down(share) <= share <= up(share)
    assert up(share) - down(share) <= 0.05 + 1e-9


@pytest.mark.parametrize("hits", range(6))
def test_the_limit_is_todays_bound_rounded_up_and_never_beyond_the_scans_own(hits: int) -> None:
    made = scanned(hits)
    bound = made.defenses[1].attacks[0].identification.high or 1.0
    limit = written(made)["assert"]["identification"]["max"]
    if bound <= 0.25:
        assert bound <= limit < bound + 0.05
    else:
        assert limit == 0.25  # what leaks, or is not shown, is not waved through
    strict = replace(made, max_identification=0.2)
    assert written(strict)["assert"]["identification"]["max"] <= 0.2


@pytest.mark.parametrize("hits", [0, 2, 4, 20])
@pytest.mark.parametrize("accuracies", [GOOD, (0.7, 0.7, 0.7), (0.5, 0.9, 0.1), (0.8,), ()])
def test_the_gate_says_of_the_first_scan_what_init_says(hits: int, accuracies: tuple[float, ...]) -> None:
    """What was derived from accuracy and pictures holds today; only identification can be open or fail."""
    made = scanned(hits, accuracies=accuracies)
    begun = start(made, {}, TODAY)
    table = tomllib.loads(begun.block)["tool"]["leakaudit"]["assert"]
    judged = gate(made, assertions.parse(table), today=TODAY)
    assert judged.verdict == begun.outcome.verdict
    assert {c.rule for c in judged.checks if c.level == "error" and c.status != "pass"} <= {"identification"}
    assert judged.verdict == ("fail" if hits == 20 else "pass")


def test_accuracy_is_asserted_at_its_lower_bound_and_only_above_chance() -> None:
    made = scanned(accuracies=(0.79, 0.80, 0.81))  # 77.5 to 82.5 %
    rule = written(made)["assert"]
    assert rule["accuracy"] == {"min": 0.75, "defense": "obscure"}
    assert rule["accuracy-loss"]["max"] >= 0.05
    wide = start(scanned(accuracies=(0.2, 0.5, 0.8)), {}, TODAY).block
    assert "accuracy = { min" not in wide
    assert "not clearly above chance" in wide
    assert "too few seeds" in start(scanned(accuracies=(0.8,)), {}, TODAY).block
    assert "training runs were switched off" in start(scanned(accuracies=()), {}, TODAY).block


def test_only_what_is_private_enough_is_gated() -> None:
    rows = [
        defense(f"prune:sparsity=0.{i}", attack(some(hits)), accuracies=GOOD) for i, hits in ((5, 30), (8, 1), (9, 2))
    ]
    begun = start(result(*rows), {}, TODAY)
    table = tomllib.loads(begun.block)["tool"]["leakaudit"]
    assert table["defense"] == ["prune:sparsity=0.8", "prune:sparsity=0.9"]
    assert "not private enough to be gated: prune:sparsity=0.5" in begun.block
    assert len(table["assert"]["accuracy"]) == 2
    assert begun.outcome.verdict == "pass"
    all_leak = start(result(*(defense(s, attack(some(30))) for s in ("sign", "clip"))), {}, TODAY)
    assert all_leak.defenses == ("sign", "clip")
    assert all_leak.outcome.verdict == "fail"
    assert "which is not met yet" in all_leak.block


def test_too_few_records_are_raised_to_what_decides() -> None:
    made = scanned(0, of=8, target={**result().target, "private_records": 1000})
    table = written(made)
    n = table["records"]
    limit = table["assert"]["identification"]["max"]
    assert (rate(2, n).high or 1) <= limit < (rate(2, n - 1).high or 1)
    assert "More than the 8 scanned first" in start(made, {}, TODAY).block
    assert written(scanned(0, of=64))["records"] == 70  # a limit of 10 %
    assert written(scanned(9, of=64))["records"] == 64
    few = replace(made, target={**made.target, "private_records": 10})
    assert written(few)["records"] == 10
    batches = replace(made, settings={**made.settings, "batch_size": 4})
    assert written(batches)["records"] % 4 == 0


def test_the_waiver_is_an_example_that_can_be_used() -> None:
    block = start(scanned(), {}, TODAY).block
    assert "waiver" not in tomllib.loads(block)["tool"]["leakaudit"]
    lines = block[block.index("# [[tool.leakaudit.waiver]]") :].splitlines()
    used = tomllib.loads("\n".join(line.removeprefix("# ") for line in lines))["tool"]["leakaudit"]["waiver"]
    (waiver,) = parse_waivers(used)
    assert (waiver.rule, waiver.defense, waiver.expires) == ("identification", "obscure", "2027-02-21")


def test_third_party_text_cannot_leave_its_comment_or_string() -> None:
    evil = 'obscure"\n[tool.evil]\nx = 1\x1b\u202e'
    made = scanned(spec=evil, accuracies=())
    row = replace(made.defenses[1], accuracy=Estimate(reason=evil))
    leaks = defense(f"sign{evil}", attack(some(30)))
    block = start(replace(made, defenses=(made.defenses[0], row, leaks)), {"data": evil}, TODAY).block
    assert list(tomllib.loads(block)["tool"]) == ["leakaudit"]
    assert "\x1b" not in block
    assert "\u202e" not in block


def test_a_result_that_shows_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="interrupted"):
        start(replace(scanned(), complete=False), {}, TODAY)
    with pytest.raises(UserError, match="no defense was scored"):
        start(result(defense("obscure")), {}, TODAY)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    return caller(monkeypatch, tmp_path, capsys, "")


def store(made: AuditResult, given: dict[str, str] | None = None, **settings: Any) -> None:
    made = replace(made, settings={**made.settings, **settings}, environment={**made.environment, **(given or {})})
    path = Path("leakaudit-out/result.json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(to_json(made))


def test_without_a_result_it_says_which_scan_to_run(run: Run) -> None:
    sentence(run("init", "net.py"), "leakaudit-out/result.json", "leakaudit scan net.py -d obscure", "--quick")


def test_what_it_writes_is_what_scan_and_gate_read(run: Run) -> None:
    Path("pyproject.toml").write_text("[project]\nname = 'x' # mine\n")
    given = {"target": "src/net.py:make", "data": "pictures", "device_asked": "cuda:1"}
    store(scanned(3), given, images="redacted", seed=3, candidates=50, battery="full", attacks="dlg:steps=5")
    done = run("init", "--github", "--gitlab")
    assert done.code == 0, done
    assert "gate now pass" in done.out
    assert "leakaudit scan src/net.py:make --gate" in done.out
    found = read(Path("pyproject.toml"))
    assert found.scan == {
        "defense": ["obscure"],
        "records": 40,
        "candidates": 50,
        "seed": 3,
        "full": True,
        "data": "pictures",
        "device": "cuda:1",
        "images": "redacted",
        "attack": ["dlg:steps=5"],
    }
    assert assertions.parse(found.assertions).presets == ("recommended",)
    assert Path("pyproject.toml").read_text().startswith("[project]\nname = 'x' # mine\n\n[tool.leakaudit]\n")
    github = Path(".github/workflows/leakaudit.yml").read_text()
    assert "target: src/net.py:make\n" in github
    assert "--records=40\n" in github
    gitlab = Path(".gitlab/leakaudit.yml").read_text()
    assert "--defense=obscure --records=40 " in gitlab
    assert gitlab.count("src/net.py:make\n") == 1
    sentence(run("scan", "missing.py"), "missing.py")  # the table is one that `scan` takes


def test_nothing_is_overwritten(run: Run) -> None:
    store(scanned())
    assert run("init", "--github").code == 0
    before = Path("pyproject.toml").read_text()
    sentence(run("init"), "already", "--force")
    sentence(run("init", "--force", "--github"), ".github/workflows/leakaudit.yml", "exists")
    assert Path("pyproject.toml").read_text() == before
    Path("pyproject.toml").write_text("[a]\nb = 1\n\n" + before.replace("records = 46", "records = 7"))
    assert run("init", "--force").code == 0
    assert Path("pyproject.toml").read_text() == "[a]\nb = 1\n\n" + before


def test_a_link_and_a_mode_stay_as_they_are(run: Run, tmp_path: Path) -> None:
    store(scanned())
    real = tmp_path / "real.toml"
    real.write_text("[a]\nb = 1\n")
    real.chmod(0o600)
    Path("pyproject.toml").symlink_to(real)
    assert run("init").code == 0
    assert Path("pyproject.toml").is_symlink()
    assert real.stat().st_mode & 0o777 == 0o600
    assert "[tool.leakaudit]" in real.read_text()


def test_what_a_workflow_cannot_hold_is_refused(run: Run) -> None:
    store(scanned())
    sentence(run("init", "my model.py", "--github"), "'my model.py'", "examples/workflows")
    assert not Path("pyproject.toml").exists()
    assert run("init", "my model.py").out.endswith("leakaudit scan 'my model.py' --gate\n")


def test_a_quick_scan_and_a_failing_one_are_said_to_be_that(run: Run) -> None:
    bad = scanned(findings=(Finding("nan-loss", "error", "It diverged."),))
    store(bad, battery="quick")
    out = run("init").out
    assert "gate now fail: " in out
    assert "quick scan" in out


def test_what_the_first_scan_had_from_the_table_is_kept(run: Run) -> None:
    """The result knows what it was scanned with, and the table knows the rest."""
    Path("pyproject.toml").write_text(
        "[tool.leakaudit]\nseeds = 4\nepochs = 3\nattack = ['dlg:steps=5']\nbudget = '5m'\nmemory = '1.5GB'\n"
        "max-accuracy-loss = 0.7\ncandidates = 9\ndata = 'pictures'\nimages = 'none'\nquiet = true\nrecords = 3\n"
    )
    store(
        scanned(accuracies=(0.8, 0.8, 0.81, 0.8)),
        {"target": "model.py"},
        seeds=4,
        epochs=3,
        attacks="dlg:steps=5",
        budget=300.0,
        memory=1_500_000_000,
        max_accuracy_loss=0.7,
        candidates=50,
        utility=True,
    )
    done = run("init", "--force")
    assert done.code == 0, done
    assert read(Path("pyproject.toml")).scan == {
        "defense": ["obscure"],
        "records": 46,
        "candidates": 50,  # of the scan, which is newer than the table
        "max-accuracy-loss": 0.7,
        "attack": ["dlg:steps=5"],
        "seeds": 4,
        "epochs": 3,
        "budget": "6m",  # which 46 records take where 40 took 5
        "memory": "1500MB",
        "data": "pictures",
        "images": "none",
        "quiet": True,
    }
    sentence(run("scan", "missing.py"), "missing.py")  # the table is one that `scan` takes


def test_a_budget_that_ended_work_is_not_asked_for_again(run: Run) -> None:
    """What it left unmeasured would leave every gate open."""
    made = scanned(9, of=64)  # as many as are asked for again
    cut = replace(made.defenses[1].attacks[0], statuses={"converged": 63, "budget": 1})
    cut_short = replace(made, defenses=(made.defenses[0], replace(made.defenses[1], attacks=(cut,))))
    for each, utility in ((cut_short, False), (scanned(of=64, accuracies=()), True)):
        store(each, budget=120.0, utility=utility)
        assert "No budget: the 2m of this scan ended work early" in " ".join(run("init", "--force").out.split())
        assert "budget" not in read(Path("pyproject.toml")).scan
    store(made, budget=120.0)
    assert "budget" not in run("init", "--force").out
    assert read(Path("pyproject.toml")).scan["budget"] == "2m"


def test_where_the_gate_says_something_else_of_the_first_scan_both_say_why(run: Run) -> None:
    """What was left out since it leaks is in the first result still, and judged."""
    kept = defense("obscure", attack(some(1), psnr=[9.0] * 40), accuracies=GOOD)
    store(result(kept, defense("gaussian:std=0.01", attack(some(40)), accuracies=GOOD)))
    told = run("init").out
    assert max(map(len, told.splitlines())) <= 80
    words = " ".join(told.split())
    assert "gate now pass: 5 of 5 checks passed, of obscure alone." in words
    assert "leakaudit gate leakaudit-out/result.json says fail: it judges all that a result holds, so gaussian" in words
    assert "At most 15% identified, not 25%: what the worst attack may reach (13.2%), rounded up." in words
    done = run(
        "gate", "leakaudit-out", "-o", "gate.json", "--junit", "j.xml", "--sarif", "s.sarif", "--markdown", "m.md"
    )
    why = "judged, too, since the result holds it: gaussian:std=0.01; [tool.leakaudit] defense does not name it."
    assert done.code == 1
    assert f"note {why}" in " ".join(done.out.split())
    assert outcomes.load(Path("gate.json")).notes == (why,)
    assert why in Path("j.xml").read_text()
    assert why in Path("s.sarif").read_text()
    store(result(kept))
    assert "gate now pass: " in run("init", "--force").out
    assert run("gate", "leakaudit-out").code == 0
    assert "judged, too" not in run("gate", "leakaudit-out").out


@pytest.mark.parametrize("budget", [90.0, 7200.0, 0.1, 61.5])
def test_a_budget_comes_back(budget: float) -> None:
    assert seconds(typed_seconds(budget)) == budget


@pytest.mark.parametrize("memory", [4 * 10**9, 2**31, 2**30 + 1, 999, 123_456_789])
def test_a_size_comes_back(memory: int) -> None:
    assert parse_bytes(typed_bytes(memory)) == memory


def test_what_is_default_is_not_written() -> None:
    from leakaudit.scene.plan import Plan

    made = replace(scanned(), settings=Plan().settings())
    assert again(made, {}) == {}
    bare = replace(made, settings=Plan(utility=False, battery="full").settings())
    assert again(bare, {}) == {"full": True, "no-utility": True}


def test_force_replaces_a_table_that_scan_refuses(run: Run) -> None:
    store(scanned())
    wrong = "[a]\nb = 1\n\n[tool.leakaudit]\nrecrods = 3\nquiet = true\n\n[tool.leakaudit.assert]\nidentifcation = 3\n"
    wrong += "\n[[tool.leakaudit.waiver]]\nrule = 'a'\n"
    Path("pyproject.toml").write_text(wrong)
    sentence(run("init"), "already", "--force")
    assert Path("pyproject.toml").read_text() == wrong
    done = run("init", "--force")
    assert done.code == 0, done
    assert "left out of the table, since scan has no such setting: 'recrods'" in done.out
    assert "the table had 1 waiver: put back what still holds" in done.out
    assert read(Path("pyproject.toml")).scan == {"defense": ["obscure"], "records": 46, "quiet": True}


@pytest.mark.parametrize(
    "existing",
    ["tool = {leakaudit = {seed = 1}}\n", "tool.leakaudit.seed = 1\ntool.x = 1\n", "tool = 3\n"],
)
def test_what_force_cannot_replace_is_one_sentence(existing: str, run: Run) -> None:
    store(scanned())
    Path("pyproject.toml").write_text(existing)
    sentence(run("init", "--force"), "take it out by hand")
    assert Path("pyproject.toml").read_text() == existing


def seeded(*accuracies: float, of: int = 40) -> AuditResult:
    made = scanned(accuracies=accuracies, of=of)
    return replace(made, settings=made.settings | {"seeds": len(accuracies)})


@pytest.mark.parametrize(("spread", "seeds"), [(0.005, None), (0.02, None), (0.03, 5), (0.04, 7)])
def test_as_many_seeds_as_rule_out_a_loss(spread: float, seeds: int | None) -> None:
    made = seeded(0.7 - spread, 0.7, 0.7 + spread)
    begun = start(made, {}, TODAY)
    table = tomllib.loads(begun.block)["tool"]["leakaudit"]
    assert table.get("seeds") == seeds
    assert "regression" not in table["assert"]
    assert any("training runs of each defense, not 3" in note for note in begun.notes) is (seeds is not None)
    if seeds is None:
        return
    assert f"# {seeds} training runs of each defense, not 3: that many rule out a loss of 10 points" in begun.block
    for sign in (-1, 1):  # the next scan, a standard error of the change above or below: it decides
        again = np.random.default_rng(0).normal(size=seeds)
        runs = 0.7 + spread * (again - again.mean()) / again.std(ddof=1)
        moved = runs + sign * spread * (2 / seeds) ** 0.5
        rows = (seeded(*map(float, runs)), seeded(*map(float, moved)))
        judged = gate(rows[1], assertions.parse(table["assert"]), baseline=rows[0], today=TODAY)
        (check,) = [c for c in judged.checks if c.rule == "regression-accuracy"]
        assert check.status == "pass", check.message


@pytest.mark.parametrize("accuracies", [(0.5, 0.7, 0.9), (0.8,)])
def test_what_no_number_of_seeds_settles_only_warns_and_says_why(accuracies: tuple[float, ...]) -> None:
    begun = start(seeded(*accuracies), {}, TODAY)
    table = tomllib.loads(begun.block)["tool"]["leakaudit"]
    assert table["assert"]["regression"] == {"accuracy": {"level": "warn"}}
    assert table.get("seeds") == (3 if len(accuracies) == 1 else None)
    assert "# obscure: " in begun.block[begun.block.index("[tool.leakaudit.assert.regression]") :]
    assert any("only warns" in note for note in begun.notes)


def test_the_gate_does_not_leave_an_identical_scan_open() -> None:
    """The first thing anybody tries: the very result that the limits come from, as the baseline."""
    for accuracies in ((0.55, 0.7, 0.8), (0.5, 0.7, 0.9), GOOD):
        made = seeded(*accuracies, of=64)
        table = tomllib.loads(start(made, {}, TODAY).block)["tool"]["leakaudit"]
        judged = gate(made, assertions.parse(table["assert"]), baseline=made, today=TODAY)
        assert judged.verdict == "pass", judged.reasons
