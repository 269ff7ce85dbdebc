"""Pages that are not files of docs/: made from README.md and others at the top, the schemas, the command line, ...

mkdocs calls `on_files`, see mkdocs.yml.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TOP = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
TOP |= {"SECURITY.md": "security.md"}
"""File at the top of the checkout -> its page."""


def moved(text: str) -> str:
    """A file of the top as a page: its links start from docs/."""
    text = re.sub(r"(\]\(|src(?:set)?=\")docs/", r"\1", text)
    for file, page in TOP.items():
        text = text.replace(f"]({file}", f"]({page}")
    return text.replace(".ipynb)", ".md)")


def pages() -> Iterator[tuple[str, str]]:
    """Path of a page -> its Markdown."""
    sys.path.insert(0, str(ROOT))
    from docs.site.commands_page import commands_page
    from docs.site.notebook_page import notebook_page
    from docs.site.recipe_page import corpus_page, recipe_page
    from mclip_kit import layout

    for file, page in TOP.items():
        yield page, moved((ROOT / file).read_text(encoding="utf-8"))
    yield "tutorial.md", notebook_page(ROOT / "docs" / "tutorial.ipynb")
    yield "reference/recipe.md", recipe_page()
    yield "reference/corpus.md", corpus_page()
    yield "reference/commands.md", commands_page()
    yield "reference/files.md", f"# Files of each folder\n\n```text\n{(layout.__doc__ or '').strip()}\n```\n"


def on_files(files: Any, config: Any) -> Any:
    """Add the pages."""
    from mkdocs.structure.files import File

    for path, text in pages():
        files.append(File.generated(config, path, content=text))
    return files
