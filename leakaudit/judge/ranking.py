"""Which attack of a defense stands for it, and what a defense costs."""

from __future__ import annotations

from leakaudit.errors import Spell, as_option, said, worded
from leakaudit.judge.facts import facts_of
from leakaudit.judge.verdict import LEAKS
from leakaudit.judge.words import ended, notes_of
from leakaudit.result.numbers import learned, significant
from leakaudit.result.rules import most_successful
from leakaudit.result.schema import AttackResult, AuditResult, DefenseResult, Further
from leakaudit.result.tasks import spoken


def scored(attack: AttackResult) -> tuple[int, int]:
    """Return how many victims were scored, of how many."""
    known = facts_of(attack)
    return known.scored, known.victims


def statuses(attack: AttackResult) -> str:
    """Return `12 converged, 4 diverged`, the largest count first."""
    counted = sorted(((n, s) for s, n in attack.statuses.items() if n), key=lambda pair: (-pair[0], pair[1]))
    return ", ".join(f"{n} {s}" for n, s in counted) or "no victims"


def in_words(attack: AttackResult) -> str:
    """Return `12 converged, 4 out of time`, the largest count first."""
    return ended(statuses(attack))


def how_it_ended(attack: AttackResult) -> str:
    """Return why not every victim was scored and how the attack ran, as far as there is something to say."""
    notes = notes_of(attack)
    if not notes:
        return attack.reason or ""
    return "; ".join([*([attack.reason.rstrip(".")] if attack.reason else []), *notes])


def further(attack: AttackResult) -> tuple[str, ...]:
    """Return in words what metrics of plug-ins say of an attack, one clause each."""
    return tuple(map(_by_plugin, attack.further))


def _by_plugin(score: Further) -> str:
    e = score.estimate
    if e.value is None:
        return f"{score.name} not measured: {e.reason or 'no reason was recorded'}"
    unit = f" {score.unit}" if score.unit else ""
    spread = "" if e.low is None or e.high is None else f" ({significant(e.low)} to {significant(e.high)})"
    way = "higher" if score.higher_leaks else "lower"
    return f"{score.name} {significant(e.value)}{unit}{spread}, {way} leaks more"


def worst(defense: DefenseResult) -> AttackResult | None:
    """Return the most leaking attack a real adversary could run (no bound); by PSNR where none identifies."""
    return _most([a for a in defense.attacks if a.role != "bound"])


def decisive(defense: DefenseResult) -> AttackResult | None:
    """Return the attack to name beside a verdict: the worst one, or the bound where no other failed the defense."""
    leaks = [r for r in defense.why if r.id in LEAKS]
    if defense.verdict == "fail" and leaks and all(r.role == "bound" for r in leaks):
        return bound(defense)
    return worst(defense)


def fruitless(defense: DefenseResult) -> int:
    """Return how many attacks (no bound) identified nobody, where all did of equally many records; else 0.

    Then none of them is worse than another, and naming one would say nothing; but where the defense failed, one did
    something else.
    """
    if defense.verdict == "fail":
        return 0
    tried = [a.identification for a in defense.attacks if a.role != "bound" and a.identification.value is not None]
    return len(tried) if not any(e.value for e in tried) and len({e.n for e in tried}) == 1 else 0


def bound(defense: DefenseResult) -> AttackResult | None:
    """Return the most leaking attack that is handed more than any adversary sees."""
    return _most([a for a in defense.attacks if a.role == "bound"])


def drawn(defense: DefenseResult) -> AttackResult | None:
    """Return the attack (no bound) of highest median PSNR, which with its SSIM a summary shows.

    Identification is no criterion here: among weak attacks one lucky hit would decide whose pictures are reported.
    """
    pictured = [a for a in defense.attacks if a.role != "bound" and a.psnr.value is not None]
    return max(pictured, key=lambda a: a.psnr.value or 0.0, default=None)


def _most(attacks: list[AttackResult]) -> AttackResult | None:
    pictured = [a for a in attacks if a.psnr.value is not None]
    closest = max(pictured, key=lambda a: a.psnr.value or 0.0, default=None)
    return most_successful(attacks) or closest


def cost(result: AuditResult, defense: DefenseResult) -> float | None:
    """Return accuracy minus the undefended accuracy, as a share; None for the control and where one is missing.

    None as well where the undefended model learned nothing: there is nothing that a defense could have cost.
    """
    control = result.control()
    if control is None or defense is control or control.accuracy.value is None or defense.accuracy.value is None:
        return None
    return None if no_cost(result) else defense.accuracy.value - control.accuracy.value


def no_cost(result: AuditResult) -> str | None:
    """Return why no defense of this audit has a cost although accuracies were measured, None where they have."""
    control = result.control()
    others = [d for d in result.defenses if d is not control and d.accuracy.value is not None]
    if not others or not at_chance(result):
        return None
    told = "No cost in accuracy is given: without a defense the accuracy is not clearly above chance"
    chance = learned(result.chance_accuracy, result.measure)
    return f"{spoken(told, result.measure)} ({chance}), so there is nothing to lose."


def at_chance(result: AuditResult) -> bool:
    """Return whether the undefended model's accuracy was measured and is not clearly above chance."""
    control = result.control()
    if control is None or control.accuracy.value is None:
        return False
    least = control.accuracy.value if control.accuracy.low is None else control.accuracy.low
    return least <= result.chance_accuracy


def pointless(result: AuditResult, spell: Spell = as_option) -> str:
    """Return that accuracies say nothing and what would mend it, where the undefended model is at chance; else ""."""
    if not at_chance(result):
        return ""
    now = result.settings.get("epochs")
    than = f" than {now}" if isinstance(now, int) and not isinstance(now, bool) else ""
    words = (
        spoken("Accuracy says nothing here: undefended it is not clearly above chance ", result.measure)
        + f"({learned(result.chance_accuracy, result.measure)}); give more {{--epochs}}{than}, or more data."
    )
    return said(worded(words), spell)


def cost_note(result: AuditResult, defense: DefenseResult) -> str:
    """Return `1 seed` or `2 seeds` where a cost stands on too few runs for an interval, else nothing."""
    control = result.control()
    if control is None or cost(result, defense) is None:
        return ""
    fewest = min(len(control.accuracies), len(defense.accuracies))
    return {1: "1 seed", 2: "2 seeds"}.get(fewest, "")
