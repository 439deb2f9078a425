"""validate: decide whether a data set may be trained on, and say in plain words why not.

Great Expectations evaluates the expectations over the small tables of `nightfold.inspection`, never
over pixels. It never raises by itself, so the gate is here: an expectation of severity critical
that fails, or any expectation that could not be evaluated, refuses the data. Every expectation is
listed with its severity and reason in ``docs/validation.md``.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.context import TaskRunContext

from nightfold.dataset import Dataset, DatasetHandle, Split
from nightfold.errors import DataRefused
from nightfold.experiment import ValidationChoice
from nightfold.inspection import describe_classes, describe_images
from nightfold.validation import Check, RowName, Severity, ValidationReport

if TYPE_CHECKING:
    import pandas as pd

BETWEEN = "ExpectColumnValuesToBeBetween"
"""Passes where the value is missing, as `IN_SET` does: presence is always a rule of its own."""
IN_SET = "ExpectColumnValuesToBeInSet"
RAW = "give the images as they came, uint8 in 0..255; the model scales them itself"
KEEP_TOGETHER = ", or set plan.duplicates to 'together' to keep them in one fold"
INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
SMALLEST_FOREGROUND = 0.01
"""Share of pixels; the thinnest digit of MNIST has 0.043."""
CONSISTENT_SHARE = 0.999
"""Rows without a contradiction; a choice: single wrong labels happen, one in 1,000 is a pattern."""
WORDLESS = ("digest", "in_train", "labels_seen")
"""Columns of which a value at fault tells nothing that the rows do not."""
NAMED = 10
"""Rows, classes or values that a message lists."""


@dataclass(frozen=True)
class Rule:
    """One expectation in the terms of Great Expectations and in words.

    Attributes
    ----------
    name : str
        As in ``docs/validation.md``.
    severity : {'critical', 'warning', 'info'}
    expectation : str
        Class name in `great_expectations.expectations`.
    arguments : dict
        Its arguments. Only Python's own scalars: numpy's break its JSON.
    claim, fault, remedy : str
        What holds if it passes; what is wrong if not; what to do then.
    """

    name: str
    severity: Severity
    expectation: str
    arguments: dict[str, Any]
    claim: str
    fault: str
    remedy: str


@task(name="validate", task_run_name="validate {handle.name}")
def validate(handle: DatasetHandle, choice: ValidationChoice, folds: int, run_folder: str) -> None:
    """Check a snapshot, write ``validation.json`` and refuse data that may not be trained on.

    Parameters
    ----------
    handle : DatasetHandle
    choice : ValidationChoice
    folds : int
        Of the fold plan.
    run_folder : str
        Where ``validation.json`` goes, also if the data is refused.

    Raises
    ------
    DataRefused
        If a critical expectation fails or an expectation cannot be evaluated.
    UsageError
        If the experiment's reference balance does not fit the classes.
    """
    report = check(handle.open(), choice, folds)
    report.write(Path(run_folder))
    if TaskRunContext.get() is not None:
        _show_in_prefect(report)
    if not report.passed:
        raise DataRefused(report.refusal())


def check(dataset: Dataset, choice: ValidationChoice, folds: int) -> ValidationReport:
    """Evaluate every expectation on both splits.

    Parameters
    ----------
    dataset : Dataset
    choice : ValidationChoice
    folds : int
        The training split must fill so many folds.

    Returns
    -------
    ValidationReport
        Also of data that is to be refused.

    Raises
    ------
    UsageError
        If `choice.reference_balance` does not fit the classes.
    """
    checks: list[Check] = []
    class_rows = {}
    train_digests: Iterable[str] = ()
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        images = describe_images(split)
        classes = describe_classes(split, dataset.class_names, choice.reference_balance)
        images["in_train"] = images["digest"].isin(train_digests)
        train_digests = images["digest"]
        class_rows[name] = {str(key): int(rows) for key, rows in classes["rows"].items()}
        facts = _facts(dataset, name, split, images)
        if len(split) == 0:
            # Nothing can be said about rows that are not there, and most expectations would pass.
            checks += examine(facts, _row_rules(name, folds)[:1], name)
            continue
        checks += examine(facts, [*_row_rules(name, folds), *_array_rules(dataset, facts)], name)
        rules = [*_pixel_rules(), *_label_rules(dataset.n_classes), *_copy_rules(name, choice)]
        checks += examine(images, rules, name)
        # After the rows without a label, which make floats of all the others.
        checks += examine(facts, [_label_dtype_rule(str(split.labels.dtype))], name)
        checks += examine(classes, _class_rules(name, folds, choice), name)
    return ValidationReport(
        dataset=dataset.name, digest=dataset.digest, class_rows=class_rows, checks=tuple(checks)
    )


def examine(frame: pd.DataFrame, rules: Sequence[Rule], split: str) -> list[Check]:
    """Run rules over one table with Great Expectations.

    Parameters
    ----------
    frame : DataFrame
        Of images, classes or one split: its index is called row, class_name or split.
    rules : sequence of Rule
    split : str
        For the outcome.

    Returns
    -------
    list of Check
        In the order of `rules`. A rule that could not be evaluated is critical and has not passed.
    """
    batch_definition = _batch_definition()
    import great_expectations as gx
    import great_expectations.expectations as gxe

    suite = gx.ExpectationSuite("nightfold")
    for rule in rules:
        expectation = getattr(gxe, rule.expectation)
        suite.add_expectation(
            expectation(**rule.arguments, severity=rule.severity, meta={"rule": rule.name})
        )
    # Rows are named by the table's own index, and that without a name: with one, or with an index
    # column, Great Expectations builds a dictionary a row, a second for every 50,000 at fault.
    batch = batch_definition.get_batch({"dataframe": frame.rename_axis(index=None)})
    validation = batch.validate(
        suite, result_format={"result_format": "SUMMARY", "partial_unexpected_count": NAMED}
    )
    results = {result.expectation_config.meta["rule"]: result for result in validation.results}
    return [_outcome(rule, frame, results[rule.name], split) for rule in rules]


@cache
def _batch_definition() -> Any:
    # Versions that send usage statistics do so unless told not to before they are imported.
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    import great_expectations as gx
    from great_expectations.data_context.types import base

    # The second logger has a level of its own, so the first does not silence it.
    for name in ("great_expectations", base.__name__):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = base.ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("memory").add_dataframe_asset("table")
    return asset.add_batch_definition_whole_dataframe("whole")


def _facts(dataset: Dataset, name: str, split: Split, images: pd.DataFrame) -> pd.DataFrame:
    """What is true of a split as a whole: a table of one row."""
    import pandas as pd

    return pd.DataFrame(
        {
            "rows": [len(split)],
            "shape": [_shape(split)],
            "dtype": [str(split.images.dtype)],
            "label_dtype": [str(split.labels.dtype)],
            "classes": [dataset.n_classes],
            "brightest": [images["maximum"].max()],
            "fullest": [images["foreground"].max()],
        },
        index=pd.Index([name], name="split"),
    )


def _shape(split: Split) -> str:
    # In one word, because Great Expectations never matches a tuple.
    return "x".join(map(str, split.images.shape[1:]))


def _row_rules(split: str, folds: int) -> list[Rule]:
    present = Rule(
        "rows_present",
        "critical",
        BETWEEN,
        {"column": "rows", "min_value": 1},
        "the split has rows",
        "the split is empty",
        "check the source, or set dataset.holdout to hold part of it out as the test split",
    )
    if split == "test":
        return [present]
    enough = Rule(
        "rows_for_folds",
        "critical",
        BETWEEN,
        {"column": "rows", "min_value": folds},
        f"there is a row for each of {folds} folds",
        f"there are fewer rows than the {folds} folds of the plan",
        "plan fewer folds or give more rows",
    )
    return [present, enough]


def _array_rules(dataset: Dataset, facts: pd.DataFrame) -> list[Rule]:
    found = facts.iloc[0]
    several_classes = Rule(
        "several_classes",
        "critical",
        BETWEEN,
        {"column": "classes", "min_value": 2},
        "there are two classes or more",
        "there are fewer than two classes",
        "give rows of every class that the model is to tell apart",
    )
    same_shape = Rule(
        "same_shape",
        "critical",
        IN_SET,
        {"column": "shape", "value_set": [_shape(dataset.train)]},
        "images have the shape of the training images",
        f"images do not have the shape of the training images, {_shape(dataset.train)}",
        "bring both splits to one size and one number of channels",
    )
    return [
        Rule(
            "image_shape",
            "critical",
            "ExpectColumnValuesToMatchRegex",
            {"column": "shape", "regex": r"^[1-9]\d*x[1-9]\d*x[1-9]\d*$"},
            "images have a height, a width and channels",
            "images do not have a height, a width and channels above 0",
            "give images as height x width x channels",
        ),
        several_classes if facts.index[0] == "train" else same_shape,
        *_pixel_format_rules(str(found["dtype"]), float(found["brightest"])),
    ]


def _label_dtype_rule(dtype: str) -> Rule:
    return Rule(
        "label_dtype",
        "critical",
        IN_SET,
        {"column": "label_dtype", "value_set": INTEGERS},
        "labels are integers",
        f"labels are stored as {dtype}, not as integers",
        "give every row the integer index of its class",
    )


def _pixel_format_rules(dtype: str, brightest: float) -> list[Rule]:
    scaled = ", already scaled to 0..1 it seems" if 0 < brightest <= 1 else ""
    return [
        Rule(
            "pixel_dtype",
            "critical",
            IN_SET,
            {"column": "dtype", "value_set": ["uint8"]},
            "pixels are uint8",
            f"pixels are stored as {dtype}{scaled}, not as raw uint8",
            RAW,
        ),
        Rule(
            "pixel_scale",
            "critical",
            BETWEEN,
            {"column": "brightest", "min_value": 1, "strict_min": True},
            "the brightest pixel is above 1",
            f"the brightest pixel is 1 or less{scaled}" if brightest else "every pixel is 0",
            RAW,
        ),
        Rule(
            "some_content",
            "critical",
            BETWEEN,
            {"column": "fullest", "min_value": 0, "strict_min": True},
            "some image has content",
            "every image has only one pixel value",
            "check how the images were exported",
        ),
    ]


def _pixel_rules() -> list[Rule]:
    return [
        Rule(
            "pixels_present",
            "critical",
            "ExpectColumnValuesToNotBeNull",
            {"column": "minimum"},
            "every pixel is a number",
            "pixels are missing or are not numbers",
            RAW,
        ),
        Rule(
            "pixel_minimum",
            "critical",
            BETWEEN,
            {"column": "minimum", "min_value": 0},
            "no pixel is below 0",
            "pixels are below 0",
            RAW,
        ),
        Rule(
            "pixel_maximum",
            "critical",
            BETWEEN,
            {"column": "maximum", "max_value": 255},
            "no pixel is above 255",
            "pixels are above 255",
            RAW,
        ),
        Rule(
            "image_constant",
            "warning",
            BETWEEN,
            {"column": "foreground", "min_value": 0, "strict_min": True},
            "no image is constant",
            "images have only one pixel value",
            "look at these images and leave empty ones out",
        ),
        Rule(
            "image_nearly_empty",
            "info",
            BETWEEN,
            {"column": "foreground", "min_value": SMALLEST_FOREGROUND},
            f"no image has less than {SMALLEST_FOREGROUND:.0%} of foreground",
            f"images have less than {SMALLEST_FOREGROUND:.0%} of foreground",
            "look at these images",
        ),
    ]


def _label_rules(n_classes: int) -> list[Rule]:
    relabel = "keep the row with the right label and leave the others out"
    return [
        Rule(
            "label_present",
            "critical",
            "ExpectColumnValuesToNotBeNull",
            {"column": "label"},
            "every row has a label",
            "labels are missing",
            "label these rows or leave them out",
        ),
        Rule(
            "label_in_classes",
            "critical",
            IN_SET,
            {"column": "label", "value_set": list(range(n_classes))},
            f"every label is the index of one of the {n_classes} classes",
            f"labels are not among the class indices 0 to {n_classes - 1}",
            "correct these labels, leave the rows out or name the missing classes",
        ),
        Rule(
            "labels_consistent",
            "critical",
            BETWEEN,
            {"column": "labels_seen", "max_value": 1, "mostly": CONSISTENT_SHARE},
            "at most 1 row in 1,000 is an image that also occurs with another label",
            "more than 1 row in 1,000 is an image that also occurs with another label",
            relabel,
        ),
        Rule(
            "labels_unique",
            "warning",
            BETWEEN,
            {"column": "labels_seen", "max_value": 1},
            "no image occurs with two labels",
            "images occur with more than one label",
            relabel,
        ),
    ]


def _copy_rules(split: str, choice: ValidationChoice) -> list[Rule]:
    duplicates = Rule(
        "duplicates",
        choice.duplicates,
        "ExpectColumnValuesToBeUnique",
        {"column": "digest"},
        "no image occurs twice",
        "images occur more than once",
        "leave the copies out" + (KEEP_TOGETHER if split == "train" else ""),
    )
    if split == "train":
        return [duplicates]
    leakage = Rule(
        "leakage",
        choice.leakage,
        IN_SET,
        {"column": "in_train", "value_set": [False]},
        "no test image is also a training image",
        "test images are also training images",
        "leave them out of one split, or the hold-out score will be too good",
    )
    return [duplicates, leakage]


def _class_rules(split: str, folds: int, choice: ValidationChoice) -> list[Rule]:
    least, factor = choice.min_rows_per_class, choice.max_imbalance
    counts: list[tuple[str, Severity, int]] = [
        ("class_present", "critical" if split == "train" else "warning", 1)
    ]
    if split == "train":
        counts += [("class_rows", "critical", least), ("class_rows_for_folds", "warning", folds)]
    rules = [
        Rule(
            name,
            severity,
            BETWEEN,
            {"column": "rows", "min_value": rows},
            f"every class has {rows} row{'s' * (rows > 1)} or more",
            f"classes have fewer than {rows} row{'s' * (rows > 1)}",
            "add rows of these classes or leave the classes out",
        )
        for name, severity, rows in counts
    ]
    balance = Rule(
        "class_balance",
        "warning",
        BETWEEN,
        {"column": "balance", "min_value": 1 / factor, "max_value": factor},
        f"every class has its expected share of rows within a factor of {factor:g}",
        f"classes are further than a factor of {factor:g} from their expected share of rows",
        "add or leave out rows, or state the shares you expect in validation.reference_balance",
    )
    return [*rules, balance]


def _outcome(rule: Rule, frame: pd.DataFrame, result: Any, split: str) -> Check:
    error = _error(result.exception_info)
    if error is not None:
        return Check(
            name=rule.name,
            split=split,
            sentence=f"it could not be checked that {rule.claim}",
            remedy="this is a defect of the check, report it",
            severity="critical",
            passed=False,
            observed=error,
        )
    passed = bool(result.success)
    fault = {} if passed else result.result
    rows = fault.get("partial_unexpected_index_list", []) if frame.index.name == "row" else []
    return Check(
        name=rule.name,
        split=split,
        sentence=rule.claim if passed else rule.fault,
        remedy="" if passed else rule.remedy,
        severity=rule.severity,
        passed=passed,
        observed=_observed(rule, frame, result.result),
        rows=tuple(RowName(index=row, digest=frame["digest"].iloc[row][:12]) for row in rows),
    )


def _observed(rule: Rule, frame: pd.DataFrame, result: dict[str, Any]) -> str:
    """What was found, in words: the value of a whole split, else how many of how many at fault."""
    column = rule.arguments["column"]
    if frame.index.name == "split":
        return _words(frame[column].iloc[0])
    text = f"{result['unexpected_count']:,} of {len(frame):,}"
    values = [_words(value) for value in result.get("partial_unexpected_list", [])]
    if not values or values[0] == "nan" or column in WORDLESS:
        return text
    if frame.index.name == "class_name":
        names = result["partial_unexpected_index_list"]
        values = [f"{name} has {value}" for name, value in zip(names, values, strict=True)]
    return f"{text}: {', '.join(dict.fromkeys(values))}"


def _words(value: object) -> str:
    try:
        return f"{float(value):.6g}"  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return str(value)


def _error(exception_info: dict[str, Any]) -> str | None:
    """First line of the exception of an expectation that broke; it is flat or one a metric."""
    parts = [exception_info, *exception_info.values()]
    for part in parts:
        if isinstance(part, dict) and part.get("raised_exception"):
            return re.split(r"[\r\n]", str(part["exception_message"]).strip())[0]
    return None


def _show_in_prefect(report: ValidationReport) -> None:
    from prefect.artifacts import create_table_artifact

    rows = [
        {
            "result": "ok" if one.passed else one.severity,
            "split": one.split,
            "finding": one.sentence,
            "observed": one.observed,
            "check": one.name,
        }
        for one in sorted(report.checks, key=lambda one: one.passed)
    ]
    verdict = f"The data set {report.dataset!r} passed; warnings: {len(report.warnings)}."
    # The data is judged already: a server that is away must not change the verdict.
    with suppress(Exception):
        create_table_artifact(
            key="validation",
            table=rows,
            description=verdict if report.passed else report.refusal(),
        )
