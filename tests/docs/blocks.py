"""Blocks of code in the documentation, and what is done with each.

    python -m tests.docs.blocks      how many blocks are run, checked or parsed, by page

A comment in the line before a block says what it is; it is not shown on the site:

    <!-- run -->               sh: the commands are run, in a folder of small data and models
    <!-- file: NAME -->        yaml: a whole recipe; it is checked and written to NAME, for the commands below it
    <!-- other: WHAT -->       yaml: neither a recipe nor a declaration
    <!-- compiles: REASON -->  python: it is not run, because ...
    (none)                     sh: every command is parsed; yaml: every key is checked; python: run

Blocks of `text` are what something prints or holds.
"""

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
WRITTEN = {"exports.md": "docs/make_exports.py writes it; tests/interop/test_lines_of_use.py runs its lines"}
"""Pages whose Python is run elsewhere."""
ALL = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("docs/reference/*.md")])
PAGES = [path for path in ALL if "```" in path.read_text(encoding="utf-8")]
"""Those with code."""
BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>[^\n]+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


class Block(NamedTuple):
    """A block: its page and line, its language, what the comment before it says, its text."""

    page: Path
    line: int
    language: str
    mark: str
    text: str

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def done(self) -> str:
        """What is done with it: run, checked, parsed or nothing."""
        by_language = {"sh": "parsed", "yaml": "checked", "python": "run"}
        if self.mark.startswith(("compiles:", "other:")) or self.page.name in WRITTEN:
            return "parsed"
        return "run" if self.mark == "run" else by_language.get(self.language, "nothing")


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, found.start()) + 1, found["language"], found["mark"] or "", found["text"])
        for found in BLOCK.finditer(text)
    ]


def main() -> None:
    """Print the counts."""
    total: Counter[str] = Counter()
    for page in PAGES:
        counted = Counter(block.done for block in blocks(page))
        total += counted
        print(f"{page.relative_to(ROOT)!s:28}", dict(counted))
    print(f"{'all':28}", dict(total))


if __name__ == "__main__":
    main()
