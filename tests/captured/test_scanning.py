"""Captured updates are attacked as what the same client sends in process; without the truth nothing passes."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from leakaudit.audit.audit import examined
from leakaudit.audit.pieces import chosen
from leakaudit.audit.taking import unlike
from leakaudit.captured.form import Claims, Sends
from leakaudit.captured.reading import read_capture
from leakaudit.captured.scanning import asked, targeted
from leakaudit.captured.writing import write_capture, write_captures
from leakaudit.gate.decision import gate
from leakaudit.judge.verdict import rejudge
from leakaudit.load.loading import target_from_objects
from leakaudit.protocol.client import share
from leakaudit.protocol.exposure import preset
from leakaudit.protocol.registry import parse_defense
from leakaudit.protocol.target import Target
from leakaudit.reports.html import render
from leakaudit.result.claims import ClaimRow
from leakaudit.result.schema import AuditResult, Estimate, Finding, from_json, to_json
from leakaudit.scene import scene
from leakaudit.scene.examine import examine
from leakaudit.scene.plan import Plan
from leakaudit.scene.scene import set_scene
from leakaudit.scene.updates import Updates
from tests.captured.small import LR, SIZE, STEPS, data, network, records, saved, target, trained

ATTACKS = ("labels", "replay", "inverting-gradients:steps=10:restarts=1")
PLAN = Plan(battery="quick", attacks=ATTACKS, utility=False, candidates=4, images="full")
CLAIMS = Claims(local_steps=STEPS, local_lr=LR, batch_size=SIZE, records=SIZE, mode="eval", defense="none")
LIGHT = replace(PLAN, exposure="honest-but-curious", attacks=(ATTACKS[0], ATTACKS[2]))  # nothing is learned or replayed
CLIP = "clip:max_norm=0.1"


def clipped(lost: Tensor) -> Tensor:
    return lost * min(1.0, 0.1 / float(lost.norm()))


def written(folder: Path, spec: str = "none", sends: Sends = "after") -> Path:
    """Write what two clients of two records sent in one round, and their records; return the updates' file."""
    x, y = records()
    change, begun = clipped if spec == CLIP else torch.clone, network().state_dict()
    states = [trained(x[i : i + SIZE], y[i : i + SIZE], change) for i in (0, SIZE)]
    if sends == "difference":
        states = [{name: value - begun[name] for name, value in state.items()} for state in states]
    saved(folder / "records.npz", x, y)
    claims = replace(CLAIMS, defense=spec)
    return write_captures(folder / "update.safetensors", states, sends=sends, before=begun, claims=claims)


def audit(made: Target, plan: Plan) -> AuditResult:
    """Audit without the planted leak, which takes seconds and is the same everywhere."""
    return examined(set_scene(made, plan, None, "", ()), chosen(plan))


def estimates(result: AuditResult) -> Iterator[tuple[str, Estimate]]:
    for d in result.defenses:
        for a in d.attacks:
            for name in ("identification", "psnr", "ssim", "r2", "label_accuracy", "gain", "swapped"):
                yield f"{d.spec} {a.name} {name}", getattr(a, name)


def test_a_captured_update_scores_as_the_same_client_in_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture = asked(written(tmp_path), tmp_path / "records.npz", PLAN)
    received = targeted(capture, target())
    there = audit(received, capture.plan)
    monkeypatch.setattr(scene, "_victims", lambda target, plan: torch.arange(plan.records))
    here = audit(replace(received, received=None), capture.plan)
    scored = 0
    for (name, captured), (other, computed) in zip(estimates(there), estimates(here), strict=True):
        assert name == other
        assert (captured.value is None) is (computed.value is None), name
        if captured.value is not None and computed.value is not None:
            assert captured.value == pytest.approx(computed.value, abs=1e-3), name
            scored += 1
    assert scored > 10
    assert there.verdict == here.verdict
    assert (there.captured["known"], here.captured) == (True, {})


