"""TensorFlow starts with one thread, whoever imported it; else training is refused."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def threads_after(code):
    """What `code`, run in a fresh process, prints last, or the last line of its error."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return (done.stdout or done.stderr).strip().splitlines()[-1]


def test_one_thread_even_if_someone_imported_tensorflow_first():
    code = (
        "import keras\nfrom nightfold import backend\nbackend.start()\n"
        "backend.require_one_thread()\nprint(backend.threads())"
    )
    assert threads_after(code) == "1"


def test_training_is_refused_where_tensorflow_has_computed_with_several_threads():
    code = (
        "import tensorflow as tf\ntf.constant(1) + 1\nfrom nightfold import backend\n"
        "backend.start()\nbackend.require_one_thread()"
    )
    assert "already computed in this process" in threads_after(code)
