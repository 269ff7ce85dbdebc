"""mclip-kit data show | send"""

from itertools import islice
from pathlib import Path

import click

from mclip_kit.cli.common import ANY, FOLDER
from mclip_kit.urls import is_copy

TABLES = ("captions", "images", "uncaptioned")


@click.group()
def data() -> None:
    """Look into prepared folders; send again what object storage did not take."""


@data.command()
@click.argument("folder", type=FOLDER)
@click.option("--table", type=click.Choice(TABLES), default=TABLES[0], show_default=True)
@click.option("--rows", type=click.IntRange(1), help="The first rows only.  [default: all]")
def show(folder: Path, table: str, rows: int | None) -> None:
    """Print a table of a prepared folder as text: a line a row, with tabs between its cells.

    Images have a group (equal numbers look the same), a stratum, and their file, which is empty if it was not found;
    uncaptioned are pictures without a caption in a split.
    """
    from mclip_kit.data.captions import check_prepared
    from mclip_kit.data.tables import as_text, open_tables

    check_prepared(folder)
    lines = dict(as_text(open_tables(folder)))[f"{table}.tsv"]
    for line in islice(lines, None if rows is None else rows + 1):
        click.echo(line, nl=False)


@data.command("send")
@click.argument("place", metavar="URL", type=ANY)
def send_again(place: Path) -> None:
    """Send what was written to a place in object storage and could not be sent, a file or all of a folder.

    It is kept on this machine until then. It replaces what is there.
    """
    from mclip_kit.storage import send_rest

    if not is_copy(place):
        raise click.UsageError(f"{place}: not a URL of object storage, as in s3://BUCKET/FOLDER")
    count = send_rest(place)
    click.echo(f"{place}: {count:,} files sent" if count else f"{place}: nothing waits to be sent")
