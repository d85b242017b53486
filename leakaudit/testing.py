"""Privacy as an assertion of a test suite: `assert_private(model, data, defense="obscure")`.

The pytest plug-in (`leakaudit.pytest_plugin`) keeps the reports and lists the audits; without pytest the function
works the same. Nothing heavy is imported before an audit runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leakaudit.errors import as_argument

if TYPE_CHECKING:
    from leakaudit.result.outcome import Outcome
    from leakaudit.result.schema import AuditResult

FOLDER = Path("leakaudit-out")  # where reports go that nobody named a folder for
CHECKS = 4  # shown in a message; the report has them all


class PrivacyAssertionError(AssertionError):
    """An audit failed, or could not show that the model is private: the audit, and what the gate says of it."""

    def __init__(self, message: str, result: AuditResult, outcome: Outcome) -> None:
        super().__init__(message)
        self.result = result
        self.outcome = outcome


@dataclass(frozen=True)
class Audited:
    """One call of `assert_private`: what came of it, in words, and where its report is (empty: nowhere)."""

    verdict: str
    words: str
    report: str = ""


@dataclass
class Keeping:
    """What the plug-in wants of the calls within one test."""

    folder: Path
    always: bool = False  # reports of audits that pass, too
    heard: Callable[[Audited], None] = lambda audited: None  # called for each
    audited: list[Audited] = field(default_factory=list)


_keeping: Keeping | None = None


@contextmanager
def keeping(wanted: Keeping) -> Iterator[Keeping]:
    """Let the calls within go by `wanted`, and note themselves there."""
    global _keeping
    before, _keeping = _keeping, wanted
    try:
        yield wanted
    finally:
        _keeping = before


def assert_private(  # noqa: PLR0913 - the public surface
    model: Any,
    data: Any,
    *,
    defense: str | Sequence[str],
    max_identification: float = 0.25,
    max_accuracy_loss: float | None = None,
    baseline: AuditResult | str | Path | None = None,
    battery: str = "standard",
    records: int = 32,
    seed: int = 0,
    allow_inconclusive: bool = False,
    output: str | Path | None = None,
    **settings: Any,
) -> AuditResult:
    """Audit a model under a defense, and fail unless the audit passes.

    `model`, `data` (the private records), `defense` and `settings` are those of `leakaudit.scan`. `max_identification`
    and `max_accuracy_loss` are shares in (0, 1), judged on the bounds of 95 % intervals; accuracy is only measured
    (models are trained) where `max_accuracy_loss` or a `baseline` asks for it, or with `utility=True`. `baseline` is an
    earlier result, its file or its folder: what got clearly worse than there fails too. 32 records bear two identified
    by chance at a limit of 25 %; the 16 of a scan bear none.

    Raises PrivacyAssertionError where the verdict is fail, or inconclusive without `allow_inconclusive`: then the
    message says what evidence is missing. Its report is kept in `output`, else in `leakaudit-out/` or where pytest was
    told to, with redacted pictures unless `images` says otherwise. Raises leakaudit.UserError for bad input.
    """
    __tracebackhide__ = True
    from leakaudit.errors import UserError

    try:
        _check(defense, battery, max_accuracy_loss, allow_inconclusive)
        if output is not None:
            _writable(Path(output))
        before = _baseline(baseline)
        wanted: dict[str, Any] = {
            "utility": max_accuracy_loss is not None or (before is not None and _has_accuracy(before)),
            "images": "redacted",
            **settings,
            "max_identification": max_identification,
            "battery": battery,
            "records": records,
            "seed": seed,
            **({} if max_accuracy_loss is None else {"max_accuracy_loss": max_accuracy_loss}),
        }
        if before is not None:
            _refuse_unlike(before, wanted)
        result = _scan(model, data, {**wanted, "defense": defense})
        outcome = _judged(result, max_identification, max_accuracy_loss, before)
        good = outcome.verdict == "pass" or (outcome.verdict == "inconclusive" and allow_inconclusive)
        try:
            report = _keep(result, outcome, output, good)
        except UserError as error:
            if good or output is not None:
                raise
            report = f"not kept, {error.spelled(as_argument)}"  # nobody asked for one: it must not hide the verdict
        _note(result, outcome, report)
    except UserError as error:
        # One sentence in the words of this function; where it came from within leakaudit helps nobody.
        raise UserError(error.spelled(as_argument)) from None
    if not good:
        raise PrivacyAssertionError(_message(result, outcome, report), result, outcome)
    return result


def _check(
    defense: str | Sequence[str], battery: str, max_accuracy_loss: float | None, allow_inconclusive: bool
) -> None:
    from leakaudit.errors import UserError

    if isinstance(defense, str | list | tuple) and not defense:
        raise UserError(f"defense={defense!r} names none: give one or several, or 'none' to audit the bare model.")
    if battery == "quick" and not allow_inconclusive:
        raise UserError(
            "assert_private(battery='quick') is a first look, which can pass only what is proven. Use 'standard', or "
            "allow_inconclusive=True to fail on what leaks and let the rest go."
        )
    loss = max_accuracy_loss
    if loss is not None and (isinstance(loss, bool) or not isinstance(loss, int | float) or not 0 < loss < 1):
        raise UserError(f"max_accuracy_loss takes a share between 0 and 1, not {loss!r}.")


def _writable(output: Path) -> None:
    """Find out before minutes of work that the report cannot be written."""
    from leakaudit.files.writing import writable

    writable(output)


def _baseline(baseline: AuditResult | str | Path | None) -> AuditResult | None:
    from leakaudit.files.folder import stored
    from leakaudit.result.schema import load

    return load(stored(Path(baseline))) if isinstance(baseline, str | Path) else baseline


def _refuse_unlike(baseline: AuditResult, wanted: dict[str, Any]) -> None:
    """Raise UserError where the settings already tell that the scan could not be compared, before it takes minutes."""
    from dataclasses import fields

    from leakaudit.compare.comparable import known, unlike
    from leakaudit.errors import UserError
    from leakaudit.scene.plan import Plan

    checked = {f.name for f in fields(Plan)} - {"defenses", "attacks", "budget", "memory"}
    plan = Plan(**{k: v for k, v in wanted.items() if k in checked})
    other = unlike(*known(baseline.settings, plan.settings()), as_argument)
    if other:
        raise UserError(f"the baseline cannot be compared with this test: {'; '.join(other)}. Audit with its settings.")


def _scan(model: Any, data: Any, settings: dict[str, Any]) -> AuditResult:
    from leakaudit.api import scan

    result = scan(model, data, **settings)
    if not result.complete:
        raise KeyboardInterrupt  # the audit ends in order on Ctrl-C; the test run must still end too
    return result


def _judged(
    result: AuditResult, max_identification: float, max_accuracy_loss: float | None, baseline: AuditResult | None
) -> Outcome:
    """Return what the gate says: of both limits, of findings that are errors, and of the change from the baseline."""
    from dataclasses import replace

    from leakaudit.gate.assertions import PRESETS, parse
    from leakaudit.gate.decision import gate

    table: dict[str, Any] = {"preset": "none", "identification": {"max": max_identification}}
    if max_accuracy_loss is not None:
        table["accuracy-loss"] = {"max": max_accuracy_loss}
    measured = baseline is not None and _has_accuracy(baseline)
    regressions = tuple(r for r in PRESETS["recommended"].regressions if measured or r.metric != "accuracy")
    asked = replace(parse(table), findings="error", regressions=regressions if baseline is not None else ())
    return gate(result, asked, baseline=baseline, source="assert_private", baseline_source="the baseline")


def _has_accuracy(result: AuditResult) -> bool:
    return any(defense.accuracies for defense in result.defenses)


def _keep(result: AuditResult, outcome: Outcome, output: str | Path | None, good: bool) -> str:
    """Write result and report where they are wanted; return the report's path, empty where none is."""
    if output is not None:
        folder = Path(output)
    elif not good or (_keeping is not None and _keeping.always):
        folder = _keeping.folder if _keeping is not None else FOLDER
        count = len(_keeping.audited) if _keeping is not None else 0
        folder = folder.with_name(f"{folder.name}-{count + 1}") if count else folder
    else:
        return ""
    from leakaudit.reports.saved import save

    return str(save(result, folder, outcome))


