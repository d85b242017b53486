"""An audit as one HTML file: no JavaScript, nothing loaded from anywhere, readable in light, dark, narrow and print."""

from __future__ import annotations

import base64
import binascii
import struct
from dataclasses import dataclass

from leakaudit.reports import figures, view
from leakaudit.reports.standing import Standing, bound_of, bound_text, standing
from leakaudit.result import AttackResult, AuditResult, Baseline, DefenseResult, Estimate, Picture, Value, digest
from leakaudit.rules import beats, guessing, most_telling

TARGET_PIXELS = 100  # about how wide a gallery picture is drawn, in whole multiples of its own pixels
EXPOSURE_WORDS = {
    "preset": "preset",
    "labels": "told the true labels",
    "buffers": "sees BatchNorm statistics",
    "defense": "knows the defense, its code and parameters (adaptive)",
    "auxiliary": "owns other records of the same kind",
    "released": "handed the replaced records in every attack, not only in the bound",
    "model_control": "may change the model (malicious server)",
    "rounds": "updates seen of the same records",
}


SCORES: dict[str, tuple[str, int | None]] = {  # field of an attack: its title, its decimals or None for a share
    "identification": ("Identified", None),
    "psnr": ("PSNR", 1),
    "ssim": ("SSIM", 2),
    "lpips": ("LPIPS", 2),
    "r2": ("R²", 2),
    "psnr_released": ("PSNR against x̃", 1),
    "label_accuracy": ("Labels", None),
}


@dataclass(frozen=True)
class Cell:
    """One measured number of a table; `note` points at the reason why there is none."""

    text: str
    interval: str = ""
    note: int | None = None


@dataclass(frozen=True)
class AttackRow:
    """One attack in the table of a defense."""

    attack: AttackResult
    worst: bool
    scored: str
    statuses: str
    cells: tuple[Cell, ...]  # of the columns shown; empty where nothing was scored
    note: int | None
    why: str  # it has no scores


@dataclass(frozen=True)
class DefenseRow:
    """One defense: its line in the summary and its block in the table of attacks."""

    key: str
    defense: DefenseResult
    control: bool
    worst: AttackResult | None
    identified: Cell
    bound: Cell | None
    accuracy: Cell
    seeds: str
    change: Cell
    attacks: tuple[AttackRow, ...]
    standing: Standing
    proven: str  # the bound on identification


@dataclass(frozen=True)
class Column:
    """One record of a gallery: sources of data, or None, and how large to draw them."""

    picture: Picture
    sources: tuple[tuple[str, str | None], ...]  # (what it is, data URI)
    width: int
    height: int
    crisp: bool
    scores: tuple[str, str, str]


@dataclass(frozen=True)
class Gallery:
    """The pictures of one attack on one defense, worst first."""

    defense: DefenseResult
    attack: AttackResult
    worst: bool
    rows: tuple[str, ...]
    columns: tuple[Column, ...]


class Notes:
    """Reasons numbered in the order in which they are first met."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def number(self, reason: str | None) -> int | None:
        """Return the number of a reason, None for none."""
        if not reason:
            return None
        if reason not in self.reasons:
            self.reasons.append(reason)
        return self.reasons.index(reason) + 1


def render(result: AuditResult) -> str:
    """Return the whole report. The same result gives the same bytes; text of the result is escaped throughout."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("leakaudit.reports", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": view.percent,
        "plain": view.plain,
        "pairs": view.pairs,
        "byname": _by_name,
        "spaced": _spaced,
    }
    notes, shares, baseline_notes = Notes(), Notes(), Notes()  # the three tables have footnotes of their own
    columns, absent = _columns(result)
    rows = [_defense_row(result, i, defense, columns, notes, shares) for i, defense in enumerate(result.defenses)]
    page = environment.get_template("report.html.j2").render(
        result=result,
        heading=view.heading,
        capital=_capital,
        meaning=view.meaning(result),
        reasons=view.reasons(result),
        command=view.plain(result.environment.get("command") or result.settings.get("command") or ""),
        rows=rows,
        titles=_titles(columns),
        absent=absent,
        notes=notes.reasons,
        shares=shares.reasons,
        figure={size: figures.frontier(result, size) for size in figures.SIZES},
        bounded=any(bound_of(defense) is not None for defense in result.defenses),
        training=view.training(result),
        figure_words=figures.describe(result),
        galleries=_galleries(result),
        controls=_controls(result),
        baselines=[(b, _baseline_cells(b, baseline_notes)) for b in result.baselines],
        baseline_notes=baseline_notes.reasons,
        exposure=[(EXPOSURE_WORDS.get(k, k), v) for k, v in _exposure(result.exposure)],
        unscored=[(r, a) for r in rows for a in r.attacks if not a.cells],
        digest=digest(result),
    )
    return page.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate of the JSON cannot be written to a file


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:] if sentence[:1].isascii() else sentence


