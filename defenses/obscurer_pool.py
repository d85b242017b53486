"""Obscurers of several clients as one: what each drew is put together, so that all draw from all of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from leakaudit.defenses.obscurer import Obscurer, read
from leakaudit.defenses.obscurer_file import Card, Contents, Source, Value, fingerprint
from leakaudit.errors import UserError
from leakaudit.files.reading import short

MOST_PICTURES = 200_000
MOST_VALUES = 2**30  # numbers of the pictures, each of four bytes in memory
ALONE = "give the generators of at least two clients"


def pooled(parts: Sequence[Obscurer], names: Sequence[str] = ()) -> Obscurer:
    """Return one obscurer of the pictures of all, or of the mean of what all say of the same pictures.

    Pictures are put one after another, each with its own probabilities, made to add up to 1: drawn uniformly, a
    client's pictures come up as often as it has records. Where all hold the very same pictures, each with an opinion of
    its own of them, the probabilities are their mean. `names` are for messages. Raises UserError, one sentence, on
    fewer than two, one given twice, other sizes or numbers of classes, another use of mirror images, or a rate above 0.
    """
    names = list(names) or [f"obscurer {n}" for n in range(1, len(parts) + 1)]
    if len(parts) < 2:
        raise UserError(f"a pool was asked for of {len(parts)}: {ALONE}.")
    first = parts[0]
    for part, name in zip(parts, names, strict=True):
        _check(part, first, name, names[0])
    seen: dict[str, str] = {}
    for part, name in zip(parts, names, strict=True):
        same = seen.setdefault(mark(part), name)
        if same is not name:
            raise UserError(f"{name} holds the same as {same}: give each client's generator once.")
    if all(torch.equal(part.pictures, first.pictures) for part in parts[1:]):
        labels = torch.stack([part.labels for part in parts]).mean(0)
        return replace(first, labels=labels / labels.sum(1, keepdim=True))
    count = sum(len(part.pictures) for part in parts)
    if count > MOST_PICTURES or count * first.pictures[0].numel() > MOST_VALUES:
        most = min(MOST_PICTURES, MOST_VALUES // first.pictures[0].numel())
        raise UserError(
            f"the pool would hold {count:,} pictures, and holds {most:,} of this size at most: fit each client with "
            "fewer, by --settings pictures=1 or --limit."
        )
    labels = torch.cat([part.labels for part in parts])
    return replace(first, pictures=torch.cat([p.pictures for p in parts]), labels=labels / labels.sum(1, keepdim=True))


def pool(files: Sequence[Path]) -> tuple[Obscurer, Card]:
    """Return the obscurer pooled from files, and its card, which says from whom. Raises UserError as `pooled` does."""
    found = [read(file) for file in files]
    names = [str(file) for file in files]
    for (_, card), name in zip(found, names, strict=True):
        _same_classes(card, found[0][1], name, names[0])
    holders: dict[str, str] = {}
    for (part, card), name in zip(found, names, strict=True):
        for each in card.sources or (source_of(card, part),):
            holder = holders.setdefault(each.sha256, name)
            if holder is not name:
                raise UserError(f"{name} holds what {holder} holds already: give each client's generator once.")
    obscurer = pooled([each for each, _ in found], names)
    return obscurer, carded([card for _, card in found], [each for each, _ in found])


def carded(cards: Sequence[Card], parts: Sequence[Obscurer]) -> Card:
    """Return the card of a pool: whose it is, what the parts have in common, and what was noticed of each."""
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
        leakaudit=card.leakaudit,
    )


def mark(part: Obscurer) -> str:
    """Return the SHA-256 of an obscurer's pictures and probabilities, the one that its file holds."""
    return fingerprint(Contents(part.pictures, part.labels, part.slope, part.mirror))


def differing(sources: Sequence[Source]) -> tuple[Mapping[str, Value], ...]:
    """Return, for each client of a pool, the settings that are not the same for all."""
    names = [n for n in sources[0].settings if len({repr(s.settings.get(n)) for s in sources}) > 1] if sources else []
    return tuple({name: source.settings[name] for name in names if name in source.settings} for source in sources)


def _check(part: Obscurer, first: Obscurer, name: str, other: str) -> None:
    if part.slope:
        raise UserError(
            f"{name} was fitted with a rate above 0, which bounds what a choice among its own client's pictures tells: "
            "fit it at rate=0 before it is pooled."
        )
    if part.pictures.shape[1:] != first.pictures.shape[1:]:
        said, wanted = ("×".join(map(str, each.pictures.shape[1:])) for each in (part, first))
        raise UserError(f"{name} has pictures of {said}, and {other} of {wanted}: fit all clients on one size.")
    if part.labels.shape[1] != first.labels.shape[1]:
        knows, known = part.labels.shape[1], first.labels.shape[1]
        raise UserError(f"{name} knows {knows} classes, and {other} {known}: fit all clients on the same classes.")
    if part.mirror != first.mirror:
        raise UserError(f"{name} and {other} differ in whether pictures may be mirrored: fit all with one `mirror`.")


def _same_classes(card: Card, first: Card, name: str, other: str) -> None:
    if card.classes != first.classes and len(card.classes) == len(first.classes):
        at = next(k for k, (a, b) in enumerate(zip(card.classes, first.classes, strict=True)) if a != b)
        said, wanted = short(card.classes[at]), short(first.classes[at])
        raise UserError(f"{name} calls class {at} {said}, and {other} {wanted}: give all clients the same classes.")
