"""The planted leak is found; where the audit is broken it is not, and that is said; nothing else is disturbed."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from leakaudit.attacks.analytic import Analytic
from leakaudit.audit import attacking
from leakaudit.audit.audit import examined
from leakaudit.audit.canary import PLANTED, KeyedPermutation, Planting, canary
from leakaudit.judge.caps import capped, caps
from leakaudit.judge.findings import mend_of
from leakaudit.judge.words import brief, sentence
from leakaudit.protocol.attack import Attack, Reconstruction
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.registry import attacks, defenses
from leakaudit.reports import examined as examined_words
from leakaudit.result.schema import Controls, Reason
from leakaudit.score.identification import CandidateSets
from leakaudit.work.progress import Monitor, Work, monitored
from tests.leakaudit.results import defense, result

UNDEFENDED = PLANTED[:1]


def noise(attack: Attack, model: Any, update: SharedUpdate, *rest: Any) -> Reconstruction:
    """What every attack returns once it is broken: a picture, or scores, that the update has no part in."""
    *shown, generator = rest
    victims, batch = update.victims, update.batch_size
    labels = torch.randint(update.classes, (victims, batch), generator=generator)
    scores = torch.rand(shown[0].shape[:2], generator=generator) if shown else None
    images = None if shown else torch.rand((victims, batch, *update.input_shape), generator=generator)
    return Reconstruction(images, labels, torch.zeros(victims), ("converged",) * victims, linkage=scores)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_undefended_leak_fails(seed: int) -> None:
    found = canary(seed, examined, UNDEFENDED)
    assert found.verdict == "fail"
    assert "20 of 20" in found.told


def test_what_a_fixed_key_permutes_fails_too() -> None:
    assert canary(0, examined).verdict == "fail"


def test_the_planted_defense_permutes_and_cannot_be_chosen(generator: torch.Generator) -> None:
    update = (torch.rand(5, 7, generator=generator), torch.rand(9, generator=generator))
    once, again = (KeyedPermutation().transform_update(update, 1, generator) for _ in range(2))
    for before, after, same in zip(update, once, again, strict=True):
        assert torch.equal(after, same)
        assert not torch.equal(after, before)
        assert torch.equal(after.flatten().sort().values, before.flatten().sort().values)
    canary(0, examined, UNDEFENDED)
    assert KeyedPermutation.name not in defenses()


def test_attacks_that_return_noise_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    for cls in attacks().values():
        monkeypatch.setattr(cls, "link" if cls.kind == "linkage" else "__call__", noise)
    found = canary(0, examined, UNDEFENDED)
    assert found.verdict != "fail"
    assert not found.ended
    assert "without a defense" in found.told
    assert "picked out" in found.told  # they were scored


def test_scores_that_look_in_the_wrong_place_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = attacking._truth

    def elsewhere(*given: Any) -> Any:
        truth = whole(*given)
        sets = truth.candidates
        wrong = CandidateSets(sets.pictures, sets.indices, (sets.position + 1) % sets.size)
        others = truth.records[torch.arange(len(truth.records)).roll(1)]
        return replace(truth, candidates=wrong, records=others)

    monkeypatch.setattr(attacking, "_truth", elsewhere)
    assert canary(0, examined, UNDEFENDED).verdict != "fail"


def test_attacks_that_crash_are_noticed_and_so_is_an_audit_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*given: Any, **named: Any) -> Any:
        raise RuntimeError("broken")

    with monkeypatch.context() as patch:
        for cls in attacks().values():
            patch.setattr(cls, "link" if cls.kind == "linkage" else "__call__", crash)
        assert canary(0, examined, UNDEFENDED).verdict != "fail"
    assert canary(0, crash) == Planting("inconclusive", "the planted leak could not be audited (RuntimeError: broken)")


def test_one_leak_that_is_missed_is_enough() -> None:
    class Blank(KeyedPermutation):
        def transform_update(self, gradients: Any, batch_size: int, generator: torch.Generator) -> Any:
            return tuple(torch.zeros_like(g) for g in gradients)

    found = canary(0, examined, (*UNDEFENDED, ("zeros", Blank())))
    assert found.verdict != "fail"
    assert "behind zeros" in found.told
    assert "without a defense" not in found.told


def test_it_is_the_same_every_time_and_disturbs_nothing() -> None:
    shown: list[Work] = []
    monitor = Monitor(show=lambda work, done, total: shown.append(work), deadline=time.monotonic() + 1000)
    states = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    known, threads = (set(attacks()), set(defenses())), torch.get_num_threads()
    with monitored(monitor):
        first = canary(3, examined, UNDEFENDED)
    torch.manual_seed(11)
    kept = torch.random.get_rng_state()
    assert canary(3, examined, UNDEFENDED) == first
    assert first.verdict == "fail"
    assert shown == []
    assert torch.equal(torch.random.get_rng_state(), kept)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]
    assert (set(attacks()), set(defenses())) == known
    assert torch.get_num_threads() == threads
    with monitored(Monitor(deadline=time.monotonic() - 1)):
        assert canary(3, examined, UNDEFENDED) == Planting("inconclusive", ended="budget")


def test_what_breaks_for_want_of_time_is_no_broken_installation() -> None:
    def late(*given: Any, **named: Any) -> Any:
        time.sleep(0.06)
        raise IndexError("nothing was scored")

    with monitored(Monitor(deadline=time.monotonic() + 0.05)):
        assert canary(0, late) == Planting("inconclusive", ended="budget")
    assert "could not be audited" in canary(0, late).told


@pytest.mark.parametrize("ended", ["budget", "interrupt"])
def test_a_search_that_was_cut_off_asks_for_time_and_one_that_missed_for_a_report(ended: Any) -> None:
    """Neither is a pass; only what was really missed says that the installation is broken."""
    cut = Controls("inconclusive", canary_ended=ended)
    for controls, identifier, todo, not_todo in (
        (cut, "canary-unfinished", "--budget", "Report it"),
        (replace(cut, canary=None), "canary-unfinished", "--budget", "Report it"),
        (replace(cut, canary="fail"), "canary-unfinished", "--budget", "Report it"),
        (Controls("pass", "behind x 0 of 20"), "canary-missed", "Report it", "--budget"),
        (Controls("inconclusive", "it broke"), "canary-missed", "Report it", "--budget"),
    ):
        doubts = caps({}, {"defense": True, "auxiliary": True}, controls)
        assert [reason.id for reason in doubts] == [identifier]
        verdict, why = capped("pass", (Reason("within-limit"),), doubts)
        assert (verdict, why[0].id) == ("inconclusive", identifier)
        assert todo in mend_of(identifier)
        assert not_todo not in mend_of(identifier)
    said = {"budget": "the time budget was spent", "interrupt": "the scan was interrupted"}[ended]
    (doubt,) = caps({}, {"defense": True, "auxiliary": True}, cut)
    row = ("Planted leak", f"not looked for to the end: {said}; what was not found here counts for nothing.")
    assert examined_words.controls(result(defense("clip"), controls=cut))[0] == row
    for words in (sentence((doubt,)), brief((doubt,))):
        assert f"not looked for to the end: {said}" in words


def test_an_interrupt_is_the_scans_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*given: Any, **named: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Analytic, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        canary(0, examined, UNDEFENDED)
