"""How far an audit has come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from leakaudit.audit.clock import Clock
from leakaudit.audit.pieces import Piece
from leakaudit.judge.settled import Tally
from leakaudit.protocol.defense import Defense
from leakaudit.result.schema import Controls, DefenseResult, Estimate, Finding, Stage
from leakaudit.scene.examine import Subject
from leakaudit.scene.scene import Scene
from leakaudit.scene.updates import Updates
from leakaudit.score.utility import Utility
from leakaudit.units import desk
from leakaudit.units.unit import Elsewhere, Unit

UNTRIED = Estimate(reason="it was not tried")  # what is known of a weakened defense before that is examined


@dataclass(frozen=True)
class Staged:
    """What audits of earlier moments of training found, by the defenses' specs, and the moment of this one, if any."""

    before: Mapping[str, tuple[Stage, ...]] = field(default_factory=dict)
    now: Stage | None = None


@dataclass(frozen=True)
class Subjected:
    """A defense that can be attacked, with what is to be done with it."""

    subject: Subject
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Measured:
    """What is measured of a defense beside the attacks on it."""

    outcome: Utility | None = None
    strength: float | None = None
    weakened: Estimate = UNTRIED


@dataclass
class Audited:
    """What came of a defense that is attacked, so far."""

    asked: Defense  # before its fit
    subject: Subject
    tally: Tally
    pieces: tuple[Piece, ...]  # in the order in which they are done
    waits: bool = False  # for what another participant is at
    measured: Measured = Measured()
    concluded: tuple[Finding, ...] = ()  # what was noticed only when all of it was there

    @property
    def spec(self) -> str:
        """The spec of the defense."""
        return self.subject.spec

    @property
    def asks(self) -> int:
        """How many updates an attack is asked about at most."""
        return max((piece.attack.asks for piece in self.pieces if piece.attack), default=0)


@dataclass
class Course:
    """How far an audit has come; by the defenses' specs, in their order."""

    scene: Scene
    clock: Clock
    controls: Controls
    made: str = ""  # when it began; what is only planted has no date
    staged: Staged = field(default_factory=Staged)
    rows: dict[str, DefenseResult] = field(default_factory=dict)
    noticed: dict[str, tuple[Finding, ...]] = field(default_factory=dict)
    learned: dict[str, str] = field(default_factory=dict)  # the hash of what a fitted defense learned
    prepared: dict[str, Subjected | DefenseResult] = field(default_factory=dict)  # fitted or not, and not yet attacked
    asked: tuple[str, ...] = ()  # the order of rows
    audited: dict[str, Audited] = field(default_factory=dict)  # those that are attacked, in this round
    halved: bool = False  # the control is not whole in this round: which attack draws best may be another one
    elsewhere: list[str] = field(default_factory=list)  # what other participants are at, in this round
    _updates: tuple[str, Updates] | None = None
    _computed: int = 0  # outcomes that this participant had computed before this round
    _spare: bool = False  # nothing was left to do in the last round but what may turn out to be in vain

    def updates_of(self, audited: Audited) -> Updates:
        """Return the updates of a defense; those of the last one are kept for another round."""
        spec, subject = audited.spec, audited.subject
        if self._updates is None or self._updates[0] != spec:
            self._updates = spec, Updates(self.scene, subject, audited.asks, asked=audited.asked)
        return self._updates[1]

    def left_to_others(self, spec: str, error: Elsewhere) -> None:
        """Note that a piece of the work on a defense is at another participant in this round."""
        self.elsewhere.append(str(error))
        self.halved = self.halved or spec == "none"

    def speculates(self, unit: Unit | None) -> bool:
        """Whether to run an attack that may be skipped, once what another participant is at is known.

        If it is known already, or there was nothing else to do: then one such attack, and a look around. Whoever puts
        the outcomes together does not: everybody would wait for what may be in vain.
        """
        if desk.is_known(unit):
            return True
        spare, self._spare = self._spare and not desk.is_main(), self._spare and desk.is_main()
        if not spare:
            self.elsewhere.append("what may be skipped")
        return spare

    def another_round(self) -> None:
        """Go on to another round: at once where something was computed in this one, which may have changed much."""
        there = desk.current()
        computed = 0 if there is None else len(there.computed)
        idle, self._computed = computed == self._computed, computed
        if idle and self._spare:
            desk.wait_for_others()
        self._spare = idle and not self._spare
