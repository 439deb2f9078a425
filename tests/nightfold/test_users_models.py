"""Networks of a user's own: trained as Keras's fit trains them, or refused in a sentence."""

import gc
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import users_networks
from tensorflow.python.framework.func_graph import FuncGraph

from nightfold.bundle import Bundle, seal
from nightfold.errors import UsageError
from nightfold.experiment import (
    Augmentation,
    Candidate,
    EarlyStopping,
    Optimizer,
    PlanChoice,
    Schedule,
)
from nightfold.finaljob import FinalJob
from nightfold.foldplan import FoldPlan
from nightfold.model import build_model
from nightfold.optimization import make_optimizer
from nightfold.scaling import Scaler
from nightfold.training import train
from nightfold.zoo import find

pytestmark = pytest.mark.slow

SCALER = Scaler(name="normalize", scale=1 / 255)


@pytest.fixture
def users(monkeypatch):
    """A candidate of a network of `users_networks` or the other ones, by name, imported anew."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    for module in ("users_networks", "users_other_networks"):
        monkeypatch.delitem(sys.modules, module, raising=False)

    def candidate(name, **changes):
        recipe = {"epochs": 1, "batch_size": 32, "optimizer": Optimizer(learning_rate=2**-6)}
        module = "users_networks" if name in users_networks.SAME else "users_other_networks"
        architecture = f"{module}:{name}"
        return Candidate(name=name, architecture=architecture, **(recipe | changes))

    return candidate


ROWS, SCORED = np.arange(112), np.arange(112, 144)  # three batches and a half


def trained(dataset, candidate, **options):
    return train(candidate, dataset, ROWS, SCORED, scaler=SCALER, seed=3, **options)


def fitted(dataset, candidate):
    """What Keras makes of what the user's function returns for scaled images, without our help."""
    policy = keras.config.dtype_policy()
    keras.utils.set_random_seed(3)
    images = keras.Input((28, 28, 1))
    built = find(candidate.architecture)(images, 10)
    keras.config.set_dtype_policy(policy)
    model = built if isinstance(built, keras.Model) else keras.Model(images, built)
    loss, weights = "sparse_categorical_crossentropy", None
    if model.compiled and model.loss is not None:
        loss, weights = model.loss, model._compile_loss._user_loss_weights
    model.compile(make_optimizer(candidate.optimizer), loss, weights, run_eagerly=model.run_eagerly)
    for epoch in range(1, candidate.epochs + 1):
        order = np.random.default_rng([3, epoch]).permutation(ROWS)
        images, labels = dataset.train.images[order], dataset.train.labels[order].astype(np.int64)
        scaled = images * np.float32(1 / 255)
        model.fit(scaled, labels, batch_size=32, epochs=1, shuffle=False, verbose=0)
    # Of a layer that only its train step knows, a bundle has no weights.
    return keras.Model(model.inputs, model.outputs) if hasattr(model, "inputs") else model


def distance(ours, theirs):
    pairs = list(zip(ours.get_weights(), theirs.get_weights(), strict=True))
    assert pairs
    off = sum(np.sum((a.astype(float) - b.astype(float)) ** 2) for a, b in pairs)
    return np.sqrt(off / sum(np.sum(b.astype(float) ** 2) for _, b in pairs))


@pytest.mark.parametrize("name", users_networks.SAME)
def test_weights_are_those_of_fit(name, small_mnist, users):
    """Four steps; in float32 rounding leaves 1e-6, and what is lost or added much more."""
    candidate = users(name)
    assert distance(trained(small_mnist, candidate).model, fitted(small_mnist, candidate)) < 2e-5


@pytest.mark.parametrize("name", ["counts_images_of_an_epoch", "counts_images_of_all_epochs"])
def test_an_epoch_begins_with_metrics_at_zero_unless_the_model_keeps_them(name, small_mnist, users):
    """As fit has it; a layer may look at its own."""
    candidate = users(name, epochs=3)
    assert distance(trained(small_mnist, candidate).model, fitted(small_mnist, candidate)) < 2e-5


def test_a_model_that_begins_where_images_do_is_scaled_once(small_mnist, users):
    names = ("begins_where_images_do", "plain")
    one, other = (build_model(users(name), SCALER, small_mnist, 3) for name in names)
    images = small_mnist.train.images[:8]
    assert np.allclose(one(images), other(images))


def test_a_network_is_not_used_by_being_built(small_mnist, users):
    model = build_model(users("counts_beside_a_layer_without_weights_yet"), SCALER, small_mnist, 3)
    (calls,) = (weight for weight in model.weights if weight.shape == ())
    assert float(calls.value) == 0


