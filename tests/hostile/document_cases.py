"""Experiments, pointers, manifests and what runs left: tampered, cut, absurd."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nightfold.dataset import Dataset, Split
from nightfold.experiment import PlanChoice
from nightfold.foldplan import FoldPlan
from nightfold.tables import FOLDPLAN, SCORES
from tests.hostile.corpus import case, digits
from tests.hostile.npz_cases import headed, npy

# ---------------------------------------------------------------- experiments

TOML = '[[candidates]]\nname = "a"\narchitecture = "dense"\n'

_TOML: dict[str, tuple[str | bytes, tuple[str, ...]]] = {
    "no byte": ("", ("candidates", "field required")),
    "not TOML": ("candidates: [a]", ("not valid TOML", "line 1")),
    "JSON": ('{"name": "x"}', ("not valid TOML", "line 1")),
    "not decodable": (b'name = "\xff"', ("not valid TOML", "position 8")),
    "UTF-16": ('name = "x"'.encode("utf-16"), ("not valid TOML", "position 0")),
    "a key twice": ("seed = 1\nseed = 2\n" + TOML, ("not valid TOML", "line 2")),
    "arrays 30,000 deep": ("x = " + "[" * 30_000, ("not valid TOML", "deep")),
    "tables 20,000 deep": ("x = " + "{x=" * 20_000, ("not valid TOML", "deep")),
    "a key of 30,000 parts": (".".join("x" * 30_000) + " = 1", ("not valid TOML", "dots")),
    "a number of 5,000 digits": ("seed = " + "9" * 5000, ("not valid TOML",)),
    "2 MB of comments": ("#\n" * 2**20 + TOML, ("larger than",)),
    "an unknown key": ("sede = 1\n" + TOML, ("sede", "there is no such key")),
    "an unknown key in a candidate": (
        TOML + "epoch = 1\n",
        ("candidates.0.epoch", "there is no such key"),
    ),
    "a text for a number": ('seed = "one"\n' + TOML, ("seed", "'one'")),
    "a list for a table": ("plan = []\n" + TOML, ("plan",)),
    "a table for a list": ('[candidates]\nname = "a"\n', ("candidates",)),
    "a date for a name": ("name = 2026-11-21\n" + TOML, ("name",)),
    "a path for a name": ('name = "../../x"\n' + TOML, ("name", "'../../x'")),
    "a name with a line break": ('name = "a\\nb"\n' + TOML, ("name",)),
    "a million folds": (TOML + "[plan]\nfolds = 1_000_000\n", ("plan.folds", "1000000")),
    "one fold": (TOML + "[plan]\nfolds = 1\n", ("plan.folds", "1")),
    "minus five repeats": (TOML + "[plan]\nrepeats = -5\n", ("plan.repeats", "-5")),
    "half a fold": (TOML + "[plan]\nfolds = 2.5\n", ("plan.folds", "2.5")),
    "1e12 epochs": (TOML + "epochs = 1e12\n", ("candidates.0.epochs",)),
    "10**30 epochs": (TOML + f"epochs = {10**30}\n", ("candidates.0.epochs",)),
    "batches of -32": (TOML + "batch_size = -32\n", ("batch_size", "-32")),
    "batches of 10**9": (TOML + "batch_size = 1_000_000_000\n", ("batch_size", "1000000000")),
    "a learning rate that is no number": (
        TOML + "optimizer = { learning_rate = nan }\n",
        ("optimizer.learning_rate", "nan"),
    ),
    "an endless learning rate": (
        TOML + "optimizer = { learning_rate = inf }\n",
        ("optimizer.learning_rate", "inf"),
    ),
    "a negative learning rate": (
        TOML + "optimizer = { learning_rate = -0.1 }\n",
        ("optimizer.learning_rate", "-0.1"),
    ),
    "momentum that is no number": (
        TOML + "optimizer = { momentum = nan }\n",
        ("optimizer.momentum", "nan"),
    ),
    "label smoothing that is no number": (
        TOML + "label_smoothing = nan\n",
        ("label_smoothing", "nan"),
    ),
    "an endless smallest fall": (
        TOML + "early_stopping = { min_delta = inf }\n",
        ("min_delta", "inf"),
    ),
    "a turn that is no number": (
        TOML + "augmentation = { rotation = nan }\n",
        ("rotation", "nan"),
    ),
    "a hold-out of everything": (TOML + "[dataset]\nholdout = 1.0\n", ("dataset.holdout", "1.0")),
    "a hold-out that is no number": (TOML + "[dataset]\nholdout = nan\n", ("holdout", "nan")),
    "a hold-out seed of 10**30": (
        TOML + f"[dataset]\nholdout_seed = {10**30}\n",
        ("dataset.holdout_seed",),
    ),
    "a limit of 0 rows": (TOML + "[dataset]\nlimit = 0\n", ("dataset.limit", "0")),
    "a size of three": (TOML + "[dataset]\nsize = [8, 8, 8]\n", ("dataset.size",)),
    "a source of nothing": (TOML + "[dataset]\nsource = 7\n", ("dataset.source", "7")),
    "a balance that is no number": (
        TOML + "[validation.reference_balance]\na = nan\n",
        ("reference_balance.a", "nan"),
    ),
    "an endless imbalance": (TOML + "[validation]\nmax_imbalance = inf\n", ("max_imbalance",)),
    "no candidate": ("candidates = []\n", ("candidates",)),
    "two of one name": (TOML * 2, ("two candidates are named 'a'",)),
    "1,001 candidates": (
        "".join(TOML.replace('"a"', f'"a{n}"') for n in range(1_001)),
        ("candidates", "1000"),
    ),
    "an architecture that does not exist": (
        TOML.replace("dense", "../dense"),
        ("architecture", "module:function"),
    ),
    "a text of 60 KB where a number belongs": (
        f'seed = "{"x" * 60_000}"\n' + TOML,
        ("seed", "..."),
    ),
}
for _name, (_text, _words) in _TOML.items():

    @case("experiment", _name, "x.toml", *_words)
    def _experiment(folder: Path, text: str | bytes = _text) -> Path:
        content = text if isinstance(text, bytes) else text.encode()
        (folder / "x.toml").write_bytes(content)
        return folder / "x.toml"


@case("experiment", "sound (control)")
def _sound(folder: Path) -> Path:
    (folder / "x.toml").write_text(TOML)
    return folder / "x.toml"


@case("experiment", "saved by Notepad, with a byte order mark and its line ends")
def _notepad(folder: Path) -> Path:
    (folder / "x.toml").write_bytes(TOML.replace("\n", "\r\n").encode("utf-8-sig"))
    return folder / "x.toml"


@case("experiment", "that may not be read", "Permission denied", unprivileged=True)
def _forbidden(folder: Path) -> Path:
    (folder / "x.toml").write_text(TOML)
    (folder / "x.toml").chmod(0)
    return folder / "x.toml"


for _name, _path, _words in (
    ("longer than any path", "x" * 5000, ("too long",)),
    ("home of nobody", "~no-such-user/x.toml", ("~no-such-user",)),
    ("an endless device", "/dev/zero", ("no experiment '/dev/zero'",)),
    ("a folder", "FOLDER", ("no experiment",)),
    ("out of the shipped ones", "../../../etc/passwd", ("passwd",)),
):

    @case("experiment", f"path: {_name}", *_words)
    def _path_of(folder: Path, path: str = _path) -> str:
        return path.replace("FOLDER", str(folder))


# ---------------------------------------------------------------- pointers and manifests


def pointer(**changes: Any) -> dict[str, Any]:
    """A sound champion pointer but for the keys given."""
    return {
        "version": "night-1",
        "manifest_sha256": "0" * 64,
        "promoted_at": "2026-11-21T02:00:00Z",
        "reason": "The first model.",
        "action": "promotion",
        "looks": [],
        "format": 1,
        "history": [],
        **changes,
    }


def entry() -> dict[str, Any]:
    """A sound entry of a pointer's history."""
    whole = pointer(version="night-0", looks=["3" * 64])
    return {key: value for key, value in whole.items() if key not in ("format", "history")}


