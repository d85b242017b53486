"""Whose a record is: as the user says it, followed through reading and dividing; else by near-duplicates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler, TensorDataset

import leakaudit
from leakaudit.errors import UserError
from leakaudit.load.loading import load_target, target_from_objects
from leakaudit.load.units import count_units, near_duplicates, with_units
from leakaudit.protocol.target import Target

SHARED = Path(__file__).parents[2] / "shared" / "data"


def pictures(count: int = 60, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.rand(count, 1, 8, 8, generator=generator), torch.arange(count) % 3)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


def shots(count: int, each: int, seed: int = 0, classes: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Return pictures, labels and persons: `each` shots, a little noisy and more or less bright, of each person."""
    generator = torch.Generator().manual_seed(seed)
    persons = torch.arange(count).repeat_interleave(each)
    coarse = torch.rand(count, 1, 8, 8, generator=generator)
    x = nn.functional.interpolate(coarse, (16, 16), mode="bilinear")[persons]
    x = x * (1 + 0.03 * torch.randn(len(x), 1, 1, 1, generator=generator))
    x = (x + 0.03 * torch.randn(x.shape, generator=generator)).clamp(0, 1)
    mixed = torch.randperm(len(x), generator=generator)
    return x[mixed], (persons % classes)[mixed], persons[mixed]


def same_partition(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one[:, None] == one[None], other[:, None] == other[None])


def unit_of(target: Target, role: str, source: TensorDataset, ids: list[Any]) -> list[tuple[int, Any]]:
    """Return (number, id as given) of every record of a role, found again by its picture."""
    records = getattr(target, role)
    where = [int((source.tensors[0] == x).flatten(1).all(1).nonzero()[0]) for x in records.images]
    return [(u, ids[i]) for u, i in zip(records.units.tolist(), where, strict=True)]


class Stream(IterableDataset):  # type: ignore[type-arg]
    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __iter__(self) -> Any:
        return iter(self.data)


@pytest.mark.parametrize("form", ["list", "array", "tensor", "factory", "loader", "stream", "dict", "limit"])
def test_ids_follow_their_records_through_every_form(form: str) -> None:
    data = pictures()
    ids: list[Any] = [i * 7 % 11 for i in range(60)]
    groups: Any = {"array": np.array(ids), "tensor": torch.tensor(ids), "dict": {"train_data": ids}}.get(form, ids)
    given: Any = {"loader": DataLoader(data, 8, shuffle=True), "stream": DataLoader(Stream(data), 8)}.get(form, data)
    target = target_from_objects(
        network(), given, groups=(lambda: ids) if form == "factory" else groups, limit=9 if form == "limit" else 4000
    )
    pairs = [pair for role in ("private", "test", "auxiliary") for pair in unit_of(target, role, data, ids)]
    assert len(pairs) == (27 if form == "limit" else 60)
    assert len(set(pairs)) == len({u for u, _ in pairs}) == len({i for _, i in pairs})  # one number per id, and back


def test_roles_share_ids_and_what_is_not_said_is_its_own_unit() -> None:
    train, test = pictures(), pictures(9, seed=1)
    ids = ["anna", "ben", None, float("nan"), *map(str, range(4, 60))]
    other = ["ben", "anna", "anna", None, *"uvwxy"]
    target = with_units(
        target_from_objects(network(), train, test_data=test, groups={"train_data": ids, "test_data": other})
    )
    numbers = {i: u for u, i in unit_of(target, "private", train, ids) if i == i and i is not None}
    told = {i: u for u, i in unit_of(target, "test", test, other)}
    assert all(numbers[name] == told[name] for name in ("anna", "ben") if name in numbers)
    assert target.private.units is not None
    assert target.test.units is not None
    assert count_units(target.private.units) == len(target.private)
    assert count_units(target.test.units) == 8  # anna is there twice
    assert min(target.private.units.tolist() + target.test.units.tolist()) >= 0
    assert with_units(target) is target


@pytest.mark.parametrize(
    ("groups", "told"),
    [
        ([1, 2], r"`groups` has 2 id\(s\) for the 60 records of train_data"),
        ({"test_data": [1]}, "`groups` names 'test_data', which is no data given here"),
        ("persons", "groups of train_data are of type str"),
        (7, "groups of train_data are of type int"),
        ([[1]] * 60, "group of record 0 of train_data is a list"),
        (torch.zeros(60, 2), "group of record 0 of train_data is a list"),
        ([torch.zeros(2)] * 60, "group of record 0 of train_data is a tensor"),
    ],
)
def test_wrong_groups_are_one_sentence(groups: Any, told: str) -> None:
    with pytest.raises(UserError, match=told) as error:
        target_from_objects(network(), pictures(), groups=groups)
    assert "\n" not in str(error.value)


