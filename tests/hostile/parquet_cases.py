"""Parquet: wrong types, wrong metadata, damage, bombs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.hostile.corpus import MIB, case, digits, encoded

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def pngs() -> list[dict[str, Any]]:
    """The digits as the hub has them."""
    return [{"bytes": encoded(pixels), "path": None} for pixels in digits()[0]]


def write(path: Path, table: pa.Table, metadata: Any = None, **options: Any) -> str:
    """Write a table; its source URI."""
    if metadata is not None:
        text = metadata if isinstance(metadata, bytes) else json.dumps(metadata)
        table = table.replace_schema_metadata({"huggingface": text})
    pq.write_table(table, path, **options)
    return f"parquet:{path}"


def sound(**columns: pa.Array | None) -> pa.Table:
    """A sound table but for the columns given; None leaves one out."""
    labels = pa.array(digits()[1])
    both = {"image": pa.array(pngs(), IMAGE), "label": labels, **columns}
    return pa.table({name: column for name, column in both.items() if column is not None})


def features(names: Any, **more: Any) -> dict[str, Any]:
    """The hub's metadata with these class names."""
    label = {"_type": "ClassLabel", "names": names}
    return {"info": {"features": {"image": {"_type": "Image"}, "label": label, **more}}}


@case("parquet", "sound (control)")
def _sound(folder: Path) -> str:
    return write(folder / "x.parquet", sound(), features(list("0123456789")))


def _images(contents: list[bytes | None], kind: pa.DataType = IMAGE) -> pa.Array:
    return pa.array([{"bytes": content, "path": None} for content in contents], kind)


def _with(row: int, content: bytes | None) -> pa.Array:
    contents = [one["bytes"] for one in pngs()]
    contents[row] = content
    return _images(contents)


_WHERE = ("row 7 of ", "x.parquet")
_IMAGES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "a row that is no image": (lambda: _with(7, b"<svg/>"), (*_WHERE, "not an image file")),
    "a row of no byte": (lambda: _with(7, b""), (*_WHERE, "0 bytes")),
    "a row without bytes": (lambda: _with(7, None), (*_WHERE, "no image bytes")),
    "a row that is missing": (
        lambda: pa.array([*pngs()[:7], None, *pngs()[8:]], IMAGE),
        (*_WHERE, "no image bytes"),
    ),
    "a row with a path and no bytes": (
        lambda: pa.array([*pngs()[:7], {"bytes": None, "path": "/etc/passwd"}, *pngs()[8:]], IMAGE),
        (*_WHERE, "no image bytes"),
    ),
    "a row of another size": (
        lambda: _with(7, encoded(np.zeros((5, 6), "u1"))),
        (*_WHERE, "5x6", "--size HxW"),
    ),
    "all rows missing": (lambda: pa.array([None] * 60, IMAGE), ("row 0 of", "no image bytes")),
    "a column of nulls": (lambda: pa.nulls(60), ("'image' of type null",)),
    "bare bytes": (lambda: pa.array([one["bytes"] for one in pngs()]), ("must be a struct",)),
    "bytes that are text": (
        lambda: pa.array([{"bytes": "/etc/hostname"}] * 60, pa.struct([("bytes", pa.string())])),
        ("struct<bytes: string>", "binary"),
    ),
    "bytes that are integers": (
        lambda: pa.array([{"bytes": 0}] * 60, pa.struct([("bytes", pa.int64())])),
        ("struct<bytes: int64>", "binary"),
    ),
    "bytes that are a list": (
        lambda: pa.array([{"bytes": [b"x"]}] * 60, pa.struct([("bytes", pa.list_(pa.binary()))])),
        ("binary",),
    ),
    "bytes that are a struct": (
        lambda: pa.array(
            [{"bytes": {"bytes": b"x"}}] * 60,
            pa.struct([("bytes", pa.struct([("bytes", pa.binary())]))]),
        ),
        ("binary",),
    ),
    "a struct without bytes": (
        lambda: pa.array([{"path": "x.png"}] * 60, pa.struct([("path", pa.string())])),
        ("struct of bytes and path",),
    ),
    "lists of images": (
        lambda: pa.array([[one] for one in pngs()], pa.list_(IMAGE)),
        ("must be a struct",),
    ),
}
for _name, (_make, _words) in _IMAGES.items():

    @case("parquet", f"images: {_name}", *_words)
    def _image(folder: Path, make: Any = _make) -> str:
        return write(folder / "x.parquet", sound(image=make()))


