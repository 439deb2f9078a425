"""Figures: one pure function per figure of the report, from arrays or table rows to a Figure.

Nothing here reads or chooses data, and nothing is shown on a screen: figures are made with
matplotlib's object interface, so no window system or global state is involved. Colours stay apart
for colour-blind readers (blue against orange, never red against green) and carry over to a dark
page, where `to_svg` leaves the colour of text and lines to the page.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np
from numpy.typing import NDArray

from nightfold.statistics import LEVEL, Reliability
from nightfold.store import atomic_file

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nightfold.history import Change, Night, Score

TRAIN = "#2a78bd"
VALIDATION = "#dd6b10"
OUTCOMES = {
    "promote": ("challenger promoted", "*", 150, TRAIN),
    "keep": ("challenger no better", "o", 52, "none"),
    "undecided": ("undecided", "s", 46, "none"),
    "refuse": ("challenger refused", "X", 60, VALIDATION),
}
"""Of a night: what the legend says, the mark, its size and what fills it."""
VERDICT_WORDS = ("worse", "equivalent", "better")
INK = "#1f2329"
LINE = "#d3d7dd"

_STYLE = {
    "font.size": 10.0,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11.0,
    "axes.titleweight": "bold",
    "axes.titlepad": 8.0,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "axes.formatter.useoffset": False,
}

P = ParamSpec("P")


def _styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Give `draw` the style of the report, whatever the reader's matplotlibrc says."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        import matplotlib as mpl

        with mpl.rc_context({**mpl.rcParamsDefault, **_STYLE, "backend": mpl.rcParams["backend"]}):
            return draw(*args, **kwargs)

    return drawn


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def shortened(name: str, length: int) -> str:
    """The name with its middle left out if it is longer than `length` characters.

    Beginning and end stay, because names of a family differ at either.

    Examples
    --------
    >>> shortened("a photograph of a very tall building", 22)
    'a photogra…ll building'
    """
    if len(name) <= length:
        return name
    head = (length - 1) // 2
    return f"{name[:head]}…{name[len(name) - (length - 1 - head) :]}"


@_styled
def sample_images(images: NDArray[np.uint8], labels: Sequence[str]) -> Figure:
    """Nine images of the training split, three by three, each with its label.

    Parameters
    ----------
    images : ndarray of uint8, shape (n, height, width, channels)
        One channel (grey) or three (red, green, blue); the first nine are drawn.
    labels : sequence of str
        Class name of each image.

    Returns
    -------
    matplotlib.figure.Figure
    """
    return _image_grid(images[:9], [shortened(label, 14) for label in labels[:9]], columns=3)


def _image_grid(images: NDArray[np.uint8], captions: Sequence[str], columns: int) -> Figure:
    lines = -(-len(images) // columns)
    width = 1.5
    height, caption = width * images.shape[1] / images.shape[2], 0.16 + 0.18 * _lines(captions)
    figure = _figure(columns * width, lines * (height + caption))
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in grid[len(images) :]:
        axes.set_axis_off()
    for axes, image, text in zip(grid, images, captions, strict=False):
        _draw_image(axes, image)
        axes.set_xlabel(text, size=9 if "\n" in text else 11, linespacing=1.3)
    return figure


def _lines(captions: Sequence[str]) -> int:
    return max(text.count("\n") + 1 for text in captions)


def _draw_image(axes: Axes, image: NDArray[np.uint8]) -> None:
    grey = image.shape[-1] == 1
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    # "none" keeps the image's own pixels in an SVG file; they stay sharp at every size.
    axes.imshow(
        image[..., 0] if grey else image, cmap="gray", vmin=0, vmax=255, interpolation="none"
    )


@_styled
def learning_curves(history: pd.DataFrame, candidate: str) -> Figure:
    """Loss above and accuracy below over epochs, one line a fold: training and validation.

    Parameters
    ----------
    history : DataFrame
        The candidate's rows of ``histories.parquet``: repeat, fold, epoch, train_loss,
        train_accuracy, validation_loss, validation_accuracy.
    candidate : str
        Its name, for the title.

    Returns
    -------
    matplotlib.figure.Figure

    Notes
    -----
    The form is the tutorial's `summarize_diagnostics`. A fold of a single epoch is a point.
    """
    from matplotlib.ticker import MaxNLocator

    figure = _figure(4.0, 5.0)
    folds = [rows.sort_values("epoch") for _, rows in history.groupby(["repeat", "fold"])]
    longest = max((len(rows) for rows in folds), default=1)
    # Many folds overlap: thinner and fainter lines let the bundle show its shape.
    few = len(folds) <= 10
    look: dict[str, Any] = {"linewidth": 1.4 if few else 0.8, "alpha": 0.9 if few else 0.4}
    if longest <= 20:
        look |= {"marker": "o", "markersize": 3.5 if few else 2.5}
    loss, accuracy = figure.subplots(2, 1, sharex=True)
    for axes, metric, scale in ((loss, "loss", 1), (accuracy, "accuracy", 100)):
        for part, colour in (("train", TRAIN), ("validation", VALIDATION)):
            for position, rows in enumerate(folds):
                axes.plot(
                    rows["epoch"],
                    scale * rows[f"{part}_{metric}"],
                    color=colour,
                    label=None if position else {"train": "training"}.get(part, part),
                    **look,
                )
    loss.set_title(f"{shortened(candidate, 24)}, {_count(len(folds), 'fold')}")
    loss.set_ylabel("Loss (cross-entropy, nats)")
    accuracy.set_ylabel("Accuracy (%)")
    accuracy.set_xlabel("Epoch")
    accuracy.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if longest == 1:
        accuracy.set_xlim(0.5, 1.5)
        accuracy.set_xticks([1])
    # Outside, because no corner stays free of lines for every candidate.
    lines, names = loss.get_legend_handles_labels()
    legend = figure.legend(lines, names, loc="outside lower center", ncols=2)
    for line in legend.get_lines():
        line.set_alpha(1)
    return figure


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@_styled
def accuracy_boxes(scores: pd.DataFrame) -> Figure:
    """Box and whiskers of the fold accuracies of each candidate, with every fold as a point.

    Parameters
    ----------
    scores : DataFrame
        Rows of ``scores.parquet``: candidate and accuracy (fraction). Candidates are drawn from
        top to bottom in the order in which they first appear.

    Returns
    -------
    matplotlib.figure.Figure

    Notes
    -----
    Box: quartiles and median; whiskers: the farthest fold within 1.5 times the height of the box.
    """
    names = list(dict.fromkeys(scores["candidate"]))
    values = [
        100 * scores.loc[scores["candidate"] == name, "accuracy"].to_numpy() for name in names
    ]
    figure = _figure(5.8, 1.0 + 0.5 * len(names))
    axes = figure.subplots()
    positions = np.arange(len(names))[::-1]
    axes.boxplot(
        values,
        orientation="horizontal",
        positions=positions,
        widths=0.52,
        showfliers=False,
        patch_artist=True,
        boxprops={"facecolor": TRAIN + "38", "edgecolor": TRAIN},
        medianprops={"color": TRAIN, "linewidth": 2.2},
        whiskerprops={"color": TRAIN},
        capprops={"color": TRAIN},
    )
    for position, folds in zip(positions, values, strict=True):
        # A fixed spread keeps folds with equal scores apart and the figure the same every time.
        spread = 0.16 * np.sin(2.4 * np.arange(len(folds)))
        axes.scatter(
            folds, position + spread, s=22, color=VALIDATION, alpha=0.85, linewidths=0, zorder=3
        )
    axes.set_yticks(positions, [shortened(name, 22) for name in names])
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("Accuracy (%), one point per fold")
    axes.set_ylabel("Candidate")
    return figure


@_styled
def confusion_matrix(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], class_names: Sequence[str]
) -> Figure:
    """Counts of rows by true class (down) and predicted class (across).

    Parameters
    ----------
    labels, predicted : ndarray of int64, shape (n,)
        Class indices.
    class_names : sequence of str

    Returns
    -------
    matplotlib.figure.Figure

    Notes
    -----
    Right predictions are blue. Mistakes are orange, darker the larger their part of the class, on a
    scale of their own: otherwise a good model's few mistakes would all look white.
    """
    n = len(class_names)
    counts = np.bincount(labels * n + predicted, minlength=n * n).reshape(n, n)
    names = [shortened(name, 18) for name in class_names]
    longest = max(map(len, names))
    margin = 0.75 + 0.085 * longest
    cell = max(0.46 if n <= 12 else 0.4, 0.085 * longest)
    upright = n * cell + margin <= 6
    if not upright:
        cell = 0.46 if n <= 12 else 0.4
    side = max(3.2, n * cell + margin)
    figure = _figure(side, side)
    axes = figure.subplots()
    axes.pcolormesh(
        np.arange(n + 1) - 0.5,
        np.arange(n + 1) - 0.5,
        _confusion_colours(counts),
        edgecolors="none",
    )
    widest = len(f"{counts.max():,}")
    size = min(9.5, cell * 72 / (0.68 * max(widest, 3)))
    for row, column in zip(*np.nonzero(counts), strict=True):
        axes.text(
            column,
            row,
            f"{counts[row, column]:,}",
            ha="center",
            va="center_baseline",
            size=size,
            weight="bold" if row == column else "normal",
        )
    axes.set(aspect="equal", xlim=(-0.5, n - 0.5), ylim=(n - 0.5, -0.5))
    axes.set_xticks(range(n), names, rotation=0 if upright else 90)
    axes.set_yticks(range(n), names)
    axes.set_xticks(np.arange(n + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(n + 1) - 0.5, minor=True)
    axes.grid(visible=False)
    axes.grid(which="minor")
    axes.tick_params(which="both", length=0)
    axes.set_xlabel("Predicted class (number of images)")
    axes.set_ylabel("True class")
    return figure


def _confusion_colours(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Colour of each cell, shape (n, n, 4); see-through, so it suits a light and a dark page."""
    from matplotlib.colors import to_rgb

    n = len(counts)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    right = np.eye(n, dtype=bool)
    mistakes = np.where(right, 0, share)
    colours = np.where(right[..., None], [*to_rgb(TRAIN), 0.0], [*to_rgb(VALIDATION), 0.0])
    wrong = mistakes / max(mistakes.max(), 1e-12)
    colours[..., 3] = np.where(
        right, 0.1 + 0.4 * share, np.where(counts > 0, 0.06, 0) + 0.6 * wrong
    )
    return colours


