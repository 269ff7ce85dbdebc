"""mclip-kit cache ls | verify | prune"""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mclip_kit.cli.common import FOLDER
from mclip_kit.cli.output import JSON, json_alone
from mclip_kit.files import readable

if TYPE_CHECKING:
    from mclip_kit.features.manage import TableInfo


@click.group()
def cache() -> None:
    """List, verify and remove cached outputs of frozen towers."""


ROOT = click.option(
    "--root",
    type=FOLDER,
    envvar="MCLIP_KIT_CACHE",
    default=Path("runs/features"),
    show_default=True,
    help="The cache's folder, or its URL in object storage.",
)


@cache.command("ls")
@ROOT
@JSON
def cache_ls(root: Path, as_json: bool) -> None:
    """List the tables: rows, size, type, precision, last use, weights."""
    from datetime import datetime

    from mclip_kit.features.manage import list_tables

    with json_alone(as_json) as show_json:
        tables = list_tables(root)
        if as_json:
            show_json({"root": str(root), "tables": [_facts(table) for table in tables]})
            return
    for table in tables:
        used = f"{datetime.fromtimestamp(table.used):%Y-%m-%d %H:%M}"
        dtype = table.item_format.dtype if table.precision else ""
        click.echo(
            f"{table.folder.name:32} {table.rows:>11,} rows {readable(table.bytes):>10}  {dtype:5} "
            f"{table.precision:8} {used}  {table.source}" + (f" ({table.weights[:8]})" if table.weights else "")
        )
    click.echo(f"{root}: {len(tables)} tables, {readable(sum(table.bytes for table in tables))}")


def _facts(table: "TableInfo") -> dict[str, Any]:
    """A table for --json; the time of its last use is in seconds since 1970."""
    return {**asdict(table), "folder": str(table.folder)}


@cache.command("verify")
@ROOT
def cache_verify(root: Path) -> None:
    """Read every shard and remove the damaged ones; a run that needs them computes them again.

    The exit code is 1 if any shard is damaged.
    """
    from mclip_kit.features.manage import list_tables, verify

    tables = list_tables(root)
    damaged = list(verify(tables))
    for folder in damaged:
        click.echo(f"{folder}: damaged and removed; a run that needs it computes it again")
    click.echo(f"{root}: {len(tables)} tables read, {len(damaged)} damaged shards")
    sys.exit(1 if damaged else 0)


@cache.command("prune")
@ROOT
@click.option("--days", type=click.FloatRange(min=0), help="Remove tables that were not used for so many days.")
@click.option(
    "--size",
    type=click.FloatRange(min=0),
    metavar="GB",
    help="Remove the tables used longest ago until so much is left.",
)
@click.option("--dry-run", is_flag=True, help="Only list what would be removed.")
def cache_prune(root: Path, days: float | None, size: float | None, dry_run: bool) -> None:
    """Remove tables by the time of their last use, by total size, or by both."""
    from mclip_kit.features.manage import list_tables, remove, select_for_removal

    if days is None and size is None:
        raise click.UsageError("say what to remove: give --days, --size or both")
    selected = select_for_removal(list_tables(root), days, None if size is None else int(size * 1e9))
    done = "would be removed" if dry_run else "removed"
    for table in selected:
        if not dry_run:
            remove(table)
        click.echo(f"{table.folder}: {readable(table.bytes)} {done}")
    total = readable(sum(table.bytes for table in selected))
    click.echo(f"{root}: {len(selected)} tables, {total} {done}")
