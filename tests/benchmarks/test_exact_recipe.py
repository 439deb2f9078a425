"""Rows A and A': what is computed from the measurements."""

import pandas as pd
import pytest

from benchmarks.exact_recipe import _figures, best_rival, summarise


@pytest.fixture
def rows():
    seconds = {
        "tutorial": [60.0, 90.0],
        "scikit-learn": [40.0, 45.0],
        "PyTorch": [30.0, 60.0],
        "Nightfold": [20.0, 15.0],
    }
    return pd.DataFrame(
        {"round": number, "contestant": name, **_figures(value, 2, value - 10, [0.5, 1.0], "same")}
        for number in (1, 2)
        for name, value in ((name, values[number - 1]) for name, values in seconds.items())
    )


def test_training_is_scaled_to_ten_epochs_and_nothing_else_is(rows):
    assert rows.seconds_10_epochs.iloc[0] == 10 + 50 * 10 / 2
    assert rows.accuracy.iloc[0] == 0.75


def test_the_best_rival_is_the_fastest_of_each_round(rows):
    # PyTorch in the first (1.5), scikit-learn in the second (3); the tutorial is not a rival.
    spread = best_rival(rows, "seconds")
    assert (spread.low, spread.high) == (1.5, 3.0)


def test_without_pytorch_scikit_learn_is_the_best_rival(rows):
    spread = best_rival(rows[rows.contestant != "PyTorch"], "seconds")
    assert (spread.low, spread.high) == (2.0, 3.0)


def test_every_contestant_has_a_line_with_its_ratio(rows):
    lines = summarise(rows).set_index("contestant")
    assert lines.index.to_list() == ["tutorial", "scikit-learn", "PyTorch", "Nightfold"]
    assert lines.loc["tutorial", "run ÷"] == "4.50 (3.00 to 6.00)"
    assert lines.loc["Nightfold", "run ÷"] == "1.00 (1.00 to 1.00)"
