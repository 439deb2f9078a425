"""`python -m tests.hostile`: give the whole corpus to its readers and print the table."""

from __future__ import annotations

import sys

from tests.hostile.report import examined, sound, table

results = list(examined())
for result in results:
    if not sound(result):
        sys.stderr.write(f"{result.key}: {result.outcome}, {result.sentence[-500:]}\n")
sys.stdout.write(table(results) + "\n")
sys.exit(not all(map(sound, results)))
