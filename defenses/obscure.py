"""The obscuring generator: records are replaced by drawn ones that keep what predicts and hide the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from leakaudit.defenses._class_code import grid_of, records_on_grid
from leakaudit.defenses._joint_code import joint_code
from leakaudit.defenses._private import PRIVATE_WORK, private_facts, private_fit, private_guarantee
from leakaudit.defenses._private_release import Budget
from leakaudit.defenses._reference import Reference, opinions, passes, right, tempered, train_reference
from leakaudit.defenses._refinement import refined
from leakaudit.defenses.class_conditional import check_code
from leakaudit.defenses.obscurer import Obscurer, identification_bound, with_rate
from leakaudit.defenses.obscurer_file import Card, digest, idle_settings
from leakaudit.errors import UserError
from leakaudit.protocol.amounts import Amount, Sizes
from leakaudit.protocol.defense import Defense, state
from leakaudit.protocol.registry import register_defense, settings_values
from leakaudit.protocol.target import Records, Target
from leakaudit.protocol.task import CLASSES, Task
from leakaudit.result.schema import Guarantee

MEMORY: dict[str, str | float] = {
    "not bounded": "what the pictures and their probabilities tell of the records they were fitted on"
}
MOST = 6_000  # pictures drawn, however many records there are
MOST_PUBLIC = 20_000  # public pictures kept
WIDTHS = ((32, 64, 128), (48, 64, 64))  # of the references: what only one network sees is not a predictive feature


def some(values: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Return values (N,) as they are, or `most` of them at random: records may lie sorted by class."""
    if len(values) <= most:
        return values
    return values[torch.randperm(len(values), generator=generator, device=generator.device)[:most].to(values.device)]


def picking(bound: float, candidates: int, assumes: str) -> Guarantee:
    """Return the statement of a bound on how often one release picks its record out of so many candidates."""
    fact = ("identification among 100 private records by one release, at most",)
    statement = f"one release picks its record out of {candidates} in at most {100 * bound:.3g}% of cases"
    return Guarantee(statement, "proven", assumes, bound, candidates, states=fact if candidates == 100 else ())


