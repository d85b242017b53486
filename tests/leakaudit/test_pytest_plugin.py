"""The pytest plug-in in suites of its own: what a failing audit looks like, what is kept, and who is left in peace."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from leakaudit.pytest_plugin import _folder
from leakaudit.result.schema import load

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
    assert_private(model, data, defense="gaussian:std=30", records=4, allow_inconclusive=True)

def test_other():
    pass
"""


SHORT = """
import torch
from dataclasses import replace
from leakaudit import api
from leakaudit.audit import audit
from leakaudit.scene import plan

torch.set_num_threads(1)
few = ("analytic", "labels")
plan.BATTERIES["standard"] = replace(
    plan.BATTERIES["standard"], attacks=few, steps=2, tuning_victims=2, decoder_steps=2, seeds=1, epochs=1
)
audit._canary = lambda seed: ("fail", "")  # it has tests of its own
"""
EXAMPLE = """
scan = api.scan

def shorter(model, data, **settings):
    assert settings["defense"] == "obscure"
    return scan(model, data, **{**settings, "defense": "gaussian:std=30", "attacks": "labels", "records": 4})

api.scan = shorter
"""


Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester) -> Run:
    """Run pytest in a process of its own: within this one it would take back every import that an audit makes."""

    def call(*words: str) -> pytest.RunResult:
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", *words)

    return call


@pytest.fixture
def suite(pytester: pytest.Pytester) -> Path:
    """A suite with one leaking model, one undecided audit that is allowed, and a test that audits nothing."""
    pytester.makeconftest(SHORT)
    pytester.makepyfile(test_model=SUITE)
    return pytester.path


def test_a_failure_is_a_few_lines_and_its_report_is_kept(suite: Path, run: Run) -> None:
    outcome = run("--strict-markers", "--junitxml=junit.xml")
    outcome.assert_outcomes(passed=2, failed=1)
    kept = suite / "leakaudit-out/test_model-test_leaks-none"
    assert load(kept / "result.json").verdict == "fail"
    assert (kept / "report.html").is_file()
    assert [p.name for p in (suite / "leakaudit-out").iterdir()] == [kept.name]
    outcome.stdout.fnmatch_lines(
        [
            "*> *assert_private(model, data, defense=spec, attacks=*",
            "E *PrivacyAssertionError: FAIL: *",
            "E *worst attack on none: replay: 100% of * records identified*",
            "*= privacy audits =*",
            "FAIL         test_model.py::test_leaks?none?",
            " *none: replay: 100% of * records identified*",
            " *leakaudit-out/test_model-test_leaks-none/report.html",
            "INCONCLUSIVE test_model.py::test_open",
        ]
    )
    shown = outcome.stdout.str()
    failure = shown[shown.index("= FAILURES =") : shown.index("= privacy audits =")]
    assert len(failure.splitlines()) < 30
    assert "leakaudit/testing.py" not in failure
    assert '<property name="leakaudit" value="fail | none: replay' in (suite / "junit.xml").read_text()


def test_with_a_folder_every_report_is_kept_there(suite: Path, run: Run) -> None:
    run("--leakaudit-output=kept", "-k", "open").assert_outcomes(passed=1, deselected=2)
    assert (suite / "kept/test_model-test_open/report.html").is_file()
    assert not (suite / "leakaudit-out").exists()


def test_the_marker_is_known_and_audits_of_fixtures_are_listed(pytester: pytest.Pytester, run: Run) -> None:
    pytester.makepyfile(
        test_light="""
        import pytest
        from leakaudit import testing

        @pytest.fixture
        def audited():
            testing._keeping.heard(testing.Audited("pass", "obscure: a | b", ""))

        def test_it(audited):
            pass

        @pytest.mark.privacy
        def test_slow():
            raise AssertionError
        """
    )
    outcome = run("-m", "not privacy", "--strict-markers")
    outcome.assert_outcomes(passed=1, deselected=1)
    outcome.stdout.fnmatch_lines(["*= privacy audits =*", "PASS *test_light.py::test_it", " *obscure: a | b"])


def test_long_and_odd_names_make_short_different_folders() -> None:
    long = [f"tests/test_a.py::test_b[{'x' * 300}{end}]" for end in "12"]
    names = {_folder(name) for name in [*long, "tests/test_a.py::test_b[../../etc]", "test_ü.py::Test::test"]}
    assert len(names) == 4
    assert all(0 < len(name) <= 80 and "/" not in name and not name.startswith(".") for name in names)


def test_a_suite_that_audits_nothing_does_not_notice(pytester: pytest.Pytester, run: Run) -> None:
    """Neither torch nor a folder nor a line of output."""
    pytester.makepyfile(
        test_plain="""
        import sys

        def test_nothing_heavy_came_along(pytestconfig):
            assert pytestconfig.pluginmanager.hasplugin("leakaudit")
            assert not {"torch", "numpy", "cattrs", "jinja2"} & set(sys.modules)
        """
    )
    outcome = run()
    outcome.assert_outcomes(passed=1)
    outcome.stdout.no_fnmatch_line("*privacy*")
    assert not (pytester.path / "leakaudit-out").exists()


def test_the_example_asks_for_an_audit(pytester: pytest.Pytester, run: Run) -> None:
    """The example as it stands, but a short audit of no defense: two minutes are too long here."""
    pytester.makeconftest(SHORT + EXAMPLE)
    shutil.copy(ROOT / "examples" / "test_private.py", pytester.path / "test_private.py")
    outcome = run("--strict-markers")
    outcome.assert_outcomes(failed=1)
    outcome.stdout.fnmatch_lines(["E *PrivacyAssertionError: INCONCLUSIVE*", "INCONCLUSIVE *test_private.py::*"])
