"""What a PDF that leakaudit wrote says of itself, and whether it is what its result gives."""

from __future__ import annotations

import re
import zlib
from typing import Literal

from leakaudit.errors import UserError
from leakaudit.reports.pdf import MISSING, to_pdf

# Names of the document information, and what a page calls them.
ENTRIES = {
    "Producer": "producer",
    "Creator": "generator",
    "resultsha256": "result-sha256",
    "gatesha256": "gate-sha256",
}
ENTRY = re.compile(rb"/(" + "|".join(ENTRIES).encode() + rb") ?\(((?:[^()\\]|\\.)*)\)", re.DOTALL)
MOST = 16 * 2**20  # bytes that one stream is unpacked to


def is_pdf(data: bytes) -> bool:
    """Return whether a file begins as a PDF."""
    return data.startswith(b"%PDF-")


def notes(data: bytes) -> dict[str, str]:
    """Return what a PDF notes of itself, by the names of the page's meta elements, and its `producer`.

    Nothing here is proof: whoever changes a PDF can change its notes.
    """
    found: dict[str, str] = {}
    for start in re.finditer(rb"\bstream\r?\n", data):
        packed = data[start.end() : data.find(b"endstream", start.end())]
        try:
            text = zlib.decompressobj().decompress(packed, MOST)
        except zlib.error:
            continue
        for name, value in ENTRY.findall(text):
            found[ENTRIES[name.decode()]] = re.sub(rb"\\(.)", rb"\1", value, flags=re.DOTALL).decode("latin-1")
    return found


def compared(data: bytes, page: str) -> tuple[Literal["same", "other", "unknown"], str]:
    """Compare a PDF with the one that `page` gives here; return what came of it, and why it is not the same."""
    try:
        import weasyprint

        again = to_pdf(page)
    except (ImportError, OSError, UserError) as error:  # OSError: the library is there, Pango is not
        return "unknown", str(error) if isinstance(error, UserError) else MISSING.format(why=str(error).split("\n")[0])
    if again == data:
        return "same", ""
    here, made = f"WeasyPrint {weasyprint.__version__}", notes(data).get("producer")
    if made != here:
        return "unknown", f"{made or 'an unknown program'} wrote it, here is {here}"
    return "other", f"{here} makes other bytes of the result here"
