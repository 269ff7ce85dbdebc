"""mclip-kit cache ls | verify | prune"""

import sys
from pathlib import Path

import click

from mclip_kit.cli.common import FOLDER
from mclip_kit.files import readable


@click.group()
def cache() -> None:
    """What frozen towers gave and is kept: list, verify, prune."""


ROOT = click.option(
    "--root", type=FOLDER, envvar="MCLIP_KIT_CACHE", default=Path("runs/features"), show_default=True, help="The cache."
)


@cache.command("ls")
@ROOT
def cache_ls(root: Path) -> None:
    """What is there, how large, of which weights, used when."""
    from datetime import datetime

    from mclip_kit.features.manage import tables

    kept = tables(root)
    for table in kept:
        used = f"{datetime.fromtimestamp(table.used):%Y-%m-%d %H:%M}"
        click.echo(
            f"{table.folder.name:32} {table.rows:>11,} rows {readable(table.bytes):>10}  {table.layout.dtype:5} "
            f"{table.precision:8} {used}  {table.named} ({table.weights[:8]})"
        )
    click.echo(f"{root}: {len(kept)} tables, {readable(sum(table.bytes for table in kept))}")


@cache.command("verify")
@ROOT
def cache_verify(root: Path) -> None:
    """Read everything and check it; what is damaged is computed anew when it is needed. Exit code 1 if any is."""
    from mclip_kit.features.manage import tables, verify

    kept = tables(root)
    damaged = list(verify(kept))
    for folder in damaged:
        click.echo(f"{folder}: damaged; it is computed anew when a run needs it")
    click.echo(f"{root}: {len(kept)} tables read, {len(damaged)} damaged shards")
    sys.exit(1 if damaged else 0)


@cache.command("prune")
@ROOT
@click.option("--days", type=float, help="Remove what was not used for so many days.")
@click.option("--size", type=float, metavar="GB", help="Remove what was used longest ago until so much is left.")
@click.option("--unnamed", is_flag=True, help="Remove features of weights that no recipe names.")
@click.option("--recipe", "recipes_", multiple=True, help="With --unnamed: a recipe besides shipped ones and runs'.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and remove nothing.")
def cache_prune(
    root: Path, days: float | None, size: float | None, unnamed: bool, recipes_: tuple[str, ...], dry_run: bool
) -> None:
    """Remove features by age, by size, or by weights that no recipe names (shipped ones, and those of runs beside)."""
    from mclip_kit.config.recipe import load
    from mclip_kit.config.yaml import shipped
    from mclip_kit.features.manage import remove, select_for_removal, tables

    if days is None and size is None and not unnamed:
        raise click.UsageError("say what may go: --days, --size or --unnamed")
    paths: list[str | Path] = [
        *shipped("recipes").glob("*.yaml"),
        *root.resolve().parent.glob("*/recipe.yaml"),
        *recipes_,
    ]
    named = {name for path in paths for name in load(path).sources.values()} if unnamed else None
    gone = select_for_removal(tables(root), days, None if size is None else int(size * 1e9), named)
    for table in gone:
        if not dry_run:
            remove(table)
        click.echo(f"{table.folder}: {readable(table.bytes)} {'would go' if dry_run else 'removed'}")
    total = readable(sum(table.bytes for table in gone))
    click.echo(f"{root}: {len(gone)} tables, {total} {'would go' if dry_run else 'removed'}")
