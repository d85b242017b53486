"""Which candidates make up an update: products against their definition, and a sum taken apart."""

from __future__ import annotations

import pytest
import torch

from leakaudit.attacks._explaining import RIDGES, RULES, explained, products_in, shared_weight, span_of

KNOWN, SIZE, MEMBERS, SHOWN = 12, 60, 4, 6


def scene(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return auxiliary rows, candidates that lie mostly in one direction, line-ups of them, and an update of four."""
    common = 5 * torch.randn(SIZE, generator=generator)
    rows = common + torch.randn((KNOWN + MEMBERS * SHOWN, SIZE), generator=generator)
    candidates = rows[KNOWN:]
    line_ups = torch.arange(MEMBERS * SHOWN).view(MEMBERS, SHOWN)
    return rows[:KNOWN], candidates, line_ups, candidates[line_ups[:, 2]].mean(0)


@pytest.mark.parametrize("name", RIDGES)
def test_products_are_those_of_the_inverse_second_moment(name: str, generator: torch.Generator) -> None:
    own, candidates, _, update = scene(generator)
    span = span_of(own)
    found = products_in(span, name, update, candidates, span.along(candidates))
    rows, ridge = own.double(), RIDGES[name]
    metric = torch.eye(SIZE, dtype=torch.float64)
    if ridge is not None:
        size = ridge * float(rows.square().sum(1).mean())
        metric = size * torch.linalg.inv(rows.T @ rows + size * metric)
    torch.testing.assert_close(found.inner, candidates.double() @ metric @ candidates.double().T)
    torch.testing.assert_close(found.across, candidates.double() @ metric @ update.double())
    assert found.whole == pytest.approx(float(update.double() @ metric @ update.double()))


@pytest.mark.parametrize("rule", RULES)
def test_members_explain_their_share(rule: str, generator: torch.Generator) -> None:
    own, candidates, line_ups, update = scene(generator)
    span = span_of(own)
    by = products_in(span, ", whitened", update, candidates, span.along(candidates))
    scores = explained(by, line_ups, 1 / MEMBERS, rule)
    assert scores.argmax(1).tolist() == [2] * MEMBERS
    if rule.startswith("jointly"):  # where all others are found, the last explains all that is left
        torch.testing.assert_close(scores[:, 2], torch.ones(MEMBERS, dtype=torch.float64), atol=1e-6, rtol=0)
        assert float(scores[:, :2].max()) < 0.9


def test_an_update_that_was_scaled_is_fitted(generator: torch.Generator) -> None:
    own, candidates, line_ups, update = scene(generator)
    span = span_of(own)
    by = products_in(span, ", whitened", 0.7 * update, candidates, span.along(candidates))
    scores = explained(by, line_ups, 1 / MEMBERS, "jointly, scaled")
    torch.testing.assert_close(scores[:, 2], torch.ones(MEMBERS, dtype=torch.float64), atol=1e-6, rtol=0)


def test_line_ups_without_a_member_explain_nothing(generator: torch.Generator) -> None:
    own, candidates, line_ups, _ = scene(generator)
    update = candidates[line_ups[:2, 2]].sum(0) / MEMBERS  # of the first two line-ups alone
    span = span_of(own)
    by = products_in(span, ", whitened", update, candidates, span.along(candidates))
    scores = explained(by, line_ups, 1 / MEMBERS, "jointly")
    assert scores[:2].argmax(1).tolist() == [2, 2]
    assert float(scores[2:].max()) < float(scores[:2, 2].min())


def test_without_auxiliary_records_nothing_is_regressed_off(generator: torch.Generator) -> None:
    _, candidates, line_ups, update = scene(generator)
    span = span_of(candidates[:0])
    by = products_in(span, "", update, candidates, span.along(candidates))
    assert explained(by, line_ups, 1 / MEMBERS, "jointly").argmax(1).tolist() == [2] * MEMBERS


def test_the_weight_of_a_record_is_read_off_rehearsals(generator: torch.Generator) -> None:
    sums = torch.randn((5, 30), generator=generator)
    assert shared_weight(0.125 * sums, sums) == pytest.approx(0.125)
