"""The reference pages have every key of the schemas, every command and option, every public name and every file."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import click
import pytest
from pydantic import BaseModel

pytest.importorskip("griffe", reason="the extra `docs` is not installed")

import mclip_kit
from docs.site.commands_page import commands_page
from docs.site.examples import fenced
from docs.site.hooks import moved, pages
from docs.site.recipe_page import corpus_page, recipe_page
from mclip_kit import layout
from mclip_kit.cli import cli
from mclip_kit.config.recipe import Recipe
from mclip_kit.config.stages import KINDS
from mclip_kit.data.corpora import Corpus
from tests.docs.blocks import ROOT


def sections(schema: type[BaseModel]) -> set[type[BaseModel]]:
    """A schema and the sections below it, by the annotations of its fields."""
    found, waiting = set(), [schema, *(KINDS.values() if schema is Recipe else ())]
    while waiting:
        section = waiting.pop()
        if section in found:
            continue
        found.add(section)
        kinds = [kind for field in section.model_fields.values() for kind in classes(field.annotation)]
        waiting += [kind for kind in kinds if issubclass(kind, BaseModel) and kind.__name__ != "Stage"]
    return found


def classes(annotation: Any) -> Iterator[type]:
    """The classes in an annotation."""
    if isinstance(annotation, type) and not get_args(annotation):
        yield annotation
    for inside in get_args(annotation):
        yield from classes(inside)


@pytest.mark.parametrize(("page", "schema"), [(recipe_page, Recipe), (corpus_page, Corpus)])
def test_every_key_of_a_schema_has_a_row_with_its_meaning(page, schema) -> None:
    parts = {part.partition(" }")[0]: part for part in page().split("{ #")[1:]}
    found = sections(schema)
    assert set(parts) == {section.__name__.lower() for section in found}
    for section in found:
        rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| .+ \| ([^|]*) \|$", parts[section.__name__.lower()], re.MULTILINE)
        assert [key for key, _, _ in rows] == list(section.model_fields), section
        assert all(kind.strip() for _, kind, _ in rows)
        assert not [key for key, _, meaning in rows if not meaning.strip()], section


def test_bounds_defaults_and_conditions_are_told() -> None:
    page = recipe_page()
    assert "| `lr` | number > 0 | required | Peak learning rate. |" in page
    assert "| `betas` | number and number ≥ 0 < 1 | `[0.9, 0.999]` |" in page
    assert "Only for several languages." in page
    assert "`tokens` only for transformer projectors and translation stages." in page


def test_every_command_and_option_has_its_place() -> None:
    page, waiting, count = commands_page(), [("mclip-kit", cli)], 0
    while waiting:
        name, command = waiting.pop()
        waiting += [(f"{name} {key}", below) for key, below in getattr(command, "commands", {}).items()]
        part = re.split(r"^##+ ", page.partition(f"# {name} {{ #")[2], flags=re.MULTILINE)[0]
        assert part, name
        for option in (option for option in command.params if isinstance(option, click.Option) and not option.hidden):
            assert all(re.search(rf"^\| `[^`]*{flag}\b", part, re.MULTILINE) for flag in option.opts), (name, option)
            count += 1
    assert count > 60


def test_the_python_page_has_every_public_name() -> None:
    page = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    for name in set(mclip_kit.__all__) - {"__version__"}:
        assert re.search(rf"^::: mclip_kit\.[\w.]+\.{name}$", page, re.MULTILINE), name


def test_examples_of_docstrings_become_code_and_shared_entries_are_parted() -> None:
    docstring = "What it does.\n\n>>> f(1)\n2\n\nArgs:\n    a, b: numbers\n        of a kind.\n    c: a text.\n"
    assert fenced(docstring) == (
        "What it does.\n\n```pycon\n>>> f(1)\n2\n```\n\nArgs:\n    a: numbers\n        of a kind.\n"
        "    b: numbers\n        of a kind.\n    c: a text.\n"
    )


def test_files_of_the_top_are_pages_whose_links_start_from_docs() -> None:
    made = dict(pages())
    assert moved("[a](docs/a.md), ![b](docs/b.png), [c](SECURITY.md)") == "[a](a.md), ![b](b.png), [c](security.md)"
    assert {"index.md", "changelog.md", "contributing.md", "security.md", "tutorial.md"} <= set(made)
    assert all(name in made["reference/files.md"] for name in (layout.MANIFEST, layout.RECIPE, layout.MODEL_CONFIG))
    assert not [path for path, text in made.items() if "](docs/" in text]


def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    """Links, anchors and docstrings are checked by the build: a warning is an error."""
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    html = {path: path.read_text(encoding="utf-8") for path in (tmp_path / "site").rglob("*.html")}
    assert len(html) > 25
    loading = re.compile(r'<(?:script|img|iframe)[^>]*\ssrc="?https?:|<link[^>]*href="?https?:[^>]*stylesheet|@import')
    assert not [path for path, text in html.items() if loading.search(text)]
    shown = [(path, name) for path, text in html.items() for name in re.findall(r' src(?:set)?="([^":]+\.png)"', text)]
    assert any(name == "search-dark.png" for _, name in shown)
    assert not [(path, name) for path, name in shown if not (path.parent / name).is_file()]
