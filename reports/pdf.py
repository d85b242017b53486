"""A report as PDF, made of the HTML report by WeasyPrint: tagged (PDF/UA-1), nothing fetched, the same bytes again."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from leakaudit.errors import UserError, first_line

NOTE = re.compile(rb'<meta name="(generator|producer|result-sha256|gate-sha256)" content="([^"]*)">')
MISSING = (
    "a PDF needs WeasyPrint ({why}): install it with pip install 'leakaudit[pdf]', and Pango with the system's "
    "packages (libpango-1.0-0 and libpangoft2-1.0-0 on Debian, brew install pango on macOS), or print the HTML from a "
    "browser."
)


def to_pdf(page: str) -> bytes:
    """Return an HTML report as PDF: the same page and library give the same bytes. UserError without WeasyPrint."""
    printer = producer()
    import weasyprint

    only_itself = weasyprint.URLFetcher(allowed_protocols=("data",), allow_redirects=False)
    logging.getLogger("weasyprint").setLevel(logging.ERROR)  # it warns of every style that is for screens only
    document = weasyprint.HTML(string=page, url_fetcher=only_itself)
    # What a PDF is identified by is not compressed: `verify` reads there what the page notes of itself.
    notes = [note[0] for note in NOTE.finditer(page.encode())]
    named = b"".join([*notes, f'<meta name="producer" content="{printer}">'.encode()])
    with _without_the_time():
        data: bytes = document.write_pdf(pdf_variant="pdf/ua-1", pdf_identifier=named)
    return data


@contextmanager
def _without_the_time() -> Iterator[None]:
    """Print as at a fixed time: where HarfBuzz's subsetter is missing, fontTools notes in a font when it was cut."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    os.environ["SOURCE_DATE_EPOCH"] = "0"
    try:
        yield
    finally:
        if given is None:
            del os.environ["SOURCE_DATE_EPOCH"]
        else:
            os.environ["SOURCE_DATE_EPOCH"] = given


def producer() -> str:
    """Return the name and version of the library that prints. UserError without it."""
    try:
        import weasyprint
    except (ImportError, OSError) as error:  # OSError: the library is there, Pango is not
        raise UserError(MISSING.format(why=first_line(error))) from error
    return f"WeasyPrint {weasyprint.__version__}"


def write(path: Path, page: str, private: bool = False) -> None:
    """Write an HTML report to a PDF file whole or not at all; `private`: for its owner alone."""
    from leakaudit.files.writing import write_atomically

    write_atomically(path, to_pdf(page), private)
