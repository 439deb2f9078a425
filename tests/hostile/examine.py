"""Give every case of the corpus to its reader, each in a process of its own.

A process that has loaded the libraries forks for each case, so that a reader that hangs, eats
memory or takes the interpreter down is seen and costs nobody else anything. What became of a case
is one JSON line: outcome, sentence, the memory it added and what it left behind.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nightfold.errors import DataRefused, NightfoldError
from nightfold.store import TEMPORARY, Store
from tests.hostile import (  # noqa: F401
    document_cases,
    folder_cases,
    idx_cases,
    image_cases,
    npz_cases,
    parquet_cases,
)
from tests.hostile.corpus import CASES, Case

SECONDS = 60
"""Of the processor; of the wall six times as many."""
ADDRESS_SPACE = 8 * 2**30
NOBODY = 65534


@dataclass(frozen=True)
class Result:
    """What became of a case.

    Attributes
    ----------
    key : str
    outcome : str
        ``refused``, ``accepted``, ``error`` (an exception that is not ours, or the process died).
    sentence : str
        The refusal, or the traceback.
    memory : int
        Bytes by which the process grew at most.
    seconds : float
    left : list of str
        What a refusal left behind, and what was written where nothing may be.
    """

    key: str
    outcome: str
    sentence: str
    memory: int
    seconds: float
    left: list[str]


def _source(uri: str, artifacts: Path) -> None:
    """What `nightfold validate` does."""
    from nightfold.experiment import DatasetChoice, ValidationChoice
    from tasks.ingest import snapshot
    from tasks.validate import check

    dataset = snapshot(DatasetChoice(source=uri), Store(artifacts))
    report = check(dataset, ValidationChoice(leakage="warning"), 2)
    if not report.passed:
        raise _Invalid(report.refusal())


class _Invalid(DataRefused):
    """Refused by validation: the snapshot was written and stays for whoever looks into it."""


def _image(path: Path, artifacts: Path) -> None:
    from nightfold.images import read_image

    pixels = read_image(path, channels=1, size=(28, 28), where=str(path)).pixels
    assert pixels.shape == (28, 28, 1)


def _experiment(path: Path | str, artifacts: Path) -> None:
    from nightfold.experiment import load_experiment

    load_experiment(path)


def _champion(root: Path, artifacts: Path) -> None:
    from nightfold.registry import Registry

    registry = Registry(Store(root))
    registry.versions()
    registry.resolve("champion")


def _manifest(path: Path, artifacts: Path) -> None:
    from nightfold.manifest import read_manifest, verify
    from nightfold.registry import Registry

    Registry(Store(path.parent.parent)).versions()
    if read_manifest(path).files:
        verify(path)


def _snapshot(path: Path, artifacts: Path) -> None:
    from nightfold.dataset import Dataset

    Dataset.open(path).verify()


def _plan(path: Path, artifacts: Path) -> None:
    from nightfold.foldplan import FoldPlan

    FoldPlan.open(path)


def _history(root: Path, artifacts: Path) -> None:
    from nightfold.history import History

    told = History.read(Store(root))
    assert len(told.nights) == 1, "the sound night is told"
    raise DataRefused("; ".join(f"{left.name} ({left.reason})" for left in told.left_out) + ".")


def _report(root: Path, artifacts: Path) -> None:
    from nightfold.summary import Summary

    Summary.read(Store(root).find_run("bad"))


def _latest(root: Path, artifacts: Path) -> None:
    Store(root).find_run("latest")


def _fold_result(folder: Path, artifacts: Path) -> None:
    from nightfold.foldresult import FoldResult

    assert FoldResult.read(folder) is None
    raise DataRefused(f"{folder} is trained anew.")


def _scores(root: Path, artifacts: Path) -> None:
    from nightfold.scoretable import Earlier

    raise DataRefused(", ".join(Earlier.read(Store(root), "digits").unreadable) + ".")


READERS: dict[str, Callable[[Any, Path], None]] = {
    **dict.fromkeys(("idx", "npz", "parquet", "folder"), _source),
    "image": _image,
    "experiment": _experiment,
    "pointer": _champion,
    "manifest": _manifest,
    "snapshot": _snapshot,
    "fold plan": _plan,
    "history": _history,
    "report": _report,
    "latest": _latest,
    "fold result": _fold_result,
    "score table": _scores,
}


def examine(cases: Iterable[Case]) -> Iterator[Result]:
    """What became of each case, in order."""
    for one in cases:
        place = Path(tempfile.mkdtemp(prefix="hostile-"))
        try:
            yield _examined(one, place)
        finally:
            _opened(place)
            shutil.rmtree(place)


def _examined(one: Case, place: Path) -> Result:
    given, artifacts = place / "given", place / "out" / "artifacts"
    for folder in (given, place / "out"):
        folder.mkdir()
    goal = one.make(given)
    # Nothing may appear in the working folder: what is run from a file would show there.
    before = _names(place)
    reading, writing = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if not child:
        os.close(reading)
        _in_child(one, goal, artifacts, place, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        content = pipe.read()
    _, status = os.waitpid(child, 0)
    seconds = time.monotonic() - started
    if content:
        outcome, sentence, memory = json.loads(content)
    else:
        number = os.waitstatus_to_exitcode(status)
        outcome, sentence, memory = "error", f"the process ended with {number}", 0
    after = _names(place)
    left = sorted(name for name in after - before if outcome == "refused" or TEMPORARY in name)
    left += sorted(f"{name} is gone" for name in before - after)
    outcome = "refused" if outcome == "invalid" else outcome
    return Result(one.key, outcome, sentence, memory, seconds, left)


def _in_child(one: Case, goal: Any, artifacts: Path, place: Path, pipe: int) -> None:
    """Read the case and tell the parent; never return."""
    if one.unprivileged and os.getuid() == 0:
        for path in (place, *place.rglob("*")):
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    os.chdir(place / "out")
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(6 * SECONDS)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)
    base = _resident()
    try:
        READERS[one.reader](goal, artifacts)
        told = ["accepted", ""]
    except _Invalid as refused:
        told = ["invalid", str(refused)]
    except NightfoldError as refused:
        told = ["refused", str(refused)]
    except BaseException:
        told = ["error", traceback.format_exc()]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    os.write(pipe, json.dumps([*told[:1], told[1][:50_000], max(0, peak - base)]).encode())
    os._exit(0)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _names(place: Path) -> set[str]:
    found = set()
    for folder, folders, files in os.walk(place):
        found |= {str(Path(folder, name)) for name in (*folders, *files)}
    return found


def _opened(place: Path) -> None:
    """Make everything below `place` removable again."""
    for folder, folders, _ in os.walk(place):
        for name in folders:
            path = Path(folder, name)
            if not path.is_symlink():
                path.chmod(0o700)


def load() -> None:
    """Load what the readers load, before anything forks."""
    import great_expectations  # noqa: F401
    import sklearn.datasets
    import sklearn.model_selection  # noqa: F401
    from PIL import Image

    from nightfold import bundle, history, planner, registry  # noqa: F401
    from tasks import ingest, validate  # noqa: F401
    from tests.hostile.corpus import digits

    Image.init()
    digits()


def main(wanted: list[str]) -> None:
    """Print a JSON line for every case whose key begins with one of the words."""
    load()
    chosen = [
        one for key, one in CASES.items() if not wanted or any(key.startswith(w) for w in wanted)
    ]
    for result in examine(chosen):
        print(json.dumps(asdict(result)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
