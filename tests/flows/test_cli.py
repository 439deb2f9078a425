"""The command: quick help, one sentence for a mistake, the right exit code, clean JSON."""

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import flows
from nightfold import runlog
from nightfold.experiment import Candidate
from nightfold.registry import Registry
from nightfold.store import Store
from nightfold.summary import PromotionFacts

NIGHTFOLD = Path(sys.executable).with_name("nightfold")
ROOT = Path(flows.__file__).parent.parent
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
"""What is written stays in the process until it is flushed, as in most shells."""


def run(*arguments, **environment):
    return subprocess.run(
        [NIGHTFOLD, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
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
    "command",
    [
        *("ingest", "validate", "evaluate", "retrain", "plan", "history", "diff", "predict"),
        *("report", "prune", "automate"),
    ],
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
        (["evaluate", "--candidates", ""], ["''", "baseline"]),
        (["evaluate", "--epochs", "-1"], ["epochs", "-1"]),
        (["evaluate", "--runner", "carrier-pigeon"], ["--runner", "carrier-pigeon"]),
        (["evaluate", "--workers", "0"], ["--workers"]),
        (["evaluate", "--workers", "100000"], ["--workers", "cores", "at most"]),
        (["retrain", "--run-id", "../../etc"], ["run id"]),
        (["plan", "--repeats", "0"], ["repeats", "0"]),
        (["ingest", "idx:no/such/place"], ["no/such/place"]),
        (["ingest", "ftp:somewhere"], ["ftp", "folder"]),
        (["ingest", "mnist", "--size", "huge"], ["--size", "32x32"]),
        (["report", "no-such-run"], ["no-such-run"]),
        (["diff", "one", "no-such-run"], ["no-such-run"]),
        (["diff", "--minutes", "nan"], ["--minutes"]),
        (["diff", "--workers", "100000"], ["--workers", "cores", "at most"]),
        (["prune", "--keep", "0"], ["--keep 0", "from 1"]),
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
def test_a_server_that_does_not_answer_is_named(tmp_path):
    url = "http://127.0.0.1:9/api"
    done = run("evaluate", "--limit", "100", "--artifacts", tmp_path, PREFECT_API_URL=url)
    assert_refused(done, 2, url, "PREFECT_API_URL", "prefect server start")


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_night_says_how_to_go_on(sent, exit_code, tmp_path):
    night = subprocess.Popen(
        [NIGHTFOLD, "retrain", "--limit", "200", "--artifacts", tmp_path / "a"],
        cwd=ROOT,
        env={**os.environ, "PREFECT_HOME": str(tmp_path / "prefect")},
        stderr=subprocess.PIPE,
        text=True,
        # A test runner in the background may ignore the interrupts of its terminal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    begun = night.stderr.readline()
    night.send_signal(sent)
    _, rest = night.communicate(timeout=60)
    assert "retrain night" in begun
    assert night.returncode == exit_code
    assert "go on behind the last finished epoch" in rest
    assert "Traceback" not in rest


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_an_import_swallows_stops_the_command_behind_it(monkeypatch, sent):
    from flows.cli import server as cli

    def stop(*_):
        raise KeyboardInterrupt

    def swallow(_argument):
        with suppress(BaseException):
            signal.raise_signal(sent)

    # Whether there is a server to knock at depends on the tests before this one.
    monkeypatch.setattr(cli, "_start_server", swallow)
    monkeypatch.setattr(cli, "_knock", swallow)
    before = signal.signal(sent, stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            cli.prepare_prefect()
        assert signal.getsignal(sent) is stop
    finally:
        signal.signal(sent, before)


def test_a_command_that_is_stopped_does_not_wait_for_imports_that_never_end(monkeypatch):
    """A signal amid an import can leave Python's lock of imports taken: one stop in fifty hung."""
    from flows.cli import server as cli

    class Started:
        url = "http://127.0.0.1:1/api"

        def wait(self, _seconds):
            raise KeyboardInterrupt

    monkeypatch.setenv("PREFECT_API_URL", "")
    monkeypatch.setattr("flows.server.start", Started)
    monkeypatch.setattr("prefect.context.refresh_global_settings_context", lambda: None)
    monkeypatch.setattr(cli, "LAST_IMPORTS", 0.1)
    monkeypatch.setattr(cli, "_get_ready", lambda *_: threading.Event().wait(60))
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        cli._start_server(2)
    assert time.monotonic() - started < 30


@pytest.fixture(scope="module")
def prefect_home(tmp_path_factory):
    """Of one night after the other: only the first makes its database."""
    return tmp_path_factory.mktemp("prefect")


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_every_process_of_a_night_stops_it_as_one_to_the_command_does(
    sent, exit_code, small_parquet, prefect_home, tmp_path
):
    """A terminal and a service manager tell workers and server as well, which must hear the end."""
    asked = ("--dataset", f"parquet:{small_parquet}", "--epochs", "1000")
    night = subprocess.Popen(
        [NIGHTFOLD, "evaluate", *asked, "--artifacts", tmp_path],
        cwd=ROOT,
        env={**os.environ, "PREFECT_HOME": str(prefect_home)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while "folds planned" not in night.stderr.readline():
        assert night.poll() is None
    while not list(tmp_path.glob("folds/*/progress.json")):
        time.sleep(0.1)
    os.killpg(night.pid, sent)
    _, rest = night.communicate(timeout=60)
    assert night.returncode == exit_code, rest
    assert "go on behind the last finished epoch" in rest
    assert "Traceback" not in rest


@pytest.mark.parametrize(("sent", "exit_code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_that_meets_a_destructor_is_not_lost(sent, exit_code):
    """As it may while modules are imported: Python drops what is raised there."""
    code = f"""
import signal, time
from flows import cli

class Deaf:
    def __del__(self):
        signal.raise_signal(signal.{sent})

@cli.app.command()
def wait():
    Deaf()
    time.sleep(60)

signal.signal(signal.SIGINT, signal.default_int_handler)
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", code, "wait"], cwd=ROOT, timeout=30)
    assert done.returncode == exit_code


def test_the_end_runs_exit_handlers_and_loses_nothing_and_takes_nothing_apart():
    code = """
import atexit, sys
from flows import cli

class Kept:
    def __del__(self):
        print("taken apart")

kept = Kept()
kept.itself = kept

@cli.app.command()
def leave():
    atexit.register(print, "handled")
    print("said", end=" ")
    sys.exit(7)

cli.main()
"""
    command = [sys.executable, "-c", code, "leave"]
    done = subprocess.run(
        command, cwd=ROOT, env=BUFFERED, capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, "said handled\n", "")


def test_an_error_nobody_has_foreseen_ends_in_1_and_says_where():
    code = "from flows import cli\n@cli.app.command()\ndef err():\n    1 / 0\ncli.main()"
    command = [sys.executable, "-c", code, "err"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("said", ["say('x')", "show_table(Table('column'))"])
def test_a_full_disk_behind_standard_output_is_one_sentence(said):
    code = f"""
from rich.table import Table
from flows import cli
from flows.cli.output import say, show_table

@cli.app.command()
def tell():
    {said}

cli.main()
"""
    command = [sys.executable, "-c", code, "tell"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, cwd=ROOT, env=BUFFERED, stdout=full, stderr=subprocess.PIPE, timeout=30
        )
    assert done.returncode == 1
    assert done.stderr.decode() == (
        "nightfold: Standard output could not be written (No space left on device): make room or "
        "send it elsewhere.\n"
    )


def test_a_plan_is_told_without_a_night_before_it(small_idx, tmp_path):
    done = run("plan", "--dataset", f"idx:{small_idx}", "--artifacts", tmp_path / "a")
    assert done.returncode == 0, done.stderr
    assert "600 images, 5 folds" in done.stdout
    assert "swift against baseline" in done.stdout
    assert "any number" in done.stdout
    assert "unknown" in done.stdout
    assert "Assumed" in done.stderr


def test_a_plan_in_json_is_all_there_is_on_standard_output(small_idx, tmp_path):
    arguments = ("--dataset", f"idx:{small_idx}", "--repeats", "2", "--json")
    done = run("plan", *arguments, "--artifacts", tmp_path / "a")
    told = json.loads(done.stdout)
    assert [effort["repeats"] for effort in told["efforts"]] == [2, 4, 6, 10, 20]
    assert told["notes"]


NIGHT = datetime(2026, 11, 21, 2, tzinfo=UTC)


def test_the_history_of_no_night_says_how_to_make_one(tmp_path):
    done = run("history", "--artifacts", tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    assert "nightfold retrain" in done.stderr
    assert json.loads(run("history", "--json", "--artifacts", tmp_path).stdout)["nights"] == []


def test_the_history_tells_each_night_and_names_what_it_left_out(tmp_path, write_night):
    store = Store(tmp_path)
    deep = Candidate(name="deep", architecture="deep")
    first = write_night(
        store,
        NIGHT,
        {deep: 0.99},
        PromotionFacts(promoted=True, reason="", champion="20261121-020000-1a2b3c"),
    )
    kept = PromotionFacts(promoted=False, reason="", champion=first.run_id)
    write_night(store, NIGHT + timedelta(days=1), {deep: 0.991}, kept, data="b")
    (store.run("broken") / "figures").mkdir(parents=True)
    store.run("refused").mkdir()
    (store.run("refused") / runlog.NAME).write_text("{}")
    done = run("history", "--artifacts", tmp_path)
    lines = done.stdout.splitlines()
    assert lines[1].split()[-3:] == ["deep", "99.000", "promoted"]
    assert "mnist, changed" in lines[2]
    assert lines[2].split()[-3:] == ["deep", "99.100", "refused"]
    assert "± 0.0" in lines[2]
    assert "Left out: broken (unfinished" in done.stderr
    assert "refused (" not in done.stderr
    told = json.loads(run("history", "--json", "--artifacts", tmp_path).stdout)
    assert [night["outcome"] for night in told["nights"]] == ["promote", "refuse"]


def test_a_champion_by_hand_is_told_though_there_was_no_night(tmp_path, add_bundle):
    add_bundle(Store(tmp_path).models, "a")
    Registry(Store(tmp_path)).promote("a", "by hand")
    done = run("history", "--artifacts", tmp_path)
    assert done.stdout.splitlines()[1].split()[2:] == ["a", "promotion", "by", "hand"]
    assert "No nights" in done.stderr


def test_a_list_of_models_says_if_nobody_can_tell_the_champion(tmp_path, add_bundle):
    add_bundle(Store(tmp_path).models, "a")
    (Store(tmp_path).models / "champion.json").write_text("{")
    for options in ([], ["--json"]):
        done = run("models", "list", *options, "--artifacts", tmp_path)
        assert "champion.json was altered" in done.stderr
        assert done.returncode == 0


def test_pruning_says_what_went_and_what_would(tmp_path, write_night):
    store = Store(tmp_path)
    deep = Candidate(name="deep", architecture="deep")
    names = [
        write_night(store, datetime(2024, 1, day, 2, tzinfo=UTC), {deep: 0.99}, None).run_id
        for day in (1, 2, 3)
    ]
    done = run("prune", "--keep", "2", "--dry-run", "--artifacts", tmp_path)
    assert done.stdout.startswith("would remove     1 runs, 0 models")
    told = json.loads(run("prune", "--keep", "2", "--json", "--artifacts", tmp_path).stdout)
    assert (told["dry_run"], told["kept"]) == (False, names[1:])
    assert told["removed"]["runs"] == names[:1]
    assert sorted(path.name for path in store.runs.iterdir()) == names[1:]
    history = run("history", "--json", "--artifacts", tmp_path)
    assert len(json.loads(history.stdout)["nights"]) == 3


def test_automations_need_a_server_that_stays(tmp_path):
    home = {"PREFECT_API_URL": "", "PREFECT_HOME": str(tmp_path)}
    done = run("automate", NIGHTFOLD_WEBHOOK="https://chat.example/secret", **home)
    assert_refused(done, 2, "PREFECT_API_URL", "prefect server start")
    assert "secret" not in done.stderr


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
def test_a_night_in_which_held_out_rows_leak_into_training_is_refused_by_row(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from nightfold.experiment import shipped

    folder = tmp_path / "data"
    folder.mkdir()
    train, test = (
        pq.read_table(shipped("data", "mnist", f"{split}.parquet")).slice(0, 200)
        for split in ("train", "test")
    )
    pq.write_table(pa.concat_tables([train, test.slice(40, 3)]), folder / "train.parquet")
    pq.write_table(test, folder / "test.parquet")
    done = run("retrain", "--dataset", f"parquet:{folder}", "--artifacts", tmp_path / "a")
    assert_refused(done, 3, "rows 40 (", "41 (", "42 (", "leave them out of one split")
    assert not (tmp_path / "a" / "folds").exists()
    assert not (tmp_path / "a" / "models").exists()


@pytest.mark.slow
def test_the_shipped_digits_are_sound(tmp_path):
    done = run("validate", "mnist", "--artifacts", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "critical" not in done.stdout
