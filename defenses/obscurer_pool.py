"""Obscurers of several clients as one: what each drew is put together, so that all draw from all of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from leakaudit.defenses.obscurer import Obscurer, mark, pooled, read
from leakaudit.defenses.obscurer_file import Card, Source, Value
from leakaudit.errors import UserError
from leakaudit.files.reading import short


def pool(files: Sequence[Path]) -> tuple[Obscurer, Card]:
    """Return the obscurer pooled from files, and its card, which says from whom. Raises UserError as `pooled` does."""
    found = [read(file) for file in files]
    names = [str(file) for file in files]
    for (_, card), name in zip(found, names, strict=True):
        _same_classes(card, found[0][1], name, names[0])
    holders: dict[str, int] = {}
    for n, (part, card) in enumerate(found):
        for each in card.sources or (source_of(card, part),):
            first = holders.setdefault(each.sha256, n)
            if first != n:
                said = f"{names[n]} holds what {names[first]} holds already"
                raise UserError(f"{said}: give each client's generator once.")
    obscurer = pooled([each for each, _ in found], names)
    return obscurer, carded([card for _, card in found], [each for each, _ in found])


def carded(cards: Sequence[Card], parts: Sequence[Obscurer]) -> Card:
    """Return the card of a pool: whose it is, what the parts have in common, and what was noticed of each.

    Where all are differentially private it is so with the largest ε and δ of them: a record is in the fit of one client
    alone (parallel composition: McSherry 2009, theorem 4). Where one is not, it is not.
    """
    sources = tuple(
        source for card, part in zip(cards, parts, strict=True) for source in card.sources or (source_of(card, part),)
    )
    common = {
        name: value
        for name, value in cards[0].settings.items()
        if all(name in card.settings and card.settings[name] == value for card in cards)
    }
    counts: Counter[int] = Counter()
    for card in cards:
        counts.update(dict(enumerate(card.records)))
    targets = {card.target for card in cards}
    return Card(
        classes=cards[0].classes,
        settings=common,
        records=tuple(counts[k] for k in range(len(cards[0].classes))),
        shape=cards[0].shape,
        target=cards[0].target if len(targets) == 1 else "",
        found=tuple(f"{n}: {told}" for n, card in enumerate(cards, 1) for told in card.found),
        sources=sources,
        epsilon=None if None in (bounds := [source.epsilon for source in sources]) else max(b for b in bounds if b),
        delta=max(source.delta for source in sources),
    )


def source_of(card: Card, part: Obscurer) -> Source:
    """Return what a pool keeps of one client: enough to tell whose pictures it holds, and what was measured of them."""
    auc = card.measured.get("auc")
    return Source(
        sha256=mark(part),
        pictures=len(part.pictures),
        records=sum(card.records),
        digest=card.digest,
        settings=card.settings,
        auc=float(auc) if isinstance(auc, int | float) else None,
        epsilon=card.epsilon,
        delta=card.delta,
        leakaudit=card.leakaudit,
    )


def differing(sources: Sequence[Source]) -> tuple[Mapping[str, Value], ...]:
    """Return, for each client of a pool, the settings that are not the same for all."""
    names = [n for n in sources[0].settings if len({repr(s.settings.get(n)) for s in sources}) > 1] if sources else []
    return tuple({name: source.settings[name] for name in names if name in source.settings} for source in sources)


def _same_classes(card: Card, first: Card, name: str, other: str) -> None:
    if card.classes != first.classes and len(card.classes) == len(first.classes):
        at = next(k for k, (a, b) in enumerate(zip(card.classes, first.classes, strict=True)) if a != b)
        said, wanted = short(card.classes[at]), short(first.classes[at])
        raise UserError(f"{name} calls class {at} {said}, and {other} {wanted}: give all clients the same classes.")
