"""leakaudit: what can somebody who sees a shared gradient rebuild of the data behind it?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leakaudit.result import display
from leakaudit.version import __version__

__all__ = ["AuditResult", "Client", "Obscurer", "UserError", "__version__", "scan"]

if TYPE_CHECKING:
    from pathlib import Path

    from pandas import DataFrame

    from leakaudit.api import scan
    from leakaudit.defenses.obscurer import Obscurer
    from leakaudit.errors import UserError
    from leakaudit.result.federation import Client
    from leakaudit.result.schema import AuditResult


def __getattr__(name: str) -> Any:
    # Lazy, so that `leakaudit --help` does not wait for torch.
    if name == "scan":
        from leakaudit.api import scan

        return scan
    if name == "AuditResult":
        from leakaudit.result.schema import AuditResult

        return AuditResult
    if name == "Client":
        from leakaudit.result.federation import Client

        return Client
    if name == "Obscurer":
        from leakaudit.defenses.obscurer import Obscurer

        return Obscurer
    if name == "UserError":
        from leakaudit.errors import UserError

        return UserError
    raise AttributeError(f"module 'leakaudit' has no attribute {name!r}")


def _lines(result: AuditResult) -> str:
    from leakaudit.reports.brief import brief

    return brief(result)


def _screen(result: AuditResult) -> str:
    from leakaudit.reports.first_screen import fragment

    return fragment(result)


def _table(result: AuditResult) -> DataFrame:
    from leakaudit.reports.rows import frame

    return frame(result)


def _keep(result: AuditResult, folder: Path) -> Path:
    from leakaudit.reports.saved import save

    return save(result, folder)


display.lines, display.screen, display.table, display.keep = _lines, _screen, _table, _keep
