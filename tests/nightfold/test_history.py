"""What is told of nights gone by, whatever became of their files."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from nightfold.experiment import Candidate
from nightfold.history import History
from nightfold.registry import Entry, Pointer, Registry
from nightfold.store import Store, write_json
from nightfold.summary import PromotionFacts

FIRST = datetime(2026, 11, 21, 2, tzinfo=UTC)
BASELINE = Candidate(name="baseline", architecture="baseline")
DEEP = Candidate(name="deep", architecture="deep")
V1, V2, V3 = (f"202611{day}-020000-1a2b3c" for day in (21, 22, 23))


def promoted(version):
    return PromotionFacts(promoted=True, reason="It is better.", champion=version)


def refused(champion):
    return PromotionFacts(promoted=False, reason="Not proven.", champion=champion)


def day(number):
    return FIRST + timedelta(days=number)


@pytest.fixture
def three_nights(tmp_path, write_night):
    """Baseline is promoted, deep is refused, then deep is promoted on new data."""
    store = Store(tmp_path)
    write_night(store, day(0), {BASELINE: 0.986}, promoted(V1))
    write_night(store, day(1), {BASELINE: 0.987, DEEP: 0.9875}, refused(V1))
    write_night(store, day(2), {BASELINE: 0.985, DEEP: 0.991}, promoted(V3), data="b")
    return store


def point(store, *entries):
    """Write the champion pointer with these entries, oldest first."""
    pointer = Pointer(**dict(entries[-1]), format=1, history=entries[:-1])
    write_json(Registry(store).pointer_path, pointer.model_dump(mode="json"))


def entry(version, at, action="promotion"):
    return Entry(
        version=version, manifest_sha256="0" * 64, promoted_at=at, reason="why", action=action
    )


def test_a_store_without_runs_has_no_nights(tmp_path):
    assert History.read(Store(tmp_path / "none")).nights == ()


def test_the_champion_is_followed_by_its_recipe_from_night_to_night(three_nights):
    told = [
        (n.champion, n.champion_score.candidate, n.champion_score.accuracy, n.outcome)
        for n in History.read(three_nights).nights
    ]
    assert told == [
        (V1, "baseline", 0.986, "promote"),
        (V1, "baseline", 0.987, "refuse"),
        (V3, "deep", 0.991, "promote"),
    ]


def test_a_refused_challenger_is_told_with_its_score_and_the_reason(three_nights):
    night = History.read(three_nights).nights[1]
    assert (night.challenger.candidate, night.challenger.accuracy) == ("deep", 0.9875)
    assert night.reason == "Not proven."


def test_the_gate_has_more_words_than_yes_and_no(three_nights, write_night):
    kept = refused(V3).model_copy(update={"outcome": "undecided"})
    write_night(three_nights, day(3), {DEEP: 0.991}, kept, data="b")
    assert History.read(three_nights).nights[-1].outcome == "undecided"


def test_new_data_is_marked_in_the_night_that_first_used_it(three_nights, write_night):
    write_night(three_nights, day(3), {DEEP: 0.991}, refused(V3), data="b")
    changed = [night.data_changed for night in History.read(three_nights).nights]
    assert changed == [False, False, True, False]


def test_another_data_set_is_not_new_data(three_nights, write_night):
    write_night(three_nights, day(3), {DEEP: 0.5}, refused(V3), dataset="scenes", data="c")
    write_night(three_nights, day(4), {DEEP: 0.991}, refused(V3), data="b")
    every, own = History.read(three_nights), History.read(three_nights, dataset="scenes")
    assert [night.data_changed for night in every.nights][-2:] == [False, False]
    assert [night.dataset for night in own.nights] == ["scenes"]


def test_the_interval_is_the_one_the_night_kept(three_nights):
    score = History.read(three_nights).nights[0].champion_score
    assert score.low < score.accuracy < score.high
    assert score.high - score.low == pytest.approx(2 * 1.96 * (0.986 * 0.014 / 60_000) ** 0.5)


def test_a_champion_that_the_night_did_not_train_has_no_score(three_nights, write_night):
    write_night(three_nights, day(3), {BASELINE: 0.986}, refused(V3), data="b")
    night = History.read(three_nights).nights[-1]
    assert (night.champion, night.champion_score) == (V3, None)


def test_the_recipe_is_known_from_the_bundle_when_its_run_is_gone(
    tmp_path, write_night, add_bundle, facts
):
    store = Store(tmp_path)
    add_bundle(store.models, "gone")
    recipe = Candidate.model_validate(facts.candidate)
    write_night(store, day(0), {recipe: 0.9, DEEP: 0.8}, refused("gone"))
    assert History.read(store).nights[0].champion_score.accuracy == 0.9


def test_nights_of_a_version_that_kept_no_interval_are_told_without(three_nights):
    path = three_nights.run(V1) / "summary.json"
    document = json.loads(path.read_text())
    for candidate in document["candidates"]:
        del candidate["accuracy_low"], candidate["accuracy_high"]
    path.write_text(json.dumps(document))
    night = History.read(three_nights).nights[0]
    assert (night.champion_score.accuracy, night.champion_score.low) == (0.986, None)


def test_what_cannot_be_read_is_named_and_the_rest_is_told(three_nights):
    (three_nights.run(V1) / "summary.json").unlink()
    (three_nights.run(V2) / "summary.json").write_text('{"run_id": "')
    Registry(three_nights).pointer_path.parent.mkdir(parents=True)
    Registry(three_nights).pointer_path.write_text("{}")
    history = History.read(three_nights)
    assert [night.run_id for night in history.nights] == [V3]
    assert [(left.name, left.reason) for left in history.left_out] == [
        (V1, "unfinished, or its summary is gone"),
        (V2, "its summary cannot be read"),
        ("champion.json", "it cannot be read"),
    ]


def test_a_night_whose_data_were_refused_is_left_out_as_such(three_nights):
    from nightfold.validation import Check, ValidationReport

    leak = Check(
        name="leakage", split="both", sentence="Rows leak", severity="critical", passed=False,
        observed="3 rows",
    )  # fmt: skip
    report = ValidationReport(dataset="mnist", digest="d", class_rows={}, checks=(leak,))
    report.write(three_nights.run("refused"))
    (left,) = History.read(three_nights).left_out
    assert (left.name, left.reason) == ("refused", "its data were refused")


def test_what_predict_leaves_is_no_unfinished_night(three_nights):
    folder = three_nights.run("20260105-020000-1a2b3c")
    folder.mkdir(parents=True)
    (folder / "classified.parquet").touch()
    assert History.read(three_nights).left_out == ()


def test_runs_that_decide_nothing_are_no_nights(three_nights, write_night):
    write_night(three_nights, day(3), {DEEP: 0.7}, None, flow="evaluate", final=None)
    history = History.read(three_nights)
    assert [night.run_id for night in history.nights] == [V1, V2, V3]
    assert history.left_out == ()


def test_rollbacks_and_promotions_by_hand_are_told_beside_the_nights(three_nights):
    point(
        three_nights,
        entry(V1, day(0) + timedelta(minutes=13)),
        entry(V2, day(1) + timedelta(hours=6)),
        entry(V3, day(2) + timedelta(minutes=13)),
        entry(V1, day(2) + timedelta(hours=7), action="rollback"),
        entry(V3, day(2) + timedelta(hours=8)),
    )
    changes = History.read(three_nights).changes
    assert [(c.action, c.version) for c in changes] == [
        ("promotion", V2),
        ("rollback", V1),
        ("promotion", V3),
    ]


def test_a_night_that_went_on_behind_its_own_promotion_has_promoted(three_nights):
    began_again = day(0) - timedelta(minutes=5)
    point(three_nights, entry(V1, began_again), entry(V1, day(0) + timedelta(hours=2)))
    changes = History.read(three_nights).changes
    assert [(c.at, c.version) for c in changes] == [(day(0) + timedelta(hours=2), V1)]


def test_a_history_until_a_night_knows_nothing_of_later_ones(three_nights):
    point(three_nights, entry(V1, day(0)), entry(V1, day(2), action="rollback"))
    history = History.read(three_nights, until=day(1) + timedelta(minutes=14))
    assert [night.run_id for night in history.nights] == [V1, V2]
    assert history.changes == ()
