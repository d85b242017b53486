"""The tables of `benchmarks.obscure`, for a terminal and for the documentation, from the rows alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

from benchmarks.rows import Kind, Row, Setting

OTHER = "*"  # behind the name of what was measured by other code than the last piece was


def percent(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """Return a share in per cent, with its interval in brackets."""
    if value is None:
        return "–"
    interval = "" if low is None or high is None else f" ({100 * low:.1f}–{100 * high:.1f})"
    return f"{100 * value:.1f}{interval}"


def rate(row: Row) -> str:
    """Return how often a record was identified."""
    return percent(row.identification, row.identification_low, row.identification_high)


def accuracy(row: Row) -> str:
    """Return test accuracy."""
    return percent(row.accuracy, row.accuracy_low, row.accuracy_high)


def number(value: float | None) -> str:
    """Return a number to three places."""
    return "–" if value is None else f"{value:.3f}"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return aligned columns under a head, which Markdown reads as a table too."""
    widths = [max(len(cell) for cell in column) for column in zip(head, *lines, strict=True)]
    rows = [head, ["-" * w for w in widths], *lines]
    return "\n".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in rows
    )  # fmt: skip


def measured_by(rows: Sequence[Row]) -> str:
    """Return by which code, on which device and in what time the pieces were measured; "" without rows."""
    if not rows:
        return ""
    pieces = {row.piece: row for row in rows}
    seconds = sum(row.piece_seconds or 0.0 for row in pieces.values())
    by = Counter((row.code, row.device) for row in pieces.values())
    parts = [f"{count} by code {code} on {device}" for (code, device), count in by.items()]
    mixed = f"; {OTHER}: not by code {rows[-1].code}" if len({code for code, _ in by}) > 1 else ""
    return f"{len(pieces)} pieces in {seconds / 60:.0f} minutes: {', '.join(parts)}{mixed}"


def marked(rows: Sequence[Row]) -> list[Row]:
    """Return the rows, the names of those marked that other code measured than that of the last."""
    last = rows[-1].code if rows else ""
    return [row if row.code == last else replace(row, facts={**row.facts, "other code": "true"}) for row in rows]


def name_of(row: Row) -> str:
    """Return the spec of a row, with what must be said of it."""
    other = OTHER if "other code" in row.facts else ""
    return row.spec + other + (" (needs no public data)" if _borrowed(row) else "")


def _borrowed(row: Row) -> bool:
    return row.facts.get("borrowed") == "true"


def belonging(rows: Sequence[Row], dataset: str, setting: Setting) -> list[Row]:
    """Return a data set's rows in one setting; beside public data stand the controls that need none, marked so."""
    here = [row for row in rows if row.dataset == dataset]
    own = [row for row in here if row.setting == setting]
    if setting == "private-only" or not own:
        return own
    controls = [row for row in here if row.setting == "private-only" and row.spec in ("none", "class-conditional")]
    return [*(replace(row, facts={**row.facts, "borrowed": "true"}) for row in controls), *own]


def report(rows: Sequence[Row], dataset: str, setting: Setting) -> str:
    """Return the tables of one data set in one setting, in Markdown; "" where there is no row."""
    here = belonging(marked(rows), dataset, setting)
    if not here:
        return ""
    summaries = ("worst", "selected", "failed")
    kinds: dict[str, list[Row]] = {kind: [] for kind in get_args(Kind)}
    for row in here:
        if row.kind in summaries or not _borrowed(row):
            kinds[row.kind].append(row)
    chances = [row.chance for row in here if row.chance is not None]
    chance = f"chance {percent(chances[0])} %" if chances else ""
    parts = [f"### {dataset}, {setting}\n\nIn %, 95 % intervals; identification by {chance}."]
    parts.append(_defenses(kinds))
    if kinds["distinct"]:
        parts.append(_distinct(kinds["distinct"]))
    if kinds["federated"]:
        lines = [[name_of(row), row.split or "", accuracy(row), row.reason or ""] for row in kinds["federated"]]
        parts.append(table(("(b) FedAvg, 5 clients", "split", "accuracy", ""), lines))
    lines = [
        [name_of(row), row.attack or "", str(row.views or "–"), str(row.records), rate(row), percent(row.bound),
         number(row.r2),
         number(row.psnr), percent(row.label_accuracy), number(row.auc),
         "" if row.status == "measured" else f"{row.status}: {row.reason}"]
        for row in [*kinds["attack"], *kinds["labels"], *kinds["weights"]]
    ]  # fmt: skip
    order = {name_of(row): i for i, row in reversed(list(enumerate(here)))}
    lines.sort(key=lambda line: order[line[0]])
    head = (
        "(c) defense",
        "attack",
        "views",
        "records",
        "identified",
        "proven at most",
        "R²",
        "PSNR",
        "labels",
        "AUC",
        "",
    )
    if lines:
        parts.append(table(head, lines))
    return "\n\n".join(parts)


def _defenses(kinds: dict[str, list[Row]]) -> str:
    selected = {row.spec: row for row in kinds["selected"]}
    lines = [
        [name_of(w), accuracy(w), rate(w), f"{w.attack} ×{w.views}", percent(w.by_chance),
         rate(s := selected[w.spec]), f"{s.attack} ×{s.views}"]
        for w in kinds["worst"] if w.spec in selected
    ]  # fmt: skip
    lines += [[name_of(row), accuracy(row), "–", row.reason or "", "–", "–", ""] for row in kinds["control"]]
    lines += [[name_of(row), "–", "–", f"failed: {row.reason}", "–", "–", ""] for row in kinds["failed"]]
    worst = ("worst attack finds", "which", "guessing", "selected attack finds", "which")
    return table(("(d) defense", "accuracy", *worst), lines)


def _distinct(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        d = row.distinct
        cells = [
            " / ".join(number(d.get(f"{metric}_{of}")) for of in ("released", "class_mean", "another"))
            for metric in ("mse", "ssim", "lpips")
        ]
        near = " / ".join(number(d.get(f"nearest_private_{of}")) for of in ("released", "test"))
        share = percent(d.get("nearer_private"), d.get("nearer_private_low"), d.get("nearer_private_high"))
        lines.append([name_of(row), *cells, near, share])
    shown = "x̃ / class mean / another"
    head = ("(a) defense", f"MSE to x: {shown}", f"SSIM: {shown}", f"LPIPS: {shown}",
            "MSE to nearest private: x̃ / test", "nearer to private than to others (50: neither)")  # fmt: skip
    return table(head, lines)
