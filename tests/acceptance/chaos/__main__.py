"""Kill nights, as often as the time allows, and add what came of it to the results."""

from __future__ import annotations

import os
import random
import signal
import socket
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import pandas as pd
import pyarrow as pa
import typer

from benchmarks.measure import RESULTS, ROOT, machine, markdown
from benchmarks.page import filled
from nightfold.store import Store, atomic_file
from nightfold.tables import write_table
from tests.acceptance.chaos.arena import (
    RUN,
    Arena,
    Server,
    choose,
    differences,
    faults_at_any_moment,
    kind_of,
    ledger,
    leftovers,
    repeated_epochs,
)

TABLE = RESULTS / "chaos.parquet"
PAGE = ROOT / "docs" / "robustness.md"
KILLS_A_CHAIN = 10


class Chain:
    """One night, killed and started again until it ends; one row of facts a kill."""

    def __init__(self, arena: Arena, name: str, rng: random.Random, run: str | None):
        self.arena, self.rng, self.run = arena, rng, run
        self.artifacts = arena.folder / name
        self.rows: list[dict[str, object]] = []
        arena.new_chain(self.artifacts)

    def inside_writes(self, targets):
        """Kill at one write after the other; a write that no longer comes ends the chain."""
        for write, number in targets:
            before = Counter(line.get("write") for line in ledger(self.artifacts))
            left = max(1, number - before[write])
            how = self.rng.choice(["self", "group", "torn"] if " fsync " in write else ["self", "group"])
            attempt = self.arena.start(self.artifacts, f"{write}#{left}", how, run=self.run)
            ended = attempt.wait()
            if self.arena.fired(self.artifacts):
                self._killed(f"inside a write, {how}", kind_of(write), ended, attempt)
            if ended == 0:
                return
            self._require(ended)

    def at_random(self, kills):
        """Kill whatever there is at moments that nobody has chosen."""
        while kills > 0:
            attempt = self.arena.start(self.artifacts, run=self.run)
            for victim in self.rng.choices(
                ["flow", "worker", "group", "server"], [3, 4, 3, 0.4], k=self.rng.randint(1, 3)
            ):
                ended = attempt.wait(self.rng.uniform(0, 0.7 * self.arena.seconds))
                if ended is not None:
                    break
                hit = self._strike(attempt, victim)
                kills -= hit
                if hit:
                    ended = None if victim == "worker" else attempt.wait()
                    self._killed("at random", victim, ended, attempt)
                if victim != "worker":
                    break
            ended = attempt.wait()
            if self.arena.server.process is None:
                self.arena.server.start()
            if ended == 0:
                return
            self._require(ended)

    def _strike(self, attempt, victim):
        workers = attempt.workers()
        if victim == "worker" and not workers:
            return 0
        if victim == "worker":
            self.rng.choice(workers).kill()
        elif victim == "server":
            self.arena.server.kill()
        elif victim == "group":
            os.killpg(attempt.process.pid, signal.SIGKILL)
        else:
            attempt.process.kill()
        return 1

    def _killed(self, kind, what, ended, attempt):
        self.rows.append(
            {
                "kind": kind,
                "what": what,
                "seconds": round(time.monotonic() - attempt.began, 1),
                "exit_code": ended,
                "faults": "; ".join(faults_at_any_moment(self.artifacts)),
            }
        )

    def _require(self, ended):
        """A command may die of a signal or fail; it may not hang."""
        assert ended is not None, f"it hangs; {self.arena.said(self.artifacts)}"

    def finish(self):
        """Let the night end, compare it, and return the rows with what was found."""
        attempt = self.arena.start(self.artifacts, run=self.run)
        ended = attempt.wait()
        outcome = {"equal": "", "most_repeated": 0, "repeated": 0, "left": ""}
        if ended == 0:
            run = self.run or newest(self.artifacts)
            outcome["equal"] = ", ".join(differences(self.artifacts, self.arena.calm, run))
        else:
            outcome["equal"] = f"it ended with {ended}: {self.arena.said(self.artifacts)[-600:]}"
        lines = ledger(self.artifacts)
        outcome["most_repeated"], outcome["repeated"] = repeated_epochs(lines)
        outcome["left"] = ", ".join(str(p.relative_to(self.artifacts)) for p in leftovers(self.artifacts))
        faults = "; ".join(faults_at_any_moment(self.artifacts))
        return [{**row, **outcome, "at_the_end": faults} for row in self.rows]