@pytest.mark.parametrize("spec", ["none", CLIP])
@pytest.mark.parametrize("sends", ["after", "difference"])
def test_captured_gradients_are_those_of_the_same_client_in_process(spec: str, sends: Sends, tmp_path: Path) -> None:
    capture = asked(written(tmp_path, spec, sends), tmp_path / "records.npz", PLAN)
    made = targeted(capture, target())
    assert made.received is not None
    computed = share(
        made.model,
        made.loss,
        made.private[torch.arange(2 * SIZE)],
        parse_defense(spec),
        preset("adaptive"),
        batch_size=SIZE,
        classes=4,
        mode="eval",
        generator=torch.Generator().manual_seed(0),
        client=capture.plan.sender(),
    )
    for one, other in zip(made.received.gradients, computed.gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=2e-6)
        assert float(other.abs().max()) > 1e-3


def test_without_the_truth_there_are_pictures_and_never_a_pass(tmp_path: Path) -> None:
    capture = asked(written(tmp_path), None, LIGHT)
    result = from_json(to_json(audit(targeted(capture, target()), capture.plan)))
    assert (result.verdict, [r.id for r in result.why]) == ("inconclusive", ["captured-unscored"])
    assert gate(result).verdict == "inconclusive"
    assert {c.status for c in gate(result).checks if c.rule == "captured"} == {"inconclusive"}
    (row,) = result.defenses
    drawn = {a.name: a.captured for a in row.attacks}
    pictures = drawn["inverting-gradients"]
    assert [each.update for each in pictures] == [0, 1]
    assert all(len(each.pictures) == SIZE and each.objective and each.usual for each in pictures)
    assert [sorted(each.labels) for each in drawn["labels"]] == [["0", "1"], ["2", "3"]]
    assert row.attacks[0].identification.n in (0, result.settings["records"])


def test_a_claim_that_is_broken_fails_with_and_without_the_truth(tmp_path: Path) -> None:
    row = ClaimRow(
        what="noise", mechanism="LocalDpMod", claimed=0.1, measured=0.01, verdict="broken", reason="It is less."
    )
    written(tmp_path)
    for data_ in (None, tmp_path / "records.npz"):
        capture = asked(tmp_path / "update.safetensors", data_, replace(LIGHT, attacks=ATTACKS[:1]))
        made = targeted(capture, target())
        assert made.received is not None
        made = replace(made, received=replace(made.received, claims=(row,)))
        result = from_json(to_json(audit(made, capture.plan)))
        assert (result.verdict, result.why[0].id, result.claims) == ("fail", "claim-broken", (row,))
        (found,) = (f for f in result.findings if f.id == "claim-broken")
        assert (found.severity, found.evidence["defense"], found.evidence["measured"]) == ("error", "none", 0.01)
        assert gate(result).verdict == "fail"
        assert rejudge(result, result.defenses[0])[0] == "fail"
        assert "Claimed and measured" in render(result)


def test_no_picture_leaves_where_none_may(tmp_path: Path) -> None:
    capture = asked(written(tmp_path), None, replace(LIGHT, images="redacted", attacks=ATTACKS[-1:]))
    result = audit(targeted(capture, target()), capture.plan)
    tried = [each for d in result.defenses for a in d.attacks for each in a.captured]
    assert tried
    assert all(each.pictures == () for each in tried)


def test_no_private_record_of_the_model_file_takes_part_in_what_is_drawn(tmp_path: Path) -> None:
    """The records behind the update are in no role of the target: what is drawn comes from the update alone."""
    capture = asked(written(tmp_path), None, PLAN)
    made = targeted(capture, target())
    x, _ = records()
    for role in (made.private, made.test, made.auxiliary):
        assert not any(torch.equal(one, other) for one in x for other in role.images)


