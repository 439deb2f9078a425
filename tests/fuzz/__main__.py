"""`python -m tests.fuzz`: fuzz every reader under atheris for a while and print a table.

A finding is any exception but ours, a reader that hangs or takes too much memory, or the end of the
process. What was found to reach new code is kept in ``.fuzz/TARGET/corpus`` and read by the next
run; what broke a reader lies in ``.fuzz/TARGET/findings``, to be given to it again with ``--file``.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
import tempfile
from pathlib import Path

import atheris

# Loaded before, and so not watched: they are large, and their readers are not written in Python.
import numpy  # noqa: F401
import PIL.Image
import pyarrow.parquet  # noqa: F401
import pydantic  # noqa: F401
import sklearn.model_selection  # noqa: F401

with atheris.instrument_imports(include=["nightfold", "PIL", "zipfile", "gzip", "tomllib"]):
    PIL.Image.init()
    from tests.hostile.targets import TARGETS, seeds


def fuzz(name: str, seconds: int) -> tuple[int, int]:
    """Fuzz one target in a process of its own; executions, and findings there are."""
    place = Path(".fuzz", name)
    corpus, findings = place / "corpus", place / "findings"
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    for content in seeds(name):
        (corpus / hashlib.sha256(content).hexdigest()[:16]).write_bytes(content)
    log = place / "log"
    with tempfile.TemporaryDirectory(dir=_memory()) as folder, log.open("wb") as file:
        child = os.fork()
        if not child:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
            options = [
                f"-max_total_time={seconds}",
                f"-artifact_prefix={findings}/",
                *("-timeout=30", "-rss_limit_mb=3072", "-print_final_stats=1", "-max_len=65536"),
            ]
            _fuzz(name, Path(folder), [sys.argv[0], str(corpus), *options])
        os.waitpid(child, 0)
    text = log.read_text(errors="replace")
    told = re.findall(r"number_of_executed_units: (\d+)|^#(\d+)", text, re.MULTILINE)
    return max((int(a or b) for a, b in told), default=0), len(list(findings.iterdir()))


def _fuzz(name: str, folder: Path, arguments: list[str]) -> None:
    """Never return: libFuzzer ends the process."""
    target = TARGETS[name]
    target.surround(folder)

    def read(content: bytes) -> None:
        target.verdict(folder, content)

    atheris.Setup(arguments, read)
    atheris.Fuzz()


def _memory() -> str | None:
    """A folder that is in memory, where there is one: every execution writes a file."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def main() -> None:
    """Fuzz the targets asked for, one after the other, or give one a finding again."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--file", type=Path, help="a finding, to be read again by one target")
    asked = parser.parse_args()
    if asked.file:
        with tempfile.TemporaryDirectory() as folder:
            TARGETS[asked.targets[0]].surround(Path(folder))
            print(TARGETS[asked.targets[0]].verdict(Path(folder), asked.file.read_bytes()))
        return
    print("| reader | executions | findings |\n|---|---|---|", flush=True)
    total = 0
    for name in asked.targets or TARGETS:
        runs, found = fuzz(name, asked.seconds)
        total += found
        print(f"| {name} | {runs:,} | {found} |", flush=True)
    sys.exit(bool(total))


if __name__ == "__main__":
    main()
