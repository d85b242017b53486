"""What attacks made for one gradient do with local steps: still exact, or not applicable, and never certain."""

from __future__ import annotations

import pytest
import torch

from leakaudit.attacks._residual import residuals
from leakaudit.errors import NotApplicable
from leakaudit.protocol.exposure import Exposure
from leakaudit.protocol.federation import parse_client
from leakaudit.protocol.registry import parse_attack
from leakaudit.score.metrics import assign, psnr
from tests.attacks.attack_scenes import conv_model, dense_model, records, shared_update, vit_model

ONE, MANY, MOMENTUM = "fedavg:steps=1:lr=0.1", "fedavg:steps=4:lr=0.3", "fedavg:epochs=5:lr=0.1:momentum=0.9"
BATCHES, ADAM = "fedavg:epochs=2:batch=1:lr=0.3", "fedavg:steps=3:optimizer=adam"
ONE_GRADIENT, SUM = "it solves for one gradient", "it solves for a sum of gradients"
EXACT = 60.0  # dB
SMALL = (3, 6, 6)  # a picture that a narrow vision transformer gives whole

# attack, records, client, and what comes of it: exact, refused with a reason, or None for a run that proves nothing
TABLE = [
    ("analytic", 1, ONE, EXACT),
    ("analytic", 1, MANY, EXACT),
    ("analytic", 1, MOMENTUM, EXACT),
    ("analytic", 1, ADAM, SUM),
    ("peeling", 1, ONE, EXACT),
    ("peeling", 1, MANY, EXACT),
    ("peeling", 1, ADAM, SUM),
    ("peeling", 2, MANY, ONE_GRADIENT),
    ("peeling", 2, BATCHES, ONE_GRADIENT),
    ("spear", 1, MOMENTUM, EXACT),
    ("spear", 2, MANY, ONE_GRADIENT),
    ("april", 1, MANY, EXACT),
    ("april", 1, ADAM, SUM),
    ("r-gap", 1, MANY, ONE_GRADIENT),
    ("learned-start", 1, MANY, ONE_GRADIENT),
    ("cocktail-party", 1, MANY, EXACT),
    ("cocktail-party", 2, BATCHES, None),
    ("cocktail-party", 2, ADAM, SUM),
    ("inverting-gradients:steps=5", 2, BATCHES, None),
]


@pytest.mark.parametrize(("spec", "batch", "client", "comes"), TABLE)
def test_with_local_steps(spec: str, batch: int, client: str, comes: float | str | None) -> None:
    attack = parse_attack(spec)
    needs = attack.needs
    model = vit_model(SMALL) if needs.tokens else conv_model(SMALL) if needs.chain else dense_model(SMALL)
    own = records(2 * batch, SMALL, 3, seed=1)
    exposure = Exposure(auxiliary=True, labels=True)
    update = shared_update(
        model, own, batch_size=batch, exposure=exposure, auxiliary=records(9, SMALL, 3, 2), client=parse_client(client)
    )
    if isinstance(comes, str):
        with pytest.raises(NotApplicable, match=comes):
            attack(model, update, torch.Generator().manual_seed(0))
        return
    found = attack(model, update, torch.Generator().manual_seed(0))
    assert found.images is not None
    if comes is not None:
        pairs = zip(own.images.view_as(found.images), found.images, strict=True)
        assert min(float(psnr(t, g[assign(t, g)]).min()) for t, g in pairs) > comes
    if found.certified is not None:  # what is not one gradient is not proved by one
        assert bool(found.certified.all()) is update.is_gradient


@pytest.mark.parametrize(("client", "known"), [("fedsgd", True), (ONE, True), (MANY, False), (ADAM, False)])
def test_the_residual_is_that_of_one_step_alone(client: str, known: bool) -> None:
    model, own = dense_model(SMALL), records(2, SMALL, 3, seed=1)
    update = shared_update(model, own, client=parse_client(client))
    assert update.is_gradient is known
    assert bool(residuals(model, update, torch.Generator()).isfinite().all()) is known


def test_a_step_on_some_of_the_records_is_no_gradient_of_all() -> None:
    update = shared_update(
        dense_model(SMALL), records(4, SMALL, 3, 1), batch_size=4, client=parse_client(f"{ONE}:batch=2")
    )
    assert not update.is_gradient
