"""The protocol of an attack: settings in a frozen dataclass, all victims in one call, no way to reach the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from leakaudit.protocol.amounts import Amount, Sizes
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.gradients import Mode
from leakaudit.protocol.target import LossFunction, PixelModel, Records
from leakaudit.protocol.task import CLASSES, Task
from leakaudit.work.progress import expired

Status = Literal["converged", "diverged", "not-applicable", "out-of-memory", "budget"]
Kind = Literal["reconstruction", "labels", "linkage"]
_COUNTED = {"steps": 0, "restarts": 1, "decoder_steps": 0}  # settings that say how much work there is; their defaults
Effort = Literal["steps", "restarts", "decoder_steps"]  # what a battery sets
FAMILIES: dict[str, str] = {  # the idea that an attack rests on; whoever escapes one may fall to another
    "labels": "classes read off the update of the last layer",
    "closed-form": "a layer's equations solved for its input, exact where they apply",
    "matching": "a picture sought whose update is the one that was sent",
    "generative": "the same in the latents of a generator, so that only its pictures are sought",
    "learned": "a map from updates to pictures, learned on the adversary's own records",
    "linkage": "candidates laid beside the update, by a score",
    "unmixing": "what was mixed taken apart by its statistics",
    "replay": "the whole defense run on every candidate, and the updates compared",
    "malicious-server": "a changed model, whose updates give their records away",
}


@dataclass(frozen=True)
class Reconstruction:
    """What an attack claims. Rows of victims whose status is not `converged` or `budget` are not scored.

    `images` (V, B, C, H, W) in [0, 1] or None for attacks that draw none; `labels` (V, B) or None; `objective` (V,) the
    attack's own, by which it picked its restart; `linkage` (V, M) candidate scores, larger is likelier, for
    linkage attacks; `statuses` one per victim; `reason` says why where a status is not `converged`; `notes` are for
    what a reader must know to weigh a score, one sentence each; `doubts` say by kebab id why a failure of this attack
    says less than it seems ("overfitted", with the details), which the verdict names. Tensors lie on any device.
    """

    images: Tensor | None
    labels: Tensor | None
    objective: Tensor
    statuses: tuple[Status, ...]
    reason: str | None = None
    linkage: Tensor | None = None
    notes: tuple[str, ...] = ()
    doubts: Mapping[str, str] = field(default_factory=dict)
    certified: Tensor | None = None  # (V, B) bool: pictures the attack proves to be in the update
    certain: Tensor | None = None  # (V,) bool, of linkage attacks: the first choice replays to the last digits
    progress: Tensor | None = None  # (V,) share of its steps, in [0, 1], at most: where its loops do not `track` it all


@dataclass(frozen=True)
class Needs:
    """What an attack must meet to do its work. The test over all attacks (`tests/attacks`) sets such a scene for it."""

    one_record: bool = False  # per update: with more it is NotApplicable
    several_records: bool = False  # per update: with one it is NotApplicable
    dense_input: bool = False  # a model whose first layer is dense
    tokens: bool = False  # a vision transformer: patches with learnt positions
    chain: bool = False  # a model that is one layer after another, with activations that can be undone
    batchnorm: bool = False  # a model with BatchNorm that keeps statistics
    replaced_records: bool = False  # a defense that shows the model other records than the private ones
    generator: bool = False  # of pictures, which the user gives in model.py
    local_steps: bool = False  # clients that take several local steps
    defense: str = ""  # the spec of a defense that it was built against, whose mark it reads off the update


@dataclass(frozen=True)
class Beforehand:
    """What a server knows before any client sends something: all that it may change the model by.

    `auxiliary` are its own records, on the model's device, None where it has none; no private record is here.
    """

    input_shape: tuple[int, int, int]  # channels, height, width
    classes: int
    batch_size: int  # records in one update
    loss: LossFunction
    mode: Mode
    auxiliary: Records | None = None
    task: Task = CLASSES


@dataclass(frozen=True, kw_only=True)
class Attack:
    """Base of every attack; subclasses are frozen dataclasses of settings.

    The class variables say what the audit must know of an attack without running it. Only `name` has no default.
    """

    name: ClassVar[str]  # kebab-case
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""  # the paper
    kind: ClassVar[Kind] = "reconstruction"
    family: ClassVar[str] = ""  # a name of `FAMILIES`; by default what `family_of` makes of the rest
    requires: ClassVar[frozenset[str]] = frozenset()  # Exposure facts
    grid: ClassVar[Mapping[str, tuple[float, ...]]] = {}  # settings tuned on auxiliary records, with their candidates
    covers: ClassVar[frozenset[str]] = frozenset()  # names of `result.surfaces.SURFACES` that are tested where it ran
    needs: ClassVar[Needs] = Needs()
    effort: ClassVar[tuple[Effort, ...]] = ()  # its settings that a battery sets, where its spec leaves them open
    examines: ClassVar[frozenset[str]] = frozenset()  # names of `stages.CHANGES` on which it always runs
    asks: ClassVar[int] = 0  # linkage: victims it is asked about at least, where line-ups hold as many private records
    closed_form: ClassVar[bool] = False  # it is solved at once, so no time budget can end it early

    def __call__(self, model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Reconstruction:
        """Attack every victim of `update`. Raises NotApplicable with the reason when it cannot be run here.

        All tensors of `update` lie on the model's device. `generator` is on the CPU, so that a seed gives the same
        numbers whatever the device: draw there, with `device=generator.device`, and move what was drawn.
        """
        raise NotImplementedError

    def plant(self, model: PixelModel, known: Beforehand, generator: torch.Generator) -> PixelModel:
        """Return the model that a malicious server sends to clients in place of `model`, a copy that may be changed.

        By default `model` itself. An attack that overrides this `requires` "model_control". Its clients' updates are
        then computed on what is returned, after the defense's own model stage, and so is `__call__` handed it: it must
        take the same pictures and give logits of the same classes. What a `grid` tunes must not matter here, as it is
        tuned afterwards. `generator` is on the CPU. Raises NotApplicable where nothing can be planted.
        """
        return model

    @classmethod
    def plants(cls) -> bool:
        """Return whether it changes the model that clients are sent."""
        return cls.plant is not Attack.plant

    def several(
        self, choices: Sequence[Attack], model: PixelModel, update: SharedUpdate, generator: torch.Generator
    ) -> list[Reconstruction]:
        """Return what each of `choices`, this attack at other settings, does, all from the same random numbers.

        One after another; an attack that can run them together overrides it. Fewer where the time was up.
        """
        seed, found = int(torch.randint(2**62, (1,), generator=generator)), []
        for choice in choices:
            if expired():
                break
            found.append(choice(model, update, torch.Generator().manual_seed(seed)))
        return found

    def amount(self, sizes: Sizes) -> Amount:
        """Return how much work it is, by which a time budget is shared out; an attack that knows better overrides it.

        By default what its `steps`, `restarts` and `decoder_steps` say, and an update of each victim.
        """
        steps, restarts, own = (int(getattr(self, name, least)) for name, least in _COUNTED.items())
        return Amount(updates=sizes.victims, slopes=steps * restarts * sizes.victims, own=own)

    def link(
        self, model: PixelModel, update: SharedUpdate, candidates: Tensor, generator: torch.Generator
    ) -> Reconstruction:
        """Linkage attacks only: score candidates (V, M, C, H, W), of which one per victim is a private record.

        They lie on the model's device, as everything in `update` does.
        Of updates of several records, each stands in `update` once for every record of it that is asked about.
        """
        raise NotImplementedError


def family_of(attack: type[Attack]) -> str:
    """Return the family of an attack: as it says, or else by its exposure and its kind."""
    if attack.family:
        return attack.family
    if "model_control" in attack.requires:
        return "malicious-server"
    if attack.kind != "reconstruction":
        return attack.kind
    return "closed-form" if attack.closed_form else "matching"
