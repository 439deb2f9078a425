"""Kill nights, as often as the time allows, and add what came of it to the results."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
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


class Chain:
    """One night, killed and started again until it ends; one row of facts a kill."""

    def __init__(self, arena: Arena, name: str, rng: random.Random, run: str | None):
        self.arena, self.rng, self.run = arena, rng, run
        self.artifacts = arena.folder / name
        self.rows: list[dict[str, object]] = []
        arena.new_chain(self.artifacts)

    def inside_writes(self, targets):
        """Kill at one write after the other.

        If the night ends before a write comes, the same command again is killed at those that are
        left: a night that is run again writes its tables anew.
        """
        for write, number in targets:
            before = Counter(line.get("write") for line in ledger(self.artifacts))
            left = number - before[write]
            if left < 1 and write.startswith("worker"):
                continue
            left = max(1, left)
            ways = ["self", "group", "torn"] if " fsync " in write else ["self", "group"]
            how = self.rng.choice(ways)
            attempt = self.arena.start(self.artifacts, f"{write}#{left}", how, run=self.run)
            if attempt.wait_until_fired():
                ended = attempt.wait(0.2)
                self._killed(f"inside a write, {how}", kind_of(write), ended, attempt)
            if write.startswith("worker") and how != "group":
                # A new pool goes on, so that the night would end before the next write comes.
                ended = attempt.wait(self.rng.uniform(0, 0.5) * self.arena.seconds)
                if ended is None and self._strike(attempt, self.rng.choice(["flow", "group"])):
                    self._killed("at random", "flow", attempt.wait(), attempt)
            self._require(attempt.wait())

    def at_random(self, kills, server=0.0):
        """Kill whatever there is at moments that nobody has chosen; the server so often."""
        while kills > 0:
            attempt = self.arena.start(self.artifacts, run=self.run)
            for victim in self.rng.choices(
                ["flow", "worker", "group", "server"],
                [3, 4, 3, 10 * server],
                k=self.rng.randint(1, 3),
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
            if ended == 0 and self.rows:
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
        outcome["left"] = ", ".join(
            str(p.relative_to(self.artifacts)) for p in leftovers(self.artifacts)
        )
        faults = "; ".join(faults_at_any_moment(self.artifacts))
        return [{**row, **outcome, "at_the_end": faults} for row in self.rows]


def night(arena, name, rng, plan, each):
    """One chain, from the first kill to the comparison.

    `plan` is a list of writes to be killed at, or how often the server is killed at random.
    """
    chain = Chain(arena, name, rng, rng.choice([RUN, RUN, None]))
    if isinstance(plan, list):
        chain.inside_writes(plan)
    else:
        chain.at_random(each, server=plan)
    return [{"chain": name, **row} for row in chain.finish()]


def say(rows, n):
    """What came of one chain."""
    bad = rows[(rows[["equal", "faults", "left", "at_the_end"]] != "").any(axis=1)]
    print(f"{rows['chain'][0]}: {len(rows)} kills, {n} in all", flush=True)
    print(bad.to_string() if len(bad) else "  no fault", flush=True)


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
    before, _, rest = PAGE.read_text().partition("<!-- chaos -->")
    _, end, after = rest.partition("<!-- end -->")
    mine = filled(f"<!-- chaos -->\n{end}", {"chaos": text + "\n"})
    page = before + mine + after
    with atomic_file(PAGE) as part:
        part.write_text(page)


def main(
    kills: Annotated[int, typer.Option(help="Kills to reach, those in the table included.")] = 200,
    minutes: Annotated[float, typer.Option(help="Begin no chain after so many.")] = 60,
    each: Annotated[int, typer.Option(help="Kills of one night, about.")] = 10,
    seed: Annotated[int | None, typer.Option(help="Of what is killed and when.")] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where nights run; kept, and used again.")
    ] = None,
    fresh: Annotated[bool, typer.Option(help="Forget earlier results.")] = False,
) -> None:
    """Kill nights until there are enough kills or the time is over."""
    began = time.monotonic()
    known = pd.read_parquet(TABLE) if TABLE.exists() and not fresh else pd.DataFrame()
    seed = len(known) if seed is None else seed
    rng = random.Random(seed)
    home = folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    server = Server.anywhere(home / "prefect")
    server.start()
    arena = Arena(home, server)
    try:
        arena.prepare()
        number = 0
        while len(known) < kills and time.monotonic() - began < 60 * minutes:
            number += 1
            hit = Counter(known["what"]) if len(known) else Counter()
            plan = [choose(arena.writes(), hit, rng, each) for _ in range(2)]
            if number % 2 == 0:
                plan = [0.0, 0.0] if number % 4 == 0 else [0.4]  # a killed server ends both nights
            names = [
                f"chain-{seed}-{number}{letter}" for letter, _ in zip("ab", plan, strict=False)
            ]
            with ThreadPoolExecutor() as pool:
                work = [
                    pool.submit(night, arena, name, random.Random(name), one, each)
                    for name, one in zip(names, plan, strict=True)
                ]
            for done in work:
                rows = pd.DataFrame(done.result())
                known = pd.concat([known, rows], ignore_index=True)
                say(rows, len(known))
            publish(known)
    finally:
        arena.end()
        server.kill()


if __name__ == "__main__":
    typer.run(main)
