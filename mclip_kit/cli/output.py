"""What commands print: notes that --quiet leaves out, JSON for machines, and colours where they say something."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import click

from mclip_kit.files import printable
from mclip_kit.progress import is_quiet

ShowJson = Callable[[Any], None]
"""Prints one value as a line of JSON."""
JSON = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print JSON, and nothing else, on standard output; all else on standard error.",
)
INTERVAL = re.compile(r"[+-]\d+\.\d \[([+-]\d+\.\d), ([+-]\d+\.\d)\]")
NEVER = re.compile(r"(?m)(?<=^  )\S+  never trained")  # not the line of their mean


def note(line: str) -> None:
    """Print a line that is neither a result nor a warning; nothing if the command is quiet."""
    if not is_quiet():
        click.echo(line)


def warn(line: str) -> None:
    """Print a warning."""
    click.echo(click.style(line, fg="yellow"))


@contextmanager
def json_alone(as_json: bool) -> Iterator[ShowJson]:
    """Inside, if `as_json`, what is printed goes to standard error; the function prints JSON on standard output.

    >>> with json_alone(False) as show:
    ...     show({"rows": 3})
    {"rows": 3}
    """
    out = sys.stdout

    def show(content: Any) -> None:
        click.echo(printable(json.dumps(content, ensure_ascii=False)), file=out)

    if as_json:
        with redirect_stdout(sys.stderr):
            yield show
    else:
        yield show


def coloured(table: str) -> str:
    """A table of an evaluation: differences whose interval is on one side of zero, and languages never trained.

    >>> coloured("+1.2 [+0.3, +2.0]  -0.1 [-0.5, +0.2]")
    '\\x1b[32m+1.2 [+0.3, +2.0]\\x1b[0m  -0.1 [-0.5, +0.2]'
    """
    return NEVER.sub(lambda found: click.style(found[0], fg="yellow"), INTERVAL.sub(_interval, table))


def _interval(found: re.Match[str]) -> str:
    low, high = float(found[1]), float(found[2])
    return click.style(found[0], fg="green") if low > 0 else click.style(found[0], fg="red") if high < 0 else found[0]
