"""A model file holds a network and nothing else, or it is refused before Keras sees it.

Every attack here comes in a bundle whose manifest fits it: a stranger's bundle, not a damaged one.
"""

import inspect as signatures
import io
import json
import marshal
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

from nightfold import backend
from nightfold.bundle import Bundle, seal
from nightfold.errors import BundleRefused
from nightfold.manifest import Manifest
from nightfold.modelfile import REFUSED_LAYERS, Unsafe, inspect, stored_members
from nightfold.store import write_json
from nightfold.zoo import architectures

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def members(model, tmp_path_factory) -> dict[str, bytes]:
    """The members of a sound model file."""
    file = tmp_path_factory.mktemp("model") / "model.keras"
    model.save(file)
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    with zipfile.ZipFile(packed := io.BytesIO(), "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


@pytest.fixture
def with_layer(members):
    """A function that puts an object before the first layer of the sound model."""

    def make(described: dict) -> bytes:
        config = json.loads(members["config.json"])
        named = {"name": "evil", "inbound_nodes": [], **described}
        config["config"]["layers"].insert(0, named)
        return packed({**members, "config.json": json.dumps(config).encode()})

    return make


@pytest.fixture
def with_weights(members):
    """A function that rewrites the sound model's weights."""
    import h5py

    def make(change) -> bytes:
        content = io.BytesIO(members["model.weights.h5"])
        with h5py.File(content, "r+") as file:
            change(file)
        return packed({**members, "model.weights.h5": content.getvalue()})

    return make


def code(path: Path) -> dict:
    """A lambda as Keras writes one, that leaves a file behind when it runs."""
    import base64

    function = eval(f"lambda x: open({str(path)!r}, 'w') and x")
    raw = base64.b64encode(marshal.dumps(function.__code__)).decode()
    value = {"code": raw, "defaults": None, "closure": None}
    return {"class_name": "__lambda__", "config": value}


def keras_layer(name: str, **config) -> dict:
    return {
        "module": "keras.layers",
        "class_name": name,
        "config": {"name": "evil", **config},
        "registered_name": None,
    }


def test_a_sound_file_passes_and_uses_nothing_but_keras(members):
    assert inspect(packed(members)) == frozenset()


def test_every_shipped_network_passes(tmp_path):
    backend.start()
    import keras

    for name, build in architectures().items():
        images = keras.Input((28, 28, 1), dtype="uint8")
        built = build(keras.layers.Rescaling(1 / 255)(images), 10)
        outputs = built.call(images) if isinstance(built, keras.Model) else built
        keras.Model(images, outputs).save(tmp_path / "model.keras")
        assert inspect((tmp_path / "model.keras").read_bytes()) == frozenset(), name


def test_operations_wrappers_and_models_inside_models_pass(tmp_path):
    backend.start()
    import keras

    images = keras.Input((8, 8, 3), dtype="uint8")
    x = keras.ops.cast(images, "float32") / 255
    x = keras.ops.concatenate([x, keras.ops.relu(x - 0.5)], axis=-1)[:, 1:]
    x = keras.layers.Conv2D(
        4,
        3,
        activation=keras.activations.gelu,
        kernel_initializer=keras.initializers.HeNormal(),
        kernel_regularizer="l2",
        kernel_constraint=keras.constraints.MaxNorm(2),
    )(x)
    x = keras.layers.TimeDistributed(keras.layers.Dense(3, dtype="mixed_float16"))(x)
    x = keras.Sequential([keras.layers.RandomFlip(), keras.layers.Flatten()])(x)
    model = keras.Model(images, keras.layers.Dense(2, "softmax")(x))
    model.compile(keras.optimizers.Adam(), keras.losses.CategoricalCrossentropy())
    model.save(tmp_path / "model.keras")
    assert inspect((tmp_path / "model.keras").read_bytes()) == frozenset()


@pytest.mark.parametrize("place", ["alone", "in a Sequential", "in TimeDistributed", "activation"])
def test_a_strangers_bundle_with_code_in_it_is_refused_and_the_code_never_runs(
    model, small_mnist, facts, tmp_path, with_layer, place
):
    """Its manifest fits and its golden answers are right; only what it holds gives it away."""
    proof = tmp_path / "the-code-ran"
    layer = keras_layer("Lambda", function=code(proof))
    hidden = {
        "alone": layer,
        "in a Sequential": {
            "module": "keras",
            "class_name": "Sequential",
            "config": {"name": "s", "layers": [layer]},
            "registered_name": None,
        },
        "in TimeDistributed": keras_layer("TimeDistributed", layer=layer),
        "activation": keras_layer("Dense", units=3, activation=code(proof)),
    }[place]
    handle = seal(model, tmp_path, facts, np.asarray(small_mnist.test.images[:4]))
    bundle = Path(handle.path)
    (bundle / "model.keras").write_bytes(with_layer(hidden))
    (bundle / "manifest.json").unlink()
    manifest = Manifest.describing(bundle, facts, (28, 28, 1))
    write_json(bundle / "manifest.json", manifest.model_dump(mode="json"))
    with pytest.raises(BundleRefused, match=r"model\.keras is not loaded: it holds .* code"):
        Bundle.load(bundle)
    assert not proof.exists()


@pytest.mark.parametrize(
    "described",
    [
        keras_layer("TFSMLayer", filepath="/srv/another-model", call_endpoint="serve"),
        keras_layer("StringLookup", vocabulary="/etc/passwd"),
        keras_layer("IntegerLookup", vocabulary="/etc/passwd"),
        keras_layer("TextVectorization", vocabulary="/etc/passwd"),
        keras_layer("TorchModuleWrapper", module={"class_name": "__bytes__"}),
        {**keras_layer("TFSMLayer", filepath="x"), "module": "keras"},
        {**keras_layer("Lambda"), "module": "keras.src.layers.core.lambda_layer"},
        {**keras_layer("Lambda"), "module": None},
        {**keras_layer("Lambda"), "registered_name": "Lambda", "module": None},
        {"class_name": "Lambda", "config": {}},
        {**keras_layer("deserialize"), "module": "keras.layers"},
        {**keras_layer("Dense"), "registered_name": "mine>Dense"},
        {**keras_layer("Popen"), "module": "subprocess"},
        {**keras_layer("get_file"), "module": "keras.utils"},
        {**keras_layer("CustomObjectScope"), "module": "keras.saving"},
        {**keras_layer("FeatureSpace"), "module": "keras.utils"},
        {**keras_layer("SavedModel"), "module": "keras.src.saving.anything"},
        {"module": "os", "class_name": "function", "config": "system"},
        {"module": "keras.utils", "class_name": "function", "config": "get_file"},
        {"module": "builtins", "class_name": "function", "config": "relu", "registered_name": "x"},
        {"class_name": "__typespec__", "config": [], "spec_name": "x", "module": "tensorflow"},
        {"class_name": ["Dense"], "config": {}},
    ],
)
def test_what_no_network_is_built_of_is_refused(with_layer, described):
    """By the file's own words it would at least be a class that nobody here has registered."""
    content = with_layer(described)
    try:
        own = inspect(content)
    except Unsafe:
        return
    assert own == {"Lambda"} or own == {"x"}
    assert described["module"] in (None, "builtins")


def test_an_own_class_is_named_and_left_to_the_caller(with_layer):
    described = {"module": "mine", "class_name": "Halving", "registered_name": "mine>Halving"}
    assert inspect(with_layer({**described, "config": {}})) == {"mine>Halving"}


def test_every_layer_of_keras_that_takes_code_or_a_file_is_refused():
    """A new version of Keras that brings another one has to be looked at."""
    backend.start()
    import keras

    takes = {"function", "call_fn", "init_fn", "apply_fn", "fn", "module", "callable"}
    takes |= {"filepath", "path", "file", "filename", "vocabulary", "directory", "url"}
    found = set()
    for name, layer in vars(keras.layers).items():
        if signatures.isclass(layer):
            writes_assets = any("load_assets" in vars(base) for base in layer.__mro__[:-1])
            if writes_assets or takes & set(signatures.signature(layer).parameters):
                found.add(name)
    assert found == REFUSED_LAYERS


@pytest.mark.parametrize(
    "change",
    ["extra", "missing", "twice", "compressed", "no archive", "cut", "folder"],
)
def test_the_archive_holds_three_stored_members_each_once(members, change):
    content = packed(members)
    if change == "extra":
        content = packed({**members, "assets/vocabulary.txt": b"word"})
    elif change == "folder":
        content = packed({**members, "../../escape": b"word"})
    elif change == "missing":
        content = packed({k: v for k, v in members.items() if k != "metadata.json"})
    elif change == "compressed":
        content = packed(members, zipfile.ZIP_DEFLATED)
    elif change == "no archive":
        content = b"a model"
    elif change == "cut":
        content = content[: len(content) // 2]
    else:
        with warnings.catch_warnings(), zipfile.ZipFile(twice := io.BytesIO(content), "a") as z:
            warnings.simplefilter("ignore")
            z.writestr("config.json", b"{}")
        content = twice.getvalue()
    with pytest.raises(Unsafe, match=r"it holds|compressed|no sound zip"):
        inspect(content)


def test_a_bomb_is_refused_before_it_is_unpacked(members):
    bomb = packed({**members, "config.json": b" " * 50_000_000}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 1_000_000
    with pytest.raises(Unsafe, match="compressed"):
        inspect(bomb)


def test_a_member_that_says_it_is_larger_than_the_file_is_refused():
    content = bytearray(packed({"a": b"12345678"}))
    for place in (content.index(b"PK\1\2") + 20, content.index(b"PK\1\2") + 24):
        content[place : place + 4] = (2**31).to_bytes(4, "little")
    with pytest.raises(Unsafe):
        stored_members(bytes(content), {"a"})


@pytest.mark.parametrize("config", [b"", b"[]", b"nul", b"\xff", b'{"a":' * 100_000])
def test_a_configuration_that_is_none_is_refused(members, config):
    with pytest.raises(Unsafe, match=r"its config\.json"):
        inspect(packed({**members, "config.json": config}))


class TestWeights:
    def kernel(self, file):
        import h5py

        names: list[str] = []
        file.visit(names.append)
        arrays = [name for name in names if isinstance(file[name], h5py.Dataset)]
        return max(arrays, key=lambda name: file[name].nbytes)

    def replaced(self, file, **how):
        name = self.kernel(file)
        shape = file[name].shape
        del file[name]
        file.create_dataset(name, shape, "f4", **how)

    def test_a_link_to_another_file_is_refused(self, with_weights):
        import h5py

        def change(file):
            file["layers/stolen"] = h5py.ExternalLink("/srv/other.h5", "/secret")

        with pytest.raises(Unsafe, match="a link at /layers/stolen"):
            inspect(with_weights(change))

    def test_a_link_within_the_file_is_refused(self, with_weights):
        import h5py

        def change(file):
            file["layers/again"] = h5py.SoftLink("/layers")

        with pytest.raises(Unsafe, match="a link at /layers/again"):
            inspect(with_weights(change))

    def test_a_circle_of_groups_ends(self, with_weights):
        def change(file):
            file["layers/again"] = file["layers"]

        with pytest.raises(Unsafe, match="more than once"):
            inspect(with_weights(change))

    def test_an_array_whose_bytes_are_in_another_file_is_refused(self, with_weights, tmp_path):
        secret = tmp_path / "secret"
        secret.write_bytes(bytes(10_000_000))
        outside = [(str(secret), 0, 10_000_000)]
        with pytest.raises(Unsafe, match="in another file"):
            inspect(with_weights(lambda file: self.replaced(file, external=outside)))

    def test_an_array_that_is_a_view_of_another_file_is_refused(self, with_weights):
        import h5py

        def change(file):
            layout = h5py.VirtualLayout((4,), "f4")
            layout[:] = h5py.VirtualSource("/srv/other.h5", "secret", (4,))
            file.create_virtual_dataset("layers/stolen", layout)

        with pytest.raises(Unsafe, match="in another file"):
            inspect(with_weights(change))

    @pytest.mark.parametrize("how", [{"chunks": True}, {"compression": "gzip"}])
    def test_an_array_that_is_larger_than_what_is_stored_is_refused(self, with_weights, how):
        with pytest.raises(Unsafe, match="its weights declare"):
            inspect(with_weights(lambda file: self.replaced(file, **how)))

    def test_an_array_of_texts_is_refused(self, with_weights):
        def change(file):
            file["layers/note"] = ["text"]

        with pytest.raises(Unsafe, match="no array of numbers"):
            inspect(with_weights(change))

    def test_weights_that_are_none_are_refused(self, members):
        with pytest.raises(Unsafe, match="its weights cannot be read"):
            inspect(packed({**members, "model.weights.h5": b"weights"}))
