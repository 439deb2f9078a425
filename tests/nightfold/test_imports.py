"""Imports that cost less leave the process as it was."""

import gc
import importlib
import sys

import pytest

from nightfold.imports import few_collections, hidden


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Name of a module that nobody has imported."""
    (tmp_path / "nobody_has_it.py").write_text("value = 1")
    monkeypatch.syspath_prepend(tmp_path)
    yield "nobody_has_it"
    sys.modules.pop("nobody_has_it", None)


def test_a_hidden_module_seems_not_installed_and_can_be_imported_afterwards(module):
    with hidden([module]), pytest.raises(ImportError):
        importlib.import_module(module)
    assert importlib.import_module(module).value == 1


def test_a_module_that_is_there_already_stays(module):
    there = importlib.import_module(module)
    with hidden([module]):
        assert importlib.import_module(module) is there
    assert sys.modules[module] is there


def test_nothing_stays_hidden_after_an_error(module):
    with pytest.raises(ZeroDivisionError), hidden([module]):
        raise ZeroDivisionError
    assert importlib.import_module(module).value == 1


def test_garbage_is_looked_for_less_often_and_then_as_before():
    before = gc.get_threshold()
    with pytest.raises(ZeroDivisionError), few_collections():
        assert gc.get_threshold()[0] == 100 * before[0]
        raise ZeroDivisionError
    assert gc.get_threshold() == before
