"""What a model says of image files: the same as of the pixels in them, with a word of warning."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nightfold.bundle import Bundle
from nightfold.errors import DataRefused
from nightfold.prediction import classify, tone

pytestmark = pytest.mark.slow


def save(pixels: np.ndarray, path: Path) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def test_an_image_file_gets_the_answer_of_its_pixels(champion, small_mnist, tmp_path):
    images = small_mnist.test.images[:20]
    paths = [save(image[..., 0], tmp_path / f"{i}.png") for i, image in enumerate(images)]
    expected = champion.predict(np.asarray(images))
    for path, answer, row in zip(paths, classify(paths, champion), expected, strict=True):
        order = np.argsort(row)[::-1]
        assert answer.path == str(path)
        assert answer.predicted == order[0]
        assert answer.class_name == small_mnist.class_names[order[0]]
        assert answer.runner_up == small_mnist.class_names[order[1]]
        assert answer.probability == pytest.approx(row[order[0]], abs=1e-5)
        assert answer.runner_up_probability == pytest.approx(row[order[1]], abs=1e-5)
        assert answer.probabilities == pytest.approx(row, abs=1e-5)
        assert answer.preparation == "grey 28x28"


def test_a_digit_on_paper_is_told_and_not_inverted(champion, small_mnist, tmp_path):
    seven = small_mnist.test.images[0, ..., 0]
    [light] = classify([save(seven, tmp_path / "light.png")], champion)
    [paper] = classify([save(255 - seven, tmp_path / "paper.png")], champion)
    assert "looks" not in light.preparation
    assert paper.preparation.endswith("looks dark on light; the model learned light on dark")
    inverted = champion.predict(255 - small_mnist.test.images[:1])[0]
    assert paper.probabilities == pytest.approx(inverted, abs=1e-5)


def test_a_model_of_photographs_warns_of_nothing(champion, small_mnist, tmp_path):
    """Golden images of both tones say nothing about the background."""
    both = Bundle(
        path=champion.path,
        manifest=champion.manifest,
        golden_images=np.concatenate([champion.golden_images, 255 - champion.golden_images]),
        model=champion.model,
    )
    path = save(255 - small_mnist.test.images[0, ..., 0], tmp_path / "paper.png")
    assert "looks" not in classify([path], both)[0].preparation


def test_mnist_is_light_on_dark(mnist_train):
    tones = [tone(image) for image in mnist_train.images[:1000]]
    assert tones.count(-1) > 990
    assert 1 not in tones


def test_a_large_colour_image_is_brought_to_the_models_size(champion, small_mnist, tmp_path):
    seven = small_mnist.test.images[0, ..., 0]
    colour = np.repeat(np.kron(seven, np.ones((10, 10), np.uint8))[..., None], 3, axis=2)
    [answer] = classify([save(colour, tmp_path / "large.png")], champion)
    assert answer.preparation == "RGB 280x280 -> grey 28x28"
    assert answer.class_name == classify([save(seven, tmp_path / "s.png")], champion)[0].class_name


def test_an_unreadable_image_is_named(champion, tmp_path):
    (tmp_path / "broken.png").write_text("no image")
    with pytest.raises(DataRefused, match=r"broken\.png"):
        classify([tmp_path / "broken.png"], champion)


def test_no_images_no_answers(champion):
    assert classify([], champion) == []
