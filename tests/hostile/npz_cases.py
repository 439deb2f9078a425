"""NumPy archives: zip and npy headers that lie, pickles, bombs."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.hostile.corpus import case, digits


def archive(path: Path, method: int = zipfile.ZIP_DEFLATED, **members: Any) -> str:
    """An archive that is sound but for the members given: arrays, bytes, or None to leave out."""
    pixels, labels = digits()
    contents: dict[str, Any] = {"x_train": pixels, "y_train": labels, **members}
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in contents.items():
            if isinstance(content, bytes):
                file.writestr(f"{name}.npy", content)
            elif content is not None:
                file.writestr(f"{name}.npy", npy(np.asarray(content)))
    return f"npz:{path}"


def npy(array: Any, **options: Any) -> bytes:
    """The content of an .npy file."""
    content = io.BytesIO()
    np.save(content, array, **options)
    return content.getvalue()


def headed(header: str | bytes, content: bytes = b"", version: bytes = b"\x01\0") -> bytes:
    """An .npy file with this header, whatever it says."""
    text = header if isinstance(header, bytes) else header.encode("latin1")
    form = "<H" if version == b"\x01\0" else "<I"
    return b"\x93NUMPY" + version + struct.pack(form, len(text)) + text + content


def _shape(shape: str, descr: str = "'|u1'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n"


@case("npz", "sound (control)")
def _sound(folder: Path) -> str:
    return archive(folder / "x.npz")


@case("npz", "columns before rows")
def _fortran(folder: Path) -> str:
    return archive(folder / "x.npz", x_train=np.asfortranarray(digits()[0]))


class _Trap:
    """Unpickled, it would leave a file."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("unpickled",)


