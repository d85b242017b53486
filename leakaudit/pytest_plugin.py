"""The pytest plug-in: where reports of `assert_private` are kept, and what its audits found, at the end of the run.

pytest loads this file at every start, also for suites that never audit anything: it imports nothing heavy (torch comes
with the first audit) and does nothing to tests that do not call `assert_private`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PROPERTY = "leakaudit"  # of a test: "verdict | words | report"; pytest writes it to its JUnit file as well
STYLES = {"pass": {"green": True}, "fail": {"red": True}, "inconclusive": {"yellow": True}}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--leakaudit-output`."""
    parser.getgroup("leakaudit").addoption(
        "--leakaudit-output",
        metavar="DIR",
        default=None,
        help="Keep the reports of all privacy audits below DIR. Default: those that did not pass, in leakaudit-out/.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", "privacy: audits what a model's shared updates reveal (slow; leakaudit).")


@pytest.hookimpl(hookwrapper=True)  # the old kind of wrapper: pytest 7 has no other
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Note the audits of a test, its fixtures included, among its properties: those reach the summary from a worker."""
    from leakaudit.testing import FOLDER, Audited, Keeping, keeping

    def note(audited: Audited) -> None:
        item.user_properties.append((PROPERTY, f"{audited.verdict} | {audited.words} | {audited.report}"))

    asked: str | None = item.config.getoption("leakaudit_output")
    with keeping(Keeping(Path(asked or FOLDER) / _folder(item.nodeid), asked is not None, note)):
        yield


def _folder(nodeid: str) -> str:
    """Return a folder's name for a test: short enough for every file system, different for different tests."""
    name = re.sub(r"[^\w.-]+", "-", nodeid.rpartition("/")[2].replace(".py", "")).strip("-.")
    return name if len(name) <= 80 else f"{name[:70]}-{hashlib.sha256(nodeid.encode()).hexdigest()[:8]}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List every audited test: its verdict, the worst attack, the report."""
    found: dict[str, list[str]] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                audits = [str(value) for name, value in report.user_properties if name == PROPERTY]
                if len(audits) > len(found.get(report.nodeid, [])):  # a later phase knows those of the earlier ones
                    found[report.nodeid] = audits
    if not found:
        return
    terminalreporter.section("privacy audits")
    for nodeid, audits in found.items():
        for audit in audits:
            verdict, _, rest = audit.partition(" | ")
            words, _, path = rest.rpartition(" | ")
            terminalreporter.write(f"{verdict.upper():<12} ", **STYLES.get(verdict, {}))
            terminalreporter.write(f"{nodeid}\n")
            terminalreporter.write_line(f"             {words}")
            if path:
                terminalreporter.write_line(f"             {path}")