def newest(artifacts):
    store = Store(artifacts)
    return store.find_run("latest").name


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """One line a kind of fault."""
    lines = []
    groups = rows.assign(
        group=rows["kind"].where(rows["kind"] != "at random", "at random, " + rows["what"])
    ).groupby("group")
    for name, group in [*groups, ("all", rows)]:
        lines.append(
            {
                "SIGKILL": name,
                "kills": len(group),
                "nights": group["chain"].nunique(),
                "different at the end": (group["equal"] != "").sum(),
                "half-written or unreadable": (group["faults"] + group["at_the_end"] != "").sum(),
                "left behind": (group["left"] != "").sum(),
                "most epochs repeated by a fold": group["most_repeated"].max(),
            }
        )
    return pd.DataFrame(lines)


def publish(rows: pd.DataFrame) -> None:
    """Write the table, its summary, and the page."""
    facts = machine()
    table = pa.Table.from_pandas(rows, preserve_index=False)
    write_table(TABLE, table, name="chaos", **facts)
    writes = rows[rows["kind"] != "at random"]
    heading = f"# {len(rows)} kills in {rows['chain'].nunique()} nights"
    covered = (
        f"{len(writes)} kills came inside a write, at {writes['what'].nunique()} different ones "
        "(who, what, which file)."
    )
    about = ", ".join(f"{key} {value}" for key, value in facts.items())
    text = "\n\n".join(
        [heading, "`make chaos`", markdown(summarise(rows)), covered, f"Seen: {about}."]
    )
    with atomic_file(TABLE.with_suffix(".md")) as part:
        part.write_text(text + "\n")
    page = filled(PAGE.read_text(), {"chaos": text + "\n"})
    with atomic_file(PAGE) as part:
        part.write_text(page)


def main(
    kills: Annotated[int, typer.Option(help="Kills to reach, those in the table included.")] = 200,
    minutes: Annotated[float, typer.Option(help="Begin no chain after so many.")] = 60,
    seed: Annotated[int | None, typer.Option(help="Of what is killed and when.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Where nights run; kept, and used again.")] = None,
    fresh: Annotated[bool, typer.Option(help="Forget earlier results.")] = False,
) -> None:
    """Kill nights until there are enough kills or the time is over."""
    began = time.monotonic()
    known = pd.read_parquet(TABLE) if TABLE.exists() and not fresh else pd.DataFrame()
    seed = len(known) if seed is None else seed
    rng = random.Random(seed)
    home = folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    (home / "prefect").mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Server(home / "prefect", port)
    server.start()
    try:
        arena = Arena(home, server)
        arena.prepare()
        number = 0
        while len(known) < kills and time.monotonic() - began < 60 * minutes:
            number += 1
            name = f"chain-{seed}-{number}"
            chain = Chain(arena, name, rng, rng.choice([RUN, RUN, None]))
            if number % 3:
                hit = Counter(known["what"]) if len(known) else Counter()
                chain.inside_writes(choose(arena.writes(), hit, rng, KILLS_A_CHAIN))
            else:
                chain.at_random(KILLS_A_CHAIN)
            rows = pd.DataFrame(chain.finish()).assign(chain=name)
            known = pd.concat([known, rows], ignore_index=True)
            publish(known)
            bad = rows[(rows[["equal", "faults", "left", "at_the_end"]] != "").any(axis=1)]
            print(f"{name}: {len(rows)} kills, {len(known)} in all", flush=True)
            print(bad.to_string() if len(bad) else "  no fault", flush=True)
    finally:
        server.kill()


if __name__ == "__main__":
    typer.run(main)
