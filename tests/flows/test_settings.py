"""What a run was asked for: how many folds train at once."""

from __future__ import annotations

import pytest

from flows.settings import Settings, cores
from nightfold import gpu


def test_a_core_trains_a_fold() -> None:
    assert Settings().n_workers == cores()
    assert Settings(workers=1).n_workers == 1
    assert Settings(runner="sequential").n_workers == 1


def test_few_folds_share_a_gpu_unless_asked_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nightfold.gpu.name", lambda: "NVIDIA H200")
    monkeypatch.setattr("flows.settings.cores", lambda: 64)
    assert Settings().n_workers == gpu.WORKERS
    assert Settings(workers=16).n_workers == 16
