"""Generators of several clients as one: all pictures, each as likely, and a card that says whose they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from leakaudit import Obscurer, UserError
from leakaudit.defenses import obscurer
from leakaudit.defenses.obscurer import mark, read
from leakaudit.defenses.obscurer_card import render
from leakaudit.defenses.obscurer_file import Card
from leakaudit.defenses.obscurer_pool import pool
from tests.leakaudit.command_line import caller


def made(seed: int, count: int = 6, classes: int = 3, shape: tuple[int, int, int] = (3, 8, 8)) -> Obscurer:
    rng = torch.Generator().manual_seed(seed)
    pictures = torch.randint(0, 256, (count, *shape), generator=rng).float() / 255
    return Obscurer(pictures, torch.rand(count, classes, generator=rng).softmax(1))


def card(seed: int, **settings: int) -> Card:
    return Card(
        classes=("a", "b", "c"),
        settings={"mirror": True, "epochs": 50, **settings},
        records=(seed, 0, 2),
        shape=(3, 8, 8),
        digest=f"d{seed}",
        target="t.py",
        measured={"auc": 0.5},
        found=(f"warning: odd {seed}",),
    )


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Return the files of three clients, of whom the last was fitted otherwise."""
    found = [tmp_path / f"{n}.safetensors" for n in (1, 2, 3)]
    for n, file in enumerate(found, 1):
        made(n, count=2 * n).save(file, card(n, epochs=50 if n < 3 else 20))
    return found


def test_a_pool_holds_the_pictures_of_all_with_their_probabilities_and_draws_each_alike(
    generator: torch.Generator,
) -> None:
    parts = [made(seed, count) for seed, count in ((1, 3), (2, 5))]
    found = Obscurer.pooled(parts)
    assert torch.equal(found.pictures, torch.cat([part.pictures for part in parts]))
    assert torch.allclose(found.labels, torch.cat([part.labels for part in parts]))
    assert torch.allclose(found.labels.sum(1), torch.ones(8), atol=1e-6)
    for _ in range(5):  # in as many draws as it has pictures each comes once, whatever the record
        chosen = found.choose(torch.rand(8, 3, 8, 8), generator)
        assert sorted(chosen.tolist()) == list(range(8))
    assert all(
        torch.equal(part.pictures, made(seed, count).pictures)
        for part, (seed, count) in zip(parts, ((1, 3), (2, 5)), strict=True)
    )


def test_opinions_of_the_same_pictures_are_averaged() -> None:
    first = made(1)
    second = replace(first, labels=torch.rand(6, 3).softmax(1))
    found = Obscurer.pooled([first, second])
    assert torch.equal(found.pictures, first.pictures)
    assert torch.allclose(found.labels, (first.labels + second.labels) / 2)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda part: part, "obscurer 2 holds the same as obscurer 1"),
        (lambda _: replace(made(2), slope=0.3), "obscurer 2 was fitted with a rate above 0"),
        (lambda _: made(2, shape=(1, 8, 8)), "obscurer 2 draws pictures 1×8×8, and obscurer 1 pictures 3×8×8"),
        (lambda part: replace(part, depth=3), "obscurer 2 draws volumes 1×3×8×8, and obscurer 1 pictures 3×8×8"),
        (lambda _: made(2, classes=4), "obscurer 2 knows 4 classes, and obscurer 1 3"),
        (lambda _: replace(made(2), mirror=False), "whether pictures may be mirrored"),
    ],
)
def test_what_does_not_fit_together_is_refused_in_one_sentence(
    other: Callable[[Obscurer], Obscurer], message: str
) -> None:
    first = made(1)
    with pytest.raises(UserError) as caught:
        Obscurer.pooled([first, other(first)])
    assert message in str(caught.value)
    assert str(caught.value).count("\n") == 0


def test_a_pool_takes_two_and_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="at least two clients"):
        Obscurer.pooled([made(1)])
    monkeypatch.setattr(obscurer, "MOST_POOLED", 11)
    with pytest.raises(UserError, match="would hold 12 pictures, and holds 11 of this size at most"):
        Obscurer.pooled([made(1), made(2)])