def _by_name(values: dict[str, Value]) -> list[tuple[str, Value]]:
    return sorted(values.items())


def _spaced(items: list[tuple[str, Value]]) -> list[tuple[str, Value]]:
    return [(name.replace("_", " "), value) for name, value in items]


def _exposure(values: dict[str, Value]) -> list[tuple[str, Value]]:
    order = list(EXPOSURE_WORDS)
    return sorted(values.items(), key=lambda item: (order.index(item[0]) if item[0] in order else len(order), item[0]))


def _share(estimate: Estimate, notes: Notes) -> Cell:
    if estimate.value is None:
        return Cell(view.DASH, note=notes.number(estimate.reason))
    return Cell(view.percent(estimate.value), view.interval(estimate))


def _accuracy(estimate: Estimate, notes: Notes) -> Cell:
    if estimate.value is None:
        return _share(estimate, notes)
    spread = estimate.low is not None and estimate.high is not None
    ends = f"{100 * (estimate.low or 0):.1f}–{100 * (estimate.high or 0):.1f}" if spread else ""
    return Cell(f"{100 * estimate.value:.1f}%", ends)


def _score(estimate: Estimate, digits: int, notes: Notes) -> Cell:
    if estimate.value is None:
        return Cell(view.DASH, note=notes.number(estimate.reason))
    return Cell(view.number(estimate.value, digits), view.interval(estimate, digits))


def _defense_row(
    result: AuditResult, index: int, defense: DefenseResult, columns: list[str], notes: Notes, shares: Notes
) -> DefenseRow:
    worst, limit = view.worst(defense), view.bound(defense)
    missing = Estimate(reason="No attack on this defense could be scored.")
    return DefenseRow(
        key=view.key(index),
        defense=defense,
        control=defense.spec == "none",
        worst=worst,
        identified=_share(worst.identification if worst else missing, shares),
        bound=_share(limit.identification, shares) if limit else None,
        accuracy=_accuracy(defense.accuracy, shares),
        seeds=", ".join(f"{100 * a:.1f}%" for a in defense.accuracies),
        change=_change(result, defense, shares),
        attacks=tuple(_attack_row(a, a is worst, columns, notes) for a in defense.attacks),
        standing=standing(result, defense),
        proven=bound_text(defense),
    )


def _change(result: AuditResult, defense: DefenseResult, notes: Notes) -> Cell:
    change = view.cost(result, defense)
    if change is not None:
        return Cell(view.points(change), view.cost_note(result, defense))
    missing = defense.spec == "none" or defense.accuracy.value is None
    return Cell(view.DASH, note=None if missing else notes.number(view.no_cost(result)))


def _columns(result: AuditResult) -> tuple[list[str], list[str]]:
    """Return the names of the scores any attack has, and sentences on those none has."""
    shown, absent = [], []
    attacks = [a for d in result.defenses for a in d.attacks if view.scored(a)[0]]
    for name, (title, _) in SCORES.items():
        estimates: list[Estimate] = [getattr(a, name) for a in attacks]
        if any(e.value is not None for e in estimates) or not attacks:
            shown.append(name)
        else:
            reasons = dict.fromkeys(e.reason.rstrip(".") for e in estimates if e.reason)
            absent.append(f"{title} is not shown: {'; '.join(reasons) or 'no attack has one'}.")
    return shown, absent


def _titles(columns: list[str]) -> list[str]:
    titles = [[SCORES[name][0]] + (["Chance"] if name == "identification" else []) for name in columns]
    return [title for pair in titles for title in pair]


