"""Bundle: a folder with everything needed to use a model and to trust it.

Sealing writes it complete or not at all; verifying compares every byte with the manifest before
anything is deserialised; loading uses the very bytes that were verified, refuses a model file that
holds more than a network (`nightfold.modelfile`), and checks that the model still gives the answers
it gave when it was sealed. A manifest proves that nothing was altered by accident; that nobody
replaced manifest and model together is proven by its sha256 in the champion pointer
(`nightfold.registry`) and by a signature (`nightfold.signature`). Training and the decision what to
promote are not here.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import stat
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nightfold import __version__, backend, modelfile, signature
from nightfold.errors import BundleRefused, UsageError, first_fault
from nightfold.modules import import_trusted
from nightfold.signature import SIGNATURE, SIGNATURE_BYTES
from nightfold.store import TEMPORARY, atomic_file, atomic_folder, sha256_file, write_json

FORMAT = 1
MANIFEST = "manifest.json"
MODEL, MODEL_H5, GOLDEN, CARD = "model.keras", "model.h5", "golden.npz", "README.md"
REQUIRED = frozenset({MODEL, GOLDEN, CARD})
ALLOWED = REQUIRED | {MODEL_H5}

MAX_MANIFEST_BYTES = 2**24

GOLDEN_TOLERANCE = 2e-3
"""Largest difference of a golden probability that is still the same model.

Processors, thread counts and library builds round float32 differently. Measured on 4,000 MNIST
images with the tutorial's baseline: 1e-6 between instruction sets and kernels of one machine, 5e-4
with weights rounded to 10 bits as matrix units of GPUs do (TF32). A preparation
that differs (a scaling lost, channels swapped) moves some probability by tenths. Altered weights
are not what this is for: the sha256 finds those.
"""

_BATCH = 256

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


def seal(
    model: Any,
    folder: Path,
    facts: ModelFacts,
    golden_images: NDArray[np.uint8],
    *,
    h5: bool = False,
) -> BundleHandle:
    """Write `model` as the bundle ``folder/<version>``, complete or not at all.

    The written file is loaded back in safe mode before it is published, so what cannot be loaded
    is never sealed. It is signed if a key is configured. Sealing a version of the same run a second
    time returns the first bundle.

    Parameters
    ----------
    model : keras.Model
        Takes raw uint8 images, gives one probability a class; its scaling is inside.
    folder : Path
        Where bundles live (`Store.models`).
    facts : ModelFacts
    golden_images : ndarray of uint8, shape (n, height, width, channels)
        A few raw inputs; the model's answers to them are kept with it.
    h5 : bool
        Also write ``model.h5``, for programs that read only Keras's older format.

    Raises
    ------
    BundleRefused
        If the model gives numbers that are not finite, or cannot be loaded in safe mode.
    UsageError
        If another model is already sealed under this version, or the signing key is unusable.
    """
    target = folder / facts.version
    if target.exists():
        return _sealed_before(target, facts)
    probabilities = _answers(model, golden_images)
    if probabilities.shape != (len(golden_images), len(facts.class_names)):
        raise ValueError(
            f"{len(golden_images)} golden images gave probabilities of shape "
            f"{probabilities.shape}; the model has {len(facts.class_names)} class names"
        )
    if not len(golden_images) or not np.isfinite(probabilities).all():
        raise BundleRefused(
            f"The model {facts.version} gives probabilities that are not finite numbers: its "
            "training diverged; lower the learning rate and train again."
        )
    with atomic_folder(target) as part:
        _save(model, part, h5=h5)
        np.savez(part / GOLDEN, images=golden_images, probabilities=probabilities)
        (part / CARD).write_text(_card(facts, golden_images.shape[1:], h5), encoding="utf-8")
        loaded = _load_model((part / MODEL).read_bytes(), target / MODEL)
        _check_golden(loaded, golden_images, probabilities, target)
        manifest = Manifest.describing(part, facts, golden_images.shape[1:])
        write_json(part / MANIFEST, manifest.model_dump(mode="json"))
        if signed := signature.sign((part / MANIFEST).read_bytes()):
            (part / SIGNATURE).write_bytes(signed)
    return _sealed_before(target, facts)


def rehearse(model: Any, images: NDArray[np.uint8], *, h5: bool = False) -> None:
    """Save and load `model` as `seal` does, and keep nothing: to be asked before it is trained.

    Parameters
    ----------
    model : keras.Model
    images : ndarray of uint8, shape (n, height, width, channels)
        A few raw inputs.
    h5 : bool
        As for `seal`.

    Raises
    ------
    BundleRefused
        If it could not be sealed.
    """
    probabilities = _answers(model, images)
    with tempfile.TemporaryDirectory(prefix="nightfold-") as folder:
        file = Path(folder) / MODEL
        _save(model, file.parent, h5=h5)
        loaded = _load_model(file.read_bytes(), Path(MODEL))
    if not _difference(loaded, images, probabilities) <= GOLDEN_TOLERANCE:
        raise BundleRefused(
            "the model gives other answers, or none that are numbers, when it was saved and "
            "loaded: keep all that a class of your own needs in its weights and its get_config."
        )


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
    return _read(path, manifest_sha256, public_key, keep=())[0]


@dataclass(frozen=True)
class Bundle:
    """A verified bundle with its model in memory.

    Attributes
    ----------
    path : Path
    manifest : Manifest
    golden_images : ndarray of uint8, shape (n, height, width, channels)
        The raw inputs it was sealed with.
    model : keras.Model
    """

    path: Path
    manifest: Manifest
    golden_images: NDArray[np.uint8]
    model: Any

    @classmethod
    def load(cls, path: str | Path, *, manifest_sha256: str | None = None) -> Bundle:
        """Verify the bundle at `path`, load its model and ask it the golden questions.

        Every file is read once: what is deserialised is what was verified. No code from the file
        runs. A layer of your own is found if the module that registers it
        (``keras.saving.register_keras_serializable``) was imported before, or is named by the
        environment variable ``NIGHTFOLD_MODULES``.

        Parameters
        ----------
        path : path-like
        manifest_sha256 : str, optional
            What the manifest's own sha256 must be; `nightfold.registry.Registry.load` knows it.

        Raises
        ------
        BundleRefused
            If the bundle is incomplete or altered or lacks the signature that is asked for, the
            model file holds more than a network, or the model's answers differ from those at
            sealing by more than `GOLDEN_TOLERANCE`.
        """
        path = Path(path)
        manifest, contents = _read(path, manifest_sha256, None, keep={MODEL, GOLDEN})
        images, probabilities = _read_golden(contents[GOLDEN], manifest, path / GOLDEN)
        model = _load_model(contents[MODEL], path / MODEL)
        _check_golden(model, images, probabilities, path)
        return cls(path=path, manifest=manifest, golden_images=images, model=model)

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities of raw images, computed in batches.

        Parameters
        ----------
        images : ndarray of uint8, shape (n, height, width, channels)

        Returns
        -------
        ndarray of float32, shape (n, n_classes)

        Raises
        ------
        UsageError
            If the images have another shape or dtype than the model takes.
        """
        expected = self.manifest.input_shape
        if images.ndim != 4 or images.shape[1:] != expected or images.dtype != np.uint8:
            raise UsageError(
                f"The model {self.manifest.version} takes raw uint8 images of shape (n, "
                f"{', '.join(map(str, expected))}), not {images.dtype} of shape {images.shape}: "
                "read them with nightfold.images.read_image."
            )
        if not len(images):
            return np.empty((0, len(self.manifest.class_names)), np.float32)
        return _probabilities(self.model, images)


