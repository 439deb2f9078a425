"""What is compared computes the same."""

import numpy as np
import pytest

from benchmarks.variants import dense_input_gradient, first_convolution, wide_convolution
from nightfold import backend

pytestmark = pytest.mark.slow

PARTS = {
    "first block": lambda: first_convolution(batch=4),
    "convolution of many channels": lambda: wide_convolution(10, 64, 64, batch=4),
    "convolution of few channels": lambda: wide_convolution(12, 8, 4, batch=4),
    "dense layer": lambda: dense_input_gradient(4, 300, 20),
}


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_all_ways_of_a_part_give_the_same(part):
    backend.start()
    names = list(part())
    assert sum(name.endswith("(kept)") for name in names) == 1
    results = [float(part()[name]()) for name in names]  # anew, as each way moves its weights
    assert abs(results[0]) > 1e-3
    np.testing.assert_allclose(results[1:], results[0], rtol=1e-3)
