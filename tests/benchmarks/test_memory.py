"""Memory of a process, as the system counts it, and what a process is in a run."""

import sys

import numpy as np
import psutil
import pytest

from benchmarks.memory import read_memory, role

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
def test_what_a_process_allocates_is_private_until_it_gives_it_back():
    pages = np.ones(100 << 20, np.uint8)
    before = read_memory(psutil.Process())
    assert before["rss"] >= before["pss"] >= before["private"] >= pages.nbytes
    assert before["anonymous"] >= pages.nbytes
    del pages
    after = read_memory(psutil.Process())
    assert before["private"] - after["private"] >= 100 << 20


@linux
def test_the_command_is_the_parent_whatever_it_is_called():
    own = psutil.Process()
    assert role(own, own.pid) == "parent"
