"""mclip-kit data show | sentences | send"""

from itertools import islice
from pathlib import Path
from random import Random

import click

from mclip_kit.cli.common import ANY, FOLDER, languages_of
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


@data.command()
@click.argument("folder", type=FOLDER)
@click.option("--out", required=True, type=FOLDER, help="Gets LANGUAGE.txt for each language.")
@click.option("--langs", help="Codes with commas between them.  [default: all but English]")
@click.option("--split", default="train", show_default=True)
@click.option("--lines", type=click.IntRange(1), default=1000, show_default=True, help="Of a language, at most.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of which lines, and in which order.")
def sentences(folder: Path, out: Path, langs: str | None, split: str, lines: int, seed: int) -> None:
    """Write plain sentences of a prepared folder, without pictures and translations, to try data.unpaired with.

    They are distinct captions in random order; those that another split than train has too are left out. A file with
    other lines is not overwritten.
    """
    from mclip_kit.data.captions import read_captions
    from mclip_kit.data.languages import TEACHER_LANGUAGE
    from mclip_kit.data.unpaired import sentences_of
    from mclip_kit.files import check_new, write_text

    captions = read_captions(folder)
    wanted = languages_of(langs)
    if isinstance(wanted, str):
        wanted = [code for code in captions.languages.present() if code != TEACHER_LANGUAGE]
    for language in dict.fromkeys(wanted):
        found = sentences_of(captions, language, split)
        chosen = Random(seed).sample(found, min(lines, len(found)))
        text, path = "".join(f"{line}\n" for line in chosen), out / f"{language}.txt"
        out.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_bytes() != text.encode():
            check_new(path)
            write_text(path, text)
        click.echo(f"{path}: {len(chosen):,} of {len(found):,} sentences")


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
