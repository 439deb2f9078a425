"""The command: quick help, one sentence for a mistake, the right exit code, clean JSON."""

import gzip
import subprocess
import sys
from pathlib import Path

import pytest

import flows

NIGHTFOLD = Path(sys.executable).with_name("nightfold")
ROOT = Path(flows.__file__).parent.parent


def run(*arguments, cwd=ROOT):
    return subprocess.run(
        [NIGHTFOLD, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=120
    )


def assert_refused(done, exit_code, *words):
    assert done.returncode == exit_code, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    assert done.stdout == ""


def test_help_imports_nothing_heavy():
    loaded = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, flows.cli; print([m for m in ('tensorflow', 'prefect', 'pandas', "
            "'matplotlib', 'great_expectations', 'sklearn', 'pyarrow') if m in sys.modules])",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert loaded.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "command", ["ingest", "validate", "evaluate", "retrain", "predict", "report"]
)
def test_every_command_explains_itself_with_an_example(command):
    done = run(command, "--help")
    assert done.returncode == 0
    assert f"nightfold {command}" in done.stdout
    assert "Example" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate", "nights"], ["'nights'", "night", "tutorial"]),
        (["evaluate", "--candidates", "shallow"], ["'shallow'", "baseline"]),
        (["evaluate", "--epochs", "-1"], ["epochs", "-1"]),
        (["evaluate", "--runner", "carrier-pigeon"], ["--runner", "carrier-pigeon"]),
        (["evaluate", "--workers", "0"], ["--workers"]),
        (["retrain", "--run-id", "../../etc"], ["run id"]),
        (["ingest", "idx:no/such/place"], ["no/such/place"]),
        (["ingest", "ftp:somewhere"], ["ftp", "folder"]),
        (["ingest", "mnist", "--size", "huge"], ["--size", "32x32"]),
        (["report", "no-such-run"], ["no-such-run"]),
        (["models", "rollback"], ["nightfold"]),
        (["predict", "no-such.png"], ["no-such.png"]),
        (["predict", "README.md", "--model", "v9"], ["v9"]),
    ],
    ids=lambda value: "-".join(map(str, value))[:40],
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(arguments, words, tmp_path):
    assert_refused(run(*arguments, "--artifacts", tmp_path), 2, *words)


def test_a_negative_learning_rate_names_the_file_and_the_key(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        '[[candidates]]\nname = "a"\narchitecture = "baseline"\n'
        "optimizer = { learning_rate = -0.1 }\n"
    )
    done = run("evaluate", path, "--artifacts", tmp_path)
    assert_refused(done, 2, "mine.toml", "learning_rate", "-0.1")


def test_a_truncated_gzip_names_the_file(small_idx, tmp_path):
    path = small_idx / "train-images-idx3-ubyte"
    whole = gzip.compress(path.read_bytes())
    path.unlink()
    path.with_suffix(".gz").write_bytes(whole[: len(whole) // 2])
    done = run("ingest", f"idx:{small_idx}", "--artifacts", tmp_path / "a")
    assert_refused(done, 3, "train-images-idx3-ubyte.gz")


def test_a_wrong_magic_number_names_the_file(small_idx, tmp_path):
    path = small_idx / "train-labels-idx1-ubyte"
    path.write_bytes(b"\x12\x34\x56\x78" + path.read_bytes()[4:])
    done = run("ingest", f"idx:{small_idx}", "--artifacts", tmp_path / "a")
    assert_refused(done, 3, "train-labels-idx1-ubyte", "byte")


def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "photos").mkdir()
    done = run("ingest", f"folder:{tmp_path / 'photos'}", "--artifacts", tmp_path / "a")
    assert_refused(done, 3, "photos")


def test_a_text_file_named_png_is_refused_by_name(tmp_path):
    for name in ("cat", "dog"):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        (folder / "1.png").write_text("not a picture")
    done = run("ingest", f"folder:{tmp_path / 'photos'}", "--artifacts", tmp_path / "a")
    assert_refused(done, 3, "1.png")


@pytest.mark.slow
def test_a_label_outside_the_classes_is_refused_by_row(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from nightfold.experiment import shipped

    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "test"):
        table = pq.read_table(shipped("data", "mnist", f"{split}.parquet")).slice(0, 200)
        if split == "train":
            labels = table["label"].to_numpy().copy()
            labels[17] = 12
            table = table.set_column(1, table.schema.field("label"), pa.array(labels))
        pq.write_table(table, folder / f"{split}.parquet")
    done = run("validate", f"parquet:{folder}", "--artifacts", tmp_path / "a")
    assert done.returncode == 3
    assert "rows 17 (" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_shipped_digits_are_sound(tmp_path):
    done = run("validate", "mnist", "--artifacts", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "critical" not in done.stdout
