"""Modules of the user's own change nothing for other networks of the process."""

import random
import sys
from itertools import count

import keras
import pytest

from nightfold.errors import UsageError
from nightfold.zoo import find

NETWORK = "\ndef network(images, n_classes): ...\n"


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A function that writes a module of a name that no other test has; the name."""
    monkeypatch.syspath_prepend(tmp_path)
    names = (f"{tmp_path.name}_{number}" for number in count())
    made = []

    def write(text):
        made.append(next(names))
        (tmp_path / f"{made[-1]}.py").write_text("import keras\n" + text + NETWORK)
        return made[-1]

    before = dict(keras.saving.get_custom_objects())
    yield write
    for name in made:
        sys.modules.pop(name, None)
    keras.saving.get_custom_objects().clear()
    keras.saving.get_custom_objects().update(before)


def test_one_that_sets_keras_for_everybody_is_refused_each_time(written):
    """A later import would change nothing: which folds were hit would depend on their worker."""
    name = written("keras.config.set_dtype_policy('mixed_float16')")
    for _ in range(2):
        with pytest.raises(
            UsageError, match=r"sets mixed_float16 for all of Keras .* within the f"
        ):
            find(f"{name}:network")
        assert keras.config.dtype_policy().name == "float32"


CLASS = "@keras.saving.register_keras_serializable({})\nclass Scale(keras.layers.Layer): ...\n"


def test_two_that_register_one_name_exclude_each_other_whichever_comes_first(written):
    """Keras would load the last one's class for both."""
    first, second = written(CLASS.format("")), written(CLASS.format(""))
    third = written(CLASS.format("'third'"))
    find(f"{first}:network")
    for _ in range(2):
        with pytest.raises(UsageError, match=f"{first}' and '{second}' both register 'Custom>Scal"):
            find(f"{second}:network")
        assert keras.saving.get_registered_object("Custom>Scale").__module__ == first
    find(f"{third}:network")


def test_one_may_be_imported_anew(written):
    name = written(CLASS.format(""))
    for _ in range(2):
        find(f"{name}:network")
        sys.modules.pop(name)


def test_what_keras_draws_in_an_import_is_the_same_in_every_process(written):
    """The seed of an initializer that nobody has given one."""
    name = written("INITIAL = keras.initializers.HeNormal()")
    seeds = set()
    for state in range(2):
        random.seed(state)
        find(f"{name}:network")
        seeds.add(sys.modules.pop(name).INITIAL.seed)
    assert len(seeds) == 1
    assert random.randint(0, 10**9) == random.Random(1).randint(0, 10**9)