@case("parquet", "images: large binary")
def _large(folder: Path) -> str:
    kind = pa.struct([("bytes", pa.large_binary()), ("path", pa.string())])
    return write(folder / "x.parquet", sound(image=pa.array(pngs(), kind)))


_LABELS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "text": (lambda: pa.array([str(n) for n in digits()[1]]), ("'label' of type", "integer")),
    "in a dictionary": (
        lambda: pa.array([str(n) for n in digits()[1]]).dictionary_encode(),
        ("'label' of type dictionary", "integer"),
    ),
    "lists": (lambda: pa.array([[n] for n in digits()[1]]), ("'label' of type list",)),
    "truth": (lambda: pa.array(digits()[1] > 4), ("'label' of type bool",)),
    "decimals": (lambda: pa.array(digits()[1]).cast(pa.decimal128(20)), ("decimal",)),
    "a column of nulls": (lambda: pa.nulls(60), ("'label' of type null",)),
    "all missing": (lambda: pa.nulls(60, pa.int64()), ("label",)),
    "one missing": (
        lambda: pa.array([None if i == 7 else n for i, n in enumerate(digits()[1].tolist())]),
        ("1 of 54",),
    ),
    "one beyond the classes": (
        lambda: pa.array(np.where(np.arange(60) == 7, 77, digits()[1])),
        ("1 of 54",),
    ),
    "one below 0": (
        lambda: pa.array(np.where(np.arange(60) == 7, -1, digits()[1])),
        ("1 of 54",),
    ),
    "one not a number": (
        lambda: pa.array(np.where(np.arange(60) == 7, np.nan, digits()[1])),
        ("1 of 54",),
    ),
    "one of 2**63": (
        lambda: pa.array(np.where(np.arange(60) == 7, 2**63, digits()[1].astype("u8"))),
        ("1 of 54",),
    ),
}
for _name, (_make, _words) in _LABELS.items():

    @case("parquet", f"labels: {_name}", *_words)
    def _label(folder: Path, make: Any = _make) -> str:
        return write(folder / "x.parquet", sound(label=make()), features(list("0123456789")))


@case("parquet", "labels: in a dictionary of integers")
def _dictionary(folder: Path) -> str:
    return write(folder / "x.parquet", sound(label=pa.array(digits()[1]).dictionary_encode()))


def _nested(depth: int) -> bytes:
    return b'{"info": ' + b"[" * depth + b"]" * depth + b"}"


