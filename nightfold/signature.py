"""Signature: who sealed a bundle, by an Ed25519 key.

Checksums find what was altered; a signature finds what somebody else has sealed. It is 64 bytes
beside the manifest and covers the manifest's bytes, which hold the sha256 of every other file, so
``openssl`` can check it as well. Keys are PEM files that ``openssl`` makes; where they are, and a
passphrase, comes from the environment alone, never from a parameter or a file of a run.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from nightfold.errors import BundleRefused, UsageError
from nightfold.files import given

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

SIGNATURE = "manifest.json.sig"
SIGNATURE_BYTES = 64

SIGNING_KEY = "NIGHTFOLD_SIGNING_KEY"
PASSPHRASE = "NIGHTFOLD_SIGNING_PASSPHRASE"
PUBLIC_KEY = "NIGHTFOLD_PUBLIC_KEY"


def sign(manifest: bytes) -> bytes | None:
    """Signature of a manifest; None if no key to sign with is configured.

    Raises
    ------
    UsageError
        If ``NIGHTFOLD_SIGNING_KEY`` names no usable key.
    """
    key = _signing_key()
    return None if key is None else key.sign(manifest)


def configured_public_key() -> Path | None:
    """The file that ``NIGHTFOLD_PUBLIC_KEY`` names; None if signatures are not asked for."""
    return given(value) if (value := os.environ.get(PUBLIC_KEY)) else None


def check(manifest: bytes, signature: bytes | None, public_key: Path, bundle: Path) -> None:
    """Refuse a manifest that the holder of the key has not signed.

    Parameters
    ----------
    manifest : bytes
    signature : bytes or None
        None if there is none.
    public_key : Path
        A PEM file.
    bundle : Path
        For the message.

    Raises
    ------
    BundleRefused
        If there is no signature or it does not fit.
    UsageError
        If the key cannot be used.
    """
    from cryptography.exceptions import InvalidSignature

    key = _read_public(public_key)
    if signature is None:
        raise BundleRefused(
            f"{bundle} is not signed, and the key {public_key} asks for a signature: sign it with "
            "'nightfold models sign' if you trust it, or use another version."
        )
    try:
        key.verify(signature, manifest)
    except InvalidSignature:
        raise BundleRefused(
            f"{bundle / SIGNATURE} is not the signature of this bundle by the key {public_key}: "
            "do not use the bundle unless you know who made it."
        ) from None


def check_settings() -> None:
    """Refuse keys that cannot be used before a night has worked for hours.

    Raises
    ------
    UsageError
        If a configured key cannot be read, or the two do not belong together.
    """
    signing, public = _signing_key(), configured_public_key()
    trusted = None if public is None else _read_public(public)
    if signing and trusted and signing.public_key() != trusted:
        raise UsageError(
            f"{PUBLIC_KEY} is not the public half of {SIGNING_KEY}, so what is signed here would "
            "be refused here: make it with 'openssl pkey -in KEY -pubout'."
        )


def _signing_key() -> Ed25519PrivateKey | None:
    if not (value := os.environ.get(SIGNING_KEY)):
        return None
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    file, passphrase = given(value), os.environ.get(PASSPHRASE)
    try:
        key = load_pem_private_key(_read(file), passphrase.encode() if passphrase else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UsageError(
            f"The signing key {file} cannot be opened: it is a PEM file made by 'openssl genpkey "
            f"-algorithm ed25519', and {PASSPHRASE} is set if, and only if, it has a passphrase."
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"The signing key {file} is not an Ed25519 key: make one with openssl.")
    return key


def _read_public(file: Path) -> Ed25519PublicKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(_read(given(file)))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(
            f"The public key {file} is not a PEM file: make it with 'openssl pkey -in KEY -pubout'."
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"The public key {file} is not an Ed25519 key: make one with openssl.")
    return key


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageError(f"The key {file} cannot be read ({error.strerror}).") from error
