"""Keys that sign results: Ed25519 in PEM files, by the library `cryptography`, which is an extra."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leakaudit.errors import UserError
from leakaudit.files.reading import text_of
from leakaudit.result.signature import Signature, covered, raw

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

Ask = Callable[[], str]  # asks for a passphrase


def fingerprint(key: Ed25519PublicKey) -> str:
    """Return the SHA-256 of a public key as DER, hex: of `openssl pkey -pubin -in KEY -outform DER`."""
    serialization = _library()
    return hashlib.sha256(
        key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    ).hexdigest()


def new_key(passphrase: str = "") -> tuple[bytes, bytes]:
    """Return a new private key and its public key as PEM; the private one encrypted where a passphrase is given."""
    serialization = _library()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    locked: Any = serialization.NoEncryption()
    if passphrase:
        locked = serialization.BestAvailableEncryption(passphrase.encode())
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return private, public


def read_private(path: Path, ask: Ask) -> Ed25519PrivateKey:
    """Read a private key; `ask` is called for the passphrase of an encrypted one.

    Raises UserError where the file cannot be read, is no private Ed25519 key, or the passphrase is wrong.
    """
    serialization = _library()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    pem = _pem(path)
    if "PRIVATE KEY" not in pem:
        what = "is a public key: sign with the private one" if "PUBLIC KEY" in pem else "holds no private key in PEM"
        raise UserError(f"{path} {what}.")
    locked = "ENCRYPTED" in pem.split("PRIVATE KEY", 1)[0]
    try:
        key = serialization.load_pem_private_key(pem.encode(), ask().encode() if locked else None)
    except UserError:
        raise
    except Exception as error:  # the library's own classes, by version, and what is below it
        why = "its passphrase is another" if locked else "it is damaged, or of a kind that is not known"
        raise UserError(f"{path} cannot be used as a private key: {why}.") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"{path} is a private key of another kind: make an Ed25519 key with leakaudit sign --new-key.")
    return key


def read_public(path: Path) -> Ed25519PublicKey:
    """Read a public key. Raises UserError where the file cannot be read or is no public Ed25519 key."""
    serialization = _library()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    pem = _pem(path)
    if "PRIVATE KEY" in pem:
        raise UserError(f"{path} holds a private key, which its owner keeps: give the public one.")
    try:
        key = serialization.load_pem_public_key(pem.encode())
    except Exception as error:  # as above
        raise UserError(f"{path} is no public key in PEM: give the file that its owner gave you.") from error
    if not isinstance(key, Ed25519PublicKey):
        raise UserError(f"{path} is a public key of another kind: signatures of results are Ed25519.")
    return key


def sign(signature: Signature, key: Ed25519PrivateKey) -> Signature:
    """Return what is to be signed with the fingerprint of the key and the signature by it."""
    named = replace(signature, key=fingerprint(key.public_key()), signature="")
    return replace(named, signature=base64.b64encode(key.sign(covered(named))).decode("ascii"))


def holds(signature: Signature, key: Ed25519PublicKey) -> bool:
    """Return whether this key made a signature over just what it says."""
    _library()
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(raw(signature), covered(signature))
    except InvalidSignature:
        return False
    return signature.key == fingerprint(key)


def _pem(path: Path) -> str:
    text = text_of(path)
    if len(text) > 100_000:
        raise UserError(f"{path} is too large to be a key in PEM.")
    return text


def _library() -> Any:
    """Return the part of `cryptography` that reads and writes keys; UserError where it is not installed."""
    try:
        from cryptography.hazmat.primitives import serialization
    except ImportError as error:
        raise UserError("signatures need the library cryptography: pip install 'leakaudit[sign]'.") from error
    return serialization