def _answers(model: Any, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """`_probabilities`, behind which the model is as before: a layer may count its calls."""
    before = [(variable, variable.numpy()) for variable in model.non_trainable_variables]
    probabilities = _probabilities(model, images)
    for variable, value in before:
        variable.assign(value)
    return probabilities


def _probabilities(model: Any, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Answers of `model`, called directly: `Model.predict` would trace a graph first."""
    parts = [
        np.asarray(model(images[start : start + _BATCH], training=False), np.float32)
        for start in range(0, len(images), _BATCH)
    ]
    return np.concatenate(parts)


def _save(model: Any, folder: Path, *, h5: bool) -> None:
    for part in model._flatten_layers():
        if getattr(part, "compiled", False):
            part.compiled = False  # how it was trained is nothing that a bundle needs
    try:
        model.save(folder / MODEL)
        if h5:
            model.save(folder / MODEL_H5)
    except OSError:  # the disk's
        raise
    except Exception as error:  # Keras asks layers for their configuration, which may be anyone's.
        raise BundleRefused(
            f"Keras cannot save the model ({_first_line(error)}): give each class of your own a "
            "get_config that names what its constructor takes."
        ) from error


def _load_model(content: bytes, file: Path) -> Any:
    """The model in `content`, which was read from `file`."""
    try:
        own = modelfile.inspect(content)
    except modelfile.Unsafe as unsafe:
        raise BundleRefused(
            f"{file} is not loaded: {unsafe}; build the model of Keras's stock layers and your own "
            "registered ones."
        ) from unsafe
    backend.start()
    import keras

    import_trusted()
    if unknown := own - keras.saving.get_custom_objects().keys():
        raise BundleRefused(
            f"{file} is not loaded: it uses {min(unknown)!r}, which nobody here has registered; "
            "register your own class with keras.saving.register_keras_serializable and name its "
            "module in NIGHTFOLD_MODULES."
        )
    # Keras loads by path alone; nobody else may write to this folder.
    with tempfile.TemporaryDirectory(prefix="nightfold-") as folder:
        copy = Path(folder) / MODEL
        copy.write_bytes(content)
        try:
            return keras.saving.load_model(copy, compile=False, safe_mode=True)
        except Exception as error:  # Keras raises whatever a layer's constructor raises.
            raise BundleRefused(
                f"Keras cannot load {file} in safe mode ({_first_line(error)}): use the library "
                "versions of its manifest or seal the model again."
            ) from error


def _read_golden(
    content: bytes, manifest: Manifest, file: Path
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Golden images and the probabilities they gave."""
    try:
        modelfile.stored_members(content, {"images.npy", "probabilities.npy"})
        with np.load(io.BytesIO(content), allow_pickle=False) as golden:
            images, probabilities = golden["images"], golden["probabilities"]
    except (ValueError, KeyError, OSError, EOFError, MemoryError, TypeError) as error:
        raise BundleRefused(
            f"{file} cannot be read ({_first_line(error)}): seal the model again."
        ) from error
    n, classes = len(images) if images.ndim else 0, len(manifest.class_names)
    if not (
        n
        and images.shape == (n, *manifest.input_shape)
        and images.dtype == np.uint8
        and probabilities.shape == (n, classes)
        and probabilities.dtype.kind == "f"
    ):
        raise BundleRefused(
            f"{file} does not hold images and answers of the manifest's shape: seal the model "
            "again."
        )
    return images, probabilities


def _difference(model: Any, images: NDArray[np.uint8], probabilities: NDArray[np.float32]) -> float:
    """By how much an answer of `model` differs at most from `probabilities`."""
    return float(np.max(np.abs(_probabilities(model, images) - probabilities)))


def _check_golden(
    model: Any,
    images: NDArray[np.uint8],
    probabilities: NDArray[np.float32],
    path: Path,
) -> None:
    difference = _difference(model, images, probabilities)
    if not difference <= GOLDEN_TOLERANCE:  # Not ">": a NaN must be refused too.
        raise BundleRefused(
            f"The model in {path} no longer gives the answers it was sealed with (a probability "
            f"differs by {difference:.3g}, at most {GOLDEN_TOLERANCE} is rounding): use the "
            "library versions of its manifest or seal the model again."
        )


def _read(
    path: Path, manifest_sha256: str | None, public_key: Path | None, keep: Collection[str]
) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest and the files named in `keep`, after everything was verified."""
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
            f"{file} is not a bundle manifest: {_first_line(error)}; restore it or use another "
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


def _sealed_before(target: Path, facts: ModelFacts) -> BundleHandle:
    digest = sha256_file(target / MANIFEST) if (target / MANIFEST).is_file() else None
    manifest = verify(target, manifest_sha256=digest)
    if any(getattr(manifest, key) != value for key, value in facts):
        raise UsageError(
            f"The version {facts.version} is sealed already, with another model: give the new "
            "one another version."
        )
    return BundleHandle(path=str(target), version=facts.version, manifest_sha256=str(digest))


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return first_fault(error)
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _card(facts: ModelFacts, shape: tuple[int, ...], h5: bool) -> str:
    scores, holdout = facts.cross_validated, facts.holdout
    size = " x ".join(map(str, shape))
    rows = {
        "Input": f"raw uint8 images, {size} (height, width, channels); scaling is inside",
        "Classes": ", ".join(facts.class_names),
        "Recipe": f"{facts.candidate.get('name', '')} ({facts.candidate_digest[:12]})",
        "Trained on": f"{facts.dataset} ({facts.dataset_digest[:12]}), all training rows",
        "Cross-validated accuracy": (
            f"{scores.mean:.3%} (std {scores.std:.3%} over {scores.n} folds, ddof=1)"
        ),
        "Hold-out accuracy": f"{holdout.accuracy:.3%} of {holdout.rows} rows",
        "Hold-out log loss": f"{holdout.log_loss:.4f} nats",
        "Hold-out Brier score, ECE": f"{holdout.brier:.4f}, {holdout.ece:.4f}",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    older = f"`{MODEL_H5}` is the same model in Keras's older format.\n\n" if h5 else ""
    return f"""# {facts.version}

An image classifier, sealed by Nightfold {__version__} in the run {facts.run_id}.

| | |
|---|---|
{table}

The accuracy is that of images like those it was trained on; it says nothing of others.

{older}Plain Keras reads the model: `keras.saving.load_model("{MODEL}", safe_mode=True)`.
Every file's sha256 is in `{MANIFEST}`; `nightfold models verify` compares them.
"""
