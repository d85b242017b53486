"""A report as PDF, made of the HTML report by WeasyPrint: tagged (PDF/UA-1), nothing fetched, the same bytes again."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from leakaudit.errors import UserError

# What `print.html.j2` sets for paper. WeasyPrint's SVG knows no CSS variables, so they are written out there.
PAPER = {
    "paper": "#ffffff",
    "wash": "#f4f5f6",
    "ink": "#000000",
    "muted": "#444444",
    "rule": "#bbbbbb",
    "accent": "#1f4e79",
    "pass": "#1d6b3a",
    "fail": "#9c1c1c",
    "inconclusive": "#7a5200",
}
MISSING = (
    "a PDF needs WeasyPrint ({why}): install it with pip install 'leakaudit[pdf]', and Pango with the system's "
    "packages (libpango-1.0-0 and libpangoft2-1.0-0 on Debian, brew install pango on macOS), or print the HTML from a "
    "browser."
)


def to_pdf(page: str) -> bytes:
    """Return an HTML report as PDF: the same page and library give the same bytes. UserError without WeasyPrint."""
    try:
        import weasyprint
    except (ImportError, OSError) as error:  # OSError: the library is there, Pango is not
        raise UserError(MISSING.format(why=str(error).splitlines()[0][:120])) from error

    only_itself = weasyprint.URLFetcher(allowed_protocols=("data",), allow_redirects=False)
    logging.getLogger("weasyprint").setLevel(logging.ERROR)  # it warns of every style that is for screens only
    document = weasyprint.HTML(string=for_paper(page), url_fetcher=only_itself)
    # Its meta elements come with it: the digests, for `verify`.
    data: bytes = document.write_pdf(pdf_variant="pdf/ua-1", pdf_identifier=b"leakaudit", custom_metadata=True)
    return data


def for_paper(page: str) -> str:
    """Return the page with the colours of paper written into its drawings."""

    def painted(svg: re.Match[str]) -> str:
        return re.sub(r"var\(--(\w+)\)", lambda name: PAPER.get(name[1], "#000000"), svg[0])

    return re.sub(r"<svg .*?</svg>", painted, page, flags=re.DOTALL)


def write(path: Path, page: str, mode: int = 0o644) -> None:
    """Write an HTML report to a PDF file with these permissions, whole or not at all."""
    from leakaudit.result.files import write_atomically

    write_atomically(path, to_pdf(page), mode)
