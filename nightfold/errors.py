"""The few exceptions that a user can meet, each with the exit code of the command.

A message is one sentence: what is wrong, where (file, row, byte), what to do about it. An exception
that is not in this module is a defect of ours and ends with exit code 1 and a traceback.
"""

from __future__ import annotations


def printable(text: str) -> str:
    r"""`text` on one line, with every character that cannot be shown written as an escape.

    The name of a file may hold a line break, a command to the terminal, or bytes that are no
    letters; none of them may forge a line of a log or end the command that prints it.

    Examples
    --------
    >>> print(printable("one\ntwo \x1b[2J caf\udce9 café"))
    one\ntwo \x1b[2J caf\xe9 café
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def first_line(error: Exception) -> str:
    """What an error says, on one line; of a faulty document the key, and what is wrong there."""
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc'])) or 'document'}: {first['msg']}"
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # how Python keeps a byte that it could not decode
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


class NightfoldError(Exception):
    """Something went wrong that the user can understand and mend."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class UsageError(NightfoldError):
    """A name, path or value that the user gave cannot be used."""

    exit_code = 2


class DataRefused(NightfoldError):
    """The data cannot be read or did not pass validation."""

    exit_code = 3


class NotPromoted(NightfoldError):
    """The challenger was not promoted although promotion was required."""

    exit_code = 4


class NotWritten(NightfoldError):
    """A file cannot be written: the disk is full, read-only or broken."""


class DeviceFailed(NightfoldError):
    """A training has met the end of the memory, or a GPU that failed; trying again may help."""


class Busy(NightfoldError):
    """Another run has the artifacts folder."""


class BundleRefused(NightfoldError):
    """A model bundle is incomplete, altered or of an unknown format."""
