"""A data set that Nightfold has never met comes out as a report, without a change of code."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from nightfold.store import Store

pytestmark = pytest.mark.slow

CLASSES = 6


@pytest.fixture(scope="module")
def rows():
    """Scanned digits 0 to 5 of scikit-learn in 20 x 14 pixels: images and labels."""
    images, labels = load_digits(return_X_y=True)
    images = (images[labels < CLASSES] * 15.9).astype(np.uint8).reshape(-1, 8, 8)
    large = images.repeat(2, axis=1).repeat(2, axis=2)[:, :, 1:15]
    return np.pad(large, ((0, 0), (2, 2), (0, 0))), labels[labels < CLASSES].astype(np.uint8)


@pytest.fixture(scope="module")
def retrain(bench, tmp_path_factory):
    """A function that runs ``nightfold retrain`` and returns the run's folder and summary."""

    def run(source, *options):
        artifacts = tmp_path_factory.mktemp("artifacts")
        short = ["--candidates", "baseline", "--folds", "2", "--epochs", "6", "--workers", "2"]
        place = ["--artifacts", artifacts, "--run-id", "unseen"]
        nightfold = Path(sys.executable).with_name("nightfold")
        done = subprocess.run(
            [nightfold, "retrain", "--dataset", source, *short, *place, *options],
            cwd=artifacts,
            env={**os.environ, **bench.env},
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert done.returncode == 0, done.stderr
        folder = Store(artifacts).run("unseen")
        return folder, json.loads((folder / "summary.json").read_text())

    return run


def test_an_idx_set_of_another_size_and_other_classes(rows, retrain, tmp_path):
    images, labels = rows
    for prefix, part in (("train", slice(800)), ("t10k", slice(800, None))):
        for role, array in (("images-idx3", images[part]), ("labels-idx1", labels[part])):
            header = bytes([0, 0, 8, array.ndim])
            header += b"".join(size.to_bytes(4, "big") for size in array.shape)
            with gzip.open(tmp_path / f"{prefix}-{role}-ubyte.gz", "wb") as file:
                file.write(header + array.tobytes())
    folder, summary = retrain(f"idx:{tmp_path}")
    assert summary["dataset"]["image_shape"] == [20, 14, 1]
    assert summary["dataset"]["class_names"] == [str(name) for name in range(CLASSES)]
    assert summary["final"]["holdout_accuracy"] > 0.8
    page = (folder / "report.html").read_text()
    assert f"on {tmp_path.name}" in page
    assert "published ones" not in page


def test_a_folder_of_images_of_many_sizes_kinds_and_modes(rows, retrain, tmp_path):
    for i, (pixels, label) in enumerate(zip(*rows, strict=True)):
        path = tmp_path / f"digit {label}" / f"{i}.{('png', 'bmp', 'tiff')[i % 3]}"
        path.parent.mkdir(exist_ok=True)
        image = Image.fromarray(pixels).convert("RGB" if i % 2 else "L")
        image.resize((28 + i % 5, 40 + i % 7)).save(path)
    folder, summary = retrain(f"folder:{tmp_path}", "--size", "20x14", "--channels", "1")
    assert summary["dataset"]["image_shape"] == [20, 14, 1]
    assert summary["dataset"]["class_names"] == [f"digit {name}" for name in range(CLASSES)]
    assert summary["final"]["holdout_accuracy"] > 0.8
    assert "digit 5" in (folder / "report.html").read_text()
