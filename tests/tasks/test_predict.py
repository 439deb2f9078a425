"""A folder of images becomes one table, whatever state its files are in."""

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from nightfold.errors import BundleRefused, NotWritten, UsageError
from nightfold.tables import batch_schema
from tasks.predict import classify_folder, images_below, predict

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(small_mnist, tmp_path: Path) -> Path:
    """300 digits in two folders, more than a batch, two unreadable files and a note."""
    images = np.concatenate([small_mnist.test.images, small_mnist.train.images[:100]])
    for i, image in enumerate(images):
        path = tmp_path / "images" / f"part{i % 2}" / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(path)
    (tmp_path / "images" / "broken.png").write_text("no image")
    (tmp_path / "images" / "empty.JPG").touch()
    (tmp_path / "images" / "note.txt").write_text("not an image and not named like one")
    return tmp_path / "images"


def test_every_image_is_a_row_in_the_order_of_paths(folder, champion, small_mnist, tmp_path):
    done = classify_folder(images_below(folder), champion, tmp_path / "t.parquet", "run-7")
    assert (done.n_images, done.n_errors, done.model) == (302, 2, "night-1")
    table = pq.read_table(done.path)
    assert table.schema.equals(batch_schema(10))
    assert table.schema.metadata[b"nightfold.run_id"] == b"run-7"
    assert table["path"].to_pylist() == sorted(table["path"].to_pylist())
    rows = {Path(row["path"]).name: row for row in table.to_pylist()}
    assert len(rows) == 302
    expected = champion.predict(np.asarray(small_mnist.test.images))
    for i, probabilities in enumerate(expected):
        row = rows[f"{i:03}.png"]
        assert row["predicted"] == probabilities.argmax()
        assert row["class_name"] == small_mnist.class_names[row["predicted"]]
        assert row["probabilities"] == pytest.approx(probabilities, abs=1e-5)
        assert (row["run_id"], row["model"], row["error"]) == ("run-7", "night-1", None)
    named = [row["class_name"] for row in rows.values() if row["class_name"]]
    assert done.counts == {name: named.count(name) for name in small_mnist.class_names}


def test_an_unreadable_image_is_a_row_that_says_why(folder, champion, tmp_path):
    done = classify_folder(images_below(folder), champion, tmp_path / "t.parquet", "run-7")
    rows = {Path(row["path"]).name: row for row in pq.read_table(done.path).to_pylist()}
    for name in ("broken.png", "empty.JPG"):
        assert name in rows[name]["error"]
        assert rows[name]["predicted"] is rows[name]["probabilities"] is None
    assert "note.txt" not in rows


def test_what_only_looks_like_an_image_is_a_row_and_any_name_is(folder, champion, tmp_path):
    os.mkfifo(folder / "pipe.png")
    (folder / "lost.png").symlink_to(folder / "gone")
    (folder / "folder.png").mkdir()
    os.rename(folder / "part0" / "000.png", os.fsencode(folder) + b"/caf\xe9.png")
    done = classify_folder(images_below(folder), champion, tmp_path / "t.parquet", "run-7")
    rows = {Path(row["path"]).name: row for row in pq.read_table(done.path).to_pylist()}
    assert "a pipe" in rows["pipe.png"]["error"]
    assert "leads nowhere" in rows["lost.png"]["error"]
    assert "folder.png" not in rows
    assert rows["caf\\xe9.png"]["class_name"]


def test_a_folder_of_unreadable_images_is_a_table_too(champion, tmp_path):
    (tmp_path / "a.png").write_text("no image")
    done = classify_folder([tmp_path / "a.png"], champion, tmp_path / "t.parquet", "run-7")
    assert (done.n_errors, set(done.counts.values())) == (1, {0})


def test_a_batch_that_dies_leaves_no_table(folder, champion, tmp_path):
    def paths_until_the_disk_is_gone():
        yield from images_below(folder)
        raise OSError("the disk is gone")

    with pytest.raises(NotWritten, match="the disk is gone"):
        classify_folder(paths_until_the_disk_is_gone(), champion, tmp_path / "o" / "t.parquet", "r")
    assert list((tmp_path / "o").iterdir()) == []


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"no folder .*nowhere"):
        images_below(tmp_path / "nowhere")
    (tmp_path / "note.txt").touch()
    with pytest.raises(UsageError, match=r"no image below .*\.png"):
        images_below(tmp_path)


def test_prefect_shows_the_counts_and_refusals_fail(folder, store, tmp_path, prefect_server):
    from prefect import flow
    from prefect.artifacts import Artifact

    @flow
    def call(**arguments):
        return predict(**arguments)

    arguments = {"folder": str(folder), "artifacts": str(store.root), "run_id": "run-7"}
    done = call(**arguments, model="champion", run_folder=str(tmp_path / "run"))
    artifact = Artifact.get("predictions")
    with pytest.raises(UsageError, match="night-1"):
        call(**arguments, model="night-2", run_folder=str(tmp_path / "refused"))
    assert not (tmp_path / "refused").exists()
    altered = tmp_path / "altered"
    altered.mkdir()
    (altered / "manifest.json").write_text("{}")
    with pytest.raises(BundleRefused):
        call(**arguments, model=str(altered), run_folder=str(tmp_path / "run"))
    assert Path(done.path) == tmp_path / "run" / "classified.parquet"
    assert artifact is not None
    assert '"(unreadable)", "images": 2' in artifact.data
    assert "model night-1" in artifact.description
