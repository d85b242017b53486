"""Prints docs/licences.md: the licence of every distribution that leakaudit is installed with, as it states it."""

from __future__ import annotations

import re
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("sign", "pdf", "tensorboard", "pandas", "mlflow", "wandb")  # those for users
HEAD = """# Licences of what leakaudit is installed with

leakaudit is under Apache-2.0. It redistributes none of what stands here: its wheel and its sdist hold its own files
alone, and `pip` fetches the rest from those who publish it, under their licences. So nothing here limits how
leakaudit itself may be passed on. Who ships an environment or an image with all of it inside passes these on, too,
and should look at three kinds:

- **NVIDIA's libraries** (`nvidia-…`, `cuda-toolkit`, which only names them and states no licence) are proprietary;
  NVIDIA's licence says on what conditions they may be passed on. PyTorch's builds for the CPU come without them.
- **MPL-2.0** (`tqdm`, in part): changes to its own files must be published; it may stand beside Apache-2.0 code.
- **GPL, LGPL or MPL 1.1 at choice** (`pyphen`, only with the extra `pdf`): under the MPL or the LGPL it may stand
  beside Apache-2.0 code; the GPL, version 2 alone, may not, and need not be chosen. WeasyPrint also calls Pango
  (LGPL), which is installed by the system.

All others are permissive: none of them is incompatible with Apache-2.0. This page is written by `.ci/licences.py`
from the metadata of the versions in `constraints.txt`; a test compares the names. The licence texts lie in each
distribution. This is what the packages say of themselves, and no legal advice.
"""


def licence(found: Distribution) -> str:
    """As the distribution states it: an SPDX expression, else its classifiers, else the first line of the old field."""
    fields = found.metadata
    if expression := fields.get("License-Expression"):
        return str(expression)
    old = (fields.get("License") or "").strip().splitlines()
    named = [line.rpartition(" :: ")[2] for line in fields.get_all("Classifier") or [] if line.startswith("License ::")]
    words = named if named and named != ["OSI Approved"] else old[:1]
    return " or ".join(words) or "not stated"


def closure(needs: list[Requirement], known: set[str]) -> set[str]:
    """All that these need here, themselves included, without what is known already."""
    reached: set[tuple[str, str]] = set()
    while needs:
        need = needs.pop()
        for extra in ("", *need.extras):
            if (key := (canonicalize_name(need.name), extra)) not in reached and key[0] not in known:
                reached.add(key)
                further = [Requirement(line) for line in distribution(need.name).requires or ()]
                needs += [r for r in further if r.marker is None or r.marker.evaluate({"extra": extra})]
    return {name for name, _ in reached}


def rows(names: set[str]) -> list[str]:
    """One row of the table for each."""
    lines = ["| distribution | version | licence |", "|---|---|---|"]
    for name in sorted(names):
        try:
            found = distribution(name)
        except PackageNotFoundError:
            sys.exit(f"{name} is not installed here: install it to read its licence")
        lines.append(f"| `{name}` | {found.version} | {licence(found)} |")
    return lines


def main() -> None:
    """Print the page."""
    pinned = set(re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))
    extras = [Requirement(line) for line in distribution("leakaudit").requires or () if "extra ==" in line]
    chosen = [need for need in extras if any(need.marker and need.marker.evaluate({"extra": name}) for name in EXTRAS)]
    print(HEAD)
    print("## Always", "", *rows(pinned), sep="\n", end="\n\n")
    print(
        f"## With the extras `{'`, `'.join(EXTRAS[:-1])}` and `{EXTRAS[-1]}`",
        "",
        *rows(closure(chosen, pinned)),
        sep="\n",
    )


if __name__ == "__main__":
    main()
