"""Prediction: what a sealed model says of an image file, and how the image was prepared for it.

It reads, warns and names classes; the model itself is the bundle's. Nothing about an image is
corrected silently: a preparation that looks wrong is told, not undone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from nightfold.bundle import Bundle
from nightfold.files import as_text
from nightfold.images import ImageReading, read_image

CONTRAST = 8.0
"""Grey levels between border and centre below which an image has no clear background."""

_TONES = {-1: "light on dark", 1: "dark on light"}


class Prediction(BaseModel):
    """The answer for one image.

    Attributes
    ----------
    path : str
    model : str
        Version of the model.
    predicted : int
        Index of the most probable class.
    class_name, runner_up : str
        The two most probable classes.
    probability, runner_up_probability : float
        Theirs, 0 to 1.
    probabilities : tuple of float
        Of every class, in the order of the model's class names.
    preparation : str
        What was done to the image, and a warning if it looks unlike those the model learned from.
    """

    model_config = ConfigDict(frozen=True)

    path: str
    model: str
    predicted: int
    class_name: str
    probability: float
    runner_up: str
    runner_up_probability: float
    probabilities: tuple[float, ...]
    preparation: str


def classify(paths: Sequence[Path], bundle: Bundle) -> list[Prediction]:
    """Classify image files.

    Parameters
    ----------
    paths : sequence of Path
    bundle : Bundle

    Returns
    -------
    list of Prediction
        In the order of `paths`.

    Raises
    ------
    DataRefused
        If an image cannot be read.
    """
    return classify_readings(paths, [prepare(path, bundle) for path in paths], bundle)


def prepare(path: Path, bundle: Bundle) -> ImageReading:
    """Read an image in the size and channels that the model takes.

    Raises
    ------
    DataRefused
        If the image cannot be read.
    """
    height, width, channels = bundle.manifest.input_shape
    reading = read_image(path, channels=channels, size=(height, width), where=str(path))
    learned = {tone(image) for image in bundle.golden_images}
    found = tone(reading.pixels)
    if found and learned == {-found}:
        warning = f"looks {_TONES[found]}; the model learned {_TONES[-found]}"
        return replace(reading, preparation=f"{reading.preparation}; {warning}")
    return reading


def classify_readings(
    paths: Sequence[Path], readings: Sequence[ImageReading], bundle: Bundle
) -> list[Prediction]:
    """Classify images that `prepare` has read.

    Parameters
    ----------
    paths : sequence of Path
        What the answers call the images.
    readings : sequence of ImageReading
        One for each path.
    bundle : Bundle
    """
    if not readings:
        return []
    names = bundle.manifest.class_names
    answers = []
    probabilities = bundle.predict(np.stack([reading.pixels for reading in readings]))
    for path, reading, row in zip(paths, readings, probabilities, strict=True):
        first, second = (int(index) for index in np.argsort(-row, kind="stable")[:2])
        answers.append(
            Prediction(
                path=as_text(path),
                model=bundle.manifest.version,
                predicted=first,
                class_name=names[first],
                probability=float(row[first]),
                runner_up=names[second],
                runner_up_probability=float(row[second]),
                probabilities=tuple(row.tolist()),
                preparation=reading.preparation,
            )
        )
    return answers


def tone(image: NDArray[np.uint8]) -> int:
    """Whether an image is dark on light (1), light on dark (-1) or neither (0).

    Compares the mean of the outermost ring of pixels with the mean of the central half.

    Parameters
    ----------
    image : ndarray of uint8, shape (height, width, channels)

    Examples
    --------
    >>> page = np.full((8, 8, 1), 255, np.uint8)
    >>> page[3:5, 3:5] = 0
    >>> tone(page), tone(255 - page), tone(np.zeros_like(page))
    (1, -1, 0)
    """
    height, width = image.shape[:2]
    ring = np.ones((height, width), dtype=bool)
    ring[1:-1, 1:-1] = False
    top, left = height // 4, width // 4
    centre = image[top : height - top, left : width - left]
    difference = float(image[ring].mean() - centre.mean())
    return int(np.sign(difference)) if abs(difference) >= CONTRAST else 0
