"""What `--quiet` lets through."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout


@contextmanager
def silence() -> Iterator[None]:
    """Let nothing through but exceptions: warnings, logged notes, and what user's code prints are dropped."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with open(os.devnull, "w") as nowhere, warnings.catch_warnings(), redirect_stdout(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
