"""What every figure of the report must show, at the odd shapes as well."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from nightfold.dataset import Dataset
from nightfold.figures import (
    TRAIN,
    VALIDATION,
    accuracy_boxes,
    champion_trend,
    confident_mistakes,
    confusion_matrix,
    learning_curves,
    percent,
    posteriors,
    reliability_curve,
    sample_images,
    save_png,
    shortened,
    to_svg,
)
from nightfold.history import Change, Night, Score
from nightfold.statistics import bayesian_correlated_t, corrected_resampled_t
from nightfold.statistics import reliability_curve as bins_of

LONG = "a photograph of a very tall building by the sea"
DIGITS = tuple("0123456789")


def history(folds: int, epochs: int) -> pd.DataFrame:
    rows = [
        {
            "repeat": 1,
            "fold": fold,
            "epoch": epoch,
            "train_loss": 0.4 / epoch + 0.01 * fold,
            "train_accuracy": 1 - 0.1 / epoch - 0.001 * fold,
            "validation_loss": 0.3 / epoch + 0.01 * fold,
            "validation_accuracy": 1 - 0.08 / epoch - 0.001 * fold,
        }
        for fold in range(1, folds + 1)
        for epoch in range(1, epochs + 1)
    ]
    return pd.DataFrame(rows)


def scores(candidates: int, folds: int) -> pd.DataFrame:
    rows = [
        {"candidate": f"{LONG} {c}", "accuracy": 0.98 + 0.002 * c + 0.0001 * fold}
        for c in range(candidates)
        for fold in range(folds)
    ]
    return pd.DataFrame(rows)


def answers(n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(40 * n_classes) % n_classes
    predicted = np.where(np.arange(len(labels)) % 9 == 0, (labels + 1) % n_classes, labels)
    return labels, predicted


def confident(n: int) -> np.ndarray:
    top = np.linspace(0.35, 1, n, dtype=np.float32)
    return np.stack([top, (1 - top) / 2, (1 - top) / 2], axis=1)


def images(n: int, channels: int) -> np.ndarray:
    ramp = np.linspace(0, 255, 20 * 28, dtype=np.uint8).reshape(1, 20, 28, 1)
    return np.repeat(np.repeat(ramp, n, axis=0), channels, axis=3)


def mistakes(n: int, channels: int = 1, name: str = "7") -> Figure:
    return confident_mistakes(images(n, channels), [name] * n, [name] * n, [0.98] * n)


def night(x: int, **changes: object) -> Night:
    started = datetime(2026, 11, 1, 2, tzinfo=UTC) + timedelta(days=x)
    score = Score(candidate=LONG, accuracy=0.987, low=0.986, high=0.988)
    return Night(
        run_id=f"night-{x}",
        experiment="night",
        dataset="mnist",
        started_at=started,
        finished_at=started + timedelta(minutes=14),
        dataset_digest="a",
        plan_digest="b",
        data_changed=False,
        champion="v1",
        champion_score=score,
        challenger=Score(candidate="deep", accuracy=0.9885, low=None, high=None),
        outcome="promote" if x == 0 else "refuse",
        reason="Not proven.",
    ).model_copy(update=changes)


def by_hand(x: float) -> Change:
    at = datetime(2026, 11, 1, 2, tzinfo=UTC) + timedelta(days=x)
    return Change(at=at, action="rollback", version="v1", reason="why")


def verdict(mean: float = 0.004, sd: float = 0.002, name: str = "deep") -> dict[str, Any]:
    """Five folds; the columns that are drawn."""
    noise = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    differences = mean + sd * noise
    sizes = {"n_train": 48_000, "n_test": 12_000}
    test = corrected_resampled_t(differences, **sizes)
    worse, equivalent, better, *_ = bayesian_correlated_t(differences, rope=0.001, **sizes)
    return {
        "candidate_a": "baseline",
        "candidate_b": name,
        "n_pairs": 5,
        "mean_difference": test.mean,
        "interval_low": test.low,
        "interval_high": test.high,
        "rope": 0.001,
        "p_worse": worse,
        "p_equivalent": equivalent,
        "p_better": better,
    }


ODD_SHAPES: dict[str, Callable[[], Figure]] = {
    "curves of one epoch": lambda: learning_curves(history(5, 1), "deep"),
    "curves of two folds": lambda: learning_curves(history(2, 10), "deep"),
    "curves of 50 folds and epochs": lambda: learning_curves(history(50, 50), LONG),
    "boxes of one candidate": lambda: accuracy_boxes(scores(1, 2)),
    "boxes of eight candidates": lambda: accuracy_boxes(scores(8, 50)),
    "confusion of two": lambda: confusion_matrix(*answers(2), ("no", "yes")),
    "confusion of ten": lambda: confusion_matrix(*answers(10), DIGITS),
    "confusion of 15": lambda: confusion_matrix(*answers(15), [f"{LONG} {i}" for i in range(15)]),
    "confusion of 30": lambda: confusion_matrix(*answers(30), [f"class {i}" for i in range(30)]),
    "twelve mistakes": lambda: mistakes(12),
    "two mistakes in colour": lambda: mistakes(2, channels=3, name=LONG),
    "no mistake": lambda: mistakes(0),
    "nine samples": lambda: sample_images(images(9, 1), DIGITS[:9]),
    "two samples in colour": lambda: sample_images(images(2, 3), [LONG, LONG]),
    "reliability": lambda: reliability_curve(bins_of(np.zeros(90, np.int64), confident(90))),
    "trend of one night": lambda: champion_trend([night(0)]),
    "trend of a night without score": lambda: champion_trend([night(0, champion_score=None)]),
    "trend of 60 nights": lambda: champion_trend(
        [
            night(x, data_changed=x % 9 == 8, outcome=("keep", "undecided")[x % 2])
            for x in range(60)
        ],
        [by_hand(20.3), by_hand(40.3)],
    ),
    "posterior of one pair": lambda: posteriors([verdict()]),
    "posteriors of six pairs": lambda: posteriors([verdict(name=LONG)] * 6),
    "posterior without spread": lambda: posteriors([verdict(0, 0)]),
    "reliability of one row": lambda: reliability_curve(bins_of(np.zeros(1, int), confident(1))),
}


@pytest.mark.parametrize("shape", ODD_SHAPES)
def test_nothing_is_cut_off(shape: str) -> None:
    figure = ODD_SHAPES[shape]()
    figure.draw_without_rendering()
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert box.x0 >= -0.01
    assert box.y0 >= -0.01
    assert box.x1 <= width + 0.01
    assert box.y1 <= height + 0.01


@pytest.mark.parametrize("shape", [name for name in ODD_SHAPES if name.split()[0] != "no"])
def test_axes_that_measure_something_are_labelled(shape: str) -> None:
    figure = ODD_SHAPES[shape]()
    measuring = [axes for axes in figure.axes if not axes.images and axes.axison]
    assert bool(measuring) != any(axes.images for axes in figure.axes)
    for axes in measuring:
        assert axes.get_ylabel()
    if measuring:
        assert measuring[-1].get_xlabel()


@pytest.mark.parametrize(("folds", "epochs"), [(2, 10), (5, 1), (50, 50)])
def test_learning_curves_have_one_line_a_fold_and_side_with_every_epoch(
    folds: int, epochs: int
) -> None:
    loss, accuracy = learning_curves(history(folds, epochs), "deep").axes
    for axes in (loss, accuracy):
        colours = [line.get_color() for line in axes.lines]
        assert colours.count(TRAIN) == colours.count(VALIDATION) == folds
        assert {len(line.get_xdata()) for line in axes.lines} == {epochs}
    assert "nats" in loss.get_ylabel()
    assert "%" in accuracy.get_ylabel()
    assert np.allclose([line.get_ydata()[0] for line in accuracy.lines[:2]], [89.9, 89.8])


def test_a_single_epoch_is_a_visible_point() -> None:
    for axes in learning_curves(history(5, 1), "deep").axes:
        assert all(line.get_marker() == "o" for line in axes.lines)


def test_boxes_show_every_fold_and_name_every_candidate() -> None:
    figure = accuracy_boxes(scores(8, 50))
    (axes,) = figure.axes
    points = np.concatenate([dots.get_offsets() for dots in axes.collections])
    assert len(points) == 8 * 50
    assert np.allclose(np.sort(points[:, 0]), np.sort(100 * scores(8, 50)["accuracy"]))
    assert len({label.get_text() for label in axes.get_yticklabels()}) == 8


def test_the_confusion_matrix_counts_true_down_and_predicted_across() -> None:
    figure = confusion_matrix(np.array([0, 0, 0, 1]), np.array([0, 1, 1, 1]), ("no", "yes"))
    (axes,) = figure.axes
    cells = {tuple(text.get_position()): text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "1", (1, 0): "2", (1, 1): "1"}
    assert "Predicted" in axes.get_xlabel()


@pytest.mark.parametrize("n_classes", [2, 10, 15, 30])
def test_counts_of_sixty_thousand_rows_stay_inside_their_cells(n_classes: int) -> None:
    labels, predicted = (np.repeat(part, 150) for part in answers(n_classes))
    figure = confusion_matrix(labels, predicted, [str(i) for i in range(n_classes)])
    figure.draw_without_rendering()
    (axes,) = figure.axes
    cell = axes.get_window_extent().width / n_classes
    assert max(text.get_window_extent().width for text in axes.texts) < cell


def test_samples_show_the_pixels_themselves(small_mnist: Dataset) -> None:
    split = small_mnist.train
    figure = sample_images(split.images[:12], [str(label) for label in split.labels[:12]])
    assert len(figure.axes) == 9
    for axes, image, label in zip(figure.axes, split.images, split.labels, strict=False):
        assert np.array_equal(axes.images[0].get_array(), image[..., 0])
        assert axes.images[0].get_clim() == (0, 255)
        assert axes.get_xlabel() == str(label)


def test_a_mistake_is_told_with_label_prediction_and_probability() -> None:
    figure = confident_mistakes(images(1, 3), ["four"], ["nine"], [0.973])
    assert figure.axes[0].get_xlabel() == "label four\npredicted nine\n97.3 % sure"


def test_no_mistakes_are_said_instead_of_an_empty_figure() -> None:
    assert "No mistakes" in mistakes(0).texts[0].get_text()


def test_reliability_leaves_out_empty_bins() -> None:
    figure = reliability_curve(bins_of(np.array([0, 1]), np.array([[0.9, 0.1], [0.95, 0.05]])))
    points = np.concatenate([dots.get_offsets() for dots in figure.axes[0].collections])
    assert np.isfinite(points).all()
    assert len(points) == 2


def test_the_shaded_parts_of_a_posterior_are_its_three_probabilities() -> None:
    row = verdict(mean=0.0015)
    axes = posteriors([row]).axes[0]
    (curve,) = [line for line in axes.lines if len(line.get_xdata()) > 2]
    x, y = curve.get_data()
    assert np.trapezoid(np.where(x > 0.1, y, 0), x) == pytest.approx(row["p_better"], abs=0.02)
    assert np.trapezoid(np.where(x < -0.1, y, 0), x) == pytest.approx(row["p_worse"], abs=0.02)
    edges = sorted(line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 2)
    assert edges == pytest.approx([-0.1, 0.1])


def test_only_certainty_is_called_100_percent() -> None:
    assert percent(0.9999999) == "> 99.9 %"
    assert percent(1.0) == "100 %"


def test_shortened_names_keep_both_ends_and_their_length() -> None:
    assert shortened(LONG, 12) == "a pho…he sea"
    assert shortened("seven", 12) == "seven"


def test_an_svg_is_the_same_twice_and_needs_nothing_from_outside() -> None:
    first, second = (to_svg(ODD_SHAPES["twelve mistakes"](), "mistakes") for _ in range(2))
    assert first == second
    assert first.startswith("<svg")
    assert "http" not in first
    targets = re.findall(r'(?:href="|url\()([^")]+)', first)
    assert targets
    assert all(target.startswith(("#", "data:image/png;base64,")) for target in targets)


def test_references_of_two_svgs_on_a_page_stay_apart() -> None:
    one, two = (to_svg(learning_curves(history(2, 3), name), name) for name in ("one", "two"))
    ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in (one, two)]
    assert ids[0]
    assert not ids[0] & ids[1]


def test_text_and_lines_of_an_svg_take_the_colours_of_the_page() -> None:
    svg = to_svg(accuracy_boxes(scores(2, 5)), "boxes")
    assert "var(--ink, " in svg
    assert "var(--line, " in svg


def test_a_hostile_name_stays_text_in_an_svg() -> None:
    hostile = "</text><script>x</script>"
    svg = to_svg(confusion_matrix(*answers(2), (hostile[:16], "$a_b$ & c")), "confusion")
    assert "<script" not in svg
    assert "</text><sc" not in svg
    assert "$a_b$ &amp; c" in svg


def test_a_png_is_on_white_and_large_enough_to_print(tmp_path: Path) -> None:
    save_png(ODD_SHAPES["boxes of one candidate"](), tmp_path / "figures" / "boxes.png")
    with Image.open(tmp_path / "figures" / "boxes.png") as png:
        assert png.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
        assert png.width >= 1000
    assert [p.name for p in (tmp_path / "figures").iterdir()] == ["boxes.png"]


def test_class_names_of_a_confusion_matrix_lie_flat_where_there_is_room():
    few, many = ("cross", "disc", "square", "triangle"), (*DIGITS[:9], "telephone")
    for names, rotation in ((few, 0), (many, 90)):
        figure = confusion_matrix(*answers(len(names)), names)
        assert {label.get_rotation() for label in figure.axes[0].get_xticklabels()} == {rotation}


def test_the_trend_marks_what_happened_where_it_happened() -> None:
    nights = [night(0), night(1), night(2, data_changed=True), night(3)]
    figure = champion_trend(nights, [by_hand(0.2), by_hand(-3)])
    (axes,) = figure.axes
    upright = [line for line in axes.get_lines() if line.get_linestyle() in ("--", ":")]
    assert [(line.get_linestyle(), round(line.get_xdata()[0])) for line in upright] == [
        ("--", 2),
        (":", 1),
    ]
    stars, crosses = axes.collections[-2:]
    assert stars.get_offsets()[:, 0].tolist() == [0]
    assert crosses.get_offsets()[:, 0].tolist() == [1, 2, 3]
    said = {text.get_text() for legend in figure.legends for text in legend.get_texts()}
    assert said == {
        "champion, 95 % interval",
        "challenger promoted",
        "challenger refused",
        "data changed",
        "champion changed by hand",
    }


def test_the_trend_names_only_what_happened() -> None:
    figure = champion_trend([night(0), night(1)])
    said = {text.get_text() for legend in figure.legends for text in legend.get_texts()}
    assert said == {"champion, 95 % interval", "challenger promoted", "challenger refused"}


def test_the_trend_has_a_gap_where_the_champion_was_not_trained() -> None:
    figure = champion_trend([night(0), night(1, champion_score=None), night(2)])
    drawn = np.asarray(figure.axes[0].containers[0].lines[0].get_ydata(), float)
    assert np.isnan(drawn).tolist() == [False, True, False]
    assert drawn[0] == pytest.approx(98.7)
