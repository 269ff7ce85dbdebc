"""mclip-kit init"""

from pathlib import Path

import click

from mclip_kit.cli.common import ANY, FILE
from mclip_kit.errors import DataError, one_line
from mclip_kit.urls import is_copy


@click.command()
@click.argument("folder", type=ANY, default=".")
@click.option("--out", type=FILE, default="recipe.yaml", show_default=True, help="The recipe to write.")
def init(folder: Path, out: Path) -> None:
    """Look at a folder and write a recipe for what it has, and the commands to run next.

    It looks four folders deep, but not into hidden folders, runs/ and exports/. It finds tables of captions, pictures
    with captions beside them, shards, parallel text, what is prepared already, a CLIP in open_clip's form, a
    transformers encoder and model folders. It asks nothing and writes nothing else.
    """
    from mclip_kit.doctor.discover import discover
    from mclip_kit.doctor.starter import choose
    from mclip_kit.files import write_text

    if is_copy(folder):
        raise DataError(f"{folder}: init looks into folders of this machine; write URLs into a recipe yourself")
    if not folder.is_dir():
        what = "not a folder" if folder.exists() else "no such folder"
        raise DataError(f"{folder}: {what}; name the one that has your pictures, captions or parallel text")
    if out.exists():
        raise DataError(f"{out}: exists already and is not replaced; name another file with --out")
    starter, left = choose(discover(folder), folder)
    for data in filter(None, (starter.captions, starter.bitext)):
        click.echo(one_line(f"{data.what} ({', '.join(data.languages)})"))
    for line in (f"CLIP: {starter.clip or 'none found'}", f"encoder: {starter.encoder or 'none found'}", *left):
        click.echo(one_line(line))
    write_text(out, starter.recipe())
    click.echo(f"{out} is written; run next:")
    for command in starter.commands(out):
        click.echo(f"  {command}")
