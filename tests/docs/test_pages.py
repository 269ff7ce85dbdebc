"""The code of the documentation: run on small data and models, checked against the schema, or parsed."""

import json
import re
import shlex
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner

pytest.importorskip("faiss", reason="the extra `search` is not installed")

from mclip_kit.cli import cli
from mclip_kit.config.recipe import load
from mclip_kit.config.yaml import overridden
from mclip_kit.errors import RecipeError
from tests import tiny
from tests.docs import fragments
from tests.docs.blocks import ALL, PAGES, ROOT, Block, blocks
from tests.docs.commands import commands, parse
from tests.docs.photos import write_photos, write_tables

JOBS = ("your_data", "your_models", "which_method", "languages", "evaluate", "export", "search", "large")
JOBS += ("troubleshooting",)
LANGUAGES = ["en", "de", "fr"]
SMALL: dict[str, dict[str, Any]] = {
    "quickstart": {
        "teacher": {"weights": "train", "model": tiny.TEACHER},
        "encoder": tiny.ENCODER,
        "evaluation.languages": LANGUAGES,
        "stages.2.languages": LANGUAGES,
        "stages.0.augment.shift": 1,
        **{f"stages.{n}.epochs": 1 for n in range(3)},
        **{f"stages.{n}.batch_size": 48 for n in range(3)},
    },
    "quickstart_trikd": {
        "encoder": "hf:runs/quickstart/model/encoder",
        **{f"stages.{n}.languages": LANGUAGES for n in range(2)},
        **{f"stages.{n}.epochs": 1 for n in range(2)},
        **{f"stages.{n}.batch_size": 48 for n in range(2)},
    },
}
"""Recipe -> keys that make it small: in the folder where blocks are run it has the shipped one's name."""
PLACEHOLDERS = {"COMMAND": "train", "FORMAT": "onnx", "SOURCE": "altclip", " ...": " recipes"}
"""What stands for a command in sentences -> one of them."""
DONE: list[list[str]] = []
"""Commands that were run when the folder was made; pages that have them find what they wrote."""


