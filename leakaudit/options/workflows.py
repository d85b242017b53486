"""The workflows for CI that `leakaudit init` writes: the examples of the package, with a project's own words."""

from __future__ import annotations

import re
from pathlib import Path

from leakaudit.errors import UserError

WORKFLOWS = {"github": Path(".github/workflows/leakaudit.yml"), "gitlab": Path(".gitlab/leakaudit.yml")}
SIMPLE = re.compile(r"[\w./:=,+-]+")  # needs quoting neither in YAML nor in a shell


def workflow(name: str, target: str, defenses: tuple[str, ...], records: int) -> str:
    """Return the example workflow with this project's target, defenses and records in it."""
    for word in (target, *defenses):
        if not SIMPLE.fullmatch(word) or word.startswith("-"):
            raise UserError(f"{word!r} cannot be written into a workflow as it is: copy one from examples/workflows.")
    text = (Path(__file__).parents[1] / "workflows" / f"{name}.yml").read_text(encoding="utf-8")
    changes = {
        "github": {
            "          target: model.py\n": f"          target: {target}\n",
            "            obscure\n": "".join(f"            {spec}\n" for spec in defenses),
            "--records=64\n": f"--records={records}\n",
        },
        "gitlab": {
            "--defense=obscure": " ".join(f"--defense={spec}" for spec in defenses),
            "--records=64": f"--records={records}",
            " model.py\n": f" {target}\n",
        },
    }[name]
    for before, after in changes.items():
        if text.count(before) != 1:
            raise RuntimeError(f"the workflow {name}.yml has {text.count(before)} of {before!r}, not one")
        text = text.replace(before, after)
    return text
