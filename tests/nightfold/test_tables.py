"""Tables: declared once, documented from the declaration, readable without anything of ours."""

import subprocess
import sys

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nightfold import tables
from nightfold.experiment import shipped

SCHEMAS = [
    tables.SCORES,
    tables.HISTORIES,
    tables.VERDICTS,
    tables.FOLDPLAN,
    tables.predictions_schema(10),
    tables.batch_schema(10),
]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_column_says_what_it_means(schema):
    for field in schema:
        assert len(field.metadata[b"description"]) > 5


def test_the_page_of_the_docs_is_what_the_schemas_say(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(shipped('docs'))!r}); import make_tables as m; "
    done = subprocess.run(
        [sys.executable, "-c", code + "sys.stdout.write(m.page())"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == shipped("docs", "tables.md").read_text()


def test_a_table_keeps_schema_meaning_and_origin_in_the_file(tmp_path):
    rows = [{"repeat": 1, "row": 0, "fold": 2}]
    path = tmp_path / "t.parquet"
    tables.write_table(
        path, tables.build_table(rows, tables.FOLDPLAN), name="foldplan", run_id="r1"
    )
    read = pq.read_table(path)
    assert read.schema.equals(tables.FOLDPLAN)
    assert read.schema.metadata[b"nightfold.run_id"] == b"r1"
    assert b"scores the row" in read.schema.field("fold").metadata[b"description"]
    assert pd.read_parquet(path).to_dict("records") == rows
    compression = pq.ParquetFile(path).metadata.row_group(0).column(0).compression
    assert compression == "ZSTD"


def test_a_row_without_a_required_value_is_refused(tmp_path):
    table = tables.build_table([{"repeat": 1, "row": None, "fold": 2}], tables.FOLDPLAN)
    with pytest.raises((pa.ArrowInvalid, ValueError), match=r"(?i)null"):
        tables.write_table(tmp_path / "t.parquet", table, name="foldplan")
    assert not list(tmp_path.iterdir())