@_styled
def confident_mistakes(
    images: NDArray[np.uint8],
    labels: Sequence[str],
    predicted: Sequence[str],
    probabilities: Sequence[float],
) -> Figure:
    """Images predicted wrong, each with its label, the prediction and how sure the model was.

    Parameters
    ----------
    images : ndarray of uint8, shape (n, height, width, channels)
        In the order to draw them; none at all gives a figure that says so.
    labels, predicted : sequence of str
        Class names.
    probabilities : sequence of float
        Probability of the predicted class, 0 to 1.

    Returns
    -------
    matplotlib.figure.Figure
    """
    if not len(images):
        figure = _figure(5.6, 1.0)
        figure.text(0.5, 0.5, "No mistakes: every image was predicted right.", ha="center")
        return figure
    captions = [
        f"label {shortened(label, 14)}\npredicted {shortened(wrong, 11)}\n{percent(sure)} sure"
        for label, wrong, sure in zip(labels, predicted, probabilities, strict=True)
    ]
    return _image_grid(images, captions, columns=min(4, len(images)))


def percent(probability: float) -> str:
    """A probability for people, rounded down, so that no limit is reached by rounding.

    Examples
    --------
    >>> percent(0.99996), percent(1.0), percent(0.731), percent(0.9499)
    ('> 99.9 %', '100 %', '73.1 %', '94.9 %')
    """
    if 0.999 < probability < 1:
        return "> 99.9 %"
    if probability in (0, 1):
        return f"{100 * probability:.0f} %"
    return f"{np.floor(round(1000 * probability, 6)) / 10:.1f} %"


