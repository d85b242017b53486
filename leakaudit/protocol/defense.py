"""The protocol of a defense: the identity, with the stages a defense may override, and their composition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from leakaudit.protocol.amounts import Amount, Sizes
from leakaudit.protocol.gradients import Gradients
from leakaudit.protocol.target import PixelModel, Target
from leakaudit.result.schema import Guarantee


def state(default: Any = None, *, describes: bool = False) -> Any:
    """Declare a dataclass field that `fit` fills in: not a setting, not shown, not compared.

    One that only `describes` what was learned has no part in the defense's hash.
    """
    return field(default=default, repr=False, compare=False, metadata={"state": True, "describes": describes})


@dataclass(frozen=True, kw_only=True)
class Defense:
    """The identity defense. Subclasses are frozen dataclasses of settings that override the stage they act on.

    Records may lie on another device than the model, and on either at different times: a client's own on the CPU, those
    on which an attacker replays the defense on the model's. A stage returns its tensors where those lie that it was
    given, and takes there what `fit` kept. Every generator is on the CPU: draw with `device=generator.device` and move.
    """

    name: ClassVar[str] = "none"
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""  # the paper
    replaces_records: ClassVar[bool] = False  # the model sees other records than the private ones
    adaptive: ClassVar[tuple[str, ...]] = ()  # attack specs built against it: added to those that the audit chooses
    stronger: ClassVar[Mapping[str, int]] = {}  # which way a setting makes it more private: 1 upwards, -1 downwards
    lowest: ClassVar[Mapping[str, float]] = {}  # where a setting of `stronger` ends below; 0 where it is not named
    quick: ClassVar[Mapping[str, str | int | float | bool]] = {}  # settings of a quick scan, where its spec gives none
    quick_costs: ClassVar[str] = ""  # what that is known to cost, a clause: every quick result says it
    unproven: ClassVar[str] = "what an update tells of its records"  # what `guarantees` says is not bounded

    @property
    def idle(self) -> frozenset[str]:
        """Names of settings that have no part in it, as others are set: nothing is made of them, and none is quick."""
        return frozenset()

    def fit(self, target: Target, generator: torch.Generator) -> Defense:
        """Return a copy ready for use (a generator trained, say) from the client's side of `target`."""
        return self

    def amount(self, sizes: Sizes) -> Amount:
        """Return how much work `fit` is, by which a time budget is shared out: none, where it is not overridden."""
        return Amount()

    def transform_records(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Record stage: images (N, C, H, W) in [0, 1] and labels (N,) in, the released ones out.

        Released labels are class indices (N,) or probabilities (N, classes).
        """
        return images, labels

    def transform_model(self, model: PixelModel, generator: torch.Generator) -> PixelModel:
        """Model stage: return the network that is trained, and so audited, in place of the target's own."""
        return model

    def observe(self, model: PixelModel, images: Tensor, labels: Tensor, generator: torch.Generator) -> Defense:
        """Return the defense for one batch, for those whose later stages depend on the records and the model.

        Called by a client on released images (B, C, H, W) and labels before the stages below, of which a defense that
        was not shown a batch must be the identity: an attacker who simulates it has no batch to show.
        """
        return self

    def touched(self, model: PixelModel, pictures: Tensor) -> frozenset[str]:
        """Return the names of the parameters of those layers whose gradients the defense spoils, while others pass.

        `pictures` (N, C, H, W) are any that the model can be run on. Adaptive attacks leave these parameters out.
        """
        return frozenset()

    def transform_example_gradients(self, gradients: Gradients, generator: torch.Generator) -> Gradients:
        """Per-example stage: each tensor is (B, *parameter.shape). Overriding it makes the client compute them."""
        return gradients

    def transform_update(self, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
        """Update stage: the mean gradient over the batch, each tensor (*parameter.shape).

        Of a client that trains before it sends: what its weights lost, once a round, unless the defense acts per
        example; then it acts in every local step, on that step's gradient.
        """
        return gradients

    def likelihood(self, released: Tensor, candidates: Tensor) -> Tensor | None:
        """Return log p(x̃ | x_j) (N, M) of released pictures (N, C, H, W) and candidates (M, C, H, W), if it is known.

        Up to what does not depend on the candidate. Attackers who know the defense use it.
        """
        return None

    @property
    def has_record_stage(self) -> bool:
        """Whether it may replace records: it says so, or has a record stage of its own."""
        return self.replaces_records or type(self).transform_records is not Defense.transform_records

    @property
    def needs_example_gradients(self) -> bool:
        """Whether the per-example stage is overridden, and so whether the client must compute those gradients."""
        return type(self).transform_example_gradients is not Defense.transform_example_gradients

    @property
    def renewable(self) -> bool:
        """Whether training draws the records anew each epoch: where a further draw says nothing more of a record.

        Also where that is how the defense is used; then `facts` must say that what leaks grows with the draws.
        """
        return False

    @property
    def bank(self) -> Tensor | None:
        """All pictures (J, C, H, W) in [0, 1] that may come in a record's place, where a fitted defense keeps them."""
        return None

    def facts(self, records: int, batch_size: int, steps: int) -> dict[str, str | float]:
        """Return what can be stated about a training run of `steps` updates (an ε, a rate in nats)."""
        return {}

    def guarantees(self, records: int, batch_size: int, steps: int, candidates: int) -> tuple[Guarantee, ...]:
        """Return what is proven, with what that assumes, and what is not bounded, of a run as in `facts`.

        `candidates` is the size of the line-ups in which the audit's attacks seek a record. What attacks measured is no
        guarantee and stands elsewhere in the result.
        """
        return (Guarantee(self.unproven, "not-bounded", states=("privacy proven",)),)

    def picked(self, line_ups: Sequence[Tensor], releases: int = 1) -> Guarantee | None:
        """Return what is proven of picking the record out of these very line-ups, pictures (M, C, H, W) each.

        On average over them, by so many `releases` of the record, where every candidate of a line-up is as likely. None
        where `guarantees` already speaks of any line-up, or nothing is proven of any.
        """
        return None

    def save(self, directory: Path) -> list[Path]:
        """Write what `fit` learned into `directory`; return the files written."""
        return []


@dataclass(frozen=True, kw_only=True)
class Chain(Defense):
    """Defenses applied left to right, stage by stage. `Chain(parts=())` is the identity."""

    parts: tuple[Defense, ...] = ()

    def fit(self, target: Target, generator: torch.Generator) -> Defense:
        """Fit every part on the undefended target."""
        return Chain(parts=tuple(part.fit(target, generator) for part in self.parts))

    def amount(self, sizes: Sizes) -> Amount:
        """Add up the parts' fits."""
        return sum((part.amount(sizes) for part in self.parts), start=Amount())

    def transform_records(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Apply every part's record stage."""
        for part in self.parts:
            images, labels = part.transform_records(images, labels, generator)
        return images, labels

    def transform_model(self, model: PixelModel, generator: torch.Generator) -> PixelModel:
        """Apply every part's model stage."""
        for part in self.parts:
            model = part.transform_model(model, generator)
        return model

    def observe(self, model: PixelModel, images: Tensor, labels: Tensor, generator: torch.Generator) -> Defense:
        """Show the batch to every part."""
        return Chain(parts=tuple(part.observe(model, images, labels, generator) for part in self.parts))

    def touched(self, model: PixelModel, pictures: Tensor) -> frozenset[str]:
        """Return what any part touches."""
        return frozenset().union(*(part.touched(model, pictures) for part in self.parts))

    def transform_example_gradients(self, gradients: Gradients, generator: torch.Generator) -> Gradients:
        """Apply every part's per-example stage."""
        for part in self.parts:
            gradients = part.transform_example_gradients(gradients, generator)
        return gradients

    def transform_update(self, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
        """Apply every part's update stage."""
        for part in self.parts:
            gradients = part.transform_update(gradients, batch_size, generator)
        return gradients

    @property
    def needs_example_gradients(self) -> bool:
        """Whether any part acts per example."""
        return any(part.needs_example_gradients for part in self.parts)

    @property
    def renewable(self) -> bool:
        """Whether a fresh draw of everything that replaces records is free."""
        replacing = [part for part in self.parts if part.replaces_records]
        return bool(replacing) and all(part.renewable for part in replacing)

    def facts(self, records: int, batch_size: int, steps: int) -> dict[str, str | float]:
        """Merge the parts' facts, without an ε that the other parts make untrue.

        An accountant knows its own clipping and noise. A part before it may change the sensitivity it assumes
        (pruning between clip and noise), and a generator was fitted on the private records without any privacy of
        its own, so that ε would speak of the replaced records only. What comes after is post-processing.
        """
        merged: dict[str, str | float] = {}
        for i, part in enumerate(self.parts):
            found = part.facts(records, batch_size, steps)
            if "epsilon" in found and (i > 0 or any(other.replaces_records for other in self.parts)):
                found = {"epsilon": "not stated: another part of the chain changes what its accountant assumes"}
            merged |= found
        return merged

    def guarantees(self, records: int, batch_size: int, steps: int, candidates: int) -> tuple[Guarantee, ...]:
        """Merge the parts' guarantees, without the proofs that other parts make untrue.

        The rule of `facts`: what comes after is post-processing, what comes before may change what a proof assumes.
        Records are replaced before anything else acts, so a proof of a part that replaces them needs only that no part
        before it does too, and no other proof holds where any part does.
        """
        found: dict[Guarantee, None] = {}
        for i, part in enumerate(self.parts):
            others = self.parts[:i] if part.replaces_records else (*self.parts[:i], *self.parts[i + 1 :])
            changed = any(other.replaces_records for other in others) or (i > 0 and not part.replaces_records)
            for each in part.guarantees(records, batch_size, steps, candidates):
                if changed and each.kind == "proven":
                    what = f"what {part.name} alone would prove: another part of the chain changes what that assumes"
                    each = Guarantee(what, "not-bounded")
                found[each] = None
        proven = any(each.kind == "proven" for each in found)
        # Where something is proven of the records, a later part without a proof of its own takes nothing away.
        bare = {part.unproven for part in self.parts} if proven else set()
        return tuple(each for each in found if each.statement not in bare)

    def picked(self, line_ups: Sequence[Tensor], releases: int = 1) -> Guarantee | None:
        """Return that of the part that replaces records, where there is one such part: what is after is no matter."""
        replacing = [part for part in self.parts if part.has_record_stage]
        return replacing[0].picked(line_ups, releases) if len(replacing) == 1 else None

    def save(self, directory: Path) -> list[Path]:
        """Save every part."""
        return [file for part in self.parts for file in part.save(directory)]


def chain(*parts: Defense) -> Defense:
    """Compose defenses; one part is itself and none is the identity."""
    return parts[0] if len(parts) == 1 else Chain(parts=parts)


def parts_of(defense: Defense) -> tuple[Defense, ...]:
    """Return the parts of a chain, or the defense alone."""
    return defense.parts if isinstance(defense, Chain) else (defense,)


def replaces_records(defense: Defense) -> bool:
    """Return whether any part may replace the private records: it says so, or has a record stage of its own.

    Whether it does is seen by comparing what that stage gives with what it was given (`protocol.stages`).
    """
    return any(part.has_record_stage for part in parts_of(defense))
