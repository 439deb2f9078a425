"""Run the corpus and tell what became of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator

from tests.hostile.corpus import CASES
from tests.hostile.examine import READERS, Result


def examined() -> Iterator[Result]:
    """What became of every case, examined by a process that does nothing else."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.hostile.examine"],
        stdout=subprocess.PIPE,
        text=True,
        # Threads of a library do not survive the fork that every case is given.
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        },
    )
    assert process.stdout is not None
    with process:
        for line in process.stdout:
            yield Result(**json.loads(line))
    assert process.returncode == 0, "the examiner itself failed"


def sound(result: Result) -> bool:
    """Whether the case ended as it must, in its sentence, its memory and its folder."""
    case = CASES[result.key]
    return (
        result.outcome == ("refused" if case.refused else "accepted")
        and all(words in result.sentence for words in case.refused)
        and result.sentence.isprintable()
        and not result.left
        and result.memory < case.memory
    )


def table(results: Iterable[Result]) -> str:
    """The Markdown table of `docs/robustness.md`."""
    results = list(results)
    lines = [
        "| reader | bad inputs tried | rejected cleanly | accepted wrongly | odd but sound inputs "
        "read | largest growth of memory | longest |",
        "|---|---|---|---|---|---|---|",
    ]
    for reader in [*READERS, "all"]:
        of = [r for r in results if reader in ("all", CASES[r.key].reader)]
        bad = [r for r in of if CASES[r.key].refused]
        good = [r for r in of if not CASES[r.key].refused]
        memory = max((r.memory for r in of if CASES[r.key].reader), default=0) / 2**20
        lines.append(
            f"| {reader} | {len(bad)} | {sum(map(sound, bad))} | "
            f"{sum(r.outcome == 'accepted' for r in bad)} | {sum(map(sound, good))} of {len(good)} "
            f"| {memory:,.0f} MiB | {max(r.seconds for r in of):.1f} s |"
        )
    return "\n".join(lines)
