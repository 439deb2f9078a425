"""A bundle is whole, unaltered and still the same model, or it is refused with a sentence."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nightfold import backend, modelfile
from nightfold.bundle import GOLDEN_TOLERANCE, Bundle, seal
from nightfold.errors import BundleRefused, UsageError
from nightfold.manifest import Manifest, ModelFacts, verify
from nightfold.registry import Registry
from nightfold.store import TEMPORARY, Store, write_json

pytestmark = pytest.mark.slow

FILES = ["README.md", "golden.npz", "model.h5", "model.keras"]


@pytest.fixture(scope="module")
def pristine(model, small_mnist, tmp_path_factory, facts) -> Path:
    folder = tmp_path_factory.mktemp("models")
    golden = np.asarray(small_mnist.test.images[:16])
    return Path(seal(model, folder, facts, golden, h5=True).path)


@pytest.fixture
def bundle(pristine: Path, tmp_path: Path) -> Path:
    """A copy of the sealed bundle, to be spoiled."""
    return Path(shutil.copytree(pristine, tmp_path / pristine.name))


def edit_manifest(bundle: Path, **changes) -> None:
    file = bundle / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def describe_again(bundle: Path, facts: ModelFacts) -> None:
    """What somebody does who alters a file and its checksum."""
    (bundle / "manifest.json").unlink()
    manifest = Manifest.describing(bundle, facts, (28, 28, 1))
    write_json(bundle / "manifest.json", manifest.model_dump(mode="json"))


def test_a_sealed_model_answers_as_it_did_before(model, pristine, small_mnist):
    images = np.asarray(small_mnist.test.images)
    answers = Bundle.load(pristine).predict(images)
    assert answers.dtype == np.float32
    assert answers.shape == (200, 10)
    np.testing.assert_allclose(answers, np.asarray(model(images)), atol=1e-6)
    assert (answers.argmax(axis=1) == small_mnist.test.labels).mean() > 0.7


def test_batches_leave_no_seam(pristine, small_mnist):
    bundle = Bundle.load(pristine)
    images = np.asarray(small_mnist.train.images)
    one_by_one = np.concatenate([bundle.predict(images[i : i + 1]) for i in range(250, 270)])
    np.testing.assert_allclose(bundle.predict(images)[250:270], one_by_one, atol=1e-5)
    assert bundle.predict(images[:0]).shape == (0, 10)


def test_plain_keras_reads_both_model_files(pristine, small_mnist):
    import keras

    images = np.asarray(small_mnist.test.images[:5])
    expected = Bundle.load(pristine).predict(images)
    for name in ("model.keras", "model.h5"):
        model = keras.saving.load_model(pristine / name, compile=False, safe_mode=True)
        np.testing.assert_allclose(np.asarray(model(images)), expected, atol=1e-5)


def test_the_manifest_names_every_file_and_the_card_gives_the_scores(pristine):
    manifest = verify(pristine)
    assert sorted(manifest.files) == FILES
    assert {path.name for path in pristine.iterdir()} == {*FILES, "manifest.json"}
    assert manifest.input_shape == (28, 28, 1)
    assert manifest.cross_validated.std == pytest.approx(0.0707107, abs=1e-6)
    card = (pristine / "README.md").read_text()
    assert "85.000% (std 7.071% over 2 folds, ddof=1)" in card


def test_sealing_again_gives_the_same_bundle_and_another_model_is_refused(
    model, pristine, small_mnist, facts
):
    golden = np.asarray(small_mnist.test.images[:16])
    before = (pristine / "manifest.json").read_bytes()
    handle = seal(model, pristine.parent, facts, golden)
    assert (pristine / "manifest.json").read_bytes() == before
    assert handle.verify().version == "night-1"
    other = facts.model_copy(update={"plan_digest": "2" * 64})
    with pytest.raises(UsageError, match="night-1 is sealed already"):
        seal(model, pristine.parent, other, golden)


FLIP_EVERYWHERE = """
import sys
from pathlib import Path
from nightfold.errors import BundleRefused
from nightfold.registry import Registry
from nightfold.store import Store

