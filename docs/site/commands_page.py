"""The reference of the command line, as Markdown: every command and option, made from click."""

import inspect
import re
from collections.abc import Iterator
from typing import Any

import click

HEAD = """# Command reference

Made from the command line itself; `mclip-kit COMMAND --help` prints the same. Exit codes: 0 done; 2 a mistake that one
line names; 1 a problem that `doctor` or `cache verify` found; 130 after Ctrl-C; 143 after SIGTERM; 70 a fault of the
program, with a report.
"""


def commands_page() -> str:
    """The page of all commands."""
    from mclip_kit.cli import cli

    return "\n".join([HEAD, *_sections(cli, "mclip-kit")])


def commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """A command and all below it, by what is typed."""
    yield name, command
    for below in getattr(command, "commands", {}).values():
        yield from commands(below, f"{name} {below.name}")


def _sections(command: click.Command, name: str) -> Iterator[str]:
    for typed, found in commands(command, name):
        context = click.Context(found, info_name=typed)
        usage = " ".join([typed, *found.collect_usage_pieces(context)])
        level = 2 + (typed.count(" ") > 1)
        yield f"{'#' * level} {typed} {{ #{typed.replace(' ', '-')} }}\n"
        yield f"```text\n{usage}\n```\n"
        yield f"{_help(found)}\n"
        rows = [_row(parameter, context) for parameter in found.get_params(context) if _is_told(parameter)]
        if rows:
            yield "| option | meaning |\n| --- | --- |"
            yield from rows
            yield ""


def _is_told(parameter: click.Parameter) -> bool:
    return isinstance(parameter, click.Option) and not parameter.hidden


def _help(command: click.Command) -> str:
    return inspect.cleandoc(command.help or "").replace("\b\n", "").replace("<", "&lt;")


def _row(parameter: Any, context: click.Context) -> str:
    names, meaning = parameter.get_help_record(context) or ("", "")
    meaning = re.sub(r"([|*\[\]])", r"\\\1", re.sub(r"\s+", " ", meaning)).replace("<", "&lt;")
    return f"| `{names.replace('|', chr(92) + '|')}` | {meaning} |"
