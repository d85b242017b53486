"""What a gate judges by: read from a file and a baseline, and checked before the work begins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leakaudit.errors import UserError
from leakaudit.gate.pyproject import Configuration
from leakaudit.options.common import JUDGED
from leakaudit.result.outward import in_place

if TYPE_CHECKING:
    from leakaudit.gate.assertions import Assertions
    from leakaudit.protocol.target import Target
    from leakaudit.result.outcome import Outcome
    from leakaudit.result.schema import AuditResult, Waiver
    from leakaudit.scene.plan import Plan

Baseline = Annotated[
    Path | None,
    typer.Option(
        "--baseline",
        metavar="FILE",
        help="A result.json of the same scan before the change, say main's, or its folder.",
        rich_help_panel=JUDGED,
    ),
]


@dataclass(frozen=True)
class Gating:
    """What a gate judges by, read and checked before the work begins."""

    assertions: Assertions
    waivers: tuple[Waiver, ...]
    baseline: AuditResult | None = None
    baseline_source: str = ""
    configured: bool = True  # whether a file says what is asked
    named: tuple[str, ...] = ()  # the defenses that a file says to scan

    @classmethod
    def read(
        cls,
        found: Configuration,
        baseline: Path | None,
        plan: Plan | None = None,
        before: AuditResult | None = None,
    ) -> Gating:
        """Read what a file asks and the baseline; UserError where one cannot be used, or the plan is unlike it.

        `before` is what stood in the baseline, where it is read already.
        """
        from leakaudit.compare.comparable import known, unlike
        from leakaudit.gate import assertions
        from leakaudit.result.schema import load

        table, named = found.assertions, found.scan.get("defense", ())
        named = (named,) if isinstance(named, str) else tuple(named) if isinstance(named, list) else ()
        with _naming(found):
            asked = assertions.parse(table)
        waivers = configured_waivers(found)
        if baseline is None:
            return cls(asked, waivers, configured=bool(table), named=named)
        before = before or load(baseline)
        other = () if plan is None else unlike(*known(before.settings, plan.settings()))
        if other:
            raise UserError(
                f"{baseline} cannot be compared with this scan: {'; '.join(other)}. Scan with its settings."
            )
        return cls(asked, waivers, before, str(baseline), configured=bool(table), named=named)

    def early(self, target: Target) -> None:
        """Refuse a target that the baseline is not of, before anything is attacked."""
        from leakaudit.compare.comparable import unlike_target
        from leakaudit.scene.fingerprint import of_records
        from leakaudit.scene.provenance import describe

        if self.baseline is None:
            return
        hashes = {name: of_records(getattr(target, name)) for name in ("private", "test", "auxiliary")}
        other = unlike_target(self.baseline, describe(target), hashes)
        if other:
            raise UserError(f"{self.baseline_source} cannot be compared with this scan: {'; '.join(other)}.")

    def __call__(self, result: AuditResult, source: Path) -> Outcome:
        """Judge a result; UserError where the baseline turns out to be of something else."""
        from leakaudit.gate.decision import gate

        said = gate(
            result,
            self.assertions,
            baseline=self.baseline,
            waivers=self.waivers,
            source=in_place(str(source), result.images),
            baseline_source=in_place(self.baseline_source, result.images),
        )
        return replace(said, notes=(*said.notes, *self._notes(result)))

    def _notes(self, result: AuditResult) -> Iterator[str]:
        """Say what is judged that the file does not speak of."""
        from leakaudit.result.rules import judged

        others = ", ".join(row.spec for row in judged(result) if row.spec not in self.named)
        if self.named and others:
            yield f"judged, too, since the result holds it: {others}; [tool.leakaudit] defense does not name it."
        if not self.configured:
            yield "no pyproject.toml has [tool.leakaudit.assert]: the preset recommended was judged."


def configured_waivers(found: Configuration) -> tuple[Waiver, ...]:
    """Return the waivers of a file; UserError, naming it, where one is malformed."""
    from leakaudit.gate.waivers import parse

    with _naming(found):
        return parse(found.waivers)


@contextmanager
def _naming(found: Configuration) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"{found.path}: ", *error.parts) from error
