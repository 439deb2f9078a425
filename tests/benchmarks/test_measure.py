"""Measuring: turns, ratios pair by pair, and what is written. No time is asserted."""

import os

import pandas as pd
import pyarrow.parquet as pq
import pytest

from benchmarks.measure import BUSY, Spread, _warning, markdown, publish, ratios, take_turns


@pytest.fixture
def rows():
    return pd.DataFrame(
        {
            "round": [1, 1, 2, 2, 3],
            "contestant": ["rival", "ours", "rival", "ours", "rival"],
            "seconds": [6.0, 2.0, 20.0, 4.0, 99.0],
        }
    )


def test_contestants_take_turns_in_their_order_and_the_first_round_is_always_run():
    calls = []

    def contestant(name):
        def measure(number):
            calls.append((number, name))
            return {"seconds": float(number)}

        return measure

    rows = take_turns({"a": contestant("a"), "b": contestant("b")}, minutes=0)
    assert calls == [(1, "a"), (1, "b")]
    assert rows.to_dict("list") == {
        "round": [1, 1],
        "contestant": ["a", "b"],
        "seconds": [1.0, 1.0],
    }


def test_rounds_go_on_while_another_fits():
    rows = take_turns({"a": lambda number: {"seconds": number}}, minutes=0.001)
    assert rows["round"].to_list() == list(range(1, len(rows) + 1))
    assert len(rows) > 1


def test_ratios_are_taken_within_a_round_and_only_where_both_were_measured(rows):
    # Medians over all rounds would give 20 / 3.
    assert ratios(rows, "seconds", "rival", "ours").to_dict() == {1: 3.0, 2: 5.0}


def test_a_spread_is_median_and_range():
    spread = Spread.of(pd.Series([5.0, 3.0, 3.25]))
    assert (spread.median, spread.low, spread.high, spread.n) == (3.25, 3.0, 5.0, 3)
    assert str(spread) == "3.25 (3.00 to 5.00)"
    assert str(Spread.of(pd.Series([0.25]))) == "0.250"


def test_markdown_shows_values_as_they_are():
    table = pd.DataFrame({"who": ["ours"], "÷": [Spread(3, 2, 4, 3)]})
    assert markdown(table) == "| who | ÷ |\n| --- | --- |\n| ours | 3.00 (2.00 to 4.00) |"


def test_what_is_published_holds_every_measurement_and_the_machine(rows, tmp_path):
    summary = pd.DataFrame({"who": ["ours"], "÷": [Spread(3, 2, 4, 3)]})
    publish("example", "An example", rows, summary, ["How to read it."], tmp_path)
    table = pq.read_table(tmp_path / "example.parquet")
    assert table.to_pandas().equals(rows)
    assert table.schema.metadata[b"nightfold.cores"] == str(len(os.sched_getaffinity(0))).encode()
    text = (tmp_path / "example.md").read_text()
    assert text.startswith("# An example\n")
    assert "| ours | 3.00 (2.00 to 4.00) |" in text
    assert "How to read it." in text
    assert "processor" in text


def test_a_result_from_a_busy_machine_says_so():
    assert _warning(BUSY) == []
    assert "30 % of the processor" in _warning(30.0)[0]
