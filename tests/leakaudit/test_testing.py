"""`assert_private`: passes only where the audit passes, and says in a few lines why not."""

from __future__ import annotations

import subprocess
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from leakaudit import api, testing
from leakaudit.errors import UserError
from leakaudit.reports.verify import verify
from leakaudit.result.schema import AuditResult, DefenseResult, load, to_json
from leakaudit.scene import plan
from leakaudit.stats import intervals
from leakaudit.stats.intervals import rate
from leakaudit.testing import Audited, Keeping, PrivacyAssertionError, assert_private, keeping

DATA = TensorDataset(torch.rand(160, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(160) % 2)
SHORT = replace(
    plan.BATTERIES["standard"], attacks=("analytic",), steps=3, tuning_victims=2, decoder_steps=3, seeds=3, epochs=1
)
DENSE: dict[str, Any] = {"attacks": "analytic"}  # which takes every record out of a dense model's gradient


def model() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 2))


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Audits in an empty folder, as without the plug-in; `standard` takes a second: analytic does not iterate."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(testing, "_keeping", None)
    monkeypatch.setitem(plan.BATTERIES, "standard", SHORT)


@pytest.fixture(scope="module")
def passing() -> AuditResult:
    """A real audit that passes: noise of a hundred times the gradient."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(testing, "_keeping", None)
        patch.setitem(plan.BATTERIES, "standard", SHORT)
        return assert_private(model, DATA, defense="gaussian:std=100", **DENSE)


def planted(result: AuditResult, identified: int, n: int = 32, name: str = "analytic") -> AuditResult:
    """Return the result with so many records identified by an attack on the defended model."""
    row = result.defenses[1]
    found = next(a for a in row.attacks if a.name == name)
    records = tuple(replace(r, identified=i < identified) for i, r in enumerate(found.records[:n]))
    attack = replace(found, identification=rate(identified, n), records=records)
    attacks = tuple(attack if a.name == name else a for a in row.attacks)
    return replace(result, defenses=(result.defenses[0], replace(row, attacks=attacks)))


def scanned(monkeypatch: pytest.MonkeyPatch, result: AuditResult) -> dict[str, Any]:
    """Let the next scan return `result`; what it was asked for appears in the dictionary."""
    asked: dict[str, Any] = {}

    def scan(model: Any, data: Any, **settings: Any) -> AuditResult:
        asked.update(settings)
        return result

    monkeypatch.setattr(api, "scan", scan)
    return asked


def test_a_private_model_passes_and_leaves_nothing_behind(passing: AuditResult, tmp_path: Path) -> None:
    assert passing.verdict == "pass"
    assert passing.images == "redacted"
    assert [d.spec for d in passing.defenses] == ["none", "gaussian:std=100"]
    assert all(not d.accuracies for d in passing.defenses)  # nobody asked for accuracy
    assert list(tmp_path.iterdir()) == []


def test_a_leaking_model_fails_in_a_few_lines(tmp_path: Path) -> None:
    with pytest.raises(PrivacyAssertionError) as caught:
        assert_private(model, DATA, defense="none", **DENSE)
    message = str(caught.value)
    assert message.startswith("FAIL: ")
    assert "replay: 100% of 64 records identified (95% interval 94.4 to 100%)" in message
    assert "limit 25%" in message
    assert len(message.splitlines()) <= 10
    assert caught.value.outcome.verdict == "fail"
    report = Path(message.rpartition("report: ")[2])
    assert report == Path("leakaudit-out/report.html")
    assert report.is_file()
    assert load(tmp_path / "leakaudit-out/result.json") == caught.value.result


def test_too_few_records_are_no_pass_and_the_message_says_how_many(tmp_path: Path) -> None:
    with pytest.raises(PrivacyAssertionError, match="INCONCLUSIVE, which is not a pass") as caught:
        assert_private(model, DATA, defense="gaussian:std=100", records=4, output=tmp_path / "here", **DENSE)
    message = str(caught.value)
    assert "Only 4 records were scored: at least 13 are needed" in message
    assert "records=13" in message
    assert "--" not in message
    kept = tmp_path / "here"
    assert verify(kept / "report.html", kept / "result.json", kept / "gate.json").status == "same"


def test_inconclusive_can_be_allowed_but_a_leak_cannot(passing: AuditResult, monkeypatch: pytest.MonkeyPatch) -> None:
    open_ = planted(passing, 12, 64, "replay")  # up to 31 %
    scanned(monkeypatch, open_)
    with pytest.raises(PrivacyAssertionError, match="INCONCLUSIVE"):
        assert_private(model, DATA, defense="gaussian:std=100")
    assert assert_private(model, DATA, defense="gaussian:std=100", allow_inconclusive=True) is open_
    scanned(monkeypatch, planted(passing, 30))
    with pytest.raises(PrivacyAssertionError, match="FAIL"):
        assert_private(model, DATA, defense="gaussian:std=100", allow_inconclusive=True)


def test_the_limit_is_judged_on_the_bound(passing: AuditResult, monkeypatch: pytest.MonkeyPatch) -> None:
    result = planted(passing, 10, 64, "replay")  # 16 % measured, at most 26.8 %
    scanned(monkeypatch, result)
    with pytest.raises(PrivacyAssertionError, match="INCONCLUSIVE"):
        assert_private(model, DATA, defense="gaussian:std=100", max_identification=0.25)
    assert assert_private(model, DATA, defense="gaussian:std=100", max_identification=0.27) is result


def test_what_got_worse_than_the_baseline_fails_within_the_limit(
    passing: AuditResult, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "main.json").write_text(to_json(planted(passing, 0)))
    scanned(monkeypatch, planted(passing, 10))  # at most 50 %
    assert assert_private(model, DATA, defense="gaussian:std=100", max_identification=0.51).verdict == "pass"
    with pytest.raises(PrivacyAssertionError, match="FAIL") as caught:
        assert_private(model, DATA, defense="gaussian:std=100", max_identification=0.51, baseline="main.json")
    failed = [c.rule for c in caught.value.outcome.checks if c.status == "fail"]
    assert failed == ["regression-identification"]


def test_a_baseline_of_other_settings_is_refused_before_the_scan(
    passing: AuditResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = scanned(monkeypatch, passing)
    for setting, value in (("seed", 7), ("batch_size", 2), ("records", 16)):
        other = replace(passing, settings={**passing.settings, setting: value})
        with pytest.raises(UserError, match=f" {setting} is {value} there and"):
            assert_private(model, DATA, defense="gaussian:std=100", baseline=other)
    assert asked == {}
    other = replace(passing, hashes={**passing.hashes, "private": "0"})
    with pytest.raises(UserError, match="the private records are others"):
        assert_private(model, DATA, defense="gaussian:std=100", baseline=other)


def test_accuracy_is_measured_where_it_is_asked_for(passing: AuditResult, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = scanned(monkeypatch, passing)
    assert_private(model, DATA, defense="gaussian:std=100")
    assert asked["utility"] is False
    with pytest.raises(PrivacyAssertionError, match="accuracy lost against no defense was not measured"):
        assert_private(model, DATA, defense="gaussian:std=100", max_accuracy_loss=0.1)
    assert asked["utility"] is True
    assert asked["max_accuracy_loss"] == 0.1

    def trained_to(row: DefenseResult, *accuracies: float) -> DefenseResult:
        return replace(row, accuracies=accuracies, accuracy=intervals.mean(accuracies))

    rows = tuple(trained_to(row, 0.9, 0.9, 0.9) for row in passing.defenses)
    trained = replace(passing, defenses=rows, chance_accuracy=0.5, target=passing.target | {"test_records": 1000})
    scanned(monkeypatch, trained)
    assert_private(model, DATA, defense="gaussian:std=100", max_accuracy_loss=0.1)
    dear = trained_to(trained.defenses[1], 0.5, 0.52, 0.48)
    scanned(monkeypatch, replace(trained, defenses=(trained.defenses[0], dear)))
    with pytest.raises(PrivacyAssertionError, match=r"accuracy lost against no defense is 40 points"):
        assert_private(model, DATA, defense="gaussian:std=100", max_accuracy_loss=0.1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"battery": "quick"}, "can pass only what is proven"),
        ({"max_accuracy_loss": 2}, "max_accuracy_loss"),
        ({"max_accuracy_loss": True}, "max_accuracy_loss"),
        ({"max_identification": 3}, r"^max_identification must be between"),
        ({"records": 0}, r"^records must be at least 1"),
        ({"defense": []}, r"defense=\[\] names none"),
        ({"defense": ()}, "names none"),
        ({"defense": ""}, "names none"),
        ({"output": "/dev/null/x"}, "cannot write to output /dev/null/x"),
        ({"budget": "soon"}, "^budget takes a time"),
        ({"baseline": "missing.json"}, "missing.json"),
        ({"lpips_weights": "missing.pth"}, r"^lpips_weights missing\.pth: no such file"),
        ({"checkpoint": "missing.pth"}, r"missing\.pth; give checkpoint a"),
        ({"defense": "obscur"}, "did you mean"),
        ({"recrods": 4}, "recrods"),
    ],
)
def test_bad_input_is_one_sentence_without_our_frames(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        assert_private(model, DATA, **{"defense": "none", **settings})
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert [Path(f.filename).name for f in frames] == ["test_testing.py", "testing.py"]


def test_a_place_that_cannot_be_written_is_found_out_before_the_audit(
    passing: AuditResult, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = scanned(monkeypatch, passing)
    (tmp_path / "file").write_text("")
    for place in ("/dev/null/x", "file"):
        with pytest.raises(UserError, match=f"output {place}"):
            assert_private(model, DATA, defense="gaussian:std=100", output=place)
    assert asked == {}
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_report_that_cannot_be_kept_does_not_hide_the_verdict(
    passing: AuditResult, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scanned(monkeypatch, planted(passing, 30))
    (tmp_path / "leakaudit-out").write_text("a file where the folder would be")
    with pytest.raises(PrivacyAssertionError, match="FAIL") as caught:
        assert_private(model, DATA, defense="gaussian:std=100")
    assert "report: not kept, cannot write" in str(caught.value)


def test_an_interrupted_audit_ends_the_test_run(passing: AuditResult, monkeypatch: pytest.MonkeyPatch) -> None:
    scanned(monkeypatch, replace(passing, complete=False))
    with pytest.raises(KeyboardInterrupt):
        assert_private(model, DATA, defense="gaussian:std=100")


def test_who_listens_hears_of_each_audit(passing: AuditResult, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scanned(monkeypatch, passing)
    heard: list[Audited] = []
    with keeping(Keeping(tmp_path / "kept" / "test", always=True, heard=heard.append)):
        assert_private(model, DATA, defense="gaussian:std=100")
        assert_private(model, DATA, defense="gaussian:std=100")
    assert [(a.verdict, Path(a.report).parent.name) for a in heard] == [("pass", "test"), ("pass", "test-2")]
    assert all(Path(a.report).is_file() for a in heard)
    assert heard[0].words.startswith("gaussian:std=100: analytic: ")
    assert_private(model, DATA, defense="gaussian:std=100")
    assert len(heard) == 2


def test_control_characters_of_a_name_do_not_reach_the_terminal(
    passing: AuditResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaking = planted(passing, 30)
    row = replace(leaking.defenses[1], spec="gaussian\x1b[2J\u202e")
    scanned(monkeypatch, replace(leaking, defenses=(leaking.defenses[0], row)))
    with pytest.raises(PrivacyAssertionError) as caught:
        assert_private(model, DATA, defense="gaussian:std=100")
    assert "\x1b" not in str(caught.value)
    assert "\u202e" not in str(caught.value)


def test_importing_it_imports_no_torch() -> None:
    code = "import sys, leakaudit.testing, leakaudit.pytest_plugin; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