_METADATA: dict[str, tuple[Any, tuple[str, ...]]] = {
    "no JSON": (b"{", ("not the hub's JSON",)),
    "not decodable": (b"\xff\xfe{", ("not the hub's JSON",)),
    "a number": (b"7", ("not the hub's JSON",)),
    "features that are a list": ({"info": {"features": []}}, ("not the hub's JSON",)),
    "100,000 brackets deep": (_nested(100_000), ("not the hub's JSON",)),
    "a number of 5,000 digits": (b'{"info": ' + b"9" * 5000 + b"}", ("not the hub's JSON",)),
    "nine names for ten classes": (features(list("012345678")), ("rows",)),
    "a name twice": (features(list("0123456788")), ("same name",)),
    "one name": (features(["7"]), ("only the class 7",)),
    "names that are a text": (features("0123456789"), ("x.parquet", "names")),
    "names that are a number": (features(10), ("x.parquet", "names")),
    "names that are an object": (features({"0": 1, "1": 2}), ("x.parquet", "names")),
    "names that are numbers": (features(list(range(10))), ("x.parquet", "names")),
    "names that are missing": (features([None, *"123456789"]), ("x.parquet", "names")),
    "a name of nothing": (features(["", *"123456789"]), ("name ''",)),
    "a name with a line break": (features(["0\n", *"123456789"]), ("name '0\\n'",)),
    "a name with a terminal's escape": (features(["\x1b[2J", *"123456789"]), ("\\x1b[2J",)),
    "a name that is half a letter": (features(["\ud800", *"123456789"]), ("\\ud800",)),
    "names alike but for their case": (
        features(["cat", "Cat", *"23456789"]),
        ("'cat' and 'Cat'",),
    ),
    "two columns of classes": (
        {
            "info": {
                "features": {
                    "image": {"_type": "Image"},
                    "one": {"_type": "ClassLabel", "names": ["a", "b"]},
                    "two": {"_type": "ClassLabel", "names": ["a", "b"]},
                }
            }
        },
        ("several columns",),
    ),
    "a column that is not there": (
        {"info": {"features": {"picture": {"_type": "Image"}}}},
        ("no column 'picture'", "image, label"),
    ),
}
for _name, (_about, _words) in _METADATA.items():

    @case("parquet", f"metadata: {_name}", *_words)
    def _meta(folder: Path, about: Any = _about) -> str:
        return write(folder / "x.parquet", sound(), about)


@case("parquet", "metadata: letters that only their case tells apart")
def _letters(folder: Path) -> str:
    return write(folder / "x.parquet", sound(), features(list("abcdeABCDE")))


@case("parquet", "metadata: 70,000 class names", "70,000", "65,536")
def _many_names(folder: Path) -> str:
    names = [str(n) for n in range(70_000)]
    return write(folder / "x.parquet", sound(), features(names))


@case("parquet", "no column", "no column 'image'")
def _empty(folder: Path) -> str:
    return write(folder / "x.parquet", pa.table({}))


@case("parquet", "no column of labels", "no column 'label'")
def _unlabelled(folder: Path) -> str:
    return write(folder / "x.parquet", sound(label=None))


@case("parquet", "two columns of one name", "'label'", "2 columns")
def _twice(folder: Path) -> str:
    table = sound()
    return write(folder / "x.parquet", table.append_column("label", table["label"]))


@case("parquet", "two columns of images", "'image'", "2 columns")
def _two_images(folder: Path) -> str:
    table = sound()
    return write(folder / "x.parquet", table.append_column("image", table["image"]))


@case("parquet", "a column whose name is like that of a part of another")
def _dotted(folder: Path) -> str:
    dotted = pa.array([b"x"] * 60)
    return write(folder / "x.parquet", sound(**{"image.bytes": dotted}))


@case("parquet", "column names with dots")
def _dots(folder: Path) -> str:
    table = sound().rename_columns(["my.image", "my.label"])
    about = {
        "info": {
            "features": {
                "my.image": {"_type": "Image"},
                "my.label": {"_type": "ClassLabel", "names": list("0123456789")},
            }
        }
    }
    return write(folder / "x.parquet", table, about)


@case("parquet", "0 rows", "holds no rows")
def _rowless(folder: Path) -> str:
    return write(folder / "x.parquet", sound()[:0])


@case("parquet", "0 row groups", "holds no rows")
def _groupless(folder: Path) -> str:
    pq.ParquetWriter(folder / "x.parquet", sound().schema).close()
    return f"parquet:{folder / 'x.parquet'}"


@case("parquet", "many small row groups, some of no row")
def _groups(folder: Path) -> str:
    table = sound()
    with pq.ParquetWriter(folder / "x.parquet", table.schema) as writer:
        for start in range(0, 60, 3):
            writer.write_table(table[start : start + 3])
            writer.write_table(table[:0])
    return f"parquet:{folder / 'x.parquet'}"


