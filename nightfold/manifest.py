"""Manifest: what a bundle must be, byte for byte, and how that is verified and signed.

Every file is compared before anything is deserialised, and nothing is loaded here
(`nightfold.bundle` does that). A manifest proves that nothing was altered by accident; that nobody
replaced manifest and model together is proven by its sha256 in the champion pointer
(`nightfold.registry`) and by a signature (`nightfold.signature`).
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import stat
from collections.abc import Collection
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from nightfold import __version__, signature
from nightfold.errors import BundleRefused, UsageError, first_line
from nightfold.signature import SIGNATURE, SIGNATURE_BYTES
from nightfold.store import TEMPORARY, atomic_file, sha256_file

FORMAT = 1
MANIFEST = "manifest.json"
MODEL, MODEL_H5, GOLDEN, CARD = "model.keras", "model.h5", "golden.npz", "README.md"
REQUIRED = frozenset({MODEL, GOLDEN, CARD})
ALLOWED = REQUIRED | {MODEL_H5}

MAX_MANIFEST_BYTES = 2**24

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Side = Annotated[int, Field(ge=1, le=8192)]
VersionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")]


class _Sealed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FileFacts(_Sealed):
    """What a file of the bundle must be."""

    sha256: Digest
    bytes: int = Field(ge=0)


class FoldScores(_Sealed):
    """Cross-validated accuracy, fractions; `std` is the sample deviation over folds (ddof=1)."""

    mean: float
    std: float
    n: int = Field(ge=2)
    per_fold: tuple[float, ...]

    @classmethod
    def of(cls, accuracies: list[float]) -> Self:
        """Scores from the accuracy of each fold, in the order of repeats and folds.

        Examples
        --------
        >>> FoldScores.of([0.5, 1.0]).mean
        0.75
        """
        return cls(
            mean=float(np.mean(accuracies)),
            std=float(np.std(accuracies, ddof=1)),
            n=len(accuracies),
            per_fold=tuple(accuracies),
        )


class HoldoutScores(_Sealed):
    """The one final test; `log_loss` in nats, `brier` summed over classes, `ece` with 15 bins."""

    rows: int = Field(ge=1)
    accuracy: float
    log_loss: float
    brier: float
    ece: float


class ModelFacts(_Sealed):
    """What whoever seals a model knows of it.

    `scaling` and `candidate` are for information: the scaling is inside the model, and the
    candidate is what its recipe was at the time. `n_train` are the rows it was fitted on,
    `architecture_source` is `nightfold.zoo.fingerprint` of its network; bundles of older versions
    have neither.
    """

    version: VersionName
    run_id: str
    dataset: str
    dataset_digest: Digest
    plan_digest: Digest
    class_names: tuple[str, ...] = Field(min_length=2)
    scaling: dict[str, Any]
    candidate: dict[str, Any]
    candidate_digest: Digest
    cross_validated: FoldScores
    holdout: HoldoutScores
    n_train: int | None = Field(None, ge=1)
    architecture_source: str | None = None


class Manifest(ModelFacts):
    """``manifest.json``: the facts of the model and of every file beside it."""

    format: int
    files: dict[str, FileFacts]
    input_shape: tuple[Side, Side, Literal[1, 3]]
    input_dtype: str
    created_at: datetime
    code_version: str
    library_versions: dict[str, str]

    @classmethod
    def describing(cls, folder: Path, facts: ModelFacts, input_shape: tuple[int, ...]) -> Self:
        """The manifest of all files in `folder`, made now with the libraries installed here."""
        return cls.model_validate(
            {
                **dict(facts),
                "format": FORMAT,
                "files": {
                    path.name: FileFacts(sha256=sha256_file(path), bytes=path.stat().st_size)
                    for path in sorted(folder.iterdir())
                },
                "input_shape": input_shape,
                "input_dtype": "uint8",
                "created_at": datetime.now(UTC),
                "code_version": __version__,
                "library_versions": {
                    name: installed_version(name) for name in ("tensorflow", "keras", "numpy")
                },
            }
        )


class BundleHandle(BaseModel):
    """What tasks pass to each other instead of models."""

    model_config = ConfigDict(frozen=True)

    path: str
    version: str
    manifest_sha256: str

    def verify(self) -> Manifest:
        """`verify` the bundle behind the handle, manifest included."""
        return verify(Path(self.path), manifest_sha256=self.manifest_sha256)


def sign(path: Path, *, manifest_sha256: str | None = None) -> Manifest:
    """Sign the bundle at `path` with the configured key, after comparing every file.

    Raises
    ------
    BundleRefused
        As `verify` does, the signature apart.
    UsageError
        If no signing key is configured, or it is unusable.
    """
    content = _read_plain(path / MANIFEST, MAX_MANIFEST_BYTES)
    manifest = _parse_manifest(content, path, manifest_sha256)
    _read_files(path, manifest, keep=())
    signed = signature.sign(content)
    if signed is None:
        raise UsageError(
            f"There is no key to sign with: set {signature.SIGNING_KEY} to the PEM file of an "
            "Ed25519 private key."
        )
    with atomic_file(path / SIGNATURE) as part:
        part.write_bytes(signed)
    return manifest


def read_manifest(path: Path, *, manifest_sha256: str | None = None) -> Manifest:
    """Read ``manifest.json`` of the bundle at `path` without looking at the other files.

    Parameters
    ----------
    path : Path
    manifest_sha256 : str, optional
        What the manifest's own sha256 must be.

    Raises
    ------
    BundleRefused
        If there is none, it is not the expected one, or its format is unknown.
    """
    content = _read_plain(path / MANIFEST, MAX_MANIFEST_BYTES)
    return _parse_manifest(content, path, manifest_sha256)


def verify(
    path: Path, *, manifest_sha256: str | None = None, public_key: Path | None = None
) -> Manifest:
    """Compare every file of the bundle at `path` with its manifest; deserialise nothing.

    Parameters
    ----------
    path : Path
    manifest_sha256 : str, optional
        What the manifest's own sha256 must be, see `read_manifest`.
    public_key : Path, optional
        The key that must have signed it; by default the configured one, if any.

    Returns
    -------
    Manifest

    Raises
    ------
    BundleRefused
        Naming the first file that is unknown, missing, too much, or not what the manifest says; or
        if the signature that is asked for is missing or another.
    UsageError
        If the public key cannot be used.
    """
    return read_verified(path, manifest_sha256, public_key, keep=())[0]


def read_verified(
    path: Path, manifest_sha256: str | None, public_key: Path | None, keep: Collection[str]
) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest and the content of the files named in `keep`, verified as `verify` does."""
    content = _read_plain(path / MANIFEST, MAX_MANIFEST_BYTES)
    if key := public_key or signature.configured_public_key():
        signed = None
        if (path / SIGNATURE).exists():
            signed = _read_plain(path / SIGNATURE, SIGNATURE_BYTES)
        signature.check(content, signed, key, path)
    manifest = _parse_manifest(content, path, manifest_sha256)
    return manifest, _read_files(path, manifest, keep)


