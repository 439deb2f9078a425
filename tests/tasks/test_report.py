"""What the report says, from run folders whose models were really trained on handwritten digits."""

import json
import re
import shutil
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nightfold.dataset import Dataset, Split
from nightfold.errors import DataRefused, UsageError
from nightfold.experiment import Candidate, RacingChoice, load_experiment
from nightfold.gate import Comparison, Evidence, decide
from nightfold.store import Store
from nightfold.summary import (
    CandidateFacts,
    DatasetFacts,
    FinalFacts,
    PlanFacts,
    PromotionFacts,
    Summary,
)
from nightfold.tables import (
    FOLDPLAN,
    HISTORIES,
    SCORES,
    VERDICTS,
    build_table,
    predictions_schema,
    write_table,
)
from nightfold.validation import Check, RowName, ValidationReport
from tasks.report import (
    Answers,
    RunFiles,
    build_report,
    duration,
    headline,
    one_line,
    report,
)

RUN_ID = "20261121-020000-1a2b3c"
CANDIDATES = {"baseline": 1.0, "deep": 0.001}
"""Name and strength of regularisation of each model."""
STARTED = datetime(2026, 11, 21, 2, tzinfo=UTC)


class RunBuilder:
    """Writes a run folder as the pipeline does, with linear models in the place of networks.

    Every fold of every candidate is fitted on the other folds and scored on its own, so scores,
    histories and out-of-fold probabilities belong together.
    """

    def __init__(
        self,
        artifacts: Path,
        splits: tuple[Split, Split],
        *,
        class_names: tuple[str, ...] = tuple("0123456789"),
        candidates: dict[str, float] | None = None,
        folds: int = 5,
        epochs: int = 3,
        perfect: bool = False,
    ) -> None:
        self.store = Store(artifacts)
        self.folder = self.store.run(RUN_ID)
        self.name = "mnist"
        self.train, self.test = splits
        self.candidates = candidates or CANDIDATES
        self.folds, self.epochs, self.perfect = folds, epochs, perfect
        self.dataset = Dataset.write(
            self.store.datasets,
            name="mnist",
            origin="mnist",
            class_names=class_names,
            train=self.train,
            test=self.test,
        )
        self.fold_of = np.random.default_rng(1).permutation(len(self.train)) % folds + 1
        self.tables: dict[str, list[dict[str, Any]]] = {
            "scores": [],
            "histories": [],
            "predictions": [],
            "verdicts": [],
            "foldplan": [
                {"repeat": 1, "row": row, "fold": int(fold)}
                for row, fold in enumerate(self.fold_of)
            ],
        }

    def write(self, **changes: Any) -> Path:
        """Fill the run folder; `changes` replace fields of the summary."""
        for name, alpha in self.candidates.items():
            for fold in range(1, self.folds + 1):
                self._fit(name, alpha, fold)
        names = list(self.candidates)
        self.tables["verdicts"] = [
            self._verdict(a, b) for i, a in enumerate(names) for b in names[i + 1 :]
        ]
        schemas = {
            "scores": SCORES,
            "histories": HISTORIES,
            "verdicts": VERDICTS,
            "foldplan": FOLDPLAN,
            "predictions": predictions_schema(self.dataset.n_classes),
        }
        for table, rows in self.tables.items():
            write_table(
                self.folder / f"{table}.parquet", build_table(rows, schemas[table]), name=table
            )
        self._validation().write(self.folder)
        self.summary(**changes).write(self.folder)
        return self.folder

    def _fit(self, name: str, alpha: float, fold: int) -> None:
        from sklearn.linear_model import SGDClassifier
        from sklearn.metrics import accuracy_score, log_loss

        classes = np.arange(self.dataset.n_classes)
        # Every second pixel is enough to learn from and four times as quick.
        pixels = self.train.images[:, ::2, ::2].reshape(len(self.train), -1) / 255
        scored = self.fold_of == fold
        sides = {"train": ~scored, "validation": scored}
        model = SGDClassifier(loss="log_loss", alpha=alpha, random_state=fold)
        for epoch in range(1, self.epochs + 1):
            model.partial_fit(pixels[~scored], self.train.labels[~scored], classes)
            row = {"run_id": RUN_ID, "candidate": name, "repeat": 1, "fold": fold, "epoch": epoch}
            for side, rows in sides.items():
                said = np.clip(model.predict_proba(pixels[rows]), 1e-7, 1)
                said /= said.sum(axis=1, keepdims=True)
                truth = self.train.labels[rows]
                row[f"{side}_loss"] = float(log_loss(truth, said, labels=classes))
                row[f"{side}_accuracy"] = float(accuracy_score(truth, said.argmax(axis=1)))
            self.tables["histories"].append({**row, "learning_rate": 0.01, "seconds": 0.8})
        if self.perfect:
            said = np.eye(len(classes))[truth]
        self.tables["scores"].append(self._score(name, fold, truth, said))
        for position, label, odds in zip(np.flatnonzero(scored), truth, said, strict=True):
            self.tables["predictions"].append(
                {
                    "run_id": RUN_ID,
                    "candidate": name,
                    "repeat": 1,
                    "fold": fold,
                    "row": int(position),
                    "row_digest": self.train.row_digests[position],
                    "label": int(label),
                    "predicted": int(odds.argmax()),
                    "probabilities": odds.tolist(),
                }
            )

    def _score(self, name: str, fold: int, truth: Any, said: Any) -> dict[str, Any]:
        loss = float(-np.log(said[np.arange(len(truth)), truth] + 1e-12).mean())
        right = float((said.argmax(axis=1) == truth).mean())
        return {
            "run_id": RUN_ID,
            "run_date": STARTED.date(),
            "dataset": "mnist",
            "dataset_digest": self.dataset.digest,
            "plan_digest": "c" * 64,
            "candidate": name,
            "candidate_digest": "b" * 64,
            "architecture": name,
            "scaling": "normalize",
            "repeat": 1,
            "fold": fold,
            "seed": 1,
            "n_train": len(self.train) - len(truth),
            "n_test": len(truth),
            "accuracy": right,
            "loss": loss,
            "log_loss": loss,
            "brier": 0.02,
            "ece": 0.01,
            "macro_f1": right,
            "epochs": self.epochs,
            "train_seconds": 2.4,
            "images_per_second": 15_000.0,
            "peak_rss_bytes": 700_000_000,
            "parameters": 542_230,
            "started_at": STARTED,
            "finished_at": STARTED + timedelta(seconds=3),
            "host": "night-1",
            "code_version": "0.1.0",
            "tensorflow_version": "2.21.0",
            "keras_version": "3.15.1",
        }

    def accuracies(self, name: str) -> list[float]:
        return [row["accuracy"] for row in self.tables["scores"] if row["candidate"] == name]

    def _verdict(self, a: str, b: str) -> dict[str, Any]:
        difference = np.subtract(self.accuracies(b), self.accuracies(a))
        mean = float(difference.mean())
        word = "better" if mean > 0.01 else "undecided"
        return {
            "run_id": RUN_ID,
            "plan_digest": "c" * 64,
            "candidate_a": a,
            "candidate_b": b,
            "metric": "accuracy",
            "n_pairs": len(difference),
            "mean_difference": mean,
            "interval_low": mean - 0.01,
            "interval_high": mean + 0.01,
            "t_corrected": 3.2,
            "p_corrected": 0.01,
            "p_holm": 0.02,
            "rope": 0.001,
            "p_worse": 0.0002,
            "p_equivalent": 0.0218,
            "p_better": 0.978,
            "mcnemar_p": None,
            "verdict": word,
            "sentence": f"{b} against {a}: {word}, {100 * mean:+.2f} points.",
        }

    def _validation(self) -> ValidationReport:
        checks = [
            Check(
                name=f"{name}_{split}",
                split=split,
                sentence=sentence,
                severity=severity,
                passed=True,
                observed=observed,
            )
            for split in ("train", "test")
            for name, sentence, severity, observed in (
                ("dtype", "Images are raw uint8 in 0..255.", "critical", "uint8"),
                ("labels", "Every row has a label that is a class.", "critical", "0 without"),
                ("finite", "Every pixel is a finite number.", "critical", "0 rows with others"),
                ("balance", "No class is far from its share.", "warning", "0.90 to 1.12 times"),
            )
        ]
        twins = Check(
            name="duplicates",
            split="train",
            sentence="2 rows have the same pixels as another row of the split",
            remedy="delete one of each pair, or set plan.duplicates to 'together'",
            severity="warning",
            passed=False,
            observed=f"2 of {len(self.train)} rows",
            rows=(RowName(index=17, digest="0a1b2c3d4e5f"), RowName(index=203, digest="0a1b2c3d")),
        )
        return ValidationReport(
            dataset="mnist", digest=self.dataset.digest, class_rows={}, checks=(*checks, twins)
        )

    def summary(self, **changes: Any) -> Summary:
        """The summary of the rows so far."""
        candidates = tuple(
            CandidateFacts(
                name=name,
                digest=f"{position}" * 64,
                architecture=name,
                scaling="normalize",
                epochs=self.epochs,
                n=self.folds,
                accuracy_mean=float(np.mean(self.accuracies(name))),
                accuracy_std=float(np.std(self.accuracies(name), ddof=1)),
                log_loss_mean=0.05,
                train_seconds=843.2,
                parameters=542_230,
            )
            for position, name in enumerate(self.candidates)
        )
        best = max(candidates, key=lambda facts: facts.accuracy_mean).name
        document: dict[str, Any] = {
            "run_id": RUN_ID,
            "flow": "retrain",
            "experiment": "night",
            "experiment_description": "The default night: the tutorial's networks, fewer epochs.",
            "experiment_digest": "e" * 64,
            "started_at": STARTED,
            "finished_at": STARTED + timedelta(minutes=14, seconds=3),
            "host": "night-1",
            "processors": 2,
            "workers": 2,
            "runner": "processes",
            "versions": {"nightfold": "0.1.0", "python": "3.11.9", "tensorflow": "2.21.0"},
            "dataset": DatasetFacts(
                name=self.name,
                origin="mnist",
                path=str(self.dataset.path),
                digest=self.dataset.digest,
                n_train=len(self.train),
                n_test=len(self.test),
                image_shape=self.dataset.image_shape,
                class_names=self.dataset.class_names,
            ),
            "plan": PlanFacts(digest="c" * 64, scheme="kfold", folds=self.folds, repeats=1, seed=1),
            "candidates": candidates,
            "best": best,
            "final": FinalFacts(
                candidate=best,
                version=RUN_ID,
                path=str(self.store.models / RUN_ID),
                holdout_rows=len(self.test),
                holdout_accuracy=0.9909,
                holdout_log_loss=0.0312,
                train_seconds=61.5,
            ),
            "promotion": PromotionFacts(
                promoted=True, reason="There was no champion yet.", champion=RUN_ID
            ),
        }
        return Summary.model_validate({**document, **changes})