def manifest(**changes: Any) -> dict[str, Any]:
    """A sound manifest but for the keys given."""
    return {
        "version": "night-1",
        "run_id": "night-1",
        "dataset": "digits",
        "dataset_digest": "0" * 64,
        "plan_digest": "1" * 64,
        "class_names": list("0123456789"),
        "scaling": {"name": "normalize"},
        "candidate": {"name": "a"},
        "candidate_digest": "2" * 64,
        "cross_validated": {"mean": 0.9, "std": 0.01, "n": 2, "per_fold": [0.89, 0.91]},
        "holdout": {"rows": 9, "accuracy": 0.9, "log_loss": 0.1, "brier": 0.1, "ece": 0.1},
        "format": 1,
        "files": {},
        "input_shape": [8, 8, 1],
        "input_dtype": "uint8",
        "created_at": "2026-11-21T02:00:00Z",
        "code_version": "0.1.0",
        "library_versions": {},
        **changes,
    }


_DEEP = b"[" * 200_000 + b"]" * 200_000
_RAW: dict[str, bytes] = {
    "no byte": b"",
    "zeros, as a lost power leaves them": bytes(512),
    "not decodable": b'{"version": "\xff"}',
    "200,000 brackets deep": _DEEP,
    "a list": b"[]",
    "a number": b"7",
    "null": b"null",
    "a number of 5,000 digits": b'{"format": ' + b"9" * 5000 + b"}",
    "not a number": b'{"format": NaN}',
}