@_styled
def reliability_curve(curve: Reliability) -> Figure:
    """How often predictions were right, against how sure the model was of them.

    Parameters
    ----------
    curve : Reliability
        From `nightfold.statistics.reliability_curve`.

    Returns
    -------
    matplotlib.figure.Figure

    Notes
    -----
    A point is a bin, larger the more images it holds; on the diagonal the model is as often right
    as it says.
    """
    filled = curve.count > 0
    sure, right, rows = curve.confidence[filled], curve.accuracy[filled], curve.count[filled]
    figure = _figure(5.0, 4.6)
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], color=INK, linewidth=0.9, linestyle=(0, (4, 4)))
    axes.plot(100 * sure, 100 * right, color=TRAIN, linewidth=1.2)
    sizes = 18 + 140 * np.sqrt(rows / rows.max())
    axes.scatter(100 * sure, 100 * right, s=sizes, color=TRAIN, alpha=0.75, linewidths=0, zorder=3)
    axes.set(aspect="equal", xlim=(-4, 104), ylim=(-4, 104))
    axes.set_xlabel("Probability the model gave its prediction (%)")
    axes.set_ylabel("Predictions that were right (%)")
    return figure


@_styled
def posteriors(verdicts: Sequence[Mapping[str, Any]]) -> Figure:
    """Where the true difference of each pair lies, against what makes no practical difference.

    Parameters
    ----------
    verdicts : sequence of mapping
        Rows of `nightfold.tables.VERDICTS` that have a posterior, at least one; drawn from top to
        bottom, the second candidate of a pair minus the first.

    Returns
    -------
    matplotlib.figure.Figure

    Notes
    -----
    The curve is the Student distribution of `nightfold.statistics.bayesian_correlated_t`, found
    again from its 95 % interval. Blue: the second is better; orange: worse; between the dashed
    lines, grey: the region of practical equivalence.
    """
    figure = _figure(6.4, 0.9 + 1.25 * len(verdicts))
    rows = figure.subplots(len(verdicts), sharex=True, squeeze=False)[:, 0]
    curves = [_posterior(verdict) for verdict in verdicts]
    widest = max(max(abs(m - 4.5 * s), abs(m + 4.5 * s)) for _, m, s in curves)
    reach = max(widest, 300 * max(verdict["rope"] for verdict in verdicts))
    x = np.linspace(-reach, reach, 801)
    for axes, verdict, (density, _, _) in zip(rows, verdicts, curves, strict=True):
        rope, y = 100 * verdict["rope"], density(x)
        axes.axvspan(-rope, rope, color=LINE, alpha=0.55, linewidth=0)
        for edge in (-rope, rope):
            axes.axvline(edge, color=INK, linewidth=0.8, linestyle=(0, (4, 4)))
        axes.fill_between(x, y, where=x >= rope, color=TRAIN, alpha=0.55, linewidth=0)
        axes.fill_between(x, y, where=x <= -rope, color=VALIDATION, alpha=0.55, linewidth=0)
        axes.plot(x, y, color=INK, linewidth=1.2)
        axes.set(yticks=[], ylim=(0, None), ylabel="Density")
        pair = (shortened(verdict[f"candidate_{side}"], 18) for side in "ba")
        axes.set_title(
            "{} against {}: ".format(*pair)
            + ", ".join(f"{w} {percent(verdict[f'p_{w}'])}" for w in VERDICT_WORDS),
            fontsize=9,
        )
    rows[-1].set_xlabel("True difference of accuracy (points)")
    return figure