_MEMBERS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "objects": ({"x_train": npy(np.array([_Trap()], object), allow_pickle=True)}, ("x_train",)),
    "records": ({"x_train": np.zeros(60, [("a", "u1"), ("b", "O")])["a"]}, ("x_train",)),
    "structured": ({"x_train": np.zeros((60, 8, 8), [("a", "u1")])}, ("x_train", "dtype")),
    "text": ({"x_train": np.full((60, 8, 8), "7")}, ("x_train", "dtype")),
    "complex": ({"x_train": digits()[0] * 1j}, ("x_train", "dtype")),
    "dates": ({"x_train": digits()[0].astype("M8[s]")}, ("x_train", "dtype")),
    "big-endian": ({"x_train": digits()[0].astype(">u2")}, ("uint16",)),
    "half precision": ({"x_train": (digits()[0] / 255).astype("f2")}, ("float16",)),
    "one number": ({"x_train": np.uint8(7)}, ("x_train", "shape ()")),
    "flat": ({"x_train": digits()[0].reshape(60, 64)}, ("x_train", "shape (60, 64)")),
    "channels first": ({"x_train": digits()[0][:, None]}, ("x_train", "shape (60, 1, 8, 8)")),
    "four channels": ({"x_train": np.zeros((60, 8, 8, 4), "u1")}, ("1 or 3 channels",)),
    "0 rows": ({"x_train": np.zeros((0, 8, 8), "u1"), "y_train": []}, ("no train pixels",)),
    "59 labels": ({"y_train": digits()[1][:59]}, ("60 images", "59 labels")),
    "one-hot labels": ({"y_train": np.eye(10)[digits()[1]]}, ("y_train", "one integer per image")),
    "labels beyond 63 bits": (
        {"y_train": np.where(digits()[1] == 7, 2**64 - 1, digits()[1].astype("u8"))},
        ("1.84467e+19",),
    ),
    "huge labels": ({"y_train": digits()[1] * 2 + 10**15}, ("1000000000000000", "from 0")),
    "a class a row": ({"y_train": np.arange(60)}, ("rows",)),
    "no labels": ({"y_train": None}, ("no array 'y_train'",)),
    "a test without labels": ({"x_test": digits()[0]}, ("no array 'y_test'",)),
    "test of another size": (
        {"x_test": np.zeros((5, 4, 4), "u1"), "y_test": np.arange(5)},
        ("8x8x1 in train but 4x4x1 in test",),
    ),
    "empty member": ({"x_train": b""}, ("x.npz", "x_train")),
    "member of text": ({"x_train": b"hello"}, ("x.npz", "x_train")),
    "member is a pickle": ({"x_train": b"\x80\x04N."}, ("x.npz", "x_train")),
    "unknown npy version": ({"x_train": headed("{}", version=b"\x09\0")}, ("x.npz",)),
    "header that ends": ({"x_train": headed(_shape("(60, 8, 8)"))[:30]}, ("x.npz",)),
    "header of lists as keys": ({"x_train": headed("{[]: 1}\n")}, ("x.npz",)),
    "header of minus signs": ({"x_train": headed("-" * 9000 + "1\n")}, ("x.npz",)),
    "header of brackets": ({"x_train": headed("(" * 9000 + ")" * 9000)}, ("x.npz",)),
    "header that is code": (
        {"x_train": headed("__import__('os').mkdir('executed')\n")},
        ("x.npz",),
    ),
    "header of 100,000 bytes": (
        {"x_train": headed(_shape("(60, 8, 8)") + " " * 100_000, bytes(3840), b"\x02\0")},
        ("x.npz",),
    ),
    "header not decodable": ({"x_train": headed(b"{'\xff\xfe'", version=b"\x03\0")}, ("x.npz",)),
    "negative sizes": ({"x_train": headed(_shape("(-1, 8, 8)"))}, ("x.npz",)),
    "sizes of 10**30": ({"x_train": headed(_shape(f"({10**30}, 8, 8)"))}, ("x.npz",)),
    "sizes of 5,000 digits": ({"x_train": headed(_shape(f"({'9' * 5000}, 8, 8)"))}, ("x.npz",)),
    "sizes that overflow to 0": (
        {"x_train": headed(_shape(f"({2**32}, {2**32}, 1)"))},
        ("x.npz",),
    ),
    "sizes of 1 TB": ({"x_train": headed(_shape(f"({2**30}, 32, 32)"), b"1")}, ("x.npz",)),
    "sizes true and false": ({"x_train": headed(_shape("(True, 8, 8)"), bytes(64))}, ("x.npz",)),
    "70 dimensions": ({"x_train": headed(_shape(str((1,) * 70)), b"1")}, ("x.npz",)),
    "dtype of nothing": ({"x_train": headed(_shape("(60, 8, 8)", "None"), bytes(3840))}, ("npz",)),
    "dtype nested": (
        {"x_train": headed(_shape("(60,)", f"{'(' * 90}'u1',(1,){'),(1,)' * 89})"))},
        ("x.npz",),
    ),
    "dtype of 2 GB a value": (
        {"x_train": headed(_shape("(60, 8, 8)", "'|V2147483647'"), b"1")},
        ("x.npz",),
    ),
    "data that ends": ({"x_train": npy(digits()[0])[:-1]}, ("x.npz", "x_train")),
}
for _name, (_members, _words) in _MEMBERS.items():

    @case("npz", _name, *_words)
    def _member(folder: Path, members: dict[str, Any] = _members) -> str:
        return archive(folder / "x.npz", **members)


