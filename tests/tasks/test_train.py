"""Folds are submitted so that no core is idle at the end."""

import pyarrow as pa
import pyarrow.parquet as pq

from nightfold.dataset import DatasetHandle
from nightfold.experiment import Candidate
from nightfold.foldplan import PlanHandle
from nightfold.foldresult import FoldJob
from nightfold.scaling import Scaler
from nightfold.store import Store
from tasks.train import longest_first, map_folds, seconds_before

SHORT = Candidate(name="short", architecture="dense", epochs=2)
LONG = Candidate(name="long", architecture="dense", epochs=3)
DEEP = Candidate(name="deep", architecture="deep", epochs=1)


def jobs(artifacts, *candidates):
    return [
        FoldJob(
            candidate=candidate,
            dataset=DatasetHandle(path="d", digest="d" * 64, name="d", n_train=10, n_test=10),
            plan=PlanHandle(
                path="p",
                digest="p" * 64,
                folds=2,
                repeats=1,
                n_rows=10,
                repeat_digests=("p" * 64,),
            ),
            scaler=Scaler(name="none"),
            repeat=1,
            fold=fold,
            seed=1,
            artifacts=str(artifacts),
        )
        for candidate in candidates
        for fold in (1, 2)
    ]


def remember(artifacts, date, **seconds):
    """Scores of an earlier night: seconds of a fold by candidate."""
    folder = Store(artifacts).scores / f"run_date={date}"
    folder.mkdir(parents=True)
    digests = {c.name: c.digest for c in (SHORT, LONG, DEEP)}
    table = {
        "candidate_digest": [digests[name] for name in seconds],
        "train_seconds": list(seconds.values()),
    }
    pq.write_table(pa.table(table), folder / "run.parquet")


def names(ordered):
    return [job.candidate.name for job in ordered]


def test_without_an_earlier_night_more_epochs_go_first(tmp_path):
    ordered = names(longest_first(jobs(tmp_path, SHORT, LONG)))
    assert ordered == ["long", "long", "short", "short"]


def test_candidates_take_as_long_as_in_earlier_nights(tmp_path):
    remember(tmp_path, "2026-01-01", short=9.0, long=1.0)
    ordered = names(longest_first(jobs(tmp_path, SHORT, LONG)))
    assert ordered == ["short", "short", "long", "long"]


def test_what_was_never_timed_may_be_the_longest(tmp_path):
    remember(tmp_path, "2026-01-01", short=9.0, long=1.0)
    assert names(longest_first(jobs(tmp_path, SHORT, LONG, DEEP)))[:2] == ["deep", "deep"]


def test_only_the_last_days_count(tmp_path):
    remember(tmp_path, "2026-01-01", short=100.0)
    remember(tmp_path, "2026-01-02", short=2.0)
    remember(tmp_path, "2026-01-03", short=4.0)
    assert seconds_before(Store(tmp_path).scores, nights=2) == {SHORT.digest: 3.0}


def test_a_score_file_that_is_damaged_does_not_stop_the_night(tmp_path):
    remember(tmp_path, "2026-01-01", short=4.0)
    day = Store(tmp_path).scores / "run_date=2026-01-01"
    (day / "torn.parquet").write_bytes(b"PAR1junk")
    (day / ".part-torn.parquet").write_bytes(b"")
    pq.write_table(pa.table({"other": [1]}), day / "other.parquet")
    nothing = pa.table({"candidate_digest": ["d"], "train_seconds": pa.array([None], pa.float64())})
    pq.write_table(nothing, day / "nothing.parquet")
    assert seconds_before(Store(tmp_path).scores) == {SHORT.digest: 4.0}


class Written:
    """Takes folds as a task runner does, and only writes down which."""

    def submit(self, _step, parameters):
        return parameters["job"].label


def test_one_recipe_under_two_names_has_folds_under_both(tmp_path):
    asked = jobs(tmp_path, SHORT, LONG, SHORT.model_copy(update={"name": "twin"}))
    assert map_folds(Written(), asked) == [job.label for job in asked]
