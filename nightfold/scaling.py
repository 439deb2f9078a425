"""Scaler: how raw pixels become numbers a network learns from.

A scaler is fitted on training rows only and then lives inside the model as its first layers, so
training and prediction cannot differ. It is made of stock Keras layers; a sealed model needs
nothing of ours to be loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from nightfold.dataset import give_back
from nightfold.errors import UsageError

SCALERS: dict[str, Callable[[NDArray[np.int64]], Scaler]] = {}
"""Every scaling by name: a function from the histogram of training pixels to a scaler."""


class Scaler(BaseModel):
    """A fitted scaling, ``pixel * scale + offset``, then per image if asked.

    Attributes
    ----------
    name : str
    scale, offset : float
        Applied to raw pixels in 0..255.
    per_image : bool
        Then subtract each image's mean and divide by its standard deviation.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    scale: float = 1.0
    offset: float = 0.0
    per_image: bool = False

    @classmethod
    def fit(cls, name: str, histogram: NDArray[np.int64]) -> Scaler:
        """Fit the scaling called `name`.

        Parameters
        ----------
        name : str
            A key of `SCALERS`.
        histogram : ndarray of int64, shape (256,)
            Of the pixels of the training rows, see `pixel_histogram`. All that a scaling learns is
            in it, so it is all that a scaling is given.

        Raises
        ------
        UsageError
            If there is no such scaling.
        """
        if name not in SCALERS:
            raise UsageError(
                f"There is no scaling {name!r}; choose one of: {', '.join(sorted(SCALERS))}."
            )
        return SCALERS[name](histogram)

    def layers(self) -> list[Any]:
        """Stock Keras layers, raw uint8 images in, float32 out."""
        from keras import layers

        chain: list[Any] = [layers.Rescaling(self.scale, self.offset, name="scaling")]
        if self.per_image:
            chain.append(
                layers.LayerNormalization(
                    axis=(1, 2, 3), epsilon=1e-6, center=False, scale=False, name="per_image"
                )
            )
        return chain


def pixel_histogram(
    images: NDArray[np.uint8], rows: NDArray[np.int64], chunk: int = 4096
) -> NDArray[np.int64]:
    """How often each value 0..255 occurs in `rows`; exact, whatever their order.

    Parameters
    ----------
    images : ndarray of uint8, shape (n, height, width, channels)
    rows : ndarray of int64
    chunk : int
        Rows looked at at once; bounds memory.

    Returns
    -------
    ndarray of int64, shape (256,)
    """
    counts = np.zeros(256, dtype=np.int64)
    for start in range(0, len(rows), chunk):
        counts += np.bincount(images[rows[start : start + chunk]].ravel(), minlength=256)
        give_back(images)
    return counts


def scaler(
    function: Callable[[NDArray[np.int64]], Scaler],
) -> Callable[[NDArray[np.int64]], Scaler]:
    """Register `function` as the scaling of its name."""
    SCALERS[function.__name__] = function
    return function


def _mean_and_std(histogram: NDArray[np.int64]) -> tuple[float, float]:
    values = np.arange(256)
    n = int(histogram.sum())
    mean = float((histogram * values).sum() / n)
    return mean, float(np.sqrt((histogram * (values - mean) ** 2).sum() / n))


@scaler
def none(_histogram: NDArray[np.int64]) -> Scaler:
    """Pixels as they are, 0..255."""
    return Scaler(name="none")


@scaler
def normalize(_histogram: NDArray[np.int64]) -> Scaler:
    """Divide by 255, giving 0..1."""
    return Scaler(name="normalize", scale=1 / 255)


@scaler
def center(histogram: NDArray[np.int64]) -> Scaler:
    """Subtract the mean of the training pixels and divide by 255: mean 0, range 1."""
    mean, _ = _mean_and_std(histogram)
    return Scaler(name="center", scale=1 / 255, offset=-mean / 255)


@scaler
def standardize(histogram: NDArray[np.int64]) -> Scaler:
    """Subtract the mean of the training pixels and divide by their standard deviation."""
    mean, std = _mean_and_std(histogram)
    std = std or 1.0  # all training pixels equal: centring is all there is to do
    return Scaler(name="standardize", scale=1 / std, offset=-mean / std)


@scaler
def standardize_per_image(_histogram: NDArray[np.int64]) -> Scaler:
    """Each image to mean 0 and standard deviation 1; learns nothing from other rows."""
    return Scaler(name="standardize_per_image", scale=1 / 255, per_image=True)