def test_a_loader_in_random_order_cannot_be_followed() -> None:
    data = pictures()
    loader = DataLoader(data, sampler=SubsetRandomSampler(range(50)))
    with pytest.raises(UserError, match="draws its records in another order"):
        target_from_objects(network(), loader, groups=list(range(50)))


def test_a_model_file_says_groups(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        "import torch\nfrom torch import nn\nfrom torch.utils.data import TensorDataset\n"
        "train_data = TensorDataset(torch.rand(60, 1, 8, 8), torch.arange(60) % 3)\n"
        "model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\ngroups = [i // 2 for i in range(60)]\n"
    )
    target = load_target(str(tmp_path / "model.py"))
    assert target.private.units is not None
    assert count_units(target.private.units) < len(target.private)


@pytest.mark.parametrize(("each", "seed"), [(2, 0), (7, 1), (30, 2)])
def test_shots_of_one_person_are_found(each: int, seed: int) -> None:
    x, y, persons = shots(20, each, seed)
    assert same_partition(near_duplicates(x, y), persons)


def test_nothing_is_found_where_pictures_only_vary(generator: torch.Generator) -> None:
    labels = torch.arange(300) % 3
    noise = torch.rand(300, 3, 12, 12, generator=generator)
    around = torch.rand(3, 1, 12, 12, generator=generator)[labels] + 0.05 * noise[:, :1]  # a whole class: no unit
    walk = (noise[:, :1, 0, :1, None] * 0.02).cumsum(0) + torch.rand(1, 1, 12, 12, generator=generator)
    walk = walk + 0.05 * torch.linspace(0, 40, 300).view(-1, 1, 1, 1) * torch.rand(1, 1, 12, 12, generator=generator)
    for x in (noise, around, walk):  # the last is a chain
        assert torch.equal(near_duplicates(x, labels), torch.arange(300))
    assert near_duplicates(noise[:1], labels[:1]).tolist() == [0]
    flat = near_duplicates(torch.zeros(4, 1, 8, 8), torch.zeros(4))
    assert flat.tolist() == [0, 1, 2, 3]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the maintainers' data")
def test_hardly_anything_is_found_among_real_pictures() -> None:
    with np.load(SHARED / "cifar10" / "cifar10_train_a.npz") as z:
        x, y = torch.from_numpy(z["x_train"][:2000]).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(z["y_train"])
    clusters = near_duplicates(x, y[:2000])
    assert len(x) - count_units(clusters) <= 5  # CIFAR-10 holds some: 13 pairs in 8,000, all of them seen to be true


@pytest.mark.usefixtures("short_battery")
def test_the_unit_is_what_an_audit_looks_for() -> None:
    x, y, persons = shots(12, 10)
    test, lent = slice(80, 100), slice(100, 120)
    result = leakaudit.scan(
        network2(),
        TensorDataset(x[:80], y[:80]),
        test_data=TensorDataset(x[test], y[test]),
        auxiliary_data=TensorDataset(x[lent], y[lent]),
        attacks=("linkage",),
        records=12,
        utility=False,
    )
    assert count_units(persons[:80]) == 12
    assert result.target["private_units"] == 12
    assert any("the 12 attacked ones of 12;" in told for told in result.assumptions)
    (found,) = [f for f in result.findings if f.id == "near-duplicates"]
    assert found.severity == "info"
    assert found.evidence["clusters"] == 12
    linkage = next(a for a in result.defenses[0].attacks if a.name == "linkage")
    assert (linkage.candidates, linkage.identification.n) == (6, 12)
    assert result.chance_identification == pytest.approx(1 / 6)


def network2() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.Tanh(), nn.Linear(8, 2))


@pytest.mark.usefixtures("short_battery")
def test_a_victim_alone_in_its_class_is_left_out_and_counted() -> None:
    train, test = pictures(10), pictures(30, seed=1)
    train.tensors[1][:] = torch.tensor([0] * 5 + [1] * 4 + [2])
    test.tensors[1][:] = torch.arange(30) % 2
    result = leakaudit.scan(
        network(),
        train,
        test_data=test,
        auxiliary_data=pictures(30, seed=2),
        attacks=("linkage", "analytic"),
        records=10,
        utility=False,
    )
    (found,) = [f for f in result.findings if f.id == "no-line-up"]
    assert found.evidence == {"records": 1, "of": 10}
    for a in result.defenses[0].attacks:
        assert (a.identification.n, a.identification.value) == (9, 1.0)
        looked = [r for r in a.records if r.identified is not None]
        assert {r.candidates for r in looked} == {19, 20}
        assert a.statuses == {"converged": 10}
    assert result.chance_identification == pytest.approx((5 / 20 + 4 / 19) / 9)
    assert [b.identification.n for b in result.baselines] == [9] * 3
