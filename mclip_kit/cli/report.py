"""mclip-kit report"""

from pathlib import Path

import click

from mclip_kit.cli.common import FILE, FOLDER


@click.command()
@click.argument("runs", nargs=-1, required=True, type=FOLDER)
@click.option("--out", type=FILE, default=Path("report.html"), show_default=True, help="The page.")
def report(runs: tuple[Path, ...], out: Path) -> None:
    """Put runs side by side on one page: scores, training curves, recipes.

    Each is a run's folder, or one that mclip-kit eval wrote.
    """
    from mclip_kit.evaluate.report import html
    from mclip_kit.train.logging import read_log

    html.write([html.read(run, read_log(run)) for run in dict.fromkeys(runs)], out)
    click.echo(f"written: {out}")
