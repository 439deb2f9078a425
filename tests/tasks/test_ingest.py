"""Ingest writes one snapshot per content and reads nothing twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from prefect.logging import disable_run_logger

from nightfold.dataset import Dataset
from nightfold.errors import DataRefused, UsageError
from nightfold.experiment import DatasetChoice, shipped
from nightfold.store import Store
from tasks.ingest import ingest, snapshot, take_in


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "artifacts")


def state(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_the_task_hands_on_a_handle_of_the_snapshot(
    small_idx: Path, small_mnist: Dataset, store: Store
) -> None:
    with disable_run_logger():
        handle = ingest.fn(DatasetChoice(source=f"idx:{small_idx}"), str(store.root))
    assert (handle.digest, handle.n_train, handle.n_test) == (small_mnist.digest, 600, 200)
    assert Path(handle.path).parent == store.datasets
    handle.open().verify()


def test_a_limit_keeps_a_seeded_choice_of_each_split(small_idx: Path, store: Store) -> None:
    uri = f"idx:{small_idx}"
    one, again, other = (
        snapshot(DatasetChoice(source=uri, limit=50, holdout_seed=seed), store)
        for seed in (1, 1, 2)
    )
    assert (len(one.train), len(one.test)) == (50, 50)
    assert one.digest == again.digest
    assert one.digest != other.digest


def test_the_same_files_are_ingested_once(small_idx: Path, store: Store) -> None:
    choice = DatasetChoice(source=f"idx:{small_idx}")
    first = snapshot(choice, store)
    before = state(store.root)
    assert snapshot(choice, store).path == first.path
    assert state(store.root) == before


def test_the_same_files_are_not_decoded_again(
    folder_of_digits: Path, small_idx: Path, store: Store
) -> None:
    other = snapshot(DatasetChoice(source=f"idx:{small_idx}"), store)
    [others] = (store.datasets / "sources").iterdir()
    choice = DatasetChoice(source=f"folder:{folder_of_digits}")
    snapshot(choice, store)
    [note] = set((store.datasets / "sources").iterdir()) - {others}
    # A note that leads elsewhere is followed, so nothing but the note was read.
    note.write_text(others.read_text())
    assert snapshot(choice, store).digest == other.digest


@pytest.fixture
def folder_of_digits(small_mnist: Dataset, tmp_path: Path) -> Path:
    from PIL import Image

    root = tmp_path / "digits"
    for row in range(100):
        path = root / str(small_mnist.train.labels[row]) / f"{row:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.array(small_mnist.train.images[row, ..., 0])).save(path)
    return root


@pytest.mark.parametrize("change", ["pixel", "class", "new", "gone"])
def test_a_changed_source_gives_another_snapshot(
    change: str, folder_of_digits: Path, store: Store
) -> None:
    choice = DatasetChoice(source=f"folder:{folder_of_digits}")
    first = snapshot(choice, store)
    one, other, *_ = sorted(folder_of_digits.glob("3/*.png"))
    if change == "pixel":
        one.write_bytes(other.read_bytes())
    elif change == "class":
        one.rename(folder_of_digits / "4" / one.name)
    elif change == "new":
        (folder_of_digits / "4" / "new.png").write_bytes(one.read_bytes())
    else:
        one.unlink()
    assert snapshot(choice, store).digest != first.digest


@pytest.mark.parametrize(
    "option", [{"size": (14, 14)}, {"channels": 3}, {"holdout": 0.3}, {"holdout_seed": 2}]
)
def test_another_choice_gives_another_snapshot(
    option: dict[str, object], folder_of_digits: Path, store: Store
) -> None:
    uri = f"folder:{folder_of_digits}"
    first = snapshot(DatasetChoice(source=uri), store)
    other = snapshot(DatasetChoice.model_validate({"source": uri, **option}), store)
    assert other.digest != first.digest
    assert snapshot(DatasetChoice(source=uri), store).digest == first.digest


def test_a_snapshot_that_was_altered_is_refused(small_idx: Path, store: Store) -> None:
    choice = DatasetChoice(source=f"idx:{small_idx}")
    path = snapshot(choice, store).path / "train_images.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataRefused, match=r"was altered .* delete that folder and run again"):
        snapshot(choice, store)


def test_a_snapshot_that_was_deleted_is_written_again(small_idx: Path, store: Store) -> None:
    import shutil

    choice = DatasetChoice(source=f"idx:{small_idx}")
    first = snapshot(choice, store)
    shutil.rmtree(first.path)
    again = snapshot(choice, store)
    assert again.digest == first.digest
    again.verify()


def test_a_damaged_note_costs_a_second_reading_and_nothing_more(
    small_idx: Path, store: Store
) -> None:
    choice = DatasetChoice(source=f"idx:{small_idx}")
    first = snapshot(choice, store)
    [note] = (store.datasets / "sources").iterdir()
    note.write_text("[")
    assert snapshot(choice, store).digest == first.digest


def test_refused_data_leaves_nothing_behind(small_idx: Path, store: Store) -> None:
    (small_idx / "t10k-images-idx3-ubyte").write_bytes(b"")
    with pytest.raises(DataRefused):
        snapshot(DatasetChoice(source=f"idx:{small_idx}"), store)
    assert not store.root.exists()


def test_a_name_keeps_the_native_form_and_the_name_leads_to_the_same_digest(
    small_idx: Path,
    small_mnist: Dataset,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    choice = DatasetChoice(source=f"idx:{small_idx}")
    dataset = take_in(choice, str(store.root), name="mine")
    assert sorted(path.name for path in Path("data/mine").iterdir()) == [
        "test.parquet",
        "train.parquet",
    ]
    by_name = take_in(DatasetChoice(source="mine"), str(tmp_path / "other"))
    assert by_name.digest == dataset.digest == small_mnist.digest
    before = state(tmp_path / "data")
    take_in(choice, str(store.root), name="mine")
    assert state(tmp_path / "data") == before


def test_a_name_that_cannot_be_used_is_refused_before_anything_is_read(
    small_idx: Path, store: Store
) -> None:
    with pytest.raises(UsageError, match="cannot be named"):
        take_in(DatasetChoice(source=f"idx:{small_idx}"), str(store.root), name="../x")
    assert not store.root.exists()


def test_the_shipped_mnist_is_the_whole_of_it(store: Store) -> None:
    dataset = snapshot(DatasetChoice(source=f"parquet:{shipped('data', 'mnist')}"), store)
    assert (len(dataset.train), len(dataset.test)) == (60_000, 10_000)
    assert dataset.image_shape == (28, 28, 1)
    assert dataset.class_names == tuple("0123456789")