_WHOLE: dict[str, bytes] = {
    "no byte": b"",
    "text": b"image,label\n",
    "magic numbers only": b"PAR1PAR1",
    "a footer longer than the file": b"PAR1" + b"\xff\xff\xff\x7fPAR1",
    "a footer of negative length": b"PAR1" + b"\xff\xff\xff\xffPAR1",
    "a footer of zeros": b"PAR1" + bytes(64) + b"\x40\0\0\0PAR1",
    "a footer that lies in wait": b"PAR1"
    + b"\x15\x15\xff\xff\xff\xff\x0f\xff" * 8
    + b"\x40\0\0\0PAR1",
    "an encrypted footer": b"PARE" + bytes(64) + b"\x40\0\0\0PARE",
}
for _name, _content in _WHOLE.items():

    @case("parquet", f"file: {_name}", "x.parquet", "not whole Parquet")
    def _file(folder: Path, content: bytes = _content) -> str:
        (folder / "x.parquet").write_bytes(content)
        return f"parquet:{folder / 'x.parquet'}"


@case("parquet", "file: cut behind its last row group", "x.parquet", "not whole Parquet")
def _cut(folder: Path) -> str:
    uri = write(folder / "x.parquet", sound())
    os.truncate(folder / "x.parquet", (folder / "x.parquet").stat().st_size - 99)
    return uri


@case("parquet", "file: zeros in the middle of the images", "x.parquet", "not whole Parquet")
def _hole(folder: Path) -> str:
    uri = write(folder / "x.parquet", sound(), compression="zstd")
    column = pq.ParquetFile(folder / "x.parquet").metadata.row_group(0).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    with (folder / "x.parquet").open("r+b") as file:
        file.seek(start + column.total_compressed_size // 2)
        file.write(bytes(64))
    return uri


@case("parquet", "file: a flipped bit under a page's check sum", "x.parquet", "not whole Parquet")
def _flipped(folder: Path) -> str:
    table = sound(label=pa.array(digits()[1]))
    uri = write(
        folder / "x.parquet",
        table,
        compression="none",
        use_dictionary=False,
        write_page_checksum=True,
    )
    column = pq.ParquetFile(folder / "x.parquet").metadata.row_group(0).column(2)
    with (folder / "x.parquet").open("r+b") as file:
        file.seek(column.data_page_offset + column.total_compressed_size - 8)
        file.write(b"\x05")
    return uri


@case("parquet", "file: statistics that do not go with the schema", "x.parquet", "not whole")
def _contradiction(folder: Path) -> str:
    uri = write(folder / "x.parquet", sound())
    content = (folder / "x.parquet").read_bytes()
    # The column of labels is said to be required, in Thrift's compact form: 2 for optional.
    changed = content.replace(b"\x25\x02\x18\x05label", b"\x25\x00\x18\x05label")
    assert changed != content
    (folder / "x.parquet").write_bytes(changed)
    return uri


_FOLDERS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "without train": (["test.parquet"], ("no train.parquet",)),
    "with a missing part": (["train-00000-of-00002.parquet"], ("not all are there",)),
    "with a part too much": (
        ["train-00000-of-00001.parquet", "train-00001-of-00001.parquet"],
        ("1 parts",),
    ),
    "with parts of two editions": (
        ["train.parquet", "train-00000-of-00001.parquet"],
        ("train-00000-of-00001.parquet",),
    ),
    "with a part of number 10**30": ([f"train-00000-of-{10**30}.parquet"], ("not all are there",)),
    "with a file of another name": (["train.parquet", "valid.parquet"], ("valid.parquet",)),
}
for _name, (_files, _words) in _FOLDERS.items():

    @case("parquet", f"folder: {_name}", *_words)
    def _folder(folder: Path, files: list[str] = _files) -> str:
        for name in files:
            write(folder / name, sound())
        return f"parquet:{folder}"


