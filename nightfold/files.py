"""Files as a user gives them: what has to be known of one before it is opened.

A pipe blocks whoever opens it, a device never ends, and a small archive may unfold to more than the
machine has. What is in a file is the business of its reader.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from nightfold.errors import DataRefused, UsageError

BOMB_BYTES = 64 * 2**20
BOMB_RATIO = 100
"""What unfolds to more than `BOMB_BYTES` and to `BOMB_RATIO` times its size is refused.

MNIST and its family unfold to 2 to 8 times their size, encoded images hardly at all; a bomb unfolds
to 1,000 times its size and more.
"""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def given(path: str | Path) -> Path:
    """`path` with ``~`` expanded, whether something is there or not.

    Raises
    ------
    UsageError
        If nobody can look whether something is there: the path is too long, a folder on the way
        may not be entered, or ``~`` names a user who does not exist.

    Examples
    --------
    >>> given("no/such/file").as_posix()
    'no/such/file'
    """
    try:
        found = Path(path).expanduser()
        found.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise UsageError(
            f"{_short(path)} cannot be used ({error.strerror}): check the path."
        ) from error
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"{_short(path)} is no path ({error}): check it.") from error
    return found


def as_text(path: Path) -> str:
    r"""The path as text that every table and JSON document can hold.

    Examples
    --------
    >>> print(as_text(Path("caf\udce9.png")))
    caf\xe9.png
    """
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def require_plain(path: Path) -> None:
    """Make sure that `path` is a file of bytes that end; a link to one is as good.

    Raises
    ------
    DataRefused
        If it is anything else, or may not be looked at.
    """
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except FileNotFoundError as error:
        raise DataRefused(
            f"{path} is not a plain file but a link that leads nowhere: replace or remove it."
            if path.is_symlink()
            else f"There is no file {path}: check the path."
        ) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataRefused(f"{path} cannot be read ({reason}): check it.") from error
    if kind != stat.S_IFREG:
        what = _KINDS.get(kind, "something else")
        raise DataRefused(f"{path} is not a plain file but {what}: replace or remove it.")


def refuse_bomb(where: str, packed: int, unpacked: int) -> None:
    """Refuse what unfolds to far more than it holds before it does.

    Parameters
    ----------
    where : str
        What the message calls it.
    packed, unpacked : int
        Bytes as stored and as announced.

    Raises
    ------
    DataRefused
        See `BOMB_RATIO`.
    """
    if unpacked > max(BOMB_BYTES, BOMB_RATIO * packed):
        raise DataRefused(
            f"{where} unfolds from {packed:,} to {unpacked:,} bytes, as a decompression bomb does: "
            "if it is meant to, unpack it and give it uncompressed."
        )


def require_room(path: Path) -> None:
    """Refuse a file that is read as a whole and is larger than the memory, before it is hashed.

    Raises
    ------
    DataRefused
        See `fits_in_memory`.
    """
    size = path.stat().st_size
    if not fits_in_memory(size):
        raise DataRefused(
            f"{path} holds {size:,} bytes, more than this machine has memory: give fewer rows."
        )


def fits_in_memory(n_bytes: int) -> bool:
    """Whether the machine has so much memory at all, used or free."""
    return n_bytes <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _short(path: str | Path) -> str:
    text = str(path)
    return text if len(text) <= 200 else f"{text[:100]}...{text[-50:]}"
