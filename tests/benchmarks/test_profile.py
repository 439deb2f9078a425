"""The profile of a step: what is counted, and time given to one operation only."""

from dataclasses import dataclass

import pytest

from benchmarks.profile import _own_times, training_flops


@dataclass
class Event:
    offset_ps: int
    duration_ps: int


def test_an_operation_that_contains_others_keeps_only_what_they_leave():
    events = [
        ("loop:While", Event(0, 100)),
        ("call:PartitionedCall", Event(10, 60)),
        ("a:MatMul", Event(20, 30)),
        ("b:Mul", Event(80, 10)),
        ("c:Add", Event(100, 5)),
    ]
    assert dict(_own_times(events)) == {
        "loop:While": 30,
        "call:PartitionedCall": 30,
        "a:MatMul": 30,
        "b:Mul": 10,
        "c:Add": 5,
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "by_hand"),
    [
        (
            "baseline",
            # forward and weight gradient of the first layer; the others' input gradient too
            2 * 2 * 9 * 32 * 26**2 + 3 * 2 * (13**2 * 32 * 100 + 100 * 10),
        ),
        (
            "deep",
            2 * 2 * 9 * 32 * 26**2
            + 3 * 2 * (9 * 32 * 64 * 11**2 + 9 * 64 * 64 * 9**2 + 4**2 * 64 * 100 + 100 * 10),
        ),
    ],
)
def test_flops_are_those_of_the_layers(architecture, by_hand):
    from nightfold import backend
    from nightfold.zoo import find

    backend.start()
    import keras

    images = keras.Input((28, 28, 1))
    assert training_flops(keras.Model(images, find(architecture)(images, 10))) == by_hand