def test_the_loss_of_scored_rows_is_what_keras_says(small_mnist, users):
    found = trained(small_mnist, users("double_and_certain"))
    images = small_mnist.train.images[SCORED]
    found.model.compile("sgd", "sparse_categorical_crossentropy")
    told = found.model.evaluate(images, small_mnist.train.labels[SCORED].astype(int), verbose=0)
    assert found.loss == pytest.approx(told, rel=1e-5)


def test_an_accuracy_of_zero_is_told_as_it_is(small_mnist, users):
    """And not taken for one that fit has not told."""
    rows = np.flatnonzero(small_mnist.train.labels[:144])
    one_step, others = rows[:32], rows[32:]
    candidate = users("the_first_class_at_first", optimizer=Optimizer(learning_rate=10.0))
    found = train(candidate, small_mnist, one_step, others, scaler=SCALER, seed=3)
    assert found.history[0].train_accuracy == 0 < found.history[0].validation_accuracy


def test_every_step_of_fit_has_its_own_learning_rate(small_mnist, users):
    candidate = users("noting", batch_size=4, schedule=Schedule(name="one_cycle"))
    trained(small_mnist, candidate)
    used = sys.modules["users_other_networks"].RATES
    plain = trained(
        small_mnist, candidate.model_copy(update={"architecture": "users_other_networks:plain"})
    )
    assert len(used) == len(set(used)) == 28
    assert distance(trained(small_mnist, candidate).model, plain.model) < 1e-6


def test_fit_gets_smoothed_labels_and_moved_images_as_the_graphs_do(small_mnist, users):
    """bfloat16 goes through fit: as far from float32 as it is without both."""
    changes = {"label_smoothing": 0.3, "augmentation": Augmentation(shift=0.1)}
    far = distance(*(trained(small_mnist, users(n)).model for n in ("mixed_brain", "plain")))
    with_both = (trained(small_mnist, users(n, **changes)).model for n in ("mixed_brain", "plain"))
    assert distance(*with_both) < 3 * far < 0.02
    assert distance(*(trained(small_mnist, users("plain", **c)).model for c in ({}, changes))) > far


def test_what_is_left_to_fit_is_told(small_mnist, users):
    for name, why in (
        ("own_compute_loss", "has a train step or a loss of its own"),
        ("eager", "is to run eagerly"),
        ("half_head", "computes in less than float32"),
        ("masks_within_its_call", "may mask rows out of the loss"),
        (
            "losses_of_its_own",
            "overrides one of trainable_variables, trainable_weights, losses, metrics, "
            "compute_metrics, reset_metrics",
        ),
        ("subclassed", None),
        ("loss_without_a_reduction", "has a loss that Keras does not reduce to a number"),
        ("plain", None),
    ):
        notes = []
        trained(small_mnist, users(name), on_note=notes.append)
        slower = "is trained through Keras's fit, which is slower."
        assert notes == ([f"{name} {why} and {slower}"] if why else [])


def test_a_train_step_finds_what_its_model_was_made_with(small_mnist, users):
    whole, quarter = (
        trained(small_mnist, users(name, optimizer=Optimizer(learning_rate=rate))).model
        for name, rate in (("simplest", 2**-8), ("a_quarter", 2**-6))
    )
    assert distance(whole, quarter) < 1e-6
    assert 1 < trained(small_mnist, users("simplest")).history[0].train_loss < 2.5


def test_weights_of_losses_count(small_mnist, users):
    plain = trained(small_mnist, users("plain", optimizer=Optimizer(learning_rate=2**-8))).model
    assert distance(trained(small_mnist, users("weighted_loss")).model, plain) < 1e-6


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [("compiled_with_adam", "Adam"), ("compiled_with_its_own_rmsprop", "RMSprop")],
)
def test_an_optimizer_that_is_not_used_is_told(name, optimizer, small_mnist, users):
    notes = []
    trained(small_mnist, users(name), on_note=notes.append)
    assert notes == [
        f"{name} was compiled with {optimizer}, and is trained with the optimizer that the "
        "experiment names."
    ]


def test_weights_do_not_depend_on_how_many_rows_are_scored(small_mnist, users):
    candidate = users("counts_answers_too", epochs=2)
    weights = [
        train(candidate, small_mnist, ROWS, scored, scaler=SCALER, seed=3).model
        for scored in (SCORED, SCORED[:0])
    ]
    assert distance(*weights) == 0


def test_what_is_counted_is_not_averaged(small_mnist, users):
    model = trained(small_mnist, users("counts_steps", epochs=3, average_epochs=2)).model
    steps = next(weight for weight in model.weights if weight.name == "steps")
    assert int(steps.value) == 3 * 4


