"""Errors that a user can fix.

Every message is one line that names the file, the row or the key, and says what to do next. The command line
prints it and exits with code 2; code that uses the library catches `MclipError`.
"""

import re

from mclip_kit.urls import with_urls

MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What plain code raises for JSON or YAML whose values or depth are not what it expects."""
TERMINAL_CODES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")
"""ECMA-48: control sequences (colours), operating-system commands (links) and other escapes of a terminal."""
LONGEST = 200  # characters that are quoted of a library's message


class MclipError(Exception):
    """The base of all errors below."""

    def __str__(self) -> str:
        """The message as one printable line, whatever is in a file name; copies of objects are named by their URLs."""
        return one_line(" ".join(TERMINAL_CODES.sub("", with_urls(super().__str__())).split()))


class RecipeError(MclipError):
    """A recipe, a corpus declaration or a command-line option is wrong."""


class DataError(MclipError):
    """A corpus or a prepared folder is missing, is damaged or does not fit the recipe."""


class CheckpointError(MclipError):
    """Weights, a run folder or a model folder are missing, are damaged or do not fit together."""


class DiskError(MclipError):
    """A file could not be written: the disk is full, fails or is read-only, or a folder was removed."""


class StorageError(MclipError):
    """A place in object storage cannot be read or written: no access, no connection, or a package is missing."""


class BusyError(MclipError):
    """Another process writes to the same folder."""


class PeerError(MclipError):
    """Another process of the same run stopped; that one prints why."""


def one_line(text: str) -> str:
    """A text that a terminal prints as one line: a terminal's codes are removed, other control characters are escaped.

    >>> one_line("a\\nb")
    'a\\\\nb'
    """
    line = TERMINAL_CODES.sub("", text)
    return line if line.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def first_line(error: Exception) -> str:
    """The first line of a library's error, at most 200 characters; the error's type if it has no message.

    A terminal's codes are removed. If the first line ends with a colon, as for weights that do not fit, the second line
    is added. A longer line is cut after a sentence, else after a word.
    """
    if isinstance(error, KeyError):
        return f"there is no {error}"
    text = TERMINAL_CODES.sub("", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    return _cut(" ".join(lines[: 2 if lines[0].endswith(":") else 1]))


def _cut(line: str) -> str:
    if len(line) <= LONGEST:
        return line
    sentences = [end.start() for end in re.finditer(r"[.!?;](?=\s)", line[: LONGEST + 1])]
    if sentences and sentences[-1] >= LONGEST // 4:
        return line[: sentences[-1]]
    return f"{line[: LONGEST - 3].rsplit(' ', 1)[0]} ..."