HOSTILE = "<img src=x onerror=alert(1)>|[x](javascript:y)"
DIGITS = tuple("0123456789")


@pytest.fixture(scope="module")
def splits(small_mnist: Dataset) -> tuple[Split, Split]:
    return small_mnist.train, small_mnist.test


@pytest.fixture(scope="module")
def usual(splits: tuple[Split, Split], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A promoted night of two candidates with its report."""
    folder = RunBuilder(tmp_path_factory.mktemp("usual"), splits).write()
    build_report(folder)
    return folder


@pytest.fixture(scope="module")
def page(usual: Path) -> str:
    return (usual / "report.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """Attributes and tags of a page, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.unclosed: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "br", "link", "img", "use", "path", "image"):
            self.unclosed.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                self.loads.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        if self.unclosed and self.unclosed[-1] == tag:
            self.unclosed.pop()

    def handle_data(self, text: str) -> None:
        self.words.append(text)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_the_page_loads_nothing_but_itself(page: str) -> None:
    loads = Page(page).loads
    assert len(loads) > 10
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in loads)
    assert "http" not in page.replace("http-equiv", "")
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    assert {"script", "link", "iframe"}.isdisjoint(Page(page).tags)


def test_every_link_within_the_page_has_its_target_and_ids_are_unique(page: str) -> None:
    parsed = Page(page)
    assert {link[1:] for link in parsed.loads if link.startswith("#")} <= set(parsed.ids)
    sections = [name for name in parsed.ids if name.isalpha() and len(name) < 10]
    assert len(sections) == len(set(sections)) == 9


