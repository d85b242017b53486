"""What users' own code reads is in the name of the outcomes that come of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from leakaudit.protocol import registry
from leakaudit.units import code
from tests.leakaudit import audited
from tests.leakaudit.named import changed, keys


def reread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read code as another process would."""
    for cached in (code._read, code._around, code._home):
        cached.cache_clear()
    registry._files.clear()


@pytest.fixture
def users(tmp_path: Path, fresh_registry: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with an attack of a user's, that reads tables, variables and modules beside it."""
    (tmp_path / "my_attack.py").write_text(
        "import os; from helper import STEPS\nfrom base import Own as Mine\nRATE = os.environ.get('MINE_RATE')\n"
        "env = os.environ\nWIDTH = env.setdefault('MINE_WIDTH', '1')\n"
    )
    (tmp_path / "base.py").write_text(
        "from dataclasses import dataclass\nfrom pathlib import Path\nimport many\n"
        "from leakaudit.protocol.attack import Attack\nHERE = Path(__file__).parent\nSOFT = many.SOFT\n\n\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Own(Attack):\n    name = 'own'\n    kind = 'labels'\n    weights: str = ''\n\n"
        "    def __call__(self, model, update, generator):\n        return open('table.txt').read(), self.more()\n\n"
        "    def more(self):\n        return (HERE / 'deep' / 'er' / 'rates.txt').read_text(), SOFT\n"
    )
    (tmp_path / "many.py").write_text(
        "from pathlib import Path\nSOFT = sorted(f.read_text() for f in Path(__file__).parent.glob('*.rate'))\n"
    )
    (tmp_path / "helper.py").write_text("STEPS = 3\n")
    (tmp_path / "table.txt").write_text("1")
    (tmp_path / "one.rate").write_text("1")
    (tmp_path / "w.pt").write_text("1")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "rates.txt").write_text("1")
    reread(monkeypatch)
    return tmp_path


FILES = ["my_attack.py", "base.py", "helper.py", "table.txt", "deep/er/rates.txt", "one.rate", "w.pt"]


@pytest.mark.parametrize("part", [*FILES, "MINE_RATE", "MINE_WIDTH"])
def test_a_users_attack_is_named_by_all_that_it_reads(
    part: str, users: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINE_WIDTH", "1")
    spec = f"{users / 'my_attack.py'}:Mine:weights={users / 'w.pt'}"
    before, replay = keys(audited.target(), attack=spec), keys(audited.target())
    assert changed(before, keys(audited.target(), attack=spec)) == frozenset()
    if part in FILES:
        (users / part).write_text((users / part).read_text() + "# edited\n")
    else:
        monkeypatch.setenv(part, "2")
    reread(monkeypatch)
    assert changed(before, keys(audited.target(), attack=spec)) == {"tune", "run", "attack", "weakened"}
    assert changed(replay, keys(audited.target())) == frozenset()
    assert "base" not in sys.modules  # modules beside a user's file are forgotten once it is read
