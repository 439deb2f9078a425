"""The tables that describe a split, on real digits with faults put in by hand."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from nightfold import inspection
from nightfold.dataset import Split
from nightfold.errors import UsageError
from nightfold.inspection import describe_classes, describe_images


@pytest.fixture(scope="module")
def digits() -> Split:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return Split(pixels.astype(np.uint8).reshape(-1, 8, 8, 1), labels.astype(np.int64))


def test_an_image_is_described_by_its_own_pixels(digits):
    row = describe_images(digits).loc[5]
    image = digits.images[5]
    assert row["digest"] == hashlib.sha256(image.tobytes()).hexdigest()
    assert row["label"] == digits.labels[5]
    assert (row["minimum"], row["maximum"]) == (image.min(), image.max())
    assert row["foreground"] == np.count_nonzero(image) / 64


def test_the_description_does_not_depend_on_the_size_of_chunks(digits, monkeypatch):
    whole = describe_images(digits)
    monkeypatch.setattr(inspection, "CHUNK_BYTES", 64 * 7)
    assert describe_images(digits).equals(whole)


def test_foreground_is_the_same_on_a_dark_and_on_a_light_ground(digits):
    inverted = Split(16 - digits.images, digits.labels)
    assert describe_images(inverted)["foreground"].equals(describe_images(digits)["foreground"])


def test_a_constant_image_has_no_foreground_whatever_its_value(digits):
    images = digits.images[:3].copy()
    images[0], images[1] = 0, 7
    foreground = describe_images(Split(images, digits.labels[:3]))["foreground"]
    assert list(foreground[:2]) == [0, 0]
    assert foreground[2] > 0


def test_labels_seen_counts_the_different_labels_of_the_same_image(digits):
    images, labels = digits.images[[0, 0, 1, 1, 2]], np.array([0, 5, 1, 1, 2])
    assert list(describe_images(Split(images, labels))["labels_seen"]) == [2, 2, 1, 1, 1]


def test_a_missing_pixel_is_a_missing_minimum_in_that_row_alone(digits):
    images = digits.images[:4].astype(np.float32)
    images[2, 3, 3, 0] = np.nan
    assert list(describe_images(Split(images, digits.labels[:4]))["minimum"].isna()) == [
        False,
        False,
        True,
        False,
    ]


@pytest.mark.parametrize("shape", [(0, 8, 8, 1), (3, 0, 8, 1)])
def test_images_without_pixels_are_described_as_unknown(shape):
    frame = describe_images(Split(np.zeros(shape, np.uint8), np.zeros(shape[0], np.int64)))
    assert len(frame) == shape[0]
    assert frame["minimum"].isna().all()


def test_balance_is_one_where_a_class_has_exactly_its_share():
    split = Split(np.zeros((6, 1, 1, 1), np.uint8), np.array([0, 0, 0, 0, 1, 1]))
    uniform = describe_classes(split, ("cat", "dog"))
    assert list(uniform["rows"]) == [4, 2]
    assert list(uniform["balance"]) == pytest.approx([4 / 3, 2 / 3])
    expected = describe_classes(split, ("cat", "dog"), {"dog": 1, "cat": 2})
    assert list(expected["balance"]) == pytest.approx([1, 1])


def test_labels_that_are_missing_or_text_count_for_no_class():
    images = np.zeros((3, 1, 1, 1), np.uint8)
    missing = describe_classes(Split(images, np.array([0, np.nan, 7.0])), ("cat", "dog"))
    assert list(missing["rows"]) == [1, 0]
    text = describe_classes(Split(images, np.array(["cat", "dog", "dog"])), ("cat", "dog"))
    assert list(text["rows"]) == [0, 0]


@pytest.mark.parametrize("reference", [{"cat": 1.0}, {"cat": 1.0, "dog": 0.0}, {}])
def test_a_reference_that_does_not_fit_the_classes_is_refused_by_name(reference):
    split = Split(np.zeros((2, 1, 1, 1), np.uint8), np.array([0, 1]))
    with pytest.raises(UsageError, match=r"reference_balance .* the classes are cat, dog"):
        describe_classes(split, ("cat", "dog"), reference)
