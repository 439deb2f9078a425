"""What a model says of image files: the same as of the pixels in them, with a word of warning."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nightfold.bundle import Bundle, FoldScores, HoldoutScores, ModelFacts, seal
from nightfold.errors import DataRefused
from nightfold.experiment import Candidate, Optimizer
from nightfold.prediction import classify, tone
from nightfold.scaling import Scaler, pixel_histogram
from nightfold.training import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(small_mnist, tmp_path_factory) -> Bundle:
    rows = np.arange(600)
    quick = Optimizer(learning_rate=0.05, momentum=0.9)
    recipe = Candidate(name="dense", architecture="dense", optimizer=quick, epochs=4)
    scaler = Scaler.fit("normalize", pixel_histogram(small_mnist.train.images, rows))
    facts = ModelFacts(
        version="night-1",
        run_id="run-1",
        dataset=small_mnist.name,
        dataset_digest=small_mnist.digest,
        plan_digest="1" * 64,
        class_names=small_mnist.class_names,
        scaling=scaler.model_dump(mode="json"),
        candidate=recipe.model_dump(mode="json"),
        candidate_digest=recipe.digest,
        cross_validated=FoldScores.of([0.8, 0.9]),
        holdout=HoldoutScores(rows=200, accuracy=0.8, log_loss=0.5, brier=0.2, ece=0.05),
    )
    model = train(recipe, small_mnist, rows, rows[:0], scaler=scaler, seed=1).model
    golden = np.asarray(small_mnist.test.images[:16])
    return Bundle.load(seal(model, tmp_path_factory.mktemp("models"), facts, golden).path)


def save(pixels: np.ndarray, path: Path) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def test_an_image_file_gets_the_answer_of_its_pixels(bundle, small_mnist, tmp_path):
    images = small_mnist.test.images[:20]
    paths = [save(image[..., 0], tmp_path / f"{i}.png") for i, image in enumerate(images)]
    expected = bundle.predict(np.asarray(images))
    for path, answer, row in zip(paths, classify(paths, bundle), expected, strict=True):
        order = np.argsort(row)[::-1]
        assert answer.path == str(path)
        assert answer.predicted == order[0]
        assert answer.class_name == small_mnist.class_names[order[0]]
        assert answer.runner_up == small_mnist.class_names[order[1]]
        assert answer.probability == pytest.approx(row[order[0]], abs=1e-5)
        assert answer.runner_up_probability == pytest.approx(row[order[1]], abs=1e-5)
        assert answer.probabilities == pytest.approx(row, abs=1e-5)
        assert answer.preparation == "grey 28x28"


def test_a_digit_on_paper_is_told_and_not_inverted(bundle, small_mnist, tmp_path):
    seven = small_mnist.test.images[0, ..., 0]
    [light] = classify([save(seven, tmp_path / "light.png")], bundle)
    [paper] = classify([save(255 - seven, tmp_path / "paper.png")], bundle)
    assert "looks" not in light.preparation
    assert paper.preparation.endswith("looks dark on light; the model learned light on dark")
    inverted = bundle.predict(255 - small_mnist.test.images[:1])[0]
    assert paper.probabilities == pytest.approx(inverted, abs=1e-5)


def test_a_model_of_photographs_warns_of_nothing(bundle, small_mnist, tmp_path):
    """Golden images of both tones say nothing about the background."""
    both = Bundle(
        path=bundle.path,
        manifest=bundle.manifest,
        golden_images=np.concatenate([bundle.golden_images, 255 - bundle.golden_images]),
        model=bundle.model,
    )
    path = save(255 - small_mnist.test.images[0, ..., 0], tmp_path / "paper.png")
    assert "looks" not in classify([path], both)[0].preparation


def test_mnist_is_light_on_dark(mnist_train):
    tones = [tone(image) for image in mnist_train.images[:1000]]
    assert tones.count(-1) > 990
    assert 1 not in tones


def test_a_large_colour_image_is_brought_to_the_models_size(bundle, small_mnist, tmp_path):
    seven = small_mnist.test.images[0, ..., 0]
    colour = np.repeat(np.kron(seven, np.ones((10, 10), np.uint8))[..., None], 3, axis=2)
    [answer] = classify([save(colour, tmp_path / "large.png")], bundle)
    assert answer.preparation == "RGB 280x280 -> grey 28x28"
    assert answer.class_name == classify([save(seven, tmp_path / "s.png")], bundle)[0].class_name


def test_an_unreadable_image_is_named(bundle, tmp_path):
    (tmp_path / "broken.png").write_text("no image")
    with pytest.raises(DataRefused, match=r"broken\.png"):
        classify([tmp_path / "broken.png"], bundle)


def test_no_images_no_answers(bundle):
    assert classify([], bundle) == []
