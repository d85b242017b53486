"""An audit and its gate as SARIF 2.1.0 (OASIS, with Errata 01), for code scanning and SARIF viewers.

Findings are results: errors and warnings of kind `fail`, what is only to be known of kind `informational` without a
level. What a waiver accepts keeps kind and level and carries a suppression (kind `external`, its reason as
justification).

GitHub's code scanning shows a result as an open alert whatever its kind and its suppressions, so upload what `alerts`
leaves of a file. It tells alerts apart by rule, file and `primaryLocationLineHash`; every result has its own, which
stays the same from run to run as long as rule, defense and attack do.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from leakaudit.judge.conclusions import conclusions
from leakaudit.judge.findings import accepted, describe, mend_of
from leakaudit.result.dates import commit_of, is_moment
from leakaudit.result.outcome import Outcome
from leakaudit.result.plaintext import visible
from leakaudit.result.rules import EXIT
from leakaudit.result.schema import AuditResult, Finding, Value, Verdict, digest
from leakaudit.version import __version__

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
LEVELS = {"error": "error", "warning": "warning", "info": "none"}
NOWHERE = "model.py"


def render(result: AuditResult, outcome: Outcome | None = None, location: str = "") -> str:
    """Return SARIF 2.1.0 as JSON, sorted keys, one trailing newline.

    `location` is the file that results point at, relative to the repository's root, with slashes (see `located`).
    Without one it is the model's file as the scan's command line named it, else the target's name, else `model.py`.
    """
    findings = conclusions(result, outcome)
    ids = list(dict.fromkeys(visible(f.id) for f in findings))
    uri = quote(location or _location(result), safe="/-._~")
    seen: Counter[tuple[str, ...]] = Counter()
    verdict = outcome.verdict if outcome else result.verdict
    properties: dict[str, Any] = {
        "verdict": verdict,
        "reasons": [visible(reason) for reason in (outcome.reasons if outcome else result.reasons)],
        "notTested": [visible(sentence) for sentence in result.not_tested],
        "resultSha256": digest(result),
    }
    told = {"auditedWith": str(result.environment.get("leakaudit") or ""), "auditedCommit": commit_of(result)}
    properties |= {name: visible(value) for name, value in told.items() if value}
    if outcome is not None and outcome.notes:
        properties["notes"] = [visible(note) for note in outcome.notes]
    if outcome is not None and outcome.baseline_digest:
        properties["baselineSha256"] = visible(outcome.baseline_digest)
    run = {
        "tool": {
            "driver": {
                "name": "leakaudit",
                "version": __version__,
                "rules": [_rule(identifier, findings) for identifier in ids],
            }
        },
        "automationDetails": {"id": f"leakaudit/{quote(_name(result), safe='-._~ ')}/"},
        "invocations": [_invocation(result, verdict)],
        "artifacts": [{"location": {"uri": uri, "uriBaseId": "%SRCROOT%"}, "roles": ["analysisTarget"]}],
        "results": [_result(f, ids, uri, seen) for f in findings],
        "columnKind": "unicodeCodePoints",
        "properties": properties,
    }
    log = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(log, indent=1, sort_keys=True, allow_nan=False) + "\n"


def alerts(sarif: str) -> str:
    """Return a SARIF file without what needs nobody's attention: informational results and suppressed ones."""
    log = json.loads(sarif)
    for run in log["runs"]:
        run["results"] = [r for r in run["results"] if r.get("kind") == "fail" and not r.get("suppressions")]
    return json.dumps(log, indent=1, sort_keys=True, allow_nan=False) + "\n"


def _rule(identifier: str, findings: tuple[Finding, ...]) -> dict[str, Any]:
    """Return what a rule is and how to mend what it finds; its level is the worst of its results in this file."""
    what, mend = visible(describe(identifier)), visible(mend_of(identifier))
    worst = next(f for f in findings if visible(f.id) == identifier)
    return {
        "id": identifier,
        "name": "".join(part.capitalize() for part in re.split(r"[^0-9A-Za-z]+", identifier)) or "Finding",
        "shortDescription": {"text": f"{what}."},
        "fullDescription": {"text": f"{what}. {mend}"},
        "help": {"text": f"{what}. {mend}", "markdown": f"{_plain(what)}.\n\n**What to do:** {_plain(mend)}"},
        "defaultConfiguration": {"level": LEVELS[worst.severity]},
        "properties": {"tags": ["privacy", "gradient-inversion"]},
    }


