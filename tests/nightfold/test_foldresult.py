"""Fold results: found when whole, trained again when not, keyed by all that decides them."""

import json
from pathlib import Path

import numpy as np
import pytest

from nightfold.errors import UsageError
from nightfold.experiment import Candidate, Optimizer, PlanChoice
from nightfold.finaljob import FinalJob
from nightfold.foldplan import FoldPlan
from nightfold.foldresult import FoldJob, read_probabilities
from nightfold.modules import forget
from nightfold.scaling import Scaler, pixel_histogram
from nightfold.store import Store


@pytest.fixture
def job(small_mnist, tmp_path):
    plan = FoldPlan.build(PlanChoice(folds=3, repeats=2), small_mnist)
    path = plan.save(Store(tmp_path).plans)
    rows, _ = plan.rows(1, 1)
    return FoldJob(
        candidate=Candidate(
            name="net",
            architecture="dense",
            epochs=2,
            optimizer=Optimizer(learning_rate=0.1),
        ),
        dataset=small_mnist.handle,
        plan=plan.handle(path),
        scaler=Scaler.fit("normalize", pixel_histogram(small_mnist.train.images, rows)),
        repeat=1,
        fold=1,
        seed=1,
        artifacts=str(tmp_path),
    )


def changed(job, **values):
    return FoldJob.model_validate({**job.model_dump(), **values})


def test_the_key_covers_all_that_decides_the_numbers(job):
    other_recipe = {**job.candidate.model_dump(), "epochs": 3}
    for values in ({"fold": 2}, {"repeat": 2}, {"seed": 2}, {"candidate": other_recipe}):
        assert changed(job, **values).key != job.key


def test_the_key_does_not_cover_the_name_or_the_place(job, tmp_path):
    renamed = {**job.candidate.model_dump(), "name": "other"}
    assert changed(job, candidate=renamed, artifacts=str(tmp_path / "x")).key == job.key


def test_a_repeat_more_leaves_the_folds_of_the_others_as_they_are(job, small_mnist):
    longer = FoldPlan.build(PlanChoice(folds=3, repeats=3), small_mnist)
    assert longer.digest != job.plan.digest
    for repeat in (1, 2):
        more = changed(job, plan=longer.handle(Path(job.plan.path)).model_dump(), repeat=repeat)
        assert more.key == changed(job, repeat=repeat).key
    reseeded = FoldPlan.build(PlanChoice(folds=3, seed=5), small_mnist)
    other = reseeded.handle(Path(job.plan.path)).model_dump()
    assert changed(job, plan=other).key != job.key


def test_folds_have_seeds_of_their_own_and_candidates_share_them(job):
    other = {**job.candidate.model_dump(), "architecture": "baseline"}
    assert changed(job, fold=2).fold_seed != job.fold_seed
    assert changed(job, candidate=other).fold_seed == job.fold_seed