registry = Registry(Store(sys.argv[1]))
tried = refused = 0
for file in sorted((registry.folder / "night-1").iterdir()):
    whole = file.read_bytes()
    n = len(whole)
    places = {*range(0, n, max(1, n // 200)), *range(min(n, 64)), *range(max(0, n - 64), n)}
    for place in range(n) if file.name.startswith("manifest.json") else sorted(places):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        file.write_bytes(flipped)
        tried += 1
        try:
            registry.load("champion")
        except BundleRefused as error:
            refused += "was altered" in str(error) or "is not the signature" in str(error)
    file.write_bytes(whole)
registry.verify("champion")
loaded = {"keras", "tensorflow", "h5py"} & set(sys.modules)
assert not loaded, loaded
print(tried, refused)
"""


def test_a_bundle_with_one_flipped_bit_anywhere_is_refused_before_anything_is_deserialised(
    bundle, tmp_path, new_key
):
    (tmp_path / "models").mkdir()
    bundle.rename(tmp_path / "models" / bundle.name)
    new_key("night", public=True)
    registry = Registry(Store(tmp_path))
    registry.sign("night-1")
    registry.promote("night-1", "The first model.")
    done = subprocess.run(
        [sys.executable, "-c", FLIP_EVERYWHERE, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    tried, refused = map(int, done.stdout.split())
    assert tried > 3000
    assert refused == tried


def test_what_is_deserialised_are_the_bytes_that_were_verified(bundle, monkeypatch):
    """Somebody swaps the files at the last moment before they are used."""
    inspect = modelfile.inspect

    def swap_then_inspect(content):
        for name in ("model.keras", "golden.npz"):
            (bundle / name).unlink()
            (bundle / name).write_bytes(b"another model")
        return inspect(content)

    monkeypatch.setattr(modelfile, "inspect", swap_then_inspect)
    assert Bundle.load(bundle).manifest.version == "night-1"
    with pytest.raises(BundleRefused, match="was altered"):
        verify(bundle)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(bundle, name):
    (bundle / name).unlink()
    with pytest.raises(BundleRefused, match=f"{name} is missing"):
        verify(bundle)


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_cut_file_is_named(bundle, name):
    content = (bundle / name).read_bytes()
    (bundle / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(BundleRefused, match=name):
        verify(bundle)


def test_an_extra_file_is_named(bundle):
    (bundle / "payload.py").write_text("print('hello')")
    with pytest.raises(BundleRefused, match=r"payload\.py is not in the bundle's manifest"):
        verify(bundle)


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_link_is_not_a_file(bundle, tmp_path, name):
    shutil.move(bundle / name, tmp_path / name)
    (bundle / name).symlink_to(tmp_path / name)
    with pytest.raises(BundleRefused, match=f"{name} is not a plain file"):
        verify(bundle)


@pytest.mark.parametrize("name", ["README.md", "manifest.json"])
def test_a_pipe_is_not_a_file_and_nobody_waits_at_it(bundle, name):
    (bundle / name).unlink()
    os.mkfifo(bundle / name)
    with pytest.raises(BundleRefused, match=f"{name} is not a plain file"):
        verify(bundle)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "sub/model.keras", "manifest.json"])
def test_a_name_that_leads_elsewhere_is_refused(bundle, name):
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    edit_manifest(bundle, files={**files, name: files["model.keras"]})
    with pytest.raises(BundleRefused, match=f"lists the file '{name}'"):
        verify(bundle)


@pytest.mark.parametrize("form", [0, 2, "1", None])
def test_another_format_is_refused(bundle, form):
    edit_manifest(bundle, format=form)
    with pytest.raises(BundleRefused, match="reads format 1"):
        verify(bundle)


def test_an_unknown_key_of_the_manifest_is_refused(bundle):
    edit_manifest(bundle, custom_objects="os.system")
    with pytest.raises(BundleRefused, match="custom_objects"):
        verify(bundle)


@pytest.mark.parametrize("content", ["", "[]", "{}", "nul", "[" * 100_000])
def test_a_manifest_that_is_none_is_refused(bundle, content):
    (bundle / "manifest.json").write_text(content)
    with pytest.raises(BundleRefused, match="is not a bundle manifest"):
        verify(bundle)


def test_a_folder_without_manifest_is_no_bundle(tmp_path):
    with pytest.raises(BundleRefused, match="is not a model bundle"):
        Bundle.load(tmp_path)


def test_an_altered_manifest_is_refused_by_whoever_knows_its_sha256(
    model, small_mnist, tmp_path, facts
):
    golden = np.asarray(small_mnist.test.images[:4])
    handle = seal(model, tmp_path, facts, golden)
    edit_manifest(Path(handle.path), run_id="another")
    verify(Path(handle.path))
    with pytest.raises(BundleRefused, match=r"manifest\.json was altered"):
        handle.verify()


@pytest.mark.parametrize("shift", [2 * GOLDEN_TOLERANCE, np.nan])
def test_a_model_that_answers_otherwise_than_when_sealed_is_refused(bundle, shift, facts):
    with np.load(bundle / "golden.npz") as golden:
        images, probabilities = golden["images"], golden["probabilities"]
    probabilities[3, 7] += shift
    np.savez(bundle / "golden.npz", images=images, probabilities=probabilities)
    describe_again(bundle, facts)
    verify(bundle)
    with pytest.raises(BundleRefused, match="no longer gives the answers"):
        Bundle.load(bundle)


def test_pickled_golden_images_are_refused(bundle, facts):
    np.savez(bundle / "golden.npz", images=np.array([{}], dtype=object), probabilities=[[1.0]])
    describe_again(bundle, facts)
    with pytest.raises(BundleRefused, match=r"golden\.npz cannot be read"):
        Bundle.load(bundle)


def test_golden_images_that_would_grow_in_memory_are_refused(bundle, facts):
    with np.load(bundle / "golden.npz") as golden:
        np.savez_compressed(bundle / "golden.npz", **golden)
    describe_again(bundle, facts)
    with pytest.raises(BundleRefused, match="its members are compressed"):
        Bundle.load(bundle)


def test_no_golden_images_are_no_proof(bundle, facts):
    nothing = np.empty((0, 28, 28, 1), np.uint8)
    np.savez(bundle / "golden.npz", images=nothing, probabilities=np.empty((0, 10)))
    describe_again(bundle, facts)
    with pytest.raises(BundleRefused, match="does not hold images and answers"):
        Bundle.load(bundle)


@pytest.mark.parametrize("kind", ["lambda", "unregistered"])
def test_a_model_that_safe_mode_cannot_load_is_never_sealed(small_mnist, tmp_path, kind, facts):
    backend.start()
    import keras

    class Doubling(keras.layers.Layer):
        def call(self, x):
            return 2 * x

    double = keras.layers.Lambda(lambda x: 2 * x) if kind == "lambda" else Doubling()
    images = keras.Input((28, 28, 1), dtype="uint8")
    scaled = double(keras.layers.Rescaling(1 / 255)(images))
    model = keras.Model(images, keras.layers.Dense(10)(keras.layers.Flatten()(scaled)))
    with pytest.raises(
        BundleRefused,
        match=r"model\.keras is not loaded: it (holds the layer Lambda|uses 'Doubling')",
    ):
        seal(model, tmp_path, facts, np.asarray(small_mnist.test.images[:4]))
    assert list(tmp_path.iterdir()) == []


def test_a_registered_layer_of_the_users_own_is_welcome(small_mnist, tmp_path, facts):
    backend.start()
    import keras

    @keras.saving.register_keras_serializable("test_bundle")
    class Halving(keras.layers.Layer):
        def call(self, x):
            return x / 2

    images = keras.Input((28, 28, 1), dtype="uint8")
    scaled = Halving()(keras.layers.Rescaling(1 / 255)(images))
    answer = keras.layers.Dense(10, "softmax")(keras.layers.Flatten()(scaled))
    golden = np.asarray(small_mnist.test.images[:4])
    handle = seal(keras.Model(images, answer), tmp_path, facts, golden)
    assert Bundle.load(handle.path).predict(golden).shape == (4, 10)


def test_an_own_layer_is_imported_because_its_user_says_so_and_not_because_a_bundle_does(
    small_mnist, tmp_path, facts, monkeypatch
):
    backend.start()
    import keras

    (tmp_path / "own_layers.py").write_text(
        "import keras\n"
        "@keras.saving.register_keras_serializable('own')\n"
        "class Thirding(keras.layers.Layer):\n"
        "    def call(self, x):\n"
        "        return x / 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    images = keras.Input((28, 28, 1), dtype="uint8")
    scaled = importlib.import_module("own_layers").Thirding()(keras.layers.Rescaling(1.0)(images))
    answer = keras.layers.Dense(10, "softmax")(keras.layers.Flatten()(scaled))
    golden = np.asarray(small_mnist.test.images[:4])
    handle = seal(keras.Model(images, answer), tmp_path / "models", facts, golden)
    # As in another process, which has not built the network.
    keras.saving.get_custom_objects().pop("own>Thirding")
    monkeypatch.delitem(sys.modules, "own_layers")
    with pytest.raises(BundleRefused, match=r"'own>Thirding', which nobody here has registered"):
        Bundle.load(handle.path)
    assert "own_layers" not in sys.modules
    monkeypatch.setenv("NIGHTFOLD_MODULES", "own_layers")
    assert Bundle.load(handle.path).predict(golden).shape == (4, 10)
    monkeypatch.setenv("NIGHTFOLD_MODULES", "own_layers, no_such_module")
    with pytest.raises(UsageError, match="'no_such_module' of NIGHTFOLD_MODULES"):
        Bundle.load(handle.path)


def test_a_diverged_model_is_never_sealed(model, small_mnist, tmp_path, facts):
    import keras

    broken = keras.models.clone_model(model)
    broken.set_weights([np.full_like(weights, np.nan) for weights in model.get_weights()])
    with pytest.raises(BundleRefused, match="not finite"):
        seal(broken, tmp_path, facts, np.asarray(small_mnist.test.images[:4]))
    assert list(tmp_path.glob(f"{TEMPORARY}*")) == []


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 28, 28), np.uint8),
        np.zeros((2, 32, 32, 1), np.uint8),
        np.zeros((2, 28, 28, 1), np.float32),
    ],
)
def test_images_the_model_does_not_take_are_refused(pristine, images):
    with pytest.raises(UsageError, match=r"takes raw uint8 images of shape \(n, 28, 28, 1\)"):
        Bundle.load(pristine).predict(images)


@pytest.mark.parametrize("version", ["", "../x", ".hidden", "a/b", "x" * 200])
def test_a_version_is_a_plain_name(facts, version):
    with pytest.raises(ValueError, match="version"):
        ModelFacts(**{**facts.model_dump(), "version": version})
