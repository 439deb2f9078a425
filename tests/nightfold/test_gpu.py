"""Which GPU folds train on: what its driver says, and what follows from it.

There is none where these tests run, so driver and libraries are stand-ins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from nightfold import gpu
from nightfold.foldresult import code_versions


def driver(name: str | None) -> SimpleNamespace:
    """CUDA's driver with one device of that name; without a name, one that finds none."""

    def tell(text: Any, _length: int, _device: object) -> int:
        assert name is not None
        text.value = name.encode()
        return 0

    return SimpleNamespace(
        cuInit=lambda _flags: 0 if name else 100,
        cuDeviceGet=lambda _device, ordinal: 0 if ordinal == 0 else 101,
        cuDeviceGetName=tell,
    )


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """A function that puts a GPU into this machine, and TensorFlow's libraries for it."""

    def build(device: str | None, *, libraries: bool = True) -> None:
        gpu.name.cache_clear()
        monkeypatch.setattr("ctypes.CDLL", lambda _name: driver(device))
        monkeypatch.setattr(gpu, "_has_libraries", lambda: libraries)

    yield build
    gpu.name.cache_clear()


def test_the_first_device_of_the_driver_is_the_gpu(machine: Callable[..., None]) -> None:
    machine("NVIDIA H200")
    assert gpu.name() == "NVIDIA H200"
    assert gpu.sentence() == "Folds train on the GPU (NVIDIA H200)."


def test_without_libraries_it_is_left_idle_and_the_log_says_what_to_install(
    machine: Callable[..., None],
) -> None:
    machine("NVIDIA H200", libraries=False)
    assert gpu.name() is None
    assert "tensorflow[and-cuda]" in str(gpu.sentence())


def test_a_driver_without_a_device_is_no_gpu(machine: Callable[..., None]) -> None:
    machine(None)
    assert (gpu.name(), gpu.sentence()) == (None, None)


def test_a_machine_without_a_driver_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr("ctypes.CDLL", missing)
    assert gpu.sentence() is None


def test_folds_of_a_gpu_have_another_key_and_those_of_the_processor_their_old_one(
    machine: Callable[..., None],
) -> None:
    machine(None)
    before = code_versions()
    machine("NVIDIA H200")
    assert code_versions() == {**before, "gpu": "NVIDIA H200"}
    assert "gpu" not in before
