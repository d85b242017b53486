"""Results with many points on the frontier: spread out or all at one place, with short or long names."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from leakaudit.result.schema import AuditResult, DefenseResult, Estimate


def crowd(golden: AuditResult, count: int, long: bool = False, together: bool = False) -> AuditResult:
    """Return the golden result with so many defenses, every fourth with a bound, and a limit of lost accuracy."""
    random, attack = Random(count), replace(golden.defenses[1].attacks[0], gallery=())

    def share(value: float) -> Estimate:
        return Estimate(value, max(0.0, value - 0.08), min(1.0, value + 0.1), 64)

    def defense(i: int) -> DefenseResult:
        leak, accuracy = (0.3, 0.7) if together else (random.random() ** 3, 0.15 + 0.8 * random.random())
        handed = [replace(attack, role="bound", identification=share(min(1.0, leak + 0.2)))] if i % 4 == 3 else []
        wide = "WWWW@%MMMM=NOGD," if long else ""
        spec = "none" if i == 0 else f"{wide}gaussian:std=0.{i:02d}" + (",clip:max_norm=1.5" if long else "")
        return replace(
            golden.defenses[1],
            spec=spec,
            attacks=(replace(attack, identification=share(leak)), *handed),
            accuracy=Estimate(accuracy, accuracy - 0.02, accuracy + 0.02, 3),
        )

    settings = golden.settings | {"max_accuracy_loss": 0.1}
    return replace(golden, defenses=tuple(defense(i) for i in range(count)), settings=settings)
