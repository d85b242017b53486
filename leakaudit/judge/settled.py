"""When the verdict on a defense is settled, so that no further attack can change it; and which one still draws it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from leakaudit.judge.verdict import EXACTLY, LEAKS, SKIPPED
from leakaudit.result.rules import most_successful
from leakaudit.result.schema import AttackResult, DefenseResult, Finding, Reason


@dataclass
class Tally:
    """The attacks on one defense so far, in the `order` in which they are told, whichever order they run in."""

    order: Sequence[str]  # their names
    skips: bool  # whether what cannot change the verdict any more is skipped …
    kept: frozenset[str] = frozenset()  # … but for these: asked for by name, or drawing what leaks
    results: list[AttackResult] = field(default_factory=list)
    settled_by: str = ""  # the attack after which the verdict was settled, empty before

    def skipped(self, attack: str) -> bool:
        """Return whether an attack is to be skipped."""
        return bool(self.settled_by) and attack not in self.kept

    def add(self, result: AttackResult) -> None:
        """Take in what came of an attack, in its place: of one that was tried again, the last."""
        self.results = [*(row for row in self.results if row.name != result.name), result]
        self.results.sort(key=lambda row: self.order.index(row.name))

    def judged(self, attack: str, why: Iterable[Reason]) -> None:
        """Take in the reasons of the verdict after an attack."""
        if self.skips and not self.settled_by and settled(why):
            self.settled_by = attack


def settled(why: Iterable[Reason]) -> bool:
    """Return whether the reasons of a verdict are among those that stand whatever further attacks find.

    Each is of one attack: it identifies more than the limit, rebuilds pictures, or knows records exactly, and stays so.
    That the union of all exceeds the limit does not: with every further attack guessing as often finds more, too.
    """
    return any(reason.id in (*LEAKS, EXACTLY) for reason in why)


def skipped(defense: DefenseResult) -> tuple[Finding, ...]:
    """Return that attacks were skipped, all of them in one finding; nothing where none was."""
    some = [a for a in defense.attacks if a.settled_by]
    if not some:
        return ()
    told = f"{defense.spec}: skipped, since {some[0].reason}: {', '.join(a.name for a in some)}."
    return (Finding(SKIPPED, "info", told, {"defense": defense.spec, "attack": some[0].settled_by}),)


def drawer(control: Sequence[AttackResult]) -> str:
    """Return the name of the attack that drew best on the undefended model, empty where none drew.

    By identification, then by PSNR: its pictures show what leaks where a verdict is settled without any.
    """
    drew = [a for a in control if a.role != "bound" and a.psnr.value is not None]
    drew.sort(key=lambda a: a.psnr.value or 0.0, reverse=True)  # of equals the first listed is the most successful
    return (most_successful(drew) or drew[0]).name if drew else ""
