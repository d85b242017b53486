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
from leakaudit.audit.canary import PLANTED, KeyedPermutation, canary
from leakaudit.protocol.attack import Attack, Reconstruction
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.registry import attacks, defenses
from leakaudit.score.identification import CandidateSets
from leakaudit.work.progress import Monitor, Work, monitored

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
    verdict, told = canary(seed, examined, UNDEFENDED)
    assert verdict == "fail"
    assert "20 of 20" in told


def test_what_a_fixed_key_permutes_fails_too() -> None:
    assert canary(0, examined)[0] == "fail"


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
    verdict, told = canary(0, examined, UNDEFENDED)
    assert verdict != "fail"
    assert "without a defense" in told
    assert "picked out" in told  # they were scored


def test_scores_that_look_in_the_wrong_place_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = attacking._truth

    def elsewhere(*given: Any) -> Any:
        truth = whole(*given)
        sets = truth.candidates
        wrong = CandidateSets(sets.pictures, sets.indices, (sets.position + 1) % sets.size)
        others = truth.records[torch.arange(len(truth.records)).roll(1)]
        return replace(truth, candidates=wrong, records=others)

    monkeypatch.setattr(attacking, "_truth", elsewhere)
    assert canary(0, examined, UNDEFENDED)[0] != "fail"


def test_attacks_that_crash_are_noticed_and_so_is_an_audit_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*given: Any, **named: Any) -> Any:
        raise RuntimeError("broken")

    with monkeypatch.context() as patch:
        for cls in attacks().values():
            patch.setattr(cls, "link" if cls.kind == "linkage" else "__call__", crash)
        assert canary(0, examined, UNDEFENDED)[0] != "fail"
    assert canary(0, crash) == ("inconclusive", "the planted leak could not be audited (RuntimeError: broken)")


def test_one_leak_that_is_missed_is_enough() -> None:
    class Blank(KeyedPermutation):
        def transform_update(self, gradients: Any, batch_size: int, generator: torch.Generator) -> Any:
            return tuple(torch.zeros_like(g) for g in gradients)

    verdict, told = canary(0, examined, (*UNDEFENDED, ("zeros", Blank())))
    assert verdict != "fail"
    assert "behind zeros" in told
    assert "without a defense" not in told


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
    assert first[0] == "fail"
    assert shown == []
    assert torch.equal(torch.random.get_rng_state(), kept)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]
    assert (set(attacks()), set(defenses())) == known
    assert torch.get_num_threads() == threads
    with monitored(Monitor(deadline=time.monotonic() - 1)):
        spent = canary(3, examined, UNDEFENDED)
    assert spent == ("inconclusive", "the time budget ended it before the planted leak was found")


def test_an_interrupt_is_the_scans_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*given: Any, **named: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Analytic, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        canary(0, examined, UNDEFENDED)
