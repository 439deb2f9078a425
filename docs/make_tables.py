"""Write docs/tables.md from the schemas, so that the page cannot disagree with the files."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from nightfold.tables import (
    FOLDPLAN,
    HISTORIES,
    SCHEMA_VERSION,
    SCORES,
    VERDICTS,
    batch_schema,
    predictions_schema,
)

TABLES = {
    "scores": (
        SCORES,
        "One row per candidate, repeat and fold. Where all nights are read as one table, "
        "`run_date` is the name of their folders: a category in pandas, a date by "
        "`pd.to_datetime`.",
    ),
    "histories": (HISTORIES, "One row per candidate, repeat, fold and epoch."),
    "predictions": (
        predictions_schema(10),
        "One row per candidate, repeat and training row: what a model not trained on the row "
        "said of it.",
    ),
    "verdicts": (VERDICTS, "One row per pair of candidates."),
    "foldplan": (FOLDPLAN, "One row per repeat and training row."),
    "classified": (batch_schema(10), "One row per image of a folder given to `nightfold predict`."),
}


def page() -> str:
    """The whole page as Markdown."""
    parts = [
        "# Tables\n",
        f"Parquet with zstd, schema version {SCHEMA_VERSION}. Each column's meaning is also in the "
        "file, in the field's metadata (`description`); the file's own metadata names table, "
        "schema version and run. Scores are fractions in tables and percent in reports.\n",
    ]
    for name, (schema, meaning) in TABLES.items():
        parts += [f"## {name}.parquet\n", f"{meaning}\n"]
        parts += ["| column | type | meaning |", "|---|---|---|"]
        parts += [_row(field) for field in schema]
        parts.append("")
    return "\n".join(parts)


def _row(field: pa.Field) -> str:
    meaning = field.metadata[b"description"].decode()
    kind = str(field.type).replace("element: ", "").replace("item: ", "")
    return f"| `{field.name}` | {kind}{' or null' if field.nullable else ''} | {meaning} |"


if __name__ == "__main__":
    Path(__file__).with_name("tables.md").write_text(page())