def _whole(document: dict[str, Any]) -> dict[str, bytes]:
    text = json.dumps(document).encode()
    return {
        **_RAW,
        "half of it": text[: len(text) // 2],
        "a second document behind": text + text,
        "half a letter": text.replace(b"night-1", b"\\ud800", 1),
    }


_POINTERS: dict[str, dict[str, Any]] = {
    "a path for a version": {"version": "../../etc"},
    "the folder itself for a version": {"version": "."},
    "an absolute path for a version": {"version": "/etc"},
    "a version with a line break": {"version": "night-1\n"},
    "a version of 300 letters": {"version": "x" * 300},
    "a digest that is none": {"manifest_sha256": "0" * 63},
    "a digest in capitals": {"manifest_sha256": "A" * 64},
    "format 2": {"format": 2},
    "an unknown key": {"signature": "x"},
    "a time without a zone": {"promoted_at": "2026-11-21T02:00:00"},
    "a time of year 10**9": {"promoted_at": 1e18},
    "a path in its history": {"history": [{**pointer(version="../x"), "format": 1}]},
    "looks that are a number": {"looks": 7},
}


def _store(folder: Path, name: str, content: bytes) -> Path:
    path = folder / "artifacts" / "models" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return folder / "artifacts"


for _name, _content in {
    **_whole(pointer()),
    **{name: json.dumps(pointer(**changes)).encode() for name, changes in _POINTERS.items()},
}.items():

    @case("pointer", _name, "champion.json")
    def _pointer(folder: Path, content: bytes = _content) -> Path:
        return _store(folder, "champion.json", content)


@case("pointer", "a folder", "champion.json")
def _pointer_folder(folder: Path) -> Path:
    (folder / "artifacts" / "models" / "champion.json").mkdir(parents=True)
    return folder / "artifacts"


@case("pointer", "to a model that is not there", "night-1", "manifest.json")
def _pointer_lost(folder: Path) -> Path:
    return _store(folder, "champion.json", json.dumps(pointer()).encode())


_MANIFESTS: dict[str, dict[str, Any]] = {
    "format 2": {"format": 2},
    "format true": {"format": True},
    "a path for a version": {"version": "../x"},
    "an unknown key": {"x": 1},
    "one class": {"class_names": ["a"]},
    "classes that are a text": {"class_names": "0123456789"},
    "no rows in the hold-out": {
        "holdout": {"rows": 0, "accuracy": 1, "log_loss": 0, "brier": 0, "ece": 0}
    },
    "an image of no pixel": {"input_shape": [0, 8, 1]},
    "an image of 10**12 rows": {"input_shape": [10**12, 8, 1]},
    "an image of -8 rows": {"input_shape": [-8, 8, 1]},
    "an image of 2 channels": {"input_shape": [8, 8, 2]},
    "an accuracy that is no number": {
        "holdout": {"rows": 1, "accuracy": float("nan"), "log_loss": 0, "brier": 0, "ece": 0}
    },
    "a scaling that is no number": {"scaling": {"factor": float("nan")}},
    "a file of another folder": {"files": {"../../etc/passwd": {"sha256": "0" * 64, "bytes": 1}}},
    "a file of -1 bytes": {"files": {"model.keras": {"sha256": "0" * 64, "bytes": -1}}},
}
for _name, _content in {
    **_whole(manifest()),
    **{name: json.dumps(manifest(**changes)).encode() for name, changes in _MANIFESTS.items()},
    "a key twice": json.dumps(manifest()).encode()[:-1] + b', "format": 1, "format": 1}',
}.items():

    @case("manifest", _name, "manifest.json")
    def _manifest(folder: Path, content: bytes = _content) -> Path:
        return _store(folder, "night-1/manifest.json", content) / "models" / "night-1"


# ---------------------------------------------------------------- snapshots


def snapshot(folder: Path) -> Path:
    """A sound snapshot of the digits."""
    images, labels = digits()
    rows = Split(images[..., np.newaxis], labels)
    return Dataset.write(
        folder,
        name="digits",
        origin="digits",
        class_names=tuple("0123456789"),
        train=rows,
        test=Split(rows.images[:9], rows.labels[:9]),
    ).path


_ARRAYS: dict[str, bytes] = {
    "no byte": b"",
    "a pickle": b"\x80\x04N.",
    "an archive": b"PK\x03\x04" + bytes(64),
    "half of it": npy(np.zeros((60, 8, 8, 1), "u1"))[:2000],
    "of another shape": npy(np.zeros((60, 64), "u1")),
    "with a row less": npy(np.zeros((59, 8, 8, 1), "u1")),
    "of zeros": npy(np.zeros((60, 8, 8, 1), "u1")),
    "header of lists as keys": headed("{[]: 1}\n"),
    "header of minus signs": headed("-" * 9000 + "1\n"),
    "of 10**30 rows": headed(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({10**30},)}}\n"),
    "of 1 TB": headed("{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776,)}\n"),
    "of objects": headed("{'descr': '|O', 'fortran_order': False, 'shape': (60,)}\n", bytes(480)),
}
for _file in ("train_images.npy", "train_labels.npy"):
    for _name, _content in _ARRAYS.items():

        @case("snapshot", f"{_file} {_name}", "snapshot", "delete that folder and run again")
        def _array(folder: Path, file: str = _file, content: bytes = _content) -> Path:
            path = snapshot(folder)
            (path / file).write_bytes(content)
            return path


