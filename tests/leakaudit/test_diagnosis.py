"""Failures of defenses that replace records: each is found where it is, and not where it is not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import leakaudit
from leakaudit.attacks._regression import overfitted
from leakaudit.attacks.decoder import fit_decoder
from leakaudit.judge import noticed
from leakaudit.protocol import registry
from leakaudit.protocol.client import release
from leakaudit.protocol.defense import Chain, Defense
from leakaudit.protocol.registry import defenses, parse_defense
from leakaudit.protocol.target import PixelModel, Records, Target
from leakaudit.result.schema import AttackResult, Estimate, Finding, Guarantee, RecordScore, from_json, to_json
from leakaudit.score import copies, diagnosis
from leakaudit.score.nearness import rank_auc
from leakaudit.score.scoring import failed
from leakaudit.score.utility import Senders, train, utility
from leakaudit.stats.intervals import mean, rate

SHAPE, CLASSES = (1, 8, 8), 3


def blobs(n: int, seed: int) -> Records:
    """Pictures of a class mean and noise: easy to learn, each one its own."""
    means = torch.rand(CLASSES, *SHAPE, generator=torch.Generator().manual_seed(5)) * 0.4 + 0.3
    labels = torch.arange(n) % CLASSES
    noise = 0.1 * torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed))
    return Records((means[labels] + noise).clamp(0, 1), labels)


@pytest.fixture(scope="module")
def target() -> Target:
    torch.manual_seed(0)
    model = PixelModel(nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES)))
    private, test, auxiliary = blobs(150, 1), blobs(120, 2), blobs(120, 3)
    made = Target("blobs", model, F.cross_entropy, private, test, auxiliary, classes=("a", "b", "c"))
    train(made.model, private, made.loss, epochs=8, seed=0)
    return made


def ids(findings: tuple[Finding, ...]) -> list[str]:
    return [finding.id for finding in findings]


@dataclass(frozen=True, kw_only=True)
class Drawn(Defense):
    """Noise, the same for every record or for every label; `of_record` adds that much of the record."""

    replaces_records: ClassVar[bool] = True
    of_label: bool = True
    of_record: float = 0.0
    soft: bool = False
    declared: bool = False

    @property
    def renewable(self) -> bool:
        return self.declared

    def transform_records(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        drawn = 0.4 * torch.rand(images.shape, generator=generator) + self.of_record * images
        drawn = drawn + 0.1 * labels.view(-1, 1, 1, 1) if self.of_label else drawn
        told = torch.rand(len(images), CLASSES, generator=generator).softmax(1) if self.soft else labels
        return drawn, told


@dataclass(frozen=True, kw_only=True)
class Stuffed(Defense):
    """The label as a bright row, over noise."""

    replaces_records: ClassVar[bool] = True

    def transform_records(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        drawn = 0.3 * torch.rand(images.shape, generator=generator)
        drawn[torch.arange(len(labels)), :, labels] = 1.0
        return drawn, labels


@dataclass(frozen=True, kw_only=True)
class Taught(Defense):
    """Other records' pictures, with the probabilities that a teacher gives them."""

    replaces_records: ClassVar[bool] = True
    pictures: Tensor
    teacher: Any

    def transform_records(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        shown = self.pictures[torch.randint(len(self.pictures), (len(images),), generator=generator)]
        with torch.no_grad():
            return shown, self.teacher(shown).softmax(1)


# label stuffing


def trained(target: Target, defense: Defense, generator: torch.Generator) -> Any:
    released = release(defense, target.private, generator)
    return utility(target, defense, released, senders=Senders(16), epochs=12, seeds=2, seed=0)


def test_labels_stuffed_into_pictures_are_found_and_honest_training_is_not(
    target: Target, generator: torch.Generator
) -> None:
    plain = trained(target, Defense(), generator)
    stuffed = trained(target, Stuffed(), generator)
    assert min(stuffed.released) > 0.95
    found = diagnosis.label_stuffing("s", stuffed.released, stuffed.estimate, plain.estimate, plain.chance)
    assert ids(found) == ["label-stuffing"]
    assert found[0].evidence["accuracy"] == stuffed.estimate.value
    assert not diagnosis.label_stuffing("s", plain.released, plain.estimate, plain.estimate, plain.chance)


def test_stuffing_needs_accuracy_on_the_released_and_a_loss_beyond_the_intervals() -> None:
    undefended, lost = mean([0.9, 0.9, 0.9]), Estimate(0.4, 0.35, 0.45, 3)
    assert diagnosis.label_stuffing("s", (1.0, 0.99, 1.0), lost, undefended, 0.1)
    assert not diagnosis.label_stuffing("s", (0.9, 0.9), lost, undefended, 0.1)  # it did not learn them either
    assert not diagnosis.label_stuffing("s", (1.0,), Estimate(0.4, 0.2, 0.6, 3), undefended, 0.1)
    assert not diagnosis.label_stuffing("s", (1.0,), lost, Estimate(0.1, n=1), 0.1)  # nothing to lose
    assert not diagnosis.label_stuffing("s", (), lost, undefended, 0.1)


# collapse


@pytest.mark.parametrize(
    ("defense", "severity", "says"),
    [
        (Drawn(), "warning", "beyond the label"),
        (Drawn(declared=True), "info", "by design"),
        (Drawn(of_label=False, soft=True, declared=True), "info", "not even on the label"),
        (Drawn(of_record=1e-4), "warning", "too little to see"),
        (Chain(parts=(Drawn(), parse_defense("clip"))), "warning", "beyond the label"),
    ],
)
def test_a_release_that_does_not_depend_on_its_record_is_found(
    defense: Defense, severity: str, says: str, target: Target, generator: torch.Generator
) -> None:
    found = diagnosis.collapsed("s", defense, target.private, CLASSES, generator)
    assert [(f.id, f.severity) for f in found] == [("collapsed-to-class-conditional", severity)]
    assert says in found[0].message
    assert ("probabilities" in found[0].message) == getattr(defense, "soft", False)


@pytest.mark.parametrize("defense", [Drawn(of_record=0.05), parse_defense("mixup"), Drawn(of_record=1.0, soft=True)])
def test_a_release_that_depends_on_its_record_is_no_collapse(
    defense: Defense, target: Target, generator: torch.Generator
) -> None:
    fitted = defense.fit(target, generator)
    assert not diagnosis.collapsed("s", fitted, target.private, CLASSES, generator)


def test_obscure_and_class_conditional_are_collapsed_by_design(target: Target, generator: torch.Generator) -> None:
    for spec, says in (
        ("obscure:steps=1:epochs=1", "not even on the label"),
        ("class-conditional", "beyond the label"),
    ):
        found = diagnosis.collapsed("s", parse_defense(spec).fit(target, generator), target.private, CLASSES, generator)
        assert [f.severity for f in found] == ["info"]
        assert says in found[0].message
    limited = parse_defense("obscure:steps=1:epochs=1:rate=2").fit(target, generator)
    assert not diagnosis.collapsed("s", limited, target.private, CLASSES, generator)


# stale references


def test_labels_of_a_teacher_that_never_learned_are_found_and_those_of_the_model_are_not(
    target: Target, generator: torch.Generator
) -> None:
    pictures = target.auxiliary.images
    untrained = target.fresh(3)
    found = diagnosis.stale_reference("s", Taught(pictures=pictures, teacher=untrained), target, generator)
    assert ids(found) == ["stale-reference"]
    assert float(found[0].evidence["agreement"] or 0) < 0.6
    assert not diagnosis.stale_reference("s", Taught(pictures=pictures, teacher=target.model), target, generator)


def test_an_untrained_model_and_labels_that_are_no_teachers_are_not_judged(
    target: Target, generator: torch.Generator
) -> None:
    blank = replace(target, model=target.fresh(1))
    nn.init.zeros_(blank.model.network[1].weight)  # type: ignore[index,arg-type]
    taught = Taught(pictures=target.auxiliary.images, teacher=target.fresh(3))
    assert not diagnosis.stale_reference("s", taught, blank, generator)
    mixup = parse_defense("mixup").fit(target, generator)
    assert release(mixup, target.private, generator).labels.is_floating_point()
    assert not diagnosis.stale_reference("s", mixup, target, generator)
    assert not diagnosis.stale_reference("s", Drawn(), target, generator)


# copies


def copied(target: Target, released: Tensor) -> list[tuple[str, str]]:
    found = diagnosis.copies("s", released, target.private.images, target.auxiliary.images, target.test.images)
    return [(f.id, f.severity) for f in found]


def test_copies_of_any_private_record_are_an_error(target: Target, generator: torch.Generator) -> None:
    x = target.private.images
    error = [("copies-private-records", "error")]
    noise = torch.rand(x.shape, generator=generator)
    assert copied(target, x) == error
    assert copied(target, x[torch.randperm(len(x), generator=generator)].flip(3)) == error
    assert copied(target, (x.roll(4, 0) + 0.02 * noise).clamp(0, 1)) == error  # no exact copy, but near
    tenth = torch.arange(len(x)).view(-1, 1, 1, 1) % 10 == 0
    assert copied(target, torch.where(tenth, x.roll(1, 0), noise)) == error  # few, but exact


def test_what_is_no_nearer_to_private_records_than_others_are_is_no_copy(
    target: Target, generator: torch.Generator
) -> None:
    x, y = target.private.images, target.private.labels
    means = torch.stack([target.auxiliary.images[target.auxiliary.labels == c].mean(0) for c in range(CLASSES)])
    assert not copied(target, torch.rand(x.shape, generator=generator))
    assert not copied(target, blobs(150, 9).images)
    assert not copied(target, means[y])  # smooth and so nearer to everything: distances alone would say it copies
    near = rank_auc(copies._near(means[y], x), copies._near(target.test.images, x))
    assert (near.low or 0) > copies.NEARER
    assert not copied(target, target.auxiliary.images)  # public ones are nobody's secret


def test_a_few_flat_pictures_that_happen_to_be_alike_are_no_copies(target: Target, generator: torch.Generator) -> None:
    # One black private picture, and one black picture drawn: a handful of test records may hold none by chance.
    private, released = target.private.images.clone(), torch.rand(target.private.images.shape, generator=generator)
    private[0], released[:2] = 0.0, 0.0
    assert not diagnosis.copies("s", released, private, target.auxiliary.images, target.test.images[:40])


def test_mixtures_of_few_records_lean_to_them(target: Target, generator: torch.Generator) -> None:
    mixup = parse_defense("mixup:k=2:max_weight=0.9").fit(target, generator)
    assert copied(target, release(mixup, target.private, generator).images)


# bounds, overfitting, the whole


def scored(hits: int, n: int, candidates: int = 100) -> AttackResult:
    blank = failed(registry.parse_attack("linkage"), "bound", {}, n, "converged", "-")
    return replace(blank, identification=rate(hits, n), candidates=candidates)


def test_more_hits_than_are_proven_possible_are_an_error() -> None:
    bound = (Guarantee("at most 1%", "proven", "the pictures as given", 0.01, 100),)
    found = noticed.exceeded("s", bound, [scored(5, 16)], 1)
    assert [(f.id, f.severity) for f in found] == [("bound-exceeded", "error")]
    assert "the pictures as given" in found[0].message
    assert not noticed.exceeded("s", bound, [scored(1, 16)], 1)  # luck
    assert not noticed.exceeded("s", bound, [scored(5, 16, candidates=20)], 1)  # another line-up
    assert not noticed.exceeded("s", bound, [scored(5, 16)], 4)
    assert not noticed.exceeded("s", (), [scored(16, 16)], 1)


def test_hits_in_short_line_ups_are_weighed_by_their_own_chance() -> None:
    assert noticed._tail(2, [0.5, 0.25, 0.1]) == pytest.approx(
        0.5 * 0.25 * 0.9 + 0.5 * 0.75 * 0.1 + 0.5 * 0.25 * 0.1 + 0.5 * 0.25 * 0.1
    )
    assert noticed._tail(3, [0.2] * 10) == pytest.approx(1 - 0.67779953, abs=1e-6)
    bound = (Guarantee("at most 1%", "proven", "the pictures as given", 0.01, 100),)
    hits = scored(5, 16)
    one = RecordScore(0, 0, "a", "converged")

    def of(short: int) -> AttackResult:
        records = (replace(one, candidates=2),) * short + (replace(one, candidates=100),) * (16 - short)
        return replace(hits, records=records)

    assert noticed.exceeded("s", bound, [of(1)], 1)
    assert not noticed.exceeded("s", bound, [of(8)], 1)  # five of eight coins


@pytest.mark.parametrize(("count", "expected"), [(4, True), (120, False)])
def test_a_decoder_that_knows_only_its_own_pairs_says_so(
    count: int, expected: bool, generator: torch.Generator
) -> None:
    decoder = fit_decoder(Drawn(), blobs(count, 4), CLASSES, generator, steps=20)
    assert set(decoder.doubts) == ({"overfitted"} if expected else set())


def test_overfitting_is_half_the_error() -> None:
    assert overfitted(0.04, 0.1)
    assert not overfitted(0.06, 0.1)
    assert not overfitted(0.1, float("nan"))


def test_a_check_that_breaks_is_told_and_the_others_run(target: Target) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Particular(Drawn):
        def transform_records(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Any:
            raise ValueError("I know these records only\nmore")

    found = diagnosis.inspected("s", Particular(), target, target.private, 0)
    assert ids(found) == ["not-diagnosed", "not-diagnosed", "copies-private-records"]
    assert "I know these records only." in found[0].message


# guarantees


@pytest.mark.parametrize("name", sorted(defenses()))
def test_every_defense_says_what_is_not_bounded(name: str, target: Target, generator: torch.Generator) -> None:
    quick: dict[str, Any] = {"obscure": {"steps": 1, "epochs": 1}}
    fitted = defenses()[name](**quick.get(name, {})).fit(target, generator)
    found = fitted.guarantees(150, 32, 10, 100)
    assert any(g.kind == "not-bounded" for g in found)
    proven = [g for g in found if g.kind == "proven"]
    assert bool(proven) == (name in {"dp-sgd", "obscure", "class-conditional"})
    assert all(g.assumes for g in proven)
    assert len({g.statement for g in found}) == len(found)


def test_a_chain_states_only_proofs_that_still_hold(target: Target, generator: torch.Generator) -> None:
    def proven(spec: str) -> list[str]:
        fitted = parse_defense(spec).fit(target, generator)
        return [g.statement for g in fitted.guarantees(150, 32, 10, 100) if g.kind == "proven"]

    alone = proven("class-conditional")
    assert alone
    assert proven("class-conditional,dp-sgd") == alone  # ε would speak of the replaced records only
    assert proven("class-conditional,prune") == alone  # post-processing
    assert proven("mixup,class-conditional") == []  # it is a mixture of which nothing is told
    assert proven("dp-sgd,prune") == proven("dp-sgd") != []
    assert proven("prune,dp-sgd") == []
    assert proven("dp-sgd:noise_multiplier=0") == []


def test_obscure_states_its_bound_for_the_line_up(target: Target, generator: torch.Generator) -> None:
    fitted = parse_defense("obscure:steps=1:epochs=1").fit(target, generator)
    for candidates in (20, 100):
        (bound,) = [g for g in fitted.guarantees(150, 32, 10, candidates) if g.identification is not None]
        assert bound.identification == pytest.approx(1 / candidates)
        assert bound.candidates == candidates
    limited = parse_defense("obscure:steps=1:epochs=1:rate=0.02").fit(target, generator)
    (bound,) = [g for g in limited.guarantees(150, 32, 10, 100) if g.identification is not None]
    assert 0.01 < float(bound.identification or 0) <= 0.01 + 0.1001
    assert "one draw per record" in bound.assumes


@pytest.mark.usefixtures("short_battery")
def test_findings_and_guarantees_reach_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Permuted(Defense):
        name: ClassVar[str] = "permuted"
        replaces_records: ClassVar[bool] = True

        def transform_records(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Any:
            return images.roll(1, 0), labels.roll(1, 0)

    registry.defenses()
    monkeypatch.setitem(registry._defenses, "permuted", Permuted)
    drawn = blobs(150, 1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))
    settings: dict[str, Any] = {"battery": "quick", "records": 4, "epochs": 1, "attacks": ("labels",)}
    result = leakaudit.scan(
        model, TensorDataset(drawn.images, drawn.labels), defense=["permuted", "class-conditional"], **settings
    )
    found = {(f.id, f.evidence.get("defense")): f.severity for f in result.findings}
    assert found["copies-private-records", "permuted"] == "error"
    assert found["collapsed-to-class-conditional", "class-conditional"] == "info"
    assert ("collapsed-to-class-conditional", "permuted") not in found
    assert [[g.kind for g in d.guarantees] for d in result.defenses] == [
        ["not-bounded"],
        ["not-bounded"],
        ["proven", "proven", "not-bounded"],
    ]
    assert from_json(to_json(result)) == result
