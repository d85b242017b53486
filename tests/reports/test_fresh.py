"""What a scan has just written is what `verify` renders again, with and without a gate, whatever pictures it holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from leakaudit.reports.html import render
from leakaudit.result import outcome as outcomes
from leakaudit.result.schema import AuditResult, Finding, from_json, load, to_json
from tests.leakaudit.command_line import Run, caller
from tests.leakaudit.test_cli_gate import MODEL
from tests.outcomes import every

WORDS = ("scan", "model.py", "-d", "gaussian:std=10", "--records", "12", "--quick", "--no-utility", "-q")


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    return caller(monkeypatch, tmp_path, capsys, MODEL)


@pytest.mark.usefixtures("short_battery")
@pytest.mark.parametrize("images", ["full", "redacted", "none"])
def test_a_fresh_report_verifies(call: Run, images: str) -> None:
    assert call(*WORDS, "--images", images, "-o", "out").code in (0, 1, 3)
    said = call("verify", "out/report.html", "out/result.json")
    assert said.code == 0, said
    if images == "none":
        return
    Path("pyproject.toml").write_text('[tool.leakaudit.assert]\npreset = "recommended"\n')
    assert call(*WORDS, "--images", images, "--gate", "-o", "gated").code in (0, 1, 3)
    said = call("verify", "gated/report.html", "gated/result.json", "--gate", "gated/gate.json")
    assert said.code == 0, said
    assert "contradict" not in said.out
    call("gate", "out/result.json", "-o", "g.json", "--html", "g.html")
    said = call("verify", "g.html", "out/result.json", "--gate", "g.json")
    assert said.code == 0, said


def test_no_order_of_the_result_in_memory_reaches_the_page(golden: AuditResult, tmp_path: Path) -> None:
    evidence = {"zeta": 1, "role": "bound", "alpha": 2.5, "limit": 1, "measured": 2, "mid": True}
    turned = replace(
        golden,
        findings=(Finding("noticed", "warning", "Something.", evidence), *golden.findings),
        target=dict(reversed(golden.target.items())),
        exposure=dict(reversed(golden.exposure.items())),
        environment=dict(reversed(golden.environment.items())),
        defenses=tuple(
            replace(
                d,
                facts=dict(reversed(d.facts.items())),
                attacks=tuple(
                    replace(
                        a,
                        statuses=dict(reversed(a.statuses.items())),
                        settings=dict(reversed(a.settings.items())),
                        requires=tuple(reversed(a.requires)),
                    )
                    for a in d.attacks
                ),
            )
            for d in golden.defenses
        ),
    )
    assert render(from_json(to_json(turned))) == render(turned)
    result, said = every(turned)["regression"]
    (tmp_path / "gate.json").write_text(outcomes.to_json(said), encoding="utf-8")
    (tmp_path / "result.json").write_text(to_json(result), encoding="utf-8")
    again = render(load(tmp_path / "result.json"), outcomes.load(tmp_path / "gate.json"))
    assert again == render(result, said)