def _note(result: AuditResult, outcome: Outcome, report: str) -> None:
    if _keeping is not None:
        audited = Audited(outcome.verdict, "; ".join(_worst_attacks(result)), report)
        _keeping.audited.append(audited)
        _keeping.heard(audited)


def _message(result: AuditResult, outcome: Outcome, report: str) -> str:
    """Return some ten lines at most: the verdict, why and what to do, by which attack, and where to read on."""
    from leakaudit.gate.thresholds import mend_of_check, sentence_of_check
    from leakaudit.result.numbers import percent
    from leakaudit.result.plaintext import visible
    from leakaudit.result.rules import VERDICTS

    lines = [
        "FAIL: what the clients share reveals more, or what protects it costs more, than is allowed"
        if outcome.verdict == "fail"
        else "INCONCLUSIVE, which is not a pass: evidence is missing"
    ]
    wrong = sorted((c for c in outcome.checks if c.level == "error"), key=lambda c: VERDICTS.index(c.status))
    for check in [c for c in wrong if c.status != "pass"][:CHECKS]:
        lines.append(f"- {sentence_of_check(check, as_argument)}")
        lines += [f"  {what}"] if (what := mend_of_check(check, as_argument)) else []
    lines += [f"worst attack on {words}" for words in _worst_attacks(result)]
    chance, limit = percent(result.chance_identification), percent(result.max_identification)
    lines += [f"chance {chance}, limit {limit}, seed {result.settings.get('seed')}", f"report: {report}"]
    return "\n".join(map(visible, lines))


def _worst_attacks(result: AuditResult) -> list[str]:
    """Return the worst attack on each defense that is judged, and the bound's beside it, with their numbers."""
    from leakaudit.judge.ranking import bound, worst
    from leakaudit.result.numbers import interval, percent
    from leakaudit.result.plaintext import visible
    from leakaudit.result.rules import judged

    found = []
    for defense in judged(result):
        words = []
        for attack, handed in ((worst(defense), ""), (bound(defense), ", handed the replaced records")):
            if attack is not None and attack.identification.value is not None:
                share = attack.identification
                records = f"{share.n} record{'' if share.n == 1 else 's'}"
                words.append(
                    f"{attack.name}{handed}: {percent(share.value or 0)} of {records} identified "
                    f"(95% interval {interval(share)}%)"
                )
        found.append(visible(f"{defense.spec}: {', '.join(words) or 'no attack was scored'}"))
    return found
