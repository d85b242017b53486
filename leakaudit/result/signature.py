"""Who stands behind which bytes: a signature beside a result, readable, and signed in all that it says.

Ed25519 (RFC 8032) over canonical bytes of every field but the signature itself, behind a prefix that no other use of a
key shares. The key's owner is whoever gave you the public key: the name in a signature is a claim of the key's owner.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from cattrs.preconf.json import make_converter

from leakaudit.errors import UserError
from leakaudit.files.jsonfile import structured
from leakaudit.files.reading import text_of
from leakaudit.result.dates import is_moment

SCHEMA = "leakaudit.signature/1"
PREFIX = b"leakaudit signature, version 1\0"  # what is signed begins so: no signature of anything else is one of these
SUFFIX = ".sig"
LONGEST = 200  # characters of the signer's name
Part = Literal["result", "report", "gate"]
PARTS: tuple[Part, ...] = ("result", "report", "gate")


@dataclass(frozen=True)
class SignedFile:
    """One file that a signature covers."""

    part: Part
    name: str  # as the file was called; what counts is the digest
    sha256: str


@dataclass(frozen=True)
class Signature:
    """What somebody signed: files by their digests, whose audit they are of, by which key, and when."""

    files: tuple[SignedFile, ...]  # the result first
    audited: str  # when the audit began, in UTC; empty where the result has no date
    audited_with: str  # the version of leakaudit that made the result
    commit: str  # of the model's code, empty where the audit knew none
    key: str  # SHA-256 of the public key as DER (SubjectPublicKeyInfo), hex
    signer: str  # the name that the key's owner gave, or empty
    signed: str  # when, in UTC, by the clock of whoever signed
    signed_with: str  # the version of leakaudit that signed
    signature: str = ""  # base64
    algorithm: str = "Ed25519"
    schema: str = SCHEMA

    def of(self, part: Part) -> tuple[SignedFile, ...]:
        """Return the files of one kind that it covers."""
        return tuple(file for file in self.files if file.part == part)


_converter = make_converter(forbid_extra_keys=True)


def covered(signature: Signature) -> bytes:
    """Return the bytes that are signed: the prefix, and every field but the signature as canonical JSON in ASCII."""
    values = _converter.unstructure(replace(signature, signature=""))
    return PREFIX + json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def to_json(signature: Signature) -> str:
    """Return the signature as the file holds it: JSON, sorted keys, one trailing newline."""
    return json.dumps(_converter.unstructure(signature), indent=1, sort_keys=True) + "\n"


def load(path: Path) -> Signature:
    """Read a signature file. Raises UserError where it cannot be read, or holds anything that none holds."""
    give = "a file written by leakaudit sign"
    text = text_of(path)
    found = structured(text, str(path), SCHEMA, Signature, give)
    if text != to_json(found):  # repeated keys, numbers for texts: what is shown must be all that is there
        raise UserError(f"{path} is no signature as leakaudit writes one: give {give}.")
    wrong = _flaw(found)
    if wrong:
        raise UserError(f"{path} is no signature: {wrong}: give {give}.")
    return found


def _flaw(found: Signature) -> str:
    """Return what of a signature cannot be, empty where all can."""
    texts: list[Any] = [getattr(found, f.name) for f in fields(found) if f.name != "files"]
    if found.algorithm != "Ed25519":
        return "its algorithm is not Ed25519"
    if not all(is_digest(file.sha256) for file in found.files) or not is_digest(found.key):
        return "a SHA-256 in it is none"
    if [file.part for file in found.files].count("result") != 1 or len(found.of("gate")) > 1 or len(found.files) > 20:
        return "it does not cover one result"
    if not is_moment(found.signed) or (found.audited and not is_moment(found.audited)):
        return "a date in it is none"
    if any(len(text) > 2 * LONGEST for text in (*texts, *(file.name for file in found.files))):
        return "a text in it is too long"
    if len(raw(found)) != 64:
        return "what should be 64 bytes of signature is something else"
    return ""


def raw(signature: Signature) -> bytes:
    """Return the signature itself, 64 bytes of a well-formed one; empty where it is no base64."""
    try:
        return base64.b64decode(signature.signature, validate=True)
    except (binascii.Error, ValueError):
        return b""


def is_digest(text: str) -> bool:
    """Return whether a text is a SHA-256 in hex, lower case."""
    return len(text) == 64 and set(text) <= set("0123456789abcdef")
