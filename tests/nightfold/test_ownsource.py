"""What belongs to the source of a network of the user's own, told without importing it."""

import hashlib
import sys

import pytest

from nightfold.ownsource import digest_of, files_of

NEVER = "raise RuntimeError('imported')\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def write(folder, **sources):
    """Files by the names of their modules, dots written as two underscores."""
    for name, source in sources.items():
        file = folder.joinpath(*name.split("__")).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)


def test_a_single_file_has_the_digest_of_its_bytes(folder):
    write(folder, own_nets="import keras, numpy as np\nfrom json import loads\n")
    expected = hashlib.sha256((folder / "own_nets.py").read_bytes()).hexdigest()
    assert digest_of("own_nets") == expected


def test_what_a_module_imports_of_the_users_own_belongs_to_it(folder):
    write(
        folder,
        own_nets="def build(images, n_classes):\n    from own_blocks import block\n",
        own_blocks="import own_parts.dense as dense\n" + NEVER,
        own_parts__dense="from own_nets import build\n",
        own_other=NEVER,
    )
    assert set(files_of("own_nets")) == {"own_nets", "own_blocks", "own_parts.dense"}


def test_packages_around_a_module_and_relative_imports_belong_to_it(folder):
    (folder / "own_package" / "blocks").mkdir(parents=True)
    (folder / "own_package" / "__init__.py").write_text("from .small import build\n" + NEVER)
    (folder / "own_package" / "blocks" / "__init__.py").write_text("from . import relu\n")
    write(
        folder,
        own_package__small="from .blocks import *\nfrom ... import nothing\n",
        own_package__blocks__relu="from ..shapes import square\n",
        own_package__shapes="",
        own_package__unused=NEVER,
    )
    parts = {"", ".small", ".blocks", ".blocks.relu", ".shapes"}
    assert set(files_of("own_package")) == {f"own_package{part}" for part in parts}
    assert files_of("own_package.small") == files_of("own_package")


@pytest.mark.parametrize("edited", ["own_nets", "own_blocks", "own_other"])
def test_the_digest_changes_with_each_of_these_files_and_no_other(folder, edited):
    write(folder, own_nets="import own_blocks\n", own_blocks="A = 1\n", own_other="A = 1\n")
    before = digest_of("own_nets")
    (folder / f"{edited}.py").write_text("import own_blocks\n# edited\n")
    assert (digest_of("own_nets") == before) == (edited == "own_other")


def test_what_is_installed_belongs_to_it_only_if_it_is_its_own_package(folder, monkeypatch):
    installed = folder / "site-packages"
    write(installed, installed_nets="import installed_parts\n", installed_parts="")
    monkeypatch.syspath_prepend(installed)
    write(folder, own_nets="import installed_nets\n")
    assert set(files_of("own_nets")) == {"own_nets"}
    assert set(files_of("installed_nets")) == {"installed_nets"}


@pytest.mark.parametrize("source", ["def build(:\n", "\0", "(" * 2000])
def test_a_source_that_is_no_python_is_still_a_source(folder, source):
    write(folder, own_nets=source)
    assert set(files_of("own_nets")) == {"own_nets"}


@pytest.mark.parametrize("name", ["no_such_module", "json", "", ".x", "x..y"])
def test_a_module_that_is_not_the_users_has_no_source(name):
    assert files_of(name) == {}
    assert digest_of(name) == ""


def test_nothing_is_imported_for_it(folder):
    write(folder, own_nets=NEVER, own_package__part=NEVER)
    (folder / "own_package" / "__init__.py").write_text(NEVER)
    assert len(files_of("own_nets") | files_of("own_package.part")) == 3
    assert not {"own_nets", "own_package"} & set(sys.modules)
