"""No defense: the control every audit runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from leakaudit.protocol.defense import Defense
from leakaudit.protocol.registry import register_defense


@register_defense
@dataclass(frozen=True, kw_only=True)
class Undefended(Defense):
    """The identity: the update is shared as it is."""

    name: ClassVar[str] = "none"
    summary: ClassVar[str] = "share the update as it is (the control)"
    unproven: ClassVar[str] = "anything: the update is shared as it is"