def _attack_row(attack: AttackResult, worst: bool, columns: list[str], notes: Notes) -> AttackRow:
    done, of = view.scored(attack)
    chance = view.percent(1 / attack.candidates) if attack.candidates else view.DASH
    cells: list[Cell] = []
    for name in columns if done else ():
        digits = SCORES[name][1]
        estimate: Estimate = getattr(attack, name)
        cells.append(_share(estimate, notes) if digits is None else _score(estimate, digits, notes))
        cells += [Cell(chance)] if name == "identification" else []
    note = notes.number(view.remarks(attack)) if done else None  # an unscored row tells its reason in full
    why = view.remarks(attack) or "no reason was recorded."
    return AttackRow(attack, worst, f"{done} of {of}", view.statuses(attack), tuple(cells), note, why)


def _baseline_cells(baseline: Baseline, notes: Notes) -> tuple[Cell, ...]:
    scores = (_score(baseline.psnr, 1, notes), _score(baseline.ssim, 2, notes), _score(baseline.lpips, 2, notes))
    return (_share(baseline.identification, notes), *scores)


def _controls(result: AuditResult) -> str:
    control = result.control()
    if control is None:
        return "No undefended control was measured, so nothing shows that these attacks work on this model at all."
    attack = most_telling(control.attacks)
    if attack is None:
        return "No attack could be scored on the undefended model, so a low score elsewhere proves nothing."
    share, floor = attack.identification, guessing(result.chance_identification, result.baselines)
    words = (
        "clearly above that: the attacks work on this model"
        if beats(attack, floor)
        else "not clearly above that: these attacks prove nothing on this model, and a low score elsewhere neither"
    )
    spread = f" ({view.interval(share)})" if view.interval(share) else ""
    return (
        f"Without a defense, {attack.name} identified {view.percent(share.value or 0)}{spread} of the records, against "
        f"{view.percent(floor)} by guessing without the update, {words}."
    )


def _galleries(result: AuditResult) -> list[tuple[DefenseResult, list[Gallery]]]:
    """Return the galleries by defense, the worst attack of each first; none where the result is to show no pictures."""
    if result.images == "none":
        return []
    found = []
    for defense in result.defenses:
        top = view.worst(defense)
        ordered = sorted((a for a in defense.attacks if a.gallery), key=lambda a: a is not top)
        if ordered:
            found.append((defense, [_gallery(defense, a, a is top) for a in ordered]))
    return found


def _gallery(defense: DefenseResult, attack: AttackResult, worst: bool) -> Gallery:
    replaced = any(p.shared for p in attack.gallery)
    rows = ("original", "shared (x̃)", "reconstruction") if replaced else ("original", "reconstruction")
    return Gallery(defense, attack, worst, rows, tuple(_column(p, replaced) for p in attack.gallery))


def _column(picture: Picture, replaced: bool) -> Column:
    names: list[tuple[str, str | None]] = [("original", picture.original)]
    names += [("shared record", picture.shared)] if replaced else []
    names += [("reconstruction", picture.reconstruction)]
    sizes = [size for _, text in names if (size := png_size(text))]
    width, height = sizes[0] if sizes else (TARGET_PIXELS, TARGET_PIXELS)
    factor = round(TARGET_PIXELS / max(width, height))
    crisp = factor >= 1
    scale = factor if crisp else TARGET_PIXELS / max(width, height)
    psnr = view.DASH if picture.psnr is None else f"{view.number(picture.psnr, 1)} dB"
    ssim = view.DASH if picture.ssim is None else view.number(picture.ssim, 2)
    identified = {True: "yes", False: "no", None: view.DASH}[picture.identified]
    return Column(
        picture,
        tuple((name, f"data:image/png;base64,{text}" if text and png_size(text) else None) for name, text in names),
        max(1, round(width * scale)),
        max(1, round(height * scale)),
        crisp,
        (psnr, ssim, identified),
    )


def png_size(text: str | None) -> tuple[int, int] | None:
    """Return width and height of a base64 PNG, or None for anything else: a result file may hold any string."""
    try:
        head = base64.b64decode(text or "", validate=True)[:24]
    except (binascii.Error, ValueError):
        return None
    if not head.startswith(b"\x89PNG\r\n\x1a\n") or len(head) < 24:
        return None
    width, height = struct.unpack(">II", head[16:24])
    return (width, height) if 0 < width < 65536 and 0 < height < 65536 else None