def _parse_manifest(content: bytes, path: Path, manifest_sha256: str | None) -> Manifest:
    file = path / MANIFEST
    found = hashlib.sha256(content).hexdigest()
    if manifest_sha256 not in (None, found):
        raise BundleRefused(
            f"{file} was altered (sha256 {found[:12]}, expected {str(manifest_sha256)[:12]}): "
            "restore it or use another version."
        )
    try:
        document = json.loads(
            content, parse_constant=_no_number, object_pairs_hook=_without_repetition
        )
        form = document["format"]
        if form == FORMAT and type(form) is int:
            return Manifest.model_validate(document)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleRefused(
            f"{file} is not a bundle manifest: {first_line(error)}; restore it or use another "
            "version."
        ) from error
    raise BundleRefused(
        f"{file} has bundle format {form!r}, and this Nightfold reads format {FORMAT}: use the "
        "Nightfold that sealed it or seal the model again."
    )


def _read_files(path: Path, manifest: Manifest, keep: Collection[str]) -> dict[str, bytes]:
    """Compare every file with the manifest; the content of those in `keep`."""
    # Only these names exist in this format, so no name can lead out of the folder.
    for name in sorted(manifest.files.keys() - ALLOWED):
        raise BundleRefused(
            f"{path / MANIFEST} lists the file {name!r}, which does not belong in a bundle: do "
            "not use it."
        )
    # A signature is put in place beside readers, and a kill may leave it unfinished.
    present = {e.name for e in path.iterdir() if not e.name.startswith(TEMPORARY)}
    for name in sorted((REQUIRED | manifest.files.keys()) - present):
        raise BundleRefused(f"{path / name} is missing: restore it or use another version.")
    for name in sorted(present - manifest.files.keys() - {MANIFEST, SIGNATURE}):
        raise BundleRefused(
            f"{path / name} is not in the bundle's manifest: remove it or use another version."
        )
    contents = {}
    for name, expected in manifest.files.items():
        content = _read_verified(path / name, expected, keep=name in keep)
        if content is not None:
            contents[name] = content
    return contents


def _read_verified(file: Path, expected: FileFacts, *, keep: bool) -> bytes | None:
    """Compare a file with the manifest; its content if it is to be kept in memory."""
    content = None
    with _open_plain(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size != expected.bytes:
            raise BundleRefused(
                f"{file} was altered ({size} bytes, expected {expected.bytes}): restore it or use "
                "another version."
            )
        if keep:
            content = stream.read(size)
            found = hashlib.sha256(content).hexdigest()
        else:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected.sha256:
        raise BundleRefused(
            f"{file} was altered (sha256 {found[:12]}, expected {expected.sha256[:12]}): restore "
            "it or use another version."
        )
    return content


def _read_plain(file: Path, limit: int) -> bytes:
    with _open_plain(file) as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise BundleRefused(f"{file} is larger than any bundle's: do not use the bundle.")
    return content


def _open_plain(file: Path) -> io.BufferedReader:
    """Open a file that is neither a link nor a pipe, and may be swapped at any moment."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise BundleRefused(_not_plain(file)) from error
        if file.name == MANIFEST:
            raise BundleRefused(
                f"{file.parent} is not a model bundle: its {MANIFEST} cannot be read "
                f"({error.strerror or error}); seal the model again."
            ) from error
        raise BundleRefused(
            f"{file} cannot be read ({error.strerror or error}): restore it or use another version."
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BundleRefused(_not_plain(file))
    return open(descriptor, "rb")  # noqa: PTH123


def _not_plain(file: Path) -> str:
    return f"{file} is not a plain file: restore it or use another version."


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, unless a key occurs twice: other readers might take the other value."""
    document = dict(pairs)
    if len(document) < len(pairs):
        raise ValueError(f"a key of {sorted(document)} occurs twice")
    return document