def test_every_element_is_closed(page: str) -> None:
    assert Page(page).unclosed == []


def test_scores_are_said_in_the_tutorials_words(usual: Path, page: str) -> None:
    for facts in Summary.read(usual).candidates:
        line = (
            f"Accuracy: mean={100 * facts.accuracy_mean:.3f} "
            f"std={100 * facts.accuracy_std:.3f}, n={facts.n}"
        )
        assert line in page
        assert line in (usual / "report.md").read_text()
    assert "ddof=1" in page


def test_the_page_opens_with_the_outcome_and_keeps_its_order(usual: Path, page: str) -> None:
    text = Page(page).text.replace("\N{NO-BREAK SPACE}", " ")
    order = [
        headline(Summary.read(usual)),
        "There was no champion yet.",
        "Scores of the candidates",
        "Accuracy of every fold",
        "deep against baseline",
        "One line a fold",
        "Confusion matrix",
        "Most confident mistakes",
        "Final model and hold-out test",
        "2 rows have the same pixels",
        "All 9 checks",
        "10 models trained",
        "What was compared with what",
        "14 min 3 s; the folds trained for 24.0 s in all",
    ]
    places = [text.index(words, text.index(order[0])) for words in order]
    assert places == sorted(places)


def test_the_headline_says_what_became_of_the_champion(
    splits: tuple[Split, Split], usual: Path
) -> None:
    summary = Summary.read(usual)
    accuracy = next(c for c in summary.candidates if c.name == summary.best).accuracy_mean
    scored = f"{summary.best} {{}}best of 2 candidates with {100 * accuracy:.3f} % accuracy"
    tested = "99.090 % on the 200 images held out"
    stays = PromotionFacts(promoted=False, reason="No better.", champion="20261120-020000-000000")
    nobody = PromotionFacts(promoted=False, reason="Not sound.", champion=None)

    promoted = headline(summary)
    assert promoted.startswith(scored.format("is the new champion: "))
    assert promoted.endswith(f"{tested}.")
    kept = headline(summary.model_copy(update={"promotion": stays}))
    assert kept.startswith(scored.format("came out "))
    assert kept.endswith(f"{tested}, but it was not promoted; the champion stays.")
    first = headline(summary.model_copy(update={"promotion": nobody}))
    assert first.endswith("but it was not promoted.")
    evaluated = headline(summary.model_copy(update={"final": None, "promotion": None}))
    assert evaluated.endswith("fitted no final model and left the champion as it is.")