def test_records_behind_the_update_are_in_no_other_role(tmp_path: Path) -> None:
    whole = target()
    mixed = replace(whole, private=whole.private[:0], test=whole.test, auxiliary=whole.auxiliary)
    x, y = torch.cat([whole.test.images[:2], whole.auxiliary.images[:2]]), torch.arange(4)
    saved(tmp_path / "records.npz", x, y)
    update = write_capture(
        tmp_path / "u.safetensors",
        before=network().state_dict(),
        after=trained(x, y),
        claims=replace(CLAIMS, records=4),
    )
    capture = asked(update, tmp_path / "records.npz", PLAN)
    made = targeted(capture, replace(mixed, private=whole.private))
    assert torch.equal(made.private.images[:4], x)
    assert (len(made.test), len(made.auxiliary)) == (len(whole.test) - 2, len(whole.auxiliary) - 2)


def test_a_picture_that_an_attack_proves_is_a_fail_without_the_truth(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dense = nn.Sequential(nn.Flatten(), nn.Linear(64, 60), nn.ReLU(), nn.Linear(60, 4))
    x, y = records(SIZE)
    nn.functional.cross_entropy(dense(x), y).backward()
    gradient = {name: p.grad for name, p in dense.named_parameters()}
    claims = Claims(records=SIZE, mode="eval", defense="none")
    update = write_capture(tmp_path / "u.safetensors", before=dense.state_dict(), gradient=gradient, claims=claims)
    capture = asked(update, None, replace(LIGHT, attacks=("peeling",), records=SIZE))
    result = audit(targeted(capture, target_from_objects(dense, data(), device="cpu")), capture.plan)
    (proven,) = (a.captured for d in result.defenses for a in d.attacks if a.name == "peeling")
    assert proven[0].certified == SIZE
    assert (result.verdict, [r.id for r in result.why]) == ("fail", ["captured-certified"])
    drawn = [decoded(each) for each in proven[0].pictures]
    for one in x:
        assert min(float((one - picture).abs().max()) for picture in drawn) < 1 / 250


def decoded(picture: str) -> Tensor:
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))))
    return torch.from_numpy(pixels.copy()).float()[None] / 255


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({}, False),
        ({"local_lr": LR / 8}, True),  # then it moved much further than it can have
        ({"defense": "gaussian:std=10"}, True),  # by so much noise it would be far longer
    ],
)
def test_a_truth_that_cannot_have_made_the_update_is_an_error(
    change: dict[str, Any], wrong: bool, tmp_path: Path
) -> None:
    assert bool(noticed(replace(CLAIMS, **change), records(), tmp_path)) is wrong


def test_under_noise_only_lengths_tell(tmp_path: Path) -> None:
    x, y = records()
    claims = replace(CLAIMS, defense="gaussian:std=10")
    assert noticed(claims, (x, y), tmp_path, noise=10) == ()
    assert noticed(claims, (1 - x, 3 - y), tmp_path, noise=10) == ()
    assert noticed(claims, (x, y), tmp_path, noise=1)


def test_records_of_somebody_else_are_no_truth(tmp_path: Path) -> None:
    x, y = records()
    (finding,) = noticed(CLAIMS, (1 - x, 3 - y), tmp_path)
    assert (finding.id, finding.severity) == ("captured-unlike", "error")
    assert finding.evidence["usual"] == pytest.approx(1)


def noticed(claims: Claims, truth: tuple[Tensor, Tensor], folder: Path, noise: float = 0.0) -> tuple[Finding, ...]:
    """Return what is noticed of updates that were really sent by clients as `CLAIMS` says, beside another truth."""
    real, g = read_capture(written(folder)), torch.Generator().manual_seed(0)
    saved(folder / "records.npz", *truth)
    updates = [{n: v + noise * torch.randn(v.shape, generator=g) for n, v in own.items()} for own in real.updates]
    again = write_captures(folder / "again.safetensors", updates, sends="after", before=real.before, claims=claims)
    capture = asked(again, folder / "records.npz", replace(LIGHT, attacks=ATTACKS[:1]))
    made = set_scene(targeted(capture, target()), capture.plan, None, "", ())
    spec, defense = chosen(capture.plan)[-1]
    return unlike(Updates(made, examine(made, spec, defense)))
