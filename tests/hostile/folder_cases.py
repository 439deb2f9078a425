"""Folders of images: what else may lie there, and what names may be."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.hostile.corpus import case, digits, encoded
from tests.hostile.image_cases import png, rows


def photos(root: Path) -> str:
    """Sixty sound digits, a folder a class; the source URI."""
    for row, (pixels, label) in enumerate(zip(*digits(), strict=True)):
        place = root / f"class {label}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{row:02}.png").write_bytes(encoded(pixels))
    return f"folder:{root}"


@case("folder", "sound (control)")
def _sound(folder: Path) -> str:
    return photos(folder / "photos")


_FILES: dict[str, tuple[str, Any, tuple[str, ...]]] = {
    "a text called .png": ("class 1/x.png", b"text", ("x.png", "not an image file")),
    "a file of no byte": ("class 1/x.png", b"", ("x.png", "0 bytes")),
    "a list of labels": ("labels.csv", b"1,2", ("labels.csv", "beside the class folders")),
    "notes in a class": ("class 1/notes.txt", b"x", ("notes.txt", "not an image by its name")),
    "a hidden file": ("class 1/.x.png", b"x", (".x.png", "not an image by its name")),
    "a shadow of a file": ("class 1/._00.png", b"x", ("._00.png", "not an image by its name")),
    "a folder in a class": ("class 1/deep/x.png", b"x", ("deep", "folder inside a class")),
    "a folder called x.png": ("class 1/x.png/y", b"x", ("x.png", "folder inside a class")),
    "notebook leftovers": ("class 1/.ipynb_checkpoints/x.png", b"x", ("folder inside a class",)),
    "a class of leftovers": ("__MACOSX/._x.png", b"x", ("._x.png",)),
    "another size": (
        "class 1/x.png",
        lambda: encoded(np.zeros((5, 6), "u1")),
        ("x.png", "5x6", "--size HxW"),
    ),
    "100 megapixels among small ones": (
        "class 1/x.png",
        lambda: png(12_000, 12_000, rows(12_000, 9)),
        ("x.png", "more than 134,217,728 pixels"),
    ),
    "a line break in a name": ("class 1/a\nb.png", b"text", ("a\\nb.png",)),
    "a terminal's escape in a name": ("class 1/\x1b[2J.png", b"text", ("\\x1b[2J.png",)),
    "a class with a line break": ("class\n1/x.png", b"x", ("name 'class\\n1'",)),
    "a class of another case": ("Class 1/x.png", b"x", ("'Class 1' and 'class 1'",)),
    "a class with a space behind": ("class 1 /x.png", b"x", ("'class 1' and 'class 1 '",)),
    "a class of a zero-width letter": ("class 1\u200b/x.png", b"x", ("class 1\\u200b",)),
}
for _name, (_place, _content, _words) in _FILES.items():

    @case("folder", _name, *_words)
    def _file(folder: Path, place: str = _place, content: Any = _content) -> str:
        uri = photos(folder / "photos")
        path = folder / "photos" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content() if callable(content) else content)
        return uri


@case("folder", "what file managers leave")
def _litter(folder: Path) -> str:
    uri = photos(folder / "photos")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (folder / "photos" / name).write_bytes(b"x")
        (folder / "photos" / "class 1" / name).write_bytes(b"x")
    return uri


@case("folder", "names of other alphabets")
def _alphabets(folder: Path) -> str:
    photos(folder / "photos")
    for label, name in enumerate(("Größe", "日本語", "крыса", "عربى", "ñandú")):
        (folder / "photos" / f"class {label}").rename(folder / "photos" / name)
    (folder / "photos" / "日本語" / "06.png").rename(folder / "photos" / "日本語" / "目 é.png")
    return f"folder:{folder / 'photos'}"


@case("folder", "one name in two spellings of Unicode", "e\u0301t\u00e9", "\u00e9t\u00e9")
def _spellings(folder: Path) -> str:
    photos(folder / "photos")
    (folder / "photos" / "class 1").rename(folder / "photos" / "\u00e9t\u00e9")
    (folder / "photos" / "class 2").rename(folder / "photos" / "e\u0301t\u00e9")
    return f"folder:{folder / 'photos'}"


@case("folder", "a class whose name cannot be decoded", "caf\\xe9", "rename")
def _class_undecodable(folder: Path) -> str:
    uri = photos(folder / "photos")
    (folder / "photos" / "class 1").rename(os.fsdecode(os.fsencode(folder) + b"/photos/caf\xe9"))
    return uri


@case("folder", "a file whose name cannot be decoded")
def _file_undecodable(folder: Path) -> str:
    uri = photos(folder / "photos")
    path = os.fsencode(folder) + b"/photos/class 1/"
    os.rename(path + b"06.png", path + b"caf\xe9.png")
    return uri


@case("folder", "a link to it whose goal cannot be decoded")
def _goal_undecodable(folder: Path) -> str:
    goal = Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9"))
    photos(goal)
    (folder / "photos").symlink_to(goal)
    return f"folder:{folder / 'photos'}"


_LINKS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "an image that is a pipe": ("class 1/x.png", "PIPE", ("x.png", "not a plain file")),
    "an image that is an endless device": (
        "class 1/x.png",
        "/dev/zero",
        ("x.png", "not a plain file"),
    ),
    "an image that is a link to nowhere": ("class 1/x.png", "gone", ("x.png", "not a plain file")),
    "an image that is a link to itself": ("class 1/x.png", "x.png", ("x.png", "symbolic links")),
    "a link out of the folder to a text": (
        "class 1/x.png",
        "/etc/passwd",
        ("x.png", "not an image"),
    ),
    "a class that is a link to its parent": ("up", "..", ("folder inside a class",)),
    "a class that is a link to itself": ("self", "self", ("self",)),
    "a class that is a pipe": ("pipe", "PIPE", ("pipe", "beside the class folders")),
}
for _name, (_place, _goal, _words) in _LINKS.items():

    @case("folder", _name, *_words)
    def _link(folder: Path, place: str = _place, goal: str = _goal) -> str:
        uri = photos(folder / "photos")
        path = folder / "photos" / place
        if goal == "PIPE":
            os.mkfifo(path)
        else:
            path.symlink_to(goal)
        return uri


@case("folder", "links out of the folder to images")
def _good_links(folder: Path) -> str:
    photos(folder / "elsewhere")
    (folder / "photos").mkdir()
    for place in (folder / "elsewhere").iterdir():
        (folder / "photos" / place.name).mkdir()
        for path in place.iterdir():
            (folder / "photos" / place.name / path.name).symlink_to(path)
    return f"folder:{folder / 'photos'}"


@case("folder", "empty", "is empty")
def _empty(folder: Path) -> str:
    (folder / "photos").mkdir()
    return f"folder:{folder / 'photos'}"


@case("folder", "a class of no image", "class 10", "holds no images")
def _hollow(folder: Path) -> str:
    uri = photos(folder / "photos")
    (folder / "photos" / "class 10").mkdir()
    return uri


@case("folder", "one class", "only the class class 1")
def _single(folder: Path) -> str:
    photos(folder / "photos")
    (folder / "one").mkdir()
    (folder / "photos" / "class 1").rename(folder / "one" / "class 1")
    return f"folder:{folder / 'one'}"


@case("folder", "train and test spell a class differently", "'Class 1' and 'class 1'")
def _splits(folder: Path) -> str:
    photos(folder / "photos" / "train")
    (folder / "photos" / "test").mkdir()
    (folder / "photos" / "train" / "class 1").rename(folder / "photos" / "test" / "Class 1")
    photos(folder / "photos" / "train")
    return f"folder:{folder / 'photos'}"


@case("folder", "a test class that train does not have", "class 1")
def _strange_class(folder: Path) -> str:
    photos(folder / "photos" / "train")
    (folder / "photos" / "test").mkdir()
    (folder / "photos" / "train" / "class 1").rename(folder / "photos" / "test" / "class 1")
    return f"folder:{folder / 'photos'}"


@case("folder", "animations, bits and colours together")
def _mixture(folder: Path) -> str:
    uri = photos(folder / "photos")
    place = folder / "photos" / "class 1"
    first, second = (Image.fromarray(pixels) for pixels in digits()[0][6:8])
    first.save(place / "a.gif", save_all=True, append_images=[second])
    Image.fromarray(digits()[0][8].astype("u2") * 257).save(place / "b.png")
    Image.new("CMYK", (8, 8), (9, 99, 0, 50)).save(place / "c.jpg")
    Image.new("LA", (8, 8), (9, 99)).save(place / "d.webp")
    Image.new("P", (8, 8)).save(place / "e.png", transparency=0)
    return uri


@case("folder", "an image that may not be read", "00.png", "Permission", unprivileged=True)
def _forbidden(folder: Path) -> str:
    uri = photos(folder / "photos")
    (folder / "photos" / "class 0" / "00.png").chmod(0)
    return uri


for _name, _mode in (("listed", 0o300), ("entered", 0o600)):

    @case("folder", f"a class that may not be {_name}", "class 1", "Permission", unprivileged=True)
    def _closed(folder: Path, mode: int = _mode) -> str:
        uri = photos(folder / "photos")
        (folder / "photos" / "class 1").chmod(mode)
        return uri
