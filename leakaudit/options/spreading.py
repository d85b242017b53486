"""Options of where a scan is computed and what is kept of it: they change nothing in its result."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leakaudit.options.common import SPREAD

Workers = Annotated[
    int,
    typer.Option(
        "--workers",
        metavar="N",
        help="Processes that share out the scan's pieces, on each GPU in turn. The result is the same.",
        rich_help_panel=SPREAD,
    ),
]

Executor = Annotated[
    str,
    typer.Option(
        "--executor",
        metavar="NAME",
        help="Where they run: local, ray (a Ray cluster), slurm (an array job), or folder: wherever you start "
        "leakaudit worker on the cache's folder.",
        rich_help_panel=SPREAD,
    ),
]

Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        metavar="FOLDER",
        help="Where finished pieces are kept, for this scan and later ones. Default: ~/.cache/leakaudit.",
        rich_help_panel=SPREAD,
    ),
]

Fresh = Annotated[
    bool,
    typer.Option(
        "--fresh",
        help="Compute every piece anew, whatever is known.",
        allow_from_autoenv=False,
        rich_help_panel=SPREAD,
    ),
]

Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Only go on with a scan of these settings that was not finished. Without it a scan does so by itself.",
        allow_from_autoenv=False,
        rich_help_panel=SPREAD,
    ),
]

Keep = Annotated[
    bool,
    typer.Option(
        "--keep-intermediates",
        help="Leave private pieces (released records, reconstructions) in the cache when the scan ends.",
        rich_help_panel=SPREAD,
    ),
]
