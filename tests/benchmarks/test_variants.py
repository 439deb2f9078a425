"""What is compared computes the same."""

import numpy as np
import pytest

from nightfold import backend

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("side", [11, 26])
def test_winograds_filtering_is_a_convolution(side):
    backend.start()
    import tensorflow as tf

    from benchmarks.variants import winograd

    draw = np.random.default_rng(0)
    x = tf.constant(draw.random((2, side, side, 8), dtype=np.float32))
    kernel = tf.constant(draw.normal(size=(3, 3, 8, 8)).astype(np.float32))
    direct = tf.nn.conv2d(x, kernel, 1, "VALID")
    np.testing.assert_allclose(winograd(x, kernel), direct, atol=1e-4)
    assert float(tf.math.reduce_std(direct)) > 1
