"""What the rows of `benchmarks.quality` say: the two claims, computed, and the curves, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHARE, GAIN = 0.1, 3.0  # the claims: the same PSNR in this share of the time, and so many dB more at equal time
PANELS = {"psnr": "PSNR in dB, median", "ssim": "SSIM, median", "identified": "identified of {candidates}"}
COLOURS = {"published": "#8a5a00", "ours": "#0b5cad", "grey": "#888888"}
Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Gain:
    """PSNR in dB of both sides at so many CPU seconds per victim."""

    seconds: float
    published: float
    ours: float

    @property
    def decibels(self) -> float:
        """How much ours is above."""
        return self.ours - self.published


@dataclass(frozen=True)
class Claims:
    """One model: does ours reach what the published settings end at, how soon, and how far above is it at equal time?

    `final` and `seconds` are of the published run in full; `share` and `share_tuned` are ours' time over that, without
    and with tuning spread over the victims, None where no run reached it. `void` where the published settings end
    no better than a grey picture: reaching that says nothing, and `identified` is judged: the best share of records
    that any published run identifies at any time, and that of ours' longest run.
    """

    model: str
    final: float
    seconds: float
    grey: float
    share: float | None
    share_tuned: float | None
    victims: int
    gains: tuple[Gain, ...]
    identified: tuple[float, float] = (0.0, 0.0)

    @property
    def void(self) -> bool:
        """Whether the published settings found nothing that a grey picture has not."""
        return self.final <= self.grey

    @property
    def sooner(self) -> str:
        """The verdict on the first claim."""
        if self.void:
            theirs, ours = self.identified
            told = "void by PSNR, the published settings end no better than a grey picture; "
            told += f"identified {theirs:.0%} → {ours:.0%}: "
            return told + ("more" if ours > theirs else "NO MORE")
        return "reached" if self.share is not None and self.share <= SHARE else "MISSED"

    @property
    def better(self) -> str:
        """The verdict on the second claim: at every time that was measured, or it is missed."""
        hits = sum(gain.decibels >= GAIN for gain in self.gains)
        if self.gains and hits == len(self.gains):
            return f"reached at all {hits} times"
        return f"MISSED at {len(self.gains) - hits} of {len(self.gains)} times"


def cost(row: dict[str, Any], tuned: bool = False) -> float:
    """Return CPU seconds per victim, with the tuning spread over the row's victims or without."""
    return float(row["seconds"]) + (float(row["tuning_seconds"]) / len(row["psnr_each"]) if tuned else 0.0)


def claims(rows: Rows, model: str) -> Claims | None:
    """Return the claims of a model, or None where either side is missing.

    Whoever judges in favour of ours must not choose: the published side has its best row so far and the grey picture,
    ours the longest run that fits. The times are those at which a run of ours ends, and the published run's own end.
    """
    here = [row for row in rows if row["model"] == model]
    theirs = [row for row in here if row["variant"] == "published"]
    ours = sorted((row for row in here if row["variant"] == "ours"), key=lambda row: row["length"])
    if not theirs or not ours:
        return None
    grey = max((float(row["psnr"]) for row in here if row["variant"] == "grey"), default=float("-inf"))
    full = max(row["length"] for row in theirs)
    last = [row for row in theirs if row["length"] == full and row["iteration"] == full]
    final, end = max(float(row["psnr"]) for row in last), float(last[0]["seconds"])

    def share(tuned: bool) -> float | None:
        return min((cost(row, tuned) / end for row in ours if row["psnr"] >= final), default=None)

    def gain(seconds: float) -> Gain:
        afforded = [row for row in ours if cost(row) <= seconds]
        best = max([grey, *(float(row["psnr"]) for row in theirs if row["seconds"] <= seconds)])
        return Gain(seconds, best, float(afforded[-1]["psnr"]))

    times = sorted({cost(row) for row in ours} | {end})
    gains = tuple(gain(t) for t in times if t >= cost(ours[0]))
    named = max(float(row.get("identified", 0)) for row in theirs), float(ours[-1].get("identified", 0))
    return Claims(model, final, end, grey, share(False), share(True), len(ours[0]["psnr_each"]), gains, named)


def report(found: Claims) -> str:
    """Return the claims of a model in a few lines."""
    shares = [f"after {s:.1%} of that" if s is not None else "never" for s in (found.share, found.share_tuned)]
    lines = [
        f"{found.model}: the published settings end at {found.final:.2f} dB after {found.seconds:.2f} CPU s a victim"
        f" (a grey picture: {found.grey:.2f} dB)",
        f"  ours is there {shares[0]}; with tuning, over {found.victims} victims, {shares[1]}"
        f" (wanted: at most {SHARE:.0%}): {found.sooner}",
        f"  at equal time (wanted: {GAIN:.0f} dB more): {found.better}",
    ]
    for g in found.gains:
        lines.append(f"    {g.seconds:9.3f} s   {g.published:6.2f} → {g.ours:6.2f} dB   {g.decibels:+.2f}")
    return "\n".join(lines)


def draw(rows: Rows, path: Path) -> None:
    """Draw PSNR, SSIM and identification against CPU seconds, a column per model, as SVG."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(row["model"] for row in rows))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "quality", "font.size": 8}):
        figure = Figure(figsize=(2.6 * len(models) + 0.6, 6.4), layout="constrained")
        FigureCanvasSVG(figure)
        grid = figure.subplots(len(PANELS), len(models), sharex="col", squeeze=False)
        for column, model in enumerate(models):
            here = [row for row in rows if row["model"] == model]
            for line, (metric, title) in enumerate(PANELS.items()):
                axes = grid[line][column]
                _curves(axes, here, metric)
                axes.set_xscale("log")
                axes.grid(linewidth=0.4, color="#dddddd")
                axes.spines[["top", "right"]].set_visible(False)
                if metric == "identified":
                    axes.set_ylim(-0.03, 1.03)
                    axes.set_xlabel("CPU seconds per victim")
                if line == 0:
                    axes.set_title(model)
                if column == 0:
                    axes.set_ylabel(title.format(candidates=here[0]["candidates"]))
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4 if len(models) > 2 else 2, frameon=False)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _curves(axes: Any, here: Rows, metric: str) -> None:
    lengths = sorted({row["length"] for row in here if row["variant"] == "published"}, reverse=True)
    for length in lengths:
        line = [r for r in here if (r["variant"], r["length"], r["picture"]) == ("published", length, "last")]
        line.sort(key=lambda row: row["iteration"])
        style: dict[str, Any] = {"label": "published settings"} if length == lengths[0] else {"linewidth": 0.8}
        axes.plot([r["seconds"] for r in line], [r[metric] for r in line], color=COLOURS["published"], **style)
    ours = sorted((r for r in here if r["variant"] == "ours"), key=lambda row: row["length"])
    for tuned, dashes, label in ((False, "-", "ours, tuned before"), (True, "--", "ours, its tuning counted")):
        axes.plot(
            [cost(r, tuned) for r in ours],
            [r[metric] for r in ours],
            dashes,
            color=COLOURS["ours"],
            marker="o" if not tuned else None,
            markersize=3,
            linewidth=1.5 if not tuned else 0.9,
            label=label,
        )
    for row in here:
        if row["variant"] == "grey":
            axes.axhline(row[metric], color=COLOURS["grey"], linewidth=0.8, dashes=(2, 2), label="a grey picture")
