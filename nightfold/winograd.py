"""Winograd: convolutions of 3 x 3 windows with fewer multiplications, forward and backward.

A tile of m x m pixels is computed from (m + 2)^2 products a channel instead of 9 m^2: for tiles of
4 pixels a quarter of them. Pixels are taken to their values at m + 2 points, multiplied there by
those of the kernel, and the products taken back: Winograd's minimal filtering, for images in A.
Lavin and S. Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016, equation 8. All
of it is matrix products, which a processor does at its full speed. Rounding costs up to a decimal
digit of float32; the points are those that cost little.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.polynomial.polynomial import polyfromroots
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

POINTS = {
    2: (0.0, 1.0, -1.0),
    3: (0.0, 1.0, -1.0, 0.5),
    4: (0.0, 1.0, -1.0, 0.5, -2.0),
    5: (0.0, 1.0, -1.0, 2.0, -2.0, 0.5),
}
"""Points by the side of a tile; infinity comes with each. Small ones of either sign round least: B.
Barabasz and others, Error Analysis and Improving the Accuracy of Winograd Convolution for Deep
Neural Networks, ACM Transactions on Mathematical Software 46, 2020."""

NEAR = 3 * 2**20
"""Bytes of values at points from which on moving them takes longer than multiplying them."""


@dataclass(frozen=True)
class Axis:
    """Tiles along the height or the width of an image, and the matrices that take it there.

    Attributes
    ----------
    pixels : int
        Side of the image that is convolved.
    outputs : int
        Side of the image that comes out.
    tile : int
        Pixels of a tile; the last tile may reach beyond the outputs.
    tiles : int
    cut : ndarray of float64, shape ((tile + 2) * tiles, pixels)
        Pixels to values at points, of the first point in all tiles, of the second in all tiles ...;
        tiles overlap by two pixels.
    weigh : ndarray of float64, shape (tile + 2, 3)
        The three weights of a kernel to values at points.
    join : ndarray of float64, shape (tile, tile + 2)
        Products at points to the pixels of a tile.
    """

    pixels: int
    outputs: int
    tile: int
    tiles: int
    cut: Matrix
    weigh: Matrix
    join: Matrix

    @property
    def points(self) -> int:
        """Number of points of a tile."""
        return self.tile + 2

    @property
    def beyond(self) -> int:
        """Pixels by which the last tile reaches beyond the outputs."""
        return self.tile * self.tiles - self.outputs


@lru_cache(maxsize=64)
def axis_of(pixels: int, padded: bool) -> Axis:
    """Tiles for a side of an image, of the size that takes the fewest products.

    Parameters
    ----------
    pixels : int
        At least 3, or 1 if `padded`.
    padded : bool
        Whether a row of zeros lies on each end of the side, so that as many pixels come out.
    """
    outputs = pixels if padded else pixels - 2
    tile = min(POINTS, key=lambda tile: -(-outputs // tile) * (tile + 2))
    tiles = -(-outputs // tile)
    join, weigh, values = _minimal_filtering(tile)
    cut = np.zeros((tile + 2, tiles, pixels + 2 + tile * tiles))
    for t in range(tiles):
        cut[:, t, tile * t : tile * t + tile + 2] = values
    first = 1 if padded else 0
    inside = cut[:, :, first : first + pixels].reshape(-1, pixels)
    return Axis(pixels, outputs, tile, tiles, inside, weigh, join)


def _minimal_filtering(tile: int) -> tuple[Matrix, Matrix, Matrix]:
    """The matrices A^T, G and B^T of F(tile, 3): three weights slid over a tile and two pixels.

    Products of polynomials by their values at points (Toom and Cook), transposed; Lagrange's
    denominators are in G.
    """
    points, n = np.array(POINTS[tile]), tile + 2
    a, g, b = np.zeros((n, tile)), np.zeros((n, 3)), np.zeros((n, n))
    for row, point in enumerate(points):
        others = np.delete(points, row)
        a[row] = point ** np.arange(tile)
        g[row] = point ** np.arange(3) / np.prod(point - others)
        b[row, : n - 1] = polyfromroots(others)
    a[-1, -1] = g[-1, -1] = 1  # the point at infinity takes the highest power alone
    b[-1] = polyfromroots(points)
    return a.T, g, b


def pays(height: int, width: int, channels: int, filters: int, *, padded: bool) -> bool:
    """Whether a convolution and its gradients are expected to take at most 0.8 times as long so.

    Counted are multiplications: those of products against those of the convolution itself cost
    5/3, as they are many small products of matrices, and those of the way there and back 1. These
    two weights fit 150 measured shapes within a fifth, of 4 to 24 pixels a side and 16 to 128
    channels; ``python -m benchmarks.variants`` measures some of them.

    Parameters
    ----------
    height, width, channels : int
        Of the images that are convolved.
    filters : int
    padded : bool
    """
    if min(height, width) < (1 if padded else 3):
        return False
    down, across = axis_of(height, padded), axis_of(width, padded)
    direct = 9 * down.outputs * across.outputs * channels * filters
    points = down.points * down.tiles * across.points * across.tiles
    there = len(down.cut) * width * (height + len(across.cut)) * channels
    back = down.tile * across.points * (down.points + across.tile)
    moved = there + back * down.tiles * across.tiles * filters
    return 5 / 3 * points * channels * filters + moved < 0.8 * direct


def convolve(images: Any, kernel: Any, *, padded: bool) -> Any:
    """Convolution of 3 x 3 windows, one pixel apart.

    A batch of known size is taken in parts whose values at points stay near the processor.

    Parameters
    ----------
    images : tf.Tensor of float32 or float64, shape (n, height, width, channels)
        Height, width and channels known.
    kernel : tf.Tensor, shape (3, 3, channels, filters)
    padded : bool
        Whether zeros around the images keep their size, as Keras's padding "same" does; else only
        whole windows count, as in "valid".

    Returns
    -------
    tf.Tensor, shape (n, height, width, filters), or two pixels less a side if not `padded`
        Differentiable once in images and kernel.
    """
    import tensorflow as tf

    n, height, width, channels = images.shape
    down, across = axis_of(height, padded), axis_of(width, padded)
    values = len(down.cut) * len(across.cut) * max(channels, kernel.shape[-1])
    parts = _parts(n or 1, (n or 1) * values * images.dtype.size)
    if parts == 1:
        return _convolve(images, kernel, down, across)
    return tf.concat(
        [_convolve(part, kernel, down, across) for part in tf.split(images, parts)], axis=0
    )


def _parts(n: int, size: int) -> int:
    """The fewest equal parts of `n` images that bring `size` bytes to `NEAR`; at most 16."""
    parts = [k for k in range(1, 17) if n % k == 0]
    return next((k for k in parts if size <= k * NEAR), parts[-1])


def _convolve(images: Any, kernel: Any, down: Axis, across: Axis) -> Any:
    import tensorflow as tf

    channels, filters = kernel.shape[2:]
    n_points = down.points * across.points
    beyond = [[0, 0], [0, down.beyond], [0, across.beyond], [0, 0]]

    def through(left: Matrix, right: Matrix, array: Any) -> Any:
        """The first axis of an array through one matrix, its second through the other."""
        rows, columns = left.shape[1], right.shape[1]
        array = tf.matmul(tf.constant(left, array.dtype), tf.reshape(array, [rows, -1]))
        array = tf.reshape(array, [len(left), columns, -1])
        return tf.matmul(tf.constant(right, array.dtype), array)

    # Axes of pixels and points come first, so that every matrix is multiplied from the left, and
    # what is moved in between are long runs of memory.
    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def run(images: Any, kernel: Any) -> tuple[Any, Callable[[Any], tuple[Any, Any]]]:
        values = through(down.cut, across.cut, tf.transpose(images, [1, 2, 0, 3]))
        values = tf.reshape(values, [down.points, down.tiles, across.points, -1])
        values = tf.reshape(tf.transpose(values, [0, 2, 1, 3]), [n_points, -1, channels])
        weights = through(down.weigh, across.weigh, kernel)
        weights = tf.reshape(weights, [n_points, channels, filters])
        products = tf.reshape(values @ weights, [down.points, across.points, -1])
        tiles = through(down.join, across.join, products)
        tiles = tf.reshape(tiles, [down.tile, across.tile, down.tiles, across.tiles, -1, filters])
        sides = down.tiles * down.tile, across.tiles * across.tile
        result = tf.reshape(tf.transpose(tiles, [4, 2, 0, 3, 1, 5]), [-1, *sides, filters])
        if any(map(any, beyond)):
            result = result[:, : down.outputs, : across.outputs, :]

        def gradients(dy: Any) -> tuple[Any, Any]:
            """The same way back: each matrix transposed, the last one first."""
            if any(map(any, beyond)):
                dy = tf.pad(dy, beyond)
            tiles = tf.reshape(dy, [-1, down.tiles, down.tile, across.tiles, across.tile, filters])
            products = through(down.join.T, across.join.T, tf.transpose(tiles, [2, 4, 1, 3, 0, 5]))
            products = tf.reshape(products, [n_points, -1, filters])
            d_weights = tf.matmul(values, products, transpose_a=True)
            d_weights = tf.reshape(d_weights, [down.points, across.points, -1])
            d_kernel = through(down.weigh.T, across.weigh.T, d_weights)
            d_values = tf.matmul(products, weights, transpose_b=True)
            d_values = tf.reshape(d_values, [down.points, across.points, down.tiles, -1])
            d_values = tf.transpose(d_values, [0, 2, 1, 3])
            d_values = tf.reshape(d_values, [len(down.cut), len(across.cut), -1])
            d_images = through(down.cut.T, across.cut.T, d_values)
            d_images = tf.reshape(d_images, [down.pixels, across.pixels, -1, channels])
            return (
                tf.transpose(d_images, [2, 0, 1, 3]),
                tf.reshape(d_kernel, [3, 3, channels, filters]),
            )

        return result, gradients

    return run(images, kernel)
