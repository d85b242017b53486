"""The galleries of a report: what attacks made of the records, worst first, within a size a page can have."""

from __future__ import annotations

from dataclasses import dataclass, replace

from leakaudit.files.pictures import embedded_size
from leakaudit.judge import ranking
from leakaudit.reports import view
from leakaudit.result import numbers
from leakaudit.result.schema import AttackResult, AuditResult, DefenseResult, Picture
from leakaudit.result.scores import SCORES

TARGET_PIXELS = 100  # about how wide a gallery picture is drawn, in whole multiples of its own pixels
MOST = 4_200_000  # characters of encoded pictures in a page, which with the rest stays below 5 MB
PACKED = 16  # pixels to a character, more of which only an empty picture has: whoever opens a page must unpack them


@dataclass(frozen=True)
class Column:
    """One record of a gallery: sources of data, or None, and how large to draw them."""

    picture: Picture
    sources: tuple[tuple[str, str | None], ...]  # (what it is, data URI)
    width: int
    height: int
    crisp: bool
    scores: tuple[str, str, str]
    pixels: int = 0  # of all its pictures

    @property
    def size(self) -> int:
        """How many characters its pictures take; what unpacks to far more than it takes counts by its pixels."""
        return 1 + max(sum(len(source) for _, source in self.sources if source), self.pixels // PACKED)


@dataclass(frozen=True)
class Gallery:
    """The pictures of one attack on one defense, worst first; `of` are in the result, where not all fit."""

    key: str
    defense: DefenseResult
    attack: AttackResult
    worst: bool
    rows: tuple[str, ...]
    columns: tuple[Column, ...]
    of: int


def galleries(result: AuditResult) -> list[tuple[DefenseResult, list[Gallery]]]:
    """Return the galleries by defense, the worst attack of each first; none where the result is to show no pictures.

    Where all pictures would make the page too large, the most leaking records of every gallery are kept, those of the
    worst attacks before the others'.
    """
    if result.images == "none":
        return []
    found = []
    for i, defense in enumerate(result.defenses):
        top = ranking.worst(defense)
        ordered = sorted((a for a in defense.attacks if a.gallery), key=lambda a: a is not top)
        found += [_gallery(view.key(i), defense, a, a is top, bool(result.stand_in)) for a in ordered]
    fitting = _fitted(found)
    by_defense = [(d, [g for g in fitting if g.defense is d]) for d in result.defenses]
    return [(d, shown) for d, shown in by_defense if shown]


def _fitted(found: list[Gallery]) -> list[Gallery]:
    """Return the galleries with as many columns as fit, record by record, galleries of worst attacks first."""
    kept, left = [0] * len(found), MOST
    for worst in (True, False):
        chosen = [i for i, g in enumerate(found) if g.worst is worst]
        for depth in range(max((g.of for g in found), default=0)):
            for i in chosen:
                size = found[i].columns[depth].size if depth < found[i].of else 0
                if kept[i] == depth and 0 < size <= left:
                    kept[i], left = depth + 1, left - size
    return [replace(g, columns=g.columns[:n]) for g, n in zip(found, kept, strict=True)]


def _gallery(key: str, defense: DefenseResult, attack: AttackResult, worst: bool, stand_in: bool) -> Gallery:
    replaced = any(p.shared for p in attack.gallery)
    rows = ("original", "shared (x̃)", "reconstruction") if replaced else ("original", "reconstruction")
    if stand_in:
        rows = ("public stand-in", "as close as the reconstruction")
    columns = tuple(_column(p, replaced) for p in attack.gallery)
    return Gallery(key, defense, attack, worst, rows, columns, len(columns))


def _column(picture: Picture, replaced: bool) -> Column:
    names: list[tuple[str, str | None]] = [("original", picture.original)]
    names += [("shared record", picture.shared)] if replaced else []
    names += [("reconstruction", picture.reconstruction)]
    sizes = [size for _, text in names if (size := embedded_size(text))]
    width, height = sizes[0] if sizes else (TARGET_PIXELS, TARGET_PIXELS)
    factor = round(TARGET_PIXELS / max(width, height))
    crisp = factor >= 1
    scale = factor if crisp else TARGET_PIXELS / max(width, height)
    psnr = numbers.DASH if picture.psnr is None else SCORES["psnr"].write(picture.psnr)
    ssim = numbers.DASH if picture.ssim is None else SCORES["ssim"].write(picture.ssim)
    identified = {True: "yes", False: "no", None: numbers.DASH}[picture.identified]
    return Column(
        picture,
        tuple(
            (name, f"data:image/png;base64,{text}" if text and embedded_size(text) else None) for name, text in names
        ),
        max(1, round(width * scale)),
        max(1, round(height * scale)),
        crisp,
        (psnr, ssim, identified),
        sum(w * h for w, h in sizes),
    )
