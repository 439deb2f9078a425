"""The 1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn."""

from __future__ import annotations

import numpy as np

from nightfold.dataset import Split
from nightfold.sources.contents import Contents


def read() -> Contents:
    """Read the digits; ink 0 to 16 becomes 0 to 255.

    The value v becomes round(255 v / 16): black and white reach both ends of uint8, steps stay as
    even as integers allow, and round(16 p / 255) gives v back exactly.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]
    names = tuple(str(name) for name in digits.target_names)
    return Contents(Split(images, digits.target.astype(np.int64)), None, names)
