"""Bundle: a folder with everything needed to use a model and to trust it.

Sealing writes it complete or not at all. Loading uses the very bytes that were compared with the
manifest (`nightfold.manifest`), refuses a model file that holds more than a network
(`nightfold.modelfile`), and checks that the model still gives the answers it gave when it was
sealed. Training and the decision what to promote are not here.
"""

from __future__ import annotations

import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightfold import __version__, backend, modelfile, signature
from nightfold.errors import BundleRefused, UsageError, first_line
from nightfold.manifest import (
    CARD,
    GOLDEN,
    MANIFEST,
    MODEL,
    MODEL_H5,
    BundleHandle,
    Manifest,
    ModelFacts,
    read_verified,
    verify,
)
from nightfold.modules import import_trusted
from nightfold.signature import SIGNATURE
from nightfold.store import atomic_folder, sha256_file, write_json

GOLDEN_TOLERANCE = 2e-3
"""Largest difference of a golden probability that is still the same model.

Processors, thread counts and library builds round float32 differently. Measured on 4,000 MNIST
images with the tutorial's baseline: 1e-6 between instruction sets and kernels of one machine, 5e-4
with weights rounded to 10 bits as matrix units of GPUs do (TF32). A preparation
that differs (a scaling lost, channels swapped) moves some probability by tenths. Altered weights
are not what this is for: the sha256 finds those.
"""

_BATCH = 256


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
        return _handle_of(target, facts)
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
    return _handle_of(target, facts)


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
        manifest, contents = read_verified(path, manifest_sha256, None, keep={MODEL, GOLDEN})
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
            f"Keras cannot save the model ({first_line(error)}): give each class of your own a "
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
                f"Keras cannot load {file} in safe mode ({first_line(error)}): use the library "
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
            f"{file} cannot be read ({first_line(error)}): seal the model again."
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


def _handle_of(target: Path, facts: ModelFacts) -> BundleHandle:
    digest = sha256_file(target / MANIFEST) if (target / MANIFEST).is_file() else None
    manifest = verify(target, manifest_sha256=digest)
    if any(getattr(manifest, key) != value for key, value in facts):
        raise UsageError(
            f"The version {facts.version} is sealed already, with another model: give the new "
            "one another version."
        )
    return BundleHandle(path=str(target), version=facts.version, manifest_sha256=str(digest))


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
