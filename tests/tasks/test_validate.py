"""Validation as a gate: real MNIST passes, and every way to break it is named by its row."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nightfold.dataset import Dataset, Split
from nightfold.errors import DataRefused
from nightfold.experiment import ValidationChoice, shipped
from nightfold.inspection import describe_images
from nightfold.validation import Check, ValidationReport
from tasks.validate import Rule, check, examine, validate

Breakage = Callable[..., Dataset]


@pytest.fixture
def broken(small_mnist: Dataset, tmp_path: Path) -> Breakage:
    """Small MNIST with something changed: arrays of either split, or the class names."""

    def write(class_names: tuple[str, ...] | None = None, **arrays: Any) -> Dataset:
        splits = {
            name: Split(
                arrays.get(f"{name}_images", split.images),
                arrays.get(f"{name}_labels", split.labels),
            )
            for name, split in (("train", small_mnist.train), ("test", small_mnist.test))
        }
        names = class_names or small_mnist.class_names
        return Dataset.write(tmp_path, name="broken", origin="test", class_names=names, **splits)

    return write


@pytest.fixture
def images(small_mnist: Dataset) -> np.ndarray:
    """A copy of the training images that a test may damage."""
    return np.array(small_mnist.train.images)


@pytest.fixture
def labels(small_mnist: Dataset) -> np.ndarray:
    """A copy of the training labels that a test may damage."""
    return np.array(small_mnist.train.labels)


def outcome(dataset: Dataset, name: str, split: str = "train", **choice: Any) -> Check:
    """The named check, which must not have passed."""
    folds = choice.pop("folds", 5)
    report = check(dataset, ValidationChoice(**choice), folds)
    (found,) = (c for c in report.checks if (c.name, c.split) == (name, split))
    assert not found.passed
    return found


def rows(found: Check) -> list[int]:
    return [row.index for row in found.rows]


def test_mnist_as_shipped_passes_without_a_warning(mnist):
    report = check(mnist, ValidationChoice(), folds=5)
    assert report.passed
    assert [c for c in report.checks if not c.passed] == []
    assert report.class_rows["train"]["1"] == 6742


def test_the_8x8_digits_pass_although_their_brightest_pixel_is_16(tmp_path):
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    pixels = pixels.astype(np.uint8).reshape(-1, 8, 8, 1)
    dataset = Dataset.write(
        tmp_path,
        name="digits",
        origin="digits",
        class_names=tuple("0123456789"),
        train=Split(pixels[:1500], labels[:1500]),
        test=Split(pixels[1500:], labels[1500:]),
    )
    assert [c for c in check(dataset, ValidationChoice(), folds=5).checks if not c.passed] == []


def test_an_empty_split_is_refused_and_nothing_else_is_claimed_about_it(broken, small_mnist):
    dataset = broken(
        test_images=np.zeros((0, 28, 28, 1), np.uint8), test_labels=np.zeros(0, np.int64)
    )
    report = check(dataset, ValidationChoice(), folds=5)
    assert [c.name for c in report.checks if c.split == "test"] == ["rows_present"]
    assert "test split of 'broken' was refused: the split is empty" in report.refusal()


def test_both_splits_empty_is_refused_too(broken):
    nothing, none = np.zeros((0, 28, 28, 1), np.uint8), np.zeros(0, np.int64)
    dataset = broken(train_images=nothing, train_labels=none, test_images=nothing, test_labels=none)
    assert len(check(dataset, ValidationChoice(), folds=5).criticals) == 2


def test_fewer_rows_than_folds_are_refused(broken, images, labels):
    dataset = broken(train_images=images[:20], train_labels=labels[:20])
    found = outcome(dataset, "rows_for_folds", folds=21)
    assert found.severity == "critical"
    assert found.observed == "20"


def test_images_without_height_are_refused(broken):
    dataset = broken(train_images=np.zeros((600, 0, 28, 1), np.uint8))
    assert outcome(dataset, "image_shape").observed == "0x28x1"


def test_a_test_split_of_another_shape_is_refused(broken, small_mnist):
    dataset = broken(test_images=small_mnist.test.images[:, :20])
    found = outcome(dataset, "same_shape", "test")
    assert found.observed == "20x28x1"
    assert "28x28x1" in found.sentence


def test_float_images_scaled_to_one_are_recognised_as_such(broken, images):
    dataset = broken(train_images=images.astype(np.float32) / 255)
    refusal = check(dataset, ValidationChoice(), folds=5).refusal()
    assert "pixels are stored as float32, already scaled to 0..1 it seems" in refusal
    assert "uint8 in 0..255" in refusal


def test_bytes_scaled_to_one_are_recognised_as_such(broken, images):
    found = outcome(broken(train_images=images // 255), "pixel_scale")
    assert found.sentence == "the brightest pixel is 1 or less, already scaled to 0..1 it seems"


def test_a_split_that_is_all_black_is_recognised_as_such(broken, images):
    dataset = broken(train_images=np.zeros_like(images))
    assert outcome(dataset, "pixel_scale").sentence == "every pixel is 0"


def test_a_split_of_constant_images_is_refused(broken, images):
    levels = (np.arange(600) % 250 + 2).astype(np.uint8).reshape(-1, 1, 1, 1)
    dataset = broken(train_images=np.broadcast_to(levels, images.shape))
    assert outcome(dataset, "some_content").severity == "critical"


@pytest.mark.parametrize(
    ("name", "value"), [("pixel_minimum", -3), ("pixel_maximum", 256), ("pixels_present", np.nan)]
)
def test_a_pixel_out_of_range_is_named_by_its_row(broken, images, name, value):
    images = images.astype(np.float32)
    images[17, 3, 3, 0] = value
    found = outcome(broken(train_images=images), name)
    assert found.severity == "critical"
    assert rows(found) == [17]


def test_missing_labels_are_named_by_row_before_the_floats_they_cause(broken, labels):
    labels = labels.astype(np.float64)
    labels[[3, 599]] = np.nan
    dataset = broken(train_labels=labels)
    digests = dataset.train.row_digests
    report = check(dataset, ValidationChoice(), folds=5)
    assert report.refusal() == (
        "The train split of 'broken' was refused: labels are missing (2 of 600), "
        f"rows 3 ({digests[3][:12]}), 599 ({digests[599][:12]}): "
        "label these rows or leave them out (also failed: train label_dtype)."
    )


def test_whole_labels_stored_as_floats_are_refused(broken, labels):
    assert "float64" in outcome(broken(train_labels=labels * 1.0), "label_dtype").sentence


def test_labels_that_are_text_are_refused(broken, labels):
    dataset = broken(train_labels=labels.astype(str))
    assert outcome(dataset, "label_dtype").severity == "critical"
    assert rows(outcome(dataset, "label_in_classes")) == list(range(10))


@pytest.mark.parametrize("label", [10, -1])
def test_a_label_outside_the_ten_classes_is_named_by_its_row(broken, labels, label):
    labels[42] = label
    found = outcome(broken(train_labels=labels), "label_in_classes")
    assert (found.severity, rows(found), found.observed) == ("critical", [42], f"1 of 600: {label}")


def test_only_the_first_ten_rows_are_named_but_all_are_counted(broken, labels):
    labels[100:200] = 11
    found = outcome(broken(train_labels=labels), "label_in_classes")
    assert rows(found) == list(range(100, 110))
    assert found.observed == "100 of 600: 11"


def test_a_single_class_is_refused(broken, labels):
    dataset = broken(class_names=("digit",), train_labels=labels * 0)
    assert outcome(dataset, "several_classes").severity == "critical"


def test_a_class_that_is_absent_is_critical_in_train_and_a_warning_in_test(broken, small_mnist):
    def without_7(split: Split) -> dict[str, np.ndarray]:
        kept = split.labels != 7
        return {"images": split.images[kept], "labels": split.labels[kept]}

    train, test = without_7(small_mnist.train), without_7(small_mnist.test)
    dataset = broken(
        train_images=train["images"],
        train_labels=train["labels"],
        test_images=test["images"],
        test_labels=test["labels"],
    )
    found = outcome(dataset, "class_present")
    assert (found.severity, found.observed) == ("critical", "1 of 10: 7 has 0")
    assert outcome(dataset, "class_present", "test").severity == "warning"


def test_a_class_with_too_few_rows_is_named(broken, images, labels):
    kept = np.ones(600, bool)
    kept[np.flatnonzero(labels == 4)[3:]] = False
    dataset = broken(train_images=images[kept], train_labels=labels[kept])
    few = outcome(dataset, "class_rows", min_rows_per_class=4)
    assert (few.severity, few.observed) == ("critical", "1 of 10: 4 has 3")
    assert outcome(dataset, "class_rows_for_folds", folds=4).severity == "warning"


def test_imbalance_is_a_warning_against_uniform_or_the_stated_shares(broken, images, labels):
    kept = np.flatnonzero((labels != 4) | (np.arange(600) % 3 == 0))
    dataset = broken(train_images=images[kept], train_labels=labels[kept])
    found = outcome(dataset, "class_balance", max_imbalance=1.8)
    assert found.severity == "warning"
    assert found.observed.startswith("1 of 10: 4 has 0.")
    counts = np.bincount(labels[kept])
    shares = {str(digit): float(n) for digit, n in enumerate(counts)}
    report = check(dataset, ValidationChoice(max_imbalance=1.1, reference_balance=shares), folds=5)
    assert next(c for c in report.checks if c.name == "class_balance").passed


def test_exact_copies_are_named_and_weigh_what_the_experiment_says(broken, images, labels):
    images[500], labels[500] = images[7], labels[7]
    dataset = broken(train_images=images, train_labels=labels)
    found = outcome(dataset, "duplicates")
    assert (found.severity, rows(found)) == ("warning", [7, 500])
    assert found.rows[0].digest == found.rows[1].digest
    assert outcome(dataset, "duplicates", duplicates="critical").severity == "critical"


def test_one_image_with_two_labels_is_refused_where_it_is_more_than_one_row_in_a_thousand(
    broken, images, labels
):
    images[500], labels[500] = images[7], (labels[7] + 1) % 10
    dataset = broken(train_images=images, train_labels=labels)
    assert rows(outcome(dataset, "labels_consistent")) == [7, 500]
    assert outcome(dataset, "labels_consistent").severity == "critical"


def test_one_image_with_two_labels_is_a_warning_where_it_is_rare(mnist, broken):
    images, labels = np.array(mnist.train.images[:2500]), np.array(mnist.train.labels[:2500])
    images[500], labels[500] = images[7], (labels[7] + 1) % 10
    dataset = broken(train_images=images, train_labels=labels)
    assert rows(outcome(dataset, "labels_unique")) == [7, 500]
    assert check(dataset, ValidationChoice(), folds=5).passed


def test_a_test_image_that_is_also_a_training_image_is_named_by_its_test_row(broken, small_mnist):
    images = np.array(small_mnist.test.images)
    images[31] = small_mnist.train.images[0]
    dataset = broken(test_images=images)
    found = outcome(dataset, "leakage", "test")
    assert (found.severity, rows(found), found.observed) == ("critical", [31], "1 of 200")
    assert outcome(dataset, "leakage", "test", leakage="warning").severity == "warning"


def test_a_constant_image_is_a_warning_and_a_nearly_empty_one_a_note(broken, images):
    images[9] = 5
    images[11] = 0
    images[11, 14, 14:18] = 200
    dataset = broken(train_images=images)
    assert rows(outcome(dataset, "image_constant")) == [9]
    assert outcome(dataset, "image_constant").severity == "warning"
    assert rows(outcome(dataset, "image_nearly_empty")) == [9, 11]
    assert outcome(dataset, "image_nearly_empty").severity == "info"
    assert check(dataset, ValidationChoice(), folds=5).passed


def test_an_expectation_that_cannot_be_evaluated_is_critical(small_mnist):
    harmless = Rule(
        name="harmless",
        severity="info",
        expectation="ExpectColumnValuesToBeBetween",
        arguments={"column": "no_such_column", "min_value": 0},
        claim="a column exists",
        fault="it does not",
        remedy="add it",
    )
    (found,) = examine(describe_images(small_mnist.train), [harmless], "train")
    assert (found.severity, found.passed) == ("critical", False)
    assert "no_such_column" in found.observed
    report = ValidationReport(dataset="mnist", digest="0", class_rows={}, checks=(found,))
    assert "could not be checked that a column exists" in report.refusal()


def test_the_task_refuses_bad_data_but_writes_what_it_found(broken, labels, tmp_path):
    labels[42] = 10
    dataset = broken(train_labels=labels)
    run_folder = tmp_path / "run"
    with pytest.raises(DataRefused, match=r"train split of 'broken'.* rows 42 \(") as refused:
        validate.fn(dataset.handle, ValidationChoice(), 5, str(run_folder))
    assert refused.value.exit_code == 3
    assert [path.name for path in run_folder.iterdir()] == ["validation.json"]
    written = json.loads((run_folder / "validation.json").read_text())
    assert written["passed"] is False
    assert written["counts"]["critical"] == 1


def test_the_task_writes_its_report_and_lets_data_with_warnings_pass(broken, images, tmp_path):
    images[9] = 5
    dataset = broken(train_images=images)
    choice = ValidationChoice(max_imbalance=3)
    validate.fn(dataset.handle, choice, 5, str(tmp_path / "run"))
    written = ValidationReport.read(tmp_path / "run")
    assert (written.passed, len(written.warnings)) == (True, 1)
    assert written == check(dataset, choice, 5)


def test_importing_the_task_loads_neither_great_expectations_nor_pandas():
    code = "import sys, tasks.validate; print({'great_expectations', 'pandas'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


def test_checking_prints_nothing(small_mnist):
    code = (
        "import sys\n"
        "from nightfold.dataset import Dataset\n"
        "from nightfold.experiment import ValidationChoice\n"
        "from tasks.validate import check\n"
        "assert check(Dataset.open(sys.argv[1]), ValidationChoice(), 5).passed\n"
    )
    command = [sys.executable, "-c", code, str(small_mnist.path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


@pytest.mark.slow
def test_prefect_shows_the_checks_of_refused_data_with_the_failed_ones_first(
    broken, labels, tmp_path, prefect_server
):
    from prefect import flow
    from prefect.artifacts import Artifact

    labels[42] = 10
    dataset = broken(train_labels=labels)

    @flow
    def night() -> None:
        validate(dataset.handle, ValidationChoice(), 5, str(tmp_path / "run"))

    with pytest.raises(DataRefused):
        night()
    artifact = Artifact.get("validation")
    assert artifact is not None
    assert "rows 42 (" in artifact.description
    first, *others = json.loads(artifact.data)
    assert first == {
        "result": "critical",
        "split": "train",
        "finding": "labels are not among the class indices 0 to 9",
        "observed": "1 of 600: 10",
        "check": "label_in_classes",
    }
    assert "critical" not in {row["result"] for row in others}


def test_the_documentation_lists_every_check_with_its_severity(small_mnist):
    text = shipped("docs", "validation.md").read_text(encoding="utf-8")
    for found in check(small_mnist, ValidationChoice(), folds=5).checks:
        line = next(line for line in text.splitlines() if line.startswith(f"| `{found.name}` |"))
        assert found.severity in line
