"""Mistakes that a user can mend.

Every message is one line that names the file, the row or the key, and says what to do next. The command line
prints it and exits with code 2; a library user catches `MclipError`.
"""


class MclipError(Exception):
    """The base of all errors below: something the user can mend."""

    def __str__(self) -> str:
        """One line, whatever a file's name or cell put into it."""
        line = " ".join(super().__str__().split())
        return line if line.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


class RecipeError(MclipError):
    """A recipe, a corpus declaration or a command-line option is wrong."""


class DataError(MclipError):
    """A corpus or a prepared folder is missing, damaged or does not fit the recipe."""


class CheckpointError(MclipError):
    """Weights, a run folder or a model folder are missing, damaged or do not fit together."""


def first_line(error: Exception) -> str:
    """What a library's error says first, short enough to stand in one of our lines; its type if it says nothing.

    Where the first line only announces others, as over weights that do not fit, the second comes too.
    """
    if isinstance(error, KeyError):
        return f"there is no {error}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])[:200]