def _posterior(verdict: Mapping[str, Any]) -> tuple[Callable[[Any], Any], float, float]:
    """Density in points, its location and its scale, from the interval of a verdict."""
    from scipy.special import stdtrit
    from scipy.stats import t as student

    freedom, mean = verdict["n_pairs"] - 1, 100 * verdict["mean_difference"]
    half = 100 * (verdict["interval_high"] - verdict["interval_low"]) / 2
    # No spread at all is still drawn as a narrow peak.
    scale = max(half / float(stdtrit(freedom, (1 + LEVEL) / 2)), 1e-6)
    return student(freedom, mean, scale).pdf, mean, scale


@_styled
def champion_trend(nights: Sequence[Night], changes: Sequence[Change] = ()) -> Figure:
    """The champion's accuracy night by night, with what became of challengers.

    Parameters
    ----------
    nights : sequence of Night
        At least one, oldest first; drawn one step apart, whatever time was between them.
    changes : sequence of Change
        Changes of the champion by hand; those before the first night are left out.

    Returns
    -------
    matplotlib.figure.Figure

    Notes
    -----
    Shapes and lines differ as well as colours, so the figure can be read in grey.
    """
    figure = _figure(9.0, 3.6)
    axes = figure.subplots()
    _trend_lines(axes, nights, changes)
    scores = [night.champion_score for night in nights]
    axes.errorbar(
        range(len(nights)),
        # A night that did not train the champion's recipe leaves a gap.
        [100 * score.accuracy if score else np.nan for score in scores],
        yerr=100 * np.array([_reach(score) for score in scores]).T,
        color=TRAIN,
        marker="o",
        markersize=4,
        linewidth=1.4,
        elinewidth=1,
        capsize=3 if len(nights) <= 40 else 0,
        label="champion, 95 % interval",
    )
    for outcome, (label, marker, size, fill) in OUTCOMES.items():
        places = [x for x, night in enumerate(nights) if night.outcome == outcome]
        if places:
            axes.scatter(
                places,
                [100 * nights[x].challenger.accuracy for x in places],
                s=size,
                marker=marker,
                facecolors=fill,
                edgecolors=TRAIN if outcome == "promote" else VALIDATION,
                linewidths=1.5,
                zorder=3,
                label=label,
            )
    shown = range(len(nights) - 1, -1, -math.ceil(len(nights) / 9))
    days = [nights[x].started_at for x in shown]
    form = "%m-%d" if len({day.date() for day in days}) == len(days) else "%m-%d %H:%M"
    axes.set_xticks(shown, [f"{day:{form}}" for day in days])
    axes.set_xlim(-0.6, len(nights) - 0.4)
    axes.set_xlabel("Night (month-day of its start, UTC)")
    axes.set_ylabel("Cross-validated accuracy (%)")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=3)
    return figure


