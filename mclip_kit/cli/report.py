"""mclip-kit report"""

from pathlib import Path

import click

from mclip_kit.cli.common import FILE, FOLDER
from mclip_kit.cli.output import note
from mclip_kit.disk import check_writable
from mclip_kit.layout import REPORT


@click.command()
@click.argument("runs", nargs=-1, required=True, type=FOLDER)
@click.option("--out", type=FILE, default=Path(REPORT), show_default=True, help="The page to write.")
def report(runs: tuple[Path, ...], out: Path) -> None:
    """Compare runs on one HTML page: scores, training curves, recipes.

    RUNS are folders of runs, or folders that mclip-kit eval wrote.
    """
    from mclip_kit.evaluate.report.results import check_folder

    for run in runs:
        check_folder(run)
    check_writable(out)
    from mclip_kit.evaluate.report import html
    from mclip_kit.train.logging import read_log

    html.write([html.read(run, read_log(run)) for run in dict.fromkeys(runs)], out)
    note(f"written: {out}")