_ABOUT: dict[str, Any] = {
    "no key": {},
    "without a digest": {"digest": None},
    "a digest that is a number": {"digest": 7},
    "classes that are a text": {"class_names": "0123456789"},
    "classes that are a number": {"class_names": 7},
    "format 2": {"format": 2},
    "another digest": {"digest": "0" * 64},
}
for _name, _about in {**_RAW, **_ABOUT}.items():

    @case("snapshot", f"dataset.json {_name}", "snapshot", "delete that folder and run again")
    def _index(folder: Path, about: Any = _about) -> Path:
        path = snapshot(folder)
        content = about
        if not isinstance(content, bytes):
            content = json.dumps(
                {**json.loads((path / "dataset.json").read_text()), **about} if about else {}
            ).encode()
        (path / "dataset.json").write_bytes(content)
        return path


@case("snapshot", "without its test labels", "test_labels.npy", "delete that folder")
def _incomplete(folder: Path) -> Path:
    path = snapshot(folder)
    (path / "test_labels.npy").unlink()
    return path


@case("snapshot", "sound (control)")
def _sound_snapshot(folder: Path) -> Path:
    return snapshot(folder)


# ---------------------------------------------------------------- fold plans


def plan(folder: Path) -> Path:
    """A sound fold plan of the digits."""
    dataset = Dataset.open(snapshot(folder / "datasets"))
    return FoldPlan.build(PlanChoice(folds=5, repeats=2), dataset).save(folder)


