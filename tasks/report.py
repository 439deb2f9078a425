"""report: the page that people read in the morning, built from the files of a run.

It draws the figures and fills two templates that lie beside it, one for the browser and one in
Markdown; its trend is told by the runs before. It computes no score and takes no decision: those
are in the tables by then, so the report of an old run can be built again at any time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from prefect import task
from prefect.context import TaskRunContext

from nightfold import figures
from nightfold.dataset import DatasetHandle, Split
from nightfold.errors import DataRefused, UsageError
from nightfold.gate import OUTCOMES
from nightfold.history import History, Night
from nightfold.racing import rule_in_words
from nightfold.statistics import (
    Interval,
    mean_over_repeats,
    reliability_curve,
    score_interval,
)
from nightfold.store import Store, atomic_file
from nightfold.summary import CandidateFacts, Summary
from nightfold.validation import Check, ValidationReport

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from matplotlib.figure import Figure

SHOWN_MISTAKES = 12
"""Images in the figure of mistakes; three lines of four."""
SHOWN_VERDICTS = 6
"""Verdicts outside the fold; those about the best candidate come first and are always there."""
SHOWN_NIGHTS = 60
"""Nights in the trend, the newest; `nightfold history` has all."""
SHOWN_MIXED_UP = 10
"""Pairs of classes in the table of mistakes."""
TUTORIAL_EPOCHS = 10
"""Epochs of the published recipe; fewer are said on the page."""


@dataclass(frozen=True)
class Picture:
    """A figure on the page.

    Attributes
    ----------
    name : str
        Of the file ``figures/<name>.png``.
    title, caption : str
        What it shows; what to see in it.
    svg : str
        The figure as an element of the page; empty in a message without figures.
    """

    name: str
    title: str
    caption: str
    svg: Markup


@dataclass(frozen=True)
class RunFiles:
    """What a run left in its folder, read when asked for."""

    folder: Path

    @cached_property
    def summary(self) -> Summary:
        """The document people and programs read first."""
        return Summary.read(self._existing("summary.json").parent)

    @cached_property
    def validation(self) -> ValidationReport:
        """What the checks of the data found."""
        return ValidationReport.read(self._existing("validation.json").parent)

    @cached_property
    def best(self) -> CandidateFacts:
        """The candidate with the highest mean accuracy."""
        return next(c for c in self.summary.candidates if c.name == self.summary.best)

    def table(self, name: str, columns: list[str] | None = None) -> pd.DataFrame:
        """The table ``<name>.parquet``."""
        frame: pd.DataFrame = self._read(name, columns=columns).to_pandas()
        return frame

    def _read(self, name: str, **selection: Any) -> pa.Table:
        """The table ``<name>.parquet``, or what `pyarrow.parquet.read_table` selects of it."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self._existing(f"{name}.parquet")
        try:
            return pq.read_table(path, **selection)
        except (OSError, pa.ArrowException) as error:
            raise DataRefused(
                f"The table {path} cannot be read ({error}): run the same experiment again; "
                "finished folds are not trained anew."
            ) from error

    @cached_property
    def answers(self) -> Answers:
        """What the best candidate said about every row that it had not been trained on."""
        table = self._read(
            "predictions",
            columns=["row", "label", "predicted", "probabilities"],
            filters=[("candidate", "=", self.summary.best)],
        )
        probabilities = table["probabilities"].combine_chunks().flatten().to_numpy()
        row, label, predicted = (table[name].to_numpy() for name in table.column_names[:3])
        return Answers(row, label, predicted, probabilities.reshape(len(table), -1))

    @cached_property
    def images(self) -> Split | None:
        """The training split, or None if the snapshot is no longer on this machine."""
        facts = self.summary.dataset
        handle = DatasetHandle(
            path=facts.path,
            digest=facts.digest,
            name=facts.name,
            n_train=facts.n_train,
            n_test=facts.n_test,
        )
        try:
            return handle.open().train
        except DataRefused:
            return None

    @cached_property
    def history(self) -> History:
        """The nights up to this one on the same data set."""
        summary, root = self.summary, self.folder.resolve().parent.parent
        return History.read(Store(root), dataset=summary.dataset.name, until=summary.finished_at)

    @cached_property
    def nights(self) -> tuple[Night, ...]:
        """Those of the trend, oldest first; none if there are fewer than two."""
        nights = self.history.nights if self.summary.flow == "retrain" else ()
        return nights[-SHOWN_NIGHTS:] if len(nights) > 1 else ()

    @cached_property
    def verdicts(self) -> list[dict[str, Any]]:
        """What is known of every pair, those about the best candidate first, stopped ones last."""
        table = self.table("verdicts").astype(object)
        rows: list[dict[str, Any]] = table.where(table.notna(), None).to_dict("records")  # type: ignore[assignment]
        best = self.summary.best
        return sorted(
            rows,
            key=lambda v: (best not in (v["candidate_a"], v["candidate_b"]), _is_stopped(v)),
        )

    @property
    def shown_verdicts(self) -> int:
        """How many of them are not folded away; all about the best candidate are there."""
        return max(SHOWN_VERDICTS, len(self.summary.recipes) - 1)

    def _existing(self, name: str) -> Path:
        path = self.folder / name
        if not path.exists():
            raise UsageError(f"There is no {name} in {self.folder}: run the experiment again.")
        return path