@pytest.mark.parametrize(
    ("name", "weights"),
    [("a_layer_of_the_module", "shared/kernel"), ("a_loss_of_the_module", "variable")],
)
def test_no_fold_goes_on_with_what_another_has_learned(name, weights, small_mnist, users):
    trained(small_mnist, users(name))
    with pytest.raises(UsageError, match=f"returns {weights}.*, which its function has not made"):
        trained(small_mnist, users(name))


def test_what_one_training_has_traced_serves_the_next(small_mnist, users):
    """The first needs no gradient of the function that both call."""
    trained(small_mnist, users("swish_of_the_images"))
    assert trained(small_mnist, users("swish_of_a_layer")).history[0].train_loss < 2.5


@pytest.mark.parametrize("name", ["guide", "half_head"])
def test_a_worker_keeps_no_network_that_went_through_fit(name, small_mnist, users):
    def alive():
        gc.collect()
        kinds = (keras.Model, FuncGraph)
        return sum(issubclass(type(each), kinds) for each in gc.get_objects())

    trained(small_mnist, users(name))
    before = alive()
    trained(small_mnist, users(name))
    assert alive() <= before


def test_early_stopping_brings_back_what_keras_does_not_know(small_mnist, users):
    stopping = EarlyStopping(patience=1, fraction=0.2)
    rate = Optimizer(learning_rate=2**-20)
    found = trained(
        small_mnist, users("grows_worse", epochs=6, early_stopping=stopping, optimizer=rate)
    )
    assert len(found.history) < 6
    assert found.loss == found.history[-2].validation_loss  # patience is one epoch


def test_a_weight_may_be_infinite_on_purpose(small_mnist, users):
    assert trained(small_mnist, users("least_so_far")).history[0].train_loss < 2.5


def test_a_network_with_a_call_of_its_own_is_called_once(small_mnist, users):
    model = build_model(users("squares"), SCALER, small_mnist, 3)
    plain = build_model(users("plain"), SCALER, small_mnist, 3)
    images = small_mnist.train.images[:8]
    once = np.square(plain(images))
    assert np.allclose(model(images), once / once.sum(axis=1, keepdims=True), atol=1e-6)


def test_what_an_architecture_sets_for_keras_ends_with_it(small_mnist, users):
    alone = trained(small_mnist, users("plain"))
    trained(small_mnist, users("half_everywhere"))
    trained(small_mnist, users("other_epsilon"))
    trained(small_mnist, users("eager_and_determined_for_all"))
    assert not tf.config.functions_run_eagerly()
    assert tf.config.experimental.tensor_float_32_execution_enabled()
    assert keras.config.dtype_policy().name == "float32"
    assert keras.config.epsilon() == pytest.approx(1e-7)
    assert (trained(small_mnist, users("plain")).probabilities == alone.probabilities).all()


@pytest.mark.parametrize(
    "name",
    [
        "brain_float",
        "half_head",
        "unseeded_noise",
        "guide",
        "second_optimizer",
        "tensorflow_variable",
        "loss_with_a_variable",
        "hidden_variables",
        "optimizer_in_a_dict",
        "variable_of_any_shape",
    ],
)
def test_an_interrupted_training_goes_on_with_the_same_numbers(name, small_mnist, users, tmp_path):
    class Interrupted(Exception):
        pass

    def interrupt(_epoch):
        raise Interrupted

    candidate = users(name, epochs=2)
    undisturbed = trained(small_mnist, candidate)
    with pytest.raises(Interrupted):
        trained(small_mnist, candidate, checkpoint=tmp_path / "c.npz", on_epoch=interrupt)
    seen = []
    resumed = trained(
        small_mnist,
        candidate,
        checkpoint=tmp_path / "c.npz",
        on_epoch=lambda e: seen.append(e.epoch),
    )
    assert seen == [2]
    assert (resumed.probabilities == undisturbed.probabilities).all()


def test_a_model_compiled_without_a_loss_minimises_the_usual_one(small_mnist, users):
    models = [trained(small_mnist, users(name)).model for name in ("no_loss", "plain")]
    assert distance(*models) == 0


def test_a_loss_may_have_the_signature_that_older_keras_asked_for(small_mnist, users):
    models = [trained(small_mnist, users(n)).model for n in ("older_signature", "plain")]
    assert distance(*models) < 1e-6