def test_the_decision_names_the_class_that_was_lost(
    splits: tuple[Split, Split], tmp_path: Path
) -> None:
    recalls = dict.fromkeys(DIGITS, 0.98)
    found = Comparison(mean_difference=0.004, p_worse=0.0, p_equivalent=0.01, p_better=0.99)
    decision = decide(
        load_experiment("night").policy,
        Evidence(
            candidate="deep",
            holdout_accuracy=0.99,
            ece=0.01,
            megabytes=2.2,
            milliseconds=3,
            recalls=recalls | {"7": 0.93},
            champion="night-1",
            champion_recalls=recalls,
            comparison=found,
        ),
    )
    promotion = PromotionFacts(promoted=False, champion="night-1", **decision.model_dump())
    folder = RunBuilder(tmp_path, splits).write(promotion=promotion)
    build_report(folder)
    read = Page((folder / "report.html").read_text()).text.replace("\N{NO-BREAK SPACE}", " ")
    for text in (read, (folder / "report.md").read_text()):
        assert "class 7 against the champion: -5.00 points, from 98.00 % to 93.00 %" in text
        assert "deep gains +0.40 points on average but breaks the policy" in text
        assert "a loss of at most 3.00 points of recall" in text
        assert "Refused" in text or "refused" in text
    failed = [check.name for check in Summary.read(folder).promotion.checks if not check.passed]
    assert failed == ["class 7 against the champion"]