@case("fold plan", "sound (control)")
def _sound_plan(folder: Path) -> Path:
    return plan(folder)


_PLANS: dict[str, tuple[bool, dict[str, str]]] = {
    "of 10**12 repeats": (False, {"repeats": str(10**12)}),
    "of no row and 10**12 repeats": (True, {"repeats": str(10**12)}),
    "of 10**12 folds": (False, {"folds": str(10**12)}),
    "of 10**30 folds": (False, {"folds": str(10**30)}),
    "of -1 repeats": (False, {"repeats": "-1"}),
    "of no repeat": (False, {"repeats": "0"}),
    "of half a fold": (False, {"folds": "2.5"}),
    "of a number of 5,000 digits": (False, {"seed": "9" * 5000}),
    "without rows": (True, {}),
    "of other data": (False, {"dataset_digest": "f" * 64}),
}
for _name, (_rowless, _meta) in _PLANS.items():

    @case("fold plan", _name, ".parquet", "delete that file if it is there")
    def _plan(folder: Path, rowless: bool = _rowless, changes: dict[str, str] = _meta) -> Path:
        path = plan(folder)
        table = pq.read_table(path)
        metadata = dict(table.schema.metadata)
        metadata |= {f"nightfold.{key}".encode(): value.encode() for key, value in changes.items()}
        if rowless:
            table = table[:0]
        pq.write_table(table.replace_schema_metadata(metadata), path)
        return path


@case("fold plan", "of missing folds", ".parquet", "delete that file if it is there")
def _null_plan(folder: Path) -> Path:
    path = plan(folder)
    table = pq.read_table(path)
    folds = pa.array([None, *table["fold"].to_pylist()[1:]], pa.int32())
    fields = [field.with_nullable(True) for field in FOLDPLAN]
    changed = pa.table([table["repeat"], table["row"], folds], schema=pa.schema(fields))
    pq.write_table(changed.replace_schema_metadata(table.schema.metadata), path)
    return path