def test_penalties_are_part_of_the_loss_of_training(small_mnist, users):
    with_penalty = trained(small_mnist, users("penalised_wide_dense")).history[0].train_loss
    model = build_model(users("penalised_wide_dense"), SCALER, small_mnist, 3)
    model.compile("sgd", "sparse_categorical_crossentropy")
    batch = ROWS[:32]
    images, labels = small_mnist.train.images[batch], small_mnist.train.labels[batch]
    assert with_penalty == pytest.approx(model.evaluate(images, labels, verbose=0), rel=0.2)


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("logits", {}, "gives no probabilities: .* end it with softmax."),
        ("names_twice", {}, 'The name "d" is used 2 times'),
        (
            "wrong_attribute",
            {},
            r"AttributeError: .*'nothing_there' \(users_other_networks.py, line \d+\)",
        ),
        ("two_outputs", {}, "returns 2 outputs; it must return one output"),
        ("nothing", {}, "returns None; it must return one output"),
        ("from_elsewhere", {}, "cannot be built .*not connected to `inputs`"),
        ("wrong_loss", {}, "'users_other_networks:wrong_loss' cannot be trained: .* same rank"),
        ("own_compile", {}, "a Compiles with a compile of its own, .* into its train step."),
        ("called_in_its_own_way", {}, "a Flips with a __call__ of its own, .* into its call."),
        ("out_of_range", {}, "cannot be trained: InvalidArgumentError: indices.* is not in"),
        ("breaks", {}, "cannot be trained: RuntimeError: .*it is broken"),
        (
            "reads_a_missing_file",
            {},
            r"cannot be trained: FileNotFoundError: .* \(users_other_networks.py, line \d+\)",
        ),
        ("two_losses_of_an_output", {}, "cannot be trained"),
        ("late_weights", {}, "makes the weights critic/kernel when it is trained"),
        ("late_weights_of_its_own_optimizer", {}, "makes the weights critic/kernel when"),
        ("smoothed_itself", {"label_smoothing": 0.1}, "label_smoothing has no effect"),
        ("guide", {"label_smoothing": 0.1}, "label_smoothing has no effect"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(name, changes, sentence, small_mnist, users):
    with pytest.raises(UsageError, match=sentence) as caught:
        trained(small_mnist, users(name, **changes))
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_a_step_that_is_to_run_eagerly_does(small_mnist, users):
    trained(small_mnist, users("runs_eagerly"))
    seen = sys.modules["users_other_networks"].SEEN
    assert seen == pytest.approx([0.1] * 4)


@pytest.fixture
def final_job(small_mnist, users, tmp_path):
    """The final fit of one of the networks on `small_mnist`."""
    plan = FoldPlan.build(PlanChoice(folds=2), small_mnist)

    def make(name, **changes):
        return FinalJob(
            candidate=users(name, **changes),
            dataset=small_mnist.handle,
            plan=plan.handle(plan.save(tmp_path)),
            scaler=SCALER,
            seed=3,
            run_id="night-1",
            artifacts=str(tmp_path),
        )

    return make


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("unnamed_function", "holds the layer Lambda"),
        ("unregistered", "uses 'Halves', which nobody here has registered"),
        ("without_configuration", "cannot save the model .* give each class .* a get_config"),
        ("forgetful", "other answers, .* when it was saved and loaded"),
        ("no_numbers", "none that are numbers"),
    ],
)
def test_what_could_not_be_sealed_is_told_before_it_is_trained(name, sentence, final_job):
    with pytest.raises(UsageError, match=f"could not be published after .*: .*{sentence}") as told:
        final_job(name).rehearse()
    assert "\n" not in str(told.value)


def test_networks_that_exclude_each_other_are_told_before_any_is_trained(
    final_job, tmp_path, monkeypatch
):
    """Whichever worker tries which: each imports all of the night's."""
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("one_scale", "other_scale"):
        (tmp_path / f"{name}.py").write_text(
            "import keras\n@keras.saving.register_keras_serializable()\n"
            "class OneName(keras.layers.Layer): ...\ndef network(images, n_classes): ...\n"
        )
    with pytest.raises(UsageError, match="'one_scale' and 'other_scale' both register"):
        final_job("plain").rehearse(["one_scale:network", "other_scale:network"])


@pytest.mark.parametrize(
    "name", ["scales_of_eight_bits", "compiled_within", "partial_loss", "counts_answers_too"]
)
def test_how_a_network_is_trained_or_stored_keeps_it_from_no_bundle(
    name, final_job, facts, tmp_path
):
    job = final_job(name)
    job.rehearse()
    seal(job.fit().model, tmp_path / "m", facts, np.asarray(job.dataset.open().test.images[:4]))


@pytest.mark.parametrize("changes", [{}, {"ensemble": 2}])
def test_a_class_that_only_trains_in_its_own_way_needs_no_name(changes, final_job, facts, tmp_path):
    """The sealed model answers without it."""
    job = final_job("guide", **changes)
    job.rehearse()
    images = np.asarray(job.dataset.open().test.images[:4])
    handle = seal(job.fit().model, tmp_path / "models", facts, images)
    assert Bundle.load(Path(handle.path)).predict(images).sum() == pytest.approx(4)