@pytest.fixture(scope="module")
def place(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with captioned pictures, a prepared corpus, small recipes and what they trained."""
    place = tmp_path_factory.mktemp("docs")
    shutil.copytree(squares, place / "data" / "emoji")
    write_photos(place / "photos")
    write_tables(place)
    (place / "recipes").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for name, keys in SMALL.items():
            tree = yaml.safe_load((ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8"))
            sets = [f"{key}={json.dumps(value)}" for key, value in keys.items()]
            tiny.write_recipe(overridden(tree, sets), Path("recipes", f"{name}.yaml"))
            type_(command := ["mclip-kit", "train", f"recipes/{name}.yaml"])
            DONE.append(command)
    return place


def type_(words: list[str]) -> None:
    """Run a command as it is typed."""
    assert words[0] == "mclip-kit", f"only commands of mclip-kit are run, not {words[0]}"
    done = CliRunner().invoke(cli, words[1:])
    assert done.exit_code == 0, f"{' '.join(words)}\n{done.output}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_code_of_a_page(page: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = blocks(page)
    if any(block.done == "run" for block in found):
        shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in found:
        try:
            # shipped recipes are checked beside the checkout's data, small ones are run in the folder
            monkeypatch.chdir(tmp_path if block.done == "run" or block.mark.startswith("file:") else ROOT)
            do(block, names)
        except Exception as error:
            pytest.fail(f"{block.where}: {error}")


def do(block: Block, names: dict[str, Any]) -> None:
    """Run, check or parse a block."""
    if block.language == "sh":
        for words in commands(block.text):
            if words not in DONE:
                (type_ if block.mark == "run" else parse)(words)
    elif block.language == "yaml":
        if block.mark.startswith("file:"):
            name = block.mark.removeprefix("file:").strip()
            Path(name).write_text(block.text, encoding="utf-8")
            load(name)
        elif block.mark.startswith("other:"):
            assert yaml.safe_load(block.text)
        else:
            fragments.check(block.text)
    elif block.language == "python":
        code = compile(block.text, block.where, "exec")
        if block.done == "run":
            exec(code, names)
    else:
        assert block.language == "text", "name the language of this block: sh, yaml, python or text"


@pytest.mark.parametrize("job", JOBS)
def test_a_page_of_a_job_starts_with_code_that_runs(job: str) -> None:
    first = next(block for block in blocks(ROOT / "docs" / f"{job}.md") if block.language != "text")
    assert first.done == "run" or first.mark.startswith("file:")


def test_commands_inside_sentences_parse() -> None:
    checked = 0
    for page in ALL:
        for found in re.findall(r"`mclip-kit ([^`]+)`", page.read_text(encoding="utf-8")):
            for name, example in PLACEHOLDERS.items():
                found = found.replace(name, example)
            words = shlex.split(found)
            with suppress(click.MissingParameter):  # the command is named, without what it takes
                parse(["mclip-kit", *words])
            checked += 1
    assert checked > 30


def test_links_to_other_sites_are_whole() -> None:
    links = [link for page in ALL for link in re.findall(r"\]\((https?:[^)]*)\)", page.read_text(encoding="utf-8"))]
    assert len(links) > 5
    assert not [link for link in links if not re.fullmatch(r"https://[a-z0-9.-]+\.[a-z]+/[\w./-]+", link)]


def written_part(page: str, mark: str = "written by benchmarks/methods.py", end: str = "end of what") -> str:
    """What a script of benchmarks/ writes of docs/methods.md."""
    return page.partition(f"<!-- {mark} -->")[2].partition(f"<!-- {end}")[0]


def test_figures_with_their_deviation_are_those_of_the_results() -> None:
    """Both pages of figures are written by scripts of benchmarks/."""
    results, methods = ((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("results", "methods"))
    results += "".join(written_part(methods, name, f"/{name}") for name in ("tried", "neutral")) + written_part(methods)
    figures = [
        (page.name, figure)
        for page in ALL
        if page.name != "results.md"
        for figure in re.findall(r"\d+\.\d ± \d+\.\d", page.read_text(encoding="utf-8"))
    ]
    assert len(figures) > 15
    assert not [(page, figure) for page, figure in figures if figure not in results]


def test_the_measured_part_of_methods_has_its_tables() -> None:
    part = written_part((ROOT / "docs" / "methods.md").read_text(encoding="utf-8"))
    assert part.count("\n### ") > 2
    for table in part.split("\n### ")[1:]:
        rows = [line for line in table.splitlines() if line.startswith("|")]
        assert len(rows) > 2, table
        assert len({line.count("|") for line in rows}) == 1, table


def test_messages_that_are_explained_are_messages_of_the_program() -> None:
    """The quoted parts of the table `By message` are in the source."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    table = page.partition("## By message")[2].partition("\n## ")[0]
    source = " ".join(path.read_text(encoding="utf-8") for path in (ROOT / "mclip_kit").rglob("*.py"))
    source = re.sub(r'"\s*f?"', "", source)  # strings that go on in the next line
    messages = re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)
    assert len(messages) > 10
    parts = [part.strip() for message in messages for part in re.split(r"\.\.\.|manifest\.json|images\.tsv", message)]
    assert not [part for part in parts if part.strip(" ;,()`") and part not in source]


@pytest.mark.parametrize(
    "words",
    [
        "mclip-kit eval MODEL --nonsense",
        "mclip-kit eval MODEL --task nonsense",
        "mclip-kit nonsense",
        "mclip-kit train",
        "mclip-kit train recipes/nonsense.yaml",
        "mclip-kit train recipes/quickstart.yaml --set stages.0.nonsense=1",
        "torchrun --nproc-per-node 8 -m mclip_kit.cli train recipes/nonsense.yaml",
        "make nonsense",
        "pip install nonsense",
        "pip install -e '.[nonsense]'",
        "curl nonsense",
    ],
)
def test_a_wrong_command_is_found(words: str) -> None:
    with pytest.raises((AssertionError, click.UsageError, RecipeError)):
        parse(shlex.split(words))


@pytest.mark.parametrize(
    "text",
    ["nonsense: 1", "data: {nonsense: 1}", "stages: [{lr: fast}]", "stages: [{kind: translate, epochs: 1}]", "- a"],
)
def test_a_wrong_fragment_is_found(text: str) -> None:
    with pytest.raises((AssertionError, ValueError)):
        fragments.check(text)


def test_every_recipe_has_its_row_on_the_first_page_and_its_header() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .+ \|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    files = sorted((ROOT / "recipes").glob("*.yaml"))
    assert sorted(rows) == [path.stem for path in files]
    for path in files:
        header = path.read_text(encoding="utf-8").partition("\nabout:")[0]
        assert header.startswith("# "), path
        assert "\n#   needs " in header, path
        assert "\n#   command " in header, path