@case("fold plan", "half of it", ".parquet", "delete that file if it is there")
def _half_plan(folder: Path) -> Path:
    path = plan(folder)
    os.truncate(path, path.stat().st_size // 2)
    return path


# ---------------------------------------------------------------- what runs left


def summary(**changes: Any) -> dict[str, Any]:
    """A sound summary of a night but for the keys given."""
    return {
        "run_id": "night-1",
        "flow": "retrain",
        "experiment": "night",
        "experiment_description": "",
        "experiment_digest": "e" * 64,
        "started_at": "2026-11-21T02:00:00Z",
        "finished_at": "2026-11-21T02:14:00Z",
        "host": "night-1",
        "processors": 2,
        "workers": 2,
        "runner": "processes",
        "versions": {},
        "dataset": {
            "name": "digits",
            "origin": "digits",
            "path": "",
            "digest": "0" * 64,
            "n_train": 60,
            "n_test": 9,
            "image_shape": [8, 8, 1],
            "class_names": list("0123456789"),
        },
        "plan": {"digest": "1" * 64, "scheme": "kfold", "folds": 5, "repeats": 1, "seed": 1},
        "candidates": [
            {
                "name": "a",
                "digest": "2" * 64,
                "architecture": "dense",
                "scaling": "normalize",
                "epochs": 1,
                "n": 5,
                "accuracy_mean": 0.9,
                "accuracy_std": 0.01,
                "log_loss_mean": 0.1,
                "train_seconds": 1.0,
                "parameters": 7,
            }
        ],
        "best": "a",
        **changes,
    }


_SUMMARIES: dict[str, dict[str, Any]] = {
    "whose best is no candidate": {"best": "b"},
    "without candidates": {"candidates": []},
    "with times that have no zone": {
        "started_at": "2026-11-21T02:00:00",
        "finished_at": "2026-11-21T02:14:00",
    },
    "with an unknown key": {"x": 1},
    "of an unknown flow": {"flow": 7},
}


def _runs(folder: Path, content: bytes) -> Path:
    for run, what in (
        ("night-0", json.dumps(summary(run_id="night-0")).encode()),
        ("bad", content),
    ):
        path = folder / "artifacts" / "runs" / run / "summary.json"
        path.parent.mkdir(parents=True)
        path.write_bytes(what)
    return folder / "artifacts"


for _name, _content in {
    **_whole(summary()),
    **{name: json.dumps(summary(**changes)).encode() for name, changes in _SUMMARIES.items()},
}.items():
    if _name == "half a letter":
        continue

    @case("history", f"a summary {_name}", "bad (its summary cannot be read)")
    def _history(folder: Path, content: bytes = _content) -> Path:
        return _runs(folder, content)

    @case("report", f"a summary {_name}", "summary.json")
    def _report(folder: Path, content: bytes = _content) -> Path:
        return _runs(folder, content)


@case("latest", "a run that is gone", "no complete run 'gone'", "night-0")
def _latest_gone(folder: Path) -> Path:
    root = _runs(folder, b"{}")
    (root / "latest.json").write_text('{"run_id": "gone"}')
    return root


for _name, _content in {
    **_RAW,
    "a path for a run": b'{"run_id": "../../etc"}',
    "a run with a line break": b'{"run_id": "a\\nb"}',
    "a run that is a list": b'{"run_id": []}',
}.items():

    @case("latest", _name, "nightfold report RUN_ID")
    def _latest(folder: Path, content: bytes = _content) -> Path:
        root = _runs(folder, b"{}")
        (root / "latest.json").write_bytes(content)
        return root


_RESULTS: dict[str, bytes] = {**_RAW, "half of it": b'{"key": "'}
for _name, _content in _RESULTS.items():

    @case("fold result", f"result.json {_name}", "trained anew")
    def _result(folder: Path, content: bytes = _content) -> Path:
        (folder / "result.json").write_bytes(content)
        (folder / "progress.json").write_bytes(content)
        (folder / "probabilities.npy").write_bytes(b"x")
        return folder


def _scores(folder: Path, table: pa.Table) -> Path:
    path = folder / "artifacts" / "scores" / "run_date=2026-11-21" / "bad.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(table, path)
    return folder / "artifacts"


def _nothing(schema: pa.Schema) -> pa.Table:
    return schema.remove(schema.get_field_index("run_date")).empty_table()


@case("score table", "without a column", "bad.parquet")
def _scores_short(folder: Path) -> Path:
    return _scores(folder, _nothing(SCORES).drop_columns(["accuracy"]))


@case("score table", "with a text for a number", "bad.parquet")
def _scores_text(folder: Path) -> Path:
    table = _nothing(SCORES)
    place = table.schema.get_field_index("accuracy")
    return _scores(folder, table.set_column(place, "accuracy", pa.array([], pa.string())))


@case("score table", "half of it", "bad.parquet")
def _scores_half(folder: Path) -> Path:
    root = _scores(folder, _nothing(SCORES))
    [path] = root.rglob("*.parquet")
    os.truncate(path, path.stat().st_size // 2)
    return root


@case("score table", "a folder", "bad.parquet")
def _scores_folder(folder: Path) -> Path:
    (folder / "artifacts" / "scores" / "run_date=2026-11-21" / "bad.parquet").mkdir(parents=True)
    return folder / "artifacts"


@case("score table", "a pipe", "bad.parquet")
def _scores_pipe(folder: Path) -> Path:
    path = folder / "artifacts" / "scores" / "run_date=2026-11-21" / "bad.parquet"
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    return folder / "artifacts"