def test_the_posterior_of_every_verdict_is_drawn(usual: Path, page: str) -> None:
    assert (usual / "figures" / "posteriors.png").exists()
    assert "deep against baseline: worse" in Page(page).text


def test_a_stopped_candidate_is_named_and_has_no_score(
    splits: tuple[Split, Split], tmp_path: Path
) -> None:
    builder = RunBuilder(tmp_path, splits, candidates={**CANDIDATES, "lost": 10.0})
    folder = builder.write()
    *scored, lost = Summary.read(folder).candidates
    gone = {"accuracy_mean", "accuracy_std", "accuracy_low", "accuracy_high", "log_loss_mean"}
    why = "stopped after 3 folds by the racing rule"
    stopped = {**lost.model_dump(exclude=gone), "n": 3, "reason": why}
    rule = RacingChoice(min_folds=3, probability=0.05, difference=0.001)
    best = max(scored, key=lambda facts: facts.accuracy_mean).name
    builder.summary(candidates=scored, stopped=[stopped], racing=rule, best=best).write(folder)
    for name, schema in (("scores", SCORES), ("histories", HISTORIES)):
        kept = [r for r in builder.tables[name] if r["candidate"] != "lost" or r["fold"] <= 3]
        write_table(folder / f"{name}.parquet", build_table(kept, schema), name=name)
    columns = ("run_id", "plan_digest", "candidate_a", "candidate_b", "metric", "n_pairs")
    verdicts = [
        {**{c: row[c] for c in columns}, "verdict": "stopped", "sentence": f"lost was {why}."}
        if row["candidate_b"] == "lost"
        else row
        for row in builder.tables["verdicts"]
    ]
    write_table(folder / "verdicts.parquet", build_table(verdicts, VERDICTS), name="verdicts")
    build_report(folder)
    page = Page((folder / "report.html").read_text()).text.replace("\N{NO-BREAK SPACE}", " ")
    markdown = (folder / "report.md").read_text()
    for text in (page, markdown):
        assert "best of 3 candidates" in text
        assert "after 3 of 5 folds" in text
        assert "Racing, declared before the run: after 3 folds of every candidate" in text
        assert f"{100 * lost.accuracy_mean:.3f}" not in text
    assert "Accuracy: mean" not in page[page.index("lost stopped") : page.index("Racing, declared")]
    order = [verdict["verdict"] for verdict in RunFiles(folder).verdicts]
    assert order.index("stopped") == len(order) - 2
    assert "Candidates that were stopped are left out." in page


def test_a_guest_is_not_counted_among_the_candidates(usual: Path) -> None:
    summary = Summary.read(usual)
    (other,) = {c.name for c in summary.candidates} - {summary.best}
    with_guest = headline(summary.model_copy(update={"guest": other}))
    assert "best of" not in with_guest


