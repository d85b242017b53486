"""Signing a result and what belongs to it, and whether a signature holds over these very files by this very key."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from leakaudit.errors import UserError
from leakaudit.result.dates import commit_of, now, words
from leakaudit.result.keys import fingerprint, holds, read_public, sign
from leakaudit.result.schema import AuditResult
from leakaudit.result.signature import LONGEST, SUFFIX, Part, Signature, SignedFile, load
from leakaudit.version import __version__

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


@dataclass(frozen=True)
class Checked:
    """What became of a signature; `holds` is None where no key was given, so that nothing was checked."""

    holds: bool | None
    sentences: tuple[str, ...]


def beside(result: Path) -> Path:
    """Return where the signature of a result lies where nobody says otherwise."""
    return result.with_name(result.name + SUFFIX)


def signature_of(
    result: AuditResult, files: dict[Part, tuple[Path, ...]], key: Ed25519PrivateKey, signer: str = ""
) -> Signature:
    """Return a signature by `key` over files by their kinds, the result's among them; dated now.

    Raises UserError where a file cannot be read or the signer's name cannot stand in a signature.
    """
    name = signer.strip()
    if len(name) > LONGEST or not all(c.isprintable() for c in name):
        raise UserError(f"the signer's name takes at most {LONGEST} characters, and none that cannot be seen.")
    covers = tuple(
        SignedFile(part, path.name[:LONGEST], digest_of(path)) for part, paths in files.items() for path in paths
    )
    unsigned = Signature(
        files=covers,
        audited=result.made,
        audited_with=str(result.environment.get("leakaudit") or "")[:LONGEST],
        commit=commit_of(result)[:LONGEST],
        key="",
        signer=name,
        signed=now(),
        signed_with=__version__,
    )
    return sign(unsigned, key)


def check(place: Path, given: dict[Part, Path | None], key: Path | None, *, derived: bool = False) -> Checked:
    """Return whether the signature at `place` holds over the `given` files by the public `key`.

    A report that nobody signed is covered where it is `derived`: byte for byte what the signed result says. A gate's
    outcome must be signed itself. Raises UserError for a key or a signature that is none, or a file that is unreadable.
    """
    if not place.exists():
        return Checked(None if key is None else False, (f"There is no signature: {place} does not exist.",))
    if key is None:
        try:
            found = load(place)
        except UserError as error:  # some other program's: nobody asked for it
            return Checked(None, (f"{error} It was not checked.",))
        told = f"Signed by {_who(found)} on {words(found.signed)}, as {place} says, not checked: give --key."
        return Checked(None, (told,))
    found, public = load(place), read_public(key)
    own = fingerprint(public)
    if found.key != own:
        return Checked(False, (f"{place} is by another key than {key}: by {found.key}, not by {own} (SHA-256).",))
    if not holds(found, public):
        told = f"{place} was changed after it was signed, or {key} never signed it: the signature does not hold."
        return Checked(False, (told,))
    wrong = _files(place, found, {part: path for part, path in given.items() if path is not None}, derived)
    if wrong:
        return Checked(False, wrong)
    shown = given.get("report")
    own_report = shown is not None and digest_of(shown) in [file.sha256 for file in found.of("report")]
    also = ", and the report says what that says," if derived and not own_report else ""
    names = " and ".join(file.name for file in found.files)
    made = f"audited {words(found.audited)}" if found.audited else "of an audit without a date"
    made += f" by leakaudit {found.audited_with}" if found.audited_with else ""
    commit = f", code at commit {found.commit}" if found.commit else ""
    return Checked(
        True,
        (
            f"The signature holds: {_who(found)} signed {names}{also} on {words(found.signed)}, with leakaudit "
            f"{found.signed_with} ({made}{commit}).",
            f"The key is {own} (SHA-256): that it is theirs is for you to know, and that date is by their clock.",
        ),
    )


def _files(place: Path, found: Signature, given: dict[Part, Path], derived: bool) -> tuple[str, ...]:
    """Return why a signature is not over these files, empty where it is."""
    wrong = []
    for part, path in given.items():
        signed = [file.sha256 for file in found.of(part)]
        if part == "report" and derived:  # printed again of the signed result, whatever else was signed with it
            continue
        if not signed:
            wrong.append(f"{path} is not among what {place} covers: have it signed too (leakaudit sign --{part}).")
        elif digest_of(path) not in signed:
            wrong.append(f"{path} is not the file that was signed: its SHA-256 is {digest_of(path)}, not {signed[0]}.")
    return tuple(wrong)


def _who(found: Signature) -> str:
    return f"“{found.signer}”" if found.signer else f"the owner of the key {found.key}"


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes; raises UserError where it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from error
