"""Command lines of the documentation, parsed: commands, options and choices exist, and recipes and keys are valid."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
from packaging.requirements import Requirement

from mclip_kit.cli import cli
from mclip_kit.config.recipe import load
from mclip_kit.config.yaml import shipped
from tests.docs.blocks import ROOT

FREE = ("git", "cd")


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a block; a command goes on after a backslash or inside quotes."""
    waiting = ""
    for line in text.replace("\\\n", " ").splitlines():
        waiting += line + "\n"
        try:
            words = shlex.split(waiting, comments=True)
        except ValueError:  # a quote is open
            continue
        waiting = ""
        if words:
            yield words
    assert not waiting, f"an open quote: {waiting}"


def parse(words: list[str]) -> None:
    """AssertionError or click's UsageError if a command line is wrong."""
    program, *rest = words
    if program == "mclip-kit":
        _parse_ours(rest)
    elif "mclip_kit.cli" in words:
        _parse_ours(words[words.index("mclip_kit.cli") + 1 :])
    elif program == "make":
        made = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert set(rest) <= set(made), words
    elif "pip" in words:
        _parse_pip(rest[rest.index("install") + 1 :])
    else:
        assert program in FREE, f"{program}: not a command that is known here"


def _parse_ours(words: list[str]) -> None:
    context = cli.make_context("mclip-kit", list(words))
    while isinstance(context.command, click.Group) and (rest := [*context._protected_args, *context.args]):
        name, command, rest = context.command.resolve_command(context, rest)
        assert command is not None
        if not rest and command.no_args_is_help:
            return
        context = command.make_context(name, rest, parent=context)
    _check_recipe(context.params)


def _check_recipe(params: dict[str, object]) -> None:
    """A recipe that is shipped must be valid with its --set options; a path of one must exist."""
    recipe = str(params.get("recipe") or "")
    name = Path(recipe).stem
    if recipe.startswith("recipes/") or (shipped("recipes") / f"{name}.yaml").is_file():
        load(recipe, tuple(params.get("overrides") or ()))  # type: ignore[arg-type]


def _parse_pip(words: list[str]) -> None:
    """What is installed is this package with known extras, or what setup.py knows or names as advice."""
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    for word in (word for word in words if not word.startswith("-")):
        if word.startswith("."):
            extras = re.findall(r"[\w-]+", word)
            assert all(f'"{extra}":' in setup for extra in extras), word
        else:
            assert Requirement(word).name in setup, word
