"""Docstrings for the site: examples that begin with >>> become blocks of code; `a, b: text` becomes two entries."""

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"(?:^[ ]*>>>.*\n?(?:^[ ]*(?!>>>)\S.*\n?)*)+", re.MULTILINE)
SHARED = re.compile(r"^(?P<indent> +)(?P<names>\w+(?:, \w+)+): (?P<text>.*(?:\n(?P=indent) +\S.*)*)", re.MULTILINE)


def fenced(docstring: str) -> str:
    """The docstring with a fence around each example, and an entry for each name."""
    docstring = SHARED.sub(_entries, docstring)
    return EXAMPLE.sub(lambda found: f"```pycon\n{found[0].rstrip()}\n```\n", docstring)


def _entries(found: re.Match[str]) -> str:
    return "\n".join(f"{found['indent']}{name}: {found['text']}" for name in found["names"].split(", "))


class Examples(griffe.Extension):
    """Applies `fenced` to all docstrings."""

    def on_object(self, *, obj: griffe.Object, **others: Any) -> None:
        """Called by griffe for each module, class and function."""
        if obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)
