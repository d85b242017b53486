"""`leakaudit capture` and `scan --update`, as they are typed."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from leakaudit.audit.canary import Planting
from leakaudit.captured.form import Claims
from leakaudit.captured.reading import read_capture
from leakaudit.captured.writing import write_capture
from leakaudit.files.reading import text_of
from leakaudit.gate.claims import claims
from leakaudit.gate.consistency import doubts
from leakaudit.result.claims import ClaimRow
from leakaudit.result.schema import load
from tests.captured.small import LR, MODEL, SIZE, STEPS, network, records, saved, trained
from tests.leakaudit.command_line import Run, caller, sentence

CLAIMS = Claims(local_steps=STEPS, local_lr=LR, batch_size=SIZE, records=SIZE, mode="eval", defense="none")
QUICK = (
    *("--quick", "--no-utility", "--candidates", "4", "-a", "inverting-gradients:steps=5:restarts=1"),
    *("--exposure", "honest-but-curious"),
)


FOUND = (
    "without a defense analytic picked out 20 of 20 records (fail); behind planted-permutation replay picked out 64 of "
    "64 records (fail)"
)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line in a folder with a model.py, checkpoints of a client, a captured update and its records."""
    x, y = records(SIZE)
    saved(tmp_path / "records.npz", x, y)
    torch.save(network().state_dict(), tmp_path / "before.pt")
    torch.save({"state_dict": {f"_module.{n}": v for n, v in trained(x, y).items()}}, tmp_path / "after.pt")
    write_capture(tmp_path / "u.safetensors", before=network().state_dict(), after=trained(x, y), claims=CLAIMS)
    monkeypatch.setattr("leakaudit.audit.audit.planted", lambda *_: Planting("fail", FOUND))  # it takes seconds
    return caller(monkeypatch, tmp_path, capsys, MODEL)


def test_two_checkpoints_become_a_file_that_says_what_it_misses(run: Run) -> None:
    made = run(
        "capture", "--before", "before.pt", "--after", "after.pt", "--steps", str(STEPS), "-o", "new.safetensors"
    )
    assert made.code == 3
    untold = run("capture", "--before", "before.pt", "--after", "after.pt", "-o", "bare.safetensors")
    assert re.search(r"client +how it trained is not said", untold.out)
    assert {line.split()[-1] for line in made.out.splitlines() if line.startswith("missing")} == {
        "--lr.",
        "--batch.",
        "--records.",
    }
    more = ("--lr", str(LR), "--batch", str(SIZE), "--records", str(SIZE), "--defense", "none", "--mode", "eval")
    told = run("capture", "new.safetensors", *more, "-o", "told.safetensors", "--model", "model.py")
    assert told.code == 0, told
    assert "it fits" in told.out
    found, given = read_capture("told.safetensors"), read_capture("u.safetensors")
    assert found.claims == given.claims
    assert all(torch.equal(found.updates[0][name], value) for name, value in given.updates[0].items())
    assert run("capture", "told.safetensors").out.splitlines()[1:3] == told.out.splitlines()[1:3]


def test_the_files_of_a_round_become_one(run: Run) -> None:
    given = read_capture("u.safetensors")
    other = {name: value + 1 for name, value in given.updates[0].items()}
    claims = replace(CLAIMS, note="node 1")
    write_capture("v.safetensors", before=given.before, after=other, claims=claims)
    made = run("capture", "u.safetensors", "v.safetensors", "-o", "round.safetensors", "--framework", "flwr")
    assert made.code == 0, made
    found = read_capture("round.safetensors")
    assert [float(update["0.bias"][0]) for update in found.updates] == pytest.approx(
        [float(given.updates[0]["0.bias"][0]), float(other["0.bias"][0])]
    )
    assert found.claims == replace(CLAIMS, framework="flwr")
    write_capture("w.safetensors", before=other, after=other, claims=CLAIMS)
    write_capture("x.safetensors", before=given.before, after=other, claims=replace(CLAIMS, records=2 * SIZE))
    for files, told in (("uw", "other weights"), ("ux", "(records)"), ("uu", "given twice")):
        refused = run("capture", *(f"{name}.safetensors" for name in files), "-o", "y.safetensors")
        sentence(refused)
        assert told in refused.err
    sentence(run("capture", "u.safetensors", "v.safetensors"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("capture",), "FILE"),
        (("capture", "absent.safetensors"), "absent.safetensors"),
        (("capture", "before.pt"), "before.pt"),
        (("capture", "u.safetensors", "--lr", "0.1"), "--output"),
        (("capture", "u.safetensors", "--lr", "-1", "-o", "x.safetensors"), "positive"),
        (("capture", "u.safetensors", "-o", "x.pt"), ".safetensors"),
        (("capture", "u.safetensors", "--lr", "1", "-o", "u.safetensors"), "FILE"),
        (("capture", "--before", "before.pt", "-o", "x.safetensors"), "--after"),
        (("capture", "u.safetensors", "--after", "after.pt", "-o", "x.safetensors"), "FILE"),
        (("capture", "u.safetensors", "--defense", "nonsense", "-o", "x.safetensors"), "nonsense"),
        (("capture", "other.safetensors", "--model", "model.py"), "fit"),
        (("scan", "--update", "absent.safetensors"), "absent.safetensors"),
        (("scan", "--update", "bare.safetensors"), "--steps"),
        (("scan", "--update", "claimed.safetensors"), "LocalDpMod"),
        (("scan", "--update", "u.safetensors", "--data", "many.npz"), "many.npz"),
        (("scan", "--update", "u.safetensors", "-d", "clip", "-d", "sign"), "one"),
        (("scan", "--update", "u.safetensors", "--exposure", "malicious-server"), "malicious-server"),
        (("scan", "--update", "u.safetensors", "--client", "fedavg:epochs=1"), "fedavg"),
        (("scan", "--update", "u.safetensors", "--stages", "init"), "--stages"),
        (("scan", "--update", "other.safetensors"), "fit"),
    ],
)
def test_what_cannot_be_is_one_sentence(run: Run, words: tuple[str, ...], told: str) -> None:
    write_capture("bare.safetensors", after=network().state_dict())
    write_capture("other.safetensors", after=torch.nn.Linear(2, 2).state_dict(), claims=CLAIMS)
    write_capture(
        "claimed.safetensors",
        after=network().state_dict(),
        claims=replace(CLAIMS, defense=None, settings=({"name": "LocalDpMod", "epsilon": 10.0},)),
    )
    saved(Path("many.npz"), *records(SIZE + 1))
    sentence(run(*words), told)


