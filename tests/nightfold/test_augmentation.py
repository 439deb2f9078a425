"""Augmentation moves images as it says, the same way for the same seed and step."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

from nightfold import backend
from nightfold.augmentation import augment
from nightfold.errors import UsageError
from nightfold.experiment import Augmentation, _validated

backend.start()
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def digits(mnist):
    return tf.constant(mnist.train.images[:64])


def test_images_stay_raw_pixels_of_the_same_shape(digits):
    moved = augment(digits, Augmentation(rotation=10, shift=0.1, zoom=0.1), 1, tf.constant(5))
    assert moved.dtype == tf.uint8
    assert moved.shape == digits.shape
    assert (moved.numpy() != digits.numpy()).any(axis=(1, 2, 3)).mean() > 0.9


def test_draws_depend_on_seed_and_step_alone(digits):
    choice = Augmentation(rotation=15)
    first = augment(digits, choice, 1, tf.constant(7)).numpy()
    assert (augment(digits, choice, 1, tf.constant(7)).numpy() == first).all()
    assert (augment(digits, choice, 1, tf.constant(8)).numpy() != first).any()
    assert (augment(digits, choice, 2, tf.constant(7)).numpy() != first).any()


def test_shift_moves_the_centre_of_mass_within_its_limit(digits):
    moved = augment(digits, Augmentation(shift=0.07), 3, tf.constant(0)).numpy()
    apart = [
        np.subtract(ndimage.center_of_mass(b[..., 0]), ndimage.center_of_mass(a[..., 0]))
        for a, b in zip(digits.numpy(), moved, strict=True)
    ]
    assert 1.0 < np.abs(apart).max() < 0.07 * 28 + 0.1


def test_rotation_is_about_the_centre(digits):
    """Turned back by the same angle, the image is nearly what it was."""
    moved = augment(digits, Augmentation(rotation=20), 3, tf.constant(0)).numpy()[..., 0]
    angles = np.arange(-21, 21.5, 0.5)
    for before, after in zip(digits.numpy()[:8, ..., 0], moved[:8], strict=True):
        errors = [
            np.abs(
                ndimage.rotate(after.astype(float), angle, reshape=False, order=1) - before
            ).mean()
            for angle in angles
        ]
        assert min(errors) < 0.4 * np.abs(after.astype(float) - before).mean() + 3


def test_an_augmentation_that_moves_nothing_is_refused():
    with pytest.raises(UsageError, match="moves nothing"):
        _validated(
            {
                "name": "n",
                "candidates": [{"name": "c", "architecture": "dense", "augmentation": {}}],
            },
            "x.toml",
        )
