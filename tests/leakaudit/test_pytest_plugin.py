"""The pytest plug-in in suites of its own: what a failing audit looks like, what is kept, and who is left in peace."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from leakaudit import api, plan
from leakaudit.result import AuditResult, load

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parents[2]
SUITE = """
import pytest, torch
from torch import nn
from torch.utils.data import TensorDataset
from leakaudit.testing import assert_private

data = TensorDataset(torch.rand(80, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(80) % 2)

def model():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))

@pytest.mark.privacy
@pytest.mark.parametrize("spec", ["none"])
def test_leaks(spec):
    assert_private(model, data, defense=spec, attacks="analytic", records=16)

def test_open():
    assert_private(model, data, defense="none", attacks="labels", records=4, allow_inconclusive=True)

def test_other():
    pass
"""


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A suite with one leaking model, one undecided audit that is allowed, and a test that audits nothing."""
    monkeypatch.setitem(plan.BATTERIES, "standard", replace(plan.BATTERIES["standard"], steps=3, tuning_victims=2))
    pytester.makepyfile(test_model=SUITE)
    return pytester


def test_a_failure_is_a_few_lines_and_its_report_is_kept(suite: pytest.Pytester) -> None:
    outcome = suite.runpytest_inprocess("--strict-markers", "--junitxml=junit.xml", "-p", "no:cacheprovider")
    outcome.assert_outcomes(passed=2, failed=1)
    kept = suite.path / "leakaudit-out/test_model-test_leaks-none"
    assert load(kept / "result.json").verdict == "fail"
    assert [p.name for p in (suite.path / "leakaudit-out").iterdir()] == [kept.name]
    outcome.stdout.fnmatch_lines(
        [
            "*> *assert_private(model, data, defense=spec, attacks=*",
            "E *PrivacyAssertionError: FAIL: *",
            "E *worst attack on none: analytic: 100% of 16 records identified*",
            "*= privacy audits =*",
            "FAIL         test_model.py::test_leaks?none?",
            " *none: analytic: 100% of 16 records identified*",
            " *leakaudit-out/test_model-test_leaks-none/report.html",
            "INCONCLUSIVE test_model.py::test_open",
        ]
    )
    shown = outcome.stdout.str()
    failure = shown[shown.index("= FAILURES =") : shown.index("= privacy audits =")]
    assert len(failure.splitlines()) < 30
    assert "testing.py:" not in failure.replace("leakaudit.testing.Privacy", "").partition("short test summary")[0]
    assert '<property name="leakaudit" value="fail | none: analytic' in (suite.path / "junit.xml").read_text()


def test_with_a_folder_every_report_is_kept_there(suite: pytest.Pytester) -> None:
    suite.runpytest_inprocess("--leakaudit-output=kept", "-k", "open", "-p", "no:cacheprovider").assert_outcomes(
        passed=1, deselected=2
    )
    assert (suite.path / "kept/test_model-test_open/report.html").is_file()
    assert not (suite.path / "leakaudit-out").exists()


def test_the_marker_leaves_audits_out(suite: pytest.Pytester) -> None:
    outcome = suite.runpytest_inprocess("-m", "not privacy", "-k", "not open", "--strict-markers")
    outcome.assert_outcomes(passed=1, deselected=2)
    outcome.stdout.no_fnmatch_line("*privacy audits*")


def test_an_audit_in_a_fixture_is_listed_too(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_fixture="""
        import pytest
        from leakaudit import testing

        @pytest.fixture
        def audited():
            testing._keeping.heard(testing.Audited("pass", "obscure: a | b", ""))

        def test_it(audited):
            pass
        """
    )
    outcome = pytester.runpytest_inprocess()
    outcome.stdout.fnmatch_lines(["*= privacy audits =*", "PASS *test_fixture.py::test_it", " *obscure: a | b"])


def test_long_and_odd_names_make_short_different_folders(pytester: pytest.Pytester) -> None:
    from leakaudit.pytest_plugin import _folder

    long = [f"tests/test_a.py::test_b[{'x' * 300}{end}]" for end in "12"]
    names = {_folder(name) for name in [*long, "tests/test_a.py::test_b[../../etc]", "test_ü.py::Test::test"]}
    assert len(names) == 4
    assert all(0 < len(name) <= 80 and "/" not in name and not name.startswith(".") for name in names)


def test_a_suite_that_audits_nothing_does_not_notice(pytester: pytest.Pytester) -> None:
    """Neither torch nor a folder nor a line of output: in a process of its own, where nothing is imported yet."""
    pytester.makepyfile(
        test_plain="""
        import sys

        def test_nothing_heavy_came_along(pytestconfig):
            assert pytestconfig.pluginmanager.hasplugin("leakaudit")
            assert not {"torch", "numpy", "cattrs", "jinja2"} & set(sys.modules)
        """
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"], cwd=pytester.path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert "privacy" not in done.stdout
    assert sorted(p.name for p in pytester.path.iterdir() if p.name != "__pycache__") == ["test_plain.py"]


def test_the_example_asks_for_an_audit(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example as it stands, but a short audit of no defense: two minutes are too long here."""
    short = replace(plan.BATTERIES["standard"], attacks=("labels",), steps=2, tuning_victims=2, decoder_steps=2)
    monkeypatch.setitem(plan.BATTERIES, "standard", short)
    scan = api.scan

    def shorter(model: Any, data: Any, **settings: Any) -> AuditResult:
        assert settings["defense"] == "obscure"
        return scan(model, data, **{**settings, "defense": "none", "records": 4})

    monkeypatch.setattr(api, "scan", shorter)
    shutil.copy(ROOT / "examples" / "test_private.py", pytester.path / "test_private.py")
    outcome = pytester.runpytest_inprocess("--strict-markers")
    outcome.assert_outcomes(failed=1)
    outcome.stdout.fnmatch_lines(["E *PrivacyAssertionError: INCONCLUSIVE*", "INCONCLUSIVE *test_private.py::*"])
