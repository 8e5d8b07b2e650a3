"""The package's errors: one sentence each, saying what was wanted, what was found, and what to do.

A setting that helps is named as a caller from Python gives it, in backquotes, and never as a flag: "lower
`max_seq_len`", "`allow_extra=True` ignores that"; the command line says its own flag there (`system.cli.in_flags`).
Each class carries the exit code with which the command line ends when the error reaches it.
"""


class Llama3Error(Exception):
    """Something failed while running (exit 1)."""

    exit_code = 1


class UsageError(Llama3Error, ValueError):
    """An option, an argument or a prompt can't be used (exit 2)."""

    exit_code = 2


class FileError(Llama3Error):
    """A file, a folder or a name is missing, damaged or not what was expected (exit 3)."""

    exit_code = 3


class MissingFileError(FileError):
    """A file that would be there, were all complete, isn't: not a damaged one (exit 3)."""


class MismatchError(Llama3Error):
    """A checksum or a comparison failed (exit 4)."""

    exit_code = 4


class ResourceError(Llama3Error):
    """Memory or disk doesn't suffice (exit 5)."""

    exit_code = 5
