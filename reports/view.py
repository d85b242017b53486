"""What every report says about a result, in words and rounded numbers: the part that HTML and terminal share."""

from __future__ import annotations

from collections.abc import Mapping
from string import ascii_uppercase

from leakaudit.result import AttackResult, AuditResult, DefenseResult, Estimate, Value, Verdict
from leakaudit.rules import most_successful, scored_victims

MINUS, DASH = "\u2212", "—"


def percent(value: float) -> str:
    """Return a share in [0, 1] as a percentage with at most one decimal; more only below 0.1 %."""
    share = 100 * value
    text = f"{share:.1g}" if 0 < abs(share) < 0.1 else f"{share:.1f}".removesuffix(".0")
    return f"{text}%".replace("-", MINUS)


def number(value: float, digits: int) -> str:
    """Return a number with a fixed count of decimals and a real minus sign; never a negative zero."""
    text = f"{value:.{digits}f}"
    return (text[1:] if float(text) == 0 and text.startswith("-") else text).replace("-", MINUS)


def interval(estimate: Estimate, digits: int | None = None) -> str:
    """Return `low–high`, in percent without its sign unless `digits` are given; empty where there is no interval."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return ""
    if digits is None:
        return f"{percent(estimate.low)[:-1]}–{percent(estimate.high)[:-1]}"
    return f"{number(estimate.low, digits)} to {number(estimate.high, digits)}"


def margin(estimate: Estimate) -> str:
    """Return the larger half of the interval in percentage points, as `±1.3`; empty where there is none."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return ""
    return f"±{100 * max(estimate.value - estimate.low, estimate.high - estimate.value):.1f}"


def scored(attack: AttackResult) -> tuple[int, int]:
    """Return how many victims were scored, of how many."""
    return scored_victims(attack), sum(attack.statuses.values())


def statuses(attack: AttackResult) -> str:
    """Return `12 converged, 4 diverged`, the largest count first."""
    counted = sorted(((n, s) for s, n in attack.statuses.items() if n), key=lambda pair: (-pair[0], pair[1]))
    return ", ".join(f"{n} {s}" for n, s in counted) or "no victims"


def remarks(attack: AttackResult) -> str:
    """Return why not every victim was scored and how the attack ran, as far as there is something to say."""
    if not attack.notes:
        return attack.reason or ""
    return "; ".join([*([attack.reason.rstrip(".")] if attack.reason else []), *attack.notes])


def worst(defense: DefenseResult) -> AttackResult | None:
    """Return the most leaking attack a real adversary could run (no bound); by PSNR where none identifies."""
    return _most([a for a in defense.attacks if a.role != "bound"])


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
    if control is None or control.accuracy.value is None or not others:
        return None
    least = control.accuracy.value if control.accuracy.low is None else control.accuracy.low
    if least > result.chance_accuracy:
        return None
    return (
        "No cost in accuracy is given: without a defense the accuracy is not clearly above chance "
        f"({percent(result.chance_accuracy)}), so there is nothing to lose."
    )


def cost_note(result: AuditResult, defense: DefenseResult) -> str:
    """Return `1 seed` or `2 seeds` where a cost stands on too few runs for an interval, else nothing."""
    control = result.control()
    if control is None or cost(result, defense) is None:
        return ""
    fewest = min(len(control.accuracies), len(defense.accuracies))
    return {1: "1 seed", 2: "2 seeds"}.get(fewest, "")


def training(result: AuditResult) -> str:
    """Return how the models were trained whose accuracy is shown, as far as the settings say; else nothing."""
    if all(d.accuracy.value is None for d in result.defenses):
        return ""
    words = {
        "epochs": "{} epoch",
        "training_batch_size": "batches of {} record",
        "seeds": "{} seed",
    }
    parts = []
    for name, form in words.items():
        value = result.settings.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            parts.append(form.format(value) + ("" if value == 1 else "s"))
    return f"Accuracy: of a model trained on the shared updates ({', '.join(parts)})." if parts else ""


def points(share: float) -> str:
    """Return a difference of shares in percentage points, signed: `−3.2`."""
    text = number(100 * share, 1)
    return text if text.startswith(MINUS) or float(text) == 0 else f"+{text}"


def key(index: int) -> str:
    """Return the letter a defense carries in the figure and the tables: A … Z, then A1 …"""
    turn, letter = divmod(index, len(ascii_uppercase))
    return ascii_uppercase[letter] + (str(turn) if turn else "")


def plain(value: Value) -> str:
    """Return a setting or a fact as text."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def pairs(values: Mapping[str, Value]) -> str:
    """Return `a = 1, b = 2` by name, so that a result read back from its file prints the same."""
    return ", ".join(f"{k} = {plain(v)}" for k, v in sorted(values.items())) or DASH


def reasons(result: AuditResult) -> tuple[str, ...]:
    """Return the overall reasons that no defense gives itself as `spec: reason`."""
    told = {f"{d.spec}: {reason}" for d in result.defenses for reason in d.reasons}
    return tuple(reason for reason in result.reasons if reason not in told)


def heading(verdict: Verdict) -> str:
    """Return the verdict as a title says it."""
    return verdict.capitalize()


def meaning(result: AuditResult) -> str:
    """Return what the overall verdict means, for somebody who has read nothing else."""
    limit = percent(result.max_identification)
    return {
        "pass": f"Under the assumptions below, every tested attack stayed within the limit of {limit} of the private "
        "records identified, those built against a defense included. This says nothing about attacks that were not "
        "tested.",
        "fail": "At least one tested attack gets more out of what the clients share than this audit allows. "
        f"It allows {limit} of the private records identified, and no reconstruction far closer than a guess.",
        "inconclusive": "The measurements do not settle whether the private records are safe from the tested attacks: "
        f"at most {limit} of them may be identified. This is not a pass.",
    }[result.verdict]
