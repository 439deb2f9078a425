"""Architectures are those of the published recipes, found by name."""

import re
import sys

import pytest

from nightfold import backend
from nightfold.errors import UsageError
from nightfold.experiment import Candidate
from nightfold.model import build_model
from nightfold.modules import import_trusted
from nightfold.scaling import Scaler
from nightfold.zoo import architectures, find, fingerprint

PARAMETERS = {
    # conv + dense layers and batch norm, counted by hand from the description
    "baseline": (9 * 32 + 32) + (13 * 13 * 32 * 100 + 100) + 1010,
    "batch_norm": (9 * 32 + 32) + 2 * 32 + (13 * 13 * 32 * 100 + 100) + 2 * 100 + 1010,
    "deep": 320 + (9 * 32 * 64 + 64) + (9 * 64 * 64 + 64) + (4 * 4 * 64 * 100 + 100) + 1010,
    "deep_single": 320 + (9 * 32 * 64 + 64) + (5 * 5 * 64 * 100 + 100) + 1010,
    "dense": (784 * 128 + 128) + 1290,
    "wide_cnn": 320 + 18496 + (3136 * 3136 + 3136) + (3136 * 128 + 128) + 1290,
    "swift": 416 + 32 + (9 * 16 * 32 + 32) + 64 + (5 * 5 * 32 * 256 + 256) + 2570,
    "sharp": 832
    + 64
    + (9 * 32 * 64 + 64)
    + 128
    + (9 * 64 * 64 + 64)
    + 128
    + (4 * 4 * 64 * 256 + 256)
    + 512
    + 2570,
    "adam_dropout": (9 * 28 + 28) + (13 * 13 * 28 * 128 + 128) + 1290,
}


def build(name, dataset):
    backend.start()  # before anything of TensorFlow's, for the tests that train in this process
    return build_model(Candidate(name="c", architecture=name), Scaler(name="none"), dataset, seed=1)


def test_every_registered_architecture_is_documented_and_counted():
    assert set(architectures()) == set(PARAMETERS)
    assert all(function.__doc__ for function in architectures().values())


@pytest.mark.slow
@pytest.mark.parametrize("name", PARAMETERS)
def test_trainable_parameters_are_those_of_the_recipe(name, small_mnist):
    model = build(name, small_mnist)
    assert sum(v.numpy().size for v in model.trainable_variables) == PARAMETERS[name]
    assert model.input_shape == (None, 28, 28, 1)
    assert model.inputs[0].dtype == "uint8"
    assert model.output_shape == (None, 10)


@pytest.mark.slow
def test_batch_norm_stands_after_the_activations(small_mnist):
    kinds = [type(layer).__name__ for layer in build("batch_norm", small_mnist).layers[2:]]
    assert kinds == [
        "Conv2D",
        "BatchNormalization",
        "MaxPooling2D",
        "Flatten",
        "Dense",
        "BatchNormalization",
        "Dense",
    ]


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "my_nets.py").write_text(
        "def tiny(images, n_classes):\n"
        "    from keras import layers\n"
        "    return layers.Dense(n_classes, 'softmax')(layers.Flatten()(images))\n"
        "def wrong(images, n_classes):\n"
        "    return images\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "my_nets.py"
    sys.modules.pop("my_nets", None)


@pytest.mark.slow
def test_a_users_own_architecture_needs_no_registration(own_module, small_mnist):
    assert build("my_nets:tiny", small_mnist).output_shape == (None, 10)


@pytest.mark.slow
def test_an_architecture_without_one_probability_a_class_is_refused(own_module, small_mnist):
    with pytest.raises(UsageError, match=r"my_nets:wrong.*one probability a class"):
        build("my_nets:wrong", small_mnist)


@pytest.mark.parametrize("name", ["broken_net:build", "raising_net:build", ":build", ".x:build"])
def test_a_module_that_cannot_be_imported_is_one_sentence(name, tmp_path, monkeypatch):
    (tmp_path / "broken_net.py").write_text("def build(:\n")
    (tmp_path / "raising_net.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert fingerprint(name) is not None
    with pytest.raises(UsageError, match=f"The architecture '{re.escape(name)}' cannot be impor"):
        find(name)
    monkeypatch.setenv("NIGHTFOLD_MODULES", name.partition(":")[0])
    if name[0] not in ":.":
        with pytest.raises(UsageError, match="NIGHTFOLD_MODULES cannot be imported"):
            import_trusted()


def test_a_changed_source_file_changes_the_fingerprint(own_module):
    before = fingerprint("my_nets:tiny")
    own_module.write_text(own_module.read_text() + "\n# changed\n")
    assert fingerprint("my_nets:tiny") != before


def test_a_shipped_network_has_the_fingerprint_of_its_file():
    """The same name may be another network in another version."""
    assert fingerprint("baseline") == fingerprint("deep")
    assert fingerprint("baseline") != fingerprint("swift")
    assert fingerprint("resnet") == ""


@pytest.mark.parametrize("name", ["resnet", "no_such_module:build", "nightfold.zoo:nothing"])
def test_an_unknown_architecture_is_one_sentence(name):
    with pytest.raises(UsageError, match=name.split(":")[0]):
        find(name)
