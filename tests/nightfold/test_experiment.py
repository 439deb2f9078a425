"""Experiments: what a user may write, and what is said when it cannot be used."""

import pytest

from nightfold.errors import UsageError
from nightfold.experiment import Candidate, load_experiment, shipped

MINIMAL = '[[candidates]]\nname = "a"\narchitecture = "baseline"\n'


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return path

    return write


SHIPPED = sorted(path.stem for path in shipped("experiments").glob("*.toml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_experiment_loads_and_says_what_it_is(name):
    experiment = load_experiment(name)
    assert experiment.name == name
    assert experiment.description


def test_the_tutorial_is_the_tutorial():
    experiment = load_experiment("tutorial")
    assert (experiment.plan.scheme, experiment.plan.folds, experiment.plan.seed) == ("kfold", 5, 1)
    for candidate in experiment.candidates:
        assert (candidate.epochs, candidate.batch_size, candidate.scaling) == (10, 32, "normalize")
        optimizer = candidate.optimizer
        assert (optimizer.name, optimizer.learning_rate, optimizer.momentum) == ("sgd", 0.01, 0.9)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (MINIMAL + "optimizer = { learning_rate = -0.1 }", ["learning_rate", "-0.1"]),
        (MINIMAL + 'optimizer = { name = "sgd", beta_1 = 0.9 }', ["beta_1", "no effect"]),
        (MINIMAL + 'optimizer = { name = "lion" }', ["optimizer.name", "lion"]),
        (MINIMAL + "epohcs = 3", ["epohcs"]),
        (MINIMAL + 'scaling = "zscore"', ["scaling", "normalize"]),
        (MINIMAL + 'schedule = { name = "constant", every = 2 }', ["every", "no effect"]),
        (MINIMAL + MINIMAL, ["two candidates", "'a'"]),
        ('[[candidates]]\nname = "a"\narchitecture = "resnet"', ["architecture", "baseline"]),
        ("[plan]\nfolds = 1\n" + MINIMAL, ["plan.folds"]),
        ('name = "x"', ["candidates"]),
        ("name = =", ["not valid TOML", "line 1"]),
    ],
)
def test_a_mistake_names_file_and_key(written, text, words):
    path = written(text)
    with pytest.raises(UsageError) as caught:
        load_experiment(path)
    message = str(caught.value)
    assert "mine.toml" in message
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_missing_experiment_lists_the_shipped_ones():
    with pytest.raises(UsageError, match=r"'nights'.*night.*tutorial"):
        load_experiment("nights")


def test_a_folder_of_the_same_name_does_not_hide_an_experiment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "night").mkdir()
    assert load_experiment("night").name == "night"


def test_an_override_replaces_one_value_and_keeps_the_rest():
    night = load_experiment("night")
    changed = night.overridden(epochs=1, candidates=["swift"], limit=100, folds=3, seed=9)
    assert [c.name for c in changed.candidates] == ["swift"]
    assert changed.candidates[0].epochs == 1
    assert changed.candidates[0].optimizer == night.candidate("swift").optimizer
    assert (changed.plan.folds, changed.plan.seed, changed.seed) == (3, 1, 9)
    assert changed.dataset.limit == 100
    assert night.overridden() == night


def test_another_place_of_the_same_kind_keeps_the_shape_and_another_kind_does_not():
    scenes = load_experiment("15-scene")
    assert scenes.overridden(dataset="folder:elsewhere").dataset.size == (32, 32)
    assert scenes.overridden(dataset="mnist").dataset.size is None


def test_an_override_out_of_its_limits_names_the_command_line():
    with pytest.raises(UsageError, match=r"command line.*epochs.*-1"):
        load_experiment("night").overridden(epochs=-1)


def test_a_candidate_that_does_not_exist_lists_those_that_do():
    with pytest.raises(UsageError, match=r"'shallow'.*baseline, swift"):
        load_experiment("night").overridden(candidates=["shallow"])


def test_the_digest_covers_the_recipe_and_not_the_name():
    a = Candidate(name="a", architecture="baseline")
    assert a.digest == a.model_copy(update={"name": "b"}).digest
    assert a.digest != a.model_copy(update={"epochs": 11}).digest