def test_warnings_stand_open_and_other_checks_are_folded(page: str) -> None:
    checks = page[page.index('id="data"') : page.index('id="folds"')]
    opened, folded = checks.split("<details>", 1)
    assert "2 rows have the same pixels as another row of the split." in opened
    assert "rows 17 (0a1b2c3d4e5f), 203" in opened
    assert "raw uint8" not in opened
    assert folded.count("raw uint8") == 2


def test_fewer_epochs_than_the_tutorial_are_said(
    splits: tuple[Split, Split], page: str, tmp_path: Path
) -> None:
    assert "Trained for at most 3 epochs; the tutorial's recipe trains for 10" in page
    folder = RunBuilder(tmp_path, splits, candidates={"deep": 0.01}, folds=2, epochs=10).write()
    build_report(folder)
    assert "Trained for at most" not in (folder / "report.html").read_text()


def test_the_tutorials_epochs_say_nothing_of_other_data(
    splits: tuple[Split, Split], tmp_path: Path
) -> None:
    builder = RunBuilder(tmp_path, splits, candidates={"deep": 0.01}, folds=2, epochs=1)
    builder.name = "letters"
    build_report(builder.write())
    page = (builder.folder / "report.html").read_text()
    assert "on letters" in page
    assert "published" not in page


def test_the_description_is_shown(page: str) -> None:
    assert "fewer epochs." in Page(page).text


def test_a_hostile_class_name_or_description_stays_text(
    splits: tuple[Split, Split], tmp_path: Path
) -> None:
    builder = RunBuilder(tmp_path, splits, class_names=(HOSTILE, *DIGITS[1:]), folds=2, epochs=1)
    folder = builder.write(experiment_description=HOSTILE)
    build_report(folder)
    page = (folder / "report.html").read_text()
    assert {"img", "script"}.isdisjoint(Page(page).tags)
    assert HOSTILE in Page(page).text
    markdown = (folder / "report.md").read_text()
    assert "<img" not in markdown
    assert "[x](" not in markdown.replace("\\[x\\](", "")
    assert one_line("a\nb") == "a b"


def test_the_links_of_the_markdown_exist_and_every_figure_is_linked(usual: Path) -> None:
    links = re.findall(r"!\[.*?\]\((.*?)\)", (usual / "report.md").read_text())
    assert len(links) == 8
    assert sorted(links) == sorted(f"figures/{p.name}" for p in (usual / "figures").iterdir())


def test_most_frequent_mistakes_are_those_of_the_predictions(usual: Path, page: str) -> None:
    import pandas as pd

    rows = pd.read_parquet(usual / "predictions.parquet")
    rows = rows[(rows["candidate"] == Summary.read(usual).best)]
    wrong = rows[rows["label"] != rows["predicted"]]
    counts = wrong.groupby(["label", "predicted"]).size()
    table = page[page.index("Most frequent mistakes") :]
    label, predicted, images = re.findall(r"<td[^>]*>(\d+)</td>", table)[:3]
    assert int(images) == counts.max() == counts[int(label), int(predicted)]
    assert f"out of {len(wrong)} images predicted wrong" in page


def test_the_mistakes_shown_are_the_surest_and_each_image_once() -> None:
    answers = Answers(
        row=np.array([0, 1, 2, 3, 1]),
        label=np.array([0, 0, 0, 1, 0]),
        predicted=np.array([1, 1, 0, 0, 1]),
        probabilities=np.array(
            [[0.4, 0.6], [0.1, 0.9], [1.0, 0.0], [0.7, 0.3], [0.2, 0.8]], np.float32
        ),
    )
    assert answers.mistakes.tolist() == [1, 3, 0]
    assert [(m.label, m.predicted, m.images) for m in answers.mixed_up(("no", "yes"))] == [
        ("no", "yes", 3),
        ("yes", "no", 1),
    ]
    assert answers.interval.mean == pytest.approx(1 / 4)


