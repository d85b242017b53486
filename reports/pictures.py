"""The pictures of a report: what attacks made of the same records under every defense, within a size a page can have.

Of several attacks on one record the one counts whose picture gains most over the best guess that needs no update; where
a result does not know that gain, the one whose picture is nearest (PSNR). An attack that is handed more than anybody
sees (role `bound`) is no such attack.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from leakaudit.files.pictures import embedded_size
from leakaudit.reports import view
from leakaudit.result import numbers
from leakaudit.result.schema import AttackResult, AuditResult, DefenseResult, Estimate, Picture, RecordScore
from leakaudit.result.scores import SCORES

Place = tuple[int, int]  # a victim, and the record's position in its batch
MOST = 4_200_000  # characters of encoded pictures in a page, which with the rest stays below 5 MB
PACKED = 16  # pixels to a character, more of which only an empty picture has: whoever opens a page must unpack them
COLUMNS = 8  # records shown side by side
SIDE, SMALL = 80, 56  # pixels, about how wide a picture of the section is drawn, and one of a single attack


@dataclass(frozen=True)
class Shown:
    """One picture as a page shows it: a source of data or None, and how large to draw it."""

    alt: str
    source: str | None
    width: int
    height: int
    crisp: bool
    under: tuple[str, ...] = ()  # lines below it
    weight: int = 0  # how many characters it takes; what unpacks to far more than it takes counts by its pixels


@dataclass(frozen=True)
class Row:
    """One line of a table of pictures: what it is, and a picture or None for every record."""

    name: str
    tag: str
    cells: tuple[Shown | None, ...]


@dataclass(frozen=True)
class Table:
    """Pictures of the same records in the same order."""

    key: str
    title: str
    heads: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Section:
    """The nearest pictures under every defense, then those of every attack, and how many did not fit."""

    main: Table | None
    each: tuple[Table, ...]
    left_out: int


@dataclass(frozen=True)
class Drawn:
    """What one attack drew of one record."""

    attack: AttackResult
    picture: Picture
    gain: float | None  # dB

    @property
    def order(self) -> tuple[bool, float]:
        """By gain where it is known, else by PSNR: larger is nearer."""
        known = self.gain is not None
        return known, (self.gain if self.gain is not None else self.picture.psnr or 0.0)

    @property
    def words(self) -> str:
        """How far above the best guess it is, else how near to the record: `+3.2 dB` or `PSNR 19.0 dB`."""
        gain = SCORES["gain"].shifted(Estimate(self.gain))
        return gain or f"PSNR {_score('psnr', self.picture.psnr)}"


def drawn_of(defense: DefenseResult) -> dict[Place, Drawn]:
    """Return the nearest picture of every record that any attack an adversary can run drew of it."""
    found: dict[Place, Drawn] = {}
    for attack in defense.attacks:
        if attack.role != "bound":
            for drawn in _of_attack(attack):
                place = _place(drawn.picture)
                if drawn.picture.reconstruction and (place not in found or drawn.order > found[place].order):
                    found[place] = drawn
    return found


@dataclass(frozen=True)
class Rank:
    """What decides the place of a record: `gain` is under the first defense with a picture of it, the control first."""

    flat: bool  # a PNG packs it smaller than half of the records; redacted ones are all the same
    kept: int  # defenses of which a picture of it is kept
    sure: bool  # whether the gain is known, or the PSNR stands for it
    gain: float


def ranks(drawn: Sequence[Mapping[Place, Drawn]]) -> dict[Place, Rank]:
    """Return the rank of every record; `drawn` holds the pictures by defense, the control first."""
    by_place: dict[Place, list[Drawn]] = {}
    for of in drawn:
        for place, one in of.items():
            by_place.setdefault(place, []).append(one)
    packed = {place: len(of[0].picture.original or "") for place, of in by_place.items()}
    middle = sorted(packed.values())[len(packed) // 2] if packed else 0
    return {place: Rank(packed[place] < middle, len(of), *of[0].order) for place, of in by_place.items()}


def chosen(drawn: Sequence[Mapping[Place, Drawn]]) -> list[Place]:
    """Return at most `COLUMNS` records, the most telling first.

    Those of which most defenses' pictures are kept, among them by the gain over the best guess. Flat pictures, which
    any attack draws well, come last.
    """
    known = ranks(drawn)
    best = sorted(known, key=lambda place: (-known[place].kept, not known[place].sure, -known[place].gain, place))
    return sorted(best[:COLUMNS], key=lambda place: known[place].flat)


def by_gain(drawn: Sequence[Mapping[Place, Drawn]]) -> list[Place]:
    """Return the chosen records by their gain, flat ones last."""
    known = ranks(drawn)
    return sorted(chosen(drawn), key=lambda place: (known[place].flat, not known[place].sure, -known[place].gain))


def section(result: AuditResult) -> Section:
    """Return the pictures of a report; none where the result is to show none.

    Where all of them would make the page too large, those of single attacks are left out from the end.
    """
    if result.images == "none":
        return Section(None, (), 0)
    drawn = [drawn_of(defense) for defense in result.defenses]
    places = by_gain(drawn)
    if not places and not any(a.gallery for d in result.defenses for a in d.attacks):
        return Section(None, (), 0)
    stand_in = bool(result.stand_in)
    tables = [_nearest(result, drawn, places)] if places else []
    tables += [
        _each(view.key(i), d, stand_in) for i, d in enumerate(result.defenses) if any(a.gallery for a in d.attacks)
    ]
    fitting, left_out = _fitted(tables)
    return Section(
        fitting[0] if places else None, tuple(fitting[len(tables) - len(fitting) + bool(places) :]), left_out
    )


def shown(picture: Picture, of: str, side: int, stand_in: bool, under: tuple[str, ...] = (), told: str = "") -> Shown:
    """Return a picture's `original`, `shared` or `reconstruction` at about `side` pixels.

    A small one is drawn in whole multiples of its own pixels, and never wider than `side`.
    """
    text: str | None = getattr(picture, of)
    size = embedded_size(text)
    width, height = size or (side, side)
    factor = side // max(width, height)
    scale = factor if factor >= 1 else side / max(width, height)
    what = "shared record" if of == "shared" else of
    alt = (
        f"{'public stand-in for the ' if stand_in else ''}{what} of victim {picture.victim}, record {picture.record}, "
        f"labelled {picture.label}{told}"
    )
    return Shown(
        alt=alt,
        source=f"data:image/png;base64,{text}" if size else None,
        width=max(1, round(width * scale)),
        height=max(1, round(height * scale)),
        crisp=factor >= 1,
        under=under,
        weight=1 + max(len(text or ""), (size[0] * size[1]) // PACKED) if size else 0,
    )


def _of_attack(attack: AttackResult) -> Iterable[Drawn]:
    gains = {(r.victim, r.record): r.gain for r in attack.records}
    return (Drawn(attack, picture, gains.get(_place(picture))) for picture in attack.gallery)


def _place(row: Picture | RecordScore) -> Place:
    return row.victim, row.record


def _nearest(result: AuditResult, drawn: Sequence[Mapping[Place, Drawn]], places: Sequence[Place]) -> Table:
    stand_in = bool(result.stand_in)
    first = {place: next(of[place].picture for of in drawn if place in of) for place in places}
    originals = tuple(shown(first[place], "original", SIDE, stand_in) for place in places)
    unscored = bool(result.captured) and not result.captured.get("known")
    whose = "public stand-in" if stand_in else "another record" if unscored else "private record"
    rows = [Row(whose, "", originals)]
    for i, (defense, of) in enumerate(zip(result.defenses, drawn, strict=True)):
        if of:
            cells = tuple(_near(of.get(place), stand_in) for place in places)
            rows.append(Row(f"{view.key(i)} {defense.spec}", "", cells))
    return Table("nearest", "", tuple(first[place].label for place in places), tuple(rows))


def _near(drawn: Drawn | None, stand_in: bool) -> Shown | None:
    if drawn is None:
        return None
    return shown(
        drawn.picture,
        "reconstruction",
        SIDE,
        stand_in,
        (drawn.words.removesuffix(" dB"),),
        f", by {drawn.attack.name}{_told(drawn)}",
    )


def _each(key: str, defense: DefenseResult, stand_in: bool) -> Table:
    """Return what every attack on a defense kept, over the same records in the order of the nearest pictures."""
    attacks = [a for a in defense.attacks if a.gallery]
    everything: dict[Place, Picture] = {}
    order: list[Drawn] = sorted((d for a in attacks for d in _of_attack(a)), key=lambda d: d.order, reverse=True)
    for drawn in order:
        everything.setdefault(_place(drawn.picture), drawn.picture)
    places = list(everything)
    rows = [_plain_row("public stand-in" if stand_in else "original", "original", everything.values(), stand_in)]
    released: dict[Place, Picture] = {_place(p): p for a in attacks for p in a.gallery if p.shared}
    if released:
        cells = tuple(shown(released[p], "shared", SMALL, stand_in) if p in released else None for p in places)
        rows.append(Row("shared (x̃)", "", cells))
    for attack in attacks:
        kept = {_place(d.picture): d for d in _of_attack(attack)}
        cells = tuple(_one(kept[place], stand_in) if place in kept else None for place in places)
        rows.append(Row(attack.name, "" if attack.role == "standard" else attack.role, cells))
    return Table(key, defense.spec, tuple(p.label for p in everything.values()), tuple(rows))


def _plain_row(name: str, of: str, pictures: Iterable[Picture], stand_in: bool) -> Row:
    return Row(name, "", tuple(shown(p, of, SMALL, stand_in) for p in pictures))


def _one(drawn: Drawn, stand_in: bool) -> Shown:
    p = drawn.picture
    under = f"{_score('psnr', p.psnr).removesuffix(' dB')}, {_score('ssim', p.ssim)}{' ✓' if p.identified else ''}"
    return shown(p, "reconstruction", SMALL, stand_in, (under,), _told(drawn))


def _told(drawn: Drawn) -> str:
    p = drawn.picture
    found = {True: "identified", False: "not identified", None: "identification not scored"}[p.identified]
    return f": PSNR {_score('psnr', p.psnr)}, SSIM {_score('ssim', p.ssim)}, {found}"


def _score(name: str, value: float | None) -> str:
    return numbers.DASH if value is None else SCORES[name].write(value)


def _fitted(tables: list[Table]) -> tuple[list[Table], int]:
    """Return the tables with as many columns as fit, record by record over all tables, and how many pictures do not."""
    kept, left, lost = [0] * len(tables), MOST, 0
    deepest = max((len(t.heads) for t in tables), default=0)
    for depth in range(deepest):
        for i, table in enumerate(tables):
            column = [cell for row in table.rows if depth < len(row.cells) and (cell := row.cells[depth])]
            size = sum(cell.weight for cell in column)
            if kept[i] == depth and depth < len(table.heads) and size <= left:
                kept[i], left = depth + 1, left - size
            elif depth < len(table.heads):
                lost += sum(cell.source is not None for cell in column)
    cut = [
        replace(t, heads=t.heads[:n], rows=tuple(replace(r, cells=r.cells[:n]) for r in t.rows))
        for t, n in zip(tables, kept, strict=True)
    ]
    return cut, lost