def test_the_card_says_from_whom(files: list[Path]) -> None:
    whole, told = pool(files)
    assert told.records == (6, 0, 6)
    assert told.settings == {"mirror": True}  # what all have in common
    assert [source.sha256 for source in told.sources] == [mark(Obscurer.load(file)) for file in files]
    assert [(s.records, s.pictures, s.digest, s.auc) for s in told.sources] == [
        (3, 2, "d1", 0.5),
        (4, 4, "d2", 0.5),
        (5, 6, "d3", 0.5),
    ]
    assert told.found == ("1: warning: odd 1", "2: warning: odd 2", "3: warning: odd 3")
    text = render(whole, told, "pool.safetensors")
    for words in ("generators of 3 clients", "epochs=20", told.sources[2].sha256, "each client's own", "It is a pool"):
        assert words in text
    assert "Each client fits its own" not in text


def test_a_pool_is_a_file_as_any_and_can_be_pooled_on_but_not_with_its_own_parts(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, told = pool(files[:2])
    place = tmp_path / "pool.safetensors"
    first.save(place, told)
    again, read_back = read(place)
    assert torch.equal(again.pictures, first.pictures)
    assert read_back == told
    whole, of_all = pool([place, files[2]])
    assert (len(whole.pictures), len(of_all.sources), of_all.records) == (12, 3, (6, 0, 6))
    with pytest.raises(UserError, match=r"1\.safetensors holds what .*1\.safetensors holds already"):
        pool([files[0], files[0]])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="holds already"):  # one text for both, too
        pool([Path(place.name), Path(place.name)])
    with pytest.raises(UserError, match=r"1\.safetensors holds what .*pool\.safetensors holds already"):
        pool([place, files[0]])


@pytest.mark.parametrize(("epsilons", "whole"), [((2.0, 8.0), 8.0), ((2.0, None), None)])
def test_a_pool_is_as_private_as_the_least_private_of_its_parts(
    tmp_path: Path, epsilons: tuple[float | None, ...], whole: float | None
) -> None:
    found = [tmp_path / f"{n}.safetensors" for n in (1, 2)]
    for n, (file, epsilon) in enumerate(zip(found, epsilons, strict=True), 1):
        told = card(n) if epsilon is None else Card(("a", "b", "c"), {"epsilon": epsilon}, shape=(3, 8, 8))
        made(n).save(file, replace(told, epsilon=epsilon, delta=1e-5 * n if epsilon else 0.0))
    whole_pool, pooled = pool(found)
    assert pooled.epsilon == whole
    assert pooled.delta == (2e-5 if whole else 1e-5)
    text = render(whole_pool, pooled, "pool.safetensors")
    assert ("no record is at two clients" in text) == (whole is not None)
    assert "not told" in text
    assert ("not bounded |" in text) == (whole is None)


def test_classes_must_be_called_the_same(files: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    made(9).save(other, replace(card(9), classes=("a", "x", "c")))
    with pytest.raises(UserError, match=r"other\.safetensors calls class 1 'x', and .*1\.safetensors 'b'"):
        pool([files[0], other])


def test_the_command_writes_it_and_refuses_in_one_sentence(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = caller(monkeypatch, tmp_path, capsys, "")
    outcome = run("obscure", "pool", *map(str, files), "-o", "pool.safetensors")
    assert outcome.code == 0, outcome
    assert "pooled    12 pictures of 3 clients over 3 classes" in outcome.out
    assert torch.equal(Obscurer.load("pool.safetensors").pictures, pool(files)[0].pictures)
    assert Path("pool.md").read_text().startswith("# pool.safetensors: an obscuring generator")
    first = Path("pool.safetensors").read_bytes()
    run("obscure", "pool", *map(str, files), "-o", "pool.safetensors")
    assert Path("pool.safetensors").read_bytes() == first
    refused = run("obscure", "pool", str(files[0]))
    assert refused.code == 2
    assert "at least two clients" in refused.err
    assert "Traceback" not in refused.err
