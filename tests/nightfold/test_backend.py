"""TensorFlow starts with one thread, whoever imported it; else training is refused.

Nothing in the home of the user changes what Keras computes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def last_line(code, **variables):
    """What `code`, run in a fresh process, prints last, or the last line of its error."""
    environment = {**os.environ, **variables}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return (done.stdout or done.stderr).strip().splitlines()[-1]


def test_one_thread_even_if_someone_imported_tensorflow_first():
    code = (
        "import keras\nfrom nightfold import backend\nbackend.start()\n"
        "backend.require_one_thread()\nprint(backend.threads())"
    )
    assert last_line(code) == "1"


def test_training_is_refused_where_tensorflow_has_computed_with_several_threads():
    code = (
        "import tensorflow as tf\ntf.constant(1) + 1\nfrom nightfold import backend\n"
        "backend.start()\nbackend.require_one_thread()"
    )
    assert "already computed in this process" in last_line(code)


def test_settings_in_the_home_do_not_change_scores(tmp_path):
    (tmp_path / ".keras").mkdir()
    (tmp_path / ".keras" / "keras.json").write_text('{"floatx": "float16"}')
    code = (
        "from nightfold import backend\nbackend.start()\nimport keras\nprint(keras.config.floatx())"
    )
    environment = {**os.environ, "HOME": str(tmp_path)}
    environment.pop("KERAS_HOME", None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "float32"


def test_variables_of_the_environment_do_not_change_scores():
    code = (
        "from nightfold import backend\nbackend.start()\nfrom keras import config\n"
        "print(config.backend(), config.max_epochs(), config.max_steps_per_epoch())"
    )
    exported = {
        "KERAS_BACKEND": "torch",
        "KERAS_MAX_EPOCHS": "1",
        "KERAS_MAX_STEPS_PER_EPOCH": "1",
    }
    assert last_line(code, **exported) == "tensorflow None None"


def test_a_module_that_imports_keras_first_finds_the_backend_that_is_trained_on(tmp_path):
    (tmp_path / "own_first.py").write_text("from keras import layers\ndef build(*_): ...\n")
    code = (
        "from nightfold.zoo import find\nfind('own_first:build')\n"
        "from keras import config\nprint(config.backend())"
    )
    exported = {"KERAS_BACKEND": "torch", "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    assert last_line(code, **exported) == "tensorflow"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"floatx": "float64"}, "floatx 'float64'"),
        ({"image_data_format": "channels_first"}, "image_data_format 'channels_first'"),
        ({"epsilon": 0.01}, "epsilon 0.01"),
    ],
)
def test_settings_of_a_home_that_was_named_are_refused(settings, words, tmp_path):
    (tmp_path / "keras.json").write_text(json.dumps(settings))
    said = last_line("from nightfold import backend\nbackend.start()", KERAS_HOME=str(tmp_path))
    assert f"Keras is set to {words}" in said


def test_another_backend_in_the_program_around_is_refused():
    code = (  # none is installed here
        "from keras import config\nconfig.backend = lambda: 'torch'\n"
        "from nightfold import backend\nbackend.start()"
    )
    assert "Keras is set to backend 'torch'" in last_line(code)


def test_a_process_that_only_trains_loads_no_extras_and_may_import_them_later():
    code = (
        "import sys\nfrom nightfold import backend\nbackend.leave_out_extras()\nbackend.start()\n"
        "extras = ['matplotlib', 'pandas', 'sklearn']\n"
        "print([name for name in extras if name in sys.modules], end=' ')\n"
        "import keras, matplotlib.pyplot, pandas, sklearn.base\n"
        "print(pandas.DataFrame({'x': [keras.ops.sum([1, 2])]}).x[0].numpy())"
    )
    assert last_line(code) == "[] 3"


def test_whoever_uses_keras_beside_nightfold_has_all_of_it():
    code = (
        "from nightfold import backend\nbackend.start()\nimport keras\n"
        "print(keras.wrappers.SKLearnClassifier(keras.Sequential()).__sklearn_tags__ is not None)"
    )
    assert last_line(code) == "True"


def test_a_gpu_is_shared_and_asked_for_the_same_numbers_every_time():
    code = """
import tensorflow as tf
from nightfold import backend
asked = []
tf.config.list_physical_devices = lambda kind: ["first", "second"]
tf.config.set_visible_devices = lambda gpus, kind: asked.append(gpus)
tf.config.experimental.set_memory_growth = lambda gpu, grow: asked.append((gpu, grow))
backend.start()
from tensorflow.python.framework import config
told = config.is_op_determinism_enabled(), config.tensor_float_32_execution_enabled()
print(asked == [["first"], ("first", True)], *told, backend.threads())
"""
    assert last_line(code) == "True True False 1"
