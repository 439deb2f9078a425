"""How often the statistics cry wolf, on MNIST: the tables of docs/statistics.md.

Two recipes that are equally good by construction: every digit is mirrored or not by the toss of a
coin; one nearest-neighbour classifier sees its left half, the other the mirrored right half. So
every test that finds one of them better, and every night that promotes the other one, is wrong.

Races of unequal candidates are not of digits but of normal scores, because there the best is known.
And `seeds` trains: the tutorial's deep network from one seed after the other, each a night of its
own, every two of which are compared as candidates are.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import typer
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.stats import ttest_1samp
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

from benchmarks.nightly import run_nightfold, write_experiment
from nightfold import statistics
from nightfold.experiment import PolicyChoice, RacingChoice, load_experiment, shipped
from nightfold.foldplan import FoldPlan
from nightfold.gate import Comparison, weigh
from nightfold.racing import Race
from nightfold.sources import read
from tasks.compare import compare_scores

ROWS = 100
FOLDS = 5


class Digits:
    """MNIST at a third of its width and height, from which every draw takes other rows."""

    def __init__(self, seed: int, rows: int = ROWS) -> None:
        split = read(f"parquet:{shipped('data', 'mnist')}").train
        self.images = split.images[:, 2::3, 2::3, 0].astype(np.float32)[:, :, :8]
        self.labels = np.asarray(split.labels)
        self.rng, self.rows = np.random.default_rng(seed), rows

    @property
    def sizes(self) -> dict[str, float]:
        """What a comparison of accuracies on these folds needs to know."""
        n_test = self.rows / FOLDS
        return {
            "n_train": self.rows - n_test,
            "n_test": n_test,
            "resolution": statistics.HALF_A_ROW / n_test,
        }

    def draw(self, repeats: Iterator[int]) -> Iterator[NDArray[np.float64]]:
        """Differences of accuracy over the folds of each repeat on rows drawn anew."""
        rng, n = self.rng, self.rows
        rows = rng.choice(len(self.labels), n, replace=False)
        images, labels = self.images[rows], self.labels[rows]
        images = np.where(rng.random((n, 1, 1)) < 0.5, images[:, :, ::-1], images)
        halves = [images[:, :, :4], images[:, :, :3:-1]]
        distances = [cdist(h.reshape(n, -1), h.reshape(n, -1)) for h in halves]
        for _ in repeats:
            fold = rng.permutation(np.arange(n) % FOLDS)
            unseen = fold[:, None] == fold
            right = [
                labels[np.where(unseen, np.inf, d).argmin(axis=1)] == labels for d in distances
            ]
            gain = right[1].astype(np.float64) - right[0]
            yield np.bincount(fold, gain, FOLDS) / np.bincount(fold)


def alarms(draws: int = 1000) -> None:
    """Print how often the plain paired t-test and the corrected one find a difference."""
    digits = Digits(seed=1)
    print(f"{draws} draws of {ROWS} digits, {FOLDS} folds, tests at 5 %")
    found: dict[int, list[tuple[bool, bool]]] = {1: [], 10: []}
    for _ in range(draws):
        differences = np.stack(list(digits.draw(iter(range(10)))))
        for repeats, each in found.items():
            d = differences[:repeats].ravel()
            test = statistics.corrected_resampled_t(d, **digits.sizes)
            plain = d.std() > 0 and ttest_1samp(d, 0).pvalue < 0.05
            each.append((plain, test.p is not None and test.p < 0.05))
    for repeats, each in found.items():
        plain, corrected = 100 * np.mean(each, axis=0)
        print(f"{repeats:2} repeats: plain paired t {plain:.1f} %, corrected {corrected:.1f} %")


def years(number: int = 200, seed: int = 2, nights: int = 365, rows: int = ROWS) -> None:
    """Print the part of years in which the gate promotes, with its looks counted and without."""
    policy = load_experiment("night").policy
    assert policy is not None
    digits = Digits(seed, rows)
    counted, naive = [], []
    for year in range(number):
        looks = count(1)
        # The same draws judge both; the naive gate takes every look for the first.
        promoted = [_night(digits, policy, looks) for _ in range(nights)]
        counted.append(any(by_look for by_look, _ in promoted))
        naive.append(any(at_first for _, at_first in promoted))
        if year % 20 == 19:
            print(f"{year + 1} years: counted {np.mean(counted):.3f}, naive {np.mean(naive):.3f}")


def _night(digits: Digits, policy: PolicyChoice, looks: Iterator[int]) -> tuple[bool, bool]:
    """Whether a night of equal recipes promotes: with looks counted, and with none counted."""
    differences: list[NDArray[np.float64]] = []
    naive = False
    for of_repeat in digits.draw(iter(range(policy.max_repeats))):
        differences.append(of_repeat)
        posterior = statistics.bayesian_correlated_t(
            np.concatenate(differences), rope=policy.rope, **digits.sizes
        )
        asked = Comparison(
            mean_difference=float(np.mean(differences)),
            p_worse=posterior.p_worse,
            p_equivalent=posterior.p_equivalent,
            p_better=posterior.p_better,
            look=next(looks),
        )
        naive |= (posterior.p_better or 0) >= policy.probability
        if (verdict := weigh(policy, asked)) != "undecided":
            return verdict == "better", naive
    return False, naive


RACE = RacingChoice(min_folds=3, probability=0.05, difference=0.001)
"""The rule of docs/statistics.md."""

BEHIND = {
    "one hopeless": [0, 0.05, 5],
    "six from good to bad": [0, 0.05, 0.1, 0.2, 0.5, 1],
    "one better by the difference": [0, 0.1, 0.1, 0.1, 0.1, 0.1],
}
"""True accuracies of the candidates of a race, points behind the best, which comes first."""


def races(draws: int = 1000) -> None:
    """Print how often a race stops the best, what that costs, and the part of folds it trains."""
    digits, rule = Digits(seed=4), RACE.model_copy(update={"difference": 0.0})
    lost = [_race_of_equals(digits, rule) for _ in range(draws)]
    print(
        f"{draws} races of two equal recipes, difference 0: one stopped {100 * np.mean(lost):.1f} %"
    )
    rng = np.random.default_rng(1)
    print(f"{draws} races each, differences with a standard deviation of 0.1 point between folds")
    for name, behind in BEHIND.items():
        for folds, repeats in ((5, 1), (10, 1), (5, 2), (5, 10)):
            each = [_race(rng, np.array(behind) / 100, folds, repeats) for _ in range(draws)]
            lost, chosen, without, trained = np.mean(each, axis=0)
            print(
                f"{name}, {repeats} x {folds}: best stopped {100 * lost:.1f} %; the chosen one is "
                f"{100 * chosen:.3f} points behind the best, {100 * without:.3f} without racing; "
                f"folds trained {100 * trained:.0f} %"
            )


def _race_of_equals(digits: Digits, rule: RacingChoice) -> bool:
    """Whether the first of two equally good classifiers of digits is stopped, in 2 x 5 folds."""
    gain = np.concatenate(list(digits.draw(iter(range(2)))))
    race = Race(rule=rule, runners=("one", "other"), total=len(gain))
    while race.until < race.total:
        until = race.until
        seen = {"one": gain[:until].tolist(), "other": [0.0] * until}
        race = race.after({name: seen[name] for name in race.running}, n_train=80, n_test=20)
    return "one" in race.stopped


def _race(
    rng: np.random.Generator, behind: NDArray[np.float64], folds: int, repeats: int
) -> tuple[float, float, float, float]:
    """Whether the best was stopped, how far the chosen is behind with and without, folds trained.

    Scores are normal and share 1/folds of their variance between folds, as the posterior assumes.
    """
    n, total = len(behind), folds * repeats
    shared, own = rng.normal(size=(n, 1)), rng.normal(size=(n, total))
    noise = np.sqrt(1 / folds) * shared + np.sqrt(1 - 1 / folds) * own
    # Differences within a race have a variance of 2 (1 - 1/folds) between folds.
    scores = 0.99 - behind[:, None] + 0.001 * noise / np.sqrt(2 - 2 / folds)
    names = {f"{position}": row for position, row in enumerate(scores)}
    race = Race(rule=RACE, runners=tuple(names), total=total)
    while race.until < total:
        seen = {name: names[name][: race.until].tolist() for name in race.running}
        race = race.after(seen, n_train=60_000 * (1 - 1 / folds), n_test=60_000 / folds)
    chosen = max(race.running, key=lambda name: names[name].mean())
    trained = sum(stop.folds for stop in race.stops) + total * len(race.running)
    return (
        float("0" in race.stopped),
        float(behind[int(chosen)]),
        float(behind[scores.mean(axis=1).argmax()]),
        trained / (n * total),
    )


def seeds(
    number: int = 20, rows: int = 12_000, epochs: int = 10, folder: Path | None = None
) -> None:
    """Print how the network from many seeds compares with itself from seed 0, and among themselves.

    The nights of all seeds share the fold plan, as it has a seed of its own. With a folder they are
    kept, and the same command goes on after the last one.
    """
    with TemporaryDirectory(prefix="nightfold-benchmark-") as other:
        work = folder or Path(other)
        work.mkdir(parents=True, exist_ok=True)
        recipe = write_experiment(work / "deep.toml", "deep", epochs)
        nights = []
        for seed in range(number + 1):
            night = work / "runs" / "runs" / f"seed-{seed}"
            if not (night / "summary.json").exists():
                options = ["--limit", str(rows), "--seed", str(seed), "--run-id", night.name]
                run_nightfold(
                    "evaluate",
                    recipe,
                    *options,
                    artifacts=work / "runs",
                    prefect_home=work / "prefect",
                )
            nights.append(night)
            mean = pd.read_parquet(night / "scores.parquet").accuracy.mean()
            print(f"seed {seed}: {100 * mean:.3f} %", flush=True)
        verdicts = pd.DataFrame(_compared(nights))
    print(f"deep, {epochs} epochs, {rows:,} rows, {number} seeds against seed 0, and all pairs")
    against = verdicts[verdicts.candidate_a == nights[0].name]
    for what, each in (("against seed 0", against), ("all pairs", verdicts)):
        spread = 100 * each.mean_difference
        print(
            f"{what}: {each.verdict.value_counts().to_dict()}, differences {spread.min():+.3f} to "
            f"{spread.max():+.3f} points"
        )


def _compared(nights: list[Path]) -> list[dict[str, Any]]:
    """Verdicts on the only candidates of `nights`, each called by its run."""
    plans = [FoldPlan.open(night / "foldplan.parquet") for night in nights]
    scores = [
        pd.read_parquet(night / "scores.parquet").assign(candidate=night.name) for night in nights
    ]
    predictions = [
        pd.read_parquet(night / "predictions.parquet").assign(candidate=night.name)
        for night in nights
    ]
    columns = ["candidate", "repeat", "row", "label", "predicted"]
    table = pa.Table.from_pandas(pd.concat(predictions)[columns], preserve_index=False)
    return compare_scores(pd.concat(scores), table, plans[0])


def check() -> None:
    """Make sure that the classifier above is scikit-learn's."""
    digits = Digits(seed=3)
    images = digits.images[:ROWS].reshape(ROWS, -1)
    labels = digits.labels[:ROWS]
    fold = np.arange(ROWS) % FOLDS
    unseen = fold[:, None] == fold
    ours = labels[np.where(unseen, np.inf, cdist(images, images)).argmin(axis=1)]
    folds = [(np.flatnonzero(fold != f), np.flatnonzero(fold == f)) for f in range(FOLDS)]
    theirs = cross_val_predict(KNeighborsClassifier(1), images, labels, cv=folds)
    assert (ours == theirs).mean() > 0.99, (ours == theirs).mean()


if __name__ == "__main__":
    check()
    app = typer.Typer(add_completion=False, help=__doc__, rich_markup_mode=None)
    for command in (alarms, years, races, seeds):
        app.command()(command)
    app()