def test_the_same_files_give_the_same_report(splits: tuple[Split, Split], tmp_path: Path) -> None:
    folder = RunBuilder(tmp_path, splits, folds=2, epochs=1).write()
    first = build_report(folder)
    figures = {p.name: p.read_bytes() for p in (folder / "figures").iterdir()}
    (folder / "report.html").unlink()
    assert build_report(folder) == first
    assert {p.name: p.read_bytes() for p in (folder / "figures").iterdir()} == figures
    assert not list(folder.rglob(".part-*"))


ODD_RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "one candidate, evaluated": (
        {"candidates": {"deep": 0.001}, "folds": 2},
        {"final": None, "promotion": None, "flow": "evaluate"},
    ),
    "eight candidates, one epoch": (
        {"candidates": {f"candidate_{i}": 10.0**-i for i in range(8)}, "folds": 2, "epochs": 1},
        {},
    ),
    "fifty folds": ({"candidates": {"deep": 0.001}, "folds": 50, "epochs": 1}, {}),
    "fifty epochs": ({"candidates": {"deep": 0.001}, "folds": 2, "epochs": 50}, {}),
    "no mistakes": ({"perfect": True, "folds": 2, "epochs": 1}, {}),
    "long class names": (
        {"class_names": tuple(f"a photograph of the digit {i}" for i in DIGITS), "folds": 2},
        {},
    ),
    "thirty classes": (
        {"class_names": tuple(f"class {i}" for i in range(30)), "folds": 2, "epochs": 1},
        {},
    ),
}


@pytest.mark.parametrize("shape", ODD_RUNS)
def test_odd_runs_have_a_whole_report(
    shape: str, splits: tuple[Split, Split], tmp_path: Path
) -> None:
    options, changes = ODD_RUNS[shape]
    folder = RunBuilder(tmp_path, splits, **options).write(**changes)
    build_report(folder)
    page = (folder / "report.html").read_text()
    assert Page(page).unclosed == []
    assert headline(Summary.read(folder)) in page.replace("\N{NO-BREAK SPACE}", " ")
    assert "nan" not in Page(page).text.lower().replace("nanometre", "")
    assert ("No image was predicted wrong." in page) == bool(options.get("perfect"))


def test_images_in_colour_are_shown(splits: tuple[Split, Split], tmp_path: Path) -> None:
    colour = [Split(np.repeat(s.images, 3, axis=3), s.labels) for s in splits]
    folder = RunBuilder(tmp_path, (colour[0], colour[1]), folds=2, epochs=1).write()
    build_report(folder)
    assert (
        "28 \N{MULTIPLICATION SIGN} 28 \N{MULTIPLICATION SIGN} 3"
        in (folder / "report.html").read_text()
    )


def test_a_vanished_snapshot_is_said_instead_of_failing(
    splits: tuple[Split, Split], tmp_path: Path
) -> None:
    builder = RunBuilder(tmp_path, splits, folds=2, epochs=1)
    folder = builder.write()
    shutil.rmtree(builder.dataset.path)
    build_report(folder)
    for name in ("report.html", "report.md"):
        assert "no longer on this machine" in (folder / name).read_text()


@pytest.mark.parametrize("name", ["summary.json", "scores.parquet", "predictions.parquet"])
def test_a_missing_file_is_named(name: str, splits: tuple[Split, Split], tmp_path: Path) -> None:
    folder = RunBuilder(tmp_path, splits, folds=2, epochs=1).write()
    (folder / name).unlink()
    with pytest.raises(UsageError, match=re.escape(name)):
        build_report(folder)
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "refusal"), [("scores.parquet", DataRefused), ("validation.json", UsageError)]
)
def test_a_damaged_file_is_named(
    name: str, refusal: type[Exception], splits: tuple[Split, Split], tmp_path: Path
) -> None:
    folder = RunBuilder(tmp_path, splits, folds=2, epochs=1).write()
    (folder / name).write_bytes((folder / name).read_bytes()[:500])
    with pytest.raises(refusal, match=re.escape(name)):
        build_report(folder)
    assert not (folder / "report.html").exists()


