"""Captured updates beside the model that they are of: every tensor under the name that the model has for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from leakaudit.captured.form import CapturedUpdate, Sends
from leakaudit.errors import UserError
from leakaudit.files.reading import short
from leakaudit.load.checkpoints import unprefixed

FITTING = "give the model that the client trained"
COUNTED = "num_batches_tracked"  # a whole number of BatchNorm that frameworks leave out or send as a float


@dataclass(frozen=True)
class Fitted:
    """Captured updates under a model's own names; `before` holds every entry of its state dict."""

    before: Mapping[str, Tensor]
    updates: tuple[Mapping[str, Tensor], ...]
    sends: Sends
    told: bool  # whether `before` was captured too, or is what the model holds

    def lost(self, update: int, names: Sequence[str]) -> tuple[Tensor, ...]:
        """Return what parameters lost in an update, w₀ − w_E, or the gradient itself, in float64."""
        state = self.updates[update]
        if self.sends == "after":
            return tuple(self.before[name].double() - state[name].double() for name in names)
        sign = -1.0 if self.sends == "difference" else 1.0
        return tuple(sign * state[name].double() for name in names)

    def after(self, update: int, name: str) -> Tensor | None:
        """Return what a buffer was after an update, in float64; None where that was not sent."""
        value = self.updates[update].get(name)
        if value is None or self.sends == "gradient":
            return None
        return value.double() + (self.before[name].double() if self.sends == "difference" else 0.0)


def fitted(captured: CapturedUpdate, network: nn.Module, source: str) -> Fitted:
    """Return captured updates under the names of `network`; UserError where they are not of such a model.

    What wrappers put before all names is dropped (`module.` of DistributedDataParallel, `_module.` of Opacus and the
    like). Tensors without names, which are called by their place, are taken in the order of the model's state dict, or
    of its parameters alone. Every parameter that is trained must be in an update; frozen ones and buffers may be left
    out.
    """
    own = network.state_dict()
    shared = [name for name, p in network.named_parameters() if p.requires_grad]
    updates = [_named(state, own, [name for name, _ in network.named_parameters()]) for state in captured.updates]
    before = _named(captured.before, own, [name for name, _ in network.named_parameters()])
    for state, what in ((before, "before"), *((state, "the update") for state in updates[:1])):
        if not state and what == "before":
            continue
        _check(state, own, shared, f"{what} of {source}" if what == "before" else f"{what} in {source}")
    whole = {name: value.detach().cpu() for name, value in own.items()}
    return Fitted(whole | before, tuple(updates), captured.sends, bool(before))


def _named(state: Mapping[str, Tensor], own: Mapping[str, Tensor], parameters: Sequence[str]) -> dict[str, Tensor]:
    if state and all(name.isdecimal() for name in state) and not set(state) & set(own):
        names = parameters if len(state) == len(parameters) else list(own)
        places = sorted(state, key=int)
        if len(names) == len(places):
            return {name: state[place] for name, place in zip(names, places, strict=True)}
    return unprefixed(dict(state), set(own))


def _check(state: Mapping[str, Tensor], own: Mapping[str, Tensor], shared: Sequence[str], source: str) -> None:
    odd = [name for name in state if name not in own]
    missing = [name for name in shared if name not in state]
    shaped = [n for n, t in state.items() if n in own and t.shape != own[n].shape and not n.endswith(COUNTED)]
    typed = [n for n, t in state.items() if n in own and own[n].is_floating_point() and not t.is_floating_point()]
    wrong = [f"misses {short(missing[0])}{_more(missing)}"] if missing else []
    wrong += [f"has {short(odd[0])}{_more(odd)}, which the model has not"] if odd else []
    if shaped:
        told = f"{short(shaped[0])} of shape {tuple(state[shaped[0]].shape)}, not {tuple(own[shaped[0]].shape)}"
        wrong.append(f"has {told}{_more(shaped)}")
    wrong += [f"has {short(typed[0])} as whole numbers{_more(typed)}"] if typed else []
    if wrong:
        raise UserError(f"{source} does not fit the model: it {', '.join(wrong)}; {FITTING}.")


def _more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def norm(tensors: Sequence[Tensor]) -> float:
    """Return the Euclidean norm of all numbers together."""
    return float(torch.stack([t.double().square().sum() for t in tensors]).sum().sqrt())
