"""Two real nights taken apart through Prefect, on a slice of real MNIST."""

import json

import numpy as np
import pytest

from flows.diff import diff
from flows.evaluate import evaluate
from flows.settings import Settings
from nightfold.dataset import Dataset, Split
from nightfold.difference import Difference, Question
from nightfold.sources import write_native
from nightfold.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

EXPERIMENT = """
seed = 1
[plan]
folds = 2
[[candidates]]
name = "dense"
architecture = "dense"
epochs = 1
optimizer = { name = "sgd", learning_rate = RATE, momentum = 0.9 }
"""


@pytest.fixture(scope="module")
def settings(small_mnist, tmp_path_factory):
    """A function that makes settings of a short night on so many of the 600 digits."""
    root = tmp_path_factory.mktemp("diff")
    for n in (500, 600):
        train = Split(small_mnist.train.images[:n], small_mnist.train.labels[:n])
        fewer = Dataset.write(
            root / "snapshots",
            name="digits",
            origin="digits",
            class_names=small_mnist.class_names,
            train=train,
            test=small_mnist.test,
        )
        write_native(root / str(n) / "digits", fewer)

    def make(n=500, rate=0.01, seed=1, artifacts="artifacts"):
        path = root / str(rate) / "short.toml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(EXPERIMENT.replace("RATE", str(rate)))
        return Settings(
            experiment=str(path),
            dataset=f"parquet:{root / str(n) / 'digits'}",
            seed=seed,
            runner="sequential",
            artifacts=str(root / artifacts),
        )

    return make


@pytest.fixture(scope="module")
def nights(settings, prefect_server):
    """Run ids: night A; one with another seed; one with other data and rate as well."""
    ways = ({}, {"seed": 2}, {"seed": 2, "n": 600, "rate": 0.05})
    return [evaluate(settings(**way)).run_id for way in ways]


def test_if_only_the_seed_changed_nothing_is_trained(settings, nights):
    a, b, _ = nights
    found = diff(a, b, settings=settings())
    assert [step.difference for step in found.steps[:3]] == [0.0, 0.0, 0.0]
    assert found.steps[3].difference == found.difference
    assert [corner.source for corner in found.corners] == ["recorded", "recorded"]


def test_a_change_of_everything_is_taken_apart(settings, nights):
    """The corners are what a night with that data, rate and seed would have scored."""
    a, _, b = nights
    store = Store(settings().artifacts)
    question = Question.read(store, a, b)

    nothing = question.answer(minutes=0, workers=1)
    assert [s.reading for s in nothing.steps] == ["unchanged"] + 3 * ["not measured"]
    assert nothing.rest == nothing.difference

    found = diff(a, b, settings=settings())
    assert [c.source for c in found.corners] == ["recorded", "trained", "trained", "recorded"]
    assert sum(s.difference for s in found.steps) == pytest.approx(found.difference, abs=1e-15)
    assert found.rest == 0
    told = [" ".join(step.what) for step in found.steps[1:]]
    assert "images 500 -> 600" in told[0]
    assert told[1:] == ["optimizer.learning_rate 0.01 -> 0.05", "1 -> 2"]
    elsewhere = [
        evaluate(settings(n=600, artifacts="elsewhere")),
        evaluate(settings(n=600, rate=0.05, artifacts="elsewhere")),
    ]
    expected = [summary.candidates[0].accuracy_mean for summary in elsewhere]
    assert [corner.accuracy for corner in found.corners[1:3]] == expected
    assert len({corner.accuracy for corner in found.corners}) > 2

    written = json.loads((store.run(b) / "difference.json").read_text())
    assert Difference.model_validate(written) == found
    again = question.answer(minutes=0, workers=1)
    assert again.steps == found.steps
    assert {c.source for c in again.corners} == {"recorded", "in the store"}


def test_rows_that_are_no_longer_those_of_the_night_are_refused(settings, nights):
    """A snapshot that was altered is not trained on."""
    a, _, b = nights
    store = Store(settings().artifacts)
    question = Question.read(store, a, b)
    for key in question.path[2].keys:
        (store.folds / key[:32] / "result.json").unlink()
    labels = store.datasets / question.b.dataset.digest[:16] / "train_labels.npy"
    before = labels.read_bytes()
    altered = np.load(labels)
    altered[0] = (altered[0] + 1) % 10
    np.save(labels, altered)
    try:
        state = diff(a, b, settings=settings(), return_state=True)
    finally:
        labels.write_bytes(before)
    assert state.is_failed()
    assert "was altered" in state.message