def test_a_scan_without_the_records_shows_pictures_and_says_so(run: Run) -> None:
    done = run("scan", "--update", "u.safetensors", *QUICK)
    assert done.code == 3, done
    assert "Captured: u.safetensors, 1 update of 2 records, nobody says of which" in " ".join(done.out.split())
    result = load(Path("leakaudit-out/result.json"))
    assert doubts(result) == ()
    (drawn,) = (a.captured for d in result.defenses for a in d.attacks if a.name == "inverting-gradients")
    page = text_of(Path("leakaudit-out/report.html"))
    assert all(picture in page for picture in drawn[0].pictures)
    assert "What was captured" in page
    assert "nobody says which records are behind it" in page
    gated = run("gate", "leakaudit-out")
    assert gated.code == 3, gated
    forged = json.loads(text_of(Path("leakaudit-out/result.json")))
    forged["defenses"][0]["verdict"] = forged["verdict"] = "pass"
    Path("forged.json").write_text(json.dumps(forged))
    assert any("inconclusive" in doubt for doubt in doubts(load(Path("forged.json"))))
    assert any("whether captured updates were audited" in told for told in claims(replace(result, captured={})))
    said = replace(result, captured=result.captured | {"known": True})
    assert any("captured updates are known" in told for told in claims(said))
    bare = replace(result, captured={}, environment=result.environment | {"command": ""})
    assert any("does not say that any were" in told for told in claims(bare))
    silent = replace(result, claims=(ClaimRow(what="noise", mechanism="LocalDpMod", verdict="broken"),))
    assert any("the finding claim-broken is not that" in told for told in claims(silent))


def test_a_claim_that_the_update_breaks_is_named(run: Run) -> None:
    """LocalDpMod whose sensitivity is not its clipping norm: noise as claimed, and an ε ten million times too small."""
    std = 1e-4 * math.sqrt(2 * math.log(1.25 / 1e-5)) / 10
    mod = {"name": "LocalDpMod", "clipping_norm": 1.0, "sensitivity": 1e-4, "epsilon": 10.0, "delta": 1e-5}
    g = torch.Generator().manual_seed(0)
    given = read_capture("u.safetensors")
    after = {name: v + std * torch.randn(v.shape, generator=g) for name, v in given.updates[0].items()}
    claims = replace(CLAIMS, defense=f"gaussian:std={std!r}", settings=(mod,))
    write_capture("dp.safetensors", before=given.before, after=after, claims=claims)
    looked = run("capture", "dp.safetensors", "--model", "model.py")
    assert looked.code == 1, looked
    assert [line.split()[1] for line in looked.out.splitlines() if line.startswith("broken ")] == ["epsilon", "canary"]


def test_a_scan_with_the_records_is_scored(run: Run) -> None:
    done = run("scan", "--update", "u.safetensors", "--data", "records.npz", *QUICK)
    assert done.code in (0, 1, 3), done
    result = load(Path("leakaudit-out/result.json"))
    assert doubts(result) == ()
    assert result.captured["known"] is True
    assert (result.settings["records"], result.settings["batch_size"]) == (SIZE, SIZE)
    assert result.settings["client"] == result.captured["client"]
    assert "scored against the records that made it" in text_of(Path("leakaudit-out/report.html"))