def _result(finding: Finding, ids: list[str], uri: str, seen: Counter[tuple[str, ...]]) -> dict[str, Any]:
    identifier = visible(finding.id)
    defense, attack = (visible(str(finding.evidence.get(k) or "")) for k in ("defense", "attack"))
    key = (identifier, defense, attack)
    seen[key] += 1
    print_ = hashlib.sha256("\0".join((*key, str(seen[key]))).encode()).hexdigest()
    told = _text(f"{finding.message} {finding.mend}".strip())
    found: dict[str, Any] = {
        "ruleId": identifier,
        "ruleIndex": ids.index(identifier),
        "kind": "informational" if finding.severity == "info" else "fail",
        "level": LEVELS[finding.severity],
        "message": {"text": told or identifier},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": uri, "uriBaseId": "%SRCROOT%", "index": 0},
                    "region": {"startLine": 1},
                }
            }
        ],
        "partialFingerprints": {"leakaudit/v1": print_, "primaryLocationLineHash": f"{print_[:16]}:1"},
        "properties": _values(finding.evidence),
    }
    names = [name for name in (defense, attack) if name]
    if names:
        found["locations"][0]["logicalLocations"] = [{"fullyQualifiedName": "/".join(names), "name": names[-1]}]
    if accepted(finding):
        found["suppressions"] = [
            {"kind": "external", "status": "accepted", "justification": _text(_justification(finding.evidence))}
        ]
    return found


def _justification(evidence: Mapping[str, Value]) -> str:
    by = f" by {evidence['waived_by']}" if evidence.get("waived_by") else ""
    return f"Waived{by} until {evidence.get('waived_until')}: {evidence['waived']}"


def _invocation(result: AuditResult, verdict: Verdict) -> dict[str, Any]:
    invocation: dict[str, Any] = {
        "executionSuccessful": result.complete,
        "exitCode": EXIT[verdict],
        "exitCodeDescription": verdict,
    }
    if is_moment(result.made):
        invocation["startTimeUtc"] = result.made
    command = result.environment.get("command")
    if command:
        invocation["commandLine"] = visible(str(command))
    if not result.complete:
        message = "The audit was interrupted: what is missing was not measured and is not safe."
        invocation["toolExecutionNotifications"] = [{"level": "error", "message": {"text": message}}]
    return invocation


def located(result: AuditResult, folder: Path) -> str:
    """Return where the model's file lies below the root of the repository that holds `folder`, where the scan ran.

    The root is the nearest folder upwards that holds `.git` or that `GITHUB_WORKSPACE` names, `folder` itself without
    either. A file outside it, or one that no command line names, is taken to lie in `folder`. No file is opened.
    """
    folder = Path(os.path.abspath(folder))
    workspace = os.path.abspath(os.environ.get("GITHUB_WORKSPACE") or os.sep)
    root = next(
        (f for f in (folder, *folder.parents) if (f / ".git").exists() or str(f) == workspace != os.sep), folder
    )
    for path in _named(result):
        place = PurePosixPath(os.path.normpath(folder / os.path.expanduser(path)))
        if place.is_relative_to(root):
            return str(place.relative_to(root))
    return str(PurePosixPath(folder.relative_to(root)) / _location(result))


def _location(result: AuditResult) -> str:
    """Return the model's file as the command line named it, where that is a path within the repository."""
    name = _name(result)
    for path in _named(result):
        if not path.is_absolute() and ".." not in path.parts and path.parts[0] not in ("~", "…"):
            return str(path)
    return name if name.endswith(".py") and "/" not in name else NOWHERE


def _named(result: AuditResult) -> Iterator[PurePosixPath]:
    """Yield the words of the scan's command line that may be the path of the model's file."""
    try:
        words = shlex.split(str(result.environment.get("command") or ""))
    except ValueError:
        return
    for word in words:
        path = PurePosixPath(word.partition(":")[0].replace("\\", "/"))
        if path.name == _name(result) and "\0" not in word:
            yield path


def _name(result: AuditResult) -> str:
    return visible(str(result.target.get("name") or "model"))


def _text(words: str) -> str:
    """Return text of a message that holds no embedded link, `[words](target)`, whoever wrote it."""
    return visible(words).replace("](", "] (")


def _plain(words: str) -> str:
    """Return text as Markdown shows it literally: ids come from plug-ins too."""
    return re.sub(r"([\\`*_\[\]<>&|#!~])", lambda match: f"&#{ord(match[1])};", words)


def _values(evidence: Mapping[str, Value]) -> dict[str, Value]:
    """Return the evidence as a property bag, whose `tags` would be a list of SARIF's own."""
    return {
        visible(name).replace("tags", "tagged"): visible(value) if isinstance(value, str) else value
        for name, value in evidence.items()
    }
