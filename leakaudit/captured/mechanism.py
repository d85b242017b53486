"""What a claimed defense would have done to an update: where it clips, and how much noise it adds there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from leakaudit.captured.form import Claims
from leakaudit.errors import UserError
from leakaudit.protocol.accounting import classical_std
from leakaudit.protocol.defense import Defense, parts_of
from leakaudit.protocol.federation import Client
from leakaudit.result.schema import Value

SERVERS = ("fixedclipping_mod", "adaptiveclipping_mod")  # clients clip, and the noise is added elsewhere
FILTERS = ("PercentilePrivacy", "ExcludeVars")  # of NVFlare: what they leave is left as it was


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """A claimed mechanism. Of "update" it clips and adds noise once to w₀ − w_E; of "step" inside every local step."""

    name: str
    place: Literal["update", "step"] = "update"
    clip: float | None = None  # of the update, or of one record's gradient
    noise: float | None = 0.0  # standard deviation of a number: of the update, or σ in units of the clip; None: unknown
    sensitivity: float | None = None  # from which the noise was computed
    epsilon: float | None = None  # as stated
    delta: float = 1e-5
    whole: bool = False  # whether it acts on buffers and frozen weights as well
    entry: float | None = None  # the largest entry of the update that it lets through, of one local step


def mechanism_of(claims: Claims, defense: Defense | None = None) -> Mechanism | None:
    """Return the mechanism of a file's claims: of the framework's own settings, else of `defense`; None for no claim.

    Of several settings the noise is the last one's and the clip the smallest. Raises UserError for settings that no
    mechanism has.
    """
    found = [_of_settings(values) for values in claims.settings]
    if not found and defense is not None:
        found = [each for part in parts_of(defense) if (each := _of_part(part)) is not None]
    known = [each for each in found if each is not None]
    if not known:
        return None
    noisy = next((each for each in reversed(known) if each.noise != 0), known[-1])
    clips = [each.clip for each in known if each.clip is not None and each.place == noisy.place]
    names = "+".join(each.name for each in known)
    rest = {"whole": noisy.whole, "place": noisy.place, "sensitivity": noisy.sensitivity, "delta": noisy.delta}
    entry = next((each.entry for each in known if each.entry is not None and noisy.noise == 0), None)
    stated = next((each.epsilon for each in reversed(known) if each.epsilon is not None), None)
    return Mechanism(name=names, clip=min(clips, default=None), noise=noisy.noise, epsilon=stated, entry=entry, **rest)  # type: ignore[arg-type]


def _of_settings(values: Mapping[str, Value]) -> Mechanism:
    name = str(values.get("name", "a defense"))
    number = {key: _number(name, key, value) for key, value in values.items() if key in NUMBERS and value is not None}
    stated = {"epsilon": number.get("epsilon"), "delta": number.get("delta", 1e-5), "whole": True}
    if name == "LocalDpMod":
        missing = [key for key in ("clipping_norm", "sensitivity", "epsilon", "delta") if key not in number]
        if missing:
            raise UserError(f"the settings of LocalDpMod lack {', '.join(missing)}: capture them with defenses=[…].")
        sensitivity = number["sensitivity"]
        std = classical_std(sensitivity, number["epsilon"], number["delta"])
        return Mechanism(name=name, clip=number["clipping_norm"], noise=std, sensitivity=sensitivity, **stated)  # type: ignore[arg-type]
    if "noise_multiplier" in number:  # Opacus and what calls its settings alike
        clip = number.get("max_grad_norm", number.get("max_norm", number.get("clipping_norm")))
        stated["whole"] = False
        return Mechanism(name=name, place="step", clip=clip, noise=number["noise_multiplier"], **stated)  # type: ignore[arg-type]
    clip = number.get("clipping_norm", number.get("max_norm", number.get("max_grad_norm")))
    if name in FILTERS:
        return Mechanism(name=name, entry=number.get("gamma"), **stated)  # type: ignore[arg-type]
    if name in SERVERS:
        return Mechanism(name=name, clip=clip, noise=None, **stated)  # type: ignore[arg-type]
    return Mechanism(name=name, clip=clip, noise=number.get("std", number.get("noise_std")), **stated)  # type: ignore[arg-type]


NUMBERS = {
    *("clipping_norm", "sensitivity", "epsilon", "delta", "noise_multiplier", "max_grad_norm", "max_norm"),
    *("std", "noise_std", "gamma"),
}


def _number(name: str, key: str, value: Value) -> float:
    if isinstance(value, str | bool) or value is None or not 0 <= value < float("inf"):
        raise UserError(f"the settings of {name} say {key} is {value!r}: it must be a number of at least 0.")
    if key == "delta" and not 0 < value < 1:
        raise UserError(f"the settings of {name} say delta is {value!r}: it must lie between 0 and 1.")
    return float(value)


def _of_part(part: Defense) -> Mechanism | None:
    """Return the mechanism of one of our own defenses, by the settings that say it."""
    if part.needs_example_gradients and hasattr(part, "noise_multiplier"):
        clip, noise = float(part.max_norm), float(part.noise_multiplier)  # type: ignore[attr-defined]
        delta = float(getattr(part, "delta", 1e-5))
        return Mechanism(name=part.name, place="step", clip=clip, noise=noise, delta=delta)
    if part.name == "gaussian":
        return Mechanism(name=part.name, noise=float(part.std))  # type: ignore[attr-defined]
    if part.name == "clip":
        return Mechanism(name=part.name, clip=float(part.max_norm))  # type: ignore[attr-defined]
    return None


def defense_spec(settings: Sequence[Mapping[str, Value]]) -> str | None:
    """Return what a framework's own settings are as a spec of leakaudit, by which an attack may simulate them.

    None where leakaudit has no such defense.
    """
    try:
        found = [_of_settings(values) for values in settings]
    except UserError:
        return None
    if not found or any(each.noise is None or (each.place == "step" and each.clip is None) for each in found):
        return None
    parts: list[str] = []
    for each in found:
        if each.place == "step":
            parts.append(f"dp-sgd:noise_multiplier={each.noise!r}:max_norm={each.clip!r}:delta={each.delta!r}")
            continue
        if each.entry is not None or (each.clip is None and not each.noise):
            return None
        parts += [f"clip:max_norm={each.clip!r}"] if each.clip else []
        parts += [f"gaussian:std={each.noise!r}"] if each.noise else []
    return ",".join(parts)


def step_weights(client: Client, records: int) -> list[tuple[float, int]]:
    """Return for every local step how far its gradient moves the weights in the end, and of how many records it is.

    Of SGD: lr Σ_{j≥k} momentum^{j−k}; (1, records) for FedSGD.
    """
    if not client.local:
        return [(1.0, records)]
    size, steps = client.step_size(records), client.steps(records)
    one = [size] * (records // size) + ([records % size] if records % size else [])
    sizes = (one * client.passes(records))[:steps]
    reach, total = [], 0.0
    for _ in range(steps):
        total = 1.0 + client.momentum * total
        reach.append(client.local_lr * total)
    return list(zip(reversed(reach), sizes, strict=True))