@pytest.mark.slow
class TestRun:
    def test_a_result_scores_exactly_the_fold_that_was_held_back(self, job):
        result = job.run().open()
        _, scored = job.plan.open().rows(1, 1)
        dataset = job.dataset.open()
        probabilities = read_probabilities(job.done())
        right = probabilities.argmax(axis=1) == dataset.train.labels[scored]
        assert result.scores.n_test == len(scored) == len(probabilities)
        assert result.scores.n_train == len(dataset.train) - len(scored)
        assert result.scores.accuracy == pytest.approx(right.mean())
        assert [epoch.epoch for epoch in result.history] == [1, 2]
        assert job.progress().epoch == 2

    def test_a_second_run_trains_nothing(self, job):
        first = job.run()
        written = (job.folder / "result.json").stat().st_mtime_ns
        assert job.run() == first
        assert (job.folder / "result.json").stat().st_mtime_ns == written

    @pytest.mark.parametrize("epochs", [1, 2, 3])
    def test_a_fold_in_two_parts_has_the_numbers_of_one_in_one_go(self, job, tmp_path, epochs):
        """Two networks of two epochs: the first part may end within either, or between them."""
        recipe = {**job.candidate.model_dump(), "ensemble": 2}
        whole, parted = (
            changed(job, candidate=recipe, artifacts=str(tmp_path / name)) for name in ("a", "b")
        )
        parted.begin(epochs)
        assert parted.done() is None
        assert parted.progress().epoch == epochs
        found, expected = parted.run(), whole.run()
        assert np.array_equal(read_probabilities(found), read_probabilities(expected))
        histories = [
            [epoch.model_dump(exclude={"seconds"}) for epoch in handle.open().history]
            for handle in (found, expected)
        ]
        assert histories[0] == histories[1]

    def test_a_fold_that_is_done_is_not_begun(self, job):
        done = job.run()
        job.begin(1)
        assert job.done() == done

    def test_a_fold_that_ends_early_within_its_first_part_is_done(self, job):
        recipe = {
            **job.candidate.model_dump(),
            "epochs": 9,
            "early_stopping": {"patience": 1, "min_delta": 100.0},
        }
        early = changed(job, candidate=recipe)
        early.begin(8)
        assert early.done().open().scores.epochs == 2

    @pytest.mark.parametrize("name", ["result.json", "probabilities.npy"])
    @pytest.mark.parametrize("harm", ["gone", "altered"])
    def test_a_damaged_result_is_trained_again(self, job, name, harm):
        before = job.run()
        path = job.folder / name
        if harm == "gone":
            path.unlink()
        else:
            content = bytearray(path.read_bytes())
            content[-3] ^= 1
            path.write_bytes(content)
        assert job.done() is None
        assert job.run().accuracy == before.accuracy

    def test_a_checkpoint_that_a_kill_left_beside_the_result_goes(self, job):
        job.run()
        (job.folder / "checkpoint.npz").touch()
        assert job.done()
        assert not (job.folder / "checkpoint.npz").exists()

    def test_nothing_is_a_pickle_and_no_checkpoint_stays(self, job):
        job.run()
        names = {path.name for path in job.folder.iterdir()}
        assert names == {"result.json", "probabilities.npy", "progress.json"}
        np.load(job.folder / "probabilities.npy", allow_pickle=False)
        json.loads((job.folder / "result.json").read_text())


OWN = """
from keras import layers
from own_blocks import UNITS

def small(images, n_classes):
    x = layers.Dense(UNITS)(layers.Flatten()(images))
    return layers.Dense(n_classes, "softmax")(x)
"""


@pytest.fixture
def own_job(job, tmp_path, monkeypatch):
    """A function that makes the job of a network of the user's own with so many units, as edited
    now; with `final`, that of its fit on all rows.
    """
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_small.py").write_text(OWN)

    def make(units, final=False):
        edit(units)
        values = job.model_dump(exclude={"source"})
        values["candidate"].update(architecture="own_small:small", epochs=1)
        return FinalJob(run_id="night", **values) if final else FoldJob(**values)

    def edit(units):
        (tmp_path / "own_blocks.py").write_text(f"UNITS = {units}\n")

    make.edit = edit
    yield make
    forget("own_small")


def parameters(job):
    return job.run().open().scores.parameters


@pytest.mark.slow
def test_a_process_that_lives_on_trains_the_source_that_the_key_names(own_job):
    small, large = parameters(own_job(4)), parameters(own_job(512))
    assert (small, large) == (784 * 4 + 4 + 4 * 10 + 10, 784 * 512 + 512 + 512 * 10 + 10)


@pytest.mark.slow
def test_a_source_that_was_imported_before_it_was_edited_is_trained_on(own_job):
    first, second = own_job(4), own_job(4)
    parameters(first)
    own_job.edit(512)
    assert parameters(changed(second, fold=2, source=second.source)) == 784 * 4 + 4 + 4 * 10 + 10


@pytest.mark.slow
@pytest.mark.parametrize("final", [False, True])
def test_a_source_that_was_edited_before_it_was_imported_is_refused(own_job, final):
    job = own_job(4, final=final)
    own_job.edit(512)
    with pytest.raises(UsageError, match=r"'own_small:small' was edited after this run began"):
        job.fit() if final else job.run()
    assert not list(job.folder.glob("*result*"))
    assert not list(job.folder.glob("checkpoint*"))
