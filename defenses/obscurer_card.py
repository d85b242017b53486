"""The model card of an obscurer: what a stranger must know before using or sharing the file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jinja2

from leakaudit.defenses._private import ASSUMES
from leakaudit.defenses.obscurer import Obscurer, identification_bound
from leakaudit.defenses.obscurer_file import Card, idle_settings
from leakaudit.defenses.obscurer_pool import differing
from leakaudit.result.numbers import number, percent, plain, seconds, significant
from leakaudit.result.shapes import in_words, written

CANDIDATES = 100
TITLE = ": an obscuring generator"


@dataclass(frozen=True)
class Costs:
    """What differs from run to run and so is not in the file: seconds of the fit, and of one batch."""

    fit: float
    processor: float  # CPU time of the fit, over all threads
    batch: int | None = None
    drawing: float | None = None
    training: float | None = None


class Code(str):
    """Text of a code block, where Markdown escapes nothing."""

    __slots__ = ()


def escaped(text: object) -> str:
    """Return a user's text as one line that Markdown shows as it is."""
    if isinstance(text, Code):
        return text
    line = " ".join(str(text).split())
    return re.sub(r"([\\`*_{}\[\]#|<>~&$])", r"\\\1", line)


def render(obscurer: Obscurer, card: Card, file: str, costs: Costs | None = None, resumed: int = 0) -> str:
    """Return the card of the obscurer in `file` as Markdown; `resumed` stages of its fit were done before.

    Every value that the template shows is escaped.
    """
    private = card.epsilon is not None
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("leakaudit.defenses", ""),
        finalize=escaped,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("card.md.j2").render(
        file=file,
        title=TITLE,
        idle=idle_settings(card.settings),
        card=card,
        classes=list(zip(card.classes, card.records, strict=False)),
        spent=[(s.what, number(s.sensitivity, 3), number(s.std, 3)) for s in card.spent],
        pictures=f"{len(obscurer.pictures):,}",
        size=written(obscurer.sizes),
        kind="volumes" if obscurer.depth > 1 else "pictures",
        width=obscurer.labels.shape[1],
        public=card.settings.get("public") is True,
        loaded=Code(json.dumps(file).replace("`", "\\u0060")),  # a string of Python too, and no end of the block
        slope=obscurer.slope,
        candidates=CANDIDATES,
        bound=identification_bound(card.nats, CANDIDATES),
        costs=None if private else costs,
        private=private,
        untold=sum(source.epsilon is not None for source in card.sources),
        assumes=ASSUMES,
        resumed=resumed,
        batch=None if costs is None else per_batch(costs),
        own=[":".join(f"{k}={plain(v)}" for k, v in settings.items()) for settings in differing(card.sources)],
        count="{:,}".format,
        number=number,
        plain=plain,
        seconds=seconds,
        within=within,
    )


def per_batch(costs: Costs) -> str | None:
    """Return the overhead of a batch in words, None where it was not measured."""
    if costs.batch is None or costs.drawing is None or not costs.training:
        return None
    share = costs.drawing / costs.training
    return (
        f"a batch of {costs.batch}: {number(1000 * costs.drawing, 2)} ms, {percent(share)} of a training step of the "
        f"model ({number(1000 * costs.training, 2)} ms)"
    )


def within(found: Mapping[str, Any], name: str) -> str:
    """Return a measured share with its interval to three decimals: `0.512 (0.460 to 0.564)`."""
    value, low, high = (number(found[f"{name}{end}"], 3) for end in ("", "_low", "_high"))
    return f"{value} ({low} to {high})"


def summary(obscurer: Obscurer, card: Card, spent: Costs) -> str:
    """Return what a fit gave, in lines for a terminal."""
    bound = identification_bound(card.nats, CANDIDATES)
    if card.epsilon is not None:
        return _private_summary(obscurer, card, spent)
    m = card.measured
    caught = m.get("caught") is not None
    return "\n".join(
        [
            f"fitted    {len(obscurer.pictures):,} {in_words(obscurer.sizes)} over {len(card.classes)} classes, on "
            f"{sum(card.records):,} private records",
            f"proven    one release carries {significant(card.nats)} nats about its record: picked out of {CANDIDATES} "
            f"with probability {significant(bound)} at most (chance {1 / CANDIDATES:g})",
            f"measured  private told from test records by the nearest picture: AUC {within(m, 'auc')}, chance 0.500",
            *([f"          caught at 1 false alarm in 100: {within(m, 'caught')}, chance 0.010"] if caught else []),
            *(f"learned   {name}: {plain(value)}" for name, value in card.learned.items()),
            f"cost      fit {seconds(spent.fit)}, {seconds(spent.processor)} of CPU time; "
            f"{per_batch(spent) or 'a batch: not measured'}",
            *(sentence for sentence in card.found if not sentence.startswith("info: ")),
        ]
    )


def _private_summary(obscurer: Obscurer, card: Card, spent: Costs) -> str:
    return "\n".join(
        [
            f"fitted    {len(obscurer.pictures):,} {in_words(obscurer.sizes)} over {len(card.classes)} classes",
            f"proven    the whole file and its card are (ε, δ)-differentially private towards every record: "
            f"ε = {significant(card.epsilon or 0.0)}, δ = {card.delta:g}",
            f"cost      fit {seconds(spent.fit)}, {seconds(spent.processor)} of CPU time; "
            f"{per_batch(spent) or 'a batch: not measured'}",
        ]
    )