@case("parquet", "folder: a pipe called train.parquet", "train.parquet", "not a plain file")
def _pipe(folder: Path) -> str:
    os.mkfifo(folder / "train.parquet")
    return f"parquet:{folder}"


@case("parquet", "folder: a folder called train.parquet", "train.parquet", "not a plain file")
def _folder_called(folder: Path) -> str:
    (folder / "train.parquet").mkdir()
    return f"parquet:{folder}"


@case("parquet", "folder: a link to nowhere called test.parquet", "test.parquet", "not a plain")
def _lost(folder: Path) -> str:
    write(folder / "train.parquet", sound())
    (folder / "test.parquet").symlink_to(folder / "gone")
    return f"parquet:{folder}"


@case("parquet", "folder: links that leave it, as the hub's cache has them")
def _links(folder: Path) -> str:
    (folder / "blobs").mkdir()
    (folder / "snapshot").mkdir()
    write(folder / "blobs" / "0f", sound())
    (folder / "snapshot" / "train.parquet").symlink_to(folder / "blobs" / "0f")
    return f"parquet:{folder / 'snapshot'}"


@case("parquet", "that may not be read", "Permission denied", unprivileged=True)
def _forbidden(folder: Path) -> str:
    uri = write(folder / "x.parquet", sound())
    (folder / "x.parquet").chmod(0)
    return uri


@case("parquet", "bomb: one image of 128 MB of zeros in 10 KB", "unpack", "x.parquet")
def _image_bomb(folder: Path) -> str:
    contents = pa.array([bytes(2**27)], pa.binary())
    image = pa.StructArray.from_arrays([contents, pa.nulls(1, pa.string())], fields=list(IMAGE))
    table = pa.table({"image": image, "label": [1]})
    return write(folder / "x.parquet", table, compression="zstd", use_dictionary=False)


@case("parquet", "bomb: 100 MB of zeros 4 times by dictionary", "unpack", "x.parquet")
def _dictionary_bomb(folder: Path) -> str:
    one = pa.array([bytes(100 * MIB)], pa.binary())
    with pq.ParquetWriter(
        folder / "x.parquet",
        pa.schema([("image", IMAGE), ("label", pa.int64())]),
        compression="zstd",
        dictionary_pagesize_limit=2**30,
    ) as writer:
        bytes_ = pa.DictionaryArray.from_arrays(pa.array([0] * 4, pa.int32()), one).cast(
            pa.binary()
        )
        image = pa.StructArray.from_arrays([bytes_, pa.nulls(4, pa.string())], fields=list(IMAGE))
        writer.write_table(pa.table({"image": image, "label": pa.array([1] * 4)}))
    return f"parquet:{folder / 'x.parquet'}"


@case("parquet", "bomb: 6 MB of noise 60 times by dictionary", "x.parquet")
def _noise_bomb(folder: Path) -> str:
    one = pa.array([np.random.default_rng(1).bytes(6 * MIB)], pa.binary())
    bytes_ = pa.DictionaryArray.from_arrays(pa.array([0] * 60, pa.int32()), one).cast(pa.binary())
    image = pa.StructArray.from_arrays([bytes_, pa.nulls(60, pa.string())], fields=list(IMAGE))
    return write(folder / "x.parquet", sound(image=image), dictionary_pagesize_limit=2**30)


@case("parquet", "bomb: 20 million rows in 10 KB", "20,000,000 rows", "x.parquet")
def _row_bomb(folder: Path) -> str:
    schema = pa.schema([("image", IMAGE), ("label", pa.int64())])
    part = pa.table({"image": pa.nulls(2_000_000, IMAGE), "label": pa.nulls(2_000_000, pa.int64())})
    with pq.ParquetWriter(folder / "x.parquet", schema) as writer:
        for _ in range(10):
            writer.write_table(part, row_group_size=2_000_000)
    return f"parquet:{folder / 'x.parquet'}"