def _trend_lines(axes: Axes, nights: Sequence[Night], changes: Sequence[Change]) -> None:
    """Upright lines between the nights where data or champion changed."""
    starts = [night.started_at for night in nights]
    by_hand = [sum(start < change.at for start in starts) for change in changes]
    new_data = [x for x, night in enumerate(nights) if night.data_changed]
    for places, style, label in (
        (new_data, "dashed", "data changed"),
        ([x for x in by_hand if x], "dotted", "champion changed by hand"),
    ):
        for position, x in enumerate(places):
            # Side by side if both happened between the same nights.
            place = x - 0.5 + (0.0 if style == "dashed" else min(0.3, 0.008 * len(nights)))
            axes.axvline(
                place,
                color=INK,
                linewidth=1.1 if style == "dashed" else 1.6,
                linestyle=style,
                label=None if position else label,
            )


def _reach(score: Score | None) -> tuple[float, float]:
    """How far the interval reaches down and up; not at all where none was kept."""
    if score is None or score.low is None or score.high is None:
        return 0.0, 0.0
    return score.accuracy - score.low, score.high - score.accuracy


def save_png(figure: Figure, path: Path) -> None:
    """Write the figure as PNG on white, 200 dots per inch, atomically."""
    with atomic_file(path) as part:
        figure.savefig(part, format="png", dpi=200, facecolor="white")


def to_svg(figure: Figure, name: str) -> str:
    """The figure as an ``<svg>`` element to put into an HTML page, the same bytes every time.

    Text stays text, on no background, and takes its colours from the page's custom properties
    ``--ink`` and ``--line``. Nothing in it refers to another file or site.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    name : str
        Unique on the page; keeps the element's internal references apart from other figures'.
    """
    import matplotlib as mpl

    buffer = io.StringIO()
    no_metadata: dict[str, Any] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    text = buffer.getvalue()
    svg = text[text.index("<svg") :]
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = svg.replace(INK, f"var(--ink, {INK})").replace(LINE, f"var(--line, {LINE})")
    used = set(re.findall(r'(?:url\(#|href="#)([\w-]+)', svg))
    return re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", svg)
