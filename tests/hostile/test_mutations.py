"""Sound files of every format, damaged by chance, end in data or in one sentence."""

from __future__ import annotations

from functools import reduce
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.hostile.targets import TARGETS, Refusal, seeds

Damage = tuple[str, float, bytes]

DAMAGES = st.lists(
    st.tuples(
        st.sampled_from(["flip", "overwrite", "insert", "cut", "remove", "repeat", "splice"]),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=9),
    ),
    min_size=1,
    max_size=4,
)


def damaged(content: bytes, damage: Damage) -> bytes:
    """`content` after one damage at a place that is a fraction of its length."""
    kind, part, new = damage
    place = int(part * len(content))
    head, tail = content[:place], content[place:]
    if kind == "flip":
        return head + bytes(b ^ (1 << new[0] % 8) for b in tail[:1]) + tail[1:]
    if kind == "overwrite":
        return head + new + tail[len(new) :]
    if kind == "insert":
        return head + new + tail
    if kind == "remove":
        return head + tail[new[0] :]
    if kind == "repeat":
        return head + tail[: new[0]] + tail
    if kind == "splice":
        other = int(new[0] / 256 * len(content))
        return head + content[other:]
    return head


@pytest.fixture(scope="module", params=TARGETS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(name)
    TARGETS[name].surround(folder)
    return folder


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(which=st.integers(0, 99), damages=DAMAGES)
@example(which=0, damages=[("cut", 0.0, b"\0")])
# In a PNG: pixels that unfold to too much, so that their own check sum is never reached.
@example(which=0, damages=[("overwrite", 0.8125, b"\0\0\0")])
def test_damage_is_refused_in_a_sentence_or_changes_nothing_that_has_a_check_sum(
    name: str, folder: Path, which: int, damages: list[Damage]
) -> None:
    target, sound = TARGETS[name], seeds(name)[which % len(seeds(name))]
    before = target.verdict(folder, sound)
    assert not isinstance(before, Refusal), before
    after = target.verdict(folder, reduce(damaged, damages, sound))
    assert isinstance(after, Refusal) or not target.summed or after == before
