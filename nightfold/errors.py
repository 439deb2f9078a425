"""The few exceptions that a user can meet, each with the exit code of the command.

A message is one sentence: what is wrong, where (file, row, byte), what to do about it. An exception
that is not in this module is a defect of ours and ends with exit code 1 and a traceback.
"""


class NightfoldError(Exception):
    """Something went wrong that the user can understand and mend."""

    exit_code = 1


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


class Busy(NightfoldError):
    """Another run has the artifacts folder."""


class BundleRefused(NightfoldError):
    """A model bundle is incomplete, altered or of an unknown format."""