def test_durations_read_well() -> None:
    spans = [duration(s) for s in (0.04, 59.96, 61, 3599.7, 7500)]
    assert spans == ["0.0 s", "1 min 0 s", "1 min 1 s", "1 h 0 min", "2 h 5 min"]


@pytest.mark.slow
def test_prefect_shows_the_summary_and_the_scores(
    splits: tuple[Split, Split], tmp_path: Path, prefect_server: None
) -> None:
    from prefect import flow
    from prefect.artifacts import Artifact

    folder = RunBuilder(tmp_path, splits, folds=2, epochs=1).write()

    @flow
    def night() -> None:
        report(str(folder))

    night()
    shown = {key: Artifact.get(key) for key in ("report", "scores")}
    assert (folder / "report.html").exists()
    assert shown["report"].data.startswith(f"# {headline(Summary.read(folder))}")
    assert "![" not in shown["report"].data
    rows = json.loads(shown["scores"].data)
    assert [row["candidate"] for row in rows] == list(CANDIDATES)
    best = max(rows, key=lambda row: float(row["mean accuracy (%)"]))
    assert best["candidate"] == Summary.read(folder).best


@pytest.fixture(scope="module")
def third_night(
    splits: tuple[Split, Split], write_night: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The report of a night that has two before it, and one after it, on its data set."""
    run = RunBuilder(tmp_path_factory.mktemp("third"), splits)
    deep = Candidate(name="deep", architecture="deep")
    first = f"{STARTED - timedelta(days=2):%Y%m%d-%H%M%S}-1a2b3c"
    for days, promoted, data in ((-2, True, "a"), (-1, False, "a"), (1, True, "b")):
        facts = PromotionFacts(promoted=promoted, reason="", champion=first)
        write_night(run.store, STARTED + timedelta(days=days), {deep: 0.9}, facts, data=data)
    run.store.run("killed").mkdir()
    folder = run.write()
    build_report(folder)
    return folder


def test_the_first_night_has_no_trend(usual: Path, page: str) -> None:
    assert 'id="nights"' not in page
    assert "Night by night" not in page
    assert not (usual / "figures" / "champion_trend.png").exists()


def test_the_trend_ends_with_the_night_of_the_report(third_night: Path) -> None:
    text = (third_night / "report.html").read_text(encoding="utf-8")
    section = text[text.index('<h2 id="nights">') : text.index('<h2 id="folds">')]
    days = re.findall(r"(2026-11-\d\d) 02:00 UTC", section)
    assert days == ["2026-11-21", "2026-11-20", "2026-11-19"]
    newest = section[section.index("2026-11-21") : section.index("2026-11-20")]
    assert "(new)" in newest
    assert "promoted" in newest
    assert "1 run that cannot be read is left out" in section
    assert (third_night / "figures" / "champion_trend.png").stat().st_size > 10_000


def test_the_trend_is_in_the_markdown_as_well(third_night: Path) -> None:
    text = (third_night / "report.md").read_text(encoding="utf-8")
    assert "](figures/champion_trend.png)" in text


def test_an_evaluation_has_no_trend(third_night: Path, tmp_path: Path) -> None:
    root = tmp_path / "artifacts"
    shutil.copytree(third_night.parent.parent, root)
    folder = root / "runs" / third_night.name
    summary = json.loads((folder / "summary.json").read_text())
    summary |= {"flow": "evaluate", "final": None, "promotion": None}
    (folder / "summary.json").write_text(json.dumps(summary))
    build_report(folder)
    assert 'id="nights"' not in (folder / "report.html").read_text(encoding="utf-8")