@dataclass(frozen=True)
class Answers:
    """Out-of-fold predictions of one candidate; one entry, or one line of `probabilities`, each."""

    row: NDArray[np.int64]
    label: NDArray[np.int64]
    predicted: NDArray[np.int64]
    probabilities: NDArray[np.float32]

    @cached_property
    def confidence(self) -> NDArray[np.float32]:
        """Probability of each prediction."""
        confidence: NDArray[np.float32] = self.probabilities.max(axis=1)
        return confidence

    @cached_property
    def interval(self) -> Interval:
        """95 % interval of the accuracy; a row's score is its mean over repeats."""
        return score_interval(mean_over_repeats(self.row, self.label == self.predicted))

    @cached_property
    def mistakes(self) -> NDArray[np.int64]:
        """Positions of wrong predictions, surest first, each row once."""
        wrong = np.flatnonzero(self.label != self.predicted)
        surest = wrong[np.argsort(-self.confidence[wrong], kind="stable")]
        _, first = np.unique(self.row[surest], return_index=True)
        return surest[np.sort(first)]

    def mixed_up(self, class_names: tuple[str, ...]) -> list[MixedUp]:
        """The most frequent mistakes, at most `SHOWN_MIXED_UP`."""
        n = len(class_names)
        counts = np.bincount(self.label * n + self.predicted, minlength=n * n)
        of_class = counts.reshape(n, n).sum(axis=1)
        counts[:: n + 1] = 0
        most = [int(cell) for cell in np.argsort(-counts, kind="stable")[:SHOWN_MIXED_UP]]
        return [
            MixedUp(
                label=class_names[cell // n],
                predicted=class_names[cell % n],
                images=int(counts[cell]),
                share=float(counts[cell] / of_class[cell // n]),
            )
            for cell in most
            if counts[cell]
        ]


@dataclass(frozen=True)
class MixedUp:
    """How often one class was taken for another, and which part of the class that is."""

    label: str
    predicted: str
    images: int
    share: float


@task(name="report", task_run_name="write report")
def report(run_folder: str) -> None:
    """Build the report of a run and show its summary in the Prefect UI.

    Parameters
    ----------
    run_folder : str
        A folder ``artifacts/runs/<run_id>`` with tables, ``validation.json`` and ``summary.json``.

    Raises
    ------
    UsageError
        If a file of the run is missing.
    """
    build_report(Path(run_folder))
    if TaskRunContext.get() is not None:
        _show_in_prefect(RunFiles(Path(run_folder)))


def build_report(run_folder: Path) -> None:
    """Write ``figures/*.png``, ``report.md`` and ``report.html`` into the folder of a run.

    The same files give the same bytes. ``report.html`` needs no other file and no network.

    Parameters
    ----------
    run_folder : Path

    Raises
    ------
    UsageError
        If a file of the run is missing.
    """
    run = RunFiles(run_folder)
    pictures = _draw(run)
    for name in ("report.md", "report.html"):
        text = _render(f"{name}.jinja", run, pictures)
        with atomic_file(run_folder / name) as part:
            part.write_text(text, encoding="utf-8")


def _draw(run: RunFiles) -> dict[str, list[Picture]]:
    """The pictures of each section; a section without a picture has an empty list."""
    summary, answers = run.summary, run.answers
    scores, histories = run.table("scores"), run.table("histories")
    stopped = {facts.name for facts in summary.stopped}
    names = summary.dataset.class_names
    confusion = figures.confusion_matrix(answers.label, answers.predicted, names)
    reliability = figures.reliability_curve(reliability_curve(answers.label, answers.probabilities))
    seen = (
        "Every image was predicted by a model that had not seen it. Blue: right; orange: wrong, "
        "darker the larger the part of its class."
        + (" An image counts once in every repeat." if summary.plan.repeats > 1 else "")
    )
    pictures = {
        "boxes": [
            _picture(
                run,
                "accuracy_boxes",
                "Accuracy of every fold",
                "Box: quartiles and median. Whiskers: farthest fold within 1.5 box widths. "
                "Points: the folds."
                # Whoever was stopped is far behind: all others would be one line beside it.
                + (" Candidates that were stopped are left out." if summary.stopped else ""),
                figures.accuracy_boxes(scores[~scores["candidate"].isin(stopped)]),
            )
        ],
        "curves": [
            _picture(
                run,
                f"learning_curves_{candidate.name}",
                f"Learning curves of {candidate.name}",
                "",
                figures.learning_curves(
                    histories[histories["candidate"] == candidate.name], candidate.name
                ),
            )
            for candidate in summary.recipes
        ],
        "confusion": [
            _picture(run, "confusion_matrix", "Confusion matrix", seen, confusion),
            _picture(
                run,
                "reliability_curve",
                "Reliability",
                "On the dashed line the model is right as often as it says; below it, it is too "
                "sure of itself. Larger points hold more images.",
                reliability,
            ),
        ],
    }
    drawn = {"verdicts": _draw_posteriors(run), "trend": _draw_trend(run)}
    return {**pictures, **drawn, **_draw_images(run)}


def _draw_trend(run: RunFiles) -> list[Picture]:
    """The picture of the nights up to this one; none if it is the first."""
    if not run.nights:
        return []
    caption = (
        "Dots: the champion's recipe on the folds of each night, with the 95 % interval over "
        "images; it does not cover the choice of the seed. The other marks are the best candidate "
        "of the night and what became of it. Scores on both sides of a dashed line are of "
        "different data."
    )
    figure = figures.champion_trend(run.nights, run.history.changes)
    return [_picture(run, "champion_trend", "The champion, night by night", caption, figure)]


def _draw_posteriors(run: RunFiles) -> list[Picture]:
    """The posterior of every shown pair that has one."""
    shown = [v for v in run.verdicts[: run.shown_verdicts] if v["p_better"] is not None]
    if not shown:
        return []
    caption = (
        "How likely each true difference is, the second candidate minus the first. Blue: better; "
        "orange: worse; between the dashed lines the difference is too small to matter."
    )
    drawing = figures.posteriors(shown)
    return [_picture(run, "posteriors", "Where the true differences lie", caption, drawing)]


def _draw_images(run: RunFiles) -> dict[str, list[Picture]]:
    """The pictures that show images of the data set; none if the snapshot is gone."""
    if run.images is None:
        return {"mistakes": [], "samples": []}
    names, answers, train = run.summary.dataset.class_names, run.answers, run.images
    shown = answers.mistakes[:SHOWN_MISTAKES]
    mistakes = figures.confident_mistakes(
        train.images[answers.row[shown]],
        [names[label] for label in answers.label[shown]],
        [names[label] for label in answers.predicted[shown]],
        answers.confidence[shown].tolist(),
    )
    samples = figures.sample_images(train.images[:9], [names[label] for label in train.labels[:9]])
    total = len(answers.mistakes)
    caption = (
        f"The {len(shown)} mistakes that {run.summary.best} was surest of, out of {total:,} images "
        "predicted wrong. Wrong labels show up here first."
        if total
        else f"{run.summary.best} predicted every image right."
    )
    return {
        "mistakes": [
            _picture(run, "confident_mistakes", "Most confident mistakes", caption, mistakes)
        ],
        "samples": [
            _picture(run, "sample_images", "First images of the training split", "", samples)
        ],
    }


def _picture(run: RunFiles, name: str, title: str, caption: str, figure: Figure) -> Picture:
    from nightfold.figures import save_png, to_svg

    save_png(figure, run.folder / "figures" / f"{name}.png")
    # matplotlib escapes the text inside, so the element is safe to put into the page as it is.
    return Picture(name, title, caption, Markup(to_svg(figure, name)))


def _render(template: str, run: RunFiles, pictures: Mapping[str, list[Picture]]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=lambda name: name is not None and "html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "percent": lambda fraction: f"{100 * fraction:.3f}",
        "points": lambda difference: f"{100 * difference:+.3f}".replace("-", "\N{MINUS SIGN}"),
        "chance": chance,
        "count": lambda number: f"{number:,}",
        "seconds": lambda seconds: f"{seconds:,.1f}",
        "duration": duration,
        "size": size,
        "cell": one_line,
        "moment": lambda moment: f"{moment:%Y-%m-%d %H:%M} UTC",
    }
    return environment.get_template(template).render(_context(run), pictures=pictures)


def _context(run: RunFiles) -> dict[str, Any]:
    summary, checks = run.summary, run.validation.checks
    columns = ["candidate", "repeat", "fold", "accuracy", "loss", "epochs", "train_seconds"]
    return {
        "summary": summary,
        "best": run.best,
        "outcome": OUTCOMES[summary.promotion.decided].capitalize() if summary.promotion else "",
        "outcomes": OUTCOMES,
        "headline": headline(summary),
        "folds": run.table("scores", columns).to_dict("records"),
        "racing": rule_in_words(summary.racing) if summary.racing else "",
        "all_folds": summary.plan.folds * summary.plan.repeats,
        "verdicts": run.verdicts,
        "shown_verdicts": run.shown_verdicts,
        "checks": checks,
        "failed": sorted((c for c in checks if not c.passed), key=_by_severity),
        # Only of the data that the recipe was published with there are scores to expect.
        "fewer_epochs": summary.dataset.name == "mnist"
        and max(c.epochs for c in summary.recipes) < TUTORIAL_EPOCHS,
        "tutorial_epochs": TUTORIAL_EPOCHS,
        "interval": run.answers.interval,
        "mixed_up": run.answers.mixed_up(summary.dataset.class_names),
        "images_gone": run.images is None,
        "nights": run.nights,
        "left_out": len(run.history.left_out),
    }


def _is_stopped(verdict: Mapping[str, Any]) -> bool:
    return bool(verdict["verdict"] == "stopped")


def _by_severity(check: Check) -> int:
    return ("critical", "warning", "info").index(check.severity)


def headline(summary: Summary) -> str:
    """What came out of a run, in one plain sentence.

    Parameters
    ----------
    summary : Summary

    Returns
    -------
    str
        Names the best candidate, its accuracy, the hold-out accuracy if there is one, and what
        became of the champion.
    """
    best = next(c for c in summary.candidates if c.name == summary.best)
    n = sum(facts.name != summary.guest for facts in summary.recipes)
    scored = f"{100 * best.accuracy_mean:.3f} % accuracy in cross-validation"
    place = f"with {scored}" if n == 1 else f"best of {n} candidates with {scored}"
    if summary.final is None:
        return (
            f"{best.name} came out {place}; this run fitted no final model and left the champion "
            "as it is."
        )
    tested = (
        f"{100 * summary.final.holdout_accuracy:.3f} % on the "
        f"{summary.final.holdout_rows:,} images held out"
    )
    promotion = summary.promotion
    if promotion is not None and promotion.promoted:
        return f"{best.name} is the new champion: {place} and {tested}."
    outcome = "but it was not promoted" if promotion is not None else "and was not up for promotion"
    stays = "; the champion stays" if promotion is not None and promotion.champion else ""
    return f"{best.name} came out {place} and {tested}, {outcome}{stays}."


def duration(seconds: float) -> str:
    """A time span for people.

    Examples
    --------
    >>> duration(4.25), duration(843), duration(7500)
    ('4.2 s', '14 min 3 s', '2 h 5 min')
    """
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def size(number: int) -> str:
    """Bytes for people.

    Examples
    --------
    >>> size(950), size(12_340_000), size(73_000_000_000)
    ('0.0 MB', '12.3 MB', '73.0 GB')
    """
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.1f} MB"


def chance(probability: float | None) -> str:
    """A probability in three decimals; ``n/a`` where there is none.

    Examples
    --------
    >>> chance(0.0312), chance(0.00001), chance(None)
    ('0.031', '< 0.001', 'n/a')
    """
    if probability is None:
        return "n/a"
    return "< 0.001" if probability < 0.001 else f"{probability:.3f}"


def one_line(text: object) -> str:
    r"""`text` fit for a line or a table cell of Markdown, in which it means nothing but itself.

    Examples
    --------
    >>> one_line("a|b <img>")
    'a\\|b &lt;img&gt;'
    """
    return re.sub(r"([\\`*\[\]|])", r"\\\1", escape(" ".join(str(text).split()), quote=False))


def _show_in_prefect(run: RunFiles) -> None:
    from prefect.artifacts import create_markdown_artifact, create_table_artifact

    rows = [
        {
            "candidate": facts.name,
            "mean accuracy (%)": f"{100 * facts.accuracy_mean:.3f}",
            "standard deviation (points)": f"{100 * facts.accuracy_std:.3f}",
            "n": facts.n,
        }
        for facts in run.summary.candidates
    ] + [
        {
            "candidate": facts.name,
            "mean accuracy (%)": "stopped",
            "standard deviation (points)": "",
            "n": facts.n,
        }
        for facts in run.summary.stopped
    ]
    # The report is on the disk already: a server that is away must not fail the run.
    with suppress(Exception):
        create_markdown_artifact(key="report", markdown=_render("report.md.jinja", run, {}))
        create_table_artifact(key="scores", table=rows, description=headline(run.summary))