@register_defense
@dataclass(frozen=True, kw_only=True)
class Obscure(Defense):
    """x̃ ~ q(x̃ | x) over pictures drawn from a generator of the client's own, with what its reference says of them.

    Formulated here from the paper's stated goals (synthetic samples totally distinct from the originals that keep their
    predictive features): arXiv 2206.00769 states those, not its architecture or loss weights. Once, on the client::

        r = references trained on the private records                  (`Reference`: what predicts)
        (s_j, t_j) ~ Gaussian scale mixture of class y_j               (`JointCode`: a sketch, and what r should see)
        b_j = argmin_b ‖h_r(b) − t_j‖² + gap_r(b) + CE(r(b), y_j) + … (`refined`: what r takes for a real picture)
        p_j ∝ (mean_r r(b_j))^(1/temperature)                          (what r says of it)

    and for every record x, whatever its label::

        (x̃, ỹ) = (b_j, p_j),   j ~ q(j | x) ∝ exp(slope · s_j(x))     (`Obscurer`)

    with the slope as large as lets E KL(q ‖ uniform) be at most `rate` nats over the private records. That bounds what
    x̃, and any update computed from it, says of x, given the pictures. At rate 0, the default, x̃ does not depend on its
    record at all, not even on its label, and training draws anew each epoch; a higher rate was not found to teach a
    model more. What the pictures themselves, and probabilities learned on the records, tell of the whole set they were
    fitted on is not bounded: it is measured. The references are thrown away after the fit.

    `pictures` drawn per private record (6,000 in all at most), `steps` of their refinement, `epochs` of the
    references, `latent` and `shared` of the sketch as in `class-conditional`; `temperature` of the probabilities (1: as
    the references have them, more: softer), into which onehot(y_j) is mixed with weight 1 − `opinion`; `mirror` counts
    mirror images as records: switch it off for digits or text; of masks none are counted. With `public` the pictures
    are the auxiliary records, taken as public data that the adversary owns too, with their labels in the place of y_j:
    nothing is drawn.

    Where labels are no classes, y_j is the label group of a record, and ỹ the mean under p_j of the targets that stand
    for the groups, which are auxiliary records'; of masks of classes it is the likeliest group's.

    With `epsilon` above 0 all that is kept, pictures, probabilities and card, is (epsilon, delta)-differentially
    private towards adding or removing any one private record: it is computed from sums with Gaussian noise alone
    (`private_fit`). What makes pictures and probabilities otherwise (`idle`) then has no part, and `rate` must be 0.
    Without (None), the memory of the pictures is not bounded.
    Raises ValueError on a setting out of range.
    """

    name: ClassVar[str] = "obscure"
    summary: ClassVar[str] = "replace records by drawn pictures that carry what a reference has learned"
    source: ClassVar[str] = "goals of Wan et al.: Learning to Obscure Data, 2022 (arXiv 2206.00769); formulated here"
    replaces_records: ClassVar[bool] = True
    adaptive: ClassVar[tuple[str, ...]] = (
        "two-stage-decoder",
        "learned-inversion",
        "through-generator",
        "released-decoder",
        "linkage",
        "released-linkage",
    )
    stronger: ClassVar[Mapping[str, int]] = {"rate": -1}
    quick: ClassVar[Mapping[str, str | int | float | bool]] = {"epochs": 30, "steps": 15, "pictures": 1}
    quick_costs: ClassVar[str] = "about three points of accuracy on 2,000 CIFAR-10 records (docs/obscure.md)"

    pictures: int = 2
    steps: int = 30
    epochs: int = 50
    temperature: float = 1.5
    opinion: float = 1.0
    rate: float = 0.0
    latent: int = 400
    shared: float = 0.2
    mirror: bool = True
    public: bool = False
    epsilon: float | None = None
    delta: float = 1e-5
    obscurer: Obscurer | None = state()
    nats: float | None = state()  # the mean rate measured on the private records
    card: Card | None = state(describes=True)
    task: Task = state(CLASSES, describes=True)
    secret: bool = state(default=False, describes=True)  # noise that no seed repeats: of a fit to be shared

    def __post_init__(self) -> None:
        check_code(self.latent, self.shared)
        for name in ("pictures", "steps", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if not 0 <= self.opinion <= 1:
            raise ValueError(f"opinion must lie between 0 and 1, not {self.opinion}.")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be above 0 and finite, not {self.temperature}.")
        if not self.rate >= 0:
            raise ValueError(f"rate must be at least 0, not {self.rate}.")
        if self.epsilon is not None and not 0 < self.epsilon < math.inf:
            raise ValueError(f"epsilon must be above 0 and finite, not {self.epsilon}: leave it out for no guarantee.")
        if not 0 < self.delta < 1:
            raise ValueError(f"delta must lie between 0 and 1, not {self.delta}.")
        if self.epsilon is not None and self.rate:
            raise ValueError("rate must be 0 with epsilon, which does not cover choices made by a record itself.")

    @property
    def idle(self) -> frozenset[str]:
        """Settings without a part: those of the usual fit with `epsilon`, of its pictures with `public`; `delta`."""
        return idle_settings(settings_values(self))

    @property
    def renewable(self) -> bool:
        """Whether a further draw says nothing more of a record: at rate 0."""
        return self.rate == 0

    @property
    def bank(self) -> Tensor | None:
        """The pictures that `fit` has drawn."""
        return None if self.obscurer is None else self.obscurer.pictures

    def amount(self, sizes: Sizes) -> Amount:
        """Return how much work `fit` is: the references pass over the records, and the pictures through them."""
        if self.epsilon is not None:
            return Amount(own=(PRIVATE_WORK + 2 * sizes.private) / 32)
        drawn = min(MOST, self.pictures * sizes.private)
        shown = len(WIDTHS) * passes(self.epochs, sizes.private)
        return Amount(own=(2 * shown + 2 * self.steps * drawn) / 32)

    def fit(self, target: Target, generator: torch.Generator) -> Defense:
        """Draw the pictures and ask the references; the copy returned holds neither a record nor a network.

        Raises UserError where `public` would release records of the user's own that were only held out.
        """
        if self.public and "auxiliary_data" in target.held_out:
            raise UserError(
                "public=true releases the pictures of auxiliary_data as they are, and none was given: give public "
                f"records as auxiliary_data in {target.name}, not a part of train_data."
            )
        if self.mirror and not target.task.mirrors:
            fitted = replace(self, mirror=False).fit(target, generator)
            assert isinstance(fitted, Obscure)
            return replace(fitted, mirror=True)
        classes, device = len(target.classes), target.device
        grid = grid_of(*target.input_shape[1:])
        private = records_on_grid(target.private.to(device), grid)
        if self.epsilon is not None:
            return self._fitted_privately(self.epsilon, target, private, generator)
        references = [
            train_reference(
                private,
                classes,
                widths,
                epochs=self.epochs,
                mirror=self.mirror,
                generator=generator,
                label=f"training reference {number} of {len(WIDTHS)}",
            )
            for number, widths in enumerate(WIDTHS, 1)
        ]
        if self.public:
            shown = self._public(target, generator)
        else:
            shown = self._drawn(private, classes, references, generator)
        pictures = (shown.images * 255).round() / 255  # as they are stored
        told = nn.functional.one_hot(shown.labels, classes).float()
        likely = tempered(opinions(references, pictures, mirror=self.mirror), self.temperature)
        labels = self.opinion * likely + (1 - self.opinion) * told
        obscurer, nats = with_rate(
            lambda slope: Obscurer(pictures, labels, slope, self.mirror, target.model.depth), private, self.rate
        )
        test = records_on_grid(target.test.to(device), grid)
        learned = {
            **{f"accuracy of reference {n} on the test records": right(r, test) for n, r in enumerate(references, 1)},
            "pictures whose likeliest class is the one they were drawn for": float(
                (labels.argmax(1) == shown.labels).float().mean()
            ),
        }
        card = Card(
            classes=target.classes,
            settings=settings_values(self),
            nats=nats,
            records=tuple(torch.bincount(private.labels, minlength=classes).tolist()),
            shape=target.sizes,
            digest=digest(target.private),
            target=target.name,
            learned=learned,
        )
        return replace(self, obscurer=obscurer, nats=nats, card=card, task=target.task)

    def _fitted_privately(
        self, epsilon: float, target: Target, private: Records, generator: torch.Generator
    ) -> Defense:
        """Return the copy whose obscurer and card hold nothing but what is computed from noisy sums."""
        shown = self._public(target, generator).images if self.public else None
        found = private_fit(
            private,
            len(target.classes),
            Budget(epsilon, self.delta, self.secret),
            shown=shown,
            mirror=self.mirror,
            generator=generator,
        )
        card = Card(
            classes=target.classes,
            settings=settings_values(self),
            shape=target.sizes,
            target=target.name,
            epsilon=epsilon,
            delta=self.delta,
            spent=found.spent,
        )
        obscurer = Obscurer(found.pictures, found.labels, mirror=self.mirror, depth=target.model.depth)
        return replace(self, obscurer=obscurer, nats=0.0, card=card, task=target.task)

    def _public(self, target: Target, generator: torch.Generator) -> Records:
        """Return the public records that are shown, on the grid."""
        public = records_on_grid(target.auxiliary.to(target.device), grid_of(*target.input_shape[1:]))
        return public[some(torch.arange(len(public), device=target.device), MOST_PUBLIC, generator)]

    def _drawn(
        self, private: Records, classes: int, references: list[Reference], generator: torch.Generator
    ) -> Records:
        code = joint_code(
            private,
            references,
            classes,
            latent=self.latent,
            mirror=self.mirror,
            shared=self.shared,
            generator=generator,
        )
        each = min(self.pictures, -(-MOST // max(1, len(private))))
        labels = some(private.labels.repeat(each), MOST, generator)
        made = refined(code, labels, references, steps=self.steps, generator=generator)
        return Records(made, labels)

    def transform_records(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Replace every record by one drawn picture and its probabilities. Raises RuntimeError before `fit`.

        Where labels are no classes, by the target that is expected of them (`Task.expected`).
        """
        if self.obscurer is None:
            raise RuntimeError("this defense has not been fitted: call fit(target, generator) first")
        pictures, chances = self.obscurer.draw(images, generator)
        return pictures, self.task.expected(chances)

    def likelihood(self, released: Tensor, candidates: Tensor) -> Tensor | None:
        """Return log q(x̃ | x) (N, M) up to what does not depend on x; None where it depends on no record."""
        if self.obscurer is None or self.obscurer.slope == 0:
            return None
        return self.obscurer.likelihood(released, candidates)

    def facts(self, records: int, batch_size: int, steps: int) -> dict[str, str | float]:
        """Return what is proven of a release, given the pictures, and what is not; nothing before `fit`."""
        if self.nats is None or self.obscurer is None:
            return {}
        return {
            "rate of one release, nats": self.nats,
            "identification among 100 private records by one release, at most": identification_bound(self.nats, 100),
            "local zero-concentrated DP of one release, ρ": self.obscurer.slope**2 / 2,
            "these assume": "the pictures as given, and one draw per record, kept, unless the rate is 0",
            **(MEMORY if self.epsilon is None else private_facts(self.epsilon, self.delta)),
        }

    def guarantees(self, records: int, batch_size: int, steps: int, candidates: int) -> tuple[Guarantee, ...]:
        """State the rate and what follows from it, given the pictures, and that their memory is not bounded."""
        if self.nats is None or self.obscurer is None:
            return super().guarantees(records, batch_size, steps, candidates)
        drawn = "" if self.renewable else "; one draw per record, which is kept"
        rho = self.obscurer.slope**2 / 2
        given = f"the pictures and their probabilities as given{drawn}"
        likely = "private records as candidates, equally likely to somebody who knows them"
        rate = (
            f"a release tells at most {self.nats:.3g} nats of its record, on average over the private records"
            if self.nats
            else "a release tells nothing of its record, not even its label (0 nats)"
        )
        what = "what the probabilities tell" if self.public else "what the pictures and their probabilities tell"
        return (
            Guarantee(rate, "proven", given, states=("rate of one release, nats", "these assume")),
            Guarantee(
                f"a release is zero-concentrated differentially private for its record: ρ = {rho:.3g}",
                "proven",
                given,
                states=("local zero-concentrated DP of one release, ρ",),
            ),
            picking(identification_bound(self.nats, candidates), candidates, f"{given}; {likely}"),
            Guarantee(f"{what} of the whole set of records they were fitted on", "not-bounded", states=("not bounded",))
            if self.epsilon is None
            else private_guarantee(self.epsilon, self.delta),
        )

    def picked(self, line_ups: Sequence[Tensor], releases: int = 1) -> Guarantee | None:
        """Return the bound for these very line-ups, above rate 0: of the nats that a release tells of their candidates.

        Of a record drawn from a line-up with equal chances a release tells at most the mean over the candidates of
        KL(q(j | x) ‖ uniform): they may be others than the private records, over which the rate is set.
        """
        if self.obscurer is None or self.obscurer.slope == 0 or not line_ups:
            return None
        bounds = [
            identification_bound(releases * float(self.obscurer.rates(each).mean()), len(each)) for each in line_ups
        ]
        candidates = sorted(map(len, line_ups))[(len(line_ups) - 1) // 2]
        given = "the pictures and their probabilities as given; one draw per record, which is kept"
        likely = "every candidate of the line-ups shown as likely to somebody who knows them"
        return picking(sum(bounds) / len(bounds), candidates, f"{given}; {likely}")

    def save(self, directory: Path) -> list[Path]:
        """Write the generator as `Obscurer.load` reads it; nothing before `fit`.

        Nothing either where labels are no classes: the file's form holds probabilities of classes, and no targets.
        """
        if self.obscurer is None or self.card is None or self.task.grouped:
            return []
        file = directory / f"{self.name}.safetensors"
        self.obscurer.save(file, self.card)
        return [file]