def _zeros(path: Path, n_bytes: int, method: int, head: bytes, name: str = "x_train.npy") -> str:
    archive(path, method, x_train=None)
    with (
        zipfile.ZipFile(path, "a", method) as file,
        file.open(name, "w", force_zip64=True) as member,
    ):
        member.write(head)
        for _ in range(n_bytes // 2**20):
            member.write(bytes(2**20))
    return f"npz:{path}"


for _label, _method in (("deflate", zipfile.ZIP_DEFLATED), ("bzip2", zipfile.ZIP_BZIP2)):

    @case("npz", f"bomb: 128 MB of zeros by {_label}", "unpack it", "x_train")
    def _bomb(folder: Path, method: int = _method) -> str:
        return _zeros(folder / "x.npz", 2**27, method, headed(_shape("(131072, 32, 32)")))


@case("npz", "bomb: 128 MB in a member that is no array", "unpack it", "x_train")
def _raw_bomb(folder: Path) -> str:
    return _zeros(folder / "x.npz", 2**27, zipfile.ZIP_DEFLATED, b"no array", "x_train")


@case("npz", "a member that is no array", "x_train", "x.npz")
def _raw(folder: Path) -> str:
    return _zeros(folder / "x.npz", 0, zipfile.ZIP_DEFLATED, b"no array", "x_train")


def _patched(folder: Path, *changes: tuple[bytes, int, bytes]) -> str:
    """A sound archive of which bytes behind a signature are replaced, in every place."""
    uri = archive(folder / "x.npz")
    content = bytearray((folder / "x.npz").read_bytes())
    for signature, offset, replacement in changes:
        start = content.find(signature)
        while start >= 0:
            content[start + offset : start + offset + len(replacement)] = replacement
            start = content.find(signature, start + 4)
    (folder / "x.npz").write_bytes(content)
    return uri


_LOCAL, _CENTRAL, _END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_PATCHES: dict[str, tuple[tuple[bytes, int, bytes], ...]] = {
    "zip that asks for a password": ((_LOCAL, 6, b"\x01\0"), (_CENTRAL, 8, b"\x01\0")),
    "zip of an unknown method": ((_LOCAL, 8, b"\x63\0"), (_CENTRAL, 10, b"\x63\0")),
    "zip that needs version 25.5": ((_CENTRAL, 6, b"\xff\0"),),
    "zip that says lzma": ((_LOCAL, 8, b"\x0e\0"), (_CENTRAL, 10, b"\x0e\0")),
    "zip that says bzip2": ((_LOCAL, 8, b"\x0c\0"), (_CENTRAL, 10, b"\x0c\0")),
    "zip with wrong sums": ((_CENTRAL, 16, b"\0\0\0\0"), (_LOCAL, 14, b"\0\0\0\0")),
    "zip whose members are beyond its end": ((_CENTRAL, 42, b"\xff\xff\xff\x7f"),),
    "zip of strong encryption": ((_LOCAL, 6, b"\x40\0"), (_CENTRAL, 8, b"\x40\0")),
    "zip of a patch": ((_LOCAL, 6, b"\x20\0"), (_CENTRAL, 8, b"\x20\0")),
    "zip whose directory is elsewhere": ((_END, 16, b"\xff\xff\xff\x7f"),),
    "zip whose members announce 4 GB": ((_CENTRAL, 24, b"\xfe\xff\xff\xff"),),
    "zip whose members announce nothing": ((_CENTRAL, 24, b"\0\0\0\0"),),
}
for _name, _changes in _PATCHES.items():

    @case("npz", _name, "x.npz")
    def _zip(folder: Path, changes: Any = _changes) -> str:
        return _patched(folder, *changes)


_WHOLE: dict[str, bytes] = {
    "no byte": b"",
    "text": b"x_train = 7",
    "a pickle": b"\x80\x04N.",
    "a single array": npy(np.zeros(3)),
    "a zip of nothing": _END + bytes(18),
    "end of a zip that says 65,535 members": _END + b"\0\0\0\0\xff\xff\xff\xff" + bytes(10),
}
for _name, _content in _WHOLE.items():

    @case("npz", f"file: {_name}", "x.npz")
    def _file(folder: Path, content: bytes = _content) -> str:
        (folder / "x.npz").write_bytes(content)
        return f"npz:{folder / 'x.npz'}"


@case("npz", "half an archive", "x.npz")
def _half(folder: Path) -> str:
    uri = archive(folder / "x.npz")
    os.truncate(folder / "x.npz", (folder / "x.npz").stat().st_size // 2)
    return uri


@case("npz", "that may not be read", "Permission denied", unprivileged=True)
def _forbidden(folder: Path) -> str:
    uri = archive(folder / "x.npz")
    (folder / "x.npz").chmod(0)
    return uri
