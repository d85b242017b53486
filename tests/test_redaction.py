"""Redaction is proven: real audits, everything they write, every picture in it, against every private record.

Three things are shown. The detector works: in `full` it finds the private records in every format that has pictures,
and a record planted as a list of numbers. In `redacted` every picture anywhere is, bit for bit, one that can be drawn
again from the scores, the positions and the shape alone. In `none` there is no picture.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from leakaudit.result.rounding import coarse
from leakaudit.result.schema import AttackResult, AuditResult, DefenseResult
from leakaudit.score import standin
from leakaudit.work.seeding import generator_for
from tests.image_hunt import Array, below, distinct, likeness, likeness_of_numbers, numbers_in
from tests.leaving import LEVELS, LIVE, PRIVATE, VICTIMS, Written, faces, left, private

OWN = ("crash", "excuse", "noted")  # their reasons are words, which the levels treat differently
FOUND = 0.9  # a correlation that nobody takes for chance


@pytest.fixture(scope="module")
def written() -> dict[str, Written]:
    """The same audit with pictures in full, redacted and without, and everything it wrote."""
    return {level: left(level) for level in LEVELS}


def most(found: list[Array], records: Tensor) -> float:
    return max(float(likeness(picture, records).max()) for picture in distinct(found))


def test_the_detector_finds_what_is_there(written: dict[str, Written]) -> None:
    """The control: with full pictures every victim is found, in each file that shows pictures."""
    full = written["full"]
    order = torch.randperm(PRIVATE, generator=generator_for(0, "victims"))[:VICTIMS]
    for name in ("result.json", "report.html", "gated.html", *(n for n in full.found if n.endswith(".pdf"))):
        like = np.stack([likeness(picture, private()) for picture in full.found[name]]).max(0)
        assert like[order].min() > 0.999, name
        assert sorted(np.flatnonzero(like > 0.999)) == sorted(order.tolist()), name
    drawn = np.stack([likeness(picture, private()) for picture in distinct(full.found[LIVE])]).max(0)
    assert drawn[order].min() > FOUND  # beside what emerges, with fewer pixels
    saved = [name for name in full.found if name.startswith("defenses")]
    assert saved  # what was learned is written in full only
    assert any(full.found[name] for name in saved)
    logged = [name for name in full.found if name.startswith("tensorboard")]
    assert all(full.found[name] for name in logged)


def test_the_detector_sees_through_what_could_hide_a_picture() -> None:
    from PIL import Image

    victim = private()[3]
    plain = victim.permute(1, 2, 0).numpy().astype(np.float64)
    large = np.asarray(Image.fromarray(plain[:, :, 0].astype(np.float32)).resize((100, 100)))[:, :, None]
    for hidden in (1 - plain, 0.3 + 0.2 * plain, plain[:, ::-1], plain[::-1], np.roll(plain, (2, -1), (0, 1)), large):
        like = likeness(hidden, private())
        assert like.argmax() == 3
        assert like[3] > 0.8
    coloured = np.concatenate([plain, np.zeros_like(plain), np.random.default_rng(0).random(plain.shape)], 2)
    assert likeness(coloured, private()).argmax() == 3


@pytest.mark.parametrize("level", ["redacted", "none"])
def test_a_planted_row_of_numbers_is_found_and_there_is_none(
    written: dict[str, Written], level: str, tmp_path: Path
) -> None:
    planted: dict[str, Any] = json.loads((written[level].folder / "result.json").read_text())
    planted["findings"].append({"evidence": {"pixels": private()[7, 0].tolist()}})
    (tmp_path / "planted.json").write_text(json.dumps(planted))
    rows = numbers_in(tmp_path / "planted.json")
    assert max(float(likeness_of_numbers(row, private())[7]) for row in rows) > FOUND
    for name in ("result.json", "gate.json", "leakaudit.sarif"):
        for row in numbers_in(written[level].folder / name):
            assert len(row) < 625 / 4  # too few for a picture of half the size
            assert float(likeness_of_numbers(row, private()).max()) < FOUND


def test_redacted_pictures_can_be_drawn_from_the_scores_alone(written: dict[str, Written]) -> None:
    """Bit for bit: whatever the private pixels were, the same scores would have given these pictures."""
    redacted = written["redacted"]
    shape = (1, 25, 25)
    allowed = {in_bytes(standin.picture(shape)[0].numpy())}
    rows = [p for d in redacted.result.defenses for a in d.attacks for p in a.gallery]
    assert len(rows) > 2 * VICTIMS
    for row in rows:
        assert row.psnr is not None
        assert row.shared is None
        allowed.add(in_bytes(standin.degraded(shape, row.psnr, row.victim, row.record)[0].numpy()))
    assert len(redacted.found["result.json"]) == 2 * len(rows)
    for name in ("report.html", "gated.html"):  # which show an original once for all attacks on a defense
        assert len(rows) < len(redacted.found[name]) < 2 * len(rows) + VICTIMS
    for picture in redacted.all():
        assert np.ptp(picture, 2).max() == 0
        assert in_bytes(picture[:, :, 0]) in allowed


def in_bytes(plane: Array) -> bytes:
    return (plane * 255).round().astype(np.uint8).tobytes()


def test_redacted_pictures_are_no_liker_to_private_records_than_to_others(written: dict[str, Written]) -> None:
    shown = written["redacted"].all()
    others = faces()[0][PRIVATE:]
    assert most(shown, private()) < FOUND
    assert most(shown, private()) <= most(shown, others)
    assert most(written["full"].found["report.html"], others) < 0.999 < most(written["full"].all(), private())


def test_what_replaced_records_and_what_was_learned_stay_too(written: dict[str, Written]) -> None:
    for level in ("redacted", "none"):
        assert not (written[level].folder / "defenses").exists()
    shared = [p.shared for d in written["full"].result.defenses for a in d.attacks for p in a.gallery if p.shared]
    assert shared
    text = "".join(path.read_text(errors="replace") for path in below(written["redacted"].folder))
    assert not any(picture in text for picture in shared)


def test_without_pictures_there_is_none(written: dict[str, Written]) -> None:
    none = written["none"]
    assert none.all() == []
    for name in ("report.html", "gated.html"):
        text = (none.folder / name).read_text()
        assert "data:image" not in text.replace("img-src data:", "")
        assert "<image" not in text
        assert "<img" not in text


def test_scores_are_the_same_at_every_level_but_for_the_rounding(written: dict[str, Written]) -> None:
    def attacks(result: AuditResult) -> list[tuple[DefenseResult, AttackResult]]:
        return [(d, a) for d in result.defenses for a in d.attacks if a.name not in OWN]

    def scores(result: AuditResult) -> list[Any]:
        return [
            (d.spec, coarse(a).records, coarse(a).psnr) for d in result.defenses for a in d.attacks if a.name not in OWN
        ]

    def exact(result: AuditResult) -> list[Any]:
        return [(d.spec, a.records, a.psnr) for d, a in attacks(result)]

    full, redacted, none = (written[level].result for level in ("full", "redacted", "none"))
    assert scores(full) == exact(redacted) == exact(none)
    assert exact(full) != exact(none)  # digits that would confirm a record stay out
    assert "Chelsea" in written["redacted"].result.stand_in
    assert written["full"].result.stand_in == written["none"].result.stand_in == ""
